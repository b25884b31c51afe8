"""Broad ground: sections of any width from a sedimentary and tectonic history drawn at random.

OpenFWI's families are few layers between sharp interfaces. Ground elsewhere holds strata by the hundred, folds,
thrusts, salt with overhangs, unconformities, channels, gas, carbonates, and water over it. A section here is drawn as
it came to be: strata are laid down, warped and cut, others laid over them, bodies placed, the sea above. What a
point is made of follows from carrying it back through that history, so layers stay whole at any resolution.

Lengths are in OpenFWI's cells and velocities in its range, as in `layers`; other grids sample the same sections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from seisbind.model.errors import InvalidConfig
from seisbind.model.ground.layers import GRID, HIGH_M_S, LOW_M_S

Float = NDArray[np.float64]

WATER_M_S = 1500.0
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


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _log_between(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(_log(low), _log(high))))


@lru_cache(256)
def _log(value: float) -> float:
    return float(np.log(value))


def _field(rng: np.random.Generator, points: Points, length_z: float, length_x: float) -> Float:
    """A Gaussian field of mean 0 and sd 1 with these correlation lengths, in cells."""
    rows, columns = points.z.shape
    high, wide = GRID / rows, float(points.x[0, -1] - points.x[0, 0]) / max(columns - 1, 1)
    field = gaussian_filter(rng.standard_normal((rows, columns)), (length_z / high, length_x / wide), mode="reflect")
    return np.asarray((field - field.mean()) / max(float(field.std()), 1e-9))


def _curve(rng: np.random.Generator, x: Float, *, shortest: float = 25.0, longest: float = 220.0) -> Float:
    """A smooth curve of sd about 1 over x: sinusoids of random length and phase."""
    total = np.zeros_like(x)
    for _ in range(4):
        length = _log_between(rng, shortest, longest)
        total += np.sin(2 * np.pi * x / length + _between(rng, 0, 2 * np.pi)) * rng.standard_normal()
    return np.asarray(total / np.sqrt(2))


def _draw_strata(rng: np.random.Generator, *, thinnest: float = 0.7, top: tuple[float, float] | None = None) -> Strata:
    low, high = (1500, 3000) if top is None else top
    number = round((ABOVE + BELOW) / STEP)
    thickness = _log_between(rng, thinnest, 22.0)
    rough = _log_between(rng, 30, 650)
    memory = _between(rng, 0.0, 0.9)  # of a layer for the one above
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
            departure[first : first + rng.integers(2, 14)] += rng.choice([-1.0, 1.0]) * _between(rng, 400, 1300)
    top_m_s = _between(rng, low, high)
    return Strata(
        departure, top_m_s, _between(rng, 0, 4600 - top_m_s), _between(rng, 0.5, 1.4), _between(rng, 0.0, 1.0)
    )


def _fold(rng: np.random.Generator, points: Points, height: float) -> Points:
    """Folds whose height changes with depth."""
    shape = _curve(rng, points.x[:1], shortest=_log_between(rng, 25, 120))
    growth = (0.3 + np.clip(points.z, 0, None) / GRID) ** _between(rng, -0.5, 1.2)
    return Points(points.z - height * shape * growth, points.x)


def _tilt(rng: np.random.Generator, points: Points, steepest: float) -> Points:
    dip = _between(rng, -steepest, steepest)
    return Points(points.z - dip * (points.x - points.x.mean()), points.x)


def _faults(rng: np.random.Generator, points: Points, number: int, throw: float) -> Points:
    """Steep faults, listric or straight, of a common tendency; the far side is lifted or dropped."""
    z, x = points.z, points.x
    left, right = float(points.x.min()), float(points.x.max())
    tendency = rng.choice([-1.0, 1.0])
    for _ in range(number):
        foot, lean = _between(rng, left, right), tendency * _between(rng, 0.1, 0.9) * rng.choice([1, 1, 1, -1])
        listric = _between(rng, 0, 0.012)
        side = x > foot + lean * z + np.sign(lean) * listric * z**2
        slip = rng.choice([-1.0, 1.0]) * rng.gamma(2.0, throw / 2)
        z = np.where(side, z + slip, z)
    return Points(z, x)


def _thrusts(rng: np.random.Generator, points: Points, number: int, reach: float) -> Points:
    """Sheets moved over what lies before them along faults that flatten with depth; younger ones carry older ones."""
    z, x = points.z, points.x
    left, right = float(points.x.min()), float(points.x.max())
    way = rng.choice([-1.0, 1.0])
    for _ in range(number):
        foot = _between(rng, left - 30, right + 30)
        steep, detach = _between(rng, 0.25, 1.1), _between(rng, 25, 90)
        along = way * (x - foot)
        fault = detach * (1 - np.exp(-steep * np.clip(along, -20, None) / detach))  # depth of the fault at x
        hanging = z < fault
        slope = steep * np.exp(-steep * np.clip(along, -20, None) / detach)
        slip = rng.gamma(2.0, reach / 2) / np.sqrt(1 + slope**2)
        x = np.where(hanging, x + way * slip, x)
        z = np.where(hanging, z + slip * slope, z)
    return Points(z, x)


def _lay(rng: np.random.Generator, points: Points, strata: Strata, warp: Callable[[Points], Points]) -> Float:
    """Velocity of warped strata, with facies that change along the layers."""
    warped = warp(points)
    across = points.x[:1] if warped.x is points.x else warped.x  # of one row where all are alike
    facies = 1 + _between(rng, 0.0, 0.03) * _curve(rng, across)
    return strata.velocity(warped.z, points.z) * facies


def _pile(rng: np.random.Generator, points: Points, warps: list[Callable[[Points], Points]], top: object) -> Float:
    """Piles of strata over each other, separated by unconformities; ``warps``: of each, the oldest last."""
    limits = top if isinstance(top, tuple) else None
    velocity = np.zeros_like(points.z)
    surface = np.full_like(points.x[:1], -1.0)
    for number, warp in enumerate(warps):
        strata = _draw_strata(rng, top=limits if number == 0 else None)
        velocity = np.where(points.z >= surface, _lay(rng, points, strata, warp), velocity)
        surface = np.maximum(surface, 0) + _between(rng, 6, 40)
        surface = surface + _between(rng, 0, 5) * _curve(rng, points.x[:1])
    return velocity


def _gentle(rng: np.random.Generator) -> Callable[[Points], Points]:
    def warp(points: Points) -> Points:
        points = _fold(rng, points, rng.gamma(1.5, 1.5))
        points = _tilt(rng, points, 0.15)
        return _faults(rng, points, int(rng.integers(0, 4)), 4.0)

    return warp


def _strong(rng: np.random.Generator) -> Callable[[Points], Points]:
    def warp(points: Points) -> Points:
        points = _faults(rng, points, int(rng.integers(0, 7)), 7.0)
        points = _fold(rng, points, rng.gamma(2.0, 5.0))
        return _tilt(rng, points, 0.6)

    return warp


def _thrust_belt(rng: np.random.Generator) -> Callable[[Points], Points]:
    def warp(points: Points) -> Points:
        points = _faults(rng, points, int(rng.integers(0, 3)), 4.0)
        points = _thrusts(rng, points, int(rng.integers(1, 6)), 14.0)
        points = _fold(rng, points, rng.gamma(2.0, 5.0))
        return _tilt(rng, points, 0.25)

    return warp


def _strata(rng: np.random.Generator, points: Points) -> Float:
    """Thin or thick strata, gently or strongly deformed under unconformities."""
    number = int(rng.integers(1, 4))
    warps = [_gentle(rng) if rng.random() < 0.6 else _strong(rng) for _ in range(number)]
    return _pile(rng, points, warps, None)


def _thrust(rng: np.random.Generator, points: Points) -> Float:
    """A thrust belt, at times under a younger cover."""
    warps = [_thrust_belt(rng)]
    if rng.random() < 0.35:
        warps.insert(0, _gentle(rng))
    return _pile(rng, points, warps, (1500, 3300))


def _salt_body(rng: np.random.Generator, points: Points) -> tuple[NDArray[np.bool_], Float]:
    """A diapir with a bulb over its stem, a sheet of rough outline or a ridge; and its lift of what lies around."""
    z, x = points.z, points.x
    if rng.random() < 0.25:
        relief = _curve(rng, x[:1], shortest=40, longest=160)
        top_of_ridge = _between(rng, GRID / 2, GRID + 5) - np.clip(_between(rng, 6, 30) * relief, -12, 45)
        rough = _between(rng, 0, 1.5) * _field(rng, points, 2, 3)
        return z > top_of_ridge + rough, np.clip(_between(rng, 0, 0.6) * (GRID - top_of_ridge), 0, 25)
    left, right = float(x.min()), float(x.max())
    centre, top = _between(rng, left - 5, right + 5), _between(rng, 5, 50)
    rough = _field(rng, points, _between(rng, 2, 6), _between(rng, 3, 9))
    lean = _between(rng, -0.4, 0.4)
    across = x - centre - lean * (z - top)
    if rng.random() < 0.65:
        stem, bulb = _between(rng, 3, 22), _between(rng, 0, 26)
        height, waist = _between(rng, 6, 26), _between(rng, 4, 18)
        foot = _between(rng, 0, 0.9) * np.clip(z - top - 30, 0, None)
        half = stem + bulb * np.exp(-(((z - top - height) / waist) ** 2)) + foot
        crown = np.sqrt(np.clip(z - top, 0, None) / (1.2 * height)).clip(0, 1)
        inside = (np.abs(across) + 1.5 * rough < half * crown) & (z > top)
        wide = stem + bulb
    else:
        wide, thick = _between(rng, 15, 60), _between(rng, 5, 22)
        middle = top + thick + 0.25 * lean * across
        inside = (across / wide) ** 2 + ((z - middle) / thick) ** 2 + 0.18 * rough < 1
        inside |= (np.abs(across) < wide * 0.25) & (z > middle) & (rng.random() < 0.4)  # its feeder
    lift = _between(rng, 0, 14) * np.exp(-((across / (1.6 * wide + 4)) ** 2))
    return inside, lift


def _salt(rng: np.random.Generator, points: Points) -> Float:
    """Sediments pierced and lifted by salt."""
    bodies = [_salt_body(rng, points) for _ in range(int(rng.choice([1, 1, 1, 2, 3])))]
    lifted = Points(points.z + sum((lift for _, lift in bodies), np.zeros_like(points.z)), points.x)
    warps = [_gentle(rng) for _ in range(int(rng.integers(1, 3)))]
    velocity = _pile(rng, lifted, warps, (1500, 2400))
    if rng.random() < 0.6:  # sediments stay slower than salt
        velocity = LOW_M_S + (velocity - LOW_M_S) * _between(rng, 0.4, 0.9)
    fast = _between(rng, 4200, 4600)
    for inside, _ in bodies:
        velocity = np.where(inside, fast + 25 * _field(rng, points, 3, 3) * (rng.random() < 0.3), velocity)
    return velocity


def _channels(rng: np.random.Generator, points: Points, velocity: Float, number: int) -> Float:
    for _ in range(number):
        top, half = _between(rng, 1, 55), _log_between(rng, 4, 40)
        deep = min(_log_between(rng, 2, 18), half)
        centre = _between(rng, float(points.x.min()), float(points.x.max()))
        across = (points.x - centre) / half
        inside = (points.z > top) & (points.z < top + deep * (1 - across**2))
        fill = velocity + rng.choice([-1.0, -1.0, 1.0]) * _between(rng, 100, 900)
        velocity = np.where(inside, fill, velocity)
    return velocity


def _basin(rng: np.random.Generator, points: Points) -> Float:
    """Young sediments with channels, gas under its caps, and slow ground near the surface."""
    velocity = _pile(rng, points, [_gentle(rng) for _ in range(int(rng.integers(1, 4)))], (1500, 2200))
    velocity = _channels(rng, points, velocity, int(rng.integers(0, 5)))
    for _ in range(int(rng.integers(0, 4))):
        at = _between(rng, float(points.x.min()), float(points.x.max())), _between(rng, 3, 60)
        half = _log_between(rng, 5, 30), _log_between(rng, 1.5, 9)
        gas = ((points.x - at[0]) / half[0]) ** 2 + ((points.z - at[1]) / half[1]) ** 2 < 1
        gas &= points.z < at[1] + _between(rng, -0.3, 1) * half[1]  # a flat contact below
        velocity = np.where(gas, velocity * _between(rng, 0.6, 0.92), velocity)
    return velocity


def _carbonate(rng: np.random.Generator, points: Points) -> Float:
    """Fast platforms, mounds and sills in slower rock, over basement at times."""
    velocity = _pile(rng, points, [_gentle(rng) for _ in range(int(rng.integers(1, 3)))], (1700, 3600))
    for _ in range(int(rng.integers(1, 4))):
        base, half = _between(rng, 12, 68), _log_between(rng, 8, 80)
        centre, tall = _between(rng, float(points.x.min()), float(points.x.max())), _between(rng, 3, 20)
        edge = np.clip(half - np.abs(points.x - centre), 0, None)
        rim = base - tall * (1 - np.exp(-edge / _between(rng, 1, 10)))
        inside = (points.z < base + _between(rng, 0, 3) * _curve(rng, points.x[:1])) & (points.z > rim) & (edge > 0)
        rock = _between(rng, 3200, HIGH_M_S) + _between(rng, 0, 200) * _field(rng, points, 2, 6)
        velocity = np.where(inside, rock, velocity)
    for _ in range(int(rng.integers(0, 3))):
        sill = _between(rng, 10, 68) + _between(rng, 0, 8) * _curve(rng, points.x[:1])
        inside = (points.z > sill) & (points.z < sill + _between(rng, 0.8, 3.5))
        velocity = np.where(inside, _between(rng, 3600, HIGH_M_S), velocity)
    if rng.random() < 0.4:
        floor = _between(rng, 25, 68) + _between(rng, 1, 8) * _curve(rng, points.x[:1])
        rock = _between(rng, 3800, 4700) + 100 * _field(rng, points, 6, 12)
        velocity = np.where(points.z > floor, rock, velocity)
    return velocity


def _smooth(rng: np.random.Generator, points: Points) -> Float:
    """Gradients with smooth departures, as tomography draws them."""
    top = _between(rng, 1500, 3000)
    velocity = top + _between(rng, 0, 4600 - top) * (np.clip(points.z, 0, None) / GRID) ** _between(rng, 0.4, 1.8)
    for _ in range(2):
        velocity = velocity + _log_between(rng, 30, 500) * _field(
            rng, points, _log_between(rng, 2.5, 20), _log_between(rng, 5, 50)
        )
    if rng.random() < 0.3:
        velocity = np.minimum(velocity, _between(rng, 3000, HIGH_M_S))
    return np.asarray(velocity)


MAKERS: dict[str, Callable[[np.random.Generator, Points], Float]] = {
    "Strata": _strata,
    "Thrust": _thrust,
    "Diapir": _salt,
    "Basin": _basin,
    "Carbonate": _carbonate,
    "Smooth": _smooth,
}
WATER = {"Strata": 0.2, "Thrust": 0.1, "Diapir": 0.45, "Basin": 0.6, "Carbonate": 0.3, "Smooth": 0.2}  # share under sea


def draw_section(
    rng: np.random.Generator,
    kind: str,
    x_cells: int,
    *,
    depth_cells: int = GRID,
    water: tuple[float, float] | None = None,
) -> Float:
    """A random velocity section of one kind of ground.

    Args:
        rng: the only source of randomness.
        kind: one of `MAKERS`.
        x_cells: width, in cells as large as those along depth.
        depth_cells: which share a depth of OpenFWI's 70 cells.
        water: least and greatest depth of the sea as shares of the depth; None draws whether there is one, by `WATER`.

    Returns:
        ``(depth_cells, x_cells)``, m/s, 1500 to 4500.

    Raises:
        InvalidConfig: an unknown kind.
    """
    if kind not in MAKERS:
        raise InvalidConfig(f"No kind of ground {kind!r}; the kinds are {', '.join(MAKERS)}.")
    cell = GRID / depth_cells
    z, x = np.meshgrid((np.arange(depth_cells) + 0.5) * cell, (np.arange(x_cells) + 0.5) * cell, indexing="ij")
    sea: float | Float = 0.0
    if water is not None or rng.random() < WATER[kind]:
        shallow, deep = water or (0.015, 0.55)
        shape = _curve(rng, x[:1])
        floor = GRID * (_log_between(rng, shallow, deep) if water is None else _between(rng, shallow, deep))
        sea = np.clip(floor + min(_between(rng, 0, 3), 0.15 * floor) * shape, GRID * shallow, None)
    ground = Points(z - sea, x)  # depth below the sea floor
    velocity = MAKERS[kind](rng, ground)
    if kind != "Smooth" and rng.random() < 0.5:
        texture = _field(rng, ground, _log_between(rng, 0.7, 8), _log_between(rng, 2, 25))
        velocity = velocity * (1 + _between(rng, 0.0, 0.06) * texture)
    if rng.random() < 0.25:
        velocity = gaussian_filter(velocity, _log_between(rng, 0.4, 3.5) / cell, mode="nearest")
    if isinstance(sea, np.ndarray):
        velocity = np.where(ground.z < 0, WATER_M_S, velocity)
    elif rng.random() < 0.2:  # weathered ground
        base = _log_between(rng, 0.8, 6) * (1 + 0.2 * _curve(rng, x[:1]))
        velocity = np.where(z < base, velocity * _between(rng, 0.55, 0.9), velocity)
    return np.asarray(np.clip(velocity, LOW_M_S, HIGH_M_S))
