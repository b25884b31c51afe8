"""What a core, 1, 8 and 64 GPUs carry, and galleries of 10^6 to 10^9 models: the arithmetic of docs/capacity.md.

    python benchmarks/stage_costs.py --out stage_costs.json
    python benchmarks/capacity.py --costs stage_costs.json     # without: the inputs that docs/capacity.md was made with

Every input is in `INPUTS`, with where it comes from: measured here, cited from a page of this repository that names its
command, a datasheet, or assumed. No GPU was at hand: whatever rests on a datasheet is derived, and no measurement.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

# Milliseconds of one core, as `stage_costs.py` prints them.
COSTS: dict[str, float] = {
    "read": 0.221,
    "prepare": 3.483,
    "encode, batch 1": 11.338,
    "encode, search, infer and rank, batch 1": 22.903,
    "encode, batch 8": 9.941,
    "encode, search, infer and rank, batch 8": 12.240,
    "encode, batch 32": 10.349,
    "encode, search, infer and rank, batch 32": 12.268,
    "render": 0.173,
    "served, 1.4 MB": 38.000,
    "served, 175 kB": 30.500,
    "search 20000, one": 2.022,
    "search 20000, of 64": 0.274,
    "search 200000, one": 15.721,
    "search 200000, of 64": 2.796,
}
COSTS_OF = "measured on 2 x AMD EPYC, torch 2.13.0+cpu, commit f103476, beside other work (load 9)"
REQUEST = "1.4 MB"

INPUTS: dict[str, tuple[float, str, str]] = {
    # name: value, unit, source
    "body": (1.4e6, "B", "a gather of 5 x 1000 x 70 float32 as npy"),
    "prepared": (5 * 250 * 70 * 4, "B", "what goes to the encoder, `Frame.prepared_shape` as float32"),
    "encode": (0.56e9, "FLOP", "cited: model card, a gather"),
    "disk": (7_692, "B", "cited: docs/operations.md, gallery_bytes.py, a model of `geology`, all in"),
    "mapped": (2_694, "B", "cited: the same, `mapped.bin`, which searches map into memory"),
    "approximate": (34, "B", "cited: docs/operations.md, approximate.py, a model in its index"),
    "on GPU": (1_024, "B", "cited: docs/operations.md, both spaces in fp16, a model"),
    "scanned": (512, "B", "256 dimensions in fp16, of the one space that a gather is compared in"),
    "writer": (16, "B", "cited: docs/operations.md, a writer's table of maps, a model"),
    "exact 1M, one": (78.6, "ms", "cited: docs/operations.md, approximate.py, a million, one query, one core"),
    "exact 1M, of 500": (6_838 / 500, "ms", "cited: the same, 500 at once, each"),
    "approximate 1M": (1.63, "ms", "cited: the same, as it chooses, one query"),
    "windows": (100, "", "of a section, assumed: a line of 34.5 km (docs/settings.md: 400 are 138 km)"),
    "GPU FLOPS": (67e12, "/s", "datasheet: H100 SXM, FP32 without tensor cores"),
    "GPU share": (0.25, "", "assumed: of those FLOPS that small convolutions reach"),
    "GPU bandwidth": (3.35e12, "B/s", "datasheet: H100 SXM, HBM3"),
    "GPU memory": (80e9, "B", "datasheet: H100 SXM"),
    "GPU spare": (1e9, "B", "cited: docs/operations.md, left for everything else"),
    "GPU link": (64e9, "B/s", "datasheet: PCIe 5.0 x16, one way"),
    "quiet, read": (2.0, "ms", "cited: docs/operations.md, throughput.py, to read and prepare, a quieter machine"),
    "quiet, loop": (1.7, "ms", "cited: the same, on the event loop"),
    "batch": (64, "", "SEISBIND_MAX_BATCH"),
    "cores": (14, "", "datasheet: DGX H100 has 112 cores for 8 GPUs"),
    "node": (8, "", "GPUs of a node, the same"),
    "network": (12.5e9, "B/s", "assumed: one port of 100 Gbit/s a node"),
    "load": (0.7, "", "assumed: of what it can carry that a server is given, for its p99"),
}


def of(name: str) -> float:
    return INPUTS[name][0]


@dataclass(frozen=True)
class Host:
    """Milliseconds of a core for one gather, beside the encoder and the search.

    ``serial``: the event loop's, one thread of a process; ``prepared``: the reader threads'; ``judged``: the model
    thread's, for what it infers and ranks, and a search among a few models.
    """

    serial: float
    prepared: float
    judged: float

    @property
    def all(self) -> float:
        return self.serial + self.prepared + self.judged


def host(costs: dict[str, float]) -> Host:
    """The loop's part is what a request of its own costs the process, less what the stages explain."""
    stages = costs["read"] + costs["prepare"] + costs["encode, search, infer and rank, batch 1"]
    return Host(
        max(costs["render"], costs[f"served, {REQUEST}"] - stages),
        costs["read"] + costs["prepare"],
        costs["encode, search, infer and rank, batch 32"] - costs["encode, batch 32"],
    )


def gpu_ms(models: float, batch: float) -> dict[str, float]:
    """Milliseconds of a GPU for one gather of a batch, derived."""
    return {
        "encode": of("encode") / (of("GPU FLOPS") * of("GPU share")) * 1e3,
        "transfer": of("prepared") / of("GPU link") * 1e3,
        "search": models * of("scanned") / of("GPU bandwidth") / batch * 1e3,
    }


