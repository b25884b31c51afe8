"""Shaping a record's amplitude spectrum towards that of the frame's wavelet, within the band that has signal.

Weights know the frame's Ricker at a range of peak frequencies. At another scale a record may be far from it: one of
30 Hz where the frame's peak is at 7.5 Hz. Its amplitudes, not its phases, are then shaped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import hilbert

from seisbind.model.frame import Frame
from seisbind.model.survey.notes import Note
from seisbind.model.survey.spectrum import USABLE_DB, Band, measure_band

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

CENTROID = 0.95  # of a Ricker's peak frequency: of the power f^3 exp(-2 (f / peak)^2) of its 2-D record it is .94
TOLERANCE = 1.04  # beyond the peak frequencies of training, for what noise and the ground do to a centroid
MISSING = "band_missing"
DELAY = 1.1  # periods of the peak frequency from the shot to the peak of `waves.wavelet.ricker`
NEAR_SHARE = 0.35  # of the line: the offsets at which the direct wave is the strongest of the early ones
LEAST_PICKS = 8  # traces that a delay is read from
SCATTER = 0.2  # of the delay: about one velocity, most traces agree better
TRAINED_DELAY, MOST_DELAY = 0.35, 2.0  # of it: training had 20 ms of 73, and more than twice is no delay of a wavelet
SMOOTHING = 1 / 8  # of the frame's peak frequency: shorter than the wavelet, so that its filter is not longer


def suit_wavelet(
    gather: Float32, live: NDArray[np.bool_], shot_x_m: NDArray[np.floating], frame: Frame
) -> tuple[Float32, tuple[Note, ...]]:
    """A gather with the band and the clock of one that weights know; arguments as those of `align_time`."""
    gather, notes = shape_band(gather, live, frame)
    if any(note.code == MISSING for note in notes):
        return gather, notes
    gather, moved = align_time(gather, live, shot_x_m, frame)
    return gather, notes + moved


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
        return gather, (Note(MISSING, text),)
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


def align_time(
    gather: Float32, live: NDArray[np.bool_], shot_x_m: NDArray[np.floating], frame: Frame
) -> tuple[Float32, tuple[Note, ...]]:
    """A gather whose direct wave is as late as that of a wavelet of training, and a note if that took a change.

    Such a Ricker peaks 1.1 periods after the shot. A record whose clock starts with an explosion, or at the middle of
    a correlated sweep, has all of its waves so much earlier. The delay is read from the direct wave of short offsets:
    the strongest of the envelope, as late as one velocity has it on most traces. Delays that training had are left, and
    so is a record in which no such wave is found.

    Args:
        gather: ``(shot, time, receiver)`` on the grid of ``frame``.
        live: ``(shot, receiver)``.
        shot_x_m: ``(shot,)`` from the first receiver.
        frame: in true units.
    """
    offset_m = np.abs(np.asarray(frame.survey.receiver_x_m) - np.asarray(shot_x_m, np.float64)[:, None])
    near = live & (offset_m <= NEAR_SHARE * frame.line_m)
    if near.sum() < LEAST_PICKS:
        return gather, ()
    traces, offset_m = gather.transpose(0, 2, 1)[near], offset_m[near]
    envelope = np.abs(hilbert(traces.astype(np.float64), axis=1))
    slow, fast = frame.velocity_m_s
    peak_hz = np.clip(measure_band(traces, frame.dt_s).centroid_hz / CENTROID, *frame.trained_peak_hz)
    expected_s = DELAY / float(peak_hz)
    velocity = np.geomspace(slow, fast, 24)
    last = np.ceil((offset_m / slow + 2 * expected_s) / frame.dt_s).astype(int)
    envelope[np.arange(envelope.shape[1]) > last[:, None]] = 0
    peak_s = (envelope.argmax(axis=1) + 1) * frame.dt_s  # row n is the pressure at (n + 1) dt
    delays = peak_s - offset_m / velocity[:, None]  # (velocity, trace)
    middle = np.median(delays, axis=1)
    scatter = np.median(np.abs(delays - middle[:, None]), axis=1)
    best = int(scatter.argmin())
    late_s = expected_s - float(middle[best])
    if scatter[best] > SCATTER * expected_s or not TRAINED_DELAY * expected_s < abs(late_s) < MOST_DELAY * expected_s:
        return gather, ()
    samples = gather.shape[1]
    f = np.fft.rfftfreq(2 * samples, frame.dt_s)
    spectrum = np.fft.rfft(gather.astype(np.float64), 2 * samples, axis=1)
    moved = np.fft.irfft(spectrum * np.exp(-2j * np.pi * f * late_s)[None, :, None], 2 * samples, axis=1)[:, :samples]
    text = (
        f"The direct wave is strongest {middle[best] * 1e3:.0f} ms after the shot; that of a wavelet "
        f"of training, {expected_s * 1e3:.0f} ms. The record was moved by {late_s * 1e3:+.0f} ms."
    )
    return moved.astype(np.float32), (Note("time_aligned", text),)
