"""Arrays from untrusted bytes: npy and npz, checked before anything is allocated, never unpickled.

``numpy.load`` is not used on uploads. It unpacks what an npz claims (1.5 MiB can become 1.5 GB), reads headers of any
length, and hands headers it cannot parse to a Python 2 tokenizer. Here the declared size must equal the bytes
present, and an npz is held to the cap while it unpacks.
"""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import MalformedUpload, UnsupportedDtype, UnsupportedFormat, UploadRefused, UploadTooLarge

Array = NDArray[Any]  # of a dtype in DTYPE: real, any byte order

NPZ = "application/x-npz"  # as a media type
NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK"
MAX_HEADER_BYTES = 1024  # numpy writes 118 for a gather; the header is parsed as a Python literal
MAX_AXES = 4
DTYPE = re.compile(r"([<>=|])(f[248]|[iu][1248])")

ZIP_END = b"PK\x05\x06"
ZIP_END_BYTES = 22  # without an archive comment, which numpy never writes
ZIP64_LOCATOR = b"PK\x06\x07"
MAX_MEMBERS = 8
LOOKED_AT = 1 << 16  # last bytes, for names in a directory that is too large
MAX_DIRECTORY_BYTES = 4096  # eight members with names of up to 100 characters need half of it
MEMBER_NAME = re.compile(r"([A-Za-z_][A-Za-z0-9_]{0,99})\.npy")
UNZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits of one upload.

    Attributes:
        unpacked_bytes: that its arrays may occupy, at most.
        items: gathers, or velocity models, in one stack, at most.
    """

    unpacked_bytes: int = 32 << 20
    items: int = 64


@dataclass(frozen=True, slots=True)
class NpyHeader:
    """The header of an npy file; its samples begin at byte ``start``, ``fortran``: the first axis fastest."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    start: int

    @property
    def count(self) -> int:
        """Samples."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of the samples."""
        return self.count * self.dtype.itemsize

    def check_length(self, length: int) -> None:
        """Raises MalformedUpload unless a file of ``length`` bytes holds exactly what its header states."""
        if self.start + self.bytes != length:
            raise MalformedUpload(
                f"The npy header states {self.shape} of {self.dtype}, which is {self.bytes} bytes; "
                f"{length - self.start} follow. The file is cut off or damaged."
            )


def check_array_size(samples: int, stored_bytes: int, limits: Limits) -> None:
    """Raises UploadTooLarge for an array of more than the limit as stored, or of more than twice that as float32."""
    if stored_bytes > limits.unpacked_bytes or samples * 4 > 2 * limits.unpacked_bytes:
        raise UploadTooLarge(f"An array of {samples} samples; the limit is {limits.unpacked_bytes} bytes.")


def read_arrays(body: bytes, *, limits: Limits) -> dict[str, Array]:
    """The named arrays of an npz, or the one of an npy under the name ``""``; told apart by their first bytes."""
    if body.startswith(NPY_MAGIC):
        return {"": read_npy(body, limits=limits)}
    if body.startswith(ZIP_MAGIC):
        return _read_npz(body, limits)
    if not body:
        raise MalformedUpload("The upload is empty (0 bytes); send an npy, npz or SEG-Y file.")
    raise UnsupportedFormat(
        f"The upload is neither npy nor npz (nor SEG-Y, SU or SEG-2, which are read as gathers): it starts with "
        f"{repr(body[:6])[1:]}. Write arrays with numpy.save or numpy.savez."
    )


def read_npy(body: bytes, *, limits: Limits) -> Array:
    """The array of an npy file (format 1.0 to 3.0), as a view of ``body``.

    Raises:
        MalformedUpload: a header that cannot be parsed, or that states another size than the bytes present.
        UnsupportedDtype: anything but 2, 4 or 8-byte floats and 1 to 8-byte integers.
        UploadTooLarge: more than ``limits.unpacked_bytes`` as stored, or more than twice that as float32.
    """
    header = read_npy_header(body)
    header.check_length(len(body))
    check_array_size(header.count, header.bytes, limits)
    array = np.frombuffer(body, dtype=header.dtype, offset=header.start)
    return array.reshape(header.shape, order="F" if header.fortran else "C")


