"""Simulated datasets: the same whatever the number of processes, and after every kind of end."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.model.datasets.openfwi import Dataset, find_pairs, written_numbers
from seisbind.model.datasets.simulation import MANIFEST, SimulatedDataset, pair_bytes, simulate_dataset
from seisbind.model.datasets.writer import LOCK
from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.waves.wavefield import Boundary, simulate

FAMILIES = ("FlatVel-A", "Style-B")
SCRIPT = """
import signal
import sys
from pathlib import Path
from seisbind.model.datasets.simulation import simulate_dataset
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts with it ignored
    out = Path(sys.argv[1])
    count = int(sys.argv[2])
    simulate_dataset(out, families=["FlatVel-A"], count=count, seed=5, engine="openfwi", processes=1, per_file=2)
"""


def make(out: Path, **change: Any) -> SimulatedDataset:
    arguments: dict[str, Any] = {
        "families": FAMILIES,
        "count": 3,
        "seed": 7,
        "engine": "openfwi",
        "processes": 2,
        "per_file": 2,
    }
    return simulate_dataset(out, **(arguments | change))


def contents(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made")
    make(out)
    return out


def test_holds_what_it_says(made: Path) -> None:
    pairs = find_pairs(made)
    assert [(p.family, p.gathers.name, p.count) for p in pairs] == [
        (family, f"data{n}.npy", count) for family in FAMILIES for n, count in ((1, 2), (2, 1))
    ]
    dataset = Dataset(pairs)
    velocity = dataset.velocity(np.arange(6))
    assert len(np.unique(velocity.reshape(6, -1), axis=0)) == 6
    np.testing.assert_array_equal(dataset.gathers([4]), simulate(velocity[4], engine="openfwi"))
    manifest = json.loads((made / MANIFEST).read_text())
    assert manifest["seed"] == 7 and manifest["engine"] == "openfwi" and manifest["families"] == list(FAMILIES)
    assert sum(p.stat().st_size for p in made.rglob("*.npy")) == 6 * pair_bytes(OPENFWI_FRAME) + 8 * 128  # headers


def test_does_not_depend_on_processes_or_other_families(made: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = make(tmp_path / "one", processes=1, progress=lambda done, total: seen.append((done, total)))
    assert result == SimulatedDataset(tmp_path / "one", pairs=6, files=4, kept=0)
    assert contents(tmp_path / "one") == contents(made)
    assert seen[0] == (0, 6) and seen[-1] == (6, 6) and seen == sorted(seen)
    make(tmp_path / "alone", families=FAMILIES[1:])
    alone = contents(tmp_path / "alone")
    assert all(alone[name] == digest for name, digest in contents(made).items() if name.startswith("Style-B"))
    make(tmp_path / "other", families=FAMILIES[1:], seed=8, count=1)
    assert contents(tmp_path / "other")["Style-B/model/model1.npy"] != alone["Style-B/model/model1.npy"]


@pytest.mark.long
def test_deepwave_workers(tmp_path: Path) -> None:
    make(tmp_path, engine="deepwave", families=FAMILIES[:1], count=1, processes=1)
    dataset = Dataset(find_pairs(tmp_path))
    np.testing.assert_allclose(dataset.gathers([0]), simulate(dataset.velocity([0])), rtol=1e-4, atol=1e-4)


def test_finished_files_are_kept_and_the_rest_made_again(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    shutil.copytree(made, out)
    (out / "FlatVel-A/model/model2.npy").unlink()  # killed between the two files of a pair
    (out / "Style-B/data/data1.npy").unlink()
    (out / "Style-B/model/model1.npy").unlink()
    (out / "Style-B/data/data1.npy.partial").write_bytes(b"half")
    before = (out / "FlatVel-A/data/data1.npy").stat().st_mtime_ns
    assert make(out).kept == 2
    assert contents(out) == contents(made)
    assert (out / "FlatVel-A/data/data1.npy").stat().st_mtime_ns == before


def start(out: Path, *, count: int) -> subprocess.Popen[bytes]:
    """A run of ``count`` pairs in a process group of its own, once its first file is finished."""
    script = out.with_suffix(".py")
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(out), str(count)]
    run = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    while not (out / "FlatVel-A/model/model1.npy").exists():
        assert run.poll() is None, run.stderr and run.stderr.read().decode()
        time.sleep(0.005)
    return run


def gone(group: int) -> bool:
    for _ in range(1000):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.long
def test_goes_on_after_a_kill(tmp_path: Path) -> None:
    run = start(tmp_path / "killed", count=20)
    run.kill()
    run.communicate()
    assert gone(run.pid), "workers outlived their parent"
    same: dict[str, Any] = {"families": FAMILIES[:1], "count": 20, "seed": 5}
    assert 1 <= make(tmp_path / "killed", **same).kept < 10
    make(tmp_path / "whole", **same)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_interrupt_leaves_whole_files_and_no_process(tmp_path: Path) -> None:
    run = start(tmp_path / "out", count=400)  # minutes of work: the signal cannot come too late
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=240)
    assert run.returncode == -signal.SIGINT and said.decode().rstrip().endswith("KeyboardInterrupt")
    assert gone(run.pid)
    assert not list((tmp_path / "out").rglob("*.partial"))
    assert 1 <= len(written_numbers(tmp_path / "out", "FlatVel-A")) < 200


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 8}, "seed 7 there, 8 here"),
        ({"count": 4}, "count 3 there, 4 here"),
        ({"boundary": Boundary(60)}, "'width_cells': 60"),
        ({"families": FAMILIES[::-1]}, "families"),
        ({"engine": "deepwave"}, "engine 'openfwi' there, 'deepwave' here"),
    ],
)
def test_refuses_to_go_on_with_other_arguments(made: Path, change: dict[str, Any], says: str) -> None:
    before = contents(made)
    with pytest.raises(DatasetError, match=says):
        make(made, **change)
    assert contents(made) == before


def test_refuses_a_stranger_or_damaged_directory(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(made, out)
    (out / MANIFEST).write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        make(out)
    (out / MANIFEST).unlink()
    with pytest.raises(DatasetError, match=r"seisbind\.json is missing"):
        make(out)


def test_refuses_a_second_writer(made: Path) -> None:
    with (made / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DatasetError, match="Another process"):
            make(made)
    assert make(made).kept == 4


def test_says_how_much_room_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(DatasetError, match=r"6 pairs to go need 8,517,600 bytes .* 1,000,000 are free"):
        make(tmp_path)
    assert not list(tmp_path.rglob("*.npy*"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"families": ()}, "got none"),
        ({"families": ("FlatVel-A", "FlatVel-A")}, "different families"),
        ({"families": ("Granite",)}, "Granite"),
        ({"count": 0}, "count 0"),
        ({"seed": -1}, "seed -1"),
        ({"processes": 0}, "0 processes"),
        ({"engine": "spectral"}, "no engine 'spectral'"),
        ({"engine": "deepwave", "boundary": Boundary(strength=2.0)}, "no strength"),
    ],
)
def test_refusals(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidConfig, match=says):
        make(tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()
