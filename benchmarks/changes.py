"""What opening, one change, the first search after it and closing cost, by the size of the gallery.

    python benchmarks/changes.py --folder /tmp/galleries                 # 2,000, 20,000 and 200,000 models
    PYTHONPATH=OTHER/.typing python benchmarks/changes.py --folder /tmp/galleries   # another checkout, same galleries

The galleries are made in ``--folder`` if they are not there (200,000 models: about a minute, 700 MB) and are left as
they were found: each run works on copies. Maps are 4 x 4 cells, because no change reads a map; everything else has its
real size. Prints medians in milliseconds, one line per size. ``add`` and ``remove`` are of one model and include what
``POST /v1/models`` answers with (`Gallery.info`); ``close`` follows those few changes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from seisbind.index import Filter, Gallery
from seisbind.model.ground.descriptors import NAMES

DIMENSION = 256
PART = 5_000  # models a transaction while a gallery is made
FAMILIES = [f"family-{number}" for number in range(10)]


def models(first: int, count: int) -> dict[str, Any]:
    """Arguments of `Gallery.add` for ``count`` models that follow from their numbers."""
    generator = np.random.default_rng([first, count])
    vectors = generator.standard_normal((2, count, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return {
        "velocity": generator.uniform(1500, 4500, (count, 4, 4)).astype(np.float32),
        "descriptors": generator.uniform(1, 100, (count, len(NAMES))).astype(np.float32),
        "velocity_embeddings": vectors[0],
        "physics_embeddings": vectors[1],
        "model_ids": [f"m{number}" for number in range(first, first + count)],
        "families": [FAMILIES[number % 10] for number in range(first, first + count)],
        "tags": [("synthetic", f"batch-{number // 1000}") for number in range(first, first + count)],
    }


def make(path: Path, count: int) -> None:
    with Gallery.building(path, fingerprint="benchmark", dimension=DIMENSION) as gallery:
        for first in range(0, count, PART):
            gallery.add(**models(first, min(PART, count - first)))


def spent_ms(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def measured(path: Path, count: int, repeats: int) -> dict[str, float]:
    """Medians over ``repeats`` openings of a copy of the gallery."""
    query = models(count + 500, 1)["velocity_embeddings"]
    family = Filter.parse({"family": "family-3", "mean_velocity": [20, 40]})
    found: dict[str, list[float]] = {}

    def note(name: str, action: Callable[[], Any]) -> None:
        found.setdefault(name, []).append(spent_ms(action))

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / "g"
        shutil.copytree(path, copy)
        Gallery.open(copy, fingerprint=None, writable=True).close()  # an older checkout's gallery gets what it lacks
        for turn in range(repeats):
            opened: list[Gallery] = []
            note("open", lambda opened=opened: opened.append(Gallery.open(copy, fingerprint=None, writable=True)))
            [gallery] = opened
            note("first info", gallery.info)
            note("search", lambda gallery=gallery: gallery.search_velocity(query, 30))
            for step in range(3):
                new = models(count + 10 * turn + step, 1)

                def add(gallery: Gallery = gallery, new: dict[str, Any] = new) -> None:
                    gallery.add(**new)
                    gallery.info()

                def remove(gallery: Gallery = gallery, model_id: str = new["model_ids"][0]) -> None:
                    gallery.remove([model_id])
                    gallery.info()

                note("add", add)
                note("search after add", lambda gallery=gallery: gallery.search_velocity(query, 30))
                note("remove", remove)
                note("search after remove", lambda gallery=gallery: gallery.search_velocity(query, 30))
                note("filtered search", lambda gallery=gallery: gallery.search_velocity(query, 30, filter=family))
            note("distribution", gallery.distribution)
            note("close", gallery.close)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(args.models):
        path = args.folder / str(count)
        if not path.exists():
            make(path, count)
        result = measured(path, count, args.repeats)
        if number == 0:
            print(f"{'models':>8}  " + "  ".join(result), flush=True)
        print(f"{count:>8}  " + "  ".join(f"{value:>{len(name)}.2f}" for name, value in result.items()), flush=True)


if __name__ == "__main__":
    main()
