"""A record looked at before it is asked about: what it is, what would be done with it, and what would be refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seisbind.model.errors import SeisBindError
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.inspection.signal import Signal, measure_signal
from seisbind.model.inspection.spread import Spread, measure_spread
from seisbind.model.inspection.traces import FieldTraces
from seisbind.model.scale import UNSCALED, AutoScale, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.scaling import ChosenScale
from seisbind.service.engine.query import Query
from seisbind.service.engine.section import STEP_SHARE
from seisbind.service.formats.npy import Limits
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.formats.traces import read_traces


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a retrieval would be refused: the code and the sentence of its error."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Window:
    """What the frame is at one scale, in true units.

    Attributes:
        line_m: a window's length; depth_m: of its velocity model.
        record_s: used of each trace; peak_hz: of the wavelet that the encoders know best.
        count: windows that cover the record, half overlapping.
    """

    s: float
    line_m: float
    depth_m: float
    record_s: float
    peak_hz: float
    count: int

    @classmethod
    def of(cls, s: float, frame: Frame, length_m: float) -> Window:
        """``length_m``: of the whole line."""
        own = Scale(s).frame(frame)
        steps = max(0.0, length_m - own.line_m) / (STEP_SHARE * own.line_m)
        depth_m = own.depth_cells * own.cell_m
        return cls(s, own.line_m, depth_m, own.duration_s, own.peak_hz, 1 + math.ceil(round(steps, 6)))


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of one gather of a file.

    Attributes:
        format, gathers: of the file; gather: which of them.
        traces: themselves.
        signal: None if every trace is dead, or has hardly a sample.
        notes: what was assumed of the traces, and what a retrieval would assume and do.
        refusal: None if ``seisbind retrieve`` takes the file as it is.
        auto: the scale that ``--scale auto`` would choose, and why; or why it would be refused.
        windows: that would cover the record at the least, at its own and at the largest scale that it allows.
    """

    format: str
    gathers: int
    gather: int
    traces: FieldTraces
    spread: Spread
    signal: Signal | None
    notes: tuple[Note, ...]
    refusal: Refusal | None
    auto: ChosenScale | Refusal
    windows: tuple[Window, ...]


def inspect_record(
    file: bytes,
    *,
    geometry: Geometry | None = None,
    gather: int = 0,
    limits: Limits | None = None,
    frame: Frame = OPENFWI_FRAME,
) -> Inspection:
    """Look at one gather of an npy, npz, SEG-Y, SU or SEG-2 file, of any geometry.

    Args:
        file: its bytes.
        geometry: what overrides the file, as in a retrieval.
        gather: of a stack.
        limits: of what is read.
        frame: of the weights that would be asked.

    Raises:
        SeisBindError: see `formats.traces.read_traces`: it cannot even be looked at.
    """
    found = read_traces(file, geometry=geometry, gather=gather, limits=limits, frame=frame)
    spread, signal = measure_spread(found.traces), measure_signal(found.traces)
    refusal, notes = _asked(file, geometry, gather, limits, frame)
    known = {note.code for note in notes}
    auto = _auto(file, geometry, gather, limits, frame)
    scales: set[float] = set()
    if isinstance(auto, ChosenScale) and auto.limits:
        low, high = auto.lowest.low, auto.highest.high
        scales = {low, high} | ({1.0} if low < 1 < high else set())
    return Inspection(
        format=found.format,
        gathers=found.gathers,
        gather=gather,
        traces=found.traces,
        spread=spread,
        signal=signal,
        notes=(*(note for note in found.notes if note.code not in known), *notes),
        refusal=refusal,
        auto=auto,
        windows=tuple(Window.of(s, frame, spread.length_m) for s in sorted(scales)),
    )


def _auto(
    file: bytes, geometry: Geometry | None, gather: int, limits: Limits | None, frame: Frame
) -> ChosenScale | Refusal:
    """What a retrieval with ``--scale auto`` would choose; it is read and prepared as one."""
    try:
        upload = read_gathers(file, geometry=geometry, limits=limits, frame=frame, scale=AutoScale())
        gathers = upload.gathers[gather : gather + 1] if upload.gathers.ndim == 4 else upload.gathers
        chosen = Query.prepare(gathers, upload.survey, frame=frame, scale=upload.chosen or AutoScale()).chosen
    except SeisBindError as error:
        return Refusal(error.code, str(error))
    return ChosenScale(UNSCALED) if chosen is None else chosen


def _asked(
    file: bytes, geometry: Geometry | None, gather: int, limits: Limits | None, frame: Frame
) -> tuple[Refusal | None, tuple[Note, ...]]:
    """What a retrieval would refuse, or assume and do: it is read and prepared as one."""
    try:
        upload = read_gathers(file, geometry=geometry, limits=limits, frame=frame)
        gathers = upload.gathers[gather : gather + 1] if upload.gathers.ndim == 4 else upload.gathers
        query = Query.prepare(gathers, upload.survey, frame=frame)
    except SeisBindError as error:
        return Refusal(error.code, str(error)), ()
    return None, (*upload.notes, *query.prepared.notes[0])
