"""A record looked at before it is asked about: what it is, what would be done with it, and what would be refused."""

from __future__ import annotations

from dataclasses import dataclass

from seisbind.model.errors import SeisBindError
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.inspection.scale_range import ScaleRange, scale_range
from seisbind.model.inspection.signal import Signal, measure_signal
from seisbind.model.inspection.spread import Spread, measure_spread
from seisbind.model.inspection.traces import FieldTraces
from seisbind.model.scale import UNSCALED, AutoScale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.scaling import ChosenScale
from seisbind.service.engine.query import Query
from seisbind.service.formats.npy import Limits
from seisbind.service.formats.reader import Geometry, read_gathers
from seisbind.service.formats.traces import read_traces


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a retrieval would be refused: the code and the sentence of its error."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of one gather of a file.

    Attributes:
        format, gathers: of the file; gather: which of them.
        traces: themselves.
        signal: None if every trace is dead, or has hardly a sample.
        scales: at which it could be read; None without a signal.
        notes: what was assumed of the traces, and what a retrieval would assume and do.
        refusal: None if ``seisbind retrieve`` takes the file as it is.
        auto: the scale that ``--scale auto`` would choose, and why; or why it would be refused.
    """

    format: str
    gathers: int
    gather: int
    traces: FieldTraces
    spread: Spread
    signal: Signal | None
    scales: ScaleRange | None
    notes: tuple[Note, ...]
    refusal: Refusal | None
    auto: ChosenScale | Refusal


def inspect_record(
    file: bytes,
    *,
    geometry: Geometry | None = None,
    gather: int = 0,
    limits: Limits | None = None,
    frame: Frame = OPENFWI_FRAME,
) -> Inspection:
    """Look at one gather of an npy, npz, SEG-Y or SU file, of any geometry.

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
    scales = None
    if signal is not None:
        scales = scale_range(
            frame,
            aperture_m=spread.aperture_m,
            length_m=spread.length_m,
            gap_m=spread.receiver_spacing_m or 0.0,
            record_s=found.traces.record_s,
            dt_s=found.traces.dt_s,
            band_hz=signal.band.usable_hz,
        )
    refusal, notes = _asked(file, geometry, gather, limits, frame)
    known = {note.code for note in notes}
    return Inspection(
        format=found.format,
        gathers=found.gathers,
        gather=gather,
        traces=found.traces,
        spread=spread,
        signal=signal,
        scales=scales,
        notes=(*(note for note in found.notes if note.code not in known), *notes),
        refusal=refusal,
        auto=_auto(file, geometry, gather, limits, frame),
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
