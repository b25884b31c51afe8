"""The engine's answers as the models of `schemas`, for HTTP and bulk output."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import DESCRIPTORS
from seisbind.model.scale import UNSCALED, Scale
from seisbind.service.formats.velocity_model import UNITS, VelocityModel
from seisbind.service.schemas import (
    MODEL_PART,
    BandBody,
    FrameBody,
    GalleryBody,
    InDistributionBody,
    IngestBody,
    MatchBody,
    ModelBody,
    QuantityBody,
    QuantityValue,
    ReadModelBody,
    RetrievalBody,
    ScaleBody,
    ScaleLimitBody,
    SearchResultBody,
    WarningBody,
    WeightsBody,
)
from seisbind.service.section_schemas import SectionAnswer, SectionBody, SectionProgress, WindowBody

if TYPE_CHECKING:  # torch and FAISS, which a client of a server does without
    from _typeshed import DataclassInstance

    from seisbind.index import Added, GalleryInfo, Record
    from seisbind.model.encoders.weights_file import Weights
    from seisbind.model.survey.notes import Note
    from seisbind.model.survey.scaling import ChosenScale
    from seisbind.service.engine.answers import Match, Quantity, Retrieval, SearchResult, WindowAnswer
    from seisbind.service.engine.section import Section
    from seisbind.service.formats.reader import Ingest

SAME_MAPS = 20  # of models that were added, that are named; all are counted
DECIMALS = 1  # of velocities in JSON, m/s: a hundredth of what a model is off by


def weights_body(weights: Weights) -> WeightsBody:
    return WeightsBody(name=weights.description.name, fingerprint=weights.fingerprint)


def gallery_body(info: GalleryInfo) -> GalleryBody:
    return GalleryBody(name=info.name, models=info.count, generation=info.generation, digest=info.digest)


def frame_body(frame: Frame) -> FrameBody:
    return FrameBody.model_validate(frame.to_dict())


def retrieval_body(retrieval: Retrieval, include: Sequence[str], frame: Frame = OPENFWI_FRAME) -> RetrievalBody:
    """One gather's answer, with the parts in ``include`` except the large ones (`http.views`).

    ``frame``: of the weights.
    """
    physics = None
    if "physics" in include:
        physics = _physics(retrieval.physics)
    return RetrievalBody(
        matches=_matches(retrieval.matches, include, retrieval.scale),
        physics=physics,
        model=None if MODEL_PART not in include or retrieval.model is None else read_model_body(retrieval.model),
        in_distribution=InDistributionBody(**_fields(retrieval.in_distribution)),
        in_gallery=retrieval.in_gallery,
        ranked_by=retrieval.ranked_by,
        warnings=_warnings(retrieval.warnings),
        scale=None if retrieval.chosen is None else scale_body(retrieval.chosen, frame),
    )


def scale_body(chosen: ChosenScale, frame: Frame) -> ScaleBody:
    """A scale and what it makes of the weights' ``frame``."""
    own, band = chosen.scale.frame(frame), chosen.band
    return ScaleBody(
        s=chosen.scale.s,
        k=chosen.scale.k,
        auto=chosen.auto,
        reason=chosen.reason(frame),
        line_m=own.line_m,
        depth_m=own.depth_cells * own.cell_m,
        cell_m=own.cell_m,
        record_s=own.duration_s,
        peak_hz=own.peak_hz,
        decided_by=chosen.decided_by,
        limits=[
            ScaleLimitBody(name=each.name, low=each.low, high=_finite(each.high), detail=each.sentence)
            for each in chosen.limits
        ],
        band=None if band is None else BandBody(low_hz=band.low_hz, high_hz=band.high_hz, peak_hz=band.peak_hz),
    )


def search_result_body(result: SearchResult, include: Sequence[str], scale: Scale = UNSCALED) -> SearchResultBody:
    return SearchResultBody(matches=_matches(result.matches, include, scale), warnings=_warnings(result.warnings))


def read_model_body(model: VelocityModel) -> ReadModelBody:
    """A model with what is known of it, to a tenth of a metre a second."""
    return ReadModelBody(
        cell_m=model.cell_m,
        x0_m=model.x0_m,
        depth0_m=model.depth0_m,
        unit=UNITS,
        range_m_s=model.range_m_s,
        value=_rows(model.value),
        low=None if model.low is None else _rows(model.low),
        high=None if model.high is None else _rows(model.high),
    )


