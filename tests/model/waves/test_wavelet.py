"""Source wavelets with a band of their own."""

from __future__ import annotations

import numpy as np
import pytest

from seisbind.model.waves.wavelet import band_wavelet

DT_S = 0.001


def amplitude(wavelet: np.ndarray, hz: float) -> float:
    t = np.arange(len(wavelet)) * DT_S
    return float(np.abs((wavelet * np.exp(-2j * np.pi * hz * t)).sum()))


@pytest.mark.parametrize("impulsive", [False, True])
def test_corners_are_3_db_down(impulsive: bool) -> None:
    wavelet = band_wavelet(4.0, 40.0, DT_S, slopes=(3, 2), impulsive=impulsive, delay_s=0.4)
    passed = amplitude(wavelet, 13.0)
    for corner in (4.0, 40.0):
        assert -4.5 < 20 * np.log10(amplitude(wavelet, corner) / passed) < -2
    assert 20 * np.log10(amplitude(wavelet, 1.0) / passed) < -25
    assert wavelet.dtype == np.float32 and np.abs(wavelet).max() == pytest.approx(1)


def test_zero_phase_is_even_about_its_delay_and_minimum_phase_begins_there() -> None:
    zero = band_wavelet(4.0, 40.0, DT_S, slopes=(2, 2), impulsive=False, delay_s=0.2)
    assert zero.argmax() == 200
    np.testing.assert_allclose(zero[200:260], zero[200:140:-1], atol=2e-3)
    sudden = band_wavelet(4.0, 40.0, DT_S, slopes=(2, 2), impulsive=True, delay_s=0.2)
    assert np.abs(sudden[:199]).max() < 0.02 and sudden[200:212].max() == 1
