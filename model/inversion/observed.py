"""One gather as it is compared with what the wave equation predicts: its live shots, on the grid of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidGather
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.survey.preparation import Prepared

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Observed:
    """A recorded gather in the units of a frame, whatever its true size.

    Attributes:
        traces: ``(shot, time, receiver)`` float32 pressure in any linear unit; zero where a trace is not live. Row n is
            ``n dt_s + record_dt_s`` after the source, as `prepare` has it of what `waves.wavefield.simulate` makes.
        live: ``(shot, receiver)`` bool; each shot has a live trace.
        shot_x_m: ``(shot,)`` from the line's first receiver.
        frame: whose grid it is.

    Raises:
        InvalidGather: no live trace, or shapes that do not go together.
    """

    traces: Float32
    live: Bool
    shot_x_m: Float32
    frame: Frame = OPENFWI_FRAME

    def __post_init__(self) -> None:
        shots = len(self.shot_x_m)
        wanted = (shots, self.frame.samples, self.frame.receivers), (shots, self.frame.receivers)
        if (self.traces.shape, self.live.shape) != wanted:
            raise InvalidGather(
                f"Traces {self.traces.shape} and live {self.live.shape} of {shots} shots; {self.frame.name} has "
                f"{wanted[0]} and {wanted[1]}."
            )
        if not self.live.any(axis=1).all() or not shots:
            raise InvalidGather("A shot without a live trace: there is nothing to compare with a prediction.")

    @classmethod
    def of(cls, prepared: Prepared, row: int = 0) -> Observed:
        """Gather ``row``, shots where they were, without those that have no live trace. Raises InvalidGather."""
        if prepared.moved_m is not None and prepared.as_recorded is None:
            raise InvalidGather(
                "Shots of this gather were moved for the encoders, and waves are modelled for them where they were: "
                "prepare it with keep_recorded=True."
            )
        prepared = prepared.as_recorded or prepared
        seen = prepared.live[row].any(axis=1)
        return cls(
            prepared.traces[row][seen], prepared.live[row][seen], prepared.shot_x_m[row][seen], prepared.frame
        )  # fmt: skip


def noise_rms(observed: Observed) -> float:
    """Root mean square of the noise, from the samples before any wave of the frame can have arrived; 0 without such.

    What three neighbouring traces share there is not counted: a filter of zero phase leaves that before an arrival, and
    noise that differs from trace to trace is by half larger, squared, in a trace less the mean of those beside it.
    """
    frame = observed.frame
    offset_m = np.abs(observed.shot_x_m[:, None] - np.asarray(frame.survey.receiver_x_m))
    rows = offset_m / frame.velocity_m_s[1] / frame.dt_s - frame.record_dt_s / frame.dt_s
    before = np.arange(frame.samples)[None, :, None] < rows[:, None] - 1
    quiet, traces = before & observed.live[:, None], observed.traces.astype(np.float64)
    off = traces[..., 1:-1] - (traces[..., :-2] + traces[..., 2:]) / 2
    own = off[quiet[..., 1:-1] & quiet[..., :-2] & quiet[..., 2:]]
    return float(np.sqrt(np.square(own).mean() / 1.5)) if own.size else 0.0
