"""Checks of the arrays that are added to a gallery or searched for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.index.storage.codec import rounded
from seisbind.index.storage.record import NewModel, content_id
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import NAMES, check_velocity

Float32 = NDArray[np.float32]

UNIT_TOLERANCE = 1e-3  # an encoder in bfloat16 is off by up to this much; more, and it was not normalised
MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # goes into URLs and file names as it is
MAX_LABEL_CHARACTERS = 500  # of a family, a tag or a source


def unit_vectors(vectors: ArrayLike, dimension: int, what: str) -> Float32:
    """``vectors`` as float32 ``(vector, dimension)`` of unit length to float32 precision.

    Raises:
        InvalidQuery: another shape, not finite, or a length that is not 1 within `UNIT_TOLERANCE`.
    """
    array = np.asarray(vectors)
    if array.ndim != 2 or array.shape[1] != dimension or array.dtype.kind not in "fiu":
        raise InvalidQuery(
            f"The {what} are ({array.dtype}) {array.shape}; expected numbers of shape (count, {dimension})."
        )
    exact = array.astype(np.float64)
    if not np.isfinite(exact).all():
        raise InvalidQuery(f"The {what} contain NaN or infinity.")
    with np.errstate(over="ignore"):  # an infinite length is not 1 either
        length = np.sqrt(np.square(exact).sum(axis=1))
    wrong = np.abs(length - 1) > UNIT_TOLERANCE
    if wrong.any():
        first = int(wrong.argmax())
        raise InvalidQuery(
            f"{int(wrong.sum())} of {len(exact)} {what} are not of unit length: number {first} has {length[first]:.4g}."
            " Divide each by its length."
        )
    return np.asarray(exact / length[:, None], dtype=np.float32)


def check_arrays(
    velocity: ArrayLike,
    descriptors: ArrayLike,
    velocity_embeddings: ArrayLike,
    physics_embeddings: ArrayLike,
    *,
    dimension: int,
    precision_m_s: float = 0.0,
) -> tuple[Float32, Float32, Float32, Float32]:
    """The arrays of `Gallery.add`, checked, as they are stored: maps, descriptors and embeddings.

    Raises:
        InvalidQuery, InvalidVelocityModel: see there.
    """
    maps = rounded(check_velocity(velocity), precision_m_s)
    physics = np.asarray(descriptors)
    if physics.ndim != 2 or physics.shape[1] != len(NAMES) or physics.dtype.kind not in "fiu":
        raise InvalidQuery(f"The descriptors are {physics.shape}; expected numbers of shape (count, {len(NAMES)}).")
    with np.errstate(over="ignore"):
        physics = physics.astype(np.float32) + np.float32(0)  # SQLite does not keep the sign of -0.0
    if not np.isfinite(physics).all():
        raise InvalidQuery("The descriptors contain NaN, or numbers too large for float32.")
    in_velocity = unit_vectors(velocity_embeddings, dimension, "velocity embeddings")
    in_physics = unit_vectors(physics_embeddings, dimension, "physics embeddings")
    _check_counts(
        {
            "velocity models": len(maps),
            "descriptors": len(physics),
            "velocity embeddings": len(in_velocity),
            "physics embeddings": len(in_physics),
        }
    )
    return maps, physics, in_velocity, in_physics


def check_words(
    model_ids: Sequence[str],
    families: Sequence[str | None] | None,
    tags: Sequence[Sequence[str]] | None,
    source: str | None,
    *,
    count: int,
) -> list[tuple[str, str | None, tuple[str, ...]]]:
    """Id, family and sorted tags of each of ``count`` models. Raises InvalidQuery: see `Gallery.add`."""
    labels = {"model_ids": model_ids, "families": families, "tags": tags}
    given = {name: len(each) for name, each in labels.items() if each is not None}
    _check_counts({"velocity models": count} | given)
    _check_label("source", source)
    words = []
    for i, model_id in enumerate(model_ids):
        if not isinstance(model_id, str) or not MODEL_ID.fullmatch(model_id):
            raise InvalidQuery(
                f"{model_id!r:.150} cannot be a model id: letters, digits and ._:- only, at most 128, "
                "a letter or digit first."
            )
        family = None if families is None else families[i]
        _check_label("family", family)
        own_tags = () if tags is None else tags[i]
        if isinstance(own_tags, str):
            raise InvalidQuery(f"Tags are a list for each model; model {i} has the string {own_tags!r:.100}.")
        for tag in own_tags:
            _check_label("tag", tag)
        words.append((model_id, family, tuple(sorted(set(own_tags)))))
    return words


def check_batch(
    velocity: ArrayLike,
    descriptors: ArrayLike,
    velocity_embeddings: ArrayLike,
    physics_embeddings: ArrayLike,
    *,
    dimension: int,
    model_ids: Sequence[str] | None,
    families: Sequence[str | None] | None,
    tags: Sequence[Sequence[str]] | None,
    source: str | None,
    added_at: str,
    precision_m_s: float = 0.0,
) -> list[NewModel]:
    """The arguments of `Gallery.add` as checked models, one by one.

    Raises:
        InvalidQuery, InvalidVelocityModel: see there.
    """
    maps, *arrays = check_arrays(
        velocity,
        descriptors,
        velocity_embeddings,
        physics_embeddings,
        dimension=dimension,
        precision_m_s=precision_m_s,
    )
    ids = [content_id(each) for each in maps] if model_ids is None else model_ids
    words = check_words(ids, families, tags, source, count=len(maps))
    return [
        NewModel(model_id, family, own_tags, source, added_at, physics, each, in_velocity, in_physics)
        for (model_id, family, own_tags), each, physics, in_velocity, in_physics in zip(
            words, maps, *arrays, strict=True
        )
    ]


def _check_counts(counts: dict[str, int]) -> None:
    if len(set(counts.values())) > 1:
        raise InvalidQuery("One of each a model: " + ", ".join(f"{n} {what}" for what, n in counts.items()) + ".")


def _check_label(what: str, label: str | None) -> None:
    if label is None and what != "tag":
        return
    if not isinstance(label, str) or not 1 <= len(label) <= MAX_LABEL_CHARACTERS or not label.isprintable():
        raise InvalidQuery(
            f"{label!r:.150} cannot be a {what}: a printable text of 1 to {MAX_LABEL_CHARACTERS} characters."
        )
