"""How requests are read from a connection: one at a time, within limits, and bytes that are no request are refused.

No ASGI application sees these bytes. It builds on the inside of uvicorn, whose versions pyproject.toml therefore caps.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from functools import partial
from typing import Any, ClassVar

import httptools
from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from seisbind.service.settings import MIB, Settings
from seisbind.service.transport.chunks import Chunks
from seisbind.service.transport.connection import Connection
from seisbind.service.transport.problems import CODE, problem
from seisbind.service.transport.request_log import SAFE_HEADERS

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 65_536
HEAD_DEADLINE_S = 30.0
EMPTY_LINE = b"\r\n\r\n"  # ends a head, and the trailers of a chunked body
MAX_HELD_BYTES = 65_536  # behind the request in work, and a read more
PARTS_A_TURN = 4  # of at most `CHUNKS_AT_ONCE` chunks: a head, a body, its end, and the next head
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROBE = CONTINUE  # an interim answer, which every client of HTTP/1.1 passes over
MAX_UNREAD_BYTES = 262_144  # of a body, by the application, and a read of the socket more, which is as much at most
PROBES = 2
PROBE_EVERY_S = 0.05


class Protocol(HttpToolsProtocol):
    """uvicorn's, with a problem document in place of its line of text, and limits on what a connection may cost.

    One request of a connection is in work at a time. The parser is fed up to the end of that request and not beyond it;
    what the client sent after it is held, and goes to the parser once the answer is complete. Reading goes on during
    the work until `MAX_HELD_BYTES` are held, so that a client that leaves is noticed.

    A connection with more to parse than `PARTS_A_TURN` is not read until that is done. Of all these connections, one
    has its turn in each turn of the event loop.
    """

    deadline_s = 30.0
    max_unread_bytes = 32 * MIB
    queue: ClassVar[deque[Protocol]] = deque()  # those that wait for their turn to parse, in one event loop

    @classmethod
    def of(cls, settings: Settings) -> type[Protocol]:
        """The protocol of a server with ``settings``."""
        own = {"deadline_s": settings.body_deadline_s, "max_unread_bytes": settings.max_body_bytes, "queue": deque()}
        return type(cls.__name__, (cls,), own)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.ws_protocol_class = None  # there is nothing to upgrade to
        self._connection: Connection
        self._held = b""  # what came and has not been parsed, from `_at` on
        self._at = 0
        self._tail = b""  # the last three bytes that were parsed
        self._queued = False
        self._ended = False  # the client sends no more
        self._in_message = False
        self._in_head = False
        self._begun = False  # a message, in or before the part that is being parsed
        self._head_bytes = 0  # or of trailers
        self._body_left = 0  # bytes, where the head has their number
        self._body: deque[bytes] = deque()  # what came of it and was not read
        self._body_bytes = 0  # of that
        self._chunks = Chunks()  # where it has not
        self._overdue: asyncio.TimerHandle | None = None
        self._probing: asyncio.TimerHandle | None = None

    # The connection

    def connection_made(self, transport: Any) -> None:
        self._connection = Connection(
            transport,
            deadline_s=self.deadline_s,
            max_unread_bytes=self.max_unread_bytes,
            receiving=lambda: self._in_message or self._at < len(self._held),
        )
        super().connection_made(self._connection)
        self._expect_within(HEAD_DEADLINE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost()
        self._cancel_overdue()
        if self._probing is not None:
            self._probing.cancel()
        self._held, self._at = b"", 0
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        self._connection.hurry()

    def data_received(self, data: bytes) -> None:
        if self._connection.is_closing():
            self._connection.throw_away(len(data))
            return
        self._held, self._at = self._held[self._at :] + data, 0
        self._parse()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """The client sends no more. Whether it has left, or waits for the answer to a whole request, it does not say.

        So it is sent an interim answer, to which the machine of a client that has left replies with a reset.
        """
        self._ended = True
        self._connection.end_reading()
        if self._connection.is_closing() or (self._awaited() and not self._passes_over_interim_answers()):
            return None
        self._answer_the_last()
        return True

    def _answer_the_last(self) -> None:
        """Close once everything that came before the end is answered, or the client is found to have left."""
        last = self._at == len(self._held)
        if last and not self._awaited():
            self._connection.close()
            return
        if last:
            self.cycle.keep_alive = False
        if self._awaited() and self._probing is None:
            self._probe(PROBES)

    def _awaited(self) -> bool:
        """Whether the client waits for the answer to a whole request."""
        return self._working() and not self._in_message

    def _passes_over_interim_answers(self) -> bool:
        return bool(self.cycle.scope["http_version"] == "1.1")

    def _probe(self, left: int) -> None:
        if left and not self.cycle.response_started and self._passes_over_interim_answers():
            self._connection.write(PROBE)
        self._probing = self.loop.call_later(PROBE_EVERY_S, self._check_probe, max(0, left - 1))

    def _check_probe(self, left: int) -> None:
        self._probing = None
        if not self._working():
            return
        if self._connection.has_failed():
            self._connection.abort()
        else:
            self._probe(left)

    # Requests

    def _working(self) -> bool:
        """Whether the answer to the request that was parsed last is not complete."""
        return self.cycle is not None and not self.cycle.response_complete

    def _parse(self) -> None:
        """Parse what is held, as far as it belongs to the request in work, or begins the next where none is."""
        if self._queued:
            return
        for _ in range(PARTS_A_TURN):
            if not self._in_message:
                self._skip_empty_lines()
            if self._at == len(self._held) or self._connection.is_closing():
                self._held, self._at = b"", 0
                break
            if not self._in_message and self._working():
                break
            self._feed()
        else:
            self._wait_for_turn()
        self._connection.hold(self._queued or len(self._held) - self._at >= MAX_HELD_BYTES)
        if self._ended:
            self._answer_the_last()

    def _wait_for_turn(self) -> None:
        self._queued = True
        self.queue.append(self)
        if len(self.queue) == 1:
            self.loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Of the first in the queue, which is this one."""
        self._queued = False
        try:
            self._parse()
        finally:
            self.queue.popleft()
            if self.queue:
                self.loop.call_soon(self.queue[0]._take_turn)

    def _skip_empty_lines(self) -> None:
        """Between requests, where they mean nothing and begin none."""
        if self._held[self._at : self._at + 1] in (b"\r", b"\n"):
            self._held, self._at = self._held[self._at :].lstrip(b"\r\n"), 0

    def _feed(self) -> None:
        """Parse a part that reaches no further than the end of the request."""
        if not self._in_message:
            self._head_bytes, self._tail = 0, b""
        head = self._in_head or not self._in_message
        if not head and self._body_left:
            end = min(self._at + self._body_left, len(self._held))
            part, self._at = self._held[self._at : end], end
            self._take_body(part)
            return
        if not head and not self._chunks.ended:
            end = self._chunks.reach(self._held, self._at)
        else:
            end = self._end_of_empty_line()
        part = self._held[self._at : end]
        self._head_bytes += len(part)
        if head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(
                f"The head of the request has more than {MAX_HEAD_BYTES} bytes. Send fewer or shorter headers."
            )
            return
        self._at = end
        self._tail = (self._tail + part[-3:])[-3:]
        self._begun = self._in_message
        super().data_received(part)
        if not head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(f"More than {MAX_HEAD_BYTES} bytes came after a chunk and before the next. Send no trailers.")

    def _take_body(self, part: bytes) -> None:
        """Of a length that is known. The parser, which would copy it, has the head only, and another has the next."""
        self._body_left -= len(part)
        self._add_to_body(part)
        if not self._body_left:
            self.on_message_complete()
            self.parser = self._new_parser()

    def _add_to_body(self, part: bytes) -> None:
        if self.cycle.response_complete:  # it is thrown away
            return
        self._body.append(part)
        self._body_bytes += len(part)
        if self._body_bytes > MAX_UNREAD_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    async def _receive(self, cycle: RequestResponseCycle, body: deque[bytes]) -> ASGIReceiveEvent:
        """In place of uvicorn's: parts of the body as they came, not copied together first."""
        if cycle.waiting_for_100_continue and not self._connection.is_closing():
            self._connection.write(CONTINUE)
            cycle.waiting_for_100_continue = False
        if not body and not cycle.disconnected and not cycle.response_complete:
            self.flow.resume_reading()
            await cycle.message_event.wait()
        if cycle.disconnected or cycle.response_complete:
            return {"type": "http.disconnect"}
        part = body.popleft() if body else b""
        self._body_bytes -= len(part)
        if not body:
            cycle.message_event.clear()
        return {"type": "http.request", "body": part, "more_body": bool(body) or cycle.more_body}

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return parser

    def _end_of_empty_line(self) -> int:
        """Where the next empty line ends in what is held, or all of that."""
        across = (self._tail + self._held[self._at : self._at + 3]).find(EMPTY_LINE)
        if across >= 0:
            return self._at + across + len(EMPTY_LINE) - len(self._tail)
        found = self._held.find(EMPTY_LINE, self._at)
        return found + len(EMPTY_LINE) if found >= 0 else len(self._held)

    def _unsupported_upgrade_warning(self) -> None:
        """The parser takes what follows an offer to upgrade for another protocol, and ended the request with its head.

        Nothing is upgraded here (RFC 9110, section 7.8), so another parser gets the head without the offer.
        """
        if self.scope["method"] == "CONNECT":
            self._refuse("This server is no proxy. Send CONNECT to one")
            return
        self.parser = self._new_parser()
        method, version = self.scope["method"].encode(), self.scope["http_version"].encode()
        lines = [method + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self._begun = False
        super().data_received(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        if self._begun:
            raise RuntimeError("A second request began in a part that ends with the first.")
        super().on_message_begin()
        self._expect_within(HEAD_DEADLINE_S)
        self._begun = self._in_message = self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # nobody here reads trailers
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode()
            self.scope["http_version"] = self.parser.get_http_version()
            return
        self._in_head = False
        self._cancel_overdue()
        length = next((value for name, value in self.headers if name == b"content-length"), b"0")
        self._body_left, self._chunks = int(length), Chunks()
        self._body, self._body_bytes = deque(), 0
        super().on_headers_complete()
        self.cycle.receive = partial(self._receive, self.cycle, self._body)  # type: ignore[method-assign]

    def on_body(self, body: bytes) -> None:
        """Of chunks."""
        self._head_bytes = 0
        self._add_to_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._in_message = False
        self._cancel_overdue()
        super().on_message_complete()
        if not self._working() and not self._connection.is_closing():  # answered before: from now on it is idle
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._body.clear()
        self._body_bytes = 0
        if self._connection.is_closing():
            return
        if self._in_message:  # what is left of its body is thrown away
            self._unset_keepalive_if_required()  # the connection is not idle
            self._expect_within(self.deadline_s)
        else:
            self._parse()

    def send_400_response(self, msg: str) -> None:
        """``msg``: uvicorn's sentence, or its parser's."""
        self._refuse(f"{msg.rstrip('.')}. It is not HTTP/1.1, or its address is longer than 65,535 bytes.")

    def _refuse(self, detail: str) -> None:
        """Answer and close."""
        request_id = uuid.uuid4().hex
        log.info("Bytes that are no request were refused: %s [%s]", detail, request_id)
        if self._working() and self.cycle.response_started:
            self._connection.abort()  # in the middle of an answer there is no place for another
            return
        answer = problem({"path": "", "state": {"request_id": request_id}}, 400, CODE[400], detail)
        headers = [*answer.raw_headers, *SAFE_HEADERS.items(), (b"connection", b"close")]
        lines = [b"HTTP/1.1 400 Bad Request", *(name + b": " + value for name, value in headers), b"", b""]
        self._connection.write(b"\r\n".join(lines) + bytes(answer.body))
        self._in_message = True  # and its end will not be found
        self._connection.close()
        if self._working():
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _expect_within(self, seconds: float) -> None:
        """Close unless what is expected has come by then: the end of a head, or of a body that nobody reads."""
        self._cancel_overdue()
        self._overdue = self.loop.call_later(seconds, self._connection.close)

    def _cancel_overdue(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
