"""Windows along a line: each as long as a frame's line, its pseudo-shots one gather on the frame's grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import DT_LIMITS_S, Frame
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.preparation import Prepared, set_polarity
from seisbind.model.survey.recorded import RANGE_BITS
from seisbind.model.survey.resampling import resample_traces
from seisbind.model.survey.shaping import suit_wavelet
from seisbind.model.survey.spreads import ROUNDING, Spread

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]
Index = NDArray[np.intp]

Read = Callable[[Index], Float32]  # trace numbers, increasing, to (trace, time): samples from the shot on

MIN_COVER = 0.25  # of the line: a pseudo-shot of fewer traces is left out
MIN_SHOTS = 2  # of a window, unless the whole line has one shot
MAX_WINDOWS = 1_000_000  # of a line: 8 MB of starts, and 345,000 km at half a window of OpenFWI's
FINE = 5  # traces within a node's neighbours from which on they are averaged, not interpolated
EVEN = 0.25  # least gap against the largest for a cubic interpolation; else linear
MAX_STARTS = 1000  # of windows that the best is chosen from
COST_STEP = 1e-9  # to which costs of places are rounded


@dataclass(frozen=True, slots=True)
class PseudoShot:
    """The traces of one place in a window.

    Attributes:
        x_m: of the place, from the window's start.
        trace: ``(n,)`` numbers.
        far_m: ``(n,)`` where their other ends lie, from the window's start, increasing.
        reversed: how many were recorded there, and not shot there.
        share: of the window that they cover.
    """

    x_m: float
    trace: Index
    far_m: Float64
    reversed: int
    share: float


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the line from ``start_m`` on, in metres of the frame, and its pseudo-shots by position."""

    start_m: float
    shots: tuple[PseudoShot, ...]


@dataclass(frozen=True, slots=True)
class WindowGather:
    """What was recorded in a window.

    Attributes:
        start_m: of the window, in metres of the frame.
        prepared: one gather; None where there is too little, and ``lack`` says what.
        lit: ``(receiver,)`` pseudo-shots of which a live trace runs over each receiver of the frame.
    """

    start_m: float
    prepared: Prepared | None
    lack: str | None
    lit: NDArray[np.int64]


def window_starts(spread: Spread, step_m: float) -> Float64:
    """Starts of windows that overlap evenly, at most ``step_m`` apart, each on a receiver where one is near.

    Raises:
        InvalidSurvey: more than `MAX_WINDOWS`.
    """
    frame, (low, high) = spread.frame, spread.extent_m
    beyond = high - low - frame.line_m
    count = _count(spread, step_m)
    if count > MAX_WINDOWS:
        raise InvalidSurvey(
            f"Traces lie over {high - low:g} m of the frame, {count} windows; at most {MAX_WINDOWS} are laid out. Are "
            "positions or scale in another unit? Else send a part of the line."
        )
    starts = np.linspace(low, low + max(beyond, 0.0), count)
    known = spread.receiver_m
    right = np.clip(np.searchsorted(known, starts), 1, max(len(known) - 1, 1))
    left = known[right - 1]
    right_m = known[np.minimum(right, len(known) - 1)]
    nearer = (starts - left) - (right_m - starts)
    inwards = np.where(starts > starts.mean(), 1, -1) * ROUNDING  # of two as near, so that a mirrored line is mirrored
    nearest = np.where(nearer <= inwards, left, right_m)
    return np.unique(np.where(np.abs(nearest - starts) <= frame.receiver_spacing_m, nearest, starts))


def _count(spread: Spread, step_m: float) -> int:
    beyond = spread.extent_m[1] - spread.extent_m[0] - spread.frame.line_m
    return 1 if beyond <= 0 else int(np.ceil(beyond / step_m - ROUNDING)) + 1


