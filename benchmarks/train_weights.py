"""Make the shipped weights again, from seeds to safetensors: simulate on a GPU, train, calibrate, evaluate.

    python benchmarks/train_weights.py --out runs/weights            # one H100: about 25 minutes
    python benchmarks/train_weights.py --out runs/paper --config paper

Prints the report as JSON and leaves ``seisbind.safetensors`` and ``report.json`` in --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from seisbind.model.acquisition import EXACT, AcquisitionConfig, simulate_pairs
from seisbind.model.calibrate import calibrate
from seisbind.model.evaluate import evaluate
from seisbind.model.geology import EXTRA_FAMILIES, FAMILIES
from seisbind.model.inference import Embedder
from seisbind.model.pairs import PairSet, load_pairs, save_pairs
from seisbind.model.train import Progress, load_config, train
from seisbind.model.weights import Description, load_weights, save_weights

TRAIN_SEED, CALIBRATION_SEED, TEST_SEED = 11, 12, 13
EXTRA_SHARE = 0.2  # of the training pairs: families beyond OpenFWI's


def simulated(cache: Path, count: int, seed: int, families: tuple[str, ...], config: AcquisitionConfig) -> PairSet:
    """Pairs from ``cache`` where an earlier run left them, else simulated and left there."""
    recipe = json.dumps([count, seed, families, asdict(config)])
    folder = cache / hashlib.sha256(recipe.encode()).hexdigest()[:12]
    if not folder.exists():
        started = time.time()
        pairs = simulate_pairs(count, seed, families, config=config)
        print(f"simulated {count} pairs in {time.time() - started:.0f} s", file=sys.stderr, flush=True)
        save_pairs(folder, pairs)
        return pairs
    return load_pairs(folder).to("cuda")


def joined(a: PairSet, b: PairSet) -> PairSet:
    families = a.families + tuple(name for name in b.families if name not in a.families)
    moved = torch.tensor([families.index(name) for name in b.families], device=b.family.device)[b.family]
    fields = {name: torch.cat([getattr(a, name), getattr(b, name)]) for name in ("traces", "velocity", "descriptors")}
    return PairSet(**fields, family=torch.cat([a.family, moved]), families=families)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/pairs"), help="simulated pairs are kept here")
    parser.add_argument("--config", default="default", help="default, paper or a JSON file")
    parser.add_argument("--name", default="seisbind-1")
    parser.add_argument("--pairs", type=int, default=120_000)
    parser.add_argument("--held-out", type=int, default=2_000, help="pairs to calibrate on, and as many to test on")
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()

    started = time.time()
    extra = int(args.pairs * EXTRA_SHARE)
    pairs = joined(
        simulated(args.cache, args.pairs - extra, TRAIN_SEED, FAMILIES, AcquisitionConfig()),
        simulated(args.cache, extra, TRAIN_SEED + 100, EXTRA_FAMILIES, AcquisitionConfig()),
    )
    calibration = simulated(args.cache, args.held_out, CALIBRATION_SEED, FAMILIES, EXACT)
    test = simulated(args.cache, args.held_out, TEST_SEED, FAMILIES, EXACT)
    simulated_s = time.time() - started

    config = replace(load_config(args.config), steps=args.steps, batch=args.batch, checkpoint_every=1000)

    def say(progress: Progress) -> None:
        if progress.step % 100 == 0:
            text = f"step {progress.step}/{progress.steps} loss {progress.loss:.3f} {progress.samples_per_s:.0f}/s"
            print(text, file=sys.stderr, flush=True)

    encoders = train(pairs, config, args.out, resume=args.resume, progress=say)
    wall_s = time.time() - started
    training = {
        "pairs": len(pairs),
        "families": list(pairs.families),
        "seed": TRAIN_SEED,
        "samples": args.steps * args.batch,
        "config": asdict(config),
        "acquisition": asdict(AcquisitionConfig()),
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "simulation_s": round(simulated_s),
        "wall_s": round(wall_s),
    }
    path = args.out / "seisbind.safetensors"
    save_weights(path, encoders, Description(args.name, config.encoders, training))
    loaded = load_weights(path)  # what will be served: after rounding to float16
    if config.encoders.kind == "seisbind":
        measured = calibrate(Embedder(loaded), calibration)
        save_weights(path, loaded.encoders, Description(args.name, config.encoders, training, measured))
    result = evaluate(Embedder.load(path), test, gallery_size=min(1000, len(test)), seed=0)
    (args.out / "report.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result["overall"], indent=1))


if __name__ == "__main__":
    main()
