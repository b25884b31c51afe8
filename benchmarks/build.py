"""`gallery build` against describing and embedding alone, its memory, and a build that is killed and goes on.

    python benchmarks/build.py --models 20000 --workers 1 2
    python benchmarks/build.py --checkouts ../old .    # each with its own .venv: both in turn, in one run

Galleries are built of maps that lie in a file, of maps drawn in the ten families, and of `geology` ground. "Alone" are
the same processes that make the same parts, describe and embed them and throw the result away; it is printed for each
source, because drawing belongs to the work that a build of drawn maps cannot leave out, and builds are also compared
with the file's. Every run is a process of its own; ``--rounds`` in turn, medians. Rates are those from the first part
done to the last, so that starting processes does not count, and so are CPU milliseconds a model, of all processes:
where both cores are busy, their ratio is that of the rates, and others on the machine change it less. The wall clock
and the CPU seconds are those of the whole run, with starting, the last snapshot and its installation. Up to 8,192
random models are drawn before the first part, which only wall and CPU show. Memory is the sum of the proportional set
sizes (PSS) of the process and of all that descend from it, at its highest. At the end a build of the command line is
killed with SIGKILL, given again, and compared with one that was not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from peak_memory import below

from seisbind.index.verify import verify_folder
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.processes import in_order, worker_pool
from seisbind.model.scale import UNSCALED
from seisbind.service.building.build import AHEAD, Encoders, build
from seisbind.service.building.encoding import EncodedPart, Encoding, encode_part
from seisbind.service.building.sources import ModelFiles, Part, RandomModels, Source

SEED = 31
LOOK_S = 1.0  # between two looks at the memory, each of which takes some milliseconds a process
SOURCES = ("file", "ten families", "geology")
WHAT = {False: "alone", True: "build"}
Runs = dict[tuple[int, str, str, bool], list[dict[str, float]]]


def drop(part: Part, encoding: Encoding) -> int:
    """Describe and embed, and nothing else."""
    made: EncodedPart = encode_part(part, encoding)
    return len(made)


class Rate:
    """Models a second from the first call to the last, and CPU seconds of all processes a model."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.seen: list[tuple[float, float, int]] = []

    def __call__(self, done: int) -> None:
        if done:
            self.seen.append((time.perf_counter(), cpu_seconds(os.getpid()) - self.memory.spent_s, done))

    @property
    def values(self) -> tuple[float, float]:
        (start, cpu_start, first), (end, cpu_end, last) = self.seen[0], self.seen[-1]
        return (last - first) / (end - start), (cpu_end - cpu_start) / (last - first)


def alone(source: Source, embedder: Embedder, workers: int, rate: Rate) -> None:
    encoding, done = Encoding(None, embedder.fingerprint, embedder.frame, UNSCALED), 0
    with worker_pool(workers, uses_torch=True) as pool:
        for count in in_order(pool, partial(drop, encoding=encoding), source.parts(), ahead=AHEAD * workers):
            done += count
            rate(done)


def pss_bytes(pid: int) -> tuple[int, int]:
    """Of a process and all that descend from it: in all, and of that what is mapped from files."""
    total = mapped = 0
    for each in below(pid):
        try:
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
        except OSError:
            continue
        found = {line.split()[0]: int(line.split()[1]) << 10 for line in text.splitlines()[1:]}
        total, mapped = total + found["Pss:"], mapped + found["Pss_File:"]
    return total, mapped


def cpu_seconds(pid: int) -> float:
    """Of a process and all that descend from it, those that have ended included."""
    ticks = 0
    for each in below(pid):
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{each}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


class Memory:
    """The highest `pss_bytes` while the block runs; ``spent_s`` is the CPU time that looking took."""

    def __enter__(self) -> Memory:
        self.highest, self.spent_s = (0, 0), 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK_S):
            self.highest = max(self.highest, pss_bytes(os.getpid()))
            self.spent_s = time.thread_time()


