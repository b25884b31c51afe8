"""The server against its own encoders: gathers a second with many clients, one gather alone, latency under load.

    python benchmarks/throughput.py [--clients 32] [--seconds 20] [--rounds 5] [--device auto]

Every round measures the bare engine in this process and then the server in another, over loopback, npy bodies in,
JSON out; a row is the median of the rounds, and each ratio that of one round. The clients are sockets in this process
and cost the server's cores something, as the kernel's copies of 1.4 MB a gather do.
"""

import argparse
import asyncio
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from served import Client, clients, serving

from seisbind.index import Gallery
from seisbind.index.search.vectors import search_threads
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.engine import Engine, canary_gather
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.query import Query
from seisbind.service.formats.npy import npy
from seisbind.service.formats.reader import read_gathers

LOAD = 0.8  # of the throughput just measured, for the latencies
BODIES = 16  # different gathers, so that nothing can be remembered


@dataclass(frozen=True, slots=True)
class Round:
    """One round's figures, gathers a second and milliseconds."""

    bare_rate: float
    whole_rate: float
    server_rate: float
    bare_alone_ms: float
    twin_alone_ms: float
    server_alone_ms: float
    p50_ms: float
    p99_ms: float
    refused: int


def bodies() -> list[bytes]:
    """Gathers as npy files, 1.4 MB each."""
    rng, clean = np.random.default_rng(0), canary_gather()[0]
    made = []
    for _ in range(BODIES):
        noise = rng.standard_normal(clean.shape).astype(np.float32)
        made.append(npy(clean + np.float32(0.02) * noise))
    return made


