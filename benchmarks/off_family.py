"""What is read of ground that no family of training draws: error, intervals, the read model against a straight line.

    python benchmarks/off_family.py [--maps ../shared/data/off_family_dev.npz] [--extra 300] [--weights W …]
                                    [--familiar runs/pairs/test] [--json]

Gathers of the maps of each key are simulated by OpenFWI's operator on its own line. Columns: error of the mean
velocity; share of the true descriptors in the 90 % intervals (all thirteen; the worst of them); mean absolute error of
the read model at full size, and over that of the straight line v(z) that fits the truth itself best (least squares);
share of the cells within their 90 % intervals, where the weights state them; share of the gathers called like those of
training; median width of the intervals of descriptors over the range that holds 90 % of the truths of that ground. With
--extra, the five families that OpenFWI does not have, of which nothing is trained on, are a ground, too.
With --familiar, pairs of the ten families (`train_weights.py --only test`), the area under the ROC curve by which the
score of `in_distribution` tells this ground from theirs, which is a ground, too. With several --weights, each row says
how wide its intervals of descriptors are over those of the first (geometric mean; median).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from real_maps import pairs_of
from robustness import EXTRA_SEED, auroc

from seisbind.model.confidence.novelty import Verdict, measure
from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.ground.descriptors import NAMES, describe
from seisbind.model.ground.families import EXTRA_FAMILIES, mixed
from seisbind.model.training.evaluation import as_prepared


def straight_line_error(velocity: np.ndarray) -> np.ndarray:
    """``(n,)`` mean absolute error, m/s, of the best straight line v(z) of each model ``(n, depth, x)``."""
    depth = np.arange(velocity.shape[1], dtype=np.float64)
    design = np.column_stack([np.ones_like(depth), depth])
    line = design @ np.linalg.lstsq(design, velocity.mean(axis=2, dtype=np.float64).T, rcond=None)[0]  # (depth, n)
    return np.asarray(np.abs(velocity - line.T[:, :, None]).mean(axis=(1, 2)))


def scores_of(verdicts: list[Verdict] | None) -> np.ndarray:
    """``(n,)`` how far each gather is from those of training; none without verdicts."""
    return np.array([verdict.score for verdict in verdicts or []])


def judge(
    embedder: Embedder,
    encoded: EncodedGathers,
    measured: np.ndarray,
    velocity: np.ndarray,
    name: str,
    familiar: np.ndarray | None = None,
) -> dict[str, object]:
    """What is read of gathers, against the models ``(n, depth, x)`` under them.

    ``measured``: `novelty.measure`; ``familiar``: `scores_of` gathers of ground like that of training.
    """
    inferred, model = embedder.infer_physics(encoded, None), embedder.read_model(encoded)
    truth = describe(velocity)
    inside = ((inferred.low <= truth) & (truth <= inferred.high)).mean(axis=0)
    off = np.abs(model.value - velocity).mean(axis=(1, 2)) if model else np.full(len(velocity), np.nan)
    at = NAMES.index("mean_velocity")
    width = inferred.high - inferred.low
    own = np.subtract(*np.quantile(truth, (0.95, 0.05), axis=0))
    varied = own > 1e-6 * np.abs(truth).max(axis=0)
    cells = None
    if model is not None and model.low is not None and model.high is not None:
        cells = float(((model.low <= velocity) & (velocity <= model.high)).mean())
    verdicts = embedder.judge_novelty(measured, encoded)
    return {
        "weights": embedder.fingerprint,
        "ground": name,
        "models": len(velocity),
        "mean_velocity_percent": float(100 * np.abs(inferred.value[:, at] / truth[:, at] - 1).mean()),
        "coverage": float(inside.mean()),
        "lowest": [NAMES[int(inside.argmin())], float(inside.min())],
        "read_model_m_s": float(off.mean()),
        "over_straight_line": float(off.mean() / straight_line_error(velocity).mean()),
        "cell_coverage": cells,
        "likely": None if verdicts is None else float(np.mean([verdict.likely for verdict in verdicts])),
        "own_width": float(np.median(width[:, varied] / own[varied])),
        "widths": width,
        "auroc": None if familiar is None else auroc(-familiar, -scores_of(verdicts)),
    }


def relative(width: np.ndarray, first: np.ndarray) -> list[float]:
    """Geometric mean and median of widths ``(n, 13)`` over others, where neither is zero."""
    both = (width > 0) & (first > 0)
    ratio = np.log(width[both] / first[both])
    return [float(np.exp(ratio.mean())), float(np.exp(np.median(ratio)))]


def print_rows(rows: list[dict[str, object]], *, as_json: bool) -> None:
    """A table of what `judge` says, or JSON."""
    first = {row["ground"]: row["widths"] for row in reversed(rows)}
    for row in rows:
        over = relative(row.pop("widths"), first[row["ground"]])  # type: ignore[arg-type]
        row["width"] = None if row["weights"] == rows[0]["weights"] else over
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    print(
        "| weights | ground | models | mean velocity | in the intervals (worst) | read model | over the straight line |"
    )
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        worst, share = row["lowest"]  # type: ignore[misc]
        cells = "" if row["cell_coverage"] is None else f"; cells {row['cell_coverage']:.2f}"
        likely = "" if row["likely"] is None else f", {row['likely']:.0%} likely"
        likely += "" if row["width"] is None else ", intervals {:.2f} ({:.2f}) times as wide".format(*row["width"])
        likely += "" if row["auroc"] is None else f", AUROC {row['auroc']:.2f}"
        print(
            f"| {row['weights']} | {row['ground']}{likely} | {row['models']} | {row['mean_velocity_percent']:.1f} % | "
            f"{row['coverage']:.2f} ({share:.2f} {worst}){cells}; {row['own_width']:.2f} wide | "
            f"{row['read_model_m_s']:.0f} m/s | {row['over_straight_line']:.2f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=Path, default=Path("../shared/data/off_family_dev.npz"))
    parser.add_argument("--extra", type=int, default=0, help="models of the five families beyond OpenFWI's")
    parser.add_argument("--familiar", type=Path, help="pairs of the ten families")
    parser.add_argument("--weights", type=Path, nargs="*", default=[None], help="one or several; default: the shipped")
    parser.add_argument("--cache", type=Path, default=Path("runs/off"), help="simulated gathers are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if not args.maps.exists():
        sys.exit(f"No maps at {args.maps}: give --maps an npz of (n, 70, 70) velocity models, a kind of ground a key.")
    torch.set_num_threads(1)
    rows = []
    with np.load(args.maps, allow_pickle=False) as maps:
        sets = {name: pairs_of(name, maps[name].astype(np.float32), "openfwi", args.cache) for name in maps.files}
    if args.extra:
        sets["extra"] = pairs_of("extra", mixed(args.extra, EXTRA_SEED, EXTRA_FAMILIES)[0], "openfwi", args.cache)
    if args.familiar:
        sets["familiar"] = load_pairs(args.familiar)
    prepared = {name: as_prepared(pairs) for name, pairs in sets.items()}
    measured = {name: measure(each) for name, each in prepared.items()}
    for path in args.weights:
        embedder = Embedder.load(path)
        familiar = None
        for name, pairs in reversed(sets.items()):
            encoded = embedder.embed_gathers(prepared[name])
            if name == "familiar":
                familiar = scores_of(embedder.judge_novelty(measured[name], encoded))
            rows.append(judge(embedder, encoded, measured[name], pairs.velocity.numpy(), name, familiar))
    print_rows(rows, as_json=args.json)


if __name__ == "__main__":
    main()
