"""Log lines on standard error: for people, or one JSON object each; with the id of the request that they are about."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from seisbind.service.settings import LogFormat

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")  # set by `RequestLog`, one task a request
FIELDS = "seisbind_fields"  # of a record: what the JSON line holds beside the usual, as ``extra={FIELDS: {...}}``


class TextLines(logging.Formatter):
    """``time level logger message field=value… [request id]``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in getattr(record, FIELDS, {}).items() if name != "request_id"}
        said = [super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())]
        if request_id := REQUEST_ID.get():
            said.append(f"[{request_id}]")
        return " ".join(said)


class JsonLines(logging.Formatter):
    """One object a line: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, and where there is one
    ``request_id``, ``exception`` (the traceback) and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line |= getattr(record, FIELDS, {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(log_format: LogFormat, *, stream: TextIO = sys.stderr) -> None:
    """Send the process's log to ``stream``: SeisBind's from INFO on, other libraries' from WARNING on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if log_format is LogFormat.JSON else TextLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("seisbind").setLevel(logging.INFO)
