"""The calls on jobs, as `calls` has the others, and the lines of a job as they come."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from seisbind.model.frame import Survey
from seisbind.model.scale import AskedScale
from seisbind.service.client.answers import json_body, npz_arrays, unexpected
from seisbind.service.client.calls import FROM_FILE, Call, Conditions, file_bytes, gather_fields
from seisbind.service.client.parts import form
from seisbind.service.formats.npy import npy
from seisbind.service.formats.reader import Geometry
from seisbind.service.job_schemas import JobBody, JobEvent, JobsAnswer, KeptAnswer


def submit_refinement(
    file: bytes | Path,
    geometry: Survey | Geometry = FROM_FILE,
    *,
    iterations: int | None = None,
    start: str = "best",
    model: ArrayLike | None = None,
    filter: Conditions = None,
    scale: AskedScale = None,
    key: str | None = None,
) -> Call[JobBody]:
    """POST /v1/jobs: refine the model of one gather, an npy, npz, SEG-Y, SU or SEG-2 file, or its bytes.

    Args:
        geometry: overrides what the file says.
        iterations: at most; by default 48, or what the server allows if that is less.
        start: ``read`` from the gather, the first ``match``, the ``mean`` of five, or ``best``, which tries them all.
        model: to start from in their place, ``(depth, x)`` m/s in cells of ``s`` times the frame's.
        filter: of the matches.
        key: the same again makes no second job; by default a new one, so that a lost answer can be asked for again.
    """
    fields = gather_fields(geometry, filter, scale)
    fields |= {"kind": "refine", "start": start}
    if iterations is not None:
        fields["iterations"] = str(iterations)
    sent = form(file_bytes(file), fields) | {"headers": {"Idempotency-Key": str(uuid.uuid4()) if key is None else key}}
    if model is not None:
        sent["files"]["model"] = ("model", npy(model), "application/octet-stream")
    return Call("POST", "/v1/jobs", json_body(JobBody), sent)


def job(job_id: str) -> Call[JobBody]:
    """GET /v1/jobs/{id}: how far a job is."""
    return Call("GET", _path(job_id), json_body(JobBody))


def jobs(*, limit: int = 20) -> Call[JobsAnswer]:
    """GET /v1/jobs: the newest jobs, newest first, and how many there are of each state."""
    return Call("GET", "/v1/jobs", json_body(JobsAnswer), {"params": {"limit": limit}})


def cancel(job_id: str) -> Call[JobBody | None]:
    """DELETE /v1/jobs/{id}: cancel a job; or remove one that has ended, with its result (None)."""
    read = json_body(JobBody)
    return Call(
        "DELETE", _path(job_id), lambda answer: None if answer.status_code == 204 else read(answer), repeatable=False
    )


def result(job_id: str) -> Call[dict[str, NDArray[Any]]]:
    """GET /v1/jobs/{id}/result.npz: the arrays of a result, ``velocity`` ``(depth, x)`` m/s first: docs/jobs.md."""
    return Call("GET", f"{_path(job_id)}/result.npz", npz_arrays)


def result_file(job_id: str, format: str) -> Call[bytes]:
    """GET /v1/jobs/{id}/result.{format}: the refined model as the bytes of an npz, npy, segy or nc file."""
    return Call("GET", f"{_path(job_id)}/result.{quote(format, safe='')}", lambda answer: answer.content)


def job_image(job_id: str) -> Call[bytes]:
    """GET /v1/jobs/{id}/image.png: the model of a job's last iteration."""
    return Call("GET", f"{_path(job_id)}/image.png", lambda answer: answer.content)


def keep_job_model(job_id: str) -> Call[KeptAnswer]:
    """POST /v1/jobs/{id}/model: check the model that a job was refined to, and add it to the gallery."""
    return Call("POST", f"{_path(job_id)}/model", json_body(KeptAnswer))


def events(job_id: str, *, after: int = -1) -> JobLines:
    """GET /v1/jobs/{id}/events: the lines of a job's progress as they come, until it ends.

    When a connection breaks it goes on with the line after the last.
    """
    return JobLines(job_id, after)


class JobLines:
    """What has come of a job's lines. True while there is more to come."""

    def __init__(self, job_id: str, after: int) -> None:
        self._path, self._after = f"{_path(job_id)}/events", after
        self._rest, self._lines, self._ended = b"", list[JobEvent](), False

    def __bool__(self) -> bool:
        return not self._ended

    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream`."""
        self._rest = b""
        return {"method": "GET", "url": self._path, "params": {"after": self._after}}

    def read(self, chunk: bytes, response: httpx.Response) -> None:
        """Take in a piece of the answer. Raises ServiceError: no line of a job."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            try:
                self._lines.append(JobEvent.model_validate_json(line))
            except ValidationError as error:
                raise unexpected(response, error) from error

    def take(self) -> list[JobEvent]:
        """The lines that came since this was called before."""
        taken, self._lines = self._lines, []
        if taken:
            self._after, self._ended = taken[-1].line, taken[-1].ended
        return taken


def _path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"
