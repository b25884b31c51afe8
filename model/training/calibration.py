"""Calibration of trained encoders on held-out pairs: intervals, presence in a gallery, novelty detection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from scipy.optimize import linprog

from seisbind.model.confidence.intervals import departures, shot_distance
from seisbind.model.confidence.novelty import OF_RECORD, learn, learn_foreign, measure, scores
from seisbind.model.confidence.presence import SIZES, Presence, coarse, fit_presence
from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.embedder import Embedder, EncodedGathers, full_size
from seisbind.model.encoders.weights_file import Calibration
from seisbind.model.errors import InvalidConfig
from seisbind.model.survey.preparation import Prepared, place_prepared
from seisbind.model.training.augment import AugmentConfig, augmented
from seisbind.model.training.evaluation import as_prepared, check_frame

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

COVERAGE = 0.9
ROUNDS = 2  # of both steps of the fit; a third changed no coverage of the shipped weights' pairs by .004
PART = 1_000  # pairs that are encoded at a time
MIN_PAIRS = 10  # with fewer, no order statistic bounds 90 %
OTHERS = SIZES[-1]  # further models, enough for the largest gallery that presence is fitted on
SEEN = 8_000  # gathers of training, enough for the ends of their ranges, beyond which one in a thousand lies
# Weights in the fit of what departures add: of ground that readings were trained over, of other ground, both as
# recorded, and of both as training saw them
FAMILIAR, FOREIGN, AUGMENTED = 0.3, 0.5, 0.2
LEAST = 1e-6  # cost of a coefficient, so that those of measures that never depart are zero


def calibrate(
    embedder: Embedder,
    pairs: PairSet,
    *,
    seen: Prepared | None,
    augment: AugmentConfig | None = None,
    others: Float32 | None = None,
    kept: Calibration | None = None,
    own_line: NDArray[np.bool_] | None = None,
) -> Calibration:
    """Calibrate ``embedder`` on pairs that training never saw.

    The interval of a descriptor, or of a cell of the read model, is the head's scale times a factor (see
    `confidence.intervals`) that is fitted in two steps. First on the pairs of the frame's own line as they are, of
    ground that the readings were trained over: 90 % of them are covered, and 90 % within each family as far as the
    family head recognises it; the logarithm of the factor is linear in the families' probabilities, and the line is the
    90 % regression quantile (Koenker and Bassett 1978) of the logarithm of error over scale. One family, or no family
    head, makes it split conformal prediction (Papadopoulos et al. 2002). Then, where there are others, on all pairs, as
    they are and as training saw them: what departures from the ranges of training add, never less than nothing.
    Familiar ground departs a little, too, so the first is fitted again with what that adds there, and so on, `ROUNDS`
    times.

    Args:
        embedder: the encoders.
        pairs: the held-out split.
        seen: gathers as training saw them (`augment.as_trained`); `SEEN` are enough. None where ``kept`` is given.
        augment: of training.
        others: ``(m, 70, 70)`` further velocity models, m/s, in the galleries that presence is fitted on.
        kept: of encoders whose readings these have, to the bit: its presence and its ranges of what is measured are
            taken over, and what is fitted here is the intervals and the range of ground that is not foreign.
        own_line: ``(n,)`` which pairs the frame's own line recorded; all, where none is said to be of another. Of the
            others only what departures add is fitted: as a part of the first step they made the ten families'
            intervals too wide, those of layered ground most.

    Raises:
        InvalidConfig: weights without heads on the gathers, too few pairs, ``own_line`` of another length, or neither
            ``seen`` nor ``kept``.
        DatasetError: see `evaluation.check_frame`.
    """
    encoded = [_encode(embedder, pairs, lambda part, _: as_prepared(part))]
    if augment is not None:
        unmirrored = replace(augment, mirror=0.0)  # a mirrored gather is not of its own model
        encoded.append(
            _encode(embedder, pairs, lambda part, first: place_prepared(augmented(part, unmirrored, seed=1 + first)))
        )
    gathers = [each.gathers for each in encoded]
    descriptors = pairs.descriptors.cpu().numpy()
    config = embedder.weights.description.config
    familiar = np.isin(pairs.family_names(), config.families) if any(config.foreign) else np.ones(len(pairs), bool)
    if own_line is not None and len(own_line) != len(pairs):
        raise InvalidConfig(f"own_line tells of {len(own_line)} pairs whose line they are; there are {len(pairs)}.")
    usual = familiar if own_line is None else familiar & own_line
    if usual.sum() < MIN_PAIRS:
        raise InvalidConfig(
            f"{usual.sum()} pairs are too few for {COVERAGE:.0%} intervals; at least {MIN_PAIRS} are needed."
        )
    values = [embedder.measures(each.measured, each.gathers) for each in encoded]
    if kept is not None:
        novelty = kept.novelty
    elif seen is not None:
        novelty = learn(embedder.measures(measure(seen), embedder.embed_gathers(seen))[:, : OF_RECORD + 1])
    else:
        raise InvalidConfig("A calibration needs gathers as training saw them, or another one to go on from.")
    if any(config.foreign):
        novelty = learn_foreign(novelty, np.concatenate([each[familiar, -1] for each in values]))
    disturbed = np.zeros((len(gathers) - 1) * len(pairs), bool)
    usual, clean, foreign = (np.concatenate([each, disturbed]) for each in (usual, familiar, ~familiar))
    share = np.concatenate([_family_shares(each) for each in gathers])
    departed = departures(
        np.concatenate([scores(each, novelty) for each in values]), np.concatenate([each.distance for each in encoded])
    )
    y = np.log(np.concatenate([_scores(each, descriptors) for each in gathers]) + 1e-9)
    if usual.all():
        departed = departed[:, :0]
    base, excess = _fitted(y, share, departed, usual, clean, foreign)
    cells = [each for each in (_cell_scores(embedder, each, pairs) for each in gathers) if each is not None]
    cell_y = np.log(np.concatenate(cells) + 1e-9)[:, None] if cells else np.empty((len(y), 0))
    cell_base, cell_excess = _fitted(cell_y, share, departed, usual, clean, foreign)
    return Calibration(
        log_factor=_rows(base),
        presence=_presence(embedder, pairs, gathers, others) if kept is None else kept.presence,
        novelty=novelty,
        pairs=len(pairs),
        log_cell_factor=tuple(cell_base.ravel().tolist()),
        log_excess=_rows(excess),
        log_cell_excess=tuple(cell_excess.ravel().tolist()),
    )


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Gathers of all pairs: what is read, `novelty.measure` and `shot_distance`."""

    gathers: EncodedGathers
    measured: Float64
    distance: Float64


