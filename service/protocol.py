"""What uvicorn reads requests with, and how bytes that are no request are answered: before any application, so here."""

from __future__ import annotations

import uuid

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from seisbind.service.edge import SAFE_HEADERS
from seisbind.service.errors import CODE, problem


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a problem document in place of its line of text."""

    def send_400_response(self, msg: str) -> None:
        """Answer and close. ``msg``: uvicorn's sentence, or its parser's."""
        detail = f"{msg.rstrip('.')}. It is not HTTP/1.1, or its address is longer than 65,535 bytes."
        answer = problem({"path": "", "state": {"request_id": uuid.uuid4().hex}}, 400, CODE[400], detail)
        headers = [*answer.raw_headers, *SAFE_HEADERS.items(), (b"connection", b"close")]
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", b""]
        self.transport.write(b"\r\n".join(lines) + bytes(answer.body))
        self.transport.close()
