"""The encoders of velocity models and of descriptors."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seisbind.model.encoders.blocks import EMBEDDING, STAGES, as_channels, channels_last, halved, stages
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.frame import Frame
from seisbind.model.ground.descriptors import NAMES


class VelocityEncoder(nn.Module):
    """Residual network over velocity and its vertical and lateral differences."""

    def __init__(self, config: EncoderConfig, frame: Frame) -> None:
        super().__init__()
        self.middle_m_s, self.spread_m_s = frame.middle_m_s, frame.spread_m_s
        high, wide = (halved(cells, STAGES + 1) for cells in frame.velocity_shape)
        w = config.velocity_width
        stem = nn.Sequential(nn.Conv2d(3, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True))
        self.stem = channels_last(stem)
        self.trunk = channels_last(stages(w, (w, 2 * w, 4 * w)))  # 35 -> 18, 9, 5
        self.squeeze = nn.Sequential(nn.Conv2d(4 * w, 64, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True))
        self.features = nn.Sequential(
            nn.Linear(64 * high * wide, config.hidden), nn.LayerNorm(config.hidden), nn.GELU()
        )
        self.project = nn.Linear(config.hidden, EMBEDDING)

    def forward(self, velocity: Tensor) -> Tensor:
        """``velocity``: (batch, 70, 70), m/s -> (batch, 256) unit vectors."""
        v = (velocity.float() - self.middle_m_s) / self.spread_m_s
        down = F.pad(v[:, 1:] - v[:, :-1], (0, 0, 0, 1))
        across = F.pad(v[:, :, 1:] - v[:, :, :-1], (0, 1))
        x = as_channels(torch.stack([v, 4 * down, 4 * across], dim=-1))  # (batch, 3, depth, x)
        x = self.squeeze(self.trunk(self.stem(x)))
        return F.normalize(self.project(self.features(x.flatten(1))).float(), dim=-1)


class PhysicsEncoder(nn.Module):
    """Multi-layer perceptron over standardised descriptors."""

    def __init__(self, hidden: int, *, layers: int = 3) -> None:
        super().__init__()
        sizes = [len(NAMES)] + [hidden] * layers
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            blocks += [nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.GELU()]
        self.layers = nn.Sequential(*blocks, nn.Linear(hidden, EMBEDDING))

    def forward(self, standardised: Tensor) -> Tensor:
        """``standardised``: (batch, 13) -> (batch, 256) unit vectors."""
        return F.normalize(self.layers(standardised).float(), dim=-1)
