"""What trained encoders can be held to: conformal factors from a held-out split, the looks of what training saw."""

from __future__ import annotations

import numpy as np

from seisbind.model.errors import InvalidConfig
from seisbind.model.evaluate import embed
from seisbind.model.familiarity import learn, measure
from seisbind.model.inference import Embedder
from seisbind.model.pairs import PairSet
from seisbind.model.survey import Prepared
from seisbind.model.weights_file import Calibration

COVERAGE = 0.9
FEWEST = 10  # pairs below which no order statistic bounds 90 %
SEEN = 2_000  # gathers of training that are enough for 0.5 % quantiles


def calibrate(embedder: Embedder, pairs: PairSet, *, seen: Prepared) -> Calibration:
    """Split conformal prediction (Papadopoulos et al. 2002) on pairs that training never saw.

    The factor of a descriptor is the smallest that lets the head's scale, times it, cover 90 % of the split, with
    the finite-sample correction ``ceil((n + 1) 0.9) / n``.

    Args:
        embedder: the encoders.
        pairs: the held-out split.
        seen: gathers as training saw them (`augment.as_trained`); `SEEN` are enough.

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
    familiar = learn(measure(seen, embedder.embed_gathers(seen).doubt(embedder.descriptor_spread)))
    return Calibration(half_width=tuple(float(f) for f in factors), familiar=familiar, pairs=n)
