"""What a search sees: the models of one moment, their columns and their vectors, never changed once made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.approximate.lists import StoredLists
from seisbind.index.scanning.codes import Float64
from seisbind.index.search.columns import Columns, Statistics, keys_of
from seisbind.index.search.device import DeviceSearch
from seisbind.index.search.filter import Filter
from seisbind.index.search.labels import NO_FAMILY, Bool
from seisbind.index.search.reranking import search_lists
from seisbind.index.search.snapshots import AtStep, SnapshotWriter
from seisbind.index.search.vectors import VectorIndex
from seisbind.index.storage.folder import SPACES
from seisbind.index.storage.record import Float32, GalleryState, Int64, RecordColumns

DEAD_SHARE = 8  # removed models are dropped from memory when they are more than this fraction of all, not before


@dataclass(frozen=True, slots=True)
class Hit:
    """A velocity model found, with what a list of matches shows of it, all of one moment.

    Attributes:
        similarity: the cosine, -1 to 1.
        row: breaks ties and is never used again.
        descriptors: ``(13,)`` float32, in the order of `seisbind.model.ground.descriptors.DESCRIPTORS`.
    """

    model_id: str
    similarity: float
    row: int
    family: str | None
    descriptors: Float32 = field(compare=False, repr=False)


class Hits(list[list[Hit]]):
    """The hits of each query.

    Attributes:
        approximate: the index that they were found by; None if they are exact.
    """

    __slots__ = ("approximate",)

    def __init__(self, hits: Iterable[list[Hit]], approximate: ApproximateInfo | None = None) -> None:
        super().__init__(hits)
        self.approximate = approximate


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Position i holds row ``rows[i]``, model ``ids[i]``, and vector i of both indices, unless it is removed.

    A change makes a new object, and a search keeps the one that it began with. Except for ``alive``, a byte per model,
    what a change copies does not depend on how many models there are.

    Attributes:
        alive: ``(position,)``, false where the model has been removed.
        statistics: of the models that are alive.
        lists: an approximate index of the first velocity embeddings, if there is one, served or not.
    """

    state: GalleryState
    columns: Columns
    alive: Bool
    statistics: Statistics
    velocity: VectorIndex
    physics: VectorIndex
    lists: StoredLists | None = None

    @classmethod
    def of(
        cls, state: GalleryState, columns: Columns, alive: Bool, velocity: VectorIndex, physics: VectorIndex
    ) -> View:
        return cls(state, columns, alive, Statistics.of(columns, alive), velocity, physics)

    def __len__(self) -> int:
        return self.state.count

    @property
    def generation(self) -> int:
        return self.state.generation

    @property
    def searched_lists(self) -> StoredLists | None:
        """The `lists`, if they are good enough: as they were measured, and with few of their models removed since."""
        lists = self.lists
        return lists if lists is not None and lists.info.served and not self.sparse else None

    @property
    def rows(self) -> Int64:
        """Ascending; that of a model which is not alive may be that of the one before."""
        return self.columns.rows

    @property
    def last_row(self) -> int:
        return int(self.rows[-1]) if len(self.rows) else 0

    def positions(self, rows: Int64) -> Int64:
        """The positions of those of ``rows`` that are alive."""
        if not len(self.rows):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.asarray(at[(self.rows[at] == rows) & self.alive[at]], np.int64)

    def row_of(self) -> dict[str, int]:
        """The row of each model id."""
        return dict(zip(self.columns.ids_at(self.alive), self.rows[self.alive].tolist(), strict=True))

    def holds(self, row: int, model_id: str) -> bool:
        """Whether ``row`` is that of a model here, with that id."""
        found = self.positions(np.asarray([row], np.int64))
        return bool(len(found) and self.columns.ids_at(found)[0] == model_id)

    def search(
        self,
        space: str,
        queries: Float32,
        k: int,
        condition: Filter | None,
        *,
        exact: bool = True,
        device: DeviceSearch | None = None,
    ) -> Hits:
        """The hits of each query ``(query, dimension)`` in one of `SPACES`; see `VectorIndex.search`.

        Args:
            exact: False to search approximately where an index allows it: there is none for a filter.
            device: what searches exactly in place of the CPU, and then always does.
        """
        allowed = None if len(self) == len(self.alive) else self.alive
        approximate = space == "velocity" and not exact and not condition and device is None
        lists = self.searched_lists if approximate else None
        if lists is not None and k <= lists.info.deepest:
            found = search_lists(self.velocity, lists, queries, k, allowed)
            return Hits([list(self._hits(*each)) for each in found], lists.info)
        if condition:
            allowed = self.alive & self.columns.matching(condition)
        found = self.index(space).search(queries, k, allowed=allowed, device=device)
        return Hits([list(self._hits(*each)) for each in found])

    def _hits(self, positions: Int64, similarities: Float64) -> Iterator[Hit]:
        columns = self.columns
        found = (
            columns.ids_at(positions),
            positions.tolist(),
            similarities.tolist(),
            columns.descriptors[:, positions].T,
        )
        for model_id, position, similarity, descriptors in zip(*found, strict=True):
            code = int(columns.family[position])
            family = None if code == NO_FAMILY else columns.labels.families[code]
            yield Hit(model_id, similarity, int(columns.rows[position]), family, descriptors)

    def index(self, space: str) -> VectorIndex:
        return self.velocity if space == "velocity" else self.physics

    def extended(self, state: GalleryState, more: RecordColumns, velocity: Float32, physics: Float32) -> View:
        """This view and further models, whose rows are higher than any before."""
        columns = self.columns.extended(more)
        return View(
            state,
            columns,
            np.concatenate([self.alive, np.ones(len(more.rows), np.bool_)]),
            self.statistics.extended(columns, len(more.rows)),
            self.velocity.extended(velocity),
            self.physics.extended(physics),
            self.lists,
        )

    def without(self, state: GalleryState, rows: Int64) -> View:
        """This view without ``rows``."""
        gone = self.positions(rows)
        alive = self.alive.copy()
        alive[gone] = False
        return replace(self, state=state, alive=alive, statistics=self.statistics.without(self.columns, gone, alive))

    @property
    def sparse(self) -> bool:
        """Whether so many of its models are removed that `compacted` is worth its time."""
        return (len(self.alive) - len(self)) * DEAD_SHARE > len(self.alive)

    def compacted(self) -> View:
        """This view without the vectors and columns of removed models, which copies all others."""
        kept = np.flatnonzero(self.alive)
        return View.of(
            self.state,
            self.columns.select(kept),
            self.alive[kept],
            VectorIndex.build(self.velocity.vectors_at(kept)),
            VectorIndex.build(self.physics.vectors_at(kept)),
        )

    def caught_up(self, before: View, now: View) -> View:
        """This view, which is ``before`` compacted, with the changes that have made ``before`` into ``now``.

        Costs what they do. If ``now`` was not made from ``before``, it is returned.
        """
        if now.columns.labels is not before.columns.labels:  # loaded anew: positions are others
            return now
        held = len(before.alive)
        gone = before.rows[before.alive & ~now.alive[:held]]
        new = held + np.flatnonzero(now.alive[held:])
        return self.without(now.state, gone).extended(
            now.state, now.columns.at(new), now.velocity.vectors_at(new), now.physics.vectors_at(new)
        )

    def write_snapshots(self, folder: Path, *, fingerprint: str, at_step: AtStep) -> None:
        """Write both indices and the columns beside the records. Raises OSError."""
        kept = np.flatnonzero(self.alive)
        keys = keys_of(self.columns.checksums[kept])
        writer = SnapshotWriter(folder, fingerprint, self.generation, at_step)
        for space in SPACES:
            writer.write_index(space, self.index(space), kept, keys)
        writer.write_columns(self.columns, kept)
