"""Recorded gathers, checked against their survey."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidGather
from seisbind.model.frame import Frame, Survey, check_dt

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

ROUNDING = 1 - 1e-9  # a line of just the least length, in units that another scale made of them, is long enough
FOLDED = 8  # rows of samples whose extremes are found together
RANGE_BITS = 30  # peaks within 1e-9 to 1e9 are summed and squared in float32 as they are


@dataclass(frozen=True, slots=True)
class Recorded:
    """Gathers ``(batch, shot, time, receiver)`` as recorded, with the extremes of each trace."""

    array: Float32
    high: Float32  # (batch, shot, receiver)
    low: Float32

    @property
    def alive(self) -> Bool:
        """``(batch, shot, receiver)``; a trace that is constant in time is dead."""
        return np.asarray(self.high > self.low)


def short_line(receiver_x_m: tuple[float, ...], frame: Frame) -> str | None:
    """A sentence if a line of receivers is too short for a frame, else None."""
    length_m = receiver_x_m[-1] - receiver_x_m[0]
    if length_m >= frame.min_line_m * ROUNDING:
        return None
    return (
        f"The receiver line is {length_m:g} m long; at least {frame.min_line_m:g} m of the canonical "
        f"{frame.line_m:g} m are needed."
    )


def check_gathers(gathers: ArrayLike, survey: Survey, frame: Frame) -> Recorded:
    """Gathers as float32, checked against ``survey``.

    Raises:
        InvalidGather: wrong axes or lengths, not real numbers, NaN or infinite samples, a record too short, or a
            gather that is zero or constant throughout.
        InvalidSurvey: a sampling interval outside those of the frame.
    """
    check_dt(survey.dt_s, frame.dt_limits_s)
    array = np.asarray(gathers)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise InvalidGather(f"Gathers hold real samples (float or integer); this array has dtype {array.dtype}.")
    if array.ndim == 3:
        array = array[None]
    shots, receivers = len(survey.shot_x_m), len(survey.receiver_x_m)
    if array.ndim != 4 or array.shape[1] != shots or array.shape[3] != receivers:
        raise InvalidGather(
            f"Expected (shot, time, receiver) or (batch, shot, time, receiver) with {shots} shots and "
            f"{receivers} receivers; got shape {np.shape(gathers)}."
        )
    if not len(array):
        raise InvalidGather("The stack holds no gather (its first axis has length 0).")
    record_s = array.shape[2] * survey.dt_s
    if record_s < frame.min_record_s * ROUNDING:
        raise InvalidGather(
            f"The record lasts {record_s:.3f} s ({array.shape[2]} samples of {survey.dt_s * 1e3:g} ms); at least "
            f"{frame.min_record_s:g} s are needed. If the sampling interval is another, pass dt_s."
            f"{f' {fault}' if (fault := short_line(survey.receiver_x_m, frame)) else ''}"
        )
    high, low = _extremes(array)  # both are NaN where a sample is
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        count = int(array.size - np.isfinite(array).sum())
        raise InvalidGather(
            f"{count} of {array.size} samples are NaN or infinite, the first at (gather, shot, time, receiver) = "
            f"{first}. Mute or interpolate them first."
        )
    with np.errstate(over="ignore"):  # refused below
        array, high, low = (each.astype(np.float32, copy=False) for each in (array, high, low))
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise InvalidGather("Some samples exceed the range of float32 (3.4e38); scale the gathers down.")
    recorded = Recorded(array, high, low)
    varies = recorded.alive.any(axis=(1, 2))
    if not varies.all():
        raise InvalidGather(
            f"Gather {int(np.argmin(varies))} is constant along time in every trace: nothing was recorded."
        )
    return recorded


def _extremes(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The highest and the lowest sample of each trace, ``(batch, shot, receiver)``.

    Of `FOLDED` rows of samples at once first: numpy compares one row with the next, and long rows in a third of the
    time.
    """
    batch, shots, samples, receivers = array.shape
    if samples % FOLDED or not array.flags.c_contiguous:
        return array.max(axis=2), array.min(axis=2)
    rows = array.reshape(batch, shots, samples // FOLDED, FOLDED * receivers)
    high, low = (each.reshape(batch, shots, FOLDED, receivers) for each in (rows.max(axis=2), rows.min(axis=2)))
    return high.max(axis=2), low.min(axis=2)


def limit_range(recorded: Recorded) -> Recorded:
    """Gathers scaled by a power of two where squares would leave the range of float32; the gain is removed later."""
    _, exponent = np.frexp(np.maximum(recorded.high, -recorded.low).max(axis=(1, 2)))
    exponent = np.where(np.abs(exponent) > RANGE_BITS, exponent, 0)
    if not exponent.any():
        return recorded
    down = -exponent[:, None, None]
    scaled = np.ldexp(recorded.array, down[..., None])
    return Recorded(scaled, np.ldexp(recorded.high, down), np.ldexp(recorded.low, down))
