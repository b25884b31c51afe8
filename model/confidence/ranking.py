"""The order of a gather's matches, and the probability that its true velocity model is in the gallery.

The engine answers by this function and `training.evaluation` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seisbind.model.confidence.novelty import Verdict
from seisbind.model.confidence.presence import Evidence, Presence, structure_difference

Float32 = NDArray[np.float32]
Key = TypeVar("Key")  # of a model in the gallery: a hit, or its row

CANDIDATES = 30  # most similar models that are ordered by structure


@dataclass(frozen=True, slots=True)
class Ranking:
    """How one gather's matches are ordered.

    Attributes:
        order: positions among its candidates, best first.
        by_structure: whether the first `CANDIDATES` were put in the order of their `structure_difference`.
        in_gallery: probability that the best match is the true model; None where that is unknown.
        withheld: ``in_gallery`` is None because the gather is unlike those of training, on which the law was fitted.
    """

    order: list[int]
    by_structure: bool
    in_gallery: float | None
    withheld: bool


def rank(
    candidates: Sequence[Sequence[Key]],
    *,
    best: Sequence[Key],
    similarity: NDArray[np.floating],
    size: int,
    read: Float32 | None,
    uncertainty: Float32,
    presence: Presence | None,
    novelty: Sequence[Verdict] | None,
    models: Callable[[Sequence[Key]], Float32],
) -> list[Ranking]:
    """Rank the candidates of ``n`` gathers.

    Where the true model counts as absent (`Presence.is_new`), the first `CANDIDATES` are ordered by their difference
    to the model that was read, which then says more than similarity does; otherwise they stay as they are.

    Args:
        candidates: of each gather, most similar first; a filter may have left out some models, or all.
        best: of each gather, the most similar model in the whole gallery.
        similarity: ``(n, 2)`` of the two most similar in the whole gallery; fewer columns where it holds fewer.
        size: models in the whole gallery.
        read: ``(n, depth, x)`` coarse velocity models read from the gathers, m/s; None from encoders without that head.
        uncertainty: ``(n,)`` of the reading.
        presence: the fitted law; None where the weights are not calibrated.
        novelty: of each gather; None where the weights are not calibrated.
        models: gives the coarse velocity models ``(m, depth, x)``, m/s, of ``m`` keys.
    """
    n = len(candidates)
    if presence is None or read is None or similarity.shape[1] < 2:
        return [Ranking(list(range(len(keys))), False, None, False) for keys in candidates]
    difference = structure_difference(read, models(best))
    probability = presence.probability(Evidence(similarity[:, 0], similarity[:, 1], difference, uncertainty, size))
    is_new = presence.is_new(probability)
    moved = [i for i in range(n) if is_new[i] and len(candidates[i])]
    orders = [list(range(len(keys))) for keys in candidates]
    if moved:
        firsts = [candidates[i][:CANDIDATES] for i in moved]
        found = models([key for keys in firsts for key in keys])
        for i, coarse in zip(moved, np.split(found, np.cumsum([len(keys) for keys in firsts])[:-1]), strict=True):
            orders[i][: len(coarse)] = np.argsort(structure_difference(read[i], coarse), kind="stable").tolist()
    withheld = [novelty is not None and not novelty[i].likely and not np.isnan(probability[i]) for i in range(n)]
    return [
        Ranking(
            order=orders[i],
            by_structure=i in moved,
            in_gallery=None if withheld[i] or np.isnan(probability[i]) else float(probability[i]),
            withheld=withheld[i],
        )
        for i in range(n)
    ]
