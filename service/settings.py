"""What an operator can set: one frozen object, read once from ``SEISBIND_*`` by the command that starts the server."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from seisbind.model.errors import InvalidConfig

MIB = 1 << 20


class Settings(BaseSettings):
    """Each field is set by the environment variable ``SEISBIND_`` + its name in capitals; see docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="SEISBIND_", frozen=True, extra="forbid")

    gallery: Path = Field(Path("gallery"), description="Folder of the gallery that is served.")
    weights: Path | None = Field(None, description="Weights file; unset means those that ship with SeisBind.")
    device: str = Field("auto", description="Where the encoders run: auto (a GPU if there is one), cpu, cuda, cuda:1.")
    host: str = Field("127.0.0.1", description="Address to listen on. The default is reachable from this machine only.")
    port: int = Field(8000, ge=0, le=65535, description="TCP port to listen on; 0 takes a free one.")
    writable: bool = Field(False, description="Whether POST /v1/models and DELETE /v1/models/{id} change the gallery.")
    max_body_bytes: int = Field(
        32 * MIB, ge=1024, description="Largest request body, bytes; also the most that an npz may unpack to."
    )
    body_deadline_s: float = Field(30.0, gt=0, description="Time for a request body to arrive, seconds.")
    max_gathers: int = Field(64, ge=1, description="Most gathers (or velocity models) in one request, count.")
    max_top_k: int = Field(100, ge=1, description="Largest top_k of a request, matches per gather.")
    max_concurrency: int = Field(
        32,
        ge=1,
        description="Requests being received, worked on or answered at once, count; one more is told to retry (429).",
    )
    canary_max_age_s: float = Field(
        10.0, gt=0, le=30, description="How old the last answered canary may be for /readyz to reuse it, seconds."
    )
    shutdown_s: float = Field(30.0, gt=0, description="Time for running requests to finish after SIGTERM, seconds.")


def read_settings(**given: object) -> Settings:
    """Settings from ``SEISBIND_*`` and from ``given``, which goes first where it is not None.

    Raises:
        InvalidConfig: a value that is not acceptable.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise InvalidConfig(f"Settings (SEISBIND_* and options) cannot be used: {found}.") from error
