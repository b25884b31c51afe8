"""What opening, one change, the first search after it and closing cost, by the size of the gallery.

    python benchmarks/changes.py --folder /tmp/galleries                 # 2,000, 20,000 and 200,000 models
    PYTHONPATH=OTHER/.typing python benchmarks/changes.py --folder /tmp/galleries   # another checkout, same galleries

The galleries are made in ``--folder`` if they are not there (200,000 models: about a minute, 700 MB) and are left as
they were found: each run works on copies. Maps are 4 x 4 cells, because no change reads a map; everything else has its
real size. Prints medians and the highest in milliseconds, for each size. ``add`` and ``remove`` are of one model and
include what ``POST /v1/models`` answers with (`Gallery.info`); ``close`` follows those few changes. Then, once a size:

- ``old open``: opening without the files ``columns.*``, as a gallery of an older SeisBind;
- ``drop``: the removal after which removed models are more than an eighth of all and are dropped from memory;
- ``beside drop``: the longest of the searches that another thread makes meanwhile, one after another;
- ``bytes``: memory of a process for each model that it opened, beside the two vectors (Linux). It means nothing for
  small galleries, which fit into memory that the process has already.
"""

from __future__ import annotations

import argparse
import gc
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
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


def memory_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def bytes_a_model(path: Path) -> float:
    """Of this process, beside the vectors."""
    with tempfile.TemporaryDirectory() as folder:  # what is loaded once
        make(Path(folder) / "g", 100)
        Gallery.open(Path(folder) / "g", fingerprint=None).close()
    gc.collect()
    before = memory_bytes()
    gallery = Gallery.open(path, fingerprint=None)
    gc.collect()
    return (memory_bytes() - before) / len(gallery) - 2 * 4 * DIMENSION


def once(path: Path, count: int) -> dict[str, float]:
    """What is measured once, on a copy of the gallery."""
    found: dict[str, float] = {}
    query = models(count + 500, 1)["velocity_embeddings"]
    searches: list[float] = []
    dropped = threading.Event()

    def search() -> None:
        while not dropped.is_set():
            searches.append(spent_ms(lambda: gallery.search_velocity(query, 30)))

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / "g"
        shutil.copytree(path, copy)
        for file in copy.glob("columns.*"):
            file.unlink()
        found["old open"] = spent_ms(lambda: Gallery.open(copy, fingerprint=None).close())
        with Gallery.open(copy, fingerprint=None, writable=True) as gallery:
            gallery.remove(gallery.model_ids()[: count // 8])
            last = gallery.model_ids()[0]
            searching = threading.Thread(target=search)
            searching.start()
            found["drop"] = spent_ms(lambda: gallery.remove([last]))
            dropped.set()
            searching.join()
    found["beside drop"] = max(searches)
    run = subprocess.run(
        [sys.executable, __file__, "--folder", str(path), "--bytes"], check=True, capture_output=True, text=True
    )
    return found | {"bytes": float(run.stdout)}


def measured(path: Path, count: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds over ``repeats`` openings of a copy of the gallery."""
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
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--models", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--bytes", action="store_true", help="only print that figure, for the gallery in --folder")
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    if args.bytes:
        print(bytes_a_model(args.folder))
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(args.models):
        path = args.folder / str(count)
        if not path.exists():
            make(path, count)
        result, single = measured(path, count, args.repeats), once(path, count)
        if number == 0:
            print(f"{'models':>8}           " + "  ".join(f"{name:>7}" for name in (*result, *single)), flush=True)
        for kind, choose, shown in (("median", statistics.median, single), ("highest", max, {})):
            of = {name: choose(values) for name, values in result.items()} | shown
            line = "  ".join(f"{value:>{max(7, len(name))}.2f}" for name, value in of.items())
            print(f"{count:>8}  {kind:<7}  {line}", flush=True)


if __name__ == "__main__":
    main()
