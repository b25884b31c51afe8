"""Answers of many lines of JSON: POST /v1/retrieve/stream and POST /v1/section.

Of a stack of any length each gather has its line, in constant memory; reading and answering are independent of each
other, since many clients read nothing before they have sent everything. Of a section the lines are its progress.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from seisbind.index import Filter
from seisbind.model.errors import InvalidSurvey, NotReady, SeisBindError, UnsupportedFormat
from seisbind.model.scale import UNSCALED, AutoScale, Scale, parse_scale
from seisbind.service.engine.bodies import gallery_body, retrieval_body, weights_body
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import Query, check_distinct
from seisbind.service.engine.section import SectionPlan, plan_section
from seisbind.service.formats.line_file import MAX_TRACES, read_line
from seisbind.service.formats.npy import Limits
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.http import openapi
from seisbind.service.http.forms import (
    MULTIPART,
    STREAM_TYPES,
    allowed_top_k,
    content_type,
    limits_of,
    parse_fields,
    parse_filter,
    query_fields,
    read_file,
    unless_left,
    until_left,
)
from seisbind.service.http.parameters import parse_geometry, parse_include
from seisbind.service.http.routing import PIECE_BYTES, Admitted, serving_of
from seisbind.service.runtime.npy_stream import FormStream, Stack
from seisbind.service.runtime.sections import check_windows, section_lines
from seisbind.service.runtime.serving import Serving
from seisbind.service.schemas import BULK_PARTS, RetrieveFields, StreamAnswer
from seisbind.service.section_schemas import SectionFields
from seisbind.service.transport.access import Need, Policy
from seisbind.service.transport.problems import broken, refused

log = logging.getLogger(__name__)

IN_FLIGHT = 16  # gathers of one stream that are prepared, encoded or written: a good batch, 6 MB
UNPREPARED = 2  # of them as they were sent, one of which is arriving


class Streamed(APIRoute):
    """A call that is received, worked on and answered at once. It holds a place among the streams until it ends."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        with serving_of(Request(scope)).streams.hold(scope["state"]["body"]):
            await super().handle(scope, receive, send)


router = APIRouter(route_class=Streamed, responses=openapi.PROBLEMS)
sections = APIRouter(route_class=Admitted, responses=openapi.PROBLEMS)


@dataclass(frozen=True, slots=True)
class RetrieveOptions:
    """What a stream asks of each of its gathers."""

    geometry: Geometry
    top_k: int
    filter: Filter | None
    include: Sequence[str]
    scale: Scale | AutoScale | None
    distinct: float | None


@router.post(
    "/v1/retrieve/stream",
    tags=["search"],
    response_class=Response,
    responses=openapi.lines(),
    openapi_extra=openapi.stream(RetrieveFields),
)
@Policy(need=Need.READ, streamed=True)
async def retrieve_stream(request: Request) -> Response:
    """Velocity models and physics for a stack of any number of gathers, answered while it is sent.

    Send an npy `(gather, shot, time, receiver)`. Each line of the answer is a JSON object with the `index` of a gather,
    in order: its `result` as in POST /v1/retrieve, or its `error`, after which the rest goes on.
    """
    serving = serving_of(request)
    serving.batches.check()
    fields, chunks, declared = await _opened(request, serving)
    asked = parse_fields(RetrieveFields, fields)
    options = RetrieveOptions(
        parse_geometry(asked),
        allowed_top_k(asked.top_k, serving),
        parse_filter(asked.filter),
        parse_include(asked.include, BULK_PARTS),
        parse_scale(asked.scale, asked.target_depth_m),
        asked.distinct,
    )
    check_distinct(options.distinct)
    deadline_s = serving.settings.body_deadline_s
    stack = await Stack.begin(chunks, limits=gather_limits(serving), deadline_s=deadline_s, declared=declared)
    answer = StreamedAnswer(request, serving, stack, options)
    await answer.begin()
    return answer


