"""Clients that stop sending: they lose their own request and nobody else's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import BodyTooSlow, Overloaded
from seisbind.service.http.routing import InPieces
from seisbind.service.runtime import request_body
from seisbind.service.runtime.request_body import RequestBody, UploadSlots
from wire import RAW, connect, npy, until

Float32 = NDArray[np.float32]
MIB = 1 << 20
STALLED = 100


def head(path: str, length: int, kind: str = RAW["Content-Type"]) -> bytes:
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n").encode()


@contextmanager
def stalled(url: str, sent: bytes, count: int) -> Iterator[list[socket.socket]]:
    """``count`` clients that have sent ``sent`` and keep still."""
    with ExitStack() as held:
        clients = []
        for _ in range(count):
            client = held.enter_context(connect(url, timeout=60))
            client.sendall(sent)
            clients.append(client)
        yield clients


def answer_of(client: socket.socket) -> bytes:
    """All that comes until the server closes the connection, or nothing more comes in time."""
    answer = b""
    with suppress(TimeoutError):
        while received := client.recv(65536):
            answer += received
    return answer


def gauge(http: httpx.Client, name: str) -> float:
    line = next(line for line in http.get("/metrics").text.splitlines() if line.startswith(f"{name} "))
    return float(line.split()[1])


def test_a_hundred_stalled_uploads_do_not_stop_the_next_request(serve: Any, gathers: Float32) -> None:
    """Promise 6, with the places of the default; they are cut off at the deadline, and have an answer."""
    server = serve(body_deadline_s=10)  # time enough for all that comes before it on a busy machine
    body = npy(gathers[0])
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="g"\r\n\r\n'
    raw = head("/v1/retrieve", len(body)) + body[:20_000]
    form = head("/v1/retrieve", len(body), "multipart/form-data; boundary=b") + part + body[:20_000]
    with stalled(server.url, raw, STALLED // 2) as some, stalled(server.url, form, STALLED // 2) as others:
        until(lambda: gauge(server.http, "seisbind_arriving_bodies") == STALLED)
        assert server.http.post("/v1/retrieve", content=body, headers=RAW).status_code == 200
        assert server.http.post("/v1/retrieve/stream", content=body, headers=RAW).text.count('"result"') == 1
        assert server.http.get("/readyz").status_code == 200
        assert gauge(server.http, "seisbind_arriving_bodies") == STALLED  # vacuity: they are all on their way still
        for client in (*some, *others):
            answer = answer_of(client)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b'"body_too_slow"' in answer
    assert gauge(server.http, "seisbind_arriving_bodies") == 0


def test_stalled_uploads_that_fill_the_memory_make_room(serve: Any, gathers: Float32) -> None:
    """Promise 6: bodies in arrival have no more bytes than the bodies of all places; who keeps still gives way."""
    server = serve(max_concurrency=2, max_body_bytes=2 * MIB, body_deadline_s=300)
    body = npy(gathers[0])
    sent = head("/v1/retrieve", 2 * MIB - 1) + bytes(MIB)
    with stalled(server.url, sent, 3) as clients:
        until(lambda: gauge(server.http, "seisbind_arriving_bodies") == 3)
        time.sleep(2 * request_body.PATIENCE_S)  # they are silent; 3 of 4 MiB have arrived, and the next has 1.4 MB
        assert server.http.post("/v1/retrieve", content=body, headers=RAW).status_code == 200
        assert gauge(server.http, "seisbind_arriving_bodies") == 2
        for client in clients:
            client.settimeout(0.5)  # the others go on being waited for
        (given_up,) = [answer for client in clients if (answer := answer_of(client))]
    assert given_up.startswith(b"HTTP/1.1 408")
    assert b"while others waited for its room" in given_up


def test_stalled_streams_make_room(serve: Any, gathers: Float32) -> None:
    """Promise 6 for streams, which have room of their own: they stop no other request, nor the next stream for long."""
    server = serve(max_streams=3, body_deadline_s=300)
    body = npy(gathers)
    with stalled(server.url, head("/v1/retrieve/stream", len(body)) + body[: len(body) // 2], 3) as clients:
        until(lambda: gauge(server.http, "seisbind_streams") == 3)
        assert server.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW).status_code == 200
        time.sleep(2 * request_body.PATIENCE_S)
        assert server.http.post("/v1/retrieve/stream", content=body, headers=RAW).text.count('"result"') == 3
        for client in clients:
            client.settimeout(0.5)  # the others go on being waited for
        (given_up,) = [answer for client in clients if b'"error"' in (answer := answer_of(client))]
    assert given_up.count(b'"result"') == 1
    assert b'{"index":1,"error":' in given_up
    assert b'"body_too_slow"' in given_up


def test_a_body_that_moves_is_not_given_up_for_another() -> None:
    """Where all of them send, the newcomer is refused; where one keeps still, that one gives way, and nobody else."""

    async def bodies() -> None:
        room = UploadSlots(max_bodies=2)
        queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(2)]

        async def read(queue: asyncio.Queue[Any]) -> int:
            with room.hold(RequestBody(queue.get)) as body:
                while not body.complete:
                    await body.receive()
                return body.bytes

        moving, still = (asyncio.create_task(read(queue)) for queue in queues)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded), room.hold(RequestBody(queues[0].get)):
            pass
        for _ in range(15):
            await asyncio.sleep(request_body.PATIENCE_S / 10)
            queues[0].put_nowait({"type": "http.request", "body": b"abc", "more_body": True})
        await asyncio.sleep(0.01)
        with room.hold(RequestBody(queues[0].get)):
            assert len(room) == 2
            with pytest.raises(BodyTooSlow):
                await still
        queues[0].put_nowait({"type": "http.request", "body": b"", "more_body": False})
        assert await moving == 45
        assert len(room) == 0

    asyncio.run(bodies())


def test_room_is_made_at_the_moment_of_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy loop comes to both in one turn: the newcomer is let in, and hears nothing of it."""
    monkeypatch.setattr(request_body, "PATIENCE_S", 0.01)

    async def never() -> Any:
        await asyncio.sleep(100)

    async def main() -> tuple[str, ...]:
        bodies = UploadSlots(max_bodies=1)
        heard: list[str] = []

        async def first() -> None:
            with pytest.raises(BodyTooSlow), bodies.hold(RequestBody(never), deadline_s=0.1) as body:
                await body.receive()

        def second() -> None:
            with bodies.hold(RequestBody(never)):
                heard.append("let in")

        waiting = asyncio.create_task(first())
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.05 + 1e-3, second)
        time.sleep(0.2)
        await waiting
        return tuple(heard)

    assert asyncio.run(main()) == ("let in",)


