"""How likely the best match is the very ground of a gather, rather than its nearest relative in the gallery.

A cosine is not a probability: what counts as close depends on how many models there were to choose from, and on how far
the second best falls behind. A logistic law over the three is fitted on held-out pairs, at even odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SIZES = (100, 300, 1_000, 3_000)  # galleries drawn to fit the law, as far as the pairs reach
SACRIFICED = 0.003  # share of the gathers whose ground is in the gallery that may be taken for new ground
HIGHEST_LIMIT = 0.5  # where pairs are parted so well that even sure ones are few
RIDGE = 1e-6
NEVER = -20.0  # log odds
CANDIDATES = 30  # most similar models that are ranked by structure


@dataclass(frozen=True, slots=True)
class Presence:
    """Logistic law: log odds = ``constant`` + ``similarity`` s1 + ``gap`` (s1 - s2) + ``log_size`` log10(models).

    Below the probability ``limit`` the ground is taken for new: `SACRIFICED` of those in the gallery lie there, too.
    Galleries of more than ``largest`` models, the most that the law was fitted on, are taken for that size.
    """

    constant: float
    similarity: float
    gap: float
    log_size: float
    limit: float
    largest: int

    def probability(self, first: float, second: float, size: int) -> float:
        """Of the ground being the best match, at even odds before the gather was seen.

        Args:
            first, second: similarities of the two best matches in the whole gallery.
            size: models in it.
        """
        weights = self.constant, self.similarity, self.gap, self.log_size
        return float(expit(np.dot(weights, (1.0, first, first - second, np.log10(min(size, self.largest))))))


def coarse(velocity: Float32, cells: int) -> Float32:
    """``(.., cells, cells)`` block means of velocity models ``(.., depth, x)``, their sides multiples of ``cells``."""
    step = velocity.shape[-1] // cells
    parts = [velocity[..., i::step, j::step] for i in range(step) for j in range(step)]
    return np.asarray(np.mean(parts, axis=0), dtype=np.float32)


def by_structure(predicted: Float32, candidates: Sequence[Float32]) -> list[int]:
    """Order of coarse velocity models by mean absolute difference to the ``(35, 35)`` one that the encoder read from
    the gather, m/s. Of ground that the gallery does not hold, this says more than similarity does."""
    if not len(candidates):
        return []
    far = np.abs(np.stack(candidates) - predicted).mean(axis=(1, 2))
    return [int(i) for i in np.argsort(far, kind="stable")]


def fit_presence(queries: Float32, gallery: Float32, *, seed: int = 0) -> Presence:
    """Fit the law on galleries drawn from ``gallery``, each query with its own row in and left out.

    Args:
        queries: ``(m, 256)`` unit vectors; row i matches row i of the gallery, counted again from 0 after its end. The
            first n are undisturbed; ``limit`` is theirs.
    """
    n = len(gallery)
    cosine = queries @ gallery.T
    own = np.arange(len(queries)) % n
    right = cosine[np.arange(len(queries)), own]
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for size in sorted({min(size, n - 1) for size in SIZES}):
        drawn = rng.permutation(n)[:size]
        for present in (True, False):
            among = np.where(own[:, None] == drawn, -np.inf, cosine[:, drawn])
            if present:
                among[:, 0] = right  # in another's place
            two = -np.partition(-among, 1, axis=1)[:, :2]
            size_log = np.full(len(two), np.log10(size))
            rows.append(np.column_stack([np.ones(len(two)), two[:, 0], two[:, 0] - two[:, 1], size_log]))
            labels.append((two[:, 0] == right) & present)
    x, y = np.concatenate(rows), np.concatenate(labels).astype(np.float64)
    if not y.any():  # encoders that find nothing: nothing is ever there, and similarity ranks as well as anything
        return Presence(NEVER, 0.0, 0.0, 0.0, limit=0.0, largest=SIZES[0])

    def cost(weights: Float64) -> tuple[float, Float64]:
        odds = x @ weights
        loss = np.logaddexp(0.0, odds) - y * odds
        ridge = RIDGE * weights  # pairs that one plane parts have no best law without it
        return float(loss.mean() + ridge @ weights / 2), np.asarray(x.T @ (expit(odds) - y) / len(y) + ridge)

    solved = minimize(cost, np.zeros(x.shape[1]), jac=True, method="BFGS")
    there = np.concatenate([expit(own @ solved.x)[:n] for own, label in zip(rows, labels, strict=True) if label.any()])
    constant, similarity, gap, log_size = map(float, solved.x)
    limit = min(float(np.quantile(there, SACRIFICED)), HIGHEST_LIMIT)
    return Presence(constant, similarity, gap, log_size, limit, largest=min(SIZES[-1], n - 1))
