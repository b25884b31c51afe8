"""``seisbind bulk``: parts of chunks, by processes and by Ray, whatever stops them, with the answers of one engine."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from numpy.typing import NDArray

from dying import die
from parts import bulk, here, job_here, rows
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import DatasetError, GalleryError, InvalidConfig
from seisbind.service.bulk import executors
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.bulk.chunks import Chunk, Outcome, plan_chunks
from seisbind.service.bulk.executors import OpenedJob, in_processes, on_ray
from seisbind.service.bulk.folder import MANIFEST, PartsFolder, write_parts
from seisbind.service.bulk.gather_jobs import GatherJob, GatherWorker
from seisbind.service.bulk.places import named_inputs, open_at
from seisbind.service.commands.main import app
from seisbind.service.engine.check_bodies import check_body
from seisbind.service.engine.query import Query
from seisbind.service.formats.reader import Geometry

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -e '.[parquet]'")
Float32 = NDArray[np.float32]


def expected(backend: GalleryBackend, stack: Float32) -> list[tuple[list[str], list[float]]]:
    """Matches and similarities of the engine in process."""
    found = list(backend.stack(stack, Geometry(), 0))
    return [
        ([m.model_id for m in each.result.matches], [m.similarity for m in each.result.matches])  # type: ignore[union-attr]
        for each in found
    ]


def compare(found: list[dict[str, Any]], wanted: list[tuple[list[str], list[float]]]) -> None:
    assert [row["gather"] for row in found] == list(range(len(wanted)))
    for row, (models, similarities) in zip(found, wanted, strict=True):
        assert row["model_id"] == models
        np.testing.assert_allclose(row["similarity"], similarities, atol=2e-6)


def test_files_of_every_kind_and_what_is_wrong_with_them(
    worker: GatherWorker, backend: GalleryBackend, odd_files: Path, gathers: Float32, tmp_path: Path
) -> None:
    chunks = plan_chunks(named_inputs([str(odd_files)]), chunk=3)
    assert [chunk.name for chunk in chunks][:2] == [
        "000000-000000000-000000003.parquet",
        "000000-000000003-000000004.parquet",
    ]
    with PartsFolder(tmp_path / "out", {"kind": "retrieve"}) as folder:
        tally = write_parts(folder, chunks, here(worker))
    found = rows(tmp_path / "out")
    assert (tally.answered, tally.failed, tally.earlier) == (6, 3, 0)
    wrong = [(Path(row["file"]).name, row["gather"], row["error_code"]) for row in found if row["error_code"]]
    assert wrong == [
        ("a.npy", 1, "invalid_gather"),
        ("d.npy", None, "malformed_upload"),
        ("e.sgy", None, "unsupported_format"),
    ]
    a = [row for row in found if row["file"].endswith("a.npy") and not row["error_code"]]
    wanted = expected(backend, gathers)
    for row, number in zip(a, (0, 2, 0), strict=True):
        assert row["model_id"] == wanted[number][0]


def test_the_same_command_goes_on_and_another_is_refused(worker: GatherWorker, odd_files: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out", {"kind": "retrieve", "options": {"top_k": 2}}
    chunks = plan_chunks([str(odd_files / "a.npy")], chunk=1)
    with PartsFolder(out, asked) as folder:
        write_parts(folder, chunks, here(worker))
        with pytest.raises(InvalidConfig, match="Another run"):
            PartsFolder(out, asked)
    whole = rows(out)
    (out / chunks[0].name).unlink()
    (out / chunks[2].name).write_bytes(b"PAR1 torn")
    torn = out / f".{chunks[3].name}.77"
    torn.write_bytes(b"PAR1")
    done: list[str] = []

    def seen(some: Sequence[Chunk]) -> Iterator[Outcome]:
        done.extend(chunk.name for chunk in some)
        return map(worker.part, some)

    with PartsFolder(out, asked) as folder:
        tally = write_parts(folder, chunks, seen)
    assert done == [chunks[0].name, chunks[2].name] and not torn.exists()
    assert (tally.answered, tally.failed, tally.earlier) == (3, 1, 2) and rows(out) == whole
    with pytest.raises(InvalidConfig, match="other options"):
        PartsFolder(out, asked | {"options": {"top_k": 3}})
    assert json.loads((out / MANIFEST).read_text()) == asked


def test_what_is_wrong_with_more_than_a_gather_stops_the_run(tmp_path: Path) -> None:
    chunks = [Chunk(0, "a.npy", 0, 1), Chunk(0, "a.npy", 1, 2)]
    found = [Outcome(chunks[0], b"part", 1, 0), Outcome(chunks[1], stopped="The gallery is gone.")]
    with (
        PartsFolder(tmp_path / "out", {}) as folder,
        pytest.raises(GalleryError, match=r"a\.npy: The gallery is gone"),
    ):
        write_parts(folder, chunks, lambda some: iter(found))
    assert (tmp_path / "out" / chunks[0].name).read_bytes() == b"part"
    assert not (tmp_path / "out" / chunks[1].name).exists()


def test_embeddings_are_those_of_the_embedder(
    embedder: Embedder, weights: Path, gathers: Float32, tmp_path: Path
) -> None:
    np.save(tmp_path / "stack.npy", gathers)
    outcome = GatherJob("embed", None, weights, "cpu").open().part(Chunk(0, str(tmp_path / "stack.npy"), 1, 3))
    (tmp_path / "part.parquet").write_bytes(outcome.part)
    found = pq.read_table(tmp_path / "part.parquet").to_pylist()
    assert [row["gather"] for row in found] == [1, 2]
    wanted = embedder.embed_gathers(Query.prepare(gathers[1:], frame=embedder.frame).prepared).embedding
    np.testing.assert_allclose([row["embedding"] for row in found], wanted, atol=2e-6)


def test_gathers_in_an_object_store(gathers: Float32, tmp_path: Path) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed: pip install -e '.[cluster]'")
    np.save(tmp_path / "b.npy", gathers)
    np.save(tmp_path / "a.npy", gathers[0])
    url = f"file://{tmp_path}"
    assert named_inputs([url]) == [f"{url}/a.npy", f"{url}/b.npy"] == named_inputs([f"{url}/*.npy"])
    chunks = plan_chunks([f"{url}/b.npy", f"{url}/a.npy"], chunk=2)
    assert [(chunk.first, chunk.last) for chunk in chunks] == [(0, 2), (2, 3), (0, None)]
    stack = open_at(f"{url}/b.npy", Geometry()).stack
    assert stack is not None
    np.testing.assert_array_equal(stack[1:3], gathers[1:3])
    with pytest.raises(DatasetError, match="No object"):
        named_inputs([f"{url}/*.sgy"])


def test_the_command_says_what_runs_it(
    gallery_path: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gathers: Float32,
    worker: GatherWorker,
) -> None:
    np.save(tmp_path / "stack.npy", gathers)
    monkeypatch.setattr(executors, "have_ray", lambda: False)
    monkeypatch.setattr(executors, "in_processes", job_here)
    words = (tmp_path / "stack.npy", "--gallery", gallery_path, "--weights", weights, "--out", tmp_path / "out")
    done = bulk("retrieve", *words, "--top-k", 2, "--workers", 1, "--device", "cpu")
    assert done.exit_code == 0, done.output
    assert "Ray is not installed" in done.stderr and "1 process of this machine" in done.stderr
    assert "3 gathers answered, 0 failed. Written to" in done.stderr
    again = bulk("retrieve", *words, "--top-k", 3, "--workers", 1, "--device", "cpu")
    assert again.exit_code == 2 and "other options" in again.stderr
    wrong = bulk("retrieve", *words, "--engine", "dask")
    assert wrong.exit_code == 2 and "--engine is auto, ray or processes" in wrong.stderr


def test_what_cannot_be_opened_where_work_is_done_stops_the_run(tmp_path: Path) -> None:
    job = GatherJob("embed", None, tmp_path / "gone.safetensors", "cpu")
    outcome = OpenedJob(job)(Chunk(0, "a.npy"))
    assert outcome.stopped is not None and "gone.safetensors" in outcome.stopped


def test_commands_over_gathers_share_their_options() -> None:
    commands: Any = typer.main.get_command(app)
    options = {
        name: {each.name: each.default for each in command.params if each.name not in ("chunk", "top_k")}
        for name, command in commands.commands["bulk"].commands.items()
    }
    assert options["retrieve"] == options["check"] and {"gallery", "scale", "address"} <= set(options["check"])
    assert set(options["check"]) - set(options["embed"]) == {"gallery", "exact", "filter", "distinct"}


@pytest.mark.long
def test_a_killed_process_loses_and_doubles_nothing(
    job: GatherJob, backend: GalleryBackend, gathers: Float32, tmp_path: Path
) -> None:
    stack = np.tile(gathers, (8, 1, 1, 1))
    np.save(tmp_path / "stack.npy", stack)
    chunks = plan_chunks([str(tmp_path / "stack.npy")], chunk=2)
    killed: list[int] = []

    def killing(some: Sequence[Chunk]) -> Iterator[Outcome]:
        for outcome in in_processes(job, some, 2):
            yield outcome
            if len(killed) < 2:  # while it works: chunks ahead are begun
                import multiprocessing

                victim = multiprocessing.active_children()[0]
                os.kill(int(victim.pid or 0), signal.SIGKILL)
                killed.append(int(victim.pid or 0))

    with PartsFolder(tmp_path / "out", {}) as folder:
        tally = write_parts(folder, chunks, killing)
    assert len(set(killed)) == 2 and (tally.answered, tally.failed) == (24, 0)
    compare(rows(tmp_path / "out"), expected(backend, stack))


@pytest.mark.long
def test_processes_that_die_again_and_again_end_the_run(
    job: GatherJob, gathers: Float32, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "stack.npy", gathers)
    monkeypatch.setattr(executors, "_work", die)
    with pytest.raises(GalleryError, match="died 4 times"):
        list(in_processes(job, plan_chunks([str(tmp_path / "stack.npy")]), 1))


def below(pid: int) -> Iterator[int]:
    """All processes that a process and its own have started."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from below(child)


