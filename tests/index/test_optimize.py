"""`optimize` rewrites a gallery without changing anything in it, or leaves the old one (promise 102)."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery, verify_folder
from seisbind.index.optimize import optimize
from seisbind.index.search import mapped_writer
from seisbind.index.storage import database
from seisbind.model.errors import GalleryDamaged, GalleryError, GalleryLocked, GalleryNotFound
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed

LONG = pytest.mark.long

MakeBatch = Callable[..., Any]
HERE = Path(__file__).parent
QUERIES = np.eye(16, dtype=np.float32)


def contents(path: Path) -> dict[str, Any]:
    """Everything that a gallery answers, and what it is."""
    with Gallery.open(path, fingerprint=None) as gallery:
        ids = gallery.model_ids()
        info = gallery.info()
        return {
            "ids": ids,
            "records": [repr(record) for record in gallery.records(ids)],
            "maps": [each.tobytes() for each in gallery.velocities(ids)],
            "embeddings": [each.tobytes() for each in gallery.embeddings(ids)],
            "hits": [[(h.model_id, h.row, h.similarity) for h in hits] for hits in gallery.search_velocity(QUERIES, 5)],
            "rows": gallery._view.rows[gallery._view.alive].tolist(),
            "facts": (gallery.generation, info.created_at, gallery.fingerprint, gallery.frame, gallery.precision_m_s),
        }


@pytest.fixture
def old(tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery of format 1 with gaps, whose highest row was removed."""
    monkeypatch.setattr(database, "FORMAT_VERSION", 1)
    monkeypatch.setattr(database, "PAGE_BYTES", 8192)
    path = tmp_path / "gallery"
    with Gallery.create(path, fingerprint="w", dimension=16) as gallery:
        make_batch(160, cells=40).add_to(gallery, source="test")
        gallery.remove([f"m{i}" for i in (*range(100, 150), 159)])
    monkeypatch.undo()
    return path


def test_format_1_becomes_format_2_with_the_same_answers_and_is_smaller(old: Path) -> None:
    before, seen = contents(old), []
    done = optimize(old, progress=seen.append)
    assert (done.count, done.format_before, done.format_after) == (109, 1, 2)
    assert seen[-1] == 109 and done.bytes_after < 0.9 * done.bytes_before
    assert contents(old) == before
    assert verify_folder(old).ok and verify_folder(old).notes == ()
    assert not (old / "building").exists()


def test_no_row_is_used_twice_after_it(old: Path, make_batch: MakeBatch) -> None:
    optimize(old)
    with Gallery.open(old, fingerprint=None, writable=True) as gallery:
        make_batch(1, first=200, cells=40).add_to(gallery)
        assert gallery._row_of["m200"] == 161  # 160 was that of m159
        gallery.remove(gallery.model_ids())
    optimize(old)  # empty, with rows that were used
    with Gallery.open(old, fingerprint=None, writable=True) as gallery:
        make_batch(1, first=201, cells=40).add_to(gallery)
        assert gallery._row_of["m201"] == 162


