"""Answers: matches, inferred physics, and how far to trust them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seisbind.index import Filter, Hit, Hits
from seisbind.model.confidence.novelty import Verdict
from seisbind.model.confidence.ranking import Ranking
from seisbind.model.encoders.embedder import NEIGHBOURS, Embedder, EncodedGathers, InferredPhysics, ReadModel
from seisbind.model.frame import Frame
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.scaling import ChosenScale
from seisbind.service.formats.velocity_model import VelocityModel

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Match:
    """One velocity model of the answer; ``rank`` counts from 1, ``similarity`` is a cosine, -1 to 1.

    ``descriptors``: name → value in the unit of `seisbind.model.ground.descriptors.DESCRIPTORS`.
    """

    rank: int
    model_id: str
    family: str | None
    similarity: float
    descriptors: dict[str, float]


@dataclass(frozen=True, slots=True)
class Quantity:
    """An inferred descriptor and its 90 % interval."""

    value: float
    unit: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class InDistribution:
    """Whether a gather is like those the weights were trained on (`seisbind.model.confidence.novelty`).

    Attributes:
        likely: None, like ``score`` and ``limit``, where the weights are not calibrated.
        score: 0 as usual in training, 1 on the edge of what it saw, larger beyond.
        limit: the score that 1 % of the gathers of training exceed.
        reason, detail: the respect in which it is unlike them, a word and a sentence; None where ``likely``.
        similarity: to the best match in the whole gallery, whatever the filter; None if it is empty.
    """

    likely: bool | None = None
    score: float | None = None
    limit: float | None = None
    reason: str | None = None
    detail: str | None = None
    similarity: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Gather ``row`` of those ``encoded`` together, from which its model is made once somebody asks for it: a tenth of
    the time that the gather takes beside its encoding, and few do. ``x0_m``: of the line's first receiver."""

    embedder: Embedder
    encoded: EncodedGathers
    row: int
    x0_m: float
    scale: Scale

    def model(self) -> VelocityModel | None:
        """See `Retrieval.model`."""
        read = self.embedder.read_model(self.encoded.select(np.array([self.row])))
        return None if read is None else placed(read, 0, frame=self.embedder.frame, x0_m=self.x0_m, scale=self.scale)


@dataclass(frozen=True)
class Retrieval:
    """The answer for one gather, in the true units of its scale.

    Attributes:
        in_gallery: probability that the gallery's best match, whatever the filter, is the true model, for prior odds of
            one to one (see `model.confidence.presence`); None where the gather is unlike those of training, as the
            warning ``in_gallery_unknown`` says, where the weights are not calibrated, or for fewer than two models.
        ranked_by: ``similarity``, or ``structure`` where the probability, given here or not, is below the weights'
            limit: then the most similar models are ordered by their difference to the coarse model that the encoder
            read from the gather; ``check`` where a match was checked and explains the record (`engine.check`).
        timings_ms: stage → time for the whole batch.
        velocity: ``(35, 35)`` m/s, cells of 20 m (times the scale): the coarse model that the encoder read, without
            the gallery; None where the weights have no head for it.
        reading: from which `model` is made.
        chosen: the scale, and why; None where none was asked for.
    """

    matches: tuple[Match, ...]
    physics: dict[str, Quantity]
    in_distribution: InDistribution
    in_gallery: float | None
    ranked_by: Literal["similarity", "structure", "check"]
    warnings: tuple[Note, ...]
    timings_ms: dict[str, float]
    velocity: Float32 | None = field(default=None, compare=False)
    reading: Reading | None = field(default=None, compare=False, repr=False)
    chosen: ChosenScale | None = field(default=None, compare=False)

    @cached_property
    def model(self) -> VelocityModel | None:
        """``velocity`` on all cells of the frame, in its place on the survey's line and with its 90 % interval where
        the weights state one: the starting model to take (docs/answers.md); None with ``velocity``."""
        return None if self.reading is None else self.reading.model()

    @property
    def scale(self) -> Scale:
        """Of true units to those of the weights' frame."""
        return UNSCALED if self.chosen is None else self.chosen.scale


@dataclass(frozen=True, slots=True)
class WindowRefinement:
    """What full-waveform inversion made of a window's model.

    Attributes:
        iterations: that were done.
        free_surface: whether waves were modelled with one.
        residual_before, residual_after: rms of record less prediction over the record's, of the model that was read and
            of the refined one.
    """

    iterations: int
    free_surface: bool
    residual_before: float
    residual_after: float


