"""Refined models kept in the gallery where a check finds them usable: what a survey's next line can match.

What is kept says where it comes from: the tag ``refined``, a tag ``parent:ID`` for each model that it was refined from,
and a source with the figures of its check.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidQuery, InvalidVelocityModel
from seisbind.model.inversion.beside import Models
from seisbind.model.inversion.check import Check, check_models, judge
from seisbind.model.inversion.observed import Observed
from seisbind.model.scale import Scale
from seisbind.service.engine.engine import Engine

Float32 = NDArray[np.float32]

REFINED, PARENT = "refined", "parent:"


@dataclass(frozen=True, slots=True)
class Kept:
    """A model that the gallery has, its record's source, whether it was ``added`` now, and what its check found."""

    model_id: str
    source: str
    added: bool
    check: Check = field(compare=False)


def check_refined(
    observed: Observed,
    velocity: Float32,
    *,
    scale: Scale,
    models: Models = check_models,
) -> Check:
    """A refined model ``(depth, x)``, m/s of the frame, against the record that it was refined to explain.

    Args:
        scale: in whose true units its verdict is worded.
        models: `check_models`, wherever it runs.

    Raises:
        NotReady: ``models`` was stopped.
        InvalidVelocityModel: it is not usable as a starting model, so no gallery should answer with it.
        MissingExtra: deepwave is not installed.
    """
    (check,) = models(observed, velocity[None])
    verdict = judge(check.comparison, lowest_hz=check.comparison.lowest_hz * scale.frequency)
    if not verdict.usable:
        raise InvalidVelocityModel(
            f"The refined model is not kept, for it is not usable as a starting model. {verdict.detail}"
        )
    return replace(check, verdict=verdict)


def keep_refined(engine: Engine, velocity: Float32, check: Check, *, parents: tuple[str, ...], by: str) -> Kept:
    """Add a refined model to the gallery; one that is there already stays as it is.

    Args:
        velocity: ``(depth, x)`` m/s of the frame.
        check: of `check_refined`.
        parents: model ids, or ``read`` and ``given``, of what it was refined from.
        by: what refined it, for its source.

    Raises:
        InvalidVelocityModel, GalleryWriteFailed: see `Engine.add_models`.
    """
    found = check.comparison.whole
    source = (
        f"{by}, from {', '.join(parents)}: {found.unexplained:.1%} unexplained, residual {found.residual:.1%}, "
        f"{found.in_time:.0%} of windows in time, {check.verdict.reason}"
    )
    tags = [REFINED, *(f"{PARENT}{parent}" for parent in parents)]
    try:
        (model_id,), added = engine.add_models(velocity[None], tags=[tags], source=source), True
    except InvalidQuery:  # its id is taken: by the same model, or this raises again
        (model_id,), added = engine.add_models(velocity[None], tags=[tags], source=source, skip_existing=True), False
    return Kept(model_id, engine.gallery.record(model_id).source or "", added, check)
