"""Vectors in inverted lists, with few dimensions in four bits: candidates for the nearest of a query, in less time.

Embeddings of velocity models lie close to a space of few dimensions. What lies outside is the same for all models, so
it is left out: a quantiser of all dimensions would round it, too, by more than what tells models apart. Of each vector
its difference from the middle of its list is kept, each dimension as one of 16 values: FAISS looks up the products of
32 vectors at once in a register. The lists are read from a snapshot's bytes after every block of them was compared
with its checksum, and copied: about 34 bytes a vector with 48 dimensions.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import faiss as _faiss
import numpy as np
from numpy.typing import NDArray

from seisbind.index.approximate.info import ApproximateInfo
from seisbind.index.storage.record import Float32, Int64

faiss: Any = _faiss  # its stubs know neither its functions on bare arrays nor readers

SEED = 17
LEFT_OUT = 1e-3  # of the squared length of the vectors, on average, by the dimensions that are kept
DIMENSIONS = 16  # kept in multiples of so many, which instructions take together
PER_LIST = 256  # vectors in a list, about
TRAINED_ON = 48  # vectors a list, which k-means sees
ROUNDS = 10  # of k-means
SAMPLE = 20_000  # vectors that the dimensions are chosen by
CHUNK = 16_384  # vectors added at a time, 16 MB of 256-d ones
IO_BYTES = 1 << 20  # written at once

VectorsAt = Callable[[Int64], Float32]


class Lists:
    """An index that finds candidates. Immutable once built, so any number of threads may search it."""

    def __init__(self, index: Any, owner: object = None) -> None:
        self._index = index
        self._owner = owner  # of the memory that the index was read from

    @classmethod
    def build(cls, vectors_at: VectorsAt, count: int, turned: Float32) -> Lists:
        """Of ``count`` unit vectors by position, as they are in the directions ``turned``, those of `principal`."""
        rng = np.random.default_rng(SEED)
        lists, (kept, dimension) = list_count(count), turned.shape
        index = faiss.index_factory(kept, f"IVF{lists},PQ{kept}x4fsr", faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.seed, index.cp.max_points_per_centroid = ROUNDS, SEED, TRAINED_ON
        index.pq.cp.seed = SEED
        # small galleries, as in tests, are no reason for a warning
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        index.train(vectors_at(np.sort(rng.permutation(count)[: max(lists * TRAINED_ON, 2048)])) @ turned.T)
        turning = faiss.LinearTransform(dimension, kept, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(turned).reshape(-1), turning.A)
        turning.is_trained = True
        whole = faiss.IndexPreTransform(turning, index)
        for start in range(0, count, CHUNK):
            whole.add(vectors_at(np.arange(start, min(start + CHUNK, count))))
        return cls(whole, (turning, index))

    @classmethod
    def read(cls, content: NDArray[np.uint8], *, count: int, dimension: int) -> Lists:
        """From the bytes that `dump` wrote of so many vectors. Raises ValueError if they are something else."""
        try:
            reader = faiss.ZeroCopyIOReader(faiss.swig_ptr(content), content.size)
            found = cls(faiss.read_index(reader), (reader, content))
        except RuntimeError as error:
            raise ValueError(f"FAISS does not read it ({error})") from error
        if (len(found), found._index.d) != (count, dimension):
            raise ValueError(f"it holds {len(found)} vectors of {found._index.d} dimensions")
        return found

    def dump(self, write: Callable[[bytes], None]) -> None:
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(write, IO_BYTES))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def count(self) -> int:
        """Of lists."""
        return int(faiss.extract_index_ivf(self._index).nlist)

    @property
    def dimensions(self) -> int:
        """That are kept."""
        return int(faiss.extract_index_ivf(self._index).d)

    def candidates(self, queries: Float32, *, probes: int, count: int) -> Int64:
        """Positions ``(query, count)`` of vectors that may be nearest, from the ``probes`` nearest lists; -1: no more.

        Args:
            queries: ``(query, dimension)``, unit length.
        """
        lists = faiss.SearchParametersIVF(nprobe=probes)
        chosen = faiss.SearchParametersPreTransform(index_params=lists)
        _, found = self._index.search(np.ascontiguousarray(queries), min(count, len(self)), params=chosen)
        return np.asarray(found, np.int64)


def principal(vectors_at: VectorsAt, count: int) -> Float32:
    """The orthogonal directions ``(kept, dimension)`` that leave `LEFT_OUT` out of ``count`` vectors by position. Those
    are not centred: products with them are to stay what they are."""
    vectors = vectors_at(np.sort(np.random.default_rng(SEED).permutation(count)[:SAMPLE]))
    values, directions = np.linalg.eigh(vectors.astype(np.float64).T @ vectors.astype(np.float64))
    energy = np.maximum(values[::-1], 0.0)
    needed = int(np.searchsorted(np.cumsum(energy), (1 - LEFT_OUT) * energy.sum())) + 1
    kept = min(vectors.shape[1], -(-needed // DIMENSIONS) * DIMENSIONS)
    return np.ascontiguousarray(directions[:, ::-1][:, :kept].T.astype(np.float32))


def list_count(count: int) -> int:
    """How many lists ``count`` vectors are divided into, a power of two."""
    return 1 << max(0, round(math.log2(max(1.0, count / PER_LIST))))


class StoredLists:
    """The lists of a snapshot, read when they are first asked for.

    Args:
        read: the lists, out of bytes that were compared with their checksums. May raise what says that they are
            damaged.
    """

    def __init__(self, info: ApproximateInfo, read: Callable[[], Lists]) -> None:
        self.info = info
        self._read = read
        self._lock = threading.Lock()
        self._lists: Lists | None = None

    def candidates(self, queries: Float32) -> Int64:
        """As `Lists.candidates`, with the probes and as many candidates as were measured."""
        return self._held().candidates(queries, probes=self.info.probes, count=self.info.candidates)

    def dump(self, write: Callable[[bytes], None]) -> None:
        """As `Lists.dump`."""
        self._held().dump(write)

    def _held(self) -> Lists:
        lists = self._lists
        if lists is None:
            with self._lock:
                lists = self._lists = self._lists or self._read()
        return lists
