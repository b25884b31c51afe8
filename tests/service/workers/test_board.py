"""What workers tell each other, and what the supervisor does while it waits, without processes that serve."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from seisbind.model.errors import GalleryDamaged
from seisbind.service.runtime.metrics import Metrics
from seisbind.service.settings import Settings
from seisbind.service.workers import board as boards
from seisbind.service.workers.board import Board
from seisbind.service.workers.supervisor import Place, Supervisor, Worker


def test_a_reload_that_fails_anyhow_leaves_a_worker_that_hears_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boards, "LOOK_S", 0.01)
    first, second = Board(tmp_path, 0, 2), Board(tmp_path, 1, 2)
    faults: list[Exception | None] = [GalleryDamaged("It is torn."), RuntimeError("FAISS does not like it."), None]
    loaded: list[Exception | None] = []

    async def reload() -> None:
        loaded.append(fault := faults.pop(0))
        if fault is not None:
            raise fault

    async def story() -> None:
        attending = asyncio.create_task(second.attend(Metrics(), reload))
        for _ in range(3):
            assert await first.all_followed(await asyncio.to_thread(first.ask))
        attending.cancel()

    asyncio.run(story())
    assert len(loaded) == 3 and loaded[-1] is None


class _Process:
    """A worker that is there, or not, and serves once it was looked at so many times."""

    def __init__(self, alive: bool = True, serves: bool = True) -> None:
        self.process, self.alive, self.serves = self, alive, serves
        self.pid, self.exitcode, self.begun = 1, None, 0.0
        self.ended: list[str] = []

    def is_alive(self, timeout: float = 0) -> bool:
        return self.alive

    def is_ready(self, timeout: float = 0) -> bool:
        return self.serves

    def __getattr__(self, name: str) -> Any:
        def end(*given: Any) -> None:  # terminate, kill, join
            self.ended.append(name)
            self.alive = self.alive and name != "kill"

        return end


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    settings = Settings()
    places = [Place(lambda *given: None, settings, tmp_path, index, 2) for index in range(2)]
    with socket.socket() as listener:
        yield Supervisor(listener, places, lambda: None)


def test_a_worker_that_had_ended_is_not_started_twice(supervised: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGHUP replaces it; its turn to be started again is over then, or nobody would end the one of these two."""
    supervised.processes = [_Process(alive=False), _Process()]
    supervised._places[0].folder.joinpath("metrics-0").write_text("[]")
    started: list[_Process] = []

    def start(place: Place) -> _Process:
        started.append(_Process())
        return started[-1]

    monkeypatch.setattr(supervised, "_start", start)
    supervised.keep_subprocess_alive()
    assert 0 in supervised._due and not supervised._places[0].folder.joinpath("metrics-0").exists()
    supervised.restart_all()
    assert supervised.processes == started and len(started) == 2
    supervised._due |= dict.fromkeys(supervised._due, 0.0)  # time passes
    supervised.keep_subprocess_alive()
    assert len(started) == 2


def test_sigterm_does_not_wait_for_workers_that_open_their_gallery(
    supervised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening: list[_Process] = []

    def start(place: Place) -> _Process:
        opening.append(_Process(serves=False))
        supervised.signal_queue.append(signal.SIGTERM)
        return opening[-1]

    monkeypatch.setattr(supervised, "_start", start)
    before = [_Process(), _Process()]
    supervised.processes = list(before)
    supervised.restart_all()
    assert supervised.should_exit.is_set() and len(opening) == 1 and opening[0].ended == ["kill", "join"]
    assert supervised.processes == before and not before[0].ended  # the loop ends them, which let what runs finish
    supervised.should_exit.clear()
    supervised.processes.clear()
    supervised.init_processes()
    assert supervised.should_exit.is_set() and supervised.processes == opening[1:]


def test_a_worker_that_does_not_end_is_killed(supervised: Any) -> None:
    hung, ended = _Process(), _Process(alive=False)
    supervised.processes = [hung, ended]
    supervised.terminate_all()
    supervised.join_all()
    assert hung.ended == ["terminate", "join", "kill", "join"] and ended.ended == ["terminate", "join"]


def test_late_answers_are_not_those_of_a_worker_that_hangs(supervised: Any) -> None:
    worker = Worker(supervised.config, supervised.sockets, supervised._places[0])
    for _ in range(3):  # pings that were given up while it started
        worker.parent_conn.send(b"ping")
    for _ in range(3):
        worker.pong()
    assert not worker.ping(0.01)  # and nothing since
    worker.pong()
    answering = threading.Thread(target=worker.pong)
    answering.start()
    assert worker.ping(60)
    answering.join()
