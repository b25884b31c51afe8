"""Where a server has its gallery from: a folder, or a URL whose present gallery is copied into a cache.

cache/
├── HASH/                     of one URL
│   ├── pull.lock             one process fetches at a time
│   ├── files/SHA256          whole files, verified; `.partial` while they are fetched
│   └── generations/KEY/      one gallery: its manifest, and a folder of links to those files

A process that serves a generation holds a shared ``flock`` on its folder; what nobody holds and is not the present one
is removed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from seisbind.index.replicas.manifest import LATEST, MAX_BYTES, PART_BYTES, Manifest, PublishedFile
from seisbind.index.replicas.store import ObjectStore, is_url
from seisbind.index.storage.database import translate_errors
from seisbind.index.store import Store
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryLocked,
    GalleryNotFound,
    GalleryWriteFailed,
    InvalidConfig,
    WeightsMismatch,
)
from seisbind.model.files import is_milvus, lock, replacing, sync
from seisbind.model.fingerprint import embeds_alike

log = logging.getLogger(__name__)

PULL_PATIENCE_S = 3600.0  # for another process of this host that fetches the same gallery
ATTEMPTS = 2  # at a part whose bytes are not those that its name says
MANIFEST = "manifest.json"


class Lease:
    """Where a gallery is opened (`open_store`); a folder stays as it is until `release`."""

    def __init__(self, place: Path | str, *, mark: str = "", handle: int = -1) -> None:
        self.place = place
        self.mark = mark
        self._handle = handle

    def release(self) -> None:
        """The folder may be removed. May be called twice."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Source(Protocol):
    """Where galleries come from. Every method may be called from any thread."""

    name: str

    def lease(self) -> Lease:
        """The present gallery. Raises GalleryError."""

    def marks(self, lease: Lease, gallery: Store) -> tuple[object, object]:
        """What ``gallery`` was opened from and what is there now, to compare; cheap."""

    def clean(self) -> None:
        """Remove galleries that nobody serves any more."""


def source_of(place: Path | str, *, cache: Path, fingerprint: str, writable: bool) -> Source:
    """The source that ``place`` names.

    Raises:
        InvalidConfig: a URL that is none of `ObjectStore`, or one for a server that changes its gallery.
        MissingExtra: a URL, and obstore is not installed.
    """
    if is_milvus(place):
        return MilvusSource(str(place))
    if not is_url(place):
        return FolderSource(Path(place))
    if writable:
        raise InvalidConfig(
            f"The gallery at {place} is a published copy, which cannot be changed. Serve it without "
            "SEISBIND_WRITABLE, change the original and publish it again."
        )
    return PublishedSource(str(place), cache=cache, fingerprint=fingerprint)


class FolderSource:
    """A folder on a disk of this machine, or one that several share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = path.resolve().name

    def lease(self) -> Lease:
        return Lease(self._path)

    def marks(self, lease: Lease, gallery: Store) -> tuple[object, object]:
        return gallery.marks()

    def clean(self) -> None:
        pass


class MilvusSource:
    """A gallery in Milvus, where every search sees the latest changes."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = url.partition("?")[0].split("/")[-1]

    def lease(self) -> Lease:
        return Lease(self._url)

    def marks(self, lease: Lease, gallery: Store) -> tuple[object, object]:
        return gallery.marks()

    def clean(self) -> None:
        pass


