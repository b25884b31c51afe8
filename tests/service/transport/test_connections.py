"""What a connection may cost, whatever its client sends or does not read: promises 31 and 33."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import re
import signal
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.service.transport.chunks import CHUNKS_AT_ONCE, Chunks
from seisbind.service.transport.connection import Connection
from seisbind.service.transport.keys import Scope, make_key
from seisbind.service.transport.protocol import PARTS_A_TURN, Protocol
from wire import connect, npy, rest_of, until

Float32 = NDArray[np.float32]
MIB = 1 << 20


def post(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/octet-stream", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def chunked(pieces: list[bytes], trailers: bytes = b"") -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"


def was_reset(client: socket.socket) -> bool:
    return client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET


def large_answer(gathers: Float32) -> bytes:
    """A request for some 8 MB, more than all sockets hold."""
    stack = npy(gathers[[0] * 7, :, ::4].astype(np.float16))
    return post("/v1/retrieve?top_k=60&dt_s=0.004", stack, "Accept: application/x-npz")


# One at a time


def test_pipelined_requests_are_answered_in_order(served: Any, models: tuple[Float32, list[str]]) -> None:
    """Of every kind, cut anywhere: a head may begin and end wherever a read does, and is no longer for it."""
    velocity = npy(models[0][0])
    kinds = [
        lambda own: f"GET /healthz HTTP/1.1\r\n{own}\r\n\r\n".encode(),
        lambda own: f"\r\n\r\nGET /v1/gallery HTTP/1.1\r\n{own}\r\n\r\n".encode(),
        lambda own: f"GET /healthz HTTP/1.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n{own}\r\n\r\n".encode(),
        lambda own: post("/v1/search", velocity, own),
        lambda own: post("/nowhere", b"\r\n\r\nGET /x HTTP/1.1\r\n\r\n", own),
        lambda own: (
            (
                f"POST /v1/search HTTP/1.1\r\nContent-Type: application/octet-stream\r\n{own}\r\n"
                f"Transfer-Encoding: chunked\r\n\r\n{len(velocity):x}\r\n"
            ).encode()
            + velocity
            + b"\r\n0\r\nA: b\r\n\r\n"
        ),
    ]
    rng = random.Random(0)
    count = 1500
    sent = b"".join(kinds[rng.choice([0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5])](f"X-Request-ID: r-{i}") for i in range(count))
    sent += b"GET /healthz HTTP/1.1\r\nX-Request-ID: last\r\nConnection: close\r\n\r\n"
    answer = bytearray()
    with connect(served.url, timeout=60) as client:
        client.setblocking(False)
        while sent:
            with suppress(BlockingIOError):
                sent = sent[client.send(sent[: rng.choice([1, 2, 3, 50, 1000, 30_000])]) :]
            with suppress(BlockingIOError):
                answer += client.recv(MIB)
        client.setblocking(True)
        client.settimeout(60)
        answer += rest_of(client)
    assert re.findall(rb"x-request-id: (\S+)\r\n", answer) == [*(b"r-%d" % i for i in range(count)), b"last"]
    assert set(re.findall(rb"HTTP/1.1 (\d+) ", answer)) == {b"200", b"404"}


OFFERS = [
    "Connection: Upgrade\r\nUpgrade: websocket",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA",  # curl --http2
    "upgrade:h2c\r\nConnection:keep-alive,Upgrade",
]


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("framing", ["fixed", "chunked"])
@pytest.mark.parametrize("reads", [1, 2])
def test_a_body_behind_an_offer_to_upgrade(
    served: Any, models: tuple[Float32, list[str]], offer: str, framing: str, reads: int
) -> None:
    """It is the body of that request, and never the next request."""
    hidden = b"GET /hidden HTTP/1.1\r\nX-Request-ID: hidden\r\n\r\n"
    sent = []
    for path, body in (("/healthz", hidden), ("/v1/search", npy(models[0][0]))):
        head = f"POST {path} HTTP/1.1\r\nContent-Type: application/octet-stream\r\n{offer}\r\nX-Request-ID: {path}\r\n"
        length = f"Content-Length: {len(body)}" if framing == "fixed" else "Transfer-Encoding: chunked"
        sent += [f"{head}{length}\r\n\r\n".encode(), body if framing == "fixed" else chunked([body[:7], body[7:]])]
    with connect(served.url, timeout=60) as client:
        for part in sent if reads == 2 else [b"".join(sent)]:
            client.sendall(part)
            time.sleep(0.05 if reads == 2 else 0)  # a read of its own
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-Request-ID: last\r\nConnection: close\r\n\r\n")
        answer = rest_of(client)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"405", b"200", b"200"]
    assert re.findall(rb"x-request-id: (\S+)\r\n", answer)[-1] == b"last"
    assert b"hidden" not in answer


def test_connect_is_refused_with_all_that_follows_it(served: Any) -> None:
    """Its body is no part of it to the parser."""
    with connect(served.url, timeout=60) as client:
        client.sendall(b"CONNECT x:80 HTTP/1.1\r\nContent-Length: 40\r\n\r\nGET /healthz HTTP/1.1\r\n\r\n")
        answer = rest_of(client)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"400"]


def test_chunks_end_where_the_parser_ends_them() -> None:
    """However they are cut into reads: all chunks are found, and never a byte of what follows their last line."""
    rng = random.Random(0)
    for _ in range(300):
        lines = []
        for _ in range(rng.randrange(150)):
            piece = rng.choice([b"\r\n\r\n", b"0\r\n\r\n", b"x"]) * rng.randrange(1, 20)
            extension = rng.choice([b"", b";a=b", b';a="0;"'])
            lines += [b"0" * rng.randrange(3) + b"%X" % len(piece) + extension, piece]
        sent = b"\r\n".join([*lines, b"000;a", b""])
        after = b"\r\nGET / HTTP/1.1\r\n\r\n"
        chunks, held, at = Chunks(), b"", 0
        while not chunks.ended:
            if at == len(held):
                held += (sent + after)[at : at + rng.choice([1, 2, 7, 1000])]
            at = chunks.reach(held, at)
        assert at == len(sent)


def test_what_looks_like_an_end_inside_a_chunk_costs_nothing(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of empty lines is parsed in as many parts as reads."""
    parts, feed = [0], Protocol._feed

    def counted(self: Protocol) -> None:
        parts[0] += 1
        feed(self)

    monkeypatch.setattr(Protocol, "_feed", counted)
    body = chunked([b"\r\n\r\n" * 16_384] * 4)
    with connect(served.url, timeout=60) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        client.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+) ", rest_of(client)) == [b"404", b"200"]
    assert parts[0] < 500


