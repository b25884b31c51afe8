"""What one connection can cost a server: memory while it pipelines, and a socket while its client does not read.

    python benchmarks/connections.py [--seconds 45] [--only pipelined,unread,refused,stuck,sigterm,reset,chunked]

Each against a server of its own, over a gallery of 200 models:

- pipelined: POST /v1/search with a velocity model (20 kB), one after the other without waiting, answers read
- unread: the same from eight connections that read nothing, for half as long
- refused: API keys are set and none is sent: GETs of 32 bytes, answers read
- stuck: clients that read nothing of a large answer, with a deadline of 3 s: how many descriptors are left
- sigterm: four of these, with the deadline of 30 s: how long the server takes to exit
- reset: clients with `Connection: close` that are refused (429) before their body was read: how many get the answer
- chunked: 20 clients that upload: CPU time of the server for 1 MiB with a length, in chunks of 64 KiB of zeros, and in
  such of empty lines; for 64 KiB in chunks of a byte

Promised (31, 33, 22): memory within 50 MB of what it was, during and after; no descriptor left; exit in under 5 s; an
answer for everyone; chunks of 64 KiB in twice the CPU time of a length. It exits with 1 where that is missed.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
from served import memory_bytes, serving

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.engine import canary_gather
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.formats.npy import npy
from seisbind.service.transport.keys import Scope, make_key

MODELS = 200
MOST_BYTES = 50e6
WARM_UP = 300  # requests before memory is looked at for the first time
STUCK = 24
STUCK_DEADLINE_S = 3.0
EXIT_S = 5.0
RESETS = 300
UPLOADS = 20  # clients at once
UPLOAD_S = 4.0
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def post(path: str, body: bytes, *more: str) -> bytes:
    """A request whole."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/octet-stream", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def search() -> bytes:
    return post("/v1/search", npy(mixed(1, seed=1)[0][0].astype(np.float32)))


def large_answer() -> bytes:
    """A request for 100 velocity models for each of four gathers, 8 MB."""
    gathers = np.repeat(canary_gather()[:, :, ::4], 4, axis=0).astype(np.float16)
    return post("/v1/retrieve?top_k=100&dt_s=0.004", npy(gathers), "Accept: application/x-npz")


def connect(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port or 80), timeout=60)


