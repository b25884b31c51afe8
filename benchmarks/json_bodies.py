"""Clients that post JSON which is slow to read: how long /healthz waits meanwhile, and what memory the server takes.

    python benchmarks/json_bodies.py [--clients 4] [--seconds 6]

Each kind of body is sent at the size of the largest upload (32 MiB) and at that of the largest JSON body (64 KiB), to
POST /v1/search by all clients at once, one request after another; then what forms, queries and paths can be filled
with. Clients give up after a minute.
Exit code 1 where /healthz took 100 ms or more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
from served import forget_peak, memory_bytes, served

MOST_MS = 100.0
LARGE, SMALL = 32 << 20, 64 << 10
EVERY_S = 0.005  # between two questions to /healthz


def filled(head: bytes, piece: Callable[[int], bytes], tail: bytes, size: int) -> bytes:
    """``head``, as many numbered pieces with commas between them as fit, ``tail``: at most ``size`` bytes."""
    pieces: list[bytes] = []
    left = size - len(head) - len(tail)
    while (left := left - len(one := piece(len(pieces))) - 1) >= 0:
        pieces.append(one)
    return head + b",".join(pieces) + tail


BODIES: dict[str, Callable[[int], bytes]] = {
    "nested": lambda size: filled(b'{"descriptors":[', lambda i: b"[" * 500 + b"]" * 500, b"]}", size),
    "many keys": lambda size: filled(b'{"descriptors":{', lambda i: b'"%x":[]' % i, b"}}", size),
    "small objects": lambda size: filled(b'{"descriptors":[', lambda i: b'{"":0}', b"]}", size),
    "long numbers": lambda size: filled(b'{"descriptors":[', lambda i: b"9" * 4000, b"]}", size),
    "long fractions": lambda size: filled(b'{"descriptors":[', lambda i: b"0." + b"9" * 4000, b"]}", size),
    "wrong list": lambda size: filled(
        b'{"descriptors":{"mean_velocity":2000},"include":[', lambda i: b"1", b"]}", size
    ),
    "unknown fields": lambda size: filled(b"{", lambda i: b'"%x":0' % i, b"}", size),
    "one string": lambda size: b'{"descriptors":"' + b"a" * (size - 18) + b'"}',
}


def form(boundary: bytes, parts: list[bytes]) -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


def part(name: bytes, content: bytes, more: bytes = b"") -> bytes:
    return b'Content-Disposition: form-data; name="%b"%b\r\n\r\n%b' % (name, more, content)


def requests(path: bytes, kind: bytes, body: bytes) -> bytes:
    return (
        b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (path, kind, len(body))
        + body
    )


def siblings() -> Iterator[tuple[str, bytes]]:
    """Requests that are large, or slow to read, in other places than a body of JSON."""
    kind, octets = b"multipart/form-data; boundary=b", b"application/octet-stream"
    file = b'; filename="a"'
    crs = b"\r\n-" * (LARGE // 3 - 1000)
    yield "form: small parts", requests(b"/v1/search", kind, form(b"b", [part(b"%x" % i, b"") for i in range(400_000)]))
    yield "form: false ends", requests(b"/v1/search", kind, form(b"b", [part(b"file", crs, file)]))
    head = part(b"file", b"", file + b"\r\nX: " + b"a" * (LARGE - 1000))
    yield "form: a long header", requests(b"/v1/search", kind, form(b"b", [head]))
    heads = part(b"file", b"", file + b"\r\nX: a" * (LARGE // 8))
    yield "form: many headers", requests(b"/v1/search", kind, form(b"b", [heads]))
    yield (
        "form: filter",
        requests(b"/v1/retrieve", kind, form(b"b", [part(b"filter", b"[" * 32_000), part(b"file", b"", file)])),
    )
    yield (
        "form: positions",
        requests(
            b"/v1/retrieve", kind, form(b"b", [part(b"receiver_x_m", b"1," * 14_999 + b"1"), part(b"file", b"", file)])
        ),
    )
    yield (
        "stream: small parts",
        requests(b"/v1/retrieve/stream", kind, form(b"b", [part(b"%x" % i, b"") for i in range(400_000)])),
    )
    yield "stream: false ends", requests(b"/v1/retrieve/stream", kind, form(b"b", [part(b"file", crs, file)]))
    query = b"&".join(b"%x=" % i for i in range(11_000))
    yield "query: many names", requests(b"/v1/search?" + query, octets, b"")
    tags = b",".join(b"%x" % i for i in range(1_900))
    yield "query: tags", requests(b"/v1/models?tags=" + tags, octets, b"")
    accept = b"Accept: " + b"," * 60_000
    yield "header: accept", requests(b"/v1/retrieve", octets + b"\r\n" + accept, b"")
    yield "header: content type", requests(b"/v1/search", kind + b";a=b" * 15_000, b"")
    yield "path: long", b"GET /v1/models/%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * 60_000)


def post(url: httpx.URL, request: bytes) -> str:
    """Send a request; its status, or how the connection ended."""
    with socket.create_connection((url.host, url.port or 80), timeout=60) as client:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, TimeoutError):
            client.sendall(request)  # refused meanwhile, what was answered may be there all the same
        try:
            head = client.recv(65536)
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "none"
        return head.split(b" ", 2)[1].decode() if head else "closed"


def attacked(url: httpx.URL, request: bytes, clients: int, seconds: float) -> tuple[list[float], Counter[str]]:
    """Milliseconds of each question to /healthz while ``clients`` sent ``request``, and how those were answered."""
    until = time.monotonic() + seconds
    answered: Counter[str] = Counter()

    def attack() -> None:
        while time.monotonic() < until:
            answered[post(url, request)] += 1

    threads = [threading.Thread(target=attack) for _ in range(clients)]
    waited = []
    with httpx.Client(base_url=url, timeout=120) as http:
        http.get("/healthz")
        for thread in threads:
            thread.start()
        while not waited or any(thread.is_alive() for thread in threads):
            start = time.perf_counter()
            http.get("/healthz")
            waited.append((time.perf_counter() - start) * 1e3)
            time.sleep(EVERY_S)
    for thread in threads:
        thread.join()
    return waited, answered


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each kind")
    parser.add_argument("--only", help="kinds with this in their name")
    arguments = parser.parse_args()
    missed = False
    with served(100, writable=True) as (url, pid):
        print(f"{'':<28}{'healthz, ms:':>14}{'p99':>8}{'max':>8}{'memory, MB':>12}{'more':>8}  answers", flush=True)

        def report(name: str, request: bytes | None) -> None:
            nonlocal missed
            if arguments.only and arguments.only not in name and request is not None:
                return
            before = memory_bytes(pid)
            forget_peak(pid)
            clients = arguments.clients if request is not None else 0
            if request is None:
                waited, answered = attacked(url, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", 1, 2.0)
            else:
                waited, answered = attacked(url, request, clients, arguments.seconds)
            waited.sort()
            peak = memory_bytes(pid, "VmHWM")
            missed |= waited[-1] >= MOST_MS
            print(
                f"{name:<28}{len(waited):>14}{waited[int(len(waited) * 0.99)]:>8.0f}{waited[-1]:>8.0f}"
                f"{peak / 1e6:>12.0f}{(peak - before) / 1e6:>+8.0f}  {json.dumps(answered)}",
                flush=True,
            )

        report("nothing else", None)
        for size, unit in ((LARGE, "32 MiB"), (SMALL, "64 KiB")):
            for name, body in BODIES.items():
                report(f"{name}, {unit}", requests(b"/v1/search", b"application/json", body(size)))
        for name, request in siblings():
            report(name, request)
    sys.exit(missed)


if __name__ == "__main__":
    main()
