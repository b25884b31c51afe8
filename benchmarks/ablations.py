"""What each ingredient of the recipe is worth: one left out at a time, all at the same budget, pairs and seed.

    python benchmarks/train_weights.py --only train && python benchmarks/train_weights.py --only test
    python benchmarks/ablations.py [--steps 300] [--set train|more] [--only NAME ..] [--json]

Each row is a recipe of its own, trained in --out (a stopped run goes on), and judged on the 1,000 mixed test pairs and,
where --maps is there, on real maps through the exact operator. "New ground" leaves the right model out.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from real_maps import noisy, pairs_of
from torch import Tensor, nn

import seisbind.model.encoders.networks as encoders_module
from seisbind.model.datasets.pairs import load_pairs
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.seismic import SeismicEncoder
from seisbind.model.encoders.weights_file import Description, save_weights
from seisbind.model.frame import PATCH_RECEIVERS, PATCH_SAMPLES, Frame
from seisbind.model.training.augment import AugmentConfig
from seisbind.model.training.evaluation import embed, recall, report
from seisbind.model.training.recipe import PAPER, TrainConfig
from seisbind.model.training.trainer import Progress, train

FULL = TrainConfig()
QUIET = AugmentConfig(noise=0.0)
FIXED = "five shots as channels"  # see `FixedFive`
VARIANTS: dict[str, TrainConfig] = {
    "the recipe": FULL,
    "one-hot targets": replace(FULL, loss=replace(FULL.loss, soft_share=0.0)),
    "no heads": replace(FULL, loss=replace(FULL.loss, descriptor_head=0.0, map_head=0.0, family_head=0.0)),
    "no batches of alike models": replace(FULL, hard_negatives=0.0),
    "no disturbances": replace(FULL, augment=None),
    "disturbances, but no noise": replace(FULL, augment=QUIET),
    "no averaged weights": replace(FULL, ema=0.0),
    FIXED: FULL,
    "the paper's recipe": PAPER,
}


class FixedFive(SeismicEncoder):
    """OpenFWI's usual input: its five shots are the channels, wherever they were; as many multiplications as ours."""

    def __init__(self, config: EncoderConfig, frame: Frame) -> None:
        super().__init__(config, frame)
        inputs = len(frame.shot_x_m) * (PATCH_SAMPLES * PATCH_RECEIVERS + PATCH_RECEIVERS + 1)
        self.stem = nn.Sequential(
            nn.Conv2d(inputs, 24, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(24, config.width, 1, bias=False),
            nn.BatchNorm2d(config.width),
            nn.ReLU(inplace=True),
        )
        self.merge = nn.Identity()

    def _merged(self, p: Tensor, live: Tensor, shot_x: Tensor) -> Tensor:
        patches = self._patches(p, live, shot_x).unflatten(0, live.shape[:2])
        merged: Tensor = self.stem(patches.permute(0, 1, 4, 2, 3).flatten(1, 2))
        return merged


def judge(path: Path, test: Path, maps: Path, cache: Path) -> dict[str, float | None]:
    embedder = Embedder.load(path, runtime="torch")  # `FixedFive` takes no other number of shots, as an export would
    whole = report(embedder, embed(embedder, load_pairs(test)))
    novel = whole["descriptors"]["novel"]
    row: dict[str, float | None] = {
        "s_to_v_r_at_1": whole["seismic_to_velocity"]["r_at_1"],
        "v_to_p_r_at_1": whole["velocity_to_physics"]["r_at_1"],
        "neighbours_mean_velocity": novel["neighbours"]["mean_velocity"],
        "inferred_mean_velocity": novel["inferred"]["mean_velocity"],
        "structure_ratio": whole["structure"]["ratio"],
        "real_clean": None,
        "real_20_db": None,
    }
    if maps.exists():
        clean, disturbed = [], []
        with np.load(maps, allow_pickle=False) as families:
            for name in families.files:
                velocity = families[name][:500].astype(np.float32)
                if len(velocity) < 10:
                    continue
                pairs = pairs_of(name, velocity, "openfwi", cache)
                gallery = embedder.embed_velocity(velocity)
                clean.append(recall(embed(embedder, pairs).gathers.embedding, gallery)["r_at_1"])
                disturbed.append(recall(embedder.embed_gathers(noisy(pairs, 20.0)).embedding, gallery)["r_at_1"])
        row |= {"real_clean": float(np.mean(clean)), "real_20_db": float(np.mean(disturbed))}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs"))
    parser.add_argument("--set", default="train", help="of training pairs, see train_weights.py")
    parser.add_argument("--first", type=int, default=20_000, help="training pairs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="these rows alone; default: all")
    parser.add_argument("--maps", type=Path, default=Path("../shared/data/openfwi_dev.npz"))
    parser.add_argument("--cache", type=Path, default=Path("runs/real"), help="gathers of the real maps are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pairs = load_pairs(args.pairs / args.set, args.first)
    rows = {}
    for name in args.only or VARIANTS:
        config = replace(VARIANTS[name], steps=args.steps)
        out = args.out / f"{name.replace(' ', '-').replace(',', '')}-{args.steps}"
        path, found = out / "weights.safetensors", out / "row.json"
        if not found.exists():

            def say(progress: Progress, name: str = name) -> None:
                if progress.step % 20 == 0:
                    print(f"{name}: step {progress.step}, {progress.loss:.3f}", file=sys.stderr, flush=True)

            with patch.object(encoders_module, "SeismicEncoder", FixedFive) if name == FIXED else nullcontext():
                encoders = train(pairs, config, out, resume=True, progress=say)
                save_weights(path, encoders, Description(name, encoders.config, {"config": asdict(config)}))
                row = judge(path, args.pairs / "test", args.maps, args.cache)
            found.write_text(json.dumps(row), encoding="utf-8")
        rows[name] = json.loads(found.read_text(encoding="utf-8"))
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{args.steps} steps of {FULL.batch} of the first {len(pairs)} pairs of {args.set}, seed {FULL.seed}")
    print("| recipe | S→V | V→P | new ground: mean velocity, 5 neighbours / head | first match | real, clean / 20 dB |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        real = "not measured" if row["real_clean"] is None else f"{row['real_clean']:.3f} / {row['real_20_db']:.3f}"
        print(
            f"| {name} | {row['s_to_v_r_at_1']:.3f} | {row['v_to_p_r_at_1']:.3f} | "
            f"{row['neighbours_mean_velocity']:.1f} % / {row['inferred_mean_velocity']:.1f} % | "
            f"{row['structure_ratio']:.2f}x | {real} |"
        )


if __name__ == "__main__":
    main()
