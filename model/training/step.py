"""One step of a run: the loss of a batch and its gradients, whole or in parts.

In parts, each is embedded by itself, and the contrastive loss is taken over all of them: first the embeddings, joined
over parts and processes; then the loss of the whole batch and its gradient at the embeddings; then, part by part, the
gradient of the encoders there (GradCache, Gao et al. 2021). Memory is that of one part, and the negatives are those of
the whole batch. A part that is the only one of its process is embedded once. Norms (`nn.BatchNorm2d`) see their part,
and their running means take the mean over parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.seismic import GatherEmbedding
from seisbind.model.training.augment import Batch
from seisbind.model.training.loss import LossTerms, contrastive_loss, head_loss, total_loss
from seisbind.model.training.ranks import Ranks
from seisbind.model.training.recipe import TrainConfig

Part = tuple[Batch, PairSet]  # augmented gathers, and the pairs that they are of


@dataclass(frozen=True, slots=True)
class _Embedded:
    """What the encoders make of a part; without contrastive terms the gathers alone."""

    gathers: GatherEmbedding
    velocity: Tensor | None
    physics: Tensor | None

    def embeddings(self) -> list[Tensor]:
        return [each for each in (self.gathers.embedding, self.velocity, self.physics) if each is not None]


def gradients(
    encoders: Encoders, parts: Sequence[Part], config: TrainConfig, ranks: Ranks, *, step: int = 0
) -> LossTerms:
    """The loss of a batch, whose gradients are then those of ``encoders``, the same in every process.

    Args:
        parts: those of this process (`Ranks.groups`).
        step: its number, by which, with the seed, layers forget that do so at random.
    """
    if config.parts == 1:
        return _whole(encoders, parts[0], config, step)
    return _in_parts(encoders, parts, config, ranks, step)


def _whole(encoders: Encoders, part: Part, config: TrainConfig, step: int) -> LossTerms:
    batch, pairs = part
    embedded = _embed(encoders, part, config, (step, 0))
    terms = total_loss(
        embedded.gathers,
        embedded.velocity,
        embedded.physics,
        velocity=batch.velocity,
        descriptors=encoders.standardise(pairs.descriptors),
        family=pairs.family,
        scale=encoders.scale(),
        config=config.loss,
        frame=pairs.frame,
    )
    terms.total.backward()  # type: ignore[no-untyped-call]
    return terms


def _in_parts(encoders: Encoders, parts: Sequence[Part], config: TrainConfig, ranks: Ranks, step: int) -> LossTerms:
    norms = _Norms(encoders)
    own = [(step, ranks.rank * len(parts) + number) for number in range(len(parts))]  # among those of all processes
    once = len(parts) == 1
    pulls: list[tuple[Tensor, ...]] | None = None
    joint: LossTerms | None = None
    ahead: _Embedded | None = None
    if config.loss.contrastive:
        found = []
        for part, place in zip(parts, own, strict=True):
            norms.begin_part()
            with nullcontext() if once else torch.no_grad():
                ahead = _embed(encoders, part, config, place)
            found.append(ahead.embeddings())
        joint, pulls = _joint(encoders, found, parts, config, ranks)
    total = torch.zeros((), device=parts[0][0].traces.device)
    totals: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        if ahead is None or not once:
            norms.begin_part()
            embedded = _embed(encoders, part, config, own[number])
        else:
            embedded = ahead
        norms.end_part()
        heads = head_loss(
            embedded.gathers,
            velocity=part[0].velocity,
            descriptors=encoders.standardise(part[1].descriptors),
            family=part[1].family,
            config=config.loss,
            frame=part[1].frame,
        )
        surrogate = heads.total / config.parts
        if pulls is not None:
            for each, pull in zip(embedded.embeddings(), pulls, strict=True):
                if each.requires_grad:
                    surrogate = surrogate + (each * pull[number]).sum()
        if surrogate.requires_grad:
            surrogate.backward()  # type: ignore[no-untyped-call]
        total = total + heads.total.detach() / config.parts
        for name, value in heads.parts.items():
            totals[name] = totals.get(name, 0) + value / config.parts
    shared = [p.grad for p in encoders.parameters() if p.grad is not None]
    ranks.add_up([*shared, *norms.sums(), total, *totals.values()])
    norms.settle(config.parts)
    if joint is not None:
        total, totals = total + joint.total.detach(), joint.parts | totals
    return LossTerms(total, totals)


def _joint(
    encoders: Encoders,
    found: Sequence[list[Tensor]],
    parts: Sequence[Part],
    config: TrainConfig,
    ranks: Ranks,
) -> tuple[LossTerms, list[tuple[Tensor, ...]]]:
    """The contrastive loss of the whole batch, and its gradient at each embedding of this process's parts.

    The gradient of the temperature is put where it belongs: this process's share of it, for all have the whole loss.
    """
    size = len(found[0][0])
    leaves = [
        ranks.gathered(torch.cat([part.detach() for part in modality])).requires_grad_()
        for modality in zip(*found, strict=True)
    ]
    terms = contrastive_loss(
        *leaves,
        velocity=ranks.gathered(torch.cat([batch.velocity for batch, _ in parts])),
        scale=encoders.scale(),
        config=config.loss,
    )
    temperature = encoders.logit_scale
    wanted = [*leaves, temperature] if temperature.requires_grad else leaves
    pulls = list(torch.autograd.grad(terms.total, wanted, allow_unused=True))
    if temperature.requires_grad:
        temperature.grad = pulls.pop() / ranks.count
    begin = ranks.rank * len(parts) * size
    own = slice(begin, begin + len(parts) * size)
    return terms, [
        torch.split((torch.zeros_like(leaf) if pull is None else pull)[own], size)
        for leaf, pull in zip(leaves, pulls, strict=True)
    ]


def _embed(encoders: Encoders, part: Part, config: TrainConfig, place: tuple[int, int]) -> _Embedded:
    """``place``: the step, and the number of the part in it."""
    batch, pairs = part
    with _drawn_by((config.seed, *place), batch.traces.device), _autocast(config, batch.traces.device):
        gathers = encoders.embed_gathers(batch.traces, batch.live, batch.shot_x_m)
        velocity = physics = None
        if config.loss.contrastive:
            velocity = encoders.embed_velocity(batch.velocity)
            physics = encoders.embed_descriptors(pairs.descriptors)
    return _Embedded(gathers, velocity, physics)


@contextmanager
def _drawn_by(key: tuple[int, ...], device: torch.device) -> Iterator[None]:
    """What is random in the layers follows from ``key`` alone: not from what ran before, nor in how many processes."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        yield


