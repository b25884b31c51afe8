"""A 2-D line of shots and receivers from traces that each have a source and a group position.

A `Survey` has one line of receivers that all shots share; a field file has a position in every trace header. Where all
shots share their receivers, or lack a few, the union is the line and what is missing is dead. Of a line longer than the
frame's the window with the most traces is taken. Straight lines whose spread moves with its shots are `MovingSpread`,
which `windows` reads; what is no line at all is refused with the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import MAX_SHOTS, OPENFWI_FRAME, Frame
from seisbind.model.survey.notes import Note
from seisbind.model.survey.resampling import SINC_HALF_WIDTH

Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

CROSS_SHARE = 0.05  # of the line, or of the frame's if it is longer: 35 m across change an offset of 300 m by 2 m
SAME_SHARE = 0.25  # of the receiver spacing, at most `Frame.on_node_m`: closer positions are one station
MIN_FILL = 0.7  # of the shot-receiver pairs of a window must have a trace, or the spread differs for each shot
MAX_STATIONS = 20_000  # of shots or of receivers in a file; a window has at most 1000
MAX_STARTS = 1000  # windows compared; of longer lines not every start is tried
MAX_TRIALS = 500_000  # shots looked at meanwhile


class MovingSpread(InvalidSurvey):
    """Traces on a straight line that have no receivers in common, as those of a towed cable."""


@dataclass(frozen=True, slots=True)
class TracePositions:
    """Where traces were shot and recorded, in metres.

    Attributes:
        source_xy_m: ``(trace, 2)``; x and y.
        group_xy_m: ``(trace, 2)``.
        record: ``(trace,)`` field record numbers.
        channel: ``(trace,)`` trace numbers within a record.
    """

    source_xy_m: Float64
    group_xy_m: Float64
    record: NDArray[np.int64]
    channel: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.record)


@dataclass(frozen=True, slots=True)
class Line:
    """Which trace is which shot into which receiver.

    Attributes:
        shot_x_m: along the line.
        receiver_x_m: along the line, increasing.
        trace: ``(shot, receiver)``: number of the trace, -1 where there is none.
        duplicates: ``(pair, 2)``: traces of the same shot and receiver.
        shots, receivers: in the whole file.
        notes: on what was done and assumed.
    """

    shot_x_m: tuple[float, ...]
    receiver_x_m: tuple[float, ...]
    trace: Index
    duplicates: Index
    shots: int
    receivers: int
    notes: tuple[Note, ...]


def lay_out(
    traces: TracePositions,
    *,
    shot_x_m: tuple[float, ...] | None = None,
    receiver_x_m: tuple[float, ...] | None = None,
    frame: Frame = OPENFWI_FRAME,
) -> Line:
    """Sort traces into one line.

    Args:
        traces: of the whole file.
        shot_x_m: positions that override the traces' own, one per shot in the order of the record numbers.
        receiver_x_m: the same for the receivers, one per channel of every shot, in the order of the channel numbers.
        frame: that the line will be mapped to.

    Raises:
        MovingSpread: a spread that moves with its shots, or stations without number.
        InvalidSurvey: no positions, not one straight line, or positions that do not fit the traces.
    """
    notes: list[Note] = []
    source, group = np.zeros(len(traces)), np.zeros(len(traces))
    if shot_x_m is None or receiver_x_m is None:
        source, group = project(traces, notes, shot_x_m, receiver_x_m, frame.line_m)
    given = shot_x_m is not None or receiver_x_m is not None
    if receiver_x_m is None:
        tolerance = _tolerance(source, group, frame)
        receiver, station_x = _stations(group, tolerance)
    else:
        tolerance, receiver, station_x = frame.on_node_m, np.zeros(len(traces), dtype=np.intp), np.zeros(0)
    if shot_x_m is None:
        shot, shot_x = _shots(source, receiver if receiver_x_m is None else None, traces.record, tolerance)
    else:
        shot, shot_x = _given_shots(traces, shot_x_m)
    if receiver_x_m is not None:
        receiver, station_x = _by_channel(shot, traces.channel, receiver_x_m), np.asarray(receiver_x_m)
    shots, receivers = len(shot_x), len(station_x)
    _note_order(shot, receiver, notes)
    order = np.lexsort((np.arange(len(traces)), receiver, shot))
    pair = (shot * np.int64(receivers) + receiver)[order]
    again = np.flatnonzero(np.diff(pair) == 0) + 1
    duplicates = np.stack([order[again - 1], order[again]], axis=1)
    if len(again):
        notes.append(Note("duplicate_traces", f"{len(again)} traces repeat another sample by sample; used once."))
        order, pair = np.delete(order, again), np.delete(pair, again)
    if given:
        if shots > MAX_SHOTS:
            raise InvalidSurvey(f"The file holds {shots} shots; at most {MAX_SHOTS} are used at a time.")
        chosen_shots, chosen = np.arange(shots), np.arange(receivers)
        core = receivers
    else:
        chosen_shots, chosen, core = _select_window(pair, shot_x, station_x, frame, notes)
    table = np.full((len(chosen_shots), len(chosen)), -1, dtype=np.intp)
    row, column = np.full(shots, -1), np.full(receivers, -1)
    row[chosen_shots], column[chosen] = np.arange(len(chosen_shots)), np.arange(len(chosen))
    at_shot, at_receiver = row[pair // receivers], column[pair % receivers]
    inside = (at_shot >= 0) & (at_receiver >= 0)
    table[at_shot[inside], at_receiver[inside]] = order[inside]
    missing = int((table[:, :core] < 0).sum())
    if missing:
        whole = len(chosen_shots) * core
        if not given and missing > (1 - MIN_FILL) * whole:
            raise MovingSpread(
                f"The spread is another for each shot: of {len(chosen_shots)} shots into {core} receivers, {missing} "
                f"of {whole} pairs have no trace; at most {1 - MIN_FILL:.0%} may lack. Send shots that share receivers."
            )
        text = f"{missing} of {whole} pairs of a shot and a receiver have no trace; they count as dead."
        notes.append(Note("missing_traces", text))
    return Line(
        tuple(float(x) for x in shot_x[chosen_shots]),
        tuple(float(x) for x in station_x[chosen]),
        table,
        duplicates,
        shots,
        receivers,
        tuple(notes),
    )


def project(
    traces: TracePositions, notes: list[Note], shot_x_m: object, receiver_x_m: object, line_m: float
) -> tuple[Float64, Float64]:
    """Source and group positions along the line: x itself, or along the direction that fits them best.

    ``line_m``: of the frame, in the positions' metres.
    """
    parts = [xy for xy, given in ((traces.source_xy_m, shot_x_m), (traces.group_xy_m, receiver_x_m)) if given is None]
    points = np.concatenate(parts)
    extent = np.ptp(points, axis=0)
    if not extent.any():
        raise InvalidSurvey(
            f"All {len(points)} source and group positions are the same: the trace headers hold no geometry. Pass "
            "shot_x_m and receiver_x_m in metres."
        )
    if not extent[1]:
        return traces.source_xy_m[:, 0], traces.group_xy_m[:, 0]
    middle = points.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov((points - middle).T))
    direction = axes[:, 1]  # eigenvalues ascend
    if direction[0] < -1e-9 or (abs(direction[0]) <= 1e-9 and direction[1] < 0):
        direction = -direction
    along = (points - middle) @ direction
    across = float(np.ptp((points - middle) @ np.array([-direction[1], direction[0]])))
    length = float(np.ptp(along))
    allowed = CROSS_SHARE * min(length, line_m)
    if across > allowed:
        raise InvalidSurvey(
            f"The positions are no 2-D line: they spread {across:.1f} m across their best-fit direction and "
            f"{length:.1f} m along it; allowed are {allowed:.1f} m ({CROSS_SHARE:.0%} of the line, or of "
            f"{line_m:g} m). Send one straight line."
        )
    azimuth = float(np.degrees(np.arctan2(direction[0], direction[1])) % 360)
    text = f"Positions projected on the line's direction, azimuth {azimuth:.1f} degrees; up to {across:.1f} m across."
    notes.append(Note("projected", text))
    first = (traces.group_xy_m - middle) @ direction if receiver_x_m is None else along
    origin = middle + direction * float(first.min())
    return (traces.source_xy_m - origin) @ direction, (traces.group_xy_m - origin) @ direction


def _tolerance(source: Float64, group: Float64, frame: Frame) -> float:
    """How close two group positions are one station: a share of the usual spacing within a shot."""
    order = np.lexsort((group, source))
    step = np.diff(group[order])
    step = step[(np.diff(source[order]) == 0) & (step > 0)]
    return min(frame.on_node_m, SAME_SHARE * float(np.median(step))) if len(step) else frame.on_node_m


def _stations(x: Float64, tolerance: float) -> tuple[Index, Float64]:
    """The number of each position's station, and the stations' positions, ascending."""
    unique, inverse = np.unique(x, return_inverse=True)
    starts = np.flatnonzero(np.diff(unique, prepend=-np.inf) > tolerance)
    ends = np.append(starts[1:], len(unique)) - 1
    low, high = unique[starts], unique[ends]
    if len(starts) > MAX_STATIONS:
        raise MovingSpread(f"{len(starts)} positions along the line; at most {MAX_STATIONS}. Send a part of it.")
    if (high - low).max() > 2 * tolerance:
        at = int((high - low).argmax())
        raise MovingSpread(
            f"Positions from {low[at]:g} to {high[at]:g} m lie so close together that shots have no common stations "
            f"(closer than {tolerance:g} m counts as the same). Bin them first, or pass receiver_x_m."
        )
    number = np.repeat(np.arange(len(starts)), ends - starts + 1)
    return number[inverse.ravel()], (low + high) / 2


def _shots(
    source: Float64, receiver: Index | None, record: NDArray[np.int64], tolerance: float
) -> tuple[Index, Float64]:
    """Traces of one source position are a shot, unless they record a receiver twice under several record numbers."""
    position, position_x = _stations(source, tolerance)
    if receiver is None:
        repeated = np.ones(len(position_x), dtype=bool)
    else:
        order = np.lexsort((receiver, position))
        same = (np.diff(position[order]) == 0) & (np.diff(receiver[order]) == 0)
        repeated = np.zeros(len(position_x), dtype=bool)
        repeated[position[order][1:][same]] = True
    _, number = np.unique(record, return_inverse=True)
    key = position * np.int64(len(record) + 1) + np.where(repeated[position], number.ravel() + 1, 0)
    shots, shot = np.unique(key, return_inverse=True)
    if len(shots) > MAX_STATIONS:
        raise MovingSpread(f"{len(shots)} shots along the line; at most {MAX_STATIONS}. Send a part of it.")
    return shot.ravel(), position_x[shots // (len(record) + 1)]


def _given_shots(traces: TracePositions, shot_x_m: tuple[float, ...]) -> tuple[Index, Float64]:
    """Shots by record number, or by source position where there is one record number only."""
    records, shot = np.unique(traces.record, return_inverse=True)
    if len(records) == 1:
        _, shot = np.unique(traces.source_xy_m, axis=0, return_inverse=True)
    found = int(shot.max()) + 1
    if found != len(shot_x_m):
        raise InvalidSurvey(f"{len(shot_x_m)} shot positions were passed; the file holds {found} shots.")
    return shot.ravel(), np.asarray(shot_x_m, dtype=np.float64)


def _by_channel(shot: Index, channel: NDArray[np.int64], receiver_x_m: tuple[float, ...]) -> Index:
    """Receivers by channel number where each shot has them all, else by the traces' order in the file."""
    order = np.argsort(shot, kind="stable")
    counts = np.bincount(shot)
    if (counts != len(receiver_x_m)).any():
        at = int(np.argmax(counts != len(receiver_x_m)))
        raise InvalidSurvey(
            f"{len(receiver_x_m)} receiver positions were passed; shot {at} of {len(counts)} has {counts[at]} traces."
        )
    grid = channel[order].reshape(len(counts), -1)
    ranked = np.sort(grid, axis=1)
    distinct = bool((np.diff(ranked, axis=1) > 0).all()) and bool((ranked == ranked[0]).all())
    in_file = np.broadcast_to(np.arange(grid.shape[1]), grid.shape)
    rank = np.argsort(np.argsort(grid, axis=1), axis=1) if distinct else in_file
    receiver = np.empty(len(shot), dtype=np.intp)
    receiver[order] = rank.ravel()
    return receiver


