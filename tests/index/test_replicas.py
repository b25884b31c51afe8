"""Galleries that are published and pulled: whole, verified, the old or the new one (promise 110)."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery
from seisbind.index.replicas import manifest as manifests
from seisbind.index.replicas import publish as publishing
from seisbind.index.replicas import source as sources
from seisbind.index.replicas.manifest import LATEST, Manifest, PublishedFile
from seisbind.index.replicas.publish import publish
from seisbind.index.replicas.source import Lease, PublishedSource, source_of
from seisbind.index.replicas.store import ObjectStore
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryNotFound,
    InvalidConfig,
    MissingExtra,
    RemoteGalleryFailed,
    SeisBindError,
    WeightsMismatch,
)
from seisbind.model.fingerprint import Fingerprint

pytest.importorskip("obstore", reason="obstore is not installed: pip install -e '.[cluster]'")

PART = 16 << 10


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (manifests, publishing, sources):
        monkeypatch.setattr(module, "PART_BYTES", PART)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 on this machine, with a bucket; its URL scheme is what a cloud's would be."""
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install -e '.[dev]'")
    boto3 = pytest.importorskip("boto3")
    threaded = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    threaded.start()
    host, port = threaded.get_host_and_port()
    settings = {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="galleries")
        yield "s3://galleries"
    threaded.stop()


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/published/small"
    return f"{request.getfixturevalue('s3')}/{tmp_path.name}/small"


@pytest.fixture
def source(url: str, filled: Path, tmp_path: Path) -> PublishedSource:
    """What a server has, once something is published."""
    publish(filled, url)
    return PublishedSource(url, cache=tmp_path / "cache", fingerprint="weights-1")


def content(path: Path) -> list[Any]:
    """Everything that a gallery answers, and its maps."""
    with Gallery.open(path, fingerprint="weights-1") as gallery:
        assert gallery.verify().ok
        ids = gallery.model_ids()
        query = gallery.embeddings(ids[:3])[0]
        return [gallery.stamp, ids, gallery.search_velocity(query, 9), [m.tolist() for m in gallery.velocities(ids)]]


def grow(path: Path, make_batch: Any, first: int, count: int = 5) -> None:
    with Gallery.open(path, fingerprint="weights-1", writable=True) as gallery:
        make_batch(count, first=first).add_to(gallery)


def test_what_is_pulled_is_what_was_published(source: PublishedSource, filled: Path, url: str) -> None:
    lease = source.lease()
    assert lease.place.name == "small" and content(lease.place) == content(filled)
    assert {each.name for each in filled.iterdir()} - {"writer.lock"} <= {each.name for each in lease.place.iterdir()}
    with Gallery.open(lease.place, fingerprint=None) as gallery:
        assert source.marks(lease, gallery)[0] == source.marks(lease, gallery)[1]
    again = publish(filled, url)
    assert not again.changed and again.sent == 0
    lease.release()


def test_weights_of_the_same_embeddings_take_what_others_made(url: str, filled: Path, tmp_path: Path) -> None:
    """The rule of folders: `seisbind.model.fingerprint.embeds_alike`."""
    publish(filled, url)

    def lease(fingerprint: str) -> Any:
        return PublishedSource(url, cache=tmp_path / "cache", fingerprint=fingerprint).lease()

    descended = Fingerprint("weights-2", same=frozenset({"weights-1"}))
    found = lease(descended)
    Gallery.open(found.place, fingerprint=descended).close()
    found.release()
    for other in ("weights-2", Fingerprint("weights-2", embeddings="e-1")):
        with pytest.raises(WeightsMismatch, match="embeddings are others"):
            lease(other)
    says = tmp_path / "says"
    Gallery.create(says, fingerprint=Fingerprint("weights-3", embeddings="e-1"), dimension=16).close()
    publish(says, url)
    lease(Fingerprint("weights-2", embeddings="e-1")).release()
    with pytest.raises(WeightsMismatch, match="weights-3"):
        lease(Fingerprint("weights-2", embeddings="e-2", same=frozenset({"weights-3"})))


def test_a_gallery_that_is_written_meanwhile_is_published_as_of_one_moment(
    url: str, filled: Path, make_batch: Any, tmp_path: Path
) -> None:
    with Gallery.open(filled, fingerprint="weights-1", writable=True) as gallery:
        before, numbers = gallery.stamp, itertools.count(900)
        published = publish(
            filled, url, at_step=lambda step: make_batch(1, first=next(numbers)).add_to(gallery) and None
        )
    assert published.manifest.stamp == before
    lease = PublishedSource(url, cache=tmp_path / "cache", fingerprint="weights-1").lease()
    assert content(lease.place)[0] == before != content(filled)[0]


