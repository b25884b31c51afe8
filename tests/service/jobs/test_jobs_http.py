"""Jobs over real HTTP: a real server, the real keeper, a real worker process; what it computes is a stand-in."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

import standin
from seisbind.model.errors import MissingExtra, Overloaded, ServerRefused
from seisbind.model.survey.preparation import prepare
from seisbind.service.client.client import AsyncClient, Client
from seisbind.service.engine.engine import Engine
from seisbind.service.formats.npy import npz
from seisbind.service.http.jobs import EventLines
from seisbind.service.jobs import keeper, records
from seisbind.service.jobs.job import Event, JobState, RefineInput
from seisbind.service.jobs.workbench import Workbench
from seisbind.service.settings import Settings
from seisbind.service.transport.keys import Scope, make_key
from standin import LONG
from wire import npy, until

Float32 = NDArray[np.float32]


@pytest.fixture(autouse=True, scope="module")
def _stand_in() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "WORKER", (sys.executable, standin.__file__))
        patch.setattr(keeper, "POLL_S", 0.05)
        patch.setattr(keeper, "AGAIN_S", 0.05)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served") / "jobs"


@pytest.fixture(scope="module")
def settings(weights: Path, gallery_path: Path, folder: Path) -> Settings:
    given = {"gallery": gallery_path, "weights": weights, "device": "cpu", "jobs": folder}
    return Settings(**given, max_jobs=2, max_iterations=LONG, max_streams=1)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def server(_stand_in: None, run_server: Any, settings: Settings) -> Iterator[Any]:
    with run_server(settings) as running:
        yield running


@pytest.fixture(autouse=True)
def _nothing_left(server: Any) -> Iterator[None]:
    yield
    for job in server.http.get("/v1/jobs", params={"limit": 100}).json()["jobs"]:
        while server.http.delete(job["links"]["self"]).status_code == 200:
            pass


def submit(server: Any, gather: Float32, *, key: str | None = None, **fields: object) -> httpx.Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    sent: httpx.Response = server.http.post("/v1/jobs", files={"file": npy(gather)}, data=fields, headers=headers)
    return sent


def submitted(server: Any, gather: Float32, **fields: object) -> str:
    answer = submit(server, gather, **fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def job_of(server: Any, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get(f"/v1/jobs/{job_id}").json()
    return found


def ended(server: Any, job_id: str) -> dict[str, Any]:
    until(lambda: job_of(server, job_id)["state"] in ("done", "failed", "cancelled"))
    return job_of(server, job_id)


def lines_of(server: Any, job_id: str, after: int = -1) -> list[dict[str, Any]]:
    text = server.http.get(f"/v1/jobs/{job_id}/events", params={"after": after}).text
    return [json.loads(line) for line in text.splitlines()]


def lines_of_now(server: Any, job_id: str) -> list[Event]:
    found: list[Event] = server.serving.jobs.store.events(job_id)[0]
    return found


def inputs_of(gather: Float32, start: Float32) -> RefineInput:
    prepared = prepare(gather)
    return RefineInput(prepared.traces[0], prepared.live[0], prepared.shot_x_m[0], start[None])


def wanted(engine: Engine, gather: Float32, iterations: int) -> Float32:
    """What the stand-in makes of the model that is read from a gather."""
    read = engine.retrieve(gather[None])[0].model
    assert read is not None
    steps = standin.StandIn(standin.job(0, iterations=iterations)[0], inputs_of(gather, read.value), None)
    while not steps.done:
        steps.step()
    return steps.velocity


def test_a_job_from_its_request_to_its_result(server: Any, engine: Engine, gathers: Float32) -> None:
    answer = submit(server, gathers[0], iterations=5, start="read")
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['job_id']}" == job["links"]["self"]
    assert (job["state"], job["iterations"], job["start"], job["scale"]) == ("queued", 5, "read", [1, 1])
    done = ended(server, job["job_id"])
    assert (done["state"], done["error"]) == ("done", None)
    assert (done["progress"]["iteration"], done["progress"]["of"], done["progress"]["seconds_left"]) == (5, 5, 0)
    lines = lines_of(server, job["job_id"])
    assert [line["line"] for line in lines] == list(range(8))
    assert [line["state"] for line in lines] == ["queued", *["running"] * 6, "done"]
    assert [line["iteration"] for line in lines[2:-1]] == [1, 2, 3, 4, 5]
    assert lines_of(server, job["job_id"], after=5) == lines[6:]
    assert lines_of(server, job["job_id"], after=7) == lines[7:]  # of a job that has ended, its last at least
    arrays = np.load(io.BytesIO(server.http.get(done["links"]["result"]).content), allow_pickle=False)
    value = wanted(engine, gathers[0], 5)
    np.testing.assert_allclose(arrays["velocity"], value, rtol=1e-4)
    assert (arrays["cell_m"], arrays["x0"], str(arrays["units"])) == (10, 0, "m/s")
    assert len(arrays["residual"]) == 5
    bare = np.load(io.BytesIO(server.http.get(done["links"]["result"].replace("npz", "npy")).content))
    assert np.array_equal(bare, arrays["velocity"])
    for name, start in (("segy", b"C 1"), ("nc", b"CDF")):
        content = server.http.get(f"{job['links']['self']}/result.{name}").content
        assert content.startswith(start) or content[:3] == start.decode().encode("cp037")
    assert server.http.get(done["links"]["image"]).content.startswith(b"\x89PNG")
    listed = server.http.get("/v1/jobs").json()
    assert listed["jobs"][0] == done and listed["counts"]["done"] == 1
    until(lambda: 'seisbind_jobs{state="done"} 1.0' in server.http.get("/metrics").text)


def test_a_scaled_job_is_in_true_units(server: Any, gathers: Float32) -> None:
    twins = {}
    for scale in ("1", "2,0.5"):  # times are four times as long
        job_id = submitted(server, gathers[0], iterations=1, scale=scale)
        assert ended(server, job_id)["state"] == "done"
        twins[scale] = np.load(io.BytesIO(server.http.get(f"/v1/jobs/{job_id}/result.npz").content))
    own, scaled = twins.values()
    assert (own["cell_m"], scaled["cell_m"]) == (10, 20)
    np.testing.assert_allclose(scaled["velocity"], own["velocity"] / 2, rtol=1e-3)


def test_where_it_starts(server: Any, gathers: Float32, models: tuple[Float32, list[str]]) -> None:
    starts = {}
    for start in ("best", "read", "match", "mean"):
        starts[start] = job_of(server, submitted(server, gathers[0], iterations=1, start=start))["start"]
        if len(starts) % 2 == 0:  # as many as may wait
            until(lambda: server.http.get("/v1/jobs").json()["counts"]["queued"] == 0)
    assert starts == {"best": "read,match,mean", "read": "read", "match": "match", "mean": "mean"}
    with Client(server.url) as client:
        own = client.submit_refinement(npy(gathers[0]), iterations=1, model=models[0][5])
        assert own.start == "given"
        until(lambda: client.job(own.job_id).state == "done")
        steps = standin.StandIn(standin.job(0, iterations=1)[0], inputs_of(gathers[0], models[0][5]), None)
        steps.step()
        np.testing.assert_allclose(client.result(own.job_id)["velocity"], steps.velocity, rtol=1e-4)


def test_a_request_that_is_sent_again_makes_no_second_job(server: Any, gathers: Float32) -> None:
    first = submit(server, gathers[0], key="mine", iterations=2).json()
    again = submit(server, gathers[0], key="mine", iterations=2)
    assert (again.status_code, again.json()["job_id"]) == (202, first["job_id"])
    other = submit(server, gathers[1], key="mine", iterations=2)
    assert (other.status_code, other.json()["code"]) == (422, "invalid_query")
    assert submit(server, gathers[0], key="x" * 256).status_code == 422
    assert len(server.http.get("/v1/jobs").json()["jobs"]) == 1


def test_a_job_is_cancelled_and_then_removed(server: Any, gathers: Float32) -> None:
    running, waiting = (submitted(server, gathers[0], iterations=LONG) for _ in range(2))
    until(lambda: (job_of(server, running)["progress"] or {"iteration": 0})["iteration"] > 1)
    assert job_of(server, waiting)["ahead"] == 1
    refused = server.http.get(f"/v1/jobs/{running}/result.npz")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_done")
    for job_id in (running, waiting):
        answer = server.http.delete(f"/v1/jobs/{job_id}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    assert server.http.get(f"/v1/jobs/{running}/image.png").content.startswith(b"\x89PNG")
    assert server.http.get(f"/v1/jobs/{waiting}/image.png").json()["code"] == "job_not_done"
    assert lines_of(server, running)[-1]["state"] == "cancelled"
    for job_id in (running, waiting):
        assert server.http.delete(f"/v1/jobs/{job_id}").status_code == 204
        assert server.http.get(f"/v1/jobs/{job_id}").json()["code"] == "unknown_job"
    assert ended(server, submitted(server, gathers[0], iterations=2))["state"] == "done"  # the same worker goes on


def test_a_worker_that_is_killed_and_a_server_that_ends_lose_nothing(
    run_server: Any, server: Any, settings: Settings, engine: Engine, gathers: Float32, folder: Path
) -> None:
    job_id = submitted(server, gathers[0], iterations=LONG, start="read")
    until(lambda: (job_of(server, job_id)["progress"] or {"iteration": 0})["iteration"] > 1)
    os.kill(int((folder / "worker.pid").read_text()), signal.SIGKILL)
    until(lambda: "It goes on." in str(lines_of_now(server, job_id)))
    with run_server(settings) as second:  # on the same folder
        os.kill(int((folder / "worker.pid").read_text()), signal.SIGTERM)
        done = ended(second, job_id)
        assert done["state"] == "done"
        lines = lines_of(second, job_id)
        assert [line["iteration"] for line in lines if line["iteration"]] == list(range(1, LONG + 1))
        content = second.http.get(done["links"]["result"]).content
    np.testing.assert_allclose(np.load(io.BytesIO(content))["velocity"], wanted(engine, gathers[0], LONG), rtol=1e-2)


def test_without_a_folder_there_are_no_jobs(served: Any, gathers: Float32) -> None:
    for method, path in (("POST", ""), ("GET", ""), ("GET", "/x"), ("GET", "/x/events"), ("DELETE", "/x")):
        refused = served.http.request(method, f"/v1/jobs{path}")
        assert (refused.status_code, refused.json()["code"]) == (403, "jobs_off"), (method, path)


def test_a_server_that_could_not_simulate_does_not_start(
    serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepwave", None)
    with pytest.raises(MissingExtra, match="SEISBIND_JOBS"):
        serve(jobs=tmp_path / "jobs")


def test_jobs_are_bounded(server: Any, gathers: Float32) -> None:
    job_id = submitted(server, gathers[0], iterations=LONG)
    until(lambda: job_of(server, job_id)["state"] == "running")
    for _ in range(2):
        submitted(server, gathers[0], iterations=1)
    full = submit(server, gathers[0])
    assert (full.status_code, full.json()["code"], full.headers["retry-after"]) == (429, "jobs_full", "60")
    server.http.delete(f"/v1/jobs/{job_id}")
    until(lambda: server.http.get("/v1/jobs").json()["counts"]["queued"] == 0)
    for fields in ({"iterations": LONG + 1}, {"iterations": 0}, {"start": "x"}, {"start": ""}, {"kind": "x"},
                   {"start": "match", "filter": '{"family": "none"}'}, {"more": 1}):  # fmt: skip
        assert submit(server, gathers[0], **fields).status_code == 422, fields
    assert submit(server, gathers[:2]).status_code == 422
    assert server.http.get("/v1/jobs", params={"limit": 101}).status_code == 422
    for path in ("result.exe", "result.npz", "image.png", "events"):
        assert server.http.get(f"/v1/jobs/none/{path}").status_code in (404, 422)


def test_a_server_that_allows_less_than_is_usual(serve: Any, gathers: Float32, tmp_path: Path) -> None:
    """Fewer iterations: a request that names none gets those; less disk than a job takes: it can never be taken."""
    server = serve(jobs=tmp_path / "jobs", max_iterations=7, jobs_bytes=5 << 20)
    taken = submit(server, gathers[0], start="read")
    assert (taken.status_code, taken.json()["iterations"]) == (202, 7), taken.text
    refused = submit(server, gathers[0], iterations=8)
    assert refused.status_code == 422 and "at most 7" in refused.json()["detail"]
    large = submit(server, gathers[0])  # three starts
    assert (large.status_code, large.json()["code"]) == (422, "invalid_query")
    assert "SEISBIND_JOBS_BYTES" in large.json()["detail"] and str(5 << 20) in large.json()["detail"]


def test_a_frame_that_takes_too_much_memory_is_refused_before_it_is_a_job(
    server: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seisbind.model.inversion import refinement

    monkeypatch.setattr(refinement, "MOST_BYTES", 1 << 20)
    refused = submit(server, gathers[0], iterations=1)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_query")
    assert "GiB of memory" in refused.json()["detail"] and not server.http.get("/v1/jobs").json()["jobs"]


def test_as_many_as_follow_are_bounded(server: Any, gathers: Float32) -> None:
    job_id = submitted(server, gathers[0], iterations=LONG)
    with server.http.stream("GET", f"/v1/jobs/{job_id}/events") as first:
        assert json.loads(next(first.iter_lines()))["line"] == 0
        assert server.http.get(f"/v1/jobs/{job_id}/events").json()["code"] == "overloaded"
    until(lambda: server.serving.jobs.followers == 0)  # who leaves is no longer waited for
    server.http.delete(f"/v1/jobs/{job_id}")
    assert lines_of(server, job_id)[-1]["state"] == "cancelled"


def test_who_follows_is_counted_as_it_is_let_in() -> None:
    """Two that were asked for at once, and one place."""
    begun: list[Any] = []

    async def both() -> None:
        jobs = SimpleNamespace(followers=0)
        serving = SimpleNamespace(jobs=jobs, settings=SimpleNamespace(max_streams=1))
        first, second = (EventLines(serving, "job", -1) for _ in range(2))  # type: ignore[arg-type]
        held = asyncio.Event()

        async def send(message: Any) -> None:
            begun.append(message)
            await held.wait()

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        sending = asyncio.create_task(first({"type": "http"}, receive, send))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 jobs are being followed"):
            await second({"type": "http"}, receive, send)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert jobs.followers == 0

    asyncio.run(asyncio.wait_for(both(), 60))
    assert len(begun) == 1


@pytest.mark.parametrize("name", ["top_k", "include"])
def test_what_changes_nothing_of_a_job_is_refused_by_name(server: Any, gathers: Float32, name: str) -> None:
    refused = submit(server, gathers[0], **{name: "1"})
    assert refused.status_code == 422 and name in refused.json()["detail"]
    properties = server.http.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"][
        "multipart/form-data"]["schema"]["properties"]  # fmt: skip
    assert name not in properties and {"file", "filter", "scale", "start"} < set(properties)


def test_a_quiet_job_is_followed_in_json_all_the_same(
    server: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seisbind.service.http import jobs

    monkeypatch.setattr(jobs, "QUIET_S", -1.0)
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    store, looks = server.serving.jobs.store, []
    events = store.events

    def quiet_at_first(*asked: Any, **after: Any) -> Any:  # however fast the job is
        looks.append(asked)
        return ([], JobState.QUEUED) if len(looks) == 1 else events(*asked, **after)

    monkeypatch.setattr(store, "events", quiet_at_first)
    job_id = submitted(server, gathers[0], iterations=5)
    text = server.http.get(f"/v1/jobs/{job_id}/events").text
    assert text.startswith(" {")
    assert [json.loads(line)["line"] for line in text.splitlines()] == list(range(8))


def test_who_may(serve: Any, gathers: Float32, tmp_path: Path) -> None:
    (read, reader), (write, writer) = make_key("reader", Scope.READ), make_key("writer", Scope.WRITE)
    server = serve(jobs=tmp_path / "jobs", api_keys=f"{reader.line},{writer.line}")

    def call(method: str, path: str, key: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "k"}
        answer: httpx.Response = server.http.request(method, path, headers=headers, **more)
        return answer

    sent = {"files": {"file": npy(gathers[0])}, "data": {"iterations": "1"}}
    assert call("POST", "/v1/jobs", read, **sent).json()["code"] == "write_scope_required"
    job_id = call("POST", "/v1/jobs", write, **sent).json()["job_id"]
    assert call("GET", f"/v1/jobs/{job_id}", read).status_code == 200
    assert call("DELETE", f"/v1/jobs/{job_id}", read).json()["code"] == "write_scope_required"
    assert server.http.get("/v1/jobs").json()["code"] == "key_required"


def test_both_clients(server: Any, gathers: Float32) -> None:
    with Client(server.url) as client:
        job = client.submit_refinement(npy(gathers[0]), iterations=3, key="k")
        assert client.submit_refinement(npy(gathers[0]), iterations=3, key="k").job_id == job.job_id
        lines = list(client.events(job.job_id))
        assert [line.iteration for line in lines if line.iteration] == [1, 2, 3] and lines[-1].ended
        assert list(client.events(job.job_id, after=lines[-2].line)) == lines[-1:]
        assert client.job(job.job_id).ended
        result = client.result(job.job_id)
        assert result["velocity"].shape == (70, 70)
        assert client.result_file(job.job_id, "nc").startswith(b"CDF")
        assert client.job_image(job.job_id).startswith(b"\x89PNG")
        assert client.jobs(limit=5).counts["done"] == 1

    async def awaited() -> None:
        async with AsyncClient(server.url) as awaiting:
            assert [line async for line in awaiting.events(job.job_id)] == lines
            assert np.array_equal((await awaiting.result(job.job_id))["velocity"], result["velocity"])
            assert await awaiting.cancel(job.job_id) is None
            with pytest.raises(ServerRefused) as refused:
                await awaiting.job(job.job_id)
            assert refused.value.code == "unknown_job"

    asyncio.run(awaited())


Cutting = Callable[..., AbstractContextManager[tuple[str, list[int]]]]


def test_lines_go_on_after_a_connection_that_breaks(server: Any, cutting: Cutting, gathers: Float32) -> None:
    job_id = submitted(server, gathers[0], iterations=6)
    ended(server, job_id)
    with cutting(int(server.url.rsplit(":", 1)[1]), [3, 0, 2]) as (url, passed), Client(url) as client:
        lines = list(client.events(job_id))
    assert [line.line for line in lines] == list(range(9))
    assert len(passed) == 4


def test_a_retrieval_is_answered_while_a_job_runs(server: Any, gathers: Float32, folder: Path) -> None:
    job_id = submitted(server, gathers[0], iterations=LONG)
    until(lambda: job_of(server, job_id)["state"] == "running")
    worker = int((folder / "worker.pid").read_text())
    assert os.getpriority(os.PRIO_PROCESS, worker) == 19
    assert server.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).status_code == 200
    assert job_of(server, job_id)["state"] == "running"
    server.http.delete(f"/v1/jobs/{job_id}")


def test_a_refined_model_is_checked_and_kept(
    run_server: Any, settings: Settings, make_gallery: Any, gathers: Float32, models: Any, tmp_path: Path
) -> None:
    """The stand-in's model explains nothing and is refused; the true one in its place is kept."""
    pytest.importorskip("deepwave", reason="deepwave, which a check simulates with, is not installed")
    audit = tmp_path / "audit.jsonl"
    changed = {"gallery": make_gallery(), "jobs": tmp_path / "jobs", "writable": True, "audit_log": audit}
    own = settings.model_copy(update=changed)
    with run_server(own) as server, Client(server.url) as client:
        job_id = submitted(server, gathers[0], iterations=2, start="match")
        parent = server.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).json()["results"][0]["matches"][0]
        assert ended(server, job_id)["state"] == "done"
        refused = server.http.post(f"/v1/jobs/{job_id}/model")
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_velocity_model"), refused.text
        assert "not kept" in refused.json()["detail"]
        bench = Workbench(own.jobs)
        with bench._writing("test") as connection:
            job = records.read_job(connection, "job_id = ?", job_id)
            result = {"velocity": models[0][0] * np.float32(1.001), "start": np.array(0)}
            records.put(connection, job.row, records.RESULT, 0, npz(result))
        bench.close()
        kept = client.keep_job_model(job_id)
        assert kept.verdict.usable and kept.measures.unexplained < 0.05
        assert job_id in kept.source and kept.gallery.models == 61
        found = server.http.get(f"/v1/models/{kept.model_id}").json()
        assert set(found["tags"]) == {"refined", f"parent:{parent['model_id']}"} and found["source"] == kept.source
        again = server.http.post(f"/v1/jobs/{job_id}/model")
        assert (again.status_code, again.json()["model_id"], again.json()["source"]) == (
            200, kept.model_id, kept.source
        )  # fmt: skip
        until(lambda: "added" in audit.read_text())
        said = [line for line in audit.read_text().splitlines() if "added" in line]
        assert len(said) == 1 and kept.model_id in said[0]


