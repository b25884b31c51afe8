"""Real servers over a small gallery: untrained encoders answer as truly as trained ones, only not wisely."""

from __future__ import annotations

import asyncio
import http.server
import importlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.confidence.novelty import MEASURES, TrainingRanges
from seisbind.model.confidence.presence import Presence
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Calibration, Description, save_weights
from seisbind.model.ground.families import mixed
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.http.app import create_app
from seisbind.service.http.server import Server, listen, url_of
from seisbind.service.runtime.serving import Serving
from seisbind.service.settings import Settings
from seisbind.service.transport.protocol import Protocol
from seisbind.service.workers.board import Board

Float32 = NDArray[np.float32]
MODELS = 60
END_S = 60.0  # for a server, which has five seconds for those who still wait for an answer
CONFIG = EncoderConfig(width=16, velocity_width=8, hidden=64)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_weights(path: Path, seed: int) -> Path:
    """Untrained encoders that always take the best match for the ground itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoders = Encoders(CONFIG)
    low, middle, high = ((value,) * len(MEASURES) for value in (-200.0, 0.0, 200.0))
    ranges = TrainingRanges(low, middle, high, 1.0)  # whatever was measured, it is likely
    calibration = Calibration(
        ((float(np.log(2.0)),) * 13,), Presence(50.0, 0.0, 0.0, 0.0, 0.05, 3000), ranges, pairs=100
    )
    save_weights(path, encoders, Description("untrained", CONFIG, calibration=calibration))
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "untrained.safetensors", 0)


@pytest.fixture(scope="session")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "other.safetensors", 1)


@pytest.fixture(scope="session")
def embedder(weights: Path) -> Embedder:
    return Embedder.load(weights, device="cpu")


@pytest.fixture(scope="session")
def models() -> tuple[Float32, list[str]]:
    """``(60, 70, 70)`` m/s and their families: what every gallery of these tests holds."""
    velocity, family = mixed(MODELS, 3)
    return velocity, family.tolist()


@pytest.fixture(scope="session")
def gathers(models: tuple[Float32, list[str]]) -> Float32:
    """``(3, 5, 1000, 70)`` over the first three models."""
    return simulate(models[0][:3])


MakeGallery = Callable[[], Path]


@pytest.fixture(scope="session")
def make_gallery(
    tmp_path_factory: pytest.TempPathFactory, embedder: Embedder, models: tuple[Float32, list[str]]
) -> MakeGallery:
    def make() -> Path:
        path = tmp_path_factory.mktemp("galleries") / "small"
        build_gallery(path, embedder, [models], source="tests")
        return path

    return make


@pytest.fixture(scope="session")
def gallery_path(make_gallery: MakeGallery) -> Path:
    """A gallery that no test changes."""
    return make_gallery()


@pytest.fixture(scope="session")
def engine(embedder: Embedder, gallery_path: Path) -> Iterator[Engine]:
    with Gallery.open(gallery_path, fingerprint=embedder.fingerprint) as gallery:
        yield Engine(embedder, gallery)


@dataclass(frozen=True)
class Served:
    """A running server, a client of it, and what it owns (for tests that hold its threads)."""

    url: str
    http: httpx.Client
    settings: Settings
    serving: Serving


class Watched(Server):
    """Tells its event loop, for `ended`."""

    loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


@contextmanager
def running(settings: Settings, board: Board | None = None) -> Iterator[Served]:
    """The real application in a real uvicorn on a free port, in a thread; with ``board`` as one of several workers."""
    app = create_app(settings, board=board)
    with listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(app, http=Protocol.of(settings), log_level="warning", timeout_graceful_shutdown=5)
        server = Watched(config, stopping=app.state.serving.stopping.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            url = url_of(listener)
            with httpx.Client(base_url=url, timeout=60) as http:
                yield Served(url, http, settings, app.state.serving)
        finally:
            server.should_exit = True
            ended(thread, loop=server.loop)


def ended(thread: threading.Thread, *, loop: asyncio.AbstractEventLoop | None) -> None:
    """Wait for a server's thread; one that does not end is told by where it stands, and by what its loop waits for."""
    thread.join(END_S)
    if not thread.is_alive():
        return
    frame = sys._current_frames().get(thread.ident or 0)
    where = [*traceback.format_stack(frame, limit=-8)] if frame is not None else []
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        with io.StringIO() as said:
            task.print_stack(file=said)
            where.append(said.getvalue())
    pytest.fail(f"The server did not end within {END_S:g} s:\n" + "\n".join(where), pytrace=False)


@pytest.fixture(scope="session")
def run_server() -> Callable[..., AbstractContextManager[Served]]:
    """`running`, for fixtures that a module keeps to itself."""
    return running


