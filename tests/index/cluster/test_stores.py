"""One suite over every kind of store: what `Gallery` promises of its calls, a folder, milvus-lite and Milvus keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Filter, Gallery, Store
from seisbind.model.errors import (
    GalleryError,
    GalleryNotFound,
    InvalidQuery,
    InvalidVelocityModel,
    UnknownModel,
    WeightsMismatch,
)
from seisbind.model.ground.descriptors import NAMES

pytestmark = pytest.mark.xdist_group("milvus")  # one server for all

COUNT = 40


@pytest.fixture(scope="module")
def batch(make_batch: Any) -> Any:
    return make_batch(COUNT)


@pytest.fixture(scope="module")
def place(kind: Any, batch: Any) -> Path | str:
    """Of a gallery of 40 models, which no test changes."""
    place = kind.place()
    with kind.create(place) as store:
        batch.add_to(store)
    return place


@pytest.fixture(scope="module")
def store(kind: Any, place: Path | str) -> Iterator[Store]:
    with kind.open(place) as store:
        yield store


@pytest.fixture(scope="module")
def own_place(kind: Any) -> Path | str:
    place = kind.place()
    kind.create(place).close()
    return place


@pytest.fixture
def changing(kind: Any, own_place: Path | str, make_batch: Any) -> Iterator[Store]:
    """An open gallery of 12 models that a test may change."""
    with kind.open(own_place, writable=True) as store:
        store.remove(store.model_ids())
        make_batch(12).add_to(store)
        yield store


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory, batch: Any) -> Iterator[Gallery]:
    """The folder, which is the truth for what an answer is."""
    with Gallery.create(tmp_path_factory.mktemp("oracle") / "g", fingerprint="weights-1", dimension=16) as gallery:
        batch.add_to(gallery)
        yield gallery


def seen(answers: list[list[Any]]) -> list[list[tuple[Any, ...]]]:
    return [[(h.model_id, h.similarity, h.row, h.family, h.descriptors.tolist()) for h in hits] for hits in answers]


# -- what is there


def test_length(store: Store) -> None:
    assert len(store) == COUNT


def test_generation_is_the_number_of_changes(store: Store) -> None:
    assert store.generation == 1


def test_facts(store: Store, oracle: Gallery) -> None:
    assert (store.fingerprint, store.dimension, store.frame) == (oracle.fingerprint, oracle.dimension, oracle.frame)
    assert store.notes == ()


def test_model_ids_in_the_order_they_were_added(store: Store, batch: Any) -> None:
    assert store.model_ids() == batch.model_ids


def test_families(store: Store, oracle: Gallery) -> None:
    assert store.families() == oracle.families()


def test_info(store: Store, oracle: Gallery) -> None:
    found, expected = store.info(), oracle.info()
    for name in ("count", "families", "fingerprint", "dimension", "generation", "descriptor_ranges", "notes", "frame"):
        assert getattr(found, name) == getattr(expected, name), name
    assert found.path == store.path and found.name == store.name


def test_distribution(store: Store, oracle: Gallery) -> None:
    assert store.distribution().histograms == oracle.distribution().histograms


def test_record(store: Store, oracle: Gallery) -> None:
    found, expected = store.record("m7"), oracle.record("m7")
    for name in ("model_id", "family", "tags", "source", "shape"):
        assert getattr(found, name) == getattr(expected, name), name
    assert np.array_equal(found.descriptors, expected.descriptors) and found.descriptors.dtype == np.float32
    assert len(found.checksum) == 64


def test_records_in_the_order_asked_for(store: Store) -> None:
    asked = ["m30", "m2", "m30", "m11"]
    assert [record.model_id for record in store.records(asked)] == asked


def test_velocity(store: Store, batch: Any) -> None:
    found = store.velocity("m5")
    assert np.array_equal(found, batch.velocity[5]) and found.dtype == np.float32


def test_velocities_in_the_order_asked_for(store: Store, batch: Any) -> None:
    found = store.velocities(["m9", "m0", "m9"])
    assert all(np.array_equal(one, batch.velocity[n]) for one, n in zip(found, (9, 0, 9), strict=True))


def test_no_models_are_asked_for(store: Store) -> None:
    assert store.records([]) == [] and store.velocities([]) == []
    assert [part.shape for part in store.embeddings([])] == [(0, 16), (0, 16)]


def test_embeddings(store: Store, oracle: Gallery) -> None:
    asked = ["m3", "m39", "m0"]
    for found, expected in zip(store.embeddings(asked), oracle.embeddings(asked), strict=True):
        assert np.array_equal(found, expected) and found.dtype == np.float32


def test_unknown_models(store: Store) -> None:
    for call in (store.record, store.velocity):
        with pytest.raises(UnknownModel, match=r"nobody"):
            call("nobody")
    for calls in (store.records, store.velocities, store.embeddings):
        with pytest.raises(UnknownModel, match=r"nobody"):
            calls(["m1", "nobody"])


HOSTILE = ('m1" or "" == "', "m1'", "m1\\", 'm1"] or row > 0 or model_id in ["', "", "m1\x00", "%", "{m1}", "m" * 5000)


def test_hostile_ids_are_of_no_model(store: Store) -> None:
    for text in HOSTILE:
        with pytest.raises(UnknownModel):
            store.record(text)


# -- searching


def test_search_by_velocity(store: Store, oracle: Gallery, batch: Any) -> None:
    queries = batch.velocity_embeddings[:7]
    assert seen(store.search_velocity(queries, 5)) == seen(oracle.search_velocity(queries, 5))


def test_search_by_physics(store: Store, oracle: Gallery, batch: Any) -> None:
    queries = batch.physics_embeddings[:7]
    assert seen(store.search_physics(queries, 5)) == seen(oracle.search_physics(queries, 5))


def test_search_for_more_than_there_are(store: Store, oracle: Gallery, make_batch: Any) -> None:
    queries = make_batch(3, first=500).velocity_embeddings
    found = store.search_velocity(queries, 1000)
    assert [len(hits) for hits in found] == [COUNT] * 3
    assert seen(found) == seen(oracle.search_velocity(queries, 1000))


def test_search_without_queries(store: Store) -> None:
    assert store.search_velocity(np.empty((0, 16), np.float32), 3) == []


@pytest.mark.parametrize("k", [0, -1, 1001, 2.0, True, "3"])
def test_k_out_of_range(store: Store, batch: Any, k: Any) -> None:
    with pytest.raises(InvalidQuery, match=r"k is a whole number from 1 to 1000"):
        store.search_velocity(batch.velocity_embeddings[:1], k)


def test_queries_that_are_none(store: Store) -> None:
    for queries in (np.zeros((1, 16)), np.full((1, 16), np.nan), np.ones((1, 15)), np.ones(16)):
        with pytest.raises(InvalidQuery):
            store.search_physics(queries, 1)


FILTERS = [
    Filter(families=("FlatVel-A",)),
    Filter(families=("FlatVel-A", "FlatFault-A")),
    Filter(tags=("field",)),
    Filter(tags=("field", "noisy")),
    Filter(ranges=(("mean_velocity", (2900.0, 3100.0)),)),
    Filter(ranges=(("mean_velocity", (-math.inf, 3000.0)), ("max_velocity", (4400.0, math.inf)))),
    Filter(families=("CurveVel-A",), tags=("synthetic",), ranges=(("min_velocity", (1500.0, 1600.0)),)),
    Filter(families=("no such family",)),
    Filter(ranges=(("mean_velocity", (-1e12, -1e-12)),)),
    Filter(ranges=(("mean_velocity", (math.inf, math.inf)),)),
    Filter(any_of=(Filter(("FlatVel-A",)), Filter(tags=("noisy",))), excluded=Filter(("CurveVel-A",))),
    Filter(any_tags=("noisy", "no such tag"), all_of=(Filter(families=("FlatVel-A", "FlatFault-A")),)),
    Filter(sources=("no such source",)),
    Filter(excluded=Filter(source_prefixes=("t",))),
    Filter(model_ids=("m1", "m7", "no such id", "'")),
]


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_search_with_a_filter(store: Store, oracle: Gallery, batch: Any, number: int) -> None:
    queries, chosen = batch.velocity_embeddings[:2], FILTERS[number]
    expected = oracle.search_velocity(queries, 6, filter=chosen)
    assert seen(store.search_velocity(queries, 6, filter=chosen)) == seen(expected)


def test_the_ends_of_a_range_belong_to_it(store: Store, oracle: Gallery, batch: Any) -> None:
    value = float(oracle.record("m4").descriptors[NAMES.index("mean_velocity")])
    above, below = np.nextafter(value, math.inf), np.nextafter(value, -math.inf)
    for low, high, there in ((value, value, True), (above, math.inf, False), (-math.inf, below, False)):
        chosen = Filter(ranges=(("mean_velocity", (float(low), float(high))),))
        (hits,) = store.search_velocity(batch.velocity_embeddings[:1], COUNT, filter=chosen)
        assert ("m4" in [hit.model_id for hit in hits]) is there


@pytest.mark.parametrize(
    "text", ['"', "'", "\\", '"] or row > 0 or family_key in ["', "%", "{x}", "*", "Ж" * 500, "or"]
)
def test_hostile_text_in_a_filter_is_a_name_that_nobody_has(store: Store, batch: Any, text: str) -> None:
    for chosen in (Filter(families=(text,)), Filter(tags=(text,))):
        assert store.search_velocity(batch.velocity_embeddings[:1], 3, filter=chosen) == [[]]


# -- changing


def test_a_model_that_is_added_is_found(changing: Store, make_batch: Any) -> None:
    before, new = changing.generation, make_batch(1, first=100)
    assert new.add_to(changing, source="a survey") == ["m100"]
    assert (len(changing), changing.generation) == (13, before + 1)
    (hits,) = changing.search_velocity(new.velocity_embeddings, 1)
    assert (hits[0].model_id, hits[0].similarity) == ("m100", pytest.approx(1.0))
    assert changing.record("m100").source == "a survey" and "T" in changing.record("m100").added_at
    assert changing.info().count == 13 and sum(changing.distribution().histograms["mean_velocity"].counts) == 13


def test_words_of_any_kind_come_back(changing: Store, make_batch: Any) -> None:
    one = make_batch(1, first=101)
    words = ['a "quoted" \\ name', "Ж" * 500, "'] or 1 == 1", "%_{}"]
    parts = (one.velocity, one.descriptors, one.velocity_embeddings, one.physics_embeddings)
    changing.add(*parts, model_ids=["x"], families=[words[0]], tags=[words], source=words[1])
    record = changing.record("x")
    assert (record.family, record.tags, record.source) == (words[0], tuple(sorted(words)), words[1])
    for chosen in (Filter(families=(words[0],)), Filter(tags=tuple(words[:3]))):
        (hits,) = changing.search_physics(one.physics_embeddings, 5, filter=chosen)
        assert [hit.model_id for hit in hits] == ["x"]


def test_equal_models_come_in_the_order_they_were_added(changing: Store, make_batch: Any) -> None:
    one = make_batch(1, first=102)
    for name in ("z", "b", "a", "y"):
        changing.add(one.velocity, one.descriptors, one.velocity_embeddings, one.physics_embeddings, model_ids=[name])
    for search, query in (
        (changing.search_velocity, one.velocity_embeddings), (changing.search_physics, one.physics_embeddings),
    ):  # fmt: skip
        for k in (2, 4):
            (hits,) = search(query, k)
            assert [hit.model_id for hit in hits] == ["z", "b", "a", "y"][:k]


def test_an_id_from_the_content(changing: Store, make_batch: Any) -> None:
    one = make_batch(1, first=103)
    parts = (one.velocity, one.descriptors, one.velocity_embeddings, one.physics_embeddings)
    (name,) = changing.add(*parts)
    assert name.startswith("v-") and changing.add(*parts, skip_existing=True) == [name] and len(changing) == 13


def test_nothing_is_added_of_nothing(changing: Store, make_batch: Any) -> None:
    before = changing.generation
    assert make_batch(0).add_to(changing) == [] and changing.generation == before


def test_an_id_that_is_taken(changing: Store, make_batch: Any) -> None:
    before, again = changing.generation, make_batch(3, first=11)
    with pytest.raises(InvalidQuery, match=r"'m11' is already in the gallery.*Nothing was added"):
        again.add_to(changing)
    assert (len(changing), changing.generation) == (12, before)
    assert again.add_to(changing, skip_existing=True) == ["m11", "m12", "m13"]
    assert (len(changing), changing.generation) == (14, before + 1)


def test_an_id_of_another_map(changing: Store, make_batch: Any) -> None:
    other = make_batch(1, first=104)
    parts = (other.velocity, other.descriptors, other.velocity_embeddings, other.physics_embeddings)
    for skip in (False, True):
        with pytest.raises(InvalidQuery, match=r"already belongs to another velocity model"):
            changing.add(*parts, model_ids=["m3"], skip_existing=skip)
    assert not np.array_equal(changing.velocity("m3"), other.velocity[0])


def test_what_cannot_be_added(changing: Store, make_batch: Any) -> None:
    one = make_batch(1, first=105)
    parts = (one.velocity, one.descriptors, one.velocity_embeddings, one.physics_embeddings)
    wrong: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception]]] = [
        ((*parts[:2], parts[2] * 2, parts[3]), {}, InvalidQuery),
        ((*parts[:2], parts[2][:, :8], parts[3]), {}, InvalidQuery),
        ((parts[0] * np.nan, *parts[1:]), {}, InvalidVelocityModel),
        (parts, {"model_ids": ['a"b']}, InvalidQuery),
        (parts, {"families": ["a\nb"]}, InvalidQuery),
        (parts, {"tags": ["abc"]}, InvalidQuery),
    ]
    for arguments, options, kind in wrong:
        with pytest.raises(kind):
            changing.add(*arguments, **options)
    assert len(changing) == 12


def test_models_that_are_removed_are_gone(changing: Store, make_batch: Any) -> None:
    before, batch = changing.generation, make_batch(12)
    assert changing.remove(["m4", "m0", "m4"]) == 2
    assert (len(changing), changing.generation) == (10, before + 1)
    assert {"m4", "m0"}.isdisjoint(changing.model_ids())
    for search, queries in (
        (changing.search_velocity, batch.velocity_embeddings), (changing.search_physics, batch.physics_embeddings),
    ):  # fmt: skip
        found = search(queries[[0, 4]], 12)
        assert all(len(hits) == 10 and {"m4", "m0"}.isdisjoint(hit.model_id for hit in hits) for hits in found)
    with pytest.raises(UnknownModel):
        changing.velocity("m4")
    assert changing.info().count == 10 and sum(changing.distribution().histograms["mean_velocity"].counts) == 10


def test_all_that_are_named_are_removed_or_none(changing: Store) -> None:
    before = changing.generation
    with pytest.raises(UnknownModel, match=r"'nobody'"):
        changing.remove(["m1", "nobody"])
    assert (len(changing), changing.generation) == (12, before) and changing.record("m1")


def test_a_model_may_come_back(changing: Store, make_batch: Any) -> None:
    changing.remove(["m2"])
    again = make_batch(1, first=2)
    again.add_to(changing)
    assert changing.model_ids()[-1] == "m2" and np.array_equal(changing.velocity("m2"), again.velocity[0])
    (hits,) = changing.search_velocity(again.velocity_embeddings, 1)
    assert hits[0].model_id == "m2"


def test_another_reader_sees_changes_when_it_looks(
    kind: Any, own_place: Path | str, changing: Store, make_batch: Any
) -> None:
    with kind.open(own_place) as reader:
        make_batch(1, first=106).add_to(changing)
        assert reader.refresh() and reader.generation == changing.generation and len(reader) == 13
        assert not reader.refresh()
        changing.remove(["m106"])
        assert reader.refresh() and reader.model_ids() == changing.model_ids()
        assert reader.families() == changing.families()


def test_what_is_found_in_a_block_can_be_read_in_it(
    kind: Any, own_place: Path | str, changing: Store, make_batch: Any
) -> None:
    query = make_batch(1, first=5)
    with kind.open(own_place) as reader, reader.unchanging():
        (hits,) = reader.search_velocity(query.velocity_embeddings, 1)
        changing.remove(["m5"])
        assert [hit.model_id for hit in hits] == ["m5"]
        assert np.array_equal(reader.velocities(["m5"])[0], query.velocity[0]) and reader.record("m5")
    with kind.open(own_place) as reader, pytest.raises(UnknownModel):
        reader.record("m5")


# -- opening


def test_changes_outlast_closing(kind: Any, own_place: Path | str, changing: Store, make_batch: Any) -> None:
    make_batch(1, first=107).add_to(changing)
    expected = (changing.model_ids(), changing.generation)
    changing.close()
    with kind.open(own_place) as store:
        assert (store.model_ids(), store.generation) == expected and len(store) == 13


def test_a_gallery_opened_for_reading_does_not_change(store: Store, make_batch: Any) -> None:
    with pytest.raises(GalleryError, match=r"was opened for reading"):
        make_batch(1, first=108).add_to(store)
    with pytest.raises(GalleryError, match=r"was opened for reading"):
        store.remove(["m0"])


def test_no_gallery_is_there(kind: Any) -> None:
    with pytest.raises(GalleryNotFound, match=r"There is no gallery at"):
        kind.open(kind.place())


def test_other_weights(kind: Any, place: Path | str) -> None:
    with pytest.raises(WeightsMismatch, match=r"weights-1.*weights-2"):
        kind.open(place, fingerprint="weights-2")


def test_a_gallery_is_there_already(kind: Any, place: Path | str) -> None:
    with pytest.raises(GalleryError, match=r"already"):
        kind.create(place)


def test_verify_finds_all_well(store: Store) -> None:
    report = store.verify()
    assert report.ok and report.count == COUNT and report.problems == ()


def test_closing_twice(kind: Any, place: Path | str) -> None:
    store = kind.open(place)
    store.close()
    store.close()
