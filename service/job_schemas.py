"""What crosses HTTP for jobs: the fields of a request, what is said of a job, and the lines of its progress."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, Field

from seisbind.service.check_schemas import MeasuresBody, VerdictBody
from seisbind.service.schemas import GalleryBody, GatherFields

ENDS = ("done", "failed", "cancelled")
MAX_LISTED = 100
ITERATIONS = 48  # of `RefineConfig`, which a client does without


class JobFields(GatherFields):
    """Query parameters or form fields of a job."""

    kind: Literal["refine"] = Field("refine", description="What is done: refine.", examples=["refine"])
    iterations: int | None = Field(
        None,
        ge=1,
        description=f"Most iterations; {ITERATIONS}, or what the server allows if that is less.",
        examples=[20],
    )
    start: Literal["best", "read", "match", "mean"] = Field(
        "best",
        description="Model that a refinement starts from: read from the gather by the encoder, the first match within "
        "filter, the mean of the first five; best tries them all.",
        examples=["read"],
    )


class JobEvent(BaseModel):
    """A line of a job's progress. What an iteration says is null in other lines."""

    line: int = Field(description="0, 1, 2 … within the job: the next lines are asked for with after.")
    at: datetime
    state: str = Field(description="queued, running, done, failed or cancelled; a job ends with one of the last three.")
    iteration: int | None = Field(description="Iterations done.")
    of: int | None = Field(description="Most there will be.")
    stage: str | None = Field(description="Of the refinement.")
    residual: float | None = Field(
        description="What the model that the iteration ended with does not explain of the record, over the record's "
        "rms; while several starts are tried, that is the start whose turn it is."
    )
    step_s: float | None = Field(description="Time that the iteration took, seconds.")
    seconds_left: float | None = Field(description="As the last iterations went, seconds.")
    detail: str | None

    @property
    def ended(self) -> bool:
        """Whether it is the last line."""
        return self.state in ENDS


class JobErrorBody(BaseModel):
    """Why a job failed."""

    code: str = Field(description="As in problem documents.")
    detail: str


class JobLinks(BaseModel):
    """Addresses of a job and of what it has; null where it has nothing there yet."""

    self: str
    events: str
    image: str | None = Field(description="Of its model as it is now.")
    result: str | None = Field(description="As npz; with .npy, .segy and .nc in place of .npz as these.")


class JobBody(BaseModel):
    """A job."""

    job_id: str
    kind: str
    state: str
    ahead: int = Field(description="Jobs that come before it; 0 unless it is queued.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    iterations: int = Field(description="Most that were asked for.")
    start: str = Field(description="Models that it starts from.")
    scale: tuple[float, float] = Field(description="s and k.")
    worked_s: float = Field(description="Time of its iterations so far, seconds.")
    progress: JobEvent | None = Field(description="The last iteration.")
    detail: str | None = Field(description="Why it ended as it did, where there is more to say than its state.")
    error: JobErrorBody | None = Field(description="Where it failed.")
    warnings: list[str] = Field(description="What was assumed or done when its record was prepared.")
    links: JobLinks

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ENDS


class JobsAnswer(BaseModel):
    """The newest jobs, newest first, and how many there are of each state."""

    jobs: list[JobBody]
    counts: dict[str, int]


class KeptAnswer(BaseModel):
    """A refined model that the gallery has, and what its check found."""

    model_id: str
    source: str = Field(description="Where it comes from, as its record in the gallery has it.")
    verdict: VerdictBody
    measures: MeasuresBody
    gallery: GalleryBody


def moment(seconds: float) -> datetime:
    """A time in seconds since the epoch."""
    return datetime.fromtimestamp(seconds, UTC)