def test_an_answer_is_sent_as_it_is_taken() -> None:
    async def main() -> tuple[list[Any], list[Any]]:
        taken: list[Any] = []

        async def send(message: Any) -> None:
            taken.append(message)

        async def stuck(message: Any) -> None:
            unread.append(message)
            if len(unread) == 3:
                await asyncio.sleep(100)

        unread: list[Any] = []
        answer = InPieces(b"x" * 150_000)
        scope = {"type": "http", "path": "/x"}
        await answer(scope, send, send)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await answer(scope, send, stuck)
        return taken, unread

    taken, unread = asyncio.run(main())
    assert [len(each.get("body", b"")) for each in taken] == [0, 65_536, 65_536, 18_928]
    assert [each.get("more_body") for each in taken] == [None, True, True, False]
    assert len(unread) == 3


def test_heads_are_bounded(served: Any) -> None:
    """A header without an end is refused long before it could fill the memory."""
    sent = 0
    with connect(served.url, timeout=60) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
        with suppress(ConnectionError):
            while sent < 64 * MIB:
                client.sendall(b"x" * 65_536)
                sent += 65_536
    assert sent < 32 * MIB  # what the kernel's buffers hold, and no more
    assert served.http.get("/healthz", headers={"X": "x" * 60_000}).status_code == 200
