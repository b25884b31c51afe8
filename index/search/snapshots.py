"""Snapshots beside the records: faster to open than reading the records, checked before they are parsed.

``velocity.faiss`` is what `VectorIndex.dump` writes; ``velocity.json`` is its manifest. A vector's key is the first
eight bytes of its record's checksum, so that a snapshot is only ever matched with the content it was made from,
whatever happened to the records since. ``columns.bin`` and ``columns.json`` are the same for `Columns`.

Both files of a snapshot are written and synced beside the old ones before the first takes its place, and a manifest
that has not taken its place yet counts: a writer that is killed in between leaves a snapshot that can be used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seisbind.index.search.columns import Columns, ColumnsSnapshot
from seisbind.index.search.vectors import VectorIndex
from seisbind.index.storage.folder import MAPPED, SPACES
from seisbind.index.storage.record import Int64
from seisbind.model.files import sync
from seisbind.model.ground.descriptors import NAMES

FORMAT_VERSION = 1
COLUMNS_VERSION = 2  # since 2 with sources and times; one of before is made anew from the records
COLUMNS = "columns"
TEMPORARY = ".tmp"

AtStep = Callable[[str], None]


def _format(space: str) -> int:
    return COLUMNS_VERSION if space == COLUMNS else FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of a snapshot, stored beside it."""

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
            numbers = (manifest.format, manifest.dimension, manifest.count, manifest.generation, manifest.size_bytes)
            texts = (manifest.space, manifest.fingerprint, manifest.sha256)
            sane = all(type(each) is int and each >= 0 for each in numbers) and all(type(each) is str for each in texts)
            if sane and manifest.dump() == text:
                return manifest
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError("the manifest is damaged") from error
        raise ValueError("the manifest is damaged")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A loaded index: vector i belongs to the record with key ``keys[i]``."""

    keys: Int64
    index: VectorIndex
    generation: int


@dataclass(frozen=True, slots=True)
class SnapshotWriter:
    """Writes the snapshots of one generation of a gallery.

    Raises:
        OSError: the disk refused. What was there before is still there, or will be recognised as not matching.
    """

    folder: Path
    fingerprint: str
    generation: int
    at_step: AtStep

    def write_index(self, space: str, index: VectorIndex, positions: Int64, keys: Int64) -> None:
        """``{space}.faiss`` and ``{space}.json``: the vectors at ``positions``, whose records have ``keys``."""
        self._write(f"{space}.faiss", space, index.dimension, len(keys), partial(index.dump, positions, keys))

    def write_columns(self, columns: Columns, positions: Int64) -> None:
        """``columns.bin`` and ``columns.json``: of the models at ``positions``."""
        self._write(f"{COLUMNS}.bin", COLUMNS, len(NAMES), len(positions), partial(columns.dump, positions))

    def _write(
        self, name: str, space: str, dimension: int, count: int, dump: Callable[[Callable[[bytes], None]], None]
    ) -> None:
        """Write a file and its manifest: whatever happens, there is the old pair, the new one, or the new content with
        the new manifest still beside the old one."""
        digest = hashlib.sha256()
        written = 0
        path = self.folder / name
        beside = path.with_suffix(".json")
        temporary, manifest_temporary = (each.with_name(each.name + TEMPORARY) for each in (path, beside))
        try:
            with temporary.open("wb") as handle:

                def write(content: bytes) -> None:
                    nonlocal written
                    digest.update(content)
                    written += len(content)
                    handle.write(content)

                dump(write)
            self._sync(temporary, path.name)
            manifest = Manifest(
                _format(space), space, self.fingerprint, dimension, count, self.generation, digest.hexdigest(), written
            )
            manifest_temporary.write_bytes(manifest.dump())
            self._sync(manifest_temporary, beside.name)
            sync(self.folder)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            manifest_temporary.unlink(missing_ok=True)
            raise
        self.at_step(f"{path.name}:renamed")
        sync(self.folder)
        manifest_temporary.replace(beside)
        self.at_step(f"{beside.name}:renamed")
        sync(self.folder)

    def _sync(self, path: Path, name: str) -> None:
        self.at_step(f"{name}:written")
        sync(path)
        self.at_step(f"{name}:synced")


def recover_snapshots(folder: Path) -> None:
    """Complete or remove what a killed writer left: a manifest that fits takes its place, other temporary files go.

    The caller holds the lock of ``folder``. Nothing is lost where the disk refuses: the records have everything.
    """
    with suppress(OSError):
        (folder / f"{MAPPED}{TEMPORARY}").unlink(missing_ok=True)
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
        ValueError: it cannot be trusted; the sentence is a clause that says why.
    """
    path = folder / f"{space}.faiss"
    manifest, content = _load_checked(path, space, fingerprint, dimension)
    loaded = VectorIndex.load(content)
    if loaded is None or (len(loaded[1]), loaded[1].dimension) != (manifest.count, dimension):
        raise ValueError(f"{path.name} is not the index that its manifest describes")
    return Snapshot(*loaded, manifest.generation)


def load_columns_snapshot(folder: Path, *, fingerprint: str) -> ColumnsSnapshot:
    """Read the columns' snapshot. Raises as `load_snapshot`."""
    manifest, content = _load_checked(folder / f"{COLUMNS}.bin", COLUMNS, fingerprint, len(NAMES))
    return ColumnsSnapshot.load(content, manifest.count)


def _load_checked(path: Path, space: str, fingerprint: str, dimension: int) -> tuple[Manifest, NDArray[np.uint8]]:
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
    if manifest.space == COLUMNS and manifest.format < COLUMNS_VERSION:
        raise FileNotFoundError(manifest_path)  # of an older SeisBind, as good as none
    if manifest.format != _format(manifest.space):
        raise ValueError(f"its format is {manifest.format}, this version reads {_format(manifest.space)}")
    if path.stat().st_size != manifest.size_bytes:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, its manifest says {manifest.size_bytes}")
    content = np.fromfile(path, dtype=np.uint8)
    if hashlib.sha256(content.data).hexdigest() != manifest.sha256:
        raise ValueError(f"{path.name} does not match the checksum in its manifest")
    return manifest, content
