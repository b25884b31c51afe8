"""How well ground of a kind is told from familiar ground that the head of kinds never saw: each kind left out in turn.

    python benchmarks/held_out_kinds.py [--pairs runs/pairs] [--weights W] [--seed 0] [--json]

For each kind of `geology` a head like that of the weights is trained anew on what the encoder makes of the exact pairs
`clean` and `blocks` (train_weights.py --only ..), without those of that kind; the range of familiar ground is that of
`calibration`. The area under the ROC curve is of the kind's pairs in `exact` and `blocks-held-out` against the pairs
`test` of the ten families: by the odds that the head gives, and by the score of `in_distribution`, the largest of all
measures. Last column: the share called unlike training; the last row has that of `test`, the largest of all heads.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from robustness import auroc
from torch import Tensor, nn

from seisbind.model.confidence.novelty import learn_foreign, measure, scores, with_uncertainty
from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES
from seisbind.model.training.evaluation import as_prepared

TRAIN, JUDGED, RANGE, FAMILIAR = ("clean", "blocks"), ("exact", "blocks-held-out"), ("calibration",), ("test",)
PART = 50  # pairs that are encoded at a time
HIDDEN, DROPPED, STEPS, BATCH, RATE = 128, 0.5, 800, 256, 2e-3
KINDS = (*FAMILIES, *BROAD_FAMILIES)


@dataclass(frozen=True)
class Encoded:
    """Of pairs: features that the head of kinds sees, measures without that of ground, and names of their ground."""

    features: Tensor
    measures: NDArray[np.float64]
    ground: NDArray[np.str_]


def encoded(embedder: Embedder, folders: list[Path]) -> Encoded:
    encoder, kept = embedder.weights.encoders.seismic.eval(), list[Tensor]()
    hook = encoder.kind_head.register_forward_pre_hook(lambda _, seen: kept.append(seen[0]))
    measures, ground = [], []
    for folder in folders:
        pairs = load_pairs(folder)
        for first in range(0, len(pairs), PART):
            part = pairs.select(range(first, min(first + PART, len(pairs))))
            prepared = as_prepared(part)
            with torch.no_grad():
                read = encoder(
                    *(torch.from_numpy(each) for each in (prepared.traces, prepared.live, prepared.shot_x_m))
                )
            doubt = read.descriptor_scale.log().mean(dim=1).numpy()
            measures.append(with_uncertainty(measure(prepared), doubt))
            ground.append(part.family_names())
    hook.remove()
    return Encoded(torch.cat(kept).float(), np.concatenate(measures), np.concatenate(ground))


def head_without(kind: str, pairs: Encoded, seed: int) -> nn.Module:
    """A head trained on all pairs but those of ``kind``, each kind as often, half of the pairs familiar."""
    kept = pairs.ground != kind
    x, names = pairs.features[torch.from_numpy(kept)], pairs.ground[kept]
    own = np.isin(names, FAMILIES)
    weight = np.zeros(len(names))
    for each in np.unique(names):
        weight[names == each] = 1 / (names == each).sum()
    for group in (own, ~own):
        weight[group] /= 2 * weight[group].sum()
    label = torch.tensor([KINDS.index(each) for each in names])
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.LayerNorm(x.shape[1]), nn.Linear(x.shape[1], HIDDEN), nn.GELU(), nn.Dropout(DROPPED),
        nn.Linear(HIDDEN, len(KINDS)),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(head.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.multinomial(torch.from_numpy(weight), BATCH, replacement=True)
        loss = F.cross_entropy(head(x[rows]), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


def odds(head: nn.Module, features: Tensor, kind: str) -> NDArray[np.float64]:
    """``(n,)`` log odds of ground of the other kinds of `geology` against the ten families."""
    with torch.no_grad():
        z = head(features).double()
    z[:, KINDS.index(kind)] = -torch.inf
    own = len(FAMILIES)
    return (torch.logsumexp(z[:, own:], 1) - torch.logsumexp(z[:, :own], 1)).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder = Embedder.load(args.weights)
    calibration = embedder.weights.description.calibration
    if calibration is None or calibration.novelty is None:
        parser.error("these weights have no ranges of training")
    train, judged, usual, test = (
        encoded(embedder, [args.pairs / name for name in names]) for names in (TRAIN, JUDGED, RANGE, FAMILIAR)
    )
    rows: list[dict[str, Any]] = []
    for kind in BROAD_FAMILIES:
        head = head_without(kind, train, args.seed)
        ranges = learn_foreign(calibration.novelty, odds(head, usual.features, kind))
        of_kind = judged.ground == kind
        own, there = odds(head, test.features, kind), odds(head, judged.features[torch.from_numpy(of_kind)], kind)
        score = [
            scores(np.column_stack([measures, by_head]), ranges).max(axis=1)
            for measures, by_head in ((test.measures, own), (judged.measures[of_kind], there))
        ]
        rows.append(
            {
                "kind": kind,
                "models": int(of_kind.sum()),
                "auroc_of_odds": auroc(-own, -there),
                "auroc": auroc(-score[0], -score[1]),
                "unlike": float((score[1] > ranges.limit).mean()),
                "familiar_unlike": float((score[0] > ranges.limit).mean()),
            }
        )
    if args.json:
        print(json.dumps({"weights": embedder.fingerprint, "rows": rows}, indent=1))
        return
    print(f"weights {embedder.fingerprint}, seed {args.seed}, {len(test.ground)} familiar pairs")
    print(
        "| kind left out | models | AUROC by odds | AUROC of the score | called unlike training |\n" + 5 * "|---" + "|"
    )
    for row in rows:
        by = f"{row['auroc_of_odds']:.3f} | {row['auroc']:.3f}"
        print(f"| {row['kind']} | {row['models']} | {by} | {row['unlike']:.2f} |")
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("auroc_of_odds", "auroc", "unlike")}
    print(f"| mean | | {mean['auroc_of_odds']:.3f} | {mean['auroc']:.3f} | {mean['unlike']:.2f} |")
    print(f"| familiar | {len(test.ground)} | | | {max(row['familiar_unlike'] for row in rows):.3f} |")


if __name__ == "__main__":
    main()
