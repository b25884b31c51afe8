"""The traces of a whole line, from one file or several that may be larger than memory: positions first, samples later.

A SEG-Y or SU file is mapped: headers are looked at in blocks and kept in 52 bytes each, and samples are decoded when
they are asked for, of the traces that are. SEG-2, of a shot a file as a rule, is decoded at once.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import (
    DatasetError,
    InvalidGather,
    InvalidSurvey,
    MalformedUpload,
    UnsupportedFormat,
    UploadRefused,
)
from seisbind.model.frame import ANY_DT_S
from seisbind.model.survey.line import TracePositions
from seisbind.model.survey.notes import Note
from seisbind.model.survey.scaling import measured_traces
from seisbind.model.survey.spreads import check_positions
from seisbind.service.formats.mdio import mdio_as_segy
from seisbind.service.formats.npy import ZIP_MAGIC, Array, Limits, read_arrays
from seisbind.service.formats.reader import TRACE_FORMATS
from seisbind.service.formats.segy import (
    FIELDS,
    Body,
    Headers,
    TraceFile,
    release,
    trace_blocks,
)
from seisbind.service.formats.segy_gather import Extent
from seisbind.service.formats.segy_samples import decode, sample_check
from seisbind.service.formats.trace_headers import (
    DEAD,
    length_units,
    receiver_spread,
    sampling_interval,
    seismic_traces,
    start_samples,
    trace_positions,
)

Float32 = NDArray[np.float32]
Index = NDArray[np.intp]

MAX_TRACES = 1 << 30
LOCAL = Limits(unpacked_bytes=4 << 30, items=MAX_TRACES)  # of an npz on this machine, which is held in memory
LINE_KEYS = ("source_x_m", "receiver_x_m", "source_y_m", "receiver_y_m")
TRACE_KEY = "traces"
CHECKED = 256  # traces whose samples show whether they are coded as the file says
SAME_DT = 1e-6

ReadTraces = Callable[[Index, int], Float32]  # numbers, and samples from the shot on, to (trace, time)


@dataclass(frozen=True, slots=True)
class LineTraces:
    """The traces of a line.

    Attributes:
        positions: of each trace, metres.
        usable: ``(trace,)``; False where a header marks a trace dead.
        dt_s: sampling interval.
        samples: from the shot to the end of the longest trace.
        read: decodes some traces, with zeros after their end.
        notes: what was assumed of the files.
        digest: of positions and sampling and, of a file, its length and time: another for what was changed.
    """

    positions: TracePositions
    usable: NDArray[np.bool_]
    dt_s: float
    samples: int
    read: ReadTraces
    notes: tuple[Note, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.positions)

    def extent(self) -> Extent:
        """How large the record is, for a scale to be chosen. Raises InvalidSurvey for positions that are none."""
        check_positions(self.positions)
        some = np.flatnonzero(self.usable)
        some = some[measured_traces(len(some), self.samples)]
        at = self.positions
        offset_m = np.hypot(*(at.group_xy_m - at.source_xy_m)[some].T)
        aperture_m, spacing_m = receiver_spread(at)
        record_s = self.samples * self.dt_s
        return Extent(self.read(some, self.samples), offset_m, aperture_m, spacing_m, record_s, self.dt_s)


def open_line(files: Sequence[Path]) -> LineTraces:
    """The traces of all ``files``, which are one line: SEG-Y, SU, SEG-2, MDIO, or npz as `read_line` takes it.

    Raises:
        DatasetError: a file that cannot be opened.
        UploadRefused, InvalidSurvey, InvalidGather: see `read_line`; the sentence names the file.
    """
    parts = []
    for path in files:
        try:
            part, stat = read_line(mdio_as_segy(path) if path.is_dir() else _mapped(path)), path.stat()
            digest = f"{part.digest} {stat.st_size} {stat.st_mtime_ns}"
            parts.append(replace(part, digest=hashlib.sha256(digest.encode()).hexdigest()))
        except (UploadRefused, InvalidSurvey, InvalidGather) as error:
            raise type(error)(f"{path}: {error}") from error
    return joined(parts)


def _mapped(path: Path) -> Body:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise DatasetError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def read_line(body: Body, *, limits: Limits = LOCAL) -> LineTraces:
    """The traces of one file: SEG-Y, SU or SEG-2; or an npz, which ``limits`` bound.

    An npz has ``traces`` ``(trace, time)`` with ``source_x_m`` and ``receiver_x_m`` ``(trace,)``, or ``gathers``
    ``(shot, time, receiver)`` with ``shot_x_m`` and ``receiver_x_m``; both with ``dt_s``, in seconds.

    Raises:
        UploadRefused: of no such format, or self-contradictory.
        InvalidSurvey: no sampling interval or positions, or several.
        InvalidGather: no seismic trace.
    """
    if body[:2] == ZIP_MAGIC:
        return _read_npz(bytes(body[:]), limits)
    for each in TRACE_FORMATS:
        if each.looks_like(body):
            return _read_headers(each.read(body), body)
    raise UnsupportedFormat(
        f"A line is read from SEG-Y, SU, SEG-2 or npz; this starts with {repr(bytes(body[:6]))[1:]}. An npz has traces "
        "(trace, time), source_x_m, receiver_x_m and dt_s."
    )


def joined(parts: Sequence[LineTraces]) -> LineTraces:
    """Several files as one line, their traces one after another.

    Raises:
        InvalidSurvey: none, or sampling intervals that differ.
    """
    if not parts:
        raise InvalidSurvey("There is no file of a line.")
    if len(parts) == 1:
        return parts[0]
    intervals = [part.dt_s for part in parts]
    if max(intervals) - min(intervals) > SAME_DT * max(intervals):
        raise InvalidSurvey(
            f"The files have sampling intervals of {min(intervals) * 1e3:g} to {max(intervals) * 1e3:g} ms; those of "
            "one line have one. Resample them, or make a section of each."
        )
    ends = np.cumsum([len(part) for part in parts])

    def read(numbers: Index, samples: int) -> Float32:
        out = np.zeros((len(numbers), samples), dtype=np.float32)
        of_part = np.searchsorted(ends, numbers, side="right")
        for at in np.unique(of_part):
            own = of_part == at
            out[own] = parts[at].read(numbers[own] - (ends[at] - len(parts[at])), samples)
        return out

    all_of = [part.positions for part in parts]
    return LineTraces(
        TracePositions(
            *(np.concatenate([getattr(each, name) for each in all_of]) for name in TracePositions.__slots__)
        ),
        np.concatenate([part.usable for part in parts]),
        intervals[0],
        max(part.samples for part in parts),
        read,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        hashlib.sha256("".join(part.digest for part in parts).encode()).hexdigest(),
    )


def _digest(positions: TracePositions, dt_s: float, samples: int) -> str:
    found = hashlib.sha256(repr((len(positions), dt_s, samples)).encode())
    for array in (positions.source_xy_m, positions.group_xy_m):
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _copied(headers: Headers, body: Body) -> Headers:
    """Headers in memory, without what is not looked at."""
    kept = np.empty(len(headers), dtype=[(name, headers.dtype[name].newbyteorder("=")) for name in FIELDS])
    for block in trace_blocks(len(headers), headers.strides[0]):
        for name in FIELDS:
            kept[name][block] = headers[name][block]
        release(body)
    return kept


def _read_headers(file: TraceFile, body: Body) -> LineTraces:
    notes = list(file.notes)
    every = _copied(file.headers, body)
    seismic = seismic_traces(every, notes)
    headers = every[seismic]
    dt_s = sampling_interval(file, headers, None, ANY_DT_S, notes)
    delay = start_samples(headers, dt_s)
    if delay:
        text = f"Recording starts {headers['delay_ms'][0]} ms after the shot; the traces were shifted."
        notes.append(Note("delay_applied", text))
    factor, _ = length_units(file, headers, notes)
    positions = trace_positions(headers, factor, notes, False)
    usable = headers["kind"] != DEAD
    if not usable.all():
        count = int((~usable).sum())
        notes.append(Note("marked_dead", f"{count} traces are marked dead in their headers and count as such."))
    samples = max(0, file.words.shape[1] + delay)
    check = sample_check(file.coding)
    check.add(file.words[seismic[np.unique(np.linspace(0, len(seismic) - 1, CHECKED).astype(int))]])
    notes += check.verdict()

    def read(numbers: Index, wanted: int) -> Float32:
        out = np.zeros((len(numbers), wanted), dtype=np.float32)
        first = max(0, delay)
        for block in trace_blocks(len(numbers), file.words.strides[0]):
            words = file.words[seismic[numbers[block]], max(0, -delay) : max(0, wanted - delay)]
            out[block, first : first + words.shape[1]] = decode(words, file.coding)
            release(body)
        return out

    return LineTraces(positions, usable, dt_s, samples, read, tuple(notes), _digest(positions, dt_s, samples))


def _read_npz(body: bytes, limits: Limits) -> LineTraces:
    arrays = read_arrays(body, limits=limits)
    if "dt_s" not in arrays or arrays["dt_s"].size != 1:
        raise InvalidSurvey("The npz of a line has no dt_s, the sampling interval in seconds. Add it.")
    dt_s = float(arrays["dt_s"].ravel()[0])
    if not 0 < dt_s < 1:
        raise InvalidSurvey(f"The npz states a sampling interval of {dt_s:g} s; is it given in milliseconds?")
    if TRACE_KEY in arrays:
        traces = arrays[TRACE_KEY]
        positions = _stated(arrays, len(traces) if traces.ndim == 2 else -1)
    else:
        traces, positions = _of_gathers(arrays)

    def read(numbers: Index, wanted: int) -> Float32:
        out = np.zeros((len(numbers), wanted), dtype=np.float32)
        with np.errstate(over="ignore"):
            some = traces[numbers, :wanted].astype(np.float32)
        out[:, : some.shape[1]] = some
        return out

    usable = np.ones(len(traces), dtype=bool)
    return LineTraces(positions, usable, dt_s, traces.shape[1], read, (), _digest(positions, dt_s, traces.shape[1]))


def _of_gathers(arrays: dict[str, Array]) -> tuple[Array, TracePositions]:
    """The traces of ``gathers`` ``(shot, time, receiver)``, shot by shot."""
    found = [arrays[name] for name in ("gathers", "data") if name in arrays]
    missing = [name for name in ("shot_x_m", "receiver_x_m") if name not in arrays]
    if not found or missing or found[0].ndim not in (3, 4) or (found[0].ndim == 4 and len(found[0]) != 1):
        raise MalformedUpload(
            "The npz of a line has traces (trace, time) with source_x_m and receiver_x_m, or one gather (shot, time, "
            f"receiver) with shot_x_m and receiver_x_m; found {', '.join(sorted(arrays))}."
        )
    gather = found[0][0] if found[0].ndim == 4 else found[0]
    shot, receiver = arrays["shot_x_m"].ravel(), arrays["receiver_x_m"].ravel()
    if gather.shape[0] != len(shot) or gather.shape[2] != len(receiver):
        raise MalformedUpload(
            f"The gather has {gather.shape[0]} shots into {gather.shape[2]} receivers; {len(shot)} and {len(receiver)} "
            "positions are stated."
        )
    traces = gather.transpose(0, 2, 1).reshape(-1, gather.shape[1])
    stated = {"source_x_m": np.repeat(shot, len(receiver)), "receiver_x_m": np.tile(receiver, len(shot))}
    return traces, _stated(stated, len(traces))


def _stated(arrays: dict[str, Array], traces: int) -> TracePositions:
    given = {name: np.asarray(arrays[name], dtype=np.float64) for name in LINE_KEYS if name in arrays}
    wrong = [name for name, x in given.items() if x.shape != (traces,)]
    if wrong or not {"source_x_m", "receiver_x_m"} <= given.keys():
        raise MalformedUpload(
            "The npz of a line has traces (trace, time), and source_x_m and receiver_x_m with one position a trace; "
            f"found {', '.join(f'{name} {array.shape}' for name, array in sorted(arrays.items()))}."
        )
    zero = np.zeros(traces)
    source, group = (
        np.stack([given[f"{end}_x_m"], given.get(f"{end}_y_m", zero)], axis=1) for end in ("source", "receiver")
    )
    number = np.zeros(traces, dtype=np.int64)
    return TracePositions(source, group, number, number)
