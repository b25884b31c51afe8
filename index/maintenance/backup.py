"""Backups of a gallery while others read and write it, and going back to one."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from seisbind.index.gallery import Gallery
from seisbind.index.maintenance.models import check_whole
from seisbind.index.storage.database import RECORDS, translate_errors
from seisbind.index.storage.folder import BUILDING, install, new_folder, no_step
from seisbind.index.storage.records import Records
from seisbind.model.errors import GalleryDamaged

PAGES = 512  # copied at a time, 16 MB: some 10 ms, between which others get the disk


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: how many models, of which generation."""

    count: int
    generation: int


def backup(
    path: Path,
    out: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, all: None,
    at_step: Callable[[str], None] = no_step,
) -> Copied:
    """Copy the gallery in the folder ``path`` into the folder ``out``, as it is at one moment, and verify the copy.

    Others may search, add and remove all the while, in this process or another: the copy is made from one view of the
    file, which no writer waits for. Their write-ahead log grows until it is done. The copy is a gallery like any other.
    It appears in ``out`` when it is on the disk and has been verified, or not at all.

    Args:
        overwrite: replace an earlier backup, or whatever gallery is there, when all is done.
        progress: called with the pages copied and those there are.
        at_step: called with a name at each step, for crash tests.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`, for ``path``; there is a gallery in ``out``.
        GalleryLocked: ``out`` is being written.
        GalleryWriteFailed: the disk refused; nothing was changed.
    """
    return _transfer(path, out, overwrite, False, progress, at_step)


def restore(
    path: Path,
    gallery: Path,
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, all: None,
    at_step: Callable[[str], None] = no_step,
) -> Copied:
    """Put the backup in the folder ``path`` in the place of ``gallery``, whole or not at all.

    Every byte of the backup is verified before, and of the copy. Those who have the old gallery open go on with it
    until they open it again (``POST /v1/gallery/reload``); none of them may be writing.

    Args and errors: as `backup`; GalleryDamaged: the backup is not what was written; nothing was changed.
    """
    check_whole(path)
    at_step("restore:checked")
    return _transfer(path, gallery, overwrite, True, progress, at_step)


def _transfer(
    path: Path,
    out: Path,
    overwrite: bool,
    with_snapshots: bool,
    progress: Callable[[int, int], None],
    at_step: Callable[[str], None],
) -> Copied:
    with closing(Records(path / RECORDS)) as records, new_folder(out, overwrite=overwrite) as lock:
        with records.reading() as source:  # one view of the file to the end, so that the copy never starts again
            state = records.state()
            with translate_errors(out, "back up"):
                _copy(source, out / BUILDING / RECORDS, progress, at_step)
        at_step("backup:copied")
        found = Copied(*check_whole(out / BUILDING))
        if found != Copied(state.count, state.generation):
            raise GalleryDamaged(
                f"The copy of {path} has {found.count} models of generation {found.generation}; the gallery has "
                f"{state.count} of {state.generation}. Check the disk."
            )
        at_step("backup:verified")
        if with_snapshots:  # so that whoever serves it next maps them, and does not read the records
            Gallery.open(out / BUILDING, fingerprint=None, writable=True, at_step=at_step).close()
        with translate_errors(out, "put the backup"):
            install(out, at_step=at_step)
        lock.release()
    return found


def _copy(
    source: sqlite3.Connection, to: Path, progress: Callable[[int, int], None], at_step: Callable[[str], None]
) -> None:
    def told(status: int, left: int, pages: int) -> None:
        progress(pages - left, pages)
        at_step("backup:copying")

    with closing(sqlite3.connect(to, isolation_level=None)) as target:
        target.execute("PRAGMA synchronous = FULL")
        source.backup(target, pages=PAGES, progress=told, sleep=0)
