"""What a training step costs on one CPU core: user and system time and page faults a pair.

    python benchmarks/step_time.py [--config default] [--steps 5]
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_ARENA_MAX=1 MALLOC_MMAP_THRESHOLD_=2000000000 \\
      MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=500000000 python benchmarks/step_time.py

The second line keeps glibc from giving every large tensor back to the kernel. The pairs are noise over random models.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed
from seisbind.model.training.recipe import load_config
from seisbind.model.training.trainer import Progress, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="default", help="default, paper or a JSON file")
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured, after two that are not")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = load_config(args.config)
    velocity, _ = mixed(4 * config.batch, 0)
    models = torch.from_numpy(velocity)
    noise = torch.randn(len(models), 5, 250, 70, generator=torch.Generator().manual_seed(0)).half()
    kind = torch.zeros(len(models), dtype=torch.int64)
    pairs = PairSet(noise, models, torch.from_numpy(describe(velocity)), kind, ("any",))
    used: list[resource.struct_rusage] = []

    def note(progress: Progress) -> None:
        used.append(resource.getrusage(resource.RUSAGE_SELF))

    with tempfile.TemporaryDirectory() as folder:
        steps = 2 + args.steps
        train(pairs, replace(config, steps=steps, checkpoint_every=steps), Path(folder), device="cpu", progress=note)
    first, last = used[1], used[-1]
    each = 1e3 / (args.steps * config.batch)
    print(f"{args.config}, {args.steps} steps of {config.batch} pairs, torch {torch.__version__}, one thread:")
    print(f"user {(last.ru_utime - first.ru_utime) * each:.1f} ms a pair, system", end=" ")
    print(f"{(last.ru_stime - first.ru_stime) * each:.1f} ms, {last.ru_minflt - first.ru_minflt} page faults in all")


if __name__ == "__main__":
    main()
