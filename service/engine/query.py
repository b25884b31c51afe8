"""Queries, and the encoding of the gathers of several queries at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from seisbind.index import Filter
from seisbind.index.gallery import MAX_K
from seisbind.model.confidence.novelty import measure
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.errors import InvalidQuery
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.survey.notes import Note
from seisbind.model.survey.preparation import Prepared, prepare

HEADS = tuple(head.name for head in fields(EncodedGathers))


@dataclass(frozen=True, slots=True)
class Query:
    """What one request asks for its gathers; `Query.prepare` makes it from gathers as recorded.

    Attributes:
        prepared: the gathers, on the canonical grid.
        measured: their `novelty.measure`.
        top_k: matches for each gather.
        filter: which models may match.
        notes: what reading the gathers had to assume; the first of each answer's warnings.
        x0_m: of the line's first receiver, where the survey has it.

    Raises:
        InvalidQuery: ``top_k`` out of range.
    """

    prepared: Prepared
    measured: NDArray[np.float64]
    top_k: int = 5
    filter: Filter | None = None
    notes: tuple[Note, ...] = ()
    x0_m: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_K:
            raise InvalidQuery(
                f"top_k is a whole number from 1 to {MAX_K}, the most that a gallery gives; got {self.top_k!r}."
            )

    def __len__(self) -> int:
        return len(self.prepared)

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
    ) -> Query:
        """A query for gathers as recorded; all work that needs no encoder is done here.

        Raises:
            InvalidGather, InvalidSurvey: see `seisbind.model.survey.preparation.prepare`.
            InvalidQuery: ``top_k`` out of range.
        """
        prepared = prepare(gathers, survey, frame=frame)
        x0_m = 0.0 if survey is None else survey.receiver_x_m[0]
        return cls(prepared, measure(prepared), top_k, filter, notes, x0_m)


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
        parts.append(embedder.embed_gathers(_joined([queries[number].prepared for number in members])))
        order += [rows[number] for number in members]
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Any] = {}
    for name in HEADS:
        heads = [getattr(part, name) for part in parts]
        joined[name] = None if heads[0] is None else np.concatenate(heads)
    return EncodedGathers(**joined).select(np.argsort(np.concatenate(order)))


def rows_of(queries: Sequence[Query]) -> list[NDArray[np.intp]]:
    """For each query, the rows of its gathers among those of all queries."""
    ends = np.cumsum([len(query) for query in queries])
    return np.split(np.arange(ends[-1]), ends[:-1])


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
    )


def stacked(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Arrays, concatenated. numpy would release the interpreter's lock, and wait for it, once for each of them; torch
    does so once for all."""
    return np.asarray(torch.cat([torch.from_numpy(array) for array in arrays]).numpy())
