"""What a gallery in Milvus costs beside the same gallery in a folder: adding, opening, searching, reading maps.

    python benchmarks/milvus.py --models 2000             milvus-lite, in a file of its own
    python benchmarks/milvus.py --models 2000 --server    the Milvus of pip install milvus==2.3.5, started for this

Models, embeddings and queries follow from a seed; maps are random (they do not compress), 70 x 70 cells. Both galleries
are asked the same in turn, and the medians are printed with their ratio to the folder's. Answers are compared.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from seisbind.index import Filter, Gallery, Store, open_store
from seisbind.index.cluster import connection
from seisbind.index.milvus_store import MilvusStore
from seisbind.model.ground.descriptors import describe

SERVER = Path(__file__).parents[1] / "tests" / "index" / "cluster" / "milvus_server.py"
DIMENSION = 256
BATCH = 256
FINGERPRINT = "benchmark"


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The base of URLs of a Milvus that is ended with the block."""
    command = [sys.executable, str(SERVER), str(folder / "server")]
    begun = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None:
            raise OSError("no pipes to the server")
        line = process.stdout.readline()
        if not line.startswith("port "):
            raise OSError(f"Milvus does not start here; {SERVER.name} says why")
        print(f"Milvus is up after {time.perf_counter() - begun:.1f} s")
        try:
            yield f"milvus://127.0.0.1:{line.split()[1]}"
        finally:
            process.stdin.close()


def unit(generator: np.random.Generator, count: int) -> np.ndarray:
    vectors = generator.standard_normal((count, DIMENSION))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fill(store: Store, models: int) -> float:
    """Add the models; returns the seconds that it took, without making them."""
    spent = 0.0
    for first in range(0, models, BATCH):
        generator, count = np.random.default_rng(first), min(BATCH, models - first)
        velocity = generator.uniform(1500, 4500, (count, 70, 70)).astype(np.float32)
        parts = (velocity, describe(velocity), unit(generator, count), unit(generator, count))
        families = [f"family-{number % 10}" for number in range(count)]
        names = [f"m{number}" for number in range(first, first + count)]
        begun = time.perf_counter()
        store.add(*parts, model_ids=names, families=families)
        spent += time.perf_counter() - begun
    return spent


def median_ms(work: Callable[[], object], rounds: int) -> float:
    work()
    found = []
    for _ in range(rounds):
        begun = time.perf_counter()
        work()
        found.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--server", action="store_true", help="Milvus 2.3.5 in a process, and not milvus-lite.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if asked.server:
            with server(Path(name)) as base:
                compare(Path(name), base, asked.models, asked.rounds)
        else:
            compare(Path(name), f"milvus+lite://{name}/lite.db", asked.models, asked.rounds)


def compare(folder: Path, base: str, models: int, rounds: int) -> None:
    places = {"folder": folder / "gallery", "milvus": f"{base}/gallery?maps=file://{folder}/maps"}
    Gallery.create(folder / "gallery", fingerprint=FINGERPRINT, dimension=DIMENSION).close()
    MilvusStore.create(str(places["milvus"]), fingerprint=FINGERPRINT, dimension=DIMENSION).close()
    print(f"{models} models, medians of {rounds} (added once)")
    print(f"{'':<44}{'folder':>10}{'milvus':>10}{'ratio':>8}")

    def line(what: str, times: list[float]) -> None:
        print(f"{what:<44}{times[0]:>10.1f}{times[1]:>10.1f}{times[1] / times[0]:>8.1f}")

    added = []
    for place in places.values():
        with open_store(place, fingerprint=None, writable=True) as store:
            added.append(fill(store, models) * 1e3 / models)
    line("added, ms a model", added)
    line(
        "opened and closed, ms",
        [median_ms(lambda at=at: open_store(at, fingerprint=None).close(), 3) for at in places.values()],
    )
    queries = unit(np.random.default_rng(10**9), 64)
    few = Filter(families=("family-3",))
    with (
        open_store(places["folder"], fingerprint=None) as here,
        open_store(places["milvus"], fingerprint=None) as there,
    ):
        stores = (here, there)
        asked: dict[str, Callable[[Store], object]] = {
            "one query, k = 10, ms": lambda store: store.search_velocity(queries[:1], 10),
            "one query by physics, k = 10, ms": lambda store: store.search_physics(queries[:1], 10),
            "one query, k = 10, one family in ten, ms": lambda store: store.search_velocity(
                queries[:1], 10, filter=few
            ),
            "64 queries, k = 10, ms": lambda store: store.search_velocity(queries, 10),
            "one query, k = 1000, ms": lambda store: store.search_velocity(queries[:1], min(1000, models)),
            "10 maps, ms": lambda store: store.velocities([f"m{number}" for number in range(10)]),
        }
        for what, ask in asked.items():
            line(what, [median_ms(lambda store=store, ask=ask: ask(store), rounds) for store in stores])
        for k in (10, min(1000, models)):
            found, expected = (store.search_velocity(queries[:8], k) for store in (there, here))
            same = [[(h.model_id, h.similarity) for h in hits] for hits in found] == [
                [(h.model_id, h.similarity) for h in hits] for hits in expected
            ]
            print(f"answers of 8 queries, k = {k}: {'the same to the bit' if same else 'NOT the same'}")
        strong = median_ms(lambda: there.search_velocity(queries[:1], 10), rounds)
        connection.STRONG = "Bounded"
        bounded = median_ms(lambda: there.search_velocity(queries[:1], 10), rounds)
        print(f"one query, k = 10: {strong:.1f} ms at consistency Strong, {bounded:.1f} ms at Bounded")


if __name__ == "__main__":
    main()
