"""Band, noise, wavelet and faults of records whose truth is known: a convolution, or the wave equation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import fftconvolve, hilbert

from seisbind.model.inspection.signal import Signal, first_arrivals, measure_signal
from seisbind.model.inspection.traces import FieldTraces
from seisbind.model.waves.wavefield import simulate
from seisbind.model.waves.wavelet import ricker

DT_S, SAMPLES = 0.001, 1000
SHOT, RECEIVER = np.repeat([0.0, 170.0, 340.0], 70), np.tile(np.arange(70) * 10.0, 3)


def record(samples: NDArray[np.floating]) -> FieldTraces:
    shot = np.repeat(np.arange(3), 70)
    return FieldTraces(shot, SHOT, RECEIVER, 0.0, DT_S, 0.0, np.arange(210), samples.astype(np.float32))


def convolved(wavelet: NDArray[np.floating], start: int) -> NDArray[np.float64]:
    """A direct wave at 2000 m/s and a reflection; the wavelet's time 0 is its sample ``start``."""
    spikes, offset = np.zeros((210, SAMPLES + start)), np.abs(RECEIVER - SHOT)
    for row, each in zip(spikes, offset, strict=True):
        row[round(150 + each / 2)], row[round(450 + 0.3 * each)] = 1.0, 0.4
    return np.asarray(fftconvolve(spikes, wavelet[None])[:, start : start + SAMPLES])


def measured(samples: NDArray[np.floating]) -> Signal:
    found = measure_signal(record(samples))
    assert found is not None
    return found


def noisy(samples: NDArray[np.floating], decibel: float) -> NDArray[np.float64]:
    noise = np.random.default_rng(0).standard_normal(samples.shape)
    each = np.sqrt(np.square(samples).mean(axis=1, keepdims=True))
    return np.asarray(samples + each * noise * 10 ** (-decibel / 20))


