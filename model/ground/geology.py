"""Broad ground: sections of any width from a sedimentary and tectonic history drawn at random.

OpenFWI's families are few layers between sharp interfaces. Ground elsewhere holds strata by the hundred, folds,
thrusts, salt with overhangs, unconformities, channels, gas, carbonates, and water over it. A section here is drawn as
it came to be: strata are laid down, warped and cut, others laid over them (`history`), bodies placed, the sea above.

Lengths are in OpenFWI's cells and velocities in its range, as in `layers`; other grids sample the same sections.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from seisbind.model.errors import InvalidConfig
from seisbind.model.ground.history import (
    ABOVE,
    BELOW,
    STEP,
    Float,
    Points,
    Strata,
    Warp,
    between,
    curve,
    field,
    fold,
    gentle,
    lay,
    log_between,
    pile,
    strong,
    thrust_belt,
)
from seisbind.model.ground.layers import GRID, HIGH_M_S, LOW_M_S

WATER_M_S = 1500.0
Body = tuple[NDArray[np.bool_], Float]  # what is inside, and the lift of what lies around


def _strata(rng: np.random.Generator, points: Points) -> Float:
    """Thin or thick strata, gently or strongly deformed under unconformities."""
    number = int(rng.integers(1, 4))
    warps = [gentle(rng) if rng.random() < 0.6 else strong(rng) for _ in range(number)]
    return pile(rng, points, warps, None)


def _thrust(rng: np.random.Generator, points: Points) -> Float:
    """A thrust belt, at times under a younger cover."""
    warps = [thrust_belt(rng)]
    if rng.random() < 0.35:
        warps.insert(0, gentle(rng))
    return pile(rng, points, warps, (1500, 3300))


def _somewhere(rng: np.random.Generator, x: Float) -> float:
    return between(rng, float(x.min()), float(x.max()))


def _salt_body(rng: np.random.Generator, points: Points) -> Body:
    """A diapir with a bulb over its stem, a sheet of rough outline or a ridge; and its lift of what lies around."""
    z, x = points.z, points.x
    if rng.random() < 0.25:
        relief = curve(rng, x[:1], shortest=40, longest=160)
        top_of_ridge = between(rng, GRID / 2, GRID + 5) - np.clip(between(rng, 6, 30) * relief, -12, 45)
        rough = between(rng, 0, 1.5) * field(rng, points, 2, 3)
        return z > top_of_ridge + rough, np.clip(between(rng, 0, 0.6) * (GRID - top_of_ridge), 0, 25)
    left, right = float(x.min()), float(x.max())
    centre, top = between(rng, left - 5, right + 5), between(rng, 5, 50)
    rough = field(rng, points, between(rng, 2, 6), between(rng, 3, 9))
    lean = between(rng, -0.4, 0.4)
    across = x - centre - lean * (z - top)
    if rng.random() < 0.65:
        stem, bulb = between(rng, 3, 22), between(rng, 0, 26)
        height, waist = between(rng, 6, 26), between(rng, 4, 18)
        foot = between(rng, 0, 0.9) * np.clip(z - top - 30, 0, None)
        half = stem + bulb * np.exp(-(((z - top - height) / waist) ** 2)) + foot
        crown = np.sqrt(np.clip(z - top, 0, None) / (1.2 * height)).clip(0, 1)
        inside = (np.abs(across) + 1.5 * rough < half * crown) & (z > top)
        wide = stem + bulb
    else:
        wide, thick = between(rng, 15, 60), between(rng, 5, 22)
        middle = top + thick + 0.25 * lean * across
        inside = (across / wide) ** 2 + ((z - middle) / thick) ** 2 + 0.18 * rough < 1
        inside |= (np.abs(across) < wide * 0.25) & (z > middle) & (rng.random() < 0.4)  # its feeder
    lift = between(rng, 0, 14) * np.exp(-((across / (1.6 * wide + 4)) ** 2))
    return inside, lift


def _lifted(points: Points, bodies: list[Body]) -> Points:
    return Points(points.z + sum((lift for _, lift in bodies), np.zeros_like(points.z)), points.x)


def _salt(rng: np.random.Generator, points: Points) -> Float:
    """Sediments pierced and lifted by salt."""
    bodies = [_salt_body(rng, points) for _ in range(int(rng.choice([1, 1, 1, 2, 3])))]
    lifted = _lifted(points, bodies)
    warps = [gentle(rng) for _ in range(int(rng.integers(1, 3)))]
    velocity = pile(rng, lifted, warps, (1500, 2400))
    if rng.random() < 0.6:  # sediments stay slower than salt
        velocity = LOW_M_S + (velocity - LOW_M_S) * between(rng, 0.4, 0.9)
    fast = between(rng, 4200, 4600)
    for inside, _ in bodies:
        velocity = np.where(inside, fast + 25 * field(rng, points, 3, 3) * (rng.random() < 0.3), velocity)
    return velocity


def _channel(rng: np.random.Generator, points: Points, velocity: Float) -> Float:
    """With a fill of its own."""
    top, half = between(rng, 1, 55), log_between(rng, 4, 40)
    deep = min(log_between(rng, 2, 18), half)
    centre = _somewhere(rng, points.x)
    across = (points.x - centre) / half
    inside = (points.z > top) & (points.z < top + deep * (1 - across**2))
    fill = velocity + rng.choice([-1.0, -1.0, 1.0]) * between(rng, 100, 900)
    return np.where(inside, fill, velocity)


def _sill(
    rng: np.random.Generator,
    points: Points,
    velocity: Float,
    *,
    shallowest: float = 8.0,
    thickest: float = 5.0,
    slowest: float = 3000.0,
) -> Float:
    """A fast sheet that cuts through the layers."""
    top = between(rng, shallowest, 68) + between(rng, 0, 8) * curve(rng, points.x[:1])
    inside = (points.z > top) & (points.z < top + between(rng, 0.8, thickest))
    return np.where(inside, between(rng, slowest, HIGH_M_S), velocity)


def _basin(rng: np.random.Generator, points: Points) -> Float:
    """Young sediments with channels, gas under its caps, and slow ground near the surface."""
    velocity = pile(rng, points, [gentle(rng) for _ in range(int(rng.integers(1, 4)))], (1500, 2200))
    for _ in range(int(rng.integers(0, 5))):
        velocity = _channel(rng, points, velocity)
    for _ in range(int(rng.integers(0, 4))):
        at = _somewhere(rng, points.x), between(rng, 3, 60)
        half = log_between(rng, 5, 30), log_between(rng, 1.5, 9)
        gas = ((points.x - at[0]) / half[0]) ** 2 + ((points.z - at[1]) / half[1]) ** 2 < 1
        gas &= points.z < at[1] + between(rng, -0.3, 1) * half[1]  # a flat contact below
        velocity = np.where(gas, velocity * between(rng, 0.6, 0.92), velocity)
    return velocity


def _carbonate(rng: np.random.Generator, points: Points) -> Float:
    """Fast platforms, mounds and sills in slower rock, over basement at times."""
    velocity = pile(rng, points, [gentle(rng) for _ in range(int(rng.integers(1, 3)))], (1700, 3600))
    for _ in range(int(rng.integers(1, 4))):
        base, half = between(rng, 12, 68), log_between(rng, 8, 80)
        centre, tall = _somewhere(rng, points.x), between(rng, 3, 20)
        edge = np.clip(half - np.abs(points.x - centre), 0, None)
        rim = base - tall * (1 - np.exp(-edge / between(rng, 1, 10)))
        inside = (points.z < base + between(rng, 0, 3) * curve(rng, points.x[:1])) & (points.z > rim) & (edge > 0)
        rock = between(rng, 3200, HIGH_M_S) + between(rng, 0, 200) * field(rng, points, 2, 6)
        velocity = np.where(inside, rock, velocity)
    for _ in range(int(rng.integers(0, 3))):
        velocity = _sill(rng, points, velocity, shallowest=10, thickest=3.5, slowest=3600)
    if rng.random() < 0.4:
        floor = between(rng, 25, 68) + between(rng, 1, 8) * curve(rng, points.x[:1])
        rock = between(rng, 3800, 4700) + 100 * field(rng, points, 6, 12)
        velocity = np.where(points.z > floor, rock, velocity)
    return velocity


def _smooth(rng: np.random.Generator, points: Points) -> Float:
    """Gradients with smooth departures, as tomography draws them."""
    top = between(rng, 1500, 3000)
    velocity = top + between(rng, 0, 4600 - top) * (np.clip(points.z, 0, None) / GRID) ** between(rng, 0.4, 1.8)
    for _ in range(2):
        velocity = velocity + log_between(rng, 30, 500) * field(
            rng, points, log_between(rng, 2.5, 20), log_between(rng, 5, 50)
        )
    if rng.random() < 0.3:
        velocity = np.minimum(velocity, between(rng, 3000, HIGH_M_S))
    return np.asarray(velocity)


def _thick_layers(rng: np.random.Generator) -> Strata:
    """A few layers, each of one velocity, on the whole faster with depth."""
    count = int(rng.integers(2, 13))
    cells = _thicknesses(rng, [GRID / count], shape=6.0, thinnest=4)
    depth = (np.cumsum(cells) - np.array(cells) / 2) * STEP - ABOVE
    low = between(rng, LOW_M_S, 2600)
    high = between(rng, low + 400, HIGH_M_S)
    velocity = low + (high - low) * (np.clip(depth, 0, None) / GRID) ** between(rng, 0.5, 1.5)
    velocity += rng.standard_normal(len(cells)) * (high - low) / count * log_between(rng, 0.15, 1.5)
    return Strata(np.repeat(velocity - low, cells), low, 0.0, 1.0, 0.0)


def _thicknesses(rng: np.random.Generator, means: list[float], *, shape: float, thinnest: int) -> list[int]:
    """Of layers until the table of strata is full, in its steps; ``means`` in turn, in cells."""
    number, cells = round((ABOVE + BELOW) / STEP), list[int]()
    while (left := number - sum(cells)) > 0:
        mean = means[len(cells) % len(means)]
        cells.append(min(left, max(thinnest, round(rng.gamma(shape, mean / shape) / STEP))))
    return cells


def _nearly_flat(rng: np.random.Generator, height: float) -> Warp:
    """Folds of less than a cell or two, or none to speak of."""
    return lambda points: fold(rng, points, rng.gamma(1.0, height))


def _pillow(rng: np.random.Generator, points: Points) -> Body:
    """Salt that has swollen out of its bed: ridges and pillows over the base of the section, and their lift."""
    x = points.x[:1]
    bed = between(rng, 0.7 * GRID, 1.05 * GRID)
    top = np.full_like(x, bed)
    for _ in range(int(rng.integers(1, 4))):
        centre, half = _somewhere(rng, x), log_between(rng, 5, 30)
        across = np.abs(x - centre) / np.where(x < centre, half, half * between(rng, 0.5, 2))
        top = np.minimum(top, bed - between(rng, 5, 0.85 * bed) * np.exp(-(across ** between(rng, 1.2, 5))))
    return points.z > top, np.clip(0.4 * (GRID - top), 0, 20)


def _lens(rng: np.random.Generator, points: Points, velocity: Float) -> Float:
    """Of another velocity, tilted."""
    at = _somewhere(rng, points.x), between(rng, 5, 62)
    half = log_between(rng, 4, 30), log_between(rng, 2, 12)
    across = points.x - at[0]
    depth = points.z - at[1] - between(rng, -0.4, 0.4) * across
    inside = (across / half[0]) ** 2 + (depth / half[1]) ** 2 < 1
    return np.where(inside, velocity + rng.choice([-1.0, 1.0]) * between(rng, 200, 1300), velocity)


def _anomaly(rng: np.random.Generator, points: Points, velocity: Float) -> Float:
    """Smooth departures that follow no layer."""
    smooth = field(rng, points, log_between(rng, 3, 20), log_between(rng, 5, 40))
    return velocity + log_between(rng, 60, 500) * smooth


def _blocks(rng: np.random.Generator, points: Points) -> Float:
    """Few thick layers, as OpenFWI's families have, with what those do not have: salt, lenses, channels, sills."""
    layers = _thick_layers(rng)
    warp = _nearly_flat(rng, 0.5) if rng.random() < 0.3 else gentle(rng) if rng.random() < 0.7 else strong(rng)
    salt, lifted = rng.random() < 0.55, points
    bodies = []
    if salt:
        number = int(rng.choice([1, 1, 2]))
        bodies = [_salt_body(rng, points) if rng.random() < 0.5 else _pillow(rng, points) for _ in range(number)]
        if rng.random() < 0.5:
            lifted = _lifted(points, bodies)
    velocity = layers.velocity(warp(lifted).z, points.z)
    for inside, _ in bodies:
        velocity = np.where(inside, between(rng, 4000, 4600), velocity)
    if not salt or rng.random() < 0.15:
        for _ in range(int(rng.integers(1, 4))):
            make = (_channel, _lens, _sill, _anomaly)[int(rng.integers(4))]
            velocity = make(rng, points, velocity)
    return velocity


