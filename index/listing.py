"""The records of a gallery one after another, without its indices: as many as there are, in the memory of a few."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from seisbind.index.database import RECORDS
from seisbind.index.filter import Filter
from seisbind.index.record import Record
from seisbind.index.records import Records

PAGE = 500  # records read at once: below SQLite's limit on bound values


def list_records(path: Path, *, filter: Filter | None = None, limit: int | None = None) -> Iterator[Record]:
    """The records of the gallery in the folder ``path``, in the order they were added; 8 bytes are held of each.

    Models that are removed meanwhile may be missing.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`.
    """
    with closing(Records(path / RECORDS, writable=False, at_step=lambda step: None)) as records:
        rows = records.allowed(filter or Filter())[:limit]
        for start in range(0, len(rows), PAGE):
            page = rows[start : start + PAGE].tolist()
            with records.reading() as connection:
                marks = ", ".join("?" * len(page))
                found = connection.execute(f"SELECT model_id FROM models WHERE row IN ({marks}) ORDER BY row", page)
                own = records.records([model_id for (model_id,) in found.fetchall()])
            yield from own
