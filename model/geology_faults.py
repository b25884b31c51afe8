"""Faults: how the interfaces of a map are displaced cell by cell.

Throws, dips and the block's second edge are as measured on 500 published FlatFault-A maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from seisbind.model.geology_layers import GRID, Float

THROW_CELLS = (5.5, 9.8)  # either way: 10-90 % of the measured relief of an interface is 5-10 cells
STEEP_SHARE = 0.65  # of the faults lie within STEEP_COT of the vertical
STEEP_COT, FLAT_COT = 0.45, 2.2  # cells of x per cell of depth along the fault plane
TIP_SHARE = 0.45  # of the faults die out between the first and second interface
GRABEN_SHARE = 0.3  # of the blocks end again before the side of the map ..
GRABEN_CELLS = (2.0, 9.0)  # .. this far from it
PLANE_SD_CELLS = 0.6  # blur across the fault plane of the A families


@dataclass(frozen=True, slots=True)
class Faults:
    """One fault a map; every array is (map,)."""

    x: Float  # cells, where the plane crosses the middle of the map
    cot: Float  # cells of x per cell of depth
    throw: Float  # cells, positive down
    side: Float  # +1: what lies right of the plane is displaced; -1: left
    tip: Float  # cells; nothing above this depth is displaced
    far: Float  # x in cells of the block's second edge; infinite where it has none


def draw_faults(rng: np.random.Generator, count: int, *, throw: tuple[float, float] = THROW_CELLS) -> Faults:
    steep = rng.random(count) < STEEP_SHARE
    cot = np.where(steep, STEEP_COT, FLAT_COT) * rng.uniform(-1, 1, count)
    side = np.where(rng.random(count) < 0.5, 1.0, -1.0)
    x = rng.uniform(4, GRID - 4, count)
    edge = rng.uniform(*GRABEN_CELLS, count)
    far = np.where(side > 0, GRID - edge, edge)
    graben = (rng.random(count) < GRABEN_SHARE) & ((far - x) * side > 12)
    return Faults(
        x=x,
        cot=cot,
        throw=rng.uniform(*throw, count) * np.where(rng.random(count) < 0.5, 1.0, -1.0),
        side=side,
        tip=np.where(rng.random(count) < TIP_SHARE, rng.uniform(14, 26, count), -np.inf),
        far=np.where(graben, far, side * np.inf),
    )


def displaced(faults: Faults, *, blur_cells: float) -> Float:
    """(map, depth, x): the share, 0 to 1, of the fault's throw that each cell has undergone."""
    z = np.arange(GRID)[:, None] + 0.5
    x = np.arange(GRID) + 0.5

    def column(values: Float) -> Float:
        return values[:, None, None]

    past = (x - column(faults.x) - (z - GRID / 2) * column(faults.cot)) * column(faults.side)
    past /= np.sqrt(1 + column(faults.cot) ** 2)
    before = (column(faults.far) - x) * column(faults.side) - 0.05 * (z - GRID / 2)
    inside = np.minimum(past, before)
    share = ndtr(inside / blur_cells) if blur_cells else (inside > 0).astype(np.float64)
    return np.asarray(share * (z > column(faults.tip)))


def fault(depth: Float, faults: Faults, *, blur_cells: float) -> Float:
    """Interfaces (map, interface, x) displaced by a fault: (map, interface, depth, x), cells.

    The block moves down the plane, so that curved interfaces shift along x as well.
    """
    share = displaced(faults, blur_cells=blur_cells)
    heave = np.round(faults.throw * faults.cot).astype(np.intp)
    source = np.clip(np.arange(GRID) - heave[:, None], 0, GRID - 1)
    moved = np.take_along_axis(depth, np.broadcast_to(source[:, None], depth.shape), axis=2)
    moved = moved + faults.throw[:, None, None]
    present = np.where(np.isinf(depth), 10.0 * GRID, depth)  # infinity would turn a share of 0 into NaN
    moved = np.where(np.isinf(moved), 10.0 * GRID, moved)
    return np.asarray(present[:, :, None] + share[:, None] * (moved - present)[:, :, None])
