"""A record as a refinement sees it: through the filter of a band."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seisbind.model.inversion.observed import Observed

Float64 = NDArray[np.float64]

FLANK = 0.15  # width of a band's upper flank, over its corner
WHITE = 1.0  # of the record's largest amplitude: added to its spectrum before that is divided by

LATE = (0.7, 0.85)  # of a record: from there on, and from there on in full, a sample counts less:
LATEST = 0.3  # what lies beside and below the map comes late, and is not inverted for


class Seen:
    """One record.

    Attributes:
        record: ``(shot, time, receiver)``.
        live: ``(shot, 1, receiver)``.
        late: ``(time, 1)`` weight of a sample.
    """

    def __init__(self, observed: Observed) -> None:
        self.record = torch.from_numpy(observed.traces)
        self.live = torch.from_numpy(observed.live)[:, None]
        self._frame = observed.frame
        self._size = 1 << (2 * observed.frame.samples - 1).bit_length()
        hz = np.fft.rfftfreq(self._size, observed.frame.dt_s)
        power = np.square(np.abs(np.fft.rfft(observed.traces, self._size, axis=1))).mean(axis=(0, 2))
        width = max(1, round(1.5 * observed.frame.peak_hz / 15 / hz[1]))
        amplitude = np.sqrt(np.convolve(power, np.ones(2 * width + 1) / (2 * width + 1), mode="same"))
        share = np.arange(observed.frame.samples) / observed.frame.samples
        late = np.interp(share, LATE, (1.0, LATEST))
        self.late = torch.from_numpy(late).float()[:, None]
        self._hz: Float64 = hz.astype(np.float64)
        self._amplitude = amplitude / max(amplitude.max(), 1e-30)

    def through(self, traces: Tensor, band: float) -> Tensor:
        """Traces ``(shot, time, receiver)`` through a band's filter, dead ones zero."""
        response = torch.from_numpy(self.response(self._hz, band)).float()[None, :, None]
        spectrum = torch.fft.rfft(traces * self.live, self._size, dim=1)
        filtered: Tensor = torch.fft.irfft(spectrum * response, self._size, dim=1)
        return filtered[:, : traces.shape[1]] * self.late

    def response(self, hz: Float64, band: float) -> Float64:
        """Of zero phase: up to a corner (``band`` peak frequencies), the record's spectrum made flatter."""
        corner = band * self._frame.peak_hz
        flat = 1 / (np.interp(hz, self._hz, self._amplitude) + WHITE)
        return np.asarray(flat * np.exp(-0.5 * (np.maximum(hz - corner, 0) / (FLANK * corner)) ** 2))
