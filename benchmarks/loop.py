"""A survey's own lines answer for its next one: refined windows of a long line, kept in the gallery they were found by.

    python benchmarks/loop.py [--kinds Strata Smooth] [--windows 4] [--models 2000] [--iterations 16] [--seed 5]

A line of a kind of ground that no gallery of OpenFWI's families holds, in windows of one frame that overlap by half.
Records are made by OpenFWI's operator. The even windows are retrieved, refined, checked, and kept where the check finds
them usable, as `POST /v1/jobs/{id}/model` does. The odd windows between them are retrieved from the gallery before and
after. A line a kind: mean absolute error (m/s) of the odd windows' first match and of the mean of five before and
after, how many of their first matches are kept models, and how many refined windows were kept. One thread.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidVelocityModel
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.ground.families import mixed
from seisbind.model.ground.geology import draw_section
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig
from seisbind.model.scale import UNSCALED
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.keep import REFINED, check_refined, keep_refined
from seisbind.service.engine.query import Query
from seisbind.service.engine.refine import begin, find_starts

Float32 = NDArray[np.float32]
BESIDE = 30  # cells of the line on either side of a window, which its waves run through


def records(line: Float32, windows: int) -> tuple[Float32, Float32]:
    """Truths ``(window, depth, x)`` and gathers ``(window, shot, time, receiver)`` of windows that overlap by half."""
    frame, half = OPENFWI_FRAME, OPENFWI_FRAME.x_cells // 2
    own, by = frame.survey, BESIDE * frame.cell_m
    moved = Survey(tuple(x + by for x in own.shot_x_m), tuple(x + by for x in own.receiver_x_m), own.dt_s, own.peak_hz)
    truths, gathers = [], []
    for left in range(BESIDE, BESIDE + windows * half, half):
        truths.append(line[:, left : left + frame.x_cells])
        wide = line[:, left - BESIDE : left + frame.x_cells + BESIDE]
        gathers.append(simulate(wide, survey=moved, engine="openfwi")[0])
    return np.stack(truths).astype(np.float32), np.stack(gathers)


def found(engine: Engine, gathers: Float32, truths: Float32) -> tuple[float, float, int]:
    """Error of the first match, of the mean of five, and how many first matches are refined models."""
    first, mean, own = [], [], 0
    for (answer,), truth in zip(map(engine.retrieve, gathers), truths, strict=True):
        models = np.stack(engine.gallery.velocities([match.model_id for match in answer.matches]))
        first.append(float(np.abs(models[0] - truth).mean()))
        mean.append(float(np.abs(models.mean(axis=0) - truth).mean()))
        own += REFINED in engine.gallery.record(answer.matches[0].model_id).tags
    return float(np.mean(first)), float(np.mean(mean)), own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=["Strata", "Smooth"])
    parser.add_argument("--windows", type=int, default=4, help="that are refined; as many, less one, lie between them")
    parser.add_argument("--models", type=int, default=2000, help="of OpenFWI's families in the gallery")
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder, count = Embedder.load(), 2 * args.windows - 1
    with tempfile.TemporaryDirectory() as folder:
        velocity, family = mixed(args.models, args.seed)
        for kind in args.kinds:
            path = Path(folder) / kind
            build_gallery(path, embedder, [(velocity, family.tolist())], source="benchmark")
            x_cells = OPENFWI_FRAME.x_cells + (count - 1) * (OPENFWI_FRAME.x_cells // 2) + 2 * BESIDE
            line = draw_section(np.random.default_rng(args.seed), kind, x_cells).astype(np.float32)
            truths, gathers = records(line, count)
            with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
                engine = Engine(embedder, gallery)
                before = found(engine, gathers[1::2], truths[1::2])
                kept, errors = 0, []
                for gather, truth in zip(gathers[::2], truths[::2], strict=True):
                    query = Query.prepare(gather[None], OPENFWI_FRAME.survey, frame=engine.frame)
                    starts = find_starts(engine, query)
                    refinement = begin(query, starts, RefineConfig(iterations=args.iterations))
                    while not refinement.done:
                        refinement.step()
                    refined = refinement.result()
                    errors.append(float(np.abs(refined.velocity - truth).mean()))
                    try:
                        check = check_refined(Observed.of(query.prepared), refined.velocity, scale=UNSCALED)
                    except InvalidVelocityModel:
                        continue
                    parents = starts.parents(starts.names[refined.start])
                    keep_refined(engine, refined.velocity, check, parents=parents, by="refined by benchmarks/loop.py")
                    kept += 1
                after = found(engine, gathers[1::2], truths[1::2])
            print(
                f"{kind}: {kept} of {args.windows} refined windows kept (off by {np.mean(errors):.0f} m/s); between "
                f"them, first match {before[0]:.0f} -> {after[0]:.0f} m/s, mean of five {before[1]:.0f} -> "
                f"{after[1]:.0f} m/s, {after[2]} of {count // 2} first matches are kept models",
                flush=True,
            )


if __name__ == "__main__":
    main()