RICKER = ricker(20.0, DT_S).astype(np.float64)
RICKED = convolved(RICKER, len(RICKER) // 2)


@pytest.mark.parametrize("peak_hz", [8.0, 20.0, 45.0])
def test_the_band_is_the_wavelets(peak_hz: float) -> None:
    wavelet = ricker(peak_hz, DT_S).astype(np.float64)
    found = measured(convolved(wavelet, len(wavelet) // 2))
    frequency = np.fft.rfftfreq(8192, DT_S)
    decibel = 20 * np.log10(np.maximum(np.abs(np.fft.rfft(wavelet, 8192)), 1e-12))
    decibel -= decibel.max()
    band = found.band
    assert band.dominant_hz == pytest.approx(peak_hz, rel=0.15)
    assert found.wavelet.peak_hz == pytest.approx(peak_hz, rel=0.15)
    for below, bounds in ((10, band.within_10_db), (20, band.within_20_db)):
        inside = frequency[decibel >= -below]
        assert bounds == pytest.approx((inside[0], inside[-1]), rel=0.2, abs=1.5)
    assert peak_hz < band.mean_hz < 1.5 * peak_hz


@pytest.mark.parametrize("decibel", [10.0, 20.0, 40.0])
def test_noise_is_measured_and_bounds_the_band(decibel: float) -> None:
    found, clean = measured(noisy(RICKED, decibel)), measured(RICKED)
    whole = -10 * np.log10(10 ** (-decibel / 10) / (1 + 10 ** (-decibel / 10)))  # over signal and noise together
    assert found.noise.before_arrivals_db == pytest.approx(whole, abs=1.0)
    assert found.noise.coherence_db is not None and found.noise.coherence_db <= decibel + 1
    assert clean.noise.before_arrivals_db is not None and clean.noise.before_arrivals_db > 90
    assert found.noise_db is not None and len(found.noise_db) == len(found.frequency_hz)


def test_the_phase_is_the_wavelets() -> None:
    quadrature = np.imag(hilbert(RICKER, 4096))[: len(RICKER)]
    for samples, phase, degrees in (
        (RICKED, "zero", 0.0),
        (convolved(quadrature, len(RICKER) // 2), "mixed", -90.0),
        (-RICKED, "mixed", 180.0),
        (noisy(RICKED, 20.0), "zero", 0.0),
    ):
        found = measured(samples).wavelet
        assert found.phase == phase and found.rotation_deg is not None
        assert abs((found.rotation_deg - degrees + 180) % 360 - 180) < 3
    assert measured(noisy(RICKED, -20.0)).wavelet.phase == "unknown"


def test_a_minimum_phase_wavelet_is_found_and_its_estimate_is_it() -> None:
    n = 4096
    amplitude = np.abs(np.fft.rfft(RICKER, n))
    cepstrum = np.fft.irfft(np.log(np.maximum(amplitude, 1e-2 * amplitude.max())), n)
    cepstrum[1 : n // 2] *= 2
    cepstrum[n // 2 + 1 :] = 0
    causal = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)), n)[:150]
    found = measured(noisy(convolved(causal, 0), 30.0)).wavelet
    assert found.phase == "minimum"
    length = min(len(causal), len(found.minimum_phase))
    one, other = causal[:length], found.minimum_phase[:length]
    assert np.corrcoef(one, other)[0, 1] > 0.8
    middle = len(found.zero_phase) // 2
    assert found.zero_phase.argmax() == middle and np.allclose(found.zero_phase, found.zero_phase[::-1], atol=1e-6)


def test_a_line_source_turns_its_pulse_by_45_degrees() -> None:
    """The half integral of the 2-D Green's function, seen on a simulated direct wave."""
    gather = simulate(np.full((70, 70), 2000, np.float32))[0][:3]
    samples = gather.transpose(0, 2, 1).reshape(210, SAMPLES)
    found = measured(samples)
    assert found.wavelet.rotation_deg == pytest.approx(-45, abs=5)
    assert found.noise.before_arrivals_db is not None and found.noise.before_arrivals_db > 80
    far = np.abs(RECEIVER - SHOT) > 300
    arrival = 1000 * np.abs(RECEIVER - SHOT)[far] / 2000
    late = first_arrivals(samples[far].astype(np.float64)) - arrival
    assert np.ptp(late) < 12 and 0 < np.median(late) < 60  # of the wavelet, whose middle is at 73 ms


def test_faulty_traces_are_named() -> None:
    samples = noisy(RICKED, 30.0)
    samples[[3, 75]] = 0.0
    samples[[10, 69, 140]] *= -1  # within a shot, at its end and at its start
    for row in (20, 101):
        limit = 0.3 * np.abs(samples[row]).max()
        samples[row] = np.clip(samples[row], -limit, limit)
    samples[50, 100] = np.nan
    found = measured(samples)
    assert found.dead.tolist() == [3, 75]
    assert found.reversed.tolist() == [10, 69, 140]
    assert found.clipped.tolist() == [20, 101]
    assert (found.not_finite, found.traces) == (1, 210)


def test_none_are_named_where_there_are_none() -> None:
    for samples in (RICKED, noisy(RICKED, 10.0), np.random.default_rng(3).standard_normal((210, SAMPLES))):
        found = measured(samples)
        assert len(found.dead) == len(found.reversed) == len(found.clipped) == 0


def test_scaling_a_record_changes_nothing_but_its_units() -> None:
    """Times and lengths by 3, amplitudes by 1e12: frequencies by a third, decibels and faults the same."""
    traces = record(noisy(RICKED, 20.0))
    larger = replace(
        traces, shot_x_m=3 * SHOT, receiver_x_m=3 * RECEIVER, dt_s=3 * DT_S, samples=traces.samples * np.float32(1e12)
    )
    one, other = measure_signal(traces), measure_signal(larger)
    assert one is not None and other is not None
    assert np.allclose(np.array(other.band.within_20_db) * 3, one.band.within_20_db, rtol=1e-6)
    assert other.noise.before_arrivals_db == pytest.approx(one.noise.before_arrivals_db, abs=0.01)
    assert other.wavelet.rotation_deg == pytest.approx(one.wavelet.rotation_deg, abs=0.1)


@pytest.mark.parametrize("shape", [(210, 1), (210, 2), (210, 40)])
def test_short_records_are_measured_or_dead(shape: tuple[int, int]) -> None:
    found = measure_signal(record(np.random.default_rng(0).standard_normal(shape)))
    assert found is None or np.isfinite(found.signal_db).all()
    assert measure_signal(record(np.zeros(shape))) is None
    assert measure_signal(record(np.full(shape, np.nan))) is None
