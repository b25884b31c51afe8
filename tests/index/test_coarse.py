"""Coarse velocity models: what is kept is what is read, and no more of it than may be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from seisbind.index import CoarseModels, Gallery
from seisbind.index.storage.record import Float32
from seisbind.model.confidence.presence import coarse
from seisbind.model.errors import UnknownModel
from seisbind.model.ground.descriptors import describe

COUNT = 6


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    """Six models, which vectors of the first six axes find."""
    velocity = np.random.default_rng(0).uniform(1500, 4500, (COUNT, 70, 70)).astype(np.float32)
    axes = np.eye(COUNT, 256, dtype=np.float32)
    with Gallery.create(tmp_path / "gallery", fingerprint="f") as made:
        made.add(velocity, describe(velocity), axes, axes, model_ids=[f"m{n}" for n in range(COUNT)])
    return Gallery.open(tmp_path / "gallery", fingerprint="f", writable=True)


class Counting:
    """A gallery that says what was read of it."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.read: list[str] = []

    def velocities(self, model_ids: Sequence[str]) -> list[Float32]:
        self.read += model_ids
        return self.gallery.velocities(model_ids)

    def is_current(self) -> bool:
        return self.gallery.is_current()


def test_models_are_those_of_the_gallery_each_read_once(gallery: Gallery) -> None:
    with gallery:
        counting = Counting(gallery)
        models = CoarseModels(counting, partial(coarse, cells=35))  # type: ignore[arg-type]
        hits = gallery.search_velocity(np.eye(1, 256, dtype=np.float32), COUNT)[0]
        asked = [*hits, hits[2], hits[0]]
        expected = coarse(np.stack(gallery.velocities([hit.model_id for hit in asked])), 35)
        for _ in range(2):
            assert np.array_equal(models.of(asked), expected)
        assert sorted(counting.read) == sorted(hit.model_id for hit in hits)


def test_the_models_used_last_are_kept(gallery: Gallery) -> None:
    with gallery:
        counting = Counting(gallery)
        models = CoarseModels(counting, partial(coarse, cells=35), kept=2)  # type: ignore[arg-type]
        a, b, c = gallery.search_velocity(np.eye(1, 256, dtype=np.float32), COUNT)[0][:3]
        for asked in ([a, b], [a], [c], [a]):  # c takes the place of b
            models.of(asked)
        assert counting.read == [a.model_id, b.model_id, c.model_id]
        assert len(models) == 2
        assert models.of([a, b, c, a, b]).shape == (5, 35, 35), "more than are kept are answered all the same"
        assert len(models) == 2


def test_a_model_that_takes_the_id_of_a_removed_one_is_another(gallery: Gallery) -> None:
    with gallery:
        models = CoarseModels(gallery, partial(coarse, cells=35))
        (hit,) = gallery.search_velocity(np.eye(1, 256, dtype=np.float32), 1)[0]
        before = models.of([hit])
        other = np.full((1, 70, 70), 2000, np.float32)
        axis = np.eye(1, 256, dtype=np.float32)
        gallery.remove([hit.model_id])
        gallery.add(other, describe(other), axis, axis, model_ids=[hit.model_id])
        (again,) = gallery.search_velocity(axis, 1)[0]
        assert again.model_id == hit.model_id
        assert np.array_equal(models.of([again]), np.full((1, 35, 35), 2000, np.float32))
        assert not np.array_equal(models.of([again]), before)


def test_what_another_process_has_removed_is_missed(gallery: Gallery) -> None:
    """What is kept is not used until the gallery has been refreshed."""
    with gallery, Gallery.open(gallery.path, fingerprint="f") as reader:
        models = CoarseModels(reader, partial(coarse, cells=35))
        hits = reader.search_velocity(np.eye(1, 256, dtype=np.float32), COUNT)[0]
        models.of(hits)
        assert reader.is_current()
        gallery.remove([hits[0].model_id])
        assert not reader.is_current()
        with pytest.raises(UnknownModel, match=hits[0].model_id):
            models.of(hits)
        reader.refresh()
        assert reader.is_current() and len(models.of(hits[1:])) == COUNT - 1


def test_a_model_that_was_removed_before_it_was_read_is_unknown(gallery: Gallery) -> None:
    with gallery:
        models = CoarseModels(gallery, partial(coarse, cells=35))
        (hit,) = gallery.search_velocity(np.eye(1, 256, dtype=np.float32), 1)[0]
        gallery.remove([hit.model_id])
        with pytest.raises(UnknownModel, match=hit.model_id):
            models.of([hit])
