"""Search is exact: promises 8, 9, 10 and 14."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery, Hit
from seisbind.index.scanning import codes, shortlist
from seisbind.index.scanning.codes import Codes
from seisbind.index.scanning.shortlist import Shortlist
from seisbind.index.search import vectors
from seisbind.index.search.vectors import RECENT_VECTORS, VectorIndex
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import NAMES, describe

FAMILIES = ["FlatVel-A", "CurveVel-A", "FlatFault-A", "CurveFault-A"]


def unit(generator: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    vectors = generator.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gallery, dict[str, Any]]:
    """6,000 models in 256 dimensions, added in pieces so that sealed and recent parts and removals all take part."""
    generator = np.random.default_rng(8)
    count = 6000
    truth: dict[str, Any] = {
        "ids": np.asarray([f"m{i}" for i in range(count)], object),
        "velocity": unit(generator, count, 256),
        "physics": unit(generator, count, 256),
        "maps": generator.uniform(1500, 4500, (count, 4, 4)).astype(np.float32),
        "family": np.asarray(FAMILIES, object)[generator.integers(len(FAMILIES), size=count)],
        "tags": [("rare",) if i % 500 == 0 else ("common",) for i in range(count)],
    }
    truth["descriptors"] = describe(truth["maps"])
    gallery = Gallery.create(tmp_path_factory.mktemp("large") / "g", fingerprint="w")
    for start, stop in ((0, 5000), (5000, 5001), (5001, 5900), (5900, 6000)):
        part = slice(start, stop)
        gallery.add(
            truth["maps"][part],
            truth["descriptors"][part],
            truth["velocity"][part],
            truth["physics"][part],
            model_ids=list(truth["ids"][part]),
            families=list(truth["family"][part]),
            tags=truth["tags"][part],
        )
    gone = generator.choice(count, 300, replace=False)
    gallery.remove(list(truth["ids"][gone]))
    truth["alive"] = ~np.isin(np.arange(count), gone)
    return gallery, truth


def ids(answers: list[list[Hit]]) -> list[list[str]]:
    return [[hit.model_id for hit in hits] for hits in answers]


def expected(
    truth: dict[str, Any], space: str, queries: NDArray[np.float32], k: int, allowed: NDArray[np.bool_]
) -> tuple[list[list[str]], NDArray[np.float64]]:
    at = np.flatnonzero(allowed)
    similarities = queries.astype(np.float64) @ truth[space][at].astype(np.float64).T
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return [list(truth["ids"][at[row]]) for row in order], np.take_along_axis(similarities, order, axis=1)


@pytest.mark.parametrize("space", ["velocity", "physics"])
def test_equals_brute_force_over_a_thousand_queries(large: tuple[Gallery, dict[str, Any]], space: str) -> None:
    gallery, truth = large
    queries = unit(np.random.default_rng(1), 1000, 256)
    answers = getattr(gallery, f"search_{space}")(queries, 10)
    wanted, similarities = expected(truth, space, queries, 10, truth["alive"])
    assert ids(answers) == wanted
    found = np.asarray([[hit.similarity for hit in hits] for hits in answers])
    np.testing.assert_allclose(found, similarities, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_filters_are_exact_whatever_the_selectivity(large: tuple[Gallery, dict[str, Any]], data: st.DataObject) -> None:
    gallery, truth = large
    families = data.draw(st.lists(st.sampled_from([*FAMILIES, "absent"]), unique=True, max_size=3))
    tags = data.draw(st.sampled_from([[], ["rare"], ["common"], ["rare", "common"]]))
    columns = data.draw(st.lists(st.integers(0, len(NAMES) - 1), unique=True, max_size=2))
    k = data.draw(st.sampled_from([1, 7, 100, 1000]))
    conditions: dict[str, object] = {}
    allowed = truth["alive"].copy()
    if families:
        conditions["family"] = families
        allowed &= np.isin(truth["family"], families)
    if tags:
        conditions["tag"] = tags
        allowed &= np.asarray([set(tags) <= set(own) for own in truth["tags"]])
    for column in columns:
        values = truth["descriptors"][:, column]
        low, high = np.sort(np.quantile(values, data.draw(st.tuples(st.floats(0, 1), st.floats(0, 1)))))
        conditions[NAMES[column]] = [float(low), float(high)]
        allowed &= (values.astype(np.float64) >= low) & (values.astype(np.float64) <= high)
    queries = unit(np.random.default_rng(k), 3, 256)
    answers = gallery.search_velocity(queries, k, filter=Filter.parse(conditions))
    assert ids(answers) == expected(truth, "velocity", queries, k, allowed)[0]
    assert [len(hits) for hits in answers] == [min(k, int(allowed.sum()))] * 3


def test_alone_or_in_a_batch_the_answer_is_the_same(large: tuple[Gallery, dict[str, Any]]) -> None:
    gallery, _ = large
    queries = unit(np.random.default_rng(3), 64, 256)
    together = gallery.search_velocity(queries, 20)
    assert [gallery.search_velocity(query[None], 20)[0] for query in queries] == together
    assert gallery.search_velocity(queries[::-1], 20)[::-1] == together


@pytest.mark.parametrize("count", [5, 50, RECENT_VECTORS + 50])
def test_equal_similarities_are_ranked_by_age(count: int) -> None:
    """Also with more ties than the index fetches at first, and across its parts."""
    vector = unit(np.random.default_rng(0), 1, 8)
    index = VectorIndex.build(np.repeat(vector, count, axis=0)).extended(np.repeat(vector, 7, axis=0))
    for k in (1, 3, count, count + 7, 1000):
        [(positions, similarities)] = index.search(vector, k)
        assert positions.tolist() == list(range(min(k, count + 7)))
        assert set(similarities.tolist()) == {similarities[0]}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 80), st.floats(0, 1))
def test_an_index_of_any_history_is_exact(seed: int, count: int, k: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    # Few directions, hence many exact ties.
    vectors = unit(generator, 5, 8)[generator.integers(5, size=count)]
    first = int(generator.integers(count + 1))
    index = VectorIndex.build(vectors[:first]).extended(vectors[first:])
    allowed = generator.random(count) < share
    query = unit(generator, 1, 8)
    [(positions, similarities)] = index.search(query, k, allowed=allowed)
    exact = (vectors.astype(np.float64) * query[0].astype(np.float64)).sum(axis=1)
    order = [i for i in np.lexsort((np.arange(count), -exact)) if allowed[i]][:k]
    assert positions.tolist() == order
    np.testing.assert_allclose(similarities, exact[order], atol=1e-12)


def close_together(generator: np.random.Generator, count: int, dimension: int) -> NDArray[np.float32]:
    """Unit vectors of which many are equal, and many so close that neither eight bits nor float32 tell them apart."""
    centres = unit(generator, 8, dimension)
    away = 10.0 ** generator.uniform(-9, 0, (count, 1)) / np.sqrt(dimension)
    found = centres[generator.integers(8, size=count)] + away * generator.standard_normal((count, dimension))
    found[::7] = found[0]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def products_in_eight_bits(queries: torch.Tensor, held: torch.Tensor) -> torch.Tensor:
    """What `torch._int_mm` computes where a machine has the instructions."""
    return torch.from_numpy(queries.numpy().astype(np.int32) @ held.numpy().astype(np.int32))


@pytest.mark.parametrize("eight_bits", [True, False])
@pytest.mark.parametrize(("dimension", "share"), [(256, 1.0), (256, 0.5), (256, 0.002), (16, 0.9)])
def test_a_first_pass_changes_no_answer(
    monkeypatch: pytest.MonkeyPatch, eight_bits: bool, dimension: int, share: float
) -> None:
    """To the bit, in batches of any size, over several segments, with ties, near-ties and any part allowed."""
    monkeypatch.setattr(vectors, "pays", lambda: eight_bits)
    if not codes.pays():
        monkeypatch.setattr(torch, "_int_mm", products_in_eight_bits)
    generator = np.random.default_rng(dimension)
    held = close_together(generator, 6000, dimension)
    index = VectorIndex.build(held[:4500]).extended(held[4500:]).extended(held[:500])
    held = np.concatenate([held, held[:500]])
    assert [segment.codes is not None for segment in index._segments] == [eight_bits, False, False]
    allowed = generator.random(len(held)) < share
    queries = np.concatenate([close_together(generator, 20, dimension), held[:15], unit(generator, 5, dimension)])
    exact = [np.clip((held.astype(np.float64) * query.astype(np.float64)).sum(axis=1), -1, 1) for query in queries]
    for k in (1, 20, 1000):
        together = index.search(queries, k, allowed=allowed)
        for truth, (positions, similarities) in zip(exact, together, strict=True):
            order = np.lexsort((np.arange(len(held)), -truth))
            wanted = order[allowed[order]][:k]
            assert positions.tolist() == wanted.tolist()
            assert similarities.tolist() == truth[wanted].tolist()
        [(positions, similarities)] = index.search(queries[:1], k, allowed=allowed)
        assert positions.tolist() == together[0][0].tolist() and similarities.tolist() == together[0][1].tolist()


def test_without_its_bound_a_first_pass_changes_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vacuity: eight bits alone find others."""
    monkeypatch.setattr(vectors, "pays", lambda: True)
    if not codes.pays():
        monkeypatch.setattr(torch, "_int_mm", products_in_eight_bits)
    held, queries = unit(np.random.default_rng(5), 4000, 64), unit(np.random.default_rng(6), 300, 64)
    right, scan = VectorIndex.build(held).search(queries, 10), Codes.scan
    monkeypatch.setattr(Codes, "scan", lambda self, asked: replace(scan(self, asked), error=np.zeros(len(asked))))
    wrong = VectorIndex.build(held).search(queries, 10)
    assert sum(a[0].tolist() != b[0].tolist() for a, b in zip(right, wrong, strict=True)) > 5


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 10_000), st.integers(1, 300), st.sampled_from([2, 17, 256]))
def test_the_bound_of_eight_bits_holds(seed: int, count: int, dimension: int) -> None:
    generator = np.random.default_rng(seed)
    held, queries = close_together(generator, count, dimension), close_together(generator, 5, dimension)
    coded = Codes.of(held)
    unit_of = np.abs(queries.astype(np.float64)).max(axis=1) / codes.LARGEST
    rounded = np.rint(queries / unit_of[:, None])
    scan = coded.scan(queries)
    products = coded.codes.astype(np.int64) @ rounded.T.astype(np.int64)
    exact = held.astype(np.float64) @ queries.T.astype(np.float64)
    assert (np.abs(products * scan.unit - exact) <= scan.error).all() and (scan.error < 0.3).all()


