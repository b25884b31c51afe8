"""Making a record one of the frame's wavelet: its amplitudes, within the band that has signal, its phases, its clock.

Weights know the frame's Ricker at a range of peak frequencies. At another scale a record may be far from it: one of
30 Hz where the frame's peak is at 7.5 Hz, or an explosion of every frequency. Its amplitudes are then shaped, and what
is left of its wavelet is read from the direct wave and taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.signal import hilbert

from seisbind.model.frame import Frame
from seisbind.model.survey.notes import Note
from seisbind.model.survey.spectrum import USABLE_DB, Band, measure_band

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Complex128 = NDArray[np.complex128]

CENTROID = 0.95  # of a Ricker's peak frequency: of the power f^3 exp(-2 (f / peak)^2) of its 2-D record it is .94
WIDEST = 0.55  # spread of a band over its mean frequency: the largest of 1,200 records of training; a Ricker's is .36
TOLERANCE = 1.04  # beyond the peak frequencies of training, for what noise and the ground do to a centroid
MISSING, MATCHED = "band_missing", "wavelet_matched"
DELAY = 1.1  # periods of the peak frequency from the shot to the peak of `waves.wavelet.ricker`
NEAR_SHARE = 0.35  # of the line: the offsets at which the direct wave is the strongest of the early ones
LEAST_PICKS = 8  # traces that a delay is read from
SCATTER = 0.2  # of the delay: about one velocity, most traces agree better
LEAST_ALIKE = 0.8  # of 1, at the best phase: below it the direct wave is not told from others
TRAINED_ALIKE, TRAINED_ANGLE = 0.94, np.radians(50.0)  # most Rickers, as training turned them, are within both
HEARD = 0.01  # of a trace's largest amplitude, while the direct wave can come: with less, it is muted there
WINDOW = 4.0  # periods on each side of the direct wave's peak that are compared
WIENER = 0.003  # of the direct wave's strongest power: what a filter that matches it brings up
TRAINED_DELAY, MOST_DELAY = 0.35, 2.0  # of it: training had 20 ms of 73, and more than twice is no delay of a wavelet
SMOOTHING = 1 / 8  # of the frame's peak frequency: shorter than the wavelet, so that its filter is not longer


def suit_wavelet(
    gather: Float32, live: NDArray[np.bool_], shot_x_m: NDArray[np.floating], frame: Frame
) -> tuple[Float32, tuple[Note, ...]]:
    """A gather with the band and the wavelet of one that weights know; arguments as those of `align_wavelet`."""
    gather, notes = shape_band(gather, live, frame)
    if any(note.code == MISSING for note in notes):
        return gather, notes
    gather, moved = align_wavelet(gather, live, shot_x_m, frame, shaped=bool(notes))
    return gather, notes + moved


def matched(notes: Sequence[Note]) -> bool:
    """Whether the direct wave was made one of training, whose polarity needs no vote."""
    return any(note.code == MATCHED for note in notes)


def shape_band(gather: Float32, live: NDArray[np.bool_], frame: Frame) -> tuple[Float32, tuple[Note, ...]]:
    """A gather whose band weights know, and a note if that took a change.

    A record whose mean frequency is that of a wavelet of training, and whose band is no wider, stays as it is, to the
    bit; so does a wider one without signal at the frame's peak frequency.

    Args:
        gather: ``(shot, time, receiver)`` on the grid of ``frame``.
        live: ``(shot, receiver)``.
        frame: in true units (`seisbind.model.scale.Scale.frame`).
    """
    traces = gather.transpose(0, 2, 1)[live]
    band = measure_band(traces, frame.dt_s)
    low, high = frame.trained_peak_hz
    known = low / TOLERANCE <= band.centroid_hz / CENTROID <= high * TOLERANCE
    there = band.has(frame.peak_hz)
    if known and (band.spread_hz <= WIDEST * band.centroid_hz or not there):
        return gather, ()
    if not there:
        text = (
            f"The record has its signal at {band.low_hz:.3g} to {band.high_hz:.3g} Hz and is {_level(band, frame)} "
            f"at {frame.peak_hz:.3g} Hz, the frame's peak frequency at this scale. Take another scale."
        )
        return gather, (Note(MISSING, text),)
    gain = _gain(traces, frame, band)
    shaped = _filtered(gather, gain)
    width = ", in a band that is wider than theirs" if known else ""
    text = (
        f"The record is strongest at {band.peak_hz:.3g} Hz{width}; the encoders know wavelets of {low:.3g} to "
        f"{high:.3g} Hz at this scale. Its amplitudes were shaped towards a peak at {frame.peak_hz:.3g} Hz, where the "
        f"record is {_level(band, frame)}, within the band that has signal, {band.low_hz:.3g} to {band.high_hz:.3g} "
        "Hz; its phases are as they were."
    )
    return shaped, (Note("band_shaped", text),)


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
    power = power[power.any(axis=1)]  # of traces that are silent for as long as the frame lasts nothing is known
    power /= power.sum(axis=1, keepdims=True)
    smooth = gaussian_filter1d(power.mean(axis=0), SMOOTHING * frame.peak_hz / (f[1] - f[0]), mode="nearest")
    weakest = max(10 ** (-USABLE_DB / 10), 4 * 10 ** (float(band.noise_db.min()) / 10)) * smooth.max()
    share = f / frame.peak_hz
    target = np.power(share, 1.5) * np.exp(1 - np.square(share))  # a Ricker's, times f^-1/2 of waves in two dimensions
    record = np.sqrt(smooth)
    gain = target * record / (smooth + weakest)
    return np.asarray(gain / np.interp(frame.peak_hz, f, gain))


def align_wavelet(
    gather: Float32, live: NDArray[np.bool_], shot_x_m: NDArray[np.floating], frame: Frame, *, shaped: bool = False
) -> tuple[Float32, tuple[Note, ...]]:
    """A gather whose direct wave is like that of a wavelet of training, and as late, and a note if that took a change.

    The direct wave is read from short offsets: the strongest of the envelope, as late as one velocity has it on most
    traces. Where none is found the record stays as it is. Its mean over these traces is compared with a Ricker, which
    peaks 1.1 periods after the shot, as two dimensions have it. If it is another wavelet, such as one of minimum phase,
    the filter that makes it that Ricker (Wiener's) is applied to the whole record. If it is alike and only early or
    late, as where the clock starts with an explosion or at the middle of a correlated sweep, the record is moved, and
    so is one whose wave is later than sources are: that may be a reflection, and tells no phase. Phases and delays that
    training had are left, and so is the polarity then; a filter makes it positive.

    Args:
        gather: ``(shot, time, receiver)`` on the grid of ``frame``.
        live: ``(shot, receiver)``.
        shot_x_m: ``(shot,)`` from the first receiver.
        frame: in true units.
        shaped: whether it had another band, and therefore has no wavelet of training.
    """
    offset_m = np.abs(np.asarray(frame.survey.receiver_x_m) - np.asarray(shot_x_m, np.float64)[:, None])
    near = live & (offset_m <= NEAR_SHARE * frame.line_m)
    direct = _direct_wave(gather.transpose(0, 2, 1)[near].astype(np.float64), offset_m[near], frame)
    if direct is None or abs(direct.late_s) >= MOST_DELAY * direct.expected_s:
        return gather, ()
    found_ms, wanted = (direct.expected_s - direct.late_s) * 1e3, f"{direct.expected_s * 1e3:.0f} ms"
    moved = f"The record was moved by {direct.late_s * 1e3:+.0f} ms"
    source = direct.alike >= LEAST_ALIKE and direct.late_s > -TRAINED_DELAY * direct.expected_s
    if source and (shaped or direct.turned > TRAINED_ANGLE or direct.alike < TRAINED_ALIKE):
        text = (
            f"The direct wave, strongest {found_ms:.0f} ms after the shot, is {direct.alike:.0%} like a wavelet of "
            f"training, which is so after {wanted}, when its phase is turned by {np.degrees(-direct.angle):+.0f} "
            f"degrees. {moved} and filtered, so that the direct wave is that wavelet."
        )
        return _filtered(gather, direct.filter), (Note(MATCHED, text),)
    if abs(direct.late_s) > TRAINED_DELAY * direct.expected_s:
        text = (
            f"The direct wave is strongest {found_ms:.0f} ms after the shot; that of a wavelet of training, {wanted}. "
            f"{moved}."
        )
        return _filtered(gather, direct.shift), (Note("time_aligned", text),)
    return gather, ()


@dataclass(frozen=True, slots=True)
class _DirectWave:
    """Of short offsets, against the wavelet of training that peaks ``expected_s`` after the shot.

    Attributes:
        late_s: to be added to its time, by its envelope.
        angle: by which its phase differs, radians.
        alike: 1 where it is the same but for that, size and time.
        shift, filter: ``(frequency,)`` for `_filtered`: so much later; and made the same.
    """

    expected_s: float
    late_s: float
    angle: float
    alike: float
    shift: Complex128
    filter: Complex128

    @property
    def turned(self) -> float:
        """The angle, either way up."""
        return min(abs(self.angle), np.pi - abs(self.angle))


def _direct_wave(traces: Float64, offset_m: Float64, frame: Frame) -> _DirectWave | None:
    """Of ``(trace, time)``; None where the strongest waves are not as late as one velocity has them, or are muted."""
    dt_s, (slow, fast) = frame.dt_s, frame.velocity_m_s
    by = np.arange(traces.shape[1]) <= np.ceil((offset_m[:, None] / slow + 2 * DELAY / frame.peak_hz) / dt_s)
    largest = np.abs(traces).max(axis=1, initial=0)
    heard = np.abs(traces * by).max(axis=1, initial=0) > HEARD * largest
    if heard.sum() < LEAST_PICKS:
        return None
    traces, offset_m, largest = traces[heard], offset_m[heard], largest[heard]
    peak_hz = float(np.clip(measure_band(traces, dt_s).centroid_hz / CENTROID, *frame.trained_peak_hz))
    expected_s = DELAY / peak_hz
    envelope = np.abs(hilbert(traces, axis=1))
    velocity = np.geomspace(slow, fast, 24)
    last = np.ceil((offset_m / slow + 2 * expected_s) / dt_s).astype(int)
    envelope[np.arange(envelope.shape[1]) > last[:, None]] = 0
    peak_s = (envelope.argmax(axis=1) + 1) * dt_s  # row n is the pressure at (n + 1) dt
    delays = peak_s - offset_m / velocity[:, None]  # (velocity, trace)
    middle = np.median(delays, axis=1)
    scatter = np.median(np.abs(delays - middle[:, None]), axis=1)
    best = int(scatter.argmin())
    if scatter[best] > SCATTER * expected_s:
        return None
    late_s, f = expected_s - float(middle[best]), np.fft.rfftfreq(2 * traces.shape[1], dt_s)
    shift = np.exp(-2j * np.pi * f * late_s)
    level = np.maximum(envelope.max(axis=1), HEARD * largest)
    spectra = np.fft.rfft(traces / level[:, None], 2 * traces.shape[1], axis=1)
    spectra *= np.exp(2j * np.pi * f * (offset_m / velocity[best])[:, None]) * shift
    angle, alike, matching = _against_ricker(np.fft.irfft(spectra.mean(axis=0)), peak_hz, dt_s)
    return _DirectWave(expected_s, late_s, angle, alike, shift, shift * matching)


def _against_ricker(wave: Float64, peak_hz: float, dt_s: float) -> tuple[float, float, Complex128]:
    """`_DirectWave.angle`, `alike`, and the filter ``(frequency,)`` that makes ``wave`` (time,) the Ricker, as late."""
    size, at_s = len(wave), DELAY / peak_hz
    f = np.fft.rfftfreq(size, dt_s)
    periods = ((np.arange(size) + 1) * dt_s - at_s) * peak_hz
    own = np.fft.rfft(wave * np.square(np.cos(0.5 * np.pi * np.clip(periods / WINDOW, -1, 1))))
    # a Ricker's half integral, which is what two dimensions make of it
    known = np.power(f / peak_hz, 1.5) * np.exp(-np.square(f / peak_hz) - 0.25j * np.pi)
    known *= np.exp(-2j * np.pi * f * (at_s - dt_s))
    own, known = (each / np.linalg.norm(each) for each in (own, known))
    product = np.zeros(size, np.complex128)
    product[: len(f)] = own * known.conj()
    alike = np.fft.ifft(product) * size  # by lag, the real part at the wave's own phase
    at = int(np.abs(alike).argmax())
    angle = float(np.angle(alike[at]))
    turned = np.exp(2j * np.pi * f * (at - size * (at > size // 2)) * dt_s - 1j * angle)
    power = np.square(np.abs(own))
    least = WIENER * power.max()  # far below it nothing is known of the wave but its lag and its phase as a whole
    return angle, float(np.abs(alike[at])), (known * own.conj() + least * turned) / (power + least)


def _filtered(gather: Float32, response: Float64 | Complex128) -> Float32:
    """``(shot, time, receiver)``; ``response``: ``(frequency,)`` of a transform of twice the length."""
    samples = gather.shape[1]
    spectrum = np.fft.rfft(gather.astype(np.float64), 2 * samples, axis=1)
    return np.fft.irfft(spectrum * response[None, :, None], 2 * samples, axis=1)[:, :samples].astype(np.float32)
