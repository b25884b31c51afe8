"""A gallery that is built over hours, and goes on where it was after its process was killed.

What is to be built is written beside it as a plan, by which the same command is known again. The records are the
truth of how far it got: progress is noted after each transaction, so a note may be one behind, and what is added
twice then is left out as a model that is there already.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seisbind.index.gallery import Gallery
from seisbind.index.storage.codec import step_m_s
from seisbind.index.storage.database import FORMAT_VERSION, RECORDS, create_database, translate_errors
from seisbind.index.storage.folder import (
    BUILDING,
    LOCK,
    PLAN,
    PROGRESS,
    check_room,
    drop_building,
    install,
    is_planned,
    make_folder,
    no_step,
)
from seisbind.index.storage.lock import WriterLock
from seisbind.index.storage.record import utc_now
from seisbind.model.errors import GalleryError
from seisbind.model.files import replacing
from seisbind.model.frame import Frame

FOLD_MODELS = 32_768  # kept in memory, 3 KB each, before they are written into a snapshot that is mapped ...
FOLD_SHARE = 8  # ... or this fraction of a large gallery, since a snapshot is written as a whole
SHOWN = 100  # characters of a plan's entry in a sentence


class Building:
    """A new gallery to fill, batch by batch. Get one from `resumable`.

    Attributes:
        gallery: what there is of it; another object after `note`.
        progress: as it was noted last, by this process or by the one before; empty at the beginning.
    """

    def __init__(self, folder: Path, progress: Mapping[str, Any], at_step: Callable[[str], None]) -> None:
        self._folder = folder
        self._at_step = at_step
        self.progress = progress
        self.gallery = self._open()
        self._mapped = len(self.gallery)

    def _open(self) -> Gallery:
        return Gallery.open(self._folder, fingerprint=None, writable=True, at_step=self._at_step)

    def note(self, progress: Mapping[str, Any]) -> None:
        """Write down how far it got, which is in the gallery already.

        The disk is not waited for: after a power cut an older note is there, or none, and what it lacks is done again
        and left out. No note can be ahead of the records, which are on the disk before it is written.

        Raises:
            GalleryWriteFailed: the disk refused; what was noted before still is.
        """
        with translate_errors(self._folder, "note the progress"):
            noted = self._folder / PROGRESS
            temporary = noted.with_name(noted.name + ".tmp")
            temporary.write_text(json.dumps(progress), encoding="utf-8")
            temporary.replace(noted)
        self.progress = progress
        self._at_step("build:noted")
        if len(self.gallery) - self._mapped >= max(FOLD_MODELS, len(self.gallery) // FOLD_SHARE):
            self.gallery.close(lists=False)  # writes the snapshot; these are made once, at the end
            self.gallery = self._open()
            self._mapped = len(self.gallery)
            self._at_step("build:folded")


@contextmanager
def resumable(
    path: Path,
    plan: Mapping[str, Any],
    *,
    fingerprint: str,
    frame: Frame,
    dimension: int = 256,
    precision_m_s: float = 0.0,
    overwrite: bool = False,
    restart: bool = False,
    at_step: Callable[[str], None] = no_step,
) -> Iterator[Building]:
    """A new gallery to fill, which takes its place in the folder ``path`` when the block ends, whole or not at all.

    If the block raises or the process is killed, the gallery that was there before stays and can be opened and
    changed, and what was built stays beside it, in ``building/``, for the next call with the same plan.

    Args:
        plan: all that the content depends on, as JSON has it. Weights, frame and format are added here.
        precision_m_s: see `Gallery.create`.
        overwrite: replace a gallery that is there, when all is done.
        restart: discard what was built of any plan, and begin anew.
        at_step: called with a name at each step, for crash tests.

    Raises:
        GalleryError: there is a gallery and ``overwrite`` is false, files of someone else, or a build of another plan.
        GalleryLocked, GalleryWriteFailed: as `Gallery.create`.
    """
    here = json.loads(json.dumps(dict(plan) | {"weights": fingerprint, "frame": frame.to_dict()}))
    here |= {"dimension": dimension, "format": FORMAT_VERSION, "precision": precision_m_s}
    step_m_s(precision_m_s)  # refuses what no gallery can have
    building = path / BUILDING
    with translate_errors(path, "create a gallery"):
        make_folder(path)
        lock = WriterLock(path / LOCK)
    try:
        with translate_errors(path, "create a gallery"):
            check_room(path, overwrite=overwrite)
            if is_planned(path) and not restart:
                _check_plan(building, here)
            else:
                if building.exists():
                    shutil.rmtree(building)
                building.mkdir()
                create_database(
                    building / RECORDS,
                    fingerprint=fingerprint,
                    dimension=dimension,
                    created_at=utc_now(),
                    frame=frame,
                    precision_m_s=precision_m_s,
                )
                at_step("create:written")
                _write(building / PLAN, here)
                at_step("create:planned")
        state = Building(building, _read(building / PROGRESS) or {}, at_step)
        try:
            yield state
        except BaseException:
            state.gallery.close(lists=False)  # whoever stops it does not wait for them
            raise
        state.gallery.close()
        with translate_errors(path, "put the new gallery"):
            install(path, at_step=at_step)
    finally:
        drop_building(path)
        lock.release()


def _check_plan(building: Path, here: Mapping[str, Any]) -> None:
    there = _read(building / PLAN)
    if there is None:
        raise GalleryError(f"{building / PLAN} cannot be read. --restart discards that build and begins anew.")
    differences = [
        _difference(name, there.get(name), here.get(name))
        for name in dict.fromkeys([*here, *there])
        if there.get(name) != here.get(name)
    ]
    if differences:
        raise GalleryError(
            f"{building} holds a build of something else that was stopped: {'; '.join(differences)}. Give the same "
            "arguments to go on with it, or --restart to discard it and begin anew."
        )


def _difference(name: str, there: Any, here: Any) -> str:
    if isinstance(there, list) and isinstance(here, list):
        if len(there) != len(here):
            return f"{name}: {len(there)} there, {len(here)} here"
        there, here = next(pair for pair in zip(there, here, strict=True) if pair[0] != pair[1])
    return f"{name} {_short(there)} there, {_short(here)} here"


def _short(entry: Any) -> str:
    text = json.dumps(entry)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path, temporary=path.with_name(path.name + ".tmp")) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or none that can be read: then all is done again, and left out."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