def test_only_what_has_changed_is_sent_and_fetched(
    source: PublishedSource, filled: Path, url: str, make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(filled, make_batch, 3000, count=1500)
    publish(filled, url)
    first = source.lease()
    grow(filled, make_batch, 500, count=1)
    published = publish(filled, url)
    assert published.changed and 0 < published.sent < published.manifest.total_bytes / 2
    fetched: list[str] = []
    get = ObjectStore.get

    def counted(self: ObjectStore, key: str, *, limit: int) -> Any:
        fetched.append(key)
        return get(self, key, limit=limit)

    monkeypatch.setattr(ObjectStore, "get", counted)
    second = source.lease()
    parts = sum(len(file.parts) for file in published.manifest.files)
    assert 0 < len([key for key in fetched if key.startswith("parts/")]) < parts / 2
    assert content(second.place) == content(filled) != content(first.place)


def test_killed_at_any_part_the_next_one_goes_on(
    source: PublishedSource, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an unfinished copy is never opened: the folder appears when every file has been verified."""
    get, left, fetched = ObjectStore.get, 3, 0

    class Killed(BaseException):
        pass

    def dying(self: ObjectStore, key: str, *, limit: int) -> Any:
        nonlocal left, fetched
        if key.startswith("parts/"):
            left -= 1
            if left < 0:
                raise Killed
            fetched += 1
        return get(self, key, limit=limit)

    monkeypatch.setattr(ObjectStore, "get", dying)
    with pytest.raises(Killed):
        source.lease()
    assert not list((source._folder / "generations").iterdir())
    partial = next((source._folder / "files").glob("*.partial"))
    with partial.open("r+b") as handle:  # and the last part was half written
        handle.truncate(partial.stat().st_size - 100)
    left = 10**6
    lease = source.lease()
    assert content(lease.place) == content(filled)
    distinct = {p for each in _manifest(source).files for p in each.parts}
    assert fetched <= len(distinct) + 2  # what had come was not fetched again, but for the part that was cut


def _manifest(source: PublishedSource) -> Manifest:
    stored = source._store.get(LATEST, limit=1 << 20)
    assert stored is not None
    return Manifest.parse(stored.content, "there")


def test_bytes_that_are_not_those_published_are_never_served(
    source: PublishedSource, filled: Path, url: str, make_batch: Any
) -> None:
    good = source.lease()
    grow(filled, make_batch, 700)
    manifest = publish(filled, url).manifest
    held = set(source._held())
    part = next(part for file in manifest.files for part in file.parts if part not in held)
    store = ObjectStore(url)
    stored = store.get(f"parts/{part}", limit=PART)
    assert stored is not None
    store.put(f"parts/{part}", stored.content[:-1] + bytes([stored.content[-1] ^ 1]))
    with pytest.raises(GalleryDamaged, match="not what was published"):
        source.lease()
    assert content(good.place)
    store.put(f"parts/{part}", stored.content)
    assert content(source.lease().place) == content(filled)


def test_a_manifest_that_is_damaged_or_points_elsewhere_is_refused(source: PublishedSource, url: str) -> None:
    store = ObjectStore(url)
    stored = store.get(LATEST, limit=1 << 20)
    assert stored is not None
    for position in range(0, len(stored.content), 97):
        flipped = bytearray(stored.content)
        flipped[position] ^= 1
        with pytest.raises(SeisBindError, match=r"damaged|format"):
            Manifest.parse(bytes(flipped), "there")
    for name in ("../../records.sqlite", "/etc/passwd", "", "writer.lock"):
        bad = PublishedFile(name, 1, "0" * 64, ("0" * 64,))
        text = Manifest(1, "0" * 16, 1, "weights-1", "now", (bad,)).dump()
        store.put(LATEST, text)
        with pytest.raises(GalleryDamaged, match="no gallery has a file"):
            source.lease()


def test_no_fact_of_a_manifest_leads_out_of_the_cache(source: PublishedSource, url: str, tmp_path: Path) -> None:
    """Generation and digest name a folder, and whoever may write to the bucket may write a checksum, too."""
    store = ObjectStore(url)
    stored = store.get(LATEST, limit=1 << 20)
    assert stored is not None
    facts = Manifest.parse(stored.content, "there")
    elsewhere = tmp_path / "elsewhere"
    bad: list[dict[str, Any]] = [
        {"generation": str(elsewhere)},
        {"generation": f"../../../{elsewhere.name}"},
        {"generation": True},
        {"digest": "../../.." + "0" * 8},
        {"digest": 7},
        {"count": -1},
        {"fingerprint": ["weights-1"]},
        {"published_at": None},
        {"embeddings": 3},
        {"files": facts.files * 2},
        {"files": ()},
    ]
    for each in bad:
        store.put(LATEST, replace(facts, **each).dump())
        with pytest.raises(GalleryDamaged, match="manifest"):
            source.lease()
    assert not list(tmp_path.glob("elsewhere*")) and not list((tmp_path / "cache").glob("*/generations/*"))
    store.put(LATEST, stored.content)
    source.lease().release()


def test_old_generations_go_when_nobody_serves_them(
    source: PublishedSource, filled: Path, url: str, make_batch: Any, tmp_path: Path
) -> None:
    """Also if another process of the host serves one, which has a lock of its own."""
    first, elsewhere = source.lease(), PublishedSource(url, cache=tmp_path / "cache", fingerprint="weights-1").lease()
    folders = source._folder / "generations"
    for number in (1, 2, 3):
        grow(filled, make_batch, 1000 * number)
        publish(filled, url)
        later = source.lease()
        source.clean()
        assert first.place.is_dir() and later.place.is_dir()
        assert len(list(folders.iterdir())) == 2  # the one in between is gone
        later.release()
    first.release()
    source.clean()
    assert elsewhere.place.is_dir()
    elsewhere.release()
    source.clean()
    assert len(list(folders.iterdir())) == 1
    wanted = {file.sha256 for file in _manifest(source).files}
    assert {path.name for path in (source._folder / "files").iterdir()} == wanted


def test_two_that_publish_at_once_do_not_mix(url: str, filled: Path, make_batch: Any, tmp_path: Path) -> None:
    """Whoever is later is told so and changes nothing; a reader has the one that won."""
    publish(filled, url)
    other = tmp_path / "other"
    shutil.copytree(filled, other)
    grow(filled, make_batch, 100)
    grow(other, make_batch, 200)

    def overtake(step: str) -> None:
        if step == "publish:uploaded":
            publish(other, url)

    with pytest.raises(RemoteGalleryFailed, match="Another gallery was published"):
        publish(filled, url, at_step=overtake)
    lease = PublishedSource(url, cache=tmp_path / "cache", fingerprint="weights-1").lease()
    assert content(lease.place) == content(other) != content(filled)


def test_readers_have_one_gallery_while_others_are_published(
    url: str, filled: Path, make_batch: Any, tmp_path: Path
) -> None:
    expected = {}
    publish(filled, url)
    expected[content(filled)[0]] = content(filled)
    found: list[Any] = []
    done, failed = threading.Event(), []

    def read(number: int) -> None:
        own = PublishedSource(url, cache=tmp_path / f"cache-{number}", fingerprint="weights-1")
        try:
            while not done.is_set():
                lease = own.lease()
                found.append(content(lease.place))
                lease.release()
                own.clean()
        except BaseException as error:
            failed.append(error)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(2)]
    for each in readers:
        each.start()
    for number in range(4):
        grow(filled, make_batch, 2000 + 100 * number)
        state = content(filled)
        expected[state[0]] = state
        publish(filled, url)
    done.set()
    for each in readers:
        each.join()
    assert not failed
    assert len({each[0] for each in found}) >= 2
    assert all(each == expected[each[0]] for each in found)


def test_what_cannot_be_had_is_said_in_a_sentence(
    s3: str, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(GalleryNotFound, match="No gallery is published"):
        PublishedSource(f"{s3}/nothing", cache=cache, fingerprint="w").lease()
    with pytest.raises(RemoteGalleryFailed, match="bucket exists"):
        publish(filled, "s3://no-such-bucket/small")
    publish(filled, f"{s3}/said/small")
    with pytest.raises(WeightsMismatch, match="weights-1"):
        PublishedSource(f"{s3}/said/small", cache=cache, fingerprint="w").lease()
    for bad in ("ftp://a/b", "s3:///b", "s3://a:secret@b/c"):
        with pytest.raises(InvalidConfig, match="s3://BUCKET"):
            ObjectStore(bad)
    with pytest.raises(InvalidConfig, match="cannot be changed"):
        source_of(f"{s3}/said/small", cache=cache, fingerprint="w", writable=True)
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(MissingExtra, match="cluster"):
        ObjectStore(s3)


def test_a_damaged_gallery_is_not_published(url: str, filled: Path) -> None:
    publish(filled, url)
    before = ObjectStore(url).get(LATEST, limit=1 << 20)
    content = bytearray((filled / "records.sqlite").read_bytes())
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    content[used[len(used) * 3 // 4]] ^= 255
    (filled / "records.sqlite").write_bytes(content)
    with pytest.raises(GalleryDamaged):
        publish(filled, url)
    after = ObjectStore(url).get(LATEST, limit=1 << 20)
    assert before is not None and after is not None and before.content == after.content


def test_without_hard_links_files_are_copied(source: PublishedSource, filled: Path, monkeypatch: Any) -> None:
    def refused(*names: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    lease: Lease = source.lease()
    assert content(lease.place) == content(filled)
    assert np.array_equal(content(lease.place)[1], content(filled)[1])
