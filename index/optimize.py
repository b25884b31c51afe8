"""Rewriting a gallery in the newest format, as small as it can be, without losing anything."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from seisbind.index.search.loading import load_view
from seisbind.index.search.mapped import SnapshotDamaged
from seisbind.index.search.mapped_writer import write_snapshots
from seisbind.index.storage.database import FORMAT_VERSION, RECORDS, damaged, translate_errors
from seisbind.index.storage.folder import BUILDING, install, new_gallery, size_bytes
from seisbind.index.storage.record_writer import RecordWriter
from seisbind.index.storage.records import Records
from seisbind.index.verify import verify
from seisbind.model.errors import GalleryError, GalleryNotFound

BATCH = 256  # models copied in a transaction


@dataclass(frozen=True, slots=True)
class Optimized:
    """What `optimize` has done: the number of models, and the format and size of the folder before and after."""

    count: int
    format_before: int
    format_after: int
    bytes_before: int
    bytes_after: int


def optimize(
    path: Path,
    *,
    progress: Callable[[int], None] = lambda done: None,
    at_step: Callable[[str], None] = lambda name: None,
) -> Optimized:
    """Write the gallery in the folder ``path`` anew in the newest format, without gaps, with fresh snapshots.

    Every model keeps its row, id, map, descriptors, embeddings, time and checksum; the new gallery has the digest and
    the generation of the old one. It is written inside the folder, read again and compared as a whole, and only then
    takes the old one's place by one rename. Until then, and if anything fails or the process is killed, the old one is
    there. Galleries that are open for reading go on with the old one; no other process can write meanwhile. The disk
    needs room for both; memory, for a batch of models, their catalogue, and the snapshot unless it is mapped.

    Args:
        progress: called with the number of models copied so far.
        at_step: called with a name at each step, for crash tests.

    Raises:
        GalleryNotFound: there is none.
        GalleryDamaged: the old gallery is; it stays as it is.
        GalleryLocked: it is being written.
        GalleryWriteFailed: the disk refused; the old gallery stays.
    """
    if not (path / RECORDS).is_file():
        raise GalleryNotFound(f"There is no gallery at {path}. 'seisbind gallery build' makes one.")
    with closing(Records(path / RECORDS)) as old:
        fingerprint, dimension, frame = old.made_with, old.dimension, old.frame
        precision_m_s, created_at = old.precision_m_s, old.created_at
    with new_gallery(
        path,
        fingerprint=fingerprint,
        dimension=dimension,
        frame=frame,
        overwrite=True,
        precision_m_s=precision_m_s,
        created_at=created_at,
        at_step=at_step,
    ) as lock:
        # The writer first: after a crash it is the one that may recover the log.
        with closing(RecordWriter(path / RECORDS, at_step=at_step)), closing(Records(path / RECORDS)) as old:
            if (old.fingerprint, old.dimension, old.created_at) != (fingerprint, dimension, created_at):
                raise GalleryError(f"Another gallery took the place of {path}. Try again.")
            before = size_bytes(path)
            format_before, state = old.format_version, old.state()
            with translate_errors(path, "optimize"):
                _copy(old, path / BUILDING, state.generation, progress, at_step)
                at_step("optimize:copied")
                _write_snapshots(old, path, at_step)
            at_step("optimize:snapshots")
            _compare(old, path)
            at_step("optimize:verified")
        with translate_errors(path, "put the new gallery"):
            install(path, at_step=at_step)
        lock.release()
    return Optimized(state.count, format_before, FORMAT_VERSION, before, size_bytes(path))


def _copy(
    old: Records, building: Path, generation: int, progress: Callable[[int], None], at_step: Callable[[str], None]
) -> None:
    """Each batch is read, compared with its checksums and written; nobody else can change the old gallery."""
    last, done, highest = 0, 0, old.last_row()
    with closing(RecordWriter(building / RECORDS, at_step=at_step)) as writer:
        while batch := old.models(last, BATCH):
            rows, checksums, models = zip(*batch, strict=True)
            writer.copy(rows, models, checksums, last=highest)
            last, done = rows[-1], done + len(batch)
            progress(done)
        if highest and not done:
            writer.copy((), (), (), last=highest)
        writer.continue_from(generation)


def _write_snapshots(old: Records, path: Path, at_step: Callable[[str], None]) -> None:
    """From what the old gallery searches, which `_compare` compares with the new records."""
    view = load_view(old, path).view
    try:
        write_snapshots(view, path / BUILDING, fingerprint=old.fingerprint, at_step=at_step)
    except SnapshotDamaged:
        view = load_view(old, path, mapped=False).view
        write_snapshots(view, path / BUILDING, fingerprint=old.fingerprint, at_step=at_step)


def _compare(old: Records, path: Path) -> None:
    """Raises GalleryDamaged if the new gallery is not, byte by byte, what the old one holds."""
    with closing(Records(path / BUILDING / RECORDS)) as new:
        if new.state() != old.state():
            raise damaged(path, "its copy has another digest")
        report = verify(new, None, path / BUILDING)
    problems = (*report.problems, *report.notes)
    if problems:
        raise damaged(path, f"its copy is not what was copied ({' '.join(islice(problems, 3))})")
