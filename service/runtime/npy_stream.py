"""A stack of gathers as it arrives, raw or as the last part of a form: its npy header, then one gather at a time."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

from numpy.lib import format as npy_format
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from seisbind.model.errors import BodyTooSlow, MalformedUpload, UnsupportedFormat, UploadTooLarge
from seisbind.service.formats.npy import MAX_HEADER_BYTES, NPY_MAGIC, Limits, NpyHeader, read_npy_header

MAX_FORM_FIELDS = 16
MAX_FIELD_BYTES = 32_768  # 1024 receiver positions with 30 characters each
START_BYTES = MAX_HEADER_BYTES + 12  # the longest header that is read, and what precedes it
MAX_FORM_BYTES = 2 * MAX_FORM_FIELDS * MAX_FIELD_BYTES  # before the file, headers and boundaries included


class Stack:
    """The gathers of an npy file ``(gather, shot, time, receiver)``, each as an npy file of its own.

    They are read as any upload is; here only their size is known. Make one with `Stack.begin`, then call `next` up to
    ``count`` times, then `end`. One task at a time may read.
    """

    def __init__(self, chunks: AsyncIterator[bytes], header: NpyHeader, read: bytes, *, deadline_s: float) -> None:
        shape = header.shape if len(header.shape) == 4 else (1, *header.shape)
        self.count = shape[0]
        self._gather_bytes = header.bytes // self.count
        self._chunks = chunks
        self._rest = read[header.start :]
        self._deadline_s = deadline_s
        self._read = 0
        text = io.BytesIO()
        npy_format.write_array_header_1_0(text, {"descr": header.dtype.str, "fortran_order": False, "shape": shape[1:]})
        self._header = text.getvalue()

    @classmethod
    async def begin(
        cls, chunks: AsyncIterator[bytes], *, limits: Limits, deadline_s: float, declared: int | None = None
    ) -> Stack:
        """Read the header.

        Args:
            chunks: the file's bytes as they arrive.
            limits: ``unpacked_bytes`` bounds each gather; the stack may have any number.
            deadline_s: for the header, and then for each gather.
            declared: bytes that the file has, where that is known.

        Raises:
            UnsupportedFormat: no npy file.
            MalformedUpload: not a stack of gathers, first axis slowest; or not as long as declared.
            UnsupportedDtype, UploadTooLarge: see `npy.read_npy`; of one gather.
            BodyTooSlow: it did not arrive in time.
        """
        start = b""
        try:
            async with asyncio.timeout(deadline_s):
                while len(start) < START_BYTES and (chunk := await anext(chunks, None)) is not None:
                    start += chunk
        except TimeoutError as error:
            raise BodyTooSlow(f"{len(start)} bytes of the stack's header arrived in {deadline_s:g} s.") from error
        if not start.startswith(NPY_MAGIC):
            raise UnsupportedFormat(
                f"The stream starts with {start[:6]!r}: no npy file, the only kind that is cut into gathers as it "
                "arrives. Write it with numpy.save, or send it to POST /v1/retrieve."
            )
        header = read_npy_header(start)
        if len(header.shape) not in (3, 4):
            raise MalformedUpload(f"A stack has the axes (gather, shot, time, receiver); got shape {header.shape}.")
        if header.fortran and len(header.shape) == 4:
            raise MalformedUpload(
                "The stack is stored with its first axis fastest, so that no gather is complete before the end. Write "
                "numpy.ascontiguousarray(stack)."
            )
        one = header.count // (header.shape[0] if len(header.shape) == 4 else 1)
        if one * header.dtype.itemsize > limits.unpacked_bytes or one * 4 > 2 * limits.unpacked_bytes:
            raise UploadTooLarge(f"Gathers of {one} samples each; the limit is {limits.unpacked_bytes} bytes a gather.")
        if declared is not None and declared != header.start + header.bytes:
            raise MalformedUpload(
                f"The npy header states {header.shape} of {header.dtype}, which is {header.bytes} bytes; "
                f"{declared - header.start} follow. The file is cut off or damaged."
            )
        return cls(chunks, header, start, deadline_s=deadline_s)

    async def next(self) -> bytes:
        """The next gather, as an npy file.

        Raises:
            BodyTooSlow: it did not arrive in time.
            MalformedUpload: the stack ends before it.
        """
        gather = bytearray(self._header)
        whole = len(gather) + self._gather_bytes
        try:
            async with asyncio.timeout(self._deadline_s):
                while len(gather) < whole and (chunk := await self._more()):
                    wanted = whole - len(gather)
                    gather += chunk[:wanted]
                    self._rest = chunk[wanted:]
        except TimeoutError as error:
            raise BodyTooSlow(
                f"{len(gather) - len(self._header)} of the {self._gather_bytes} bytes of gather {self._read} arrived "
                f"in {self._deadline_s:g} s. Send faster, or what is left in another request."
            ) from error
        if len(gather) < whole:
            raise MalformedUpload(
                f"The stream ends after {self._read} of {self.count} gathers and "
                f"{len(gather) - len(self._header)} bytes. The file was cut off."
            )
        self._read += 1
        return bytes(gather)

    async def end(self) -> None:
        """Wait for the end of the file.

        Raises:
            MalformedUpload: there is more than the header states.
            BodyTooSlow: it did not come.
        """
        try:
            async with asyncio.timeout(self._deadline_s):
                more = await self._more()
        except TimeoutError as error:
            raise BodyTooSlow(f"All {self.count} gathers arrived, but no end in {self._deadline_s:g} s.") from error
        if more:
            raise MalformedUpload(f"More bytes follow the {self.count} gathers that the npy header states.")

    async def _more(self) -> bytes:
        """What was read and not used yet, or the next bytes; none at the end."""
        chunk, self._rest = self._rest, b""
        while not chunk:
            following = await anext(self._chunks, None)
            if following is None:
                return b""
            chunk = following
        return chunk


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
        self._in_file = self._complete = False
        self._field = ""  # the part that is being read, where it is no file
        self._content = bytearray()  # of that part; of the file what has not been handed out
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
        fault = None
        while True:
            yield bytes(self._content)  # before what is wrong with the bytes after it
            self._content.clear()
            if fault is not None:
                raise fault
            if (chunk := await anext(self._body, None)) is None:
                break
            fault = self._fed(chunk)
        if not self._complete:
            raise MalformedUpload("The form ends within its file.")

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
        self._disposition, self._content = b"", bytearray()

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
            self._in_file = True
            return
        if len(self.fields) >= MAX_FORM_FIELDS:
            raise MalformedUpload(f"The form has more than {MAX_FORM_FIELDS} fields.")
        self._field = name

    def _on_content(self, read: bytes, start: int, end: int) -> None:
        self._content += read[start:end]
        if not self._in_file and len(self._content) > MAX_FIELD_BYTES:
            raise MalformedUpload(f"The field {self._field[:60]!r} has more than {MAX_FIELD_BYTES} bytes.")

    def _on_part_end(self) -> None:
        if not self._in_file:
            self.fields[self._field] = self._content.decode("utf-8", errors="replace")

    def _on_end(self) -> None:
        self._complete = True
