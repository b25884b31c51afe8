"""The seismic encoder: shots through a shared stem, merged by position, read as a whole, with prediction heads.

Sizes in comments are those of OpenFWI's frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seisbind.model.encoders.blocks import (
    EMBEDDING,
    Residual,
    as_channels,
    channels_last,
    condition,
    stages,
    trunk_cells,
)
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.frame import PATCH_RECEIVERS, PATCH_SAMPLES, Frame
from seisbind.model.ground.descriptors import NAMES

STEM = 16  # channels that each shot brings to the merge
FIRST_ERROR = 0.15  # that the map head states before it is trained, in units of `Frame.spread_m_s`
KIND_HIDDEN = 128  # width of the head that tells kinds of ground
KIND_DROPOUT = 0.5  # in it: what it learns of some kinds has to hold for others
MIDDLE_LAYER, FINE_LAYER = 3, 6  # of the map head: the last at 18 x 18, and the last with channels at 36 x 36


@dataclass(frozen=True, slots=True)
class GatherEmbedding:
    """Output of the seismic encoder for a batch of gathers.

    Attributes:
        embedding: ``(batch, 256)``, unit length.
        descriptors: ``(batch, 13)`` in standard deviations of the training set, or None (paper's encoders).
        descriptor_scale: ``(batch, 13)`` the scale of a Laplace law about them, same unit, or None.
        velocity: ``(batch, 35, 35)`` coarse velocity model in units of `Frame.spread_m_s` about `Frame.middle_m_s`, or
            None.
        velocity_scale: ``(batch, 35, 35)`` the scale of a Laplace law about it, same unit, or None.
        family: ``(batch, families)`` logits, or None.
        kind: ``(batch, kinds)`` logits, or None.
    """

    embedding: Tensor
    descriptors: Tensor | None = None
    descriptor_scale: Tensor | None = None
    velocity: Tensor | None = None
    velocity_scale: Tensor | None = None
    family: Tensor | None = None
    kind: Tensor | None = None


class ShotMerge(nn.Module):
    """Per-shot feature maps joined by shot position, for any number of shots.

    Each shot is spread over the bins next to it by linear weights; bins lie at the frame's shot positions, so
    that its own geometry fills each bin with one shot. A bin without a shot is zero; `filled` marks the others.
    """

    centres: Tensor

    def __init__(self, channels: int, outputs: int, frame: Frame) -> None:
        super().__init__()
        self.register_buffer("centres", torch.tensor(frame.shot_x_m) / frame.line_m, persistent=False)
        bins = len(frame.shot_x_m)
        bound = (bins * channels) ** -0.5
        self.join = nn.Parameter(torch.empty(bins, channels * outputs).uniform_(-bound, bound))
        self.filled = nn.Linear(bins, outputs, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor, shot_x: Tensor, present: Tensor) -> Tensor:
        """``features``: (batch, shot, time, receiver, channel); ``shot_x``: (batch, shot) in lines; -> merged."""
        batch, shots, height, width, channels = features.shape
        centres = self.centres
        x = shot_x.clamp(0, 1)
        right = (centres < x[..., None]).sum(dim=-1).clamp(1, len(centres) - 1)  # searchsorted, which ONNX lacks
        share = (x - centres[right - 1]) / (centres[right] - centres[right - 1])
        weights = F.one_hot(right, len(centres)) * share[..., None]
        weights = weights + F.one_hot(right - 1, len(centres)) * (1 - share[..., None])
        weights = weights * present[..., None]  # (batch, shot, bin)
        total = weights.sum(dim=1)  # (batch, bin)
        weights = (weights / total.clamp_min(1.0)[:, None]).to(features.dtype)
        # spreading over bins and joining them is one matrix a gather: (batch, shot * channel, output)
        matrix = (weights @ self.join).reshape(batch, shots * channels, -1)
        joined = features.permute(0, 2, 3, 1, 4).reshape(batch, height * width, shots * channels)
        filled = self.filled(total.clamp_max(1.0).to(features.dtype))
        merged = torch.baddbmm(filled[:, None].to(matrix.dtype), joined, matrix).reshape(batch, height, width, -1)
        return F.relu(self.norm(as_channels(merged)), inplace=True)


class Refine(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, without a norm; they begin by adding nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, 1, 1)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(x)))  # type: ignore[no-any-return]


class CellError(nn.Conv2d):
    """The logarithm of each cell's scale of error; `FIRST_ERROR` everywhere until it is trained."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.constant_(self.bias, math.log(FIRST_ERROR))


class Mixer(nn.Module):
    """Two linear layers around a shortcut, over the features of a whole gather; they begin by adding nothing."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width // 2)
        self.second = nn.Linear(width // 2, width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.gelu(self.first(self.norm(h))))  # type: ignore[no-any-return]


def _quarter(cells: int) -> int:
    """A quarter of ``cells``, rounded up."""
    return -(-cells // 4)


class MapHead(nn.Module):
    """A coarse velocity model from one vector: a 9 x 9 seed, doubled twice between convolutions."""

    def __init__(self, inputs: int, finish: int, error: int, frame: Frame) -> None:
        super().__init__()
        self.cells = frame.map_shape
        self.seed_cells = _quarter(self.cells[0]), _quarter(self.cells[1])
        self.seed = nn.Linear(inputs, 48 * self.seed_cells[0] * self.seed_cells[1])
        self.layers = nn.Sequential(
            nn.GELU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(48, 32, 3, 1, 1),
            nn.GELU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(32, 16, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(16, 1, 3, 1, 1),
        )
        self.middle = nn.Sequential(*(Refine(32) for _ in range(finish)))
        self.fine = nn.Sequential(*(Refine(16) for _ in range(finish)))
        self.error = nn.Sequential(*(CellError(16, 1, 3, 1, 1) for _ in range(error)))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor | None]:
        """``(batch, inputs)`` -> ``(batch, 35, 35)`` of the model and its scale of error; row and column 36 are cut."""
        x = self.seed(h).reshape(-1, 48, *self.seed_cells)
        log_scale = None
        for number, layer in enumerate(self.layers):
            if number == len(self.layers) - 1 and len(self.error):
                log_scale = self._cut(self.error(x)).clamp(-6, 2)
            x = layer(x)
            if number == MIDDLE_LAYER:
                x = self.middle(x)
            elif number == FINE_LAYER:
                x = self.fine(x)
        return self._cut(x), None if log_scale is None else log_scale.exp()

    def _cut(self, upsampled: Tensor) -> Tensor:
        return upsampled[:, 0, : self.cells[0], : self.cells[1]].float()


def _kind_head(config: EncoderConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(config.hidden),
        nn.Linear(config.hidden, KIND_HIDDEN),
        nn.Sequential(nn.GELU(), nn.Dropout(KIND_DROPOUT)),
        nn.Linear(KIND_HIDDEN, len(config.kinds)),
    )


class SeismicEncoder(nn.Module):
    """Residual network over samples; a shared stem sees each shot with its offsets, then shots are merged."""

    receivers: Tensor

    def __init__(self, config: EncoderConfig, frame: Frame) -> None:
        super().__init__()
        self.line_m = frame.line_m
        nodes = torch.arange(frame.receivers) * frame.receiver_spacing_m / frame.line_m
        self.register_buffer("receivers", nodes, persistent=False)
        # (250, 70) -> (50, 35) patches: their samples, which of their receivers live, and their offset
        inputs = PATCH_SAMPLES * PATCH_RECEIVERS + PATCH_RECEIVERS + 1
        self.stem = channels_last(nn.Sequential(nn.Conv2d(inputs, STEM, 3, 1, 1), nn.ReLU(inplace=True)))
        self.merge = ShotMerge(STEM, config.width, frame)
        widths = (config.width, 2 * config.width, 4 * config.width)
        ahead = (Residual(config.width, config.width, idle=True) for _ in range(config.ahead))
        self.ahead = channels_last(nn.Sequential(*ahead))
        # (50, 35) -> (25, 18) -> (13, 9) -> (7, 5)
        self.trunk = channels_last(stages(config.width, widths, counts=config.blocks))
        high, wide = trunk_cells(frame)
        self.squeeze = nn.Sequential(
            nn.Conv2d(widths[-1], config.neck, 1, bias=False), nn.BatchNorm2d(config.neck), nn.ReLU(inplace=True)
        )
        self.features = nn.Sequential(
            nn.Linear(config.neck * high * wide, config.hidden), nn.LayerNorm(config.hidden), nn.GELU()
        )
        self.mixers = nn.Sequential(*(Mixer(config.hidden) for _ in range(config.mixers)))
        self.project = nn.Linear(config.hidden, EMBEDDING)
        self.map_head = MapHead(config.hidden, config.finish, config.map_error, frame)
        # its input is the features with the mean and standard deviation of the predicted model at each depth
        self.descriptor_head = nn.Sequential(
            nn.Linear(config.hidden + 2 * frame.map_shape[0], config.hidden // 2),
            nn.GELU(),
            nn.Linear(config.hidden // 2, 2 * len(NAMES)),
        )
        self.family_head = nn.Linear(config.hidden, len(config.families)) if config.families else None
        self.kind_head = _kind_head(config) if config.kinds else None

    def forward(self, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> GatherEmbedding:
        """``traces``: (batch, shot, 250, 70) linear; ``live``: (batch, shot, 70); ``shot_x_m``: (batch, shot)."""
        x = self._merged(condition(traces, live), live, shot_x_m / self.line_m)
        x = self.squeeze(self.trunk(self.ahead(x)))
        h = self.mixers(self.features(x.flatten(1)))
        velocity, velocity_scale = self.map_head(h)
        profile = torch.cat([velocity.mean(dim=2), velocity.std(dim=2)], dim=1).to(h.dtype)
        value, log_scale = self.descriptor_head(torch.cat([h, profile], dim=1)).float().chunk(2, dim=1)
        return GatherEmbedding(
            embedding=F.normalize(self.project(h).float(), dim=-1),
            descriptors=value,
            descriptor_scale=log_scale.clamp(-6, 2).exp(),
            velocity=velocity,
            velocity_scale=velocity_scale,
            family=None if self.family_head is None else self.family_head(h).float(),
            kind=None if self.kind_head is None else self.kind_head(h).float(),
        )

    def _merged(self, p: Tensor, live: Tensor, shot_x: Tensor) -> Tensor:
        """(batch, channel, 50, 35): the shots through the stem, joined."""
        f = self.stem(as_channels(self._patches(p, live, shot_x)))
        f = f.permute(0, 2, 3, 1)  # (batch * shot, time, receiver, channel)
        merged: Tensor = self.merge(f.reshape(*live.shape[:2], *f.shape[1:]), shot_x, live.any(dim=-1).to(f.dtype))
        return merged

    def _patches(self, p: Tensor, live: Tensor, shot_x: Tensor) -> Tensor:
        """(batch * shot, 50, 35, channel): each patch's 5 x 2 samples, its 2 receivers alive, its offset in lines."""
        batch, shots, samples, receivers = p.shape
        high, wide = samples // PATCH_SAMPLES, receivers // PATCH_RECEIVERS
        cut = p.reshape(batch * shots, high, PATCH_SAMPLES, wide, PATCH_RECEIVERS).permute(0, 1, 3, 2, 4)
        cut = cut.reshape(batch * shots, high, wide, -1)
        alive = live.to(p.dtype).reshape(batch * shots, 1, wide, PATCH_RECEIVERS)
        offset = (self.receivers - shot_x[..., None]).reshape(batch * shots, 1, wide, PATCH_RECEIVERS)
        about = torch.cat([alive, offset.mean(dim=-1, keepdim=True).to(p.dtype)], dim=-1)
        return torch.cat([cut, about.expand(-1, high, -1, -1)], dim=-1)
