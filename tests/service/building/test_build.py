"""Galleries built in several processes: the same whatever their number, and whoever is killed (promises 111, 112)."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.datasets.openfwi import write_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import GalleryError, GalleryWriteFailed, InvalidVelocityModel
from seisbind.model.ground.families import FAMILIES, mixed
from seisbind.model.processes import usable_cores
from seisbind.service.building import sources
from seisbind.service.building.build import ALONE, Encoders, add, build
from seisbind.service.building.sources import (
    BATCH,
    WHOLE,
    Batch,
    GivenPart,
    ModelFiles,
    Part,
    RandomModels,
    Run,
    Source,
)

HERE = Path(__file__).parent
Float32 = NDArray[np.float32]


def content(path: Path) -> list[Any]:
    """All that is stored, but for when."""
    with closing(sqlite3.connect(path / "records.sqlite")) as connection:
        return connection.execute(
            "SELECT row, model_id, family, source, mean_velocity, velocity_sha256, embeddings_sha256 FROM models "
            "ORDER BY row"
        ).fetchall()


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "WHOLE", 64)
    monkeypatch.setattr(sources, "BATCH", 32)


def test_up_to_a_number_random_models_are_those_of_one_draw() -> None:
    velocity, family = mixed(300, 7)
    parts = [part.read() for part in RandomModels.of(300, 7, None).parts()]
    assert [len(part[0]) for part in parts] == [BATCH, 300 - BATCH]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), velocity)
    assert [name for part in parts for name in part[1]] == family.tolist()
    (rest,) = (part.read() for part in RandomModels.of(300, 7, None).parts(1))
    np.testing.assert_array_equal(rest[0], velocity[BATCH:])


def test_the_families_of_one_draw_may_be_drawn_elsewhere() -> None:
    asked: list[Any] = []

    def elsewhere(work: Callable[[Any], Any], given: Iterable[Any]) -> list[Any]:
        asked.extend(given)
        return [work(each) for each in asked]

    source = RandomModels.of(40, 7, ("FlatVel-A", "Style-A", "Strata"))
    here = [part.read() for part in source.parts()]
    there = [part.read() for part in source.parts(run=elsewhere)]
    assert [(share.family, share.count) for share in asked] == [("FlatVel-A", 14), ("Style-A", 13), ("Strata", 13)]
    np.testing.assert_array_equal(here[0][0], there[0][0])
    assert here[0][1] == there[0][1]


def test_further_ones_are_drawn_in_blocks_of_equal_shares() -> None:
    parts = list(RandomModels.of(WHOLE + 10, 7, None).parts())
    first, other, last = parts[0].read(), parts[1].read(), parts[-1].read()
    assert len(first[0]) == 250 and [list(first[1]).count(family) for family in FAMILIES] == [25] * 10
    assert len(last[0]) == (WHOLE + 10) % 250
    assert not np.array_equal(first[0], other[0])
    again = next(RandomModels.of(2 * WHOLE, 7, None).parts()).read()
    np.testing.assert_array_equal(first[0], again[0])  # more of them begin with the same
    assert not np.array_equal(next(RandomModels.of(2 * WHOLE, 8, None).parts()).read()[0], again[0])


@pytest.mark.long
@pytest.mark.usefixtures("small_blocks")
def test_the_gallery_is_the_same_whatever_the_number_of_processes(
    embedder: Embedder, weights: Path, tmp_path: Path
) -> None:
    source = RandomModels.of(150, 3, ("FlatVel-A", "CurveVel-B", "Style-A"))
    alone = Encoders(embedder, weights, workers=0)
    ways = {"alone": alone, "two": replace(alone, workers=2), "here": replace(alone, workers=1, here=True)}
    done: list[int] = []
    for name, encoders in ways.items():
        outcome = build(tmp_path / name, source, encoders, progress=done.append)
        assert (outcome.given, outcome.stored, outcome.held, outcome.duplicates) == (150, 150, 150, 0)
        assert done[0] == 0 and done[-1] == 150
    held = content(tmp_path / "alone")
    assert len(held) == 150
    assert content(tmp_path / "two") == held and content(tmp_path / "here") == held
    with Gallery.open(tmp_path / "two", fingerprint=embedder.fingerprint) as gallery:
        drawn = next(source.parts()).read()[0]
        ids = gallery.model_ids()[: len(drawn)]
        np.testing.assert_array_equal(np.stack(gallery.velocities(ids)), drawn)
        np.testing.assert_allclose(gallery.embeddings(ids)[0], embedder.embed_velocity(drawn), atol=1e-6)


def harness(folder: Path, weights: Path, *arguments: object) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, str(HERE / "killed_build.py"), str(folder), str(weights), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


@pytest.mark.long
def test_killed_at_every_step_a_build_becomes_the_same_gallery(tmp_path: Path, weights: Path) -> None:
    result = harness(tmp_path, weights, 3, 5)
    assert result["whole"] == 100
    assert result["wrong"] == [] and result["early"] == []
    assert {"create:planned", "add:committed", "build:noted", "build:folded", "install:renamed"} <= set(result["steps"])
    assert all(result["deaths"][step] for step in result["steps"]), result["deaths"]  # it did die at every step
    assert sum(earlier > 0 for earlier in result["resumed"]) >= 5 and max(result["resumed"]) == 100


@pytest.mark.long
def test_a_note_that_runs_ahead_does_not_survive_the_same_harness(tmp_path: Path, weights: Path) -> None:
    assert harness(tmp_path, weights, 0, 5, "naive")["wrong"]


@dataclass(frozen=True)
class KillingPart(GivenPart):
    """Ends the process that makes it."""

    end: str = ""

    def read(self) -> Batch:
        if self.end == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise MemoryError


@dataclass(frozen=True)
class Faulty:
    """Models whose part ``at`` is another one."""

    inner: Source
    at: int
    fault: Part

    count = property(lambda self: self.inner.count)
    origin = property(lambda self: self.inner.origin)

    def plan(self) -> dict[str, Any]:
        return self.inner.plan()

    def parts(self, skipped: int = 0, *, run: Run = map) -> Iterator[Part]:
        for number, part in enumerate(self.inner.parts(run=run), 0):
            if number >= skipped:
                yield self.fault if number == self.at else part


EMPTY = np.empty((0, 70, 70), np.float32)


@pytest.mark.long
@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("end", "said"), [("killed", "worker processes died"), ("memory", "out of memory")])
def test_a_worker_that_dies_is_one_sentence_and_what_was_done_stays(
    embedder: Embedder, weights: Path, tmp_path: Path, end: str, said: str
) -> None:
    source, encoders = RandomModels.of(150, 3, ("FlatVel-A",)), Encoders(embedder, weights, workers=1)
    faulty = Faulty(source, 3, KillingPart(EMPTY, [], end))
    with pytest.raises(GalleryError, match=said) as raised:
        build(tmp_path / "g", faulty, encoders)
    assert "of 150 velocity models are done and kept; the same command goes on" in str(raised.value)
    earlier: list[int] = []
    assert build(tmp_path / "g", source, encoders, resumed=earlier.append).held == 150
    assert earlier and 0 < earlier[0] <= 96 and f" {earlier[0]} of 150 " in str(raised.value)
    build(tmp_path / "whole", source, replace(encoders, workers=0))
    assert content(tmp_path / "g") == content(tmp_path / "whole")


@pytest.mark.usefixtures("small_blocks")
def test_a_stopped_build_is_kept_until_it_is_discarded(embedder: Embedder, weights: Path, tmp_path: Path) -> None:
    path, encoders = tmp_path / "g", Encoders(embedder, weights, workers=0)
    source = RandomModels.of(150, 3, ("FlatVel-A",))
    old = RandomModels.of(5, 1, ("FlatVel-A",))
    build(path, old, encoders)

    def stop(done: int) -> None:
        if done == 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(path, source, encoders, overwrite=True, progress=stop)
    # the gallery that is there is read and written, and the build stays
    with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
        assert len(gallery) == 5
        gallery.remove(gallery.model_ids()[:1])
    assert (path / "building" / "records.sqlite").exists()
    for another, words in (
        (RandomModels.of(151, 3, ("FlatVel-A",)), "count 150 there, 151 here"),
        (RandomModels.of(150, 4, ("FlatVel-A",)), "seed 3 there, 4 here"),
        (RandomModels.of(150, 3, ("Style-A",)), 'families "FlatVel-A" there, "Style-A" here'),
    ):
        with pytest.raises(GalleryError, match=words) as raised:
            build(path, another, encoders, overwrite=True)
        assert "--restart" in str(raised.value)
    with pytest.raises(GalleryError, match="was stopped and can go on"):
        Gallery.create(path, fingerprint=embedder.fingerprint, overwrite=True)
    with pytest.raises(GalleryError, match="already is a gallery"):
        build(path, source, encoders)
    earlier: list[int] = []
    assert build(path, source, encoders, overwrite=True, resumed=earlier.append).held == 150
    assert 64 <= earlier[0] <= 96 and not (path / "building").exists()

    with pytest.raises(KeyboardInterrupt):
        build(path, source, encoders, overwrite=True, progress=stop)
    other = RandomModels.of(70, 4, ("FlatVel-A",))
    outcome = build(path, other, encoders, overwrite=True, restart=True)
    assert (outcome.held, outcome.earlier) == (70, 0)


def test_files_that_changed_are_another_plan(embedder: Embedder, tmp_path: Path) -> None:
    own = np.linspace(1500, 4000, 300 * 4900, dtype=np.float32).reshape(300, 70, 70)
    np.save(tmp_path / "own.npy", own)
    write_pairs(tmp_path / "fwi", "CurveVel-B", number=1, velocity=own[:3, None], gathers=np.ones((3, 5, 1000, 70)))
    write_pairs(tmp_path / "fwi", "FlatVel-B", number=1, velocity=own[3:5, None], gathers=np.ones((2, 5, 1000, 70)))

    def files() -> ModelFiles:
        return ModelFiles.of([tmp_path / "own.npy", tmp_path / "fwi"])

    def stop(done: int) -> None:
        if done:
            raise KeyboardInterrupt

    assert files().count == 305
    read = [part.read() for part in files().parts()]
    np.testing.assert_array_equal(np.concatenate([each[0] for each in read]), np.concatenate([own, own[:5]]))
    assert read[-1][1] == ["CurveVel-B"] * 3 + ["FlatVel-B"] * 2
    encoders = Encoders(embedder, workers=0)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "g", files(), encoders, progress=stop)
    np.save(tmp_path / "own.npy", own + 1)
    with pytest.raises(GalleryError, match=r"data .*own\.npy.* there"):
        build(tmp_path / "g", files(), encoders)
    outcome = build(tmp_path / "g", files(), encoders, restart=True)
    assert (outcome.given, outcome.held, outcome.duplicates) == (305, 305, 0)


def test_the_same_map_is_told_and_not_stored_twice(embedder: Embedder, tmp_path: Path) -> None:
    own = np.linspace(1500, 4000, 3 * 4900, dtype=np.float32).reshape(3, 70, 70)
    np.save(tmp_path / "own.npy", own[[0, 1, 0, 2, 1]])
    source, encoders = ModelFiles.of([tmp_path / "own.npy"]), Encoders(embedder, workers=0)
    outcome = build(tmp_path / "g", source, encoders)
    assert (outcome.given, outcome.stored, outcome.duplicates, outcome.held) == (5, 3, 2, 3)
    with Gallery.open(tmp_path / "g", fingerprint=embedder.fingerprint, writable=True) as gallery:
        outcome = add(gallery, source, encoders)
    assert (outcome.stored, outcome.duplicates, outcome.held) == (0, 5, 3)


def test_a_fault_of_the_disk_or_a_model_keeps_what_was_done(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = np.linspace(1500, 4000, 600 * 4900, dtype=np.float32).reshape(600, 70, 70)
    own[400] = 2.5
    np.save(tmp_path / "own.npy", own)
    encoders = Encoders(embedder, workers=0)
    with pytest.raises(InvalidVelocityModel, match=r"km/s\. 256 of 600 velocity models are done and kept"):
        build(tmp_path / "g", ModelFiles.of([tmp_path / "own.npy"]), encoders)

    def full(step: str) -> None:
        if step == "add:first-row":
            raise OSError(28, "No space left on device")

    with pytest.raises(GalleryWriteFailed, match="No space"):
        build(tmp_path / "h", RandomModels.of(300, 3, ("FlatVel-A",)), encoders, at_step=full)
    assert build(tmp_path / "h", RandomModels.of(300, 3, ("FlatVel-A",)), encoders).held == 300


def test_few_models_start_no_workers(embedder: Embedder) -> None:
    encoders = Encoders(embedder)
    assert encoders.workers_for(ALONE) == 0 and encoders.workers_for(ALONE + 1) == usable_cores()
    assert replace(encoders, workers=3).workers_for(1) == 3


@pytest.mark.long
@pytest.mark.parametrize("whom", ["parent", "worker"])
def test_processes_end_and_the_same_command_goes_on(tmp_path: Path, weights: Path, whom: str) -> None:
    """By the command: the process, or one of its workers, is killed once something is done."""
    script = Path(sys.executable).with_name("seisbind")
    path = tmp_path / "g"
    asked = ("--count", "9000", "--family", "FlatVel-A", "--workers", "1", "--weights", str(weights))
    command = [str(script), "gallery", "build", str(path), *asked]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    until(lambda: (path / "building" / "progress.json").exists(), process)
    workers = [worker for child in children(process.pid) for worker in children(child)]  # of the one that forks them
    assert workers
    os.kill(process.pid if whom == "parent" else max(workers), signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    if whom == "worker":
        assert process.returncode == 1 and said.strip().endswith("[gallery_error]"), said
        assert "worker processes died" in said and "Traceback" not in said
    else:
        until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    done = json.loads((path / "building" / "progress.json").read_text())["models"]
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"going on, {done} of 9000 velocity models were done before" in again.stderr
    assert "9000 velocity models" in again.stdout


def until(there: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    waiting = threading.Event()
    end = time.monotonic() + 90
    while not there():
        assert process is None or process.poll() is None, "it ended"
        assert time.monotonic() < end
        waiting.wait(0.01)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
