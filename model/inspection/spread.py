"""How the sources and receivers of a record are laid out: numbers, spacing, offsets, fold, and what kind of spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seisbind.model.inspection.traces import FieldTraces

Float64 = NDArray[np.float64]
Kind = Literal["fixed", "end-on", "towed", "rolling", "irregular"]

STATIONARY = 0.7  # of all pairs of a shot and a station have a trace where the receivers stay
STEADY = 0.9  # of the shots have the usual offsets where the receivers move with them
SAME_SHARE = 0.25  # of the spacing: closer positions are one station
WORDS: dict[Kind, str] = {
    "fixed": "the receivers stay while the shots move among them",
    "end-on": "the receivers stay, and every shot lies off the same end of them",
    "towed": "the receivers move with the shots, on one side of them",
    "rolling": "the receivers move with the shots, on both sides of them",
    "irregular": "the receivers neither stay nor move with the shots",
}


@dataclass(frozen=True, slots=True)
class Spread:
    """The layout of a record; lengths in metres, ranges from the lowest to the highest.

    Attributes:
        kind: one of `WORDS`.
        shot_spacing_m, receiver_spacing_m: the median of the steps; of receivers within a shot; None for one alone.
        widest_gap_m: the widest step between two receivers of a shot.
        channels: fewest and most traces of a shot.
        offset_m: nearest and farthest, whichever side.
        aperture_m: from the first to the last receiver of a shot, the median over the shots.
        across_m: how far positions spread across the line.
        fold: most traces in a common midpoint, in bins of half the receiver spacing.
        midpoint_m, fold_of: ``(bin,)`` the bins and the traces in each.
    """

    kind: Kind
    traces: int
    shots: int
    shot_x_m: tuple[float, float]
    shot_spacing_m: float | None
    receivers: int
    receiver_x_m: tuple[float, float]
    receiver_spacing_m: float | None
    widest_gap_m: float
    channels: tuple[int, int]
    offset_m: tuple[float, float]
    aperture_m: float
    length_m: float
    across_m: float
    fold: int
    midpoint_m: Float64
    fold_of: NDArray[np.intp]


def measure_spread(traces: FieldTraces) -> Spread:
    """The layout of all traces of a record."""
    order = np.lexsort((traces.receiver_x_m, traces.shot))
    shot, x = traces.shot[order], traces.receiver_x_m[order]
    source = traces.shot_x_m[order]
    starts = np.flatnonzero(np.diff(shot, prepend=-1))
    ends = np.append(starts[1:], len(shot)) - 1
    steps = np.diff(x)[np.diff(shot) == 0]
    steps = steps[steps > 0]
    spacing = float(np.median(steps)) if len(steps) else None
    tolerance = SAME_SHARE * (spacing or 0.0)
    stations, shot_x = _distinct(x, tolerance), source[starts]
    positions = _distinct(shot_x, tolerance)
    offset = np.abs(traces.offset_m)
    bin_m = (spacing or 1.0) / 2
    midpoint = np.round((traces.shot_x_m + traces.receiver_x_m) / 2 / bin_m).astype(np.int64)
    bins, fold_of = np.unique(midpoint, return_counts=True)
    channels = ends - starts + 1
    low, high = min(x.min(), shot_x.min()), max(x.max(), shot_x.max())
    return Spread(
        kind=_kind(shot_x, x[starts], x[ends], len(shot), len(stations), spacing or 0.0),
        traces=len(shot),
        shots=len(starts),
        shot_x_m=(float(shot_x.min()), float(shot_x.max())),
        shot_spacing_m=float(np.median(np.diff(positions))) if len(positions) > 1 else None,
        receivers=len(stations),
        receiver_x_m=(float(x.min()), float(x.max())),
        receiver_spacing_m=spacing,
        widest_gap_m=float(steps.max()) if len(steps) else 0.0,
        channels=(int(channels.min()), int(channels.max())),
        offset_m=(float(offset.min()), float(offset.max())),
        aperture_m=float(np.median(x[ends] - x[starts])),
        length_m=float(high - low),
        across_m=traces.across_m,
        fold=int(fold_of.max()),
        midpoint_m=np.asarray(bins * bin_m, np.float64),
        fold_of=fold_of.astype(np.intp),
    )


def _kind(shot_x: Float64, first: Float64, last: Float64, traces: int, stations: int, spacing: float) -> Kind:
    """What kind of spread: ``first`` and ``last`` are the ends of each shot's receivers."""
    near, far = first - shot_x, last - shot_x  # signed offsets of the ends
    slack = spacing / 2
    right, left = bool((near > slack).all()), bool((far < -slack).all())
    moves = bool(_scatter(near) < _scatter(first))  # with the shots, rather than staying: few shots show that, too
    if not moves and traces >= STATIONARY * len(shot_x) * stations:
        return "end-on" if right or left else "fixed"
    usual = np.maximum(np.abs(near - np.median(near)), np.abs(far - np.median(far))) <= 2 * spacing
    if usual.mean() < STEADY:
        return "irregular"
    beside = (near >= -slack) if np.median(near) >= -slack else (far <= slack)
    return "towed" if beside.mean() >= STEADY else "rolling"


def _scatter(x: Float64) -> float:
    """How far positions lie from their median, on the mean."""
    return float(np.abs(x - np.median(x)).mean())


def _distinct(x: Float64, tolerance: float) -> Float64:
    """The first of all positions that lie within a tolerance of it, and so on, ascending."""
    kept: list[float] = []
    for each in np.unique(x).tolist():
        if not kept or each - kept[-1] > tolerance:
            kept.append(each)
    return np.array(kept)
