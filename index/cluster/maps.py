"""Velocity maps of a gallery in Milvus: objects named by the SHA-256 of what is in them, packed by zlib.

A map is written once, before its record, and never changed; removing a record leaves it, because another record may
have the same, and a search that has found the model may be about to read it. `sweep` of the store removes what nothing
names any more.
"""

from __future__ import annotations

import base64
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar

import numpy as np

from seisbind.index.cluster.connection import Connection, in_parts
from seisbind.index.cluster.expressions import words
from seisbind.index.storage.record import LITTLE, Float32, velocity_sha256
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryUnreachable,
    GalleryWriteFailed,
    InvalidQuery,
    MissingExtra,
)

T = TypeVar("T")
U = TypeVar("U")

AT_ONCE = 16  # objects read or written together
TIMEOUT = {"timeout": "20s", "connect_timeout": "5s"}
RETRIES = 2
LEVEL = 6  # of zlib
MAX_BLOB = 65535  # bytes of a VARCHAR of Milvus, of base64
BLOBS = 200  # in one call: 13 MB at most


class Maps(Protocol):
    """Where maps are, by their keys."""

    def put(self, maps: Mapping[str, Float32]) -> None: ...
    def get(self, wanted: Sequence[tuple[str, tuple[int, int]]]) -> list[Float32]: ...
    def keys(self, older_than: timedelta) -> Iterator[str]: ...
    def delete(self, keys: Sequence[str]) -> None: ...
    def close(self) -> None: ...


def pack(velocity: Float32) -> bytes:
    return zlib.compress(velocity.astype(LITTLE).tobytes(), LEVEL)


def unpack(packed: bytes, key: str, shape: tuple[int, int], where: str) -> Float32:
    """The map ``(depth, x)`` that `pack` was given. Raises GalleryDamaged unless it is the one that ``key`` names."""
    size = shape[0] * shape[1] * LITTLE.itemsize
    reader = zlib.decompressobj()
    try:
        blob = reader.decompress(packed, size + 1)  # and no more, whatever it claims to unpack to
    except zlib.error:
        blob = b""
    if len(blob) != size or velocity_sha256(blob, shape).hex() != key:
        raise GalleryDamaged(f"The velocity map {key} in {where} is damaged: it is not what was written.")
    return np.frombuffer(blob, LITTLE).reshape(shape).astype(np.float32)


class ObjectMaps:
    """Maps in an object store (S3 and what speaks like it, Google's, Azure's, a folder), through `obstore`.

    Credentials, region and endpoint come from the environment (``AWS_…``). An ``http://`` endpoint has to be allowed
    by ``AWS_ALLOW_HTTP=true``.

    Raises:
        MissingExtra: `obstore` is not installed.
        GalleryError: the store cannot be used so.
    """

    def __init__(self, url: str) -> None:
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra(
                "Velocity maps in an object store need obstore: pip install 'seisbind[cluster]'."
            ) from error
        self._url, self._obstore = url, obstore
        given: dict[str, Any] = {}
        if url.startswith("file:"):
            given["mkdir"] = True
        else:
            plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes")
            given["client_options"] = {**TIMEOUT, "allow_http": plain}
            given["retry_config"] = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=30)}
        with self._errors("open"):
            self._store: Any = from_url(url, **given)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="maps")

    @contextmanager
    def _errors(self, doing: str, *, writing: bool = False) -> Iterator[None]:
        kinds = self._obstore.exceptions
        try:
            yield
        except FileNotFoundError as error:
            if writing:
                raise GalleryWriteFailed(f"There is no bucket for maps at {self._url}: {_first(error)}.") from error
            raise GalleryDamaged(f"A velocity map is missing in {self._url}: {_first(error)}.") from error
        except (kinds.PermissionDeniedError, kinds.UnauthenticatedError) as error:
            raise GalleryError(
                f"The object store refuses to {doing} at {self._url}: {_first(error)}. It reads its key from AWS_…."
            ) from error
        except (kinds.BaseError, OSError, ValueError) as error:
            silent = isinstance(error, kinds.GenericError) and "HTTP error" in str(error)
            kind = GalleryUnreachable if silent else GalleryWriteFailed if writing else GalleryError
            raise kind(f"The object store could not {doing} at {self._url}: {_first(error)}.") from error

    def _all(self, work: Callable[[T], U], items: Sequence[T]) -> list[U]:
        return list(self._pool.map(work, items))

    def put(self, maps: Mapping[str, Float32]) -> None:
        """Write those that are not there: a conditional put, so that none is ever written over."""

        def one(item: tuple[str, Float32]) -> None:
            key, velocity = item
            with self._errors("write", writing=True):
                try:
                    self._obstore.put(self._store, _name(key), pack(velocity), mode="create")
                except self._obstore.exceptions.AlreadyExistsError:
                    return

        self._all(one, list(maps.items()))

    def get(self, wanted: Sequence[tuple[str, tuple[int, int]]]) -> list[Float32]:
        """The maps of keys and shapes, each compared with its key. Raises GalleryDamaged."""

        def one(item: tuple[str, tuple[int, int]]) -> Float32:
            key, shape = item
            with self._errors("read"):
                packed = bytes(self._obstore.get(self._store, _name(key)).bytes())
            return unpack(packed, key, shape, self._url)

        return self._all(one, wanted)

    def keys(self, older_than: timedelta) -> Iterator[str]:
        """Of the maps that were written before that, whoever names them."""
        before = datetime.now(UTC) - older_than
        with self._errors("list"):
            for part in self._obstore.list(self._store):
                for item in part:
                    folder, _, name = str(item["path"]).rpartition("/")
                    key = name.removesuffix(ENDING)
                    if item["last_modified"] <= before and name.endswith(ENDING) and folder == key[:2]:
                        yield key

    def delete(self, keys: Sequence[str]) -> None:
        with self._errors("remove", writing=True):
            self._obstore.delete(self._store, [_name(key) for key in keys])

    def close(self) -> None:
        self._pool.shutdown(wait=True)


