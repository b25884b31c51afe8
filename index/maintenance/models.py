"""The models of a gallery one after another, with all that is stored for them, each compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seisbind.index.storage.database import RECORDS
from seisbind.index.storage.record import Float32, NewModel, Record, RowLookup, digest_entry, xor
from seisbind.index.storage.records import Records
from seisbind.model.errors import GalleryDamaged

AT_ONCE = 256  # models in memory: 5 MB of maps


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A model as it is stored: its record, its map ``(depth, x)`` in m/s, and its embeddings ``(dimension,)``."""

    record: Record
    velocity: Float32
    velocity_embedding: Float32
    physics_embedding: Float32

    def as_new(self, model_id: str) -> NewModel:
        """The same model on its way into another gallery."""
        r = self.record
        return NewModel(
            model_id, r.family, r.tags, r.source, r.added_at, r.descriptors, self.velocity,
            self.velocity_embedding, self.physics_embedding,
        )  # fmt: skip


def stored_models(records: Records) -> Iterator[list[Stored]]:
    """All models, in the order they were added, of the gallery of one moment: that of the first read.

    Others may write meanwhile; their log grows until this ends, because what is read here stays in it.

    Raises:
        GalleryDamaged: one is not what was written; at the end, also that models are missing or too many.
    """
    with records.reading():
        state, last, count, digest = records.state(), 0, 0, bytes(32)
        while page := records.page(last, AT_ONCE):
            rows = np.array([row for row, _ in page], np.int64)
            ids = [record.model_id for _, record in page]
            row_of = dict(zip(ids, rows.tolist(), strict=True))
            if len(row_of) < len(ids):
                raise GalleryDamaged(f"The gallery at {records.path.parent} is damaged: an id is there twice.")
            lookup = RowLookup(state.generation, row_of, int(rows[-1]), lambda row, model_id: True)
            maps = records.velocities(ids, lookup)
            embeddings = records.embeddings(rows)
            yield [Stored(record, *each) for (_, record), *each in zip(page, maps, *embeddings, strict=True)]
            last, count = int(rows[-1]), count + len(page)
            entries = (digest_entry(row, record.model_id, bytes.fromhex(record.checksum)) for row, record in page)
            digest = xor([digest, *entries])
        records.check_rest(state, after=last, count=count, digest=digest)


def check_whole(folder: Path) -> tuple[int, int]:
    """Read every byte of a gallery's records and compare it with its checksum, in the memory of a few models.

    Returns:
        How many models it has, and its generation.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`, and where anything is not what was written.
    """
    records = Records(folder / RECORDS)
    try:
        if wrong := records.structure():
            raise GalleryDamaged(f"The gallery at {folder} is damaged: {wrong[0]}.")
        count = sum(map(len, stored_models(records)))
        return count, records.state().generation
    finally:
        records.close()