def _note_order(shot: Index, receiver: Index, notes: list[Note]) -> None:
    """A note unless shots are whole, one after the other, and their receivers ascend or descend."""
    new_shot = np.diff(shot) != 0
    step = np.diff(receiver)[~new_shot]
    scattered = int(new_shot.sum()) + 1 > len(np.unique(shot))
    if scattered or not ((step >= 0).all() or (step <= 0).all()):
        notes.append(Note("traces_sorted", "The traces are in no order of shots and receivers; sorted by position."))


def _select_window(
    pair: NDArray[np.int64], shot_x: Float64, station_x: Float64, frame: Frame, notes: list[Note]
) -> tuple[Index, Index, int]:
    """The shots and receivers of the frame-long window with the most traces, and how many receivers lie in it.

    A shot counts if it lies among the receivers that recorded it there, or at most `Frame.shot_margin_m` outside
    them.
    ``pair``: sorted ``shot * receivers + receiver`` of the traces that exist.
    """
    line_m, margin_m, on_node_m = frame.line_m, frame.shot_margin_m, frame.on_node_m
    tail_m = SINC_HALF_WIDTH * frame.max_gap_m  # kept behind the window, for the interpolation of its end
    receivers = len(station_x)
    base = np.arange(len(shot_x)) * np.int64(receivers)
    last = int(np.searchsorted(station_x, station_x[-1] - line_m - on_node_m))  # later starts see less of the line
    starts = np.unique(np.linspace(0, last, min(last + 1, MAX_STARTS, max(1, MAX_TRIALS // len(shot_x)))).astype(int))
    best: tuple[int, int, int, Index] = (0, 0, 0, np.zeros(0, dtype=np.intp))
    for start in starts:
        end = int(np.searchsorted(station_x, station_x[start] + line_m + on_node_m, side="right"))
        low, high = np.searchsorted(pair, base + start), np.searchsorted(pair, base + end)
        some = high > low
        first = station_x[pair[np.minimum(low, len(pair) - 1)] % receivers]
        final = station_x[pair[high - 1] % receivers]
        among = some & (shot_x >= first - margin_m) & (shot_x <= final + margin_m)
        traces = int((high - low)[among].sum())
        if traces > best[0]:
            best = (traces, int(start), end, np.flatnonzero(among))
    traces, start, end, shots = best
    if not traces:
        first, final = station_x[pair[np.searchsorted(pair, base)] % receivers], station_x[
            pair[np.searchsorted(pair, base + receivers) - 1] % receivers
        ]  # fmt: skip
        beyond = np.maximum(np.maximum(first - shot_x, shot_x - final), 0)
        raise MovingSpread(
            f"No shot lies among its receivers: {len(shot_x)} shots at {shot_x.min():g} to {shot_x.max():g} m, "
            f"recorded at {station_x[0]:g} to {station_x[-1]:g} m, each {beyond.min():g} to {beyond.max():g} m off the "
            f"end of its spread; allowed are {margin_m:g} m for a line of {line_m:g} m with shots on it."
        )
    if len(shots) < len(shot_x) or station_x[-1] - station_x[0] > line_m + on_node_m:
        text = (
            f"Of {len(shot_x)} shots into receivers at {station_x[0]:g} to {station_x[-1]:g} m, the {len(shots)} shots "
            f"among the receivers at {station_x[start]:g} to {station_x[end - 1]:g} m were used."
        )
        notes.append(Note("line_window", text))
    if len(shots) > MAX_SHOTS:
        text = f"{len(shots)} shots lie on the line; {MAX_SHOTS} of them, evenly chosen, were read."
        notes.append(Note("shots_thinned", text))
        shots = shots[np.linspace(0, len(shots) - 1, MAX_SHOTS).round().astype(int)]
    tail = int(np.searchsorted(station_x, station_x[start] + line_m + tail_m, side="right"))
    return shots, np.arange(start, tail), end - start
