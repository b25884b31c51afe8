"""Velocity models judged by the wave equation: what each predicts against what was recorded, and a verdict.

What a model predicts is made with the source estimated from the record (`source`), so a wrong wavelet, gain, sign or
clock fails nobody. `compare` measures; `check_models` predicts, compares and judges model after model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.frame import Frame
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.source import Source, estimate_source, probing_wavelet
from seisbind.model.survey.spectrum import measure_band
from seisbind.model.waves.wavefield import ABSORBING, FREE_SURFACE, Boundary

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]

LOWEST_PERIODS = 4.0  # of the lowest frequency in a record: fewer are no window of it beside another
WINDOW_PERIODS, WINDOW_STEP = 2.0, 0.25  # of the lowest frequency; of a window, from one to the next
OCTAVES = 0.5  # standard deviation of the filter about the lowest frequency
FAINTEST = 1e-3  # of the strongest window's energy; weaker ones are not compared
ALIKE = 0.7  # correlation of a window with the next trace's: less is noise, which no model predicts
FOLLOWED = 0.5  # correlation at the best lag: less, and nothing is predicted there
TRIED = 2  # models that are predicted with both boundaries, where none explains the record with the first
CLEARLY = 0.85  # of what is unexplained without a free surface: with one there has to be less (`benchmarks/surface.py`)
PROBES = (0.05, 0.35, 0.7)  # of a frame's range of velocities: ground of one velocity explains a direct wave

SHARED = 0.01  # of a record's energy, by neighbouring traces: less is chance, and nothing to divide by
COHERENT = 0.3  # of the record's energy: less, and `unexplained` is not known to `EXPLAINED`

EXPLAINED = 0.08  # unexplained: 95 % of true models are below .055, 99 % of wrong first matches above .10
CLOSE = 0.5  # unexplained: three quarters of the coherent energy are predicted
IN_TIME = 0.9  # of the windows

Reason = Literal["explained", "close", "cycle_skipped", "unlike", "no_signal"]


@dataclass(frozen=True, slots=True)
class Measures:
    """How what is predicted compares with what was recorded, of a shot or of all.

    Attributes:
        residual: rms of the difference over that of the record; noise is part of it.
        unexplained: the part of the residual that neighbouring traces share, over what they share of the record: 0
            where only noise is left that differs from trace to trace; NaN where they share nothing of the record.
        in_time: share of the windows that the prediction follows with a lag under half a period of the lowest usable
            frequency; NaN where no window has signal.
        phase_rad: rms over traces of the phase residual at that frequency, -pi to pi.
        cosine: median over traces of the cosine between both.
    """

    residual: float
    unexplained: float
    in_time: float
    phase_rad: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` measures; arrays are NaN where a trace is dead or a window has no signal.

    Attributes:
        whole, shots: of all shots, and of each.
        lowest_hz: the lowest usable frequency, in the frame's units.
        coherent: share of the record's energy that neighbouring traces share; of noise alone, about 0.
        window_s: ``(window,)`` middles.
        lag_s: ``(shot, receiver, window)`` positive where the prediction comes early; NaN too where it does not follow.
        followed: ``(shot, receiver, window)`` whether the prediction follows, in time or not.
        signal: ``(shot, receiver, window)`` whether there is anything to follow.
        phase_rad: ``(shot, receiver)`` at the lowest usable frequency, positive where the prediction comes early.
    """

    whole: Measures
    shots: tuple[Measures, ...]
    lowest_hz: float
    coherent: float
    window_s: Float64 = field(compare=False)
    lag_s: Float32 = field(compare=False)
    followed: Bool = field(compare=False)
    signal: Bool = field(compare=False)
    phase_rad: Float32 = field(compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a model is usable as a starting model: a word, and a sentence with the numbers."""

    usable: bool
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """One model against a record.

    Attributes:
        comparison: the measures.
        verdict: what they mean.
        free_surface: whether it was predicted with one, which suited the record better than none.
        source: estimated from the record, for this model.
        predicted: ``(shot, time, receiver)`` with that source; zero where the record is not live.
    """

    comparison: Comparison
    verdict: Verdict
    free_surface: bool
    source: Source = field(compare=False)
    predicted: Float32 = field(compare=False)

    @property
    def unexplained(self) -> float:
        """Of all shots; what models are ordered by. Infinite where nothing can be told."""
        found = self.comparison.whole.unexplained
        return math.inf if math.isnan(found) else found


def check_models(
    observed: Observed,
    velocity: Float32,
    *,
    boundary: Boundary | None = None,
    device: str = "cpu",
    between: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Each of ``velocity`` ``(model, depth, x)``, m/s of the frame, against a record.

    Args:
        observed: the record.
        velocity: within `frame.VELOCITY_LIMITS_M_S`.
        boundary: None to take the better of an absorbing and a free surface: where no model explains the record
            without one, the nearest models are predicted with one, and all of them where that explains clearly more.
        device: of torch; on a GPU all models are predicted at once.
        between: called before waves are modelled; what it raises ends the work.

    Raises:
        MissingExtra, InvalidConfig: see `Forward`.
    """
    wavelet, lowest_hz = torch.from_numpy(probing_wavelet(observed)), lowest_usable_hz(observed)
    at_once = 1 if torch.device(device).type == "cpu" else max(1, len(velocity))

    def made(surface: Boundary, models: Float32) -> list[Check]:
        forward = Forward(observed.shot_x_m, observed.frame, boundary=surface, device=device)
        found = []
        for start in range(0, len(models), at_once):
            between()
            with torch.no_grad():
                some = forward(torch.from_numpy(models[start : start + at_once]), wavelet)
            for record in some.cpu().numpy():
                source, predicted = estimate_source(observed, record)
                comparison = compare(observed, predicted, lowest_hz)
                found.append(Check(comparison, judge(comparison), surface.free_surface, source, predicted))
        return found

    models = np.ascontiguousarray(velocity, dtype=np.float32)
    if boundary is not None or not len(models):
        return made(boundary or ABSORBING, models)
    without = made(ABSORBING, models)
    nearest = sorted(range(len(models)), key=lambda n: without[n].unexplained)[:TRIED]
    if without[nearest[0]].unexplained <= EXPLAINED:
        return without
    tried = dict(zip(nearest, made(FREE_SURFACE, models[nearest]), strict=True))
    if min(check.unexplained for check in tried.values()) >= CLEARLY * without[nearest[0]].unexplained:
        return without
    rest = [n for n in range(len(models)) if n not in tried]
    tried |= zip(rest, made(FREE_SURFACE, models[rest]), strict=True)
    return [tried[n] for n in range(len(models))]


def has_free_surface(observed: Observed, velocity: Float32, *, device: str = "cpu") -> bool:
    """Whether a record is explained clearly better with a free surface, where models may all be far off.

    Args:
        observed: the record.
        velocity: ``(model, depth, x)`` m/s; beside these, ground of one velocity is tried, three times.
        device: of torch.

    Raises:
        MissingExtra, InvalidConfig: see `Forward`.
    """
    low, high = observed.frame.velocity_m_s
    probes = [np.full(observed.frame.velocity_shape, low + share * (high - low), np.float32) for share in PROBES]
    models = np.concatenate([velocity, np.stack(probes)]).astype(np.float32)
    return check_models(observed, models, device=device)[0].free_surface


def lowest_usable_hz(observed: Observed) -> float:
    """The lowest frequency with signal that the record has four periods of (`survey.spectrum`)."""
    traces = observed.traces.transpose(0, 2, 1)[observed.live]
    band = measure_band(traces, observed.frame.dt_s)
    return max(band.low_hz, LOWEST_PERIODS / observed.frame.duration_s)


def compare(observed: Observed, predicted: Float32, lowest_hz: float) -> Comparison:
    """What was predicted, ``(shot, time, receiver)`` with the record's source, against what was recorded."""
    d, live = observed.traces.astype(np.float64), observed.live
    p = np.where(live[:, None], predicted, 0.0)
    window_s, lag_s, signal, followed = _lags(d, p, live, lowest_hz, observed.frame.dt_s)
    phase = _phase(d, p, lowest_hz, observed.frame.dt_s)
    smooth_d, smooth_r = (_unaliased(each, observed.frame) for each in (d, d - p))
    half_s = 0.5 / lowest_hz

    def of(some: slice) -> Measures:
        seen, heard = live[some], signal[some]
        in_time = followed[some] & (np.abs(lag_s[some]) < half_s)
        energy = np.square(d[some]).sum(axis=1)[seen]
        dot = (d[some] * p[some]).sum(axis=1)[seen]
        cosine = dot / np.sqrt(np.maximum(energy * np.square(p[some]).sum(axis=1)[seen], 1e-300))
        return Measures(
            residual=float(np.sqrt(np.square(d[some] - p[some]).sum() / max(energy.sum(), 1e-300))),
            unexplained=_unexplained(smooth_d[some], smooth_r[some], seen),
            in_time=float(in_time[heard].mean()) if heard.any() else float("nan"),
            phase_rad=float(np.sqrt(np.square(phase[some][seen]).mean())),
            cosine=float(np.median(cosine)),
        )

    return Comparison(
        whole=of(slice(None)),
        shots=tuple(of(slice(shot, shot + 1)) for shot in range(len(d))),
        lowest_hz=lowest_hz,
        coherent=max(0.0, _shared(smooth_d, live)) / max(float(np.square(smooth_d).sum()), 1e-300),
        window_s=window_s,
        lag_s=np.where(signal & followed, lag_s, np.nan).astype(np.float32),
        followed=followed,
        signal=signal,
        phase_rad=np.where(live, phase, np.nan).astype(np.float32),
    )


def judge(comparison: Comparison, *, lowest_hz: float | None = None) -> Verdict:
    """Whether a model is usable as a starting model. ``lowest_hz``: as the sentence states it, in true units."""
    m = comparison.whole
    hz = comparison.lowest_hz if lowest_hz is None else lowest_hz
    if np.isnan(m.in_time) or comparison.coherent < COHERENT:
        text = f"Neighbouring traces share {comparison.coherent:.0%} of the record's energy; the rest is noise."
        return Verdict(False, "no_signal", f"{text} Nothing can be said of a model by it.")
    part = f"{m.unexplained:.0%} of the record's coherent amplitude is not predicted"
    late = f"{m.in_time:.0%} of the windows are within half a period at {hz:.3g} Hz"
    if m.unexplained <= EXPLAINED:
        return Verdict(True, "explained", f"It explains the record: {part}, as of a true model; {late}.")
    if m.in_time < IN_TIME:
        return Verdict(False, "cycle_skipped", f"Waves come a cycle wrong: only {late}; {IN_TIME:.0%} are wanted.")
    if m.unexplained > CLOSE:
        return Verdict(False, "unlike", f"It predicts another record: {part}, more than {CLOSE:.0%}; {late}.")
    return Verdict(True, "close", f"It is near enough to begin from, but not the ground: {part}; {late}.")


def _unexplained(smooth_d: Float64, smooth_r: Float64, seen: Bool) -> float:
    of_record = _shared(smooth_d, seen)
    if of_record <= SHARED * float(np.square(smooth_d).sum()):
        return math.nan
    return math.sqrt(max(_shared(smooth_r, seen), 0.0) / of_record)


def _unaliased(x: Float64, frame: Frame) -> Float64:
    """Traces ``(shot, time, receiver)`` below the frequency at which the slowest wave is a quarter of a wavelength
    later at the next receiver: what `_shared` can tell from noise."""
    frequency = np.fft.rfftfreq(2 * x.shape[1], frame.dt_s)
    highest = frame.velocity_m_s[0] / (4 * frame.receiver_spacing_m)
    kept = 1 / (1 + (frequency / highest) ** 8)
    return np.asarray(np.fft.irfft(np.fft.rfft(x, 2 * x.shape[1], axis=1) * kept[:, None], axis=1)[:, : x.shape[1]])


def _shared(x: Float64, live: Bool) -> float:
    """Of traces ``(shot, time, receiver)``, the sum of the products of neighbours that are both live."""
    both = live[:, :-1] & live[:, 1:]
    return float(((x[..., :-1] * x[..., 1:]).sum(axis=1) * both).sum())


def _phase(d: Float64, p: Float64, hz: float, dt_s: float) -> Float64:
    """``(shot, receiver)`` phase of ``p`` before that of ``d`` at a frequency."""
    wave = np.exp(-2j * np.pi * hz * dt_s * np.arange(d.shape[1])) * np.hanning(d.shape[1])
    at = [np.einsum("stn,t->sn", each, wave) for each in (d, p)]
    return np.asarray(np.angle(at[1] * at[0].conj()))


def _lags(d: Float64, p: Float64, live: Bool, hz: float, dt_s: float) -> tuple[Float64, Float64, Bool, Bool]:
    """Windows' middles ``(window,)``; of each ``(shot, receiver, window)`` the lag, whether it has signal, and whether
    ``p`` follows."""
    samples = d.shape[1]
    size = 1 << (2 * samples - 1).bit_length()
    octaves = np.log2(np.maximum(np.fft.rfftfreq(size, dt_s), 1e-9) / hz) - OCTAVES
    weight = np.exp(-0.5 * np.square(octaves / OCTAVES))[:, None]
    d, p = (np.fft.irfft(np.fft.rfft(each, size, axis=1) * weight, size, axis=1)[:, :samples] for each in (d, p))
    length = min(samples, round(WINDOW_PERIODS / (hz * dt_s)))
    starts = np.arange(0, samples - length + 1, max(1, round(WINDOW_STEP * length)))
    most = min(length - 1, round(1 / (hz * dt_s)))
    taper, padded = np.hanning(length)[:, None], 1 << (2 * length - 1).bit_length()
    lag, energy, alike, follows = [], [], [], []
    for start in starts:
        a, b = (each[:, start : start + length] * taper for each in (d, p))
        cross = np.fft.irfft(np.fft.rfft(a, padded, axis=1) * np.fft.rfft(b, padded, axis=1).conj(), padded, axis=1)
        cross = np.concatenate([cross[:, -most:], cross[:, : most + 1]], axis=1)
        power = np.square(a).sum(axis=1)
        lag.append((cross.argmax(axis=1) - most) * dt_s)
        follows.append(cross.max(axis=1) >= FOLLOWED * np.sqrt(power * np.square(b).sum(axis=1)) + 1e-300)
        beside = (a[..., :-1] * a[..., 1:]).sum(axis=1) / np.sqrt(np.maximum(power[:, :-1] * power[:, 1:], 1e-300))
        ends = np.pad(beside, ((0, 0), (1, 1)))
        alike.append(np.maximum(ends[:, :-1], ends[:, 1:]) >= ALIKE)
        energy.append(power)
    strong = np.stack(energy, axis=-1)
    signal = np.stack(alike, axis=-1) & (strong >= FAINTEST * strong.max()) & live[..., None] & (strong > 0)
    return (starts + length / 2) * dt_s, np.stack(lag, axis=-1), signal, np.stack(follows, axis=-1)
