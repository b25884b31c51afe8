"""Searches in an approximate index: the best of its candidates by their exact similarities, and of all others."""

from __future__ import annotations

import numpy as np

from seisbind.index.approximate.lists import StoredLists
from seisbind.index.approximate.recall import Source
from seisbind.index.scanning.codes import Float64
from seisbind.index.scanning.shortlist import SLACK, Bool
from seisbind.index.search.vectors import VectorIndex
from seisbind.index.storage.record import Float32, Int64

Ranked = tuple[Int64, Float64]


def best_of(index: VectorIndex, queries: Float32, candidates: Int64, k: int) -> list[Ranked]:
    """For each query positions and similarities of the k best of its candidates, as `VectorIndex.search` returns them.

    Args:
        queries: ``(query, dimension)`` float32, unit length.
        candidates: ``(query, candidate)`` positions, each once a query; -1 for none.
    """
    rough = index.products(queries, candidates)
    rough[candidates < 0] = -np.inf
    kth = np.full((len(rough), 1), -np.inf, np.float32)
    if rough.shape[1] > k:
        kth = np.partition(rough, -k, axis=1)[:, -k, None]
    # `products` are off by less than that much, on either side
    query, at = np.nonzero((rough >= kth - SLACK - 4 * index.rounding) & (candidates >= 0))
    position = candidates[query, at]
    similarity = index.similarities(queries.astype(np.float64), query, position)
    return first_of(len(queries), k, query, position, similarity)


def search_lists(index: VectorIndex, lists: StoredLists, queries: Float32, k: int, alive: Bool | None) -> list[Ranked]:
    """The k best of each query among the candidates of ``lists`` and all vectors that they do not hold.

    Where more than half of a query's candidates are removed ones, it is searched exactly.
    """
    held = lists.info.models
    candidates = lists.candidates(queries)
    if alive is not None:
        candidates = np.where((candidates >= 0) & alive[candidates], candidates, -1)
    found = best_of(index, queries, candidates, k)
    if len(index) > held:
        found = merged(found, index.search(queries, k, allowed=alive, first=held), k)
    few = np.flatnonzero((candidates >= 0).sum(axis=1) < min(candidates.shape[1] // 2, held))
    if len(few):
        for number, exact in zip(few.tolist(), index.search(queries[few], k, allowed=alive), strict=True):
            found[number] = exact
    return found


def source_of(index: VectorIndex, alive: Bool) -> Source:
    """What an approximate index of the vectors that are ``alive`` is made of and measured by; positions are among
    those."""
    kept = np.flatnonzero(alive)

    def exact(queries: Float32, k: int, allowed: Bool | None) -> list[Int64]:
        mask = alive
        if allowed is not None:
            mask = np.zeros(len(alive), np.bool_)
            mask[kept[allowed]] = True
        found = index.search(queries, k, allowed=None if mask.all() else mask)
        return [np.searchsorted(kept, positions) for positions, _ in found]

    def best(queries: Float32, candidates: Int64, k: int) -> list[Int64]:
        found = best_of(index, queries, np.where(candidates < 0, -1, kept[candidates]), k)
        return [np.searchsorted(kept, positions) for positions, _ in found]

    return Source(len(kept), index.dimension, lambda positions: index.vectors_at(kept[positions]), exact, best)


def merged(first: list[Ranked], second: list[Ranked], k: int) -> list[Ranked]:
    """The k best of two answers to the same queries, which have no position in common."""
    query = np.repeat(np.arange(2 * len(first)) % max(1, len(first)), [len(found) for found, _ in (*first, *second)])
    position, similarity = (np.concatenate([each[part] for each in (*first, *second)]) for part in (0, 1))
    return first_of(len(first), k, query, position, similarity)


def first_of(count: int, k: int, query: Int64, position: Int64, similarity: Float64) -> list[Ranked]:
    """For each of ``count`` queries its k most similar, best first, equal ones by position."""
    order = np.lexsort((position, -similarity, query))
    query, position, similarity = query[order], position[order], similarity[order]
    starts = np.searchsorted(query, np.arange(count + 1))
    return [
        (position[start : min(end, start + k)], similarity[start : min(end, start + k)])
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    ]
