"""Our velocity models beside published ones: geometry and descriptors, as Markdown.

    python benchmarks/geology_statistics.py [--count 500] [--seed 0] [--real PATH]

KS is the two-sample Kolmogorov-Smirnov distance: 0 for the same distribution, 1 for disjoint ones; between two
draws of 500 from one distribution it stays below 0.09 in 95 % of cases.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from seisbind.model.datasets.openfwi import family_name
from seisbind.model.ground import families
from seisbind.model.ground.descriptors import DESCRIPTORS, describe

DEFAULT_REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "openfwi_dev.npz"
LEVEL_CELLS = 60  # a velocity that fills at least this many cells is a layer's
MINIMUM_MAPS = 30  # fewer published maps than this say nothing about a distribution

Float = NDArray[np.float64]


def layer_velocities(velocity: NDArray[np.float32]) -> Float:
    """The whole velocities that fill `LEVEL_CELLS` of one map, ascending."""
    levels, cells = np.unique(velocity, return_counts=True)
    return levels[(cells >= LEVEL_CELLS) & (levels == np.round(levels))].astype(np.float64)


def interfaces(velocity: NDArray[np.float32], levels: Float) -> Float:
    """(interface, x): in each column, the cells slower than halfway between two layers."""
    halfway = (levels[1:] + levels[:-1]) / 2
    return (velocity[None] < halfway[:, None, None]).sum(axis=1).astype(np.float64)


def geometry(velocity: NDArray[np.float32]) -> dict[str, Float]:
    """Statistics (value, pooled over maps and interfaces) of maps (map, depth, x) with increasing layers."""
    pooled: dict[str, list[float]] = {}

    def note(name: str, *values: float) -> None:
        pooled.setdefault(name, []).extend(values)

    for one in velocity:
        levels = layer_velocities(one)
        note("whole velocities, share of cells", float((one == np.round(one)).mean()))
        note("layers", len(levels))
        if len(levels) < 2:
            continue
        note("first velocity, m/s", levels[0])
        note("last velocity, m/s", levels[-1])
        note("velocity step, m/s", *np.diff(levels))
        depth = interfaces(one, levels)
        whole = ((depth > 0) & (depth < one.shape[0])).all(axis=1)
        if whole[0]:
            note("first interface, cells", depth[0].mean())
        for upper, lower, both in zip(depth, depth[1:], whole[1:] & whole[:-1], strict=False):
            if both:
                note("layer thickness, cells", (lower - upper).mean())
                note("thickness range along x, cells", np.ptp(lower - upper))
        for k in np.flatnonzero(whole):
            relief = float(np.ptp(depth[k]))
            note("relief, cells", relief)
            if relief >= 3:
                power = np.abs(np.fft.rfft(depth[k] - depth[k].mean()))[1:] ** 2
                for band in range(5):
                    note(f"spectral share of bin {band + 1}", power[band] / power.sum())
                jumps = np.abs(np.diff(depth[k]))
                note("largest lateral jump, cells", jumps.max())
                note("position of that jump, cells", float(jumps.argmax()))
                note("columns where it moves", float((jumps > 0).sum()))
                note("throw: net step left to right, cells", abs(depth[k, -1] - depth[k, 0]))
    return {name: np.asarray(values) for name, values in pooled.items()}


def spread(values: Float) -> str:
    low, middle, high = np.percentile(values, [10, 50, 90])
    return f"{middle:.4g} ({low:.4g} - {high:.4g})"


def rows(ours: dict[str, Float], real: dict[str, Float] | None) -> list[str]:
    lines = []
    for name, values in ours.items():
        if real is None:
            lines.append(f"| {name} | {spread(values)} | | |")
        elif name in real:
            distance = ks_2samp(values, real[name]).statistic
            lines.append(f"| {name} | {spread(values)} | {spread(real[name])} | {distance:.3f} |")
    return lines


def described(velocity: NDArray[np.float32]) -> dict[str, Float]:
    values = describe(velocity).astype(np.float64)
    return {f"`{d.name}` {d.unit}".rstrip(): column for d, column in zip(DESCRIPTORS, values.T, strict=True)}


def published(path: Path) -> dict[str, NDArray[np.float32]]:
    if not path.is_file():
        print(f"No published maps at {path}: ours alone are described.\n")
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {family_name(key): archive[key] for key in archive.files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="maps of ours a family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path, default=DEFAULT_REAL, help=".npz of maps, a key a family")
    options = parser.parse_args()
    real_maps = published(options.real)
    for family in families.FAMILIES + families.EXTRA_FAMILIES:
        ours = families.generate(family, options.count, np.random.default_rng(options.seed))
        real = real_maps.get(family)
        compared = real is not None and len(real) >= MINIMUM_MAPS
        note = ""
        if family == "FlatFault-A" and compared and real is not None:
            # A published file holds 2, 3 or 4 layers by its name; compare like with like
            layers = int(np.median([len(layer_velocities(m)) for m in real]))
            ours = ours[[len(layer_velocities(m)) == layers for m in ours]]
            note = f", those with {layers} layers"
        published_count = 0 if real is None else len(real)
        print(f"\n## {family}: {len(ours)} of ours (seed {options.seed}{note}), {published_count} published\n")
        if real is not None and not compared:
            print(f"(fewer than {MINIMUM_MAPS} published maps: their KS distances mean little)\n")
        print("| | ours: median (10 - 90 %) | published | KS |\n|---|---|---|---|")
        layered = family.endswith("-A") and not family.startswith("Style")
        if layered:
            print("\n".join(rows(geometry(ours), None if real is None else geometry(real))))
        print("\n".join(rows(described(ours), None if real is None else described(real))))


if __name__ == "__main__":
    main()
