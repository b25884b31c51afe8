"""The traces of a file with their own positions, without a line that they have to lie on: for a look at any record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey, MalformedUpload
from seisbind.model.frame import OPENFWI_FRAME, Frame, check_finite
from seisbind.model.inspection.traces import FieldTraces, choose_traces, number_shots
from seisbind.model.survey.notes import Note
from seisbind.service.formats.npy import NPY_MAGIC, ZIP_MAGIC, Limits
from seisbind.service.formats.reader import TRACE_FORMATS, Geometry, read_stack
from seisbind.service.formats.segy import Headers, TraceFile
from seisbind.service.formats.segy_samples import decode
from seisbind.service.formats.trace_headers import AUXILIARY, DEAD, DUMMY, FOOT_M

Float64 = NDArray[np.float64]

ANGLES = (2, 3, 4)  # codes of bytes 89-90


@dataclass(frozen=True, slots=True)
class TraceSet:
    """``gathers``: in the file, of which ``traces`` are one's; ``notes``: what was assumed or cannot be used."""

    format: str
    gathers: int
    traces: FieldTraces
    notes: tuple[Note, ...]


def read_traces(
    file: bytes,
    *,
    geometry: Geometry | None = None,
    gather: int = 0,
    limits: Limits | None = None,
    frame: Frame = OPENFWI_FRAME,
) -> TraceSet:
    """The traces of an npy, npz, SEG-Y, SU or SEG-2 file, whatever the geometry.

    Args:
        file: its bytes.
        geometry: over what the file says, for arrays; of field files only ``dt_s`` is taken.
        gather: of a stack of arrays.
        frame: whose line arrays without positions are taken for, where they have its numbers of shots and receivers.

    Raises:
        UploadRefused: of no such format, self-contradictory, too large, or not of real numbers.
        InvalidSurvey: no sampling interval, or no positions.
        InvalidGather: no seismic trace.
    """
    geometry = geometry or Geometry()
    if not file.startswith((NPY_MAGIC, ZIP_MAGIC)):
        for each in TRACE_FORMATS:
            if each.looks_like(file):
                return _of_headers(each.read(file), geometry.dt_s)
    stack, geometry = read_stack(file, geometry=geometry, limits=limits or Limits())
    gathers = stack if stack.ndim == 4 else stack[None]
    if not 0 <= gather < len(gathers):
        raise MalformedUpload(f"There is no gather {gather}; the file holds {len(gathers)}, from 0.")
    traces, notes = _of_array(gathers[gather], geometry, frame)
    return TraceSet("npz" if file.startswith(ZIP_MAGIC) else "npy", len(gathers), traces, notes)


def _of_array(gather: NDArray[np.generic], geometry: Geometry, frame: Frame) -> tuple[FieldTraces, tuple[Note, ...]]:
    shots, samples, receivers = gather.shape
    notes: list[Note] = []
    shot_x_m, receiver_x_m = geometry.shot_x_m, geometry.receiver_x_m
    if shot_x_m is None or receiver_x_m is None:
        own = len(frame.shot_x_m), frame.receivers
        if (shots, receivers) != own:
            raise InvalidSurvey(
                f"{shots} shots into {receivers} receivers need positions: pass shot_x_m and receiver_x_m."
            )
        notes.append(Note("assumed_line", f"No positions were given; {frame.name}'s line was assumed."))
        shot_x_m, receiver_x_m = shot_x_m or frame.shot_x_m, receiver_x_m or frame.survey.receiver_x_m
    if len(shot_x_m) != shots or len(receiver_x_m) != receivers:
        raise InvalidSurvey(
            f"{len(shot_x_m)} shot and {len(receiver_x_m)} receiver positions; the gather has {shots} shots into "
            f"{receivers} receivers."
        )
    check_finite(np.array([*shot_x_m, *receiver_x_m], np.float64))
    if geometry.dt_s is None:
        notes.append(Note("assumed_dt", f"No dt_s was given; {frame.record_dt_s * 1e3:g} ms a sample was assumed."))
    shot = np.repeat(np.arange(shots), receivers)
    sampled = choose_traces(shot)
    traces = gather.transpose(0, 2, 1).reshape(shots * receivers, samples)
    return FieldTraces(
        shot=shot,
        shot_x_m=np.repeat(np.asarray(shot_x_m, np.float64), receivers),
        receiver_x_m=np.tile(np.asarray(receiver_x_m, np.float64), shots),
        across_m=0.0,
        dt_s=frame.record_dt_s if geometry.dt_s is None else geometry.dt_s,
        start_s=0.0,
        sampled=sampled,
        samples=traces[sampled].astype(np.float32),
    ), tuple(notes)


