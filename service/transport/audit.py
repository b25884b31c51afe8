"""The audit log: who changed what and when, one JSON object per line, append-only."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from seisbind.model.errors import InvalidConfig
from seisbind.service.runtime.logs import FIELDS

log = logging.getLogger("seisbind.audit")

MAX_PATH = 1000  # characters of a line's path; no call has so long a one, and anybody may send 65,000
MAX_CLIENT = 64  # characters of an address, which may come from a header that a proxy hands on
MODE = 0o640  # of a file that is made: names of callers are not for everybody


class AuditLog:
    """Writes lines to a file, or to the logger ``seisbind.audit`` where there is none.

    The file is opened for each line, so that it can be moved away while the server runs, and a line is on the disk
    before the answer that it is about is sent.

    Raises:
        InvalidConfig: the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            try:
                self._append(b"")
            except OSError as error:
                raise InvalidConfig(f"SEISBIND_AUDIT_LOG {path} cannot be written: {error.strerror}.") from error

    async def write(
        self,
        *,
        request_id: str,
        caller: str | None,
        client: str,
        method: str,
        path: str,
        status: int,
        code: str | None,
        changed: Mapping[str, object],
    ) -> bool:
        """Add a line about one call. False where the file did not take it; then the log has it, as an error.

        Args:
            caller: name of the API key; None where the server asks for none.
            client: the address that the request came from.
            code: of the problem document, where the call was refused.
            changed: what the call says that it changed.
        """
        line: dict[str, object] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "request_id": request_id,
            "caller": caller,
            "client": client[:MAX_CLIENT],
            "method": method,
            "path": path[:MAX_PATH],
            "status": status,
            "code": code,
            **changed,
        }
        if self._path is None:
            log.info("change", extra={FIELDS: line})
            return True
        try:
            await asyncio.to_thread(self._append, json.dumps(line).encode() + b"\n")
        except OSError:
            log.exception("The audit file did not take a line.", extra={FIELDS: line})
            return False
        return True

    def _append(self, line: bytes) -> None:
        if self._path is None:
            return
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
        try:
            if os.write(file, line) < len(line):  # one call: lines of several processes do not mix
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)
