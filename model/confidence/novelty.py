"""How far a gather lies from those that the encoders were trained on, and in what respect.

Similarity to a gallery says little: an encoder maps noise, too, next to some model. So a gather is measured directly,
by what a processing geophysicist would look at, and each measure is held against the range that it had in training.
The measure that lies furthest outside names the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.fft import fft, rfft

from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.survey.preparation import Prepared

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

EARLY_S = 0.02  # a delay that training saw, too
NARROWEST = 0.05  # from the middle of a range to its edge, in the units of the measures: what never varied may round
FLOOR = 1e-9  # of power shares, -90 dB
UNLIKE = 0.01  # of the gathers of training that are taken to be unlike it


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the measures compare with; the numbers in brackets are those of OpenFWI's frame.

    Attributes:
        fastest_m_s: nothing from the source arrives before offset / this (4600), but for `EARLY_S`.
        slowest_m_s: apparent velocities below this are no pressure waves (1300: the ground starts at 1500).
        high_hz: the highest peak frequency of training has 1e-3 of its power above (62.5).
        band_hz: where slow waves are looked for (4 to 60).
        late_s: the end of a record that is compared with all of it (0.2).
    """

    fastest_m_s: float
    slowest_m_s: float
    high_hz: float
    band_hz: tuple[float, float]
    late_s: float


@lru_cache(maxsize=16)
def bounds_of(frame: Frame) -> Bounds:
    """What the measures compare with in a frame."""
    slow, fast = frame.velocity_m_s
    return Bounds(
        fastest_m_s=fast * 46 / 45,
        slowest_m_s=slow * 13 / 15,
        high_hz=frame.peak_hz * 62.5 / 15,
        band_hz=(frame.peak_hz * 4 / 15, frame.peak_hz * 4),
        late_s=0.2 * frame.duration_s,
    )


