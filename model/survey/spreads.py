"""Traces along a straight line, sorted by place: what was shot there and, by reciprocity, what was recorded there.

Source and receiver may be exchanged without changing a pressure record, so a trace belongs to both of its ends. The
traces of one place together are a pseudo-shot. Of a towed cable, which only trails its source, it has two sides: the
cable behind the place, and the shots fired further on while the cable passed over it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import MAX_POSITION_M, OPENFWI_FRAME, Frame
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.line import TracePositions, project
from seisbind.model.survey.notes import Note

Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

PLACE_SHARE = 0.5  # of the receiver spacing: an end this close to a place belongs to it, its offset kept
ROUNDING = 1e-6  # of a width: positions are decimal numbers, and a survey may be moved


@dataclass(frozen=True, slots=True)
class Spread:
    """Traces of a line by place, in metres of a frame.

    An entry is one end of a trace at a place. Where the end lies beside its place, by up to half a receiver spacing of
    the frame, the trace is moved with it: its offset is right, its midpoint is off by as much.

    Attributes:
        frame: whose metres they are.
        place_m: ``(place,)``, increasing.
        key: ``(entry,)``, increasing: the place's number times `stride_m`, plus the offset from the place, signed.
        trace: ``(entry,)`` number of the trace.
        reversed: ``(entry,)`` whether it was recorded at the place, and not shot there.
        covered_m: ``(entry,)`` running sum of the gaps between entries of a place that may be interpolated.
        receiver_m: where traces were recorded, each position once, increasing.
        extent_m: first and last end of the traces.
        sources: places that something was shot at.
    """

    frame: Frame
    place_m: Float64
    key: Float64
    trace: Index
    reversed: NDArray[np.bool_]
    covered_m: Float64
    receiver_m: Float64
    extent_m: tuple[float, float]
    sources: int

    def between(self, place: Index, low_m: float, high_m: float) -> tuple[Index, Index]:
        """First entry and the one after the last of each place whose far ends lie from ``low_m`` to ``high_m``."""
        reach, base = reach_m(self.frame), place * stride_m(self.frame)
        low = np.clip(low_m - self.place_m[place], -reach, reach)
        high = np.clip(high_m - self.place_m[place], -reach, reach)
        return np.searchsorted(self.key, base + low), np.searchsorted(self.key, base + high, side="right")

    def far_end_m(self, place: int, first: int, last: int) -> Float64:
        """Where the far ends of entries of one place lie."""
        return np.asarray(self.key[first:last] - place * stride_m(self.frame) + self.place_m[place])


def reach_m(frame: Frame) -> float:
    """The largest offset that a window of a frame holds."""
    return frame.line_m + 2 * frame.shot_margin_m + frame.receiver_spacing_m


def stride_m(frame: Frame) -> float:
    """Between the keys of two places, so that their offsets stay apart."""
    return 2 * reach_m(frame) + 2 * frame.max_gap_m


def lay_spread(
    traces: TracePositions,
    *,
    frame: Frame = OPENFWI_FRAME,
    scale: Scale = UNSCALED,
    usable: NDArray[np.bool_] | None = None,
) -> tuple[Spread, tuple[Note, ...]]:
    """Traces along a straight line, with positions in true metres: the `Spread`, and notes on what was assumed.

    Heights are ignored. Along the line, x is as in the headers, or, of a line at an angle, from its first receiver.

    Raises:
        InvalidSurvey: positions not finite or too far off, no geometry, not one straight line (`line.project`), or all
            offsets too long.
    """
    check_positions(traces)
    notes: list[Note] = []
    source, group = project(traces, notes, None, None, scale.s * frame.line_m)
    return find_spread(source / scale.s, group / scale.s, frame=frame, usable=usable), tuple(notes)


def check_positions(traces: TracePositions) -> None:
    """Raises InvalidSurvey for positions that are not finite, or too far off."""
    positions = np.concatenate([traces.source_xy_m, traces.group_xy_m], axis=1)
    wrong = ~(np.abs(positions) <= MAX_POSITION_M).all(axis=1)
    if wrong.any():
        raise InvalidSurvey(
            f"{int(wrong.sum())} of {len(wrong)} traces have positions that are no numbers within "
            f"{MAX_POSITION_M:g} m, the first is trace {int(wrong.argmax()) + 1}. Correct them, or leave these out."
        )


def find_spread(
    source_m: Float64, receiver_m: Float64, *, frame: Frame = OPENFWI_FRAME, usable: NDArray[np.bool_] | None = None
) -> Spread:
    """Sort traces by place.

    Args:
        source_m, receiver_m: ``(trace,)`` along the line, in metres of the frame.
        usable: ``(trace,)``; the others are left out, as dead ones are.

    Raises:
        InvalidSurvey: positions that are all the same, or all offsets too long for the frame.
    """
    offset = receiver_m - source_m
    reach = reach_m(frame)
    kept = np.abs(offset) < reach * (1 - ROUNDING)
    if usable is not None:
        kept &= usable
    if not kept.any():
        raise InvalidSurvey(
            f"None of {len(offset)} traces has an offset that fits the line of {frame.line_m:g} m: the shortest is "
            f"{np.abs(offset).min(initial=np.inf):g} m (all in the frame's metres; at scale s, s times as much)."
        )
    number = np.flatnonzero(kept)
    end = np.concatenate([source_m[number], receiver_m[number]])
    away = np.concatenate([offset[number], -offset[number]])
    if not np.ptp(end):
        raise InvalidSurvey("All source and receiver positions are the same: there is no geometry.")
    width = PLACE_SHARE * frame.receiver_spacing_m
    unique = np.unique(end)
    place = _means(unique, _groups(unique, width))
    near = width * (1 + ROUNDING)
    low, high = np.searchsorted(place, end - near), np.searchsorted(place, end + near, side="right")
    count = high - low
    entry = np.repeat(np.arange(len(end)), count)
    at = np.arange(len(entry)) - np.repeat(np.cumsum(count) - count, count) + low[entry]
    beside = end[entry] - place[at]
    key = at * stride_m(frame) + away[entry]
    order = np.argsort(key, kind="stable")
    key, at, beside, entry = key[order], at[order], beside[order], entry[order]
    entry, key, at = _best(entry, key, at, beside, frame.on_node_m)
    gap = np.diff(key, prepend=np.inf)
    joined = (np.diff(at, prepend=-1) == 0) & (gap <= frame.max_gap_m * (1 + ROUNDING))
    shot = np.unique(source_m[number])
    return Spread(
        frame=frame,
        place_m=place,
        key=key,
        trace=number[entry % len(number)],
        reversed=entry >= len(number),
        covered_m=np.cumsum(np.where(joined, gap, 0.0)),
        receiver_m=np.unique(receiver_m[number]),
        extent_m=(float(unique[0]), float(unique[-1])),
        sources=int(_groups(shot, width)[-1]) + 1,
    )


def _groups(x: Float64, width: float) -> Index:
    """Numbers of groups of increasing positions: broken at gaps wider than ``width``, and every ``width``."""
    chain = np.cumsum(np.diff(x, prepend=x[0]) > width * (1 + ROUNDING))
    start = x[np.searchsorted(chain, np.arange(chain[-1] + 1))]
    part = np.floor((x - start[chain]) / width + ROUNDING)
    return np.cumsum((np.diff(chain, prepend=0) > 0) | (np.diff(part, prepend=0) != 0))


def _means(x: Float64, group: Index) -> Float64:
    counts = np.bincount(group)
    first = x[np.cumsum(counts) - counts]
    return np.asarray(first + np.bincount(group, x - first[group]) / counts)


def _best(entry: Index, key: Float64, at: Index, beside: Float64, width: float) -> tuple[Index, Float64, Index]:
    """Of entries of a place with the same offset, the one nearest to it; shot there before recorded there.

    The order of the traces matters only among those with the same ends.
    """
    group = _groups(key, width)
    if group[-1] + 1 == len(group):
        return entry, key, at
    steps = np.round(beside / (width * ROUNDING))
    order = np.lexsort((entry, steps, np.abs(steps), group))
    first = order[np.flatnonzero(np.diff(group[order], prepend=-1))]
    return entry[first], key[first], at[first]
