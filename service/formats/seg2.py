"""SEG-2 files of engineering and shallow seismics: strings for headers, a pointer for each trace.

S. E. Pullan, Recommended standard for seismic (/radar) data files in the personal computer environment, Geophysics 55
(1990), 1260-1271. Every pointer, count and string is checked against the bytes present before anything is made of it,
and no two traces may share bytes: the samples in memory are at most twice the file, whatever its headers say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey, MalformedUpload, UnsupportedDtype
from seisbind.model.survey.notes import Note
from seisbind.service.formats.segy import SIGN, Body, Headers, Order, TraceFile
from seisbind.service.formats.segy_samples import Coding

Strings = dict[bytes, bytes]  # of a block, by keyword

FILE_ID = {b"\x55\x3a": "little", b"\x3a\x55": "big"}
TRACE_ID = 0x4422
BLOCK_BYTES = 32  # of a file or trace descriptor, before pointers and strings
GROUP, GROUP_BYTES = 4, 10  # samples of format code 3: four exponents in one word, then four words
MAX_STRINGS = 128  # of a block; the standard knows about 60 keywords
MAX_STRING_BYTES = 1 << 17  # of the strings of the file descriptor; a trace's end with its block, after 64 KiB
MAX_NUMBER = 32  # characters
MAX_POSITION_M = 2e7  # half of the Earth's circumference
CODINGS = {  # by format code; samples are held as float32, as the descaling factor makes them
    1: (Coding(0, "int16", "f4"), "i2"),
    2: (Coding(0, "int32", "f4"), "i4"),
    3: (Coding(0, "20-bit float", "f4"), "u2"),
    4: (Coding(0, "IEEE float32", "f4"), "f4"),
    5: (Coding(0, "IEEE float64", "f4"), "f8"),
}
METRES = {b"METERS": 1.0, b"METRES": 1.0, b"METER": 1.0, b"METRE": 1.0, b"M": 1.0, b"CENTIMETERS": 0.01,
          b"INCHES": 0.0254}  # fmt: skip
FEET = (b"FEET", b"FOOT", b"FT")
KINDS = {b"VERTICAL": 12, b"SHEAR": 13, b"HYDROPHONE": 11}  # how RECEIVER begins: SEG-Y's codes of bytes 29-30
WANTED = frozenset(
    b"SAMPLE_INTERVAL DELAY SOURCE_LOCATION RECEIVER_LOCATION DESCALING_FACTOR STACK UNITS CHANNEL_NUMBER "
    b"SHOT_SEQUENCE_NUMBER TRACE_TYPE RECEIVER".split()
)
HEADERS = np.dtype(  # names and meanings of `segy.FIELDS`; fractions of metres, milliseconds and microseconds are kept
    [(name, "i8") for name in ("record", "channel", "kind", "scalco", "coordinate_units", "samples", "time_scalar")]
    + [(name, "f8") for name in ("offset", "source_x", "source_y", "group_x", "group_y", "delay_ms", "dt_us")]
)


@dataclass(frozen=True, slots=True)
class _Trace:
    """Where a trace is: its strings, and its samples from byte ``start`` to ``end``."""

    number: int
    code: int
    samples: int
    start: int
    end: int
    strings: Strings


def looks_like_seg2(body: Body) -> bool:
    """Whether the bytes begin with a file descriptor of SEG-2 revision 1."""
    order = FILE_ID.get(bytes(body[:2]))
    return order is not None and int.from_bytes(body[2:4], order) == 1 and body[8:9] in (b"\x01", b"\x02")  # type: ignore[arg-type]


def read_seg2(body: Body) -> TraceFile:
    """The seismic traces of a SEG-2 file of revision 1, in either byte order, all of one length and format code.

    Samples are multiplied by DESCALING_FACTOR and divided by STACK: millivolts of one shot at the instrument.

    Raises:
        MalformedUpload: pointers, counts or strings that contradict each other or the bytes present.
        UnsupportedDtype: a format code that is none of 1 to 5.
        InvalidGather: no seismic trace.
        InvalidSurvey: traces that start at different times, or units of length that are none.
    """
    order = _order(body)
    pointers, common = _descriptor(body, order)
    terminator = _terminator(body)
    every = [_trace(body, order, terminator, at, number) for number, at in enumerate(pointers, 1)]
    _check_apart(pointers, every)
    notes: list[Note] = []
    traces = _seismic(every, common, notes)
    first = traces[0]
    for trace in traces:
        if (trace.samples, trace.code) != (first.samples, first.code):
            raise MalformedUpload(
                f"Trace {trace.number} of the SEG-2 has {trace.samples} samples of format code {trace.code}, trace "
                f"{first.number} {first.samples} of {first.code}. Write traces of one length and format."
            )
    system, factor = _units(common | first.strings, notes)
    headers = np.zeros(len(traces), HEADERS)
    for name, value in {"scalco": 1, "coordinate_units": 1, "time_scalar": 1, "samples": first.samples}.items():
        headers[name] = value
    scale = np.array([_fill(headers[i], trace, common, factor) for i, trace in enumerate(traces)])
    _check_starts(headers)
    stacks = [_number(common | trace.strings, b"STACK", trace, 1.0) for trace in traces]
    if max(stacks) > 1:
        text = f"The traces are sums of {min(stacks):g} to {max(stacks):g} shots (STACK), and were divided by that."
        notes.append(Note("stack_divided", text))
    coding, kind = CODINGS[first.code]
    words = np.empty((len(traces), first.samples), np.float32)
    stored = np.dtype(SIGN[order] + kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, trace, times in zip(words, traces, scale, strict=True):
            samples = np.frombuffer(body, stored, (trace.end - trace.start) // stored.itemsize, trace.start)
            row[:] = (_unpacked(samples)[: trace.samples] if trace.code == 3 else samples) * times
    return TraceFile("seg2", order, coding, system, 0, headers, words, tuple(notes))


def _order(body: Body) -> Order:
    order = FILE_ID.get(bytes(body[:2]))
    if order is None or len(body) < BLOCK_BYTES:
        raise MalformedUpload(f"The SEG-2 is cut off, or none: its {len(body)} bytes hold no file descriptor.")
    return "little" if order == "little" else "big"


def _terminator(body: Body) -> bytes:
    """Of strings: one or two bytes."""
    length = body[8]
    if length not in (1, 2):
        raise MalformedUpload(f"The SEG-2 states string terminators of {length} bytes (byte 9); they have 1 or 2.")
    return bytes(body[9 : 9 + length])


def _descriptor(body: Body, order: Order) -> tuple[list[int], Strings]:
    """Where the traces are, and the strings of the file."""
    room, count = int.from_bytes(body[4:6], order), int.from_bytes(body[6:8], order)
    end = BLOCK_BYTES + room
    if not 0 < count * 4 <= room or end > len(body):
        raise MalformedUpload(
            f"The SEG-2 states {count} traces in {room} bytes of pointers, 4 each; the file has {len(body)} bytes."
        )
    pointers = np.frombuffer(body, SIGN[order] + "u4", count, BLOCK_BYTES).tolist()
    if min(pointers) < end or max(pointers) + BLOCK_BYTES > len(body):
        raise MalformedUpload(
            f"The SEG-2's pointers to traces are {min(pointers)} to {max(pointers)}: behind its {end} bytes of "
            f"descriptor and pointers there are {len(body) - end}. It is cut off, or not written by the standard."
        )
    text = bytes(body[end : min(min(pointers), end + MAX_STRING_BYTES)])
    return pointers, _strings(text, order, _terminator(body), "the file descriptor")


def _strings(block: bytes, order: Order, terminator: bytes, where: str) -> Strings:
    """The keywords that are looked at: each string states how far the next is, 0 ends them."""
    found: dict[bytes, bytes] = {}
    at = 0
    for _ in range(MAX_STRINGS):
        step = int.from_bytes(block[at : at + 2], order)
        if step == 0 or at + 2 >= len(block):
            return found
        if step < 3 or at + step > len(block):
            raise MalformedUpload(
                f"A string in {where} of the SEG-2 states {step} bytes; {len(block) - at} are left, and 3 are least."
            )
        key, _, value = block[at + 2 : at + step].partition(terminator)[0].strip().partition(b" ")
        if (key := key.upper()) in WANTED:
            found[key] = value.strip()
        at += step
    raise MalformedUpload(
        f"There are more than {MAX_STRINGS} strings in {where} of the SEG-2; the standard names fewer."
    )


def _trace(body: Body, order: Order, terminator: bytes, at: int, number: int) -> _Trace:
    mark, size = int.from_bytes(body[at : at + 2], order), int.from_bytes(body[at + 2 : at + 4], order)
    if mark != TRACE_ID:
        raise MalformedUpload(f"Trace {number} of the SEG-2 begins with {mark:#06x} at byte {at}, not {TRACE_ID:#x}.")
    stated, samples = int.from_bytes(body[at + 4 : at + 8], order), int.from_bytes(body[at + 8 : at + 12], order)
    code = body[at + 12]
    if code not in CODINGS:
        known = ", ".join(f"{each} ({coding.name})" for each, (coding, _) in CODINGS.items())
        raise UnsupportedDtype(f"Trace {number} of the SEG-2 has format code {code}; read are {known}.")
    width = np.dtype(CODINGS[code][1]).itemsize
    length = -(-samples // GROUP) * GROUP_BYTES if code == 3 else samples * width
    end = at + size + length
    if size < BLOCK_BYTES or not samples or end > len(body) or stated < length:
        raise MalformedUpload(
            f"Trace {number} of the SEG-2 states {samples} samples, {length} bytes, in a block of {stated} behind "
            f"{size} bytes of header at byte {at}; the file has {len(body)}. It is cut off, or its counts are wrong."
        )
    strings = _strings(bytes(body[at + BLOCK_BYTES : at + size]), order, terminator, f"trace {number}")
    return _Trace(number, code, samples, at + size, end, strings)


def _check_apart(pointers: list[int], traces: list[_Trace]) -> None:
    """No byte belongs to two traces."""
    before = None
    for at, trace in sorted(zip(pointers, traces, strict=True), key=lambda each: each[0]):
        if before is not None and at < before.end:
            raise MalformedUpload(
                f"Traces {before.number} and {trace.number} of the SEG-2 share bytes: one ends at {before.end}, the "
                f"other begins at {at}. A pointer or a count is wrong."
            )
        before = trace


def _seismic(traces: list[_Trace], common: Strings, notes: list[Note]) -> list[_Trace]:
    kinds = [(common | each.strings).get(b"TRACE_TYPE") or b"SEISMIC_DATA" for each in traces]
    seismic = [trace for trace, kind in zip(traces, kinds, strict=True) if kind.upper().startswith(b"SEISMIC")]
    if not seismic:
        said = ascii(kinds[0][:MAX_NUMBER].decode("latin-1"))
        raise InvalidGather(f"None of the {len(traces)} traces of the SEG-2 is seismic: TRACE_TYPE says {said}.")
    if len(seismic) < len(traces):
        text = f"{len(traces) - len(seismic)} auxiliary traces (TRACE_TYPE) were left out."
        notes.append(Note("auxiliary_traces", text))
    return seismic


def _units(strings: Strings, notes: list[Note]) -> tuple[int, float]:
    """SEG-Y's code of the unit of length, and what takes positions to it."""
    unit = strings.get(b"UNITS", b"").upper()
    if unit in FEET:
        return 2, 1.0
    if unit in METRES:
        if METRES[unit] != 1:
            text = f"Positions are in {unit.decode().lower()} (UNITS); converted to metres."
            notes.append(Note("units_converted", text))
        return 1, METRES[unit]
    if unit in (b"", b"NONE"):
        return 0, 1.0
    said = ascii(unit[:MAX_NUMBER].decode("latin-1"))
    raise InvalidSurvey(f"UNITS of the SEG-2 is {said}; METERS, CENTIMETERS, FEET and INCHES are lengths.")


