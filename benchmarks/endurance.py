"""A server after thousands of requests of every kind: its memory, descriptors and threads, before and after.

    python benchmarks/endurance.py [--count 10000] [--warming 1000]

Of eight requests two are stacks (one of them streamed), two are single gathers in a form, and one each is a search, a
gather that is refused, a model that does not exist, and a client that leaves in the middle of its upload.
"""

from __future__ import annotations

import argparse
import socket
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from served import memory_bytes, served

from seisbind.model.ground.families import mixed
from seisbind.service.engine.engine import canary_gather
from seisbind.service.formats.npy import npy

Float32 = NDArray[np.float32]
RAW = {"Content-Type": "application/octet-stream"}
MODELS = 200


def left_behind(url: httpx.URL, body: bytes) -> None:
    """A client that sends half of what it announced, and leaves."""
    with socket.create_connection((url.host, url.port or 80)) as client:
        client.sendall(
            b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body[: len(body) // 2]
        )


def ask(http: httpx.Client, gathers: Float32, velocity: Float32, count: int) -> None:
    """Send ``count`` requests, each of which has to be answered as it should be.

    Args:
        gathers: ``(3, shot, time, receiver)``.
        velocity: ``(depth, x)``, m/s.
    """
    one, stack, map_ = npy(gathers[0]), npy(gathers), npy(velocity)
    bad = npy(np.full_like(gathers[0], 3.0))
    for number in range(count):
        expected, found = 200, 200
        match number % 8:
            case 0:
                found = http.post("/v1/retrieve", content=stack, headers=RAW).status_code
            case 1:
                expected, found = 422, http.post("/v1/retrieve", content=bad, headers=RAW).status_code
            case 2:
                found = http.post("/v1/search", content=map_, headers=RAW).status_code
            case 3:
                expected, found = 3, http.post("/v1/retrieve/stream", content=stack, headers=RAW).text.count('"result"')
            case 4:
                left_behind(http.base_url, one)
            case 5:
                expected, found = 404, http.get("/v1/models/none").status_code
            case _:
                found = http.post("/v1/retrieve", files={"file": one}).status_code
        if found != expected:
            raise RuntimeError(f"Request {number} was answered {found}; {expected} is right.")


def state(pid: int) -> tuple[int, int, int]:
    """Resident memory in bytes, open descriptors, threads."""
    process = Path(f"/proc/{pid}")
    return memory_bytes(pid), len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="requests after the warming")
    parser.add_argument("--warming", type=int, default=1000, help="requests before the first look")
    arguments = parser.parse_args()
    noise = np.random.default_rng(0).standard_normal((3, 5, 1000, 70)).astype(np.float32)
    gathers, velocity = canary_gather() + np.float32(0.02) * noise, mixed(1, seed=1)[0][0]
    with served(MODELS) as (url, pid), httpx.Client(base_url=url, timeout=120) as http:
        ask(http, gathers, velocity, arguments.warming)
        first = state(pid)
        print(f"{'requests':>10}{'memory, MB':>12}{'of the first':>14}{'descriptors':>13}{'threads':>9}")
        start = time.monotonic()
        for part in range(11):
            if part:
                ask(http, gathers, velocity, arguments.count // 10)
            memory, descriptors, threads = state(pid)
            asked = part * (arguments.count // 10)
            ratio = memory / first[0]
            print(f"{asked:>10}{memory / 1e6:>12.1f}{ratio:>14.3f}{descriptors:>13}{threads:>9}", flush=True)
        print(f"{time.monotonic() - start:.0f} s")
    sys.exit(memory > 1.05 * first[0] or descriptors > first[1] + 2 or threads > first[2] + 2)


if __name__ == "__main__":
    main()
