"""``seisbind retrieve --out``: every gather has one line, whatever stops the run and wherever it is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from typer.testing import CliRunner

from seisbind.model.errors import InvalidConfig, MissingExtra
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.bulk.inputs import gather_files, open_gathers
from seisbind.service.bulk.jsonl import AnswerLine, AnswerLines
from seisbind.service.bulk.parquet import need_pyarrow, write_parquet
from seisbind.service.bulk.run import retrieve_all
from seisbind.service.client.parts import PART_BYTES, Parts
from seisbind.service.commands.main import app
from seisbind.service.formats.reader import Geometry
from seisbind.service.terminal import console

Float32 = NDArray[np.float32]
COMMAND = [sys.executable, "-m", "seisbind", "retrieve"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
MIB = 1 << 20


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    words = [*COMMAND, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def in_process(*arguments: object) -> Result:
    """The same without a process of its own, which costs seconds."""
    return CliRunner().invoke(app, ["retrieve", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def keys(found: Sequence[dict[str, Any]]) -> list[tuple[str, int | None]]:
    return [(line["file"], line["gather"]) for line in found]


@pytest.mark.long
def test_many_files_in_process_and_over_http(
    served: Any,
    gallery_path: Path,
    weights: Path,
    odd_files: Path,
    backend: GalleryBackend,
    gathers: Float32,
    tmp_path: Path,
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    local = command(odd_files, "--gallery", gallery_path, "--weights", weights, "--top-k", 2, "--out", here)
    remote = in_process(odd_files, "--url", served.url, "--top-k", 2, "--out", there)
    assert (local.returncode, remote.exit_code) == (1, 1), local.stderr + remote.stderr
    assert "6 gathers answered, 3 failed" in local.stderr
    found = lines(here)
    names = [(str(odd_files / name), number) for name, numbers in (
        ("a.npy", range(4)), ("b.npy", range(1)), ("c.npz", range(2)), ("d.npy", [None]), ("e.sgy", [None])
    ) for number in numbers]  # fmt: skip
    assert keys(found) == keys(lines(there)) == names
    codes = {(Path(line["file"]).name, line["gather"]): line["error"]["code"] for line in found if "error" in line}
    assert codes == {("a.npy", 1): "invalid_gather", ("d.npy", None): "malformed_upload",
                     ("e.sgy", None): "unsupported_format"}  # fmt: skip
    for one, other in zip(found, lines(there), strict=True):
        assert set(one) == set(other)
        for name in ("weights", "gallery", "asked", "gathers"):
            assert one[name] == other[name]
        if "error" in one:
            assert one["error"]["code"] == other["error"]["code"]
            continue
        assert [m["model_id"] for m in one["result"]["matches"]] == [m["model_id"] for m in other["result"]["matches"]]
        assert one["result"]["warnings"] == other["result"]["warnings"]
    whole = backend.file((odd_files / "c.npz").read_bytes())
    assert [m["model_id"] for m in found[5]["result"]["matches"]] == [m.model_id for m in whole.results[0].matches]


@pytest.mark.long
def test_nothing_lost_nothing_doubled_after_kills(served: Any, gathers: Float32, tmp_path: Path) -> None:
    """Killed three times while it writes, once more interrupted; the same command each time."""
    short = (gathers[:, :, :600:8] / np.abs(gathers).max()).astype(np.float16)
    np.save(tmp_path / "stack.npy", np.tile(short, (200, 1, 1, 1)))
    out = tmp_path / "out.jsonl"
    words = [*COMMAND, str(tmp_path / "stack.npy"), "--url", served.url, "--dt-s", "0.008", "--top-k", "1"]
    words += ["--out", str(out)]
    # parts of eight gathers, so that lines come while it runs; many more than are answered between a look and a kill
    patch = "import seisbind.service.client.parts as c; c.PART_BYTES = 420_000; "
    # a shell's background jobs ignore Ctrl-C, and so would what they start
    patch += "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words[1:3] = ["-c", patch + "from seisbind.service.commands.main import main; main()"]
    before = 0
    for number in (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(words, stderr=subprocess.PIPE, env=ENVIRONMENT) as run:
            while run.poll() is None and (out.read_bytes().count(b"\n") if out.exists() else 0) < before + 12:
                time.sleep(0.002)
            run.send_signal(number)
            assert run.wait() == (130 if number == signal.SIGINT else -number)
        before = out.read_bytes().count(b"\n")
        assert before < 600
        with out.open("ab") as torn:  # whatever a kill in the middle of a write leaves
            torn.write(b'{"file": "' + b"\0" * 40)
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    assert f"600 gathers answered, 0 failed, {before} of them by an earlier run" in done.stderr
    found = lines(out)
    assert keys(found) == [(str(tmp_path / "stack.npy"), i) for i in range(600)]
    ids = [line["result"]["matches"][0]["model_id"] for line in found]
    assert ids == ids[:3] * 200


def test_a_torn_end_at_every_kind_of_place(backend: GalleryBackend, odd_files: Path, tmp_path: Path) -> None:
    files, wanted, out = gather_files([odd_files]), RetrieveOptions(top_k=2), tmp_path / "out.jsonl"
    tally = retrieve_all(files, backend, wanted, out)
    assert (tally.answered, tally.failed, tally.earlier) == (6, 3, 0)
    whole = out.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == 0x0A]
    for cut in (0, 1, ends[0] - 1, ends[0], ends[1] + 300, ends[4], ends[6] + 2, ends[7], len(whole) - 1, len(whole)):
        out.write_bytes(whole[:cut])
        tally = retrieve_all(files, backend, wanted, out)
        assert (tally.answered, tally.failed, tally.earlier) == (6, 3, sum(end <= cut for end in ends)), cut
        assert keys(lines(out)) == keys([json.loads(line) for line in whole.splitlines()]), cut


@pytest.mark.long
def test_an_output_of_something_else_is_refused(
    backend: GalleryBackend, odd_files: Path, tmp_path: Path, make_gallery: Any, weights: Path, other_weights: Path
) -> None:
    files, out = [odd_files / "b.npy"], tmp_path / "out.jsonl"
    retrieve_all(files, backend, RetrieveOptions(top_k=2), out)
    before = out.read_bytes() + b'{"torn'
    out.write_bytes(before)
    for wanted in (
        RetrieveOptions(top_k=3),
        RetrieveOptions(top_k=2, geometry=Geometry(dt_s=0.001)),
        RetrieveOptions(top_k=2, include=()),
    ):
        with pytest.raises(InvalidConfig, match=r'made with other options: \{"top_k": 2'):
            retrieve_all(files, backend, wanted, out)
    changed = make_gallery()
    gone = backend._gallery.model_ids()[0]
    remove = [*COMMAND[:3], "gallery", "remove", str(changed), gone]
    subprocess.run(remove, check=True, capture_output=True, env=ENVIRONMENT)
    with (
        GalleryBackend(changed, weights, "cpu", RetrieveOptions(top_k=2)) as other,
        pytest.raises(InvalidConfig) as caught,
    ):
        retrieve_all(files, other, RetrieveOptions(top_k=2), out)
    assert '"models": 60' in str(caught.value) and '"models": 59' in str(caught.value)
    out.write_bytes(before.replace(backend.weights.fingerprint.encode(), b"0" * 16))
    with pytest.raises(InvalidConfig, match="other weights"):
        retrieve_all(files, backend, RetrieveOptions(top_k=2), out)
    for foreign in (b"hello\n", b"[]\n", b'{"a": 1}\n'):
        out.write_bytes(foreign)
        with pytest.raises(InvalidConfig, match=r"Line 1 of .* is none that seisbind retrieve writes"):
            retrieve_all(files, backend, RetrieveOptions(top_k=2), out)
        assert out.read_bytes() == foreign
    with AnswerLines(tmp_path / "held", {}, backend), pytest.raises(InvalidConfig, match="Another run"):
        AnswerLines(tmp_path / "held", {}, backend)
    with pytest.raises(InvalidConfig, match="is no file"):
        AnswerLines(tmp_path, {}, backend)


@pytest.mark.long
def test_exit_codes(served: Any, stubbed: Any, odd_files: Path, tmp_path: Path) -> None:
    """0 and 1 are above, 130 too."""
    good, out = odd_files / "b.npy", ("--out", tmp_path / "out.jsonl")
    info = (200, served.http.get("/v1/gallery").content, {"Content-Type": "application/json"})
    with stubbed(info, (429, "overloaded", {"Retry-After": "0"})) as busy:
        cases = [
            (3, "server_unreachable", (good, "--url", "http://127.0.0.1:9", *out)),
            (3, "overloaded", (good, "--url", busy.url, *out)),
            (2, "invalid_query", (good, "--url", served.url, "--top-k", 71, *out)),
            (2, "invalid_config", (good, *out)),
            (2, "invalid_config", (good, "--url", served.url, "--json", *out)),
            (2, "dataset_error", (tmp_path / "*.nothing", "--url", served.url, *out)),
            (2, "gallery_not_found", (good, "--gallery", tmp_path / "none", *out)),
            (2, "os_error", (good, "--url", served.url, "--out", tmp_path / "none" / "out.jsonl")),
            (2, "", (good, "--no-such-option")),
        ]
        for code, word, arguments in cases:
            done = in_process(*arguments)
            assert done.exit_code == code, f"{arguments}\n{done.stderr}"
            assert not word or done.stderr.strip().splitlines()[-1].endswith(f"[{word}]"), done.stderr
            assert "Traceback" not in done.stderr
    fast = in_process(odd_files, "--url", served.url, "--fail-fast", *out)
    assert fast.exit_code == 1, fast.stderr
    assert [("error" in line) for line in lines(out[1])] == [False, True]


def test_geometry_goes_with_every_gather(
    served: Any, backend: GalleryBackend, gathers: Float32, tmp_path: Path
) -> None:
    np.save(tmp_path / "sparse.npy", gathers[:2, [0, 2], ::2, ::2])
    positions = ",".join(str(10 * i) for i in range(0, 70, 2))
    flags = ("--dt-s", 0.002, "--shot-x-m", "0,340", "--receiver-x-m", positions, "--peak-hz", 40)
    asked = (tmp_path / "sparse.npy", "--url", served.url, *flags)
    done = in_process(*asked, "--include", "", "--out", tmp_path / "o.jsonl")
    assert done.exit_code == 0, done.stderr
    first, second = lines(tmp_path / "o.jsonl")
    assert first["asked"]["shot_x_m"] == [0, 340]
    assert "peak_frequency_untrained" in [warning["code"] for warning in second["result"]["warnings"]]
    assert second["result"]["physics"] is None
    shown = in_process(*asked)
    assert "2 shots into 35 receivers" in shown.stdout, shown.stderr
    bare = in_process(tmp_path / "sparse.npy", "--url", served.url, "--out", tmp_path / "bare.jsonl")
    assert bare.exit_code == 1
    (line,) = lines(tmp_path / "bare.jsonl")
    assert line["error"]["code"] == "invalid_survey"


def test_a_stack_larger_than_memory(backend: GalleryBackend, tmp_path: Path) -> None:
    """210 MB of zeros, each refused: what is held at once does not grow with the file."""
    path, shape = tmp_path / "huge.npy", (150, 5, 1000, 70)
    with path.open("wb") as file:
        npy_format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * int(np.prod(shape)))
    done: list[int] = []
    tracemalloc.start()
    try:
        tally = retrieve_all([path], backend, RetrieveOptions(top_k=2), tmp_path / "out.jsonl", progress=done.append)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tally.failed, done[0], done[-1]) == (150, 0, 150)
    assert most < 16 * MIB < path.stat().st_size / 10
    opened = open_gathers(path, Geometry())
    assert opened.stack is not None
    assert len(Parts(opened.stack).content()) <= PART_BYTES + 128  # and over HTTP


def test_files_that_are_meant(odd_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [path.name for path in gather_files([odd_files])]
    assert names == ["a.npy", "b.npy", "c.npz", "d.npy", "e.sgy"]
    assert [path.name for path in gather_files([odd_files / "*.np?", odd_files / "b.npy"])] == [
        "a.npy",
        "b.npy",
        "c.npz",
        "d.npy",
    ]
    monkeypatch.chdir(odd_files.parent)
    assert gather_files([Path("**/c.npz"), Path("gone.npy")]) == [Path("line/c.npz"), Path("gone.npy")]


def test_parquet(backend: GalleryBackend, odd_files: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    retrieve_all(gather_files([odd_files]), backend, RetrieveOptions(top_k=2), tmp_path / "out.jsonl")
    write_parquet(tmp_path / "out.jsonl", tmp_path / "out.parquet")
    rows = parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert not (tmp_path / "out.parquet.unfinished").exists()
    for row, line in zip(rows, lines(tmp_path / "out.jsonl"), strict=True):
        found = AnswerLine.model_validate(line)
        assert (row["file"], row["gather"]) == (found.file, found.gather)
        if found.error is not None:
            assert (row["error_code"], row["mean_velocity"]) == (found.error.code, None)
        elif found.result is not None and found.result.physics is not None:
            assert row["model_id"] == [match.model_id for match in found.result.matches]
            assert row["mean_velocity_low"] == found.result.physics["mean_velocity"].low


def test_parquet_without_pyarrow(monkeypatch: pytest.MonkeyPatch, odd_files: Path, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"pip install 'seisbind\[parquet\]'"):
        need_pyarrow()


def test_a_sign_of_life_in_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "LIFE_S", 0.0)
    with console.counting("Retrieving", 4) as count:
        count(1)
        count(5)  # more than were known of
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" in ")[0] for line in said] == ["Retrieving: 1 of 4", "Retrieving: 5 of 5", "Retrieving: 5"]
