"""Layers: their velocities and interfaces, and the velocity models that they make.

The laws and every number below were read off 500 published FlatVel-A, CurveVel-A and FlatFault-A maps each
(openfwi_dev.npz); no table of them is kept, only the scalars named here.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from seisbind.model.frame import OPENFWI_FRAME

# The laws are in cells and velocities of OpenFWI's maps; `families.generate` maps them to other frames.
GRID = OPENFWI_FRAME.x_cells  # along depth and x
LOW_M_S, HIGH_M_S = OPENFWI_FRAME.velocity_m_s

KNOT_CELLS = 10  # interfaces are quadratic splines through values every 10 cells
KNOTS = 7  # at x = 0, 10, .. 60; what lies right of them is extrapolated
FLAT_END = 68.6  # cell where the extrapolated spline levels off: slope uncorrelated with the values there
END_SLOPE = 0.025  # sd of the slope there, times the layer thickness in cells
WALK_CELLS = 1.0  # a layer's thickness varies uniformly by this much at every knot
EDGE_SD_CELLS = 0.38  # blur of FlatFault-A's interfaces: 2.8 % and 73 % of the step in adjacent cells, say
EDGE_TAIL = 3e-5  # of the step; whole velocities resume where less than this is left
SPARE_CELLS = 10  # of depth that the fault families share out among layers otherwise equal: 15-25 of 70 with four

Float = NDArray[np.float64]


def draw_velocities(rng: np.random.Generator, layers: NDArray[np.int64], *, increasing: bool) -> Float:
    """Distinct whole velocities, uniform over 1500-4500 m/s: (map, max(layers)); unused layers repeat the last."""
    max_layers = int(layers.max(initial=1))
    used = np.arange(max_layers) < layers[:, None]
    # Sorted draws from a range shortened by layers - 1, spread by 0, 1, 2, ..: every distinct set equally likely
    draw = np.floor(rng.random((len(layers), max_layers)) * (HIGH_M_S - LOW_M_S + 2 - layers[:, None]))
    draw = np.sort(np.where(used, draw, np.inf), axis=1) + np.arange(max_layers) + LOW_M_S
    if not increasing:
        order = np.argsort(np.where(used, rng.random(draw.shape), np.inf), axis=1)
        draw = np.take_along_axis(draw, order, axis=1)
    last = np.take_along_axis(draw, layers[:, None] - 1, axis=1)
    return np.where(used, draw, last)


def draw_halves(rng: np.random.Generator, layers: NDArray[np.int64]) -> Float:
    """Increasing velocities as FlatFault-A has them: half the layers below 3000 m/s, half above."""
    max_layers = int(layers.max(initial=1))
    index = np.arange(max_layers)
    shallow = index < (layers[:, None] + 1) // 2
    middle = (LOW_M_S + HIGH_M_S) / 2
    draw = np.floor(rng.random((len(layers), max_layers)) * (middle - LOW_M_S)) + np.where(shallow, LOW_M_S, middle)
    draw = np.where(index < layers[:, None], draw, np.inf)
    draw.sort(axis=1)
    return np.where(np.isinf(draw), np.take_along_axis(draw, layers[:, None] - 1, axis=1), draw)


@cache
def spline() -> Float:
    """(x, KNOTS + 1): values at the knots and the slope at `FLAT_END` to the interface at every cell.

    One parabola over the first two intervals, then one an interval, continuous with its slope.
    """
    x = np.arange(GRID, dtype=float)
    breaks = np.arange(2, KNOTS) * KNOT_CELLS

    def powers(at: Float) -> Float:
        bends = np.maximum(at[:, None] - breaks, 0.0) ** 2
        return np.concatenate([np.ones((len(at), 1)), at[:, None], at[:, None] ** 2, bends], axis=1)

    slope = np.concatenate([[0.0, 1.0, 2 * FLAT_END], 2 * np.maximum(FLAT_END - breaks, 0.0)])
    conditions = np.vstack([powers(np.arange(KNOTS, dtype=float) * KNOT_CELLS), slope])
    return np.asarray(powers(x) @ np.linalg.inv(conditions))


def draw_interfaces(rng: np.random.Generator, layers: NDArray[np.int64], *, curved: bool, relief: float = 1.0) -> Float:
    """Depths of the interfaces, (map, max(layers) - 1, x) in cells; those a map does not have lie at infinity.

    With N layers the mean thickness is T = 70 / (N - 1). The first interface is uniform between T/2 and 3T/2,
    at every knot anew if ``curved``; each further one follows T +- `WALK_CELLS` below, so that the interfaces
    of a map are nearly parallel. ``relief`` scales the departure of the curve from its mean depth.
    """
    max_interfaces = max(int(layers.max(initial=1)) - 1, 1)
    thickness = (GRID / np.maximum(layers - 1, 1))[:, None, None]
    knots = KNOTS if curved else 1
    first = thickness * (0.5 + rng.random((len(layers), 1, knots)))
    mean = first.mean(axis=2, keepdims=True) if relief != 1.0 else 0.0
    first = mean + relief * (first - mean)
    walk = WALK_CELLS * (2 * rng.random((len(layers), max_interfaces, knots)) - 1)
    walk[:, 0] = 0.0
    values = first + thickness * np.arange(max_interfaces)[:, None] + np.cumsum(walk, axis=1)
    if curved:
        end = END_SLOPE * relief * thickness * rng.standard_normal((len(layers), 1, 1))
        depth = np.concatenate([values, np.broadcast_to(end, (*values.shape[:2], 1))], axis=2) @ spline().T
    else:
        depth = np.broadcast_to(values, (*values.shape[:2], GRID))
    missing = np.arange(max_interfaces) >= layers[:, None] - 1
    return np.where(missing[:, :, None], np.inf, depth)


def draw_partition(rng: np.random.Generator, layers: NDArray[np.int64]) -> Float:
    """Depths (map, max(layers) - 1) of the fault families' interfaces in cells; infinite where there is none.

    Every layer, the last one too, gets (70 - `SPARE_CELLS`) / N cells. The spare ones are broken off one layer
    after the other, in random order, each taking a uniform part of what is left.
    """
    max_layers = int(layers.max(initial=1))
    used = np.arange(max_layers) < layers[:, None]
    left = np.full(len(layers), float(SPARE_CELLS))
    extra = np.zeros((len(layers), max_layers))
    for k in range(max_layers):
        take = np.where(k == layers - 1, left, np.floor(rng.random(len(layers)) * (left + 1)))
        extra[:, k] = np.where(used[:, k], take, 0.0)
        left -= extra[:, k]
    order = np.argsort(np.where(used, rng.random(used.shape), np.inf), axis=1)
    thickness = np.take_along_axis(extra, order, axis=1) + ((GRID - SPARE_CELLS) / layers)[:, None]
    depth = np.cumsum(thickness, axis=1)[:, :-1]
    return np.where(used[:, 1:], depth, np.inf)


def draw_folds(rng: np.random.Generator, count: int, *, amplitude: tuple[float, float]) -> Float:
    """(map, 1, x): cells that the folds of the CurveFault families add to the depth of every interface.

    Waves 20 to 45 cells long, as in the five published CurveFault-B maps measured, on a gentle tilt.
    """
    x = np.arange(GRID)
    length = rng.uniform(20, 45, (count, 1, 1))
    wave = np.sin(2 * np.pi * (x / length + rng.random((count, 1, 1))))
    swell = np.exp(rng.uniform(-0.5, 0.5, (count, 1, 1)) * (x / GRID - 0.5))  # folds grow along the section
    return rng.uniform(*amplitude, (count, 1, 1)) * wave * swell + rng.uniform(-0.1, 0.1, (count, 1, 1)) * (
        x - GRID / 2
    )


def paint(depth: Float, velocity: Float) -> Float:
    """Maps (map, depth, x) of constant layers: a cell below the rounded interface k has velocity k + 1.

    ``depth`` is (map, interface, x), or (map, interface, depth, x) where it is displaced cell by cell.
    """
    cells = np.arange(GRID)[:, None]
    if depth.ndim == 3:
        depth = depth[:, :, None, :]
    layer = np.zeros((len(depth), GRID, GRID), dtype=np.intp)
    for k in range(depth.shape[1]):
        layer += cells >= np.round(depth[:, k])
    return np.take_along_axis(velocity, layer.reshape(len(depth), -1), axis=1).reshape(layer.shape)


def paint_blurred(depth: Float, velocity: Float) -> Float:
    """As `paint`, with the velocity crossing each interface as a normal distribution of sd `EDGE_SD_CELLS`."""
    cells = np.arange(GRID)[:, None] + 0.5
    steps = np.diff(velocity, axis=1)
    result = np.broadcast_to(velocity[:, 0, None, None], (len(depth), GRID, GRID)).copy()
    for k in range(depth.shape[1]):
        share = ndtr((cells - depth[:, k]) / EDGE_SD_CELLS)
        share[share < EDGE_TAIL] = 0.0
        share[share > 1 - EDGE_TAIL] = 1.0
        result += steps[:, k, None, None] * share
    return result