def _autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if _bf16(config, device) else nullcontext()


def _bf16(config: TrainConfig, device: torch.device) -> bool:
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Norms:
    """The running means of norms that are being trained: each part begins from those of before the step.

    A part gets copies to move, for its gradient needs those that it began with to be left alone.
    """

    def __init__(self, encoders: Encoders) -> None:
        self._norms = [norm for norm in encoders.modules() if isinstance(norm, nn.BatchNorm2d) and norm.training]
        self._before = [dict(norm.named_buffers()) for norm in self._norms]
        self._sums: list[Tensor] = []

    def begin_part(self) -> None:
        for norm, before in zip(self._norms, self._before, strict=True):
            for name, buffer in before.items():
                setattr(norm, name, buffer.clone())

    def end_part(self) -> None:
        """Take what the part has moved into the mean."""
        moved = [buffer for norm in self._norms for buffer in norm.buffers() if buffer.is_floating_point()]
        self._sums = [a + b for a, b in zip(self._sums, moved, strict=True)] if self._sums else moved

    def sums(self) -> list[Tensor]:
        """Over the parts so far; to be added up over the processes."""
        self._sums = [each.clone() for each in self._sums]
        return self._sums

    def settle(self, parts: int) -> None:
        """Leave the means over all ``parts``, as after one step."""
        sums = iter(self._sums)
        for norm in self._norms:
            for name, buffer in list(norm.named_buffers()):
                if buffer.is_floating_point():
                    setattr(norm, name, next(sums) / parts)
