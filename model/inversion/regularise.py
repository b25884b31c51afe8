"""Total variation of velocity models: ground of few, sharp interfaces (Rudin, Osher and Fatemi 1992)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

Float64 = NDArray[np.float64]

SMALLEST_M_S = 10.0  # differences of neighbours below this are rounding, not interfaces
SOLVES = 8  # of reweighted least squares; the model changes by less than 1 m/s after them


class Roughness:
    """Total variation of models ``(depth, x)``, as a quadratic form about one of them."""

    def __init__(self, shape: tuple[int, int]) -> None:
        depth, x = shape
        self._shape = shape
        # the last row and column have no neighbour
        self._down = sparse.kron(sparse.diags([-1.0, 1.0], [0, 1], shape=(depth, depth)), sparse.eye(x)).tocsr()
        self._right = sparse.kron(sparse.eye(depth), sparse.diags([-1.0, 1.0], [0, 1], shape=(x, x))).tocsr()
        self._has_below = np.repeat(np.arange(depth) < depth - 1, x)
        self._has_right = np.tile(np.arange(x) < x - 1, depth)

    def form(self, model: Float64) -> Float64:
        """``(cell, cell)`` R with ``m R m / 2`` majorising the total variation at ``model`` ``(cell,)``, m/s."""
        down, right = self._down @ model * self._has_below, self._right @ model * self._has_right
        weight = 1 / np.sqrt(down**2 + right**2 + SMALLEST_M_S**2)
        vertical = sparse.diags(weight * self._has_below)
        lateral = sparse.diags(weight * self._has_right)
        return np.asarray(
            (self._down.T @ vertical @ self._down + self._right.T @ lateral @ self._right).toarray(), np.float64
        )

    def solve(self, curvature: Float64, slope: Float64, model: Float64, weight: float) -> Float64:
        """The change d that minimises ``d curvature d / 2 - slope d + weight TV(model + d)``.

        Args:
            curvature: ``(cell, cell)``.
            slope: ``(cell,)``.
            model: ``(cell,)`` m/s.
            weight: per m/s.
        """
        change = np.zeros_like(model)
        ridge = 1e-7 * np.trace(curvature) / len(model) * np.eye(len(model))
        for _ in range(SOLVES):
            rough = weight * self.form(model + change)
            change = cho_solve(cho_factor(curvature + rough + ridge), slope - rough @ model)
        return change
