"""Galleries small enough to check by hand: arrays that follow from a seed, and what must be found in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.ground.descriptors import NAMES, describe

Float32 = NDArray[np.float32]
FAMILIES = ("FlatVel-A", "CurveVel-A", "FlatFault-A", None)
TAGS = ("field", "synthetic", "noisy")


@dataclass(frozen=True)
class Batch:
    """Arguments of `Gallery.add` for models ``m<first>`` to ``m<first + count - 1>``; each follows from its number."""

    model_ids: list[str]
    velocity: Float32
    descriptors: Float32
    velocity_embeddings: Float32
    physics_embeddings: Float32
    families: list[str | None]
    tags: list[tuple[str, ...]]

    def add_to(self, gallery: Gallery, **options: object) -> list[str]:
        return gallery.add(
            self.velocity,
            self.descriptors,
            self.velocity_embeddings,
            self.physics_embeddings,
            model_ids=self.model_ids,
            families=self.families,
            tags=self.tags,
            **options,  # type: ignore[arg-type]
        )


# Indices of a few vectors: on a shared core, waiting for a second thread costs a hundred times the search itself.
faiss.omp_set_num_threads(1)

MakeBatch = Callable[..., Batch]


def unit(generator: np.random.Generator, count: int, dimension: int) -> Float32:
    vectors = generator.standard_normal((count, dimension))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    def make(count: int, *, first: int = 0, dimension: int = 16, cells: int = 6) -> Batch:
        maps, in_velocity, in_physics, families, tags = [], [], [], [], []
        for number in range(first, first + count):
            generator = np.random.default_rng(number)
            maps.append(generator.uniform(1500, 4500, (cells, cells)).astype(np.float32))
            in_velocity.append(unit(generator, 1, dimension)[0])
            in_physics.append(unit(generator, 1, dimension)[0])
            families.append(FAMILIES[generator.integers(len(FAMILIES))])
            tags.append(tuple(tag for tag in TAGS if generator.random() < 0.4))
        velocity = np.stack(maps) if maps else np.empty((0, cells, cells), np.float32)
        return Batch(
            [f"m{number}" for number in range(first, first + count)],
            velocity,
            describe(velocity) if count else np.empty((0, len(NAMES)), np.float32),
            np.reshape(in_velocity, (count, dimension)).astype(np.float32),
            np.reshape(in_physics, (count, dimension)).astype(np.float32),
            families,
            tags,
        )

    return make


@pytest.fixture
def filled(tmp_path: Path, make_batch: MakeBatch) -> Path:
    """A closed gallery of 40 models, snapshots and all."""
    with Gallery.create(tmp_path / "gallery", fingerprint="weights-1", dimension=16) as gallery:
        make_batch(40).add_to(gallery)
    return tmp_path / "gallery"


@pytest.fixture(scope="session")
def brute_force() -> Callable[[Float32, Sequence[str], Float32, int], list[list[tuple[str, float]]]]:
    """The reference: every inner product in float64, best first, equal ones in the order they were added."""

    def search(vectors: Float32, model_ids: Sequence[str], queries: Float32, k: int) -> list[list[tuple[str, float]]]:
        answers = []
        for similarities in queries.astype(np.float64) @ vectors.astype(np.float64).T:
            order = np.argsort(-similarities, kind="stable")[:k]
            answers.append([(model_ids[i], float(similarities[i])) for i in order])
        return answers

    return search