def choose_window(spread: Spread, start_m: float) -> Window:
    """The window from ``start_m`` on, with the pseudo-shots that cover it most evenly, at most as many as the frame's.

    Places are weighed as `shots.spread_shots` weighs shots, by the share of the line that their traces cover: the sum
    of the squared distances to evenly spread places, in steps, and of the squared uncovered per covered.
    """
    frame = spread.frame
    margin, count = frame.shot_margin_m * (1 + ROUNDING), len(frame.shot_x_m)
    low, high = np.searchsorted(spread.place_m, (start_m - margin, start_m + frame.line_m + margin))
    place = np.arange(low, high)
    end_m, beyond_m = start_m + frame.line_m, frame.max_gap_m  # from beyond, its ends are interpolated
    first, last = spread.between(place, start_m - frame.on_node_m, end_m + frame.on_node_m)
    some = last > first
    place, first, last = place[some], first[some], last[some]
    share = (spread.covered_m[last - 1] - spread.covered_m[first]) / frame.line_m
    enough = share >= MIN_COVER
    place, share = place[enough], np.minimum(share[enough], 1.0)
    first, last = spread.between(place, start_m - beyond_m, end_m + beyond_m)
    x = spread.place_m[place] - start_m
    chosen = np.arange(len(place)) if len(place) <= count else _spread_evenly(x, share, count, frame.line_m)
    return Window(
        start_m,
        tuple(
            PseudoShot(
                float(x[at]),
                spread.trace[first[at] : last[at]],
                spread.far_end_m(int(place[at]), int(first[at]), int(last[at])) - start_m,
                int(spread.reversed[first[at] : last[at]].sum()),
                float(share[at]),
            )
            for at in chosen
        ),
    )


def best_window(spread: Spread) -> Window:
    """The window that its pseudo-shots cover most, together; of those about as well covered, the evenest."""
    line_m = spread.frame.line_m
    if _count(spread, line_m / 8) <= MAX_STARTS:
        starts = window_starts(spread, line_m / 8)
    else:  # most of them may lie where nothing was recorded
        some = np.linspace(0, len(spread.place_m) - 1, MAX_STARTS).astype(int)
        starts = np.unique(spread.place_m[some]) - line_m / 2
    return max((choose_window(spread, float(start)) for start in starts), key=lambda window: _worth(window, spread))


def _worth(window: Window, spread: Spread) -> float:
    if not window.shots:
        return 0.0
    x, line_m, steps = np.array([shot.x_m for shot in window.shots]), spread.frame.line_m, max(len(window.shots) - 1, 1)
    uneven = float(np.square((x - np.linspace(0, line_m, len(x))) / (line_m / steps)).sum())
    return round(sum(shot.share for shot in window.shots) + 1 / (1 + uneven), 6)


def _spread_evenly(x: Float64, share: Float64, count: int, line_m: float) -> Index:
    """``count`` of more places, increasing, with the least sum of costs: see `choose_window`."""
    inside = np.clip(x, 0.0, line_m)
    places = np.linspace(inside.min(), inside.max(), count)
    step = max(float(places[-1] - places[0]) / (count - 1), 1.0)
    cost = np.square((x - places[:, None]) / step) + np.square((1 - share) / share)
    cost = np.rint(cost / COST_STEP)  # as whole numbers, equal choices are equal whatever the line's origin
    number = np.arange(len(x))
    ends, before = cost[0], []
    for row in cost[1:]:
        least = np.minimum.accumulate(ends)
        before.append(np.maximum.accumulate(np.where(ends == least, number, 0)))
        ends = np.append(np.inf, least[:-1]) + row
    chosen = [int(ends.argmin())]
    for back in reversed(before):
        chosen.append(int(back[chosen[-1] - 1]))
    return np.asarray(chosen[::-1])


def read_windows(
    windows: Sequence[Window], read: Read, *, frame: Frame, dt_s: float, sources: int, shape: Frame | None = None
) -> list[WindowGather]:
    """The gathers of several windows; each trace is read and resampled once.

    Args:
        read: gives samples from the shot on, as many as `resampling.samples_read` says, or fewer.
        frame: of the windows.
        dt_s: of the samples, in seconds of the frame.
        sources: places that something was shot at in the whole line: of one alone, one pseudo-shot is enough.
        shape: the frame in true units whose wavelets windows are suited to (`shaping.suit_wavelet`); None: as they are.
    """
    parts = map_windows(windows, read, lambda traces: resample_traces(traces, dt_s, frame), frame=frame)
    gathers = []
    for window, (traces, live) in zip(windows, parts, strict=True):
        x_m = np.array([shot.x_m for shot in window.shots])
        kept = live.mean(axis=1) >= MIN_COVER
        traces, live, x_m = traces[kept], live[kept], x_m[kept]
        lit = lit_receivers(live, x_m, frame)
        lack = lacking(live, sources, frame)
        prepared = None if lack else _prepared(traces, live, x_m, frame, shape)
        gathers.append(WindowGather(window.start_m, prepared, lack, lit))
    return gathers


