"""What a request carries: an uploaded file and the fields beside it, from a multipart form or a raw body."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from seisbind.index import Filter
from seisbind.model.errors import MalformedUpload, UnsupportedFormat
from seisbind.service.fields import parse_json

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
MAX_FORM_FIELDS = 16
MAX_FIELD_BYTES = 32_768  # 1024 receiver positions with 30 characters each


class _FormInMemory(MultiPartParser):
    """Keeps files in memory: a body is bounded already, and the disk may be read-only."""

    spool_max_size = 1 << 40


@dataclass(frozen=True, slots=True)
class Sent:
    """``content``: the file's bytes; ``fields``: query parameters and form fields, the latter first."""

    content: bytes
    fields: dict[str, str]


async def read_file(request: Request) -> Sent:
    """The uploaded file of a request, whole, and its fields.

    Raises:
        UnsupportedFormat: a content type that is not read.
        MalformedUpload: a form without exactly one ``file``, or that cannot be parsed.
        UploadTooLarge, BodyTooSlow, Overloaded: see `bounds.BodyBounds`.
    """
    kind = content_type(request)
    fields = dict(request.query_params)
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
            request.stream(),
            max_files=1,
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
        return Sent(await file.read(), fields)
    finally:
        await form.close()


def content_type(request: Request) -> str:
    """The media type of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def unless_left(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, unless the client leaves first: then it is cancelled. The body has been read.

    Raises:
        ClientDisconnect: the client has left.
    """

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, left = asyncio.create_task(work), asyncio.create_task(leaving())
    try:
        await asyncio.wait({working, left}, return_when=asyncio.FIRST_COMPLETED)
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
        RequestValidationError: an unknown name or a value of the wrong kind.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise RequestValidationError(error.errors(include_url=False, include_input=False)) from error


def parse_filter(text: str | None) -> Filter | None:
    """See `seisbind.index.Filter.parse`."""
    return None if text is None else Filter.parse(parse_json(text, "The filter"))
