"""The source of a record, estimated from it: the short filter that makes of predicted traces what was recorded.

Prediction is linear in the source, so records are predicted once, with a wavelet that is known, and filtered: wavelet,
gain, sign and delay are then those of the record (Pratt 1999, "Seismic waveform inversion in the frequency domain, part
1", eq. 17, here for a filter of few samples).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_toeplitz
from torch import Tensor

from seisbind.model.frame import Frame
from seisbind.model.inversion.observed import Observed
from seisbind.model.survey.spectrum import measure_band
from seisbind.model.waves.wavelet import band_wavelet

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

PERIODS = 2.0  # of the frame's peak frequency, early and late: a delay and a wavelet's length, not a reflection's time
DAMPING = 1e-4  # of the predicted power, added at all frequencies
SLOPES = (2, 3)  # of the flanks of the wavelet that is predicted with
TAPERED = 0.3  # of a wavelet, at its end
DELAY = 1.1  # periods of the frame's peak frequency to its middle, as in its own Ricker


@dataclass(frozen=True, slots=True)
class Source:
    """A filter of predicted traces.

    Attributes:
        filter: ``(2 half + 1,)`` float64 at the frame's samples, lags from ``-half`` (earlier) to ``half``.
    """

    filter: Float64

    @property
    def half(self) -> int:
        """Samples before and after lag 0."""
        return len(self.filter) // 2

    def apply(self, records: Tensor) -> Tensor:
        """Records ``(.., time, receiver)``, filtered along time; linear, so gradients flow through it."""
        samples = records.shape[-2]
        size = samples + 2 * self.half
        taps = torch.as_tensor(self.filter, dtype=records.dtype, device=records.device)
        spectrum = torch.fft.rfft(records, size, dim=-2) * torch.fft.rfft(taps, size)[:, None]
        filtered: Tensor = torch.fft.irfft(spectrum, size, dim=-2)
        return filtered[..., self.half : self.half + samples, :]


def probing_wavelet(observed: Observed) -> Float32:
    """``(n,)`` a wavelet with power wherever a record has any, to predict with: a filter cannot make what is not there.

    Zero phase about 1.1 periods of the frame's peak frequency.
    """
    frame = observed.frame
    band = measure_band(observed.traces.transpose(0, 2, 1)[observed.live], frame.dt_s)
    delay_s = DELAY / frame.peak_hz
    return band_wavelet(band.low_hz, band.high_hz, frame.dt_s, slopes=SLOPES, impulsive=False, delay_s=delay_s)


def folded_wavelet(source: Source, wavelet: Float32, frame: Frame) -> Float32:
    """``(n,)`` what the source makes of a wavelet: predicted with that, the filter that is left to find is shorter.

    A filter of few periods that starts from `probing_wavelet` misses .5 % of a record up to OpenFWI's peak frequency,
    one that starts from here .12 %. It ends, tapered, 5.1 periods of the frame's peak frequency after 0, however often
    it is folded: too early to make up for the ground.
    """
    length = round((DELAY + 2 * PERIODS) / (frame.peak_hz * frame.dt_s))
    folded = np.pad(filtered_wavelet(source, wavelet), (0, length))[:length]
    folded = folded * np.minimum(1, np.arange(length, 0, -1) / (TAPERED * length))
    largest = float(np.abs(folded).max())
    return np.asarray(folded / largest, np.float32) if largest > 0 else wavelet


def filtered_wavelet(source: Source, wavelet: Float32) -> Float32:
    """``(n + half,)`` the wavelet with which the record itself would be predicted."""
    whole = torch.zeros(len(wavelet) + source.half, 1)
    whole[: len(wavelet), 0] = torch.from_numpy(wavelet)
    return np.asarray(source.apply(whole)[:, 0].numpy(), np.float32)


def filter_half(frame: Frame) -> int:
    """Samples of a source filter before and after lag 0."""
    return round(PERIODS / (frame.peak_hz * frame.dt_s))


def estimate_source(observed: Observed, predicted: Float32) -> tuple[Source, Float32]:
    """The source of a record, by least squares over its live traces, and what is predicted with it.

    Args:
        observed: the record.
        predicted: ``(shot, time, receiver)`` from a velocity model, with any wavelet that has the record's band.

    Returns:
        The filter, and ``predicted`` filtered, zero where ``observed`` is not live.
    """
    half = filter_half(observed.frame)
    live = observed.live[:, None, :]
    made = np.where(live, predicted, np.float32(0))
    size = 1 << (made.shape[1] + 2 * half - 1).bit_length()
    spectrum = np.fft.rfft(made, size, axis=1)
    power = np.square(np.abs(spectrum)).sum(axis=(0, 2))
    cross = (spectrum.conj() * np.fft.rfft(observed.traces, size, axis=1)).sum(axis=(0, 2))
    auto = np.fft.irfft(power, size)[: 2 * half + 1]
    wanted = np.roll(np.fft.irfft(cross, size), half)[: 2 * half + 1]
    if auto[0] > 0:
        auto[0] *= 1 + DAMPING
        source = Source(solve_toeplitz(auto, wanted))
    else:  # a model from which nothing comes back
        source = Source(np.zeros(2 * half + 1))
    return source, source.apply(torch.from_numpy(made)).numpy()
