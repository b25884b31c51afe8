"""Files of gathers on this machine: which to read, and their gathers without reading more than is needed."""

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
from seisbind.service.formats.mdio import is_mdio, mdio_as_segy
from seisbind.service.formats.npy import MAX_HEADER_BYTES, NPY_MAGIC, ZIP_MAGIC, Limits, NpyHeader, read_npy_header
from seisbind.service.formats.reader import SUFFIXES, Geometry, check_axes, read_stack

WILDCARDS = frozenset("*?[")
START_BYTES = MAX_HEADER_BYTES + 12
STORE_SUFFIXES = (".mdio", ".zarr")  # of folders that are meant as stores, also where they cannot be read as one
NPZ_LIMITS = Limits(unpacked_bytes=8 << 30, items=1 << 31)  # the user's own, which has to fit into memory


@dataclass(frozen=True, slots=True)
class GatherFile:
    """An opened file: a ``stack`` with its geometry, or the bytes of any other file, which are one gather or nothing
    known."""

    stack: Stack | None
    geometry: Geometry
    content: bytes = b""


class NpyFile:
    """The gathers of an npy file, first axis slowest, of which a range is read at a time. A `parts.Stack`."""

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
    """The files of ``named``, each once: files as they are, folders and patterns (``*``, ``**``) in order of name;
    an MDIO store, and a folder that is called one, is a file.

    Raises:
        DatasetError: a folder or a pattern without any.
    """
    found: dict[Path, None] = {}
    for path in named:
        if _is_store(path):
            some, nothing = [path], ""
        elif path.is_dir():
            some = sorted(each for each in path.iterdir() if _is_of_gathers(each))
            nothing = f"The folder {path} holds no file that ends with {', '.join(SUFFIXES)}, and no MDIO store."
        elif WILDCARDS & set(str(path)) and not path.exists():
            some = sorted(
                each
                for each in Path(path.anchor).glob(str(path.relative_to(path.anchor)))
                if each.is_file() or _is_store(each)
            )
            nothing = f"No file fits {path}."
        else:
            some, nothing = [path], ""
        if not some:
            raise DatasetError(nothing)
        found |= dict.fromkeys(some)
    return list(found)


def _is_of_gathers(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES if path.is_file() else _is_store(path)


def _is_store(path: Path) -> bool:
    return is_mdio(path) or (path.suffix.lower() in STORE_SUFFIXES and path.is_dir())


def open_gathers(path: Path, geometry: Geometry) -> GatherFile:
    """The gathers of a file; ``geometry`` overrides that of an npz.

    Raises:
        DatasetError: it cannot be read.
        UploadRefused: an npy or npz that is not one of gathers.
    """
    if path.is_dir():
        return GatherFile(None, geometry, mdio_as_segy(path))
    try:
        header = _npy_header(path)
        if header is not None:
            return GatherFile(_npy_stack(path, header), geometry)
        content = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    if not content.startswith(ZIP_MAGIC):
        return GatherFile(None, geometry, content)
    gathers, geometry = read_stack(content, geometry=geometry, limits=NPZ_LIMITS)
    return GatherFile(gathers if gathers.ndim == 4 else gathers[None], geometry)


def count_gathers(path: Path) -> int:
    """The number of gathers in the header of an npy file; 1 for any other, which would have to be read whole."""
    try:
        header = _npy_header(path)
    except (OSError, ValueError):
        return 1
    return header.shape[0] if header is not None and len(header.shape) == 4 else 1


def _npy_header(path: Path) -> NpyHeader | None:
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    return read_npy_header(start) if start.startswith(NPY_MAGIC) else None


def _npy_stack(path: Path, header: NpyHeader) -> Stack:
    check_axes(header.shape)
    header.check_length(path.stat().st_size)
    if not header.fortran:
        return NpyFile(path, header)
    gathers: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return gathers if gathers.ndim == 4 else gathers[None]
