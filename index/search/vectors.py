"""Exact nearest neighbours by cosine similarity, in an index that never changes.

A larger index is a new object that shares the large sealed segments with the old one, so any number of threads may
search while it grows. What an approximate index finds (`seisbind.index.approximate`) is ranked again by the vectors
here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import faiss as _faiss
import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index.scanning.codes import Codes, Float64, Scan, pays
from seisbind.index.scanning.shortlist import Bool, Shortlist
from seisbind.index.search.device import DeviceFailed, DeviceSearch
from seisbind.index.storage.record import Float32, Int64

faiss: Any = _faiss  # its stubs know neither its functions on bare arrays nor owners

RECENT_VECTORS = 1024  # up to 1 MB of 256-d vectors is copied for each addition before they are sealed
GROWTH = 2  # a sealed segment is joined to the one before it unless that one is more than this much larger
CODED_VECTORS = 2048  # a sealed segment of so many is searched in eight bits first
FEW_QUERIES = 4  # fewer are multiplied one by one: matrix products of a row or two are slower
BATCH = 64  # queries searched together
IO_BYTES = 1 << 20  # written at once


def search_threads(count: int) -> None:
    """Let searches from the calling thread spread over ``count`` threads."""
    torch.set_num_threads(count)
    faiss.omp_set_num_threads(count)


Check = Callable[[slice | Int64], None]


class _Segment:
    """Consecutive vectors that are never added to, ``(count, dimension)`` float32."""

    __slots__ = ("__weakref__", "_check", "_owner", "_vectors", "codes")  # `DeviceSearch` has a copy of each

    def __init__(
        self, vectors: Float32, *, owner: Any = None, codes: Codes | None = None, check: Check | None = None
    ) -> None:
        self._owner = owner  # of the memory of ``vectors``, if that is not NumPy
        self._vectors = vectors
        self._check = check
        if codes is None and len(vectors) >= CODED_VECTORS and pays():
            codes = Codes.of(vectors)
        self.codes = codes if pays() else None

    @classmethod
    def of(cls, dimension: int, *blocks: Float32) -> _Segment:
        joined = np.concatenate([np.empty((0, dimension), np.float32), *blocks], dtype=np.float32)
        return cls(joined)

    def __len__(self) -> int:
        return len(self._vectors)

    def at(self, rows: slice | Int64) -> Float32:
        """Those of the vectors, checked if they are mapped."""
        if self._check is not None:
            self._check(rows)
        return self._vectors[rows]

    def checked(self, rows: Int64) -> Float32:
        """All of them, of which ``rows`` are checked if they are mapped."""
        if self._check is not None:
            self._check(rows)
        return self._vectors

    @property
    def vectors(self) -> Float32:
        """All of them."""
        return self.at(slice(None))

    def scan(self, queries: Float32) -> Scan:
        """The products of queries ``(query, dimension)`` of unit length with the vectors."""
        if self.codes is not None:
            return self.codes.scan(queries)
        count, dimension = queries.shape
        turned = torch.from_numpy(queries).T

        def products(rows: slice | Int64) -> Float32:
            part = self.at(rows)
            if count >= FEW_QUERIES:
                return np.asarray(torch.mm(torch.from_numpy(part), turned).numpy())
            found = np.empty((count, len(part)), np.float32)
            for query, out in zip(queries, found, strict=True):
                pointers = map(faiss.swig_ptr, (out, query, part))
                faiss.fvec_inner_products_ny(*pointers, dimension, len(part))
            return found.T

        rounding = (dimension + 2) * 2.0**-24 * (1 + 1e-4)  # of a sum of so many products, in whatever order
        return Scan(products, np.ones(count), np.full(count, rounding))


class VectorIndex:
    """Unit vectors by position, ``(count, dimension)`` float32. Immutable, so any number of threads may search it.

    A search finds candidates by products of less precision, then takes the similarity of each again in float64: what
    products are rounded to depends on the machine and on the size of the batch, and an answer must not.
    """

    __slots__ = ("_segments", "dimension")

    def __init__(self, dimension: int, *segments: _Segment) -> None:
        self.dimension = dimension
        self._segments = tuple(segment for segment in segments if len(segment))

    @classmethod
    def build(cls, vectors: Float32) -> VectorIndex:
        """An index of ``vectors`` ``(count, dimension)``, which are copied."""
        return cls(vectors.shape[1], _Segment.of(vectors.shape[1], vectors))

    @classmethod
    def mapped(cls, vectors: Float32, check: Check, codes: Codes) -> VectorIndex:
        """An index of ``vectors`` and their ``codes`` where they are, of which ``check`` is called with the rows that
        are about to be used."""
        return cls(vectors.shape[1], _Segment(vectors, codes=codes, check=check))

    @classmethod
    def load(cls, content: NDArray[np.uint8]) -> tuple[Int64, VectorIndex] | None:
        """The keys and the index that `dump` wrote; None if ``content`` is another kind of index.

        Raises:
            RuntimeError: FAISS cannot read it.
        """
        mapped = faiss.deserialize_index(content)
        flat = faiss.downcast_index(mapped.index)
        if not isinstance(flat, faiss.IndexFlatIP):
            return None
        count, dimension = flat.ntotal, flat.d
        held = faiss.rev_swig_ptr(flat.get_xb(), count * dimension) if count else np.empty(0, np.float32)
        return faiss.vector_to_array(mapped.id_map).copy(), cls(
            dimension, _Segment(held.reshape(count, dimension), owner=mapped)
        )

    def dump(self, positions: Int64, keys: Int64, write: Callable[[bytes], object]) -> None:
        """Write the vectors at ``positions`` with ``keys``, an ``IndexIDMap`` of ``IndexFlatIP`` in FAISS's format."""
        index = faiss.IndexIDMap(faiss.IndexFlatIP(self.dimension))
        if len(keys):
            index.add_with_ids(self.vectors_at(positions), keys)
        faiss.write_index(index, faiss.PyCallbackIOWriter(write, IO_BYTES))

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def extended(self, vectors: Float32) -> VectorIndex:
        """This index, then ``vectors`` ``(n, dimension)``.

        Only the last segment is copied, if it is small. Once that is full it is sealed, and joined to those before it
        that are not much larger, so that the segments stay few.
        """
        if not len(vectors):
            return self
        *sealed, last = self._segments or (_Segment.of(self.dimension),)
        if len(last) >= RECENT_VECTORS:
            sealed, blocks = [*sealed, last], [vectors]
        else:
            blocks = [last.vectors, vectors]
        count = sum(map(len, blocks))
        while count >= RECENT_VECTORS and sealed and len(sealed[-1]) <= GROWTH * count:
            blocks.insert(0, sealed.pop().vectors)
            count += len(blocks[0])
        return VectorIndex(self.dimension, *sealed, _Segment.of(self.dimension, *blocks))

    def vectors_at(self, positions: Int64) -> Float32:
        """A copy of the vectors at ``positions``, ``(len(positions), dimension)``."""
        out = np.empty((len(positions), self.dimension), np.float32)
        start = 0
        for segment in self._segments:
            here = (positions >= start) & (positions < start + len(segment))
            if here.any():
                out[here] = segment.at(positions[here] - start)
            start += len(segment)
        return out

    def hold(self, device: DeviceSearch) -> None:
        """Copy the vectors to ``device`` now. Raises DeviceFailed."""
        for segment in self._segments:
            device.hold(segment)

    @property
    def rounding(self) -> float:
        """What `products` and sums of so many products in float32, in whatever order, are off by at most."""
        return (self.dimension + 2) * 2.0**-24 * (1 + 1e-4)

    def products(self, queries: Float32, positions: Int64) -> Float32:
        """Of each query with vectors of its own, in float32.

        Args:
            queries: ``(query, dimension)`` float32.
            positions: ``(query, vector)``; the product at a negative one means nothing.
        """
        first = self._segments[0]
        rows = np.maximum(positions, 0)
        if rows.size and int(rows.max()) < len(first):
            vectors = first.checked(rows.reshape(-1))
        else:
            rows, at = np.unique(rows, return_inverse=True)
            vectors, rows = self.vectors_at(rows), np.asarray(at.reshape(positions.shape), np.int64)
        out, rows, asked = np.empty(rows.shape, np.float32), np.ascontiguousarray(rows), np.ascontiguousarray(queries)
        pointers = map(faiss.swig_ptr, (out, asked, vectors, rows))
        faiss.fvec_inner_products_by_idx(*pointers, self.dimension, *rows.shape)
        return out

    def similarities(self, exact: Float64, query: Int64, position: Int64) -> Float64:
        """Of queries, by their number among ``exact`` ones in float64, with vectors: those of all answers."""
        products = self.vectors_at(position).astype(np.float64) * exact[query]
        return np.asarray(np.clip(products.sum(axis=1), -1.0, 1.0))

    def search(
        self,
        queries: Float32,
        k: int,
        *,
        allowed: Bool | None = None,
        first: int = 0,
        device: DeviceSearch | None = None,
    ) -> list[tuple[Int64, Float64]]:
        """The ``min(k, allowed)`` most similar vectors of each query, exactly.

        Args:
            queries: ``(query, dimension)`` float32, unit length.
            k: at least 1.
            allowed: ``(count,)``, which vectors may be returned; all of them if None.
            device: what finds candidates; the CPU if None, or where it fails. The answer is the same.
            first: the first position that may be returned.

        Returns:
            For each query positions ``(hit,)`` and similarities ``(hit,)`` float64, best first, equal ones by position.
        """
        return [
            found
            for start in range(0, len(queries), BATCH)
            for found in self._search(np.ascontiguousarray(queries[start : start + BATCH]), k, allowed, first, device)
        ]

    def _search(
        self, queries: Float32, k: int, allowed: Bool | None, first: int, device: DeviceSearch | None
    ) -> list[tuple[Int64, Float64]]:
        if device is not None and not first:
            try:
                return self._shortlist(queries, k, allowed, 0, device).best()
            except DeviceFailed:
                pass
        return self._shortlist(queries, k, allowed, first, None).best()

    def _shortlist(
        self, queries: Float32, k: int, allowed: Bool | None, first: int, device: DeviceSearch | None
    ) -> Shortlist:
        exact = queries.astype(np.float64)
        shortlist = Shortlist(len(queries), k, partial(self.similarities, exact))
        start = 0
        for segment in self._segments:
            mask = None if allowed is None else allowed[start : start + len(segment)]
            if start < first < start + len(segment):  # it was joined to those before
                mask = (np.ones(len(segment), np.bool_) if mask is None else mask) & (
                    np.arange(start, start + len(segment)) >= first
                )
            wanted = start + len(segment) > first
            if wanted and (device is None or not device.scan(segment, queries, shortlist, start, allowed)):
                shortlist.scan(segment.scan(queries), start, len(segment), mask)
            start += len(segment)
        return shortlist
