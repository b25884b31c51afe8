"""``seisbind section`` as people run it, and files that are larger than what may be held in memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command import seisbind
from seisbind.model.errors import DatasetError, InvalidGather, InvalidSurvey, MalformedUpload, UnsupportedFormat
from seisbind.service.commands.section import section
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.section import plan_section, section_blocks
from seisbind.service.engine.section_file import PartialSection
from seisbind.service.formats.line_file import open_line, read_line
from seisbind.service.formats.npy import npz
from seisbind.service.formats.starting_model import parse_start, starting_model
from seisbind.service.formats.velocity_model import VelocityModel

SCRIPT = Path(sys.executable).with_name("seisbind")
SHOTS, CHANNELS = 90, 72
BIN = {3217: 4000, 3221: 250, 3225: 5, 3255: 1, 3501: 0x100}


def write_line(path: Path, *, shots: range = range(SHOTS), samples: int = 250, stored: int = 250) -> Path:
    """A towed line as SEG-Y, of which the first ``stored`` samples of each trace are written; the rest is a hole."""
    source = np.repeat(np.asarray(shots) * 20, CHANNELS)
    group = source - 50 - np.tile(np.arange(CHANNELS) * 10, len(shots))
    time_s = np.arange(stored) * 0.004
    middle = (source + group) / 2
    arrival = np.hypot(0.3 + 0.08 * np.sin(middle / 250), (source - group) / 2500)
    header = bytearray(b"\xc3" + b"\x40" * 3199 + bytes(400))
    for byte, value in (BIN | {3221: samples}).items():
        header[byte - 1 : byte + 1] = value.to_bytes(2, "big")
    stride = 240 + 4 * samples
    with path.open("wb") as file:
        file.write(header)
        file.truncate(3600 + stride * len(source))
    traces = np.memmap(path, dtype=np.uint8, mode="r+", offset=3600, shape=(len(source), stride))
    for start in range(0, len(source), 2000):
        some = slice(start, start + 2000)
        a2 = np.square(np.pi * 14 * (time_s - arrival[some, None]))
        wave = ((1 - 2 * a2) * np.exp(-a2)).astype(">f4")
        fields = {29: np.full(len(wave), 1, ">i2"), 71: np.full(len(wave), 1, ">i2"), 73: source[some].astype(">i4"),
                  81: group[some].astype(">i4"), 115: np.full(len(wave), samples, ">u2"),
                  117: np.full(len(wave), 4000, ">u2")}  # fmt: skip
        for byte, values in fields.items():
            raw = values.view(np.uint8).reshape(len(wave), -1)
            traces[some, byte - 1 : byte - 1 + raw.shape[1]] = raw
        traces[some, 240 : 240 + 4 * stored] = wave.view(np.uint8)
    traces.flush()
    return path


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


def test_a_line_becomes_a_section_and_goes_on_where_it_stopped(
    tmp_path: Path, weights: Path, gallery_path: Path, engine: Engine
) -> None:
    whole = write_line(tmp_path / "line.sgy")
    asked = ("--gallery", gallery_path, "--weights", weights, "--step", "100", "--device", "cpu")
    start = ("--model-out", tmp_path / "start.npz", "--grid", "dx=25,dz=20,x0=-700,nx=110", "--smooth", "30")
    done = seisbind("section", whole, *asked, "--out", tmp_path / "line.npz", *start)
    assert done.returncode == 0, done.stderr
    assert "35 x 110 samples of 20 x 25 m" in done.stderr and "without a number" in done.stderr
    assert "cells of 10 m" in done.stdout and "like training" in done.stdout
    assert "Reading windows" in done.stderr
    first = arrays(tmp_path / "line.npz")
    assert first["velocity"].shape[0] == 70 and np.isfinite(first["velocity"]).any()
    model = VelocityModel(first["velocity"], None, None, 10.0, float(first["x_m"][0]))
    wanted = starting_model(model, parse_start(grid="dx=25,dz=20,x0=-700,nx=110", smooth_m=30))
    np.testing.assert_allclose(arrays(tmp_path / "start.npz")["velocity"], wanted.value, rtol=1e-4)
    assert not list(tmp_path.glob("*.part"))

    plan = plan_section(open_line([whole]), frame=engine.frame, step_m=100.0)
    with PartialSection(tmp_path / "again.npz", engine, plan) as partial:
        partial.add(*next(section_blocks(engine, plan)))
    done = seisbind("section", whole, *asked, "--out", tmp_path / "again.npz", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["windows"] == json.loads(first["about"].tobytes())["windows"]
    for name, array in arrays(tmp_path / "again.npz").items():
        np.testing.assert_allclose(array, first[name], rtol=1e-4, err_msg=name) if name != "about" else None
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.long
def test_a_line_is_refined_by_the_command(tmp_path: Path, weights: Path, gallery_path: Path) -> None:
    """By weights that state no interval; the table and the file say what was done with each window."""
    pytest.importorskip("deepwave")
    asked = ("--gallery", gallery_path, "--weights", weights, "--step", "690", "--device", "cpu")
    asked = (*asked, "--refine", "1", "--workers", "1", "--out", tmp_path / "line.npz")
    done = seisbind("section", write_line(tmp_path / "line.sgy", shots=range(45)), *asked)
    assert done.returncode == 0, done.stderr
    assert "Refining windows" in done.stderr
    assert re.search(r"\d\d\.\d%, \d\d\.\d%", done.stdout)
    found = arrays(tmp_path / "line.npz")
    windows = [window for window in json.loads(found["about"].tobytes())["windows"] if window["lack"] is None]
    assert len(windows) > 1 and all(window["refined"]["iterations"] == 1 for window in windows)
    assert all(window["refined"]["residual_after"] <= window["refined"]["residual_before"] for window in windows)
    assert "low" not in found and not list(tmp_path.glob("*.part"))


def test_what_cannot_be_done_ends_with_its_code(
    tmp_path: Path, weights: Path, gallery_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = write_line(tmp_path / "line.sgy", shots=range(3))

    def run(gallery: Path = gallery_path, out: str = "line.npz", **more: Any) -> None:
        section(file=[line], gallery=gallery, out=tmp_path / out, **{"weights": weights, "device": "cpu"} | more)

    (tmp_path / "folder.npz").mkdir()
    for options, word in (
        ({"out": "line.txt"}, "invalid_config"),
        ({"out": "folder.npz"}, "invalid_config"),
        ({"model_out": tmp_path / "none" / "start.nc"}, "invalid_config"),
        ({"scale": "two"}, "invalid_config"),
        ({"scale": "900,1"}, "invalid_config"),
        ({"grid": "dx=10"}, "invalid_config"),
        ({"workers": 2}, "invalid_config"),
        ({"refine": 10_001}, "invalid_config" if find_spec("deepwave") else "missing_extra"),
        ({"gallery": tmp_path / "none"}, "gallery_not_found"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(**options)  # type: ignore[arg-type]
        assert ended.value.code == 2
        assert capsys.readouterr().err.strip().endswith(f"[{word}]")
    with pytest.raises(InvalidGather, match=r"The record ends 1\.000 s after the shot; at least 5\.4 s"):
        run(scale="9")
    assert not [
        *tmp_path.glob("line.npz*"),
        *tmp_path.glob("folder.npz.*"),
    ]  # nor a partial file, which a run with other options would not continue


def test_what_is_no_line_is_refused_by_name(tmp_path: Path) -> None:
    line = write_line(tmp_path / "line.sgy", shots=range(2))
    with pytest.raises(DatasetError, match=r"none\.sgy cannot be read"):
        open_line([tmp_path / "none.sgy"])
    for content, kind, words in (
        (b"", DatasetError, "cannot be read"),
        (b"hello, this is no seismic line" * 200, UnsupportedFormat, "A line is read from SEG-Y, SU, SEG-2 or npz"),
        (line.read_bytes()[:-7], MalformedUpload, "cut off"),
        (npz({"traces": np.zeros((3, 9))}), InvalidSurvey, "no dt_s"),
        (npz({"traces": np.zeros((3, 9)), "dt_s": 4.0}), InvalidSurvey, "in milliseconds"),
        (npz({"traces": np.zeros((3, 9)), "dt_s": 0.004}), MalformedUpload, "one position a trace"),
        (npz({"gathers": np.zeros((2, 9, 4)), "dt_s": 0.004}), MalformedUpload, "found dt_s, gathers"),
    ):
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(kind, match=f"other.*{words}"):
            open_line([tmp_path / "other"])


def test_an_npz_of_gathers_is_a_line_too() -> None:
    gathers = np.arange(2 * 9 * 4, dtype=np.float32).reshape(2, 9, 4)
    line = read_line(npz({"gathers": gathers, "shot_x_m": [0.0, 5], "receiver_x_m": [1.0, 2, 3, 4], "dt_s": 0.002}))
    assert (len(line), line.samples, line.dt_s) == (8, 9, 0.002)
    np.testing.assert_array_equal(line.read(np.array([5]), 12)[0, :9], gathers[1, :, 1])
    assert line.positions.source_xy_m[5, 0] == 5 and line.positions.group_xy_m[5, 0] == 2


LOOK = """
import sys
from pathlib import Path
import numpy as np
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.service.engine.section import plan_section
from seisbind.service.formats.line_file import open_line
def most():
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) // 1024
before = most()
held = np.fromfile(sys.argv[1], dtype=np.uint8) if len(sys.argv) > 2 else None
plan = plan_section(open_line([Path(sys.argv[1])]), frame=OPENFWI_FRAME)
read = [gather for block in plan.blocks() for gather, _ in plan.read(block)]
print(len(plan.line), sum(gather.prepared is not None for gather in read))
print(most() - before)
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_file_larger_than_memory_may_be_is_read_in_blocks(tmp_path: Path) -> None:
    """0.8 GB, mostly holes: every window is read within 300 MB; and vacuity: held in memory, it is more."""
    path = write_line(tmp_path / "large.sgy", shots=range(400), samples=7000)
    assert path.stat().st_size > 800_000_000

    def grown(*more: str) -> int:
        command = [sys.executable, "-c", LOOK, str(path), *more]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        (traces, windows), (megabytes,) = (list(map(int, line.split())) for line in done.stdout.splitlines())
        assert traces == 400 * CHANNELS and windows > 20
        return megabytes

    assert grown() < 300
    assert grown("held") > 700
