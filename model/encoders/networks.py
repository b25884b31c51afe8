"""The three encoders: shot gathers, velocity models and descriptors into one space of unit vectors.

`Encoders` are built from an `EncoderConfig` and a `Frame`, which they are sized by: SeisBind's own, or the paper's
(arXiv 2601.14607), the baseline of every accuracy table. Both answer `embed_gathers`, `embed_velocity` and
`embed_descriptors`. Sizes in comments are those of OpenFWI's frame.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME, PATCH_RECEIVERS, PATCH_SAMPLES, Frame
from seisbind.model.ground.descriptors import NAMES

EMBEDDING = 256
FEWEST_BLOCKS = (2, 2, 2)
STEM = 16  # channels that each shot brings to the merge
STAGES = 3  # of the trunks, each at half the resolution of the one before
COMPRESSION = 2.0  # log(1 + 2 |p|): a stronger gain lifts boundary artefacts and noise with the coda
OPENFWI_RMS = 1.5  # of a published gather, so that `COMPRESSION` means what it meant there
MIDDLE_LAYER, FINE_LAYER = 3, 6  # of the map head: the last at 18 x 18, and the last with channels at 36 x 36
MAX_LOGIT_SCALE = 100.0  # CLIP's clamp, exp(ln 100)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """What has to be known to build the encoders again; stored with the weights.

    Attributes:
        kind: ``seisbind`` or ``paper``.
        width: channels of the first residual stage over the gathers; doubled in each of the next two.
        velocity_width: the same for the velocity encoder.
        neck: channels of the last feature map over the gathers, before it is read as a whole.
        hidden: width of the layer before each embedding.
        ahead: residual blocks over the gathers before the first stage halves them.
        blocks: residual blocks of each stage over the gathers, at least two.
        mixers: residual layers over the gather as a whole.
        finish: residual blocks at each of the map head's two resolutions.
        families: names that the family head tells apart; none, no head. Training takes them from its pairs.
    """

    kind: Literal["seisbind", "paper"] = "seisbind"
    width: int = 48
    velocity_width: int = 32
    neck: int = 96
    hidden: int = 768
    ahead: int = 0
    blocks: tuple[int, int, int] = FEWEST_BLOCKS
    mixers: int = 0
    finish: int = 0
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        counts = self.ahead, self.mixers, self.finish
        if min(counts) < 0 or len(self.blocks) != len(FEWEST_BLOCKS) or min(self.blocks) < FEWEST_BLOCKS[0]:
            raise InvalidConfig(
                f"Encoders need 'ahead', 'mixers' and 'finish' of 0 or more (got {counts}) and three 'blocks' of "
                f"{FEWEST_BLOCKS[0]} or more (got {self.blocks})."
            )
        if self.kind == "paper" and (any(counts) or self.blocks != FEWEST_BLOCKS):
            raise InvalidConfig("The paper's encoders have a fixed number of layers.")


@dataclass(frozen=True, slots=True)
class GatherEmbedding:
    """What the seismic encoder says of a batch of gathers.

    Attributes:
        embedding: ``(batch, 256)``, unit length.
        descriptors: ``(batch, 13)`` in standard deviations of the training set, or None (paper's encoders).
        descriptor_scale: ``(batch, 13)`` the scale of a Laplace law about them, same unit, or None.
        velocity: ``(batch, 35, 35)`` coarse velocity model in units of `Frame.spread_m_s` about `Frame.middle_m_s`, or
            None.
        family: ``(batch, families)`` logits, or None.
    """

    embedding: Tensor
    descriptors: Tensor | None = None
    descriptor_scale: Tensor | None = None
    velocity: Tensor | None = None
    family: Tensor | None = None


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


def _halved(cells: int, times: int) -> int:
    """What strides of 2 leave of ``cells``."""
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


def _stages(
    inputs: int, widths: tuple[int, ...], *, first_stride: int = 2, counts: tuple[int, ...] | None = None
) -> nn.Sequential:
    """``counts`` residual blocks a width (two), each stage at half the resolution of the one before."""
    blocks: list[nn.Module] = []
    for i, (width, count) in enumerate(zip(widths, counts or (2,) * len(widths), strict=True)):
        blocks += [Residual(inputs, width, stride=first_stride if i == 0 else 2), Residual(width, width)]
        blocks += [Residual(width, width, idle=True) for _ in range(count - 2)]
        inputs = width
    return nn.Sequential(*blocks)


def _channels_last(module: nn.Sequential) -> nn.Sequential:
    """Kernels laid out for channels-last convolutions, a quarter faster here on the CPU, as on a GPU in bf16."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _as_channels(last: Tensor) -> Tensor:
    """(batch, height, width, channel) -> (batch, channel, height, width), without a copy: channels-last."""
    return last.permute(0, 3, 1, 2)


def _trunk_cells(frame: Frame) -> tuple[int, int]:
    """(time, receiver) cells of the last feature map over a gather: patches, then three strides of 2."""
    return _halved(frame.samples // PATCH_SAMPLES, STAGES), _halved(frame.receivers // PATCH_RECEIVERS, STAGES)


class ShotMerge(nn.Module):
    """Per-shot feature maps joined by shot position, for any number of shots.

    Each shot is spread over the bins next to it by linear weights; bins lie at the frame's shot positions, so
    that its own geometry fills each bin with one shot. A bin without a shot is zero, and the join is told so.
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
        return F.relu(self.norm(_as_channels(merged)), inplace=True)


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
    """Of which four times are at least ``cells``."""
    return -(-cells // 4)


class MapHead(nn.Module):
    """A coarse velocity model from one vector: a 9 x 9 seed, doubled twice between convolutions."""

    def __init__(self, inputs: int, finish: int, frame: Frame) -> None:
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

    def forward(self, h: Tensor) -> Tensor:
        """``(batch, inputs)`` -> ``(batch, 35, 35)``; the 36th row and column of what is drawn are cut off."""
        x = self.seed(h).reshape(-1, 48, *self.seed_cells)
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number == MIDDLE_LAYER:
                x = self.middle(x)
            elif number == FINE_LAYER:
                x = self.fine(x)
        drawn: Tensor = x
        return drawn[:, 0, : self.cells[0], : self.cells[1]].float()


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
        self.stem = _channels_last(nn.Sequential(nn.Conv2d(inputs, STEM, 3, 1, 1), nn.ReLU(inplace=True)))
        self.merge = ShotMerge(STEM, config.width, frame)
        widths = (config.width, 2 * config.width, 4 * config.width)
        ahead = (Residual(config.width, config.width, idle=True) for _ in range(config.ahead))
        self.ahead = _channels_last(nn.Sequential(*ahead))
        # (50, 35) -> (25, 18) -> (13, 9) -> (7, 5)
        self.trunk = _channels_last(_stages(config.width, widths, counts=config.blocks))
        high, wide = _trunk_cells(frame)
        self.squeeze = nn.Sequential(
            nn.Conv2d(widths[-1], config.neck, 1, bias=False), nn.BatchNorm2d(config.neck), nn.ReLU(inplace=True)
        )
        self.features = nn.Sequential(
            nn.Linear(config.neck * high * wide, config.hidden), nn.LayerNorm(config.hidden), nn.GELU()
        )
        self.mixers = nn.Sequential(*(Mixer(config.hidden) for _ in range(config.mixers)))
        self.project = nn.Linear(config.hidden, EMBEDDING)
        self.map_head = MapHead(config.hidden, config.finish, frame)
        # beside the features, it reads each depth's mean and scatter off the predicted model
        self.descriptor_head = nn.Sequential(
            nn.Linear(config.hidden + 2 * frame.map_shape[0], config.hidden // 2),
            nn.GELU(),
            nn.Linear(config.hidden // 2, 2 * len(NAMES)),
        )
        self.family_head = nn.Linear(config.hidden, len(config.families)) if config.families else None

    def forward(self, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> GatherEmbedding:
        """``traces``: (batch, shot, 250, 70) linear; ``live``: (batch, shot, 70); ``shot_x_m``: (batch, shot)."""
        x = self._merged(condition(traces, live), live, shot_x_m / self.line_m)
        x = self.squeeze(self.trunk(self.ahead(x)))
        h = self.mixers(self.features(x.flatten(1)))
        velocity = self.map_head(h)
        profile = torch.cat([velocity.mean(dim=2), velocity.std(dim=2)], dim=1).to(h.dtype)
        value, log_scale = self.descriptor_head(torch.cat([h, profile], dim=1)).float().chunk(2, dim=1)
        return GatherEmbedding(
            embedding=F.normalize(self.project(h).float(), dim=-1),
            descriptors=value,
            descriptor_scale=log_scale.clamp(-6, 2).exp(),
            velocity=velocity,
            family=None if self.family_head is None else self.family_head(h).float(),
        )

    def _merged(self, p: Tensor, live: Tensor, shot_x: Tensor) -> Tensor:
        """(batch, channel, 50, 35): the shots through the stem, joined."""
        f = self.stem(_as_channels(self._patches(p, live, shot_x)))
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


class VelocityEncoder(nn.Module):
    """Residual network over velocity and its vertical and lateral differences."""

    def __init__(self, config: EncoderConfig, frame: Frame) -> None:
        super().__init__()
        self.middle_m_s, self.spread_m_s = frame.middle_m_s, frame.spread_m_s
        high, wide = (_halved(cells, STAGES + 1) for cells in frame.velocity_shape)
        w = config.velocity_width
        stem = nn.Sequential(nn.Conv2d(3, w, 5, 2, 2, bias=False), nn.BatchNorm2d(w), nn.ReLU(inplace=True))
        self.stem = _channels_last(stem)
        self.trunk = _channels_last(_stages(w, (w, 2 * w, 4 * w)))  # 35 -> 18, 9, 5
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
        x = _as_channels(torch.stack([v, 4 * down, 4 * across], dim=-1))  # (batch, 3, depth, x)
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


class PaperSeismicEncoder(nn.Module):
    """A CNN shared by the shots, averaged over them: symmetric in their order (our reading of arXiv 2601.14607)."""

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        high, wide = _trunk_cells(frame)
        blocks: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((1, 16, 32, 64, 128)):
            kernel, stride = (7, (PATCH_SAMPLES, PATCH_RECEIVERS)) if inputs == 1 else (3, 2)
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
            blocks += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.shared = _channels_last(nn.Sequential(*blocks))  # (250, 70) -> (50, 35) -> (25, 18) -> (13, 9) -> (7, 5)
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
        self.stem = _channels_last(stem)
        self.trunk = _channels_last(_stages(64, (64, 128, 256, 512), first_stride=1))
        self.project = nn.Linear(512, EMBEDDING)

    def forward(self, velocity: Tensor) -> Tensor:
        v = (velocity.float()[:, None] - self.middle_m_s) / self.spread_m_s
        return F.normalize(self.project(self.trunk(self.stem(v)).mean(dim=(2, 3))).float(), dim=-1)


class Encoders(nn.Module):
    """Seismic, velocity and physics encoders with the temperature and the descriptors' standardisation.

    Buffers ``descriptor_mean`` and ``descriptor_std`` (13,) come from the training set.
    """

    descriptor_mean: Tensor
    descriptor_std: Tensor

    def __init__(self, config: EncoderConfig, *, frame: Frame = OPENFWI_FRAME) -> None:
        super().__init__()
        self.config = config
        self.frame = frame
        self.seismic: nn.Module
        self.velocity: nn.Module
        if config.kind == "paper":
            self.seismic, self.velocity = PaperSeismicEncoder(frame), PaperVelocityEncoder(frame)
            self.physics = PhysicsEncoder(256, layers=2)
        else:
            self.seismic, self.velocity = SeismicEncoder(config, frame), VelocityEncoder(config, frame)
            self.physics = PhysicsEncoder(config.hidden)
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # CLIP's start
        self.register_buffer("descriptor_mean", torch.zeros(len(NAMES)))
        self.register_buffer("descriptor_std", torch.ones(len(NAMES)))

    def lock(self) -> None:
        """Training moves the seismic encoder only (Zhai et al. 2022, LiT): the others and the temperature stay."""
        for part in (self.velocity, self.physics):
            part.requires_grad_(False).eval()
        self.logit_scale.requires_grad_(False)

    def embed_gathers(self, traces: Tensor, live: Tensor, shot_x_m: Tensor) -> GatherEmbedding:
        """See `SeismicEncoder.forward`; inputs as in `survey.Prepared`."""
        out: GatherEmbedding = self.seismic(traces, live, shot_x_m)
        return out

    def embed_velocity(self, velocity: Tensor) -> Tensor:
        """``(batch, 70, 70)`` m/s -> ``(batch, 256)`` unit vectors."""
        out: Tensor = self.velocity(velocity)
        return out

    def embed_descriptors(self, descriptors: Tensor) -> Tensor:
        """``(batch, 13)`` in the units of `descriptors.DESCRIPTORS` -> ``(batch, 256)`` unit vectors."""
        out: Tensor = self.physics(self.standardise(descriptors))
        return out

    def standardise(self, descriptors: Tensor) -> Tensor:
        return (descriptors - self.descriptor_mean) / self.descriptor_std

    def scale(self) -> Tensor:
        """Inverse temperature, clamped at 100."""
        return self.logit_scale.exp().clamp_max(MAX_LOGIT_SCALE)
