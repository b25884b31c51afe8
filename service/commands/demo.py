"""``seisbind demo``: the whole loop on one machine, with simulated physics, a real server and real HTTP."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.index.storage.record import content_id
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import GalleryError, GalleryNotFound, PortTaken, ServiceError
from seisbind.model.fingerprint import embeds_alike
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import FAMILIES, generate, mixed
from seisbind.model.waves.wavefield import simulate
from seisbind.service.building.sources import BATCH
from seisbind.service.client.client import Client
from seisbind.service.commands.demo_report import Case, Result, draw, show
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.formats.npy import npy
from seisbind.service.http.server import listen
from seisbind.service.terminal.console import counting

Float32 = NDArray[np.float32]

HOST = "127.0.0.1"
TOP_K = 10
KNOWN = ("FlatVel-A", "CurveVel-B", "FlatFault-A", "Style-A")  # families of the cases whose model is in the gallery
NOVEL = ("CurveVel-A", "CurveFault-B")  # and of those whose model is not
START_S = 120.0  # for a server to become ready on a busy machine
STOP_S = 30.0
SOURCE = "seisbind demo, seed "  # of the models of a gallery that the demo may replace


def demo(*, count: int, seed: int, out: Path, port: int, weights: Path | None, stay: bool) -> None:
    """Build a gallery, serve it, ask about simulated gathers, show the answers; see `seisbind demo --help`.

    Raises:
        SeisBindError: no weights, no simulation engine, a full disk, a server that does not start or goes on.
    """
    signal.signal(signal.SIGTERM, _exit)  # so that the server ends with the demo
    began = time.monotonic()
    embedder = Embedder.load(weights)
    say(f"Weights {embedder.weights.description.name!r} ({embedder.fingerprint}) on {embedder.device}.")
    out.mkdir(parents=True, exist_ok=True)
    say(f"Drawing {count} velocity models of {len(FAMILIES)} families, seed {seed}.")
    velocity, family = mixed(count, seed)
    prepare_gallery(out / "gallery", embedder, velocity, family, seed)
    cases = make_cases(velocity, family, seed)
    with serving(out / "gallery", port, weights, out / "server.log") as (url, server), Client(url) as client:
        say(f"The server is ready at {url}. Posting {len(cases)} gathers to {url}/v1/retrieve.")
        results = [ask(client, case, velocity) for case in cases]
        show(results)
        picture = out / "retrieval.png"
        draw(results, picture)
        write_results(results, out)
        say(f"Picture: {picture}. Gathers and answers: {out}/gathers. {time.monotonic() - began:.0f} s in all.")
        if stay:
            print(f"\nThe server goes on at {url} until Ctrl-C. Try:", flush=True)
            print(f"  curl -F file=@{out}/gathers/1.npy -F top_k=3 {url}/v1/retrieve\n  open {url}/", flush=True)
            try:
                server.wait()
            except KeyboardInterrupt:
                say("Stopping.")
            else:
                raise _server_ended(server, out / "server.log")


def say(sentence: str) -> None:
    """A line on standard output, at once."""
    print(sentence, flush=True)


def prepare_gallery(path: Path, embedder: Embedder, velocity: Float32, family: NDArray[np.str_], seed: int) -> None:
    """Make the gallery of ``velocity`` in ``path``, unless it is there from before.

    Raises:
        GalleryError: a gallery is there that is not the demo's own, or that is damaged.
    """
    wanted = {content_id(model) for model in velocity}
    try:
        with Gallery.open(path, fingerprint=None) as gallery:
            held = gallery.model_ids()
            if set(held) == wanted and embeds_alike(
                embedder.fingerprint, gallery.fingerprint, gallery.embeddings_fingerprint
            ):
                say(f"The gallery at {path} holds them already, embedded by these weights.")
                return
            for start in range(0, len(held), BATCH):
                for record in gallery.records(held[start : start + BATCH]):
                    if not (record.source or "").startswith(SOURCE):
                        raise GalleryError(
                            f"The gallery at {path} is not the demo's: its model {record.model_id!r} comes from "
                            f"{record.source or 'elsewhere'!r}. Give the demo another folder with --out."
                        )
    except GalleryNotFound:
        pass
    models = ((velocity[i : i + BATCH], family[i : i + BATCH].tolist()) for i in range(0, len(velocity), BATCH))
    with counting("Describing and embedding velocity models", len(velocity)) as progress:
        build_gallery(path, embedder, models, source=f"{SOURCE}{seed}", overwrite=True, progress=progress)


def make_cases(velocity: Float32, family: NDArray[np.str_], seed: int) -> list[Case]:
    """Gathers over some of the gallery's models, and over new ones of another seed."""
    known = [velocity[np.flatnonzero(family == name)[0]] for name in KNOWN]
    rng = np.random.default_rng([seed, 1])
    novel = [generate(name, 1, rng)[0] for name in NOVEL]
    truths = np.stack(known + novel)
    held = {content_id(model) for model in velocity}
    with counting("Simulating gathers (5 shots, 1 s, 15 Hz)", len(truths)) as progress:
        gathers = []
        for done, model in enumerate(truths, start=1):
            gathers.append(simulate(model)[0])
            progress(done)
    described = describe(truths)
    return [
        Case(name, model, gather, content_id(model) if content_id(model) in held else None, physics)
        for name, model, gather, physics in zip(KNOWN + NOVEL, truths, gathers, described, strict=True)
    ]


