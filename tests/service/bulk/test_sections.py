"""``seisbind bulk section``: each file is a line, with the section that `seisbind section` makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parts import bulk, job_here, rows
from seisbind.service.bulk import executors
from seisbind.service.commands.section import section
from seisbind.service.formats.npy import npz

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[parquet]'")
Float32 = NDArray[np.float32]
STEP_M = 200.0


@pytest.fixture
def lines(tmp_path: Path, gathers: Float32) -> Path:
    """Two lines as npz, of which one is twice as long, and a file that is none."""
    folder = tmp_path / "lines"
    folder.mkdir()
    receivers = np.arange(70) * 10.0
    gather = gathers[0, :, ::4]
    shots = np.array([0, 170, 340, 520, 690.0])
    (folder / "a.npz").write_bytes(
        npz({"gathers": gather, "shot_x_m": shots, "receiver_x_m": receivers, "dt_s": 0.004})
    )
    both = np.concatenate([gathers[1, :, ::4], gathers[2, :, ::4]]).transpose(0, 2, 1).reshape(-1, gather.shape[1])
    along = np.concatenate([np.repeat(shots, 70), np.repeat(shots + 690, 70)])
    group = np.concatenate([np.tile(receivers, 5), np.tile(receivers + 690, 5)])
    long = {"traces": both, "source_x_m": along, "receiver_x_m": group, "dt_s": 0.004}
    (folder / "b.npz").write_bytes(npz(long))
    (folder / "c.sgy").write_text("hello, this is no line")
    return folder


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as found:
        return dict(found)


@pytest.mark.long
def test_sections_are_those_of_the_command(
    lines: Path, gallery_path: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executors, "in_processes", job_here)
    out = tmp_path / "out"
    words = ("--gallery", gallery_path, "--weights", weights, "--device", "cpu", "--step", STEP_M)
    run = ("section", lines, *words, "--write", "npz,png", "--out", out, "--engine", "processes", "--workers", 1)
    done = bulk(*run)
    assert done.exit_code == 1, done.output
    assert "2 lines answered, 1 failed. Written to" in done.stderr
    first, second, failed = rows(out)
    assert (Path(failed["file"]).name, failed["error_code"]) == ("c.sgy", "unsupported_format")
    assert "c.sgy" in failed["error_detail"] and failed["sections"] is None
    for row, name in ((first, "a.npz"), (second, "b.npz")):
        assert row["sections"] == [
            f"{int(name != 'a.npz'):06}-{name[0]}.npz",
            f"{int(name != 'a.npz'):06}-{name[0]}.png",
        ]
        own = tmp_path / f"own-{name}"
        section(file=[lines / name], gallery=str(gallery_path), out=own, scale="1", target_depth=None, step=STEP_M,
                model_out=None, grid=None, smooth=None, water=None, extend=False, weights=weights, device="cpu",
                as_json=False)  # fmt: skip
        wanted, found = arrays(own), arrays(out / row["sections"][0])
        assert set(wanted) == set(found)
        for each, array in wanted.items():
            np.testing.assert_array_equal(found[each], array, err_msg=each)
        about = json.loads(found["about"].tobytes())
        assert row["windows"] == len(about["windows"]) and row["columns"] == len(found["x_m"])
        assert row["mean_velocity"] == pytest.approx(np.nanmean(found["velocity"]))
        assert (out / row["sections"][1]).read_bytes().startswith(b"\x89PNG")
    assert second["columns"] > first["columns"]

    (out / "000001-whole.parquet").unlink()
    before = (out / first["sections"][0]).stat().st_mtime_ns
    again = bulk(*run)
    assert again.exit_code == 1 and "2 of them by an earlier run" in again.stderr
    assert rows(out)[1] == second
    assert (out / first["sections"][0]).stat().st_mtime_ns == before


def test_what_cannot_be_written_is_refused_at_once(
    lines: Path, gallery_path: Path, weights: Path, tmp_path: Path
) -> None:
    words = ("section", lines, "--gallery", gallery_path, "--weights", weights, "--out", tmp_path / "out")
    for more, said in ((("--write", "npz,tiff"), "got 'tiff'"), (("--scale", "two"), "--scale")):
        done = bulk(*words, *more)
        assert done.exit_code == 2 and said in done.stderr, done.output
    assert not (tmp_path / "out").exists()