@dataclass(frozen=True, slots=True)
class Measure:
    """One respect in which gathers are compared.

    ``reason`` is the stable word in answers, ``unit`` that of values. ``side``: what is unlike training, values above
    its range (1), below it (-1) or either (0): a record cannot have too little noise. ``definition`` has places for
    numbers of `Bounds`.
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
)


@dataclass(frozen=True, slots=True)
class Familiar:
    """The ranges of `MEASURES` in training, and how far beyond them is too far.

    Attributes:
        low, middle, high: per measure, the edges that 1 % of the gathers of training lie beyond, in one measure or
            another and the same share at each edge; and the median.
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
        score: of the worst measure: 0 at its median in training, 1 on the edge of its range, 2 as far again.
        limit: `Familiar.limit`.
        reason: of the measure that decides (`Measure.reason`); None where ``likely``.
        detail: a sentence with the numbers; None where ``likely``.
    """

    likely: bool
    score: float
    limit: float
    reason: str | None
    detail: str | None


def measure(prepared: Prepared) -> Float64:
    """``(batch, len(MEASURES) - 1)`` values of gathers: all measures but the doubt, which the encoder has."""
    traces, live = prepared.traces, prepared.live
    with np.errstate(invalid="ignore", over="ignore"):  # of samples that no encoder takes, either
        rows = [
            _measure_one(t, alive, x, prepared.frame)
            for t, alive, x in zip(traces, live, prepared.shot_x_m, strict=True)
        ]
    return np.asarray(rows, dtype=np.float64).reshape(len(traces), len(MEASURES) - 1)


def with_doubt(measured: Float64, doubt: Float32) -> Float64:
    """``(batch, len(MEASURES))``: what was measured of gathers, and the encoder's doubt of each.

    Args:
        measured: from `measure`.
        doubt: ``(batch,)`` mean logarithm of the head's scale, in standard deviations of the descriptors.
    """
    return np.column_stack([measured, doubt])


def _measure_one(traces: Float32, live: NDArray[np.bool_], shot_x_m: Float32, frame: Frame) -> list[float]:
    """``traces``: (shot, time, receiver) of a frame; the measures in order, but for the last."""
    bounds = bounds_of(frame)
    shots, samples, receivers = traces.shape
    scale = np.abs(traces).max()
    p = traces / scale if scale > 0 else traces
    count = max(1, int(live.sum()))
    power = np.square(p)
    whole = float(power.sum()) / (count * samples) + 1e-30

    offset = np.abs(np.arange(receivers) * frame.receiver_spacing_m - shot_x_m[:, None])  # (shot, receiver)
    t = np.arange(samples)[:, None] * frame.dt_s
    early = (t < offset[:, None] / bounds.fastest_m_s - EARLY_S) & live[:, None]
    early_power = float(power[early].mean()) / whole if early.any() else 0.0
    late = samples - round(bounds.late_s / frame.dt_s)
    late_power = float(power[:, late:].sum()) / (count * (samples - late)) / whole

    f = np.fft.rfftfreq(samples, frame.dt_s)
    transformed = rfft(p, axis=1)  # (shot, frequency, receiver)
    spectrum = np.square(np.abs(transformed)).sum(axis=(0, 2))  # (frequency,)
    spectrum[0] = 0.0
    total = spectrum.sum() + 1e-30
    high_power, centroid = float(spectrum[f > bounds.high_hz].sum() / total), float((f * spectrum).sum() / total)

    # every trace at the same power, or those next to the shot are all that is seen, spread over all wavenumbers
    band = (f >= bounds.band_hz[0]) & (f <= bounds.band_hz[1])
    alike = transformed[:, band] / np.sqrt(power.sum(axis=1, keepdims=True) + 1e-12)
    fk = np.square(np.abs(fft(alike, n=2 * receivers, axis=2))).sum(axis=0)  # (frequency, wavenumber)
    k = np.abs(np.fft.fftfreq(2 * receivers, frame.receiver_spacing_m))
    slow_power = float(fk[k * bounds.slowest_m_s > f[band, None]].sum() / (fk.sum() + 1e-30))
    crest = float(power.max() / whole)
    decibel = [10 * np.log10(max(share, FLOOR)) for share in (early_power, high_power, late_power, slow_power, crest)]
    present = float(live.any(axis=1).sum())
    return [*decibel[:3], centroid, *decibel[3:], float(live.mean()) * shots / max(1.0, present), present]


def learn(values: Float64) -> Familiar:
    """The ranges of ``values`` (n, len(MEASURES)), measured on gathers as training sees them; thousands of them."""
    ordered = np.sort(values, axis=0)
    columns = list(zip(ordered.T, values.T, strict=True))
    below = np.column_stack(
        [np.searchsorted(order, column, "right") for order, column in columns]
    )  # as far out, or more
    above = len(values) - np.column_stack([np.searchsorted(order, column, "left") for order, column in columns])
    rarest = -_counting(-above, -below).max(axis=1)
    count = round(float(np.quantile(rarest, UNLIKE)))  # of values from an edge outwards
    low, middle, high = (row.tolist() for row in (ordered[count - 1], np.median(values, axis=0), ordered[-count]))
    known = Familiar(tuple(low), tuple(middle), tuple(high), 0.0)
    return replace(known, limit=float(np.quantile(scores(values, known).max(axis=1), 1 - UNLIKE)))


def scores(values: Float64, known: Familiar) -> Float64:
    """``(batch, len(MEASURES))``: 0 at the median of what was seen, 1 on the edge that counts."""
    low, middle, high = (np.asarray(part) for part in (known.low, known.middle, known.high))
    above = (values - middle) / np.maximum(high - middle, NARROWEST)
    below = (middle - values) / np.maximum(middle - low, NARROWEST)
    return np.maximum(_counting(above, below), 0.0)


def _counting(above: Float64, below: Float64) -> Float64:
    """Of what is said of both ends, what is said of the end that a measure counts; the larger where both do."""
    side = np.array([m.side for m in MEASURES])
    return np.asarray(np.where(side > 0, above, np.where(side < 0, below, np.maximum(above, below))))


def judge(values: Float64, known: Familiar, *, frame: Frame = OPENFWI_FRAME) -> list[Verdict]:
    """A verdict for each row of ``values`` (batch, len(MEASURES)), measured in a frame."""
    return [_verdict(row, score, known, frame) for row, score in zip(values, scores(values, known), strict=True)]


def _verdict(values: Sequence[float], score: Float64, known: Familiar, frame: Frame) -> Verdict:
    worst = int(score.argmax())
    if score[worst] <= known.limit:
        return Verdict(True, float(score[worst]), known.limit, None, None)
    m, low, high = MEASURES[worst], known.low[worst], known.high[worst]
    unit = f" {m.unit}" if m.unit else ""
    definition = m.definition.format(bounds_of(frame))
    detail = (
        f"{m.name.replace('_', ' ').capitalize()} ({definition}) is {values[worst]:.4g}{unit}; in training it lay "
        f"between {low:.4g} and {high:.4g}{unit}."
    )
    return Verdict(False, float(score[worst]), known.limit, m.reason, detail)
