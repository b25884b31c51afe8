"""Thirteen physical quantities of a velocity model, each with a name, a unit and a definition.

Everything that names, computes or formats a descriptor goes through `DESCRIPTORS`; its order is the column
order of every descriptor array.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidQuery, InvalidVelocityModel
from seisbind.model.frame import OPENFWI_FRAME, VELOCITY_LIMITS_M_S, Frame
from seisbind.model.scale import UNSCALED, Scale

MAX_VALUE = 1e9  # in any unit; no descriptor of a velocity model is as large
INTERFACE_STEP_M_S = 50.0  # a change of velocity between adjacent cells above this is an interface

Float32 = NDArray[np.float32]
_Measure = Callable[[NDArray[np.float64], float], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One physical quantity of a velocity model.

    Attributes:
        relative: the quantity stays away from zero, so that an error in per cent makes sense.
        lower, upper: limits of the values that a velocity model can have.
    """

    name: str
    unit: str
    definition: str
    relative: bool
    measure: _Measure
    decimals: int = 0
    lower: float = 0.0
    upper: float = np.inf

    @property
    def limits(self) -> tuple[float, float]:
        """The values that a velocity model can have, both ends included."""
        return VELOCITY_LIMITS_M_S if self.is_velocity else (self.lower, self.upper)

    @property
    def is_velocity(self) -> bool:
        """Whether it is the velocity of some cells, and not a spread or a difference of velocities."""
        return self.relative and self.unit == "m/s"

    def format(self, value: float) -> str:
        """``2314 m/s``: the number at this descriptor's precision, with its unit."""
        return f"{value:.{self.decimals}f} {self.unit}".rstrip()


