"""FAISS files beside the records: faster to open than replaying, checked before they are parsed, never the truth.

``velocity.faiss`` is an ``IndexIDMap`` of an ``IndexFlatIP`` in FAISS's own format; ``velocity.json`` says what it is.
A vector's id is the key of its record, the first eight bytes of the record's checksum, so that a snapshot can only
ever be matched with the content it was made from, whatever happened to the records since.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from seisbind.index.faiss_index import Float32, Int64, VectorIndex, faiss
from seisbind.index.folder import sync_folder

FORMAT_VERSION = 1
IO_BYTES = 1 << 20

AtStep = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a snapshot says of itself."""

    format: int
    space: str
    fingerprint: str
    dimension: int
    count: int
    generation: int  # of the records it was made from
    sha256: str  # of the index file
    size_bytes: int

    def dump(self) -> bytes:
        """Canonical JSON with its own checksum: no byte of it can change unnoticed."""
        fields = asdict(self)
        check = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
        return (json.dumps(fields | {"check": check}, sort_keys=True, indent=1) + "\n").encode()

    @classmethod
    def parse(cls, text: bytes) -> Manifest:
        """The inverse of `dump`. Raises ValueError if ``text`` is anything else."""
        try:
            fields = json.loads(text)
            del fields["check"]
            manifest = cls(**fields)
            if manifest.dump() == text:
                return manifest
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError("the manifest is damaged") from error
        raise ValueError("the manifest is damaged")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A loaded index: vector i belongs to the record with key ``keys[i]``."""

    keys: Int64
    index: VectorIndex
    generation: int


def write_snapshot(
    folder: Path, space: str, vectors: Float32, keys: Int64, *, fingerprint: str, generation: int, at_step: AtStep
) -> None:
    """Put ``{space}.faiss`` and ``{space}.json`` in place, each whole or not at all.

    Args:
        vectors: ``(count, dimension)`` float32; keys: ``(count,)``.

    Raises:
        OSError: the disk refused. What was there before is still there, or will be recognised as not matching.
    """
    index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    if len(keys):
        index.add_with_ids(vectors, keys)
    digest = hashlib.sha256()
    written = 0

    def write_index(write: Callable[[bytes], None]) -> None:
        def block(content: bytes) -> None:
            nonlocal written
            digest.update(content)
            written += len(content)
            write(content)

        faiss.write_index(index, faiss.PyCallbackIOWriter(block, IO_BYTES))

    replace_file(folder / f"{space}.faiss", write_index, at_step=at_step)
    manifest = Manifest(
        FORMAT_VERSION, space, fingerprint, vectors.shape[1], len(keys), generation, digest.hexdigest(), written
    )
    replace_file(folder / f"{space}.json", lambda write: write(manifest.dump()), at_step=at_step)


def replace_file(path: Path, write_to: Callable[[Callable[[bytes], None]], None], *, at_step: AtStep) -> None:
    """Write ``path`` so that it holds all of the new bytes or all of the old, even through a power cut."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as handle:

            def write(content: bytes) -> None:
                handle.write(content)

            write_to(write)
            handle.flush()
            at_step(f"{path.name}:written")
            os.fsync(handle.fileno())
        at_step(f"{path.name}:synced")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    at_step(f"{path.name}:renamed")
    sync_folder(path.parent)


def load_snapshot(folder: Path, space: str, *, fingerprint: str, dimension: int) -> Snapshot:
    """Read a snapshot. FAISS sees no byte of it before its checksum has been found right.

    Raises:
        FileNotFoundError: there is none.
        ValueError: why it is not to be believed, as a clause.
    """
    text = (folder / f"{space}.json").read_bytes()
    manifest = Manifest.parse(text)
    if manifest.format != FORMAT_VERSION:
        raise ValueError(f"its format is {manifest.format}, this version reads {FORMAT_VERSION}")
    if (manifest.space, manifest.fingerprint, manifest.dimension) != (space, fingerprint, dimension):
        raise ValueError("it belongs to another gallery")
    path = folder / f"{space}.faiss"
    if path.stat().st_size != manifest.size_bytes:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, its manifest says {manifest.size_bytes}")
    content = np.fromfile(path, dtype=np.uint8)
    if hashlib.sha256(content.data).hexdigest() != manifest.sha256:
        raise ValueError(f"{path.name} does not match the checksum in its manifest")
    mapped = faiss.deserialize_index(content)
    flat = faiss.downcast_index(mapped.index)
    if not isinstance(flat, faiss.IndexFlatIP) or (flat.ntotal, flat.d) != (manifest.count, dimension):
        raise ValueError(f"{path.name} is not the index that its manifest describes")
    keys = faiss.vector_to_array(mapped.id_map).copy()
    return Snapshot(keys, VectorIndex.adopt(flat, mapped), manifest.generation)
