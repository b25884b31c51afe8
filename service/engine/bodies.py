"""The engine's answers as the models of `schemas`, for HTTP and bulk output."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from seisbind.model.ground.descriptors import DESCRIPTORS
from seisbind.service.schemas import (
    FrameBody,
    GalleryBody,
    InDistributionBody,
    IngestBody,
    MatchBody,
    ModelBody,
    QuantityBody,
    QuantityValue,
    RetrievalBody,
    SearchResultBody,
    WarningBody,
    WeightsBody,
)
from seisbind.service.section_schemas import SectionAnswer, SectionBody, SectionProgress, WindowBody

if TYPE_CHECKING:  # torch and FAISS, which a client of a server does without
    from seisbind.index import GalleryInfo, Record
    from seisbind.model.encoders.weights_file import Weights
    from seisbind.model.frame import Frame
    from seisbind.model.survey.notes import Note
    from seisbind.service.engine.answers import Match, Quantity, Retrieval, SearchResult
    from seisbind.service.engine.section import Section, WindowAnswer
    from seisbind.service.formats.reader import Ingest


def weights_body(weights: Weights) -> WeightsBody:
    return WeightsBody(name=weights.description.name, fingerprint=weights.fingerprint)


def gallery_body(info: GalleryInfo) -> GalleryBody:
    return GalleryBody(name=info.path.resolve().name, models=info.count, generation=info.generation)


def frame_body(frame: Frame) -> FrameBody:
    return FrameBody.model_validate(frame.to_dict())


def retrieval_body(retrieval: Retrieval, include: Sequence[str]) -> RetrievalBody:
    """One gather's answer, with the parts in ``include`` except the large ones (`http.views`)."""
    physics = None
    if "physics" in include:
        physics = _physics(retrieval.physics)
    return RetrievalBody(
        matches=_matches(retrieval.matches, include),
        physics=physics,
        in_distribution=InDistributionBody.model_validate(asdict(retrieval.in_distribution)),
        in_gallery=retrieval.in_gallery,
        ranked_by=retrieval.ranked_by,
        warnings=_warnings(retrieval.warnings),
    )


def search_result_body(result: SearchResult, include: Sequence[str]) -> SearchResultBody:
    return SearchResultBody(matches=_matches(result.matches, include), warnings=_warnings(result.warnings))


def ingest_body(ingest: Ingest) -> IngestBody:
    return IngestBody.model_validate(asdict(ingest) | {"assumptions": _warnings(ingest.assumptions)})


def model_body(record: Record, cell_m: float) -> ModelBody:
    at = _address(record.model_id)
    return ModelBody(
        model_id=record.model_id,
        family=record.family,
        tags=list(record.tags),
        source=record.source,
        added_at=record.added_at,
        depth_cells=record.shape[0],
        x_cells=record.shape[1],
        cell_m=cell_m,
        descriptors={
            d.name: QuantityValue(value=value, unit=d.unit)
            for d, value in zip(DESCRIPTORS, record.descriptors.tolist(), strict=True)
        },
        checksum=record.checksum,
        velocity_url=f"{at}/velocity.npy",
        segy_url=f"{at}/velocity.segy",
        image_url=f"{at}/image.png",
    )


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


def _matches(matches: Sequence[Match], include: Sequence[str]) -> list[MatchBody]:
    return [
        MatchBody(
            rank=match.rank,
            model_id=match.model_id,
            family=match.family,
            similarity=match.similarity,
            descriptors=match.descriptors if "descriptors" in include else None,
            velocity_url=f"{_address(match.model_id)}/velocity.npy",
            image_url=f"{_address(match.model_id)}/image.png",
        )
        for match in matches
    ]


def _warnings(notes: Sequence[Note]) -> list[WarningBody]:
    return [WarningBody(code=note.code, detail=note.sentence) for note in notes]


def _address(model_id: str) -> str:
    return f"/v1/models/{model_id}"
