"""A server that is asked four times what it can do: who is refused and how soon, how long the others wait, its memory.

    python benchmarks/overload.py [--seconds 20] [--times 4] [--concurrency 8] [--close] [--device auto]

In turn: one client; as many clients as there are places, which is its capacity; requests at random times, four times as
many a second as that. A gather is 175 kB (float16, 4 ms), so that the client, which shares the machine, can keep up.
With ``--close`` each of these comes on a connection of its own and asks for it to be closed, as many tools do.
Promised: the excess gets 429 with Retry-After within 50 ms, the p99 of those admitted stays within three times that at
capacity, and memory is bounded.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter

import httpx
import numpy as np
from served import Client, Reply, clients, forget_peak, memory_bytes, served

from seisbind.service.engine.engine import canary_gather
from seisbind.service.formats.npy import npy

MODELS = 2000
BODIES = 16  # different gathers
DT = "dt_s=0.004"


def bodies() -> list[bytes]:
    rng, clean = np.random.default_rng(0), canary_gather()[0, :, ::4]
    noise = 0.02 * rng.standard_normal((BODIES, *clean.shape))
    return [npy((clean + each).astype(np.float16)) for each in noise]


async def in_turn(url: httpx.URL, sent: list[bytes], count: int, seconds: float) -> list[Reply]:
    """Replies to ``count`` clients, each of which asks again when it is answered; the first fifth is not counted."""
    begin, replies = time.perf_counter(), []

    async def go_on(one: Client, asked: int) -> None:
        while (now := time.perf_counter()) < begin + seconds:
            reply = await one.ask(sent[asked % len(sent)], DT)
            asked += 1
            if now > begin + seconds / 5:
                replies.append(reply)

    async with clients(url, count) as opened:
        await asyncio.gather(*(go_on(one, number) for number, one in enumerate(opened)))
    return replies


async def at_random(url: httpx.URL, sent: list[bytes], rate: float, seconds: float, *, close: bool) -> list[Reply]:
    """Replies to requests that come ``rate`` a second on average, whatever has become of those before."""
    rng, free, every, replies, running = np.random.default_rng(1), [], [], [], set()  # type: ignore[var-annotated]

    async def request(body: bytes) -> None:
        while free and free[-1].reader.at_eof():  # the server closes those that were idle for long
            free.pop()
        if free:
            one = free.pop()
        else:
            every.append(one := await Client.connect(url))
        replies.append(await one.ask(body, DT, close=close))
        if not close:
            free.append(one)

    begin, due = time.perf_counter(), 0.0
    while (due := due + rng.exponential(1 / rate)) < seconds:
        await asyncio.sleep(max(0.0, begin + due - time.perf_counter()))
        running.add(task := asyncio.create_task(request(sent[len(replies) % len(sent)])))
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    for each in every:
        each.writer.close()
    return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="of each of the three")
    parser.add_argument("--times", type=float, default=4, help="the capacity")
    parser.add_argument("--concurrency", type=int, default=8, help="places: SEISBIND_MAX_CONCURRENCY")
    parser.add_argument("--close", action="store_true", help="a connection for each request of the excess")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    seconds, places, sent = arguments.seconds, arguments.concurrency, bodies()
    with served(MODELS, max_concurrency=places, device=arguments.device) as (url, pid):
        alone = asyncio.run(in_turn(url, sent, 1, seconds))
        full = asyncio.run(in_turn(url, sent, places, seconds))
        capacity = len(full) / (0.8 * seconds)
        before = memory_bytes(pid)
        forget_peak(pid)
        over = asyncio.run(at_random(url, sent, arguments.times * capacity, seconds, close=arguments.close))
        peak = memory_bytes(pid, "VmHWM")

    def ms(replies: list[Reply], status: int, per_cent: float) -> float:
        spent = [reply.ms for reply in replies if reply.status == status]
        return float(np.percentile(spent, per_cent)) if spent else float("nan")

    admitted, refused = (sum(reply.status == status for reply in over) for status in (200, 429))
    others = Counter(reply.status for reply in over if reply.status not in (200, 429))
    within = 100 * sum(reply.status == 429 and reply.ms <= 50 for reply in over) / max(1, refused)
    silent = sum(reply.status == 429 and not reply.retry_after for reply in over)
    print(f"{places} places, {seconds:g} s each, {MODELS} models")
    for name, text in (
        ("one client: p50, p99, ms", f"{ms(alone, 200, 50):.1f}, {ms(alone, 200, 99):.1f}"),
        ("at capacity: requests/s", f"{capacity:.1f}"),
        ("  p50, p99, ms", f"{ms(full, 200, 50):.1f}, {ms(full, 200, 99):.1f}"),
        (f"asked {arguments.times:g} times as much: requests/s", f"{len(over) / seconds:.1f}"),
        ("  admitted/s, refused/s", f"{admitted / seconds:.1f}, {refused / seconds:.1f}"),
        ("  neither, 0: no answer (none)", str(dict(others) or "none")),
        ("  429 without Retry-After (none)", str(silent or "none")),
        ("  refusals: p50, p99, slowest, ms (at most 50)",
         f"{ms(over, 429, 50):.1f}, {ms(over, 429, 99):.1f}, {ms(over, 429, 100):.1f}"),
        ("  refusals within 50 ms, %", f"{within:.1f}"),
        ("  admitted: p50, p99, ms", f"{ms(over, 200, 50):.1f}, {ms(over, 200, 99):.1f}"),
        ("  admitted p99 of that at capacity (at most 3)", f"{ms(over, 200, 99) / ms(full, 200, 99):.2f}"),
        ("  admitted p99 of the p50 of one client", f"{ms(over, 200, 99) / ms(alone, 200, 50):.2f}"),
        ("  memory before, at most, MB", f"{before / 1e6:.0f}, {peak / 1e6:.0f}"),
    ):  # fmt: skip
        print(f"{name:<52}{text:>22}")
    late = ms(over, 429, 100) > 50 or ms(over, 200, 99) > 3 * ms(full, 200, 99)
    sys.exit(late or bool(others) or silent > 0)


if __name__ == "__main__":
    main()
