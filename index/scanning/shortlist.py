"""The vectors that may be among the best of each query of a batch, while all are gone through in blocks.

A block's products are compared with a bound on the k-th best so far, and the few that reach it are kept: memory is
bounded by the block, whatever the number of vectors, and nothing is sorted but what is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.index.scanning.codes import Float64, Scan
from seisbind.index.storage.record import Int64

Bool = NDArray[np.bool_]

PRODUCTS = 1 << 18  # in a block: 1 MB, which stays in the cache
BLOCK_VECTORS = (4096, 65536)  # in a block, at least and at most
DENSE = 4  # where more than this fraction of the vectors are allowed, all are multiplied, and none is copied
SLACK = 3e-5  # similarities above 1 by rounding count as 1, and may tie there
MANY = 1 << 16  # kept before their similarities are taken, to drop most of them
EXACT = 256  # similarities taken at a time: 256-d vectors in float64 are half a megabyte, which stays in the cache

Similarities = Callable[[Int64, Int64], Float64]  # of queries, by number, with vectors, by position


class Shortlist:
    """The k best of each query among the vectors that were scanned, and all that could still be.

    Args:
        count: of the queries.
        similarities: exact ones, in float64.
    """

    def __init__(self, count: int, k: int, similarities: Similarities) -> None:
        self.k = k
        self._similarities = similarities
        self._floor = np.full(count, -np.inf)  # the k-th best is no lower
        self._query = np.empty(0, np.int64)
        self._position = np.empty(0, np.int64)
        self._low = np.empty(0)  # the similarity is between these
        self._high = np.empty(0)
        self._few = 2 * k * count  # so many entries are not worth looking through
        self._tightened = 0  # entries that the last look left

    def scan(self, scan: Scan, start: int, count: int, allowed: Bool | None) -> None:
        """Go through the ``count`` vectors of one segment, of which ``start`` is the position of the first.

        Args:
            allowed: ``(count,)``; None if all are.
        """
        dense = allowed is not None and np.count_nonzero(allowed) * DENSE >= count
        chosen = None if allowed is None or dense else np.flatnonzero(allowed)
        available = count if chosen is None else len(chosen)
        least, most = BLOCK_VECTORS
        size = min(most, max(least, PRODUCTS // len(self._floor)))
        for first in range(0, available, size):
            last = min(first + size, available)
            rows: slice | Int64 = slice(first, last)
            if chosen is not None:
                rows = chosen[first:last]
                if rows[-1] - rows[0] == len(rows) - 1:  # nothing left out: not copied
                    rows = slice(int(rows[0]), int(rows[-1]) + 1)
            mask = allowed[rows] if allowed is not None and dense else None
            products = scan.products(rows)
            self._raise_floor(products, mask, scan)
            at, query = np.divmod(np.flatnonzero(products >= self._limit(scan, products.dtype)), products.shape[1])
            if mask is not None:
                inside = mask[at]
                at, query = at[inside], query[inside]
            position = at + (start + rows.start) if isinstance(rows, slice) else start + rows[at]
            middle = products[at, query] * scan.unit[query]
            self.keep(query, position, middle - scan.error[query], middle + scan.error[query])

    def _raise_floor(self, products: NDArray[Any], mask: Bool | None, scan: Scan) -> None:
        """By the k-th best of this block, of which ``mask`` says what counts, for queries that have none yet."""
        unknown = np.flatnonzero(np.isneginf(self._floor))
        if not len(unknown):
            return
        counted = products if mask is None else products[mask]
        if len(counted) >= self.k:
            columns = np.ascontiguousarray(counted[:, unknown].T)
            kth = np.partition(columns, -self.k, axis=1)[:, -self.k]
            self._floor[unknown] = kth * scan.unit[unknown] - scan.error[unknown]

    def _limit(self, scan: Scan, dtype: np.dtype[Any]) -> NDArray[Any]:
        """What a product has to reach, ``(query,)``."""
        limit = (self._floor - SLACK - scan.error) / scan.unit
        if dtype == np.int32:
            limit = np.maximum(np.floor(limit), np.iinfo(np.int32).min)
        return limit.astype(dtype)

    @property
    def floor(self) -> Float64:
        """What the k-th best of each query is no lower than, ``(query,)``; -inf where that is not known yet."""
        return self._floor

    def keep(self, query: Int64, position: Int64, low: Float64, high: Float64) -> None:
        """Take up vectors, each at most once, whose similarities with queries are between ``low`` and ``high``."""
        self._query = np.concatenate([self._query, query])
        self._position = np.concatenate([self._position, position])
        self._low = np.concatenate([self._low, low])
        self._high = np.concatenate([self._high, high])
        if len(self._query) > 2 * max(self._tightened, self._few):
            self._tighten()
        if len(self._query) > max(MANY, 2 * self._few):
            self._rank()
            self._tighten()

    def _tighten(self) -> None:
        """Drop what is below the k-th best of what is kept."""
        order = np.lexsort((-self._low, self._query))
        starts = np.searchsorted(self._query[order], np.arange(len(self._floor) + 1))
        enough = np.flatnonzero(np.diff(starts) >= self.k)
        kth = self._low[order[starts[enough] + self.k - 1]]
        self._floor[enough] = np.maximum(self._floor[enough], kth)
        self._select(np.flatnonzero(self._high >= self._floor[self._query] - SLACK))
        self._tightened = len(self._query)

    def _rank(self) -> None:
        """Keep only the k best of each query, in order, by their similarities; equal ones by position."""
        exact = np.empty(len(self._query))
        for first in range(0, len(exact), EXACT):
            part = slice(first, first + EXACT)
            exact[part] = self._similarities(self._query[part], self._position[part])
        self._low = self._high = exact
        self._select(np.lexsort((self._position, -exact, self._query)))
        starts = np.searchsorted(self._query, np.arange(len(self._floor)))
        self._select(np.flatnonzero(np.arange(len(self._query)) - starts[self._query] < self.k))

    def _select(self, kept: Int64) -> None:
        self._query, self._position = self._query[kept], self._position[kept]
        self._low, self._high = self._low[kept], self._high[kept]

    def best(self) -> list[tuple[Int64, Float64]]:
        """For each query the positions and similarities of its k best, best first, equal ones by position."""
        if len(self._query) > self._few:
            self._tighten()
        self._rank()
        ends = np.searchsorted(self._query, np.arange(1, len(self._floor)))
        return list(zip(np.split(self._position, ends), np.split(self._low, ends), strict=True))
