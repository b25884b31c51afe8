"""Making an approximate index whose recall was measured: how many lists to look through, and what that finds.

Sample queries are not vectors that are stored, which any index finds: they lie as far from one as embeddings of
records do from those of their ground, or of changed maps from those of the maps. Some choose the number of probes;
others, which chose nothing, give the recall that is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seisbind.index.approximate.info import DEPTH, FLOOR, ApproximateInfo
from seisbind.index.approximate.lists import Lists
from seisbind.index.storage.record import Float32, Int64

SEED = 23
SAMPLES = 600  # queries that choose; as many measure
ACROSS = 0.9  # cosine between a third of the queries and a stored vector, in a direction in which two vectors differ
ANYWHERE = (0.5, 0.25)  # and between the others and one, in any direction: with their grounds, records have about .52
KINDS = 1 + len(ANYWHERE)
MARGIN = 0.003  # that the queries that choose have to find beyond `FLOOR`
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tried in this order
RECORDS = 4  # times as many are looked through: modelled records needed three times those of sample queries to find .99
CANDIDATES = 64  # ranked exactly for a query
DEEPEST = 30  # matches of a search: as many as are ordered by structure for each gather
FILTERED_SAMPLES = 40  # queries under each filter: each is multiplied with all vectors that are allowed
CHUNK = 16_384  # vectors multiplied at a time
SHARES = (0.1, 1.0, 10.0, 50.0)  # per cent of the models that a filter allows

Bool = NDArray[np.bool_]
Found = list[Int64]  # of each query, positions, best first


@dataclass(frozen=True, slots=True)
class Source:
    """The vectors that an index is made of, by position.

    Attributes:
        vectors_at: of positions, ``(len(positions), dimension)``.
        exact: the k nearest of each query among those allowed, as a filtered search finds them.
        best_of: the k nearest of each query among its candidates.
    """

    count: int
    dimension: int
    vectors_at: Callable[[Int64], Float32]
    exact: Callable[[Float32, int, Bool | None], Found]
    best_of: Callable[[Float32, Int64, int], Found]


def build(source: Source) -> tuple[Lists, ApproximateInfo]:
    """Lists of all vectors, with the fewest probes that find enough, and what was measured of them."""
    lists = Lists.build(source.vectors_at, source.count, source.dimension)
    rng = np.random.default_rng(SEED)
    choosing, measuring = (sample_queries(source, SAMPLES, rng) for _ in range(2))
    probes = min(RECORDS * _fewest_probes(lists, source, choosing), lists.count)
    size = 0

    def count(part: bytes) -> None:
        nonlocal size
        size += len(part)

    lists.dump(count)
    info = ApproximateInfo(
        source.count, lists.count, probes, CANDIDATES, DEEPEST, size, 0.0, 0.0, {}, len(measuring), served=False
    )
    found = source.best_of(measuring, lists.candidates(measuring, probes=probes, count=CANDIDATES), DEEPEST)
    truth = source.exact(measuring, DEEPEST, None)
    filtered = {f"{share:g}": _recall_filtered(source, measuring, share, rng) for share in SHARES}
    info = replace(
        info, recall=least_recall(found, truth, DEPTH), recall_deepest=recall(found, truth, DEEPEST), filtered=filtered
    )
    return lists, replace(info, served=min(info.recall, info.recall_deepest, *filtered.values()) >= FLOOR)


def _fewest_probes(lists: Lists, source: Source, queries: Float32) -> int:
    """The fewest of `PROBES` that find `FLOOR` and `MARGIN` of the nearest; the most if none does."""
    truth = source.exact(queries, DEEPEST, None)
    wanted = FLOOR + MARGIN
    for probes in PROBES:
        found = source.best_of(queries, lists.candidates(queries, probes=probes, count=CANDIDATES), DEEPEST)
        if min(least_recall(found, truth, DEPTH), recall(found, truth, DEEPEST)) >= wanted or probes >= lists.count:
            break
    return min(probes, lists.count)


def _recall_filtered(source: Source, queries: Float32, share: float, rng: np.random.Generator) -> float:
    """Under a random filter, as it is searched: exactly. Compared with the products of all that it allows."""
    allowed = rng.random(source.count) < share / 100
    few = queries[:: max(1, len(queries) // FILTERED_SAMPLES)]
    return recall(source.exact(few, DEPTH, allowed), _by_products(source, few, allowed), DEPTH)


def _by_products(source: Source, queries: Float32, allowed: Bool) -> Found:
    """The `DEPTH` nearest among those allowed, by all products in float64."""
    positions, exact = np.flatnonzero(allowed), queries.astype(np.float64)
    best, at = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(positions), CHUNK):
        part = positions[start : start + CHUNK]
        products = exact @ source.vectors_at(part).astype(np.float64).T
        best = np.concatenate([best, products], axis=1)
        at = np.concatenate([at, np.broadcast_to(part, products.shape)], axis=1)
        order = np.argsort(-best, axis=1, kind="stable")[:, :DEPTH]
        best, at = np.take_along_axis(best, order, 1), np.take_along_axis(at, order, 1)
    return list(at)


def least_recall(found: Found, truth: Found, depth: int) -> float:
    """`recall` of the kind of sample queries of which it is least."""
    return min(recall(found[kind::KINDS], truth[kind::KINDS], depth) for kind in range(KINDS))


def recall(found: Found, truth: Found, depth: int) -> float:
    """The share of the true ``depth`` nearest that was found as such; 1 where there are none."""
    pairs = [(set(a[:depth].tolist()), set(b[:depth].tolist())) for a, b in zip(found, truth, strict=True)]
    wanted = sum(len(b) for _, b in pairs)
    return sum(len(a & b) for a, b in pairs) / wanted if wanted else 1.0


def sample_queries(source: Source, count: int, rng: np.random.Generator) -> Float32:
    """Unit vectors ``(count, dimension)``, a third each at `ACROSS` and both of `ANYWHERE` from stored ones."""
    at, first, second = (rng.integers(source.count, size=count) for _ in range(3))
    vectors, one, other = (source.vectors_at(each).astype(np.float64) for each in (at, first, second))
    kind = np.arange(count)[:, None] % KINDS
    across = np.where(kind == 0, one - other, rng.standard_normal(vectors.shape))
    across -= (across * vectors).sum(axis=1, keepdims=True) * vectors
    length = np.linalg.norm(across, axis=1, keepdims=True)
    across /= np.where(length > 0, length, 1.0)
    cosine = np.array([ACROSS, *ANYWHERE])[kind]
    found = cosine * vectors + np.sqrt(1 - cosine**2) * across
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)
