"""Answers checked against the wave equation: the matches, their mean, the model that was read, and one of one's own.

What a check says more than similarity: that a model explains the record. Where one of the matches does, it becomes the
first; else the order stays, for of models that do not explain a record the smaller residual is not the nearer ground
(`benchmarks/check.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidQuery, InvalidVelocityModel
from seisbind.model.frame import VELOCITY_LIMITS_M_S
from seisbind.model.ground.descriptors import check_velocity
from seisbind.model.inversion.beside import Models
from seisbind.model.inversion.check import Check, Verdict, check_models, judge
from seisbind.model.inversion.observed import Observed
from seisbind.model.scale import Scale
from seisbind.service.check_schemas import BEST
from seisbind.service.engine.answers import Match, Retrieval
from seisbind.service.engine.query import Query

Float32 = NDArray[np.float32]

MAX_MATCHES = 16  # that one check models: with mean, read and given model about a second of a core
UNKNOWN = "in_gallery_unknown"  # the warning that goes where a match explains the record
# How much likelier it is that a match explains the record where the ground is among them than where it is not, and the
# same for none that explains: .96 / .02 and .04 / .98 over 160 queries as those of `benchmarks/check.py`
FOR, AGAINST = 48.0, 0.04
ENOUGH = 5  # matches that were checked there: of fewer, that none explains says less than `AGAINST`

Kind = Literal["match", "mean", "read", "given"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A velocity model to check. ``rank`` and ``model_id``: of a match; ``velocity``: ``(depth, x)`` m/s, frame's."""

    kind: Kind
    velocity: Float32 = field(compare=False)
    rank: int | None = None
    model_id: str | None = None

    @property
    def name(self) -> str:
        """``match 1``, or its kind."""
        return f"match {self.rank}" if self.kind == "match" else self.kind


@dataclass(frozen=True, slots=True)
class CheckedCandidate:
    """A candidate, what its check found in the frame's units, and the verdict, whose sentence is in true ones."""

    candidate: Candidate
    check: Check
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Checked:
    """A gather's answer and its check.

    Attributes:
        retrieval: as without a check, but for ``matches``, ``in_gallery`` and ``ranked_by``, which take it in.
        candidates: matches by the rank that they had, their mean, the model that was read, the one that was given.
        best: of ``candidates``, the one that leaves the least unexplained.
        reordered: whether another match became the first.
        observed: what all were compared with, in the frame's units.
    """

    retrieval: Retrieval
    candidates: tuple[CheckedCandidate, ...]
    best: int
    reordered: bool
    observed: Observed = field(compare=False)

    @property
    def scale(self) -> Scale:
        """Of true units to those of the frame."""
        return self.retrieval.scale


def check_name(found: Sequence[Candidate], name: str) -> None:
    """Raises InvalidQuery where none of the candidates has that name, which may be `BEST`, too."""
    known = [each.name for each in found]
    if name not in (BEST, *known):
        raise InvalidQuery(f"There is no candidate {name[:60]!r}; there are {BEST}, {', '.join(known)}.")


def named(checked: Checked, name: str) -> CheckedCandidate:
    """The candidate of that name, or the best. Raises InvalidQuery."""
    check_name([each.candidate for each in checked.candidates], name)
    if name == BEST:
        return checked.candidates[checked.best]
    return next(each for each in checked.candidates if each.candidate.name == name)


def check_query(query: Query) -> None:
    """Whether a query can be checked. Raises InvalidQuery for several gathers, or more matches than are modelled."""
    if len(query) != 1:
        raise InvalidQuery(f"One gather is checked at a time; there are {len(query)}. Send them one by one.")
    check_top_k(query.top_k)


def check_top_k(top_k: int) -> None:
    """Raises InvalidQuery for more matches than one check models."""
    if top_k > MAX_MATCHES:
        raise InvalidQuery(f"top_k is {top_k}; a check models at most {MAX_MATCHES} matches.")


