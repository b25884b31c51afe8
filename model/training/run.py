"""A whole training run: from pairs to a file of calibrated weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Calibration, Description, Weights, as_saved, save_weights
from seisbind.model.errors import InvalidConfig
from seisbind.model.training.augment import as_trained
from seisbind.model.training.calibration import OTHERS, SEEN, calibrate
from seisbind.model.training.recipe import TrainConfig
from seisbind.model.training.trainer import Progress, train

Float32 = NDArray[np.float32]

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class Stage:
    """Pairs to train on until a share of the recipe's steps is done; ``load`` is called when it is their turn."""

    load: Callable[[], PairSet]
    until: float = 1.0


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
) -> str:
    """Train encoders, calibrate them and write them to `WEIGHTS` in ``out``, beside log and checkpoint.

    Args:
        stages: one, or several with growing sets of pairs, the last until 1.0.
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

    Returns:
        The fingerprint of the weights.

    Raises:
        InvalidConfig: see `trainer.train` and `calibration.calibrate`.
    """
    pairs: PairSet | None = None
    for number, stage in enumerate(stages):
        pairs = None  # frees the pairs of the stage before: two sets at a time may be too much
        pairs = stage.load()
        encoders = train(
            pairs,
            config,
            out,
            start=start,
            resume=resume or number > 0,
            device=device,
            stop_at=round(stage.until * config.steps),
            progress=progress,
        )
    if pairs is None:
        raise InvalidConfig("A run needs at least one stage.")
    made = {"config": asdict(config), "pairs": len(pairs)} | training
    description = Description(name, encoders.config, made, frame=encoders.frame)
    if held_out is not None and config.encoders.kind == "seisbind":
        embedder = Embedder(Weights(as_saved(encoders), description, ""), device=device)
        kept = start_calibration if config.errors_only else None
        seen = further = None
        if kept is None:
            seen = as_trained(pairs, config.augment, count=SEEN)
            # a stride, for files hold one family each
            further = pairs.velocity[:: math.ceil(len(pairs) / OTHERS)].cpu().numpy() if others is None else None
        pairs = None  # makes room
        if kept is None and others is not None:
            further = others()
        calibration = calibrate(embedder, held_out(), seen=seen, augment=config.augment, others=further, kept=kept)
        description = replace(description, calibration=calibration)
    return save_weights(out / WEIGHTS, encoders, description)
