"""The folder of a gallery: its files, and how a new gallery replaces an old one.

gallery/
├── records.sqlite    the truth (`records`)
├── velocity.faiss    snapshots, derived (`snapshots`): of both indices ...
├── velocity.json
├── physics.faiss
├── physics.json
├── columns.bin       ... and of what filters and counts are made from (`columns`)
├── columns.json
├── mapped.bin        of a large gallery, instead of those: all of it (`mapped`)
├── writer.lock       who may write (`lock`)
└── building/         a new gallery that is not done yet, with the same files
    ├── plan.json     what it is to hold, of a build that the same command goes on with after a kill ...
    └── progress.json ... and how much of it there is

A new gallery is made inside the folder of the old one and not beside it, so that the folder may be a mount point or a
link, both are on one file system, and the lock stays the same file; one rename of ``records.sqlite`` is the change.

SQLite opens the write-ahead log by its name, after the file itself and not at once. `connect` therefore holds a shared
``flock`` on the folder until it has read something, and `install` an exclusive one from before the old log is removed
until the new records are in place: nothing opens the records of one gallery with the log of another.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from seisbind.index.storage.codec import step_m_s
from seisbind.index.storage.database import RECORDS, checkpoint_wal, create_database, translate_errors
from seisbind.index.storage.lock import WriterLock, folder_lock
from seisbind.index.storage.record import utc_now
from seisbind.model.errors import GalleryDamaged, GalleryError, InvalidConfig
from seisbind.model.files import sync
from seisbind.model.frame import Frame

log = logging.getLogger(__name__)

LOCK = "writer.lock"
BUILDING = "building"
SPACES = ("velocity", "physics")
MAPPED = "mapped.bin"
PLAN = "plan.json"
PROGRESS = "progress.json"

_LOGS = tuple(f"{RECORDS}-{log}" for log in ("wal", "shm", "journal"))
READ = (*(f"{space}.{ending}" for space in SPACES for ending in ("faiss", "json")), "columns.bin", "columns.json")
_SNAPSHOTS = (*READ, MAPPED)
_PLANS = (PLAN, PROGRESS)
_OWN = {RECORDS, LOCK, *_LOGS, *_SNAPSHOTS, *(f"{name}.tmp" for name in (*_SNAPSHOTS, *_PLANS))}


def no_step(step: str) -> None:
    """What ``at_step`` is where nobody wants to know: called with a name at each step of a change, for crash tests."""


@contextmanager
def new_gallery(
    folder: Path,
    *,
    fingerprint: str,
    dimension: int,
    frame: Frame,
    overwrite: bool,
    at_step: Callable[[str], None],
    precision_m_s: float = 0.0,
    created_at: str | None = None,
) -> Iterator[WriterLock]:
    """The lock of ``folder``, with an empty gallery in ``building/`` there, which is removed if the block raises.

    Otherwise the block has installed it (`install`), and owns the lock.

    Raises:
        GalleryError: there is a gallery and ``overwrite`` is false, or there are files of someone else.
        GalleryLocked: it is being written.
        GalleryWriteFailed: the disk refused.
    """
    if not fingerprint or not 1 <= dimension <= 4096:
        raise InvalidConfig(f"A gallery needs a fingerprint and 1 to 4096 dimensions; got {dimension}.")
    step_m_s(precision_m_s)  # refuses what no gallery can have
    with new_folder(folder, overwrite=overwrite) as lock:
        with translate_errors(folder, "create a gallery"):
            create_database(
                folder / BUILDING / RECORDS,
                fingerprint=fingerprint,
                dimension=dimension,
                created_at=created_at or utc_now(),
                frame=frame,
                precision_m_s=precision_m_s,
            )
            at_step("create:written")
        yield lock


@contextmanager
def new_folder(folder: Path, *, overwrite: bool) -> Iterator[WriterLock]:
    """As `new_gallery`, with nothing in ``building/``."""
    with translate_errors(folder, "create a gallery"):
        make_folder(folder)
        lock = WriterLock(folder / LOCK)
    try:
        with translate_errors(folder, "create a gallery"):
            _empty_building(folder, overwrite=overwrite)
        yield lock
    except BaseException:
        drop_building(folder)
        lock.release()
        raise


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it that are missing, so that they survive a power cut."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def _empty_building(folder: Path, *, overwrite: bool) -> None:
    """Make ``building/``, in place of what a killed writer left there."""
    check_room(folder, overwrite=overwrite)
    building = folder / BUILDING
    if is_planned(folder):
        raise GalleryError(
            f"{building} holds a build that was stopped and can go on. The command that began it goes on with it; "
            "'seisbind gallery build … --restart', or removing that folder, discards it."
        )
    if building.exists():
        shutil.rmtree(building)
    building.mkdir()


def check_room(folder: Path, *, overwrite: bool) -> None:
    """Raises GalleryError where a new gallery may not be put in ``folder``."""
    foreign = sorted(str(path.relative_to(folder)) for path in _foreign(folder))
    if foreign:
        raise GalleryError(
            f"{folder} holds {len(foreign)} other files ({foreign[0]!r} ...). Give the gallery a folder of its own."
        )
    if (folder / RECORDS).exists() and not overwrite:
        raise GalleryError(f"There already is a gallery at {folder}. Open it, or overwrite it on purpose.")


def is_planned(folder: Path) -> bool:
    """Whether ``folder`` has a build that was stopped and that the command which began it goes on with."""
    return (folder / BUILDING / PLAN).is_file() and (folder / BUILDING / RECORDS).is_file()


def _foreign(folder: Path, *, own_folder: str | None = BUILDING) -> Iterator[Path]:
    """Files that no gallery has written. A name that only starts like ours may be a backup."""
    for path in folder.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if is_folder and path.name == own_folder:
            yield from _foreign(path, own_folder=None)
        elif is_folder or not (path.name in _OWN or (own_folder is None and path.name in _PLANS)):
            yield path


def drop_building(folder: Path) -> None:
    """Remove what a writer that was killed, or failed, left of a new gallery; files of someone else stay.

    A build that can go on (`is_planned`) stays, too. The caller holds the lock of ``folder``. What cannot be removed
    now, the next build removes.
    """
    building = folder / BUILDING
    if is_planned(folder):
        log.info("%s holds a build that was stopped and can go on; it is left there.", building)
    elif building.is_dir() and not building.is_symlink() and not any(_foreign(building, own_folder=None)):
        shutil.rmtree(building, ignore_errors=True)


def install(folder: Path, *, at_step: Callable[[str], None]) -> None:
    """Replace the gallery in ``folder``, whose lock the caller holds, by the one in ``building/``, which is closed.

    Until the records are renamed the old gallery is there, complete (its snapshots, which are derived, go first: old
    ones beside new records would look like lost changes); from then on the new one is.

    Raises:
        GalleryLocked, GalleryWriteFailed: the log of either could not be written into its file, or the old gallery
            was being opened all the time; nothing was changed.
        OSError: the disk refused.
    """
    old, new = folder / RECORDS, folder / BUILDING / RECORDS
    checkpoint_wal(new)
    if old.exists():
        with suppress(GalleryDamaged):  # nothing to save, and no reason not to replace it
            checkpoint_wal(old)
    at_step("install:settled")
    # SQLite would replay an old log into the new records. Readers of the old ones keep them open and go on.
    with folder_lock(folder, exclusive=True):
        for name in (*_LOGS, *_SNAPSHOTS):
            (folder / name).unlink(missing_ok=True)
        sync(folder)
        at_step("install:cleared")
        new.replace(old)
        sync(folder)
    at_step("install:renamed")
    for name in _SNAPSHOTS:
        if (folder / BUILDING / name).exists():
            (folder / BUILDING / name).replace(folder / name)
    sync(folder)
    at_step("install:indices")
    shutil.rmtree(folder / BUILDING)


def size_bytes(folder: Path) -> int:
    """Of the gallery's files in the folder. SQLite's own come and go meanwhile."""
    total = 0
    for name in _OWN:
        with suppress(FileNotFoundError):
            total += (folder / name).stat().st_size
    return total
