"""Velocity models coded as the records hold them, by any process: the one that writes them has little left to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike

from seisbind.index.storage.codec import encode_embeddings, encode_maps
from seisbind.index.storage.record import (
    LITTLE,
    Coded,
    CodedModel,
    Float32,
    embeddings_sha256,
    id_of_map,
    velocity_sha256,
)
from seisbind.index.validation import check_arrays, check_words


@dataclass(frozen=True, slots=True, eq=False)
class CodedModels:
    """Checked models, of which the maps are there as the blobs that a gallery stores, for `Gallery.add_coded`.

    Attributes:
        descriptors: ``(model, 13)``.
        velocity_embeddings, physics_embeddings: ``(model, dimension)``, unit length.
        stored: of each model.
    """

    descriptors: Float32
    velocity_embeddings: Float32
    physics_embeddings: Float32
    stored: Sequence[Coded]

    def __len__(self) -> int:
        return len(self.stored)

    def select(self, rows: slice) -> CodedModels:
        """Some of them."""
        return CodedModels(
            self.descriptors[rows], self.velocity_embeddings[rows], self.physics_embeddings[rows], self.stored[rows]
        )


CodedMap = tuple[bytes, bytes]  # its blob, and the SHA-256 of what it was


def code_maps(velocity: Float32) -> list[CodedMap]:
    """Maps ``(model, depth, x)``, m/s, that are checked and rounded, as a gallery of format 2 stores them."""
    shape = (int(velocity.shape[1]), int(velocity.shape[2]))
    sums = [velocity_sha256(each.astype(LITTLE, copy=False).tobytes(), shape) for each in velocity]
    return list(zip(encode_maps(velocity), sums, strict=True))


def code_models(
    velocity: ArrayLike,
    descriptors: ArrayLike,
    velocity_embeddings: ArrayLike,
    physics_embeddings: ArrayLike,
    *,
    dimension: int,
    precision_m_s: float = 0.0,
    coded_maps: Sequence[CodedMap] | None = None,
) -> CodedModels:
    """Models for a gallery of format 2, of that dimension and precision; arguments and errors as of `Gallery.add`.

    Args:
        coded_maps: `code_maps` of them, where that is done already.
    """
    maps, physics, in_velocity, in_physics = check_arrays(
        velocity,
        descriptors,
        velocity_embeddings,
        physics_embeddings,
        dimension=dimension,
        precision_m_s=precision_m_s,
    )
    shape = (int(maps.shape[1]), int(maps.shape[2]))
    embeddings = zip(encode_embeddings(in_velocity), encode_embeddings(in_physics), strict=True)
    sums = (
        embeddings_sha256(*(vector.astype(LITTLE, copy=False).tobytes() for vector in pair))
        for pair in zip(in_velocity, in_physics, strict=True)
    )
    stored = [
        Coded(shape, blob, *pair, of_map, of_embeddings)
        for (blob, of_map), pair, of_embeddings in zip(
            code_maps(maps) if coded_maps is None else coded_maps, embeddings, sums, strict=True
        )
    ]
    return CodedModels(physics, in_velocity, in_physics, stored)


def named(
    models: CodedModels,
    *,
    model_ids: Sequence[str] | None,
    families: Sequence[str | None] | None,
    tags: Sequence[Sequence[str]] | None,
    source: str | None,
    added_at: str,
) -> list[CodedModel]:
    """Coded models with their words, one by one. Raises InvalidQuery: see `Gallery.add`."""
    ids = [id_of_map(each.velocity_sha256) for each in models.stored] if model_ids is None else model_ids
    words = check_words(ids, families, tags, source, count=len(models))
    return [
        CodedModel(model_id, family, own_tags, source, added_at, *arrays)
        for (model_id, family, own_tags), *arrays in zip(
            words, models.descriptors, models.stored, models.velocity_embeddings, models.physics_embeddings,
            strict=True,
        )
    ]  # fmt: skip
