"""What a request carries: an uploaded file and the fields beside it, from a multipart form or a raw body."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from seisbind.index import Filter
from seisbind.index.gallery import MAX_K
from seisbind.model.errors import DeadlinePassed, InvalidQuery, MalformedUpload, UnsupportedFormat
from seisbind.model.ground.descriptors import check_names
from seisbind.service.formats.npy import Limits
from seisbind.service.http.parameters import parse_json
from seisbind.service.runtime.npy_stream import MAX_FIELD_BYTES, MAX_FORM_FIELDS
from seisbind.service.runtime.serving import Serving
from seisbind.service.schemas import DescriptorSearch

T = TypeVar("T")
FieldsT = TypeVar("FieldsT", bound=BaseModel)

RAW_TYPES = (
    "application/octet-stream",
    "application/x-npy",
    "application/x-npz",
    "application/zip",
    "application/vnd.seg-y",
    "application/x-segy",
)  # the content decides what it is
STREAM_TYPES = ("application/octet-stream", "application/x-npy")
MULTIPART = "multipart/form-data"
MAX_JSON_BYTES = 65_536  # a search by all descriptors with a filter of 500 names has some 16,000; read in 25 ms at most
JSON_TOO_LARGE = (
    "The body of JSON has {size} bytes or more; the limit is {limit}. A search by descriptors takes 13 numbers and a "
    "filter of 500 names at most."
)
MAX_UNKNOWN = 20  # names of fields that do not exist which a refusal lists
MAX_QUERY_FIELDS = 100
MAX_CONTENT_TYPE = 1000  # characters; that of a form has its boundary, of at most 256
DEADLINE = "SeisBind-Deadline-Ms"  # how long the caller waits, from when the request arrived
MILLISECONDS = re.compile(r"[1-9][0-9]{0,7}")
PARSED_BYTES = 65_536  # of a form at a time: 20 ms where all of it looks like the beginnings of boundaries


class _FormInMemory(MultiPartParser):
    """Keeps files in memory: a body is bounded already, and the disk may be read-only."""

    spool_max_size = 1 << 40


@dataclass(frozen=True, slots=True)
class Sent:
    """``content``: the file's bytes; ``fields``: query parameters and form fields, the latter first; ``beside``: those
    of a second file, where the call takes one and it was sent."""

    content: bytes
    fields: dict[str, str]
    beside: bytes | None = None


async def read_file(request: Request, *, beside: str | None = None) -> Sent:
    """The uploaded file of a request, whole, and its fields. ``beside``: name of a second file that a form may have.

    Raises:
        UnsupportedFormat: a content type that is not read.
        MalformedUpload: a form without exactly one ``file``, or that cannot be parsed.
        UploadTooLarge, BodyTooSlow, Overloaded: see `RequestBody.receive`.
    """
    kind = content_type(request)
    fields = query_fields(request)
    if kind in RAW_TYPES:
        return Sent(await request.body(), fields)
    if kind != MULTIPART:
        raise UnsupportedFormat(
            f"The body has the content type {kind or 'none'!r}. Send the bytes of an npy, npz or SEG-Y file as "
            "application/octet-stream (curl -H 'Content-Type: application/octet-stream' --data-binary @gather.npy), or "
            "as 'file' of a multipart form (curl -F file=@gather.npy)."
        )
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8")
    if charset.lower() not in (b"utf-8", b"utf8"):  # Python knows 100 more, and some of them raise what they like
        raise UnsupportedFormat(f"The form's text is in {charset[:30].decode('latin-1')!r}; only UTF-8 is read.")
    try:
        form = await _FormInMemory(
            request.headers,
            _pieces(request.stream()),
            max_files=1 if beside is None else 2,
            max_fields=MAX_FORM_FIELDS,
            max_part_size=MAX_FIELD_BYTES,
        ).parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise MalformedUpload(f"The multipart form cannot be read: {getattr(error, 'message', error)}") from error
    try:
        fields |= {name: value for name, value in form.multi_items() if isinstance(value, str)}
        file = form.get("file")
        if not isinstance(file, UploadFile):
            found = ", ".join(name[:60] for name in form) or "nothing"
            raise MalformedUpload(f"The form has no file called 'file'; it holds {found}.")
        second = None if beside is None else form.get(beside)
        return Sent(await file.read(), fields, await second.read() if isinstance(second, UploadFile) else None)
    finally:
        await form.close()


async def _pieces(chunks: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """``chunks``, none of them so large that parsing it would keep the event loop for long."""
    async for chunk in chunks:
        yield chunk[:PARSED_BYTES]
        for start in range(PARSED_BYTES, len(chunk), PARSED_BYTES):
            await asyncio.sleep(0)
            yield chunk[start : start + PARSED_BYTES]


async def read_json(request: Request) -> bytes:
    """The body of a request that is JSON, whole.

    Raises:
        UploadTooLarge: it declares more than `MAX_JSON_BYTES`, and is not read; or it sends more.
        BodyTooSlow, Overloaded: see `RequestBody.receive`.
    """
    request.state.body.limit_bytes(MAX_JSON_BYTES, JSON_TOO_LARGE)
    return await request.body()


def parse_search(body: bytes) -> DescriptorSearch:
    """A search by descriptors.

    Raises:
        InvalidQuery: not a JSON object, or a descriptor that there is not.
        RequestValidationError: see `parse_fields`.
    """
    asked = parse_json(body, "The body")
    if isinstance(given := asked.get("descriptors"), dict):
        check_names(given)  # before thousands of them are each found to be no number
    return parse_fields(DescriptorSearch, asked)


def query_fields(request: Request) -> dict[str, str]:
    """The fields in the query of a request.

    Raises:
        RequestValidationError: more than any call takes, which are not looked at.
    """
    count = request.scope["query_string"].count(b"&") + 1
    if count > MAX_QUERY_FIELDS:
        raise RequestValidationError([{"loc": ("query",), "msg": f"{count} fields; a call takes {MAX_QUERY_FIELDS}"}])
    return dict(request.query_params)


def content_type(request: Request) -> str:
    """The media type of the body, without its parameters.

    Raises:
        UnsupportedFormat: it is longer than any.
    """
    stated = request.headers.get("content-type", "")
    if len(stated) > MAX_CONTENT_TYPE:
        raise UnsupportedFormat(f"The content type has {len(stated)} characters; at most {MAX_CONTENT_TYPE} are read.")
    return stated.partition(";")[0].strip().lower()


async def until_left(request: Request) -> None:
    """Wait for the client to leave. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def within_deadline(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """As `unless_left`, and no longer than the caller waits (`DEADLINE`): gathers that wait then leave the queue.

    Raises:
        InvalidQuery: the header is no number of milliseconds.
        DeadlinePassed: it was over before the work was.
        ClientDisconnect: the client has left.
    """
    try:
        wait_s = _deadline_s(request)
    except InvalidQuery:
        work.close()
        raise
    left_s = None if wait_s is None else wait_s - (time.perf_counter() - request.state.arrived)
    return await unless_left(request, work, left_s=left_s)


def _deadline_s(request: Request) -> float | None:
    sent = request.headers.get(DEADLINE)
    if sent is None:
        return None
    if not MILLISECONDS.fullmatch(sent):
        raise InvalidQuery(f"{DEADLINE} is a whole number of milliseconds, 1 to 99999999; got {sent!r:.100}.")
    return int(sent) / 1e3


async def unless_left(request: Request, work: Coroutine[Any, Any, T], *, left_s: float | None = None) -> T:
    """What ``work`` returns, unless the client leaves first: then it is cancelled. The body has been read.

    Args:
        left_s: time that is left for it, seconds.

    Raises:
        ClientDisconnect: the client has left.
        DeadlinePassed: it was over first.
    """

    working, left = asyncio.create_task(work), asyncio.create_task(until_left(request))
    try:
        timeout = None if left_s is None else max(0.0, left_s)
        done, _ = await asyncio.wait({working, left}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise DeadlinePassed(
                f"Not answered within the {request.headers[DEADLINE]} ms that {DEADLINE} gave; what was left was not "
                "begun. Ask again with more, or later."
            )
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        left.cancel()
        await asyncio.gather(working, left, return_exceptions=True)


def parse_fields(model: type[FieldsT], fields: dict[str, Any]) -> FieldsT:
    """``fields`` as ``model``.

    Raises:
        RequestValidationError: an unknown name or a value of the wrong kind. Of unknown names it has the first.
    """
    unknown = [name for name in fields if name not in model.model_fields]
    left_out = frozenset(unknown[MAX_UNKNOWN:])
    if left_out:
        fields = {name: value for name, value in fields.items() if name not in left_out}
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        found: list[Any] = error.errors(include_url=False, include_input=False)
        if left_out:
            found.append({"loc": (f"{len(left_out)} more",), "msg": "Extra inputs are not permitted"})
        raise RequestValidationError(found) from error


def parse_filter(text: str | None) -> Filter | None:
    """See `seisbind.index.Filter.parse`."""
    return None if text is None else Filter.parse(parse_json(text, "The filter"))


def allowed_top_k(top_k: int, serving: Serving) -> int:
    """``top_k``, if this server gives so many. Raises InvalidQuery."""
    limit = serving.settings.max_top_k
    if top_k > limit:
        raise InvalidQuery(
            f"top_k is {top_k}; this server gives at most {limit} matches (SEISBIND_MAX_TOP_K; a gallery without a "
            f"server gives {MAX_K})."
        )
    return top_k


def limits_of(serving: Serving) -> Limits:
    """What an upload may be."""
    return Limits(unpacked_bytes=serving.settings.max_body_bytes, items=serving.settings.max_gathers)