def lacking(live: Bool, sources: int, frame: Frame) -> str | None:
    """A sentence if ``(shot, receiver)`` live traces are too few to answer from, else None."""
    least = min(MIN_SHOTS, sources)
    if len(live) < least:
        shots = "pseudo-shot has" if len(live) == 1 else "pseudo-shots have"
        return f"{len(live)} {shots} traces over {MIN_COVER:.0%} of the window; at least {least} are needed."
    at = np.flatnonzero(live.any(axis=0))
    span_m = float(at[-1] - at[0]) * frame.receiver_spacing_m
    if span_m < frame.min_line_m:
        return f"The traces span {span_m:g} m of the frame; at least {frame.min_line_m:g} m are needed."
    return None


def lit_receivers(live: Bool, shot_x_m: Float64, frame: Frame) -> NDArray[np.int64]:
    """``(receiver,)``: of how many shots each receiver lies between the shot and one of its live traces, or on one."""
    nodes = np.asarray(frame.survey.receiver_x_m)
    far = np.where(live, nodes, np.nan)
    with np.errstate(invalid="ignore"):
        left = np.fmin.reduce(far, axis=1, initial=np.inf) if len(live) else np.zeros(0)
        right = np.fmax.reduce(far, axis=1, initial=-np.inf) if len(live) else np.zeros(0)
    half = frame.receiver_spacing_m / 2
    low, high = np.minimum(left, shot_x_m) - half, np.maximum(right, shot_x_m) + half
    return np.asarray(((nodes >= low[:, None]) & (nodes <= high[:, None])).sum(axis=0))


def _prepared(traces: Float32, live: Bool, shot_x_m: Float64, frame: Frame, shape: Frame | None) -> Prepared:
    """One gather of ``(shot, receiver, time)``."""
    gather = np.ascontiguousarray(traces.transpose(0, 2, 1))
    peak = float(np.abs(gather).max())
    exponent = int(np.frexp(peak)[1])
    if abs(exponent) > RANGE_BITS:  # squares would leave the range of float32; the gain is removed later
        gather = np.ldexp(gather, -exponent)
    notes: tuple[Note, ...] = ()
    if shape is not None:
        gather, notes = suit_wavelet(gather, live, shot_x_m * (shape.line_m / frame.line_m), shape)
    notes += set_polarity(gather, live, shot_x_m, np.asarray(frame.survey.receiver_x_m), notes)
    return Prepared(gather[None], live[None], shot_x_m[None].astype(np.float32), (notes,), frame)


def map_windows(
    windows: Sequence[Window], read: Read, resample: Callable[[Float32], Float32], *, frame: Frame
) -> list[tuple[Float32, Bool]]:
    """For each window, traces ``(shot, receiver, time)`` and live ones ``(shot, receiver)`` on the frame's receivers.

    Traces that are constant in time, or not of finite numbers, are dead. A trace on a receiver is taken as it is; the
    rest are interpolated between neighbours at most `Frame.max_gap_m` apart: from four of them by a cubic, else
    linearly. Where traces lie far more closely than receivers, those about a receiver are averaged.
    """
    shots = [shot for window in windows for shot in window.shots]
    nodes = frame.receivers
    if not shots:
        return [(np.zeros((0, nodes, frame.samples), np.float32), np.zeros((0, nodes), bool)) for _ in windows]
    entry = np.concatenate([shot.trace for shot in shots])
    of_shot = np.repeat(np.arange(len(shots)), [len(shot.trace) for shot in shots])
    far_m = np.concatenate([shot.far_m for shot in shots])
    numbers, row = np.unique(entry, return_inverse=True)
    raw = read(numbers)
    with np.errstate(invalid="ignore", over="ignore"):
        high, low = raw.max(axis=1), raw.min(axis=1)  # both are NaN where a sample is
        alive = (high > low) & np.isfinite(high) & np.isfinite(low)
    if not alive.all():
        raw[~alive] = 0
    usable = alive[row]
    matrix, live = _weights(row[usable], of_shot[usable], far_m[usable], len(shots), len(numbers), frame)
    mapped = np.asarray(matrix @ resample(raw), dtype=np.float32).reshape(len(shots), nodes, -1)
    ends = np.cumsum([len(window.shots) for window in windows])
    parts = zip(np.split(mapped, ends[:-1]), np.split(live, ends[:-1]), strict=True)
    return list(parts)


