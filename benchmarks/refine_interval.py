"""The interval of refined models, fitted to drawn ones: `WIDENED` of `inversion.interval`.

    python benchmarks/refine_interval.py --out fit.npz [--drawn 20] [--broad 10] [--of 20 10] [--seed 960]
                                         [--iterations 48]

Models of the ten families, and of the broad ones, are refined from the model that is read from records of OpenFWI's
operator, as `benchmarks/refine.py` does. The error of each cell, `Remaining.deviation` and the misfit of each are kept
in ``--out``, from which the same command goes on. Prints for each group of misfits the 90 % quantile of error over
deviation, over the cells of all its models, and what share of the cells of the odd ones is held by that of the even
ones. One thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import FAMILIES, FIRST_BROAD, mixed
from seisbind.model.inversion.interval import GROUPS, group
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig
from seisbind.model.inversion.refinement import Refinement
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.refine import prior_of

HELD = 0.9


def measure(truth: NDArray[np.float32], embedder: Embedder, config: RefineConfig) -> dict[str, NDArray[np.float32]]:
    """Error of each cell after a refinement, and what it left to doubt."""
    prepared = prepare(simulate(truth, engine="openfwi"))
    model = embedder.read_model(embedder.embed_gathers(prepared))
    if model is None:
        raise SystemExit("These weights read no model.")
    start = np.clip(model.value, *OPENFWI_FRAME.velocity_m_s)
    refinement = Refinement.begin(Observed.of(prepared), start, config, prior=prior_of(model))
    while not refinement.done:
        refinement.step()
    left = refinement.remaining()
    arrays = {
        "error": np.abs(refinement.velocity - truth),
        "before": np.abs(start[0] - truth),
        "deviation": left.deviation,
        "misfit": np.array(left.misfit),
    }
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawn", type=int, default=20)
    parser.add_argument("--broad", type=int, default=10)
    parser.add_argument("--of", type=int, nargs=2, default=(20, 10), help="drawn, of which the first are taken")
    parser.add_argument("--seed", type=int, default=960)
    parser.add_argument("--iterations", type=int, default=RefineConfig().iterations)
    parser.add_argument("--weights", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder, config = Embedder.load(args.weights), RefineConfig(iterations=args.iterations)
    kept: dict[str, NDArray[np.float32]] = {}
    if args.out.exists():
        with np.load(args.out, allow_pickle=False) as arrays:
            kept = dict(arrays)
    drawn = [
        (velocity[:count], families[:count])
        for count, of, known in zip((args.drawn, args.broad), args.of, (FAMILIES, FIRST_BROAD), strict=True)
        for velocity, families in [mixed(of, args.seed, known)]
    ]
    names = [str(name) for _, families in drawn for name in families]
    for number, (name, truth) in enumerate(zip(names, np.concatenate([v for v, _ in drawn]), strict=True)):
        if f"error{number}" not in kept:
            began = time.process_time()
            kept |= {f"{key}{number}": array for key, array in measure(truth, embedder, config).items()}
            np.savez(args.out, **kept)  # type: ignore[arg-type]
            print(
                f"{name} {number}: {kept[f'before{number}'].mean():.0f} -> {kept[f'error{number}'].mean():.0f} m/s, "
                f"misfit {float(kept[f'misfit{number}']):.4f}, {time.process_time() - began:.0f} s",
                flush=True,
            )
    numbers = range(len(names))
    ratio = np.stack([kept[f"error{n}"] / kept[f"deviation{n}"] for n in numbers])
    of = np.array([group(float(kept[f"misfit{n}"])) for n in numbers])
    for each in range(len(GROUPS) + 1):
        here = ratio[of == each]
        if not len(here):
            continue
        within = (here[1::2] <= np.quantile(here[::2], HELD)).mean() if len(here) > 1 else float("nan")
        print(
            f"group {each}: {len(here)} models, widened {np.quantile(here, HELD):.1f}; by the even ones "
            f"{within:.1%} of the cells of the odd ones"
        )
    before, after = (np.mean([kept[f"{key}{n}"].mean() for n in range(len(names))]) for key in ("before", "error"))
    worse = sum(float(kept[f"error{n}"].mean() > kept[f"before{n}"].mean()) for n in range(len(names)))
    print(f"{len(names)} models: {before:.0f} -> {after:.0f} m/s on the mean, {worse:.0f} worse")


if __name__ == "__main__":
    main()
