"""The factor between the scale of error that a head states and the half width of its 90 % interval.

A head knows how far it is off over records like those it was trained on. What is measured of a record (`novelty`) says
how far it departs from them, and intervals widen with it: the logarithm of the factor is linear in the probabilities of
the families, and in how far each measure lies from its median in training. Over clean records of familiar ground there
is no departure, so intervals there are as wide as without.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

KNEE = 0.1  # of a score of `novelty`: nearer the median of training than this is no departure
CAP = 2.0  # beyond this nothing is known, and a verdict says so


def departures(scores: Float64) -> Float64:
    """``(batch, measures)``: how far each measure departs from training, from its score of `novelty.scores`."""
    return np.nan_to_num(np.clip(scores - KNEE, 0.0, CAP), nan=CAP)


def interval_factor(
    shares: Float32, log_factor: ArrayLike, departed: Float64 | None = None, log_excess: Sequence[object] = ()
) -> Float32:
    """``(batch, ..)`` factors.

    Args:
        shares: ``(batch, families)`` probabilities of the families, or one column of ones.
        log_factor: ``(families, ..)``.
        departed: ``(batch, measures)`` of `departures`.
        log_excess: ``(measures, ..)``; empty where the factor follows the families alone.
    """
    log = shares @ np.asarray(log_factor, np.float32)
    if len(log_excess) and departed is not None:
        log = log + departed.astype(np.float32) @ np.asarray(log_excess, np.float32)
    return np.asarray(np.exp(log))
