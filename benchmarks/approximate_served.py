"""A gallery as it is served: recall and time of its approximate searches against exact ones.

    python benchmarks/approximate_served.py --folder /tmp/million --cache runs/approximate   # of `gallery_opening.py`

Queries are embeddings of modelled records, of maps that are not entries, and of entries that were perturbed
(`approximate_vectors.py`); each is searched approximately and exactly in the same gallery. Times are seconds of the
processor, one thread, the least of a few.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import faiss
import numpy as np
import torch
from approximate_vectors import SEED, records

from seisbind.index import Gallery, search_threads
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, mixed

DEPTH, BATCH, RUNS = 10, 500, 3


def least_s(work: Callable[[], object]) -> float:
    found = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/approximate"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    search_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    maps = np.concatenate([mixed(200, SEED + 900 + n, f)[0] for n, f in enumerate((FAMILIES, BROAD_FAMILIES))])
    held_out = Embedder.load().embed_velocity(maps)
    with Gallery.open(args.folder, fingerprint=None) as gallery:
        info = gallery.approximate
        if info is None:
            raise SystemExit(f"{args.folder} is searched exactly: {gallery.info().search_text}")
        some = gallery.embeddings([hit.model_id for (hit, *_) in gallery.search_velocity(held_out[:200], 1)])[0]
        moved = some + 0.02 * rng.standard_normal(some.shape).astype(np.float32)
        kinds = {"records": records(args.cache, 60), "other maps": held_out, "perturbed entries": moved}
        report: dict[str, object] = {"models": len(gallery), "recorded": asdict(info)}
        for name, queries in kinds.items():
            asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
            found, truth = (gallery.search_velocity(asked, DEPTH, exact=exact) for exact in (None, True))
            shares = [
                len({hit.model_id for hit in a} & {hit.model_id for hit in b}) / DEPTH
                for a, b in zip(found, truth, strict=True)
            ]
            report[f"recall of {name}"] = {"queries": len(asked), "recall": float(np.mean(shares))}
        pool = np.concatenate([held_out, held_out])[:BATCH]
        for count in (1, BATCH):
            approximate, exact = (
                least_s(lambda exact=exact, count=count: gallery.search_velocity(pool[:count], DEPTH, exact=exact))
                for exact in (None, True)
            )
            report[f"{count} at once"] = {
                "approximate_ms": approximate * 1e3,
                "exact_ms": exact * 1e3,
                "times_as_fast": exact / approximate,
            }
    print(json.dumps(report, indent=1, default=str))


if __name__ == "__main__":
    main()
