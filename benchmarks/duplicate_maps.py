"""What it takes to recognise a map that the gallery has already.

    python benchmarks/duplicate_maps.py [--models 1000000]

Makes records without maps and embeddings, which are not read for it, and prints: seconds of the first addition's table,
its bytes a model, and microseconds to look up a map that is new and one that is there (medians of 1,000). Seed 0.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from seisbind.index.storage.database import RECORDS, create_database
from seisbind.index.storage.maps import MapLookup
from seisbind.index.storage.record import utc_now
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import NAMES

LOOKUPS = 1000


def rows(count: int) -> Iterator[tuple[object, ...]]:
    generator = np.random.default_rng(0)
    for row in range(1, count + 1):
        maps, others = generator.bytes(32), bytes(32)
        yield (row, f"m{row:09}", "FlatVel-A", *([1.5] * len(NAMES)), "", "", 70, 70, maps, others, others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1_000_000)
    count = parser.parse_args().models
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / RECORDS
        create_database(path, fingerprint="w", dimension=256, created_at=utc_now(), frame=OPENFWI_FRAME)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA cache_size = -400000")
            wanted = ", ".join("?" * (10 + len(NAMES)))
            connection.executemany(f"INSERT INTO models VALUES ({wanted})", rows(count))
            connection.commit()
            start = time.perf_counter()
            table = MapLookup(connection, path.parent)
            spent_s = time.perf_counter() - start
            print(f"table of {count} models: {spent_s:.2f} s, {table.nbytes / count:.1f} bytes a model", flush=True)
            held = [sha for (sha,) in connection.execute("SELECT velocity_sha256 FROM models LIMIT ?", (LOOKUPS,))]
        generator = np.random.default_rng(1)
        for name, keys in (("new", [generator.bytes(32) for _ in range(LOOKUPS)]), ("held", held)):
            spent = []
            for key in keys:
                start = time.perf_counter()
                (found,) = table.rows([key])
                spent.append(time.perf_counter() - start)
                if bool(found) != (name == "held"):
                    raise SystemExit(f"a {name} map was taken for another")
            print(f"a {name} map: {statistics.median(spent) * 1e6:.0f} microseconds")


if __name__ == "__main__":
    main()
