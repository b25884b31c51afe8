"""Calibration of trained encoders on held-out pairs: intervals, presence in a gallery, novelty detection."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.optimize import linprog

from seisbind.model.confidence.novelty import learn, measure, with_uncertainty
from seisbind.model.confidence.presence import SIZES, Presence, coarse, fit_presence
from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.weights_file import Calibration
from seisbind.model.errors import InvalidConfig
from seisbind.model.survey.preparation import Prepared
from seisbind.model.training.augment import AugmentConfig, augmented
from seisbind.model.training.evaluation import Embedded, embed

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COVERAGE = 0.9
MIN_PAIRS = 10  # with fewer, no order statistic bounds 90 %
OTHERS = SIZES[-1]  # further models, enough for the largest gallery that presence is fitted on
SEEN = 8_000  # gathers of training, enough for the ends of their ranges, beyond which one in a thousand lies


def calibrate(
    embedder: Embedder,
    pairs: PairSet,
    *,
    seen: Prepared,
    augment: AugmentConfig | None = None,
    others: Float32 | None = None,
) -> Calibration:
    """Calibrate ``embedder`` on pairs that training never saw.

    The interval of a descriptor is the head's scale times a factor, so chosen that 90 % of the split are covered, and
    90 % within each family as far as the family head recognises it: the logarithm of the factor is linear in the
    families' probabilities, and the line is the 90 % regression quantile (Koenker and Bassett 1978) of the logarithm
    of error over scale. One family, or no family head, makes it split conformal prediction (Papadopoulos et al. 2002).

    Args:
        embedder: the encoders.
        pairs: the held-out split.
        seen: gathers as training saw them (`augment.as_trained`); `SEEN` are enough.
        augment: of training; presence is fitted on the split with and without it.
        others: ``(m, 70, 70)`` further velocity models, m/s, in the galleries that presence is fitted on.

    Raises:
        InvalidConfig: weights without heads on the gathers, or too few pairs.
    """
    embedded = embed(embedder, pairs)
    heads = embedded.gathers
    if heads.descriptors is None or heads.descriptor_scale is None or heads.velocity is None:
        raise InvalidConfig("These weights have no heads to calibrate.")
    n = len(embedded)
    if n < MIN_PAIRS:
        raise InvalidConfig(f"{n} pairs are too few for {COVERAGE:.0%} intervals; at least {MIN_PAIRS} are needed.")
    score = np.abs(heads.descriptors - embedded.descriptors) / heads.descriptor_scale
    share = np.ones((n, 1)) if heads.family is None else heads.family.astype(np.float64)
    level = np.ceil((n + 1) * COVERAGE) / n
    factors = np.column_stack([regression_quantile(np.log(column + 1e-9), share, level) for column in score.T])
    uncertainty = embedder.embed_gathers(seen).uncertainty(embedder.descriptor_spread)
    return Calibration(
        log_factor=tuple(tuple(row) for row in factors.tolist()),
        presence=_presence(embedder, embedded, pairs, augment, others),
        novelty=learn(with_uncertainty(measure(seen), uncertainty)),
        pairs=n,
    )


def _presence(
    embedder: Embedder, embedded: Embedded, pairs: PairSet, augment: AugmentConfig | None, others: Float32 | None
) -> Presence:
    """The law of `confidence.presence` for these encoders, fitted on gathers with and without augmentation."""
    gathers, gallery, models = [embedded.gathers], [embedded.velocity], [embedded.models]
    if augment is not None:
        rough = augmented(pairs, replace(augment, mirror=0.0), seed=1)  # a mirrored gather is not of its own model
        gathers.append(embedder.embed_gathers(rough))
    if others is not None:
        gallery.append(embedder.embed_velocity(others))
        models.append(others)
    read = np.concatenate([each.velocity for each in gathers if each.velocity is not None])
    return fit_presence(
        np.concatenate([each.embedding for each in gathers]),
        read,
        np.concatenate([each.uncertainty(embedder.descriptor_spread) for each in gathers]),
        np.concatenate(gallery),
        np.concatenate([coarse(each, read.shape[-1]) for each in models]),
        pairs=len(embedded),
    )


def regression_quantile(y: Float64, x: Float64, level: float) -> Float64:
    """``(columns,)`` coefficients whose line ``x @ a`` lies above a share ``level`` of ``y`` (n,).

    Solved exactly, as a linear programme. One more point per column, at the quantile of all ``y``, determines the
    coefficients of columns that are zero throughout ``x``.
    """
    plain = float(np.quantile(y, level, method="higher"))
    columns = x.shape[1]
    if columns == 1:
        return np.array([plain])
    x, y = np.concatenate([x, np.eye(columns)]), np.concatenate([y, np.full(columns, plain)])
    n = len(y)
    above, below = scipy.sparse.eye_array(n), -scipy.sparse.eye_array(n)
    cost = np.concatenate([np.zeros(columns), np.full(n, level), np.full(n, 1 - level)])
    bounds = [(None, None)] * columns + [(0, None)] * (2 * n)
    solved = linprog(cost, A_eq=scipy.sparse.hstack([x, above, below]), b_eq=y, bounds=bounds, method="highs")
    return np.asarray(solved.x[:columns])