def velocity_model(body: ReadModelBody) -> VelocityModel:
    """The model of an answer, as `formats.velocity_model.write` takes it."""
    return VelocityModel(
        value=np.array(body.value, np.float32),
        low=None if body.low is None else np.array(body.low, np.float32),
        high=None if body.high is None else np.array(body.high, np.float32),
        cell_m=body.cell_m,
        x0_m=body.x0_m,
        depth0_m=body.depth0_m,
        range_m_s=body.range_m_s,
    )


def ingest_body(ingest: Ingest) -> IngestBody:
    return IngestBody(**_fields(ingest) | {"assumptions": _warnings(ingest.assumptions)})


def model_body(record: Record, cell_m: float, scale: Scale = UNSCALED) -> ModelBody:
    """One velocity model in the true units of a scale; ``cell_m``: of the frame."""
    return ModelBody(
        model_id=record.model_id,
        family=record.family,
        tags=list(record.tags),
        source=record.source,
        added_at=record.added_at,
        depth_cells=record.shape[0],
        x_cells=record.shape[1],
        cell_m=cell_m * scale.s,
        descriptors={
            d.name: QuantityValue(value=value * scale.of(d.unit), unit=d.unit)
            for d, value in zip(DESCRIPTORS, record.descriptors.tolist(), strict=True)
        },
        checksum=record.checksum,
        velocity_url=_address(record.model_id, "velocity.npy", scale),
        segy_url=_address(record.model_id, "velocity.segy", scale),
        image_url=_address(record.model_id, "image.png", scale),
    )


def _fields(frozen: DataclassInstance) -> dict[str, Any]:
    """Of a dataclass, by name; what `asdict` copies takes ten times as long."""
    return {name: getattr(frozen, name) for name in frozen.__dataclass_fields__}


def _finite(value: float) -> float | None:
    return None if math.isinf(value) else value


def section_progress(read: Sequence[WindowAnswer], *, done: int, windows: int) -> SectionProgress:
    """The line on the windows that were read last."""
    return SectionProgress(done=done, windows=windows, read=[_window(each) for each in read])


def section_answer(section: Section) -> SectionAnswer:
    """The line that has the section."""
    depth_cells, columns = section.velocity.shape
    body = SectionBody(
        depth_cells=depth_cells,
        columns=columns,
        cell_m=section.cell_m,
        x0_m=float(section.x_m[0]),
        velocity=_packed(section.velocity),
        low=None if section.low is None else _packed(section.low),
        high=None if section.high is None else _packed(section.high),
        disagreement=_packed(section.disagreement),
        weight=_packed(section.weight),
        scale=(section.scale.s, section.scale.k),
        weights=section.weights,
        gallery=section.gallery,
        warnings=_warnings(section.notes),
    )
    return SectionAnswer(section=body)


def _window(window: WindowAnswer) -> WindowBody:
    return WindowBody(
        x_m=window.x_m,
        shots=window.shots,
        live=window.live,
        lack=window.lack,
        likely=window.likely,
        score=window.score,
        reason=window.reason,
        model_id=window.model_id,
        similarity=window.similarity,
        physics=None if window.physics is None else _physics(window.physics),
        warnings=_warnings(window.notes),
    )


def _packed(array: NDArray[np.float32]) -> str:
    return b64encode(np.asarray(array, "<f4").tobytes()).decode()


def _physics(physics: Mapping[str, Quantity]) -> dict[str, QuantityBody]:
    return {name: QuantityBody(value=q.value, unit=q.unit, low=q.low, high=q.high) for name, q in physics.items()}


def _matches(matches: Sequence[Match], include: Sequence[str], scale: Scale) -> list[MatchBody]:
    return [
        MatchBody(
            rank=match.rank,
            model_id=match.model_id,
            family=match.family,
            similarity=match.similarity,
            descriptors=match.descriptors if "descriptors" in include else None,
            velocity_url=_address(match.model_id, "velocity.npy", scale),
            image_url=_address(match.model_id, "image.png", scale),
        )
        for match in matches
    ]


def _rows(velocity: NDArray[np.float32]) -> list[list[float]]:
    rows: list[list[float]] = velocity.astype(np.float64).round(DECIMALS).tolist()
    return rows


def _warnings(notes: Sequence[Note]) -> list[WarningBody]:
    return [WarningBody(code=note.code, detail=note.sentence) for note in notes]


def _address(model_id: str, file: str, scale: Scale) -> str:
    return f"/v1/models/{model_id}/{file}" + ("" if scale == UNSCALED else f"?scale={scale}")


def same_map_sentence(added: Added) -> str:
    """Which of the models that were added have the map of another model."""
    named = [f"{model_id} has the map of {other}" for model_id, other in list(added.same_map.items())[:SAME_MAPS]]
    more = len(added.same_map) - len(named)
    return ", ".join(named) + (f", and {more} more have that of another model." if more else ".")