ENDING = ".f32.zlib"


def _name(key: str) -> str:
    return f"{key[:2]}/{key}{ENDING}"


def _first(error: BaseException) -> str:
    return " ".join(str(error).split("Debug source")[0].split())[:300].rstrip(".")


# key, Milvus's type and its parameters
BLOB_FIELDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("name", "VARCHAR", {"max_length": 128}),
    ("content", "VARCHAR", {"max_length": MAX_BLOB}),
)


class MilvusMaps:
    """Maps in a collection of Milvus, in base64: no second service, but Milvus holds them in memory."""

    def __init__(self, connection: Connection, collection: str) -> None:
        self._connection, self._collection = connection, collection

    def put(self, maps: Mapping[str, Float32]) -> None:
        """Write those that are not there.

        Raises:
            InvalidQuery: one is larger than what Milvus stores.
        """
        rows = []
        for key, velocity in maps.items():
            content = base64.b64encode(pack(velocity)).decode()
            if len(content) > MAX_BLOB:
                raise InvalidQuery(
                    f"A velocity map of {velocity.shape[0]} x {velocity.shape[1]} cells takes {len(content)} bytes; "
                    f"Milvus stores {MAX_BLOB}. Keep maps in an object store: ?maps=s3://BUCKET/PREFIX."
                )
            rows.append({"name": key, "content": content, "vector": NOWHERE})

        def write(part: Sequence[dict[str, Any]]) -> None:
            named = f"name in {words(row['name'] for row in part)}"
            held = {row["name"] for row in self._connection.query(self._collection, named, ["name"])}
            new = [row for row in part if row["name"] not in held]
            if new:
                self._connection.insert(self._collection, new)

        in_parts(rows, BLOBS, write)

    def get(self, wanted: Sequence[tuple[str, tuple[int, int]]]) -> list[Float32]:
        """See `ObjectMaps.get`."""
        where, content = self._connection.location.text, {}

        def read(part: Sequence[str]) -> None:
            for row in self._connection.query(self._collection, f"name in {words(part)}", ["name", "content"]):
                content[row["name"]] = row["content"]

        in_parts(list(dict.fromkeys(key for key, _ in wanted)), BLOBS, read)
        found = []
        for key, shape in wanted:
            if key not in content:
                raise GalleryDamaged(f"The velocity map {key} is missing in {where}.")
            try:
                packed = base64.b64decode(content[key], validate=True)
            except ValueError:
                packed = b""
            found.append(unpack(packed, key, shape, where))
        return found

    def keys(self, older_than: timedelta) -> Iterator[str]:
        """Of all maps: Milvus does not say when they were written."""
        for digits in range(256):
            start = f"{digits:02x}"
            for row in self._connection.query(self._collection, f'name like "{start}%"', ["name"]):
                yield row["name"]

    def delete(self, keys: Sequence[str]) -> None:
        self._connection.delete(self._collection, keys)

    def close(self) -> None:
        pass


NOWHERE = [0.0, 0.0]  # Milvus wants a vector in every collection
