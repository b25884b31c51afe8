"""Calls to Milvus that end in time, with the gallery errors of their failures."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from seisbind.index.cluster.location import Location
from seisbind.model.errors import (
    GalleryError,
    GalleryUnreachable,
    GalleryWriteFailed,
    MissingExtra,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

TOKEN = "MILVUS_TOKEN"  # of the environment: "user:password" or an API key
CONNECT_S = 5.0
CALL_S = 30.0  # of reading and of changes
COLLECTION_S = 120.0  # of making a collection and of loading one, which a server does once
STRONG = "Strong"  # whatever was written before a call, by anyone, is seen by it
MOST = 16384  # rows that Milvus gives at once

CONNECT_FAILED = 2  # a code of pymilvus

_AUTH = ("auth", "permission", "privilege", "token")
_FULL = ("quota", "disk", "memory", "deny", "rate limit")
_SILENT = ("timeout", "deadline", "unavailable", "connect")


class Connection:
    """The collections of one gallery.

    Raises:
        MissingExtra: `pymilvus` (or milvus-lite, for a file of it) is not installed.
        GalleryUnreachable: nobody answers there in time.
        GalleryError: Milvus refuses the token.
    """

    def __init__(self, location: Location) -> None:
        try:
            from pymilvus import DataType, MilvusClient
        except ImportError as error:
            raise MissingExtra(
                "A gallery in Milvus needs pymilvus: pip install 'seisbind[milvus]' (for Milvus) and milvus-lite (for "
                "a file of it)."
            ) from error
        # it logs what it raises, at the level of errors; what becomes of an error is said where it is caught
        for name in ("pymilvus", *(["grpc._server"] if location.lite else [])):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.location = location
        self._types, self._milvus = DataType, MilvusClient
        if location.lite and not Path(location.uri).parent.is_dir():
            raise GalleryError(f"There is no folder {Path(location.uri).parent} for a file of milvus-lite.")
        with self.errors("connect"):
            # a token goes into the connection only, never into its name or a log
            self._client = MilvusClient(
                uri=location.uri, token=os.environ.get(TOKEN, ""), timeout=CONNECT_S, dedicated=not location.lite
            )

    def close(self) -> None:
        with self.errors("close"):
            self._client.close()

    @contextmanager
    def errors(self, doing: str, *, writing: bool = False) -> Iterator[None]:
        """Milvus's errors as those of galleries, in one sentence each."""
        import grpc
        from pymilvus.exceptions import MilvusException

        try:
            yield
        except (MilvusException, grpc.RpcError, ConnectionError, TimeoutError, grpc.FutureTimeoutError) as error:
            raise self._gallery_error(error, doing, writing) from error

    def _gallery_error(self, error: BaseException, doing: str, writing: bool) -> GalleryError:
        import grpc

        where, status = self.location.text, None
        said = str(getattr(error, "message", "") or error)
        below: BaseException | None = error
        while below is not None:  # pymilvus says "illegal connection params or server unavailable" to all of them
            if isinstance(below, grpc.RpcError) and callable(getattr(below, "code", None)):
                status, said = below.code(), str(below.details())
                break
            below = below.__cause__
        said = " ".join(said.split())[:300].rstrip(".")
        lower = said.lower()
        if status in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED) or any(
            word in lower for word in _AUTH
        ):
            return GalleryError(
                f"Milvus refuses to {doing} at {where}: {said}. Set {TOKEN} in the environment to a user and password "
                "(user:password), or a key, that may."
            )
        if writing and any(word in lower for word in _FULL):
            return GalleryWriteFailed(f"Milvus refused to {doing} at {where}: {said}.")
        if (
            status in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            or isinstance(error, ConnectionError | TimeoutError | grpc.FutureTimeoutError)
            or getattr(error, "code", None) == CONNECT_FAILED
            or any(word in lower for word in _SILENT)
        ):
            return GalleryUnreachable(
                f"Milvus did not answer in time to {doing} at {where}: {said}. Is it up, and is the address right?"
            )
        return GalleryError(f"Milvus could not {doing} at {where}: {said}.")

    def exists(self, name: str) -> bool:
        with self.errors("look for a collection"):
            return bool(self._client.has_collection(name, timeout=CALL_S))

    def create(self, name: str, fields: Sequence[tuple[str, str, dict[str, Any]]], dimension: int) -> None:
        """Make and load a collection of ``fields`` (name, Milvus's type, its parameters; the first is the key) and a
        ``vector``, which is searched exactly (FLAT, inner product)."""
        schema = self._milvus.create_schema(auto_id=False, enable_dynamic_field=False)
        for number, (field, kind, parameters) in enumerate(fields):
            given = dict(parameters)
            if "element_type" in given:
                given["element_type"] = self._types[given["element_type"]]
            schema.add_field(field, self._types[kind], is_primary=number == 0, **given)
        schema.add_field("vector", self._types.FLOAT_VECTOR, dim=dimension)
        index = self._milvus.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        with self.errors(f"make the collection {name}", writing=True):
            self._client.create_collection(
                name, schema=schema, index_params=index, consistency_level=STRONG, timeout=COLLECTION_S
            )

    def load(self, name: str) -> None:
        """Have Milvus hold a collection in memory, which searching needs; nothing is done where it does already."""
        with self.errors(f"load the collection {name}"):
            self._client.load_collection(name, timeout=COLLECTION_S)

    def drop(self, name: str) -> None:
        with self.errors(f"drop the collection {name}", writing=True):
            self._client.drop_collection(name, timeout=CALL_S)

    def insert(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        with self.errors("add", writing=True):
            self._client.insert(name, list(rows), timeout=CALL_S)

    def upsert(self, name: str, rows: list[dict[str, Any]]) -> None:
        with self.errors("change", writing=True):
            self._client.upsert(name, rows, timeout=CALL_S)

    def delete(self, name: str, keys: Sequence[str]) -> None:
        with self.errors("remove", writing=True):
            self._client.delete(name, ids=list(keys), timeout=CALL_S)

    def query(self, name: str, expression: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Rows that fit ``expression``, at most `MOST` of them, in no order."""
        with self.errors("read"):
            found = self._client.query(
                name, filter=expression, output_fields=list(fields), timeout=CALL_S, consistency_level=STRONG
            )
        return [dict(row) for row in found]

    def search(
        self, name: str, vectors: Sequence[Sequence[float]], limit: int, expression: str, fields: Sequence[str]
    ) -> list[list[tuple[float, dict[str, Any]]]]:
        """For each vector the rows with the largest inner products, and those products, as Milvus has them."""
        with self.errors("search"):
            found = self._client.search(
                name,
                data=list(vectors),
                anns_field="vector",
                filter=expression,
                limit=limit,
                output_fields=list(fields),
                search_params={"metric_type": "IP", "params": {}},
                timeout=CALL_S,
                consistency_level=STRONG,
            )
        return [[(float(hit["distance"]), dict(hit["entity"])) for hit in hits] for hits in found]


def in_parts(items: Sequence[T], size: int, work: Callable[[Sequence[T]], None]) -> None:
    """``work`` for all of ``items``, so many at a time."""
    for start in range(0, len(items), size):
        work(items[start : start + size])
