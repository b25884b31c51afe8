"""Shot gathers from a field file (`segy.TraceFile`), whose headers `trace_headers` reads."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey, MalformedUpload, UploadTooLarge
from seisbind.model.frame import ANY_DT_S, OPENFWI_FRAME, Frame
from seisbind.model.scale import AutoScale
from seisbind.model.survey.line import Line, MovingSpread, TracePositions, lay_out
from seisbind.model.survey.notes import Note
from seisbind.model.survey.recorded import ROUNDING, short_line
from seisbind.model.survey.resampling import SINC_HALF_WIDTH
from seisbind.model.survey.scaling import ChosenScale, chosen_for, measured_traces
from seisbind.model.survey.spreads import PLACE_SHARE, lay_spread
from seisbind.model.survey.windows import MIN_COVER, best_window, lacking, map_windows
from seisbind.service.formats.segy import TraceFile
from seisbind.service.formats.segy_samples import decode, sample_check
from seisbind.service.formats.trace_headers import (
    DEAD,
    length_units,
    receiver_spread,
    recording_delay,
    sampling_interval,
    seismic_traces,
    trace_positions,
)

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

BLOCK_SAMPLES = 1 << 16  # decoded at once


@dataclass(frozen=True, slots=True)
class FieldRecord:
    """``gathers``: ``(shot, time, receiver)`` float32, zero where no trace is, with positions in metres."""

    gathers: Float32
    shot_x_m: tuple[float, ...]
    receiver_x_m: tuple[float, ...]
    dt_s: float
    traces: int
    units: str
    notes: tuple[Note, ...]


def read_field_record(
    file: TraceFile,
    *,
    max_bytes: int,
    dt_s: float | None = None,
    shot_x_m: tuple[float, ...] | None = None,
    receiver_x_m: tuple[float, ...] | None = None,
    frame: Frame = OPENFWI_FRAME,
) -> FieldRecord:
    """One gather of all shots on the line; of a spread that moves with its shots, pseudo-shots of its best window.

    Args:
        file: headers and samples as stored.
        max_bytes: that the gather may occupy as float32, at most.
        dt_s: overrides the file's sampling interval.
        shot_x_m, receiver_x_m: see `seisbind.model.survey.line.lay_out`.
        frame: of the weights, whose line and time are kept.

    Raises:
        MalformedUpload: headers or samples that contradict each other.
        InvalidSurvey: sampling or positions that are missing or cannot be used.
        InvalidGather: a record without a seismic trace.
        UploadTooLarge: more than ``max_bytes``.
    """
    notes = list(file.notes)
    seismic = seismic_traces(file.headers, notes)
    headers = file.headers[seismic]
    step_s = sampling_interval(file, headers, dt_s, frame.dt_limits_s, notes)
    delay, samples = recording_delay(headers, step_s, frame, notes), file.words.shape[1]
    short = (samples + delay) * step_s < frame.min_record_s * ROUNDING
    moving: MovingSpread | None = None
    try:
        factor, units = (1.0, "m") if shot_x_m and receiver_x_m else length_units(file, headers, notes)
        positions = trace_positions(headers, factor, notes, bool(shot_x_m and receiver_x_m))
        line = lay_out(positions, shot_x_m=shot_x_m, receiver_x_m=receiver_x_m, frame=frame)
        of_line = short_line(line.receiver_x_m, frame)
    except InvalidSurvey as error:
        of_line = str(error)
        if isinstance(error, MovingSpread) and not (shot_x_m or receiver_x_m):
            moving = error
        elif not short:
            raise
    if short:
        sentence = (
            f"The record ends {(samples + delay) * step_s:.3f} s after the shot ({samples} samples of "
            f"{step_s * 1e3:g} ms); at least {frame.min_record_s:g} s are needed."
        )
        raise InvalidGather(f"{sentence} {of_line}" if of_line else sentence)
    keep_s = frame.duration_s + 2 * SINC_HALF_WIDTH * frame.dt_limits_s[1]  # all that the resampling looks at
    kept = max(0, min(samples + delay, math.ceil(keep_s / step_s)))
    if samples + delay > kept:
        text = f"{(samples + delay) * step_s:.3f} s were recorded; the first {frame.duration_text} is used."
        notes.append(Note("record_long", text))
    if moving is not None:
        record = FieldRecord(np.zeros(0, np.float32), (), (), step_s, len(file.headers), units, tuple(notes))
        return _window_record(record, file, seismic, positions, moving, delay=delay, kept=kept, frame=frame)
    size = line.trace.size * kept * 4
    if size > max_bytes:
        raise UploadTooLarge(
            f"{line.trace.shape[0]} shots into {line.trace.shape[1]} receivers of {kept} samples are {size} bytes as "
            f"float32; the limit is {max_bytes}."
        )
    _compare_duplicates(file, seismic, line)
    gathers = np.zeros((line.trace.shape[0], kept, line.trace.shape[1]), dtype=np.float32)
    check, dead = sample_check(file.coding), 0
    block = max(1, BLOCK_SAMPLES // kept)
    for shot, row in zip(gathers, line.trace, strict=True):
        receivers = np.flatnonzero(row >= 0)
        killed = headers["kind"][row[receivers]] == DEAD
        dead += int(killed.sum())
        receivers = receivers[~killed]
        for start in range(0, len(receivers), block):
            some = receivers[start : start + block]
            words = file.words[seismic[row[some]], max(0, -delay) : kept - delay]
            check.add(words)
            shot[max(0, delay) : max(0, delay) + words.shape[1], some] = decode(words, file.coding).T
    if dead:
        notes.append(Note("marked_dead", f"{dead} traces are marked dead in their headers and count as such."))
    notes += check.verdict()
    return FieldRecord(
        gathers, line.shot_x_m, line.receiver_x_m, step_s, len(file.headers), units, (*notes, *line.notes)
    )


def _window_record(
    record: FieldRecord,
    file: TraceFile,
    seismic: NDArray[np.intp],
    positions: TracePositions,
    moving: MovingSpread,
    *,
    delay: int,
    kept: int,
    frame: Frame,
) -> FieldRecord:
    """``record`` with the pseudo-shots of the window that has the most traces, on the frame's receivers.

    Raises:
        InvalidSurvey: no window has enough; the sentence is that of ``moving``, and what is missing.
    """
    dead = file.headers["kind"][seismic] == DEAD
    try:
        spread, notes = lay_spread(positions, frame=frame, usable=~dead)
    except InvalidSurvey as error:
        raise InvalidSurvey(f"{moving} {error}") from error
    window, check = best_window(spread), sample_check(file.coding)

    def read(numbers: NDArray[np.intp]) -> Float32:
        words = file.words[seismic[numbers], max(0, -delay) : kept - delay]
        check.add(words)
        return np.pad(decode(words, file.coding), ((0, 0), (max(0, delay), 0)))

    ((traces, live),) = map_windows([window], read, lambda traces: traces, frame=frame)
    enough = live.mean(axis=1) >= MIN_COVER
    lack = lacking(live[enough], spread.sources, frame)
    if lack is not None:
        raise InvalidSurvey(f"{moving} Nor can pseudo-shots be made of it: {lack}")
    shots = [shot for shot, kept_shot in zip(window.shots, enough, strict=True) if kept_shot]
    count, turned = sum(len(shot.trace) for shot in shots), sum(shot.reversed for shot in shots)
    where = ", ".join(f"{window.start_m + shot.x_m:g}" for shot in shots)
    tolerance_m = PLACE_SHARE * frame.receiver_spacing_m
    text = (
        f"The spread moves with its shots, or no two share receivers: from {window.start_m:g} m on, {count} traces "
        f"whose source or receiver lies within {tolerance_m:g} m of {where} m are pseudo-shots there, {turned} of them "
        "by reciprocity, with source and receiver exchanged."
    )
    if dead.any():
        notes += (Note("marked_dead", f"{int(dead.sum())} traces are marked dead in their headers and count as such."),)
    gathers = np.where(live[enough][..., None], traces[enough], np.float32(0)).transpose(0, 2, 1)
    return replace(
        record,
        gathers=np.ascontiguousarray(gathers),
        shot_x_m=tuple(window.start_m + shot.x_m for shot in shots),
        receiver_x_m=tuple(window.start_m + x for x in frame.survey.receiver_x_m),
        notes=(*record.notes, *check.verdict(), *notes, Note("moving_spread", text)),
    )


@dataclass(frozen=True, slots=True)
class Extent:
    """The size of a field record, before it is known which part of it is a line of which frame.

    Attributes:
        traces: ``(trace, time)`` some of its seismic traces, from the shot on.
        offset_m: ``(trace,)`` of these; 0 where it is not known.
        aperture_m: from the first to the last receiver of a shot, median over shots.
        spacing_m: of neighbouring receivers of a shot, median.
        record_s: from the shot to the last sample.
    """

    traces: Float32
    offset_m: Float64
    aperture_m: float
    spacing_m: float
    record_s: float
    dt_s: float

    def choose(self, asked: AutoScale, frame: Frame) -> ChosenScale:
        """See `seisbind.model.survey.scaling.chosen_for`."""
        return chosen_for(
            asked,
            traces=self.traces,
            offset_m=self.offset_m,
            aperture_m=self.aperture_m,
            record_s=self.record_s,
            spacing_m=self.spacing_m,
            dt_s=self.dt_s,
            frame=frame,
        )


def read_extent(file: TraceFile, *, dt_s: float | None = None, receiver_x_m: tuple[float, ...] | None = None) -> Extent:
    """How large a record is, for a scale to be chosen; arguments as in `read_field_record`.

    Raises:
        MalformedUpload, InvalidSurvey, InvalidGather: as `read_field_record`.
    """
    unsaid: list[Note] = []  # `read_field_record` says it
    seismic = seismic_traces(file.headers, unsaid)
    headers = file.headers[seismic]
    step_s = sampling_interval(file, headers, dt_s, ANY_DT_S, unsaid)
    delays = np.unique(headers["delay_ms"])
    delay = round(float(delays[0]) / 1e3 / step_s) if len(delays) == 1 else 0
    samples = file.words.shape[1]
    some = measured_traces(len(seismic), samples)
    if receiver_x_m is None:
        at = trace_positions(headers, length_units(file, headers, unsaid)[0], unsaid, False)
        aperture, spacing = receiver_spread(at)
        offset = np.hypot(*(at.group_xy_m - at.source_xy_m)[some].T) if delay <= 0 else np.zeros(len(some))
    else:
        aperture = max(receiver_x_m) - min(receiver_x_m)
        spacing = float(np.median(np.diff(receiver_x_m))) if len(receiver_x_m) > 1 else np.inf
        offset = np.zeros(len(some))
    words = file.words[seismic[some], min(samples, max(0, -delay)) :]
    return Extent(decode(words, file.coding), offset, aperture, spacing, (samples + delay) * step_s, step_s)


def _compare_duplicates(file: TraceFile, seismic: NDArray[np.intp], line: Line) -> None:
    for first, second in seismic[line.duplicates]:
        if not np.array_equal(file.words[first], file.words[second]):
            raise MalformedUpload(
                f"Traces {first + 1} and {second + 1} are of the same shot and receiver and differ: stack them or "
                f"leave one out ({len(line.duplicates)} such pairs)."
            )
