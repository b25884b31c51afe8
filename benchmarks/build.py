"""`gallery build` against describing and embedding alone, its memory, and a build that is killed and goes on.

    python benchmarks/build.py --models 20000 --workers 1 2

For each number of workers the same processes describe and embed maps that lie in a file and throw the result away
("alone"); then galleries are built of that file, of maps drawn in the ten families and of `geology` ground. Rates are
those from the first part done to the last, so that starting processes does not count; ``--rounds`` in turn, medians.
Memory is the sum of the proportional set sizes (PSS) of all processes, this one included, at its highest. At the end a
build of the command line is killed with SIGKILL, given again, and compared with one that was not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from seisbind.index.verify import verify_folder
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.processes import in_order, worker_pool
from seisbind.model.scale import UNSCALED
from seisbind.service.building.build import AHEAD, Encoders, build
from seisbind.service.building.encoding import EncodedPart, Encoding, encode_part
from seisbind.service.building.sources import ModelFiles, Part, RandomModels, Source

SEED = 31
GEOLOGY_SHARE = 10  # of drawn maps, one in so many: they take ten times as long


def drop(part: Part, encoding: Encoding) -> int:
    """Describe and embed, and nothing else."""
    made: EncodedPart = encode_part(part, encoding)
    return len(made)


class Rate:
    """Models a second from the first call to the last."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, int]] = []

    def __call__(self, done: int) -> None:
        if done:
            self.seen.append((time.perf_counter(), done))

    @property
    def value(self) -> float:
        (start, first), (end, last) = self.seen[0], self.seen[-1]
        return (last - first) / (end - start)


def alone(source: Source, embedder: Embedder, workers: int) -> float:
    encoding, rate, done = Encoding(None, embedder.fingerprint, embedder.frame, UNSCALED), Rate(), 0
    with worker_pool(workers, uses_torch=True) as pool:
        for count in in_order(pool, partial(drop, encoding=encoding), source.parts(), ahead=AHEAD * workers):
            done += count
            rate(done)
    return rate.value


def pss_bytes(pid: int) -> tuple[int, int]:
    """Of a process and its children: in all, and of that what is mapped from files."""
    total = mapped = 0
    for each in [pid, *children(pid)]:
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        found = {line.split()[0]: int(line.split()[1]) << 10 for line in text.splitlines()[1:]}
        total, mapped = total + found["Pss:"], mapped + found["Pss_File:"]
    return total, mapped


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


class Memory:
    """The highest `pss_bytes` while the block runs."""

    def __enter__(self) -> Memory:
        self.highest = (0, 0)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.5):
            self.highest = max(self.highest, pss_bytes(os.getpid()))


def built(path: Path, source: Source, embedder: Embedder, workers: int) -> tuple[float, tuple[int, int]]:
    shutil.rmtree(path, ignore_errors=True)
    rate = Rate()
    with Memory() as memory:
        build(path, source, Encoders(embedder, None, workers), progress=rate)
    return rate.value, memory.highest


def content(path: Path) -> list[Any]:
    """All of a gallery but for when it was made."""
    with closing(sqlite3.connect(path / "records.sqlite")) as connection:
        return connection.execute(
            "SELECT row, model_id, family, velocity_sha256, embeddings_sha256 FROM models ORDER BY row"
        ).fetchall()


def killed(folder: Path, models: int, workers: int) -> None:
    """Kill a build of the command line after half of it, go on, and compare."""

    def command(name: str) -> list[str]:
        asked = ["gallery", "build", str(folder / name), "--count", str(models), "--workers", str(workers)]
        return [str(Path(sys.executable).with_name("seisbind")), *asked]

    subprocess.run(command("whole"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = folder / "killed" / "building" / "progress.json"
    while process.poll() is None and not (
        progress.exists() and json.loads(progress.read_text())["models"] >= models // 2
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = subprocess.run(command("killed"), check=True, capture_output=True, text=True)
    same = content(folder / "whole") == content(folder / "killed") and verify_folder(folder / "killed").ok
    print("killed: " + next(line for line in again.stderr.splitlines() if "going on" in line))
    print(f"killed and gone on with: {'the same gallery' if same else 'ANOTHER GALLERY'}")
    if not same:
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/build"))
    parser.add_argument("--models", type=int, default=20_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--killed", type=int, default=9_000, help="models of the build that is killed; 0: none")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    embedder = Embedder.load(device="cpu", runtime="torch")
    drawn = RandomModels.of(args.models, SEED, None)
    maps = np.lib.format.open_memmap(
        args.folder / "maps.npy", mode="w+", dtype=np.float32, shape=(args.models, *embedder.frame.velocity_shape)
    )
    start = 0
    for part in drawn.parts():
        velocity = part.read()[0]
        maps[start : start + len(velocity)] = velocity
        start += len(velocity)
    maps.flush()
    del maps
    files = ModelFiles.of([args.folder / "maps.npy"])
    geology = RandomModels.of(max(args.models // GEOLOGY_SHARE, 1), SEED, ["broad"])
    sources: Iterable[tuple[str, Source]] = (("file", files), ("ten families", drawn), ("geology", geology))
    print(f"{'workers':>8} {'source':<14}{'models/s':>10}{'of alone':>10}{'memory, MB':>12}{'of files':>10}")
    for workers in args.workers:
        rates: dict[str, list[float]] = {}
        memory: dict[str, tuple[int, int]] = {}
        runs: list[tuple[str, Callable[[], float | tuple[float, tuple[int, int]]]]] = [
            ("alone", partial(alone, files, embedder, workers)),
            *((name, partial(built, args.folder / "gallery", each, embedder, workers)) for name, each in sources),
        ]
        for _ in range(args.rounds):
            for name, run in runs:
                found = run()
                rate, highest = found if isinstance(found, tuple) else (found, (0, 0))
                print(f"{workers} workers, {name}: {rate:.0f} models/s", file=sys.stderr, flush=True)
                rates.setdefault(name, []).append(rate)
                memory[name] = max(memory.get(name, (0, 0)), highest)
        for name, _ in runs:
            each = median(rates[name])
            ratio = median(rate / by for rate, by in zip(rates[name], rates["alone"], strict=True))
            held = "".join(f"{value / 1e6:>{wide}.0f}" for value, wide in zip(memory[name], (12, 10), strict=True))
            print(f"{workers:>8} {name:<14}{each:>10.0f}{ratio:>10.2f}{held}", flush=True)
    shutil.rmtree(args.folder / "gallery", ignore_errors=True)
    if args.killed:
        killed(args.folder, args.killed, max(args.workers))


if __name__ == "__main__":
    main()