async def _opened(request: Request, serving: Serving) -> tuple[dict[str, str], AsyncIterator[bytes], int | None]:
    """The fields of a request, the bytes of its file as they arrive, and how many they are, where that is known."""
    kind, fields = content_type(request), query_fields(request)
    if kind == MULTIPART:
        form = FormStream(request.headers["content-type"], request.stream())
        await form.begin(deadline_s=serving.settings.body_deadline_s)
        return fields | form.fields, form.chunks(), None
    if kind not in STREAM_TYPES:
        raise UnsupportedFormat(
            f"The body has the content type {kind or 'none'!r}. Send the bytes of an npy file as "
            "application/octet-stream (curl -X POST -H 'Content-Type: application/octet-stream' -T stack.npy), or as "
            "'file', the last part of a multipart form."
        )
    declared = request.headers.get("content-length", "")
    return fields, request.stream(), int(declared) if declared.isdigit() else None


def gather_limits(serving: Serving) -> Limits:
    """What one gather of a stream may be."""
    return Limits(unpacked_bytes=serving.settings.max_body_bytes, items=1)


class Outbox:
    """Lines that wait for the client: one of any size, or several of at most ``max_bytes`` together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lines: deque[bytes | None] = deque()
        self._changed = asyncio.Condition()

    async def put(self, line: bytes | None) -> None:
        """Add ``line``, once there is room for it; None is the end."""
        size = len(line or b"")
        async with self._changed:
            await self._changed.wait_for(lambda: not self._lines or self._bytes + size <= self._max_bytes)
            self._lines.append(line)
            self._bytes += size
            self._changed.notify_all()

    async def get(self) -> bytes | None:
        """The oldest line, once there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._lines))
            line = self._lines.popleft()
            self._bytes -= len(line or b"")
            self._changed.notify_all()
            return line


