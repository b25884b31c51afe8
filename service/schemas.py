"""What crosses HTTP, checked in both directions: the server writes it, the client and the demo read it.

One module because it is one contract, which clients load without anything else of the service.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field

from seisbind.model.frame import OPENFWI_FRAME

PARTS = ("descriptors", "physics")  # of a retrieval, unless others are asked for
MODEL_PART = "model"  # large, and of everything that retrieves
BULK_PARTS = (*PARTS, MODEL_PART)  # of streams, commands and their output
LARGE_PARTS = ("velocity", "traces", MODEL_PART)  # of POST /v1/retrieve
SEARCH_PARTS = ("descriptors",)
DISTINCT = (
    "Only different ground: of matches whose velocities differ by no more than so many m/s in the mean over all cells, "
    "only the best is given; 0 leaves out equal ones. They are chosen from the best ten times top_k models."
)
SCALE = (
    "Size of the line compared with that of the weights: s of lengths, or s,k with k of velocities. What is sent and "
    "answered is then in true units."
)


def _number(value: object) -> object:
    """``value``, unless it is true or false, which Python counts among the numbers."""
    if isinstance(value, bool):
        raise ValueError(f"{json.dumps(value)} is no number")
    return value


FILTER: Any = Field(
    None,
    max_length=20_000,
    description='JSON: {"family": ["FlatVel-A"], "tag": "field", "mean_velocity": [2000, null]}; all must hold.',
    examples=['{"family": "FlatVel-A", "max_velocity": [null, 4200]}'],
)  # of a call that takes one as text


class Strict(BaseModel):
    """A body or set of fields in which an unknown name is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SearchFields(Strict):
    """Query parameters or form fields of a search."""

    top_k: int = Field(5, ge=1, description="Matches wanted.", examples=[3])
    filter: str | None = FILTER
    include: str = Field(
        "descriptors", max_length=100, description="Parts of the answer: descriptors; may be empty.", examples=[""]
    )
    scale: str | None = Field(None, max_length=60, description=SCALE, examples=["2", "3,0.9"])
    distinct: float | None = Field(None, description=DISTINCT, examples=[50])


class GatherFields(Strict):
    """Query parameters or form fields of whatever takes gathers; geometry given here overrides the file's."""

    filter: str | None = FILTER
    dt_s: float | None = Field(
        None, description="Sampling interval, seconds; 0.001 is assumed for arrays.", examples=[0.001]
    )
    shot_x_m: str | None = Field(
        None,
        max_length=2_000,
        description="Shot positions, metres, separated by commas.",
        examples=[",".join(f"{x:g}" for x in OPENFWI_FRAME.shot_x_m)],
    )
    receiver_x_m: str | None = Field(
        None,
        max_length=30_000,
        description="Receiver positions, metres, increasing, separated by commas.",
        examples=[",".join(f"{x:g}" for x in OPENFWI_FRAME.survey.receiver_x_m)],
    )
    peak_hz: float | None = Field(None, description="Peak frequency of the source wavelet, hertz.", examples=[15])
    scale: str | None = Field(
        None,
        max_length=60,
        description=f"{SCALE} Or auto (auto,k): chosen from aperture, record length, band and target_depth_m.",
        examples=["2", "auto"],
    )
    target_depth_m: float | None = Field(
        None, description="With scale=auto: depth that the models have to reach, metres.", examples=[]
    )


class RetrieveFields(GatherFields, SearchFields):
    """Query parameters or form fields of a retrieval; geometry given here overrides the file's."""

    include: str = Field(
        "descriptors,physics",
        max_length=100,
        description="Parts of the answer, separated by commas: descriptors, physics, model (the ground as the encoder "
        "reads it without the gallery, on all cells: the starting model to take); may be empty. POST /v1/retrieve "
        "also knows velocity (the same in coarse cells) and traces (the gathers as the "
        "encoder sees them, of the first 64 shots).",
        examples=["physics"],
    )


class ReadFields(RetrieveFields):
    """Query parameters or form fields of a model that is read."""

    format: str = Field(
        "npz", max_length=60, description="Of the file: npz, npy, segy or nc (netCDF).", examples=["segy", "npz"]
    )
    grid: str | None = Field(
        None,
        max_length=200,
        description="Grid of the model in true metres: dx, and as wanted dz, x0, z0, nx, nz; else the model's own.",
        examples=["dx=12.5", "dx=25,dz=5,x0=-100,nx=36"],
    )
    smooth_m: float | None = Field(
        None, description="Standard deviation of a Gaussian over the model's slowness, metres.", examples=[30]
    )
    water: str | None = Field(
        None,
        max_length=60,
        description="Water on top, kept sharp and at its velocity: depth (m), velocity (m/s, else 1500), or both.",
        examples=["depth=50", "depth=60,velocity=1480"],
    )
    extend: bool = Field(
        False,
        description="Continue the model over all of the grid; else it has no number where nothing was read.",
        examples=[True],
    )


