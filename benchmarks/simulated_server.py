"""A server's queues in simulated time, as its code has them: places, the event loop, reader threads, the batcher, the
model thread. `capacity_simulation.py` measures the costs, and compares.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
import simpy

from seisbind.service.settings import Settings

SEED = 1  # of the times of `overload.at_random`
NEAREST = 8
CLOSED_S = 20.0  # simulated, of a closed loop

Event = Generator[simpy.Event, object, None]


@dataclass
class Costs:
    """Seconds, as measured: by the number of clients in turn (a level), or fitted over all of them."""

    read: dict[int, list[float]] = field(default_factory=dict)
    loop: float = 0.0  # of the event loop for one request, its body and its answer, with one client
    delay: dict[int, list[float]] = field(default_factory=dict)  # beyond that: transport, the lock, other cores' work
    handing: float = 0.0  # from thread to thread: what no stage accounts for
    refusal: float = 0.0
    fixed: float = 0.0  # of a batch
    each: float = 0.0  # of one more gather in it
    ratio: dict[int, list[float]] = field(default_factory=dict)  # of a batch's time to `fixed + each * size`

    def level(self, inside: int) -> int:
        """The nearest, by ratio, to the requests inside of the server."""
        return min(self.read, key=lambda level: abs(math.log(level / max(1, inside))))


@dataclass
class OwnCosts(Costs):
    """The same of one run, by when they were: pairs of a time since its begin, and what was measured then."""

    read_at: list[tuple[float, float]] = field(default_factory=list)
    delay_at: list[tuple[float, float]] = field(default_factory=list)
    ratio_at: list[tuple[float, float]] = field(default_factory=list)


def nearest(timed: list[tuple[float, float]], now: float, rng: np.random.Generator) -> float:
    """One of the eight values that are nearest in time; ``timed`` is sorted."""
    first = max(0, min(bisect.bisect(timed, (now, 0.0)) - NEAREST // 2, len(timed) - NEAREST))
    return timed[min(first + int(rng.integers(NEAREST)), len(timed) - 1)][1]


class Simulated:
    """One server. Times in seconds; ``spent`` and ``refused`` grow while it runs."""

    def __init__(self, env: simpy.Environment, costs: Costs, settings: Settings, readers: int, seed: int) -> None:
        self.env, self.costs, self.settings = env, costs, settings
        self.rng = np.random.default_rng(seed)
        self.loop, self.readers = simpy.Resource(env, 1), simpy.Resource(env, readers)
        self.admitted = self.coming = self.refused = 0
        self.waiting: list[tuple[float, simpy.Event]] = []
        self.working = False
        self.spent: list[float] = []

    def drawn(self, name: str) -> float:
        if isinstance(self.costs, OwnCosts):
            return nearest(getattr(self.costs, f"{name}_at"), self.env.now, self.rng)
        found = getattr(self.costs, name)[self.costs.level(self.admitted)]
        return found[int(self.rng.integers(len(found)))]

    def request(self) -> Event:
        begin = self.env.now
        with self.loop.request() as turn:
            yield turn
            full = self.admitted >= self.settings.max_concurrency
            yield self.env.timeout(self.costs.refusal if full else self.costs.loop / 2)
        if full or self.admitted >= self.settings.max_concurrency:  # others came while its body did
            self.refused += 1
            return
        self.admitted += 1
        delay = self.drawn("delay") / 2
        self.coming += 1
        yield self.env.timeout(delay + self.costs.handing / 2)
        with self.readers.request() as turn:
            yield turn
            yield self.env.timeout(self.drawn("read"))
        answer = self.env.event()
        self.coming -= 1
        self.waiting.append((self.env.now, answer))
        self.start()
        yield answer
        yield self.env.timeout(delay + self.costs.handing / 2)
        with self.loop.request() as turn:
            yield turn
            yield self.env.timeout(self.costs.loop / 2)
        self.admitted -= 1
        self.spent.append(self.env.now - begin)

    def start(self) -> None:
        """`Batcher._start`: a batch leaves when it is due, or it is looked again when it will be."""
        if self.working or not self.waiting:
            return
        left = 0.0
        if self.coming and len(self.waiting) < self.settings.max_batch:
            left = self.waiting[0][0] + self.settings.max_wait_ms / 1e3 - self.env.now
        if left <= 1e-9:
            self.working = True
            self.env.process(self.work())
        else:
            self.env.process(self.later(left))

    def later(self, seconds: float) -> Event:
        yield self.env.timeout(seconds)
        self.start()

    def work(self) -> Event:
        batch, self.waiting = self.waiting[: self.settings.max_batch], self.waiting[self.settings.max_batch :]
        yield self.env.timeout((self.costs.fixed + self.costs.each * len(batch)) * self.drawn("ratio"))
        for _, answer in batch:
            answer.succeed()
        self.working = False
        self.start()


@dataclass
class Outcome:
    """Answers a second, milliseconds, and the share that was refused."""

    rate: float
    p50: float
    p99: float
    refused: float


def arrivals(rate: float, seconds: float, seed: int = SEED) -> list[float]:
    """The times of `overload.at_random`."""
    rng, due, found = np.random.default_rng(seed), 0.0, []
    while (due := due + rng.exponential(1 / rate)) < seconds:
        found.append(due)
    return found


def simulate(costs: Costs, settings: Settings, readers: int, times: list[float], seed: int) -> Outcome:
    env = simpy.Environment()
    server = Simulated(env, costs, settings, readers, seed)

    def source() -> Event:
        for due in times:
            yield env.timeout(due - env.now)
            env.process(server.request())

    env.process(source())
    env.run()
    return outcome(server.spent, server.refused, max(env.now, times[-1]))


def simulate_closed(costs: Costs, settings: Settings, readers: int, clients: int, think: float = 0.0) -> float:
    """Answers a second to clients that ask again ``think`` seconds after they are answered."""
    env = simpy.Environment()
    server = Simulated(env, costs, settings, readers, 0)

    def client() -> Event:
        while True:
            yield env.process(server.request())
            yield env.timeout(think)

    for _ in range(clients):
        env.process(client())
    env.run(until=CLOSED_S)
    return len(server.spent) / CLOSED_S


def outcome(spent_s: list[float], refused: int, seconds: float) -> Outcome:
    p50, p99 = (float(np.percentile(spent_s, share)) * 1e3 for share in (50, 99))
    return Outcome(len(spent_s) / seconds, p50, p99, refused / (refused + len(spent_s)))


def mean(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*(float(np.mean([getattr(one, name) for one in outcomes])) for name in Outcome.__dataclass_fields__))