def _fill(header: Any, trace: _Trace, common: Strings, factor: float) -> float:
    """A trace's header, a record of `HEADERS`; returns what multiplies its samples."""
    strings = common | trace.strings
    header["record"] = _whole(strings.get(b"SHOT_SEQUENCE_NUMBER", b""), 1)
    header["channel"] = _whole(strings.get(b"CHANNEL_NUMBER", b""), trace.number)
    receiver = strings.get(b"RECEIVER", b"").upper()
    header["kind"] = next((code for start, code in KINDS.items() if receiver.startswith(start)), 1)
    header["dt_us"] = round(_number(strings, b"SAMPLE_INTERVAL", trace, 0.0) * 1e6, 3)
    header["delay_ms"] = round(_number(strings, b"DELAY", trace, 0.0) * 1e3, 6)
    for key, name in ((b"SOURCE_LOCATION", "source"), (b"RECEIVER_LOCATION", "group")):
        numbers = strings.get(key, b"").split()[:3]
        x, y = ([_float(each, key, trace) for each in numbers] + [0.0, 0.0])[:2]
        if max(abs(x), abs(y)) * factor > MAX_POSITION_M:
            raise InvalidSurvey(f"{key.decode()} of trace {trace.number} of the SEG-2 is {x:g}, {y:g}: on no line.")
        header[f"{name}_x"], header[f"{name}_y"] = x * factor, y * factor
    descaling, stack = _number(strings, b"DESCALING_FACTOR", trace, 1.0), _number(strings, b"STACK", trace, 1.0)
    if not descaling or stack < 0:
        raise MalformedUpload(
            f"Trace {trace.number} of the SEG-2 states DESCALING_FACTOR {descaling:g} and STACK {stack:g}, "
            "which are no amplitudes. Correct them."
        )
    return descaling / max(stack, 1.0)


