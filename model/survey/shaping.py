"""Shaping a record's amplitude spectrum towards that of the frame's wavelet, within the band that has signal.

Weights know the frame's Ricker at a range of peak frequencies. At another scale a record may be far from it: one of
30 Hz where the frame's peak is at 7.5 Hz. Its amplitudes, not its phases, are then shaped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from seisbind.model.frame import Frame
from seisbind.model.survey.notes import Note
from seisbind.model.survey.spectrum import USABLE_DB, Band, measure_band

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

CENTROID = 0.95  # of a Ricker's peak frequency: of the power f^3 exp(-2 (f / peak)^2) of its 2-D record it is .94
TOLERANCE = 1.04  # beyond the peak frequencies of training, for what noise and the ground do to a centroid
SMOOTHING = 1 / 8  # of the frame's peak frequency: shorter than the wavelet, so that its filter is not longer


def shape_band(gather: Float32, live: NDArray[np.bool_], frame: Frame) -> tuple[Float32, tuple[Note, ...]]:
    """A gather whose band weights know, and a note if that took a change.

    A record whose mean frequency is that of a wavelet of training stays as it is, to the bit.

    Args:
        gather: ``(shot, time, receiver)`` on the grid of ``frame``.
        live: ``(shot, receiver)``.
        frame: in true units (`seisbind.model.scale.Scale.frame`).
    """
    traces = gather.transpose(0, 2, 1)[live]
    band = measure_band(traces, frame.dt_s)
    low, high = frame.trained_peak_hz
    peak = band.centroid_hz / CENTROID
    if low / TOLERANCE <= peak <= high * TOLERANCE:
        return gather, ()
    if not band.has(frame.peak_hz):
        text = (
            f"The record has its signal at {band.low_hz:.3g} to {band.high_hz:.3g} Hz and is {_level(band, frame)} "
            f"at {frame.peak_hz:.3g} Hz, the frame's peak frequency at this scale. Take another scale."
        )
        return gather, (Note("band_missing", text),)
    gain = _gain(traces, frame, band)
    samples = gather.shape[1]
    spectrum = np.fft.rfft(gather.astype(np.float64), 2 * samples, axis=1)
    shaped = np.fft.irfft(spectrum * gain[None, :, None], 2 * samples, axis=1)[:, :samples]
    text = (
        f"The record is strongest at {band.peak_hz:.3g} Hz; the encoders know wavelets of {low:.3g} to {high:.3g} Hz "
        f"at this scale. Its amplitudes were shaped towards a peak at {frame.peak_hz:.3g} Hz, where the record is "
        f"{_level(band, frame)}, within the band that has signal, {band.low_hz:.3g} to {band.high_hz:.3g} Hz; its "
        "phases are as they were."
    )
    return shaped.astype(np.float32), (Note("band_shaped", text),)


def _level(band: Band, frame: Frame) -> str:
    level = band.at(frame.peak_hz)
    return "without power" if level == -np.inf else f"{-level:.0f} dB weaker"


def _gain(traces: Float32, frame: Frame, band: Band) -> Float64:
    """The zero-phase gain at the frequencies of a transform of twice the length.

    ``target * record / (record^2 + w^2)`` with smoothed amplitudes: the ratio where the record is strong, and at most
    ``target / 2 w`` where it is not, w being `USABLE_DB` below its strongest and at least twice its noise.
    """
    samples = traces.shape[1]
    f = np.fft.rfftfreq(2 * samples, frame.dt_s)
    power = np.square(np.abs(np.fft.rfft(traces.astype(np.float64), 2 * samples, axis=1)))
    power /= power.sum(axis=1, keepdims=True)
    smooth = gaussian_filter1d(power.mean(axis=0), SMOOTHING * frame.peak_hz / (f[1] - f[0]), mode="nearest")
    weakest = max(10 ** (-USABLE_DB / 10), 4 * 10 ** (float(band.noise_db.min()) / 10)) * smooth.max()
    share = f / frame.peak_hz
    target = np.power(share, 1.5) * np.exp(1 - np.square(share))  # a Ricker's, times f^-1/2 of waves in two dimensions
    record = np.sqrt(smooth)
    gain = target * record / (smooth + weakest)
    return np.asarray(gain / np.interp(frame.peak_hz, f, gain))
