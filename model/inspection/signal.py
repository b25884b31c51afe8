"""What the samples of a record hold: band, noise, wavelet, and traces that are dead, clipped or reversed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.signal.windows import hann, tukey

from seisbind.model.inspection.traces import FieldTraces

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

TAPER = 0.1  # share of a trace that is tapered before its spectrum is taken
SMOOTH = 3  # cycles a record over which a spectrum is smoothed
MOST_DB = 120.0  # signal over noise that is stated: float32 holds no more
LOUD = 0.2  # of the largest sample of a trace
QUIET = 4.0  # times the median power before the arrivals: more is no noise, but a wave that was not seen
NEAR_SHARE = 1 / 3  # of the traces with a clear first arrival: the nearest ones show the phase
MIN_SAMPLES = 16  # of a record whose spectrum is taken
MIN_NOISE_SAMPLES, MIN_NOISE_TRACES = 16, 4  # before the first arrivals
DEAD_SHARE = 1e-6  # of the median rms
CLIPPED_RUN = 3  # samples in a row at the extreme of a trace
AGREEING = 0.5  # cross-correlation with its neighbours that a trace needs, to be told reversed
NEGATIVE_RATIO = 1.2  # by which the negative peak of that correlation then exceeds the positive one
FLOOR = 1e-3  # of the peak amplitude: -60 dB, under which the wavelet's spectrum means nothing
KNOWN = 0.7  # correlation with the first arrivals from which on a phase is stated
ZERO_PHASE_DEG = 25.0


@dataclass(frozen=True, slots=True)
class Band:
    """Where the mean spectrum is near its peak; Hz.

    Attributes:
        dominant_hz: of the peak; mean_hz: weighted by power.
        within_10_db, within_20_db: around the peak, lowest and highest.
    """

    dominant_hz: float
    mean_hz: float
    within_10_db: tuple[float, float]
    within_20_db: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Noise:
    """Signal over noise, dB, at most `MOST_DB`; None where it cannot be told.

    Attributes:
        before_arrivals_db: power of the record over that before the first arrivals.
        coherence_db: from the correlation of neighbouring traces: at least so much, for their waves move, too.
    """

    before_arrivals_db: float | None
    coherence_db: float | None


@dataclass(frozen=True, slots=True)
class Wavelet:
    """The source's wavelet, as the mean autocorrelation has it.

    Attributes:
        dt_s: of both; zero_phase: its middle sample is time 0; minimum_phase: its first one is.
        peak_hz: of its spectrum.
        phase: what the first arrivals look like: ``zero``, ``minimum``, ``mixed`` or ``unknown``.
        rotation_deg: by which the zero-phase wavelet fits them best; a line source turns a pulse by 45 degrees.
    """

    dt_s: float
    zero_phase: Float64
    minimum_phase: Float64
    peak_hz: float
    phase: str
    rotation_deg: float | None


@dataclass(frozen=True, slots=True)
class Signal:
    """Everything that is told of the samples.

    Attributes:
        frequency_hz, signal_db, noise_db: ``(frequency,)`` mean power, dB under the peak of the signal.
        dead, clipped, reversed: ``(n,)`` numbers of traces of the record.
        not_finite: samples that are NaN or infinite; they are taken for zero.
        traces: that were looked at.
    """

    frequency_hz: Float64
    signal_db: Float64
    noise_db: Float64 | None
    band: Band
    noise: Noise
    wavelet: Wavelet
    dead: Index
    clipped: Index
    reversed: Index
    not_finite: int
    traces: int


def measure_signal(traces: FieldTraces) -> Signal | None:
    """What the samples hold; None if all traces are dead, or hold fewer than `MIN_SAMPLES`."""
    finite = np.isfinite(traces.samples)
    samples = np.where(finite, traces.samples, np.float32(0)).astype(np.float64)
    largest = np.abs(samples).max(axis=1)
    rms = np.sqrt(np.square(samples / np.maximum(largest, 1e-300)[:, None]).mean(axis=1)) * largest
    moving = np.ptp(samples, axis=1) > 0
    if not moving.any() or samples.shape[1] < MIN_SAMPLES:
        return None
    alive = moving & (rms > DEAD_SHARE * np.median(rms[moving]))
    live = samples[alive] / rms[alive, None]
    count, dt_s = live.shape[1], traces.dt_s
    taper = tukey(count, TAPER)
    nfft = int(next_fast_len(2 * count, real=True))
    frequency: Float64 = np.fft.rfftfreq(nfft, dt_s).astype(np.float64)
    smooth = hann(2 * max(1, round(SMOOTH * nfft / count / 2)) + 1)
    power = _smoothed(np.square(np.abs(rfft(live * taper, nfft))).mean(axis=0) / np.square(taper).sum(), smooth)
    power[0] = 0.0
    dominant = float(frequency[power.argmax()])
    onset = first_arrivals(live)
    quiet, noise_power = _before(live, onset, guard=round(0.5 / max(dominant, 1 / (count * dt_s)) / dt_s), nfft=nfft)
    peak = power.max()
    signal_db = _decibel(power / peak)
    noise_db = None if noise_power is None else _decibel(_smoothed(noise_power, smooth) / peak)
    sampled_shot = traces.shot[traces.sampled][alive]
    neighbours = _neighbours(sampled_shot, traces.receiver_x_m[traces.sampled][alive])
    positive, negative = _correlations(live, neighbours, lag=round(1 / max(dominant, 1e-9) / dt_s))
    near = np.argsort(np.abs(traces.offset_m[traces.sampled][alive]), kind="stable")
    cleaned = power if noise_power is None else np.maximum(power - _smoothed(noise_power, smooth), 0.0)
    return Signal(
        frequency_hz=frequency,
        signal_db=signal_db,
        noise_db=noise_db,
        band=_band(frequency, power, signal_db),
        noise=Noise(quiet, _coherence(positive)),
        wavelet=_wavelet(cleaned, live[near], onset[near], dt_s, nfft, dominant),
        dead=traces.sampled[~alive],
        clipped=traces.sampled[_clipped(samples) & alive],
        reversed=traces.sampled[alive][_reversed(len(live), neighbours, positive, negative)],
        not_finite=int(finite.size - finite.sum()),
        traces=len(samples),
    )


def first_arrivals(traces: Float64) -> Index:
    """``(trace,)`` the sample at which each trace ``(trace, time)`` begins to be louder than before.

    By Akaike's criterion on the variances before and after (Maeda, 1985), up to the largest sample; but no later than
    the first sample of `LOUD` times that: where the arrival is strong, the criterion prefers its strongest part.
    """
    count = traces.shape[1]
    square = np.square(traces)
    before = np.cumsum(square, axis=1)
    after = before[:, -1:] - before
    k = np.arange(1, count + 1)
    tiny = 1e-9 * square.max(axis=1, keepdims=True)
    criterion = k * np.log(before / k + tiny) + (count - k) * np.log(
        np.maximum(after, 0) / np.maximum(count - k, 1) + tiny
    )
    criterion = np.where(k[None] <= np.abs(traces).argmax(axis=1)[:, None] + 1, criterion, np.inf)
    loud = np.abs(traces) >= LOUD * np.abs(traces).max(axis=1, keepdims=True)
    return np.asarray(np.minimum(criterion.argmin(axis=1), loud.argmax(axis=1)), np.intp)


def _before(live: Float64, onset: Index, *, guard: int, nfft: int) -> tuple[float | None, Float64 | None]:
    """Signal over noise, and the noise's power as that of the record, from the samples before the first arrivals."""
    length = onset - guard
    usable = np.flatnonzero(length >= MIN_NOISE_SAMPLES)
    if len(usable) < MIN_NOISE_TRACES:
        return None, None
    power, spectra = np.zeros(len(usable)), np.zeros((len(usable), nfft // 2 + 1))
    for number, row in enumerate(usable):
        part = live[row, : length[row]]
        window = hann(len(part))
        spectra[number] = np.square(np.abs(rfft(part * window, nfft))) / np.square(window).sum()
        power[number] = np.square(part).mean()
    noise = float(np.median(power))  # the traces have an rms of 1
    quiet = power <= QUIET * noise
    return -float(_decibel(np.array(noise))), spectra[quiet].mean(axis=0)


def _band(frequency: Float64, power: Float64, signal_db: Float64) -> Band:
    peak = int(power.argmax())

    def around(above: NDArray[np.bool_]) -> tuple[float, float]:
        low, high = peak, peak
        while low > 0 and above[low - 1]:
            low -= 1
        while high < len(above) - 1 and above[high + 1]:
            high += 1
        return float(frequency[low]), float(frequency[high])

    mean = float((frequency * power).sum() / power.sum())
    return Band(float(frequency[peak]), mean, around(signal_db >= -10), around(signal_db >= -20))


def _neighbours(shot: Index, receiver_x_m: Float64) -> Index:
    """``(pair, 2)`` traces that are next to each other within a shot."""
    order = np.lexsort((receiver_x_m, shot))
    same = np.diff(shot[order]) == 0
    return np.stack([order[:-1][same], order[1:][same]], axis=1)


def _correlations(live: Float64, pairs: Index, *, lag: int) -> tuple[Float64, Float64]:
    """``(pair,)`` the largest and the most negative cross-correlation within a lag, 0 to 1 each."""
    if not len(pairs):
        return np.zeros(0), np.zeros(0)
    count = live.shape[1]
    nfft = int(next_fast_len(count + lag + 1, real=True))
    spectra = rfft(live, nfft).astype(np.complex64)
    found = []
    for start in range(0, len(pairs), 512):
        some = pairs[start : start + 512]
        correlation = irfft(spectra[some[:, 0]] * spectra[some[:, 1]].conj(), nfft) / count
        near = np.concatenate([correlation[:, : lag + 1], correlation[:, nfft - lag :]], axis=1)
        found.append(np.stack([near.max(axis=1), -near.min(axis=1)]))
    positive, negative = np.concatenate(found, axis=1)
    return np.clip(positive, 0, 1), np.clip(negative, 0, 1)


def _coherence(positive: Float64) -> float | None:
    if not len(positive):
        return None
    share = float(np.median(positive))
    return float(np.clip(10 * np.log10(max(share, 1e-6) / max(1 - share, 1e-12)), -60.0, MOST_DB))


def _reversed(count: int, pairs: Index, positive: Float64, negative: Float64) -> NDArray[np.bool_]:
    """``(trace,)`` traces that resemble the negative of every neighbour they have, where others resemble theirs."""
    against, compared = np.zeros(count, np.intp), np.zeros(count, np.intp)
    opposed = (negative > NEGATIVE_RATIO * positive) & (negative > AGREEING)
    for column in (0, 1):
        np.add.at(against, pairs[:, column], opposed)
        np.add.at(compared, pairs[:, column], 1)
    alone = np.zeros(count, bool)  # at the end of a shot: its one neighbour may be the reversed one
    one = compared == 1
    for first, second in pairs[opposed]:
        alone[first] |= bool(one[first] and against[second] < 2)
        alone[second] |= bool(one[second] and against[first] < 2)
    return np.asarray(((compared >= 2) & (against == compared)) | alone)


def _clipped(samples: Float64) -> NDArray[np.bool_]:
    """``(trace,)`` traces with `CLIPPED_RUN` samples in a row at their largest or smallest value."""
    found = np.zeros(len(samples), bool)
    for extreme in (samples.max(axis=1), samples.min(axis=1)):
        at = np.isclose(samples, extreme[:, None], rtol=1e-6, atol=0) & (extreme != 0)[:, None]
        run = at.copy()
        for shift in range(1, CLIPPED_RUN):
            run[:, shift:] &= at[:, :-shift]
            run[:, :shift] = False
        found |= run.any(axis=1)
    return found


def _wavelet(power: Float64, live: Float64, onset: Index, dt_s: float, nfft: int, dominant: float) -> Wavelet:
    """From the mean autocorrelation, within one and a half periods of the dominant frequency on each side."""
    autocorrelation = irfft(power, nfft)
    half = max(4, min(nfft // 2 - 1, round(1.5 / max(dominant, 1e-9) / dt_s)))
    window = np.zeros(nfft)
    shape = hann(2 * half + 1)
    window[: half + 1], window[nfft - half :] = shape[half:], shape[:half]
    amplitude = np.sqrt(np.maximum(rfft(autocorrelation * window, nfft).real, 0.0))
    amplitude = np.maximum(amplitude, FLOOR * amplitude.max())
    zero = np.roll(irfft(amplitude, nfft), half)[: 2 * half + 1]
    cepstrum = irfft(np.log(amplitude), nfft)  # causal: Oppenheim & Schafer, 'Discrete-time signal processing', 13.5
    fold = np.zeros(nfft)
    fold[0] = 1
    fold[1 : (nfft + 1) // 2] = 2
    if nfft % 2 == 0:
        fold[nfft // 2] = 1
    minimum = irfft(np.exp(rfft(cepstrum * fold, nfft)), nfft)[: 2 * half + 1]
    phase, rotation = _phase(zero, minimum, live, onset, half)
    peak_hz = float(np.fft.rfftfreq(nfft, dt_s)[amplitude.argmax()])
    return Wavelet(dt_s, zero / np.abs(zero).max(), minimum / np.abs(minimum).max(), peak_hz, phase, rotation)


def _phase(zero: Float64, minimum: Float64, live: Float64, onset: Index, half: int) -> tuple[str, float | None]:
    """What the first arrivals look like, and by how many degrees the zero-phase wavelet has to be turned for it.

    Args:
        live, onset: traces and their first arrivals, the nearest ones first.
    """
    inside = np.flatnonzero((onset >= half) & (onset < live.shape[1] - 4 * half))
    if len(inside) < MIN_NOISE_TRACES:
        return "unknown", None
    inside = inside[: max(MIN_NOISE_TRACES, round(NEAR_SHARE * len(inside)))]
    analytic, length = _analytic(zero), len(zero)
    turned, causal, plain = [], [], []
    for row in inside[:: max(1, len(inside) // 200)]:
        part = live[row, onset[row] - half : onset[row] + 2 * half]
        part = part / max(float(np.abs(part).max()), 1e-30)
        energy = np.sqrt(np.maximum(np.convolve(np.square(part), np.ones(length), "valid"), 1e-12))
        whole = np.correlate(part, analytic, "valid") / energy / np.linalg.norm(zero)
        at = int(np.abs(whole).argmax())
        turned.append(whole[at])
        plain.append(float(whole.real.max()))
        causal.append(float((np.correlate(part, minimum, "valid") / energy / np.linalg.norm(minimum)).max()))
    best, fit_minimum = float(np.median(np.abs(turned))), float(np.median(causal))
    if max(best, fit_minimum) < KNOWN:
        return "unknown", None
    mean = complex(np.mean(np.asarray(turned) / np.abs(turned)))
    rotation = float(np.degrees(np.angle(mean)))
    if fit_minimum >= max(KNOWN, float(np.median(plain))):
        return "minimum", rotation
    return ("zero" if abs(rotation) <= ZERO_PHASE_DEG else "mixed"), rotation


def _analytic(wavelet: Float64) -> NDArray[np.complex128]:
    """The wavelet and, as its imaginary part, its Hilbert transform."""
    spectrum = np.fft.fft(wavelet, 4 * len(wavelet))
    spectrum[1 : len(spectrum) // 2] *= 2
    spectrum[len(spectrum) // 2 + 1 :] = 0
    return np.fft.ifft(spectrum)[: len(wavelet)]


def _smoothed(power: Float64, window: Float64) -> Float64:
    """A running mean that keeps the ends."""
    return np.convolve(power, window, "same") / np.convolve(np.ones_like(power), window, "same")


def _decibel(ratio: Float64) -> Float64:
    return 10 * np.log10(np.maximum(ratio, 10 ** (-MOST_DB / 10)))
