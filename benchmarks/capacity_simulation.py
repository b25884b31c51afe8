"""The queues of a server, simulated, beside a measured run of the same server; then how many replicas a load needs.

    pip install 'seisbind[simpy]'
    python benchmarks/capacity_simulation.py [--seconds 12] [--rounds 3] [--rates .5 .8 1.5] [--need 100 --within 500]

What is simulated is what the code does: a request is refused where all places are taken (`Serving.admitted`), its body
passes the event loop, one of the reader threads reads and prepares it, the batcher's rule (`Batcher._until_due`,
`_take`) says when the model thread takes which of those that wait, and the answer passes the loop again.

Requests come at random times (Poisson), at shares of the rate that as many clients as places had, whatever has become
of those before; the simulation is given the same times. Stages cost what the `timings_ms` of answers say. Answers that
were encoded together are known by equal timings, which gives the time of a batch by its size. Two simulations:

- *own costs*: of each batch and each reading as they were in that very run, drawn from the eight nearest in time, so
  that what else the machine did is the same. Admission, queues, batches and waits are simulated: none is given.
- *forecast*: from other runs only, in which 1, 2, 4 … clients asked in turn. Threads share cores and the interpreter's
  lock, so a stage takes longer where more is in the server: it is drawn from what was measured with about as many
  clients. The forecast alone can say how many replicas a load needs; `--costs` says it also for a machine that does
  nothing else, by the processor times that `stage_costs.py --out` has written, with 1.4 MB a gather.

Closed loops and rates are measured in turn, in rounds, so that what else the machine does harms them alike.
A gather is 175 kB (float16, 4 ms), so that the client, which shares the machine, can keep up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import torch
from overload import DT, bodies
from served import Client, Reply, served
from simulated_server import (
    SEED,
    Costs,
    Outcome,
    OwnCosts,
    arrivals,
    mean,
    outcome,
    simulate,
    simulate_closed,
)
from throughput import hardware

from seisbind.service.settings import Settings

MODELS = 2000
BATCH_STAGES = ("encode", "search", "infer", "rank")  # of a whole batch, on the model thread
READ_STAGES = ("read", "prepare")  # of one request, on a reader thread
REPLICATIONS = 5
REPLICAS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
LONG_S = 120.0  # simulated for the question of the replicas


class TimedClient(Client):
    """Keeps the stages of its last answer."""

    stages: dict[str, float]

    async def _reply(self, start: float) -> Reply:
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
        content = await self.reader.readexactly(int(length.split(b":")[1]))
        ms = (time.perf_counter() - start) * 1e3
        await self.writer.drain()
        status = int(head.split()[1])
        self.stages = json.loads(content)["timings_ms"] if status == 200 else {}
        return Reply(status, ms, b"\r\nretry-after:" in head)


async def in_turn(
    url: httpx.URL, sent: list[bytes], count: int, seconds: float
) -> tuple[float, list[tuple[float, dict[str, float]]]]:
    """Answers a second to ``count`` clients that ask again when they are answered; of each its time, ms, and stages.
    The first fifth is not counted."""
    begin = time.perf_counter()
    found: list[tuple[float, dict[str, float]]] = []

    async def go_on(one: TimedClient, asked: int) -> None:
        while (now := time.perf_counter()) < begin + seconds:
            reply = await one.ask(sent[asked % len(sent)], DT)
            asked += 1
            if now > begin + seconds / 5 and reply.status == 200:
                found.append((reply.ms, one.stages))

    opened = [await TimedClient.connect(url) for _ in range(count)]
    await asyncio.gather(*(go_on(one, number) for number, one in enumerate(opened)))
    spent = time.perf_counter() - begin - seconds / 5
    for one in opened:
        one.writer.close()
    return len(found) / spent, found


Timed = tuple[float, Reply, dict[str, float]]  # when its answer came, seconds since the begin


async def at_random(url: httpx.URL, sent: list[bytes], rate: float, seconds: float) -> list[Timed]:
    """Requests at the times of `arrivals`, each on a connection that is free, else on a new one."""
    free: list[TimedClient] = []
    every: list[TimedClient] = []
    found: list[Timed] = []
    begin = time.perf_counter()

    async def request(body: bytes) -> None:
        while free and free[-1].reader.at_eof():  # the server closes those that were idle for long
            free.pop()
        if free:
            one = free.pop()
        else:
            every.append(one := await TimedClient.connect(url))
        reply = await one.ask(body, DT)
        found.append((time.perf_counter() - begin, reply, one.stages))
        free.append(one)

    running = []
    for number, due in enumerate(arrivals(rate, seconds)):
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        running.append(asyncio.create_task(request(sent[number % len(sent)])))
    await asyncio.gather(*running)
    for one in every:
        one.writer.close()
    return found


async def refusals(url: httpx.URL, body: bytes, seconds: float) -> float:
    """Median seconds of a request with a body that is answered without looking at it: what a 429 costs."""
    spent, end = [], time.perf_counter() + seconds
    async with httpx.AsyncClient(base_url=url) as client:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await client.post("/v1/nothing", content=body)
            spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def by_size(batches: list[tuple[int, float]]) -> tuple[float, float]:
    """``fixed`` and ``each`` of a line through the medians of sizes; at least 0."""
    spent: dict[int, list[float]] = defaultdict(list)
    for size, seconds in batches:
        spent[size].append(seconds)
    sizes = np.array(sorted(spent))
    medians = np.array([statistics.median(spent[size]) for size in sizes])
    weight = np.sqrt([len(spent[size]) for size in sizes])
    if len(sizes) > 1:
        each, fixed = (float(one) for one in np.polyfit(sizes, medians, 1, w=weight))
        if each > 0 and fixed > 0:
            return fixed, each
    return 0.0, float(np.average(medians / sizes, weights=weight))


def own_costs(run: list[Timed], forecast: Costs) -> OwnCosts:
    """What the answers of a run say; the loop, refusals and hand-overs, which they do not tell, as in ``forecast``."""
    own = OwnCosts(loop=forecast.loop, handing=forecast.handing, refusal=forecast.refusal)
    batches: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for at, reply, stages in run:
        if reply.status == 200:
            batches[tuple(stages.get(name, 0.0) for name in BATCH_STAGES)].append(at)
            own.read_at.append((at, sum(stages.get(name, 0.0) for name in READ_STAGES) / 1e3))
            own.delay_at.append((at, max(0.0, (reply.ms - stages["total"]) / 1e3 - own.loop)))
    timed = [(min(at), len(at), sum(stages) / 1e3) for stages, at in batches.items()]
    own.fixed, own.each = by_size([(size, spent) for _, size, spent in timed])
    own.ratio_at = sorted((at, spent / (own.fixed + own.each * size)) for at, size, spent in timed)
    own.read_at.sort()
    own.delay_at.sort()
    return own


@dataclass
class Seen:
    """What the rounds have measured. ``closed``: level → answers a second, of each round; ``batches``: level, size,
    seconds; ``answers``: level → milliseconds and stages of each."""

    closed: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    batches: list[tuple[int, int, float]] = field(default_factory=list)
    answers: dict[int, list[tuple[float, dict[str, float]]]] = field(default_factory=lambda: defaultdict(list))
    refusal: list[float] = field(default_factory=list)

    def look(self, url: httpx.URL, sent: list[bytes], levels: list[int], seconds: float) -> None:
        """One round."""
        for level in levels:
            rate, found = asyncio.run(in_turn(url, sent, level, seconds))
            self.closed[level].append(rate)
            self.answers[level] += found
            together = Counter(tuple(stages.get(name, 0.0) for name in BATCH_STAGES) for _, stages in found)
            self.batches += [(level, size, sum(stages) / 1e3) for stages, size in together.items()]
        self.refusal.append(asyncio.run(refusals(url, sent[0], 1.0)))

    def costs(self) -> Costs:
        costs, first = Costs(), min(self.answers)
        for level, found in self.answers.items():
            costs.read[level] = [sum(stages.get(name, 0.0) for name in READ_STAGES) / 1e3 for _, stages in found]
            costs.delay[level] = [(ms - stages["total"]) / 1e3 for ms, stages in found]
        costs.loop = float(np.quantile(costs.delay[first], 0.1))
        costs.delay = {level: [max(0.0, one - costs.loop) for one in each] for level, each in costs.delay.items()}
        known = (*READ_STAGES, "wait", *BATCH_STAGES)
        lost = [stages["total"] - sum(stages.get(name, 0.0) for name in known) for _, stages in self.answers[first]]
        costs.handing = max(0.0, statistics.median(lost) / 1e3)
        costs.fixed, costs.each = by_size([(size, spent) for _, size, spent in self.batches])
        for level, size, spent in self.batches:
            costs.ratio.setdefault(level, []).append(spent / (costs.fixed + costs.each * size))
        costs.refusal = min(costs.loop, statistics.median(self.refusal))
        return costs


def measured_outcome(seconds: float, run: list[Timed]) -> Outcome:
    spent = [reply.ms / 1e3 for _, reply, _ in run if reply.status == 200]
    return outcome(spent, sum(reply.status == 429 for _, reply, _ in run), seconds)


def busy() -> str:
    """What was beside the run: processes that were runnable on average, the run's own included."""
    return " ".join(f"{one:.1f}" for one in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="of each rate; of each level a third")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 0.8, 1.5], help="of the closed loop's rate")
    parser.add_argument("--places", type=int, default=16, help="SEISBIND_MAX_CONCURRENCY")
    parser.add_argument("--need", type=float, default=100, help="gathers a second, of all replicas")
    parser.add_argument("--within", type=float, default=500, help="p99, milliseconds")
    parser.add_argument("--costs", type=Path, default=None, help="what stage_costs.py --out has written")
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    sent, settings = bodies(), Settings(max_concurrency=arguments.places)
    levels = [level for level in (1, 2, 4, 8, 16, 32) if level < arguments.places] + [arguments.places]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    readers = max(1, min(4, cores - 1))  # as `Serving`, with one thread to encode
    before = busy()
    print(f"{hardware(torch.device('cpu'))}, 1 thread to encode, {readers} to read; commit {commit}; {MODELS} models")
    seen, most = Seen(), levels[-1]
    runs: dict[float, list[tuple[float, float, list[Timed]]]] = defaultdict(list)  # share → asked, seconds, replies
    with served(MODELS, max_concurrency=arguments.places, threads=1, device="cpu") as (url, _):
        asyncio.run(in_turn(url, sent, 2, 3.0))  # warm
        for _ in range(arguments.rounds):
            seen.look(url, sent, levels, arguments.seconds / 3)
            for share in arguments.rates:
                rate = share * statistics.mean(seen.closed[most])
                begin = time.perf_counter()
                replies = asyncio.run(at_random(url, sent, rate, arguments.seconds))
                runs[share].append((rate, time.perf_counter() - begin, replies))
    costs = seen.costs()
    closed = {level: statistics.mean(rates) for level, rates in seen.closed.items()}
    print(f"load before, after: {before}; {busy()} (1, 5, 15 minutes, this run included)")
    print(f"{arguments.rounds} rounds of {arguments.seconds:g} s a rate, seed {SEED}, {arguments.places} places")
    print(
        f"loop {costs.loop * 1e3:.1f} ms; read and prepare {statistics.median(costs.read[1]) * 1e3:.1f} ms with one "
        f"client, {statistics.median(costs.read[most]) * 1e3:.1f} with {most}; from thread to thread "
        f"{costs.handing * 1e3:.1f} ms; a batch of n {costs.fixed * 1e3:.1f} + {costs.each * 1e3:.1f} n ms; a refusal "
        f"{costs.refusal * 1e3:.1f} ms"
    )
    print(f"\n{'':<38}{'measured':>10}{'simulated':>11}{'difference':>12}")
    for level in levels:
        # what the clients take between an answer and the next request, by Little's law
        think = max(0.0, level / closed[level] - statistics.mean(ms for ms, _ in seen.answers[level]) / 1e3)
        would = simulate_closed(costs, settings, readers, level, think)
        print(
            f"{f'{level} in turn: gathers/s':<38}{closed[level]:>10.1f}{would:>11.1f}"
            f"{would / closed[level] - 1:>+12.0%}"
        )
    print(f"\n{'':<24}{'measured':>10}{'own costs':>11}{'':>7}{'forecast':>11}")
    for share in arguments.rates:
        measured = mean([measured_outcome(seconds, run) for _, seconds, run in runs[share]])
        columns = []
        for own in (True, False):
            found = [
                simulate(
                    own_costs(run, costs) if own else costs, settings, readers, arrivals(rate, arguments.seconds), seed
                )
                for rate, _, run in runs[share]
                for seed in range(REPLICATIONS)
            ]
            columns.append(mean(found))
        print(f"asked {statistics.mean(one[0] for one in runs[share]):.1f}/s, {share:g} of {most} in turn")
        for name, label in (("rate", "gathers/s"), ("p50", "p50, ms"), ("p99", "p99, ms"), ("refused", "refused, %")):
            was, factor = getattr(measured, name), 100 if name == "refused" else 1
            line = f"  {label:<22}{factor * was:>10.1f}"
            for column in columns:
                would = getattr(column, name)
                apart = f"{factor * (would - was):+.1f}" if factor == 100 else f"{would / was - 1:+.0%}"
                line += f"{factor * would:>11.1f}{apart:>7}"
            print(line)
    say_replicas("as measured beside other work", costs, settings, readers, arguments)
    if arguments.costs is not None:
        say_replicas("by processor times", undisturbed(arguments.costs), settings, readers, arguments)


