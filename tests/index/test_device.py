"""What a GPU finds is what the CPU finds, to the bit (promise 107); here by the same code on torch's CPU device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery
from seisbind.index.search import device as module
from seisbind.index.search.device import DEVICE_VECTORS, LOST, MEMORY, DeviceSearch, accumulation, error_bound
from seisbind.index.search.vectors import VectorIndex
from seisbind.model.ground.descriptors import describe

Float32 = NDArray[np.float32]
CPU = torch.device("cpu")
DIMENSION = 64


def unit(vectors: NDArray[Any]) -> Float32:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def crowded(count: int, seed: int, dimension: int = DIMENSION) -> Float32:
    """Vectors that fp16 cannot rank: all near each other, and copies among them."""
    generator = np.random.default_rng(seed)
    centre = generator.standard_normal((1, dimension))
    found = unit(centre + 0.02 * generator.standard_normal((count, dimension)))
    found[:: max(2, count // 7)] = found[0]
    return found


def same(one: list[tuple[Any, Any]], other: list[tuple[Any, Any]]) -> list[bool]:
    return [np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1]) for a, b in zip(one, other, strict=True)]


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_index_any_filter_any_k(data: st.DataObject) -> None:
    """Sealed segments and additions, any mask and number of hits, more queries than a batch."""
    seed = data.draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    index = VectorIndex.build(crowded(data.draw(st.integers(DEVICE_VECTORS, 6000)), seed))
    for count in data.draw(st.lists(st.sampled_from([1, 700, 1024, 3000]), max_size=3)):
        index = index.extended(crowded(count, seed + count))
    queries = np.concatenate([crowded(3, seed), unit(generator.standard_normal((data.draw(st.integers(1, 70)), 64)))])
    share = data.draw(st.sampled_from([None, 0.0, 0.001, 0.5, 1.0]))
    allowed = None if share is None else generator.random(len(index)) < share
    k = data.draw(st.sampled_from([1, 5, 20, 1000]))
    found = index.search(queries, k, allowed=allowed, device=DeviceSearch(CPU))
    assert all(same(found, index.search(queries, k, allowed=allowed)))


def test_blocks_of_any_size_and_one_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    index, queries = VectorIndex.build(crowded(5000, 1)), crowded(70, 1)
    expected = index.search(queries, 10)
    for size in (1, 7, 300, 4999):
        monkeypatch.setitem(module.BLOCK_VECTORS, "cpu", size)
        few = queries[:3] if size < 10 else queries
        assert all(same(index.search(few, 10, device=DeviceSearch(CPU)), expected[: len(few)]))
    search = DeviceSearch(CPU)
    alone = [index.search(query[None], 10, device=search)[0] for query in queries]
    assert all(same(alone, expected))


def test_a_bound_that_is_too_small_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data do need the bound: without it best ones are left out."""
    index, queries = VectorIndex.build(crowded(5000, 2)), crowded(64, 2)
    monkeypatch.setattr(module, "error_bound", lambda vectors, left_out, dimension: np.zeros(len(left_out)))
    assert not all(same(index.search(queries, 10, device=DeviceSearch(CPU)), index.search(queries, 10)))


def test_no_product_is_further_than_the_bound() -> None:
    vectors, queries = crowded(3000, 3, 256), unit(np.random.default_rng(3).standard_normal((50, 256)))
    held = DeviceSearch(CPU).hold(VectorIndex.build(vectors)._segments[0])
    assert held is not None
    halves = queries.astype(np.float16)
    left_out = np.linalg.norm(queries.astype(np.float64) - halves, axis=1)
    products = module._products(torch.from_numpy(halves), held.vectors).numpy()
    off = np.abs(products - queries.astype(np.float64) @ vectors.astype(np.float64).T).max(axis=1)
    bound = error_bound(held.error, left_out, 256)
    assert (off <= bound).all() and (off > bound / 100).any()


def test_a_device_that_adds_less_precisely_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert DeviceSearch(CPU).sound(256)
    products = module._products
    monkeypatch.setattr(module, "_products", lambda q, v: products(q, v).half().float())
    assert not DeviceSearch(CPU).sound(256)
    assert accumulation(256) < 2**-11


Filled = Callable[..., Gallery]