def test_a_turn_of_the_event_loop_parses_little(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever connections send: one that has more to parse waits for its turn, and one of them has it at a time."""
    bodies, most, turns, most_turns = [0], [0], [0], [0]
    parse, take_turn, on_body = Protocol._parse, Protocol._take_turn, Protocol.on_body

    def counted_parse(self: Protocol) -> None:
        bodies[0] = 0
        parse(self)
        most[0] = max(most[0], bodies[0])

    def counted_turn(self: Protocol) -> None:
        turns[0] += 1
        most_turns[0] = max(most_turns[0], turns[0])
        self.loop.call_soon(turns.__setitem__, 0, 0)  # before the next, which is called soon after
        take_turn(self)

    def counted_body(self: Protocol, body: bytes) -> None:
        bodies[0] += 1
        on_body(self, body)

    monkeypatch.setattr(Protocol, "_parse", counted_parse)
    monkeypatch.setattr(Protocol, "_take_turn", counted_turn)
    monkeypatch.setattr(Protocol, "on_body", counted_body)
    sent = b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked([b"x"] * 20_000)
    sent += b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n"
    with ExitStack() as opened:
        clients = [opened.enter_context(connect(served.url, timeout=60)) for _ in range(5)]
        for client in clients:
            client.sendall(sent)
        for client in clients:
            assert re.findall(rb"HTTP/1.1 (\d+) ", rest_of(client)) == [b"404", b"200"]
    assert CHUNKS_AT_ONCE / 2 < most[0] <= PARTS_A_TURN * CHUNKS_AT_ONCE
    assert most_turns[0] == 1


def test_a_second_request_in_the_part_of_the_first_is_refused(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should parser and server ever differ about the end of a body."""
    monkeypatch.setattr(Chunks, "reach", lambda self, held, at: len(held))
    with connect(served.url, timeout=60) as client:
        head = b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.sendall(head + chunked([b"x"]) + b"GET /healthz HTTP/1.1\r\n\r\n")
        answer = rest_of(client)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"400"]


@pytest.mark.parametrize(("kind", "count"), [("refused", 1), ("search", 1), ("unread", 8)])
def test_memory_is_bounded_whatever_is_pipelined(
    serve: Any, script: Any, models: tuple[Float32, list[str]], kind: str, count: int
) -> None:
    """Promise 31 in a few seconds; `benchmarks/connections.py` has the minutes."""
    server = serve(**({"api_keys": make_key("one", Scope.READ)[1].line} if kind == "refused" else {}))
    connections, memory_bytes = script("connections"), script("served").memory_bytes
    request = b"GET /v1/gallery HTTP/1.1\r\na:\r\n\r\n" if kind == "refused" else post("/v1/search", npy(models[0][0]))
    url = httpx.URL(server.url)
    connections.pipeline(url, request, seconds=0.5, count=count)
    before = memory_bytes(os.getpid())
    answered = connections.pipeline(url, request, seconds=3, count=count, read=kind != "unread")
    assert memory_bytes(os.getpid()) < before + 50e6
    assert answered > 100_000 or kind == "unread"