def _weights(row: Index, of_shot: Index, far_m: Float64, shots: int, rows: int, frame: Frame) -> tuple[csr_array, Bool]:
    """``(shot * receiver, row)`` weights of traces in each receiver of the frame, and ``(shot, receiver)`` live."""
    step, gap_m = frame.receiver_spacing_m, frame.max_gap_m * (1 + ROUNDING)
    stride = frame.line_m + 8 * frame.max_gap_m  # positions of one shot are far from those of the next
    node = (np.arange(shots)[:, None] * stride + np.arange(frame.receivers) * step).ravel()
    pad = stride * np.arange(-5.0, -2), stride * (shots + np.arange(3.0, 6))  # three neighbours on either side of any
    key = np.concatenate([pad[0], of_shot * stride + far_m, pad[1]])
    around = np.searchsorted(key, node)[:, None] + np.arange(-3, 3)
    x = key[around] - node[:, None]
    gaps = np.diff(x, axis=1)
    between = gaps[:, 2] <= gap_m
    weights = np.zeros_like(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights[:, 2], weights[:, 3] = x[:, 3] / gaps[:, 2], -x[:, 2] / gaps[:, 2]
    open_ = between.copy()
    for first in (1, 2, 0):  # two on either side, else three on one
        apart = gaps[:, first : first + 3]
        cubic = open_ & (apart.max(axis=1) <= gap_m) & (apart.min(axis=1) >= EVEN * apart.max(axis=1))
        weights[cubic] = 0
        weights[cubic, first : first + 4] = _cubic(x[cubic, first : first + 4])
        open_ &= ~cubic
    weights[~between] = 0
    nearest = np.abs(x).argmin(axis=1)
    on_node = np.abs(x[np.arange(len(x)), nearest]) <= frame.on_node_m * (1 + ROUNDING)
    weights[on_node] = 0
    weights[on_node, nearest[on_node]] = 1
    live = between | on_node
    columns = np.clip(around - len(pad[0]), 0, max(len(row) - 1, 0))
    used = weights != 0
    low, high = np.searchsorted(key, node - step * (1 - ROUNDING)), np.searchsorted(key, node + step * (1 - ROUNDING))
    fine = (high - low >= FINE) & live
    used[fine] = False
    at = np.nonzero(used)
    value, column, line = weights[used], columns[used], at[0]
    if fine.any():
        count = (high - low)[fine]
        fine_line = np.repeat(np.flatnonzero(fine), count)
        entry = np.arange(len(fine_line)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low[fine], count)
        hat = 1 - np.abs(key[entry] - node[fine_line]) / step
        total = np.bincount(fine_line, hat, len(node))
        value, column = np.append(value, hat / total[fine_line]), np.append(column, entry - len(pad[0]))
        line = np.append(line, fine_line)
    matrix = csr_array((value.astype(np.float32), (line, row[column] if len(row) else column)), shape=(len(node), rows))
    return matrix, live.reshape(shots, -1)


def _cubic(x: Float64) -> Float64:
    """``(n, 4)`` Lagrange's weights of four points ``(n, 4)`` at zero."""
    weights = np.ones_like(x)
    for i in range(4):
        for j in range(4):
            if i != j:
                weights[:, i] *= -x[:, j] / (x[:, i] - x[:, j])
    return weights


def frame_interval(dt_s: float, scale: Scale = UNSCALED) -> float:
    """A sampling interval in the frame's seconds.

    Raises:
        InvalidSurvey: too coarse for any frame.
    """
    interval = dt_s / scale.time
    if not interval <= DT_LIMITS_S[1] * (1 + ROUNDING):
        raise InvalidSurvey(
            f"A sampling interval of {dt_s * 1e3:g} ms is {interval * 1e3:g} ms of the frame at scale s = {scale.s:g}, "
            f"k = {scale.k:g}; at most {DT_LIMITS_S[1] * 1e3:g} ms are possible. Take a larger s."
        )
    return interval