def _of_headers(file: TraceFile, dt_s: float | None) -> TraceSet:
    notes = list(file.notes)
    seismic = np.flatnonzero(~np.isin(file.headers["kind"], (DUMMY, *AUXILIARY)))
    if not len(seismic):
        raise InvalidGather(f"None of the {len(file.headers)} traces is seismic: bytes 29-30 say dummy or auxiliary.")
    headers = file.headers[seismic]
    interval_s = _interval_s(file, headers, notes) if dt_s is None else dt_s
    source, group, across_m = _along(headers, FOOT_M if file.measurement_system == 2 else 1.0, notes)
    shot = number_shots(source, headers["record"].astype(np.int64))
    sampled = choose_traces(shot)
    samples = decode(np.ascontiguousarray(file.words[seismic[sampled]]), file.coding)
    samples[headers["kind"][sampled] == DEAD] = 0
    start_s = float(np.median(headers["delay_ms"])) / 1e3
    traces = FieldTraces(shot, source, group, across_m, interval_s, start_s, sampled, samples)
    return TraceSet(file.format, 1, traces, tuple(notes))


def _interval_s(file: TraceFile, headers: Headers, notes: list[Note]) -> float:
    stated = sorted({file.dt_us, *np.unique(headers["dt_us"]).tolist()} - {0})
    if not stated:
        raise InvalidSurvey("The file states no sampling interval (0 us in all headers). Pass dt_s.")
    if len(stated) > 1:
        text = f"Several sampling intervals are stated, {stated[0]} to {stated[-1]} us; that of most traces is taken."
        notes.append(Note("intervals_disagree", text))
    of_traces = headers["dt_us"][headers["dt_us"] > 0]
    return float(np.median(of_traces) if len(of_traces) else stated[0]) * 1e-6


def _along(headers: Headers, unit_m: float, notes: list[Note]) -> tuple[Float64, Float64, float]:
    """Source and group positions along the direction that fits them best, and how far they spread across it."""
    scalco = headers["scalco"].astype(np.float64)
    scalar = np.where(scalco > 0, scalco, 1 / np.where(scalco < 0, -scalco, 1)) * unit_m
    source, group = (
        np.stack([headers[f"{of}_x"], headers[f"{of}_y"]], axis=1) * scalar[:, None] for of in ("source", "group")
    )
    if np.isin(headers["coordinate_units"], ANGLES).any():
        notes.append(Note("angles", "Bytes 89-90 call the coordinates angles; they are shown as if they were lengths."))
    points = np.concatenate([source, group])
    if not np.ptp(points, axis=0).any():
        if not headers["offset"].any():
            raise InvalidSurvey(
                "All source and group positions are the same, and no offset (bytes 37-40) is stated: the trace headers "
                "hold no geometry."
            )
        notes.append(Note("offsets_only", "The headers hold no positions; those shown come from bytes 37-40 alone."))
        return np.zeros(len(headers)), headers["offset"] * unit_m, 0.0
    if not np.ptp(points[:, 1]):
        return source[:, 0], group[:, 0], 0.0
    middle = points.mean(axis=0)
    direction = np.linalg.eigh(np.cov((points - middle).T))[1][:, 1]  # eigenvalues ascend
    if direction[0] < -1e-9 or (abs(direction[0]) <= 1e-9 and direction[1] < 0):
        direction = -direction
    across_m = float(np.ptp((points - middle) @ np.array([-direction[1], direction[0]])))
    origin = float(((group - middle) @ direction).min())
    return (source - middle) @ direction - origin, (group - middle) @ direction - origin, across_m
