"""Velocity models as a gallery holds them: checked, in its frame's units, with their descriptors and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from seisbind.index import CodedMap, CodedModels, code_maps, code_models, rounded
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidVelocityModel, WeightsMismatch
from seisbind.model.frame import Frame
from seisbind.model.ground.descriptors import Untrained, check_velocity, describe
from seisbind.model.processes import release_memory
from seisbind.model.scale import Scale
from seisbind.service.building.exported import ExportedPart, Words
from seisbind.service.building.sources import Part

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Described:
    """Checked models, not embedded yet.

    Attributes:
        velocity: ``(model, depth, x)`` float32, m/s in the frame's units.
        descriptors: ``(model, 13)``.
        coded_maps: where the process that describes them codes them, and another embeds them.
    """

    velocity: Float32
    descriptors: Float32
    coded_maps: Sequence[CodedMap] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPart:
    """A part of a source on its way, described; then embedded; and coded, where the gallery stores it so.

    Attributes:
        words: ids, tags and sources of models that have their own, as those of an exported gallery.
        described: None once they are coded: what is sent between processes is a third then.
        velocity_embeddings, physics_embeddings: ``(model, 256)``; None until they are there, and once they are coded.
        coded: with their embeddings.
    """

    families: Sequence[str | None]
    untrained: Untrained
    words: Words | None = None
    described: Described | None = None
    velocity_embeddings: Float32 | None = None
    physics_embeddings: Float32 | None = None
    coded: CodedModels | None = None

    def __len__(self) -> int:
        return len(self.families)


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a worker has to know.

    Attributes:
        weights: their file, if the worker embeds, too; None for those that ship.
        fingerprint: of the weights; None leaves the embedding to the process that asks.
        frame: of the weights.
        scale: in whose true units the models are.
        precision_m_s: of the gallery, see `seisbind.index.storage.codec.rounded`.
        coded: whether the gallery takes them coded.
    """

    weights: Path | None
    fingerprint: str | None
    frame: Frame
    scale: Scale
    precision_m_s: float = 0.0
    coded: bool = False


def describe_models(velocity: ArrayLike, frame: Frame, scale: Scale, precision_m_s: float = 0.0) -> Described:
    """Check models of a true size, in cells of ``s`` times the frame's, and describe them.

    Args:
        velocity: ``(model, depth, x)``, m/s.
        precision_m_s: they are rounded first, so that what is described is what is kept.

    Raises:
        InvalidVelocityModel: see `check_velocity`; or not of the frame's cells.
    """
    models = check_velocity(velocity, k=scale.k)
    if models.shape[1:] != frame.velocity_shape:
        raise InvalidVelocityModel(
            f"The gallery takes velocity models of {scale.frame(frame).cells_text}; got "
            f"{models.shape[1]} x {models.shape[2]}."
        )
    models = rounded(models, precision_m_s)
    return Described(models, describe(models, cell_m=frame.cell_m))


def embed_part(part: EncodedPart, encoding: Encoding, embedder: Embedder) -> EncodedPart:
    """With its embeddings, and coded where ``encoding`` says so, if it is not yet."""
    described = part.described
    if described is None or part.velocity_embeddings is not None:
        return part
    velocity = embedder.embed_velocity(described.velocity)
    physics = embedder.embed_descriptors(described.descriptors)
    if not encoding.coded:
        return replace(part, velocity_embeddings=velocity, physics_embeddings=physics)
    coded = code_models(
        described.velocity, described.descriptors, velocity, physics, dimension=velocity.shape[1],
        coded_maps=described.coded_maps,
    )  # fmt: skip
    return replace(part, described=None, coded=coded)


def read_part(part: Part, encoding: Encoding) -> EncodedPart:
    """Draw or read a part, and describe it. Raises InvalidVelocityModel, DatasetError."""
    velocity, families = part.read()
    if not len(velocity):
        return EncodedPart((), Untrained(encoding.frame.velocity_m_s))
    own = encoding.scale.frame(encoding.frame)
    described = describe_models(velocity, encoding.frame, encoding.scale, encoding.precision_m_s)
    words = part.words() if isinstance(part, ExportedPart) else None
    return EncodedPart(families, Untrained.of(velocity, own), words, described)


def encode_part(part: Part, encoding: Encoding) -> EncodedPart:
    """`read_part` in a worker, which also embeds it where ``encoding`` says with which weights."""
    read = read_part(part, encoding)
    if encoding.fingerprint is None and encoding.coded and read.described is not None:
        return replace(read, described=replace(read.described, coded_maps=code_maps(read.described.velocity)))
    if encoding.fingerprint is None:
        return read
    return embed_part(read, encoding, _embedder(encoding.weights, encoding.fingerprint))


@cache
def _embedder(weights: Path | None, fingerprint: str) -> Embedder:
    """One for each worker, on the CPU, without its reader of gathers and what loading has freed: 60 MB."""
    embedder = Embedder.load(weights, device="cpu", runtime="torch")
    embedder.weights.encoders.seismic = nn.Identity()
    release_memory()
    if embedder.fingerprint != fingerprint:
        raise WeightsMismatch(
            f"The weights changed while a gallery was being built: {fingerprint} before, {embedder.fingerprint} now."
        )
    return embedder
