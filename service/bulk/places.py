"""Inputs and outputs wherever they lie: files by their paths, and objects by URLs, through obstore.

Of npy objects ranges are read. A URL that ends with a slash is that of a folder, an MDIO store.
"""

from __future__ import annotations

import fnmatch
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import (
    DatasetError,
    InvalidConfig,
    MalformedUpload,
    MissingExtra,
    SeisBindError,
    UploadTooLarge,
)
from seisbind.model.files import replacing
from seisbind.service.bulk.inputs import (
    NPZ_LIMITS,
    START_BYTES,
    STORE_SUFFIXES,
    WILDCARDS,
    GatherFile,
    count_gathers,
    gather_files,
    open_gathers,
)
from seisbind.service.formats.mdio import MAX_BYTES, MAX_META_BYTES, META, mdio_as_segy, states_mdio
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
            raise InvalidConfig(f"URLs are s3://BUCKET/…, gs://BUCKET/… or file:///…; got {url!r}.")
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra("Objects by URL need obstore: pip install 'seisbind[cluster]'.") from error
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

    def listing(self, prefix: str) -> dict[str, list[object]]:
        """Keys that begin with the folder ``prefix``, in order, with their `state`. Raises DatasetError."""

        def call() -> dict[str, list[object]]:
            found = (each for batch in self._obstore.list(self._store, prefix=prefix or None) for each in batch)
            return {each["path"]: _state(each) for each in found}

        found: dict[str, list[object]] = self._of(f"Listing {self.root}/{prefix}", call)
        return dict(sorted(found.items()))

    def state(self, key: str) -> list[object]:
        """Bytes of an object, and what changes with its content. Raises DatasetError."""
        return _state(self._of(f"Reading {self.root}/{key}", lambda: self._obstore.head(self._store, key)))

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

    def fetch(self, key: str, path: Path) -> None:
        """Copy an object into a file, in pieces. Raises DatasetError."""

        def call() -> None:
            with path.open("wb") as file:
                for piece in self._obstore.get(self._store, key).stream():
                    file.write(bytes(piece))

        self._of(f"Copying {self.root}/{key}", call)

    def write(self, key: str, content: bytes | Path) -> None:
        """Make an object of bytes or of a file; it is there whole or not at all. Raises DatasetError."""
        self._of(f"Writing {self.root}/{key}", lambda: self._obstore.put(self._store, key, content))


def _state(meta: Any) -> list[object]:
    return [meta["size"], str(meta.get("e_tag") or meta["last_modified"])]


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
        bucket, key = split_url(name)
        if WILDCARDS & set(key):
            before = key[: min(key.index(each) for each in WILDCARDS if each in key)]
            keys = [each for each in _inputs_in(bucket, before.rpartition("/")[0]) if _fits(each, key)]
        elif key.lower().endswith(SUFFIXES):
            keys = [key]
        else:
            keys = [each for each in _inputs_in(bucket, key.rstrip("/")) if each.lower().endswith((*SUFFIXES, "/"))]
        if not keys:
            raise DatasetError(f"No object with gathers fits {name}; they end with {', '.join(SUFFIXES)}.")
        found |= dict.fromkeys(f"{bucket.root}/{each}" for each in keys)
    return list(found)


def _fits(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key.rstrip("/"), pattern.rstrip("/"))


def _inputs_in(bucket: Bucket, folder: str) -> list[str]:
    """Keys of a folder that are of no store, and its stores, each with a slash at its end."""
    keys = list(bucket.listing(folder))
    roots: set[str] = set()
    for key in sorted(keys, key=lambda each: each.count("/")):  # a store before the arrays in it
        steps = key.split("/")
        named = [number for number, step in enumerate(steps[:-1], 1) if step.lower().endswith(STORE_SUFFIXES)]
        root = "/".join(steps[: named[0]] if named else steps[:-1] if steps[-1] == META else ())
        if not root or any(f"{root}/".startswith(each) for each in roots):
            continue
        if named or states_mdio(bucket.read(key, 0, MAX_META_BYTES)):
            roots.add(f"{root}/")
    return sorted(roots.union(key for key in keys if not key.startswith(tuple(roots))))


