"""Bytes a model of a gallery on the disk, by file and table, as galleries are made now and as format 1 had them.

    python benchmarks/gallery_bytes.py --models 40000                   # the ten families, rounded to 0.5 m/s
    python benchmarks/gallery_bytes.py --models 40000 --family broad    # geology
    python benchmarks/gallery_bytes.py --models 40000 --precision exact

2,000 maps are drawn, and added again and again under other ids; the embeddings are random unit vectors, which are
coded as short as those of encoders (`map_compression.py`).
Format 1 is written by the same writer with nothing coded, in pages of 8 KiB, which is what that format is.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from seisbind.index import Gallery
from seisbind.index.storage import database
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import FAMILIES, expanded, mixed

SEED = 23
DRAWN = 2_000  # different maps; each is coded by itself, so that more would only take longer
DIMENSION = 256

Part = tuple[np.ndarray, np.ndarray, list[str]]


@contextmanager
def written_as_format_1() -> Iterator[None]:
    """Galleries that are made inside are of format 1."""
    before = database.FORMAT_VERSION, database.PAGE_BYTES
    database.FORMAT_VERSION, database.PAGE_BYTES = 1, 8192
    try:
        yield
    finally:
        database.FORMAT_VERSION, database.PAGE_BYTES = before


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, DIMENSION), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def drawn(models: int, families: tuple[str, ...]) -> Part:
    """Maps with their descriptors and families."""
    velocity, family = mixed(models, SEED, families)
    return velocity, describe(velocity), family.tolist()


def fill(gallery: Gallery, models: int, part: Part) -> None:
    """Add ``models`` of the part, from its beginning again where it ends."""
    rng = np.random.default_rng(SEED)
    velocity, descriptors, family = part
    for start in range(0, models, len(velocity)):
        count = min(len(velocity), models - start)
        gallery.add(
            velocity[:count],
            descriptors[:count],
            unit(rng, count),
            unit(rng, count),
            model_ids=[f"v-{number:016x}" for number in rng.integers(2**63, size=count)],
            families=family[:count],
            source=f"seisbind geology, seed {SEED}",
        )


def by_part(path: Path) -> dict[str, float]:
    """Bytes of each file, and of each table and index of the records."""
    found = {file.name: float(file.stat().st_size) for file in path.iterdir() if file.is_file()}
    with closing(sqlite3.connect(f"{(path / database.RECORDS).as_uri()}?mode=ro", uri=True)) as connection:
        try:
            tables = connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall()
        except sqlite3.OperationalError:  # a SQLite without dbstat
            tables = []
    return found | {f"{database.RECORDS}: {name}": float(size) for name, size in tables}


def measure(path: Path, models: int, part: Part, precision_m_s: float) -> dict[str, object]:
    with Gallery.create(path, fingerprint="bytes", dimension=DIMENSION, precision_m_s=precision_m_s) as gallery:
        fill(gallery, models, part)
    with Gallery.open(path, fingerprint=None) as gallery:
        count = len(gallery)
        total = gallery.info().bytes_per_model
    each = {name: round(size / count, 1) for name, size in sorted(by_part(path).items()) if size / count >= 1}
    return {"models": count, "bytes a model": round(total), "parts": each}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40_000)
    parser.add_argument("--family", action="append", help="family or group; default: the ten families")
    parser.add_argument("--precision", default="0.5", help="m/s, or exact; of format 2")
    parser.add_argument("--folder", type=Path, help="on whose disk; default: the system's for temporary files")
    args = parser.parse_args()
    families = tuple(expanded(args.family)) if args.family else FAMILIES
    precision_m_s = 0.0 if args.precision == "exact" else float(args.precision)
    part = drawn(min(DRAWN, args.models), families)
    report: dict[str, object] = {"families": list(families), "precision_m_s": precision_m_s}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report["format 2"] = measure(Path(folder) / "new", args.models, part, precision_m_s)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder, written_as_format_1():
        report["format 1"] = measure(Path(folder) / "old", args.models, part, 0.0)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
