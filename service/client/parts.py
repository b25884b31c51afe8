"""A stack of gathers on its way to a server, in parts, and the answers to it as they come back."""

from __future__ import annotations

from typing import Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from seisbind.model.errors import ServiceError
from seisbind.service.client.answers import origin, refused, unexpected
from seisbind.service.formats.npy import npy
from seisbind.service.schemas import StreamAnswer, StreamError

PART_BYTES = 64 << 20  # of a stack, in one stream: 47 gathers of float32
STREAM_STATUSES = (408, 503)  # an error line with one of these is about the rest of the stack, not about its gather


class Stack(Protocol):
    """Gathers ``(gather, shot, time, receiver)`` of which a range is read at a time: an array, or a file's."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


class Parts:
    """Which part of a stack is sent next, and which of its gathers have been answered.

    Args:
        stack: ``(gather, shot, time, receiver)``, or one gather without the first axis.
        first: gathers before this one are not asked about.
        fields: form fields that are sent with each part.
    """

    def __init__(self, stack: Stack, first: int = 0, fields: dict[str, str] | None = None) -> None:
        self._stack = stack if len(stack.shape) == 4 else np.asarray(stack)[None]
        self._fields = fields or {}
        self._next = self._start = self._end = first
        self._answered: list[StreamAnswer | StreamError] = []
        self._unfinished = b""  # a line of the answer that has begun
        one = max(1, int(np.prod(self._stack.shape[1:])) * self._stack.dtype.itemsize)
        self._step = max(1, PART_BYTES // one)

    def __bool__(self) -> bool:
        return self._next < self._stack.shape[0]

    def content(self) -> bytes:
        """The npy file of the next gathers that have no answer."""
        self._start, self._end = self._next, min(self._next + self._step, self._stack.shape[0])
        return npy(self._stack[self._start : self._end])

    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream` that send the next part."""
        self._unfinished = b""
        return {"method": "POST", "url": "/v1/retrieve/stream"} | form(self.content(), self._fields)

    def read(self, chunk: bytes, response: httpx.Response) -> None:
        """Take in a piece of the answer. Only a line feed ends a line, unlike with `str.splitlines`.

        Raises:
            ServerRefused: the server cannot go on with this part.
            ServiceError: not the line that comes next.
        """
        *lines, self._unfinished = (self._unfinished + chunk).split(b"\n")
        for line in lines:
            self._read_line(line, response)

    def end(self, response: httpx.Response) -> None:
        """Take in the end of the answer.

        Raises:
            ServerRefused, ServiceError: as `read`.
            httpx.RemoteProtocolError: gathers are left without an answer.
        """
        if self._unfinished:
            self._read_line(self._unfinished, response)
        if self._next < self._end:
            raise httpx.RemoteProtocolError(f"the answer ended {self._end - self._next} gathers before its part did")

    def take(self) -> list[StreamAnswer | StreamError]:
        """The answers since the last call, their indices those of the whole stack."""
        answered, self._answered = self._answered, []
        return answered

    def _read_line(self, line: bytes, response: httpx.Response) -> None:
        kind: type[StreamAnswer] | type[StreamError] = StreamError if b'"error":' in line[:40] else StreamAnswer
        try:
            found = kind.model_validate_json(line)
        except ValidationError as error:
            raise unexpected(response, error) from error
        if found.index != self._next - self._start:
            raise ServiceError(
                f"{origin(response)} answered gather {found.index}; {self._next - self._start} was next."
            )
        if isinstance(found, StreamError) and found.error.status in STREAM_STATUSES:
            raise refused(response, found.error)
        self._answered.append(found.model_copy(update={"index": self._next}))
        self._next += 1


def form(content: bytes, fields: dict[str, str]) -> dict[str, Any]:
    """Arguments of an httpx request: a form whose fields come before its file, as a stream wants them."""
    return {"data": fields, "files": {"file": ("file", content, "application/octet-stream")}}
