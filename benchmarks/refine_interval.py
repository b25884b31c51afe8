"""The interval of refined models, fitted to drawn ones: `POWERS`, `GROUPS` and `WIDENED` of `inversion.interval`.

    python benchmarks/refine_interval.py --out fit.npz [--drawn 20] [--broad 10] [--of 20 10] [--seed 960]
                                         [--iterations 24] [--powers P P P]

Models of the ten families, and of the broad ones, are refined from the model that is read from records of OpenFWI's
operator, as `benchmarks/refine.py` does. What each leaves (error of each cell, `Remaining`) is kept in ``--out``, from
which the same command goes on. The 90 % quantile of the error's logarithm is then fitted linear in the logarithms of
what `spread_m_s` takes (linear programming), and a factor to each third of the misfits. Each is printed as fitted to
all, and what share of the cells of the odd models is held by what is fitted to the even ones. One thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import eye, hstack

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, mixed
from seisbind.model.inversion.interval import Remaining, spread_m_s
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig
from seisbind.model.inversion.refinement import Refinement
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.refine import prior_of

Float64 = NDArray[np.float64]
HELD = 0.9
CELLS = 200  # of a model that are fitted to
LEAST_M_S = 1.0  # errors below it are fitted as it


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
        "stated": left.stated,
        "misfit": np.array(left.misfit),
    }
    return {name: np.asarray(array, np.float32) for name, array in arrays.items()}


def fit(error: Float64, left: list[Remaining], rng: np.random.Generator) -> tuple[float, float, float]:
    """The powers."""
    some = rng.integers(0, error[0].size, (len(left), CELLS))
    logs = [
        np.stack([np.log(r.deviation.ravel()[at]), np.log(r.stated.ravel()[at]), np.full(CELLS, np.log(r.misfit))])
        for r, at in zip(left, some, strict=True)
    ]
    x = np.concatenate(logs, axis=1).T
    y = np.log(np.maximum(np.concatenate([e.ravel()[at] for e, at in zip(error, some, strict=True)]), LEAST_M_S))
    x = np.column_stack([np.ones(len(y)), x])
    cost = np.concatenate([np.zeros(x.shape[1]), np.full(len(y), HELD), np.full(len(y), 1 - HELD)])
    bounds = [(None, None)] * x.shape[1] + [(0, None)] * (2 * len(y))
    solved = linprog(cost, A_eq=hstack([x, eye(len(y)), -eye(len(y))]).tocsr(), b_eq=y, bounds=bounds, method="highs")
    first, second, third = (round(float(each), 2) for each in solved.x[1:4])
    return first, second, third


def factors(
    error: Float64, left: list[Remaining], powers: tuple[float, float, float], ends: Float64
) -> tuple[float, ...]:
    """One for each group."""
    ratio = np.stack([e / spread_m_s(r, powers) for e, r in zip(error, left, strict=True)])
    number = np.searchsorted(ends, [r.misfit for r in left])
    return tuple(float(np.quantile(ratio[number == each], HELD)) for each in range(len(ends) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drawn", type=int, default=20)
    parser.add_argument("--broad", type=int, default=10)
    parser.add_argument("--of", type=int, nargs=2, default=(20, 10), help="drawn, of which the first are taken")
    parser.add_argument("--seed", type=int, default=960)
    parser.add_argument("--powers", type=float, nargs=3, default=None, help="default: fitted")
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
        for count, of, known in zip((args.drawn, args.broad), args.of, (FAMILIES, BROAD_FAMILIES), strict=True)
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
    error = np.stack([kept[f"error{n}"] for n in range(len(names))]).astype(np.float64)
    left = [
        Remaining(
            kept[f"deviation{n}"].astype(np.float64),
            kept[f"stated{n}"].astype(np.float64),
            float(kept[f"misfit{n}"]),
            np.zeros((0, 0)),
        )
        for n in range(len(names))
    ]
    ends = np.round(np.quantile([r.misfit for r in left], [1 / 3, 2 / 3]), 3)
    rng = np.random.default_rng(args.seed)
    powers = fit(error, left, rng) if args.powers is None else tuple(args.powers)
    widened = factors(error, left, powers, ends)
    print(f"POWERS = {powers}\nGROUPS = {tuple(ends.tolist())}\nWIDENED = {tuple(float(f'{w:.4g}') for w in widened)}")
    half = fit(error[::2], left[::2], rng) if args.powers is None else powers
    of_half = factors(error[::2], left[::2], half, ends)
    number = np.searchsorted(ends, [r.misfit for r in left])
    for each in range(len(ends) + 1):
        odd = [n for n in range(1, len(left), 2) if number[n] == each]
        held = [(error[n] <= of_half[each] * spread_m_s(left[n], half)).mean() for n in odd]
        print(f"group {each}: {np.mean(held) if held else float('nan'):.1%} of the cells of {len(odd)} odd models")
    before, after = (np.mean([kept[f"{key}{n}"].mean() for n in range(len(names))]) for key in ("before", "error"))
    worse = sum(float(kept[f"error{n}"].mean() > kept[f"before{n}"].mean()) for n in range(len(names)))
    print(f"{len(names)} models: {before:.0f} -> {after:.0f} m/s on the mean, {worse:.0f} worse")


if __name__ == "__main__":
    main()