def timed(work: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of a call, for about ``seconds``."""
    work()
    spent: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(spent) < 3:
        start = time.perf_counter()
        work()
        spent.append((time.perf_counter() - start) * 1e3)
    return statistics.median(spent)


async def alone(url: httpx.URL, sent: list[bytes], seconds: float) -> float:
    """Median milliseconds of one request after another."""
    async with clients(url, 1) as (one,):
        spent: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(spent) < 4:
            spent.append((await one.ask(sent[len(spent) % len(sent)])).ms)
        return statistics.median(spent[1:])


async def saturated(url: httpx.URL, sent: list[bytes], count: int, seconds: float) -> float:
    """Gathers a second, each client asking again as soon as it is answered; the first fifth is not counted."""
    async with clients(url, count) as opened:
        begin = time.perf_counter()
        counted = 0

        async def client(number: int, one: Client) -> None:
            nonlocal counted
            asked = number
            while (now := time.perf_counter()) < begin + seconds:
                reply = await one.ask(sent[asked % len(sent)])
                counted += reply.status == 200 and now > begin + seconds / 5
                asked += 1

        await asyncio.gather(*(client(number, one) for number, one in enumerate(opened)))
        return counted / (time.perf_counter() - begin - seconds / 5)


async def loaded(
    url: httpx.URL, sent: list[bytes], count: int, rate: float, seconds: float
) -> tuple[float, float, int]:
    """p50 and p99, milliseconds, of requests that come at random times, ``rate`` a second on average; and refusals.

    A request that finds no connection free waits for one, and its wait counts.
    """
    rng = np.random.default_rng(1)
    free: asyncio.Queue[Client] = asyncio.Queue()
    spent: list[float] = []
    refused = 0

    async def request(body: bytes) -> None:
        nonlocal refused
        start = time.perf_counter()
        one = await free.get()
        reply = await one.ask(body)
        free.put_nowait(one)
        refused += reply.status != 200
        spent.append((time.perf_counter() - start) * 1e3)

    async with clients(url, count) as opened:
        for each in opened:
            free.put_nowait(each)
        begin, due = time.perf_counter(), 0.0
        running = []
        while (due := due + rng.exponential(1 / rate)) < seconds:
            await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
            running.append(asyncio.create_task(request(sent[len(running) % len(sent)])))
        await asyncio.gather(*running)
    return float(np.percentile(spent, 50)), float(np.percentile(spent, 99)), refused


def measure(engine: Engine, whole: Engine, url: httpx.URL, sent: list[bytes], arguments: argparse.Namespace) -> Round:
    """One round. ``engine`` encodes with the server's threads, ``whole`` with every core's."""
    seconds, batch = arguments.seconds, arguments.batch
    queries = [Query.prepare(read_gathers(body).gathers) for body in sent]
    many = (queries * (batch // len(queries) + 1))[:batch]
    bare_rate = batch / timed(lambda: engine.retrieve_batch(many), seconds) * 1e3
    whole_rate = batch / timed(lambda: whole.retrieve_batch(many), seconds / 2) * 1e3
    bare_alone_ms = timed(lambda: engine.retrieve_batch(queries[:1]), seconds / 4)
    twin_alone_ms = timed(lambda: engine.retrieve(read_gathers(sent[0]).gathers), seconds / 4)
    server_alone_ms = asyncio.run(alone(url, sent, seconds / 4))
    server_rate = asyncio.run(saturated(url, sent, arguments.clients, seconds))
    p50, p99, refused = asyncio.run(loaded(url, sent, arguments.clients, LOAD * server_rate, seconds))
    return Round(bare_rate, whole_rate, server_rate, bare_alone_ms, twin_alone_ms, server_alone_ms, p50, p99, refused)


def hardware(device: torch.device) -> str:
    """What the figures belong to."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    gpu = f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    return f"{os.cpu_count()} x {cpu}{gpu}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32, help="gathers encoded at once, bare and by the server")
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", type=int, default=2000, help="in the gallery")
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--threads",
        type=int,
        default=max(1, torch.get_num_threads() - 1),
        help="that encode on a CPU, bare and in the server, which leaves one core to read requests and prepare gathers",
    )
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    every_core, sent = Embedder.load(device=arguments.device), bodies()
    torch.set_num_threads(arguments.threads)
    search_threads(arguments.threads)
    embedder = Embedder.load(device=arguments.device)
    settings = {
        "device": arguments.device,
        "max_batch": arguments.batch,
        "max_concurrency": 2 * arguments.clients,
        "threads": arguments.threads,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gallery"
        velocity, family = mixed(arguments.models, seed=0)
        build_gallery(path, embedder, [(velocity, family.tolist())], source="benchmark")
        with (
            Gallery.open(path, fingerprint=embedder.fingerprint) as gallery,
            serving(path, **settings) as (url, _),
        ):
            engine, whole = Engine(embedder, gallery), Engine(every_core, gallery)
            rounds = [measure(engine, whole, url, sent, arguments) for _ in range(arguments.rounds)]

    def median(figure: Callable[[Round], float]) -> float:
        return statistics.median(figure(one) for one in rounds)

    threads = f"{arguments.threads} to encode"
    print(f"{hardware(embedder.device)}, {threads}; commit {commit}; {arguments.models} models")
    print(
        f"{arguments.rounds} rounds of {arguments.seconds:g} s, {arguments.clients} clients, batch {arguments.batch}\n"
    )
    for name, text in (
        ("encode + search, bare, gathers/s", f"{median(lambda r: r.bare_rate):.1f}"),
        ("  the same with a thread for every core", f"{median(lambda r: r.whole_rate):.1f}"),
        ("server, gathers/s", f"{median(lambda r: r.server_rate):.1f}"),
        ("  of bare (at least .90)", f"{median(lambda r: r.server_rate / r.bare_rate):.2f}"),
        ("  of bare with every core", f"{median(lambda r: r.server_rate / r.whole_rate):.2f}"),
        ("one gather: encode + search, ms", f"{median(lambda r: r.bare_alone_ms):.1f}"),
        ("one gather: read + prepare + encode + search, ms", f"{median(lambda r: r.twin_alone_ms):.1f}"),
        ("one gather: server, ms", f"{median(lambda r: r.server_alone_ms):.1f}"),
        ("  of read + prepare + encode + search (at most 1.3)",
         f"{median(lambda r: r.server_alone_ms / r.twin_alone_ms):.2f}"),
        ("  of encode + search", f"{median(lambda r: r.server_alone_ms / r.bare_alone_ms):.2f}"),
        (f"p50 at {LOAD:.0%} of the server's rate, ms", f"{median(lambda r: r.p50_ms):.1f}"),
        (f"p99 at {LOAD:.0%} of the server's rate, ms", f"{median(lambda r: r.p99_ms):.1f}"),
        ("  p99 / p50 (at most 3)", f"{median(lambda r: r.p99_ms / r.p50_ms):.2f}"),
        ("refused", f"{sum(one.refused for one in rounds)}"),
    ):  # fmt: skip
        print(f"{name:<52}{text:>10}")


if __name__ == "__main__":
    main()