class AddFields(Strict):
    """Query parameters or form fields of an addition."""

    family: str | None = Field(None, max_length=200, description="Family of all of the models.", examples=["mine"])
    tags: str = Field(
        "", max_length=10_000, description="Tags of all of the models, separated by commas.", examples=["field,2026"]
    )
    model_id: str | None = Field(
        None,
        max_length=10_000,
        description="Ids, separated by commas, one a model; by default made from the content.",
        examples=["mine-2"],
    )
    source: str | None = Field(None, max_length=200, description="Where the models come from.", examples=["survey 7"])
    skip_existing: bool = Field(
        False,
        description="Leave out models that the gallery has, under the same id or another, and answer with the id that "
        "they have there; else the same id is an error, and the same map under another id is added with a warning.",
        examples=[True],
    )
    scale: str | None = Field(
        None, max_length=60, description="Of models in cells of s times those of the frame: s, or s,k.", examples=["2"]
    )


class DescriptorSearch(Strict):
    """A search by physics."""

    descriptors: dict[str, Annotated[float, BeforeValidator(_number)]] = Field(
        description="Name → value, in the units that GET /v1/gallery lists."
    )
    top_k: Annotated[int, BeforeValidator(_number)] = Field(5, ge=1, description="Matches wanted.")
    filter: dict[str, object] | None = Field(None, description="As in POST /v1/retrieve, as an object.")
    include: Annotated[list[str], FailFast()] = Field(
        list(SEARCH_PARTS), description="Parts of the answer: descriptors; may be empty."
    )
    scale: str | Annotated[float, BeforeValidator(_number)] | None = Field(None, description=SCALE)
    distinct: Annotated[float, BeforeValidator(_number)] | None = Field(None, description=DISTINCT)


class WeightsBody(BaseModel):
    name: str
    fingerprint: str = Field(
        description="Start of the SHA-256 of the weights. A gallery works with those that make its embeddings."
    )


class GalleryBody(BaseModel):
    name: str
    models: int
    generation: int = Field(description="Changes made so far: two equal numbers of one gallery, the same content.")
    digest: str = Field(default="", description="Two equal ones, the same content, in whatever gallery.")


class MatchBody(BaseModel):
    rank: int
    model_id: str
    family: str | None
    similarity: float = Field(description="Cosine, -1 to 1.")
    descriptors: dict[str, float] | None = None
    velocity_url: str
    image_url: str


class QuantityBody(BaseModel):
    value: float
    unit: str
    low: float = Field(description="Lower end of the 90 % interval.")
    high: float = Field(description="Upper end of the 90 % interval.")


class InDistributionBody(BaseModel):
    likely: bool | None = Field(description="score <= limit; null where the weights are not calibrated.")
    score: float | None = Field(description="0 as usual in training, 1 on the edge of what it saw, larger beyond.")
    limit: float | None = Field(description="The score that 1 % of the gathers of training exceed.")
    reason: str | None = Field(
        description="noise, frequency, slow_waves, amplitudes, geometry or ground; null where likely."
    )
    detail: str | None = Field(description="The reason with its numbers.")
    similarity: float | None = Field(description="To the best match in the whole gallery; null if it is empty.")


class WarningBody(BaseModel):
    code: str
    detail: str


class CoarseVelocityBody(BaseModel):
    """The ground as the encoder itself reads it from the gather, whatever the gallery holds."""

    cell_m: float = Field(description="Size of a cell along depth and x, metres.")
    m_s: list[list[int]] = Field(description="Rows from the surface down, each along x; m/s.")


class ReadModelBody(BaseModel):
    """The ground as the encoder itself reads it from the gather, whatever the gallery holds, on all cells."""

    cell_m: float = Field(description="Between two samples along depth and x, metres.")
    x0_m: float = Field(description="Of the first column: the line's first receiver, in the survey's own metres.")
    depth0_m: float = Field(description="Of the first row, metres.")
    unit: str = Field(description="Of value, low and high.", examples=["m/s"])
    range_m_s: tuple[float, float] | None = Field(
        default=None, description="Slowest and fastest ground that training drew; older servers do not say."
    )
    value: list[list[float]] = Field(description="Rows from the surface down, each along x.")
    low: list[list[float]] | None = Field(
        description="Lower ends of the 90 % intervals; null where the weights state none."
    )
    high: list[list[float]] | None = Field(description="Upper ends of the 90 % intervals.")