@pytest.fixture
def gallery(tmp_path: Path) -> Any:
    """5,000 models in two spaces, of which some are removed and some added later."""
    generator, count = np.random.default_rng(5), 5000
    maps = generator.uniform(1500, 4500, (count, 4, 4)).astype(np.float32)
    arrays = (maps, describe(maps), crowded(count, 5), crowded(count, 6))
    families = [f"family-{number % 50}" for number in range(count)]
    with Gallery.create(tmp_path / "gallery", fingerprint="w", dimension=DIMENSION) as filled:
        for part in (slice(0, 4000), slice(4000, None)):
            filled.add(
                *(each[part] for each in arrays),
                model_ids=[f"m{i}" for i in range(count)[part]],
                families=families[part],
            )
        filled.remove([f"m{i}" for i in range(0, 300, 3)])
        yield filled


def answers(gallery: Gallery) -> list[Any]:
    queries = crowded(9, 5)
    return [
        search(queries, 12, filter=chosen)
        for search in (gallery.search_velocity, gallery.search_physics)
        for chosen in (None, Filter(("family-7",)))
    ]


def test_a_gallery_answers_alike_while_it_changes(gallery: Gallery) -> None:
    expected = answers(gallery)
    gallery.search_on(CPU, twin=True)
    assert gallery.device_bytes >= 2 * 2 * 4000 * DIMENSION
    assert answers(gallery) == expected
    gallery.remove([expected[0][0][0].model_id])
    maps = np.full((1, 4, 4), 2000.0, np.float32)
    gallery.add(maps, describe(maps), crowded(9, 5)[1:2], crowded(9, 6)[1:2], model_ids=["late"])
    found = answers(gallery)
    assert found != expected and "late" in [hit.model_id for hit in found[0][1]]
    gallery.search_on(CPU)
    assert answers(gallery) == found and gallery.device_bytes == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [(torch.OutOfMemoryError("CUDA out of memory."), MEMORY), (RuntimeError("CUDA error: unspecified"), LOST)],
)
def test_a_device_that_fails_costs_no_answer(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, reason: str
) -> None:
    """In the middle of a search: the CPU answers it, a log line and a counter say so, a full device is tried again."""
    expected, counted = answers(gallery), []
    gallery.search_on(CPU, on_fall_back=counted.append, twin=True)
    products, calls = module._products, 0

    def failing(queries: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error
        return products(queries, vectors)

    monkeypatch.setattr(module, "_products", failing)
    assert answers(gallery) == expected
    assert counted[0] == reason and str(error) in caplog.text
    assert calls >= 2 and (len(counted) == 1 or reason == MEMORY)
    seen = calls
    monkeypatch.setattr(module, "REFUSED_S", 0.0)
    device = gallery._device
    assert device is not None and device.lost == (reason == LOST)
    device._refused.clear()
    assert answers(gallery) == expected
    assert (calls > seen) == (reason == MEMORY)


def test_vectors_that_do_not_fit_are_searched_on_the_cpu(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, counted = answers(gallery), []
    monkeypatch.setattr(DeviceSearch, "free_bytes", lambda self: 1000)
    gallery.search_on(CPU, on_fall_back=counted.append, twin=True)
    assert gallery.search_device == "cpu" and gallery.device_bytes == 0
    assert counted == [MEMORY] and "GB in fp16" in gallery.notes[-1] and gallery.notes[-1] in caplog.text
    assert answers(gallery) == expected


def test_the_mask_of_another_search_is_not_used() -> None:
    """Two filters at once: whichever mask is kept last, each search uses its own."""

    class Contested(module.DeviceVectors):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "mask" and value is not None:  # the other thread comes in between
                super().__setattr__(name, (others, torch.from_numpy(others)))

    others = np.zeros(4000, np.bool_)
    others[2000:] = True
    index, queries = VectorIndex.build(crowded(4000, 3)), crowded(5, 3)
    search, allowed = DeviceSearch(CPU), ~others
    index.hold(search)
    (segment,) = search._held
    held = search._held[segment]
    search._held[segment] = Contested(held.vectors, held.error)
    # one more than `DEVICE_VECTORS`, or the CPU would search
    allowed[2000:2100] = True
    found = index.search(queries, 10, allowed=allowed)
    assert all(same(index.search(queries, 10, allowed=allowed, device=search), found))
