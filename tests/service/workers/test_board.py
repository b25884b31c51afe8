"""What workers tell each other, and what the supervisor does while it waits, without processes that serve."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from seisbind.model.errors import GalleryDamaged, NotReady
from seisbind.service.http.server import MOST_TURNS, SharedListener
from seisbind.service.runtime.metrics import Metrics
from seisbind.service.runtime.watch import GalleryWatch
from seisbind.service.settings import Settings
from seisbind.service.workers import board as boards
from seisbind.service.workers.board import Board, Followed, Standing, State
from seisbind.service.workers.supervisor import Place, Share, Supervisor, Worker


async def _ready() -> str:
    return "1-first"


@contextmanager
def attending(board: Board, reload: Callable[[], Awaitable[str]], ready: Any = _ready) -> Iterator[asyncio.Event]:
    """What a worker does beside serving; the event says that it stops. On the loop."""
    stopping = asyncio.Event()
    task = asyncio.create_task(board.attend(Metrics(), reload=reload, ready=ready, stopping=stopping))
    try:
        yield stopping
    finally:
        task.cancel()


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Board, Board]:
    """Two workers that have begun, and look often."""
    monkeypatch.setattr(boards, "LOOK_S", 0.01)
    monkeypatch.setattr(boards, "WRITE_S", 0.01)
    found = Board(tmp_path, 0, 2), Board(tmp_path, 1, 2)
    for each in found:
        each.begin()
    return found


def test_a_reload_that_fails_is_told_and_leaves_a_worker_that_hears_the_next(pair: tuple[Board, Board]) -> None:
    first, second = pair
    faults: list[Exception | None] = [GalleryDamaged("It is torn."), RuntimeError("FAISS does not like it."), None]

    async def reload() -> str:
        if (fault := faults.pop(0)) is not None:
            raise fault
        return "2-second"

    async def story() -> list[list[Followed | None]]:
        with attending(second, reload):
            return [await first.all_followed(first.ask("2-second")) for _ in range(3)]

    damaged, broken, done = asyncio.run(story())
    assert damaged == [Followed(0, 1, "2-second"), Followed(1, 1, None, "gallery_damaged", "It is torn.")]
    assert broken[1] == Followed(1, 2, None, "internal_error", "Its log has the details.")
    assert done == [Followed(0, 3, "2-second"), Followed(1, 3, "2-second")]


def test_nobody_waits_for_a_worker_that_is_not_there(
    pair: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pair
    monkeypatch.setattr(boards, "FOLLOW_S", 0.05)
    assert asyncio.run(first.all_followed(first.ask("2-second"))) == [Followed(0, 1, "2-second"), None]
    Board.has_ended(second.folder, 1)
    monkeypatch.setattr(boards, "FOLLOW_S", 1e9)
    assert asyncio.run(first.all_followed(first.ask("2-second"))) == [Followed(0, 2, "2-second"), Followed(1, 2)]
    assert first.standings()[1].state is State.ABSENT
    successor = Board(second.folder, 1, 2)
    successor.begin()  # and opens what is there now: asked for before it began, loaded as it begins

    async def never() -> str:
        raise AssertionError

    async def story() -> list[Followed | None]:
        with attending(successor, never):
            return await first.all_followed(2)

    assert asyncio.run(story())[1] == Followed(1, 2)


def test_workers_load_a_gallery_one_at_a_time(pair: tuple[Board, Board]) -> None:
    """Both notice a change at once, by a look of their own or because they are asked."""
    loading, most = 0, 0

    class Stub:
        def __init__(self) -> None:
            self.served, self.loads = "old", 0

        async def look(self) -> tuple[object, object]:
            return self.served, "new"

        async def reload(self) -> Any:
            nonlocal loading, most
            loading, self.loads = loading + 1, self.loads + 1
            most = max(most, loading)
            for _ in range(20):  # the other one's turn to load as well, if nothing kept it
                await asyncio.sleep(0)
            loading, self.served = loading - 1, "new"
            return SimpleNamespace(stamp="old"), SimpleNamespace(stamp="new")

    async def look(turns: Sequence[Any]) -> list[int]:
        nonlocal most
        most, stubs = 0, [Stub(), Stub()]
        await asyncio.gather(*(GalleryWatch(s, 1.0, t).look() for s, t in zip(stubs, turns, strict=True)))
        return [most, *(stub.loads for stub in stubs)]

    assert asyncio.run(look([nullcontext, nullcontext])) == [2, 1, 1]
    assert asyncio.run(look([each.in_turn for each in pair])) == [1, 1, 1]

    async def reloaded_meanwhile() -> int:
        stub = Stub()

        @asynccontextmanager
        async def after_a_reload() -> AsyncIterator[None]:
            stub.served = "new"
            yield

        await GalleryWatch(stub, 1.0, after_a_reload).look()  # type: ignore[arg-type]
        return stub.loads

    assert asyncio.run(reloaded_meanwhile()) == 0


def test_the_board_says_how_each_worker_stands(pair: tuple[Board, Board], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = pair
    canary = True

    async def ready() -> str:
        if not canary:
            raise NotReady("A canary gather could not be answered.")
        return "3-third"

    async def until(state: State) -> Standing:
        while (found := first.standings()[1]).state is not state:
            await asyncio.sleep(0.01)
        return found

    async def reload() -> str:
        raise AssertionError

    async def story() -> None:
        nonlocal canary
        assert (await until(State.STARTING)).generation is None
        with attending(second, reload, ready) as stopping:
            assert await until(State.READY) == Standing(1, State.READY, "3-third")
            canary = False
            assert "canary" in (await until(State.NOT_READY)).why
            canary = True
            await until(State.READY)
            stopping.set()
            canary = False  # what it says while it shuts down is not said of its successor

    asyncio.run(story())
    assert first.standings()[1].state is State.READY
    monkeypatch.setattr(boards, "STALE_S", -1.0)
    assert "said nothing" in first.standings()[1].why and first.standings()[0].state is State.STARTING


def test_a_worker_that_is_being_replaced_says_nothing(pair: tuple[Board, Board]) -> None:
    """Who asked for a reload waits for the successor; where that could not serve, the one before speaks again."""
    first, second = pair
    loaded: list[str] = []

    def reload(name: str) -> Callable[[], Awaitable[str]]:
        async def load() -> str:
            loaded.append(name)
            return name

        return load

    async def story() -> None:
        with attending(second, reload("before")):
            while first.standings()[1].state is not State.READY:
                await asyncio.sleep(0.01)
            successor = Board(second.folder, 1, 2)
            successor.begin()
            number = first.ask("2-second")
            while second._seen < number:  # it has loaded the gallery, too, and would have said so by now
                await asyncio.sleep(0.01)
            assert loaded == ["before"]
            assert first.outcomes(number)[1] is None and first.standings()[1].state is State.STARTING
            with attending(successor, reload("after")):
                assert (await first.all_followed(number))[1] == Followed(1, number, "after")
            Board.has_ended(second.folder, 1)
            while first.standings()[1].state is not State.READY:
                await asyncio.sleep(0.01)
            assert (await first.all_followed(first.ask("2-second")))[1] == Followed(1, 2, "before")

    asyncio.run(story())


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
    share = Share(Settings(), {})
    places = [Place(lambda *given: None, share, tmp_path, index, 2) for index in range(2)]
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


def test_who_has_fewer_connections_takes_the_next() -> None:
    with socket.create_server(("127.0.0.1", 0)) as bound, SharedListener(os.dup(bound.fileno())) as shared:
        shared.listen(1)
        shared.setblocking(False)

        def turns(open_now: int) -> int:
            """Of the loop, until it takes a connection that waits."""
            shared.open = lambda: open_now
            with socket.create_connection(bound.getsockname()):
                for passed in range(2 * MOST_TURNS):
                    try:
                        shared.accept()[0].close()
                        return passed
                    except BlockingIOError:
                        pass
            raise AssertionError

        assert [turns(count) for count in (0, 3, 0, 1000)] == [0, 3, 0, MOST_TURNS]
