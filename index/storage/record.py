"""One velocity model as the gallery stores it, and its checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Ids = NDArray[np.object_]
Checksums = NDArray[np.void]

CHECKSUM = np.dtype("V32")  # a SHA-256
LITTLE = np.dtype("<f4")  # how float32 arrays are stored


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One velocity model of the gallery, without its map.

    Attributes:
        descriptors: ``(13,)`` float32, in the order of `seisbind.model.ground.descriptors.DESCRIPTORS`.
        added_at: ISO 8601, UTC.
        shape: ``(depth, x)`` of the map, cells.
        checksum: SHA-256 of everything stored for the model, hexadecimal.
    """

    model_id: str
    family: str | None
    tags: tuple[str, ...]
    source: str | None
    added_at: str
    descriptors: Float32
    shape: tuple[int, int]
    checksum: str


@dataclass(frozen=True, slots=True, eq=False)
class NewModel:
    """A checked velocity model on its way into the gallery, and its two embeddings ``(dimension,)``, unit length."""

    model_id: str
    family: str | None
    tags: tuple[str, ...]
    source: str | None
    added_at: str
    descriptors: Float32
    velocity: Float32
    velocity_embedding: Float32
    physics_embedding: Float32


@dataclass(frozen=True, slots=True)
class Coded:
    """What is stored of a model's map ``(depth, x)`` and of its two embeddings, and the checksums of what it was."""

    shape: tuple[int, int]
    velocity: bytes
    velocity_embedding: bytes
    physics_embedding: bytes
    velocity_sha256: bytes
    embeddings_sha256: bytes


@dataclass(frozen=True, slots=True, eq=False)
class CodedModel:
    """As `NewModel`, with its map coded already."""

    model_id: str
    family: str | None
    tags: tuple[str, ...]
    source: str | None
    added_at: str
    descriptors: Float32
    coded: Coded
    velocity_embedding: Float32
    physics_embedding: Float32


class Added(list[str]):
    """The ids of models that were added, or were there already.

    Attributes:
        same_map: id that was given → id of the model that has the same map, of those for which there is one.
        written: the ids of those that were added.
    """

    def __init__(self, model_ids: Iterable[str], same_map: Mapping[str, str], written: Sequence[str]) -> None:
        super().__init__(model_ids)
        self.same_map = dict(same_map)
        self.written = list(written)


@dataclass(frozen=True, slots=True)
class Histogram:
    """How many models lie in each of equal parts of the range from ``low`` to ``high``, both included."""

    low: float
    high: float
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class RecordColumns:
    """The records of some models by column, each compared with its checksum.

    Attributes:
        rows: ascending.
        tags: of each, sorted.
        descriptors: ``(model, 13)``.
        sources: where each came from.
        added: when each was added, `milliseconds`.
    """

    rows: Int64
    ids: Ids
    checksums: Checksums
    families: Sequence[str | None]
    tags: Sequence[tuple[str, ...]]
    descriptors: Float32
    sources: Sequence[str | None]
    added: Int64


@dataclass(frozen=True, slots=True)
class GalleryState:
    """The state of a gallery after ``generation`` changes: how many models it has and the digest of all of them."""

    generation: int
    count: int
    digest: bytes

    @classmethod
    def of(cls, facts: Mapping[str, str]) -> GalleryState:
        """As the ``meta`` table has it."""
        return cls(int(facts["generation"]), int(facts["count"]), bytes.fromhex(facts["digest"]))


@dataclass(frozen=True, slots=True, eq=False)
class Catalogue:
    """Which models there are, by row: ``rows`` ascending, their ``ids`` and the ``checksums`` of their records.

    They match the digest of ``state``.
    """

    state: GalleryState
    rows: Int64
    ids: Ids
    checksums: Checksums


@dataclass(frozen=True, slots=True, eq=False)
class RowLookup:
    """Where a gallery that is in memory after ``generation`` changes has its models.

    Attributes:
        row_of: the row of each model id. It may be ahead of ``generation``, for changes go on while it is used.
        last_row: the highest row of ``generation``.
        holds: whether a row is that of a model id in ``generation``.
    """

    generation: int
    row_of: Mapping[str, int]
    last_row: int
    holds: Callable[[int, str], bool]


def utc_now() -> str:
    """ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def milliseconds(added_at: str) -> int:
    """Since 1970, of a time as `utc_now` writes it; 0 of any other text."""
    try:
        return round(datetime.fromisoformat(added_at).timestamp() * 1000)
    except ValueError:
        return 0


def digest_entry(row: int, model_id: str, checksum: bytes) -> bytes:
    """A model's share of the digest of all models, 32 bytes."""
    return hashlib.sha256(f"{row} {model_id} ".encode() + checksum).digest()


def xor(entries: Iterable[bytes]) -> bytes:
    words = np.frombuffer(b"".join(entries), np.uint64).reshape(-1, 4)
    return bytes(np.bitwise_xor.reduce(words, axis=0).tobytes())


def objects(items: Sequence[str]) -> Ids:
    """Strings as an array of objects."""
    array = np.empty(len(items), object)
    array[:] = items
    return array


def velocity_sha256(blob: bytes, shape: tuple[int, ...]) -> bytes:
    return hashlib.sha256(f"{shape[0]}x{shape[1]} ".encode() + blob).digest()


def embeddings_sha256(velocity: bytes, physics: bytes) -> bytes:
    return hashlib.sha256(velocity + physics).digest()


def record_checksum(
    words: tuple[str, str | None, tuple[str, ...], str | None, str, tuple[int, int]],
    stored: Sequence[float],
    of_velocity: bytes,
    of_embeddings: bytes,
) -> bytes:
    """The checksum of a whole model.

    Args:
        words: its id, family, tags, source, when it was added, and the shape of its map.
        stored: its descriptors as SQLite has them, in float64, where a flipped bit may be too small for float32.
    """
    numbers = np.asarray(stored, "<f8").tobytes()
    return hashlib.sha256(json.dumps(words).encode() + numbers + of_velocity + of_embeddings).digest()


def content_id(velocity: Float32) -> str:
    """The id of a model that was given none: ``v-`` and 16 hexadecimal digits of the SHA-256 of its map."""
    return id_of_map(velocity_sha256(velocity.astype(LITTLE).tobytes(), velocity.shape))


def id_of_map(sha256: bytes) -> str:
    """`content_id` of the map that has this SHA-256."""
    return "v-" + sha256.hex()[:16]
