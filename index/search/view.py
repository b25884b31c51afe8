"""What a search sees: the models of one moment, what filters ask of them and their vectors, never changed once made."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from seisbind.index.search.columns import Bool, Columns, StoredColumns, Tally, keys_of
from seisbind.index.search.filter import Filter
from seisbind.index.search.snapshots import Snapshot, load_columns_snapshot, load_snapshot
from seisbind.index.search.vectors import Float32, Int64, VectorIndex
from seisbind.index.storage.folder import SPACES
from seisbind.index.storage.record import CHECKSUM, Catalogue, Described, Ids, State, digest_entry, xor
from seisbind.index.storage.records import Records

log = logging.getLogger(__name__)

DEAD_SHARE = 8  # what is kept of removed models is dropped when they are more than this fraction of all

MISSING = "it is missing"

S = TypeVar("S", Snapshot, StoredColumns)


@dataclass(frozen=True, slots=True, eq=False)
class Contents:
    """Position i holds row ``rows[i]``, model ``ids[i]``, and vector i of both indices, if ``alive[i]``.

    A change makes a new object, and whoever is searching keeps the old one until done. What it copies does not depend
    on how many models there are, but for ``alive``, a byte a model.
    """

    generation: int
    digest: bytes  # of all models, as `Catalogue` has it
    columns: Columns
    alive: Bool
    count: int  # of the living
    tally: Tally
    velocity: VectorIndex
    physics: VectorIndex

    @classmethod
    def of(cls, state: State, columns: Columns, alive: Bool, velocity: VectorIndex, physics: VectorIndex) -> Contents:
        return cls(
            state.generation, state.digest, columns, alive, state.count, Tally.of(columns, alive), velocity, physics
        )

    def __len__(self) -> int:
        return self.count

    @property
    def rows(self) -> Int64:
        """Ascending; that of a model which is not alive may be that of the one before."""
        return self.columns.rows

    @property
    def ids(self) -> Ids:
        return self.columns.ids

    def positions(self, rows: Int64) -> Int64:
        """Where the living ones of ``rows`` are."""
        if not len(self.rows):
            return np.empty(0, np.int64)
        at = np.minimum(np.searchsorted(self.rows, rows), len(self.rows) - 1)
        return np.asarray(at[(self.rows[at] == rows) & self.alive[at]], np.int64)

    def allowed(self, condition: Filter | None) -> Bool | None:
        """The mask that `VectorIndex.search` takes: the living models that a filter lets through."""
        if condition:
            return self.alive & self.columns.passing(condition)
        return None if self.count == len(self.alive) else self.alive

    def extended(self, state: State, more: Described, velocity: Float32, physics: Float32) -> Contents:
        """These and further models, whose rows are higher than any before."""
        columns = self.columns.extended(more)
        return Contents(
            state.generation,
            state.digest,
            columns,
            np.concatenate([self.alive, np.ones(len(more.rows), np.bool_)]),
            state.count,
            self.tally.extended(columns, len(more.rows)),
            self.velocity.extended(velocity),
            self.physics.extended(physics),
        )

    def without(self, state: State, rows: Int64) -> Contents:
        """These but for ``rows``."""
        gone = self.positions(rows)
        alive = self.alive.copy()
        alive[gone] = False
        tally = self.tally.without(self.columns, gone, alive)
        rest = Contents(
            state.generation, state.digest, self.columns, alive, state.count, tally, self.velocity, self.physics
        )
        return rest if (len(alive) - state.count) * DEAD_SHARE <= len(alive) else rest.compacted()

    def compacted(self) -> Contents:
        """These without what is kept of models that were removed."""
        kept = np.flatnonzero(self.alive)
        return Contents.of(
            State(self.generation, self.count, self.digest),
            self.columns.taken(kept),
            self.alive[kept],
            VectorIndex.build(self.velocity.taken(kept)),
            VectorIndex.build(self.physics.taken(kept)),
        )

    def refreshed(self, records: Records, folder: Path) -> Contents:
        """These brought up to date with the records, or themselves if nothing has changed.

        Rows are never used twice, so what is new has a higher row than all before; what is gone is looked for only if
        the numbers say that something is. That nothing else has happened is what the digest is for.
        """
        with records.reading():
            state = records.state()
            if state.generation == self.generation:
                return self
            new = records.described(after=self._last_row())
            gone = self._gone(records, self.count + len(new.rows) - state.count)
            if self._digest_after(new, gone) == state.digest and self.count + len(new.rows) - len(gone) == state.count:
                velocity, physics = records.embeddings(new.rows)
                between = State(state.generation, self.count - len(gone), state.digest)
                return self.without(between, self.rows[gone]).extended(state, new, velocity, physics)
            return load_contents(records, folder).contents

    def _last_row(self) -> int:
        return int(self.rows[-1]) if len(self.rows) else 0

    def _gone(self, records: Records, count: int) -> Int64:
        """The positions of living models whose row is no longer there, if there are ``count`` of them."""
        if not count:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.alive & ~np.isin(self.rows, records.rows_until(self._last_row())))

    def _digest_after(self, new: Described, gone: Int64) -> bytes:
        changed = [
            *zip(self.rows[gone].tolist(), self.ids[gone], self.columns.checksums[gone], strict=True),
            *zip(new.rows.tolist(), new.ids, new.checksums, strict=True),
        ]
        return xor([self.digest, *(digest_entry(row, each, checksum.tobytes()) for row, each, checksum in changed)])


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """What opening found.

    Attributes:
        notes: sentences on snapshots that were not believed.
        behind: how many models the snapshots lack, or have too many: what the next opening has to make up for.
    """

    contents: Contents
    notes: tuple[str, ...]
    behind: int


def load_contents(records: Records, folder: Path) -> Loaded:
    """Contents from the snapshots where they can be believed, and from the records for the rest.

    Raises:
        GalleryDamaged: the records themselves are not what was written.
    """
    notes: list[str] = []
    with records.reading():
        catalogue = records.catalogue()
        keys = keys_of(catalogue.checksums)
        velocity, physics = (_believed_index(records, folder, space, catalogue, keys, notes) for space in SPACES)
        columns = _believed_columns(records, folder, keys, notes)
        state = State(catalogue.generation, len(catalogue.rows), catalogue.digest)
        if velocity is not None and physics is not None and columns is not None:
            same = np.array_equal(velocity.keys, physics.keys) and np.array_equal(velocity.keys, columns.keys)
            alive = _still_there(velocity.keys, keys) if same else None
            if alive is not None:
                return _continued(records, state, catalogue, alive, velocity, physics, columns, notes)
        missing = ~(_within(keys, velocity) & _within(keys, physics))
        replayed = records.embeddings(catalogue.rows[missing])
        undescribed = ~_within(keys, columns)
        described = records.described(catalogue.rows[undescribed])
    indices = [
        _index(snapshot, keys, missing, vectors)
        for snapshot, vectors in zip((velocity, physics), replayed, strict=True)
    ]
    contents = Contents.of(
        state, _columns(catalogue, keys, columns, undescribed, described), np.ones(len(keys), np.bool_), *indices
    )
    return Loaded(contents, tuple(notes), len(keys) + 1)


def _continued(
    records: Records,
    state: State,
    catalogue: Catalogue,
    alive: Bool,
    velocity: Snapshot,
    physics: Snapshot,
    stored: StoredColumns,
    notes: list[str],
) -> Loaded:
    """The usual case: the snapshots, of which some may be gone (not ``alive``), and what was added since. Nothing is
    copied."""
    held = int(np.count_nonzero(alive))
    rows, ids = np.zeros(len(alive), np.int64), np.empty(len(alive), object)
    checksums = np.zeros(len(alive), CHECKSUM)
    rows[alive], ids[alive], checksums[alive] = catalogue.rows[:held], catalogue.ids[:held], catalogue.checksums[:held]
    rows = np.maximum.accumulate(rows)
    before = Contents.of(
        State(state.generation, held, state.digest),
        Columns.of(stored.labels, rows, ids, checksums, stored.family, stored.tag_set, stored.descriptors),
        alive,
        velocity.index,
        physics.index,
    )
    rest = catalogue.rows[held:]
    contents = before.extended(state, records.described(rest), *records.embeddings(rest)) if len(rest) else before
    dead = len(alive) - held
    if dead * DEAD_SHARE > len(contents.alive):
        contents = contents.compacted()
    return Loaded(contents, tuple(notes), len(rest) + dead)


def _still_there(held: Int64, keys: Int64) -> Bool | None:
    """Which of the keys ``held`` are still among ``keys``; None unless those that are come first there, in order."""
    if len(held) <= len(keys) and np.array_equal(held, keys[: len(held)]):
        return np.ones(len(held), np.bool_)
    alive = np.isin(held, keys)
    return alive if np.array_equal(held[alive], keys[: np.count_nonzero(alive)]) else None


def _within(keys: Int64, snapshot: Snapshot | StoredColumns | None) -> Bool:
    return np.zeros(len(keys), np.bool_) if snapshot is None else np.isin(keys, snapshot.keys)


def _index(snapshot: Snapshot | None, keys: Int64, missing: Bool, replayed: Float32) -> VectorIndex:
    """The index of one space in the order of ``keys``; the vectors of those ``missing`` are ``replayed``."""
    if snapshot is None:  # then everything is missing
        return VectorIndex.build(replayed)
    held = len(snapshot.keys)
    if np.array_equal(snapshot.keys, keys[:held]) and not missing[:held].any():
        return snapshot.index.extended(replayed)  # nothing removed since, nothing copied
    vectors = np.empty((len(keys), replayed.shape[1]), np.float32)
    vectors[missing] = replayed
    vectors[~missing] = snapshot.index.taken(_places(snapshot.keys, keys[~missing]))
    return VectorIndex.build(vectors)


def _places(held: Int64, keys: Int64) -> Int64:
    """Where each of ``keys`` is in ``held``."""
    order = np.argsort(held)
    return np.asarray(order[np.searchsorted(held, keys, sorter=order)])


def _columns(
    catalogue: Catalogue, keys: Int64, stored: StoredColumns | None, missing: Bool, described: Described
) -> Columns:
    """The columns of the whole catalogue, in its order."""
    if stored is None:
        return Columns.empty().extended(described)
    at = _places(stored.keys, keys[~missing])
    known = np.flatnonzero(~missing)
    before = Columns.of(
        stored.labels,
        catalogue.rows[known],
        catalogue.ids[known],
        catalogue.checksums[known],
        stored.family[at],
        stored.tag_set[at],
        np.ascontiguousarray(stored.descriptors[:, at]),
    )
    together = before.extended(described)
    return together.taken(np.argsort(together.rows))


def _believed_index(
    records: Records, folder: Path, space: str, catalogue: Catalogue, keys: Int64, notes: list[str]
) -> Snapshot | None:
    """The snapshot of one space if it is what its manifest says; otherwise None, and a note that says why."""

    def load() -> Snapshot:
        return load_snapshot(folder, space, fingerprint=records.fingerprint, dimension=records.dimension)

    snapshot, reason = _believed(load, keys)
    if snapshot is None:
        if len(keys):
            _note(notes, f"The {space} snapshot was not used and its index was rebuilt from the records: {reason}.")
    elif snapshot.generation > catalogue.generation:
        _note(
            notes,
            f"The {space} snapshot was made after change {snapshot.generation} and the records end at change "
            f"{catalogue.generation}: an older copy of the records was put back, or changes were lost.",
        )
    return snapshot


def _believed_columns(records: Records, folder: Path, keys: Int64, notes: list[str]) -> StoredColumns | None:
    """As `_believed_index`; a gallery of an older SeisBind has none, which is not worth a word."""
    columns, reason = _believed(lambda: load_columns_snapshot(folder, fingerprint=records.fingerprint), keys)
    if columns is None and reason != MISSING and len(keys):
        _note(notes, f"The columns snapshot was not used and was rebuilt from the records: {reason}.")
    return columns


def _believed(load: Callable[[], S], keys: Int64) -> tuple[S | None, str]:
    """What ``load`` loads, or None and why."""
    try:
        snapshot = load()
        if not _distinct(snapshot.keys) or not (np.array_equal(snapshot.keys, keys) or _distinct(keys)):
            raise ValueError("two models have one key")
        return snapshot, ""
    except FileNotFoundError:
        return None, MISSING
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # RuntimeError: FAISS
        return None, str(error)


def _distinct(keys: Int64) -> bool:
    ordered = np.sort(keys)
    return not (ordered[1:] == ordered[:-1]).any()


def _note(notes: list[str], sentence: str) -> None:
    notes.append(sentence)
    log.warning("%s", sentence)