def state_of(name: str) -> list[object]:
    """What tells whether an input is what it was: bytes, and time or tag. Zeros where there is none to read."""
    try:
        if is_url(name):
            bucket, key = split_url(name)
            return _state_of_all(bucket.listing(key).values()) if key.endswith("/") else bucket.state(key)
        path = Path(name)
        if path.is_dir():
            some = (each.stat() for each in sorted(path.rglob("*")) if each.is_file())
            return _state_of_all([each.st_size, str(each.st_mtime_ns)] for each in some)
        status = path.stat()
    except (OSError, DatasetError):
        return [0, "0"]
    return [status.st_size, str(status.st_mtime_ns)]


def _state_of_all(states: Iterable[Sequence[object]]) -> list[object]:
    """Of a store: bytes of all its files together, and a digest of their times or tags."""
    found = list(states)
    return [sum(int(str(size)) for size, _ in found), hashlib.sha256(repr(found).encode()).hexdigest()[:16]]


def count_at(name: str) -> int:
    """As `inputs.count_gathers`, for paths and URLs."""
    if not is_url(name):
        return count_gathers(Path(name))
    bucket, key = split_url(name)
    if key.endswith("/"):
        return 1
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
    bucket, key = split_url(name)
    if key.endswith("/"):
        with local_copy(name) as path:
            return GatherFile(None, geometry, mdio_as_segy(path))
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


@contextmanager
def local_copy(name: str) -> Iterator[Path]:
    """An input as a file, or a folder, of this machine: itself, or a copy for as long. Errors name the input.

    Raises:
        DatasetError: it cannot be read.
        UploadTooLarge: a store of more than 4 GiB.
    """
    if not is_url(name):
        yield Path(name)
        return
    bucket, key = split_url(name)
    with TemporaryDirectory(prefix="seisbind-") as folder:
        path = Path(folder) / Path(key).name
        if key.endswith("/"):
            listed = bucket.listing(key)
            size = sum(int(str(each)) for each, _ in listed.values())
            if size > MAX_BYTES:
                raise UploadTooLarge(f"{name} has {size} bytes; stores of at most {MAX_BYTES} are read by URL.")
            for each in listed:
                to = path / each.removeprefix(key)
                to.parent.mkdir(parents=True, exist_ok=True)
                bucket.fetch(each, to)
        else:
            bucket.fetch(key, path)
        try:
            yield path
        except SeisBindError as error:
            raise type(error)(str(error).replace(str(path), name)) from error


def write_at(place: str, name: str, content: bytes | Path) -> None:
    """Make ``name`` in the folder ``place``, a path or a URL, of bytes or of a file: whole or not at all.

    Raises:
        DatasetError: the store refuses.
        OSError: the disk refuses.
    """
    if is_url(place):
        bucket, key = split_url(place)
        bucket.write(f"{key.rstrip('/')}/{name}".lstrip("/"), content)
        return
    path = Path(place) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if isinstance(content, bytes):
            partial.write_bytes(content)
        else:
            shutil.copyfile(content, partial)


def output_place(name: str) -> str:
    """A place to write to: a ``file://`` URL as the path that it is."""
    parts = urlsplit(name)
    return unquote(parts.path) if parts.scheme == "file" else name


@lru_cache(maxsize=16)
def _bucket(root: str) -> Bucket:
    return Bucket(root)


def split_url(url: str) -> tuple[Bucket, str]:
    """The bucket of a URL, and the key in it. Raises InvalidConfig and MissingExtra, see `Bucket`."""
    parts = urlsplit(url)
    bucket = _bucket(f"{parts.scheme}://{parts.netloc}")
    return bucket, url.removeprefix(bucket.root).lstrip("/")
