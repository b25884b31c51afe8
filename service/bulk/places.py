"""Gathers wherever they lie: files by their paths, and objects by URLs, of which ranges are read through obstore."""

from __future__ import annotations

import fnmatch
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import DatasetError, InvalidConfig, MalformedUpload, MissingExtra
from seisbind.service.bulk.inputs import (
    NPZ_LIMITS,
    START_BYTES,
    WILDCARDS,
    GatherFile,
    count_gathers,
    gather_files,
    open_gathers,
)
from seisbind.service.formats.npy import NPY_MAGIC, ZIP_MAGIC, NpyHeader, read_npy_header
from seisbind.service.formats.reader import SUFFIXES, Geometry, check_axes, read_stack


def is_url(name: str) -> bool:
    """Whether ``name`` is a URL, and no path."""
    return "://" in name


class Bucket:
    """The objects of a bucket, ``s3://bucket``, ``gs://bucket`` or ``file://``; credentials are the environment's.

    Raises:
        InvalidConfig: a URL of another kind.
        MissingExtra: obstore is not installed.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("s3", "gs", "file") or not (parts.netloc or parts.scheme == "file"):
            raise InvalidConfig(f"Gathers by URL are s3://BUCKET/…, gs://BUCKET/… or file:///…; got {url!r}.")
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra("Gathers by URL need obstore: pip install 'seisbind[cluster]'.") from error
        self.root = f"{parts.scheme}://{parts.netloc}"
        self._obstore: Any = obstore
        options: dict[str, Any] = {}
        if os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true":
            options["client_options"] = {"allow_http": True}
        self._store: Any = from_url(self.root + "/" if parts.scheme == "file" else self.root, **options)

    def _of(self, doing: str, call: Any) -> Any:
        try:
            return call()
        except Exception as error:  # obstore has a dozen kinds, and each is the store's answer
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DatasetError(f"{doing} failed: {reason:.300} See whether it exists and may be read.") from error

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with the folder ``prefix``, in order. Raises DatasetError."""

        def call() -> list[str]:
            return sorted(
                each["path"] for batch in self._obstore.list(self._store, prefix=prefix or None) for each in batch
            )

        found: list[str] = self._of(f"Listing {self.root}/{prefix}", call)
        return found

    def state(self, key: str) -> list[object]:
        """Bytes of an object, and what changes with its content. Raises DatasetError."""
        meta = self._of(f"Reading {self.root}/{key}", lambda: self._obstore.head(self._store, key))
        return [meta["size"], str(meta.get("e_tag") or meta["last_modified"])]

    def read(self, key: str, first: int = 0, length: int | None = None) -> bytes:
        """Some bytes of an object, fewer where it ends before; all from its beginning without ``length``.

        Raises:
            DatasetError: it cannot be read.
        """

        def call() -> bytes:
            if length is None:
                return bytes(self._obstore.get(self._store, key).bytes())
            size = self._obstore.head(self._store, key)["size"]
            end = min(first + length, size)
            return bytes(self._obstore.get_range(self._store, key, start=first, end=end)) if end > first else b""

        found: bytes = self._of(f"Reading {self.root}/{key}", call)
        return found


class RemoteNpy:
    """The gathers of an npy object, of which a range is read at a time. A `parts.Stack`."""

    def __init__(self, bucket: Bucket, key: str, header: NpyHeader) -> None:
        self.shape = header.shape if len(header.shape) == 4 else (1, *header.shape)
        self.dtype = header.dtype
        self._bucket, self._key, self._start = bucket, key, header.start

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        first, end, _ = rows.indices(self.shape[0])
        one = math.prod(self.shape[1:]) * self.dtype.itemsize
        content = self._bucket.read(self._key, self._start + first * one, (end - first) * one)
        if len(content) != (end - first) * one:
            raise MalformedUpload(f"{self._key} ends within gather {first + len(content) // one}; it was cut off.")
        return np.frombuffer(content, dtype=self.dtype).reshape(end - first, *self.shape[1:])


def named_inputs(named: Sequence[str]) -> list[str]:
    """Files and objects of ``named``, each once: as `inputs.gather_files`, and by URL objects, folders and patterns.

    Raises:
        DatasetError: a folder or a pattern without any.
        InvalidConfig, MissingExtra: see `Bucket`.
    """
    found: dict[str, None] = {}
    for name in named:
        if not is_url(name):
            found |= dict.fromkeys(map(str, gather_files([Path(name)])))
            continue
        bucket, key = _split(name)
        if WILDCARDS & set(key):
            before = key[: min(key.index(each) for each in WILDCARDS if each in key)]
            folder = before.rpartition("/")[0]
            keys = [each for each in bucket.keys(folder) if fnmatch.fnmatchcase(each, key)]
        elif key.lower().endswith(SUFFIXES):
            keys = [key]
        else:
            keys = [each for each in bucket.keys(key.rstrip("/")) if each.lower().endswith(SUFFIXES)]
        if not keys:
            raise DatasetError(f"No object with gathers fits {name}; they end with {', '.join(SUFFIXES)}.")
        found |= dict.fromkeys(f"{bucket.root}/{each}" for each in keys)
    return list(found)


def state_of(name: str) -> list[object]:
    """What tells whether an input is what it was: bytes, and time or tag. Zeros where there is none to read."""
    try:
        if is_url(name):
            bucket, key = _split(name)
            return bucket.state(key)
        status = Path(name).stat()
    except (OSError, DatasetError):
        return [0, "0"]
    return [status.st_size, str(status.st_mtime_ns)]


def count_at(name: str) -> int:
    """As `inputs.count_gathers`, for paths and URLs."""
    if not is_url(name):
        return count_gathers(Path(name))
    bucket, key = _split(name)
    try:
        start = bucket.read(key, 0, START_BYTES)
        header = read_npy_header(start) if start.startswith(NPY_MAGIC) else None
    except ValueError:
        return 1
    return header.shape[0] if header is not None and len(header.shape) == 4 else 1


def open_at(name: str, geometry: Geometry) -> GatherFile:
    """As `inputs.open_gathers`, for paths and URLs. Raises DatasetError and UploadRefused."""
    if not is_url(name):
        return open_gathers(Path(name), geometry)
    bucket, key = _split(name)
    start = bucket.read(key, 0, START_BYTES)
    if start.startswith(NPY_MAGIC):
        header = read_npy_header(start)
        check_axes(header.shape)
        header.check_length(int(str(bucket.state(key)[0])))
        if not header.fortran:
            return GatherFile(RemoteNpy(bucket, key, header), geometry)
    content = bucket.read(key)
    if not content.startswith((ZIP_MAGIC, NPY_MAGIC)):
        return GatherFile(None, geometry, content)
    gathers, geometry = read_stack(content, geometry=geometry, limits=NPZ_LIMITS)
    return GatherFile(gathers if gathers.ndim == 4 else gathers[None], geometry)


def _split(url: str) -> tuple[Bucket, str]:
    bucket = Bucket(url)
    return bucket, url.removeprefix(bucket.root).lstrip("/")
