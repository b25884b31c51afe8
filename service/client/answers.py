"""What a client makes of a server's answers: models, arrays, or errors."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from seisbind.model.errors import ServerRefused, ServiceError
from seisbind.service.client.retries import retry_after_s
from seisbind.service.formats.npy import UNZIP_ERRORS, ZIP_MAGIC
from seisbind.service.schemas import Problem

Body = TypeVar("Body", bound=BaseModel)


def check(response: httpx.Response) -> None:
    """Raises ServerRefused unless the server did what was asked. The content has been read."""
    if response.is_success:
        return
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        text = response.text[:200]
        raise ServerRefused(
            f"{origin(response)} answered {response.status_code}: {text}",
            code=ServiceError.code,
            status=response.status_code,
            detail=text,
            retry_after_s=retry_after_s(response.headers.get("Retry-After")),
        ) from None
    raise refused(response, problem)


def json_body(kind: type[Body]) -> Callable[[httpx.Response], Body]:
    """A reader of JSON answers."""

    def read(response: httpx.Response) -> Body:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise unexpected(response, error) from error

    return read


def npz_arrays(response: httpx.Response) -> dict[str, NDArray[Any]]:
    """The arrays of an npz. Raises ServiceError for anything else."""
    if not response.content.startswith(ZIP_MAGIC):  # JSON, from a server that does not know of npz
        raise unexpected(response, "no npz")
    try:
        with np.load(io.BytesIO(response.content), allow_pickle=False) as found:
            return dict(found)
    except UNZIP_ERRORS as error:
        raise unexpected(response, f"{error}") from error


def unexpected(response: httpx.Response, what: ValidationError | str) -> ServiceError:
    """The error for an answer that no SeisBind server of this version gives."""
    found = what if isinstance(what, str) else f"{what.error_count()} differences"
    return ServiceError(
        f"{origin(response)} answered something else than was asked for ({found}). Is it a SeisBind server of this "
        "version?"
    )


def refused(response: httpx.Response, problem: Problem) -> ServerRefused:
    """The error that a server states, as the answer itself or in a line of a stream."""
    return ServerRefused(
        f"{origin(response)} answered {problem.status}: {problem.detail}",
        code=problem.code,
        status=problem.status,
        detail=problem.detail,
        request_id=problem.request_id,
        retry_after_s=retry_after_s(response.headers.get("Retry-After")),
    )


def origin(response: httpx.Response) -> str:
    """Scheme, host and port of the server."""
    url = response.request.url
    return f"{url.scheme}://{url.netloc.decode()}"
