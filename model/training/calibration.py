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
from seisbind.model.encoders.embedder import Embedder, EncodedGathers, full_size
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

    Measured on the pairs as they are and, with ``augment``, as training saw them. The interval of a descriptor, or of a
    cell of the read model, is the head's scale times a factor, so chosen that 90 % of the split are covered, and
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
    gathers = [embedded.gathers]
    if augment is not None:
        rough = augmented(pairs, replace(augment, mirror=0.0), seed=1)  # a mirrored gather is not of its own model
        gathers.append(embedder.embed_gathers(rough))
    n = len(embedded)
    if n < MIN_PAIRS:
        raise InvalidConfig(f"{n} pairs are too few for {COVERAGE:.0%} intervals; at least {MIN_PAIRS} are needed.")
    level = np.ceil((n + 1) * COVERAGE) / n
    share = np.concatenate([_family_shares(each) for each in gathers])
    score = np.concatenate([_scores(each, embedded.descriptors) for each in gathers])
    factors = np.column_stack([regression_quantile(np.log(column + 1e-9), share, level) for column in score.T])
    cells = [each for each in (_cell_scores(embedder, each, pairs) for each in gathers) if each is not None]
    cell_factor = regression_quantile(np.log(np.concatenate(cells) + 1e-9), share, level) if cells else ()
    uncertainty = embedder.embed_gathers(seen).uncertainty(embedder.descriptor_spread)
    return Calibration(
        log_factor=tuple(tuple(row) for row in factors.tolist()),
        presence=_presence(embedder, embedded, gathers, others),
        novelty=learn(with_uncertainty(measure(seen), uncertainty)),
        pairs=n,
        log_cell_factor=tuple(np.asarray(cell_factor).tolist()),
    )


def _family_shares(gathers: EncodedGathers) -> Float64:
    """``(n, families)``, or one column of ones without a family head."""
    if gathers.family is None:
        return np.ones((len(gathers.embedding), 1))
    return gathers.family.astype(np.float64)


def _scores(gathers: EncodedGathers, truth: Float32) -> Float32:
    """``(n, 13)`` errors of the descriptors over their stated scales. Raises InvalidConfig without a head."""
    if gathers.descriptors is None or gathers.descriptor_scale is None or gathers.velocity is None:
        raise InvalidConfig("These weights have no heads to calibrate.")
    return np.asarray(np.abs(gathers.descriptors - truth) / gathers.descriptor_scale)


def _cell_scores(embedder: Embedder, gathers: EncodedGathers, pairs: PairSet) -> Float64 | None:
    """``(n,)`` errors of the read model over their stated scales, of one cell of each pair drawn at random."""
    if gathers.velocity is None or gathers.velocity_scale is None:
        return None
    rng = np.random.default_rng(0)
    depth, x = (rng.integers(0, cells, len(pairs)) for cells in embedder.frame.velocity_shape)
    out = np.empty(len(pairs))
    for row, (i, j) in enumerate(zip(depth, x, strict=True)):
        value, scale = (
            full_size(each[row], frame=embedder.frame)[i, j] for each in (gathers.velocity, gathers.velocity_scale)
        )
        out[row] = abs(value - float(pairs.velocity[row, i, j])) / scale
    return out


def _presence(
    embedder: Embedder, embedded: Embedded, gathers: list[EncodedGathers], others: Float32 | None
) -> Presence:
    """The law of `confidence.presence` for these encoders, fitted on gathers with and without augmentation."""
    gallery, models = [embedded.velocity], [embedded.models]
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