def test_many_equal_ones_take_no_more_memory_than_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept between blocks is bounded; the best are the first of them."""
    monkeypatch.setattr(shortlist, "MANY", 4096)
    vector = unit(np.random.default_rng(0), 1, 8)
    index = VectorIndex.build(np.repeat(vector, 30_000, axis=0))
    kept: list[int] = []
    keep = Shortlist.keep

    def watched(self: Shortlist, *found: Any) -> None:
        keep(self, *found)
        kept.append(len(self._query))

    monkeypatch.setattr(Shortlist, "keep", watched)
    for positions, _ in index.search(np.repeat(vector, 64, axis=0), 5):
        assert positions.tolist() == [0, 1, 2, 3, 4]
    assert max(kept) <= 4096


def test_growing_by_one_shares_the_sealed_part() -> None:
    vectors = unit(np.random.default_rng(0), 2 * RECENT_VECTORS, 8)
    index = VectorIndex.build(vectors)
    grown = index.extended(vectors[:1])
    assert grown._segments[0] is index._segments[0]
    assert len(grown) == len(index) + 1
    for _ in range(4):
        grown = grown.extended(vectors[: RECENT_VECTORS // 2])
    assert len(grown._segments) <= 2


def test_an_empty_gallery_finds_nothing(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", fingerprint="w", dimension=8) as gallery:
        query = unit(np.random.default_rng(0), 2, 8)
        assert gallery.search_velocity(query, 5) == [[], []]
        assert gallery.search_physics(query, 5, filter=Filter(families=("x",))) == [[], []]
        assert gallery.search_velocity(np.empty((0, 8), np.float32), 5) == []


@pytest.mark.parametrize("k", [0, -1, 1001, 2.0, True, "3"])
def test_k_out_of_range_is_refused(large: tuple[Gallery, dict[str, Any]], k: Any) -> None:
    with pytest.raises(InvalidQuery, match="from 1 to 1000"):
        large[0].search_velocity(unit(np.random.default_rng(0), 1, 256), k)


@pytest.mark.parametrize(
    ("queries", "reason"),
    [
        (np.zeros((1, 256), np.float32), "unit length"),
        (np.full((1, 256), np.nan, np.float32), "NaN"),
        (np.full((1, 256), 1e200), "unit length"),
        (np.ones(256, np.float32), "shape"),
        (np.ones((1, 255), np.float32), "shape"),
        (np.ones((1, 256), complex), "shape"),
        (np.full((1, 256), "a"), "shape"),
    ],
)
def test_queries_that_cannot_be_used_are_refused(
    large: tuple[Gallery, dict[str, Any]], queries: NDArray[Any], reason: str
) -> None:
    with pytest.raises(InvalidQuery, match=reason):
        large[0].search_velocity(queries, 3)


def test_searching_goes_on_while_models_come_and_go(tmp_path: Path, make_batch: Callable[..., Any]) -> None:
    """FAISS alone ends the process here: nothing is ever added to an index that can be searched."""
    with Gallery.create(tmp_path / "g", fingerprint="w", dimension=16) as gallery:
        stays = make_batch(50)
        stays.add_to(gallery)
        wrong: list[str] = []
        done = False

        def search() -> None:
            while not done:
                for i, hits in enumerate(gallery.search_velocity(stays.velocity_embeddings, 5)):
                    if hits[0].model_id != stays.model_ids[i] or len(hits) != 5:
                        wrong.append(f"{i}: {hits}")
                gallery.record("m3")
                gallery.velocity("m4")

        threads = [Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for first in range(100, 500, 20):
                batch = make_batch(20, first=first)
                batch.add_to(gallery)
                gallery.remove(batch.model_ids[:15])
        finally:
            done = True
            for thread in threads:
                thread.join()
        assert wrong == []
        assert gallery.verify().ok
