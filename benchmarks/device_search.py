"""Exact search on a torch device, in fp16 with a proven bound, against the CPU's search of the same vectors.

    python benchmarks/device_search.py --models 200000                    # the GPU if there is one, else torch's CPU
    python benchmarks/device_search.py --models 200000 --device cpu       # the same code on the CPU: its answers, not
                                                                          # a GPU's speed

Vectors and queries are those of gallery_search.py. Every answer is compared with the CPU's: positions and float64
similarities to the bit, without a filter and under masks. Prints the device, the bytes that its vectors take, the
bound, how many candidates came back for each query, and times: the least of a few alternating runs; read the ratios.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
from gallery_search import QUERIES, REAL, SEED, TOP_K, between, least_ms

from seisbind.index.scanning.shortlist import Shortlist
from seisbind.index.search.device import DeviceSearch, error_bound
from seisbind.index.search.vectors import VectorIndex
from seisbind.model.encoders.embedder import Embedder, choose_device
from seisbind.model.ground.families import mixed

SHARES = (None, 0.001, 0.01, 0.1, 0.5)  # of the vectors that a mask allows


def differences(one: list, other: list) -> int:
    """How many answers are not the same to the bit."""
    return sum(not (np.array_equal(a[0], b[0]) and np.array_equal(a[1], b[1])) for a, b in zip(one, other, strict=True))


def candidates(index: VectorIndex, queries: np.ndarray, device: DeviceSearch) -> float:
    """How many vectors a query, on average, came back from the device."""
    counted, keep = [], Shortlist.keep

    def counting(self: Shortlist, query: np.ndarray, *rest: np.ndarray) -> None:
        counted.append(len(query))
        keep(self, query, *rest)

    Shortlist.keep = counting
    try:
        index.search(queries, TOP_K, device=device)
    finally:
        Shortlist.keep = keep
    return sum(counted) / len(queries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=200_000)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng, chosen = np.random.default_rng(SEED), choose_device(args.device)
    embeddings = Embedder.load(device="cpu").embed_velocity(mixed(REAL, SEED)[0])
    vectors, queries = between(embeddings, args.models, rng), between(embeddings, QUERIES, rng)
    vectors[::1000] = vectors[0]  # duplicates
    index, device = VectorIndex.build(vectors), DeviceSearch(chosen)
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "torch on the CPU, one thread"
    sound = device.sound(vectors.shape[1])
    index.hold(device)
    held = device.hold(index._segments[0])
    halves = queries.astype(np.float16).astype(np.float64)
    bound = error_bound(held.error, np.linalg.norm(queries - halves, axis=1), vectors.shape[1])
    report: dict[str, object] = {
        "device": name,
        "models": args.models,
        "sums_within_bound": sound,
        "device_bytes_a_vector": device.bytes / args.models,
        "bound": float(bound.max()),
        "candidates_a_query": candidates(index, queries, device),
    }
    for share in SHARES:
        allowed = None if share is None else rng.random(args.models) < share
        wrong = differences(
            index.search(queries, TOP_K, allowed=allowed), index.search(queries, TOP_K, allowed=allowed, device=device)
        )
        times = {}
        for count in (1, QUERIES):
            some = queries[:count]
            cpu, there = least_ms(
                lambda some=some, allowed=allowed: index.search(some, TOP_K, allowed=allowed),
                lambda some=some, allowed=allowed: index.search(some, TOP_K, allowed=allowed, device=device),
            )
            times[f"{count} queries"] = {"cpu_ms": round(cpu, 2), "device_ms": round(there, 2)}
        report["all" if share is None else f"{share:.1%} allowed"] = {"different": wrong} | times
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
