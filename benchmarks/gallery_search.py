"""Exact search among many models, against FAISS's flat index over the same vectors in the same run.

    python benchmarks/gallery_search.py --models 200000   # batches, one query, filters; one thread

The vectors lie between embeddings of models of the ten families (two at random, and a point between them): the
neighbourhoods of the encoder, not as many models. Queries are such vectors, embeddings, and copies of vectors that are
there. Answers are compared with FAISS's: the same similarities, and the same positions wherever FAISS can tell them
apart. Times are the least of a few alternating runs; read the ratios.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch

from seisbind.index.scanning.codes import pays
from seisbind.index.search.vectors import VectorIndex
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed

SEED = 17
REAL = 2_000  # embeddings that the vectors lie between
QUERIES = 64
TOP_K = 20
FETCHED = 36  # by FAISS: ties at the end of the list are told apart beyond it, as before this index
NEAR = 1e-5  # what FAISS's products in float32 cannot tell apart
RUNS = 5


def between(embeddings: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors ``(count, dimension)`` on lines between embeddings."""
    pairs, weight = rng.integers(len(embeddings), size=(2, count)), rng.random((count, 1), np.float32)
    found = (1 - weight) * embeddings[pairs[0]] + weight * embeddings[pairs[1]]
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def least_ms(*works: Callable[[], object]) -> list[float]:
    """Of each of ``works``, which take turns, so that what else the machine does harms them alike."""
    found = []
    for _ in range(RUNS):
        for work in works:
            start = time.perf_counter()
            work()
            found.append((time.perf_counter() - start) * 1e3)
    return np.reshape(found, (RUNS, len(works))).min(axis=0).tolist()


def differences(index: VectorIndex, flat: faiss.IndexFlatIP, queries: np.ndarray) -> int:
    """How many of the answers are not FAISS's."""
    similarities, positions = flat.search(queries, FETCHED)
    wrong = 0
    for query, (found, similarity) in enumerate(index.search(queries, TOP_K)):
        theirs, apart = similarities[query, :TOP_K], np.abs(np.diff(similarities[query, : TOP_K + 1])) > NEAR
        told = apart & np.append(True, apart[:-1])
        same = np.abs(theirs - similarity).max() <= NEAR and (positions[query, :TOP_K] == found)[told].all()
        wrong += not same
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(SEED)
    embeddings = Embedder.load().embed_velocity(mixed(REAL, SEED)[0])
    vectors = between(embeddings, args.models, rng)
    queries = between(embeddings, QUERIES, rng)
    vectors[::1000] = vectors[0]  # duplicates
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    index = VectorIndex.build(vectors)
    report: dict[str, object] = {"models": args.models, "eight_bits": pays()}
    for count in (1, 8, QUERIES):
        asked = queries[:count]
        theirs, ours = least_ms(
            lambda asked=asked: flat.search(asked, FETCHED), lambda asked=asked: index.search(asked, TOP_K)
        )
        report[f"{count} at once"] = {"flat_ms": theirs, "ms": ours, "times_as_fast": theirs / ours}
    for share in (0.001, 0.01, 0.1, 0.5):
        allowed = rng.random(args.models) < share
        chosen = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little")))
        theirs, ours = least_ms(
            lambda chosen=chosen: flat.search(queries[:1], FETCHED, params=chosen),
            lambda allowed=allowed: index.search(queries[:1], TOP_K, allowed=allowed),
        )
        report[f"one, {share:.1%} allowed"] = {"flat_ms": theirs, "ms": ours, "times_as_fast": theirs / ours}
        for count in (1, QUERIES):
            asked = queries[:count]
            of_all, ours = least_ms(
                lambda asked=asked: index.search(asked, TOP_K),
                lambda asked=asked, allowed=allowed: index.search(asked, TOP_K, allowed=allowed),
            )
            report[f"{count}, {share:.1%} allowed, time over that of all"] = ours / of_all
    asked = np.concatenate([between(embeddings, 800, rng), embeddings[:150], vectors[:50], vectors[::1000][:24]])
    report["compared"] = len(asked)
    report["different"] = differences(index, flat, asked)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
