"""After many requests of every kind a server is as it was: memory, descriptors, threads."""

from __future__ import annotations

import io
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from seisbind.service.serving import FILE_THREADS

Float32 = NDArray[np.float32]
RAW = {"Content-Type": "application/octet-stream"}
WARMING, MEASURED = 150, 450  # requests: caches, pools and the allocator have filled after the first part


def npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def left_behind(url: httpx.URL, body: bytes) -> None:
    """A client that sends half of what it announced, and leaves."""
    with socket.create_connection((url.host, url.port or 80)) as client:
        client.sendall(
            b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2]
        )


def ask(url: httpx.URL, http: httpx.Client, gathers: Float32, velocity: Float32, count: int) -> None:
    one, stack, map_ = npy(gathers[0]), npy(gathers), npy(velocity)
    bad = npy(np.full_like(gathers[0], 3.0))
    for number in range(count):
        match number % 8:
            case 0:
                assert http.post("/v1/retrieve", content=stack, headers=RAW).status_code == 200
            case 1:
                assert http.post("/v1/retrieve", content=bad, headers=RAW).status_code == 422
            case 2:
                assert http.post("/v1/search", content=map_, headers=RAW).status_code == 200
            case 3:
                assert http.post("/v1/retrieve/stream", content=stack, headers=RAW).text.count("\n") == 3
            case 4:
                left_behind(url, one)
            case 5:
                assert http.get("/v1/models/none").status_code == 404
            case _:
                assert http.post("/v1/retrieve", files={"file": one}).status_code == 200


def state(pid: int) -> tuple[int, int, int]:
    """Resident memory in bytes, open descriptors, threads."""
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    return pages * 4096, len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def test_nothing_grows(spawn: Any, models: tuple[Float32, list[str]], gathers: Float32) -> None:
    """Promise 25, on 600 requests of eight kinds."""
    with spawn() as (server, url), httpx.Client(base_url=url, timeout=60) as http:
        address = httpx.URL(url)
        ask(address, http, gathers, models[0][0], WARMING)
        memory, descriptors, threads = state(server.pid)
        ask(address, http, gathers, models[0][0], MEASURED)
        memory_after, descriptors_after, threads_after = state(server.pid)
    assert memory_after < 1.05 * memory
    assert descriptors_after <= descriptors + 2  # a connection more or less is being closed
    assert threads_after <= threads + FILE_THREADS  # a pool starts its threads when it first needs them