class PublishedSource:
    """A gallery that `publish` has put under a URL.

    Args:
        cache: folder for copies, with room for two of the gallery.
        fingerprint: of the weights that queries come from: a gallery of other embeddings is not fetched
            (`fingerprint.embeds_alike`, as where a folder is opened).
    """

    def __init__(self, url: str, *, cache: Path, fingerprint: str) -> None:
        self._store = ObjectStore(url)
        self._fingerprint = fingerprint
        self.name = self._store.url.rpartition("/")[2] or "gallery"
        self._folder = cache / hashlib.sha256(self._store.url.encode()).hexdigest()[:16]

    def marks(self, lease: Lease, gallery: Store) -> tuple[object, object]:
        return lease.mark, self._store.mark(LATEST)

    def lease(self) -> Lease:
        """The present gallery, fetched if it is not here yet: every byte is compared with its SHA-256.

        Raises:
            GalleryNotFound: nothing is published there.
            WeightsMismatch: it was made with weights of other embeddings; nothing was fetched.
            GalleryDamaged: what is there is not what was published.
            GalleryWriteFailed: the disk of the cache refused, or has no room.
            GalleryLocked: another process has been fetching for an hour.
            RemoteGalleryFailed: the store did not answer.
        """
        stored = self._store.get(LATEST, limit=MAX_BYTES)
        if stored is None:
            raise GalleryNotFound(f"No gallery is published at {self._store.url}. 'seisbind gallery publish' does so.")
        manifest = Manifest.parse(stored.content, f"{self._store.url}/{LATEST}")
        if not embeds_alike(self._fingerprint, manifest.fingerprint, manifest.embeddings):
            raise WeightsMismatch(
                f"The gallery at {self._store.url} was made with weights {manifest.fingerprint}; these are "
                f"{self._fingerprint}, whose embeddings are others. Use those weights, or publish one that was made "
                "with these."
            )
        with self._pulling():
            own = self._folder / "generations" / manifest.key
            if not own.is_dir():
                self._fetch(manifest, stored.content, own)
            handle = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            lock(handle, shared=True)
        return Lease(own / self.name, mark=stored.mark, handle=handle)

    @contextmanager
    def _pulling(self) -> Iterator[None]:
        with translate_errors(self._folder, "fetch the gallery"):
            for name in ("files", "generations"):
                (self._folder / name).mkdir(parents=True, exist_ok=True)
            handle = os.open(self._folder / "pull.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                try:
                    lock(handle, patience_s=PULL_PATIENCE_S)
                except BlockingIOError as error:
                    raise GalleryLocked(
                        f"Another process has been fetching into {self._folder} for {PULL_PATIENCE_S:g} s. See "
                        "whether it was stopped."
                    ) from error
                yield
            finally:
                os.close(handle)

    def _fetch(self, manifest: Manifest, content: bytes, own: Path) -> None:
        """Make the folder ``own``, which appears whole."""
        held = self._held()
        missing = [each for each in manifest.files if not self._has(each)]
        free, needed = shutil.disk_usage(self._folder).free, sum(each.bytes for each in missing)
        if needed > free:
            raise GalleryWriteFailed(
                f"{self._folder} has {free / 1e9:.2f} GB free; the gallery {manifest.stamp} needs {needed / 1e9:.2f} "
                "more. Make room, or set SEISBIND_CACHE to another disk."
            )
        fetched = sum(self._fetch_file(each, held) for each in missing)
        unfinished = own.with_name(f".{own.name}")
        shutil.rmtree(unfinished, ignore_errors=True)
        (unfinished / self.name).mkdir(parents=True)
        (unfinished / MANIFEST).write_bytes(content)
        for file in manifest.files:
            source, target = self._folder / "files" / file.sha256, unfinished / self.name / file.name
            try:
                os.link(source, target)
            except OSError:  # a file system without links
                shutil.copyfile(source, target)
        sync(unfinished / self.name)
        unfinished.rename(own)
        sync(own.parent)
        log.info("Gallery %s: %d of its %d bytes were fetched.", manifest.stamp, fetched, manifest.total_bytes)

    def _has(self, file: PublishedFile) -> bool:
        path = self._folder / "files" / file.sha256
        return path.is_file() and path.stat().st_size == file.bytes

    def _fetch_file(self, file: PublishedFile, held: dict[str, tuple[Path, int]]) -> int:
        """Make one file from parts that are here already, begun or of other generations, and parts that are fetched.

        Returns:
            How many bytes were fetched.
        """
        path = self._folder / "files" / file.sha256
        partial = path.with_name(f"{path.name}.partial")
        whole, fetched = hashlib.sha256(), 0
        with replacing(path, temporary=partial.with_name(f"{path.name}.sound")) as sound:
            partial.touch()
            with partial.open("r+b") as handle:
                for part in file.parts:
                    at = handle.tell()
                    content = handle.read(PART_BYTES)
                    if _sha256(content) != part:
                        content = self._read(part, held) or b""
                        if not content:
                            content = self._get(part)
                            fetched += len(content)
                        handle.seek(at)
                        handle.write(content)
                        handle.flush()
                    whole.update(content)
                handle.truncate()
                os.fsync(handle.fileno())
            if whole.hexdigest() != file.sha256 or partial.stat().st_size != file.bytes:
                partial.unlink()
                raise GalleryDamaged(f"{file.name} of {self._store.url} is not what was published. Publish it again.")
            partial.chmod(0o444)
            partial.rename(sound)
        return fetched

    def _read(self, part: str, held: dict[str, tuple[Path, int]]) -> bytes | None:
        """A part of a file of another generation, if it is what it should be."""
        if part not in held:
            return None
        path, at = held[part]
        with suppress(OSError), path.open("rb") as handle:
            handle.seek(at)
            content = handle.read(PART_BYTES)
            return content if _sha256(content) == part else None
        return None

    def _get(self, part: str) -> bytes:
        for _ in range(ATTEMPTS):
            found = self._store.get(f"parts/{part}", limit=PART_BYTES)
            if found is None:
                raise GalleryDamaged(f"{self._store.url} lacks the part {part} of its gallery. Publish it again.")
            if _sha256(found.content) == part:
                return found.content
        raise GalleryDamaged(f"The part {part} of {self._store.url} is not what was published. Publish it again.")

    def _manifests(self) -> dict[Path, Manifest]:
        """Of the galleries that are here."""
        found = {}
        for folder in sorted((self._folder / "generations").iterdir()):
            with suppress(OSError, GalleryError):
                found[folder] = Manifest.parse((folder / MANIFEST).read_bytes(), str(folder / MANIFEST))
        return found

    def _held(self) -> dict[str, tuple[Path, int]]:
        """Where a part of each SHA-256 is here."""
        return {
            part: (self._folder / "files" / file.sha256, number * PART_BYTES)
            for manifest in self._manifests().values()
            for file in manifest.files
            for number, part in enumerate(file.parts)
        }

    def clean(self) -> None:
        """Remove galleries that no process holds, and files of none. What cannot be removed now is next time."""
        with self._pulling():
            present = None
            with suppress(GalleryError):
                stored = self._store.get(LATEST, limit=MAX_BYTES)
                present = None if stored is None else Manifest.parse(stored.content, LATEST)
            if present is None:
                return
            for folder in (self._folder / "generations").iterdir():
                if folder.name != present.key and _unused(folder):
                    shutil.rmtree(folder, ignore_errors=True)
            wanted = {file.sha256 for each in (present, *self._manifests().values()) for file in each.files}
            for path in (self._folder / "files").iterdir():
                if path.name.partition(".")[0] not in wanted:
                    path.unlink(missing_ok=True)


def _unused(folder: Path) -> bool:
    """Whether no process holds a lease of it; none is made meanwhile, since the caller has the lock for fetching."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            lock(handle)
            return True
        finally:
            os.close(handle)
    return False


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