def test_a_head_has_64_kib_at_most(served: Any) -> None:
    """However it comes, in one read or in many."""
    with connect(served.url, timeout=60) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 66_000 + b"\r\n\r\n")
        answer = rest_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"has more than 65536 bytes" in answer


def test_trailers_without_an_end(served: Any) -> None:
    """They are no part of the body, which has bounds of its own."""
    sent = 0
    with connect(served.url, timeout=60) as client, pytest.raises(ConnectionError):
        client.sendall(b"POST /v1/search HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n")
        while sent < 64 * MIB:
            client.sendall(b"a: b\r\n" * 10_000)
            sent += 60_000
    assert sent < 32 * MIB


def test_bytes_that_are_no_chunk_in_the_middle_of_an_answer(served: Any, gathers: Float32) -> None:
    """The answer is cut off; a second one inside it would be read as a part of it."""
    stack = npy(gathers[:2])
    head = "POST /v1/retrieve/stream HTTP/1.1\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked"
    first = stack[: len(stack) * 2 // 3]
    with connect(served.url, timeout=60) as client:
        client.sendall(f"{head}\r\n\r\n{len(first):x}\r\n".encode() + first + b"\r\n")
        answer = b""
        while b'"result"' not in answer:
            answer += client.recv(65_536)
        client.sendall(b"no chunk\r\n")
        with suppress(ConnectionResetError):
            answer += rest_of(client)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not answer.endswith(b"0\r\n\r\n")


# Clients that keep still


def test_empty_lines_do_not_keep_a_connection_open(served: Any) -> None:
    with connect(served.url, timeout=60) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert client.recv(65_536)
        client.sendall(b"\r\n")
        assert b"HTTP/1.1" not in rest_of(client)


def test_the_rest_of_a_refused_body_is_not_waited_for(serve: Any) -> None:
    server = serve(body_deadline_s=1)
    with connect(server.url, timeout=60) as client:
        client.sendall(post("/nowhere", bytes(1000))[:-900])
        assert client.recv(65_536).startswith(b"HTTP/1.1 404 ")
        client.sendall(b"x")
        assert b"HTTP/1.1" not in rest_of(client)


def test_a_client_that_takes_nothing_is_disconnected(serve: Any, gathers: Float32) -> None:
    """Promise 33: its socket is closed at the deadline, its place is free, and what waited for it is let go of."""
    server = serve(body_deadline_s=1, max_concurrency=1)
    with connect(server.url, receive_bytes=4096, timeout=60) as client:
        client.sendall(large_answer(gathers))
        until(lambda: was_reset(client))
        raw = {"Content-Type": "application/octet-stream"}
        until(lambda: server.http.post("/v1/retrieve", content=npy(gathers[0]), headers=raw).status_code == 200)


def test_answers_that_nobody_takes_do_not_outlive_their_connection(serve: Any) -> None:
    """Promise 33 where no answer is under way any more: those before it wait to be sent while it is being closed."""
    server = serve(body_deadline_s=1)
    asked = b"GET /openapi.json HTTP/1.1\r\n\r\n"
    with connect(server.url, receive_bytes=4096, timeout=60) as client:
        client.sendall(asked * 200)
        until(lambda: was_reset(client))


@pytest.mark.long
def test_sigterm_does_not_wait_for_clients_that_take_nothing(spawn: Any, gathers: Float32) -> None:
    """A client that reads, however slowly, gets its answer whole. The time for that is 30 s, and is not taken."""
    with spawn() as (server, url), ExitStack() as opened:
        stuck = [opened.enter_context(connect(url, receive_bytes=4096, timeout=60)) for _ in range(4)]
        reader = opened.enter_context(connect(url, receive_bytes=65_536, timeout=60))
        for client in (*stuck, reader):
            client.sendall(large_answer(gathers))
        for client in (*stuck, reader):
            client.recv(1, socket.MSG_PEEK)  # its answer has begun
        server.send_signal(signal.SIGTERM)
        answer = b""
        while received := reader.recv(65_536):
            answer += received
            time.sleep(0.01)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}\r\n".encode() in head
        assert server.wait(20) == 0


# Answers that arrive


