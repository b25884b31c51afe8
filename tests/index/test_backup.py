"""A backup is the gallery of one moment, whole and verified; so is what comes back from it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery, verify_folder
from seisbind.index.maintenance import backup as module
from seisbind.index.maintenance.backup import backup, restore
from seisbind.model.errors import GalleryDamaged, GalleryError, GalleryLocked, GalleryWriteFailed

LONG = pytest.mark.long

MakeBatch = Callable[..., Any]
HERE = Path(__file__).parent


def ids(first: int, end: int) -> list[str]:
    return [f"m{number}" for number in range(first, end)]


def test_a_backup_while_a_writer_writes_is_of_one_moment(
    filled: Path, tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGES", 1)
    with Gallery.open(filled, fingerprint=None, writable=True) as writer:
        make_batch(60, first=40).add_to(writer)
        before, steps, added = writer.generation, [], [100]

        def at_step(name: str) -> None:
            """Between two parts: the writer is not kept waiting, and the copy does not start again."""
            steps.append(name)
            if name == "backup:copying":
                make_batch(5, first=added[0]).add_to(writer)
                writer.remove([f"m{len(steps)}"])
                added[0] += 5

        copied = backup(filled, tmp_path / "copy", at_step=at_step)
        assert steps.count("backup:copying") > 5 and len(writer) > 100
    assert (copied.count, copied.generation) == (100, before)
    with Gallery.open(tmp_path / "copy", fingerprint=None) as copy:
        assert (copy.model_ids(), copy.generation) == (ids(0, 100), before)
        assert copy.verify().ok
        want = make_batch(100)
        np.testing.assert_array_equal(np.stack(copy.velocities(ids(0, 100))), want.velocity)
        for space, mine in zip(
            copy.embeddings(ids(0, 100)), (want.velocity_embeddings, want.physics_embeddings), strict=True
        ):
            np.testing.assert_allclose(space, mine, atol=1e-6)


def test_a_copied_file_lacks_what_the_backup_has(filled: Path, tmp_path: Path, make_batch: MakeBatch) -> None:
    """The naive way, on the very same gallery: what is still in the write-ahead log is lost."""
    with Gallery.open(filled, fingerprint=None, writable=True) as writer:
        make_batch(5, first=40).add_to(writer)
        backup(filled, tmp_path / "copy")
        (tmp_path / "naive").mkdir()
        shutil.copy(filled / "records.sqlite", tmp_path / "naive")
    with (
        Gallery.open(tmp_path / "copy", fingerprint=None) as copy,
        Gallery.open(tmp_path / "naive", fingerprint=None) as naive,
    ):
        assert copy.model_ids() == ids(0, 45)
        assert naive.model_ids() == ids(0, 40)


def test_restoring_brings_back_the_old_gallery_and_a_reader_reopens_it(
    filled: Path, tmp_path: Path, make_batch: MakeBatch
) -> None:
    backup(filled, tmp_path / "copy")
    with Gallery.open(filled, fingerprint=None, writable=True) as writer:
        writer.remove(ids(0, 30))
        with pytest.raises(GalleryLocked):
            restore(tmp_path / "copy", filled, overwrite=True)
    with Gallery.open(filled, fingerprint=None) as reader:
        with pytest.raises(GalleryError, match="already is a gallery"):
            restore(tmp_path / "copy", filled)
        assert restore(tmp_path / "copy", filled, overwrite=True).count == 40
        assert len(reader) == 10 and reader.record("m35").model_id == "m35"  # it goes on with the old one
        with pytest.raises(GalleryError, match="replaced"):
            reader.refresh()
    with Gallery.open(filled, fingerprint="weights-1") as again:
        assert again.model_ids() == ids(0, 40) and again.verify().ok and again.notes == ()
    assert restore(tmp_path / "copy", tmp_path / "elsewhere").count == 40


def test_a_damaged_backup_is_refused_and_nothing_changes(filled: Path, tmp_path: Path) -> None:
    backup(filled, tmp_path / "copy")
    file = tmp_path / "copy" / "records.sqlite"
    content = bytearray(file.read_bytes())
    with Gallery.open(filled, fingerprint=None) as gallery:
        at = content.find(gallery.velocity("m17").astype("<f4").tobytes()[:64])
    assert at > 0
    content[at] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(GalleryDamaged, match="m17"):
        restore(tmp_path / "copy", filled, overwrite=True)
    with pytest.raises(GalleryDamaged, match="m17"):  # neither is a damaged gallery backed up as if it were sound
        backup(tmp_path / "copy", tmp_path / "second")
    assert verify_folder(filled).ok and not (filled / "building").exists()
    assert not (tmp_path / "second" / "records.sqlite").exists()


def test_a_backup_replaces_an_earlier_one_only_on_purpose(filled: Path, tmp_path: Path, make_batch: MakeBatch) -> None:
    backup(filled, tmp_path / "copy")
    with Gallery.open(filled, fingerprint=None, writable=True) as writer:
        make_batch(3, first=40).add_to(writer)
    with pytest.raises(GalleryError, match="already is a gallery"):
        backup(filled, tmp_path / "copy")
    assert backup(filled, tmp_path / "copy", overwrite=True).count == 43


RUN = """
import os, resource, signal, sys
from pathlib import Path
from seisbind.index.maintenance import backup as module, merge
from seisbind.model.errors import GalleryWriteFailed

