"""The training loop: optimiser, averaged weights, log, checkpoints that resume exactly.

What a step sees depends on (seed, step) alone, so that a resumed run repeats the uninterrupted one bit for bit on the
same machine (CPU; a GPU adds its own rounding), also where several processes share the work (`ranks`): with other
numbers of them sums are rounded otherwise, and nothing else differs.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import choose_device
from seisbind.model.encoders.growth import begin_as, difference, grown
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import digest
from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.training.batches import likeness, make_batches
from seisbind.model.training.checkpoint import CHECKPOINT, State, load_checkpoint, save_checkpoint
from seisbind.model.training.log import RunLog
from seisbind.model.training.ranks import ALONE, Ranks
from seisbind.model.training.recipe import TrainConfig, described_recipe
from seisbind.model.training.step import Part, gradients


@dataclass(frozen=True, slots=True)
class Progress:
    """Reported after each step."""

    step: int
    steps: int
    loss: float
    samples_per_s: float


def train(
    pairs: PairSet,
    config: TrainConfig,
    out: Path,
    *,
    start: Encoders | None = None,
    resume: bool = False,
    device: str = "auto",
    stop_at: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
) -> Encoders:
    """Train encoders on ``pairs``; log to ``out/log.csv``, checkpoint to ``out/checkpoint.safetensors``.

    Args:
        pairs: at least one batch of training pairs; of several processes, each gives its own (`Ranks.rows`).
        config: the recipe; the number of processes divides its ``parts``.
        out: folder of the run; created.
        start: trained encoders to begin from, with their standardisation, instead of random ones. Their layers are
            kept, and those that the recipe has beyond them are added (`growth`). The family head starts from random
            weights where the pairs have other families.
        resume: continue from the checkpoint if there is one.
        device: ``auto``, ``cpu``, ``cuda``.
        stop_at: stop (with a checkpoint) after this step, as if interrupted.
        progress: called after each step.
        ranks: the processes of the run. The first writes log and checkpoint; all read the checkpoint.

    Returns:
        The encoders in evaluation mode, averaged weights where the recipe averages.

    Raises:
        InvalidConfig: fewer pairs than a batch, a checkpoint of another recipe or frame, processes that disagree, or
            as `check_start` and `check_frames`.
    """
    checkpoint = out / CHECKPOINT
    ranks.total(0)  # the first one may still be writing the checkpoint of the stage before
    if checkpoint.exists() and not resume:
        raise InvalidConfig(f"{out} holds a run already; go on with --resume, or train into another folder.")
    if config.parts % ranks.count:
        raise InvalidConfig(f"{ranks.count} processes cannot share a batch of {config.parts} parts; give more 'parts'.")
    ranks.check_same(int(checkpoint.exists()), "whether the run has a checkpoint (1) or not (0)")
    count = ranks.total(len(pairs))
    if count // config.parts < config.batch // config.parts:
        raise InvalidConfig(f"{count} pairs are fewer than one batch of {config.batch}; lower 'batch'.")
    check_start(config, start)
    check_frames(pairs, start)
    target = choose_device(device if ranks is ALONE else ranks.device)
    out.mkdir(parents=True, exist_ok=True)
    described = ranks.in_order(pairs.descriptors.float().to(target), config.parts).cpu()
    state = _fresh_state(pairs, described, config, start, target)
    start_digest = "" if start is None else digest("", {name: t.cpu() for name, t in start.state_dict().items()})
    made = {"config": json.dumps(described_recipe(config), sort_keys=True), "start": start_digest}
    if pairs.frame != OPENFWI_FRAME:
        made["frame"] = json.dumps(pairs.frame.to_dict() | {"name": ""}, sort_keys=True)
    if checkpoint.exists():
        load_checkpoint(checkpoint, state, made)
        ranks.check_same(state.step, "the step of the checkpoint")
    last = min(config.steps, stop_at if stop_at is not None else config.steps)
    compared = config.hard_negatives > 0 and state.step < last
    features = likeness(pairs.velocity, start) if compared else np.empty((len(pairs), 0), np.float32)
    batches = make_batches(pairs, features, config, state.step, last, target, ranks)
    with RunLog(out, state.step) if ranks.first else nullcontext() as log:
        for parts, rate in _timed(batches, config.batch):
            loss = _update(state, parts, config, ranks, log)
            if progress is not None:
                progress(Progress(state.step, config.steps, loss, rate))
            if state.step % config.checkpoint_every == 0 or state.step == last:
                if ranks.first:
                    save_checkpoint(checkpoint, state, made)
                if log is not None:
                    log.draw()
    return (state.averaged if config.ema else state.encoders).eval()


def check_start(config: TrainConfig, start: Encoders | None) -> None:
    """Whether a recipe can begin from ``start``; needs no pairs.

    Raises:
        InvalidConfig: encoders of another form than the recipe's, or none for a recipe that needs them.
    """
    if start is None:
        if config.locked or config.errors_only:
            which = "locked" if config.locked else "errors_only"
            raise InvalidConfig(f"A '{which}' recipe goes on from trained encoders; name their weights (--start).")
    elif unlike := difference(start.config, config.encoders):
        raise InvalidConfig(f"The weights to start from have another form ({unlike}); the recipe needs the same.")


def check_frames(pairs: PairSet, start: Encoders | None) -> None:
    """Whether training on ``pairs`` can begin from ``start``.

    Raises:
        InvalidConfig: the encoders are for another frame.
    """
    if start is not None and start.frame != pairs.frame:
        raise InvalidConfig(
            f"The weights to start from are for another frame than the pairs: {start.frame} there, {pairs.frame} here. "
            "Give weights of the pairs' frame, or leave --start out."
        )


def _fresh_state(
    pairs: PairSet, described: Tensor, config: TrainConfig, start: Encoders | None, device: torch.device
) -> State:
    """Encoders as a run begins with; ``described`` ``(n, 13)`` are the descriptors of all its pairs."""
    form = replace(config.encoders, families=pairs.families, kinds=())
    if start is not None and config.errors_only:
        form = replace(form, families=start.config.families, kinds=pairs.families)
    if start is not None:
        form = grown(start.config, form)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoders = Encoders(form, frame=pairs.frame)
    if start is None:
        encoders.descriptor_mean.copy_(described.mean(dim=0))
        encoders.descriptor_std.copy_(described.std(dim=0).clamp_min(1e-6))
    else:
        begin_as(encoders, start)
    encoders = encoders.to(device).train()
    if config.locked:
        encoders.lock()
    if config.errors_only:
        encoders.lock_readings()
    trained = [p for p in encoders.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        fused=device.type == "cuda",
    )
    return State(encoders, deepcopy(encoders).requires_grad_(False), optimizer)


def _update(state: State, parts: Sequence[Part], config: TrainConfig, ranks: Ranks, log: RunLog | None) -> float:
    """One step; returns the loss of the batch of which ``parts`` are this process's."""
    rate = _learning_rate(state.step, config)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    terms = gradients(state.encoders, parts, config, ranks, step=state.step)
    torch.nn.utils.clip_grad_norm_(state.encoders.parameters(), 5.0)
    state.optimizer.step()
    state.step += 1
    _average(state, config)
    loss = float(terms.total.detach())
    if not math.isfinite(loss):
        raise InvalidConfig(f"The loss is {loss} at step {state.step}; lower the learning rate ({rate:g} now).")
    if log is not None and (state.step % 10 == 0 or state.step == config.steps):
        row: dict[str, Any] = {"step": state.step, "samples": state.step * config.batch, "loss": loss}
        row |= {name: float(part) for name, part in terms.parts.items()}
        log.write(row | {"scale": float(state.encoders.scale().detach()), "learning_rate": rate})
    return loss


def _learning_rate(step: int, config: TrainConfig) -> float:
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@torch.no_grad()
def _average(state: State, config: TrainConfig) -> None:
    if not config.ema:
        return
    decay = min(config.ema, state.step / (state.step + 10))  # a short average at first
    kept, new = state.averaged.state_dict(), state.encoders.state_dict()
    floats = [name for name in kept if kept[name].is_floating_point()]
    torch._foreach_lerp_([kept[n] for n in floats], [new[n] for n in floats], 1 - decay)
    for name in kept.keys() - set(floats):
        kept[name].copy_(new[name])


def _timed(batches: Iterator[list[Part]], size: int) -> Iterator[tuple[list[Part], float]]:
    """Adds pairs per second, averaged over about twenty steps."""
    rate, before = 0.0, time.perf_counter()
    for parts in batches:
        yield parts, rate
        now = time.perf_counter()
        own = size / (now - before)
        rate, before = (own if not rate else 0.95 * rate + 0.05 * own), now
