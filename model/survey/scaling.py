"""The choice of a scale for a record: which sizes of the frame its aperture, length, sampling and band allow.

Pure functions of plain numbers and arrays: `choose_scale` of what is known of a line, `scale_for` of gathers with their
survey. Both say what each condition allows, so that a refusal and a choice are explained by the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey
from seisbind.model.frame import DT_LIMITS_S, OPENFWI_FRAME, Frame, Survey
from seisbind.model.scale import LENGTHS, AutoScale, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.spectrum import ABOVE_NOISE_DB, USABLE_DB, Band, measure_band

BELOW_PEAK = 0.75  # of the frame's peak frequency: the band reaches so low, where there is a choice
MEASURED_TRACES, MEASURED_SAMPLES = 400, 1_000_000  # of a record at most, evenly taken, on which its band is measured
FASTEST = 1.3  # times the frame's fastest velocity: nothing from the source arrives earlier
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class ScaleLimit:
    """What one condition asks of ``s``.

    Attributes:
        name: ``aperture``, ``record``, ``band``, ``spacing``, ``sampling``, ``target_depth`` or ``range``.
        low, high: the least and the largest ``s`` that meets it.
        wanted: the largest that meets it fully, where that is less than ``high``.
        sentence: the condition with its numbers.
    """

    name: str
    low: float
    high: float
    wanted: float
    sentence: str


@dataclass(frozen=True, slots=True)
class ChosenScale:
    """A scale, and why.

    Attributes:
        scale: true = factor x frame.
        auto: whether it was chosen here; else it was given.
        decided_by: `ScaleLimit.name` of the condition that no larger (for a target depth: no smaller) ``s`` meets.
        limits: of all conditions; none of a scale that was given.
        band: of the record; None where it was not measured.
    """

    scale: Scale
    auto: bool = False
    decided_by: str | None = None
    limits: tuple[ScaleLimit, ...] = ()
    band: Band | None = None

    @property
    def lowest(self) -> ScaleLimit:
        """The condition that no smaller ``s`` meets."""
        return max(self.limits, key=lambda each: each.low)

    @property
    def highest(self) -> ScaleLimit:
        """The condition that no larger ``s`` meets."""
        return min(self.limits, key=lambda each: each.high)

    def reason(self, frame: Frame) -> str:
        """A sentence on what the scale makes of a frame and, where it was chosen, why."""
        own = self.scale.frame(frame)
        size = (
            f"{self.scale.text}: a line of {own.line_m:.4g} m, {own.depth_cells * own.cell_m:.4g} m deep in cells of "
            f"{own.cell_m:.4g} m, {own.duration_s:.4g} s, {own.peak_hz:.3g} Hz at the peak"
        )
        if not self.auto:
            return f"{size}."
        return f"{size}. Decided by {self.decided_by}. {' '.join(limit.sentence for limit in self.limits)}"

    def notes(self, frame: Frame) -> tuple[Note, ...]:
        """A note on what was chosen and why; none on a scale that was given."""
        return (Note("scale_chosen", f"Chosen {self.reason(frame)}"),) if self.auto else ()


def choose_scale(
    *,
    aperture_m: float,
    record_s: float,
    spacing_m: float,
    dt_s: float,
    band: Band | None = None,
    k: float = 1.0,
    target_depth_m: float | None = None,
    frame: Frame = OPENFWI_FRAME,
) -> ChosenScale:
    """The scale at which a frame suits a record.

    Conditions: the receivers hold the frame's line (half of it at least), the record its time (as much as
    `Frame.min_record_s` at least), traces lie close enough to be interpolated, the sampling interval is one that is
    read, and there is signal at the frame's peak frequency (where there is a choice, at `BELOW_PEAK` of it too).
    With a target depth the smallest ``s`` that reaches it and meets all of them is taken, for the finest cells; without
    one the largest that meets all of them fully, for the deepest view.

    Args:
        aperture_m: from the first to the last receiver that a shot has.
        record_s: from the shot to the end of the record.
        spacing_m: usual distance between neighbouring receivers.
        dt_s: sampling interval.
        band: of the record (`spectrum.measure_band`); None: not looked at.
        k: of velocities; given, for a record of unknown size does not tell.
        target_depth_m: that the models have to reach.
        frame: of the weights.

    Raises:
        InvalidSurvey: no ``s`` meets all conditions; the sentence has the range that each of them asks for.
    """
    limits = _limits(aperture_m, record_s, spacing_m, dt_s, band, k, target_depth_m, frame)
    low, high = max(limits, key=lambda each: each.low), min(limits, key=lambda each: each.high)
    if low.low > high.high * (1 + ROUNDING):
        raise InvalidSurvey(
            f"No scale fits: {low.name} asks for s of {low.low:.3g} or more, {high.name} for {high.high:.3g} or less. "
            f"{' '.join(limit.sentence for limit in limits)} Give a scale as a number to go on all the same."
        )
    if target_depth_m is not None:
        s, decided = _two_digits(low.low, up=True, within=high.high), low
    else:
        wanted = min(limits, key=lambda each: min(each.wanted, each.high))
        s = _two_digits(min(wanted.wanted, wanted.high), up=False, within=low.low)
        decided = wanted
        if s < low.low:
            s, decided = _two_digits(low.low, up=True, within=high.high), low
    return ChosenScale(Scale(float(s), k), True, decided.name, limits, band)


def scale_for(gathers: ArrayLike, survey: Survey, asked: AutoScale, *, frame: Frame = OPENFWI_FRAME) -> ChosenScale:
    """`choose_scale` for gathers ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)`` with their survey.

    Raises:
        InvalidGather: axes that do not fit the survey, or no live trace.
        InvalidSurvey: no scale fits; a single receiver.
    """
    array = np.asarray(gathers)
    array = array[None] if array.ndim == 3 else array
    shots, receivers = len(survey.shot_x_m), len(survey.receiver_x_m)
    if array.ndim != 4 or array.shape[1] != shots or array.shape[3] != receivers or array.dtype.kind not in "fiu":
        raise InvalidGather(
            f"Expected real samples (shot, time, receiver) or (batch, shot, time, receiver) with {shots} shots and "
            f"{receivers} receivers; got shape {np.shape(gathers)} of {array.dtype}."
        )
    offset = np.abs(np.subtract.outer(np.asarray(survey.shot_x_m), np.asarray(survey.receiver_x_m)))
    gather, shot, receiver = (part.ravel() for part in np.indices((len(array), shots, receivers)))
    some = measured_traces(len(gather), array.shape[2])
    traces = array[gather[some], shot[some], :, receiver[some]]
    spacing = float(np.median(np.diff(survey.receiver_x_m))) if receivers > 1 else np.inf
    return chosen_for(
        asked,
        traces=traces,
        offset_m=offset[shot[some], receiver[some]],
        aperture_m=survey.receiver_x_m[-1] - survey.receiver_x_m[0],
        record_s=array.shape[2] * survey.dt_s,
        spacing_m=spacing,
        dt_s=survey.dt_s,
        frame=frame,
    )


def measured_traces(count: int, samples: int) -> NDArray[np.intp]:
    """The numbers of the traces, of ``count``, on which a record's band is measured."""
    some = max(1, min(count, MEASURED_TRACES, MEASURED_SAMPLES // max(1, samples)))
    return np.unique(np.linspace(0, count - 1, some).round().astype(np.intp))


def chosen_for(
    asked: AutoScale,
    *,
    traces: NDArray[np.generic],
    offset_m: ArrayLike,
    aperture_m: float,
    record_s: float,
    spacing_m: float,
    dt_s: float,
    frame: Frame = OPENFWI_FRAME,
) -> ChosenScale:
    """`choose_scale` with the band of some of the record's traces.

    Args:
        asked: the factor of velocities, and a target depth.
        traces: ``(trace, time)``, from the shot on.
        offset_m: ``(trace,)``.

    Raises:
        InvalidGather, InvalidSurvey: see `choose_scale` and `spectrum.measure_band`.
    """
    with np.errstate(all="ignore"):
        traces = np.where(np.isfinite(traces), traces, 0)  # which preparation refuses with their number
    quiet_s = np.asarray(offset_m) / (FASTEST * asked.k * frame.velocity_m_s[1])
    return choose_scale(
        aperture_m=aperture_m,
        record_s=record_s,
        spacing_m=spacing_m,
        dt_s=dt_s,
        band=measure_band(traces, dt_s, quiet_s=quiet_s),
        k=asked.k,
        target_depth_m=asked.target_depth_m,
        frame=frame,
    )


def _limits(
    aperture_m: float,
    record_s: float,
    spacing_m: float,
    dt_s: float,
    band: Band | None,
    k: float,
    target_depth_m: float | None,
    frame: Frame,
) -> tuple[ScaleLimit, ...]:
    half, whole = aperture_m / frame.min_line_m, aperture_m / frame.line_m
    least, full = k * record_s / frame.min_record_s, k * record_s / frame.duration_s
    closest = spacing_m / frame.max_gap_m
    sampled = k * dt_s / DT_LIMITS_S[1], k * dt_s / DT_LIMITS_S[0]
    limits = [
        ScaleLimit("aperture", 0.0, half, whole, f"Receivers over {aperture_m:.4g} m hold the whole line up to "
                   f"s = {whole:.3g}, half of it up to {half:.3g}."),
        ScaleLimit("record", 0.0, least, full, f"A record of {record_s:.4g} s is whole up to s = {full:.3g}, long "
                   f"enough up to {least:.3g}."),
        ScaleLimit("spacing", closest, np.inf, np.inf, f"Receivers every {spacing_m:.4g} m are close enough from "
                   f"s = {closest:.3g} on."),
        ScaleLimit("sampling", *sampled, sampled[1], f"Samples of {dt_s * 1e3:.4g} ms are read at s = {sampled[0]:.3g} "
                   f"to {sampled[1]:.3g}."),
    ]  # fmt: skip
    if band is not None:
        peak = frame.peak_hz * k
        low, high = peak / band.high_hz, peak / band.low_hz
        unclear = "" if band.clear else f"Nowhere is the record {ABOVE_NOISE_DB:g} dB above its noise. "
        text = (
            f"{unclear}There is signal (at most {USABLE_DB:g} dB below the strongest, {band.peak_hz:.3g} Hz) at "
            f"{band.low_hz:.3g} to {band.high_hz:.3g} Hz, so the frame's peak of {peak:.3g}/s Hz asks for "
            f"s = {low:.3g} to {high:.3g}, best up to {BELOW_PEAK * high:.3g}."
        )
        limits.append(ScaleLimit("band", low, high, BELOW_PEAK * high, text))
    if target_depth_m is not None:
        deep = target_depth_m / (frame.depth_cells * frame.cell_m)
        text = f"A depth of {target_depth_m:.4g} m is reached from s = {deep:.3g} on."
        limits.append(ScaleLimit("target_depth", deep, np.inf, np.inf, text))
    text = f"Scales lie between {LENGTHS[0]:g} and {LENGTHS[1]:g}."
    limits.append(ScaleLimit("range", *LENGTHS, LENGTHS[1], text))
    return tuple(limits)


def _two_digits(s: float, *, up: bool, within: float) -> float:
    """``s`` to two significant digits, up or down, unless that passes ``within``."""
    unit = 10.0 ** (np.floor(np.log10(s)) - 1)
    steps = np.ceil(s / unit * (1 - ROUNDING)) if up else np.floor(s / unit * (1 + ROUNDING))
    rounded = float(f"{steps * unit:.3g}")
    return s if (rounded > within if up else rounded < within) else rounded
