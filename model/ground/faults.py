"""Faults: how the interfaces of a map are displaced cell by cell.

Throws, dips and the block's second edge are as measured on 500 published FlatFault-A maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from seisbind.model.ground.layers import GRID, Float

UP_SHARE = 0.6  # of the blocks moved up, the rest down
THROW_CELLS, THROW_SD_CELLS = 7.7, 1.6  # mean and sd of the throw, within THROW_LIMITS
THROW_LIMITS = (4.5, 12.5)
STEEP_SHARE = 0.65  # of the faults lie within STEEP_COT of the vertical
STEEP_COT, FLAT_COT = 0.45, 2.2  # cells of x per cell of depth along the fault plane
TIP_SHARE = 0.4  # of the faults die out between the first and second interface ..
TIP_CELLS = (14.0, 26.0)  # .. which lie about here
GRABEN_SHARE = 0.25  # of the blocks end again before the side of the map ..
GRABEN_CELLS = (2.0, 9.0)  # .. this end from it
PLANE_SD_CELLS = 0.8  # blur across the fault plane of the A families
GOUGE_M_S = 20.0  # sd of the velocity anomaly that interpolation left along the plane of the A families


@dataclass(frozen=True, slots=True)
class Faults:
    """One fault a map; every array is (map,)."""

    x: Float  # cells, where the plane crosses the middle of the map
    cot: Float  # cells of x per cell of depth
    throw: Float  # cells, negative up
    side: Float  # +1: what lies right of the plane is displaced; -1: left
    tip: Float  # cells; nothing above this depth is displaced
    end: Float  # x in cells of the block's other edge; infinite where it has none


def draw_faults(rng: np.random.Generator, count: int, *, tips: bool = False, strength: float = 1.0) -> Faults:
    """Faults as in FlatFault-A, the throw times ``strength``; ``tips`` lets some die out upwards."""
    steep = rng.random(count) < STEEP_SHARE
    cot = np.where(steep, STEEP_COT, FLAT_COT) * rng.uniform(-1, 1, count)
    side = np.where(rng.random(count) < 0.5, 1.0, -1.0)
    x = rng.uniform(4, GRID - 4, count)
    edge = rng.uniform(*GRABEN_CELLS, count)
    end = np.where(side > 0, GRID - edge, edge)
    graben = (rng.random(count) < GRABEN_SHARE) & ((end - x) * side > 12)
    tip = np.where(rng.random(count) < TIP_SHARE * tips, rng.uniform(*TIP_CELLS, count), -np.inf)
    throw = np.clip(rng.normal(THROW_CELLS, THROW_SD_CELLS, count), *THROW_LIMITS)
    return Faults(
        x=x,
        cot=cot,
        throw=throw * np.where(rng.random(count) < UP_SHARE, -strength, strength),
        side=side,
        tip=tip,
        end=np.where(graben, end, side * np.inf),
    )


def _distance(faults: Faults) -> Float:
    """(map, depth, x): cells from the nearest edge of the displaced block, positive inside."""
    z = np.arange(GRID)[:, None] + 0.5
    x = np.arange(GRID) + 0.5
    past = (x - _column(faults.x) - (z - GRID / 2) * _column(faults.cot)) * _column(faults.side)
    past /= np.sqrt(1 + _column(faults.cot) ** 2)
    before = (_column(faults.end) - x) * _column(faults.side) - 0.05 * (z - GRID / 2)
    return np.asarray(np.minimum(past, before))


def displaced(faults: Faults, *, blur_cells: float) -> Float:
    """(map, depth, x): the share, 0 to 1, of the fault's throw that each cell has undergone."""
    inside = _distance(faults)
    share = ndtr(inside / blur_cells) if blur_cells else (inside > 0).astype(np.float64)
    return np.asarray(share * _below_tip(faults))


def gouge(faults: Faults, rng: np.random.Generator) -> Float:
    """(map, depth, x): m/s to add along the plane, in a band three or four cells wide."""
    band = np.exp(-0.5 * (_distance(faults) / PLANE_SD_CELLS) ** 2)
    band[band < 0.05] = 0.0
    anomaly = GOUGE_M_S * rng.standard_normal((len(faults.x), 1, 1))
    return np.asarray(anomaly * band * _below_tip(faults))


def _column(values: Float) -> Float:
    return values[:, None, None]


def _below_tip(faults: Faults) -> NDArray[np.bool_]:
    return np.asarray(np.arange(GRID)[:, None] + 0.5 > _column(faults.tip))


def fault(depth: Float, faults: Faults, *, blur_cells: float) -> Float:
    """Interfaces (map, interface, x) displaced by a fault: (map, interface, depth, x), cells.

    The block moves along the plane, so that curved interfaces shift along x as well.
    """
    share = displaced(faults, blur_cells=blur_cells)
    heave = np.round(faults.throw * faults.cot).astype(np.intp)
    source = np.clip(np.arange(GRID) - heave[:, None], 0, GRID - 1)
    moved = np.take_along_axis(depth, np.broadcast_to(source[:, None], depth.shape), axis=2)
    moved = moved + faults.throw[:, None, None]
    present = np.where(np.isinf(depth), 10.0 * GRID, depth)  # infinity would turn a share of 0 into NaN
    moved = np.where(np.isinf(moved), 10.0 * GRID, moved)
    return np.asarray(present[:, :, None] + share[:, None] * (moved - present)[:, :, None])