def one(folder: Path, name: str, count: int, workers: int, made: bool) -> dict[str, float]:
    """One run in this process."""
    torch.set_num_threads(1)
    embedder = Embedder.load(device="cpu", runtime="torch")
    drawn = RandomModels.of(count, SEED, ["broad"] if name == "geology" else None)
    source: Source = ModelFiles.of([folder / "maps.npy"]) if name == "file" else drawn
    shutil.rmtree(folder / "gallery", ignore_errors=True)
    start, before = time.perf_counter(), cpu_seconds(os.getpid())
    with Memory() as memory:
        rate = Rate(memory)
        if made:
            build(folder / "gallery", source, Encoders(embedder, None, workers), progress=rate)
        else:
            alone(source, embedder, workers, rate)
    wall, cpu = time.perf_counter() - start, cpu_seconds(os.getpid()) - before - memory.spent_s
    shutil.rmtree(folder / "gallery", ignore_errors=True)
    highest, files = memory.highest
    a_second, cpu_each = rate.values
    return {"rate": a_second, "each": cpu_each, "wall": wall, "cpu": cpu, "memory": highest, "files": files}


def maps_file(folder: Path, count: int) -> None:
    """Maps of the ten families, as the builds draw them, in a file."""
    drawn, start = RandomModels.of(count, SEED, None), 0
    shape = (count, *Embedder.load(device="cpu", runtime="torch").frame.velocity_shape)
    maps = np.lib.format.open_memmap(folder / "maps.npy", mode="w+", dtype=np.float32, shape=shape)
    for part in drawn.parts():
        velocity = part.read()[0]
        maps[start : start + len(velocity)] = velocity
        start += len(velocity)
    maps.flush()


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


def commit(checkout: Path) -> str:
    asked = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def table(found: Runs, first: str) -> None:
    """Medians; ratios are those of runs of one round, memory is the highest."""
    print(
        f"{'workers':>7} {'source':<13}{'':<6}{'commit':<17}{'models/s':>9}{'of own':>8}{'of ' + first:>8}"
        f"{'CPU ms each':>13}{'of own':>8}{'wall, s':>9}{'CPU, s':>8}{'MB':>6}{'of files':>9}"
    )
    for (workers, name, sha, made), runs in found.items():
        rate, each, wall, cpu = (median(run[key] for run in runs) for key in ("rate", "each", "wall", "cpu"))
        memory, files = (max(run[key] for run in runs) / 1e6 for key in ("memory", "files"))
        alone_here, alone_first = (found[workers, other, sha, False] for other in (name, first))
        own = median(run["rate"] / by["rate"] for run, by in zip(runs, alone_here, strict=True))
        of_first = median(run["rate"] / by["rate"] for run, by in zip(runs, alone_first, strict=True))
        cheaper = median(by["each"] / run["each"] for run, by in zip(runs, alone_here, strict=True))
        print(
            f"{workers:>7} {name:<13}{WHAT[made]:<6}{sha:<17}{rate:>9.0f}{own:>8.2f}{of_first:>8.2f}"
            f"{each * 1e3:>13.2f}{cheaper:>8.2f}{wall:>9.1f}{cpu:>8.1f}{memory:>6.0f}{files:>9.0f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/build"))
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[Path(__file__).parents[1]])
    parser.add_argument("--models", type=int, default=20_000)
    parser.add_argument("--geology", type=int, help="models of geology; a tenth of --models if not given")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--killed", type=int, default=9_000, help="models of the build that is killed; 0: none")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a run in this process, as JSON
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if args.one:
        print(json.dumps(one(args.folder, **json.loads(args.one))))
        return
    maps_file(args.folder, args.models)
    geology = args.geology or max(args.models // 10, 1)
    commits = [commit(checkout) for checkout in args.checkouts]
    print(f"seed {SEED}, {args.models} models, {geology} of geology; {platform.processor() or platform.machine()}, ")
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {args.rounds} rounds"
    )
    found: Runs = {}
    for workers, turn, name, made, (checkout, sha) in product(
        args.workers, range(args.rounds), args.sources, (False, True), zip(args.checkouts, commits, strict=True)
    ):
        count = geology if name == "geology" else args.models
        asked = json.dumps({"name": name, "count": count, "workers": workers, "made": made})
        run = [checkout / ".venv/bin/python", __file__, "--folder", args.folder, "--one", asked]
        said = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
        values = json.loads(said.splitlines()[-1])
        found.setdefault((workers, name, sha, made), []).append(values)
        print(turn, workers, name, WHAT[made], sha, values, file=sys.stderr, flush=True)
    table(found, args.sources[0])
    if args.killed:
        killed(args.folder, args.killed, max(args.workers))


if __name__ == "__main__":
    main()
