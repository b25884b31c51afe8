"""The records of a gallery one after another, without its indices: as many as there are, in the memory of a few."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

from seisbind.index.search.filter import Filter
from seisbind.index.storage.database import RECORDS
from seisbind.index.storage.record import Record
from seisbind.index.storage.records import Records

PAGE = 500  # records read at once


def list_records(path: Path, *, filter: Filter | None = None, limit: int | None = None) -> Iterator[Record]:
    """The records of the gallery in the folder ``path``, in the order they were added.

    Models that are removed meanwhile may be missing, and those that are added may be there.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`.
    """
    return islice(_matching(path, filter or Filter()), limit)


def _matching(path: Path, condition: Filter) -> Iterator[Record]:
    with closing(Records(path / RECORDS)) as records:
        last = 0
        while page := records.page(last, PAGE):
            last = page[-1][0]
            yield from (record for _, record in page if condition.matches(record))