class StreamedAnswer(Response):
    """The answer to a stack that is still arriving.

    Three tasks on the event loop: one reads gathers and starts a task for each, at most `IN_FLIGHT` ahead of the
    second, which puts their lines in order into the outbox, from which the third sends. Each stops while the next has
    no room, and the client's connection with the first. They end together; when the client leaves, its gathers leave
    the batch.

    Args:
        stack: of which only the header has been read.
    """

    def __init__(self, request: Request, serving: Serving, stack: Stack, options: RetrieveOptions) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": openapi.NDJSON})
        self._request = request
        self._scope = request.scope
        self._serving = serving
        self._stack = stack
        self._options = options
        self._limits = gather_limits(serving)
        self._unprepared = asyncio.Semaphore(UNPREPARED)
        self._ordered: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue(IN_FLIGHT)
        self._outbox = Outbox(serving.settings.stream_buffer_bytes)
        self._first: Query | SeisBindError

    async def begin(self) -> None:
        """Read and prepare the first gather: what is wrong with its survey is wrong with that of all.

        Raises:
            InvalidSurvey: it cannot be used.
            MalformedUpload, BodyTooSlow: see `Stack.next`.
        """
        body = await self._stack.next()
        try:
            self._first = await self._prepared(body)
        except InvalidSurvey:
            raise
        except SeisBindError as error:
            self._first = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines. Nothing is raised: the answer has begun."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(group))
                group.create_task(self._order())
                await self._send(send)
                reading.cancel()
        except* ClientDisconnect:
            pass

    async def _read(self, group: asyncio.TaskGroup) -> None:
        stopping = group.create_task(self._serving.stopping.wait())
        await self._ordered.put(group.create_task(self._line(0, self._first)))
        index = 1
        try:
            while index < self._stack.count:
                await self._unprepared.acquire()
                body = await self._next(index, stopping)
                await self._ordered.put(group.create_task(self._line(index, body)))
                index += 1
            await self._stack.end()
        except SeisBindError as error:  # of the stack, not of a gather: nothing can be read after it
            last: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            last.set_result(self._error_line(index, refused(self._scope, error)))
            await self._ordered.put(last)
        await self._ordered.put(None)
        stopping.cancel()
        await until_left(self._request)
        raise ClientDisconnect

    async def _next(self, index: int, stopping: asyncio.Task[bool]) -> bytes:
        reading = asyncio.ensure_future(self._stack.next())
        try:
            await asyncio.wait({reading, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                raise NotReady(f"The server is shutting down. Send the gathers from {index} on again, to another one.")
            return reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _order(self) -> None:
        while (line := await self._ordered.get()) is not None:
            await self._outbox.put(await line)
        await self._outbox.put(None)

    async def _send(self, send: Send) -> None:
        line: bytes | None = b""
        while line is not None:
            line = await self._outbox.get()
            await send({"type": "http.response.body", "body": line or b"", "more_body": line is not None})

    async def _line(self, index: int, gather: bytes | Query | SeisBindError) -> bytes:
        """The answer for one gather, or what is wrong with it."""
        try:
            if isinstance(gather, bytes):
                try:
                    gather = await self._prepared(gather)
                finally:
                    self._unprepared.release()
            if isinstance(gather, SeisBindError):
                raise gather
            answered = await self._serving.batches.answer(gather, patient=True)
            self._serving.metrics.observe_stages(answered.timings_ms)
            state = self._scope["state"]
            state["gathers"] = state.get("gathers", 0) + 1

            def write(engine: Engine) -> bytes:
                line = StreamAnswer(
                    index=index,
                    weights=weights_body(engine.embedder.weights),
                    gallery=gallery_body(answered.gallery),
                    result=retrieval_body(answered.retrievals[0], self._options.include, engine.frame),
                )
                return line.model_dump_json().encode() + b"\n"

            return await self._serving.on_file(write)
        except SeisBindError as error:
            return self._error_line(index, refused(self._scope, error))
        except Exception:
            log.exception("%s: gather %d", self._scope["path"], index)
            return self._error_line(index, broken(self._scope))

    async def _prepared(self, body: bytes) -> Query:
        options = self._options

        def read(engine: Engine) -> Query:
            upload = read_gathers(
                body, geometry=options.geometry, limits=self._limits, frame=engine.frame, scale=options.scale
            )
            return Query.prepare(
                upload.gathers,
                upload.survey,
                frame=engine.frame,
                top_k=options.top_k,
                filter=options.filter,
                notes=upload.notes,
                scale=upload.chosen,
                distinct=options.distinct,
            )

        with self._serving.batches.coming():
            return await self._serving.on_reader(read)

    @staticmethod
    def _error_line(index: int, problem: Response) -> bytes:
        return b'{"index":%d,"error":%b}\n' % (index, bytes(problem.body))


@sections.post(
    "/v1/section",
    tags=["search"],
    response_class=Response,
    responses=openapi.section_lines(),
    openapi_extra=openapi.upload(SectionFields, openapi.SECTION_EXAMPLES),
)
@Policy(need=Need.READ)
async def section(request: Request) -> Response:
    """A long line as one velocity section.

    Send SEG-Y, SU, SEG-2, or an npz with `traces` `(trace, time)`, `source_x_m`, `receiver_x_m` and `dt_s`. The
    answer has a line of JSON for each few windows that were read, then one with the `section`, or with an `error`.
    """
    serving = serving_of(request)
    sent = await read_file(request)
    fields = parse_fields(SectionFields, sent.fields)
    scale = parse_scale(fields.scale, fields.target_depth_m) or UNSCALED

    def planned(engine: Engine) -> SectionPlan:
        line = read_line(sent.content, limits=replace(limits_of(serving), items=MAX_TRACES))
        plan = plan_section(line, frame=engine.frame, scale=scale, step_m=fields.step_m)
        return check_windows(plan, serving.settings.max_windows)

    return SectionLines(serving, await unless_left(request, serving.on_reader(planned)))


class SectionLines(Response):
    """The lines of a section, sent as they are made. When the client leaves, nothing more is read."""

    def __init__(self, serving: Serving, plan: SectionPlan) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": openapi.NDJSON})
        self._serving = serving
        self._plan = plan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines. Nothing is raised: the answer has begun."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

        async def answer() -> None:
            try:
                async with aclosing(section_lines(self._serving, self._plan)) as lines:
                    async for line in lines:
                        await self._piecewise(line, send)
            except SeisBindError as error:
                await self._piecewise(b'{"error":%b}\n' % bytes(refused(scope, error).body), send)
            except Exception:
                log.exception("%s", scope["path"])
                await self._piecewise(b'{"error":%b}\n' % bytes(broken(scope).body), send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        with suppress(ClientDisconnect):
            await unless_left(Request(scope, receive), answer())

    @staticmethod
    async def _piecewise(line: bytes, send: Send) -> None:
        for start in range(0, len(line), PIECE_BYTES):
            await send({"type": "http.response.body", "body": line[start : start + PIECE_BYTES], "more_body": True})