def _check_starts(headers: Headers) -> None:
    delays, intervals = headers["delay_ms"], headers["dt_us"]
    if np.ptp(delays):
        raise InvalidSurvey(
            f"Traces of the SEG-2 start {delays.min():g} to {delays.max():g} ms after the shot (DELAY). Shift the "
            "traces to one start."
        )
    if (intervals < 0).any():
        raise InvalidSurvey(f"SAMPLE_INTERVAL of the SEG-2 is {intervals.min() * 1e-6:g} s; pass dt_s in seconds.")


def _whole(text: bytes, default: int) -> int:
    """The number that ``text`` begins with, which names something; anything else is not looked at."""
    number = text.partition(b" ")[0]
    return int(number) if number.isdigit() and len(number) < 10 else default


def _number(strings: Strings, key: bytes, trace: _Trace, default: float) -> float:
    text = strings.get(key, b"").split()
    return _float(text[0], key, trace) if text else default


def _float(text: bytes, key: bytes, trace: _Trace) -> float:
    try:
        number = float(text) if len(text) <= MAX_NUMBER else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        said = ascii(text[:MAX_NUMBER].decode("latin-1"))
        raise MalformedUpload(f"{key.decode()} of trace {trace.number} of the SEG-2 is {said}, no number.")
    return number


def _unpacked(words: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Format code 3: of five words the first holds four exponents, lowest bits first; one's complements follow."""
    groups = words.astype(np.uint16).reshape(-1, 1 + GROUP)
    exponents = (groups[:, :1] >> np.arange(0, 16, 4, dtype=np.uint16)) & 0xF
    mantissas = groups[:, 1:].view(np.int16).astype(np.int64)
    return np.ldexp((mantissas + (mantissas < 0)).astype(np.float64), exponents.astype(np.int64)).ravel()