def command_of(pid: int) -> bytes:
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


@pytest.mark.filterwarnings("ignore")  # Ray's own, of what it has deprecated in itself
@pytest.mark.long
def test_ray_gives_the_same_answers_and_a_killed_actor_loses_nothing(
    job: GatherJob, backend: GalleryBackend, gathers: Float32, tmp_path: Path
) -> None:
    pytest.importorskip("ray.data", reason="Ray is not installed: pip install -e '.[bulk]'")
    stack = np.tile(gathers, (12, 1, 1, 1))
    np.save(tmp_path / "stack.npy", stack)
    chunks = plan_chunks([str(tmp_path / "stack.npy")], chunk=2)
    killed: list[int] = []

    def killing(some: Sequence[Chunk]) -> Iterator[Outcome]:
        for outcome in on_ray(job, some, 2, None):
            if not killed:
                killed.append(next(pid for pid in below(os.getpid()) if b"MapWorker" in command_of(pid)))
                os.kill(killed[0], signal.SIGKILL)
            yield outcome

    with PartsFolder(tmp_path / "out", {}) as folder:
        tally = write_parts(folder, chunks, killing)
    assert killed and (tally.answered, tally.failed) == (36, 0)
    compare(rows(tmp_path / "out"), expected(backend, stack))


@pytest.mark.long
def test_checks_are_the_engines(gallery_path: Path, weights: Path, gathers: Float32, tmp_path: Path) -> None:
    stack = gathers[:2].copy()
    stack[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "a.npy", stack)
    options = RetrieveOptions(top_k=2)
    with PartsFolder(tmp_path / "out", {"kind": "check"}) as folder:
        one = GatherJob("check", str(gallery_path), weights, "cpu", options=options).open()
        write_parts(folder, plan_chunks([str(tmp_path / "a.npy")], chunk=8), here(one))
        one.close()
    row, failed = rows(tmp_path / "out")
    assert (failed["gather"], failed["error_code"]) == (1, "invalid_gather")
    with GalleryBackend(str(gallery_path), weights, "cpu", options) as backend:
        own = check_body(backend.engine.check(stack[:1], top_k=2))
    assert (row["best"], row["candidate"]) == (own.best, [each.name for each in own.candidates])
    np.testing.assert_allclose(row["residual"], [each.measures.residual for each in own.candidates], rtol=1e-3)
    assert row["usable"] == [each.verdict.usable for each in own.candidates]
