"""Vectors in eight bits, for a first pass over all of them: a quarter of the bytes, and products that are exact.

What eight bits leave out of a vector is measured when it is coded. By Cauchy and Schwarz its length bounds how far a
product can be from that of the vectors themselves, so what the first pass leaves out is never among the best.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index.storage.record import Float32, Int64

Float64 = NDArray[np.float64]
Int8 = NDArray[np.int8]

LARGEST = 127  # and not -128, so that a code has an opposite
BLOCK = 4096  # vectors coded at a time: 4 MB of 256-d ones
LENGTH = 1 + 1e-5  # no vector here is longer: those of a gallery are of unit length in float32
PAYS = 1.5  # products in eight bits are used where they are so many times as fast as those in float32


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """Products of some queries with the vectors of one segment.

    Attributes:
        products: of the vectors at a slice or at positions, ``(vector, query)`` int32 or float32.
        unit: ``(query,)``, what a product is to be multiplied by.
        error: ``(query,)``, the inner product is no further than this from the product times its unit.
    """

    products: Callable[[slice | Int64], NDArray[Any]]
    unit: Float64
    error: Float64


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """Vectors as ``unit * codes``.

    Attributes:
        codes: ``(count, dimension)`` int8.
        error: the largest length of what that leaves out of a vector.
    """

    codes: Int8
    unit: float
    error: float
    check: Callable[[slice | Int64], None] | None = None  # called with rows before they are used

    @classmethod
    def of(cls, vectors: Float32) -> Codes:
        """Of vectors ``(count, dimension)`` of unit length, at least one."""
        blocks = [vectors[start : start + BLOCK] for start in range(0, len(vectors), BLOCK)]
        largest = max(float(np.abs(block).max()) for block in blocks)
        coded = [encode(block, largest) for block in blocks]
        unit, error = residual_bound(largest, max(longest for _, longest in coded))
        return cls(np.concatenate([codes for codes, _ in coded]), unit, error)

    def scan(self, queries: Float32) -> Scan:
        """Of queries ``(query, dimension)`` of unit length."""
        exact = queries.astype(np.float64)
        unit = np.abs(exact).max(axis=1) / LARGEST
        rounded = np.rint(exact / unit[:, None])
        left_out = np.linalg.norm(exact - rounded * unit[:, None], axis=1)
        coded = torch.from_numpy(np.ascontiguousarray(rounded.T.astype(np.int8)))
        held = torch.from_numpy(self.codes)

        def products(rows: slice | Int64) -> NDArray[np.int32]:
            if self.check is not None:
                self.check(rows)
            part = held[rows] if isinstance(rows, slice) else torch.from_numpy(np.take(self.codes, rows, axis=0))
            return np.asarray(torch._int_mm(part, coded).numpy())

        # <q, v> - <q', v'> = <q, v - v'> + <q - q', v'>, where v' is no longer than v and what is left out of it
        error = LENGTH * self.error + left_out * (LENGTH + self.error) + 1e-9
        return Scan(products, unit * self.unit, error)


def encode(vectors: Float32, largest: float) -> tuple[Int8, float]:
    """The codes of some of the vectors whose ``largest`` component is given, and the largest square of the length of
    what they leave out."""
    unit = np.float32(largest / LARGEST)
    rounded = np.rint(vectors / unit)
    rest = vectors - rounded * unit
    return rounded.astype(np.int8), float(np.einsum("ij,ij->i", rest, rest).max())


def residual_bound(largest: float, longest: float) -> tuple[float, float]:
    """`Codes.unit` and `Codes.error` of vectors of which `encode` has found these."""
    # `rest` is off by two roundings of float32 an element, its length by one a dimension, of 4096 at most
    return float(np.float32(largest / LARGEST)), longest**0.5 * (1 + 1e-3) + 1e-6


@cache
def pays() -> bool:
    """Whether products in eight bits are exact and fast on this machine.

    Where it has instructions for them they are up to ten times as fast as in float32. Elsewhere they may be slower, or
    their sums overflow.
    """
    extremes = np.where(np.random.default_rng(0).random((1024, 256)) < 0.25, -LARGEST, LARGEST).astype(np.int8)
    eight, few = torch.from_numpy(extremes), torch.from_numpy(np.ascontiguousarray(extremes[:32].T))
    long, few_long = eight.float(), few.float()
    try:
        found = torch._int_mm(eight, few).numpy()
    except (RuntimeError, AttributeError):  # it is not among the documented functions
        return False
    if not np.array_equal(found, extremes.astype(np.int64) @ few.numpy().astype(np.int64)):
        return False
    return PAYS * _seconds(lambda: torch._int_mm(eight, few)) < _seconds(lambda: torch.mm(long, few_long))


def _seconds(work: Callable[[], object]) -> float:
    """The least that ``work`` took, of a few times."""
    found = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)
