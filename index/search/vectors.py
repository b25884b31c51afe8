"""Exact nearest neighbours by cosine similarity, in a FAISS index that never changes.

Searching a FAISS index while something is added to it ends the process, so nothing here is ever added to: a larger
index is a new object that shares the large sealed segments with the old one. No other module knows the kind of index:
an approximate one would be searched, written and read here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

faiss: Any = _faiss  # its stubs know neither selectors nor owners

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

RECENT_VECTORS = 1024  # up to 1 MB of 256-d vectors is copied for each addition before they are sealed
GROWTH = 2  # a sealed segment is joined to the one before it unless that one is more than this much larger
FEW_FORBIDDEN = 256  # up to so many are fetched and dropped: FAISS's selectors cost more, most of all for many queries
ROUNDING = 1e-5  # bound on the float32 error of the inner product of two 256-d unit vectors, times two
IO_BYTES = 1 << 20  # written at once
SPARE = 16  # candidates fetched beyond k, so that ties at the end of the list rarely need a second search


def search_threads(count: int) -> None:
    """Let searches from the calling thread, and from no other, spread over ``count`` threads."""
    faiss.omp_set_num_threads(count)


class _Segment:
    """Consecutive vectors in one sealed FAISS flat index."""

    __slots__ = ("_owner", "index", "vectors")

    def __init__(self, index: Any, owner: Any = None) -> None:
        self.index = index  # faiss.IndexFlatIP, never added to from here on
        self._owner = owner  # the C++ object that will delete `index`, if that is not the Python one
        count, dimension = index.ntotal, index.d
        view = faiss.rev_swig_ptr(index.get_xb(), count * dimension) if count else np.empty(0, np.float32)
        view.flags.writeable = False
        self.vectors: Float32 = view.reshape(count, dimension)  # valid as long as `index` lives

    @classmethod
    def of(cls, dimension: int, *blocks: Float32) -> _Segment:
        index = faiss.IndexFlatIP(dimension)
        for block in blocks:
            if len(block):
                index.add(np.ascontiguousarray(block, dtype=np.float32))
        return cls(index)

    def __len__(self) -> int:
        return len(self.vectors)

    def candidates(self, queries: Float32, k: int, allowed: Bool | None) -> list[Int64]:
        """Positions of the k best of the allowed vectors, and of all that rounding could confuse with them."""
        available = len(self) if allowed is None else int(np.count_nonzero(allowed))
        found = [np.empty(0, np.int64)] * len(queries)
        if not available:
            return found
        forbidden = len(self) - available
        dropped = forbidden if allowed is not None and forbidden <= FEW_FORBIDDEN else 0
        parameters = selector = bitmap = None
        if allowed is not None and forbidden > dropped:
            bitmap = np.packbits(allowed, bitorder="little")
            selector = faiss.IDSelectorBitmap(bitmap)  # FAISS keeps pointers only: both names live until the return
            parameters = faiss.SearchParameters(sel=selector)
        pending = np.arange(len(queries))
        fetch = min(k + SPARE, available)
        while len(pending):
            similarities, positions = self.index.search(queries[pending], fetch + dropped, params=parameters)
            unsettled = []
            for query, similarity, position in zip(pending, similarities, positions, strict=True):
                if dropped and allowed is not None:
                    kept = np.flatnonzero(allowed[position])[:fetch]  # all of them are positions: there are as many
                    similarity, position = similarity[kept], position[kept]
                if fetch < available and similarity[-1] >= similarity[k - 1] - ROUNDING:
                    unsettled.append(query)  # the list ends among near-ties of the k-th
                    continue
                near = similarity >= similarity[min(k, fetch) - 1] - ROUNDING
                found[query] = position[near & (position >= 0)].astype(np.int64)
            pending = np.asarray(unsettled, dtype=np.int64)
            fetch = min(4 * fetch, available)
        return found


class VectorIndex:
    """Unit vectors by position, ``(count, dimension)`` float32. Immutable, so any number of threads may search it.

    A search fetches candidates with FAISS, then takes the similarity of each again in float64: the order of FAISS's
    sums depends on the size of the batch, and an answer must not.
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
    def load(cls, content: NDArray[np.uint8]) -> tuple[Int64, VectorIndex] | None:
        """The keys and the index that `dump` wrote; None if ``content`` is another kind of index.

        Raises:
            RuntimeError: FAISS cannot read it.
        """
        mapped = faiss.deserialize_index(content)
        flat = faiss.downcast_index(mapped.index)
        if not isinstance(flat, faiss.IndexFlatIP):
            return None
        return faiss.vector_to_array(mapped.id_map).copy(), cls(flat.d, _Segment(flat, mapped))

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
            out[here] = segment.vectors[positions[here] - start]
            start += len(segment)
        return out

    def search(self, queries: Float32, k: int, *, allowed: Bool | None = None) -> list[tuple[Int64, Float64]]:
        """The ``min(k, allowed)`` most similar vectors of each query, exactly.

        Args:
            queries: ``(query, dimension)`` float32, unit length.
            k: at least 1.
            allowed: ``(count,)``, which vectors may be returned; all of them if None.

        Returns:
            For each query positions ``(hit,)`` and similarities ``(hit,)`` float64, best first, equal ones by position.
        """
        candidates: list[list[Int64]] = [[] for _ in queries]
        start = 0
        for segment in self._segments:
            mask = None if allowed is None else allowed[start : start + len(segment)]
            for found, positions in zip(candidates, segment.candidates(queries, k, mask), strict=True):
                found.append(positions + start)
            start += len(segment)
        return [self._ranked(query, found, k) for query, found in zip(queries, candidates, strict=True)]

    def _ranked(self, query: Float32, candidates: list[Int64], k: int) -> tuple[Int64, Float64]:
        positions = np.concatenate(candidates) if candidates else np.empty(0, np.int64)
        products = self.vectors_at(positions).astype(np.float64) * query.astype(np.float64)
        similarities = np.clip(products.sum(axis=1), -1.0, 1.0)
        order = np.lexsort((positions, -similarities))[:k]
        return positions[order], similarities[order]
