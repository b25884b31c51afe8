"""Files beside the records: faster to open than replaying, checked before they are parsed, never the truth.

``velocity.faiss`` is an ``IndexIDMap`` of an ``IndexFlatIP`` in FAISS's own format; ``velocity.json`` says what it is.
A vector's id is the key of its record, the first eight bytes of the record's checksum, so that a snapshot can only
ever be matched with the content it was made from, whatever happened to the records since. ``columns.bin`` and
``columns.json`` are the same for what filters and counts are made from (see `columns`).

Both files of a snapshot are written and synced beside the old ones before the first takes its place, and a manifest
that has not taken its place yet counts: a writer that is killed in between leaves a snapshot that can be used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from seisbind.index.search.columns import Columns, StoredColumns, dump_columns, load_columns
from seisbind.index.search.vectors import Float32, Int64, VectorIndex, faiss
from seisbind.index.storage.folder import SPACES, sync_folder
from seisbind.model.ground.descriptors import NAMES

FORMAT_VERSION = 1
IO_BYTES = 1 << 20
COLUMNS = "columns"
TEMPORARY = ".tmp"

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
    """Put ``{space}.faiss`` and ``{space}.json`` in place.

    Args:
        vectors: ``(count, dimension)`` float32; keys: ``(count,)``.

    Raises:
        OSError: the disk refused. What was there before is still there, or will be recognised as not matching.
    """
    index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
    if len(keys):
        index.add_with_ids(vectors, keys)
    manifest = Manifest(FORMAT_VERSION, space, fingerprint, vectors.shape[1], len(keys), generation, "", 0)
    _put(
        folder / f"{space}.faiss",
        lambda block: faiss.write_index(index, faiss.PyCallbackIOWriter(block, IO_BYTES)),
        manifest,
        at_step,
    )


def write_columns(
    folder: Path, columns: Columns, positions: Int64, *, fingerprint: str, generation: int, at_step: AtStep
) -> None:
    """Put ``columns.bin`` and ``columns.json`` in place, of the models at ``positions``. Raises as `write_snapshot`."""
    manifest = Manifest(FORMAT_VERSION, COLUMNS, fingerprint, len(NAMES), len(positions), generation, "", 0)

    def write(block: Callable[[bytes], None]) -> None:
        for content in dump_columns(columns, positions):
            block(content)

    _put(folder / f"{COLUMNS}.bin", write, manifest, at_step)


def _put(path: Path, write_to: Callable[[Callable[[bytes], None]], None], manifest: Manifest, at_step: AtStep) -> None:
    """Write ``path`` and its manifest, so that whatever happens there is the old pair, the new one, or the new content
    with the new manifest still beside the old one."""
    digest = hashlib.sha256()
    written = 0
    beside = path.with_suffix(".json")
    temporary, manifest_temporary = (each.with_name(each.name + TEMPORARY) for each in (path, beside))
    try:
        with temporary.open("wb") as handle:

            def block(content: bytes) -> None:
                nonlocal written
                digest.update(content)
                written += len(content)
                handle.write(content)

            write_to(block)
            _sync(handle, path.name, at_step)
        with manifest_temporary.open("wb") as handle:
            handle.write(replace(manifest, sha256=digest.hexdigest(), size_bytes=written).dump())
            _sync(handle, beside.name, at_step)
        sync_folder(path.parent)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        manifest_temporary.unlink(missing_ok=True)
        raise
    at_step(f"{path.name}:renamed")
    sync_folder(path.parent)
    manifest_temporary.replace(beside)
    at_step(f"{beside.name}:renamed")
    sync_folder(path.parent)


def _sync(handle: BinaryIO, name: str, at_step: AtStep) -> None:
    handle.flush()
    at_step(f"{name}:written")
    os.fsync(handle.fileno())
    at_step(f"{name}:synced")


def settle_snapshots(folder: Path) -> None:
    """Finish what a killed writer began: a manifest that fits takes its place, and the rest goes.

    The caller holds the lock of ``folder``. Nothing is lost where the disk refuses: the records have everything.
    """
    for name in (*(f"{space}.faiss" for space in SPACES), f"{COLUMNS}.bin"):
        path = folder / name
        beside = path.with_suffix(".json")
        temporary, manifest_temporary = (each.with_name(each.name + TEMPORARY) for each in (path, beside))
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not manifest_temporary.exists():
            continue
        with suppress(OSError, ValueError):
            _read(path, manifest_temporary)
            manifest_temporary.replace(beside)
        with suppress(OSError):
            manifest_temporary.unlink(missing_ok=True)


def load_snapshot(folder: Path, space: str, *, fingerprint: str, dimension: int) -> Snapshot:
    """Read a snapshot. FAISS sees no byte of it before its checksum has been found right.

    Raises:
        FileNotFoundError: there is none.
        ValueError: why it is not to be believed, as a clause.
    """
    path = folder / f"{space}.faiss"
    manifest, content = _checked(path, space, fingerprint, dimension)
    mapped = faiss.deserialize_index(content)
    flat = faiss.downcast_index(mapped.index)
    if not isinstance(flat, faiss.IndexFlatIP) or (flat.ntotal, flat.d) != (manifest.count, dimension):
        raise ValueError(f"{path.name} is not the index that its manifest describes")
    keys = faiss.vector_to_array(mapped.id_map).copy()
    return Snapshot(keys, VectorIndex.adopt(flat, mapped), manifest.generation)


def load_columns_snapshot(folder: Path, *, fingerprint: str) -> StoredColumns:
    """Read the columns' snapshot. Raises as `load_snapshot`."""
    manifest, content = _checked(folder / f"{COLUMNS}.bin", COLUMNS, fingerprint, len(NAMES))
    return load_columns(content, manifest.count)


def _checked(path: Path, space: str, fingerprint: str, dimension: int) -> tuple[Manifest, NDArray[np.uint8]]:
    """The manifest and the content of a snapshot that are what they were when it was written."""
    beside = path.with_suffix(".json")
    try:
        manifest, content = _read(path, beside)
    except (FileNotFoundError, ValueError) as error:
        try:  # killed after the content took its place and before its manifest did
            manifest, content = _read(path, beside.with_name(beside.name + TEMPORARY))
        except (FileNotFoundError, ValueError):
            raise error from None
    if (manifest.space, manifest.fingerprint, manifest.dimension) != (space, fingerprint, dimension):
        raise ValueError("it belongs to another gallery")
    return manifest, content


def _read(path: Path, manifest_path: Path) -> tuple[Manifest, NDArray[np.uint8]]:
    manifest = Manifest.parse(manifest_path.read_bytes())
    if manifest.format != FORMAT_VERSION:
        raise ValueError(f"its format is {manifest.format}, this version reads {FORMAT_VERSION}")
    if path.stat().st_size != manifest.size_bytes:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, its manifest says {manifest.size_bytes}")
    content = np.fromfile(path, dtype=np.uint8)
    if hashlib.sha256(content.data).hexdigest() != manifest.sha256:
        raise ValueError(f"{path.name} does not match the checksum in its manifest")
    return manifest, content