@contextmanager
def serving(gallery: Path, port: int, weights: Path | None, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server in a process of its own, ready, stopped at the end: its address and the process."""
    try:
        listener = listen(HOST, port)
    except PortTaken:
        listener = listen(HOST, 0)
        say(f"Port {port} is taken by another program; using {listener.getsockname()[1]}.")
    with listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-c", "from seisbind.service.commands.main import main; main()", "serve"]
    command += ["--gallery", str(gallery), "--host", HOST, "--port", str(port)]
    command += ["--weights", str(weights)] if weights else []
    say(f"Starting the server: seisbind {' '.join(command[3:])}")
    with log.open("wb") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        url = f"http://{HOST}:{port}"
        wait_until_ready(url, server, log)
        yield url, server
    finally:
        server.terminate()
        try:
            server.wait(STOP_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def wait_until_ready(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once /readyz says so.

    Raises:
        ServiceError: the server ended, or took longer than `START_S`.
    """
    deadline = time.monotonic() + START_S
    with Client(url, timeout_s=START_S) as client:
        while not client.ready():
            if server.poll() is not None:
                raise _server_ended(server, log)
            if time.monotonic() > deadline:
                raise ServiceError(f"The server was not ready after {START_S:g} s; see {log}.")
            time.sleep(0.1)


def _server_ended(server: subprocess.Popen[bytes], log: Path) -> ServiceError:
    last = log.read_text(errors="replace").strip().splitlines() or ["(it said nothing)"]
    return ServiceError(f"The server ended with code {server.returncode}: {last[-1]}")


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def ask(client: Client, case: Case, velocity: Float32) -> Result:
    """Post one gather, and fetch the velocity models of the answer."""
    start = time.monotonic()
    answer = client.retrieve(case.gathers, top_k=TOP_K).results[0]
    answered_ms = (time.monotonic() - start) * 1e3
    fetched = [client.velocity(match.model_id) for match in answer.matches[:3]]
    best = min(float(np.abs(velocity[i : i + BATCH] - case.velocity).mean(axis=(1, 2)).min())
               for i in range(0, len(velocity), BATCH))  # fmt: skip
    return Result(case, answer, np.stack(fetched), best, answered_ms)


def write_results(results: list[Result], out: Path) -> None:
    """Write what was sent and what came back, for the reader's own experiments."""
    folder = out / "gathers"
    folder.mkdir(exist_ok=True)
    for number, one in enumerate(results, start=1):
        (folder / f"{number}.npy").write_bytes(npy(one.case.gathers))
        answer = json.dumps(one.answer.model_dump(), indent=1)
        (folder / f"{number}.json").write_text(answer + "\n", encoding="utf-8")
