"""What happens to strata before they lie where a section finds them: laid down, folded, faulted, thrust, cut, covered.

Every step carries points back to where they lay before it, so layers stay whole at any resolution. Lengths are in
OpenFWI's cells and velocities in its range, as in `layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from seisbind.model.ground.layers import GRID

Float = NDArray[np.float64]
Warp = Callable[["Points"], "Points"]

STEP = 0.25  # of the table of strata, cells
ABOVE, BELOW = 120.0, 240.0  # cells of strata above and below the surface, for what is lifted and thrust


@dataclass(frozen=True, slots=True)
class Points:
    """Where each cell of a section lies, or lay: depth ``z`` and ``x``, ``(depth, x)`` in OpenFWI's cells."""

    z: Float
    x: Float


@dataclass(frozen=True, slots=True)
class Strata:
    """A pile of layers: what is at stratigraphic depth t, and how much of the velocity is compaction at depth z."""

    departure: Float  # (n,) of the layers from the trend, m/s, every `STEP` from -`ABOVE`
    top_m_s: float
    rise_m_s: float
    power: float
    compaction: float  # share of the trend that follows present depth

    def trend(self, depth: Float) -> Float:
        return self.top_m_s + self.rise_m_s * (np.clip(depth, 0, None) / GRID) ** self.power

    def velocity(self, t: Float, z: Float) -> Float:
        at = np.clip(((t + ABOVE) / STEP).astype(np.intp), 0, len(self.departure) - 1)
        level = z[..., :1] if (z == z[..., :1]).all() else z  # one column where all are alike: powers take long
        trend = self.compaction * self.trend(level) + (1 - self.compaction) * self.trend(t)
        return np.asarray(trend + self.departure[at])


def between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def log_between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(_log(low), _log(high))))


@lru_cache(256)
def _log(value: float) -> float:
    return float(np.log(value))


def field(rng: np.random.Generator, points: Points, length_z: float, length_x: float) -> Float:
    """A Gaussian field of mean 0 and sd 1 with these correlation lengths, in cells."""
    rows, columns = points.z.shape
    high, wide = GRID / rows, float(points.x[0, -1] - points.x[0, 0]) / max(columns - 1, 1)
    drawn = gaussian_filter(rng.standard_normal((rows, columns)), (length_z / high, length_x / wide), mode="reflect")
    return np.asarray((drawn - drawn.mean()) / max(float(drawn.std()), 1e-9))


def curve(rng: np.random.Generator, x: Float, *, shortest: float = 25.0, longest: float = 220.0) -> Float:
    """A smooth curve of sd about 1 over x: sinusoids of random length and phase."""
    total = np.zeros_like(x)
    for _ in range(4):
        length = log_between(rng, shortest, longest)
        total += np.sin(2 * np.pi * x / length + between(rng, 0, 2 * np.pi)) * rng.standard_normal()
    return np.asarray(total / np.sqrt(2))


def draw_strata(rng: np.random.Generator, *, thinnest: float = 0.7, top: tuple[float, float] | None = None) -> Strata:
    low, high = (1500, 3000) if top is None else top
    number = round((ABOVE + BELOW) / STEP)
    thickness = log_between(rng, thinnest, 22.0)
    rough = log_between(rng, 30, 650)
    memory = between(rng, 0.0, 0.9)  # of a layer for the one above
    at, value, fresh, half = 0, 0.0, float(np.sqrt(1 - memory**2)), thickness / 2
    cells: list[int] = []
    values: list[float] = []
    while at < number:
        cells.append(max(1, round(rng.gamma(2.0, half) / STEP)))
        value = memory * value + fresh * rng.standard_normal()
        values.append(value)
        at += cells[-1]
    departure = np.repeat(values, cells)[:number] * rough
    if rng.random() < 0.3:  # a marker among them: anhydrite, coal, a sill
        for _ in range(rng.integers(1, 5)):
            first = int(rng.integers(number))
            departure[first : first + rng.integers(2, 14)] += rng.choice([-1.0, 1.0]) * between(rng, 400, 1300)
    top_m_s = between(rng, low, high)
    return Strata(departure, top_m_s, between(rng, 0, 4600 - top_m_s), between(rng, 0.5, 1.4), between(rng, 0.0, 1.0))


