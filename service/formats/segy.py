"""The layout of SEG-Y and Seismic Unix (SU) files: headers and samples as views of the bytes, checked against them.

Nothing that is read is copied. Native libraries read from a path and trust the file's headers; here every count is
checked against the bytes present before an array is made. Byte numbers in messages and comments count
from 1, as the standard does (SEG-Y revision 1, 2002; SU's trace header is SEG-Y's, without file headers).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidVelocityModel, MalformedUpload, UnsupportedFormat
from seisbind.model.survey.notes import Note
from seisbind.service.formats.segy_samples import CODINGS, UNREAD, Coding, Words, coding_of

Order = Literal["big", "little"]
Body = bytes | mmap.mmap  # of a file, or a map of one that does not fit in memory
Headers = NDArray[Any]  # structured, one for each trace, with the names of FIELDS

TEXT_BYTES = 3200
FILE_HEADER_BYTES = 3600
TRACE_HEADER_BYTES = 240
CARD = 80  # the textual header is 40 cards that begin with C
EBCDIC_CARD = (b"\xc3\x40", b"\xc3\xf0", b"\xc3\xf1")  # "C ", "C0", "C1"
ASCII_C = 0x43
MAX_EXTENDED_HEADERS = 64
MAX_CM_M = 2e7  # positions that 32-bit centimetres hold
BLOCK_BYTES = 64 << 20  # of a mapped file that are looked at before they are let go of
SIGN: dict[Order, str] = {"big": ">", "little": "<"}

# name: (first byte, type); SEG-Y revision 1, section 6
FIELDS = {
    "record": (9, "i4"),
    "channel": (13, "i4"),
    "kind": (29, "i2"),
    "offset": (37, "i4"),
    "scalco": (71, "i2"),
    "source_x": (73, "i4"),
    "source_y": (77, "i4"),
    "group_x": (81, "i4"),
    "group_y": (85, "i4"),
    "coordinate_units": (89, "i2"),
    "delay_ms": (109, "i2"),
    "samples": (115, "u2"),
    "dt_us": (117, "u2"),
    "time_scalar": (215, "i2"),
}

# the same, of the velocity models that are written
STEPS = ((1000, "MILLIMETRES"), (100, "CENTIMETRES"), (1, "METRES"))  # of cells of a velocity model, in 16 bits
VELOCITY_FIELDS = {
    "line_trace": (1, "i4"),
    "file_trace": (5, "i4"),
    "cdp": (21, "i4"),
    "kind": (29, "i2"),
    "scalco": (71, "i2"),
    "source_x": (73, "i4"),
    "group_x": (81, "i4"),
    "coordinate_units": (89, "i2"),
    "samples": (115, "u2"),
    "dt": (117, "u2"),
    "cdp_x": (181, "i4"),
    "unit": (203, "i2"),
}


@dataclass(frozen=True, slots=True)
class TraceFile:
    """Traces as stored.

    Attributes:
        format: as answers name it.
        headers: ``(trace,)`` structured, with the names and meanings of `FIELDS`; a view of the file.
        words: ``(trace, sample)`` as stored, a view of the file.
        measurement_system: bytes 3255-3256: 1 metres, 2 feet, anything else unknown; 0 in an SU file.
        dt_us: bytes 3217-3218, microseconds; 0 where it is not stated.
        notes: what is uncertain about the layout.
    """

    format: str
    order: Order
    coding: Coding
    measurement_system: int
    dt_us: int
    headers: Headers
    words: Words
    notes: tuple[Note, ...]


def looks_like_segy(body: Body) -> bool:
    """Whether the bytes look like SEG-Y: by the textual header, or by a binary header that fits the length."""
    if body[:2] in EBCDIC_CARD and len(body) > CARD:
        return True
    if body[:1] == b"C" and len(body) >= FILE_HEADER_BYTES and body[CARD] == ASCII_C:
        return True
    if len(body) < FILE_HEADER_BYTES + TRACE_HEADER_BYTES:
        return False
    order = _byte_order(body)
    code = 0 if order is None else _number(body, 3225, order)
    if order is None or code not in CODINGS:
        return False
    room, width = len(body) - FILE_HEADER_BYTES, CODINGS[code].width
    stated = (_number(body, 3221, order), _number(body, FILE_HEADER_BYTES + 115, order))
    return any(n and room % (TRACE_HEADER_BYTES + n * width) == 0 for n in stated)


def read_segy(body: Body) -> TraceFile:
    """The traces of a SEG-Y file of revision 0 or 1, in either byte order, all of one length.

    Raises:
        MalformedUpload: headers that contradict each other or the bytes present.
        UnsupportedDtype: a format code that is not read.
        UnsupportedFormat: what only revision 2 has.
    """
    if len(body) < FILE_HEADER_BYTES + TRACE_HEADER_BYTES:
        raise MalformedUpload(f"The SEG-Y is cut off: {len(body)} bytes do not hold its headers and one trace header.")
    order = _byte_order(body) or "big"
    coding = coding_of(_number(body, 3225, order))
    notes: list[Note] = []
    if order == "little":
        notes.append(Note("little_endian", "The format code makes sense in little-endian order only; read so."))
    start = _first_trace(body, order)
    samples = _samples(body, start, order, coding, _number(body, 3221, order), notes)
    headers, words = _views(body, start, order, coding, samples)
    return TraceFile(
        "segy", order, coding, _number(body, 3255, order), _number(body, 3217, order), headers, words, tuple(notes)
    )


def looks_like_su(body: Body) -> bool:
    """Whether the bytes begin with two SU traces of the same length and sampling interval."""
    return _su_order(body) is not None


def read_su(body: Body) -> TraceFile:
    """The traces of a Seismic Unix file: IEEE floats in either byte order, all of one length.

    Raises:
        MalformedUpload: as `read_segy`.
    """
    order = _su_order(body)
    if order is None:
        raise MalformedUpload("The upload does not begin with two SU traces of the same length.")
    coding = CODINGS[5]
    samples = _samples(body, 0, order, coding, _number(body, 115, order), [])
    headers, words = _views(body, 0, order, coding, samples)
    return TraceFile("su", order, coding, 0, 0, headers, words, ())


def write_velocity(
    velocity: NDArray[np.float32],
    *,
    cell_m: float,
    title: str,
    x0_m: float = 0.0,
    depth0_m: float = 0.0,
    dz_m: float | None = None,
) -> bytes:
    """A velocity model as a SEG-Y file of revision 1 in the depth domain, big-endian, IEEE floats.

    The sampling interval (bytes 3217-3218 and 117-118) is in millimetres, as most readers of depth sections expect:
    what they call microseconds and milliseconds are then millimetres and metres. Cells of more than 65 m, which such a
    number does not hold, are in centimetres, and of more than 655 m in metres; the textual header says which.

    Args:
        velocity: ``(depth, x)``, m/s; a trace each column.
        cell_m: cell size along both axes, m.
        title: of the model, in the textual header.
        x0_m: position of the first column, m; positions are rounded to centimetres, and to metres beyond 20,000 km.
        depth0_m: of the first row, which the textual header alone says.
        dz_m: cell size along depth, where that is another.

    Raises:
        InvalidVelocityModel: cells smaller or larger than the header holds, 1 mm to 65.535 km.
    """
    depth_cells, columns = velocity.shape
    dz_m = cell_m if dz_m is None else dz_m
    fitting = [each for each in STEPS if 1 <= round(dz_m * each[0]) < 1 << 16]
    if not fitting or depth_cells >= 1 << 16:
        raise InvalidVelocityModel(
            f"SEG-Y holds 65535 steps in depth of 0.001 to 65535 m; the model has {depth_cells} of {dz_m:g} m. Write "
            "npz or netCDF, or resample the model."
        )
    per_metre, step_unit = fitting[0]
    step = round(dz_m * per_metre)
    position_m = x0_m + np.arange(columns) * cell_m
    unit, each, scalar = ("CENTIMETRES", 100, -100) if np.abs(position_m).max() < MAX_CM_M else ("METRES", 1, 1)
    whole = abs(step - dz_m * per_metre) < 1e-6 and np.abs(np.round(position_m * each) - position_m * each).max() < 1e-6
    cards = [
        "C 1 SEISBIND VELOCITY MODEL",
        f"C 2 {title}",
        f"C 3 DEPTH DOMAIN, {columns} TRACES OF {depth_cells} SAMPLES, FIRST SAMPLE AT DEPTH {depth0_m:g}",
        "C 4 SAMPLES: VELOCITY IN M/S, IEEE FLOAT, BIG-ENDIAN",
        f"C 5 BYTES 3217-3218 AND 117-118: SAMPLE INTERVAL IN {step_unit} ({step})",
        "C 6 BYTES 1-4 AND 21-24: TRACE NUMBER, CDP NUMBER, FROM 1",
        f"C 7 BYTES 73-76, 81-84 AND 181-184: X IN {unit} (SCALAR {scalar} IN BYTES 71-72)",
        "C 8 BYTES 29-30: -1, OTHER THAN TIME DOMAIN. BYTES 203-204: 6, METRES PER SECOND",
        "C 9" if whole else f"C 9 CELLS ARE {cell_m:.9g} X {dz_m:.9g} M: POSITIONS AND INTERVAL ARE ROUNDED",
        *(f"C{number:2d}" for number in range(10, 39)),
        "C39 SEG Y REV1",
        "C40 END TEXTUAL HEADER",
    ]
    text = "".join(card[:CARD].ljust(CARD) for card in cards).encode("cp037", errors="replace")
    binary = bytearray(FILE_HEADER_BYTES - TEXT_BYTES)
    for byte, value in (
        (3213, min(columns, (1 << 16) - 1)),  # traces in each ensemble
        (3217, step),
        (3221, depth_cells),
        (3225, 5),  # IEEE float32
        (3229, 4),  # sorted as a stacked line
        (3255, 1),  # metres
        (3501, 0x0100),  # revision 1
        (3503, 1),  # all traces of one length
    ):
        binary[byte - 1 - TEXT_BYTES : byte + 1 - TEXT_BYTES] = value.to_bytes(2, "big")
    headers = np.zeros(columns, header_dtype(VELOCITY_FIELDS, "big"))
    constant = {"kind": -1, "scalco": scalar, "coordinate_units": 1, "samples": depth_cells, "dt": step, "unit": 6}
    for name, value in constant.items():
        headers[name] = value
    for name in ("line_trace", "file_trace", "cdp"):
        headers[name] = np.arange(columns) + 1
    for name in ("source_x", "group_x", "cdp_x"):
        headers[name] = np.round(position_m * each).astype(np.int64)
    samples = np.ascontiguousarray(velocity.T, dtype=">f4")
    traces = b"".join(h.tobytes() + s.tobytes() for h, s in zip(headers, samples, strict=True))
    return text + bytes(binary) + traces


def _number(body: Body, byte: int, order: Order) -> int:
    """The unsigned 16-bit number that begins at a byte, counted from 1."""
    return int.from_bytes(body[byte - 1 : byte + 1], order)


def _byte_order(body: Body) -> Order | None:
    known = CODINGS.keys() | UNREAD.keys()  # all under 256: none is known in both orders
    for order in SIGN:
        if _number(body, 3225, order) in known:
            return order
    return None


def _su_order(body: Body) -> Order | None:
    for order in SIGN:
        samples, dt_us = _number(body, 115, order), _number(body, 117, order)
        second = TRACE_HEADER_BYTES + 4 * samples
        same = (_number(body, second + 115, order), _number(body, second + 117, order)) == (samples, dt_us)
        if samples and same and len(body) >= second + TRACE_HEADER_BYTES:
            return order
    return None


def _first_trace(body: Body, order: Order) -> int:
    """Offset of the first trace header, behind extended textual headers if there are any."""
    revision = body[3500] if order == "big" else body[3501]
    if revision == 0:
        return FILE_HEADER_BYTES  # revision 0 leaves bytes 3505-3506 undefined
    if revision >= 2:
        wide = int.from_bytes(body[3268:3272], order)
        if wide not in (0, _number(body, 3221, order)) or any(body[3506:3510]) or any(body[3520:3528]):
            raise UnsupportedFormat(
                f"The SEG-Y is of revision {revision} and uses what revision 1 has not (long traces, additional trace "
                "headers, or a stated offset of the first trace). Write it as revision 1."
            )
    extended = _number(body, 3505, order)
    if extended > MAX_EXTENDED_HEADERS:
        raise MalformedUpload(
            f"The SEG-Y states {extended} extended textual headers (65535: any number); at most {MAX_EXTENDED_HEADERS} "
            "are skipped. Write it without them."
        )
    return FILE_HEADER_BYTES + extended * TEXT_BYTES


def _samples(body: Body, start: int, order: Order, coding: Coding, stated: int, notes: list[Note]) -> int:
    """Samples in each trace: the number that fits the bytes present and that all trace headers agree on."""
    room = len(body) - start
    if room < TRACE_HEADER_BYTES:
        raise MalformedUpload(f"The file ends after {len(body)} bytes, within its headers: it holds no trace.")
    first = _number(body, start + 115, order)
    candidates = [n for n in dict.fromkeys((stated, first)) if n]
    if not candidates:
        raise MalformedUpload("Neither the binary header nor the first trace header states the number of samples.")
    fitting = [n for n in candidates if room % (TRACE_HEADER_BYTES + n * coding.width) == 0]
    if not fitting:
        whole, rest = divmod(room, TRACE_HEADER_BYTES + candidates[0] * coding.width)
        raise MalformedUpload(
            f"{whole} traces of {candidates[0]} samples ({coding.name}), and {rest} bytes that make no trace: the file "
            "is cut off, its traces differ in length, or its format code or sample count is wrong."
        )
    if len(fitting) == 2:  # the bytes fit both numbers: with the right one, trace headers lie where they should
        fitting = [n for n in fitting if (_views(body, start, order, coding, n)[0]["samples"] == first).all()]
        if len(fitting) != 1:
            raise MalformedUpload(
                f"The binary header states {stated} samples a trace, the trace headers {first}, and the file's length "
                "fits both. Correct bytes 3221-3222 or the trace headers."
            )
    samples = fitting[0]
    counts = _views(body, start, order, coding, samples)[0]["samples"]
    for block in trace_blocks(len(counts), counts.strides[0]):
        wrong = counts[block] != first
        if wrong.any():
            at = block.start + int(np.argmax(wrong))
            raise MalformedUpload(
                f"Trace {at + 1} states {int(counts[at])} samples, the first {first}: traces of different lengths, or "
                "the format code or sample count is wrong."
            )
        release(body)
    if stated != first:
        text = f"The binary header states {stated} samples a trace, the trace headers {first}; the bytes fit {samples}."
        notes.append(Note("samples_disagree", text))
    return samples


def _views(body: Body, start: int, order: Order, coding: Coding, samples: int) -> tuple[Headers, Words]:
    stride = TRACE_HEADER_BYTES + samples * coding.width
    traces = (len(body) - start) // stride
    headers: Headers = np.ndarray((traces,), header_dtype(FIELDS, order), body, start, (stride,))
    kind = np.dtype(SIGN[order] + coding.kind)
    words: Words = np.ndarray((traces, samples), kind, body, start + TRACE_HEADER_BYTES, (stride, coding.width))
    return headers, words


def trace_blocks(traces: int, stride: int) -> list[slice]:
    """Traces of ``stride`` bytes in blocks of at most `BLOCK_BYTES`, or of one."""
    each = max(1, BLOCK_BYTES // max(1, stride))
    return [slice(start, start + each) for start in range(0, traces, each)]


def release(body: Body) -> None:
    """Let go of the pages of a mapped file that were looked at; they are read again when they are needed."""
    if isinstance(body, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        body.madvise(mmap.MADV_DONTNEED)


def header_dtype(fields: Mapping[str, tuple[int, str]], order: Order) -> np.dtype[Any]:
    """The layout of one trace header: `FIELDS` or others like them."""
    return np.dtype(
        {
            "names": list(fields),
            "formats": [SIGN[order] + kind for _, kind in fields.values()],
            "offsets": [byte - 1 for byte, _ in fields.values()],
            "itemsize": TRACE_HEADER_BYTES,
        }
    )
