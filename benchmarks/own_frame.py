"""A line of one's own, end to end by the commands: simulate, train, evaluate, build a gallery, retrieve.

    python benchmarks/own_frame.py --out runs/kimberlina --count 6 --per-file 18 --steps 20 --family broad \
        --frame benchmarks/frames/kimberlina.json --survey benchmarks/frames/kimberlina_survey.json
    python benchmarks/own_frame.py --out runs/land-small --count 4 --per-file 32 --steps 20 \
        --frame benchmarks/frames/land_line.json

Small encoders and few pairs: it shows that the chain holds for a frame and how long it takes, not how good the
weights become. The record that is asked about is of ground that neither training nor the gallery has, at the survey's
positions. Prints a JSON object with the seconds of each command and the best match; the same command
goes on with its pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from seisbind.model.datasets.own_survey import load_survey, on_frame
from seisbind.model.frame import load_frame
from seisbind.model.ground.families import BROAD_FAMILIES, mixed
from seisbind.model.waves.wavefield import simulate

SEED = 99  # of the ground that is asked about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--frame", type=Path, required=True)
    parser.add_argument("--survey", type=Path)
    parser.add_argument("--family", default="broad")
    parser.add_argument("--count", type=int, default=4, help="pairs of each family")
    parser.add_argument("--per-file", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--gallery", type=int, default=60, help="models in it")
    args = parser.parse_args()
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    recipe = {"steps": args.steps, "batch": 8, "warmup": 2, "encoders": {"width": 8, "velocity_width": 8, "hidden": 32}}
    (out / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    for folder in ("run", "gallery"):
        shutil.rmtree(out / folder, ignore_errors=True)
    frame = load_frame(args.frame)
    survey = frame.survey
    if args.survey:
        survey = on_frame(load_survey(args.survey, depth_m=frame.cell_m), frame).survey
    seconds: dict[str, float] = {}

    def seisbind(*arguments: str | Path) -> str:
        command, start = [sys.executable, "-m", "seisbind", *map(str, arguments)], time.monotonic()
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds[str(arguments[0])] = round(time.monotonic() - start, 1)
        return said

    records = ("--survey", args.survey) if args.survey else ("--acquisitions", "any-line")
    simulation = ("--count", str(args.count), "--per-file", str(args.per_file), "--family", args.family)
    seisbind("simulate", out / "pairs", *simulation, "--frame", args.frame, "--processes", "1", *records)
    seisbind("train", "--data", out / "pairs", "--out", out / "run", "--config", out / "recipe.json", "--device", "cpu")
    weights = ("--weights", out / "run" / "weights.safetensors", "--device", "cpu")
    report = json.loads(seisbind("evaluate", "--data", out / "pairs", "--json", *weights))
    seisbind("gallery", "build", out / "gallery", "--count", str(args.gallery), "--family", args.family, *weights)
    models, families = mixed(1, SEED, BROAD_FAMILIES[:1], frame=frame)
    np.save(out / "record.npy", simulate(models, frame=frame, survey=survey)[0])
    line = ("--shot-x-m", commas(survey.shot_x_m), "--receiver-x-m", commas(survey.receiver_x_m))
    asked = ("--dt-s", f"{survey.dt_s:g}", "--gallery", out / "gallery", "--json", *weights)
    (answer,) = json.loads(seisbind("retrieve", out / "record.npy", *line, *asked)).values()
    (result,) = answer["results"]
    print(
        json.dumps(
            {
                "frame": str(frame),
                "record": {"family": str(families[0]), "shape": np.load(out / "record.npy", mmap_mode="r").shape},
                "held_out_pairs": report["overall"]["pairs"],
                "r_at_1": report["overall"]["seismic_to_velocity"]["r_at_1"],
                "best_match": {name: result["matches"][0][name] for name in ("model_id", "similarity")},
                "warnings": [each["code"] for each in result["warnings"]],
                "seconds": seconds,
            },
            indent=1,
        )
    )


def commas(x_m: tuple[float, ...]) -> str:
    return ",".join(f"{x:g}" for x in x_m)


if __name__ == "__main__":
    main()
