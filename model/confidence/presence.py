"""The probability that the best match is the true velocity model of a gather, and not merely a similar one.

A cosine is not a probability: what counts as close depends on the number of models in the gallery, on how far the
second best falls behind, on how well the gather could be read, and on whether the best match looks like the model
that was read. A logistic law over these is fitted on held-out pairs, at even odds. It holds for records like those of
training; for any other record its probability is not reported, and only decides the order of the matches (`ranking`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SIZES = (100, 300, 1_000, 3_000, 10_000, 30_000)  # galleries drawn to fit the law, up to the number of models
LIMIT = 0.2  # below it the true model counts as absent, as under 1 % of those in galleries of 1,000 do
RIDGE = 1e-6
NEVER = -20.0  # log odds
BATCH = 500  # gathers compared with a whole gallery at once


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the probability of presence depends on, of ``n`` gathers.

    Attributes:
        first, second: ``(n,)`` similarities of the two best matches in the whole gallery.
        structure_difference: ``(n,)`` between the best match and the model read from the gather, m/s.
        uncertainty: ``(n,)`` of the reading, `embedder.EncodedGathers.uncertainty`.
        size: models in the gallery.
    """

    first: NDArray[np.floating]
    second: NDArray[np.floating]
    structure_difference: NDArray[np.floating]
    uncertainty: NDArray[np.floating]
    size: int

    def columns(self, largest: int) -> Float64:
        """``(n, 6)``: the terms of `Presence`'s law, in the order of its sentence."""
        size = np.full(len(self.first), np.log10(min(max(self.size, 1), largest)))
        difference = np.log(np.maximum(self.structure_difference, 1.0))
        ones = np.ones(len(self.first))
        columns = [ones, self.first, self.first - self.second, size, difference, self.uncertainty]
        return np.column_stack(columns).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Presence:
    """Logistic law: log odds = ``constant`` + ``similarity`` s1 + ``gap`` (s1 - s2) + ``log_size`` log10(models)
    + ``log_structure_difference`` ln(difference / 1 m/s) + ``uncertainty`` u, with the terms of `Evidence`.

    Below the probability ``limit`` the true model counts as absent. Galleries of more than ``largest`` models, the
    most that the law was fitted on, count as that size.
    """

    constant: float
    similarity: float
    gap: float
    log_size: float
    limit: float
    largest: int
    log_structure_difference: float = 0.0
    uncertainty: float = 0.0

    def probability(self, evidence: Evidence) -> Float64:
        """``(n,)`` that the best match is the true model, at even odds before the gather was seen."""
        weights = np.array(
            [
                self.constant,
                self.similarity,
                self.gap,
                self.log_size,
                self.log_structure_difference,
                self.uncertainty,
            ]
        )
        return np.asarray(expit(evidence.columns(self.largest) @ weights))

    def is_new(self, probability: Float64) -> NDArray[np.bool_]:
        """``(n,)``: gathers whose true model counts as absent, so that structure orders their matches.

        NaN, which is unknown, does not. Records unlike those of training are ordered by the same rule: for them, too,
        it finds closer models than similarity does where the true one is absent (``benchmarks/garbage.py``).
        """
        return np.asarray(probability < self.limit)


def coarse(velocity: Float32, cells: int) -> Float32:
    """``(.., cells, cells)`` block means of velocity models ``(.., depth, x)``, their sides multiples of ``cells``."""
    step = velocity.shape[-1] // cells
    parts = [velocity[..., i::step, j::step] for i in range(step) for j in range(step)]
    return np.asarray(np.mean(parts, axis=0), dtype=np.float32)


def structure_difference(read: Float32, models: Float32) -> Float32:
    """``(..,)`` mean absolute differences, m/s, of coarse velocity models ``(.., cells, cells)``."""
    return np.asarray(np.abs(models - read).mean(axis=(-2, -1)))


def fit_presence(
    queries: Float32,
    read: Float32,
    uncertainty: Float32,
    gallery: Float32,
    models: Float32,
    *,
    pairs: int,
    seed: int = 0,
) -> Presence:
    """Fit the law on galleries drawn from ``gallery``, each query with its own row in and left out.

    Args:
        queries: ``(m, 256)`` unit vectors; row i matches row i of the gallery, counted again from 0 after ``pairs``.
        read: ``(m, cells, cells)`` coarse velocity models that were read from the same gathers, m/s.
        uncertainty: ``(m,)`` of that reading.
        gallery: ``(n, 256)`` unit vectors; those after the first ``pairs`` match no query.
        models: ``(n, cells, cells)`` coarse velocity models, m/s, of the gallery.
    """
    own = np.arange(len(queries)) % pairs
    right = np.einsum("qd,qd->q", queries, gallery[own])
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for size in sorted({min(size, len(gallery) - 1) for size in SIZES}):
        drawn = rng.permutation(len(gallery))[:size]
        chosen = gallery[drawn]
        for start in range(0, len(queries), BATCH):
            part = slice(start, start + BATCH)
            among = queries[part] @ chosen.T
            among[own[part, None] == drawn] = -np.inf
            for present in (False, True):
                if present:
                    among[:, 0] = right[part]  # in another's place
                two = -np.partition(-among, 1, axis=1)[:, :2]
                found = (two[:, 0] == right[part]) & present
                best = np.where(found, own[part], drawn[among.argmax(axis=1)])
                difference = structure_difference(read[part], models[best])
                rows.append(Evidence(two[:, 0], two[:, 1], difference, uncertainty[part], size).columns(size))
                labels.append(found)
    x, y = np.concatenate(rows), np.concatenate(labels).astype(np.float64)
    if not y.any():  # encoders that never find the true model: it counts as absent, ranking stays by similarity
        return Presence(NEVER, 0.0, 0.0, 0.0, limit=0.0, largest=SIZES[0])

    def cost(weights: Float64) -> tuple[float, Float64]:
        odds = x @ weights
        loss = np.logaddexp(0.0, odds) - y * odds
        ridge = RIDGE * weights  # separable pairs have no finite optimum without it
        return float(loss.mean() + ridge @ weights / 2), np.asarray(x.T @ (expit(odds) - y) / len(y) + ridge)

    solved = minimize(cost, np.zeros(x.shape[1]), jac=True, method="BFGS")
    constant, similarity, gap, log_size, *reading = map(float, solved.x)
    largest = min(SIZES[-1], len(gallery) - 1)
    return Presence(constant, similarity, gap, log_size, LIMIT, largest, *reading)
