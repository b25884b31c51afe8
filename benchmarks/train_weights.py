r"""Make the shipped weights again, from seeds to safetensors: simulate, train, calibrate, evaluate.

    python benchmarks/train_weights.py --only test                       # the 1,000 pairs of the model card's table
    python benchmarks/train_weights.py --only train &                    # simulate on one core ..
    python benchmarks/train_weights.py --out runs/1                      # .. and train on the other as pairs arrive
    python benchmarks/train_weights.py --config further --set more --start runs/1/weights.safetensors --out runs/2
    python benchmarks/train_weights.py --config larger --set third --before more \
        --start runs/2/weights.safetensors --out runs/3
    python benchmarks/train_weights.py --config reading --set fourth --before more third \
        --start runs/3/weights.safetensors --out runs/4
    python benchmarks/train_weights.py --config errors --set errors --before clean \
        --start runs/4/weights.safetensors --out runs/errors
    python benchmarks/train_weights.py --config kinds --set blocks --before clean lines blocks-lines \
        --start runs/errors/weights.safetensors --out runs/kinds
    python benchmarks/train_weights.py --config kinds --calibrate \
        --start runs/kinds/weights.safetensors --out runs/calibrated
    python benchmarks/train_weights.py --config paper --out runs/paper   # the baseline, on the pairs of the first

The shipped weights are made by the first six runs, and the calibration after them: each goes on from the one before,
with pairs of its own; what a run names after --before has to be there (--only).
Every step goes on where an earlier run of the same command stopped. Prints the report as JSON, and leaves
``weights.safetensors`` and ``report.json`` in --out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from seisbind.model.datasets.acquisition import ANY_LINE, EXACT, AcquisitionConfig, simulate_pairs
from seisbind.model.datasets.pairs import SHARD, PairSet, load_pairs, shard_path
from seisbind.model.datasets.writer import CHUNK, only_writer
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.weights_file import load_weights, save_weights
from seisbind.model.errors import DatasetError
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, FIRST_BROAD, mixed
from seisbind.model.training.calibration import OTHERS, calibrate
from seisbind.model.training.evaluation import evaluate
from seisbind.model.training.recipe import load_config
from seisbind.model.training.run import WEIGHTS, Stage, train_weights
from seisbind.model.training.trainer import Progress

TURNS = (*FAMILIES, *FIRST_BROAD, *FIRST_BROAD)  # six of eleven pairs are of broad ground
MORE_TURNS = (*FAMILIES, *5 * BROAD_FAMILIES[len(FIRST_BROAD) :])  # the others, half of the pairs
# name: (pairs, seed, acquisitions, families); the last six are never trained on
SETS = {
    "train": (32_000, 11, AcquisitionConfig(), FAMILIES),
    "more": (32_000, 16, AcquisitionConfig(), FAMILIES),
    "third": (24_000, 17, AcquisitionConfig(), FAMILIES),
    "fourth": (20_000, 18, AcquisitionConfig(), FAMILIES),
    "broad": (24_000, 21, ANY_LINE, TURNS),
    "lines": (16_000, 21, ANY_LINE, TURNS),  # the first of these
    "clean": (6_000, 25, EXACT, TURNS),
    "errors": (10_000, 24, ANY_LINE, TURNS),
    "blocks": (6_000, 27, EXACT, MORE_TURNS),
    "blocks-lines": (4_000, 28, ANY_LINE, MORE_TURNS),
    "calibration": (8_000, 12, EXACT, FAMILIES),
    "held-out": (4_000, 22, ANY_LINE, TURNS),
    "exact": (3_000, 23, EXACT, TURNS),
    "blocks-held-out": (2_000, 29, EXACT, MORE_TURNS),
    "test": (1_000, 13, EXACT, FAMILIES),
    "coverage": (10_000, 15, EXACT, FAMILIES),
}
# (until this share of the steps, pairs): training starts while the rest is being simulated in another process
GROWTH = {
    "train": ((0.15, 10_000), (0.5, 20_000), (1.0, 32_000)),
    "third": ((0.2, 6_000), (0.45, 14_000), (0.7, 22_000), (1.0, 24_000)),
    "fourth": ((0.1, 2_000), (0.25, 10_000), (1.0, 20_000)),
    "broad": ((0.07, 5_000), (0.15, 8_000), (0.3, 12_000), (0.55, 18_000), (1.0, 24_000)),
    "more": ((0.3, 14_000), (0.55, 20_000), (0.8, 26_000), (1.0, 32_000)),
} | {name: ((1.0, SETS[name][0]),) for name in ("lines", "clean", "errors", "blocks", "blocks-lines")}
# What weights of a set are calibrated on
HELD_OUT = {
    FAMILIES: ("calibration",),
    TURNS: ("exact", "held-out"),
    MORE_TURNS: ("exact", "held-out", "blocks-held-out"),
}
CALIBRATED = ("calibration", *HELD_OUT[MORE_TURNS])  # what --calibrate is on
PATIENCE_S = 10
OTHERS_SEED, PART = 1400, 2_000  # the first seed of further models for the calibration, and how many a seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/default"))
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs"), help="folder of the simulated pairs")
    parser.add_argument(
        "--config",
        default="default",
        help="default, further, larger, reading, broad, errors, kinds, paper or a JSON file",
    )
    parser.add_argument("--start", type=Path, help="weights to go on from; default: random ones")
    parser.add_argument("--set", choices=list(GROWTH), default="train", help="pairs to train on")
    parser.add_argument("--before", choices=list(GROWTH), nargs="*", default=[], help="sets to train on beside it")
    parser.add_argument("--name", default="seisbind-1")
    parser.add_argument(
        "--calibrate", action="store_true", help="fit the intervals of --start again, and train nothing"
    )
    parser.add_argument("--only", choices=list(SETS), help="simulate this set of pairs, and stop")
    parser.add_argument("--threads", type=int, default=1, help="that train; leave a core to a run of --only beside it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def simulated(*names: str) -> PairSet:
        for name in names:
            count, seed, acquisition, families = SETS[name]
            simulate_pairs(args.pairs / name, count, seed, families, config=acquisition, progress=counter(name))
        *before, last = (args.pairs / name for name in names)
        return load_pairs(last, before=before)

    if args.only:
        simulated(args.only)
        return
    config = load_config(args.config)

    def say(progress: Progress) -> None:
        if progress.step % 10 == 0:
            tell(f"step {progress.step}/{progress.steps} loss {progress.loss:.3f} {progress.samples_per_s:.0f} pairs/s")

    def first_pairs(count: int) -> PairSet:
        if not simulating(args.pairs / args.set, count):
            simulated(args.set)
        pairs = load_pairs(args.pairs / args.set, count, before=[args.pairs / name for name in args.before])
        if len(pairs) != (wanted := count + sum(SETS[name][0] for name in args.before)):
            parser.error(f"{len(pairs)} of {wanted} pairs are there; simulate {', '.join(args.before)} first (--only)")
        return pairs

    start = load_weights(args.start) if args.start else None
    families = SETS[args.set][3]
    if args.calibrate:
        if start is None:
            parser.error("--calibrate needs --start")
        kept = start.description.calibration
        own_line = np.concatenate([np.full(SETS[name][0], SETS[name][2] is EXACT) for name in CALIBRATED])
        pairs = simulated(*CALIBRATED)
        calibration = calibrate(Embedder(start), pairs, seen=None, augment=config.augment, kept=kept, own_line=own_line)
        made = {"start": start.as_start, "calibrated": {name: SETS[name][:2] for name in CALIBRATED}}
        description = replace(start.description, calibration=calibration, training=start.description.training | made)
        print(save_weights(args.out / WEIGHTS, start.encoders, description))
        return
    training = {
        "start": start and start.as_start,
        "families": list(dict.fromkeys(name for each in (*args.before, args.set) for name in SETS[each][3])),
        "sets": {name: SETS[name][:2] for name in (*args.before, args.set, *HELD_OUT[families])},  # pairs and seed
        "others": (OTHERS, OTHERS_SEED),
        "samples": config.steps * config.batch,
        "acquisitions": {each: asdict(SETS[each][2]) for each in (*args.before, args.set)},
    }
    train_weights(
        [Stage(partial(first_pairs, count), until) for until, count in GROWTH[args.set]],
        config,
        args.out,
        name=args.name,
        training=training,
        start=start and start.encoders,
        start_calibration=start and start.description.calibration,
        held_out=lambda: simulated(*HELD_OUT[families]),
        others=lambda: np.concatenate([mixed(PART, OTHERS_SEED + i)[0] for i in range(OTHERS // PART)]),
        resume=True,
        progress=say,
    )
    report = evaluate(Embedder.load(args.out / WEIGHTS), simulated("test"))
    (args.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps(report["overall"], indent=1))


def simulating(folder: Path, count: int) -> bool:
    """Wait until the first ``count`` pairs are in ``folder``; False when nobody is making them."""
    while not all(shard_path(folder, number).exists() for number in range(count // SHARD)):
        try:
            with only_writer(folder):
                return False
        except DatasetError:
            time.sleep(PATIENCE_S)  # another process holds the folder
    return True


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def counter(name: str):  # type: ignore[no-untyped-def]
    def count(done: int, total: int) -> None:
        if done % SHARD < CHUNK or done == total:
            tell(f"{name}: {done} of {total} pairs simulated")

    return count


if __name__ == "__main__":
    main()
