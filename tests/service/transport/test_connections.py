"""What a connection may cost, whatever its client sends or does not read: promises 31 and 33."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.service.transport.keys import Scope, make_key
from wire import connect, npy, rest_of, until

Float32 = NDArray[np.float32]
MIB = 1 << 20


def post(path: str, body: bytes, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/octet-stream", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


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


def test_memory_is_bounded_whatever_is_pipelined(serve: Any, script: Any) -> None:
    """Promise 31 in a few seconds; `benchmarks/connections.py` has the minutes."""
    server = serve(api_keys=make_key("one", Scope.READ)[1].line)
    connections, memory_bytes = script("connections"), script("served").memory_bytes
    request = b"GET /v1/gallery HTTP/1.1\r\na:\r\n\r\n"
    connections.pipeline(httpx.URL(server.url), request, seconds=0.5)
    before = memory_bytes(os.getpid())
    answered = connections.pipeline(httpx.URL(server.url), request, seconds=4)
    assert memory_bytes(os.getpid()) < before + 50e6
    assert answered > 100_000


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


def test_half_a_request_of_a_client_that_sends_no_more(served: Any) -> None:
    for half in (b"GET /healthz HT", post("/v1/search", bytes(1000))[:-1]):
        with connect(served.url, timeout=60) as client:
            client.sendall(half)
            client.shutdown(socket.SHUT_WR)
            assert rest_of(client) == b""
