"""A server in a process of its own, over a gallery of made-up ground, and those who ask it, for the scripts here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.gallery_builder import build_gallery


@dataclass(frozen=True, slots=True)
class Reply:
    """``ms``: from the first byte of the request to the last of the answer. ``status`` 0: the answer did not arrive."""

    status: int
    ms: float
    retry_after: bool


class Client:
    """One keep-alive connection: as little work as a client can have, so that the server is what is measured."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, url: httpx.URL) -> Client:
        return cls(*await asyncio.open_connection(url.host, url.port))

    async def ask(self, body: bytes, query: str = "", *, close: bool = False) -> Reply:
        """The reply to the gathers ``body``, posted with the ``query``; with ``close``, the last of the connection."""
        start = time.perf_counter()
        self.writer.write(
            b"POST /v1/retrieve?%b HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
            b"Content-Length: %d\r\n%b\r\n" % (query.encode(), len(body), b"Connection: close\r\n" * close)
        )
        self.writer.write(body)
        try:
            return await self._reply(start)
        except (ConnectionError, asyncio.IncompleteReadError):
            if not close:
                raise
            return Reply(0, (time.perf_counter() - start) * 1e3, retry_after=False)
        finally:
            if close:
                self.writer.transport.abort()

    async def _reply(self, start: float) -> Reply:
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        await self.reader.readexactly(int(length.split(b":")[1]))
        ms = (time.perf_counter() - start) * 1e3
        await self.writer.drain()  # a refusal comes before the body is sent
        return Reply(int(head.split()[1]), ms, b"\r\nretry-after:" in head)


@asynccontextmanager
async def clients(url: httpx.URL, count: int) -> AsyncIterator[list[Client]]:
    """``count`` connections to the server."""
    opened = [await Client.connect(url) for _ in range(count)]
    try:
        yield opened
    finally:
        for each in opened:
            each.writer.close()


@contextmanager
def served(models: int, **settings: object) -> Iterator[tuple[httpx.URL, int]]:
    """`serving` over a gallery of so many ``models``, with the weights that are shipped."""
    with tempfile.TemporaryDirectory() as folder:
        gallery = Path(folder) / "gallery"
        velocity, family = mixed(models, seed=0)
        build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, family.tolist())], source="benchmark")
        with serving(gallery, **settings) as found:
            yield found


@contextmanager
def serving(gallery: Path, *, python: str = sys.executable, **settings: object) -> Iterator[tuple[httpx.URL, int]]:
    """``seisbind serve`` over ``gallery``; its address and its process.

    Args:
        python: of the checkout that serves.
        settings: of the server, named as in `Settings`.
    """
    given = {"gallery": gallery, "port": 0} | settings
    with (
        tempfile.NamedTemporaryFile() as log,
        subprocess.Popen(
            [python, "-m", "seisbind", "serve"],
            stdout=subprocess.PIPE,
            stderr=log,  # an access line a request, which nobody reads
            text=True,
            env=os.environ | {f"SEISBIND_{key.upper()}": str(value) for key, value in given.items()},
        ) as process,
    ):
        try:
            url = ""
            while not url and process.stdout is not None and (line := process.stdout.readline()):
                url = next((word.strip(".,") for word in line.split() if word.startswith("http://")), "")
            if not url:
                sys.exit(f"The server did not start: {Path(log.name).read_text(errors='replace')}")
            yield httpx.URL(url), process.pid
        finally:
            process.terminate()


def memory_bytes(pid: int, name: str = "VmRSS") -> int:
    """Memory of a process as Linux counts it: ``VmRSS`` now, ``VmHWM`` at most since `forget_peak`."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    """Let ``VmHWM`` begin again at what is held now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