def given_model(velocity: ArrayLike, query: Query) -> Float32:
    """A model of one's own, ``(depth, x)`` in true m/s and cells of ``s`` times the frame's, in the frame's units.

    Raises:
        InvalidVelocityModel: not one model of the frame's cells, or one that `check_velocity` refuses.
    """
    frame = query.prepared.frame
    models = check_velocity(velocity, k=query.scale.k)
    if models.shape != (1, *frame.velocity_shape):
        raise InvalidVelocityModel(
            f"A model to check has {query.scale.frame(frame).cells_text}, from the first receiver on; got shape "
            f"{models.shape[1:] if len(models) == 1 else models.shape}."
        )
    return np.asarray(models[0])


def candidates(query: Query, retrieval: Retrieval, velocity: Float32, given: Float32 | None) -> tuple[Candidate, ...]:
    """What is to be checked. ``velocity``: ``(match, depth, x)`` m/s of the matches in the frame's units."""
    found = [
        Candidate("match", v, match.rank, match.model_id)
        for match, v in zip(retrieval.matches, velocity, strict=True)
    ]  # fmt: skip
    if len(found) > 1:
        found.append(Candidate("mean", velocity.mean(axis=0)))
    if retrieval.model is not None:
        read = retrieval.model.value / np.float32(query.scale.k)
        found.append(Candidate("read", np.clip(read, *VELOCITY_LIMITS_M_S)))
    if given is not None:
        found.append(Candidate("given", given))
    return tuple(found)


def check_candidates(
    query: Query,
    retrieval: Retrieval,
    found: tuple[Candidate, ...],
    *,
    models: Models = check_models,
) -> Checked:
    """Model the one gather of ``query`` from each candidate, and what that makes of its answer.

    Args:
        models: `check_models`, wherever it runs.

    Raises:
        InvalidQuery: nothing to check.
        MissingExtra: deepwave is not installed.
        NotReady: ``models`` was stopped.
    """
    if not found:
        raise InvalidQuery("There is nothing to check: no model matches, none is read, none was given.")
    observed, scale = Observed.of(query.prepared), query.scale
    velocity = np.stack([each.velocity for each in found])
    found_by = models(observed, velocity)
    done = []
    for candidate, check in zip(found, found_by, strict=True):
        verdict = judge(check.comparison, lowest_hz=check.comparison.lowest_hz * scale.frequency)
        done.append(CheckedCandidate(candidate, check, verdict))
    matches = [each for each in done if each.candidate.kind == "match"]
    order = list(range(len(matches)))
    explaining = [n for n in order if matches[n].verdict.reason == "explained"]
    if explaining:
        first = min(explaining, key=lambda n: matches[n].check.unexplained)
        order = [first, *(n for n in order if n != first)]
    whole = query.filter is None and bool(matches)  # a filter's matches tell nothing of the gallery
    answer = replace(
        retrieval,
        matches=tuple(_ranked(retrieval.matches, order)),
        warnings=tuple(note for note in retrieval.warnings if not (whole and explaining and note.code == UNKNOWN)),
        ranked_by="check" if explaining else retrieval.ranked_by,
        in_gallery=_in_gallery(retrieval.in_gallery, bool(explaining), len(matches)) if whole else retrieval.in_gallery,
    )
    best = min(range(len(done)), key=lambda n: done[n].check.unexplained)
    return Checked(answer, tuple(done), best, bool(explaining) and order[0] != 0, observed)


def _ranked(matches: tuple[Match, ...], order: list[int]) -> Iterator[Match]:
    for rank, number in enumerate(order, start=1):
        yield replace(matches[number], rank=rank)


def _in_gallery(before: float | None, explained: bool, checked: int) -> float | None:
    """The probability after the check. Where none was given, even odds where a match explains, else still none; as it
    was, where none of fewer than `ENOUGH` explains."""
    if not explained and (before is None or checked < ENOUGH):
        return before
    probability = 0.5 if before is None else min(max(before, 1e-6), 1 - 1e-6)
    odds = probability / (1 - probability) * (FOR if explained else AGAINST)
    return odds / (1 + odds)
