"""Verification: every byte of a gallery is read and compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event

import numpy as np

from seisbind.index.search.columns import ColumnsSnapshot, keys_of
from seisbind.index.search.labels import NO_FAMILY
from seisbind.index.search.loading import load_view, refresh_view
from seisbind.index.search.mapped import MappedSnapshot, SnapshotDamaged
from seisbind.index.search.snapshots import Snapshot, load_columns_snapshot, load_snapshot
from seisbind.index.search.view import View
from seisbind.index.storage.database import RECORDS
from seisbind.index.storage.folder import MAPPED, SPACES
from seisbind.index.storage.record import Catalogue, Float32, Ids, Int64, RowLookup
from seisbind.index.storage.records import Records
from seisbind.model.errors import GalleryDamaged, GalleryError, UnknownModel

UNIT_TOLERANCE = 1e-5  # of a stored embedding: they are normalised in float64 when they come in
CHUNK_MODELS = 2048  # embeddings in memory at a time: 4 MB
MAX_PROBLEMS = 100  # listed; a damaged page can touch thousands of models and the first hundred tell the story


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The result of `Gallery.verify`: all is well if ``problems`` is empty.

    Attributes:
        notes: sentences on snapshots that lag behind the records, as after a kill: nothing is lost, and opening makes
            up for it.
    """

    count: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems


def verify_folder(path: Path) -> VerifyReport:
    """`Gallery.verify` for a gallery that may be too damaged to be opened.

    Raises:
        GalleryNotFound, GalleryError: nothing there; a format of another version; no permission.
    """
    try:
        records = Records(path / RECORDS)
    except GalleryDamaged as error:  # its first page or the facts on the whole gallery: nothing more can be read
        return VerifyReport(0, (str(error),))
    with closing(records):
        try:
            view = load_view(records, path).view
        except GalleryDamaged:
            view = None  # `verify` finds the reason again
        return verify(records, view, path)


def verify(records: Records, view: View | None, folder: Path) -> VerifyReport:
    """Check structure, catalogue, each record and map, embeddings, what is searched if given, and the snapshots."""
    notes: list[str] = []
    with records.reading():
        problems = tuple(islice(_problems(records, view, folder, notes), MAX_PROBLEMS))
        try:
            count = len(records.rows_and_ids()[0])
        except GalleryDamaged:
            count = 0
    return VerifyReport(count, problems, tuple(notes))


def _problems(records: Records, view: View | None, folder: Path, notes: list[str]) -> Iterator[str]:
    yield from records.structure()
    try:
        rows, model_ids = records.rows_and_ids()
        row_of = dict(zip(model_ids, rows.tolist(), strict=True))
        lookup = RowLookup(-1, row_of, 0, holds=lambda row, model_id: row_of.get(model_id) == row)
    except GalleryDamaged as error:
        yield str(error)
        return
    for model_id in model_ids:
        try:
            records.records([model_id], lookup)
            records.velocities([model_id], lookup)
        except (GalleryError, UnknownModel) as error:
            yield str(error)
    try:
        catalogue = records.catalogue()
    except GalleryError as error:
        yield str(error)
        yield from _embedding_problems(records, rows)
        return
    if view is not None:
        if view.generation != catalogue.state.generation:
            now = refresh_view(view, records)  # others may write while this gallery only reads
            view = load_view(records, folder, mapped=False).view if now is None else now.view
        if not np.array_equal(view.rows[view.alive], catalogue.rows):
            yield "The models being searched are not those of the records. Open the gallery again."
            return
    keys = keys_of(catalogue.checksums)
    snapshots: dict[str, Snapshot] = {}
    for space in SPACES:
        try:
            snapshot = load_snapshot(folder, space, fingerprint=records.fingerprint, dimension=records.dimension)
        except FileNotFoundError:
            continue  # it was never written, or is being replaced: opening replays the records
        except (OSError, ValueError, RuntimeError) as error:
            yield f"The {space} snapshot cannot be used: {error}. Opening rebuilds it; writing a snapshot replaces it."
            continue
        snapshots[space] = snapshot
        _note_lag(space, snapshot.keys, keys, notes)
    try:
        held = MappedSnapshot.load(folder, fingerprint=records.fingerprint, dimension=records.dimension)
        held.file.check_all(Event())
        columns = ColumnsSnapshot.of(held.view.columns)
        _note_lag("mapped", columns.keys, keys, notes)
        yield from _column_differences(records, catalogue, keys, columns, MAPPED)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, SnapshotDamaged) as error:
        reason = str(error).rstrip(".")
        yield f"The mapped snapshot cannot be used: {reason}. Opening rebuilds it; writing a snapshot replaces it."
    try:
        columns = load_columns_snapshot(folder, fingerprint=records.fingerprint)
        _note_lag("columns", columns.keys, keys, notes)
        yield from _column_differences(records, catalogue, keys, columns, "columns.json")
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield f"The columns snapshot cannot be used: {error}. Opening rebuilds it; writing a snapshot replaces it."
    for start in range(0, len(catalogue.rows), CHUNK_MODELS):
        part = slice(start, start + CHUNK_MODELS)
        try:
            stored = records.embeddings(catalogue.rows[part])
        except GalleryError:
            yield from _embedding_problems(records, catalogue.rows[part])
            continue
        searched = stored
        if view is not None:
            positions = np.flatnonzero(view.alive)[part]
            try:
                searched = (view.velocity.vectors_at(positions), view.physics.vectors_at(positions))
            except SnapshotDamaged as error:
                yield str(error)
        for space, truth, used in zip(SPACES, stored, searched, strict=True):
            yield from _differences(space, catalogue.ids[part], truth, used)
            if space in snapshots:
                yield from _snapshot_differences(space, keys[part], truth, snapshots[space])


