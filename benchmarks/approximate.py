"""Approximate search at recall@10 of .99 against exact search, FAISS's flat index and peers, over the same vectors.

    python benchmarks/approximate.py --models 1000000 --cache runs/approximate   # one thread; minutes, and 4 GB

Vectors and queries are those of `approximate_vectors`: embeddings of real maps (``--real``), and further ones between
neighbours. Queries are of three kinds in equal parts, where ``--records`` of them are embeddings of modelled gathers,
which are the queries that a server is asked. Recall is that of the kind of which it is least. Each index is given the
fewest probes (or the like) that find .99; of those that only find candidates, the best are ranked again by the vectors.
Times are of the processor, which other work may share: the median of `ONE` single queries, and the least of a few runs
of a batch of 500. Memory is what an index adds to the vectors. What is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from approximate_vectors import SEED, entries, real, records

from seisbind.index.approximate import recall as measuring
from seisbind.index.approximate.lists import Lists, principal
from seisbind.index.scanning.codes import pays
from seisbind.index.search.reranking import best_of, source_of
from seisbind.index.search.vectors import VectorIndex

WANTED = 0.99
K = 10
BATCH = 500
ONE = 60  # queries asked one by one
RUNS = 3
OWN_RANKED = 384  # candidates of ours, four bits a dimension, ranked again
RANKED = 64  # candidates ranked again, where an index gives candidates

Search = Callable[[np.ndarray], np.ndarray]


def timed(search: Search, queries: np.ndarray) -> dict[str, float]:
    one, batch = [], []
    for number in range(ONE):
        asked = queries[number * (len(queries) // ONE)][None]
        start = time.process_time()
        search(asked)
        one.append((time.process_time() - start) * 1e3)
    for _ in range(RUNS):
        start = time.process_time()
        search(queries)
        batch.append((time.process_time() - start) * 1e3)
    return {"one_ms": float(np.median(one)), "batch_ms": min(batch)}


def recalls(found: np.ndarray, truth: np.ndarray, kinds: np.ndarray) -> dict[str, float]:
    hit = np.array([len(set(a[:K]) & set(b[:K])) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)])
    return {str(kind): round(float(hit[kinds == kind].mean()), 4) for kind in dict.fromkeys(kinds.tolist())}


def ranked(index: VectorIndex, candidates: Search) -> Search:
    """The best of candidates by the vectors, as positions ``(query, K)``."""

    def search(queries: np.ndarray) -> np.ndarray:
        found = [positions for positions, _ in best_of(index, queries, candidates(queries), K)]
        return np.array([np.pad(each, (0, K - len(each)), constant_values=-1) for each in found])

    return search


def faiss_index(
    index: VectorIndex, vectors: np.ndarray, factory: str
) -> tuple[Callable[[int], Search], tuple[int, ...], int]:
    made = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    graph = factory.startswith("HNSW")
    if not graph:
        ivf = faiss.extract_index_ivf(made)
        ivf.cp.niter, ivf.cp.seed, ivf.cp.max_points_per_centroid = 10, 17, 48
        sample = np.random.default_rng(SEED).permutation(len(vectors))[: 48 * ivf.nlist]
        made.train(vectors[np.sort(sample)])
    else:
        made.hnsw.efConstruction = 100
        made.train(vectors[:50_000])
    for start in range(0, len(vectors), 50_000):
        made.add(vectors[start : start + 50_000])

    def of(effort: int) -> Search:
        if graph:
            chosen = faiss.SearchParametersHNSW(efSearch=effort)
            return ranked(index, lambda queries: made.search(queries, RANKED, params=chosen)[1])
        chosen = faiss.SearchParametersIVF(nprobe=effort)
        more = 4 * RANKED if "RaBitQ" in factory or "PQ" in factory else RANKED
        return ranked(index, lambda queries: made.search(queries, more, params=chosen)[1])

    size = faiss.serialize_index(made).nbytes
    return of, (64, 128, 256, 512, 1024) if graph else (16, 32, 64, 128, 256, 512), size


def hnswlib_index(vectors: np.ndarray) -> tuple[Callable[[int], Search], tuple[int, ...], int]:
    import hnswlib  # type: ignore[import-not-found]

    made = hnswlib.Index("ip", vectors.shape[1])
    made.init_index(len(vectors), M=16, ef_construction=100)
    made.set_num_threads(1)
    made.add_items(vectors, num_threads=1)

    def of(effort: int) -> Search:
        def search(queries: np.ndarray) -> np.ndarray:
            made.set_ef(effort)
            return made.knn_query(queries, K, num_threads=1)[0].astype(np.int64)

        return search

    return of, (64, 128, 256, 512, 1024), made.index_file_size() - vectors.nbytes


def usearch_index(vectors: np.ndarray) -> tuple[Callable[[int], Search], tuple[int, ...], int]:
    from usearch.index import Index  # type: ignore[import-not-found]

    made = Index(ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=16, expansion_add=100)
    made.add(np.arange(len(vectors)), vectors, threads=1)
    exact = VectorIndex.build(vectors)

    def of(effort: int) -> Search:
        def candidates(queries: np.ndarray) -> np.ndarray:
            made.expansion_search = effort
            return np.asarray(made.search(queries, RANKED, threads=1).keys).reshape(len(queries), -1).astype(np.int64)

        return ranked(exact, candidates)

    return of, (64, 128, 256, 512, 1024), made.memory_usage


def svs_index(vectors: np.ndarray) -> tuple[Callable[[int], Search], tuple[int, ...], int]:
    import svs  # type: ignore[import-not-found]

    options = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=32, window_size=100)
    made = svs.Vamana.build(options, vectors, svs.DistanceType.MIP, num_threads=1)

    def of(effort: int) -> Search:
        def search(queries: np.ndarray) -> np.ndarray:
            made.search_window_size = effort
            return made.search(queries, K)[0].astype(np.int64)

        return search

    return of, (64, 128, 256, 512, 1024), len(vectors) * 33 * 4


def own_index(index: VectorIndex, count: int) -> tuple[Callable[[int], Search], tuple[int, ...], int]:
    lists = Lists.build(index.vectors_at, count, principal(index.vectors_at, count))
    size = 0

    def add(part: bytes) -> None:
        nonlocal size
        size += len(part)

    lists.dump(add)

    def of(effort: int) -> Search:
        return ranked(index, lambda queries: lists.candidates(queries, probes=effort, count=OWN_RANKED))

    return of, measuring.PROBES, size


def chosen_index(index: VectorIndex, count: int) -> tuple[Callable[[int], Search], tuple[int, ...], int]:
    """Ours with the lists and candidates that its own sample queries choose, as a snapshot is made."""
    lists, info = measuring.build(source_of(index, np.ones(count, np.bool_)))
    print(json.dumps({"chosen by sample queries": asdict(info)}), flush=True)

    def of(effort: int) -> Search:
        return ranked(index, lambda queries: lists.candidates(queries, probes=effort, count=info.candidates))

    return of, (info.probes,), info.bytes


def peers(index: VectorIndex, vectors: np.ndarray, only: list[str]) -> Iterator[tuple[str, Callable[[], Any]]]:
    lists = 1 << round(np.log2(len(vectors) / 256))
    made: dict[str, Callable[[], Any]] = {
        "seisbind": lambda: own_index(index, len(vectors)),
        "seisbind as it chooses": lambda: chosen_index(index, len(vectors)),
    }
    for name in (
        f"IVF{lists},RaBitQfs",
        f"IVF{lists // 4},RaBitQfs",
        f"IVF{lists},SQ8",
        f"IVF{lists},PQ128x4fsr",
        "HNSW16,SQ8",
    ):
        made[name] = lambda name=name: faiss_index(index, vectors, name)
    made |= {
        "usearch": lambda: usearch_index(vectors),
        "hnswlib": lambda: hnswlib_index(vectors),
        "scalable-vs": lambda: svs_index(vectors),
    }
    return ((name, build) for name, build in made.items() if not only or any(each in name for each in only))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200_000)
    parser.add_argument(
        "--real", type=int, default=40_000, help="embeddings of maps; the others lie between neighbours"
    )
    parser.add_argument("--records", type=int, default=60, help="gathers modelled for queries, a second each")
    parser.add_argument("--cache", type=Path, default=Path("runs/approximate"))
    parser.add_argument("--only", nargs="*", default=[], help="indices whose name has one of these in it")
    args = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    embeddings, held_out, perturbed = real(args.cache, args.real)
    vectors = entries(embeddings, args.models)
    asked = {"record": records(args.cache, args.records), "held out": held_out, "perturbed": perturbed}
    each = BATCH // 3 + 1
    parts = {kind: found[np.arange(each) % len(found)] for kind, found in asked.items()}
    queries = np.ascontiguousarray(np.concatenate(list(parts.values()))[:BATCH])
    kinds = np.repeat(list(parts), each)[:BATCH]
    index = VectorIndex.build(vectors)
    report: dict[str, Any] = {
        "models": args.models,
        "embeddings of maps": len(embeddings),
        "between neighbours": args.models - len(embeddings),
        "eight bits in exact search": pays(),
    }
    truth = np.array([positions for positions, _ in index.search(queries, K)])
    exact = timed(lambda asked: np.array([found for found, _ in index.search(asked, K)]), queries)
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    report["exact"] = exact | {"bytes": vectors.shape[1] * len(vectors) if pays() else 0}
    report["flat"] = timed(lambda asked: flat.search(asked, K)[1], queries)
    flat.reset()
    print(json.dumps(report, indent=1), flush=True)
    for name, build in peers(index, vectors, args.only):
        gc.collect()
        start = time.process_time()
        try:
            of, efforts, size = build()
        except ImportError as error:
            print(json.dumps({name: f"left out: {error}"}), flush=True)
            continue
        found: dict[str, Any] = {"build_s": round(time.process_time() - start, 1), "bytes a model": size / len(vectors)}
        for effort in efforts:
            found |= {"effort": effort, "recall": recalls(of(effort)(queries), truth, kinds)}
            if min(found["recall"].values()) >= WANTED:
                break
        found |= timed(of(found["effort"]), queries)
        for against in ("exact", "flat"):
            base = report[against]
            found[f"one, over {against}"] = base["one_ms"] / found["one_ms"]
            found[f"batch, over {against}"] = base["batch_ms"] / found["batch_ms"]
        found["reached"] = min(found["recall"].values()) >= WANTED
        print(json.dumps({name: found}), flush=True)
        del of


if __name__ == "__main__":
    main()
