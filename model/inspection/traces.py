"""The traces of a record, each with its own source and receiver, however they were laid out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Index = NDArray[np.intp]

SAMPLED = 4000  # traces whose samples are looked at: whole shots, evenly chosen


@dataclass(frozen=True, slots=True)
class FieldTraces:
    """Positions of all traces along the line, and the samples of some of them.

    Attributes:
        shot: ``(trace,)`` number of the shot, from 0.
        shot_x_m, receiver_x_m: ``(trace,)`` along the line.
        across_m: how far the positions spread across the line.
        dt_s: sampling interval.
        start_s: of the first sample, after the shot.
        sampled: ``(n,)`` the traces that ``samples`` holds.
        samples: ``(n, time)``; zero for traces that are marked dead.
    """

    shot: Index
    shot_x_m: Float64
    receiver_x_m: Float64
    across_m: float
    dt_s: float
    start_s: float
    sampled: Index
    samples: Float32

    def __len__(self) -> int:
        return len(self.shot)

    @property
    def record_s(self) -> float:
        """From the shot to the last sample."""
        return float(self.start_s + self.samples.shape[1] * self.dt_s)

    @property
    def offset_m(self) -> Float64:
        """``(trace,)`` receiver minus source."""
        return self.receiver_x_m - self.shot_x_m


def number_shots(shot_x_m: Float64, record: NDArray[np.int64]) -> Index:
    """``(trace,)`` numbers, from 0, of the shots: traces with one record number and one source position."""
    pairs = np.stack([record.astype(np.float64), np.round(shot_x_m, 1)], axis=1)
    return np.unique(pairs, axis=0, return_inverse=True)[1].ravel().astype(np.intp)


def choose_traces(shot: Index, *, limit: int = SAMPLED) -> Index:
    """The traces of whole shots, evenly chosen, about ``limit`` of them or those of one shot."""
    shots = int(shot.max()) + 1
    wanted = max(1, min(shots, limit * shots // len(shot)))
    chosen = np.linspace(0, shots - 1, wanted).round().astype(np.intp)
    return np.flatnonzero(np.isin(shot, chosen))
