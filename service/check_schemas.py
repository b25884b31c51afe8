"""What crosses HTTP for checks: the fields of a request, and its answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from seisbind.service.schemas import GalleryBody, IngestBody, RetrievalBody, RetrieveFields, WeightsBody

BEST = "best"


class CheckFields(RetrieveFields):
    """Query parameters or form fields of a check."""

    top_k: int = Field(5, ge=1, description="Matches to check, 16 at most.", examples=[3])
    format: str = Field(
        "json",
        max_length=60,
        description="Of the answer: json, npz (with the record and what each candidate predicts), png (one candidate).",
        examples=["json"],
    )
    candidate: str = Field(
        BEST,
        max_length=60,
        description="Of the picture: best, read, mean, given, or match 1 and so on by rank before the check.",
        examples=["read"],
    )


class MeasuresBody(BaseModel):
    """How what is predicted compares with what was recorded."""

    residual: float = Field(description="rms of the difference over that of the record; noise is part of it.")
    unexplained: float | None = Field(
        description="What neighbouring traces share of the difference over what they share of the record: 0 where only "
        "noise is left; null where they share nothing."
    )
    in_time: float | None = Field(
        description="Share of the windows that are followed with a lag under half a period of lowest_hz; null where no "
        "window has signal."
    )
    phase_rad: float = Field(description="rms over traces of the phase residual at lowest_hz.")
    cosine: float = Field(description="Median over traces.")


class ShotBody(MeasuresBody):
    x_m: float = Field(description="Of the shot, from the first receiver.")


class VerdictBody(BaseModel):
    usable: bool = Field(description="As a starting model for full-waveform inversion.")
    reason: Literal["explained", "close", "cycle_skipped", "unlike", "no_signal"]
    detail: str = Field(description="The reason with its numbers.")


class CandidateBody(BaseModel):
    name: str = Field(description="match 1 and so on, mean, read or given.")
    kind: Literal["match", "mean", "read", "given"]
    rank: int | None = Field(description="Of a match, before the check.")
    model_id: str | None
    verdict: VerdictBody
    measures: MeasuresBody
    shots: list[ShotBody]


class CheckBody(BaseModel):
    """All in true units."""

    lowest_hz: float = Field(description="The lowest usable frequency of the record.")
    free_surface: bool = Field(description="Whether waves were modelled with one, which suited the record better.")
    best: str = Field(description="Name of the candidate that leaves the least unexplained.")
    reordered: bool = Field(description="Whether another match became the first.")
    candidates: list[CandidateBody]


class CheckAnswer(BaseModel):
    """``result`` is that of POST /v1/retrieve, but for matches, in_gallery and ranked_by, which take in the check."""

    request_id: str
    weights: WeightsBody
    gallery: GalleryBody
    ingest: IngestBody
    result: RetrievalBody
    check: CheckBody
    timings_ms: dict[str, float]
