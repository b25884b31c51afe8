"""How often the 90 % intervals hold, of each family and each descriptor, over many pairs of each.

    python benchmarks/train_weights.py --only coverage  # 1,000 exact pairs of each of OpenFWI's families
    python benchmarks/family_intervals.py [--pairs runs/pairs/coverage] [--weights W …] [--json]

A line a family and weights: the mean of the 13 descriptors, the lowest and the highest; the geometric mean of their
widths over those of the first weights, and the median. Then how many of all pairs of family and descriptor lie within
.87 to .93, and how many families within .88 to .92.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from off_family import relative

from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.training.evaluation import as_prepared

PART = 500  # pairs that are encoded at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs/coverage"))
    parser.add_argument("--weights", type=Path, nargs="*", default=[None], help="one or several; default: the shipped")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs, embedders = load_pairs(args.pairs), [Embedder.load(path) for path in args.weights]
    held: list[list[Any]] = [[] for _ in embedders]
    width: list[list[Any]] = [[] for _ in embedders]
    for first in range(0, len(pairs), PART):
        part = pairs.select(range(first, min(first + PART, len(pairs))))
        prepared, truth = as_prepared(part), part.descriptors.numpy()
        for number, embedder in enumerate(embedders):
            found = embedder.infer_physics(embedder.embed_gathers(prepared), None)
            held[number].append((found.low <= truth) & (truth <= found.high))
            width[number].append(found.high - found.low)
    family = pairs.family_names()
    reports = []
    for embedder, inside, wide in zip(embedders, map(np.concatenate, held), map(np.concatenate, width), strict=True):
        shares = {name: inside[family == name].mean(axis=0) for name in pairs.families}
        every, means = np.stack(list(shares.values())), np.array([each.mean() for each in shares.values()])
        reports.append(
            {
                "weights": embedder.fingerprint,
                "families": {
                    name: {"models": int((family == name).sum()), "held": share.tolist()}
                    for name, share in shares.items()
                },
                "held": float(inside.mean()),
                "width": relative(wide, np.concatenate(width[0])),
                "cells": [int(((every >= 0.87) & (every <= 0.93)).sum()), every.size],
                "families_within": [int(((means >= 0.88) & (means <= 0.92)).sum()), len(means)],
            }
        )
    if args.json:
        print(json.dumps(reports, indent=1))
        return
    for report in reports:
        print(f"weights {report['weights']}")
        print("| family | models | descriptors in their intervals (lowest, highest) |\n|---|---|---|")
        for name, row in report["families"].items():
            share = np.array(row["held"])
            print(f"| {name} | {row['models']} | {share.mean():.3f} ({share.min():.2f}, {share.max():.2f}) |")
        print(
            "all {:.3f}; widths {:.2f} times the first weights' (median {:.2f}); within .87-.93: {} of {}; families "
            "within .88-.92: {} of {}".format(
                report["held"], *report["width"], *report["cells"], *report["families_within"]
            )
        )


if __name__ == "__main__":
    main()