def _note_lag(name: str, held: Int64, keys: Int64, notes: list[str]) -> None:
    lacks, extra = int((~np.isin(keys, held)).sum()), int((~np.isin(held, keys)).sum())
    if lacks or extra:
        notes.append(
            f"The {name} snapshot is older than the records: it lacks {lacks} models and has {extra} that were "
            "removed. Nothing is lost; opening makes up for it."
        )


def _column_differences(
    records: Records, catalogue: Catalogue, keys: Int64, stored: ColumnsSnapshot, name: str
) -> Iterator[str]:
    position = {key: i for i, key in enumerate(stored.keys.tolist())}
    different = 0
    for start in range(0, len(keys), CHUNK_MODELS):
        part = slice(start, start + CHUNK_MODELS)
        try:
            columns = records.columns(catalogue.rows[part])
        except GalleryError:
            continue  # already reported for the record
        for i, key in enumerate(keys[part].tolist()):
            at = position.get(key)
            if at is None:
                continue
            code = int(stored.family[at])
            family = None if code == NO_FAMILY else stored.labels.families[code]
            tags = stored.labels.tag_sets[stored.tag_set[at]]
            code = int(stored.source[at])
            source = None if code == NO_FAMILY else stored.labels.sources[code]
            words = (family, tags, source, int(stored.added[at]))
            same = np.array_equal(stored.descriptors[:, at], columns.descriptors[i])
            different += (
                words != (columns.families[i], columns.tags[i], columns.sources[i], columns.added[i]) or not same
            )
    if different:
        yield f"The snapshot of the columns has {different} models that differ from the records. Delete {name}."


def _embedding_problems(records: Records, rows: Int64) -> Iterator[str]:
    """Read one by one, because reading many stops at the first that is damaged."""
    for start in range(len(rows)):
        try:
            records.embeddings(rows[start : start + 1])
        except GalleryError as error:
            yield str(error)


def _differences(space: str, ids: Ids, truth: Float32, used: Float32) -> Iterator[str]:
    length = np.linalg.norm(truth.astype(np.float64), axis=1)
    for model_id in ids[~(np.abs(length - 1) <= UNIT_TOLERANCE)]:
        yield f"The {space} embedding of {model_id} is not of unit length."
    for model_id in ids[(truth != used).any(axis=1)]:
        yield f"The {space} embedding of {model_id} is not the one being searched. Open the gallery again."


def _snapshot_differences(space: str, keys: Int64, truth: Float32, snapshot: Snapshot) -> Iterator[str]:
    _, here, there = np.intersect1d(keys, snapshot.keys, return_indices=True)
    different = int((truth[here] != snapshot.index.vectors_at(there)).any(axis=1).sum())
    if different:
        yield f"The {space} snapshot has {different} vectors that differ from the records. Delete {space}.json."
