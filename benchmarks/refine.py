"""Error of a velocity model before and after refinement, over real maps that nothing was trained on, from data alone:

    python benchmarks/refine.py [--maps ../shared/data/openfwi_dev.npz] [--keys K ...] [--each 2] [--first 0]
                                [--iterations 48] [--lowest SHARE] [--against-smoothed] [--no-prior] [--weights W]
    python benchmarks/refine.py --drawn 10 --seed 950 [--broad] [--iterations 12] [--free-surface [--absorbing]]

Records are made by OpenFWI's operator (`simulate(engine="openfwi")`), the inversion models waves with deepwave on
other time steps, and is told nothing about the source. It starts from the model that is read from the record. A line a
map, as it is done: mean absolute error (m/s) of the read model and of the refined one, residual, share of the cells in
their 90 % interval, iterations, seconds of a core. ``--lowest`` removes what lies below that share of the peak
frequency from the record first. ``--against-smoothed`` also starts from the truth smoothed by ten cells, and prints
how many iterations each start needs to the error that the smoothed truth ends with, and a key's median of their ratio.
``--no-prior`` leaves out what the read model says of its own error. Medians and quartiles end each key. ``--drawn``
refines models of the drawn families (with ``--broad``, of the broad ones) in place of the maps, of which two different
seeds have none in common. ``--free-surface`` makes records with one, by deepwave, and ``--absorbing`` refines them
without all the same; a line ends with the surface that waves were modelled with. Ends with the mean of all, and for
each group of final misfits (`inversion.interval`) the share of cells in the interval, its median width, and the 90 %
quantile of error over half-width: 1 for an interval that keeps its word.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import butter, sosfiltfilt

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import FAMILIES, FIRST_BROAD, mixed
from seisbind.model.inversion.interval import GROUPS, group
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig, Refined
from seisbind.model.inversion.refinement import Refinement
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import FREE_SURFACE, simulate
from seisbind.service.engine.refine import prior_of

Float32 = NDArray[np.float32]
SMOOTHED_CELLS = 10.0


def refine(
    observed: Observed, start: Float32, truth: Float32, config: RefineConfig, prior: Float32 | None = None
) -> tuple[list[float], Refined]:
    """The model's mean absolute error before and after each iteration, and what came of it."""
    refinement = Refinement.begin(observed, start[None], config, prior=prior)
    errors = [float(np.abs(start - truth).mean())]
    while not refinement.done:
        refinement.step()
        errors.append(float(np.abs(refinement.velocity - truth).mean()))
    return errors, refinement.result()


def ground_of(args: argparse.Namespace) -> dict[str, list[tuple[int, Float32]]]:
    """Numbers and maps of each key or family."""
    ground: dict[str, list[tuple[int, Float32]]] = {}
    if args.drawn is not None:
        velocity, families = mixed(args.drawn, args.seed, FIRST_BROAD if args.broad else FAMILIES)
        for number, (family, truth) in enumerate(zip(families.tolist(), velocity, strict=True)):
            ground.setdefault(family, []).append((number, truth))
        return ground
    if not args.maps.exists():
        sys.exit(f"No maps at {args.maps}: give --maps an npz of (n, 70, 70) velocity models, a kind of ground a key.")
    with np.load(args.maps, allow_pickle=False) as maps:
        for key in args.keys or list(maps.files):
            numbers = np.linspace(0, len(maps[key]) - 1, args.each).round().astype(int)[args.first :]
            ground[key] = list(zip(numbers.tolist(), maps[key][numbers].astype(np.float32), strict=True))
    return ground


def until(errors: list[float], reached: float) -> float:
    """The first iteration at which an error is reached; infinite where it is not."""
    return next((float(number) for number, error in enumerate(errors) if error <= reached), np.inf)