def _vertical(v: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.diff(v, axis=1)


def _third(part: int) -> _Measure:
    def measure(v: NDArray[np.float64], cell_m: float) -> NDArray[np.float64]:
        edges = [round(v.shape[1] * i / 3) for i in range(4)]
        return np.asarray(v[:, edges[part] : edges[part + 1]].mean(axis=(1, 2)))

    return measure


def _contrast(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """(model, depth - 3, x): mean of the two cells below minus mean of the two above each cell boundary."""
    pair = 0.5 * (v[:, 1:] + v[:, :-1])
    return np.asarray(np.abs(pair[:, 2:] - pair[:, :-2]))


def _contrast_depth(v: NDArray[np.float64], cell_m: float) -> NDArray[np.float64]:
    boundary = _contrast(v).argmax(axis=1) + 2  # boundary i lies between cells i - 1 and i
    return np.asarray(np.median(boundary, axis=1) * cell_m)


def _contrast_size(v: NDArray[np.float64], cell_m: float) -> NDArray[np.float64]:
    return np.asarray(np.median(_contrast(v).max(axis=1), axis=1))


def _interface_share(v: NDArray[np.float64], cell_m: float) -> NDArray[np.float64]:
    at = np.zeros(v.shape, dtype=bool)
    at[:, 1:] |= np.abs(np.diff(v, axis=1)) > INTERFACE_STEP_M_S
    across = np.abs(np.diff(v, axis=2)) > INTERFACE_STEP_M_S
    at[:, :, 1:] |= across
    at[:, :, :-1] |= across  # both sides, so that a mirrored map has the same share
    return np.asarray(at.mean(axis=(1, 2)))


DESCRIPTORS: tuple[Descriptor, ...] = (
    Descriptor("mean_velocity", "m/s", "mean over all cells", True, lambda v, c: v.mean(axis=(1, 2))),
    Descriptor("std_velocity", "m/s", "standard deviation over all cells", False, lambda v, c: v.std(axis=(1, 2))),
    Descriptor("min_velocity", "m/s", "lowest velocity", True, lambda v, c: v.min(axis=(1, 2))),
    Descriptor("max_velocity", "m/s", "highest velocity", True, lambda v, c: v.max(axis=(1, 2))),
    Descriptor(
        "mean_vertical_gradient",
        "1/s",
        "velocity change from the top to the bottom row over the depth between them, mean over columns",
        False,
        lambda v, c: (v[:, -1] - v[:, 0]).mean(axis=1) / (c * (v.shape[1] - 1)),
        2,
        lower=-np.inf,
    ),
    Descriptor(
        "mean_abs_vertical_gradient",
        "1/s",
        "mean absolute vertical difference of adjacent cells over the cell size",
        False,
        lambda v, c: np.abs(_vertical(v)).mean(axis=(1, 2)) / c,
        2,
    ),
    Descriptor(
        "mean_abs_lateral_gradient",
        "1/s",
        "mean absolute lateral difference of adjacent cells over the cell size",
        False,
        lambda v, c: np.abs(np.diff(v, axis=2)).mean(axis=(1, 2)) / c,
        2,
    ),
    Descriptor("shallow_velocity", "m/s", "mean of the upper third", True, _third(0)),
    Descriptor("middle_velocity", "m/s", "mean of the middle third", True, _third(1)),
    Descriptor("deep_velocity", "m/s", "mean of the lower third", True, _third(2)),
    Descriptor(
        "strongest_contrast_depth",
        "m",
        "depth of the largest change across a cell boundary (two cells below against two above), median of columns",
        False,
        _contrast_depth,
    ),
    Descriptor(
        "strongest_contrast",
        "m/s",
        "size of that change, median of columns",
        False,
        _contrast_size,
    ),
    Descriptor(
        "interface_share",
        "",
        f"share of cells that differ from the cell above or beside them by more than {INTERFACE_STEP_M_S:g} m/s",
        False,
        _interface_share,
        3,
        upper=1.0,
    ),
)
NAMES: tuple[str, ...] = tuple(d.name for d in DESCRIPTORS)


def check_names(names: Iterable[str]) -> None:
    """Raises InvalidQuery if no descriptor has one of ``names``."""
    for name in names:
        if name not in NAMES:
            raise InvalidQuery(f"No descriptor is called {name!r:.100}; known: {', '.join(NAMES)}.")


def check_descriptors(described: Mapping[str, float], *, scale: Scale = UNSCALED) -> None:
    """Check that a velocity model could have these values (name → value in its unit, at a scale).

    Raises:
        InvalidQuery: an unknown name, a value that is not finite, or one outside the descriptor's limits.
    """
    check_names(described)
    for name, value in described.items():
        if isinstance(value, bool | np.bool_) or not abs(value) < MAX_VALUE:  # also true of NaN
            raise InvalidQuery(
                f"Descriptors are finite numbers in the units that GET /v1/gallery lists; {name} is {value!r:.40}."
            )
    for descriptor in DESCRIPTORS:
        low, high = (end * scale.of(descriptor.unit) for end in descriptor.limits)
        value = described.get(descriptor.name, low)
        if not low <= value <= high:
            unit = f" {descriptor.unit}".rstrip()
            ends = f"{low:g} to {high:g}{unit}" if high < np.inf else f"{low:g}{unit} or more"
            hint = " Multiply by 1000 if it is in km/s." if descriptor.is_velocity else ""
            raise InvalidQuery(f"{descriptor.name} is {value:g}{unit}, which no ground has; give {ends}.{hint}")


@dataclass(frozen=True, slots=True)
class Untrained:
    """How many velocity models leave the velocities of training, and how far; true if there are any."""

    range_m_s: tuple[float, float]
    models: int = 0
    slowest_m_s: float = np.inf
    fastest_m_s: float = 0.0

    @classmethod
    def of(cls, velocity: ArrayLike, frame: Frame) -> Untrained:
        """Of models ``(batch, depth, x)``, ``(batch, 1, depth, x)`` or ``(depth, x)``, m/s, for a frame."""
        array = np.asarray(velocity)
        slowest, fastest = array.min(axis=(-2, -1)), array.max(axis=(-2, -1))
        outside = (slowest < frame.velocity_m_s[0]) | (fastest > frame.velocity_m_s[1])
        if not outside.any():
            return cls(frame.velocity_m_s)
        return cls(frame.velocity_m_s, int(outside.sum()), float(slowest[outside].min()), float(fastest[outside].max()))

    def __bool__(self) -> bool:
        return self.models > 0

    def __add__(self, other: Untrained) -> Untrained:
        return Untrained(
            self.range_m_s,
            self.models + other.models,
            min(self.slowest_m_s, other.slowest_m_s),
            max(self.fastest_m_s, other.fastest_m_s),
        )

    @property
    def sentence(self) -> str:
        low, high = self.range_m_s
        return (
            f"Velocity models that leave {low:g} to {high:g} m/s, for which the encoders were trained: "
            f"{self.models}, with {self.slowest_m_s:g} to {self.fastest_m_s:g} m/s. A gather may not find them."
        )


def check_velocity(velocity: ArrayLike, *, k: float = 1.0) -> Float32:
    """Velocity models as float32 ``(batch, depth, x)``, m/s, checked.

    Accepts ``(depth, x)``, ``(batch, depth, x)`` and OpenFWI's ``(batch, 1, depth, x)``. With the factor ``k`` of a
    scale they are taken for true ones, and returned in the frame's units.

    Raises:
        InvalidVelocityModel: wrong number of axes, fewer than 4 cells along one, not finite, or outside
            `VELOCITY_LIMITS_M_S`.
    """
    array = np.asarray(velocity)
    if array.dtype.kind not in "fiu":
        raise InvalidVelocityModel(f"A velocity model holds real numbers in m/s; this one has dtype {array.dtype}.")
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or min(array.shape[1:]) < 4:
        raise InvalidVelocityModel(
            f"A velocity model is (depth, x) or (batch, depth, x) with at least 4 cells along each axis; "
            f"got shape {np.shape(velocity)}."
        )
    if not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise InvalidVelocityModel(f"{bad} of {array.size} velocities are NaN or infinite; fill or mask them first.")
    low, high = VELOCITY_LIMITS_M_S[0] * k, VELOCITY_LIMITS_M_S[1] * k
    if array.size and (array.min() < low or array.max() > high):
        raise InvalidVelocityModel(
            f"Velocities run from {array.min():g} to {array.max():g}; expected m/s between {low:g} and {high:g}. "
            "Multiply by 1000 if they are in km/s."
        )
    return np.ascontiguousarray(array if k == 1 else array / k, dtype=np.float32)


def describe(velocity: ArrayLike, *, cell_m: float = OPENFWI_FRAME.cell_m) -> Float32:
    """Descriptors of velocity models.

    Args:
        velocity: ``(batch, depth, x)`` or ``(depth, x)``, m/s.
        cell_m: cell size along both axes, m.

    Returns:
        ``(batch, len(DESCRIPTORS))`` float32, columns in the order of `DESCRIPTORS`.

    Raises:
        InvalidVelocityModel: see `check_velocity`.
    """
    v = check_velocity(velocity).astype(np.float64)
    return np.stack([d.measure(v, cell_m) for d in DESCRIPTORS], axis=1).astype(np.float32)
