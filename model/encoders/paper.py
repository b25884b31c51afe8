"""The encoders of the paper (arXiv 2601.14607), the baseline of every accuracy table."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from seisbind.model.encoders.blocks import EMBEDDING, channels_last, condition, stages, trunk_cells
from seisbind.model.encoders.seismic import GatherEmbedding
from seisbind.model.frame import PATCH_RECEIVERS, PATCH_SAMPLES, Frame


class PaperSeismicEncoder(nn.Module):
    """A CNN shared by the shots, averaged over them: symmetric in their order (our reading of arXiv 2601.14607)."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        high, wide = trunk_cells(frame)
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((1, 16, 32, 64, 128)):
            kernel, stride = (7, (PATCH_SAMPLES, PATCH_RECEIVERS)) if inputs == 1 else (3, 2)
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            blocks += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.shared = channels_last(nn.Sequential(*blocks))  # (250, 70) -> (50, 35) -> (25, 18) -> (13, 9) -> (7, 5)
        self.project = nn.Sequential(nn.Linear(128 * high * wide, 512), nn.ReLU(), nn.Linear(512, EMBEDDING))

    def forward(self, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> GatherEmbedding:
        batch, shots, samples, receivers = traces.shape
        p = condition(traces, live).reshape(batch * shots, 1, samples, receivers)
        f = self.shared(p).flatten(1).reshape(batch, shots, -1)
        present = live.any(dim=-1).to(f.dtype)[..., None]
        pooled = (f * present).sum(dim=1) / present.sum(dim=1).clamp_min(1)
        return GatherEmbedding(F.normalize(self.project(pooled).float(), dim=-1))


class PaperVelocityEncoder(nn.Module):
    """ResNet-18 (He et al. 2016) with a single input channel."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.middle_m_s, self.spread_m_s = frame.middle_m_s, frame.spread_m_s
        stem = nn.Sequential(
            nn.Conv2d(1, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.stem = channels_last(stem)
        self.trunk = channels_last(stages(64, (64, 128, 256, 512), first_stride=1))
        self.project = nn.Linear(512, EMBEDDING)

    def forward(self, velocity: Tensor) -> Tensor:
        v = (velocity.float()[:, None] - self.middle_m_s) / self.spread_m_s
        return F.normalize(self.project(self.trunk(self.stem(v)).mean(dim=(2, 3))).float(), dim=-1)
