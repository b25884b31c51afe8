"""A line on its way to a server that makes a section of it, and the lines of JSON that come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from seisbind.service.client.answers import refused, unexpected
from seisbind.service.section_schemas import SectionAnswer, SectionError, SectionProgress

KINDS: tuple[tuple[bytes, type[BaseModel]], ...] = (
    (b'{"error":', SectionError),
    (b'{"section":', SectionAnswer),
    (b'{"done":', SectionProgress),
)


class SectionLines:
    """What is sent, and what has been read of the answer.

    Args:
        sent: arguments of an httpx request.
        progress: called with each line but the last.
    """

    def __init__(self, sent: dict[str, Any], progress: Callable[[SectionProgress], None]) -> None:
        self._sent = sent
        self._progress = progress
        self._unfinished: list[bytes] = []  # pieces of a line that has begun
        self._answer: SectionAnswer | None = None

    def request(self) -> dict[str, Any]:
        """Arguments of `httpx.Client.stream`."""
        self._unfinished, self._answer = [], None
        return {"method": "POST", "url": "/v1/section"} | self._sent

    def read(self, chunk: bytes, response: httpx.Response) -> None:
        """Take in a piece of the answer.

        Raises:
            ServerRefused: the section could not be made.
            ServiceError: no line of a section.
        """
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._read_line(b"".join([*self._unfinished, end]), response)
            self._unfinished = []
        self._unfinished.append(rest)

    def end(self, response: httpx.Response) -> SectionAnswer:
        """The section.

        Raises:
            httpx.RemoteProtocolError: the answer ended before it.
        """
        if self._answer is None:
            raise httpx.RemoteProtocolError("the answer ended before the section")
        return self._answer

    def _read_line(self, line: bytes, response: httpx.Response) -> None:
        kind = next((kind for start, kind in KINDS if line.startswith(start)), None)
        if kind is None:
            raise unexpected(response, "no line of a section")
        try:
            found = kind.model_validate_json(line)
        except ValidationError as error:
            raise unexpected(response, error) from error
        if isinstance(found, SectionError):
            raise refused(response, found.error)
        if isinstance(found, SectionAnswer):
            self._answer = found
        elif isinstance(found, SectionProgress):
            self._progress(found)
