"""Velocity models as rows of Milvus's collections, and the checks of what comes back.

A row has the record as the folder's checksum has it (`record_checksum`: the same model has the same checksum in both),
columns for filters, and a seal: a SHA-256 over that checksum, the row's number and the vector beside it. Every hit is
compared with all of them before it is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seisbind.index.cluster.expressions import key
from seisbind.index.storage.record import (
    LITTLE,
    Float32,
    NewModel,
    Record,
    embeddings_sha256,
    record_checksum,
    velocity_sha256,
)
from seisbind.model.errors import GalleryDamaged, InvalidQuery
from seisbind.model.ground.descriptors import NAMES

MAX_TEXT = 65535  # bytes of a VARCHAR of Milvus
MAX_KEY = 4000  # 500 characters of four bytes, in hexadecimal
MAX_TAGS = 1024

_TEXT = {"max_length": 128}
# name, Milvus's type and its parameters; the first is the key
FIELDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("model_id", "VARCHAR", _TEXT),
    ("row", "INT64", {}),
    ("words", "VARCHAR", {"max_length": MAX_TEXT}),
    ("family_key", "VARCHAR", {"max_length": MAX_KEY}),
    ("tag_keys", "ARRAY", {"element_type": "VARCHAR", "max_capacity": MAX_TAGS, "max_length": MAX_KEY}),
    ("source_key", "VARCHAR", {"max_length": MAX_KEY}),
    ("added_at", "VARCHAR", {"max_length": 64}),
    *((name, "DOUBLE", {}) for name in NAMES),
    ("velocity_sha256", "VARCHAR", _TEXT),
    ("embeddings_sha256", "VARCHAR", _TEXT),
    ("checksum", "VARCHAR", _TEXT),
    ("seal", "VARCHAR", _TEXT),
)
COLUMNS = tuple(name for name, _, _ in FIELDS)
ALL = (*COLUMNS, "vector")


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """A record that has been compared with its checksums.

    Attributes:
        row: breaks ties; higher ones were added later.
        map_key: SHA-256 of its map, hexadecimal, under which that is stored.
        of_embeddings: SHA-256 of both its embeddings, hexadecimal.
        vector: the embedding of the collection that it was read from; None if it was not read.
    """

    record: Record
    row: int
    map_key: str
    of_embeddings: str
    vector: Float32 | None


def rows_of(model: NewModel, row: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model as a row of the velocity collection and as one of the physics collection.

    Raises:
        InvalidQuery: more text in its record, or more tags, than Milvus stores.
    """
    shape = (int(model.velocity.shape[0]), int(model.velocity.shape[1]))
    words = (model.model_id, model.family, model.tags, model.source, model.added_at, shape)
    text = json.dumps(words)
    if len(text) > MAX_TEXT or len(model.tags) > MAX_TAGS:
        raise InvalidQuery(
            f"The record of {model.model_id!r} has {len(text)} bytes of text and {len(model.tags)} tags; in Milvus it "
            f"has {MAX_TEXT} and {MAX_TAGS} at most."
        )
    vectors = [each.astype(LITTLE).tobytes() for each in (model.velocity_embedding, model.physics_embedding)]
    of_velocity = map_key(model.velocity)
    of_embeddings = embeddings_sha256(*vectors)
    stored = model.descriptors.tolist()
    checksum = record_checksum(words, stored, bytes.fromhex(of_velocity), of_embeddings)
    common = {
        "model_id": model.model_id,
        "row": row,
        "words": text,
        "family_key": key(model.family),
        "tag_keys": [key(tag) for tag in model.tags],
        "source_key": key(model.source),
        "added_at": model.added_at,
        **dict(zip(NAMES, stored, strict=True)),
        "velocity_sha256": of_velocity,
        "embeddings_sha256": of_embeddings.hex(),
        "checksum": checksum.hex(),
    }
    velocity, physics = (
        common | {"seal": _seal(checksum, row, blob), "vector": vector.tolist()}
        for blob, vector in zip(vectors, (model.velocity_embedding, model.physics_embedding), strict=True)
    )
    return velocity, physics


def sealed(row: Mapping[str, Any], where: str) -> Sealed:
    """The record in a row, with its vector where that was read.

    Raises:
        GalleryDamaged: something in it is not what was written.
    """
    try:
        return _sealed(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        named = f"{row.get('model_id')!r:.150}"
        raise GalleryDamaged(
            f"The gallery at {where} is damaged: the record of {named} is not what was written ({error!s:.150}). "
            "'seisbind gallery verify' says what else."
        ) from error


def _sealed(row: Mapping[str, Any]) -> Sealed:
    words = json.loads(row["words"])
    model_id, family, tags, source, added_at, (depth, x) = words
    stored = [float(row[name]) for name in NAMES]
    of_velocity, of_embeddings = bytes.fromhex(row["velocity_sha256"]), bytes.fromhex(row["embeddings_sha256"])
    again = (model_id, family, tuple(tags), source, added_at, (depth, x))
    checksum = record_checksum(again, stored, of_velocity, of_embeddings)
    if checksum.hex() != row["checksum"]:
        raise ValueError("its checksum does not fit")
    said = (row["model_id"], row["family_key"], list(row["tag_keys"]), row["source_key"], row["added_at"])
    if said != (model_id, key(family), [key(tag) for tag in tags], key(source), added_at):
        raise ValueError("its columns are not those of the record")
    vector = None
    if "vector" in row:
        vector = np.asarray(row["vector"], np.float32)
        if row["seal"] != _seal(checksum, int(row["row"]), vector.astype(LITTLE).tobytes()):
            raise ValueError("its embedding or its number does not fit")
    descriptors = np.asarray(stored, np.float32)
    record = Record(model_id, family, tuple(tags), source, added_at, descriptors, (depth, x), checksum.hex())
    return Sealed(record, int(row["row"]), row["velocity_sha256"], row["embeddings_sha256"], vector)


def map_key(velocity: Float32) -> str:
    """SHA-256 of a map, as its record has it, hexadecimal."""
    return velocity_sha256(velocity.astype(LITTLE).tobytes(), velocity.shape).hex()


def both_fit(found: Sealed, velocity: Sequence[float] | Float32, physics: Sequence[float] | Float32) -> bool:
    """Whether two embeddings are those that a record was written with."""
    blobs = [np.asarray(each, LITTLE).tobytes() for each in (velocity, physics)]
    return embeddings_sha256(*blobs).hex() == found.of_embeddings


def _seal(checksum: bytes, row: int, vector: bytes) -> str:
    return hashlib.sha256(checksum + row.to_bytes(8, "little") + vector).hexdigest()
