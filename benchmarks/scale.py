"""Whether a line of any size is the frame's own to the encoders: embeddings and first matches at each scale.

    python benchmarks/scale.py [--models 20] [--others 2000] [--seed 41] [--weights W] [--json]

Models of the ten families are simulated by deepwave at their true size (cells of s times 10 m, velocities k times as
fast, a Ricker of k / s times 15 Hz) and, for comparison, in the frame; the frame's own records are also relabelled as
those of the true size. Each goes the whole way of an uploaded record. Columns: the largest difference of a number of
an embedding from the frame's own, and the share of records with the same first match among the models and --others
more. Ends with 1 where a difference exceeds 1e-4 or a first match is another.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import Survey
from seisbind.model.ground.families import mixed
from seisbind.model.scale import Scale
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.query import Query
from seisbind.service.terminal.console import counting

Array = NDArray[np.float32]

SCALES = [Scale(s, k) for s in (0.1, 1.0, 3.0, 10.0) for k in (0.4, 1.0, 1.2)]
OTHERS_SEED = 43
ALLOWED = 1e-4


def embedded(embedder: Embedder, gathers: Array, survey: Survey, scale: Scale | None) -> Array:
    query = Query.prepare(gathers, survey, frame=embedder.frame, scale=scale)
    return embedder.embed_gathers(query.prepared).embedding


def recorded(velocity: Array, embedder: Embedder, scale: Scale) -> Array:
    """``(model, shot, time, receiver)`` of the frame's models at their true size."""
    own = scale.frame(embedder.frame)
    with counting(f"Simulating at {scale.text}", len(velocity)) as progress:
        gathers = []
        for number, model in enumerate(velocity):
            gathers.append(simulate(model * np.float32(scale.k), frame=own)[0])
            progress(number + 1)
    return np.stack(gathers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--others", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder.load(args.weights, device="cpu")
    velocity, _ = mixed(args.models, args.seed, frame=embedder.frame)
    others, _ = mixed(args.others, OTHERS_SEED, frame=embedder.frame)
    gallery = embedder.embed_velocity(np.concatenate([velocity, others]))
    gathers = recorded(velocity, embedder, Scale())
    own = embedded(embedder, gathers, embedder.frame.survey, None)
    first = (own @ gallery.T).argmax(axis=1)
    rows: list[dict[str, Any]] = []
    for scale in SCALES:
        for how, record in (("relabelled", gathers), ("simulated", recorded(velocity, embedder, scale))):
            found = embedded(embedder, record, scale.frame(embedder.frame).survey, scale)
            same = float(((found @ gallery.T).argmax(axis=1) == first).mean())
            rows.append(
                {
                    "s": scale.s,
                    "k": scale.k,
                    "record": how,
                    "difference": float(np.abs(found - own).max()),
                    "same": same,
                }
            )
    if args.json:
        about = {"weights": embedder.fingerprint, "models": args.models, "seed": args.seed, "gallery": len(gallery)}
        print(json.dumps(about | {"rows": rows}, indent=1))
    else:
        print(f"weights {embedder.fingerprint}, {args.models} models (seed {args.seed}), gallery of {len(gallery)}")
        print("| s | k | record | largest difference of an embedding | same first match |\n" + 5 * "|---" + "|")
        for row in rows:
            print(f"| {row['s']:g} | {row['k']:g} | {row['record']} | {row['difference']:.1e} | {row['same']:.3f} |")
    sys.exit(any(row["difference"] > ALLOWED or row["same"] < 1 for row in rows))


if __name__ == "__main__":
    main()