def _beds(rng: np.random.Generator, points: Points) -> Float:
    """Two to four rocks in turn, bed by bed, of thicknesses of their own: shale and sand, marl and limestone."""
    rocks = int(rng.integers(2, 5))
    departure = np.sort(rng.uniform(-1, 1, rocks)) * between(rng, 200, 1200)
    order = [int(rng.integers(rocks))]
    while len(order) < 400:
        order.append((order[-1] + int(rng.integers(1, rocks))) % rocks)  # another one
    mean = log_between(rng, 1.5, 9) * rng.uniform(0.4, 1.8, rocks)
    cells = _thicknesses(rng, [float(mean[rock]) for rock in order], shape=2.5, thinnest=1)
    each = departure[[order[bed % len(order)] for bed in range(len(cells))]] + 40 * rng.standard_normal(len(cells))
    top_m_s = between(rng, 1600, 3400)
    rise = between(rng, 0, 4300 - top_m_s), between(rng, 0.5, 1.4), between(rng, 0, 1)
    strata = Strata(np.repeat(each, cells), top_m_s, *rise)
    warp = (gentle, gentle, strong, thrust_belt)[int(rng.integers(4))](rng)
    return lay(rng, points, strata, _nearly_flat(rng, 0.4) if rng.random() < 0.25 else warp)


