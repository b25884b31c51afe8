"""The batches of a training run: which pairs each step sees, augmented, made while the step before it runs.

What a step sees depends on (seed, step) alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.networks import Encoders
from seisbind.model.training.augment import augment, whole_batch
from seisbind.model.training.ranks import ALONE, Ranks
from seisbind.model.training.recipe import TrainConfig
from seisbind.model.training.step import Part

RUNS_PER_BATCH = 8  # a batch of hard negatives holds this many runs of similar models
LIKENESS_CELLS = 14  # without an encoder, models are compared by their means over this many cells a side
CHUNK = 500  # models embedded at once
ORDER_STREAM, AUGMENT_STREAM = 0, 1  # independent random streams of one seed


def make_batches(
    pairs: PairSet,
    features: NDArray[np.float32],
    config: TrainConfig,
    first: int,
    last: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Iterator[list[Part]]:
    """This process's parts of the batches ``first``..``last - 1``, made in the background while the step before runs.

    Args:
        pairs: of the run, those of this process's parts (`Ranks.rows`).
        features: from `likeness`, of ``pairs``.
        config: the recipe.
        first, last: steps.
        device: of the batches.
        ranks: the processes of the run.
    """
    own, size = ranks.groups(config.parts), config.batch // config.parts
    per_epoch = ranks.total(len(pairs)) // config.parts // size
    orders: dict[int, list[NDArray[np.intp]]] = {}

    def make(step: int) -> list[Part]:
        epoch, at = divmod(step, per_epoch)
        if epoch not in orders:
            orders.clear()
            orders[epoch] = [
                len(own) * _order(features[i :: len(own)], config, (epoch, group)) + i for i, group in enumerate(own)
            ]
        found = []
        for order, group in zip(orders[epoch], own, strict=True):
            index = torch.from_numpy(order[at * size : (at + 1) * size]).to(pairs.traces.device)
            part = pairs.select(index).to(device)
            batch = whole_batch(part)
            if config.augment is not None:
                generator = torch.Generator(device)
                stream = _stream(config, AUGMENT_STREAM, step, group)
                generator.manual_seed(int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> 1))
                batch = augment(batch, config.augment, generator)
            found.append((batch, part))
        return found

    with ThreadPoolExecutor(1, thread_name_prefix="batches") as background:
        ahead = background.submit(make, first) if first < last else None
        for step in range(first, last):
            if ahead is None:
                return
            ready = ahead.result()
            ahead = background.submit(make, step + 1) if step + 1 < last else None
            yield ready


def _stream(config: TrainConfig, stream: int, step: int, group: int) -> list[int]:
    """The seed of a group's random numbers of a step or an epoch; of one group alone, that of runs without parts."""
    return [config.seed, stream, step] if config.parts == 1 else [config.seed, stream, step, group]


def _order(features: NDArray[np.float32], config: TrainConfig, which: tuple[int, int]) -> NDArray[np.intp]:
    """The order of (epoch, group), in whole parts: a share holds runs of similar models, the rest are random."""
    rng = np.random.default_rng(_stream(config, ORDER_STREAM, *which))
    order, size = rng.permutation(len(features)), config.batch // config.parts
    batches = len(features) // size
    hard = round(config.hard_negatives * batches) * size
    similar, rest = order[:hard], order[hard : batches * size]
    if hard:
        found = runs(features[similar], max(1, size // RUNS_PER_BATCH), rng)
        similar = similar[np.concatenate([found[i] for i in rng.permutation(len(found))])]
    cut = np.concatenate([similar, rest]).reshape(batches, size)
    return np.asarray(cut[rng.permutation(batches)].reshape(-1))


@torch.no_grad()
def likeness(velocity: Tensor, start: Encoders | None) -> NDArray[np.float32]:
    """``(n, features)`` of velocity models ``(n, depth, x)``: those with similar features are hard to tell apart.

    Their embeddings by ``start``; without it, their means over `LIKENESS_CELLS` cells a side, km/s.
    """
    parts = []
    for first in range(0, len(velocity), CHUNK):
        part = velocity[first : first + CHUNK].float()
        if start is None:
            parts.append(F.avg_pool2d(part[:, None] / 1000, max(1, part.shape[-1] // LIKENESS_CELLS)).flatten(1))
        else:
            parts.append(start.embed_velocity(part.to(start.logit_scale.device)))
    return np.asarray(torch.cat(parts).cpu().numpy())


def runs(features: NDArray[np.float32], size: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Partition the rows of ``features`` into runs of ``size`` similar ones; the last run takes what is left.

    Each run is a row drawn at random and the nearest of the rows that are left, so that a model gets other neighbours
    in every epoch.
    """
    squared = np.square(features).sum(axis=1)
    taken = np.zeros(len(features), dtype=bool)
    found: list[NDArray[np.intp]] = []
    for seed in rng.permutation(len(features)):
        if len(features) - size * len(found) < 2 * size:
            break
        if taken[seed]:
            continue
        distance = np.where(taken, np.inf, squared - 2 * (features @ features[seed]))
        run = np.argpartition(distance, size - 1)[:size]
        taken[run] = True
        found.append(run)
    return [*found, np.flatnonzero(~taken)]
