"""The records of a gallery one after another, without its indices: as many as there are, in the memory of a few."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from seisbind.index.search.filter import Filter
from seisbind.index.storage.database import RECORDS
from seisbind.index.storage.record import Record, digest_entry, xor
from seisbind.index.storage.records import Records

PAGE = 500  # records read at once


def list_records(path: Path, *, filter: Filter | None = None, limit: int | None = None) -> Iterator[Record]:
    """The records of the gallery in the folder ``path``, in the order they were added.

    Each is compared with its checksum before it is given, and all of them, also those that are not chosen, with the
    digest of the whole gallery after the last. Models that are removed meanwhile may be missing, and those that are
    added may be there; then the whole is not compared.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`; GalleryDamaged also at the end.
    """
    condition = filter or Filter()
    with closing(Records(path / RECORDS)) as records:
        state, last, count, digest, left = records.state(), 0, 0, bytes(32), limit
        while left != 0 and (page := records.page(last, PAGE)):
            for row, record in page:
                if left != 0 and condition.matches(record):
                    yield record
                    left = None if left is None else left - 1
                last, count = row, count + 1
                digest = xor([digest, digest_entry(row, record.model_id, bytes.fromhex(record.checksum))])
        records.check_rest(state, after=last, count=count, digest=digest)