def test_a_gallery_that_has_removed_models_gets_their_room_back(tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    velocity, _ = mixed(300, 1)
    vectors = np.tile(QUERIES, (19, 1))[:300]
    with Gallery.create(path, fingerprint="w", dimension=16, precision_m_s=0.5) as gallery:
        velocity = gallery.stored(velocity)
        ids = gallery.add(velocity, describe(velocity), vectors, vectors)
        gallery.remove(ids[:250])
    before = contents(path)
    done = optimize(path)
    assert done.format_before == done.format_after == 2 and done.bytes_after < 0.7 * done.bytes_before
    assert contents(path) == before and before["facts"][-1] == 0.5


def test_the_snapshot_of_a_large_gallery_is_written_anew(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 100)
    with Gallery.open(old, fingerprint=None, writable=True) as gallery:
        gallery.snapshot()
    before, held = contents(old), (old / "mapped.bin").stat().st_ino
    optimize(old)
    assert (old / "mapped.bin").stat().st_ino != held
    assert contents(old) == before and verify_folder(old).ok


def test_a_damaged_snapshot_is_not_copied(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 100)
    with Gallery.open(old, fingerprint=None, writable=True) as gallery:
        gallery.snapshot()
    before = contents(old)
    content = bytearray((old / "mapped.bin").read_bytes())
    with Gallery.open(old, fingerprint=None) as gallery:
        start, size = gallery._mapped.facts["sections"]["physics.vectors"]  # type: ignore[union-attr]
    content[start + size // 2] ^= 16
    (old / "mapped.bin").write_bytes(content)
    optimize(old)
    assert contents(old) == before and verify_folder(old).ok


def test_who_reads_meanwhile_goes_on_and_is_told(old: Path) -> None:
    with Gallery.open(old, fingerprint=None) as reader:
        velocity = reader.velocity("m5")
        optimize(old)
        np.testing.assert_array_equal(reader.velocity("m5"), velocity)
        with pytest.raises(GalleryError, match="replaced"):
            reader.refresh()


def test_nobody_writes_meanwhile(old: Path) -> None:
    refused: list[str] = []

    def at_step(name: str) -> None:
        if name == "optimize:copied":
            with pytest.raises(GalleryLocked) as error:
                Gallery.open(old, fingerprint=None, writable=True)
            refused.append(str(error.value))

    optimize(old, at_step=at_step)
    assert len(refused) == 1
    with Gallery.open(old, fingerprint=None, writable=True), pytest.raises(GalleryLocked, match="being written"):
        optimize(old)


@pytest.mark.parametrize("table", ["velocities", "embeddings"])
def test_a_damaged_gallery_stays_as_it_is(old: Path, table: str) -> None:
    with closing(sqlite3.connect(old / "records.sqlite", isolation_level=None)) as connection:
        blob = bytearray(connection.execute(f"SELECT velocity FROM {table} WHERE row = 60").fetchone()[0])
        blob[11] ^= 2
        connection.execute(f"UPDATE {table} SET velocity = ? WHERE row = 60", (bytes(blob),))
    before = (old / "records.sqlite").read_bytes()
    with pytest.raises(GalleryDamaged, match=r"row 60|m59"):
        optimize(old)
    assert (old / "records.sqlite").read_bytes() == before and not (old / "building").exists()


def test_what_is_no_gallery_is_not_made_one(tmp_path: Path) -> None:
    with pytest.raises(GalleryNotFound):
        optimize(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, resource, signal, sys
from pathlib import Path
from seisbind.index.optimize import optimize
from seisbind.model.errors import GalleryWriteFailed

path, last = Path(sys.argv[1]), sys.argv[2]

def at_step(name):
    if name == last:
        os.kill(os.getpid(), signal.SIGKILL)

if last.isdigit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(last) << 10, resource.RLIM_INFINITY))
try:
    optimize(path, at_step=at_step)
except GalleryWriteFailed as error:
    sys.exit(str(error))
"""


def run(path: Path, last: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(path), last], capture_output=True, text=True, timeout=60, cwd=HERE
    )


@pytest.mark.parametrize(
    ("step", "version"),
    [
        pytest.param("create:written", 1, marks=LONG),
        pytest.param("copy:before-commit", 1, marks=LONG),
        pytest.param("copy:committed", 1, marks=LONG),
        pytest.param("continue:committed", 1, marks=LONG),
        ("optimize:copied", 1),
        pytest.param("velocity.faiss:written", 1, marks=LONG),
        pytest.param("columns.json:renamed", 1, marks=LONG),
        pytest.param("optimize:snapshots", 1, marks=LONG),
        pytest.param("optimize:verified", 1, marks=LONG),
        pytest.param("install:settled", 1, marks=LONG),
        ("install:cleared", 1),
        ("install:renamed", 2),
        pytest.param("install:indices", 2, marks=LONG),
    ],
)
def test_killed_at_any_step_nothing_is_lost(old: Path, step: str, version: int) -> None:
    before = contents(old)
    assert run(old, step).returncode == -signal.SIGKILL
    assert contents(old) == before
    with Gallery.open(old, fingerprint=None) as gallery:
        assert gallery.info().format_version == version and gallery.verify().ok
    optimize(old)  # what was left behind is not in the way
    assert contents(old) == before and not (old / "building").exists()


@pytest.mark.parametrize("kib", [40, 200, 400])
def test_a_full_disk_leaves_the_old_gallery(old: Path, kib: int) -> None:
    before = contents(old)
    done = run(old, str(kib))
    assert done.returncode == 1 and "Nothing was changed" in done.stderr
    assert contents(old) == before and not (old / "building").exists()


def test_rewriting_in_place_does_not_survive_the_same(old: Path) -> None:
    """Vacuity: the way that one would write first, killed between two of its steps."""
    naive = """
import os, signal, sqlite3, sys
from pathlib import Path
from seisbind.index.storage import codec
import numpy as np
connection = sqlite3.connect(Path(sys.argv[1]) / "records.sqlite", isolation_level=None)
for row, blob in connection.execute("SELECT row, velocity FROM velocities").fetchall():
    coded = codec.encode_map(np.frombuffer(blob, "<f4").reshape(40, 40))
    connection.execute("UPDATE velocities SET velocity = ? WHERE row = ?", (coded, row))
    if row == 80:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", naive, str(old)], capture_output=True, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(GalleryDamaged):
        contents(old)
    shutil.rmtree(old)
