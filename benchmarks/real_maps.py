"""Retrieval on real OpenFWI maps, their gathers simulated by either engine, clean and with white noise.

    python benchmarks/real_maps.py [--maps ../shared/data/openfwi_dev.npz] [--count 500] [--engine openfwi] [--json]

The gallery of each row is the family itself: the maps of the file, nothing else. No real map has been seen in
training. Signal over noise compares the rms of the whole record with that of the noise. The last three columns are of
clean gathers as new ground: error of the mean velocity, the share of truths in the 90 % intervals (all descriptors; the
worst of them), and the error of the first match over that of the family's closest other map.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from seisbind.model.datasets.acquisition import Acquisition, record
from seisbind.model.datasets.pairs import PairSet, load_pairs, save_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.descriptors import describe
from seisbind.model.survey.preparation import OPENFWI, Prepared
from seisbind.model.training.evaluation import as_prepared, recall, report
from seisbind.model.training.evaluation import embed as embed_pairs
from seisbind.model.waves.wavefield import Boundary
from seisbind.model.waves.wavelet import ricker

NOISE_DB = (30.0, 20.0)


def single_threaded() -> None:
    torch.set_num_threads(1)


def pairs_of(name: str, velocity: np.ndarray, engine: str, cache: Path) -> PairSet:
    digest = hashlib.sha256(velocity.tobytes()).hexdigest()[:8]
    folder = cache / f"{name}-{engine}-{len(velocity)}-{digest}"
    if not folder.exists():
        print(f"simulating {len(velocity)} gathers of {name} by {engine}", file=sys.stderr, flush=True)
        how = Acquisition(engine, Boundary(), OPENFWI, ricker(15.0, OPENFWI.dt_s))  # type: ignore[arg-type]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), context, initializer=single_threaded) as pool:
            traces = torch.cat(list(pool.map(partial(record, acquisition=how), velocity, chunksize=8)))
        described = torch.from_numpy(describe(velocity))
        family = torch.zeros(len(velocity), dtype=torch.int64)
        part = folder.with_suffix(".part")  # a killed run leaves nothing that looks whole
        save_pairs(part, PairSet(traces, torch.from_numpy(velocity), described, family, (name,)))
        part.rename(folder)
    return load_pairs(folder)


def noisy(pairs: PairSet, decibel: float) -> Prepared:
    """The gathers with white noise, ``decibel`` under the rms of each whole record (traces are at rms 1)."""
    clean = as_prepared(pairs)
    noise = np.random.default_rng(0).standard_normal(clean.traces.shape, dtype=np.float32)
    return replace(clean, traces=clean.traces + noise * np.float32(10 ** (-decibel / 20)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, default=Path("../shared/data/openfwi_dev.npz"))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--count", type=int, default=500, help="maps a family at most")
    parser.add_argument("--cache", type=Path, default=Path("runs/real"), help="simulated gathers are kept here")
    parser.add_argument("--engine", action="append", choices=["openfwi", "deepwave"], help="gathers by; default: both")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.maps.exists():
        sys.exit(f"No real maps at {args.maps}: give --maps an npz of (n, 70, 70) velocity models, a family a key.")
    torch.set_num_threads(1)
    embedder = Embedder.load(args.weights)
    rows = []
    with np.load(args.maps, allow_pickle=False) as maps:
        for name in maps.files:
            velocity = maps[name][: args.count].astype(np.float32)
            if len(velocity) < 10:
                print(f"{name}: {len(velocity)} maps are no gallery; left out", file=sys.stderr)
                continue
            for engine in args.engine or ("openfwi", "deepwave"):
                pairs = pairs_of(name, velocity, engine, args.cache)
                embedded = embed_pairs(embedder, pairs)
                found = {"clean": recall(embedded.gathers.embedding, embedded.velocity)}
                for decibel in NOISE_DB:
                    query = embedder.embed_gathers(noisy(pairs, decibel)).embedding
                    found[f"{decibel:g} dB"] = recall(query, embedded.velocity)
                whole = report(embedder, embedded)
                rows.append({"family": name, "engine": engine, "gallery_size": len(pairs), "recall": found} | whole)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    columns = ["clean", *(f"{decibel:g} dB" for decibel in NOISE_DB)]
    print(f"weights {embedder.fingerprint}")
    print(
        "| family | gathers by | gallery | " + " | ".join(f"R@1 {c}" for c in columns) + " | R@10 clean | V→P R@1 |",
        end="",
    )
    print(" mean velocity, % | in the intervals | first match |\n|---|---|---|" + "---|" * (len(columns) + 5))
    for row in rows:
        cells = [f"{row['recall'][c]['r_at_1']:.3f}" for c in columns]
        cells += [f"{row['recall']['clean']['r_at_10']:.3f}", f"{row['velocity_to_physics']['r_at_1']:.3f}"]
        read = row["descriptors"]["novel"]
        covered = list(read["interval_coverage"].values())
        cells += [f"{read['inferred']['mean_velocity']:.1f}", f"{np.mean(covered):.2f} ({min(covered):.2f})"]
        cells += [f"{row['structure']['ratio']:.2f}"]
        print(f"| {row['family']} | {row['engine']} | {row['gallery_size']} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
