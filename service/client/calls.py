"""What each call of a client sends, and how its answer is read: shared by `client.Client` and `client.AsyncClient`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ValidationError

from seisbind.model.errors import DatasetError, ServerRefused, ServiceError
from seisbind.model.frame import Survey
from seisbind.service.client.retries import retry_after_s
from seisbind.service.formats.npy import NPZ, UNZIP_ERRORS, ZIP_MAGIC, Limits, npy, read_npy
from seisbind.service.formats.reader import SURVEY_KEYS, Geometry
from seisbind.service.schemas import (
    AddAnswer,
    DistributionAnswer,
    GalleryAnswer,
    ModelBody,
    Problem,
    ReloadAnswer,
    RetrieveAnswer,
    SearchAnswer,
    StreamAnswer,
    StreamError,
)

if TYPE_CHECKING:  # which would import FAISS
    from seisbind.index import Filter

T = TypeVar("T")
Body = TypeVar("Body", bound=BaseModel)
Recorded = Survey | Geometry

STREAM_PATH = "/v1/retrieve/stream"
PART_BYTES = 64 << 20  # of a stack, in one stream: 47 gathers of float32
MODEL_LIMITS = Limits(unpacked_bytes=4 << 20, items=1)  # of a velocity model that a server sends
OF_THE_STREAM = (408, 503)  # a line with such a status is about the rest of the stack, not about its gather


class Stack(Protocol):
    """Gathers ``(gather, shot, time, receiver)`` of which a range is read at a time: an array, or a file's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and what its answer means.

    Attributes:
        sent: arguments of `httpx.Client.request`.
        repeatable: whether it may be carried out twice; see `retries`.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    sent: dict[str, Any] = field(default_factory=dict)
    repeatable: bool = True


def retrieve(gathers: ArrayLike, fields: dict[str, str]) -> Call[RetrieveAnswer]:
    return retrieve_file(npy(gathers), fields)


def retrieve_file(file: bytes | Path, fields: dict[str, str]) -> Call[RetrieveAnswer]:
    return Call("POST", "/v1/retrieve", partial(_body, RetrieveAnswer), _form(file_bytes(file), fields))


def retrieve_arrays(gathers: ArrayLike, fields: dict[str, str]) -> Call[dict[str, NDArray[Any]]]:
    return Call("POST", "/v1/retrieve", _arrays, _form(npy(gathers), fields) | {"headers": {"Accept": NPZ}})


def stream(content: bytes, fields: dict[str, str]) -> dict[str, Any]:
    """Arguments of `httpx.Client.stream`."""
    return {"method": "POST", "url": STREAM_PATH} | _form(content, fields)


def search_velocity(
    velocity: ArrayLike, top_k: int, filter: Filter | Mapping[str, object] | None, include: Sequence[str]
) -> Call[SearchAnswer]:
    sent = _form(npy(velocity), search_fields(top_k, filter, include))
    return Call("POST", "/v1/search", partial(_body, SearchAnswer), sent)


def search_descriptors(
    descriptors: Mapping[str, float], top_k: int, filter: Filter | Mapping[str, object] | None, include: Sequence[str]
) -> Call[SearchAnswer]:
    asked = {"descriptors": dict(descriptors), "top_k": top_k, "include": list(include)}
    conditions = _conditions(filter)
    if conditions is not None:
        asked["filter"] = conditions
    # not httpx's json=, which refuses NaN with a ValueError of its own; the server has a sentence for it
    sent = {"content": json.dumps(asked).encode(), "headers": {"Content-Type": "application/json"}}
    return Call("POST", "/v1/search", partial(_body, SearchAnswer), sent)


def info() -> Call[GalleryAnswer]:
    return Call("GET", "/v1/gallery", partial(_body, GalleryAnswer))


def distribution() -> Call[DistributionAnswer]:
    return Call("GET", "/v1/gallery/distribution", partial(_body, DistributionAnswer))


def reload() -> Call[ReloadAnswer]:
    return Call("POST", "/v1/gallery/reload", partial(_body, ReloadAnswer))


def record(model_id: str) -> Call[ModelBody]:
    return Call("GET", _model(model_id), partial(_body, ModelBody))


def velocity(model_id: str) -> Call[NDArray[np.float32]]:
    def read(response: httpx.Response) -> NDArray[np.float32]:
        return np.array(read_npy(response.content, limits=MODEL_LIMITS), dtype=np.float32)

    return Call("GET", f"{_model(model_id)}/velocity.npy", read)


def image(model_id: str) -> Call[bytes]:
    return Call("GET", f"{_model(model_id)}/image.png", lambda response: response.content)


def add_models(
    velocity: ArrayLike, family: str | None, tags: Sequence[str], model_ids: Sequence[str] | None, source: str | None
) -> Call[AddAnswer]:
    given = {
        "family": family,
        "tags": ",".join(tags) or None,
        "model_id": None if model_ids is None else ",".join(model_ids),
        "source": source,
    }
    sent = _form(npy(velocity), {name: text for name, text in given.items() if text is not None})
    return Call("POST", "/v1/models", partial(_body, AddAnswer), sent, repeatable=False)


def remove_model(model_id: str) -> Call[None]:
    return Call("DELETE", _model(model_id), lambda response: None, repeatable=False)


def metrics() -> Call[str]:
    return Call("GET", "/metrics", lambda response: response.text)


