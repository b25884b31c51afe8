"""Novelty detection: how far a gather lies from those that the encoders were trained on, and in what respect.

Similarity to a gallery says little: an encoder maps noise, too, next to some model. So a gather is measured directly,
by what a processing geophysicist would look at, and each measure is compared with its range in training. The measure
that lies furthest outside gives the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft, rfft

from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.preparation import Prepared

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

EARLY_S = 0.02  # a delay that training saw, too
NARROWEST = 0.05  # least distance from the median of a range to its end, in the unit of the measure, for rounding
FLOOR = 1e-9  # of power shares, -90 dB
NOVEL_SHARE = 0.01  # of the gathers of training that count as unlike it


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What the measures compare with; the numbers in brackets are those of OpenFWI's frame.

    Attributes:
        fastest_m_s: nothing from the source arrives before offset / this (4600), but for `EARLY_S`.
        slowest_m_s: apparent velocities below this are no pressure waves (1300: the ground starts at 1500).
        high_hz: the highest peak frequency of training has 1e-3 of its power above (62.5).
        band_hz: where slow waves are looked for (4 to 60).
        late_s: length of the end of a record that is compared with the whole record (0.2).
    """

    fastest_m_s: float
    slowest_m_s: float
    high_hz: float
    band_hz: tuple[float, float]
    late_s: float


@lru_cache(maxsize=16)
def thresholds_of(frame: Frame) -> Thresholds:
    """What the measures compare with in a frame."""
    slow, fast = frame.velocity_m_s
    return Thresholds(
        fastest_m_s=fast * 46 / 45,
        slowest_m_s=slow * 13 / 15,
        high_hz=frame.peak_hz * 62.5 / 15,
        band_hz=(frame.peak_hz * 4 / 15, frame.peak_hz * 4),
        late_s=0.2 * frame.duration_s,
    )


@dataclass(frozen=True, slots=True)
class Measure:
    """One respect in which gathers are compared.

    ``reason`` is the stable word in answers, ``unit`` that of values. ``side``: whether values above the range of
    training are novel (1), below it (-1) or both (0): a record cannot have too little noise. ``definition`` is a
    format string with fields of `Thresholds`.
    """

    name: str
    reason: str
    unit: str
    side: int
    definition: str


MEASURES: tuple[Measure, ...] = (
    Measure("early_power", "noise", "dB", 1, "power before offset / {0.fastest_m_s:g} m/s against that of the record"),
    Measure("high_power", "noise", "dB", 1, "share of the power above {0.high_hz:g} Hz"),
    Measure("late_power", "noise", "dB", 1, "power of the last {0.late_s:g} s against that of the record"),
    Measure("centroid", "frequency", "Hz", 0, "mean frequency, weighted by power"),
    Measure("slow_power", "slow_waves", "dB", 1, "share of the power that moves slower than {0.slowest_m_s:g} m/s"),
    Measure("crest", "amplitudes", "dB", -1, "largest amplitude against the rms: low when clipped or gained by AGC"),
    Measure("live_traces", "geometry", "", -1, "share of the canonical traces that are live"),
    Measure("shots", "geometry", "", 0, "shots on the line"),
    Measure("doubt", "ground", "", 1, "mean logarithm of the scale of error that the descriptor head states"),
    Measure("foreign_ground", "ground", "", 1, "log odds of ground of a kind that the readings were not trained over"),
)
OF_RECORD = 8  # of these are measured on the record alone; the others need the encoders, the last those that know kinds
ODDS_FLOOR = 1e-6  # of a probability


