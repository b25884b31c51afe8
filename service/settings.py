"""What an operator can set: one frozen object, read once from ``SEISBIND_*`` by the command that starts the server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from seisbind.model.errors import InvalidConfig

MIB = 1 << 20


class Access(StrEnum):
    """Who reaches a page: anyone, those with a key (anyone where no keys are set), or nobody."""

    OPEN = "open"
    KEY = "key"
    OFF = "off"


class Search(StrEnum):
    """How a gallery is searched: approximately where it is large and its snapshot allows that, or always exactly."""

    AUTO = "auto"
    EXACT = "exact"


class LogFormat(StrEnum):
    """How a log line is written: for people, or one JSON object."""

    TEXT = "text"
    JSON = "json"


class Settings(BaseSettings):
    """Each field is set by the environment variable ``SEISBIND_`` + its name in capitals; see docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="SEISBIND_", frozen=True, extra="forbid")

    gallery: Path | str = Field(
        Path("gallery"),
        description="Folder of the gallery that is served, its URL in Milvus (milvus://HOST:PORT/COLLECTION), or the "
        "URL of one that 'seisbind gallery publish' has put there: s3://BUCKET/PATH, gs://BUCKET/PATH, "
        "file:///FOLDER.",
    )
    cache: Path = Field(
        Path("gallery-cache"), description="Folder for copies of a gallery by URL, with room for two of it."
    )
    weights: Path | None = Field(None, description="Weights file; unset means those that ship with SeisBind.")
    device: str = Field("auto", description="Where the encoders run: auto (a GPU if there is one), cpu, cuda, cuda:1.")
    search_device: str = Field(
        "auto",
        description="Where the gallery is searched: auto (the GPU of the encoders, if it has room for all vectors in "
        "fp16), cpu, cuda, cuda:1. The answers are the same.",
    )
    runtime: str = Field(
        "auto",
        description="What embeds gathers: auto (onnxruntime on a CPU where it is installed), torch, onnxruntime.",
    )
    search: Search = Field(
        Search.AUTO,
        description="How the gallery is searched: auto (approximately where its snapshot has an index with recall of "
        ".99 at least; answers say so), exact.",
    )
    precision: str = Field(
        "auto",
        description="What torch embeds gathers in: auto (fp32), fp32, bf16 (embeddings within a cosine of .999).",
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="Threads that encode and search on a CPU, count, in each worker; unset: one fewer than torch takes "
        "(a core each, or OMP_NUM_THREADS), or than its share of the cores, so that requests are read meanwhile.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on. The default is reachable from this machine only.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=0,
        le=256,
        description="Processes that serve behind the port; auto (or 0): one for each GPU, or on CPUs one for each two "
        "cores. With more than one the gallery cannot be writable, and there are no jobs.",
    )
    writable: bool = Field(False, description="Whether POST /v1/models and DELETE /v1/models/{id} change the gallery.")

    @field_validator("workers", mode="before")
    @classmethod
    def _count(cls, given: object) -> object:
        return 0 if given == "auto" else given

    @field_validator("gallery")
    @classmethod
    def _place(cls, given: Path | str) -> Path | str:
        """A path, unless it is a URL, in which a path would lose a slash."""
        return given if "://" in str(given) else Path(given)

    max_body_bytes: int = Field(
        32 * MIB,
        ge=1024,
        description="Largest request body, bytes; also the most that an npz may unpack to, and that the velocity "
        "models of an npz answer may have.",
    )
    body_deadline_s: float = Field(30.0, gt=0, description="Time for a request body to arrive, seconds.")
    max_gathers: int = Field(64, ge=1, description="Most gathers (or velocity models) in one request, count.")
    max_top_k: int = Field(
        100, ge=1, description="Largest top_k of a request, matches per gather; a gallery gives 1000 at most."
    )
    max_concurrency: int = Field(
        32,
        ge=1,
        description="Requests being worked on or answered at once, count; one more is told to retry (429).",
    )
    max_uploads: int = Field(
        256,
        ge=1,
        description="Request bodies that arrive at once, count; for one more, one that stands still is given up (408).",
    )
    max_streams: int = Field(
        32,
        ge=1,
        description="Streams at once, count; for one more, one whose client stands still is given up (408).",
    )
    max_windows: int = Field(400, ge=1, description="Most windows of one section, count; a line of 138 km at scale 1.")
    max_checks: int = Field(
        4,
        ge=1,
        description="Checks by the wave equation that wait or run at once, count (one runs at a time, behind all other "
        "work); one more is told to retry (429).",
    )
    jobs: Path | None = Field(None, description="Folder of jobs (refinements); unset: this server takes none.")
    max_jobs: int = Field(16, ge=1, description="Jobs that wait for the one that is worked on, count; beyond, 429.")
    max_iterations: int = Field(200, ge=1, description="Most iterations of one job, count.")
    job_seconds: float = Field(
        3600.0, gt=0, description="Work on one job, seconds; then it ends with what it has reached."
    )
    jobs_bytes: int = Field(
        1024 * MIB, ge=MIB, description="Disk that all jobs take together, their results included, bytes; beyond, 429."
    )
    jobs_keep_s: float = Field(
        7 * 86400.0,
        gt=0,
        description="How long a job stays after its end, with its result, seconds; then it is removed.",
    )
    max_batch: int = Field(64, ge=1, description="Most gathers of several requests that are encoded at once, count.")
    max_wait_ms: float = Field(
        2.0,
        ge=0,
        description="How long idle encoders wait for gathers that are being prepared, milliseconds; none, no wait.",
    )
    max_queue: int = Field(
        512, ge=1, description="Gathers that wait for the encoders, count (about 0.4 MB each); beyond, 429."
    )
    stream_buffer_bytes: int = Field(
        32 * MIB,
        ge=1024,
        description="Answers of one stream that are kept while its client sends and does not read, bytes.",
    )
    watch_s: float = Field(
        0.0,
        ge=0,
        description="How often the server looks whether its gallery has changed, and then serves what is there now, "
        "seconds; 0: only POST /v1/gallery/reload makes it look.",
    )
    canary_max_age_s: float = Field(
        10.0, gt=0, le=30, description="How old the last answered canary may be for /readyz to reuse it, seconds."
    )
    shutdown_s: float = Field(30.0, gt=0, description="Time for running requests to finish after SIGTERM, seconds.")
    api_keys: SecretStr | None = Field(
        None,
        description="Who may call: lines of 'seisbind key new', separated by commas; without keys, everybody may.",
    )
    api_keys_file: Path | None = Field(None, description="File of such lines, one a line; # begins a comment.")
    metrics_access: Access = Field(
        Access.KEY, description="Who reads /metrics: open (anyone), key (anyone where no keys are set), off (nobody)."
    )
    page_access: Access = Field(Access.KEY, description="Who sees the page at /: open, key, off.")
    openapi_access: Access = Field(Access.KEY, description="Who reads /openapi.json: open, key, off.")
    cors_origins: str | None = Field(
        None,
        description="Origins whose pages may call from a browser, separated by commas; unset: none.",
    )
    audit_log: Path | None = Field(
        None, description="File that a JSON line is added to for each call that may change something; unset: the log."
    )
    log_format: LogFormat = Field(LogFormat.TEXT, description="Log lines on standard error: text, json.")

    @model_validator(mode="after")
    def _one_writer(self) -> Self:
        if self.workers != 1 and (self.writable or self.jobs is not None):
            which = "a gallery that it may change (writable)" if self.writable else "jobs"
            raise ValueError(f"a server with {which} has one worker; workers is {self.workers}")
        return self


def read_settings(**given: object) -> Settings:
    """Settings from ``SEISBIND_*`` and from ``given``, which overrides them where it is not None.

    Raises:
        InvalidConfig: a value that is not acceptable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidConfig(f"Settings (SEISBIND_* and options) cannot be used: {found}.") from error
