"""Layers that the encoders share, and how they scale amplitudes.

Sizes in comments are those of OpenFWI's frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seisbind.model.frame import PATCH_RECEIVERS, PATCH_SAMPLES, Frame

EMBEDDING = 256
STAGES = 3  # of the trunks, each at half the resolution of the one before
COMPRESSION = 2.0  # log(1 + 2 |p|): a stronger gain lifts boundary artefacts and noise with the coda
OPENFWI_RMS = 1.5  # of a published gather, so that `COMPRESSION` means what it meant there


def condition(traces: Tensor, live: Tensor) -> Tensor:
    """Amplitude policy: each shot to OpenFWI's rms over its live traces, then ``sign(p) log(1 + 2 |p|)``.

    Removes any gain of the record or of a shot exactly.

    Args:
        traces: ``(batch, shot, time, receiver)``, linear.
        live: ``(batch, shot, receiver)`` bool.
    """
    energy = traces.float().square().mean(dim=2)  # (batch, shot, receiver)
    count = live.sum(dim=-1).clamp_min(1)
    rms = ((energy * live).sum(dim=-1) / count).sqrt()  # (batch, shot)
    scale = torch.where(rms > 0, OPENFWI_RMS / rms.clamp_min(1e-30), torch.zeros_like(rms))
    p = traces * scale[:, :, None, None] * live[:, :, None, :]
    return torch.sign(p) * torch.log1p(COMPRESSION * p.abs())


def halved(cells: int, times: int) -> int:
    """The number of cells that is left of ``cells`` after strides of 2."""
    for _ in range(times):
        cells = -(-cells // 2)
    return cells


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016); with ``idle``, they begin by adding nothing."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, idle: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        if idle:
            nn.init.zeros_(self.second_norm.weight)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x), inplace=True)


def stages(
    inputs: int, widths: tuple[int, ...], *, first_stride: int = 2, counts: tuple[int, ...] | None = None
) -> nn.Sequential:
    """``counts`` residual blocks per width (two), each stage at half the resolution of the one before."""
    blocks: list[nn.Module] = []
    for i, (width, count) in enumerate(zip(widths, counts or (2,) * len(widths), strict=True)):
        blocks += [Residual(inputs, width, stride=first_stride if i == 0 else 2), Residual(width, width)]
        blocks += [Residual(width, width, idle=True) for _ in range(count - 2)]
        inputs = width
    return nn.Sequential(*blocks)


def channels_last(module: nn.Sequential) -> nn.Sequential:
    """Kernels laid out for channels-last convolutions: a quarter faster on a CPU, and on a GPU in bf16."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def as_channels(last: Tensor) -> Tensor:
    """(batch, height, width, channel) -> (batch, channel, height, width), without a copy: channels-last."""
    return last.permute(0, 3, 1, 2)


def trunk_cells(frame: Frame) -> tuple[int, int]:
    """(time, receiver) cells of the last feature map over a gather: patches, then three strides of 2."""
    return halved(frame.samples // PATCH_SAMPLES, STAGES), halved(frame.receivers // PATCH_RECEIVERS, STAGES)
