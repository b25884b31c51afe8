"""The answer of POST /v1/retrieve as an npz: the matched velocity models themselves, not their addresses."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from python_multipart.multipart import parse_options_header

from seisbind.model.errors import InvalidQuery, UnknownModel
from seisbind.model.frame import Frame
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES
from seisbind.model.scale import UNSCALED, Scale
from seisbind.service.engine.answers import Match, Retrieval, true_descriptors
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.query import Query
from seisbind.service.formats.npy import NPZ, npz
from seisbind.service.formats.velocity_model import VelocityModel
from seisbind.service.runtime.batcher import Answered
from seisbind.service.runtime.serving import Serving

Float32 = NDArray[np.float32]

READ_PARTS = 3  # arrays of a model that was read: itself and both ends of its interval
JSON_RANGES = ("application/json", "application/*", "*/*")  # what covers JSON, the most specific first
MAX_ACCEPT = 4096  # characters that are read of an Accept header; a browser's has 200
QUALITY = re.compile(rb"0(\.\d{0,3})?|1(\.0{0,3})?")  # RFC 9110, 12.4.2


def preferred(accept: str) -> bool:
    """Whether an Accept header (RFC 9110, 12.5.1) prefers an npz to JSON; it has to name `npy.NPZ`.

    Where both have the same quality, a named type wins over a wildcard, and JSON over npz. A header with neither gets
    JSON: it states a preference, and nothing here answers 406. What comes after `MAX_ACCEPT` is not read.
    """
    quality_of: dict[str, float] = {}
    for each in accept[:MAX_ACCEPT].split(","):
        name, options = parse_options_header(each)
        quality = options.get(b"q", b"1")
        quality_of[name.decode("latin-1").lower()] = float(quality) if QUALITY.fullmatch(quality) else 0.0
    ours = quality_of.get(NPZ, 0.0)
    json = next((quality_of[name] for name in JSON_RANGES if name in quality_of), 0.0)
    return ours > json or (ours == json > 0 and JSON_RANGES[0] not in quality_of)


def model_bytes(frame: Frame) -> int:
    """Size of a velocity model in an answer."""
    return 4 * frame.depth_cells * frame.x_cells


def check_size(gathers: int, models: int, limit_bytes: int, *, frame: Frame) -> None:
    """Whether the velocity models of an answer, ``models`` for each gather, are allowed. Raises InvalidQuery."""
    one = model_bytes(frame)
    size = gathers * models * one
    if size > limit_bytes:
        raise InvalidQuery(
            f"The npz would hold {gathers} x {models} velocity models of {one} bytes, {size} bytes; the limit is "
            f"{limit_bytes} (SEISBIND_MAX_BODY_BYTES), or {limit_bytes // one} models. Send fewer gathers at "
            "once, or ask for fewer matches or for JSON."
        )


async def with_velocity(query: Query, serving: Serving, watch: Stopwatch) -> tuple[Answered, Float32]:
    """The answer to ``query``, and the velocity models of its matches as `velocity_of` has them.

    Where a model was removed or replaced in between, it looks again at what there is, as the engine does.
    """

    def read(engine: Engine, matches: Sequence[tuple[Match, ...]]) -> Float32:
        with watch("maps"):
            return velocity_of(matches, query.top_k, engine, query.scale)

    def answer_at_once(engine: Engine) -> tuple[Answered, Float32]:
        retrievals, (velocity, info) = engine.retrieve_and_read(
            query, lambda matches: (read(engine, matches), engine.info()), watch=watch
        )
        return Answered(retrievals, info, len(query), watch.timings_ms), velocity

    with suppress(UnknownModel):
        answered = await serving.batches.answer(query)
        matches = [retrieval.matches for retrieval in answered.retrievals]
        return answered, await serving.on_file(lambda engine: read(engine, matches))
    return await serving.on_model(answer_at_once)


def velocity_of(matches: Sequence[tuple[Match, ...]], top_k: int, engine: Engine, scale: Scale = UNSCALED) -> Float32:
    """``(gather, top_k, depth, x)`` m/s: the models of the matches, zero where there are fewer; each is read once.

    Args:
        matches: of each gather, in the true units of ``scale``, as are the models.

    Raises:
        UnknownModel: a model is no longer there, or another one has its id.
    """
    match_of = {match.model_id: match for of_gather in matches for match in of_gather}
    ids = list(match_of)
    models = dict(zip(ids, engine.gallery.velocities(ids), strict=True))
    for record in engine.gallery.records(ids):  # after the models: what is the same before and after was so in between
        if true_descriptors(record.descriptors, scale) != list(match_of[record.model_id].descriptors.values()):
            raise UnknownModel(f"The velocity model {record.model_id!r} was replaced while it was read; ask again.")
    velocity = np.zeros((len(matches), top_k, *engine.frame.velocity_shape), np.float32)
    for row, of_gather in zip(velocity, matches, strict=True):
        for place, match in zip(row, of_gather, strict=False):
            place[:] = models[match.model_id]
    return velocity if scale.k == 1 else velocity * np.float32(scale.k)


def packed(answer: str, retrievals: Sequence[Retrieval], velocity: Float32, *, with_models: bool = False) -> bytes:
    """The npz that docs/http.md describes.

    Args:
        answer: the same as JSON.
        velocity: as `velocity_of` has it.
        with_models: whether the models that were read are in it, on all cells.
    """
    shape = velocity.shape[:2]
    longest = max((len(match.model_id) for each in retrievals for match in each.matches), default=1)
    model_id, similarity = np.zeros(shape, f"<U{longest}"), np.zeros(shape, np.float32)
    for row, retrieval in enumerate(retrievals):
        for rank, match in enumerate(retrieval.matches):
            model_id[row, rank], similarity[row, rank] = match.model_id, match.similarity
    physics = [[each.physics[name] for name in NAMES] for each in retrievals]
    arrays = {
        "matches": np.array([len(each.matches) for each in retrievals], np.int64),
        "model_id": model_id,
        "similarity": similarity,
        "velocity": velocity,
        "descriptor": np.array(NAMES),
        "unit": np.array([each.unit for each in DESCRIPTORS]),
        "physics_value": np.array([[q.value for q in row] for row in physics], np.float32),
        "physics_low": np.array([[q.low for q in row] for row in physics], np.float32),
        "physics_high": np.array([[q.high for q in row] for row in physics], np.float32),
        "answer": np.frombuffer(answer.encode(), np.uint8),
    }
    read = [each.velocity for each in retrievals if each.velocity is not None]
    if read:  # all of them or none: the weights have a head for it, or not
        arrays["read_velocity"] = np.stack(read)
    if retrievals and retrievals[0].chosen is not None:  # of all of them
        arrays["scale"] = np.array([retrievals[0].scale.s, retrievals[0].scale.k])
    if with_models:
        arrays |= _models([each.model for each in retrievals if each.model is not None])
    return npz(arrays)


def _models(read: Sequence[VelocityModel]) -> dict[str, NDArray[Any]]:
    """Models that were read, one for each gather or none at all."""
    if not read:
        return {}
    arrays: dict[str, NDArray[Any]] = {"model_value": np.stack([each.value for each in read])}
    intervals = [each.interval for each in read if each.interval is not None]
    if intervals:
        arrays["model_low"], arrays["model_high"] = (np.stack(part) for part in zip(*intervals, strict=True))
    for name in ("cell_m", "x0_m", "depth0_m"):
        arrays[f"model_{name}"] = np.array([getattr(each, name) for each in read], np.float64)
    return arrays
