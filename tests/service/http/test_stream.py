"""POST /v1/retrieve/stream: order, errors a gather, constant memory, clients that send first and clients that leave."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from seisbind.service.engine.bodies import retrieval_body
from seisbind.service.engine.engine import Engine
from seisbind.service.http.stream import IN_FLIGHT
from seisbind.service.schemas import PARTS, Problem, StreamAnswer
from wire import RAW, connect, npy, peak_bytes, until

Float32 = NDArray[np.float32]
PATH = "/v1/retrieve/stream"
MIB = 1 << 20


def header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    npy_format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def endless(gather: NDArray[Any], count: int) -> Iterator[bytes]:
    """A stack of ``count`` times ``gather``, made while it is sent."""
    yield header((count, *gather.shape), gather.dtype.str)
    content = gather.tobytes()
    for _ in range(count):
        yield content


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


@pytest.fixture(scope="module")
def short(gathers: Float32) -> NDArray[np.float16]:
    """One gather in 52 kB: 0.6 s in samples of 8 ms."""
    return (gathers[0][:, :600:8] / np.abs(gathers[0]).max()).astype(np.float16)


def check(found: list[dict[str, Any]], engine: Engine, stack: Float32, bad: dict[int, str]) -> None:
    """A line a gather, in order: what the engine says of it alone, or its error."""
    assert [line["index"] for line in found] == list(range(len(stack)))
    for line, gather in zip(found, stack, strict=True):
        if line["index"] in bad:
            assert set(line) == {"index", "error"}
            problem = Problem.model_validate(line["error"])
            assert (problem.code, problem.status, problem.instance) == (bad[line["index"]], 422, PATH)
            continue
        answer = StreamAnswer.model_validate(line)
        expected = retrieval_body(engine.retrieve(gather, top_k=3)[0], PARTS)
        assert [m.model_id for m in answer.result.matches] == [m.model_id for m in expected.matches]
        for got, wanted in zip(answer.result.matches, expected.matches, strict=True):
            assert got.similarity == pytest.approx(wanted.similarity, abs=1e-5)
        assert answer.result.warnings == expected.warnings
        assert answer.gallery.models == 60
        assert answer.weights.fingerprint == engine.gallery.fingerprint


@pytest.fixture(scope="module")
def faulty(gathers: Float32) -> tuple[Float32, dict[int, str]]:
    """``(24, 5, 1000, 70)``, more than `max_gathers` and than `IN_FLIGHT`, three of them unusable."""
    stack = np.concatenate([gathers[i % 3][None] * (1 + i) for i in range(24)])
    stack[3, 1, 5, 7] = np.nan
    stack[7] = 1.0
    stack[23, 0, 0, 0] = np.inf
    return stack, dict.fromkeys((3, 7, 23), "invalid_gather")


def test_a_line_a_gather_in_order_and_errors_alone(
    served: Any, engine: Engine, faulty: tuple[Float32, dict[int, str]]
) -> None:
    stack, bad = faulty
    assert len(stack) > max(IN_FLIGHT, served.settings.max_gathers)
    assert stack.nbytes > served.settings.max_body_bytes
    check(lines(served.http.post(PATH, content=npy(stack), params={"top_k": 3}, headers=RAW)), engine, stack, bad)
    form = served.http.post(PATH, files={"file": npy(stack)}, data={"top_k": 3})
    check(lines(form), engine, stack, bad)


def test_the_first_gather_may_be_the_bad_one(served: Any, engine: Engine, faulty: tuple[Float32, Any]) -> None:
    stack = faulty[0][3:6]
    found = lines(served.http.post(PATH, content=npy(stack), params={"top_k": 3}, headers=RAW))
    check(found, engine, stack, {0: "invalid_gather"})


def test_one_gather_without_a_stack_axis(served: Any, engine: Engine, gathers: Float32) -> None:
    found = lines(served.http.post(PATH, content=npy(gathers[0]), params={"top_k": 3}, headers=RAW))
    check(found, engine, gathers[:1], {})


def test_fewer_matches_are_said_to_be_fewer(served: Any, gathers: Float32) -> None:
    """Promise 14, in both calls: 60 models are all there are, and no line is padded."""
    for path in (PATH, "/v1/retrieve"):
        response = served.http.post(path, content=npy(gathers[0]), params={"top_k": 70}, headers=RAW)
        found = json.loads(response.text)
        result = found["result"] if path == PATH else found["results"][0]
        ids = [match["model_id"] for match in result["matches"]]
        assert len(set(ids)) == len(ids) == 60
        assert all(model_id.startswith("v-") for model_id in ids)
        assert [match["rank"] for match in result["matches"]] == list(range(1, 61))
        assert [warning["code"] for warning in result["warnings"]] == ["fewer_matches"]
        assert "NaN" not in response.text


def test_curl_sends_a_file(served: Any, engine: Engine, faulty: tuple[Float32, Any], tmp_path: Path) -> None:
    """Which reads while it sends, and asks whether it may (Expect: 100-continue)."""
    stack, bad = faulty
    (tmp_path / "stack.npy").write_bytes(npy(stack))
    for sending in (
        [
            "-X",
            "POST",
            "-H",
            "Content-Type: application/octet-stream",
            "-T",
            "stack.npy",
            f"{served.url}{PATH}?top_k=3",
        ],
        ["-F", "top_k=3", "-F", "file=@stack.npy", f"{served.url}{PATH}"],
    ):
        done = subprocess.run(["curl", "-sS", "--fail-with-body", *sending], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr
        check([json.loads(line) for line in done.stdout.splitlines()], engine, stack, bad)


def test_memory_does_not_grow_with_the_stack(serve: Any, gathers: Float32) -> None:
    """40 gathers in 54 MiB, by a client that reads nothing before it has sent everything.

    Vacuity: the same stack in one request is all in memory at once.
    """
    server, count = serve(max_body_bytes=64 * MIB), 40
    found: list[Any] = []

    def stream() -> None:
        body = endless(gathers[0], count)
        found.extend(lines(server.http.post(PATH, content=body, params={"top_k": 60}, headers=RAW)))

    def whole() -> None:
        body = endless(gathers[0], count)
        assert server.http.post("/v1/retrieve", content=body, headers=RAW).status_code == 200

    assert peak_bytes(stream) < 30 * MIB  # 16 prepared gathers 6 MB, as sent 1.4 MB each, lines 40 kB each
    assert [line["index"] for line in found] == list(range(count))
    assert peak_bytes(whole) > 54 * MIB


def test_answers_larger_than_every_buffer(serve: Any, short: NDArray[np.float16]) -> None:
    """12 MB of lines to a client that reads while it sends, though the server keeps only 64 kB of them."""
    server, count = serve(stream_buffer_bytes=65_536), 300
    head = (
        f"POST {PATH}?top_k=60&dt_s=0.008 HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        f"Content-Length: {len(header((count, *short.shape), '<f2')) + count * short.nbytes}\r\n\r\n"
    )
    with connect(server.url, timeout=60) as client:
        client.sendall(head.encode())
        answer = bytearray()
        client.setblocking(False)
        for part in endless(short, count):
            while part:
                try:
                    part = part[client.send(part) :]
                except BlockingIOError:
                    time.sleep(0.002)
                with suppress(BlockingIOError):
                    answer += client.recv(MIB)
        client.setblocking(True)
        while received := client.recv(MIB):
            answer += received
    assert len(answer) > 8 * MIB
    assert answer.count(b'\n{"index":') + answer.count(b'\r\n{"index":') >= count - 1
    assert answer.endswith(b"0\r\n\r\n")


def stack_head(count: int, gather: NDArray[Any], query: str) -> bytes:
    """A request for a stack, of whose body the npy header is sent; chunked."""
    start = header((count, *gather.shape), gather.dtype.str)
    return (
        f"POST {PATH}?{query} HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    ).encode() + chunk(start)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def test_a_client_that_never_reads_is_given_up(serve: Any, short: NDArray[np.float16]) -> None:
    """Once the outbox and all sockets are full, and after the deadline; its place is free again."""
    server = serve(stream_buffer_bytes=65_536, body_deadline_s=1, max_streams=1)
    address = httpx.URL(server.url)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(30)
        client.connect((address.host, address.port or 80))
        client.sendall(stack_head(10**6, short, "top_k=60&dt_s=0.008"))
        part, sent = chunk(short.tobytes()), 0
        with pytest.raises(ConnectionError):  # its socket is closed; it would be a TimeoutError if it were left open
            while sent < 10**6:
                client.sendall(part)
                sent += 1
        assert 0 < sent < 2000
        until(lambda: server.http.post(f"{PATH}?dt_s=0.008", content=npy(short), headers=RAW).status_code == 200)


def test_what_is_not_answered_yet_is_not_read(serve: Any, busy: Any, gathers: Float32) -> None:
    """Back-pressure: while the model thread is at something else, the client cannot send more than a bounded part."""
    server = serve(max_streams=1)
    part, sent = chunk(gathers[0].tobytes()), 0
    with busy(server), connect(server.url) as client:
        client.sendall(stack_head(200, gathers[0], "top_k=1"))
        client.settimeout(1.5)
        rest = part
        with pytest.raises(TimeoutError):
            while sent < 200 * len(part):
                taken = client.send(rest)
                sent += taken
                rest = rest[taken:] or part
        assert server.serving.batches.waiting <= IN_FLIGHT + 2
        assert sent < (IN_FLIGHT + 4) * len(part) + 16 * MIB  # and what lies in the sockets
    until(lambda: server.http.post(PATH, content=b"", headers=RAW).status_code != 429)  # its room is free


def test_a_stream_that_is_left_leaves_the_batch(serve: Any, busy: Any, short: NDArray[np.float16]) -> None:
    """Promise 26: its gathers are taken out while the model thread is still at something else."""
    server = serve()
    with busy(server):
        with connect(server.url) as client:
            client.sendall(stack_head(200, short, "dt_s=0.008"))
            for _ in range(5):
                client.sendall(chunk(short.tobytes()))
            until(lambda: server.serving.batches.waiting == 5)
        until(lambda: server.serving.batches.waiting == 0)


def test_a_stream_is_not_refused_where_the_queue_is_full_of_it(serve: Any, short: NDArray[np.float16]) -> None:
    server = serve(max_queue=1)
    found = lines(server.http.post(PATH, content=endless(short, 40), params={"dt_s": 0.008}, headers=RAW))
    assert [line["index"] for line in found if "result" in line] == list(range(40))


def test_a_stack_that_is_cut_off(served: Any, short: NDArray[np.float16]) -> None:
    def cut() -> Iterator[bytes]:
        yield header((50, *short.shape), "<f2")
        yield short.tobytes() * 4 + b"abc"

    found = lines(served.http.post(PATH, content=cut(), params={"dt_s": 0.008}, headers=RAW))
    assert [line["index"] for line in found] == [0, 1, 2, 3, 4]
    assert found[-1]["error"]["code"] == "malformed_upload"
    assert "4 of 50 gathers and 3 bytes" in found[-1]["error"]["detail"]


def test_more_than_the_header_states(served: Any, short: NDArray[np.float16]) -> None:
    def more() -> Iterator[bytes]:
        yield from endless(short, 2)
        yield b"x"

    found = lines(served.http.post(PATH, content=more(), params={"dt_s": 0.008}, headers=RAW))
    assert [line.get("error", {}).get("code") for line in found] == [None, None, "malformed_upload"]


def test_a_gather_that_never_comes(serve: Any, short: NDArray[np.float16]) -> None:
    """The deadline is a gather's, not the stack's: three gathers may take longer than one deadline."""
    server = serve(body_deadline_s=0.6)
    with connect(server.url, timeout=30) as client:
        client.sendall(stack_head(9, short, "dt_s=0.008"))
        for _ in range(3):
            time.sleep(0.35)
            client.sendall(chunk(short.tobytes()))
        answer = b""
        while received := client.recv(MIB):
            answer += received
    assert answer.count(b'"result":') == 3
    assert b'{"index":3,"error":' in answer
    assert b'"body_too_slow"' in answer


REFUSED: dict[str, tuple[str, int, Callable[[Float32], dict[str, Any]]]] = {
    "an npz": ("unsupported_format", 415, lambda g: {"content": b"PK" + bytes(2000), "headers": RAW}),
    "JSON": ("unsupported_format", 415, lambda g: {"json": {}}),
    "nothing": ("unsupported_format", 415, lambda g: {"content": b"", "headers": RAW}),
    "first axis fastest": (
        "malformed_upload",
        422,
        lambda g: {"content": npy(np.asfortranarray(g)), "headers": RAW},
    ),
    "two axes": ("malformed_upload", 422, lambda g: {"content": npy(g[0, 0]), "headers": RAW}),
    "another length": ("malformed_upload", 422, lambda g: {"content": npy(g)[:-1], "headers": RAW}),
    "no gather at all": ("malformed_upload", 422, lambda g: {"content": header((2, 5, 1000, 70)), "headers": RAW}),
    "complex": ("unsupported_dtype", 422, lambda g: {"content": npy(g.astype(np.complex64)), "headers": RAW}),
    "a gather over the cap": (
        "upload_too_large",
        413,
        lambda g: {"content": header((2, 64, 10_000, 70)) + bytes(2000), "headers": RAW},
    ),
    "receivers without positions": (
        "invalid_survey",
        422,
        lambda g: {"content": npy(np.ascontiguousarray(g[..., :60])), "headers": RAW},
    ),
    "an unknown field": ("invalid_request", 422, lambda g: {"content": npy(g), "params": {"k": 1}, "headers": RAW}),
    "top_k too large": ("invalid_query", 422, lambda g: {"content": npy(g), "params": {"top_k": 71}, "headers": RAW}),
    "a form without a file": ("malformed_upload", 422, lambda g: {"files": {"top_k": (None, "1")}}),
    "another file": ("malformed_upload", 422, lambda g: {"files": {"wrong": npy(g)}}),
    "a broken form": (
        "malformed_upload",
        422,
        lambda g: {"content": b"x" * 2000, "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
    ),
    "a form without boundary": (
        "malformed_upload",
        422,
        lambda g: {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ),
    "a huge field": ("malformed_upload", 422, lambda g: {"files": {"filter": (None, "x" * 40_000), "file": npy(g)}}),
    "many fields": (
        "malformed_upload",
        422,
        lambda g: {"files": {f"a{i}": (None, "x") for i in range(40)} | {"file": npy(g)}},
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_first_line(name: str, served: Any, gathers: Float32) -> None:
    code, status, make = REFUSED[name]
    response = served.http.post(PATH, **make(gathers))
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["connection"] == "close"


def test_a_field_after_the_file_is_said(served: Any, gathers: Float32) -> None:
    """It would come too late: the answers have begun."""
    files = [("file", npy(gathers)), ("top_k", (None, "1"))]
    found = lines(served.http.post(PATH, files=files))
    assert [line["index"] for line in found if "result" in line] == [0, 1, 2]
    assert "A part follows" in found[-1]["error"]["detail"]


def test_overload_is_said_before_the_stack_is_read(serve: Any, busy: Any, gathers: Float32) -> None:
    server = serve(max_queue=1)
    body = npy(gathers[0])
    head = (
        "POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {}\r\n\r\n"
    )
    with busy(server), connect(server.url) as waiting:
        waiting.sendall(head.format(len(body)).encode() + body)
        until(lambda: server.serving.batches.waiting == 1)
        with connect(server.url, timeout=30) as client:
            client.sendall(stack_head(9, gathers[0], "top_k=1"))
            answer = client.recv(MIB)
    assert answer.startswith(b"HTTP/1.1 429")
    assert b"retry-after: 1" in answer.lower()


def test_sigterm_ends_a_stream_where_it_is(spawn: Any, short: NDArray[np.float16]) -> None:
    """Promise 24: what was read is answered, the last line says from where to go on, and the answer has an end."""
    with spawn() as (server, url):
        address = httpx.URL(url)
        with connect(address, timeout=60) as client:
            client.sendall(stack_head(1000, short, "top_k=1&dt_s=0.008"))
            for _ in range(20):
                client.sendall(chunk(short.tobytes()))
            answer = client.recv(1)
            server.send_signal(signal.SIGTERM)
            while received := client.recv(MIB):
                answer += received
        assert server.wait(30) == 0
    assert answer.endswith(b"0\r\n\r\n")
    answered = answer.count(b'"result":')
    assert 1 <= answered <= 20
    assert b'{"index":%d,"error":' % answered in answer
    assert f"from {answered} on".encode() in answer
