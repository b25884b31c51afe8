"""A new gallery takes the old one's place while others open it, and what a build that fails or is killed leaves."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery
from seisbind.index.storage.folder import BUILDING
from seisbind.model.errors import GalleryError, GalleryWriteFailed

MakeBatch = Callable[..., Any]
STEPS = ("create:written", "add:committed", "install:settled", "install:cleared", "install:renamed", "install:indices")


@pytest.mark.parametrize("way", ["building", "create"])
@pytest.mark.parametrize("step", STEPS)
def test_who_opens_at_any_step_has_one_gallery_for_good(
    filled: Path, make_batch: MakeBatch, step: str, way: str
) -> None:
    """Whoever opened the old records just before the rename used to read the new gallery's log into them."""
    opened: list[Gallery] = []
    failed: list[Exception] = []
    threads: list[Thread] = []

    def open_one() -> None:
        try:
            opened.append(Gallery.open(filled, fingerprint=None))
        except GalleryError as error:
            failed.append(error)

    def at_step(name: str) -> None:
        if name == step and not threads:
            threads.append(Thread(target=open_one))
            threads[0].start()
            threads[0].join(0.3)  # or it waits until the new one is there

    new = make_batch(30, first=100)
    with getattr(Gallery, way)(filled, fingerprint="w", dimension=16, overwrite=True, at_step=at_step) as fresh:
        new.add_to(fresh)
    for thread in threads:
        thread.join()
    assert failed == [] and len(opened) == 1
    with Gallery.open(filled, fingerprint=None, writable=True) as writer, opened[0] as reader:
        more = make_batch(40, first=200)
        more.add_to(writer)  # and its log grows
        old = set(reader.model_ids()) == {f"m{i}" for i in range(40)}
        if old:
            with pytest.raises(GalleryError, match="replaced"):
                reader.refresh()
            held = make_batch(40)
        else:
            reader.refresh()
            assert reader.model_ids() == writer.model_ids() == new.model_ids + more.model_ids
            held = new
        for model_id, velocity in zip(held.model_ids, held.velocity, strict=True):
            np.testing.assert_array_equal(reader.velocity(model_id), velocity)
            assert reader.record(model_id).model_id == model_id
        if step == "install:indices" or (way == "building" and step == "install:renamed"):
            assert not old
        if not old:
            assert reader.verify().ok


def test_a_folder_exchanged_while_it_is_opened_is_opened_again(
    filled: Path, tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another whole folder takes the place after SQLite has the file and before it looks for the log."""
    other = tmp_path / "other"
    with Gallery.create(other, fingerprint="weights-1", dimension=16) as gallery:
        make_batch(3, first=500).add_to(gallery)
    from seisbind.index.storage import database

    check, exchanged = database._check_format, []

    def exchange(connection: Any, path: Path) -> None:
        if not exchanged:
            exchanged.append(True)
            filled.rename(tmp_path / "aside")
            other.rename(filled)
        check(connection, path)

    monkeypatch.setattr(database, "_check_format", exchange)
    with Gallery.open(filled, fingerprint=None) as opened:
        assert opened.model_ids() == ["m500", "m501", "m502"] and opened.verify().ok


def test_a_build_that_fails_leaves_nothing(filled: Path, make_batch: MakeBatch) -> None:
    def refuse(name: str) -> None:
        if name == "install:settled":
            raise OSError(28, "No space left on device")

    before = sorted(file.name for file in filled.iterdir())
    for way in (Gallery.create, Gallery.building):
        with pytest.raises(GalleryWriteFailed), way(filled, fingerprint="w", overwrite=True, at_step=refuse):
            pass
        assert sorted(file.name for file in filled.iterdir()) == before


KILLED = """
import os, signal, sys
from pathlib import Path
from seisbind.index import Gallery

def at_step(name):
    if name == "create:written":
        os.kill(os.getpid(), signal.SIGKILL)

Gallery.create(Path(sys.argv[1]), fingerprint="w", dimension=16, overwrite=True, at_step=at_step)
"""


def test_what_a_killed_build_left_goes_with_the_next_writer(filled: Path) -> None:
    run = subprocess.run([sys.executable, "-c", KILLED, str(filled)], timeout=60, check=False)
    assert run.returncode == -signal.SIGKILL and (filled / BUILDING / "records.sqlite").exists()
    Gallery.open(filled, fingerprint=None).close()  # a reader cannot know whether somebody is still building
    assert (filled / BUILDING).exists()
    (filled / BUILDING / "thesis.tex").write_text("years of work")
    Gallery.open(filled, fingerprint=None, writable=True).close()
    assert (filled / BUILDING / "thesis.tex").exists()
    (filled / BUILDING / "thesis.tex").unlink()
    Gallery.open(filled, fingerprint=None, writable=True).close()
    assert not (filled / BUILDING).exists()


@pytest.mark.parametrize("step", [None, "install:cleared", "install:renamed"])
def test_a_replacement_between_records_and_snapshots_is_no_alarm(
    filled: Path, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture, step: str | None
) -> None:
    """The snapshots are read by name: those of a gallery that came in between are not held against the old records.

    With a ``step``, loading goes on when the replacement has got that far and no further.
    """
    caplog.set_level(logging.INFO, "seisbind")
    threads: list[Thread] = []
    reached, loaded = Event(), Event()

    def building(name: str) -> None:
        if name == step:
            reached.set()
            assert loaded.wait(20)

    def replace() -> None:
        with Gallery.building(filled, fingerprint="w", dimension=16, overwrite=True, at_step=building) as fresh:
            for first in (100, 110, 120):  # three changes, where the old gallery had one
                make_batch(10, first=first).add_to(fresh)
            fresh.snapshot()
        reached.set()

    def at_step(name: str) -> None:
        if name == "open:records" and not threads:
            threads.append(Thread(target=replace))
            threads[0].start()
            assert reached.wait(20)

    with Gallery.open(filled, fingerprint=None, at_step=at_step) as opened:
        loaded.set()
        threads[0].join()
        old = step == "install:cleared"
        assert opened.model_ids() == [f"m{i}" for i in (range(40) if old else range(100, 130))]
        assert not [note for note in opened.info().notes if not note.endswith("it is missing.")]
        assert step is not None or opened.info().notes == ()
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    assert bool(step) == any("it is missing" in record.getMessage() for record in caplog.records)
