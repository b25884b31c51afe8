"""What a gather costs each thread of a server: one checkout, or several in turn on the same gallery.

    python benchmarks/thread_costs.py [CHECKOUT ...] [--rounds 5] [--seconds 6] [--callers 8] [--models 2000]

Each checkout has its own ``.venv``; without one, this. Their servers run at the same time, with one thread to encode,
and are asked in turn, in both orders, by callers that share their cores: gathers as npy, 1.4 MB (float32, 1 ms) and
0.18 MB (float16, 4 ms). Rows are medians of the rounds. CPU time a gather is of all threads, and of the busiest three:
the one that encodes and searches (``model``), the one that reads and prepares (``reader``), and the event loop
(``python``, or ``seisbind``); threads of checkouts that do not name theirs are all called so. It tells on a busy
machine, too, what rates do not. Ratios are of one round, to the first checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import overload
import throughput
import torch
from served import Client, clients, serving

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.gallery_builder import build_gallery

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
HERE = Path(__file__).resolve().parents[1]
BUSIEST = 3


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement; ``threads``: name and CPU time a gather, ms, of the busiest."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    threads: tuple[tuple[str, float], ...]


def threads_s(pid: int) -> dict[str, tuple[str, float]]:
    """Name and CPU time of each thread of a process, by its number."""
    found = {}
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            found[stat.parent.name] = (name, sum(map(int, rest.split()[11:13])) * TICK_S)
    return found


async def load(url: httpx.URL, pid: int, sent: list[bytes], query: str, callers: int, seconds: float) -> Run:
    """A closed loop; the first fifth is not counted."""
    spent: list[float] = []
    async with clients(url, callers) as opened:
        start = time.perf_counter()
        begin, end = start + seconds / 5, start + seconds

        async def caller(number: int, one: Client) -> None:
            asked = number
            while time.perf_counter() < end:
                reply = await one.ask(sent[asked % len(sent)], query)
                if reply.status != 200:
                    sys.exit(f"{url} answered {reply.status}.")
                if begin <= time.perf_counter() < end:
                    spent.append(reply.ms)
                asked += 1

        running = asyncio.gather(*(caller(number, one) for number, one in enumerate(opened)))
        await asyncio.sleep(begin - time.perf_counter())
        before, since = threads_s(pid), time.perf_counter()
        await asyncio.sleep(end - time.perf_counter())
        after, wall_s = threads_s(pid), time.perf_counter() - since
        await running
    each = [
        (name, 1e3 * (used - before.get(number, (name, 0.0))[1]) / len(spent)) for number, (name, used) in after.items()
    ]
    busiest = sorted(each, key=lambda one: -one[1])[:BUSIEST]
    p50, p99 = np.percentile(spent, [50, 99])
    return Run(len(spent) / wall_s, float(p50), float(p99), sum(ms for _, ms in each), tuple(busiest))


def commit(checkout: Path) -> str:
    said = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=checkout)
    return said.stdout.strip()


def row(name: str, runs: list[Run], first: list[Run]) -> str:
    def median(figure: Callable[[Run], float]) -> float:
        return statistics.median(map(figure, runs))

    by_thread: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        for place, (thread, ms) in enumerate(run.threads):
            by_thread[f"{place}{thread}"].append(ms)
    kept = {key[1:]: ms for key, ms in sorted(by_thread.items()) if len(ms) > len(runs) / 2}
    named = [f"{thread} {statistics.median(ms):.1f}" for thread, ms in kept.items()]
    if len(named) < BUSIEST:  # all of one name: by their place
        named = [f"{statistics.median([run.threads[place][1] for run in runs]):.1f}" for place in range(BUSIEST)]
    rate, cpu = (
        statistics.median(getattr(own, what) / getattr(base, what) for own, base in zip(runs, first, strict=True))
        for what in ("rate", "cpu_ms")
    )
    figures = (median(lambda r: r.rate), median(lambda r: r.p50_ms), median(lambda r: r.p99_ms))
    shown = "".join(f"{figure:9.1f}" for figure in figures)
    return f"{name:20}{shown}{median(lambda r: r.cpu_ms):9.1f}   x {rate:.2f}, x {cpu:.2f}   {', '.join(named)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[HERE])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--models", type=int, default=2000, help="in the gallery")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bodies = {"1.4 MB": (throughput.bodies(), ""), "0.18 MB": (overload.bodies(), overload.DT)}
    names = {f"{path.resolve().name} {commit(path)}": path.resolve() for path in arguments.checkouts}
    print(f"{throughput.hardware(torch.device('cpu'))}; {arguments.models} models, seed 0; {arguments.callers} callers")
    print(f"{arguments.rounds} rounds of {arguments.seconds:g} s; load average {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        gallery = Path(folder) / "gallery"
        velocity, families = mixed(arguments.models, seed=0)
        build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, families.tolist())], source="benchmark")
        servers = {
            name: stack.enter_context(
                serving(gallery, python=str(path / ".venv" / "bin" / "python"), threads=1, device="cpu")
            )
            for name, path in names.items()
        }
        for kind, (sent, query) in bodies.items():
            found: dict[str, list[Run]] = {name: [] for name in servers}
            for number in range(arguments.rounds):
                for name in list(servers) if number % 2 == 0 else list(servers)[::-1]:
                    run = load(*servers[name], sent, query, arguments.callers, arguments.seconds)
                    found[name].append(asyncio.run(run))
            print(f"\n{kind:20}gathers/s   p50 ms   p99 ms   CPU ms   of the first: rate, CPU   CPU ms by thread")
            for name, runs in found.items():
                print(row(name, runs, found[next(iter(found))]), flush=True)
    print(f"load average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
