"""Weights for a land line of one's own, from seeds: simulate, train, calibrate, and measure on ground never seen.

    python benchmarks/land_line.py --out runs/land                       # 10,000 pairs, 1,500 steps
    python benchmarks/land_line.py --out runs/toy --pairs 64 --steps 4 --batch 16 --width 8

The line is benchmarks/frames/land_line.json: 48 receivers every 5 m, five shots, a 20 Hz wavelet, and ground of 500 to
1500 m/s down to 120 m in cells of 2.5 m, which give 4.5 cells to the shortest wavelength at 500 m/s. That is OpenFWI's
scaled by lengths of 1/4 and velocities of 1/3, with another spread. Acquisitions vary as `acquisition.ANY_LINE` has
them, ground is OpenFWI's ten families and, twice as often, the six broad ones.

One thread. Run the same command again to go on: pairs, checkpoint and weights depend on the arguments alone. Prints a
JSON object, and leaves ``weights.safetensors`` and ``report.json`` in --out. Intervals are calibrated on pairs that
neither training nor the test has.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seisbind.model.confidence.presence import coarse
from seisbind.model.datasets.acquisition import ANY_LINE, EXACT, AcquisitionConfig, simulate_pairs
from seisbind.model.datasets.pairs import PairSet, load_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.weights_file import load_weights
from seisbind.model.frame import load_frame
from seisbind.model.ground.families import FAMILIES, FIRST_BROAD
from seisbind.model.training.evaluation import embed, evaluate
from seisbind.model.training.recipe import BROAD, TrainConfig
from seisbind.model.training.run import WEIGHTS, Stage, train_weights
from seisbind.model.training.trainer import Progress

TURNS = (*FAMILIES, *FIRST_BROAD, *FIRST_BROAD)
SEEDS = {"train": 31, "calibration": 32, "test": 33, "exact": 34}
LEAST = 20  # pairs of the smaller sets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/land"))
    parser.add_argument("--frame", type=Path, default=Path(__file__).parent / "frames" / "land_line.json")
    parser.add_argument(
        "--pairs", type=int, default=10_000, help="to train on; a tenth as many to calibrate and to test"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--width", type=int, help="of small encoders, for a trial; default: that of the recipe")
    parser.add_argument("--processes", type=int, default=1, help="that simulate")
    args = parser.parse_args()
    torch.set_num_threads(1)
    frame = load_frame(args.frame)
    seconds: dict[str, float] = {}

    def simulated(name: str, config: AcquisitionConfig = ANY_LINE) -> PairSet:
        count = args.pairs if name == "train" else min(1000, max(LEAST, args.pairs // 10))
        folder, start = args.out / "pairs" / name, time.monotonic()
        simulate_pairs(
            folder,
            count,
            SEEDS[name],
            TURNS,
            config=config,
            frame=frame,
            processes=args.processes,
            progress=counter(name),
        )
        seconds[f"simulate {name}"] = round(time.monotonic() - start, 1)
        return load_pairs(folder)

    def say(progress: Progress) -> None:
        if progress.step % 10 == 0 or progress.step == progress.steps:
            tell(f"step {progress.step}/{progress.steps} loss {progress.loss:.3f} {progress.samples_per_s:.0f} pairs/s")

    weights = args.out / WEIGHTS
    if not weights.exists():
        pairs = simulated("train")
        start = time.monotonic()
        train_weights(
            [Stage(lambda: pairs)],
            recipe(args.steps, args.batch, args.width),
            args.out,
            name="land-line",
            training={"families": list(dict.fromkeys(TURNS)), "acquisition": asdict(ANY_LINE)},
            held_out=lambda: simulated("calibration"),
            resume=True,
            device="cpu",
            progress=say,
        )
        seconds["train"] = round(time.monotonic() - start, 1)
    embedder = Embedder.load(weights, device="cpu")
    report: dict[str, Any] = {
        "weights": embedder.fingerprint,
        "training": load_weights(weights).description.training,
        "any line": measured(embedder, simulated("test")),
        "as the frame has it": measured(embedder, simulated("exact", EXACT)),
        "seconds": seconds,
    }
    (args.out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(json.dumps({name: value for name, value in report.items() if name != "training"}, indent=1))


def recipe(steps: int, batch: int, width: int | None) -> TrainConfig:
    """The default recipe with the spreads and sources of `recipe.BROAD` and its stated errors."""
    base = TrainConfig()
    encoders = replace(base.encoders, map_error=1)
    if width is not None:
        encoders = replace(encoders, width=width, velocity_width=width, hidden=4 * width)
    return replace(
        base,
        encoders=encoders,
        loss=replace(base.loss, map_error=BROAD.loss.map_error),
        augment=BROAD.augment,
        steps=steps,
        batch=batch,
        warmup=min(base.warmup, max(1, steps // 4)),
    )


def measured(embedder: Embedder, pairs: PairSet) -> dict[str, float]:
    """What the model card has, of pairs whose models are the gallery; errors are of models that are not in it."""
    overall = evaluate(embedder, pairs)["overall"]
    novel = overall["descriptors"]["novel"]
    covered = list(novel["interval_coverage"].values())
    found = embed(embedder, pairs)
    assert found.gathers.velocity is not None  # which only the paper's encoders lack
    truth = coarse(found.models, found.gathers.velocity.shape[-1])
    return {
        "pairs": len(pairs),
        "r_at_1": overall["seismic_to_velocity"]["r_at_1"],
        "r_at_5": overall["seismic_to_velocity"]["r_at_5"],
        "mean_velocity_error_percent": novel["inferred"]["mean_velocity"],
        "interval_coverage": float(np.mean(covered)),
        "interval_coverage_lowest": min(covered),
        "read_mae_m_s": float(np.abs(found.gathers.velocity - truth).mean()),
        "top1_mae_m_s": overall["structure"]["top1_mae_m_s"],
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def counter(name: str):  # type: ignore[no-untyped-def]
    def count(done: int, total: int) -> None:
        if done % 200 < 8 or done == total:
            tell(f"{name}: {done} of {total} pairs simulated")

    return count


if __name__ == "__main__":
    main()
