"""What only a gallery in Milvus has: URLs, errors in time, damage elsewhere, interrupted changes, maps in a store."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Filter, Gallery, open_store
from seisbind.index.cluster.expressions import expression, key
from seisbind.index.cluster.location import Location
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryNotFound,
    GalleryUnreachable,
    GalleryWriteFailed,
    InvalidConfig,
    InvalidQuery,
)
from seisbind.model.files import is_milvus

pytest.importorskip("pymilvus", reason="pymilvus is not installed")

from seisbind.index import milvus_store
from seisbind.index.cluster import maps as maps_module
from seisbind.index.milvus_store import MilvusStore

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("milvus")]

NAMES = map("other_{}".format, range(1000))


@pytest.fixture
def url(lite_base: str, bucket: str) -> str:
    """Of no gallery yet, in milvus-lite with maps in S3."""
    name = next(NAMES)
    return f"{lite_base}/{name}?maps={bucket}/{name}"


@pytest.fixture
def store(url: str, make_batch: Any) -> Iterator[MilvusStore]:
    with MilvusStore.create(url, fingerprint="weights-1", dimension=16) as store:
        make_batch(20).add_to(store)
        yield store


# -- URLs and filters


def test_what_is_a_url() -> None:
    assert is_milvus("milvus://a/b") and is_milvus("milvus+lite:///a.db/b")
    assert (
        not is_milvus("gallery")
        and not is_milvus("milvus")
        and not is_milvus(Path("milvus:/a/b"))
        and not is_milvus("./milvus")
    )


def test_urls() -> None:
    found = Location.parse("milvus://host:1234/name?maps=s3://bucket/a/b/")
    assert (found.uri, found.collection, found.maps) == ("http://host:1234", "name", "s3://bucket/a/b")
    assert Location.parse("milvus+tls://host/n").uri == "https://host:19530"
    assert Location.parse("milvus://[::1]:5/n").uri == "http://[::1]:5"
    lite = Location.parse("milvus+lite:///a/b.db/name?maps=file:///maps")
    assert (lite.uri, lite.lite, lite.maps) == ("/a/b.db", True, "file:///maps")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("milvus://user:secret@host/name", "MILVUS_TOKEN"),
        ("milvus://:secret@host/name", "MILVUS_TOKEN"),
        ("milvus://host/a-b", "letters, digits"),
        ("milvus://host/a/b", "no collection"),
        ("milvus:///name", "no collection"),
        ("milvus://host:99999/name", "cannot be read"),
        ("milvus+lite:///a/b/name", "no file of milvus-lite"),
        ("milvus+ftp://host/name", "no gallery in Milvus"),
        ("milvus://host/name?index=HNSW", "no parameter 'index'"),
        ("milvus://host/name?maps=s3://key:secret@bucket/a", "without user, password"),
        ("milvus://host/name?maps=ftp://bucket/a", "no object store"),
        ("milvus://host/name?maps=file://relative", "no object store"),
        ("milvus://host/name?maps", "cannot be read as parameters"),
    ],
)
def test_urls_that_are_none_say_so_and_show_no_secret(url: str, sentence: str) -> None:
    with pytest.raises(InvalidConfig, match=sentence) as caught:
        open_store(url, fingerprint=None)
    assert "secret" not in str(caught.value)


def test_no_text_of_a_filter_gets_into_an_expression() -> None:
    hostile = '"] or row > 0 or family_key in ["'
    chosen = Filter((hostile, "b"), ("'",), (("mean_velocity", (1e-7, math.inf)),))
    text = expression(chosen)
    assert text == (
        f'(family_key in ["{key(hostile)}", "62"]) and (array_contains(tag_keys, "27")) and (mean_velocity >= 1e-07)'
    )
    assert expression(None) == expression(Filter()) == ""
    assert expression(Filter(("\ud800",))) == '(family_key in ["eda080"])'  # no text of UTF-8, so nobody's family


def test_a_kind_of_condition_that_is_not_known_is_refused() -> None:
    @dataclass(frozen=True)
    class Later(Filter):
        colour: str = ""

    assert expression(Later(families=("a",))) == '(family_key in ["61"])'  # type: ignore[arg-type]
    for asked in (Later(colour="x"), Filter(tag_prefixes=("x",)), Filter(excluded=Filter(added=(0, 1)))):
        with pytest.raises(InvalidQuery, match=r"cannot be filtered by '(colour|tag_prefixes|added)'"):
            expression(asked)


# -- errors


def test_nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(GalleryUnreachable, match=f"127.0.0.1:{port}/g"):
        open_store(f"milvus://127.0.0.1:{port}/g", fingerprint=None)


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "root:a-secret-word")
    monkeypatch.setattr("seisbind.index.cluster.connection.CONNECT_S", 1.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        caplog.at_level(logging.DEBUG),
        pytest.raises(GalleryUnreachable) as caught,
    ):
        open_store(f"milvus://127.0.0.1:{silent.getsockname()[1]}/g", fingerprint=None)
    assert "a-secret-word" not in str(caught.value) + repr(caught.value.__cause__) + caplog.text


def refusing() -> tuple[Any, int, list[tuple[tuple[str, str], ...]]]:
    """A server of gRPC that refuses every call as unauthenticated, its port, and what it was sent beside each."""
    import grpc

    sent: list[tuple[tuple[str, str], ...]] = []

    class Refuse(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            def answer(request: bytes, context: Any) -> bytes:
                sent.append(tuple(context.invocation_metadata()))
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "auth check failure, please check token is correct")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    from concurrent.futures import ThreadPoolExecutor

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Refuse(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port, sent


def test_a_token_that_is_refused(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "root:a-secret-word")
    server, port, sent = refusing()
    try:
        with caplog.at_level(logging.DEBUG), pytest.raises(GalleryError, match=r"MILVUS_TOKEN") as caught:
            open_store(f"milvus://127.0.0.1:{port}/g", fingerprint=None)
    finally:
        server.stop(None)
    assert type(caught.value) is GalleryError and sent  # asked, and with the token of the environment
    assert any(name == "authorization" for name, _ in sent[0])
    assert "a-secret-word" not in str(caught.value) + repr(caught.value.__cause__) + caplog.text


def test_a_failed_add_is_taken_back(store: MilvusStore, make_batch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    insert, calls = store._connection.insert, []

    def failing(name: str, rows: Any) -> None:
        calls.append(name)
        if len(calls) == 2:  # the physics are there, the velocities are not
            raise GalleryUnreachable("Milvus did not answer in time.")
        insert(name, rows)

    monkeypatch.setattr(store._connection, "insert", failing)
    with pytest.raises(GalleryUnreachable, match=r"^Milvus did not answer in time.$"):
        make_batch(3, first=50).add_to(store)
    monkeypatch.undo()
    assert len(store) == 20 and not store.refresh()
    (hits,) = store.search_physics(make_batch(1, first=50).physics_embeddings, 30)
    assert len(hits) == 20
    assert make_batch(3, first=50).add_to(store) == ["m50", "m51", "m52"]


def test_what_a_killed_change_leaves(store: MilvusStore, url: str, make_batch: Any) -> None:
    """Physics without a record are never found; models without a new state are counted and said; a writer goes on."""
    new, physics, velocity = make_batch(2, first=60), [], []
    for each in milvus_store.check_batch(
        new.velocity, new.descriptors, new.velocity_embeddings, new.physics_embeddings, dimension=16,
        model_ids=new.model_ids, families=None, tags=None, source=None, added_at="2026-01-01T00:00:00.000+00:00",
    ):  # fmt: skip
        rows = milvus_store.rows_of(each, 21 + len(physics))
        velocity.append(rows[0])
        physics.append(rows[1])
    store._connection.insert(store._collections[1], physics)
    (hits,) = store.search_physics(new.physics_embeddings[:1], 20)
    assert len(hits) == 20 and "m60" not in [hit.model_id for hit in hits]
    store._connection.insert(store._collections[0], velocity[:1])
    with open_store(url, fingerprint=None) as reader:
        assert len(reader) == 21 and "under way, or was interrupted" in reader.notes[0]
        assert reader.info().notes == reader.notes
    generation = store.generation
    with open_store(url, fingerprint=None, writable=True) as writer:
        assert len(writer) == 21 and writer.generation == generation + 1
        assert writer.notes  # said once, and counted from then on
    with open_store(url, fingerprint=None) as reader:
        assert reader.generation == generation + 1


def test_a_building_that_was_interrupted_is_no_gallery_and_begins_again(url: str, make_batch: Any) -> None:
    with pytest.raises(KeyboardInterrupt), MilvusStore.building(url, fingerprint="w", dimension=16) as store:
        make_batch(5).add_to(store)
        raise KeyboardInterrupt
    with pytest.raises(GalleryNotFound, match=r"being built, or its building was interrupted"):
        open_store(url, fingerprint=None)
    with MilvusStore.building(url, fingerprint="w", dimension=16) as store:
        make_batch(3).add_to(store)
    with open_store(url, fingerprint="w") as opened:
        assert opened.model_ids() == ["m0", "m1", "m2"]
    with pytest.raises(GalleryError, match=r"already, and Milvus cannot replace it"):
        MilvusStore.create(url, fingerprint="w", dimension=16, overwrite=True)


# -- damage

DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "vector": lambda row: row["vector"].__setitem__(
        0, float(np.nextafter(np.float32(row["vector"][0]), np.float32(2)))
    ),
    "words": lambda row: row.update(words=row["words"].replace("m3", "m4")),
    "descriptor": lambda row: row.update(mean_velocity=row["mean_velocity"] + 1e-9),
    "family": lambda row: row.update(family_key="61"),
    "tags": lambda row: row.update(tag_keys=[*row["tag_keys"], "61"]),
    "row": lambda row: row.update(row=row["row"] + 100),
    "map": lambda row: row.update(velocity_sha256="0" * 64),
    "checksum": lambda row: row.update(checksum="not hexadecimal"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_record_that_is_damaged_is_refused(store: MilvusStore, make_batch: Any, what: str) -> None:
    (row,) = store._connection.query("".join(store._collections[0]), 'model_id == "m3"', milvus_store.ALL)
    row = {name: list(value) if name in ("vector", "tag_keys") else value for name, value in row.items()}
    row["vector"] = [float(value) for value in row["vector"]]
    DAMAGE[what](row)
    store._connection.upsert(store._collections[0], [row])
    with pytest.raises(GalleryDamaged, match=r"'m3'"):
        store.search_velocity(make_batch(1, first=3).velocity_embeddings, 1)
    report = store.verify() if what != "row" else None
    assert report is None or (not report.ok and "m3" in report.problems[0])


def objects(url: str) -> dict[str, bytes]:
    import obstore

    held = maps_module.ObjectMaps(url.partition("maps=")[2])
    try:
        names = [str(item["path"]) for part in obstore.list(held._store) for item in part]
        return {name: bytes(obstore.get(held._store, name).bytes()) for name in names}
    finally:
        held.close()


def replace(url: str, name: str, content: bytes | None) -> None:
    import obstore

    held = maps_module.ObjectMaps(url.partition("maps=")[2])
    if content is None:
        obstore.delete(held._store, [name])
    else:
        obstore.put(held._store, name, content)
    held.close()


def test_maps_are_objects_by_what_is_in_them(store: MilvusStore, url: str, make_batch: Any) -> None:
    names = set(objects(url))
    keys = {milvus_store.map_key(velocity) for velocity in make_batch(20).velocity}
    assert names == {f"{one[:2]}/{one}.f32.zlib" for one in keys}


@pytest.mark.parametrize("damage", ["other", "cut", "bomb", "missing"])
def test_a_map_that_is_damaged_or_missing_is_refused(
    store: MilvusStore, url: str, make_batch: Any, damage: str
) -> None:
    import zlib

    one, other = (milvus_store.map_key(velocity) for velocity in make_batch(2).velocity)
    held = objects(url)
    name, content = f"{one[:2]}/{one}.f32.zlib", held[f"{other[:2]}/{other}.f32.zlib"]
    content = {"other": content, "cut": content[:-9], "bomb": zlib.compress(bytes(50_000_000))}.get(damage, b"")
    replace(url, name, None if damage == "missing" else content)
    with pytest.raises(GalleryDamaged, match=one):
        store.velocity("m0")
    assert store.velocity("m1").shape == (6, 6)
    report = store.verify()
    assert len(report.problems) == 1 and one in report.problems[0]


def test_a_map_that_is_there_is_not_written_again(store: MilvusStore, url: str, make_batch: Any) -> None:
    one = milvus_store.map_key(make_batch(1).velocity[0])
    name = f"{one[:2]}/{one}.f32.zlib"
    replace(url, name, b"as it was")
    batch = make_batch(1)
    store.add(
        batch.velocity, batch.descriptors, batch.velocity_embeddings, batch.physics_embeddings, model_ids=["again"]
    )
    assert objects(url)[name] == b"as it was"


def test_a_sweep_removes_what_nothing_names(store: MilvusStore, url: str, make_batch: Any) -> None:
    store.remove(["m0", "m1"])
    assert len(objects(url)) == 20 and store.sweep() == (0, 0)  # too young
    replace(url, "notes.txt", b"of somebody else")
    assert store.sweep(older_than=timedelta(0)) == (2, 0)
    assert len(objects(url)) == 19 and "notes.txt" in objects(url)
    assert store.verify().ok and len(store.velocities(store.model_ids())) == 18


def test_maps_in_milvus_are_swept_and_too_large_ones_refused(lite_base: str, make_batch: Any) -> None:
    with MilvusStore.create(f"{lite_base}/{next(NAMES)}", fingerprint="w", dimension=16) as store:
        make_batch(5).add_to(store)
        store.remove(["m0", "m4"])
        assert store.sweep() == (2, 0) and len(store.velocities(["m1", "m2", "m3"])) == 3
        with pytest.raises(InvalidQuery, match=r"\?maps=s3"):
            make_batch(1, first=9, cells=130).add_to(store)
        assert len(store) == 3


def test_maps_in_a_folder(lite_base: str, tmp_path: Path, make_batch: Any) -> None:
    place = f"{lite_base}/{next(NAMES)}?maps=file://{tmp_path}/maps"
    with MilvusStore.create(place, fingerprint="w", dimension=16) as store:
        make_batch(3).add_to(store)
        assert np.array_equal(store.velocity("m2"), make_batch(1, first=2).velocity[0])
    assert len(list((tmp_path / "maps").rglob("*.zlib"))) == 3
    with pytest.raises(GalleryError, match=r"are in file://.*Milvus itself.*Give \?maps=file"):
        open_store(place.partition("?")[0], fingerprint=None)


def test_an_object_store_that_does_not_answer(lite_base: str, bucket: str, make_batch: Any, monkeypatch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    place = f"{lite_base}/{next(NAMES)}?maps={bucket}/x"
    MilvusStore.create(place, fingerprint="w", dimension=16).close()
    monkeypatch.setenv("AWS_ENDPOINT", f"http://127.0.0.1:{port}")
    with open_store(place, fingerprint=None, writable=True) as store:
        with pytest.raises(GalleryUnreachable, match=r"s3://maps/x") as caught:
            make_batch(1).add_to(store)
        assert "test-secret" not in str(caught.value)
        assert len(store) == 0 and store.model_ids() == []


def test_no_bucket(lite_base: str, bucket: str, make_batch: Any) -> None:
    with (
        MilvusStore.create(f"{lite_base}/{next(NAMES)}?maps=s3://nowhere/x", fingerprint="w", dimension=16) as store,
        pytest.raises(GalleryWriteFailed, match=r"s3://nowhere/x"),
    ):
        make_batch(1).add_to(store)


# -- exactness


def test_hits_are_those_of_the_folder_also_where_float32_cannot_tell_them_apart(
    lite_base: str, tmp_path: Path, make_batch: Any
) -> None:
    """300 models within some roundings of each other: Milvus's own order is another one."""
    batch = make_batch(300)
    generator = np.random.default_rng(7)
    near = batch.velocity_embeddings[:1] + generator.standard_normal((300, 16)) * 2e-8
    near = (near / np.linalg.norm(near, axis=1, keepdims=True)).astype(np.float32)
    parts = (batch.velocity, batch.descriptors, near, batch.physics_embeddings)
    with (
        Gallery.create(tmp_path / "g", fingerprint="w", dimension=16) as folder,
        MilvusStore.create(f"{lite_base}/{next(NAMES)}", fingerprint="w", dimension=16) as store,
    ):
        for each in (folder, store):
            each.add(*parts, model_ids=batch.model_ids)
        query = make_batch(1, first=5).velocity_embeddings
        for k in (1, 10, 250):
            expected, found = (each.search_velocity(query, k)[0] for each in (folder, store))
            assert [(h.model_id, h.similarity) for h in found] == [(h.model_id, h.similarity) for h in expected]
        raw = store._connection.search(store._collections[0], query.tolist(), 300, "", ["model_id"])[0]
        expected = folder.search_velocity(query, 300)[0]
        assert [row["model_id"] for _, row in raw] != [hit.model_id for hit in expected]


def test_reading_while_another_changes(store: MilvusStore, url: str, make_batch: Any) -> None:
    """Every hit that is given is whole, whatever is added and removed meanwhile."""
    stop, failures, rounds = threading.Event(), [], [0]
    query = make_batch(2).velocity_embeddings

    def read() -> None:
        with open_store(url, fingerprint=None) as reader:
            while not stop.is_set():
                try:
                    with reader.unchanging():
                        found = reader.search_velocity(query, 5)
                        reader.velocities([hit.model_id for hits in found for hit in hits])
                    rounds[0] += 1
                except Exception as error:
                    failures.append(error)
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        for number in range(100, 110):
            make_batch(1, first=number).add_to(store)
            store.remove([f"m{number}"])
    finally:
        deadline = time.monotonic() + 30
        while rounds[0] < 2 and not failures and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        thread.join()
    assert not failures and rounds[0] >= 2
