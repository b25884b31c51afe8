"""What a held-out split says of trained encoders: conformal factors and the usual similarity of a right answer."""

from __future__ import annotations

import numpy as np

from seisbind.model.errors import InvalidConfig
from seisbind.model.evaluate import embed, nearest
from seisbind.model.inference import Embedder
from seisbind.model.pairs import PairSet
from seisbind.model.weights_file import Calibration

COVERAGE = 0.9
FEWEST = 10  # pairs below which no order statistic bounds 90 %
UNUSUAL = 0.01  # share of gathers over new but ordinary ground that falls below `Calibration.similarity_low`


def calibrate(embedder: Embedder, pairs: PairSet) -> Calibration:
    """Split conformal prediction (Papadopoulos et al. 2002) on pairs that training never saw.

    The factor of a descriptor is the smallest that lets the head's scale, times it, cover 90 % of the split, with
    the finite-sample correction ``ceil((n + 1) 0.9) / n``.

    Raises:
        InvalidConfig: weights without a descriptor head, or too few pairs.
    """
    embedded = embed(embedder, pairs)
    heads = embedded.gathers
    if heads.descriptors is None or heads.descriptor_scale is None:
        raise InvalidConfig("These weights have no descriptor head to calibrate.")
    n = len(embedded)
    if n < FEWEST:
        raise InvalidConfig(f"{n} pairs are too few for {COVERAGE:.0%} intervals; at least {FEWEST} are needed.")
    level = np.ceil((n + 1) * COVERAGE) / n
    score = np.abs(heads.descriptors - embedded.descriptors) / heads.descriptor_scale
    factors = np.quantile(score, level, axis=0, method="higher")
    # the most similar model that is not the right one: new ground is usual, and must not be called out of distribution
    rows = nearest(heads.embedding, embedded.velocity, 1, leave_out=True)[:, 0]
    similarity = (heads.embedding * embedded.velocity[rows]).sum(axis=1)
    return Calibration(
        half_width=tuple(float(f) for f in factors),
        similarity_low=float(np.quantile(similarity, UNUSUAL)),
        pairs=n,
    )
