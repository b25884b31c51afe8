"""The two free scales of the constant-density acoustic wave equation: of lengths and of velocities.

A record over ground ``s`` times as long and ``k`` times as fast is the same record with times ``s / k`` as long and
frequencies ``k / s`` as high. So encoders of one frame read lines of any size, exactly: a record is mapped to the grid
of the frame in true units (`Scale.frame`), and the answer is given in true ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from seisbind.model.errors import InvalidQuery, InvalidSurvey
from seisbind.model.frame import DT_LIMITS_S, FIELDS, Frame

LENGTHS, VELOCITIES = (0.01, 100.0), (0.1, 3.0)  # of s, from ultrasonic models to crustal lines; of k, sand to mantle
AUTO = "auto"


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

    def __str__(self) -> str:
        """As options and addresses state it: ``2`` or ``2,0.4``."""
        s = repr(float(self.s)).removesuffix(".0")
        return s if self.k == 1 else f"{s},{float(self.k)!r}".removesuffix(".0")

    @property
    def time(self) -> float:
        """Of times."""
        return self.s / self.k

    @property
    def frequency(self) -> float:
        """Of frequencies."""
        return self.k / self.s

    @property
    def text(self) -> str:
        """``s = 2``, or ``s = 2, k = 0.4``."""
        return f"s = {self.s:g}" + ("" if self.k == 1 else f", k = {self.k:g}")

    def of(self, unit: str) -> float:
        """Of quantities in ``m``, ``m/s``, ``s``, ``Hz``, ``1/s``, ``dB`` or, without a unit, of shares."""
        factors = {"m": self.s, "m/s": self.k, "s": self.time, "Hz": self.frequency, "1/s": self.frequency}
        return (factors | {"": 1.0, "dB": 1.0})[unit]

    def frame(self, frame: Frame) -> Frame:
        """A frame in true units: what is checked, mapped and said in them. ``frame`` itself without a scale."""
        return frame if self == UNSCALED else FrameAtScale.of(frame, self)


UNSCALED = Scale()


@dataclass(frozen=True, slots=True)
class FrameAtScale(Frame):
    """A frame in the true units of a scale. What was checked of the frame that it is made of is not checked again.

    Attributes:
        scale: true = factor x frame.
    """

    scale: Scale = field(default=UNSCALED)

    def _check_numbers(self) -> None:
        pass

    def _check_line(self) -> None:
        pass

    @property
    def dt_limits_s(self) -> tuple[float, float]:
        """Sampling intervals of records that are read."""
        return DT_LIMITS_S[0] * self.scale.time, DT_LIMITS_S[1] * self.scale.time

    @property
    def highest_peak_hz(self) -> float:
        """No source's peak frequency is stated above this."""
        return 1000.0 * max(1.0, self.scale.frequency)

    @classmethod
    def of(cls, frame: Frame, scale: Scale) -> FrameAtScale:
        """``frame`` at a scale.

        Raises:
            InvalidSurvey: its sampling interval would be one that no line has.
        """
        units = {
            "cell_m": scale.s, "receiver_spacing_m": scale.s, "shot_x_m": scale.s, "velocity_m_s": scale.k,
            "dt_s": scale.time, "record_dt_s": scale.time, "peak_hz": scale.frequency,
        }  # fmt: skip
        values = {name: getattr(frame, name) for name in FIELDS}
        for name, factor in units.items():
            value = values[name]
            values[name] = (
                tuple(_times(x, factor) for x in value) if isinstance(value, tuple) else _times(value, factor)
            )
        return cls(**values, scale=scale)


def _times(value: float, factor: float) -> float:
    """The product to twelve digits: 10 x 1.1 is 11, as in a survey of such a line."""
    return float(f"{value * factor:.12g}")


@dataclass(frozen=True, slots=True)
class AutoScale:
    """A scale that is to be chosen from the record (`seisbind.model.survey.scaling`).

    Attributes:
        k: of velocities, which no record of its own tells.
        target_depth_m: the answer has to reach; None for as deep as the record allows.

    Raises:
        InvalidSurvey: a factor or a depth out of range.
    """

    k: float = 1.0
    target_depth_m: float | None = None

    def __post_init__(self) -> None:
        Scale(k=self.k)
        check_depth(self.target_depth_m)

    def __str__(self) -> str:
        """As options and addresses state it: ``auto`` or ``auto,0.4``."""
        return AUTO + ("" if self.k == 1 else f",{self.k!r}")


AskedScale = Scale | AutoScale | float | str | Sequence[float] | None


def check_depth(target_depth_m: float | None) -> None:
    """Raises InvalidSurvey unless a depth is positive and finite, or None."""
    if target_depth_m is not None and not 0 < target_depth_m < 1e6:
        raise InvalidSurvey(f"The target depth is {target_depth_m:g} m; it lies between 0 and 1000000 m.")


def parse_scale(asked: AskedScale, target_depth_m: float | None = None) -> Scale | AutoScale | None:
    """A scale as it is asked for: ``2``, ``(2, 0.4)``, ``"2,0.4"``, ``"auto"``, ``"auto,0.4"``; None for none.

    Args:
        target_depth_m: that a chosen scale has to reach; goes with ``auto``.

    Raises:
        InvalidSurvey: anything else, or a factor out of range.
    """
    check_depth(target_depth_m)
    found = asked if asked is None or isinstance(asked, Scale | AutoScale) else _parsed(asked, target_depth_m)
    if target_depth_m is not None and not isinstance(found, AutoScale):
        raise InvalidSurvey(
            f"A target depth ({target_depth_m:g} m) goes with the scale 'auto', which is chosen to reach it; "
            f"got {'no scale' if found is None else found.text}."
        )
    return found


def parse_model_scale(asked: AskedScale) -> Scale:
    """The scale of velocity models or descriptors, from which none could be chosen; `UNSCALED` for none.

    Raises:
        InvalidSurvey: see `parse_scale`.
        InvalidQuery: one that is to be chosen.
    """
    scale = parse_scale(asked)
    if isinstance(scale, AutoScale):
        raise InvalidQuery("A scale is chosen from a record, which is not sent here; give it as a number, s or s,k.")
    return UNSCALED if scale is None else scale


def _parsed(asked: float | str | Sequence[float], target_depth_m: float | None) -> Scale | AutoScale:
    words: list[str | float]
    if isinstance(asked, str):
        words = [word.strip() for word in asked.split(",")]
    else:
        words = list(asked) if isinstance(asked, Sequence) else [asked]
    try:
        if not 1 <= len(words) <= 2 or any(isinstance(word, bool) for word in words):
            raise ValueError
        k = float(words[1]) if len(words) == 2 else 1.0
        return AutoScale(k, target_depth_m) if words[0] == AUTO else Scale(float(words[0]), k)
    except (ValueError, TypeError) as error:
        if isinstance(error, InvalidSurvey):
            raise
        raise InvalidSurvey(
            f"A scale is a number s, or s and k with a comma between, or 'auto'; got {asked!r:.60}."
        ) from error