def spread_of(values: list[float], form: str = ".0f") -> str:
    """Median and quartiles."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, default=Path("../shared/data/openfwi_dev.npz"))
    parser.add_argument("--keys", nargs="*", help="default: all")
    parser.add_argument("--each", type=int, default=2, help="maps of a key, evenly from its first to its last")
    parser.add_argument("--first", type=int, default=0, help="of the maps of a key, leave out as many")
    parser.add_argument("--iterations", type=int, default=RefineConfig().iterations)
    parser.add_argument("--lowest", type=float, default=None)
    parser.add_argument("--against-smoothed", action="store_true")
    parser.add_argument("--no-prior", action="store_true")
    parser.add_argument("--drawn", type=int, default=None, metavar="N")
    parser.add_argument("--seed", type=int, default=950)
    parser.add_argument("--broad", action="store_true")
    parser.add_argument("--free-surface", action="store_true")
    parser.add_argument("--absorbing", action="store_true", help="refine without a free surface, whatever the record")
    parser.add_argument("--weights", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder, frame = Embedder.load(args.weights), OPENFWI_FRAME
    config = RefineConfig(iterations=args.iterations, free_surface=False if args.absorbing else None)
    ratios: dict[int, list[tuple[NDArray[np.float64], float]]] = {}
    means = []
    for key, truths in ground_of(args).items():
        before, after, left, faster = [], [], [], []
        for number, truth in truths:
            prepared = prepare(
                simulate(truth, boundary=FREE_SURFACE) if args.free_surface else simulate(truth, engine="openfwi")
            )
            if args.lowest is not None:
                corner = butter(8, args.lowest * frame.peak_hz, "highpass", fs=1 / frame.dt_s, output="sos")
                without = sosfiltfilt(corner, prepared.traces, axis=2).astype(np.float32)
                prepared = replace(prepared, traces=without)
            model = embedder.read_model(embedder.embed_gathers(prepared))
            if model is None:
                sys.exit("These weights read no model.")
            start = np.clip(model.value[0], *frame.velocity_m_s)
            began, observed = time.process_time(), Observed.of(prepared)
            prior = None if args.no_prior else prior_of(model)
            errors, refined = refine(observed, start, truth, config, prior)
            inside = float(((refined.low <= truth) & (truth <= refined.high)).mean())
            half = np.maximum(refined.high - refined.velocity, refined.velocity - refined.low)
            width = float(np.median(refined.high - refined.low))
            ratios.setdefault(group(refined.misfit), []).append(
                (np.abs(refined.velocity - truth) / np.maximum(half, 1e-3), width)
            )
            means.append((errors[0], errors[-1], inside))
            before.append(errors[0])
            after.append(errors[-1])
            left.append(refined.residual_after)
            print(
                f"{key} {number}: {errors[0]:.0f} -> {errors[-1]:.0f} m/s, "
                f"residual {refined.residual_before:.4f} -> {refined.residual_after:.4f}, "
                f"{inside:.0%} within, {len(errors) - 1} iterations, {time.process_time() - began:.0f} s; at each "
                f"fourth: {' '.join(f'{error:.0f}' for error in errors[::4])}; "
                f"{'free' if refined.free_surface else 'absorbing'} surface",
                flush=True,
            )
            if args.against_smoothed:
                smoothed = gaussian_filter(truth, SMOOTHED_CELLS, mode="nearest")
                theirs, _ = refine(observed, smoothed, truth, config, prior)
                steps = until(errors, theirs[-1]), until(theirs, theirs[-1])
                faster.append(steps[0] / steps[1] if steps[1] else np.inf)
                print(
                    f"{key} {number}: from the smoothed truth {theirs[0]:.0f} -> {theirs[-1]:.0f} m/s in "
                    f"{steps[1]:.0f} iterations; to that from the read model {steps[0]:.0f}",
                    flush=True,
                )
        print(
            f"{key}: median (quartiles) of {len(after)}: {spread_of(before)} -> {spread_of(after)} m/s, residual "
            f"{spread_of(left, '.4f')}, {sum(a > b for a, b in zip(after, before, strict=True))} worse than read"
            + (f"; iterations over the smoothed truth's {np.median(faster):.2f}" if faster else ""),
            flush=True,
        )
    mean = np.mean(means, axis=0)
    print(f"mean of {len(means)}: {mean[0]:.0f} -> {mean[1]:.0f} m/s, {mean[2]:.0%} within")
    for number, found in sorted(ratios.items()):
        cells = np.stack([each for each, _ in found])
        print(
            f"misfits {('from 0', *(f'from {each:g}' for each in GROUPS))[number]}: {len(found)} maps, "
            f"{(cells <= 1).mean():.1%} of the cells within, median width {np.median([w for _, w in found]):.0f} m/s; "
            f"nine tenths are off by at most {np.quantile(cells, 0.9):.2f} half-widths"
        )


if __name__ == "__main__":
    main()