module.PAGES = 4
what, source, out, last = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]

def at_step(name):
    if name == last:
        os.kill(os.getpid(), signal.SIGKILL)

if last.isdigit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(last) << 10, resource.RLIM_INFINITY))
try:
    if what == "merge":
        merge.merge(out, [source], overwrite=True, at_step=at_step)
    else:
        getattr(module, what)(source, out, overwrite=True, at_step=at_step)
except GalleryWriteFailed as error:
    sys.exit(str(error))
"""


def run(what: str, source: Path, out: Path, last: str) -> tuple[int, str]:
    """Do ``what`` until it is killed at the step ``last``, or with files of at most ``last`` KiB."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, what, str(source), str(out), last],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def other(tmp_path: Path, make_batch: MakeBatch) -> Path:
    """A gallery of 30 other models, whose place is taken."""
    with Gallery.create(tmp_path / "other", fingerprint="weights-1", dimension=16) as gallery:
        make_batch(30, first=500).add_to(gallery)
    return tmp_path / "other"


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "step", "held"),
    [
        pytest.param("backup", "backup:copying", "old", marks=LONG),
        ("backup", "backup:copied", "old"),
        pytest.param("backup", "backup:verified", "old", marks=LONG),
        pytest.param("backup", "install:cleared", "old", marks=LONG),
        ("backup", "install:renamed", "new"),
        pytest.param("restore", "restore:checked", "old", marks=LONG),
        pytest.param("restore", "backup:copying", "old", marks=LONG),
        pytest.param("restore", "velocity.faiss:synced", "old", marks=LONG),
        ("restore", "install:settled", "old"),
        ("restore", "install:renamed", "new"),
        pytest.param("restore", "install:indices", "new", marks=LONG),
        pytest.param("merge", "add:first-row", "old", marks=LONG),
        ("merge", "merge:copied", "old"),
        pytest.param("merge", "install:cleared", "old", marks=LONG),
        pytest.param("merge", "install:renamed", "new", marks=LONG),
    ],
)
def test_killed_at_a_step_the_old_gallery_or_the_new_is_there(
    filled: Path, other: Path, what: str, step: str, held: str
) -> None:
    assert run(what, filled, other, step)[0] == -signal.SIGKILL
    with Gallery.open(other, fingerprint="weights-1") as gallery:
        assert gallery.verify().ok
        assert gallery.model_ids() == (ids(0, 40) if held == "new" else ids(500, 530))
    assert verify_folder(filled).ok
    assert run(what, filled, other, "none")[0] == 0  # what was left behind is not in the way
    with Gallery.open(other, fingerprint="weights-1") as gallery:
        assert gallery.model_ids() == ids(0, 40) and not (other / "building").exists()


@pytest.mark.parametrize("what", ["backup", "restore", "merge"])
def test_a_full_disk_is_said_and_the_old_gallery_stays(filled: Path, other: Path, what: str) -> None:
    code, said = run(what, filled, other, "40")
    assert code == 1 and "Nothing was changed" in said
    assert verify_folder(other).ok and verify_folder(other).count == 30
    assert not (other / "building").exists()


def test_a_full_disk_refuses_with_its_own_error(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(GalleryWriteFailed, match="No space left"):
        backup(filled, tmp_path / "copy")