@dataclass(frozen=True, slots=True)
class WindowAnswer:
    """What one window contributed, in true units.

    Attributes:
        x_m: first and last position along the line.
        shots: pseudo-shots that were used.
        live: share of their traces on the frame's receivers that are live.
        lack: why nothing was read; None where something was, and then the rest is there.
        likely, score, reason: as `InDistribution`.
        model_id, similarity: of the gallery's first match; None for an empty gallery.
        physics: name → inferred descriptor.
        notes: on what was done with the traces.
        refined: what refinement did; None where the model is as it was read.
    """

    x_m: tuple[float, float]
    shots: int
    live: float
    lack: str | None = None
    likely: bool | None = None
    score: float | None = None
    reason: str | None = None
    model_id: str | None = None
    similarity: float | None = None
    physics: dict[str, Quantity] | None = None
    notes: tuple[Note, ...] = ()
    refined: WindowRefinement | None = None


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The answer to a query by velocity model or by descriptors."""

    matches: tuple[Match, ...]
    warnings: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """What the gallery holds for gathers, in their order.

    Attributes:
        near: the most similar models of the whole gallery, whatever the filter.
        rankings: how the models within the filter are ordered.
        matches: these, ranked, and with `Query.distinct` without those that are the same ground as a better one.
        looked_at: models that they were chosen from.
        approximate: of each gather, a note if one of these was not searched exactly.
    """

    near: list[list[Hit]]
    rankings: list[Ranking]
    matches: list[tuple[Match, ...]]
    looked_at: list[int]
    approximate: list[tuple[Note, ...]]


def true_descriptors(descriptors: Float32, scale: Scale = UNSCALED) -> list[float]:
    """Descriptors ``(13,)`` of a model of the gallery, in true units."""
    values: list[float] = descriptors.tolist()
    if scale == UNSCALED:
        return values
    return [value * scale.of(d.unit) for value, d in zip(values, DESCRIPTORS, strict=True)]


def ranked(hits: Sequence[Hit], scale: Scale = UNSCALED) -> tuple[Match, ...]:
    """Hits as matches, by rank, their descriptors in true units."""
    return tuple(
        Match(
            rank,
            hit.model_id,
            hit.family,
            hit.similarity,
            dict(zip(NAMES, true_descriptors(hit.descriptors, scale), strict=True)),
        )
        for rank, hit in enumerate(hits, start=1)
    )


def quantities(inferred: InferredPhysics) -> list[dict[str, Quantity]]:
    """For each gather, name → inferred descriptor."""
    return [
        {d.name: Quantity(float(value[i]), d.unit, float(low[i]), float(high[i])) for i, d in enumerate(DESCRIPTORS)}
        for value, low, high in zip(inferred.value, inferred.low, inferred.high, strict=True)
    ]


def scaled(physics: dict[str, Quantity], scale: Scale) -> dict[str, Quantity]:
    """Inferred descriptors in true units."""
    if scale == UNSCALED:
        return physics
    return {
        name: Quantity(q.value * (f := scale.of(q.unit)), q.unit, q.low * f, q.high * f) for name, q in physics.items()
    }


def placed(read: ReadModel, row: int, *, frame: Frame, x0_m: float, scale: Scale = UNSCALED) -> VelocityModel:
    """The model that was read from gather ``row``, its first column at ``x0_m``, in true units."""
    own = scale.frame(frame)

    def true(part: Float32) -> Float32:
        return np.asarray(part[row] if scale.k == 1 else part[row] * np.float32(scale.k))

    low, high = (None if part is None else true(part) for part in (read.low, read.high))
    return VelocityModel(true(read.value), low, high, frame.cell_m * scale.s, x0_m, range_m_s=own.velocity_m_s)


def in_distribution(verdict: Verdict | None, near: Sequence[Hit]) -> InDistribution:
    """``verdict``: None where the weights are not calibrated; ``near``: hits in the whole gallery."""
    similarity = near[0].similarity if near else None
    if verdict is None:
        return InDistribution(similarity=similarity)
    return InDistribution(verdict.likely, verdict.score, verdict.limit, verdict.reason, verdict.detail, similarity)


def fewer_matches(
    matches: Sequence[Match], top_k: int, filter: Filter | None, distinct: float | None = None, looked_at: int = 0
) -> tuple[Note, ...]:
    """A note if there are fewer matches than were asked for; with ``distinct``, among the ``looked_at`` best models."""
    if len(matches) >= top_k:
        return ()
    if distinct is not None and len(matches) < looked_at:
        text = (
            f"{top_k} matches of different ground were asked for; among the {looked_at} best models {len(matches)} "
            f"differ from each other by more than {distinct:g} m/s. Ask for a smaller difference (distinct)."
        )
        return (Note("fewer_distinct", text),)
    what = "models pass the filter" if filter else "models are in the gallery"
    return (Note("fewer_matches", f"{top_k} matches were asked for; {len(matches)} {what}."),)


def approximate_note(hits: Sequence[Sequence[Hit]]) -> tuple[Note, ...]:
    """A note if ``hits``, as a gallery returned them, are those of an approximate search."""
    info = hits.approximate if isinstance(hits, Hits) else None
    if info is None:
        return ()
    text = (
        f"The gallery was searched approximately: of the ten most similar models {info.recall:.1%} were found, as "
        "measured when its index was written. With a filter the search is exact."
    )
    return (Note("approximate_search", text),)


def withheld(ranking: Ranking, verdict: Verdict | None) -> tuple[Note, ...]:
    """A note where the probability that the gallery holds the ground is not given, with the reason."""
    if not ranking.withheld or verdict is None:
        return ()
    text = (
        "Whether the gallery holds this ground is unknown, for the record is unlike those of training: "
        f"{verdict.detail} Take the matches for a guess."
    )
    return (Note("in_gallery_unknown", text),)


def search_result(
    hits: Sequence[Hit],
    top_k: int,
    filter: Filter | None,
    scale: Scale,
    warnings: tuple[Note, ...] = (),
    distinct: float | None = None,
    looked_at: int = 0,
) -> SearchResult:
    """The answer to a search, in the true units of ``scale``."""
    matches = ranked(hits, scale)
    return SearchResult(matches, warnings + fewer_matches(matches, top_k, filter, distinct, looked_at))


def neighbours_of(near: Sequence[Sequence[Hit]]) -> Float32:
    """``(batch, k, 13)`` descriptors of the `NEIGHBOURS` nearest models of each gather."""
    count = min(min(map(len, near)), NEIGHBOURS)
    described = [[hit.descriptors for hit in hits[:count]] for hits in near]
    return np.array(described, dtype=np.float32).reshape(len(near), count, len(NAMES))