def fold(rng: np.random.Generator, points: Points, height: float) -> Points:
    """Folds whose height changes with depth."""
    shape = curve(rng, points.x[:1], shortest=log_between(rng, 25, 120))
    growth = (0.3 + np.clip(points.z, 0, None) / GRID) ** between(rng, -0.5, 1.2)
    return Points(points.z - height * shape * growth, points.x)


def tilt(rng: np.random.Generator, points: Points, steepest: float) -> Points:
    dip = between(rng, -steepest, steepest)
    return Points(points.z - dip * (points.x - points.x.mean()), points.x)


def faults(rng: np.random.Generator, points: Points, number: int, throw: float) -> Points:
    """Steep faults, listric or straight, of a common tendency; the far side is lifted or dropped."""
    z, x = points.z, points.x
    left, right = float(points.x.min()), float(points.x.max())
    tendency = rng.choice([-1.0, 1.0])
    for _ in range(number):
        foot, lean = between(rng, left, right), tendency * between(rng, 0.1, 0.9) * rng.choice([1, 1, 1, -1])
        listric = between(rng, 0, 0.012)
        side = x > foot + lean * z + np.sign(lean) * listric * z**2
        slip = rng.choice([-1.0, 1.0]) * rng.gamma(2.0, throw / 2)
        z = np.where(side, z + slip, z)
    return Points(z, x)


def thrusts(rng: np.random.Generator, points: Points, number: int, reach: float) -> Points:
    """Sheets moved over what lies before them along faults that flatten with depth; younger ones carry older ones."""
    z, x = points.z, points.x
    left, right = float(points.x.min()), float(points.x.max())
    way = rng.choice([-1.0, 1.0])
    for _ in range(number):
        foot = between(rng, left - 30, right + 30)
        steep, detach = between(rng, 0.25, 1.1), between(rng, 25, 90)
        along = way * (x - foot)
        fault = detach * (1 - np.exp(-steep * np.clip(along, -20, None) / detach))  # depth of the fault at x
        hanging = z < fault
        slope = steep * np.exp(-steep * np.clip(along, -20, None) / detach)
        slip = rng.gamma(2.0, reach / 2) / np.sqrt(1 + slope**2)
        x = np.where(hanging, x + way * slip, x)
        z = np.where(hanging, z + slip * slope, z)
    return Points(z, x)


def lay(rng: np.random.Generator, points: Points, strata: Strata, warp: Warp) -> Float:
    """Velocity of warped strata, with facies that change along the layers."""
    warped = warp(points)
    across = points.x[:1] if warped.x is points.x else warped.x  # of one row where all are alike
    facies = 1 + between(rng, 0.0, 0.03) * curve(rng, across)
    return strata.velocity(warped.z, points.z) * facies


def pile(rng: np.random.Generator, points: Points, warps: list[Warp], top: object) -> Float:
    """Piles of strata over each other, separated by unconformities; ``warps``: of each, the oldest last."""
    limits = top if isinstance(top, tuple) else None
    velocity = np.zeros_like(points.z)
    surface = np.full_like(points.x[:1], -1.0)
    for number, warp in enumerate(warps):
        strata = draw_strata(rng, top=limits if number == 0 else None)
        velocity = np.where(points.z >= surface, lay(rng, points, strata, warp), velocity)
        surface = np.maximum(surface, 0) + between(rng, 6, 40)
        surface = surface + between(rng, 0, 5) * curve(rng, points.x[:1])
    return velocity


def gentle(rng: np.random.Generator) -> Warp:
    def warp(points: Points) -> Points:
        points = fold(rng, points, rng.gamma(1.5, 1.5))
        points = tilt(rng, points, 0.15)
        return faults(rng, points, int(rng.integers(0, 4)), 4.0)

    return warp


def strong(rng: np.random.Generator) -> Warp:
    def warp(points: Points) -> Points:
        points = faults(rng, points, int(rng.integers(0, 7)), 7.0)
        points = fold(rng, points, rng.gamma(2.0, 5.0))
        return tilt(rng, points, 0.6)

    return warp


def thrust_belt(rng: np.random.Generator) -> Warp:
    def warp(points: Points) -> Points:
        points = faults(rng, points, int(rng.integers(0, 3)), 4.0)
        points = thrusts(rng, points, int(rng.integers(1, 6)), 14.0)
        points = fold(rng, points, rng.gamma(2.0, 5.0))
        return tilt(rng, points, 0.25)

    return warp
