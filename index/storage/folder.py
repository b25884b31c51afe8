"""What lies in a gallery's folder, and how a new gallery takes the place of an old one.

gallery/
├── records.sqlite    the truth (`records`)
├── velocity.faiss    snapshots, derived (`snapshots`): of both indices ...
├── velocity.json
├── physics.faiss
├── physics.json
├── columns.bin       ... and of what filters and counts are made from (`columns`)
├── columns.json
├── writer.lock       who may write (`lock`)
└── building/         a new gallery that is not done yet, with the same files

A new gallery is made inside the folder of the old one and not beside it, so that the folder may be a mount point or a
link, both are on one file system, and the lock stays the same file; one rename of ``records.sqlite`` is the change.

SQLite opens the write-ahead log by its name, after the file itself and not at once. Who opens a gallery therefore holds
a shared ``flock`` on the folder until it has read something (`connect`), and `install` an exclusive one from before the
old log goes until the new records are in place: nobody opens the records of one gallery and the log of another.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from seisbind.index.storage.database import RECORDS, settle
from seisbind.index.storage.lock import folder_lock
from seisbind.model.errors import GalleryDamaged, GalleryError

LOCK = "writer.lock"
BUILDING = "building"
SPACES = ("velocity", "physics")

_LOGS = tuple(f"{RECORDS}-{log}" for log in ("wal", "shm", "journal"))
_SNAPSHOTS = (*(f"{space}.{ending}" for space in SPACES for ending in ("faiss", "json")), "columns.bin", "columns.json")
_OWN = {RECORDS, LOCK, *_LOGS, *_SNAPSHOTS, *(f"{name}.tmp" for name in _SNAPSHOTS)}


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it that are missing, so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make names given and taken in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_room(folder: Path, *, overwrite: bool) -> Path:
    """Make the empty subfolder for a new gallery, in place of what a killed writer left there; returns it.

    Raises:
        GalleryError: there is a gallery and ``overwrite`` is false, or there are files of someone else.
    """
    foreign = sorted(str(path.relative_to(folder)) for path in _foreign(folder))
    if foreign:
        raise GalleryError(
            f"{folder} holds {len(foreign)} other files ({foreign[0]!r} ...). Give the gallery a folder of its own."
        )
    if (folder / RECORDS).exists() and not overwrite:
        raise GalleryError(f"There already is a gallery at {folder}. Open it, or overwrite it on purpose.")
    building = folder / BUILDING
    if building.exists():
        shutil.rmtree(building)
    building.mkdir()
    return building


def _foreign(folder: Path, *, own_folder: str | None = BUILDING) -> Iterator[Path]:
    """What no gallery has put there. A name that merely starts like ours is somebody's backup."""
    for path in folder.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and path.name == own_folder:
            yield from _foreign(path, own_folder=None)
        elif is_folder or path.name not in _OWN:
            yield path


def drop_building(folder: Path) -> None:
    """Remove what a writer that was killed, or failed, left of a new gallery; files of someone else stay.

    The caller holds the lock of ``folder``. What cannot be removed is in nobody's way: the next build removes it.
    """
    building = folder / BUILDING
    if building.is_dir() and not building.is_symlink() and not any(_foreign(building, own_folder=None)):
        shutil.rmtree(building, ignore_errors=True)


def install(folder: Path, *, at_step: Callable[[str], None]) -> None:
    """Put the gallery in ``building/``, closed, in the place of the one in ``folder``, whose lock the caller holds.

    Up to the rename of the records the old gallery is there, whole (its snapshots, which are derived, go first: an
    old one beside new records would be taken for changes lost); from then on the new one is.

    Raises:
        GalleryLocked, GalleryWriteFailed: the log of either could not be brought into its file, or somebody has been
            opening the old gallery all the time; nothing was changed.
        OSError: the disk refused.
    """
    old, new = folder / RECORDS, folder / BUILDING / RECORDS
    settle(new)
    if old.exists():
        with suppress(GalleryDamaged):  # nothing to save, and no reason not to replace it
            settle(old)
    at_step("install:settled")
    # SQLite would replay an old log into the new records. Whoever reads the old ones keeps them open and goes on.
    with folder_lock(folder, exclusive=True):
        for name in (*_LOGS, *_SNAPSHOTS):
            (folder / name).unlink(missing_ok=True)
        sync_folder(folder)
        at_step("install:cleared")
        new.replace(old)
        sync_folder(folder)
    at_step("install:renamed")
    for name in _SNAPSHOTS:
        if (folder / BUILDING / name).exists():
            (folder / BUILDING / name).replace(folder / name)
    sync_folder(folder)
    at_step("install:indices")
    shutil.rmtree(folder / BUILDING)


def size_bytes(folder: Path) -> int:
    """Of the gallery's files in the folder. SQLite's own come and go meanwhile."""
    total = 0
    for name in _OWN:
        with suppress(FileNotFoundError):
            total += (folder / name).stat().st_size
    return total