class TracesBody(BaseModel):
    """A gather as the encoder sees it: on the canonical grid, filtered, before any gain; dead traces are zero."""

    shots: int
    samples: int
    receivers: int
    dt_s: float
    shot_x_m: list[float] = Field(description="Metres from the first receiver.")
    receiver_step_m: float
    scale: float = Field(description="What an integer is multiplied by, in the unit of the gather.")
    int16: str = Field(description="Base64 of little-endian int16 (shot, time, receiver).")


class ScaleLimitBody(BaseModel):
    """What one condition asks of s."""

    name: str = Field(description="aperture, record, spacing, sampling, band, target_depth or range.")
    low: float
    high: float | None = Field(description="null: any.")
    detail: str


class BandBody(BaseModel):
    """Where the record has signal, hertz."""

    low_hz: float
    high_hz: float
    peak_hz: float


class ScaleBody(BaseModel):
    """The scale of a gather: true units are these factors times those of the weights' frame."""

    s: float = Field(description="Of lengths; times s / k, frequencies k / s.")
    k: float = Field(description="Of velocities.")
    auto: bool = Field(description="Whether it was chosen here; else it was given.")
    reason: str = Field(description="What the scale makes of the frame and, where it was chosen, why.")
    line_m: float
    depth_m: float
    cell_m: float = Field(description="Of the models, metres.")
    record_s: float
    peak_hz: float = Field(description="Of the frame's wavelet.")
    decided_by: str | None = Field(description="The name of the limit that decided.")
    limits: list[ScaleLimitBody]
    band: BandBody | None


class RetrievalBody(BaseModel):
    matches: list[MatchBody]
    physics: dict[str, QuantityBody] | None = None
    velocity: CoarseVelocityBody | None = Field(
        default=None, description="Where asked for, and the weights have a head for it."
    )
    traces: TracesBody | None = Field(default=None, description="Where asked for, of the first 64 shots of a request.")
    model: ReadModelBody | None = Field(
        default=None,
        exclude_if=lambda model: model is None,
        description="Not there unless asked for, and the weights have a head for it.",
    )
    in_distribution: InDistributionBody
    in_gallery: float | None = Field(
        description="Probability that the gallery's best match is the very ground of the gather, at even odds before. "
        "Null where the gather is unlike those of training (the warning in_gallery_unknown has the reason with its "
        "numbers), where the weights are not calibrated, or for fewer than two models."
    )
    ranked_by: Literal["similarity", "structure", "check"] = Field(
        description="What orders the matches: structure where the ground is not in the gallery, almost surely, or "
        "would be said not to be if the gather were like those of training; check where POST /v1/check found that one "
        "explains the record."
    )
    warnings: list[WarningBody]
    scale: ScaleBody | None = Field(
        default=None,
        exclude_if=lambda scale: scale is None,
        description="In whose true units all of this is. Not there unless a scale was asked for.",
    )


class SearchResultBody(BaseModel):
    matches: list[MatchBody]
    warnings: list[WarningBody]


class IngestBody(BaseModel):
    """What reading the upload found, in the file's own words where it has some; positions in metres along the line."""

    format: str = Field(description="npy, npz, segy, su or seg2; told by the bytes.", examples=["segy"])
    sample_format: str = Field(description="As stored.", examples=["IBM float32"])
    byte_order: str
    gathers: int
    shots: int = Field(
        description="In each gather, as read; at most five are used (shots_chosen and shots_moved in warnings)."
    )
    receivers: int = Field(description="In each shot, as used.")
    samples: int = Field(description="In each trace, as used.")
    traces: int | None = Field(description="In a SEG-Y, SU or SEG-2 file, used or not.")
    dt_s: float
    shot_x_m: tuple[float, float] = Field(description="Lowest and highest read.")
    receiver_x_m: tuple[float, float] = Field(description="Lowest and highest used.")
    units: str = Field(description="Of positions in the file: m or ft.")
    assumptions: list[WarningBody] = Field(description="Assumed or done while reading; also among the warnings.")


class RetrieveAnswer(BaseModel):
    """One entry of ``results`` for each gather sent, in that order."""

    request_id: str
    weights: WeightsBody
    gallery: GalleryBody
    ingest: IngestBody
    results: list[RetrievalBody]
    timings_ms: dict[str, float]


class StreamAnswer(BaseModel):
    """A line of a stream: the answer for one gather."""

    index: int = Field(description="Of the gather in the stack, from 0.")
    weights: WeightsBody
    gallery: GalleryBody
    result: RetrievalBody


class StreamError(BaseModel):
    """A line of a stream: what is wrong with one gather, or with the stack from there on."""

    index: int = Field(description="Of the gather in the stack, from 0.")
    error: Problem


