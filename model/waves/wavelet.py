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
