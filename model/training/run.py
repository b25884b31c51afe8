"""A whole training run: from pairs to a file of calibrated weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Calibration, Description, Weights, as_saved, save_weights
from seisbind.model.errors import InvalidConfig
from seisbind.model.training.augment import as_trained, placed
from seisbind.model.training.calibration import OTHERS, SEEN, calibrate
from seisbind.model.training.checkpoint import CHECKPOINT, stored_parts
from seisbind.model.training.ranks import ALONE, Ranks, parts_for
from seisbind.model.training.recipe import TrainConfig, described_recipe
from seisbind.model.training.trainer import Progress, train

Float32 = NDArray[np.float32]

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Stage:
    """Pairs to train on until a share of the recipe's steps is done; ``load`` is called when it is their turn."""

    load: Callable[[], PairSet]
    until: float = 1.0


def shared_parts(config: TrainConfig, ranks: Ranks, out: Path, *, asked: int | None, resume: bool) -> int:
    """How many parts the batches of a run have: as asked, or those of its recipe, and for several processes the least
    multiple that they share out; of a run that goes on those that it began with.

    Raises:
        InvalidConfig: the processes cannot share out what was asked for, or what the run began with.
    """
    began = stored_parts(out / CHECKPOINT) if resume else None
    if began is not None and asked not in (None, began):
        raise InvalidConfig(f"The run in {out} began with {began} parts and goes on with them, not with {asked}.")
    given = began or asked
    if given is None:
        return parts_for(config.parts, ranks)
    if given % ranks.count:
        raise InvalidConfig(
            f"{ranks.count} processes cannot share batches of {given} parts"
            + (f", which the run in {out} began with" if began else "")
            + f"; start {' or '.join(str(n) for n in range(1, given + 1) if given % n == 0)}."
        )
    return given


def train_weights(
    stages: Sequence[Stage],
    config: TrainConfig,
    out: Path,
    *,
    name: str,
    training: dict[str, Any],
    start: Encoders | None = None,
    start_calibration: Calibration | None = None,
    held_out: Callable[[], PairSet] | None = None,
    others: Callable[[], Float32] | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[Progress], None] | None = None,
    ranks: Ranks = ALONE,
) -> str | None:
    """Train encoders, calibrate them and write them to `WEIGHTS` in ``out``, beside log and checkpoint.

    Args:
        stages: one, or several with growing sets of pairs, the last until 1.0. Their shots are moved to the frame's
            places, as those of records are.
        config: the recipe.
        out: folder of the run; created.
        name: of the weights.
        training: how they were made, for their description; recipe and number of pairs are added.
        start: see `trainer.train`.
        start_calibration: of the weights ``start``; a recipe of `errors_only` keeps what it says of readings.
        held_out: pairs to calibrate on; None, or encoders of the paper's kind, which have no heads: no calibration.
        others: further velocity models for the calibration; None takes up to `OTHERS` of the pairs' own.
        resume: see `trainer.train`; later stages always continue the earlier ones.
        device: see `trainer.train`.
        progress: called after each step.
        ranks: the processes of the run; ``load`` of a stage gives this process its pairs. The first one writes.

    Returns:
        The fingerprint of the weights; None in a process that is not the first.

    Raises:
        InvalidConfig: see `trainer.train` and `calibration.calibrate`.
    """
    pairs: PairSet | None = None
    for number, stage in enumerate(stages):
        pairs = None  # frees the pairs of the stage before: two sets at a time may be too much
        pairs = placed(stage.load())
        encoders = train(
            pairs,
            config,
            out,
            start=start,
            resume=resume or number > 0,
            device=device,
            stop_at=round(stage.until * config.steps),
            progress=progress,
            ranks=ranks,
        )
    if pairs is None:
        raise InvalidConfig("A run needs at least one stage.")
    count = ranks.total(len(pairs))
    if not ranks.first:
        return None
    made = {"config": described_recipe(config), "pairs": count} | training
    description = Description(name, encoders.config, made, frame=encoders.frame)
    if held_out is not None and config.encoders.kind == "seisbind":
        embedder = Embedder(Weights(as_saved(encoders), description, ""), device=device)
        kept = start_calibration if config.errors_only else None
        seen = further = None
        if kept is None:
            # of the first group alone, which this process has whatever the number of processes
            pairs = pairs.select(range(0, len(pairs), len(ranks.groups(config.parts)))) if config.parts > 1 else pairs
            seen = as_trained(pairs, config.augment, count=SEEN)
            # a stride, for files hold one family each
            further = pairs.velocity[:: math.ceil(len(pairs) / OTHERS)].cpu().numpy() if others is None else None
        pairs = None  # makes room
        if kept is None and others is not None:
            further = others()
        calibration = calibrate(embedder, held_out(), seen=seen, augment=config.augment, others=further, kept=kept)
        description = replace(description, calibration=calibration)
    return save_weights(out / WEIGHTS, encoders, description)
