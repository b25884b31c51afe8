"""A stack of gathers as it arrives: its npy header, then one gather after another, never more than one at a time."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

from numpy.lib import format as npy_format

from seisbind.model.errors import BodyTooSlow, MalformedUpload, UnsupportedFormat, UploadTooLarge
from seisbind.service.formats.npy import MAX_HEADER_BYTES, NPY_MAGIC, Limits, NpyHeader, read_npy_header

START_BYTES = MAX_HEADER_BYTES + 12  # the longest header that is read, and what goes before it


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