MAKERS: dict[str, Callable[[np.random.Generator, Points], Float]] = {
    "Strata": _strata,
    "Thrust": _thrust,
    "Diapir": _salt,
    "Basin": _basin,
    "Carbonate": _carbonate,
    "Smooth": _smooth,
    "Blocks": _blocks,
    "Beds": _beds,
}
WATER = {  # share under sea
    "Strata": 0.2, "Thrust": 0.1, "Diapir": 0.45, "Basin": 0.6, "Carbonate": 0.3, "Smooth": 0.2, "Blocks": 0.15,
    "Beds": 0.15,
}  # fmt: skip


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
        shape = curve(rng, x[:1])
        floor = GRID * (log_between(rng, shallow, deep) if water is None else between(rng, shallow, deep))
        sea = np.clip(floor + min(between(rng, 0, 3), 0.15 * floor) * shape, GRID * shallow, None)
    ground = Points(z - sea, x)  # depth below the sea floor
    velocity = MAKERS[kind](rng, ground)
    if kind != "Smooth" and rng.random() < 0.5:
        texture = field(rng, ground, log_between(rng, 0.7, 8), log_between(rng, 2, 25))
        velocity = velocity * (1 + between(rng, 0.0, 0.06) * texture)
    if rng.random() < 0.25:
        velocity = gaussian_filter(velocity, log_between(rng, 0.4, 3.5) / cell, mode="nearest")
    if isinstance(sea, np.ndarray):
        velocity = np.where(ground.z < 0, WATER_M_S, velocity)
    elif rng.random() < 0.2:  # weathered ground
        base = log_between(rng, 0.8, 6) * (1 + 0.2 * curve(rng, x[:1]))
        velocity = np.where(z < base, velocity * between(rng, 0.55, 0.9), velocity)
    return np.asarray(np.clip(velocity, LOW_M_S, HIGH_M_S))