def search_fields(top_k: int, filter: Filter | Mapping[str, object] | None, include: Sequence[str]) -> dict[str, str]:
    """Form fields as in `schemas.SearchFields`."""
    conditions = _conditions(filter)
    fields = {"top_k": str(top_k), "include": ",".join(include)}
    return fields if conditions is None else fields | {"filter": json.dumps(conditions)}


def retrieve_fields(
    recorded: Recorded, top_k: int, filter: Filter | Mapping[str, object] | None, include: Sequence[str]
) -> dict[str, str]:
    """Form fields as in `schemas.RetrieveFields`; what the geometry leaves open is left to the server."""
    fields = search_fields(top_k, filter, include)
    for name in SURVEY_KEYS:
        value = getattr(recorded, name)
        if value is not None:
            fields[name] = ",".join(repr(float(x)) for x in value) if isinstance(value, tuple) else repr(float(value))
    return fields


def file_bytes(file: bytes | Path) -> bytes:
    """The content of ``file``. Raises DatasetError if it cannot be read."""
    if isinstance(file, bytes):
        return file
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}.") from error


def raised(response: httpx.Response) -> None:
    """Nothing, if the server did what was asked.

    Raises:
        ServerRefused: it did not.
    """
    if response.is_success:
        return
    after = retry_after_s(response.headers.get("Retry-After"))
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        text = response.text[:200]
        sentence = f"{_origin(response)} answered {response.status_code}: {text}"
        raise ServerRefused(
            sentence, code=ServiceError.code, status=response.status_code, detail=text, retry_after_s=after
        ) from None
    raise _refused(_origin(response), problem, after)


class Parts:
    """A stack on its way: which part of it is sent next, and which of its gathers have been answered.

    Args:
        stack: ``(gather, shot, time, receiver)``, or one gather without the first axis.
        first: gathers before this one are not asked about.
    """

    def __init__(self, stack: Stack, first: int = 0) -> None:
        self._stack = stack if len(stack.shape) == 4 else np.asarray(stack)[None]
        self.next = first
        self._start, self._end = first, first
        one = max(1, int(np.prod(self._stack.shape[1:])) * self._stack.dtype.itemsize)
        self._step = max(1, PART_BYTES // one)

    def __bool__(self) -> bool:
        return self.next < self._stack.shape[0]

    def content(self) -> bytes:
        """The npy file of the next gathers that have no answer."""
        self._start, self._end = self.next, min(self.next + self._step, self._stack.shape[0])
        return npy(self._stack[self._start : self._end])

    def taken(self, line: str, response: httpx.Response) -> StreamAnswer | StreamError:
        """A line of the answer, its index that of the whole stack.

        Raises:
            ServerRefused: the server cannot go on with this part.
            ServiceError: not the line that comes next.
        """
        kind: type[StreamAnswer] | type[StreamError] = StreamError if '"error":' in line[:40] else StreamAnswer
        try:
            found = kind.model_validate_json(line)
        except ValidationError as error:
            raise _foreign(response, error) from error
        if found.index != self.next - self._start:
            raise ServiceError(
                f"{_origin(response)} answered gather {found.index}; {self.next - self._start} was next."
            )
        if isinstance(found, StreamError) and found.error.status in OF_THE_STREAM:
            raise _refused(_origin(response), found.error, None)
        self.next += 1
        return found.model_copy(update={"index": self.next - 1})

    def ended(self) -> None:
        """The answer to a part ends. Raises httpx.RemoteProtocolError if gathers are left without one."""
        if self.next < self._end:
            raise httpx.RemoteProtocolError(f"the answer ended {self._end - self.next} gathers before its part did")


def _form(content: bytes, fields: dict[str, str]) -> dict[str, Any]:
    """Fields first, as a stream wants them."""
    return {"data": fields, "files": {"file": ("file", content, "application/octet-stream")}}


def _model(model_id: str) -> str:
    return f"/v1/models/{quote(model_id, safe='')}"


def _conditions(filter: Filter | Mapping[str, object] | None) -> dict[str, object] | None:
    if filter is None:
        return None
    return dict(filter) if isinstance(filter, Mapping) else filter.conditions()


def _body(kind: type[Body], response: httpx.Response) -> Body:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise _foreign(response, error) from error


def _arrays(response: httpx.Response) -> dict[str, NDArray[Any]]:
    if not response.content.startswith(ZIP_MAGIC):  # JSON, from a server that does not know of npz
        raise _foreign(response, "no npz")
    try:
        with np.load(io.BytesIO(response.content), allow_pickle=False) as found:
            return dict(found)
    except UNZIP_ERRORS as error:
        raise _foreign(response, f"{error}") from error


def _foreign(response: httpx.Response, what: ValidationError | str) -> ServiceError:
    said = what if isinstance(what, str) else f"{what.error_count()} differences"
    return ServiceError(
        f"{_origin(response)} answered something else than was asked for ({said}). Is it a SeisBind server of this "
        "version?"
    )


def _refused(origin: str, problem: Problem, after: float | None) -> ServerRefused:
    return ServerRefused(
        f"{origin} answered {problem.status}: {problem.detail}",
        code=problem.code,
        status=problem.status,
        detail=problem.detail,
        request_id=problem.request_id,
        retry_after_s=after,
    )


def _origin(response: httpx.Response) -> str:
    url = response.request.url
    return f"{url.scheme}://{url.netloc.decode()}"
