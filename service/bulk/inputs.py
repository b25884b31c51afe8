"""Files of gathers on this machine: which are meant, and their gathers without reading more than is asked about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import DatasetError, MalformedUpload
from seisbind.service.client.parts import Stack
from seisbind.service.formats.npy import MAX_HEADER_BYTES, NPY_MAGIC, ZIP_MAGIC, Limits, NpyHeader, read_npy_header
from seisbind.service.formats.reader import Geometry, read_stack

SUFFIXES = (".npy", ".npz", ".segy", ".sgy", ".su")  # that are taken from a folder; a file that is named may have any
WILD = frozenset("*?[")
START_BYTES = MAX_HEADER_BYTES + 12
NPZ_LIMITS = Limits(unpacked_bytes=8 << 30, items=1 << 31)  # the user's own, which has to fit into memory


@dataclass(frozen=True, slots=True)
class GatherFile:
    """One file, opened: a ``stack`` with its geometry, or the bytes of one gather (SEG-Y, SU, or nothing known)."""

    stack: Stack | None
    geometry: Geometry
    content: bytes = b""

    @property
    def gathers(self) -> int:
        """How many it holds."""
        return 1 if self.stack is None else self.stack.shape[0]


class NpyFile:
    """The gathers of an npy file, first axis slowest, of which a range is read at a time. A `calls.Stack`."""

    def __init__(self, path: Path, header: NpyHeader) -> None:
        self.shape = header.shape if len(header.shape) == 4 else (1, *header.shape)
        self.dtype = header.dtype
        self._path = path
        self._start = header.start

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first, end, _ = rows.indices(self.shape[0])
        one = math.prod(self.shape[1:])
        with self._path.open("rb") as file:
            file.seek(self._start + first * one * self.dtype.itemsize)
            read = np.fromfile(file, dtype=self.dtype, count=(end - first) * one)
        if read.size != (end - first) * one:
            raise MalformedUpload(f"{self._path} ends within gather {first + read.size // one}; it was cut off.")
        return read.reshape(end - first, *self.shape[1:])


def gather_files(named: Sequence[Path]) -> list[Path]:
    """The files that are meant, each once: files as they are, folders and patterns (``*``, ``**``) in order of name.

    Raises:
        DatasetError: a folder or a pattern without any.
    """
    found: dict[Path, None] = {}
    for path in named:
        if path.is_dir():
            some = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES and each.is_file())
            nothing = f"The folder {path} holds no file that ends with {', '.join(SUFFIXES)}."
        elif WILD & set(str(path)) and not path.exists():
            some = sorted(each for each in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if each.is_file())
            nothing = f"No file fits {path}."
        else:
            some, nothing = [path], ""
        if not some:
            raise DatasetError(nothing)
        found |= dict.fromkeys(some)
    return list(found)


def open_gathers(path: Path, geometry: Geometry) -> GatherFile:
    """The gathers of a file; ``geometry`` goes before what an npz says.

    Raises:
        DatasetError: it cannot be read.
        UploadRefused: an npy or npz that is not one of gathers.
    """
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        size = path.stat().st_size
        if start.startswith(NPY_MAGIC):
            return GatherFile(_npy(path, start, size), geometry)
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    if not content.startswith(ZIP_MAGIC):
        return GatherFile(None, geometry, content)
    gathers, geometry = read_stack(content, geometry=geometry, limits=NPZ_LIMITS)
    return GatherFile(gathers if gathers.ndim == 4 else gathers[None], geometry)


def count_gathers(path: Path) -> int:
    """How many gathers an npy file states; 1 for any other, which would have to be read to know."""
    try:
        with path.open("rb") as file:
            start = file.read(START_BYTES)
        header = read_npy_header(start) if start.startswith(NPY_MAGIC) else None
    except (OSError, ValueError):
        return 1
    return header.shape[0] if header is not None and len(header.shape) == 4 else 1


def _npy(path: Path, start: bytes, size: int) -> Stack:
    header = read_npy_header(start)
    if len(header.shape) not in (3, 4):
        raise MalformedUpload(
            f"Gathers have the axes (shot, time, receiver) or (gather, shot, time, receiver); got shape {header.shape}."
        )
    if size != header.start + header.bytes:
        raise MalformedUpload(
            f"The npy header states {header.shape} of {header.dtype}, which is {header.bytes} bytes; "
            f"{size - header.start} follow. The file is cut off or damaged."
        )
    if not header.fortran:
        return NpyFile(path, header)
    gathers: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return gathers if gathers.ndim == 4 else gathers[None]
