"""Which scales of lengths a record can be read at, and what limits them.

A record is read at a scale ``s`` of lengths (and ``k`` of velocities, see `seisbind.model.scale`) if, in the frame's
units, its receivers span enough of the line and lie close enough together, it lasts long enough, its sampling interval
is one that is resampled, and the wavelet that the encoders know best lies within the band in which it has signal.
"""

from __future__ import annotations

from dataclasses import dataclass

from seisbind.model.frame import DT_LIMITS_S, Frame
from seisbind.model.scale import LENGTHS

STEP_SHARE = 0.5  # of a window: how far the next one lies


@dataclass(frozen=True, slots=True)
class Bound:
    """A bound of ``s``, and the sentence that says where it comes from."""

    s: float
    because: str


@dataclass(frozen=True, slots=True)
class Window:
    """What the frame is at one scale: the line and depth of a window, in true units.

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


@dataclass(frozen=True, slots=True)
class ScaleRange:
    """From the lowest to the highest ``s``; there is none where the one lies above the other."""

    k: float
    lowest: Bound
    highest: Bound
    windows: tuple[Window, ...]

    @property
    def fits(self) -> bool:
        """Whether there is a scale at all."""
        return self.lowest.s <= self.highest.s


def scale_range(
    frame: Frame,
    *,
    aperture_m: float,
    length_m: float,
    gap_m: float,
    record_s: float,
    dt_s: float,
    band_hz: tuple[float, float],
    k: float = 1.0,
) -> ScaleRange:
    """The scales that a record allows.

    Args:
        aperture_m: from the first to the last receiver of a shot.
        length_m: of the whole line.
        gap_m: the usual step between its receivers.
        record_s: its length after the shot.
        dt_s: its sampling interval.
        band_hz: lowest and highest frequency with signal.
        k: of velocities.
    """
    lowest_hz, highest_hz = band_hz
    upper = [
        Bound(LENGTHS[1], f"the largest scale there is, {LENGTHS[1]:g}"),
        Bound(
            aperture_m / frame.min_line_m,
            f"receivers of a shot span {aperture_m:g} m, and {frame.min_line_m:g} m x s are needed",
        ),
        Bound(
            k * record_s / frame.min_record_s,
            f"the record lasts {record_s:.3g} s, and {frame.min_record_s / k:.3g} s x s are needed",
        ),
        Bound(
            k * frame.peak_hz / max(lowest_hz, 1e-3),
            f"there is no signal under {lowest_hz:.3g} Hz, and the weights know {k * frame.peak_hz:.3g} Hz / s best",
        ),
        Bound(
            k * dt_s / DT_LIMITS_S[0],
            f"samples of {dt_s * 1e3:g} ms have to be at least {DT_LIMITS_S[0] * 1e3 / k:g} ms x s",
        ),
    ]
    lower = [
        Bound(LENGTHS[0], f"the smallest scale there is, {LENGTHS[0]:g}"),
        Bound(
            gap_m / frame.max_gap_m,
            f"receivers lie {gap_m:g} m apart, and gaps of up to {frame.max_gap_m:g} m x s are interpolated",
        ),
        Bound(
            k * frame.peak_hz / max(highest_hz, 1e-3),
            f"there is no signal above {highest_hz:.3g} Hz, and the weights know {k * frame.peak_hz:.3g} Hz / s best",
        ),
        Bound(
            k * dt_s / DT_LIMITS_S[1],
            f"samples of {dt_s * 1e3:g} ms may be at most {DT_LIMITS_S[1] * 1e3 / k:g} ms x s",
        ),
    ]
    lowest, highest = max(lower, key=lambda bound: bound.s), min(upper, key=lambda bound: bound.s)
    wanted: list[float] = []
    if lowest.s <= highest.s:
        wanted = sorted({lowest.s, highest.s} | ({1.0} if lowest.s < 1 < highest.s else set()))
    return ScaleRange(k, lowest, highest, tuple(window(frame, s, k=k, length_m=length_m) for s in wanted))


def window(frame: Frame, s: float, *, k: float, length_m: float) -> Window:
    """What the frame is at a scale."""
    line_m = s * frame.line_m
    steps = max(0.0, length_m - line_m) / (STEP_SHARE * line_m)
    return Window(
        s=s,
        line_m=line_m,
        depth_m=s * frame.depth_cells * frame.cell_m,
        record_s=s / k * frame.duration_s,
        peak_hz=k / s * frame.peak_hz,
        count=1 + int(-(-round(steps, 6) // 1)),
    )
