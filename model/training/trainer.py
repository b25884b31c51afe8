"""The training loop: optimiser, averaged weights, log, checkpoints that resume exactly.

What a step sees depends on (seed, step) alone, so that a resumed run repeats the uninterrupted one bit for bit on the
same machine (CPU; a GPU adds its own rounding).
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import choose_device
from seisbind.model.encoders.growth import begin_as, difference, grown
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import digest
from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.training.augment import Batch
from seisbind.model.training.batches import likeness, make_batches
from seisbind.model.training.checkpoint import State, load_checkpoint, save_checkpoint
from seisbind.model.training.loss import total_loss
from seisbind.model.training.recipe import TrainConfig


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
) -> Encoders:
    """Train encoders on ``pairs``; log to ``out/log.csv``, checkpoint to ``out/checkpoint.safetensors``.

    Args:
        pairs: at least one batch of training pairs.
        config: the recipe.
        out: folder of the run; created.
        start: trained encoders to begin from, with their standardisation, instead of random ones. Their layers are
            kept, and those that the recipe has beyond them are added (`growth`). The family head starts from random
            weights where the pairs have other families.
        resume: continue from the checkpoint if there is one.
        device: ``auto``, ``cpu``, ``cuda``.
        stop_at: stop (with a checkpoint) after this step, as if interrupted.
        progress: called after each step.

    Returns:
        The encoders in evaluation mode, averaged weights where the recipe averages.

    Raises:
        InvalidConfig: fewer pairs than a batch, a checkpoint of another recipe or frame, or as `check_start` and
            `check_frames`.
    """
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists() and not resume:
        raise InvalidConfig(f"{out} holds a run already; go on with --resume, or train into another folder.")
    if len(pairs) < config.batch:
        raise InvalidConfig(f"{len(pairs)} pairs are fewer than one batch of {config.batch}; lower 'batch'.")
    check_start(config, start)
    check_frames(pairs, start)
    target = choose_device(device)
    out.mkdir(parents=True, exist_ok=True)
    state = _fresh_state(pairs, config, start, target)
    start_digest = "" if start is None else digest("", {name: t.cpu() for name, t in start.state_dict().items()})
    made = {"config": json.dumps(asdict(config), sort_keys=True), "start": start_digest}
    if pairs.frame != OPENFWI_FRAME:
        made["frame"] = json.dumps(pairs.frame.to_dict() | {"name": ""}, sort_keys=True)
    if checkpoint.exists():
        load_checkpoint(checkpoint, state, made)
    last = min(config.steps, stop_at if stop_at is not None else config.steps)
    log_path = out / "log.csv"
    _forget_later_rows(log_path, state.step)
    with log_path.open("a", newline="", encoding="utf-8") as log:
        compared = config.hard_negatives > 0 and state.step < last
        features = likeness(pairs.velocity, start) if compared else np.empty((len(pairs), 0), np.float32)
        batches = make_batches(pairs, features, config, state.step, last, target)
        for batch, part, rate in _timed(batches, config.batch):
            loss = _update(state, batch, part, config, log)
            if progress is not None:
                progress(Progress(state.step, config.steps, loss, rate))
            if state.step % config.checkpoint_every == 0 or state.step == last:
                save_checkpoint(checkpoint, state, made)
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


def _forget_later_rows(log: Path, step: int) -> None:
    """Drop the rows that a killed run logged after its last checkpoint: those steps run again."""
    if not log.exists():
        return
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines[1:] if int(line.split(",", 1)[0]) <= step]
    log.write_text("".join(lines[:1] + kept) if kept else "", encoding="utf-8")


def _fresh_state(pairs: PairSet, config: TrainConfig, start: Encoders | None, device: torch.device) -> State:
    form = replace(config.encoders, families=pairs.families, kinds=())
    if start is not None and config.errors_only:
        form = replace(form, families=start.config.families, kinds=pairs.families)
    if start is not None:
        form = grown(start.config, form)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoders = Encoders(form, frame=pairs.frame)
    if start is None:
        described = pairs.descriptors.float().cpu()
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


def _update(state: State, batch: Batch, part: PairSet, config: TrainConfig, log: TextIO) -> float:
    """One step on ``batch``, the augmented gathers of ``part``; returns the loss."""
    device = batch.traces.device
    rate = _learning_rate(state.step, config)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    with torch.autocast(device.type, torch.bfloat16) if _bf16(config, device) else nullcontext():
        gathers = state.encoders.embed_gathers(batch.traces, batch.live, batch.shot_x_m)
        velocity = physics = None
        if config.loss.contrastive:
            velocity = state.encoders.embed_velocity(batch.velocity)
            physics = state.encoders.embed_descriptors(part.descriptors)
    terms = total_loss(
        gathers,
        velocity,
        physics,
        velocity=batch.velocity,
        descriptors=state.encoders.standardise(part.descriptors),
        family=part.family,
        scale=state.encoders.scale(),
        config=config.loss,
        frame=part.frame,
    )
    state.optimizer.zero_grad(set_to_none=True)
    terms.total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.encoders.parameters(), 5.0)
    state.optimizer.step()
    state.step += 1
    _average(state, config)
    loss = float(terms.total.detach())
    if not math.isfinite(loss):
        raise InvalidConfig(f"The loss is {loss} at step {state.step}; lower the learning rate ({rate:g} now).")
    if state.step % 10 == 0 or state.step == config.steps:
        row: dict[str, Any] = {"step": state.step, "samples": state.step * config.batch, "loss": loss}
        row |= {name: float(part) for name, part in terms.parts.items()}
        row |= {"scale": float(state.encoders.scale().detach()), "learning_rate": rate}
        writer = csv.DictWriter(log, list(row))
        if log.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
        log.flush()
    return loss


def _bf16(config: TrainConfig, device: torch.device) -> bool:
    if config.precision != "auto":
        return config.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    has_mkldnn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


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


def _timed(batches: Iterator[tuple[Batch, PairSet]], size: int) -> Iterator[tuple[Batch, PairSet, float]]:
    """Adds pairs per second, averaged over about twenty steps."""
    rate, before = 0.0, time.perf_counter()
    for batch, part in batches:
        yield batch, part, rate
        now = time.perf_counter()
        own = size / (now - before)
        rate, before = (own if not rate else 0.95 * rate + 0.05 * own), now
