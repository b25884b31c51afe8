"""Bulk retrieval: workers beside one, the answers of each, and memory as the number of gathers grows.

    python benchmarks/bulk.py --gathers 512 --workers 1 2 --rounds 3
    python benchmarks/bulk.py --gathers 1000 5000 --workers 2 --rounds 1
    python benchmarks/bulk.py --gathers 100000 --workers 2 --rounds 1

The input is one stack, named as often as the number of gathers wants (symbolic links): one
gather with noise of the seed. Rates are those from the first part done to the last, so that starting processes
does not count; numbers of workers in turn, ``--rounds`` times, medians. Memory is the sum of the proportional set sizes
(PSS) of this process and all below it, at its highest, looked at every quarter of a second.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.model.processes import usable_cores
from seisbind.service.bulk.backends import RetrieveOptions
from seisbind.service.bulk.chunks import CHUNK, Chunk, Job, Outcome, plan_chunks
from seisbind.service.bulk.executors import in_processes, on_ray
from seisbind.service.bulk.folder import PartsFolder, write_parts
from seisbind.service.bulk.places import named_inputs
from seisbind.service.engine.engine import canary_gather
from seisbind.service.engine.gallery_builder import build_gallery

SEED = 18
STACK = 128  # gathers of the one stack
MODELS = 2000


def below(pid: int) -> Iterator[int]:
    """A process, and all that it and its own have started."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            started = task.read_text().split()
        except OSError:
            continue
        for child in started:
            yield from below(int(child))


def pss_bytes() -> int:
    total = 0
    for pid in below(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


class Peak:
    """The highest `pss_bytes` while the block runs."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.25):
            self.bytes = max(self.bytes, pss_bytes())


def links(folder: Path, stack: Path, gathers: int) -> Path:
    """A folder that names the stack often enough."""
    named = folder / f"line-{gathers}"
    named.mkdir()
    for number in range(-(-gathers // STACK)):
        (named / f"{number:06}.npy").symlink_to(stack)
    return named


def run(job: Job, line: Path, out: Path, workers: int, engine: str) -> tuple[float, int, int, float]:
    """Gathers a second from the first part to the last, gathers answered, peak memory, and seconds in all."""
    seen: list[tuple[float, int]] = []
    chunks = plan_chunks(named_inputs([str(line)]))

    def execute(some: Sequence[Chunk]) -> Iterator[Outcome]:
        return on_ray(job, some, workers, None) if engine == "ray" else in_processes(job, some, workers)

    began = time.perf_counter()
    with Peak() as peak, PartsFolder(out, {"benchmark": "bulk"}) as folder:
        tally = write_parts(
            folder, chunks, execute, progress=lambda done: seen.append((time.perf_counter(), done)) if done else None
        )
    (start, first), (end, last) = seen[0], seen[-1]
    return (last - first) / (end - start), tally.answered, peak.bytes, time.perf_counter() - began


def matches(out: Path) -> list[tuple[str, int, tuple[str, ...]]]:
    found = []
    for path in sorted(out.glob("*.parquet")):
        table = pq.read_table(path, columns=["file", "gather", "model_id"])
        found += [(row["file"], row["gather"], tuple(row["model_id"])) for row in table.to_pylist()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gathers", type=int, nargs="+", default=[512], help=f"rounded up to stacks of {STACK}")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    load = os.getloadavg()[0]
    print(
        f"{usable_cores()} cores, load {load:.1f} at the beginning; commit {commit.stdout.strip()}; seed {SEED}; "
        f"{MODELS} models; parts of {CHUNK} gathers; {args.engine}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(SEED)
        gather = canary_gather()
        noise = rng.normal(size=(STACK, *gather.shape[-3:])).astype(np.float32)
        np.save(folder / "stack.npy", gather.reshape(gather.shape[-3:]) + 0.02 * gather.std() * noise)
        del noise
        velocity, family = mixed(MODELS, SEED)
        build_gallery(folder / "gallery", Embedder.load(device="cpu"), [(velocity, family.tolist())], source="bulk")
        del velocity
        job = Job("retrieve", str(folder / "gallery"), None, "cpu", options=RetrieveOptions())
        for gathers in args.gathers:
            line, rates = links(folder, folder / "stack.npy", gathers), {each: [] for each in args.workers}
            answers = None
            for _ in range(args.rounds):
                for workers in args.workers:
                    out = folder / "out"
                    rate, answered, peak, seconds = run(job, line, out, workers, args.engine)
                    rates[workers].append(rate)
                    found = matches(out)
                    same = "" if answers is None else f", answers {'the same' if found == answers else 'DIFFERENT'}"
                    answers = found if answers is None else answers
                    print(
                        f"{answered} gathers, {workers} workers: {rate:.1f}/s, {seconds:.0f} s in all, "
                        f"peak {peak / 1e6:.0f} MB{same}",
                        flush=True,
                    )
                    shutil.rmtree(out)
            least = min(args.workers)
            for workers in args.workers:
                if workers != least:
                    ratio = median(rates[workers]) / median(rates[least])
                    print(f"{workers} workers over {least}: {ratio:.2f}x (medians of {args.rounds})", flush=True)


if __name__ == "__main__":
    main()
