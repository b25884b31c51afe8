"""A gallery that changes under those who ask it: swapped a hundred times (promise 18), or changed elsewhere."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery, Hit
from seisbind.index.replicas.source import Lease
from seisbind.index.search import mapped_writer
from seisbind.index.storage.folder import MAPPED
from seisbind.model.encoders.embedder import Embedder
from seisbind.service.engine.engine import Engine
from seisbind.service.runtime.serving import FILE_THREADS, _Held
from wire import RAW, npy

Float32 = NDArray[np.float32]
SWAPS = 100
ASKING = 3  # clients at a time
Told = dict[int, tuple[int, list[str]]]  # generation → models in the gallery, ids of the matches


@pytest.fixture(scope="module")
def galleries(make_gallery: Any, embedder: Embedder, gathers: Float32) -> tuple[Path, Path, Told]:
    """Two galleries that answer the same gather with different models, and what each answers."""
    path, other = make_gallery(), make_gallery()
    with Gallery.open(other, fingerprint=embedder.fingerprint, writable=True) as gallery:
        gallery.remove([match.model_id for match in Engine(embedder, gallery).retrieve(gathers[0])[0].matches])
    expected: Told = {}
    for each in (path, other):
        with Gallery.open(each, fingerprint=embedder.fingerprint) as gallery:
            [answer] = Engine(embedder, gallery).retrieve(gathers[0])
            expected[gallery.generation] = (len(gallery), [match.model_id for match in answer.matches])
    first, second = expected.values()
    assert not set(first[1]) & set(second[1])
    return path, other, expected


def told(answer: dict[str, Any]) -> tuple[int, tuple[int, list[str]]]:
    matches = answer["results"][0]["matches"]
    return answer["gallery"]["generation"], (answer["gallery"]["models"], [match["model_id"] for match in matches])


@pytest.mark.long
def test_a_hundred_swaps_under_load(
    serve: Any,
    galleries: tuple[Path, Path, Told],
    gathers: Float32,
    script: Callable[[str], ModuleType],
) -> None:
    """No request fails, no answer mixes two galleries, and memory, descriptors and threads are back afterwards."""
    path, other, expected = galleries
    server = serve(gallery=path)
    body = npy(gathers[0])
    seen: list[tuple[int, tuple[int, list[str]]]] = []
    failed: list[str] = []
    look = script("endurance").state
    states: list[Any] = []

    async def swap_and_ask() -> None:
        done = asyncio.Event()

        async def ask(http: httpx.AsyncClient) -> None:
            while not done.is_set():
                response = await http.post("/v1/retrieve", content=body, headers=RAW)
                if response.status_code == 200:
                    seen.append(told(response.json()))
                else:
                    failed.append(response.text)

        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            clients = [asyncio.create_task(ask(http)) for _ in range(ASKING)]
            for swap in range(SWAPS):
                aside = path.with_name("aside")
                path.rename(aside)
                other.rename(path)
                aside.rename(other)
                response = await http.post("/v1/gallery/reload")
                assert response.status_code == 200, response.text
                if swap in (SWAPS // 5 - 1, SWAPS - 1):
                    gc.collect()
                    states.append(look(os.getpid()))
            done.set()
            await asyncio.gather(*clients)

    asyncio.run(swap_and_ask())
    assert failed == []
    assert len(seen) > ASKING
    for generation, answer in seen:
        assert answer == expected[generation]
    assert {generation for generation, _ in seen} == set(expected)
    (memory, descriptors, threads), (memory_after, descriptors_after, threads_after) = states
    assert memory_after < memory * 1.05
    assert descriptors_after <= descriptors + 4  # of a gallery that is about to be closed
    assert threads_after <= threads + FILE_THREADS  # they start when they are needed


def test_an_answer_that_mixes_two_galleries_would_be_seen(galleries: tuple[Path, Path, Told]) -> None:
    expected = galleries[2]
    (one, (models, matches)), (other, _) = expected.items()
    assert expected[other] != (models, matches) and expected[one] == (models, matches)


@contextmanager
def shrinking(
    reader: Gallery, embedder: Embedder, monkeypatch: pytest.MonkeyPatch, *, while_more_than: int
) -> Iterator[list[str]]:
    """Each model that ``reader`` finds first is removed by a writer before its record or its map can be read."""
    gone: list[str] = []
    search = reader.search_velocity
    with Gallery.open(reader.path, fingerprint=embedder.fingerprint, writable=True) as writer:

        def search_and_lose(*args: Any, **options: Any) -> list[list[Hit]]:
            found = search(*args, **options)
            if len(writer) > while_more_than and found[0][0].model_id in writer.model_ids():
                gone.append(found[0][0].model_id)
                writer.remove(gone[-1:])
            return found

        with monkeypatch.context() as patch:
            patch.setattr(reader, "search_velocity", search_and_lose)
            yield gone


def test_models_that_vanish_while_they_are_found_are_no_error(
    make_gallery: Any, embedder: Embedder, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to look again three times and then answer ``unknown_model``."""
    with Gallery.open(make_gallery(), fingerprint=embedder.fingerprint) as reader:
        engine = Engine(embedder, reader)
        with shrinking(reader, embedder, monkeypatch, while_more_than=20) as gone:
            for _ in range(5):
                [answer] = engine.retrieve(gathers[0], top_k=10)
                assert len(answer.matches) == 10
                [result] = engine.search_velocity(np.full((1, 70, 70), 2500, np.float32), top_k=3)
                assert len(result.matches) == 3
        assert len(gone) >= 5


def test_nor_over_http_nor_where_the_maps_are_in_the_answer(
    serve: Any, make_gallery: Any, embedder: Embedder, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(gallery=make_gallery())
    reader = server.serving._held.engine.gallery
    body = npy(gathers[0])
    with shrinking(reader, embedder, monkeypatch, while_more_than=20) as gone:
        for accept in ("application/json", "application/x-npz") * 4:
            response = server.http.post("/v1/retrieve", content=body, headers=RAW | {"accept": accept})
            assert response.status_code == 200, response.text
        assert len(gone) >= 4


def test_a_server_that_stops_makes_no_approximate_index(
    make_gallery: Any, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a minute, and SIGTERM leaves half of one; the next command that writes makes it."""
    path = make_gallery()
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1)
    monkeypatch.setattr(mapped_writer, "APPROXIMATE_MODELS", 1)
    made: list[object] = []
    monkeypatch.setattr(mapped_writer.recall, "build", made.append)
    gallery = Gallery.open(path, fingerprint=embedder.fingerprint, writable=True)
    _Held(Engine(embedder, gallery), Lease(path)).close()
    assert not made and (path / MAPPED).is_file()