def read_npy_header(body: bytes) -> NpyHeader:
    """The header of an npy file, from its first bytes.

    Raises:
        MalformedUpload, UnsupportedDtype: as `read_npy`.
    """
    header, start = _npy_header(body)
    try:
        fields_ = ast.literal_eval(header)
        descr, fortran, shape = fields_["descr"], fields_["fortran_order"], fields_["shape"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise MalformedUpload("The npy header is not the dictionary that numpy writes.") from error
    if not isinstance(descr, str) or not DTYPE.fullmatch(descr):
        raise UnsupportedDtype(
            f"The array has dtype {str(descr)[:60]!r}; real numbers are read: float16, float32, float64, or integers."
        )
    if (
        not isinstance(fortran, bool)
        or not isinstance(shape, tuple)
        or not all(type(n) is int and 0 <= n < 2**40 for n in shape)
    ):
        raise MalformedUpload("The npy header states no valid shape and order.")
    found = NpyHeader(np.dtype(descr), shape, fortran, start)
    if len(shape) > MAX_AXES or found.count == 0:
        raise MalformedUpload(f"An array of shape {shape} holds no gathers or velocity models.")
    return found


def npy(array: ArrayLike) -> bytes:
    """The bytes of an npy file, first axis slowest.

    Raises:
        UnsupportedDtype: an array of objects, as a list of lists of different lengths makes one.
    """
    stored = np.asarray(array, order="C")
    if stored.dtype.hasobject:
        raise UnsupportedDtype(f"An array of {stored.dtype} is not sent; make it one of float32.")
    buffer = io.BytesIO()
    np.save(buffer, stored, allow_pickle=False)
    return buffer.getvalue()


def npz(arrays: Mapping[str, ArrayLike]) -> bytes:
    """The bytes of an npz file, not compressed, the same at any time. Raises as `npy`, where ``numpy.savez`` would
    pickle.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), npy(array))  # dated 1980, not now
    return buffer.getvalue()


def _npy_header(body: bytes) -> tuple[str, int]:
    """The header's text and the offset of the first sample."""
    version = tuple(body[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise MalformedUpload(f"npy format {'.'.join(map(str, version))} is not known; numpy writes 1.0 to 3.0.")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(body[8 : 8 + width], "little")
    start = 8 + width + length
    if length > MAX_HEADER_BYTES:
        raise MalformedUpload(f"The npy header claims {length} bytes; at most {MAX_HEADER_BYTES} are read.")
    if start > len(body):
        raise MalformedUpload(f"The file ends within its npy header, after {len(body)} bytes.")
    return body[8 + width : start].decode("utf-8" if version == (3, 0) else "latin-1", errors="replace"), start


def _read_npz(body: bytes, limits: Limits) -> dict[str, Array]:
    _check_directory(body)
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = archive.infolist()
            names = [_member_name(member) for member in members]
            if len(set(names)) < len(names):
                raise MalformedUpload(f"The npz holds a name twice: {', '.join(names)}.")
            total = sum(member.file_size for member in members)
            if total > limits.unpacked_bytes:
                raise UploadTooLarge(f"The npz unpacks to {total} bytes; the limit is {limits.unpacked_bytes}.")
            for name, member in zip(names, members, strict=True):
                with archive.open(member) as packed:
                    content = packed.read(member.file_size)  # stops there whatever the stream holds
                    if packed.read(1):
                        raise MalformedUpload(f"{name!r} unpacks to more bytes than the npz states.")
                if not content.startswith(NPY_MAGIC):
                    raise MalformedUpload(f"{name!r} in the npz is not an npy file; archives in archives are not read.")
                arrays[name] = read_npy(content, limits=limits)
    except UploadRefused:
        raise
    except UNZIP_ERRORS as error:
        raise MalformedUpload(f"The npz cannot be unpacked: {error}.") from error
    return arrays


def _check_directory(body: bytes) -> None:
    """Bound the archive's directory before `zipfile` reads it whole: it believes the size, not the count."""
    end = body[-ZIP_END_BYTES:]
    if not end.startswith(ZIP_END) or end[-2:] != b"\0\0":
        raise MalformedUpload("The npz does not end with a zip directory; it is cut off, or has an archive comment.")
    if b"zarr.json" in body[-LOOKED_AT:]:
        raise UnsupportedFormat(
            "A zipped Zarr or MDIO store is not read: give its folder to seisbind or to the client."
        )
    members, size = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if ZIP64_LOCATOR in body[-ZIP_END_BYTES - 20 : -ZIP_END_BYTES]:
        raise UploadTooLarge("The npz has a zip64 directory, which only archives over 4 GB need.")
    if members > MAX_MEMBERS or size > MAX_DIRECTORY_BYTES:
        raise UploadTooLarge(f"The npz holds {members} members in a directory of {size} bytes; at most {MAX_MEMBERS}.")
    if members == 0:
        raise MalformedUpload("The npz holds no array.")


def _member_name(member: zipfile.ZipInfo) -> str:
    found = MEMBER_NAME.fullmatch(member.filename)
    if found is None:
        raise MalformedUpload(
            f"The npz holds {member.filename[:60]!r}; names are one word and .npy, without folders, as numpy.savez "
            "writes them."
        )
    if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise MalformedUpload(f"{member.filename!r} is encrypted or packed in a way that numpy.savez does not use.")
    return found[1]