def print_inputs(costs: dict[str, float], source: str) -> None:
    print(f"Inputs. Stages, ms of a core, {source}:")
    for name, ms in costs.items():
        print(f"  {name:<46}{ms:>12.3f}")
    for name, (value, unit, where) in INPUTS.items():
        print(f"  {name:<20}{value:>14.6g} {unit:<5} {where}")


def print_core(costs: dict[str, float]) -> None:
    one, work = host(costs), costs["encode, search, infer and rank, batch 32"]
    beside = one.prepared + one.serial
    print("\nOn CPUs, a gather, ms of a core (measured)")
    print(f"  encode, search, infer and rank in batches       {work:>8.2f}")
    print(f"  read and prepare                                {one.prepared:>8.2f}")
    print(f"  the loop, the kernel's copies, the answer       {one.serial:>8.2f}")
    whole = work + beside
    print(f"  all                                             {whole:>8.2f}  -> {1e3 / whole:.0f} gathers/s a core")
    print(f"  a worker of two cores, one of which encodes: at most {1e3 / max(work, beside):.0f} gathers/s")
    print(f"  {of('load'):.0%} of that, sections of {of('windows'):.0f} windows an hour a core: "
          f"{of('load') * 1e3 / whole * 3600 / of('windows'):.0f}")  # fmt: skip


def print_gpus(name: str, one: Host, models: float) -> None:
    gpu = gpu_ms(models, of("batch"))
    print(f"\nOn GPUs, {models:.0e} models, a gather, ms (derived from datasheets, not measured); host {name}")
    for name, ms in gpu.items():
        print(f"  GPU, {name:<44}{ms:>8.4f}")
    by_gpu, by_worker = 1e3 / sum(gpu.values()), 1e3 / one.serial
    by_lock, by_cores = 1e3 / one.all, of("cores") / one.all * 1e3
    print(f"  host, prepare, loop, infer and rank             {one.all:>8.2f}")
    print(f"  a GPU could                                     {by_gpu:>8.0f} gathers/s")
    print(
        f"  one worker feeds it, if only the loop were serial {by_worker:>6.0f}, if all host work were: {by_lock:.0f}"
    )
    print(f"  its {of('cores'):.0f} cores feed it                              {by_cores:>8.0f}")
    feeding = min(by_gpu, by_cores)
    print(f"  workers a GPU for that                          {math.ceil(feeding / by_lock):>8d}")
    print(
        f"\n  {'GPUs':>5}{'nodes':>7}{'limit':>10}{'gathers/s':>11}{'at load':>9}{'sections/h':>12}"
        f"{'in, GB/s a node':>17}"
    )
    for gpus in (1, 8, 64):
        nodes = math.ceil(gpus / of("node"))
        by_network = nodes * of("network") / of("body")
        limits = {"cores": gpus * by_cores, "GPU": gpus * by_gpu, "network": by_network}
        limit = min(limits, key=lambda name: limits[name])
        rate = limits[limit]
        carried = of("load") * rate
        print(f"  {gpus:>5}{nodes:>7}{limit:>10}{rate:>11.0f}{carried:>9.0f}{carried * 3600 / of('windows'):>12.0f}"
              f"{carried * of('body') / nodes / 1e9:>17.1f}")  # fmt: skip


def print_galleries(costs: dict[str, float]) -> None:
    room = (of("GPU memory") - of("GPU spare")) / of("on GPU")
    print(f"\nGalleries. One GPU searches up to {room / 1e6:.0f} million models; a worker searches on one GPU.")
    print(f"  {'models':>8}{'disk':>10}{'mapped':>10}{'index':>10}{'writer':>10}{'GPUs':>6}{'copy':>10}"
          f"{'exact, one':>12}{'of many':>10}{'approx.':>10}{'GPU, a batch':>14}")  # fmt: skip
    for power in (6, 7, 8, 9):
        count = 10.0**power
        million = count / 1e6
        copy_s = count * of("disk") / of("network")
        print(f"  {'1e' + str(power):>8}"
              f"{count * of('disk') / 1e9:>7.0f} GB{count * of('mapped') / 1e9:>7.1f} GB"
              f"{count * of('approximate') / 1e9:>7.2f} GB{count * of('writer') / 1e9:>7.2f} GB"
              f"{math.ceil(count / room):>6}{copy_s:>8.1f} s"
              f"{of('exact 1M, one') * million / 1e3:>10.2f} s{of('exact 1M, of 500') * million / 1e3:>8.3f} s"
              f"{of('approximate 1M') * million / 1e3:>8.3f} s{gpu_ms(count, 1)['search']:>11.2f} ms")  # fmt: skip
    work = costs["encode, search, infer and rank, batch 32"]
    for name in ("exact 1M, of 500", "approximate 1M"):
        print(f"  search costs a core as much as all else of a batch ({work:.1f} ms) at {work / of(name):.1f} "
              f"million models ({name.split(' ')[0]})")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--costs", type=Path, default=None, help="what stage_costs.py --out has written")
    parser.add_argument("--models", type=float, default=1e6, help="of the gallery that GPUs search")
    arguments = parser.parse_args()
    costs, source = COSTS, COSTS_OF
    if arguments.costs is not None:
        read = json.loads(arguments.costs.read_text())
        source = f"measured on {read.pop('hardware')}, commit {read.pop('commit')}"
        costs = read
    print_inputs(costs, source)
    print_core(costs)
    busy = host(costs)
    print_gpus("as measured beside other work", busy, arguments.models)
    print_gpus("as on a quieter machine", Host(of("quiet, loop"), of("quiet, read"), busy.judged), arguments.models)
    print_galleries(costs)


if __name__ == "__main__":
    main()