@dataclass(frozen=True, slots=True)
class TrainingRanges:
    """The ranges of `MEASURES` in training, and the largest score that still counts as in distribution.

    Without the last one or two measures where the encoders do not know them.

    Attributes:
        low, middle, high: per measure, the lower end, the median and the upper end. The ends are chosen so that 1 % of
            the gathers of training lie beyond one of them, in equal shares.
        limit: the score that 1 % of the gathers of training exceed.
    """

    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]
    limit: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one gather is like those of training.

    Attributes:
        likely: ``score <= limit``.
        score: the largest of all measures: 0 at the median of training, 1 at the end of the range, 2 twice as far.
        limit: `TrainingRanges.limit`.
        reason: `Measure.reason` of that measure; None where ``likely``.
        detail: a sentence with the numbers; None where ``likely``.
    """

    likely: bool
    score: float
    limit: float
    reason: str | None
    detail: str | None


def measure(prepared: Prepared) -> Float64:
    """``(batch, OF_RECORD)`` values of gathers: the measures that need no encoders."""
    traces, live = prepared.traces, prepared.live
    with np.errstate(invalid="ignore", over="ignore"):  # samples that the encoders refuse later
        rows = [
            _measure_one(t, alive, x, prepared.frame)
            for t, alive, x in zip(traces, live, prepared.shot_x_m, strict=True)
        ]
    return np.asarray(rows, dtype=np.float64).reshape(len(traces), OF_RECORD)


def with_uncertainty(measured: Float64, uncertainty: Float32, foreign: Float32 | None = None) -> Float64:
    """``(batch, OF_RECORD + 1)``, or one more: the measures of gathers, and what the encoders say about each gather.

    Args:
        measured: from `measure`.
        uncertainty: ``(batch,)`` mean logarithm of the head's scale, in standard deviations of the descriptors.
        foreign: ``(batch,)`` probability of ground of a kind that the readings were not trained over, where known.
    """
    if foreign is None:
        return np.column_stack([measured, uncertainty])
    p = np.clip(foreign.astype(np.float64), ODDS_FLOOR, 1 - ODDS_FLOOR)
    return np.column_stack([measured, uncertainty, np.log(p / (1 - p))])


def _measure_one(traces: Float32, live: NDArray[np.bool_], shot_x_m: Float32, frame: Frame) -> list[float]:
    """``traces``: (shot, time, receiver) of a frame; all measures but the last, in order."""
    thresholds = thresholds_of(frame)
    shots, samples, receivers = traces.shape
    scale = np.abs(traces).max()
    p = traces / scale if scale > 0 else traces
    count = max(1, int(live.sum()))
    power = np.square(p)
    whole = float(power.sum()) / (count * samples) + 1e-30

    early = _before_arrivals(frame, samples, receivers, shot_x_m.tobytes()) & live[:, None]
    early_power = float(power[early].mean()) / whole if early.any() else 0.0
    late = samples - round(thresholds.late_s / frame.dt_s)
    late_power = float(power[:, late:].sum()) / (count * (samples - late)) / whole

    f, k = _axes(frame, samples, receivers)
    transformed = rfft(p, axis=1)  # (shot, frequency, receiver)
    spectrum = np.square(np.abs(transformed)).sum(axis=(0, 2))  # (frequency,)
    spectrum[0] = 0.0
    total = spectrum.sum() + 1e-30
    high_power, centroid = float(spectrum[f > thresholds.high_hz].sum() / total), float((f * spectrum).sum() / total)

    # every trace at the same power: otherwise those next to the shot dominate, and spread over all wavenumbers
    first, last = thresholds.band_hz
    band = slice(int(np.searchsorted(f, first, "left")), int(np.searchsorted(f, last, "right")))
    balanced = transformed[:, band] / np.sqrt(power.sum(axis=1, keepdims=True) + 1e-12)
    fk = np.square(np.abs(fft(balanced, n=2 * receivers, axis=2))).sum(axis=0)  # (frequency, wavenumber)
    slow_power = float(fk[k * thresholds.slowest_m_s > f[band, None]].sum() / (fk.sum() + 1e-30))
    crest = float(power.max() / whole)
    decibel = [10 * np.log10(max(share, FLOOR)) for share in (early_power, high_power, late_power, slow_power, crest)]
    present = float(live.any(axis=1).sum())
    return [*decibel[:3], centroid, *decibel[3:], float(live.mean()) * shots / max(1.0, present), present]


@lru_cache(maxsize=16)
def _before_arrivals(frame: Frame, samples: int, receivers: int, shot_x_m: bytes) -> NDArray[np.bool_]:
    """``(shot, time, receiver)``: before offset / `Thresholds.fastest_m_s`, but for `EARLY_S`.

    ``shot_x_m``: the bytes of float32.
    """
    at_m = np.frombuffer(shot_x_m, np.float32)
    offset = np.abs(np.arange(receivers) * frame.receiver_spacing_m - at_m[:, None])  # (shot, receiver)
    t = np.arange(samples)[:, None] * frame.dt_s
    return np.asarray(t < offset[:, None] / thresholds_of(frame).fastest_m_s - EARLY_S)


@lru_cache(maxsize=16)
def _axes(frame: Frame, samples: int, receivers: int) -> tuple[Float64, Float64]:
    """``(frequency,)`` Hz and ``(wavenumber,)`` per metre without signs, of a spectrum of twice the receivers."""
    k = np.abs(np.fft.fftfreq(2 * receivers, frame.receiver_spacing_m))
    return np.asarray(np.fft.rfftfreq(samples, frame.dt_s), np.float64), np.asarray(k, np.float64)


def learn(values: Float64) -> TrainingRanges:
    """The ranges of ``values`` (n, measures), measured on gathers as training sees them; thousands of them."""
    ordered = np.sort(values, axis=0)
    columns = list(zip(ordered.T, values.T, strict=True))
    below = np.column_stack(
        [np.searchsorted(order, column, "right") for order, column in columns]
    )  # as far out, or more
    above = len(values) - np.column_stack([np.searchsorted(order, column, "left") for order, column in columns])
    rarest = -_on_counted_side(-above, -below).max(axis=1)
    count = round(float(np.quantile(rarest, NOVEL_SHARE)))  # of values from an end outwards
    low, middle, high = (row.tolist() for row in (ordered[count - 1], np.median(values, axis=0), ordered[-count]))
    ranges = TrainingRanges(tuple(low), tuple(middle), tuple(high), 0.0)
    return replace(ranges, limit=float(np.quantile(scores(values, ranges).max(axis=1), 1 - NOVEL_SHARE)))


def learn_foreign(ranges: TrainingRanges, familiar: Float64) -> TrainingRanges:
    """``ranges`` with the last measure's, from its values (n,) over ground that the readings were trained over.

    Its end lies where `NOVEL_SHARE` of them are beyond the limit of the others.
    """
    low, middle, beyond = np.quantile(familiar, (NOVEL_SHARE, 0.5, 1 - NOVEL_SHARE)).tolist()
    high = middle + (beyond - middle) / ranges.limit
    known = OF_RECORD + 1
    return replace(
        ranges,
        low=(*ranges.low[:known], low),
        middle=(*ranges.middle[:known], middle),
        high=(*ranges.high[:known], high),
    )


def scores(values: Float64, ranges: TrainingRanges) -> Float64:
    """``(batch, measures)``: 0 at the median of training, 1 at the end of the range that counts."""
    known = min(values.shape[1], len(ranges.low))
    values = values[:, :known]
    low, middle, high = (np.asarray(part[:known]) for part in (ranges.low, ranges.middle, ranges.high))
    above = (values - middle) / np.maximum(high - middle, NARROWEST)
    below = (middle - values) / np.maximum(middle - low, NARROWEST)
    return np.maximum(_on_counted_side(above, below), 0.0)


def _on_counted_side(above: Float64, below: Float64) -> Float64:
    """For each measure, the value of the `Measure.side` that counts; the larger where both do."""
    side = np.array([m.side for m in MEASURES[: above.shape[1]]])
    return np.asarray(np.where(side > 0, above, np.where(side < 0, below, np.maximum(above, below))))


def judge(
    values: Float64, ranges: TrainingRanges, *, frame: Frame = OPENFWI_FRAME, scales: Sequence[Scale] | None = None
) -> list[Verdict]:
    """One verdict for each row of ``values`` (batch, measures), measured in a frame.

    ``scales``: of each gather, in whose true units its verdict is worded.
    """
    scales = [UNSCALED] * len(values) if scales is None else scales
    rows = zip(values, scores(values, ranges), scales, strict=True)
    return [_verdict(row, score, ranges, frame, scale) for row, score, scale in rows]


def _verdict(values: Sequence[float], score: Float64, ranges: TrainingRanges, frame: Frame, scale: Scale) -> Verdict:
    worst = int(score.argmax())
    if score[worst] <= ranges.limit:
        return Verdict(True, float(score[worst]), ranges.limit, None, None)
    m = MEASURES[worst]
    value, low, high = (each[worst] * scale.of(m.unit) for each in (values, ranges.low, ranges.high))
    unit = f" {m.unit}" if m.unit else ""
    definition = m.definition.format(thresholds_of(scale.frame(frame)))
    detail = (
        f"{m.name.replace('_', ' ').capitalize()} ({definition}) is {value:.4g}{unit}; in training it lay "
        f"between {low:.4g} and {high:.4g}{unit}."
    )
    return Verdict(False, float(score[worst]), ranges.limit, m.reason, detail)
