"""``seisbind serve --workers 2`` as people run it: one port, two processes, and what happens when one is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from seisbind.index import Gallery
from seisbind.model import processes
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidConfig
from seisbind.model.ground.families import mixed
from seisbind.service.engine.engine import Engine
from seisbind.service.settings import Settings, read_settings
from seisbind.service.workers import board as boards
from seisbind.service.workers import supervisor
from seisbind.service.workers.board import Board, Followed, Standing, State

Float32 = np.ndarray[Any, np.dtype[np.float32]]


@contextmanager
def serving(weights: Path, gallery: Path, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command as a process of its own, and its address once all workers serve."""
    names = {"gallery": str(gallery), "weights": str(weights), "device": "cpu", "port": "0", "workers": "2"} | more
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment |= {f"SEISBIND_{name.upper()}": value for name, value in names.items()}
    with subprocess.Popen(
        [sys.executable, "-m", "seisbind", "serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as server:
        try:
            said = server.stdout.readline() if server.stdout else ""
            yield server, said.split()[-1] if said else ""
        finally:
            if server.poll() is None:
                server.terminate()


def workers_of(server: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers: children that were spawned to serve."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


def models(url: str) -> dict[str, str]:
    """Worker → velocity models that it serves."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    return dict(re.findall(r'^seisbind_gallery_models\{worker="(\d)"\} (\S+)$', text, re.MULTILINE))


def states(url: str) -> list[str]:
    """Of each worker, as the answer of readiness has them; one that is not ready makes that no answer."""
    return [one["state"] for one in httpx.get(f"{url}/readyz", timeout=60).json().get("workers", ())]


def ask(url: str, gather: bytes, count: int, outcomes: Counter[str]) -> None:
    """One request after another, each on a connection of its own."""
    for _ in range(count):
        try:
            answer = httpx.post(f"{url}/v1/retrieve", files={"file": gather}, timeout=60)
            outcomes[str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            outcomes[type(error).__name__] += 1


@pytest.fixture
def gather(gathers: Float32, tmp_path: Path) -> bytes:
    np.save(tmp_path / "gather.npy", gathers[0])
    return (tmp_path / "gather.npy").read_bytes()


def test_a_reload_that_one_worker_did_not_follow_is_an_error(
    weights: Path, gallery_path: Path, tmp_path: Path, run_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is a real server, the other one what it says on the board."""
    monkeypatch.setattr(boards, "LOOK_S", 0.01)
    monkeypatch.setattr(boards, "FOLLOW_S", 0.05)
    board, other = Board(tmp_path, 0, 2), Board(tmp_path, 1, 2)
    other.begin()
    settings = Settings(gallery=gallery_path, weights=weights, device="cpu", port=0, audit_log=tmp_path / "audit")
    with run_server(settings, board) as server:
        ready = server.http.get("/readyz").json()
        generation = ready["generation"]
        assert [(one["state"], one["generation"]) for one in ready["workers"]] == [
            ("ready", generation),
            ("starting", None),
        ]

        def reload() -> tuple[int, Any]:
            answer = server.http.post("/v1/gallery/reload")
            return answer.status_code, answer.json()

        status, late = reload()
        assert (status, late["code"]) == (503, "reload_incomplete")
        assert "1 of 2 workers go on with the gallery before" in late["detail"] and generation in late["detail"]
        assert len(late["errors"]) == 1 and "worker 1: it has not loaded it in" in late["errors"][0]
        changed = json.loads((tmp_path / "audit").read_text().splitlines()[-1])
        assert (changed["status"], changed["code"]) == (503, "reload_incomplete")
        assert changed["generation"] == int(generation.split("-")[0])  # this worker's has changed
        other.followed(Followed(1, 2, None, "gallery_damaged", "It is torn."))
        status, damaged = reload()
        assert (status, damaged["errors"]) == (503, ["worker 1: gallery_damaged: It is torn."])
        other.followed(Followed(1, 3, generation))
        status, done = reload()
        assert (status, [one["generation"] for one in done["workers"]]) == (200, [generation] * 2)
        monkeypatch.setattr(boards, "STALE_S", -1.0)
        other._tell(Standing(1, State.READY, generation))
        hangs = server.http.get("/readyz")
        assert hangs.status_code == 503 and "Worker 1: It has said nothing for" in hangs.json()["detail"]
        Board.has_ended(tmp_path, 1)
        assert server.http.get("/readyz").json()["workers"][1]["state"] == "absent"


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
@pytest.mark.timeout(600)
def test_a_killed_worker_takes_its_own_requests_and_no_others(
    weights: Path, make_gallery: Callable[[], Path], embedder: Embedder, gather: bytes
) -> None:
    """kill -9 under load; then a reload that reaches both; then SIGHUP, which replaces both; then SIGTERM."""
    gallery = make_gallery()
    with serving(weights, gallery) as (server, url):
        outcomes: Counter[str] = Counter()
        asking = [threading.Thread(target=ask, args=(url, gather, 20, outcomes)) for _ in range(4)]
        first = workers_of(server)
        assert len(first) == 2
        for thread in asking:
            thread.start()
        until(lambda: sum(outcomes.values()) > 8, "answers")
        os.kill(first[0], signal.SIGKILL)
        for thread in asking:
            thread.join()
        assert sum(outcomes.values()) == 80
        # what was on it: a request of each caller at most, whose connection ends
        assert outcomes["200"] >= 76 and set(outcomes) <= {"200", "ReadError", "RemoteProtocolError", "ConnectError"}
        until(lambda: len(set(workers_of(server)) - {first[0]}) == 2, "another worker in its place")
        until(lambda: len(models(url)) == 2, "metrics of both")

        before = set(models(url).values())
        with Gallery.open(gallery, fingerprint=embedder.fingerprint, writable=True) as changed:
            Engine(embedder, changed).add_models(mixed(3, 77)[0])
        assert set(models(url).values()) == before  # nobody has looked
        answer = httpx.post(f"{url}/v1/gallery/reload", timeout=120)
        assert answer.status_code == 200
        assert [one["state"] for one in answer.json()["workers"]] == ["ready"] * 2
        assert len({one["generation"] for one in answer.json()["workers"]}) == 1
        until(lambda: set(models(url).values()) == {f"{float(next(iter(before))) + 3}"}, "both serve what was added")
        assert len(models(url)) == 2
        until(lambda: states(url) == ["ready"] * 2, "ready, both of them")

        second, outcomes = workers_of(server), Counter()
        asking = [threading.Thread(target=ask, args=(url, gather, 60, outcomes)) for _ in range(2)]
        for thread in asking:
            thread.start()
        server.send_signal(signal.SIGHUP)
        until(lambda: not set(workers_of(server)) & set(second), "both replaced", 120)
        for thread in asking:
            thread.join()
        assert outcomes == {"200": 120}

        last = workers_of(server)
        server.terminate()
        assert server.wait(60) == 0
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in last), "no worker is left")


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_workers_end_with_their_supervisor(
    weights: Path, gallery_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with serving(weights, gallery_path) as (server, url):
        pids = workers_of(server)
        assert len(pids) == 2 and url
        server.kill()
        server.wait(30)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "workers that nobody looks after end")
    assert not list(tmp_path.glob("seisbind-workers-*"))


@pytest.mark.long
def test_workers_that_cannot_start_are_one_error(weights: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "seisbind", "serve", "--gallery", str(tmp_path / "none"), "--workers", "2"]
    done = subprocess.run(
        [*command, "--weights", str(weights), "--port", "0"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1 and not done.stdout
    assert "There is no gallery at" in done.stderr and "Traceback" not in done.stderr
    assert "its error is above" in done.stderr.splitlines()[-1]


def test_what_one_writer_owns_has_one_worker(tmp_path: Path) -> None:
    for more in ({"writable": True}, {"jobs": tmp_path}):
        with pytest.raises(InvalidConfig, match="has one worker; workers is 2"):
            read_settings(workers=2, **more)
        assert read_settings(**more).workers == 1


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="stops a worker by a signal that it cannot hear")
def test_a_worker_that_hangs_or_cannot_follow_is_told(
    weights: Path, make_gallery: Callable[[], Path], embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gallery that is there cannot be served: 409, and nobody is asked. Then one that hangs, and one that dies."""
    gallery = make_gallery()
    with serving(weights, gallery) as (server, url):
        until(lambda: states(url) == ["ready"] * 2, "both ready")
        records, kept = gallery / "records.sqlite", gallery.with_name("kept")
        records.rename(kept)
        assert httpx.post(f"{url}/v1/gallery/reload", timeout=120).status_code == 409
        kept.rename(records)
        one = workers_of(server)[0]
        os.kill(one, signal.SIGSTOP)

        def told() -> bool:
            with suppress(httpx.HTTPError):  # it may have taken the connection
                answer = httpx.get(f"{url}/readyz", timeout=2)
                return answer.status_code == 503 and "are not ready" in answer.json()["detail"]
            return False

        until(told, "that one takes connections and does not answer")
        os.kill(one, signal.SIGKILL)
        until(lambda: states(url) == ["ready"] * 2, "another in its place")
        assert httpx.post(f"{url}/v1/gallery/reload", timeout=120).status_code == 200


def _write_environment(settings: Settings, board: Board, listener: Any, started: Any) -> None:
    """In place of serving."""
    import torch

    seen = {name: os.environ.get(name, "") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
    seen |= {"torch": str(torch.get_num_threads()), "device": settings.device}
    (board.folder / f"seen-{board.index}").write_text(json.dumps(seen))


@pytest.mark.long
def test_a_worker_sees_its_gpu_and_takes_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed: the process has the environment that CUDA and the libraries of threads read."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "kept")
    monkeypatch.setattr(supervisor, "usable_cores", lambda: 4)
    monkeypatch.setattr(supervisor, "_gpus", lambda device: ["GPU-a", "3"])
    shares = supervisor.shares_of(Settings(workers=0))
    with socket.socket() as listener:
        places = [supervisor.Place(_write_environment, each, tmp_path, at, 2) for at, each in enumerate(shares)]
        workers = [supervisor.Supervisor(listener, places, lambda: None)._start(place) for place in places]
        for worker in workers:
            worker.process.join(120)
    seen = [json.loads((tmp_path / f"seen-{index}").read_text()) for index in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["GPU-a", "3"]
    assert [(one["OMP_NUM_THREADS"], one["torch"], one["device"]) for one in seen] == [("1", "1", "cuda")] * 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "kept"


def test_each_worker_has_its_gpu_or_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "usable_cores", lambda: 8)

    def shared(**given: Any) -> list[tuple[str, int | None]]:
        shares = supervisor.shares_of(read_settings(**given))
        assert all(each.environment["OMP_NUM_THREADS"] == str(each.settings.threads) for each in shares)
        return [
            (each.environment.get("CUDA_VISIBLE_DEVICES", each.settings.device), each.settings.threads)
            for each in shares
        ]

    # of its cores one reads requests
    assert shared(workers=2, device="cpu") == [("cpu", 3)] * 2
    assert shared(workers="auto", device="cpu") == shared(workers=0, device="cpu") == [("cpu", 1)] * 4
    assert shared(workers=16, device="cpu") == [("cpu", 1)] * 16
    assert shared(workers=3, device="cpu", threads=2) == [("cpu", 2)] * 3
    monkeypatch.setattr(supervisor, "_gpus", lambda device: ["0", "1"])
    assert shared(workers="auto") == [("0", 3), ("1", 3)]
    assert [gpu for gpu, _ in shared(workers=3)] == ["0", "1", "0"]
    with pytest.raises(InvalidConfig, match="search_device is 'cuda:1'"):
        shared(workers=2, search_device="cuda:1")


def test_the_gpus_to_share_are_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(sys, "platform", "linux as it is with a driver")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = {name: supervisor._gpus(name) for name in ("auto", "cuda", "cuda:1", "cuda:7", "cpu")}
    assert found == {"auto": ["0", "1"], "cuda": ["0", "1"], "cuda:1": ["1"], "cuda:7": [], "cpu": []}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-8932f937")
    assert supervisor._gpus("auto") == ["5", "GPU-8932f937"] and supervisor._gpus("cuda:1") == ["GPU-8932f937"]


def test_cores_are_those_that_a_container_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    monkeypatch.setattr(processes, "CPU_MAX", tmp_path / "cpu.max")
    cores = []
    for text in ("max 100000", "400000 100000", "150000 100000", "50000 100000", "9900000 100000", ""):
        processes.CPU_MAX.write_text(text)
        cores.append(processes.usable_cores())
    processes.CPU_MAX.unlink()
    assert [*cores, processes.usable_cores()] == [64, 4, 1, 1, 64, 64, 64]
