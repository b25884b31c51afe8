"""Publishing a gallery: its files in parts that are named by their content, then one small manifest."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from seisbind.index.gallery import Gallery
from seisbind.index.replicas.manifest import LATEST, MAX_BYTES, NAMES, PART_BYTES, Manifest, described
from seisbind.index.replicas.store import ObjectStore
from seisbind.index.storage.database import RECORDS, connect, translate_errors
from seisbind.index.storage.record import utc_now
from seisbind.model.errors import GalleryDamaged, RemoteGalleryFailed

log = logging.getLogger(__name__)

UPLOADS = 4  # at once, 16 MB each


@dataclass(frozen=True, slots=True)
class Published:
    """What is published now.

    Attributes:
        changed: whether it was something else before.
        sent: bytes that were uploaded; all others were there.
    """

    manifest: Manifest
    changed: bool
    sent: int


def publish(
    path: Path, url: str, *, workspace: Path | None = None, at_step: Callable[[str], None] = lambda step: None
) -> Published:
    """Upload the gallery in the folder ``path``, which may be served and written meanwhile.

    A copy of one moment is made and verified first, beside the gallery. Readers see the old one until the manifest
    is replaced, at once, and the new one whole from then on; an upload that ends half-way is gone on with by the next.

    Args:
        workspace: folder for the copy, as large as the gallery; by default that which the gallery is in.
        at_step: called with a name at each step, for tests.

    Raises:
        GalleryNotFound, GalleryDamaged, GalleryWriteFailed: of the gallery, or of the disk.
        RemoteGalleryFailed: the store refused, or another publication came in between; nothing is half-published.
        InvalidConfig, MissingExtra: see `ObjectStore`.
    """
    store = ObjectStore(url, create=True)
    before = store.get(LATEST, limit=MAX_BYTES)
    beside = path.resolve().parent if workspace is None else workspace
    with (
        translate_errors(path, "copy"),
        tempfile.TemporaryDirectory(prefix=".seisbind-publish-", dir=beside) as folder,
    ):
        copy = Path(folder) / path.resolve().name
        manifest = _copied(path, copy)
        at_step("publish:copied")
        if before is not None:
            with suppress(GalleryDamaged):  # what is there is replaced, whatever it is
                old = Manifest.parse(before.content, f"{store.url}/{LATEST}")
                if replace(old, published_at=manifest.published_at) == manifest:
                    return Published(old, False, 0)
        sent = _upload(store, copy, manifest, at_step)
    at_step("publish:uploaded")
    if not store.replace(LATEST, manifest.dump(), before):
        raise RemoteGalleryFailed(
            f"Another gallery was published at {store.url} while this one was uploaded; it is left as it is. Look "
            "which one belongs there, and publish again."
        )
    return Published(manifest, True, sent)


def _copied(path: Path, copy: Path) -> Manifest:
    """A copy of the gallery at one moment, verified. Snapshots are copied first: they may be older than the records,
    which opening makes up for, and never newer."""
    connection, _ = connect(path / RECORDS, writable=False)
    copy.mkdir()
    with closing(connection):
        for name in NAMES:
            if name != RECORDS:
                with suppress(FileNotFoundError):
                    _link(path / name, copy / name)  # each is replaced by a rename and never written again
        with closing(sqlite3.connect(copy / RECORDS)) as target:
            connection.backup(target)
            target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with Gallery.open(copy, fingerprint=None) as gallery:
        info, report, embeddings = gallery.info(), gallery.verify(), gallery.embeddings_fingerprint or ""
    if not report.ok:
        raise GalleryDamaged(
            f"The gallery at {path} is damaged and was not published: {report.problems[0]} "
            "'seisbind gallery verify' lists what is wrong."
        )
    files = tuple(described(copy / name) for name in NAMES if (copy / name).exists())
    return Manifest(info.generation, info.digest, info.count, info.fingerprint, utc_now(), files, embeddings)


def _upload(store: ObjectStore, copy: Path, manifest: Manifest, at_step: Callable[[str], None]) -> int:
    there = store.sizes("parts")
    wanted: dict[str, tuple[Path, int]] = {}
    for file in manifest.files:
        for number, part in enumerate(file.parts):
            size = min(PART_BYTES, file.bytes - number * PART_BYTES)
            if there.get(f"parts/{part}") != size:
                wanted[part] = (copy / file.name, number)

    def send(part: str) -> int:
        path, number = wanted[part]
        with path.open("rb") as handle:
            handle.seek(number * PART_BYTES)
            content = handle.read(PART_BYTES)
        store.put(f"parts/{part}", content)
        at_step("publish:part")
        return len(content)

    with ThreadPoolExecutor(UPLOADS, thread_name_prefix="upload") as pool:
        return sum(pool.map(send, wanted))


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the file system has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
