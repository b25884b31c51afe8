"""Loading a view from the snapshots and the records, and bringing one up to date with the records."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from seisbind.index.search.columns import Columns, ColumnsSnapshot, coded, keys_of
from seisbind.index.search.labels import Bool
from seisbind.index.search.mapped import MappedFile, MappedSnapshot, SnapshotDamaged
from seisbind.index.search.snapshots import Snapshot, load_columns_snapshot, load_snapshot
from seisbind.index.search.vectors import VectorIndex
from seisbind.index.search.view import View
from seisbind.index.storage.folder import SPACES
from seisbind.index.storage.record import (
    CHECKSUM,
    Catalogue,
    Float32,
    GalleryState,
    Int64,
    RecordColumns,
    digest_entry,
    xor,
)
from seisbind.index.storage.records import Records

log = logging.getLogger(__name__)

MISSING = "it is missing"

S = TypeVar("S", Snapshot, ColumnsSnapshot)


@dataclass(frozen=True, slots=True, eq=False)
class LoadedView:
    """A view as it was loaded.

    Attributes:
        notes: sentences on snapshots that were not used.
        behind: how many models the snapshots lack, or have too many, which the next opening has to read or drop.
        row_of: of each model id.
        mapped: the file that the view is mapped from, if it is.
    """

    view: View
    notes: tuple[str, ...]
    behind: int
    row_of: MutableMapping[str, int]
    mapped: MappedFile | None = None


def load_view(records: Records, folder: Path, *, mapped: bool = True) -> LoadedView:
    """A view from the snapshots where they can be trusted, and from the records for the rest.

    The snapshots are read by their names. If another gallery has taken the place by then, they may be that one's, so
    nothing is said of them.

    Args:
        mapped: use a mapped snapshot, if there is one.

    Raises:
        GalleryDamaged: the records themselves are not what was written.
        GalleryReplaced: another gallery has taken the place of ``records``.
    """
    notes: dict[str, int] = {}  # each with the level that it is logged at
    with records.reading():
        loaded = _load_mapped(records, folder, notes) if mapped else None
        if loaded is not None:
            records.check_in_place()
            for note, level in notes.items():
                log.log(level, "%s", note)
            return loaded
        catalogue = records.catalogue()
        keys = keys_of(catalogue.checksums)
        velocity, physics = (_load_index(records, folder, space, catalogue, keys, notes) for space in SPACES)
        columns = _load_columns(records, folder, keys, notes)
        records.check_in_place()
        for note, level in notes.items():
            log.log(level, "%s", note)
        if velocity is not None and physics is not None and columns is not None:
            same = np.array_equal(velocity.keys, physics.keys) and np.array_equal(velocity.keys, columns.keys)
            alive = _still_there(velocity.keys, keys) if same else None
            if alive is not None:
                return _extend_snapshots(records, catalogue, alive, velocity, physics, columns, notes)
        missing = ~(_within(keys, velocity) & _within(keys, physics))
        replayed = records.embeddings(catalogue.rows[missing])
        uncovered = ~_within(keys, columns)
        rest = records.columns(catalogue.rows[uncovered])
    indices = [
        _index(snapshot, keys, missing, vectors)
        for snapshot, vectors in zip((velocity, physics), replayed, strict=True)
    ]
    view = View.of(
        catalogue.state, _columns(catalogue, keys, columns, uncovered, rest), np.ones(len(keys), np.bool_), *indices
    )
    return LoadedView(view, tuple(notes), len(keys) + 1, view.row_of())


def _load_mapped(records: Records, folder: Path, notes: dict[str, int]) -> LoadedView | None:
    """The mapped snapshot and what has changed since, if it can be trusted: the list of models is not read, for what
    was removed or added is known by its digest."""
    try:
        held = MappedSnapshot.load(folder, fingerprint=records.fingerprint, dimension=records.dimension)
        changes = refresh_view(held.view, records)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, SnapshotDamaged) as error:
        reason = str(error).rstrip(".")
        notes[f"The mapped snapshot was not used and was rebuilt from the records: {reason}."] = logging.WARNING
        return None
    if changes is None:
        notes["The mapped snapshot was not used: it is not an earlier state of the records."] = logging.WARNING
        return None
    if held.view.generation > changes.view.generation:
        notes[_older("mapped", held.view.generation, changes.view.generation)] = logging.WARNING
    held.row_of.update(changes.row_of)
    for model_id in changes.gone:
        del held.row_of[model_id]
    behind = len(changes.row_of) + len(changes.gone)
    return LoadedView(changes.view, tuple(notes), behind, held.row_of, held.file)


@dataclass(frozen=True, slots=True, eq=False)
class RefreshedView:
    """A view as it is now.

    Attributes:
        row_of: of the models that were added.
        gone: ids of those that were removed and not added again.
    """

    view: View
    row_of: dict[str, int]
    gone: tuple[str, ...] = ()


def refresh_view(view: View, records: Records) -> RefreshedView | None:
    """A view of the records as they are now: the same one if nothing has changed; None if it was not a state of these.

    Rows are never used twice, so new models have higher rows than all before; removed ones are looked for only if the
    counts say that there are some. The digest shows that nothing else has happened.
    """
    with records.reading():
        state = records.state()
        if state == view.state:
            return RefreshedView(view, {})
        new = records.columns(after=view.last_row)
        gone = np.empty(0, np.int64)
        if len(view) + len(new.rows) != state.count:
            gone = np.flatnonzero(view.alive & ~np.isin(view.rows, records.rows_until(view.last_row)))
        count = len(view) - len(gone)
        if _digest_after(view, new, gone) == state.digest and count + len(new.rows) == state.count:
            velocity, physics = records.embeddings(new.rows)
            between = GalleryState(state.generation, count, state.digest)
            row_of = dict(zip(new.ids, new.rows.tolist(), strict=True))
            return RefreshedView(
                view.without(between, view.rows[gone]).extended(state, new, velocity, physics),
                row_of,
                tuple(model_id for model_id in view.columns.ids_at(gone) if model_id not in row_of),
            )
        return None


def _digest_after(view: View, new: RecordColumns, gone: Int64) -> bytes:
    changed = [
        *zip(view.rows[gone].tolist(), view.columns.ids_at(gone), view.columns.checksums[gone], strict=True),
        *zip(new.rows.tolist(), new.ids, new.checksums, strict=True),
    ]
    return xor([view.state.digest, *(digest_entry(row, each, checksum.tobytes()) for row, each, checksum in changed)])


def _extend_snapshots(
    records: Records,
    catalogue: Catalogue,
    alive: Bool,
    velocity: Snapshot,
    physics: Snapshot,
    stored: ColumnsSnapshot,
    notes: dict[str, int],
) -> LoadedView:
    """The usual case: the snapshots, some of whose models may be removed, and what was added since, uncopied."""
    state, held = catalogue.state, int(np.count_nonzero(alive))
    rows, known = np.zeros(len(alive), np.int64), coded(catalogue.ids[:held])
    ids, checksums = np.zeros(len(alive), known.dtype), np.zeros(len(alive), CHECKSUM)
    rows[alive], ids[alive], checksums[alive] = catalogue.rows[:held], known, catalogue.checksums[:held]
    rows = np.maximum.accumulate(rows)
    before = View.of(
        GalleryState(state.generation, held, state.digest),
        Columns.of(
            stored.labels,
            rows,
            ids,
            checksums,
            stored.family,
            stored.tag_set,
            stored.descriptors,
            stored.source,
            stored.added,
        ),
        alive,
        velocity.index,
        physics.index,
    )
    rest = catalogue.rows[held:]
    view = before.extended(state, records.columns(rest), *records.embeddings(rest)) if len(rest) else before
    view = view.compacted() if view.sparse else view
    return LoadedView(view, tuple(notes), len(rest) + len(alive) - held, view.row_of())


def _still_there(held: Int64, keys: Int64) -> Bool | None:
    """Which of the keys ``held`` are still among ``keys``; None unless those that are come first there, in order."""
    if len(held) <= len(keys) and np.array_equal(held, keys[: len(held)]):
        return np.ones(len(held), np.bool_)
    alive = np.isin(held, keys)
    return alive if np.array_equal(held[alive], keys[: np.count_nonzero(alive)]) else None


def _within(keys: Int64, snapshot: Snapshot | ColumnsSnapshot | None) -> Bool:
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
    vectors[~missing] = snapshot.index.vectors_at(_positions_in(snapshot.keys, keys[~missing]))
    return VectorIndex.build(vectors)


def _positions_in(held: Int64, keys: Int64) -> Int64:
    """Where each of ``keys`` is in ``held``."""
    order = np.argsort(held)
    return np.asarray(order[np.searchsorted(held, keys, sorter=order)])


def _columns(
    catalogue: Catalogue, keys: Int64, stored: ColumnsSnapshot | None, missing: Bool, rest: RecordColumns
) -> Columns:
    """The columns of the whole catalogue, in its order."""
    if stored is None:
        return Columns.empty().extended(rest)
    at = _positions_in(stored.keys, keys[~missing])
    known = np.flatnonzero(~missing)
    before = Columns.of(
        stored.labels,
        catalogue.rows[known],
        catalogue.ids[known],
        catalogue.checksums[known],
        stored.family[at],
        stored.tag_set[at],
        np.ascontiguousarray(stored.descriptors[:, at]),
        stored.source[at],
        stored.added[at],
    )
    together = before.extended(rest)
    return together.select(np.argsort(together.rows))


def _load_index(
    records: Records, folder: Path, space: str, catalogue: Catalogue, keys: Int64, notes: dict[str, int]
) -> Snapshot | None:
    """The snapshot of one space if it can be trusted; otherwise None, and a note that says why."""

    def load() -> Snapshot:
        return load_snapshot(folder, space, fingerprint=records.fingerprint, dimension=records.dimension)

    snapshot, reason = _try_load(load, keys)
    if snapshot is None:
        if len(keys):
            level = logging.INFO if reason == MISSING else logging.WARNING  # missing after a kill: nothing is lost
            notes[f"The {space} snapshot was not used and its index was rebuilt from the records: {reason}."] = level
    elif snapshot.generation > catalogue.state.generation:
        notes[_older(space, snapshot.generation, catalogue.state.generation)] = logging.WARNING
    return snapshot


def _older(name: str, made: int, now: int) -> str:
    return (
        f"The {name} snapshot was made after change {made} and the records end at change {now}: an older copy of the "
        "records was put back, or changes were lost."
    )


def _load_columns(records: Records, folder: Path, keys: Int64, notes: dict[str, int]) -> ColumnsSnapshot | None:
    """As `_load_index`; a gallery of an older SeisBind has none, which needs no note."""
    columns, reason = _try_load(lambda: load_columns_snapshot(folder, fingerprint=records.fingerprint), keys)
    if columns is None and reason != MISSING and len(keys):
        notes[f"The columns snapshot was not used and was rebuilt from the records: {reason}."] = logging.WARNING
    return columns


def _try_load(load: Callable[[], S], keys: Int64) -> tuple[S | None, str]:
    """What ``load`` returns, or None and the reason."""
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
