"""A writer that is killed, or that the disk refuses, loses nothing that it acknowledged (promises 15 and 19).

`killed_writer.py` takes any number of kills: ``python tests/index/killed_writer.py FOLDER gallery 1000 1``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seisbind.index import Gallery

HERE = Path(__file__).parent


def harness(folder: Path, store: str, kills: int) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(HERE / "killed_writer.py"), str(folder), store, str(kills), "5"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


@pytest.mark.long
def test_killed_at_every_step_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    result = harness(tmp_path, "gallery", 141)
    assert result["broken"] == {}, result["examples"]
    # It did die, at every step: a step that is never reached proves nothing.
    assert len(result["deaths"]) == 32 and min(result["deaths"].values()) >= 1, result["deaths"]


def test_killed_while_a_mapped_snapshot_is_written_nothing_is_lost(tmp_path: Path) -> None:
    result = harness(tmp_path, "mapped", 20)
    assert result["broken"] == {}, result["examples"]
    assert len(result["deaths"]) == 7 and min(result["deaths"].values()) >= 1, result["deaths"]


@pytest.mark.long
def test_a_naive_writer_does_not_survive_the_same_harness(tmp_path: Path) -> None:
    result = harness(tmp_path, "naive", 36)
    assert sum(result["broken"].values()) >= 3


# RLIMIT_FSIZE stands for the full disk: the kernel refuses to grow any file beyond it, as a full file system would.
FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
import numpy as np
from seisbind.index import Gallery
from seisbind.model.errors import GalleryError, GalleryWriteFailed
from killed_writer import DIMENSION, arrays

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path, kib = Path(sys.argv[1]), int(sys.argv[2])

def add(gallery, first):
    numbers = range(first, first + 20)
    columns = map(np.stack, zip(*map(arrays, numbers), strict=True))
    gallery.add(*columns, model_ids=[f"m{n}" for n in numbers])
    return list(numbers)

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

gallery = Gallery.create(path, fingerprint="w", dimension=DIMENSION)
acknowledged = add(gallery, 0)
gallery.snapshot()
limit(kib << 10)
refused = []
for first in range(20, 4000, 20):
    try:
        acknowledged += add(gallery, first)
    except GalleryWriteFailed as error:
        refused.append(str(error))
        if len(refused) == 3:
            break
for change in (lambda: gallery.remove(["m0"]), gallery.snapshot):
    try:
        change()
    except GalleryWriteFailed as error:
        refused.append(str(error))
removed = "m0" not in gallery.model_ids()
seen = len(gallery)
leftovers = [file.name for file in path.glob("*.tmp")]
gallery.close()
try:
    with Gallery.open(path, fingerprint="w") as reader:  # while the disk is still full
        full = reader.model_ids()
except GalleryError as error:
    full = str(error)
limit(resource.RLIM_INFINITY)
with Gallery.open(path, fingerprint="w", writable=True) as gallery:
    later = add(gallery, 5000)
with Gallery.open(path, fingerprint="w") as gallery:
    for model_id in gallery.model_ids():
        gallery.velocity(model_id)
    print(json.dumps({
        "expected": [f"m{n}" for n in acknowledged if not (removed and n == 0)], "full": full, "seen": seen,
        "later": [f"m{n}" for n in later], "held": gallery.model_ids(), "refused": refused,
        "leftovers": leftovers, "problems": gallery.verify().problems, "notes": gallery.info().notes,
    }))
"""


@pytest.mark.parametrize("kib", [12, 40, 200, 700])
def test_a_full_disk_is_said_and_costs_nothing(tmp_path: Path, kib: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "g"), str(kib)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=HERE,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert len(result["refused"]) >= 3
    assert all("Nothing was changed" in sentence for sentence in result["refused"])
    if kib < 32:
        assert "It may be full" in result["full"]  # SQLite needs that much beside the file, if only to read
    else:
        assert result["full"] == result["expected"]
    assert result["seen"] == len(result["expected"])
    assert result["held"] == result["expected"] + result["later"]
    assert (result["leftovers"], result["problems"], result["notes"]) == ([], [], [])


REPLACED = """
import os, resource, signal, sys
from pathlib import Path
import numpy as np
from seisbind.index import Gallery
from seisbind.model.errors import GalleryWriteFailed
from killed_writer import DIMENSION, arrays

path, way, last = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def at_step(name):
    if name == last:
        os.kill(os.getpid(), signal.SIGKILL)

def add(gallery, first):
    numbers = range(first, first + 20)
    columns = map(np.stack, zip(*map(arrays, numbers), strict=True))
    gallery.add(*columns, model_ids=[f"m{n}" for n in numbers])

with Gallery.create(path, fingerprint="w", dimension=DIMENSION) as gallery:
    add(gallery, 0)
    add(gallery, 20)
if last.isdigit():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(last) << 10, resource.RLIM_INFINITY))
make = getattr(Gallery, way)  # both are context managers
try:
    with make(path, fingerprint="w", dimension=DIMENSION, overwrite=True, at_step=at_step) as gallery:
        for first in range(1000, 1200, 20):
            add(gallery, first)
except GalleryWriteFailed as error:
    sys.exit(str(error))
"""


def replaced(folder: Path, way: str, last: str) -> tuple[str, str]:
    """Overwrite a gallery of 40 models with 200 others up to ``last``, a step where it is killed or the KiB that a file
    may have; returns which of them are there then, and what the writer said."""
    path = folder / way
    run = subprocess.run(
        [sys.executable, "-c", REPLACED, str(path), way, last], capture_output=True, text=True, timeout=60, cwd=HERE
    )
    assert run.returncode == (1 if last.isdigit() else -signal.SIGKILL), run.stderr
    with Gallery.open(path, fingerprint="w") as gallery:
        assert gallery.verify().ok
        model_ids = gallery.model_ids()
    with Gallery.building(path, fingerprint="w", overwrite=True):
        pass  # what was left behind is not in the way
    assert not (path / "building").exists()
    if model_ids == [f"m{n}" for n in range(40)]:
        return "old", run.stderr
    return "new" if model_ids == [f"m{n}" for n in range(1000, 1200)] else "neither", run.stderr


@pytest.mark.parametrize(
    ("step", "held"),
    [
        ("create:written", "old"),
        ("add:committed", "old"),
        ("velocity.faiss:synced", "old"),
        ("install:settled", "old"),
        ("install:cleared", "old"),
        ("install:renamed", "new"),
        ("install:indices", "new"),
    ],
)
def test_killed_while_replacing_the_old_gallery_or_the_new_is_there(tmp_path: Path, step: str, held: str) -> None:
    assert replaced(tmp_path, "building", step)[0] == held


@pytest.mark.parametrize("kib", [1, 40, 100])
def test_a_full_disk_while_replacing_leaves_the_old_gallery(tmp_path: Path, kib: int) -> None:
    held, said = replaced(tmp_path, "building", str(kib))
    assert held == "old" and "Nothing was changed" in said


def test_replacing_at_once_and_filling_later_does_not_survive_the_same(tmp_path: Path) -> None:
    assert replaced(tmp_path, "create", "add:committed")[0] == "neither"


def test_replacing_at_once_on_a_full_disk_does_not_survive_it(tmp_path: Path) -> None:
    assert replaced(tmp_path, "create", "400")[0] == "neither"  # an empty one has 320 KiB


def test_a_full_disk_when_creating_leaves_the_old_gallery(tmp_path: Path) -> None:
    held, said = replaced(tmp_path, "create", "1")
    assert held == "old" and "Nothing was changed" in said