def undisturbed(path: Path) -> Costs:
    """What `stage_costs.py` has written, as of a machine that does nothing else."""
    read: dict[str, float] = {name: ms / 1e3 for name, ms in json.loads(path.read_text()).items() if type(ms) is float}
    one, many = (read[f"encode, search, infer and rank, batch {size}"] for size in (1, 32))
    fixed = max(0.0, (one - many) * 32 / 31)  # fixed + each = one; fixed / 32 + each = many
    preparing = read["read"] + read["prepare"]
    return Costs(
        read={1: [preparing]}, delay={1: [0.0]}, ratio={1: [1.0]}, fixed=fixed, each=one - fixed,
        loop=max(read["render"], read["served, 1.4 MB"] - one - preparing), refusal=read["render"],
    )  # fmt: skip


def say_replicas(name: str, costs: Costs, settings: Settings, readers: int, arguments: argparse.Namespace) -> None:
    print(f"\n{arguments.need:g} gathers/s at p99 < {arguments.within:g} ms, less than .1 % refused, simulated {name}:")
    for replicas in REPLICAS:
        times = arrivals(arguments.need / replicas, LONG_S)  # a balancer that chooses at random: Poisson again
        found = simulate(costs, settings, readers, times, 0)
        print(f"  {replicas:>3} replicas: p50 {found.p50:.0f}, p99 {found.p99:.0f} ms, refused {found.refused:.1%}")
        if found.p99 < arguments.within and found.refused < 1e-3:
            return
    print("  none of these is enough")


if __name__ == "__main__":
    main()