class SearchAnswer(BaseModel):
    """One entry of ``results`` for each velocity model sent, or one for the descriptors."""

    request_id: str
    weights: WeightsBody
    gallery: GalleryBody
    results: list[SearchResultBody]
    timings_ms: dict[str, float]


class ModelBody(BaseModel):
    """One velocity model of the gallery."""

    model_id: str
    family: str | None
    tags: list[str]
    source: str | None
    added_at: str
    depth_cells: int
    x_cells: int
    cell_m: float
    descriptors: dict[str, QuantityValue]
    checksum: str
    velocity_url: str
    segy_url: str
    image_url: str


class QuantityValue(BaseModel):
    value: float
    unit: str


class AddAnswer(BaseModel):
    model_ids: list[str]
    gallery: GalleryBody
    warnings: list[WarningBody] = Field(
        default=[],
        exclude_if=lambda warnings: not warnings,
        description="velocity_untrained, where models are not such as the encoders were trained for; duplicate_map, "
        "where the gallery has the map under another id. Not there without any.",
    )


class DescriptorBody(BaseModel):
    name: str
    unit: str
    definition: str
    low: float | None = Field(description="Lowest in the gallery.")
    high: float | None = Field(description="Highest in the gallery.")


class FrameBody(BaseModel):
    """The line that the weights are for, and the velocity models of the gallery."""

    name: str
    depth_cells: int
    x_cells: int
    cell_m: float = Field(description="Size of a cell along depth and x, metres.")
    velocity_m_s: tuple[float, float] = Field(description="Slowest and fastest ground that training drew.")
    receivers: int
    receiver_spacing_m: float = Field(description="Metres; the first receiver is x = 0.")
    shot_x_m: list[float]
    samples: int = Field(description="In each trace as the encoder sees it.")
    dt_s: float = Field(description="Their sampling interval, seconds.")
    record_samples: int = Field(description="In each trace of a recording in the frame's own layout.")
    record_dt_s: float = Field(description="Their sampling interval, assumed of arrays that bring none, seconds.")
    peak_hz: float = Field(description="Of the source's wavelet.")


class GalleryAnswer(BaseModel):
    """What is being served."""

    gallery: GalleryBody
    weights: WeightsBody
    writable: bool
    calibrated: bool = Field(description="Whether intervals and in_distribution were measured on held-out gathers.")
    frame: FrameBody | None = Field(default=None, description="Of weights and gallery; older servers do not say.")
    families: dict[str, int]
    descriptors: list[DescriptorBody]
    created_at: str
    bytes: int = Field(description="Of all files of the gallery.")
    search_device: str = Field(default="cpu", description="What searches it: cpu, cuda:0 and so on.")
    precision_m_s: float = Field(
        default=0.0, description="Velocities of models are rounded by at most this when they are added; 0: not at all."
    )
    notes: list[str]


class HistogramBody(BaseModel):
    name: str
    unit: str
    definition: str
    low: float = Field(description="Lowest in the gallery: where the first part begins.")
    high: float = Field(description="Highest in the gallery: where the last part ends.")
    counts: list[int] = Field(description="Models in each of equal parts of that range.")


class DistributionAnswer(BaseModel):
    """How the descriptors of the gallery's models are distributed; without entries for an empty gallery."""

    generation: int
    descriptors: list[HistogramBody]


class WorkerBody(BaseModel):
    """One of the processes of a server that has several."""

    worker: int = Field(description="Its number, from 0; the label worker of /metrics.")
    state: Literal["ready", "not_ready", "starting", "absent"] = Field(
        description="absent: it ended, and another takes its place soon. One that is starting or absent takes no "
        "connections, and will serve the gallery that is there then."
    )
    generation: str | None = Field(description="Of the gallery that it serves; null: of none yet, or not known.")


class ReloadAnswer(BaseModel):
    before: GalleryBody
    after: GalleryBody
    workers: list[WorkerBody] = Field(
        default=[],
        exclude_if=lambda workers: not workers,
        description="Of a server with several: each, which serves what is there now, or will when it has started. "
        "Where one goes on with the gallery before, the answer is 503 reload_incomplete.",
    )


class Health(BaseModel):
    status: str


class Ready(Health):
    generation: str = Field(
        description="Of the gallery that is served, as the header SeisBind-Generation has it; of several workers, by "
        "the one that answers."
    )
    workers: list[WorkerBody] = Field(
        default=[],
        exclude_if=lambda workers: not workers,
        description="Of a server with several: each, as it has said in the last seconds. Where one that takes "
        "connections is not ready, the answer is 503 not_ready.",
    )


class Problem(BaseModel):
    """RFC 9457. ``code`` is for programs and never changes; ``detail`` says what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    instance: str
    request_id: str
    errors: list[str] | None = Field(None, description="Each thing that is wrong, where there are several.")
