"""What requests ask of their gathers, and the encoding of several requests' gathers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index import Filter
from seisbind.index.gallery import MAX_K
from seisbind.model.confidence.novelty import measure
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.errors import InvalidQuery
from seisbind.model.survey.preparation import Note, Prepared

HEADS = tuple(head.name for head in fields(EncodedGathers))


@dataclass(frozen=True, slots=True)
class Query:
    """What one request asks of its gathers.

    Attributes:
        prepared: the gathers, on the canonical grid.
        top_k: matches a gather.
        filter: which models may match.
        notes: what reading the gathers had to assume; said first in each answer's warnings.
        measured: what `novelty.measure` finds in them, here and not where gathers wait for the encoders.

    Raises:
        InvalidQuery: ``top_k`` out of range.
    """

    prepared: Prepared
    top_k: int = 5
    filter: Filter | None = None
    notes: tuple[Note, ...] = ()
    measured: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= MAX_K:
            raise InvalidQuery(
                f"top_k is a whole number from 1 to {MAX_K}, the most that a gallery gives; got {self.top_k!r}."
            )
        object.__setattr__(self, "measured", measure(self.prepared))

    def __len__(self) -> int:
        return len(self.prepared)


def encode(embedder: Embedder, queries: Sequence[Query]) -> EncodedGathers:
    """The gathers of all queries, encoded, one query after another.

    Those with the same number of shots go through the encoder together, whichever query they are of. What comes out
    differs from what each alone would give by rounding only: less than 1e-6 in an embedding.
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
    """For each query, where its gathers are among those of all of them."""
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
    """Arrays one after another. numpy would let go of the interpreter's lock, and wait for it, once for each of them;
    torch does once for all."""
    return np.asarray(torch.cat([torch.from_numpy(array) for array in arrays]).numpy())
