"""One process of a run, for `test_ranks`: rank.py SHARDS OUT RECIPE STOP_AT, under torch.distributed.run or alone."""

import sys
from pathlib import Path

import torch

from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.training.ranks import joined
from seisbind.model.training.recipe import load_config
from seisbind.model.training.trainer import train

if __name__ == "__main__":
    torch.set_num_threads(1)
    shards, out, recipe, stop_at = sys.argv[1:]
    config = load_config(recipe)
    with joined("cpu") as ranks:
        pairs = load_pairs(Path(shards), rows=lambda count: ranks.rows(count, config.parts))
        train(pairs, config, Path(out), resume=True, stop_at=int(stop_at), ranks=ranks)
