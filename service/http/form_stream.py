"""A multipart form whose file is read while it arrives: the fields first, then the file, which is the last part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from seisbind.model.errors import BodyTooSlow, MalformedUpload
from seisbind.service.http.forms import MAX_FIELD_BYTES, MAX_FORM_FIELDS

MAX_FORM_BYTES = 2 * MAX_FORM_FIELDS * MAX_FIELD_BYTES  # before the file, headers and boundaries included


class FormStream:
    """A form's ``fields``, complete after `begin`, and the `chunks` of the file after them.

    One task at a time may read. The parser calls the ``_on`` methods, from `_fed` alone.
    """

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not boundary:
            raise MalformedUpload("The multipart form cannot be read: its content type has no boundary.")
        self.fields: dict[str, str] = {}
        self._body = body
        self._file = bytearray()
        self._in_file = self._complete = False
        self._field: str | None = None  # of the part that is being read; None for a file
        self._value = bytearray()
        self._header_name, self._header_value, self._disposition = bytearray(), bytearray(), b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._on_part,
                    "on_header_field": lambda read, start, end: self._header_name.extend(read[start:end]),
                    "on_header_value": lambda read, start, end: self._header_value.extend(read[start:end]),
                    "on_header_end": self._on_header,
                    "on_headers_finished": self._on_headers,
                    "on_part_data": self._on_content,
                    "on_part_end": self._on_part_end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MalformedUpload(f"The multipart form cannot be read: {error}.") from error

    async def begin(self, *, deadline_s: float) -> None:
        """Read the fields.

        Raises:
            MalformedUpload: no file follows them, or the form cannot be parsed or is too large.
            BodyTooSlow: the file did not begin in time.
        """
        received = 0
        try:
            async with asyncio.timeout(deadline_s):
                async for chunk in self._body:
                    received += len(chunk)
                    fault = self._fed(chunk)
                    if fault is not None:
                        raise fault
                    if self._in_file or self._complete:
                        break
                    if received > MAX_FORM_BYTES:
                        raise MalformedUpload(f"The form holds {received} bytes before its file; fields are small.")
        except TimeoutError as error:
            raise BodyTooSlow(f"{received} bytes of the form arrived in {deadline_s:g} s, and no file.") from error
        if not self._in_file:
            raise MalformedUpload("The form has no file called 'file'.")

    async def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes.

        Raises:
            MalformedUpload: the form is cut off, or something follows the file.
        """
        yield self._taken()
        async for chunk in self._body:
            fault = self._fed(chunk)
            if self._file:
                yield self._taken()  # what is wrong comes after it
            if fault is not None:
                raise fault
        if not self._complete:
            raise MalformedUpload("The form ends within its file.")

    def _taken(self) -> bytes:
        file, self._file = bytes(self._file), bytearray()
        return file

    def _fed(self, chunk: bytes) -> MalformedUpload | None:
        """Parse ``chunk``; what was found to be wrong, if anything."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            return MalformedUpload(f"The multipart form cannot be read: {error}.")
        except MalformedUpload as error:
            return error
        return None

    def _on_part(self) -> None:
        if self._in_file:
            raise MalformedUpload(
                "A part follows the form's file. The answers begin with it: put the fields before it."
            )
        self._disposition, self._value = b"", bytearray()

    def _on_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _on_headers(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", errors="replace")
        if b"filename" in options:
            if name != "file":
                raise MalformedUpload(f"The form's file is called {name[:60]!r}; call it 'file'.")
            self._in_file, self._field = True, None
            return
        if len(self.fields) >= MAX_FORM_FIELDS:
            raise MalformedUpload(f"The form has more than {MAX_FORM_FIELDS} fields.")
        self._field = name

    def _on_content(self, read: bytes, start: int, end: int) -> None:
        if self._field is None:
            self._file += read[start:end]
        elif len(self._value) + end - start > MAX_FIELD_BYTES:
            raise MalformedUpload(f"The field {self._field[:60]!r} has more than {MAX_FIELD_BYTES} bytes.")
        else:
            self._value += read[start:end]

    def _on_part_end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._value.decode("utf-8", errors="replace")

    def _on_end(self) -> None:
        self._complete = True
