"""Bulk retrieval: workers beside one, the answers of each, and memory as the number of gathers grows.

    python benchmarks/bulk.py --gathers 512 --workers 1 2 --rounds 3
    python benchmarks/bulk.py --gathers 1000 5000 --workers 2 --rounds 1
    python benchmarks/bulk.py --gathers 100000 --workers 2 --rounds 1           # half an hour of two free cores
    python benchmarks/bulk.py --gathers 100000 --workers 2 --rounds 1 --narrow

The input is one stack of 128 gathers, named as often as the number of gathers wants (symbolic links): records of eight
models with noise of the seed. Rates are those from the first part done to the last, so that starting processes
does not count; numbers of workers in turn, ``--rounds`` times, medians. Memory is that of `peak_memory`, at its highest
and, of long runs, at its highest within each 20,000 gathers. ``--narrow`` has untrained encoders of a fraction of the
arithmetic in place of the shipped weights, and records of 4 ms as float16: for the number of gathers, not for rates.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
import torch
from peak_memory import Peak

from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Description, save_weights
from seisbind.model.ground.families import mixed
from seisbind.model.processes import usable_cores
from seisbind.model.waves.wavefield import simulate
from seisbind.service.bulk.backends import RetrieveOptions
from seisbind.service.bulk.chunks import CHUNK, Chunk, Outcome
from seisbind.service.bulk.executors import in_processes, on_ray
from seisbind.service.bulk.folder import PartsFolder, write_parts
from seisbind.service.bulk.gather_jobs import GatherJob
from seisbind.service.bulk.places import named_inputs
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.formats.reader import Geometry

SEED = 18
STACK = 128  # gathers of the one stack
MODELS = 2000
SIMULATED = 8  # of the models, whose records are repeated
LAP = 20_000  # gathers


def narrow_weights(path: Path) -> Path:
    torch.manual_seed(SEED)
    config = EncoderConfig(width=16, velocity_width=8, hidden=64)
    save_weights(path, Encoders(config), Description("untrained", config))
    return path


def links(folder: Path, stack: Path, gathers: int) -> Path:
    """A folder that names the stack often enough."""
    named = folder / f"line-{gathers}"
    named.mkdir()
    for number in range(-(-gathers // STACK)):
        (named / f"{number:06}.npy").symlink_to(stack)
    return named


def run(job: GatherJob, line: Path, out: Path, workers: int, engine: str) -> tuple[float, int, int, float]:
    """Gathers a second from the first part to the last, gathers answered, peak memory, and seconds in all."""
    seen: list[tuple[float, int]] = []
    chunks = job.chunks(named_inputs([str(line)]))

    def execute(some: Sequence[Chunk]) -> Iterator[Outcome]:
        return on_ray(job, some, workers, None) if engine == "ray" else in_processes(job, some, workers)

    def progress(done: int) -> None:
        if not done:
            return
        if seen and done // LAP > seen[-1][1] // LAP:
            spent, most = time.perf_counter() - began, peak.lap() / 1e6
            print(f"  {done} gathers, {spent:.0f} s, peak since the line before {most:.0f} MB", flush=True)
        seen.append((time.perf_counter(), done))

    began = time.perf_counter()
    with Peak() as peak, PartsFolder(out, {"benchmark": "bulk"}) as folder:
        tally = write_parts(folder, chunks, execute, progress=progress)
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
    parser.add_argument("--narrow", action="store_true")
    parser.add_argument("--engine", choices=("processes", "ray"), default="processes")
    args = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    load = os.getloadavg()[0]
    print(
        f"{usable_cores()} cores, load {load:.1f} at the beginning; commit {commit.stdout.strip()}; seed {SEED}; "
        f"{MODELS} models; parts of {CHUNK} gathers; {args.engine}{'; narrow encoders' if args.narrow else ''}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        folder, rng = Path(name), np.random.default_rng(SEED)
        velocity, family = mixed(MODELS, SEED)
        records = simulate(velocity[:SIMULATED])
        noise = rng.standard_normal((STACK, *records.shape[1:]), dtype=np.float32)
        gathers = np.tile(records, (STACK // SIMULATED, 1, 1, 1)) + 0.02 * records.std() * noise
        np.save(folder / "stack.npy", gathers[:, :, ::4].astype(np.float16) if args.narrow else gathers)
        del noise, records, gathers
        weights = narrow_weights(folder / "narrow.safetensors") if args.narrow else None
        embedder = Embedder.load(weights, device="cpu")
        build_gallery(folder / "gallery", embedder, [(velocity, family.tolist())], source="bulk")
        del velocity, embedder
        options = RetrieveOptions(geometry=Geometry(dt_s=0.004) if args.narrow else Geometry())
        job = GatherJob("retrieve", str(folder / "gallery"), weights, "cpu", options=options)
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