def test_a_refusal_arrives_where_the_client_asks_to_close(serve: Any, busy: Any, gathers: Float32) -> None:
    """Its body is still coming, and a socket that is closed on it takes back the answer."""
    server = serve(max_concurrency=1)
    sent = post("/v1/retrieve", npy(gathers[0]), "Connection: close")
    with busy(server), connect(server.url, timeout=60) as first:
        first.sendall(post("/v1/retrieve", npy(gathers[0])))
        until(lambda: server.serving.batches.waiting == 1)
        for _ in range(20):
            with connect(server.url, timeout=60) as client:
                client.sendall(sent)
                answer = rest_of(client)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert answer.endswith(b"}")


@pytest.mark.parametrize("path", ["/v1/retrieve", "/v1/retrieve/stream"])
def test_a_client_that_closes_its_sending_side_is_answered(serve: Any, busy: Any, gathers: Float32, path: str) -> None:
    server = serve()
    with connect(server.url, timeout=60) as client:
        with busy(server):
            client.sendall(post(path, npy(gathers[0])))
            client.shutdown(socket.SHUT_WR)
            until(lambda: server.serving.batches.waiting == 1)
            time.sleep(0.3)  # several looks at whether it has left
            assert server.serving.batches.waiting == 1
        answer = rest_of(client)
    interim, _, final = answer.rpartition(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert final.startswith(b"HTTP/1.1 200 "), answer
    assert interim.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == b""
    assert b'"retrieval_confidence"' in final or b'"result' in final


def test_a_client_that_leaves_is_told_from_one_that_waits(serve: Any, busy: Any, gathers: Float32) -> None:
    """Promise 26 where the whole request has come: closed altogether, not only the sending side."""
    server = serve()
    with busy(server):
        with connect(server.url, timeout=60) as client:
            client.sendall(post("/v1/retrieve", npy(gathers[0])))
            until(lambda: server.serving.batches.waiting == 1)
            client.shutdown(socket.SHUT_WR)
            time.sleep(0.3)
            assert server.serving.batches.waiting == 1
        until(lambda: server.serving.batches.waiting == 0)


@pytest.mark.parametrize("behind", [b"G", b"GET /healthz HTTP/1.1\r\n\r\n" * 100])
def test_a_client_that_pipelines_and_leaves_frees_its_place(
    serve: Any, busy: Any, gathers: Float32, behind: bytes
) -> None:
    """Promise 26, whatever it sent behind the request that is in work."""
    server = serve()
    with busy(server):
        with connect(server.url, timeout=60) as client:
            client.sendall(post("/v1/retrieve", npy(gathers[0])) + behind)
            until(lambda: server.serving.batches.waiting == 1)
        until(lambda: server.serving.batches.waiting == 0)


def test_all_that_was_pipelined_before_the_end_is_answered(serve: Any, busy: Any, gathers: Float32) -> None:
    """A client that closes its sending side gets every answer; half a request behind them has none."""
    server = serve()
    with connect(server.url, timeout=60) as client:
        with busy(server):
            client.sendall(post("/v1/retrieve", npy(gathers[0])) + b"GET /healthz HTTP/1.1\r\n\r\n" * 3 + b"GET /hea")
            client.shutdown(socket.SHUT_WR)
            until(lambda: server.serving.batches.waiting == 1)
            time.sleep(0.3)  # several looks at whether it has left
        answer = rest_of(client)
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")) == [b"200"] * 4


class Left(asyncio.Transport):
    """A connection whose client answered the last write with a reset."""

    closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def resume_reading(self) -> None:
        pass


def test_closing_a_connection_whose_client_has_left() -> None:
    async def main() -> bool:
        transport = Left()
        connection = Connection(transport, deadline_s=1, max_unread_bytes=1, receiving=lambda: True)
        connection.close()
        connection.lost()
        return transport.closed

    assert asyncio.run(main())


@pytest.mark.parametrize("reads", [0, 1])
@pytest.mark.parametrize("behind", [1, 30_000])
def test_clients_that_close_early_leave_no_socket(
    served: Any, caplog: pytest.LogCaptureFixture, reads: int, behind: int
) -> None:
    """Before their answer or on its first byte, with bytes behind their request that nobody reads."""

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    served.http.get("/healthz")
    before = descriptors()
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
    try:
        for _ in range(300):
            with connect(served.url, timeout=60) as client, suppress(ConnectionError):
                client.sendall(b"GET /healthz\r\n\r\n" + b"garbage\r\n\r\n" * behind)
                client.recv(reads)
        until(lambda: descriptors() <= before)
    finally:
        for logger in loggers:
            logger.removeHandler(caplog.handler)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_half_a_request_of_a_client_that_sends_no_more(served: Any) -> None:
    for half in (b"GET /healthz HT", post("/v1/search", bytes(1000))[:-1]):
        with connect(served.url, timeout=60) as client:
            client.sendall(half)
            client.shutdown(socket.SHUT_WR)
            assert rest_of(client) == b""
