"""An object store by its URL, through obstore: what is needed of it, and its failures in one sentence each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from seisbind.model.errors import GalleryError, InvalidConfig, MissingExtra, RemoteGalleryFailed
from seisbind.model.files import lock

SCHEMES = ("s3", "gs", "file")
CONNECT = timedelta(seconds=10)
REQUEST = timedelta(seconds=120)  # one part of 16 MB, at 150 kB/s
RETRIES: dict[str, Any] = {  # of what may pass: connections that break, 429, 5xx
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=120),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=10), "base": 2},
}
PATIENCE_S = 60.0  # for another process that publishes to the same folder


def is_url(place: object) -> bool:
    """Whether a gallery's place is a URL and no path."""
    return isinstance(place, str) and "://" in place


@dataclass(frozen=True, slots=True)
class Stored:
    """An object's content and what its next version is compared with."""

    content: bytes
    mark: str


class ObjectStore:
    """The objects under a URL: ``s3://bucket/path``, ``gs://bucket/path`` or ``file:///folder``.

    Credentials, region and endpoint come from the environment, as those of the stores' own tools do (``AWS_…``,
    ``GOOGLE_…``). Failures that may pass are tried again, a bounded number of times.

    Args:
        create: make the folder of a ``file`` URL.

    Raises:
        InvalidConfig: another kind of URL.
        MissingExtra: obstore is not installed.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not (parts.netloc or parts.scheme == "file") or parts.query or parts.password:
            raise InvalidConfig(
                f"A published gallery has a URL s3://BUCKET/PATH, gs://BUCKET/PATH or file:///FOLDER; got {url!r}. "
                "Credentials belong into the environment (AWS_ACCESS_KEY_ID and so on)."
            )
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise MissingExtra(
                "Galleries by URL need obstore, which is not installed: pip install 'seisbind[cluster]'."
            ) from error
        self.url = url.rstrip("/")
        self._obstore: Any = obstore
        self._folder = Path(unquote(parts.path)) if parts.scheme == "file" else None
        with self._translated("open"):
            if self._folder is not None:
                if create:
                    self._folder.mkdir(parents=True, exist_ok=True)
                self._store: Any = from_url(url)
            else:
                given: dict[str, Any] = {"connect_timeout": CONNECT, "timeout": REQUEST}
                if os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true":
                    given["allow_http"] = True
                self._store = from_url(url, client_options=given, retry_config=RETRIES)

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except (GalleryError, InvalidConfig, MissingExtra):
            raise
        except Exception as error:  # obstore has a dozen kinds, and each is the store's answer
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise RemoteGalleryFailed(
                f"{self.url} did not let the gallery be {doing}: {reason:.300}. See whether the bucket exists and the "
                "credentials in the environment reach it."
            ) from error

    def get(self, key: str, *, limit: int) -> Stored | None:
        """An object of at most ``limit`` bytes; None if there is none. Raises RemoteGalleryFailed."""
        try:
            with self._translated("read"):
                found = self._obstore.get(self._store, key)
                size = found.meta["size"]
                if size > limit:
                    raise RemoteGalleryFailed(f"{self.url}/{key} has {size} bytes; at most {limit} belong there.")
                content = bytes(found.bytes())
                return Stored(content, _mark(found.meta))
        except FileNotFoundError:
            return None

    def mark(self, key: str) -> str | None:
        """What `Stored.mark` would be, without reading it; None if there is none. Raises RemoteGalleryFailed."""
        try:
            with self._translated("read"):
                return _mark(self._obstore.head(self._store, key))
        except FileNotFoundError:
            return None

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of each object whose key begins with the folder ``prefix``. Raises RemoteGalleryFailed."""
        with self._translated("listed"):
            return {
                each["path"]: each["size"] for batch in self._obstore.list(self._store, prefix=prefix) for each in batch
            }

    def put(self, key: str, content: bytes) -> None:
        """Store an object whose key follows from its content. Raises RemoteGalleryFailed."""
        with self._translated("written"):
            self._obstore.put(self._store, key, content)

    def replace(self, key: str, content: bytes, before: Stored | None) -> bool:
        """Store an object if what is there still is ``before``; else false, and nothing is changed.

        Raises:
            RemoteGalleryFailed: the store refused, or cannot do so.
        """
        with self._translated("written"):
            if self._folder is not None:
                return self._replace_here(key, content, before)
            try:
                # every such store compares the tag that it gave
                tag = None if before is None else before.mark
                self._obstore.put(self._store, key, content, mode="create" if tag is None else {"e_tag": tag})
            except (self._obstore.exceptions.PreconditionError, self._obstore.exceptions.AlreadyExistsError):
                return False
            return True

    def _replace_here(self, key: str, content: bytes, before: Stored | None) -> bool:
        """Folders compare nothing: who publishes holds a lock on it meanwhile."""
        handle = os.open(self._folder or Path(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(handle, patience_s=PATIENCE_S)
            if self.mark(key) != (before and before.mark):
                return False
            self._obstore.put(self._store, key, content)  # by a rename
            return True
        finally:
            os.close(handle)


def _mark(meta: Any) -> str:
    return str(meta.get("e_tag") or meta["last_modified"].isoformat())
