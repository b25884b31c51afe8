"""What of an answer is the best starting model for full-waveform inversion, over ground that nothing has seen:

    python benchmarks/starting_model.py [--models 100] [--seed 47] [--gallery-size 3000] [--weights W] [--json]

Models of all fifteen families, a third of which no gallery of OpenFWI's families holds, are simulated by deepwave
on OpenFWI's line and asked about, as uploaded records are, in a gallery of the ten OpenFWI families that holds none of
them. Candidates: the model that is read from the gather (`Retrieval.model`), the first match, the mean of the first
five, and the best straight line v(z) fitted to the truth, which nobody has. For each: mean absolute difference to the
truth, m/s, and the residual of the record simulated again from it, rms over the rms of the record. Ends with 1 where
the model that is read is not the closest on the mean of all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import EXTRA_FAMILIES, FAMILIES, mixed
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.terminal.console import counting

Float32 = NDArray[np.float32]

GALLERY_SEED = 1  # of `make demo`
FIRST = 5
NAMES = ("read model", "first match", f"mean of {FIRST}", "best straight v(z)")


def straight(truth: Float32) -> Float32:
    """The linear v(z) that is closest to a model ``(depth, x)``."""
    depth = np.arange(len(truth))
    slope, start = np.polyfit(depth, truth.mean(axis=1), 1)
    return np.repeat((start + slope * depth)[:, None], truth.shape[1], axis=1).astype(np.float32)


def candidates(engine: Engine, gather: Float32, truth: Float32) -> Float32:
    """``(candidate, depth, x)`` m/s, in the order of `NAMES`, within the frame's velocities."""
    (found,) = engine.retrieve(gather, engine.frame.survey, top_k=FIRST)
    assert found.model is not None
    matches = np.stack(engine.gallery.velocities([match.model_id for match in found.matches]))
    made = np.stack([found.model.value, matches[0], matches.mean(axis=0), straight(truth)])
    return np.clip(made, *engine.frame.velocity_m_s).astype(np.float32)


def measure(engine: Engine, truths: Float32) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean absolute difference, m/s, and residual, each ``(model, candidate)``."""
    off, residual = np.empty((2, len(truths), len(NAMES)))
    with counting("Simulating records and candidates", len(truths)) as progress:
        for number, truth in enumerate(truths):
            record = simulate(truth, engine="deepwave")[0]
            made = candidates(engine, record, truth)
            again = simulate(made, engine="deepwave")
            off[number] = np.abs(made - truth).mean(axis=(1, 2))
            residual[number] = np.sqrt(np.square(again - record).mean(axis=(1, 2, 3)) / np.square(record).mean())
            progress(number + 1)
    return off, residual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--seed", type=int, default=47)
    parser.add_argument("--gallery-size", type=int, default=3000)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder.load(args.weights)
    truths, family = mixed(args.models, args.seed, FAMILIES + EXTRA_FAMILIES)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery"
        build_gallery(path, embedder, [mixed(args.gallery_size, GALLERY_SEED)], source="benchmark")
        with Gallery.open(path, fingerprint=embedder.fingerprint) as gallery:
            off, residual = measure(Engine(embedder, gallery), truths)
    groups = {"all": np.ones(len(truths), bool), "OpenFWI's families": np.isin(family, FAMILIES)}
    groups["others"] = ~groups["OpenFWI's families"]
    rows: list[dict[str, Any]] = [
        {"ground": ground, "models": int(some.sum()), "candidate": name, "mae_m_s": float(off[some, at].mean()),
         "residual": float(residual[some, at].mean())}
        for ground, some in groups.items()
        for at, name in enumerate(NAMES)
        if some.any()
    ]  # fmt: skip
    if args.json:
        about = {"weights": embedder.fingerprint, "frame": OPENFWI_FRAME.name, "seed": args.seed}
        print(json.dumps(about | {"gallery_size": args.gallery_size, "rows": rows}, indent=1))
    else:
        print(
            f"weights {embedder.fingerprint}, {args.models} models (seed {args.seed}), gallery of {args.gallery_size}"
        )
        print("| ground | starting model | off the truth, m/s | residual of its record |\n|---|---|---|---|")
        for row in rows:
            ground = f"{row['ground']}, {row['models']}"
            print(f"| {ground} | {row['candidate']} | {row['mae_m_s']:.0f} | {row['residual']:.2f} |")
    ours = off.mean(axis=0)[: len(NAMES) - 1]
    sys.exit(int(ours.argmin() != 0))


if __name__ == "__main__":
    main()
