"""A fleet that changes its gallery under load: every request answered, every answer of one generation.

    python benchmarks/rolling_reload.py --servers 3 --rounds 4          # a published gallery (file://), fetched by each
    python benchmarks/rolling_reload.py --servers 2 --shared            # one folder, exchanged by a rename

Servers are processes of their own. Clients send gathers to them in turn and ask for an npz, which has the matched
velocity models in it. Each round makes another gallery (the same ground, faster by some per cent), puts it in
place, and lets every server notice by itself (``SEISBIND_WATCH_S``). The SHA-256 of each model that an answer holds and
its id have to be those of the generation that the answer names in its header. Prints how many were asked,
failed and mixed, how long a round took until all served it, and request times in and outside of rounds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from seisbind.index import Gallery
from seisbind.index.replicas.publish import publish
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.gallery_builder import build_gallery

HEADER = "SeisBind-Generation"
WATCH_S = 0.2
PATIENCE_S = 120.0
Truth = dict[str, dict[str, str]]  # generation → id → SHA-256 of the map, m/s


@dataclass
class Tally:
    """What clients saw. Threads append; nothing is read before they have ended."""

    answers: list[tuple[str, str, list[tuple[str, str]]]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: list[tuple[float, float]] = field(default_factory=list)  # when it ended, how long it took


def held(content: bytes) -> tuple[str, list[tuple[str, str]]]:
    """Which generation the body of an npz answer names, and the id and SHA-256 of each model in it."""
    with np.load(io.BytesIO(content)) as answer:
        gallery = json.loads(answer["answer"].tobytes())["gallery"]
        pairs = [
            (model_id, hashlib.sha256(model.tobytes()).hexdigest())
            for ids, models in zip(answer["model_id"], answer["velocity"], strict=True)
            for model_id, model in zip(ids.tolist(), models, strict=True)
            if model_id
        ]
    return f"{gallery['generation']}-{gallery['digest'][:8]}", pairs


def faults(generation: str, stamp: str, pairs: list[tuple[str, str]], truth: Truth) -> list[str]:
    """What in one answer, as `held` has it, does not belong to the generation that its header names."""
    if generation not in truth:
        return [f"generation {generation} was never made"]
    found = [] if stamp == generation else [f"the body says {stamp}, the header {generation}"]
    own = truth[generation]
    return found + [f"{each} is not as in {generation}" for each, sha256 in pairs if own.get(each) != sha256]


def make(path: Path, embedder: Embedder, models: int, number: int, *, overwrite: bool = False) -> dict[str, str]:
    """A gallery of which no map is in another one, with ids that all of them have; id → SHA-256 of its map."""
    velocity, family = mixed(models, 5)
    velocity = (velocity * (1 + number / 100)).clip(1500, 4500).astype(np.float32)
    build_gallery(path, embedder, [(velocity, family.tolist())], source=f"round {number}", overwrite=overwrite)
    with Gallery.open(path, fingerprint=None) as gallery:
        ids = gallery.model_ids()
        maps = gallery.velocities(ids)
        return {each: hashlib.sha256(found.tobytes()).hexdigest() for each, found in zip(ids, maps, strict=True)}


def stamp_of(path: Path) -> str:
    with Gallery.open(path, fingerprint=None) as gallery:
        return gallery.stamp


class Fleet:
    """Servers, which clients ask in turn."""

    def __init__(self, servers: int, gallery: str, folder: Path, weights: Path | None, stack: ExitStack) -> None:
        self.urls: list[str] = []
        for number in range(servers):
            settings = {
                "GALLERY": gallery,
                "CACHE": str(folder / f"cache-{number}"),
                "PORT": "0",
                "DEVICE": "cpu",
                "WATCH_S": str(WATCH_S),
                "THREADS": "1",
            } | ({"WEIGHTS": str(weights)} if weights else {})
            server = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "seisbind", "serve"],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"} | {f"SEISBIND_{k}": v for k, v in settings.items()},
                )
            )
            stack.callback(server.terminate)
            line = server.stdout.readline() if server.stdout else ""
            self.urls.append(next(word.strip(".,") for word in line.split() if word.startswith("http://")))
        self._next = itertools.cycle(self.urls)
        self._lock = threading.Lock()

    def next(self) -> str:
        with self._lock:
            return next(self._next)

    def generations(self) -> set[str]:
        return {httpx.get(f"{url}/readyz", timeout=60).json()["generation"] for url in self.urls}


def ask(fleet: Fleet, body: bytes, tally: Tally, done: threading.Event) -> None:
    headers = {"content-type": "application/octet-stream", "accept": "application/x-npz"}
    with httpx.Client(timeout=60) as http:
        while not done.is_set():
            begun = time.monotonic()
            try:
                answer = http.post(f"{fleet.next()}/v1/retrieve", content=body, headers=headers)
            except httpx.HTTPError as error:
                tally.failed.append(repr(error))
                continue
            if answer.status_code != 200:
                tally.failed.append(answer.text)
                continue
            tally.seconds.append((time.monotonic(), time.monotonic() - begun))
            tally.answers.append((answer.headers[HEADER], *held(answer.content)))


def roll(
    folder: Path,
    *,
    servers: int = 2,
    rounds: int = 3,
    models: int = 200,
    clients: int = 3,
    shared: bool = False,
    weights: Path | None = None,
) -> dict[str, object]:
    """Run it in ``folder``; the counts and times that `main` prints."""
    embedder = Embedder.load(weights, device="cpu")
    gather = simulate(mixed(1, 5)[0])[0].astype(np.float32)
    buffer = io.BytesIO()
    np.save(buffer, gather)
    path, url = folder / "gallery", (folder / "published").resolve().as_uri()
    truth: Truth = {}
    first = make(path, embedder, models, 0)
    truth[stamp_of(path)] = first
    if not shared:
        publish(path, url)
    tally, done, took, within = Tally(), threading.Event(), [], []
    with ExitStack() as stack:
        fleet = Fleet(servers, str(path) if shared else url, folder, weights, stack)
        threads = [threading.Thread(target=ask, args=(fleet, buffer.getvalue(), tally, done)) for _ in range(clients)]
        for each in threads:
            each.start()
        try:
            for number in range(1, rounds + 1):
                begun = time.monotonic()
                new = make(path, embedder, models, number, overwrite=True)  # put at its place by one rename
                stamp = stamp_of(path)
                truth[stamp] = new
                if not shared:
                    begun = time.monotonic()
                    publish(path, url)
                while fleet.generations() != {stamp}:
                    if time.monotonic() - begun > PATIENCE_S:
                        raise TimeoutError(f"not all servers serve {stamp}: {fleet.generations()}")
                    time.sleep(0.05)
                took.append(time.monotonic() - begun)
                within.append((begun, time.monotonic()))
        finally:
            done.set()
            for each in threads:
                each.join()
    mixed_up = [fault for answer in tally.answers for fault in faults(*answer, truth)]
    during = [s for at, s in tally.seconds if any(a <= at <= b for a, b in within)]
    outside = [s for at, s in tally.seconds if not any(a <= at <= b for a, b in within)]
    return {
        "servers": servers,
        "source": "shared folder" if shared else "published, file://",
        "models": models,
        "rounds": rounds,
        "answered": len(tally.answers),
        "failed": len(tally.failed),
        "mixed": len(mixed_up),
        "generations_seen": len({generation for generation, _, _ in tally.answers}),
        "generations_made": len(truth),
        "until_all_serve_s": [round(each, 2) for each in took],
        "median_ms": {
            "in_rounds": round(float(np.median(during)) * 1e3, 1) if during else None,
            "outside": round(float(np.median(outside)) * 1e3, 1) if outside else None,
        },
        "first_faults": (tally.failed + mixed_up)[:3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", type=int, default=500)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--shared", action="store_true", help="one folder for all instead of a published gallery")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(roll(Path(folder), **vars(args)), indent=1))


if __name__ == "__main__":
    main()