def _encode(embedder: Embedder, pairs: PairSet, prepare: Callable[[PairSet, int], Prepared]) -> _Encoded:
    """Part by part, for all of a set at once are gigabytes; ``prepare`` has a part and the number of its first pair."""
    check_frame(embedder, pairs)
    parts = []
    for first in range(0, len(pairs), PART):
        prepared = prepare(pairs.select(range(first, min(first + PART, len(pairs)))), first)
        parts.append((embedder.embed_gathers(prepared), measure(prepared), shot_distance(prepared)))
    gathers, measured, distance = zip(*parts, strict=True)
    return _Encoded(EncodedGathers.joined(gathers), np.concatenate(measured), np.concatenate(distance))


def _fitted(
    y: Float64,
    share: Float64,
    departed: Float64,
    usual: NDArray[np.bool_],
    clean: NDArray[np.bool_],
    foreign: NDArray[np.bool_],
) -> tuple[Float64, Float64]:
    """``(families, columns)`` and ``(departures, columns)`` for logarithms ``y`` (n, columns) of errors over scales.

    ``usual`` (n,): familiar ground as the frame's own line records it; ``clean``: as any line does; ``foreign`` ground.
    """
    base, excess = _by_family(y, share, departed, usual), np.empty((0, y.shape[1]))
    for _ in range(ROUNDS if departed.shape[1] else 0):
        excess = _by_departure(y - share @ base, departed, clean, foreign)
        base = _by_family(y - departed @ excess, share, departed[:, :0], usual)
    return base, excess


def _rows(matrix: Float64) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())


def _by_family(y: Float64, share: Float64, departed: Float64, usual: NDArray[np.bool_]) -> Float64:
    """``(families, columns)`` for logarithms ``y`` (n, columns) of errors over scales, where ``usual`` (n,).

    What departs even there, such as another source, is told apart by columns of its own.
    """
    count, families = int(usual.sum()), share.shape[1]
    level = np.ceil((count + 1) * COVERAGE) / count
    x = np.column_stack([share, departed])[usual]
    fitted = [regression_quantile(column, x, level)[:families] for column in y[usual].T]
    return np.column_stack(fitted) if fitted else np.empty((families, 0))


def _by_departure(y: Float64, departed: Float64, clean: NDArray[np.bool_], foreign: NDArray[np.bool_]) -> Float64:
    """``(departures, columns)`` that departures add to what the families say."""
    weight = np.where(clean, FAMILIAR / clean.sum(), 0.0)
    others = [each for each in ((foreign, FOREIGN), (~clean & ~foreign, AUGMENTED)) if each[0].any()]
    for group, share in others:
        weight[group] = (1 - FAMILIAR) * share / sum(each for _, each in others) / group.sum()
    fitted = [least_excess(column, departed, weight, COVERAGE) for column in y.T]
    return np.column_stack(fitted) if fitted else np.empty((departed.shape[1], 0))


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


def _presence(embedder: Embedder, pairs: PairSet, gathers: list[EncodedGathers], others: Float32 | None) -> Presence:
    """The law of `confidence.presence` for these encoders, fitted on gathers with and without augmentation."""
    models = [pairs.velocity.cpu().numpy(), *([] if others is None else [others])]
    read = np.concatenate([each.velocity for each in gathers if each.velocity is not None])
    return fit_presence(
        np.concatenate([each.embedding for each in gathers]),
        read,
        np.concatenate([each.uncertainty(embedder.descriptor_spread) for each in gathers]),
        np.concatenate([embedder.embed_velocity(each) for each in models]),
        np.concatenate([coarse(each, read.shape[-1]) for each in models]),
        pairs=len(pairs),
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


def least_excess(y: Float64, x: Float64, weight: Float64, level: float) -> Float64:
    """``(columns,)`` coefficients, none below zero, of the regression quantile of ``y`` (n,), weighted (n,).

    By the dual linear programme, which has one variable a row, between bounds, and one constraint a column.
    """
    scale = len(y) * weight / weight.sum()  # of order 1, as the solver's tolerances are
    bounds = np.column_stack([(level - 1) * scale, level * scale])
    solved = linprog(-y, A_ub=x.T, b_ub=np.full(x.shape[1], LEAST), bounds=bounds, method="highs")
    return np.asarray(np.maximum(-solved.ineqlin.marginals, 0.0))
