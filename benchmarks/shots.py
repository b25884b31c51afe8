"""What records of one to eighteen shots are answered with, all of their shots used and five of them.

    python benchmarks/shots.py [--models 150] [--seed 29] [--weights W] [--cache runs/shots] [--json]

Eighteen shots every 40 m are simulated by deepwave over models of the ten families; records of fewer are some of these
shots, spread evenly. Each record goes the whole way of an uploaded one, with the choice of five shots that
`preparation.prepare` makes (after), and without it (before). Columns: share of the true descriptors in the 90 %
intervals (all thirteen; the worst of them), the error of the mean velocity, R@1 among the models and --others more, and
the share called unlike training. Ends with 1 where records of more than five shots are covered .03 worse than those of
five.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.confidence.novelty import measure
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import Survey
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed
from seisbind.model.survey import shots as choice
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.model.training.evaluation import coverage, descriptor_errors, recall_among
from seisbind.model.waves.wavefield import simulate
from seisbind.service.commands.console import counting

Array = NDArray[np.float32]

SHOTS_M = tuple(40.0 * i for i in range(18))
RECORDS = {1: (8,), 3: (0, 8, 17), 5: (0, 4, 8, 13, 17), 9: tuple(range(0, 18, 2)), 18: tuple(range(18))}
DT_S = 0.004  # of what is kept: all that the encoders see
OTHERS_SEED = 31
ALLOWED = 0.03


def recorded(velocity: Array, cache: Path) -> Array:
    """``(model, 18, 250, 70)`` at 4 ms; each model is kept in ``cache``."""
    survey = replace(OPENFWI, shot_x_m=SHOTS_M)
    cache.mkdir(parents=True, exist_ok=True)
    gathers = []
    with counting("Simulating gathers (18 shots)", len(velocity)) as progress:
        for number, model in enumerate(velocity):
            at = cache / f"{number}.npy"
            if not at.exists():
                shots = simulate(model, survey=survey, engine="deepwave")[0]
                every_shot = [prepare(shot[None], replace(survey, shot_x_m=(x,))).traces[0] for shot, x in
                              zip(shots, SHOTS_M, strict=True)]  # fmt: skip
                part = at.with_suffix(".part.npy")
                np.save(part, np.concatenate(every_shot))
                part.rename(at)
            gathers.append(np.load(at, allow_pickle=False))
            progress(number + 1)
    return np.stack(gathers)


def answered(embedder: Embedder, gathers: Array, used: tuple[int, ...], gallery: Array, truth: Array) -> dict[str, Any]:
    survey = Survey(tuple(SHOTS_M[i] for i in used), OPENFWI.receiver_x_m, DT_S, OPENFWI.peak_hz)
    prepared = prepare(gathers[:, list(used)], survey)
    encoded = embedder.embed_gathers(prepared)
    physics = embedder.infer_physics(encoded, None)
    covered = coverage(physics, truth)
    verdicts = embedder.judge_novelty(measure(prepared), encoded) or []
    return {
        "used": prepared.traces.shape[1],
        "covered": float(covered.mean()),
        "least": float(covered.min()),
        "mean_velocity": descriptor_errors(physics.value, truth, truth.std(axis=0))["mean_velocity"],
        "r_at_1": recall_among(encoded.embedding, gallery)["r_at_1"],
        "unlikely": float(np.mean([not verdict.likely for verdict in verdicts])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=150)
    parser.add_argument("--others", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=29)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=Path("runs/shots"), help="simulated gathers are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder.load(args.weights)
    velocity, _ = mixed(args.models, args.seed)
    gathers, truth = recorded(velocity, args.cache / f"{args.seed}-{args.models}"), describe(velocity)
    gallery = embedder.embed_velocity(np.concatenate([velocity, mixed(args.others, OTHERS_SEED)[0]]))
    rows: list[dict[str, Any]] = []
    limit, chosen = len(embedder.frame.shot_x_m), choice.spread_shots
    for when, choose in (("before", lambda x_m, *more, count, min_step_m: np.arange(len(x_m))), ("after", chosen)):
        choice.spread_shots = choose
        for shots, used in RECORDS.items():
            rows.append({"shots": shots, "when": when} | answered(embedder, gathers, used, gallery, truth))
    if args.json:
        about = {"weights": embedder.fingerprint, "models": args.models, "seed": args.seed, "gallery": len(gallery)}
        print(json.dumps(about | {"rows": rows}, indent=1))
    else:
        print(f"weights {embedder.fingerprint}, {args.models} models (seed {args.seed}), gallery of {len(gallery)}")
        print(
            "| shots | used | in the intervals | mean velocity, % | R@1 | called unlike training |\n" + 6 * "|---" + "|"
        )
        for row in rows:
            print(
                f"| {row['shots']}, {row['when']} | {row['used']} | {row['covered']:.2f} ({row['least']:.2f}) | "
                f"{row['mean_velocity']:.1f} | {row['r_at_1']:.3f} | {row['unlikely']:.3f} |"
            )
    after = {row["shots"]: row["covered"] for row in rows if row["when"] == "after"}
    sys.exit(any(after[shots] < after[limit] - ALLOWED for shots in after if shots > limit))


if __name__ == "__main__":
    main()
