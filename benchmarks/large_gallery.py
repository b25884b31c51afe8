"""Retrieval and structure among many more models than the queries' own.

    python benchmarks/train_weights.py --only test     # the 1,000 pairs
    python benchmarks/large_gallery.py --models 100000 # recall among 100,000; structure over new ground among 20,000

The other models come from `families` (the ten, seed 21), so they are the likeliest to be mistaken for the right one.
"New ground" leaves the right model out: how far off the first match is, against the closest model in the gallery.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.model.training.evaluation import embed, nearest, recall_among, served, structure
from seisbind.service.terminal.console import counting

SEED = 21
PART = 5_000  # models drawn and embedded at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs/test"))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--models", type=int, default=100_000, help="in the gallery, the right ones among them")
    parser.add_argument("--structure-models", type=int, default=20_000, help="in that of new ground")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder.load(args.weights)
    pairs = embed(embedder, load_pairs(args.pairs))
    wanted = args.models - len(pairs)
    kept: list[np.ndarray] = []  # the first models, for structure
    embedded = [pairs.velocity]
    with counting("Embedding models", wanted) as progress:
        for number, start in enumerate(range(0, wanted, PART)):
            models, _ = mixed(min(PART, wanted - start), SEED + 1000 * number)
            embedded.append(embedder.embed_velocity(models))
            if start < args.structure_models:
                kept.append(models)
            progress(start + len(models))
    gallery = np.concatenate(embedded)
    report = {
        "weights": embedder.fingerprint,
        "gallery_size": len(gallery),
        "seismic_to_velocity": recall_among(pairs.gathers.embedding, gallery),
    }
    models = np.concatenate([pairs.models, *kept])[: args.structure_models]
    first, moved = served(embedder, pairs, gallery[: len(models)], models, leave_out=True)
    similar = nearest(pairs.gathers.embedding, gallery[: len(models)], 1, leave_out=True)[:, 0]
    report["structure"] = structure(pairs, models, first, leave_out=True) | {
        "gallery_size": len(models),
        "ranked_by_structure": float(moved.mean()),
        "by_similarity_ratio": structure(pairs, models, similar, leave_out=True)["ratio"],
    }
    first, moved = served(embedder, pairs, gallery[: len(models)], models, leave_out=False)
    right = first == np.arange(len(pairs))
    report["served"] = {"r_at_1": float(right.mean()), "ranked_by_structure": float(moved.mean())}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
