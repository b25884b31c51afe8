"""Source wavelets, as time functions of unit amplitude."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from seisbind.model.errors import InvalidSurvey

Float32 = NDArray[np.float32]


def ricker(peak_hz: float, dt_s: float, samples: int | None = None) -> Float32:
    """OpenFWI's Ricker wavelet: ``(1 - 2 a^2) exp(-a^2)``, ``a = pi peak_hz (n // 2 - k) dt``, k = 0..n-1.

    Args:
        peak_hz: frequency of the largest spectral amplitude, Hz.
        dt_s: sampling interval, s.
        samples: n; None: the odd number that spans 2.2 periods (147 at 15 Hz and 1 ms), so that it starts at 2e-4.

    Returns:
        ``(n,)`` float32, 1 at sample ``n // 2``.

    Raises:
        InvalidSurvey: a peak frequency that is not positive or above half the Nyquist frequency.
    """
    if not 0 < peak_hz <= 0.25 / dt_s:
        raise InvalidSurvey(
            f"A peak frequency of {peak_hz:g} Hz at samples of {dt_s * 1e3:g} ms; it must be positive and at most half "
            f"the Nyquist frequency, {0.25 / dt_s:g} Hz."
        )
    n = 2 * int(1.1 / (peak_hz * dt_s)) + 1 if samples is None else samples
    if n < 1:
        raise InvalidSurvey(f"A wavelet of {n} samples; at least 1 is needed.")
    a2 = np.square(np.pi * peak_hz * dt_s * (n // 2 - np.arange(n)))
    return np.asarray((1 - 2 * a2) * np.exp(-a2), dtype=np.float32)


def check_wavelet(wavelet: ArrayLike, dtype: DTypeLike) -> NDArray[Any]:
    """A source time function as ``(n,)`` of ``dtype``. Raises InvalidSurvey if it is empty, not 1-D or not finite."""
    w = np.asarray(wavelet, dtype=dtype)
    if w.ndim != 1 or not w.size or not np.isfinite(w).all():
        raise InvalidSurvey(f"A wavelet is a non-empty line of finite samples; got shape {w.shape}.")
    return w


def band_wavelet(
    low_hz: float, high_hz: float, dt_s: float, *, slopes: tuple[int, int], impulsive: bool, delay_s: float
) -> NDArray[np.float32]:
    """A source's wavelet with a band of its own, ``(n,)`` float32 of largest amplitude 1.

    Args:
        low_hz, high_hz: corners, where the amplitude is 3 dB down.
        dt_s: sampling interval.
        slopes: orders of the Butterworth flanks below and above the band: 6 dB an octave each.
        impulsive: minimum phase from ``delay_s`` on, as an explosion or an air gun; else zero phase about it, as a
            correlated sweep.
        delay_s: from the first sample.
    """
    points = 1 << int(np.ceil(np.log2(8 / (low_hz * dt_s))))
    f = np.maximum(np.fft.rfftfreq(points, dt_s), 1e-3 * low_hz)
    amplitude = 1 / np.sqrt((1 + (low_hz / f) ** (2 * slopes[0])) * (1 + (f / high_hz) ** (2 * slopes[1])))
    if impulsive:  # the logarithm of the amplitude, folded to positive times (Oppenheim and Schafer 1975)
        cepstrum = np.fft.irfft(np.log(amplitude), points)
        cepstrum[1 : points // 2] *= 2
        cepstrum[points // 2 + 1 :] = 0
        spectrum = np.exp(np.fft.rfft(cepstrum))
    else:
        spectrum = amplitude.astype(np.complex128)
    wavelet = np.fft.irfft(spectrum * np.exp(-2j * np.pi * np.fft.rfftfreq(points, dt_s) * delay_s), points)
    wavelet = wavelet[: round((delay_s + 2 / low_hz) / dt_s) + 1][: points // 2]
    wavelet *= np.minimum(1, np.arange(len(wavelet), 0, -1) / (0.2 * len(wavelet)))  # no step at its end
    return np.asarray(wavelet / np.abs(wavelet).max(), dtype=np.float32)
