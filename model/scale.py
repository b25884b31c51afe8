"""The two free scales of the constant-density acoustic wave equation: of lengths and of velocities.

A record over ground ``s`` times as long and ``k`` times as fast is the same record with times ``s / k`` as long and
frequencies ``k / s`` as high. So encoders of one frame read lines of any size, exactly: the survey is expressed in the
frame's units, and the answer in true ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import Survey

LENGTHS, VELOCITIES = (0.01, 100.0), (0.1, 3.0)  # of s, from ultrasonic models to crustal lines; of k, sand to mantle


@dataclass(frozen=True, slots=True)
class Scale:
    """How true units compare with a frame's: true = factor x frame.

    Attributes:
        s: of lengths.
        k: of velocities.

    Raises:
        InvalidSurvey: a factor out of range.
    """

    s: float = 1.0
    k: float = 1.0

    def __post_init__(self) -> None:
        for name, value, (low, high) in (("s", self.s, LENGTHS), ("k", self.k, VELOCITIES)):
            if not low <= value <= high:  # also false for NaN
                raise InvalidSurvey(f"A scale's {name} is {value:g}; it lies between {low:g} and {high:g}.")

    @property
    def time(self) -> float:
        """Of times."""
        return self.s / self.k

    @property
    def frequency(self) -> float:
        """Of frequencies."""
        return self.k / self.s

    def of(self, unit: str) -> float:
        """Of quantities in ``m``, ``m/s``, ``s``, ``Hz``, ``1/s`` or, without a unit, of shares."""
        return {"m": self.s, "m/s": self.k, "s": self.time, "Hz": self.frequency, "1/s": self.frequency, "": 1.0}[unit]

    def in_frame(self, survey: Survey) -> Survey:
        """A survey in true units, in the frame's."""
        if self == UNSCALED:
            return survey
        return replace(
            survey,
            shot_x_m=tuple(x / self.s for x in survey.shot_x_m),
            receiver_x_m=tuple(x / self.s for x in survey.receiver_x_m),
            dt_s=survey.dt_s / self.time,
            peak_hz=None if survey.peak_hz is None else survey.peak_hz / self.frequency,
            source_depth_m=survey.source_depth_m / self.s,
            receiver_depth_m=survey.receiver_depth_m / self.s,
        )


UNSCALED = Scale()
