"""Making an approximate index whose recall was measured: how many lists to look through, and what that finds.

Sample queries are not vectors that are stored, which any index finds: they lie as far from one as embeddings of
records do from those of their ground, or of changed maps from those of the maps, and like those in the space of few
dimensions that stored ones lie in. Some choose the numbers of probes and of candidates; others, which chose nothing,
give the recall that is recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seisbind.index.approximate.info import DEPTH, FLOOR, ApproximateInfo
from seisbind.index.approximate.lists import Lists, principal
from seisbind.index.storage.record import Float32, Int64

SEED = 23
SAMPLES = 600  # queries that choose; as many measure
ACROSS = 0.9  # cosine between a third of the queries and a stored vector, in a direction in which two vectors differ
# And between the others and one, in any direction of the space of stored ones. Modelled records have about .55 with
# their grounds there, and .96 of their length (`benchmarks/approximate.py`).
WITHIN = (0.5, 0.35)
KINDS = 1 + len(WITHIN)
MARGIN = 0.003  # that the queries that choose have to find beyond `FLOOR`
PROBES = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tried in this order
RECORDS = 2  # times as many are looked through, for records that are harder than sample queries
CANDIDATES = (64, 96, 128, 192, 256, 384, 512, 768)  # ranked exactly for a query, tried in this order
CHANCE = 1.5  # times as many are ranked, since other queries than those that choose may need more
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
    directions = principal(source.vectors_at, source.count)
    lists = Lists.build(source.vectors_at, source.count, directions)
    rng = np.random.default_rng(SEED)
    probes, candidates = _fewest(lists, source, sample_queries(source, directions, SAMPLES, rng))
    size = 0

    def count(part: bytes) -> None:
        nonlocal size
        size += len(part)

    lists.dump(count)
    info = ApproximateInfo(
        source.count, lists.count, probes, candidates, DEEPEST, size, 0.0, 0.0, {}, SAMPLES, served=False
    )
    while True:
        info = _measured(info, lists, source, sample_queries(source, directions, SAMPLES, rng), rng)
        if info.served or info.probes == lists.count:
            return lists, info
        # by chance those that chose were easy: others, which choose nothing, measure more of it
        info = replace(info, probes=min(2 * info.probes, lists.count), candidates=2 * info.candidates)


def _measured(
    info: ApproximateInfo, lists: Lists, source: Source, queries: Float32, rng: np.random.Generator
) -> ApproximateInfo:
    found = source.best_of(queries, lists.candidates(queries, probes=info.probes, count=info.candidates), DEEPEST)
    truth = source.exact(queries, DEEPEST, None)
    least, deepest = least_recall(found, truth, DEPTH), recall(found, truth, DEEPEST)
    filtered = {f"{share:g}": _recall_filtered(source, queries, share, rng) for share in SHARES}
    served = min(least, deepest, *filtered.values()) >= FLOOR
    return replace(info, recall=least, recall_deepest=deepest, filtered=filtered, served=served)


def _fewest(lists: Lists, source: Source, queries: Float32) -> tuple[int, int]:
    """How many lists to look through, and how many of their vectors to rank exactly.

    `RECORDS` times the fewest of `PROBES` that find `FLOOR` and `MARGIN` of the nearest with the most of `CANDIDATES`,
    and then `CHANCE` times the fewest of these that still find as much; the most where none does.
    """
    truth = source.exact(queries, DEEPEST, None)

    def enough(probes: int, candidates: int) -> bool:
        found = source.best_of(queries, lists.candidates(queries, probes=probes, count=candidates), DEEPEST)
        return min(least_recall(found, truth, DEPTH), recall(found, truth, DEEPEST)) >= FLOOR + MARGIN

    tried = [*(each for each in PROBES if each < lists.count), lists.count]
    fewest = next((each for each in tried if enough(each, CANDIDATES[-1])), lists.count)
    probes = min(RECORDS * fewest, lists.count)
    return probes, int(CHANCE * next((each for each in CANDIDATES if enough(probes, each)), CANDIDATES[-1]))


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


def sample_queries(source: Source, directions: Float32, count: int, rng: np.random.Generator) -> Float32:
    """Unit vectors ``(count, dimension)``, a third each at `ACROSS` and both of `WITHIN` from stored ones.

    Args:
        directions: ``(kept, dimension)``, of the space that stored vectors lie in, orthogonal.
    """
    at, first, second = (rng.integers(source.count, size=count) for _ in range(3))
    vectors, one, other = (source.vectors_at(each).astype(np.float64) for each in (at, first, second))
    kind = np.arange(count)[:, None] % KINDS
    across = np.where(kind == 0, one - other, rng.standard_normal((count, len(directions))) @ directions)
    across -= (across * vectors).sum(axis=1, keepdims=True) * vectors
    length = np.linalg.norm(across, axis=1, keepdims=True)
    across /= np.where(length > 0, length, 1.0)
    cosine = np.array([ACROSS, *WITHIN])[kind]
    found = cosine * vectors + np.sqrt(1 - cosine**2) * across
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)
