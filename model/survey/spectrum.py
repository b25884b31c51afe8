"""The band in which a record has signal: its power over frequency against a floor of noise, and its usable part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidGather

Float64 = NDArray[np.float64]

PER_OCTAVE = 6  # bins of frequency
HIGHEST = 0.8  # of the Nyquist frequency; above it recorders' filters act
LOWEST_PERIODS = 2.0  # a frequency with fewer periods in a record is not told from its trend
TAPER = 0.05  # of a record, at each of its ends
PADDED = 4  # times the record's length, so that the lowest bins hold a sample
USABLE_DB = 30.0  # below the strongest frequency: what a bounded gain can bring up
ABOVE_NOISE_DB = 6.0
FLOOR_QUANTILE = 0.1  # of the bins' power: a record with signal in nine tenths of them has no floor that is seen
QUIET_PERIODS = 2.0  # of a frequency in what was recorded before the first arrival, for its noise to be known
NOTCH = 1  # bins inside the band that may lie below it, as those of a ghost
FAINTEST_DB = -120.0


@dataclass(frozen=True, slots=True)
class Band:
    """Power over frequency, in decibel of the strongest bin that has signal, and the part that has it.

    Attributes:
        frequency_hz: ``(bin,)`` middle of each bin, increasing by a sixth of an octave.
        power_db: ``(bin,)`` median over traces of their power, each trace at the same total power.
        noise_db: ``(bin,)`` floor of noise.
        peak_hz: the strongest bin that is above the noise.
        low_hz, high_hz: of the bins around it that are at most `USABLE_DB` weaker and `ABOVE_NOISE_DB` above the noise.
        centroid_hz: mean frequency of these, weighted by power above the noise.
        spread_hz: standard deviation about it, weighted alike.
    """

    frequency_hz: Float64
    power_db: Float64
    noise_db: Float64
    peak_hz: float
    low_hz: float
    high_hz: float
    centroid_hz: float
    spread_hz: float

    @property
    def clear(self) -> bool:
        """Whether any bin is above the noise."""
        return bool((self.power_db >= self.noise_db + ABOVE_NOISE_DB).any())

    def at(self, frequency_hz: float) -> float:
        """Power at a frequency, dB; -inf outside all bins."""
        f = self.frequency_hz
        if not f[0] <= frequency_hz <= f[-1]:
            return -np.inf
        return float(np.interp(np.log(frequency_hz), np.log(f), self.power_db))

    def has(self, frequency_hz: float) -> bool:
        """Whether there is signal at a frequency."""
        return self.low_hz <= frequency_hz <= self.high_hz


def measure_band(traces: ArrayLike, dt_s: float, *, quiet_s: ArrayLike | None = None) -> Band:
    """The band of a record.

    The floor of noise is the power of the weakest tenth of the bins or, where that is higher, of what was recorded
    before the first arrivals.

    Args:
        traces: ``(trace, time)``, in any linear unit; dead ones are left out.
        dt_s: sampling interval, s.
        quiet_s: ``(trace,)`` time before which nothing from the source can have arrived; None where it is not known.

    Raises:
        InvalidGather: no live trace, or one with fewer than 16 samples.
    """
    x = np.asarray(traces, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] < 16:
        raise InvalidGather(f"A band is measured on traces (trace, time) of 16 samples or more; got shape {x.shape}.")
    alive = np.ptp(x, axis=1) > 0
    if not alive.any():
        raise InvalidGather("No trace is live: the record has no band.")
    x = x[alive] / np.abs(x[alive]).max(axis=1, keepdims=True)
    x = x - x.mean(axis=1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True))
    edges = _edges(x.shape[1] * dt_s, dt_s)
    power = np.median(_binned(x, dt_s, edges), axis=0)
    noise = np.full(len(power), np.quantile(power, FLOOR_QUANTILE))
    if quiet_s is not None:
        noise = np.maximum(noise, _before_arrivals(x, np.asarray(quiet_s, dtype=np.float64)[alive], dt_s, edges))
    frequency = np.sqrt(edges[1:] * edges[:-1])
    heard = power >= noise * 10 ** (ABOVE_NOISE_DB / 10)
    peak = int(np.where(heard, power, 0).argmax() if heard.any() else power.argmax())
    strongest = power[peak]
    usable = heard & (power >= strongest * 10 ** (-USABLE_DB / 10))
    first, last = _around(usable, peak)
    width, some = np.diff(edges)[first : last + 1], slice(first, last + 1)
    weight = np.maximum(power[some] - noise[some], 1e-12 * strongest) * width
    centroid = np.average(frequency[some], weights=weight)
    return Band(
        frequency_hz=frequency,
        power_db=_decibel(power / strongest),
        noise_db=_decibel(noise / strongest),
        peak_hz=float(frequency[peak]),
        low_hz=float(edges[first]),
        high_hz=float(edges[last + 1]),
        centroid_hz=float(centroid),
        spread_hz=float(np.sqrt(np.average(np.square(frequency[some] - centroid), weights=weight))),
    )


def _edges(record_s: float, dt_s: float) -> Float64:
    """Of the bins, from `LOWEST_PERIODS` in the record to `HIGHEST` of the Nyquist frequency."""
    low, high = LOWEST_PERIODS / record_s, HIGHEST / (2 * dt_s)
    bins = max(2, int(np.floor(PER_OCTAVE * np.log2(high / low))))
    return np.asarray(high * 2.0 ** (np.arange(-bins, 1) / PER_OCTAVE))


def _binned(x: Float64, dt_s: float, edges: Float64) -> Float64:
    """``(trace, bin)`` mean power per hertz of traces ``(trace, time)``."""
    samples = x.shape[1]
    ramp = max(1, round(TAPER * samples))
    window = np.ones(samples)
    window[:ramp] = np.square(np.sin(0.5 * np.pi * (np.arange(ramp) + 0.5) / ramp))
    window[-ramp:] = window[:ramp][::-1]
    size = PADDED * samples
    spectrum = np.square(np.abs(np.fft.rfft(x * window, size, axis=1))) / samples
    f = np.fft.rfftfreq(size, dt_s)
    ends = np.maximum(np.searchsorted(f, edges), [0] + [1] * (len(edges) - 1))
    found = [
        spectrum[:, a : max(b, a + 1)].mean(axis=1)
        for a, b in zip(np.minimum(ends[:-1], len(f) - 1), ends[1:], strict=True)
    ]
    return np.stack(found, axis=1)


def _before_arrivals(x: Float64, quiet_s: Float64, dt_s: float, edges: Float64) -> Float64:
    """``(bin,)`` power per hertz of what was recorded before the first arrivals; 0 where it is not known."""
    samples = np.minimum((quiet_s / dt_s).astype(int), x.shape[1])
    enough = max(16, int(np.quantile(samples, 0.75)))  # of the far traces, which have the longest
    if (samples >= enough).sum() == 0:
        return np.zeros(len(edges) - 1)
    before = x[samples >= enough, :enough]
    noise = np.median(_binned(before - before.mean(axis=1, keepdims=True), dt_s, edges), axis=0)
    return np.where(edges[:-1] * enough * dt_s >= QUIET_PERIODS, noise, 0.0)


def _around(usable: NDArray[np.bool_], peak: int) -> tuple[int, int]:
    """The first and the last of the usable bins around ``peak``, across notches of `NOTCH` bins."""
    ends = []
    for step in (-1, 1):
        at = reached = peak
        while 0 <= (at := at + step) < len(usable) and abs(at - reached) <= NOTCH + 1:
            reached = at if usable[at] else reached
        ends.append(reached)
    return ends[0], ends[1]


def _decibel(share: Float64) -> Float64:
    return np.asarray(np.maximum(10 * np.log10(np.maximum(share, 1e-30)), FAINTEST_DB))
