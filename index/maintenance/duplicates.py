"""Models of a gallery that are the same ground: with equal maps, or nearly equal embeddings of their maps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from seisbind.index.gallery import Gallery
from seisbind.index.storage.database import RECORDS, translate_errors
from seisbind.index.storage.records import Records
from seisbind.model.errors import InvalidQuery

AT_ONCE = 256  # models whose neighbours are searched at once
NEIGHBOURS = 20  # of each, that may be the same ground


@dataclass(frozen=True, slots=True)
class Group:
    """Ids of models with one map, the one added first first."""

    model_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Near:
    """Two models whose maps differ and look alike to the encoder: their ids, and the cosine of their embeddings."""

    first: str
    second: str
    similarity: float


def equal_maps(path: Path) -> Iterator[Group]:
    """The groups of models of the gallery in ``path`` that have the same map, in the order of their first.

    Maps are compared by the SHA-256 that is stored with them, in a file of SQLite's own that goes when this ends: the
    gallery may be larger than memory, and others may write it.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`.
    """
    with closing(Records(path / RECORDS)) as records, closing(sqlite3.connect("", isolation_level=None)) as own:
        with records.reading() as connection, translate_errors(path, "read"):
            own.execute("CREATE TABLE maps (sha256 BLOB, row INTEGER, model_id TEXT)")
            found = connection.execute("SELECT velocity_sha256, row, model_id FROM models ORDER BY row")
            own.execute("BEGIN")
            while some := found.fetchmany(5000):
                own.executemany("INSERT INTO maps VALUES (?, ?, ?)", some)
            own.execute("COMMIT")
            own.execute("CREATE INDEX by_map ON maps (sha256)")
        groups = own.execute(
            "SELECT sha256, min(row) AS first FROM maps GROUP BY sha256 HAVING count(*) > 1 ORDER BY 2"
        )
        for sha256, _ in groups:
            members = own.execute("SELECT model_id FROM maps WHERE sha256 = ? ORDER BY row", (sha256,))
            yield Group(tuple(model_id for (model_id,) in members))


def near_equal(gallery: Gallery, similarity: float) -> Iterator[Near]:
    """Pairs of models whose velocity embeddings have a cosine of at least ``similarity``, each pair once.

    Of each model its `NEIGHBOURS` nearest are looked at. Pairs with equal maps are among them.

    Raises:
        InvalidQuery: ``similarity`` is not between 0 and 1.
    """
    if not 0 < similarity <= 1:
        raise InvalidQuery(f"A similarity is above 0 and at most 1; got {similarity!r}.")
    ids = gallery.model_ids()
    order = {model_id: i for i, model_id in enumerate(ids)}
    seen: set[tuple[str, str]] = set()
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        vectors = gallery.embeddings(part)[0]
        for model_id, hits in zip(part, gallery.search_velocity(vectors, NEIGHBOURS + 1, exact=True), strict=True):
            for hit in hits:
                if hit.similarity < similarity:
                    break
                pair = (model_id, hit.model_id)
                first, second = pair if order[pair[0]] < order.get(pair[1], len(ids)) else pair[::-1]
                if first != second and (first, second) not in seen:
                    seen.add((first, second))
                    yield Near(first, second, hit.similarity)
