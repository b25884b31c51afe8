"""What uvicorn reads requests with: bounds on their heads, and an answer to bytes that are no request.

Before any application, so here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from seisbind.service.edge import SAFE_HEADERS
from seisbind.service.errors import CODE, problem

log = logging.getLogger(__name__)

MOST_HEAD_BYTES = 65_536  # after the read in which the head began, 256 KiB at most
HEAD_DEADLINE_S = 30.0


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a problem document in place of its line of text, and heads that are bounded in bytes and time."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._in_head = False
        self._head_bytes = 0
        self._overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await_head()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_came()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        begun = self._in_head
        super().data_received(data)
        if begun and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES and not self.transport.is_closing():
                detail = (
                    f"The head of the request has more than {MOST_HEAD_BYTES} bytes. Send fewer or shorter headers."
                )
                self._refuse(detail)

    def send_400_response(self, msg: str) -> None:
        """``msg``: uvicorn's sentence, or its parser's."""
        self._refuse(f"{msg.rstrip('.')}. It is not HTTP/1.1, or its address is longer than 65,535 bytes.")

    def _refuse(self, detail: str) -> None:
        """Answer and close."""
        request_id = uuid.uuid4().hex
        log.info("Bytes that are no request were refused: %s [%s]", detail, request_id)
        answer = problem({"path": "", "state": {"request_id": request_id}}, 400, CODE[400], detail)
        headers = [*answer.raw_headers, *SAFE_HEADERS.items(), (b"connection", b"close")]
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", b""]
        self.transport.write(b"\r\n".join(lines) + bytes(answer.body))
        self.transport.close()

    def _await_head(self) -> None:
        self._head_came()
        self._overdue = self.loop.call_later(HEAD_DEADLINE_S, self.transport.close)

    def _head_came(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
