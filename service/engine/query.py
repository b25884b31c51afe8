"""Queries, and the encoding of the gathers of several queries at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from seisbind.index import Filter
from seisbind.index.gallery import MAX_K
from seisbind.model.confidence.distinct import LOOKED_AT
from seisbind.model.confidence.novelty import measure
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.errors import InvalidQuery
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.scale import UNSCALED, AskedScale, AutoScale, Scale, parse_scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.preparation import Prepared, prepare
from seisbind.model.survey.scaling import ChosenScale, scale_for


@dataclass(frozen=True, slots=True)
class Query:
    """What one request asks for its gathers; `Query.prepare` makes it from gathers as recorded.

    Attributes:
        prepared: the gathers, on the canonical grid.
        measured: their `novelty.measure`.
        top_k: matches for each gather.
        filter: which models may match.
        notes: what reading the gathers had to assume; the first of each answer's warnings.
        chosen: the scale of the gathers, in whose true units ``filter`` and the answer are; None where none was asked
            for.
        x0_m: of the line's first receiver, where the survey has it.
        distinct: m/s in true units; matches that differ by no more are the same ground, and only the best of them is
            given (see `model.confidence.distinct`). None to give all.

    Raises:
        InvalidQuery: ``top_k`` or ``distinct`` out of range.
    """

    prepared: Prepared
    measured: NDArray[np.float64]
    top_k: int = 5
    filter: Filter | None = None
    notes: tuple[Note, ...] = ()
    chosen: ChosenScale | None = None
    x0_m: float = 0.0
    distinct: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_K:
            raise InvalidQuery(
                f"top_k is a whole number from 1 to {MAX_K}, the most that a gallery gives; got {self.top_k!r}."
            )
        check_distinct(self.distinct)

    def __len__(self) -> int:
        return len(self.prepared)

    @property
    def looked_at(self) -> int:
        """How many of the best models the matches are chosen from."""
        return looked_at(self.top_k, self.distinct)

    @property
    def scale(self) -> Scale:
        """Of true units to those of the frame."""
        return UNSCALED if self.chosen is None else self.chosen.scale

    @classmethod
    def prepare(
        cls,
        gathers: ArrayLike,
        survey: Survey | None = None,
        *,
        frame: Frame = OPENFWI_FRAME,
        top_k: int = 5,
        filter: Filter | None = None,
        notes: tuple[Note, ...] = (),
        scale: ChosenScale | AskedScale = None,
        distinct: float | None = None,
        keep_recorded: bool = False,
    ) -> Query:
        """A query for gathers as recorded; all work that needs no encoder is done here.

        Args:
            scale: of the survey's true units to the frame's: a number ``s``, ``(s, k)``, `Scale`, ``"auto"`` or
                `AutoScale`, or what was chosen before; None for a line of the frame's own size.
            keep_recorded: see `preparation.prepare`; for what models waves.

        Raises:
            InvalidGather, InvalidSurvey: see `seisbind.model.survey.preparation.prepare` and
                `seisbind.model.survey.scaling.choose_scale`.
            InvalidQuery: ``top_k`` or ``distinct`` out of range.
        """
        chosen = choose(gathers, survey, scale, frame)
        if chosen is None:
            prepared = prepare(gathers, survey, frame=frame, keep_recorded=keep_recorded)
        else:
            prepared = prepare(
                gathers, survey, frame=frame, scale=chosen.scale, shape=True, keep_recorded=keep_recorded
            )
            notes = (*notes, *chosen.notes(frame))
        x0_m = 0.0 if survey is None else survey.receiver_x_m[0]
        return cls(prepared, measure(prepared), top_k, filter, notes, chosen, x0_m, distinct)


def check_distinct(distinct: float | None) -> None:
    """Raises InvalidQuery unless ``distinct`` is a difference of velocities, or None."""
    if distinct is not None and not 0 <= distinct < math.inf:
        raise InvalidQuery(
            f"distinct is a difference in m/s, 0 or more, up to which two models count as the same ground; got "
            f"{distinct!r}."
        )


def looked_at(top_k: int, distinct: float | None) -> int:
    """How many of the best models ``top_k`` matches are chosen from."""
    return top_k if distinct is None else max(top_k, min(LOOKED_AT * top_k, MAX_K))


def choose(
    gathers: ArrayLike, survey: Survey | None, asked: ChosenScale | AskedScale, frame: Frame
) -> ChosenScale | None:
    """The scale that is asked for, chosen for these gathers where it is to be chosen.

    Raises:
        InvalidGather, InvalidSurvey: see `seisbind.model.survey.scaling.scale_for`.
    """
    if isinstance(asked, ChosenScale):
        return asked
    scale = parse_scale(asked)
    if isinstance(scale, AutoScale):
        return scale_for(gathers, frame.survey if survey is None else survey, scale, frame=frame)
    return None if scale is None else ChosenScale(scale)


def encode(embedder: Embedder, queries: Sequence[Query]) -> EncodedGathers:
    """The gathers of all queries, encoded, one query after another.

    Those with the same number of shots go through the encoder together, whichever query they belong to. The results
    differ from those of each query alone by rounding only: less than 1e-6 in an embedding.
    """
    by_shots: dict[int, list[int]] = {}
    for number, query in enumerate(queries):
        by_shots.setdefault(query.prepared.traces.shape[1], []).append(number)
    rows = rows_of(queries)
    parts, order = [], []
    for members in by_shots.values():
        measured = np.concatenate([queries[number].measured for number in members])
        parts.append(
            embedder.embed_gathers(_joined([queries[number].prepared for number in members]), measured=measured)
        )
        order += [rows[number] for number in members]
    if len(parts) == 1:
        return parts[0]
    return EncodedGathers.joined(parts).select(np.argsort(np.concatenate(order)))


def rows_of(queries: Sequence[Query]) -> list[NDArray[np.intp]]:
    """For each query, the rows of its gathers among those of all queries."""
    ends = np.cumsum([len(query) for query in queries])
    return np.split(np.arange(ends[-1]), ends[:-1])


def scales_of(queries: Sequence[Query]) -> list[Scale]:
    """For each gather of all queries, its scale."""
    return [query.scale for query in queries for _ in range(len(query))]


def _joined(prepared: Sequence[Prepared]) -> Prepared:
    """One stack of gathers that all have the same number of shots."""
    if len(prepared) == 1:
        return prepared[0]
    return Prepared(
        traces=stacked([each.traces for each in prepared]),
        live=stacked([each.live for each in prepared]),
        shot_x_m=stacked([each.shot_x_m for each in prepared]),
        notes=tuple(notes for each in prepared for notes in each.notes),
        frame=prepared[0].frame,
        moved_m=None
        if all(each.moved_m is None for each in prepared)
        else stacked([_moved(each) for each in prepared]),
    )


def _moved(prepared: Prepared) -> NDArray[np.float32]:
    return np.zeros_like(prepared.shot_x_m) if prepared.moved_m is None else prepared.moved_m


def stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays, concatenated. numpy would release the interpreter's lock, and wait for it, once for each of them; torch
    does so once for all."""
    return np.asarray(torch.cat([torch.from_numpy(array) for array in arrays]).numpy())
