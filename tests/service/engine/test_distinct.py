"""`distinct`: the matches are different ground, in every call that searches and every way to it (promise 115)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.confidence.distinct import difference_m_s
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidQuery, ServerRefused
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.client.client import AsyncClient, Client
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import Query

Float32 = NDArray[np.float32]
LIMIT = 40.0


@pytest.fixture
def twins(tmp_path: Path, embedder: Embedder, models: tuple[Float32, list[str]]) -> Path:
    """A gallery where each of 12 grounds is there four times, each time a few m/s apart."""
    generator = np.random.default_rng(3)
    grounds = models[0][:12]
    copies = np.repeat(grounds, 4, axis=0) + generator.uniform(0, 10, (48, 1, 1)).astype(np.float32)
    with Gallery.create(tmp_path / "twins", fingerprint=embedder.fingerprint, frame=embedder.frame) as gallery:
        ids = [f"g{i // 4}-{i % 4}" for i in range(48)]
        Engine(embedder, gallery).add_models(copies, model_ids=ids, families=["A", "B"] * 24)
    return tmp_path / "twins"


def different(gallery: Gallery, ids: Sequence[str], limit: float) -> bool:
    return all(difference_m_s(*pair) > limit for pair in combinations(gallery.velocities(list(ids)), 2))


def ids_of(matches: Sequence[Any]) -> list[str]:
    return [match.model_id for match in matches]


def test_matches_of_gathers_are_different_ground_and_the_first_stays(
    twins: Path, embedder: Embedder, gathers: Float32
) -> None:
    with Gallery.open(twins, fingerprint=None) as gallery:
        engine = Engine(embedder, gallery)
        plain, apart = engine.retrieve(gathers, top_k=4), engine.retrieve(gathers, top_k=4, distinct=LIMIT)
        assert any(not different(gallery, ids_of(one.matches), LIMIT) for one in plain)  # without it they are not
        for one, other in zip(plain, apart, strict=True):
            assert other.matches[0] == one.matches[0]
            assert [match.rank for match in other.matches] == [1, 2, 3, 4]
            assert different(gallery, ids_of(other.matches), LIMIT)
            assert "fewer_distinct" not in {note.code for note in other.warnings}
            assert (other.physics, other.in_gallery, other.ranked_by) == (one.physics, one.in_gallery, one.ranked_by)


def test_searches_by_model_and_by_descriptors(
    twins: Path, embedder: Embedder, models: tuple[Float32, list[str]]
) -> None:
    with Gallery.open(twins, fingerprint=None) as gallery:
        engine = Engine(embedder, gallery)
        (plain,) = engine.search_velocity(models[0][5], top_k=4)
        (apart,) = engine.search_velocity(models[0][5], top_k=4, distinct=LIMIT)
        assert not different(gallery, ids_of(plain.matches), LIMIT)
        assert apart.matches[0] == plain.matches[0] and different(gallery, ids_of(apart.matches), LIMIT)
        by = engine.search_descriptors({"mean_velocity": 2500.0}, top_k=4, distinct=LIMIT)
        assert len(by.matches) == 4 and different(gallery, ids_of(by.matches), LIMIT)
        # in true units: of models twice as fast the same limit is half of it here
        (scaled,) = engine.search_velocity(models[0][5] * 2, top_k=4, distinct=2 * LIMIT, scale=(1, 2))
        assert ids_of(scaled.matches) == ids_of(apart.matches)


def test_fewer_are_said_with_their_numbers(twins: Path, embedder: Embedder, gathers: Float32) -> None:
    with Gallery.open(twins, fingerprint=None) as gallery:
        engine = Engine(embedder, gallery)
        one = engine.retrieve(gathers[:1], top_k=20, distinct=LIMIT)[0]
        assert len(one.matches) <= 12 and different(gallery, ids_of(one.matches), LIMIT)
        (note,) = [note for note in one.warnings if note.code == "fewer_distinct"]
        assert f"the 48 best models {len(one.matches)} differ" in note.sentence and "more than 40 m/s" in note.sentence
        few = engine.retrieve(gathers[:1], top_k=2, distinct=1e6)[0]  # of the best twenty
        (note,) = [note for note in few.warnings if note.code == "fewer_distinct"]
        assert len(few.matches) == 1 and "the 20 best models" in note.sentence
        for wrong in (-1.0, float("nan"), float("inf")):
            with pytest.raises(InvalidQuery, match="distinct"):
                engine.retrieve(gathers[:1], distinct=wrong)
            with pytest.raises(InvalidQuery, match="distinct"):
                engine.search_velocity(gallery.velocity("g0-0"), distinct=wrong)


def test_queries_of_one_batch_have_each_its_own(twins: Path, embedder: Embedder, gathers: Float32) -> None:
    with Gallery.open(twins, fingerprint=None) as gallery:
        engine = Engine(embedder, gallery)
        asked = [(3, None), (5, LIMIT), (2, LIMIT)]
        queries = [Query.prepare(gathers[:1], top_k=k, distinct=distinct) for k, distinct in asked]
        together = engine.retrieve_batch(queries)
        for (one,), (k, distinct) in zip(together, asked, strict=True):
            alone = engine.retrieve(gathers[:1], top_k=k, distinct=distinct)[0]
            assert ids_of(one.matches) == ids_of(alone.matches) and len(one.matches) == k


def test_server_clients_and_bulk_answer_as_the_engine(
    twins: Path, embedder: Embedder, weights: Path, gathers: Float32, serve: Callable[..., Any]
) -> None:
    with Gallery.open(twins, fingerprint=None) as gallery:
        engine = Engine(embedder, gallery)
        want = ids_of(engine.retrieve(gathers[0], top_k=4, distinct=LIMIT)[0].matches)
        velocity = gallery.velocity("g5-0")
        like = ids_of(engine.search_velocity(velocity, top_k=4, distinct=LIMIT)[0].matches)
        physics = ids_of(engine.search_descriptors({"mean_velocity": 2500.0}, top_k=4, distinct=LIMIT).matches)
    url = serve(gallery=twins).url
    with Client(url) as client:
        assert ids_of(client.retrieve(gathers[0], top_k=4, distinct=LIMIT).results[0].matches) == want
        streamed = next(iter(client.retrieve_stream(gathers[:1], top_k=4, distinct=LIMIT)))
        assert ids_of(streamed.result.matches) == want  # type: ignore[union-attr]
        assert ids_of(client.search_velocity(velocity, top_k=4, distinct=LIMIT).results[0].matches) == like
        found = client.search_descriptors({"mean_velocity": 2500.0}, top_k=4, distinct=LIMIT)
        assert ids_of(found.results[0].matches) == physics
        with pytest.raises(ServerRefused, match="distinct"):
            client.retrieve(gathers[0], distinct=-1)

    async def asked() -> list[str]:
        async with AsyncClient(url) as client:
            return ids_of((await client.retrieve(gathers[0], top_k=4, distinct=LIMIT)).results[0].matches)

    assert asyncio.run(asked()) == want
    with GalleryBackend(twins, weights, "cpu", RetrieveOptions(top_k=4, distinct=LIMIT)) as backend:
        (line,) = backend.stack(gathers[:1], RetrieveOptions().geometry, 0)
        assert ids_of(line.result.matches) == want  # type: ignore[union-attr]


def test_a_server_says_which_model_has_the_map_already(twins: Path, serve: Callable[..., Any]) -> None:
    with Gallery.open(twins, fingerprint=None) as gallery:
        velocity = gallery.velocity("g5-0")
    with Client(serve(gallery=twins, writable=True).url) as client:
        added = client.add_models(velocity, model_ids=["mine"])
        assert added.model_ids == ["mine"] and added.gallery.models == 49
        assert [(w.code, w.detail) for w in added.warnings] == [("duplicate_map", "mine has the map of g5-0.")]
        left_out = client.add_models(velocity, model_ids=["other"], skip_existing=True)
        assert left_out.model_ids == ["g5-0"] and left_out.gallery.models == 49
        assert [w.code for w in left_out.warnings] == ["duplicate_map"]
