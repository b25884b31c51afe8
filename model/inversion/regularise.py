"""Total variation of velocity models: ground of few, sharp interfaces (Rudin, Osher and Fatemi 1992)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve

Float64 = NDArray[np.float64]

SMALLEST_M_S = 10.0  # differences of neighbours below this are rounding, not interfaces
SOLVES = 8  # at most, of reweighted least squares
ENOUGH_M_S = 3.0  # a solve that changes no cell by more was the last


class Roughness:
    """Total variation of models ``(depth, x)``, as a quadratic form about one of them.

    Args:
        shape: of a model.
        lateral: length of the side between a cell and the next along x, over that between it and the one below.
    """

    def __init__(self, shape: tuple[int, int], *, lateral: float = 1.0) -> None:
        depth, x = shape
        self._shape, self._lateral = shape, lateral
        # the last row and column have no neighbour
        self._down = sparse.kron(sparse.diags([-1.0, 1.0], [0, 1], shape=(depth, depth)), sparse.eye(x)).tocsr()
        self._right = sparse.kron(sparse.eye(depth), sparse.diags([-1.0, 1.0], [0, 1], shape=(x, x))).tocsr()
        self._has_below = np.repeat(np.arange(depth) < depth - 1, x)
        self._has_right = np.tile(np.arange(x) < x - 1, depth)

    def form(self, model: Float64) -> Float64:
        """``(cell, cell)`` R with ``m R m / 2`` majorising the total variation at ``model`` ``(cell,)``, m/s."""
        return np.asarray(self._form(model).toarray(), np.float64)

    def _form(self, model: Float64) -> sparse.csr_array:
        down, right = self._down @ model * self._has_below, self._right @ model * self._has_right * self._lateral
        weight = 1 / np.sqrt(down**2 + right**2 + SMALLEST_M_S**2)
        vertical = sparse.diags(weight * self._has_below)
        lateral = sparse.diags(weight * self._has_right * self._lateral**2)
        return sparse.csr_array(self._down.T @ vertical @ self._down + self._right.T @ lateral @ self._right)

    def solve(
        self, curvature: Float64, slope: Float64, model: Float64, weight: float, diagonal: Float64 | float = 0.0
    ) -> Float64:
        """The change d that minimises ``d (curvature + diagonal) d / 2 - slope d + weight TV(model + d)``.

        Args:
            curvature: ``(cell, cell)``, of which the upper half is read.
            slope: ``(cell,)``.
            model: ``(cell,)`` m/s.
            weight: per m/s.
            diagonal: ``(cell,)``.
        """
        change = np.zeros_like(model)
        on, fixed = np.arange(len(model)), diagonal + 1e-7 * np.trace(curvature) / len(model)
        for _ in range(SOLVES):
            rough = weight * self._form(model + change)
            entries = rough.tocoo()
            whole = curvature.copy(order="K")
            whole[entries.row, entries.col] += entries.data
            whole[on, on] += fixed
            factor = cho_factor(whole, overwrite_a=True, check_finite=False)
            before, change = change, cho_solve(factor, slope - rough @ model, check_finite=False)
            if np.abs(change - before).max() < ENOUGH_M_S:
                break
        return change
