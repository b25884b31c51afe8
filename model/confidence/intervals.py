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

from seisbind.model.confidence.novelty import MEASURES
from seisbind.model.survey.preparation import Prepared

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

KNEE = 0.1  # of a score of `novelty`: nearer the median of training than this is no departure
CAP = 2.0  # beyond this nothing is known, and a verdict says so
HALF_KNOWN = 0.2  # of a departure of ground counts by itself: what is hardly told from familiar ground is misread, too


def shot_distance(prepared: Prepared) -> Float64:
    """``(batch,)``: how far the frame's own shot positions are from the nearest shot on average, in their spacing.

    Shots that were moved count from where they were.
    """
    own = np.asarray(prepared.frame.shot_x_m)
    present = np.asarray(prepared.live.any(axis=2))
    x_m = prepared.shot_x_m if prepared.moved_m is None else prepared.shot_x_m + prepared.moved_m
    away = np.abs(own[:, None] - x_m[:, None, :])  # (batch, own, shot)
    nearest = np.where(present[:, None, :], away, prepared.frame.line_m).min(axis=2)
    return np.asarray(nearest.mean(axis=1) * (len(own) - 1) / (own[-1] - own[0]))


def departures(scores: Float64, distance: Float64) -> Float64:
    """``(batch, measures + 1)``: how far a record departs from those of training, in each measure and in its shots.

    One more column where all of `novelty.MEASURES` are known: the departure of ground, up to `HALF_KNOWN`.

    Args:
        scores: ``(batch, measures)`` of `novelty.scores`.
        distance: of `shot_distance`.
    """
    departed = np.nan_to_num(np.clip(np.column_stack([scores - KNEE, distance]), 0.0, CAP), nan=CAP)
    if scores.shape[1] == len(MEASURES):
        departed = np.column_stack([departed, np.minimum(departed[:, len(MEASURES) - 1], HALF_KNOWN)])
    return np.asarray(departed)


def interval_factor(
    shares: Float32, log_factor: ArrayLike, departed: Float64 | None = None, log_excess: Sequence[object] = ()
) -> Float32:
    """``(batch, ..)`` factors.

    Args:
        shares: ``(batch, families)`` probabilities of the families, or one column of ones.
        log_factor: ``(families, ..)``.
        departed: ``(batch, departures)`` of `departures`.
        log_excess: ``(departures, ..)``, of the first of them where earlier weights know no more; empty where the
            factor follows the families alone.
    """
    log = shares @ np.asarray(log_factor, np.float32)
    if len(log_excess) and departed is not None:
        log = log + departed[:, : len(log_excess)].astype(np.float32) @ np.asarray(log_excess, np.float32)
    return np.asarray(np.exp(log))
