"""The 90 % interval of a refined model, from what the inversion still doubts.

The Gaussian whose curvature is that of misfit and priors knows nothing of other minima, of blocks that are wrong
together and of what the wave equation leaves out. By how much it misses was measured on drawn models, and depends on
what is left of the record: `WIDENED` is what `benchmarks/refine_interval.py` prints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]

INTERVAL = 1.645  # standard deviations of a 90 % interval
GROUPS = (0.03,)  # misfits at which a group ends
WIDENED = (7.0, 19.0)  # of each group: deviations that nine tenths of the cells are off by at most


@dataclass(frozen=True, slots=True)
class Remaining:
    """What is left to doubt of a refined model.

    Attributes:
        deviation: ``(depth, x)`` m/s, of the Gaussian about the model whose curvature is that of misfit and priors.
        misfit: of the last band, rms over the record's.
        illumination: ``(depth, x)`` see `Refined`.
    """

    deviation: Float64
    misfit: float
    illumination: Float64


def half_width_m_s(remaining: Remaining) -> Float64:
    """``(depth, x)`` half the 90 % interval of each cell, m/s."""
    return WIDENED[group(remaining.misfit)] * remaining.deviation


def group(misfit: float) -> int:
    """The number of the group of a misfit, from 0."""
    return int(np.searchsorted(GROUPS, misfit))
