"""Matches that are different ground: of several models that are nearly the same, the best alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Key = TypeVar("Key")  # of a model in the gallery

LOOKED_AT = 10  # candidates for each model wanted


def distinct(
    candidates: Sequence[Key], limit_m_s: float, count: int, models: Callable[[Sequence[Key]], Float32]
) -> list[int]:
    """Positions of up to ``count`` candidates, of which any two differ by more than ``limit_m_s``.

    The first candidate is always among them, and each further one that differs from all those before it. Models are
    read a few at a time, no more than it takes.

    Args:
        candidates: best first.
        limit_m_s: mean absolute difference of two maps over all cells up to which they are the same ground; 0 for
            equal maps.
        models: gives the maps ``(m, depth, x)``, m/s, of ``m`` candidates.
    """
    chosen: list[int] = []
    kept: list[Float32] = []
    for start in range(0, len(candidates), max(count, 1)):
        part = candidates[start : start + count]
        for at, velocity in enumerate(models(part), start):
            if all(difference_m_s(velocity, other) > limit_m_s for other in kept):
                chosen.append(at)
                kept.append(velocity)
                if len(chosen) == count:
                    return chosen
    return chosen


def difference_m_s(one: Float32, other: Float32) -> float:
    """Mean absolute difference of two maps ``(depth, x)`` over all cells, m/s."""
    return float(np.abs(one - other).mean(dtype=np.float64))