def connect_small(url: httpx.URL) -> socket.socket:
    """A connection that takes little without being read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(60)
    client.connect((url.host, url.port or 80))
    return client


def pipeline(url: httpx.URL, request: bytes, *, seconds: float, count: int = 1, read: bool = True) -> int:
    """Send ``request`` again and again from ``count`` connections; the bytes of answers that were read."""
    burst, answered = request * max(1, 65_536 // len(request)), 0
    with ExitStack() as opened, selectors.DefaultSelector() as ready:

        def open_one() -> None:
            client = opened.enter_context(connect(url))
            client.setblocking(False)
            events = selectors.EVENT_WRITE | (selectors.EVENT_READ if read else 0)
            ready.register(client, events, [burst])  # what is left to be sent of a burst

        for _ in range(count):
            open_one()
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            for key, events in ready.select(end - now):
                client, rest = key.fileobj, key.data
                assert isinstance(client, socket.socket)
                try:
                    if events & selectors.EVENT_READ:
                        answered += (came := len(client.recv(1 << 20)))
                        if not came:
                            raise ConnectionResetError
                    if events & selectors.EVENT_WRITE:
                        rest[0] = rest[0][client.send(rest[0]) :] or burst
                except BlockingIOError:
                    pass
                except OSError:  # given up by the server
                    ready.unregister(client)
                    client.close()
                    open_one()
    return answered


@contextmanager
def stuck(url: httpx.URL, count: int) -> Iterator[list[socket.socket]]:
    """Clients that ask for much and read nothing."""
    request = large_answer()
    with ExitStack() as opened:
        clients = [opened.enter_context(connect_small(url)) for _ in range(count)]
        for client in clients:
            client.sendall(request)
        for client in clients:
            client.recv(1, socket.MSG_PEEK)
        yield clients


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def has_exited(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def show(name: str, text: str, kept: bool) -> bool:
    print(f"{name:<44}{text:>52}  {'' if kept else 'MISSED'}", flush=True)
    return kept


def grown(gallery: Path, name: str, request: bytes, *, keys: str | None = None, **how: object) -> bool:
    """Memory of a server before, during and after a pipeline."""
    with serving(gallery, **({"api_keys": keys} if keys else {})) as (url, pid):
        with httpx.Client(base_url=url) as http:
            body = request.partition(b"\r\n\r\n")[2]
            for _ in range(WARM_UP):
                http.post("/v1/search", content=body, headers={"Content-Type": "application/octet-stream"})
        before = memory_bytes(pid)
        answered = pipeline(url, request, **how)  # type: ignore[arg-type]
        during = memory_bytes(pid)
        time.sleep(2)
        after = memory_bytes(pid)
    text = f"{before / 1e6:.0f}, {during / 1e6:.0f}, {after / 1e6:.0f} MB; {answered / 1e6:.1f} MB of answers"
    return show(f"{name}: before, after, after the close", text, max(during, after) - before < MOST_BYTES)


def pipelined(gallery: Path, seconds: float) -> bool:
    return grown(gallery, "pipelined", search(), seconds=seconds)


def unread(gallery: Path, seconds: float) -> bool:
    return grown(gallery, "unread", search(), seconds=seconds / 2, count=8, read=False)


def refused(gallery: Path, seconds: float) -> bool:
    key = make_key("benchmark", Scope.READ)[1].line
    return grown(gallery, "refused", b"GET /v1/gallery HTTP/1.1\r\na:\r\n\r\n", keys=key, seconds=seconds)


def sockets_left(gallery: Path, seconds: float) -> bool:
    with serving(gallery, body_deadline_s=STUCK_DEADLINE_S) as (url, pid):
        httpx.get(f"{url}/healthz", headers={"Connection": "close"})
        before = descriptors(pid)
        with stuck(url, STUCK):
            during = descriptors(pid)
            begin = time.monotonic()
            while descriptors(pid) > before and time.monotonic() < begin + 5 * STUCK_DEADLINE_S + 10:
                time.sleep(0.1)
            text = f"{before}, {during}, {descriptors(pid)} after {time.monotonic() - begin:.1f} s"
            left = descriptors(pid) - before
    return show(f"stuck: descriptors before, with {STUCK} clients, left", text, left <= 0)


def exit_time(gallery: Path, seconds: float) -> bool:
    with serving(gallery) as (url, pid), stuck(url, 4):
        os.kill(pid, signal.SIGTERM)
        begin = time.monotonic()
        while not has_exited(pid):
            time.sleep(0.02)
        took = time.monotonic() - begin
    return show("sigterm: exit with 4 of them", f"{took:.1f} s", took < EXIT_S)


def resets(gallery: Path, seconds: float) -> bool:
    request = post("/v1/retrieve?dt_s=0.004", npy(canary_gather()[0, :, ::4].astype(np.float16)), "Connection: close")
    found = {"429": 0, "reset": 0, "other": 0}
    with (
        serving(gallery, max_concurrency=1, body_deadline_s=120) as (url, _),
        stuck(url, 1),
    ):  # it has the only place, and keeps it
        for _ in range(RESETS):
            answer = b""
            with connect(url) as client:
                try:
                    with suppress(BrokenPipeError):
                        client.sendall(request)
                    while came := client.recv(65_536):
                        answer += came
                    found["429" if answer.startswith(b"HTTP/1.1 429") and answer.endswith(b"}") else "other"] += 1
                except ConnectionResetError:
                    found["reset"] += 1
    text = ", ".join(f"{name} {count}" for name, count in found.items())
    return show(f"reset: {RESETS} refusals, Connection: close", text, found["429"] == RESETS)


def in_chunks(piece: bytes, count: int) -> bytes:
    """A request whose body nobody reads, of ``count`` chunks."""
    head = b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n" % (len(piece), piece) * count + b"0\r\n\r\n"


def cpu_s(pid: int) -> float:
    """CPU time of a process so far, its own and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def upload_ms(gallery: Path, request: bytes) -> float:
    """CPU time of the server for each of many such requests."""
    with serving(gallery) as (url, pid):
        answer = b""
        with connect(url) as client:
            client.sendall(request)
            while not answer.endswith(b"}"):
                answer += client.recv(65_536)
        begin = cpu_s(pid)
        answered = pipeline(url, request, seconds=UPLOAD_S, count=UPLOADS)
        return (cpu_s(pid) - begin) * 1e3 / (answered / len(answer))


def chunked(gallery: Path, seconds: float) -> bool:
    length, *in_64_kib, in_bytes = (
        upload_ms(gallery, request)
        for request in (
            post("/nowhere", bytes(1 << 20)),
            in_chunks(bytes(65_536), 16),
            in_chunks(b"\r\n" * 32_768, 16),
            in_chunks(b"x", 65_536),
        )
    )
    show("chunked: 64 KiB in chunks of a byte", f"{in_bytes:.1f} ms of CPU", True)
    text = ", ".join(f"{each:.2f}" for each in (length, *in_64_kib)) + " ms of CPU"
    return show("chunked: 1 MiB whole, zeros, empty lines", text, max(in_64_kib) < 2 * length)


ALL: dict[str, Callable[[Path, float], bool]] = {
    "pipelined": pipelined,
    "unread": unread,
    "refused": refused,
    "stuck": sockets_left,
    "sigterm": exit_time,
    "reset": resets,
    "chunked": chunked,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45, help="of each of the first three")
    parser.add_argument("--only", default=",".join(ALL), help="those to run")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gallery = Path(folder) / "gallery"
        velocity, family = mixed(MODELS, seed=0)
        build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, family.tolist())], source="benchmark")
        kept = [ALL[name](gallery, arguments.seconds) for name in arguments.only.split(",")]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