def test_who_leaves_is_not_checked_for(
    run_server: Any, settings: Settings, make_gallery: Any, gathers: Float32, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The check of a model that would be kept: its client leaves while the first surface is modelled."""
    pytest.importorskip("deepwave", reason="deepwave, which a check simulates with, is not installed")
    from seisbind.model.inversion.forward import Forward

    begun, gate, modelled, run = threading.Event(), threading.Event(), [], Forward.__call__

    def slow(self: Forward, *args: Any) -> Any:
        modelled.append(1)
        begun.set()
        gate.wait()
        return run(self, *args)

    own = settings.model_copy(update={"gallery": make_gallery(), "jobs": tmp_path / "jobs", "writable": True})
    with run_server(own) as server:
        job_id = submitted(server, gathers[0], iterations=2, start="match")
        assert ended(server, job_id)["state"] == "done"
        server.serving._checker.apart = False  # as on a GPU
        monkeypatch.setattr(Forward, "__call__", slow)
        try:
            with httpx.Client(base_url=server.url, timeout=0.5) as leaving, pytest.raises(httpx.ReadTimeout):
                leaving.post(f"/v1/jobs/{job_id}/model")
            assert begun.wait(60)
            until(lambda: "seisbind_admitted_requests 0.0" in server.http.get("/metrics").text)
        finally:
            gate.set()
        until(lambda: server.serving._checks == 0)
        assert len(modelled) == 1  # the stand-in's model explains nothing: a free surface would have been tried


def test_no_model_is_kept_before_its_time_or_by_a_server_that_changes_nothing(server: Any, gathers: Float32) -> None:
    job_id = submitted(server, gathers[0], iterations=LONG)
    answer = server.http.post(f"/v1/jobs/{job_id}/model")
    assert (answer.status_code, answer.json()["code"]) == (403, "not_writable")