@contextmanager
def spawned(weights: Path, gallery: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``seisbind serve`` as a process of its own, which gets signals, and its address."""
    settings = {"GALLERY": str(gallery), "WEIGHTS": str(weights), "DEVICE": "cpu", "PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "seisbind", "serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # an access line a request, which nobody reads
        text=True,
        env=os.environ | {f"SEISBIND_{name}": value for name, value in settings.items()},
    ) as server:
        try:
            url = ""
            while not url and server.stdout is not None and (line := server.stdout.readline()):
                url = next((word.strip(".,") for word in line.split() if word.startswith("http://")), "")
            yield server, url
        finally:
            server.kill()


Serve = Callable[..., Served]


Spawn = Callable[[], AbstractContextManager[tuple["subprocess.Popen[str]", str]]]


@pytest.fixture
def spawn(weights: Path, gallery_path: Path) -> Spawn:
    return lambda: spawned(weights, gallery_path)


@contextmanager
def held_up(served: Served, *, on: str = "on_model", count: int = 1) -> Iterator[None]:
    """While the server's model thread, or ``count`` that `Serving` runs jobs ``on``, have something else to do."""
    gate, begun = threading.Event(), threading.Barrier(count + 1)

    def wait(engine: Engine) -> None:
        begun.wait()
        gate.wait()

    run = getattr(served.serving, on)
    threads = [threading.Thread(target=lambda: asyncio.run(run(wait))) for _ in range(count)]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        yield
    finally:
        gate.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def busy() -> Callable[..., AbstractContextManager[None]]:
    return held_up


@contextmanager
def starting(weights: Path, gallery: Path) -> Iterator[Serve]:
    """Starts servers with any settings, and stops them when the block ends."""
    with ExitStack() as servers:

        def start(**settings: object) -> Served:
            given = {"gallery": gallery, "weights": weights, "device": "cpu", "port": 0} | settings
            return servers.enter_context(running(Settings(**given)))  # type: ignore[arg-type]

        yield start


@pytest.fixture
def serve(weights: Path, gallery_path: Path) -> Iterator[Serve]:
    """Starts servers with settings of the test's own, and stops them after it."""
    with starting(weights, gallery_path) as start:
        yield start


@pytest.fixture(scope="session")
def served(weights: Path, gallery_path: Path) -> Iterator[Served]:
    """One server with small limits, for tests that do not change it."""
    with starting(weights, gallery_path) as start:
        yield start(max_body_bytes=8 << 20, max_gathers=5, max_top_k=70)


@pytest.fixture(scope="session")
def writable(weights: Path, make_gallery: MakeGallery) -> Iterator[Served]:
    """As `served`, over a gallery of its own that it may change."""
    with starting(weights, make_gallery()) as start:
        yield start(writable=True, max_body_bytes=8 << 20, max_gathers=5)


Reply = tuple[int, bytes | str, dict[str, str]] | None  # status, body or code of a problem, headers; None: no answer


def problem(status: int, code: str) -> bytes:
    said = {"type": f"urn:seisbind:error:{code}", "title": "No", "status": status, "detail": f"Because {code}."}
    return json.dumps(said | {"code": code, "instance": "/", "request_id": "r-1"}).encode()


@dataclass
class Stub:
    """What was asked, and what is answered in turn; the last reply goes on."""

    replies: Sequence[Reply]
    url: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def stub_server(*replies: Reply) -> Iterator[Stub]:
    stub = Stub(replies)

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            stub.asked.append((self.command, self.path))
            reply = stub.replies[min(len(stub.asked), len(stub.replies)) - 1]
            self.close_connection = True
            if reply is None:
                return
            status, said, headers = reply
            body = said if isinstance(said, bytes) else problem(status, said)
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        stub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def cutting_proxy(port: int, cuts: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """A proxy of a server on ``port`` that cuts connection ``i`` after ``cuts[i]`` lines of JSON, and later ones never.

    Gives its address and, for each connection, the lines that passed.
    """
    passed: list[int] = []
    ends: list[threading.Thread] = []

    def back(server: socket.socket, client: socket.socket, number: int) -> None:
        with server, client:
            while chunk := server.recv(65536):
                lines = chunk.count(b"}\n")
                if number < len(cuts) and passed[number] + lines > cuts[number]:
                    for _ in range(cuts[number] - passed[number]):
                        end = chunk.index(b"}\n") + 2
                        client.sendall(chunk[:end])
                        chunk = chunk[end:]
                        passed[number] += 1
                    client.sendall(chunk[:20])  # and the beginning of another line
                    client.shutdown(socket.SHUT_RDWR)
                    return
                passed[number] += lines
                client.sendall(chunk)

    def forth(client: socket.socket, server: socket.socket) -> None:
        try:
            while chunk := client.recv(65536):
                server.sendall(chunk)
        except OSError:
            pass

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            passed.append(0)
            for target, arguments in ((forth, (client, server)), (back, (server, client, len(passed) - 1))):
                ends.append(threading.Thread(target=target, args=arguments))
                ends[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, args=(listener,))
        accepting.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", passed
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for each in ends:
                each.join()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A script of ``benchmarks/`` by its name, as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module


@pytest.fixture
def stubbed() -> Callable[..., AbstractContextManager[Stub]]:
    """A server that gives the replies that it is told to give."""
    return stub_server


@pytest.fixture
def cutting() -> Callable[..., AbstractContextManager[tuple[str, list[int]]]]:
    return cutting_proxy
