"""Several CPU workers behind one port against one, nginx over separate processes, and Ray Serve in its HAProxy mode.

    python benchmarks/workers.py [--rounds 5] [--seconds 10] [--callers 8] [--ray PYTHON] [--kills 3] [--models 2000]

All layouts serve one gallery on the same cores, each process with one thread to encode:

- one: ``seisbind serve``; two: ``seisbind serve --workers 2``;
- nginx, if it is installed: two ``seisbind serve`` behind it (least_conn, connections kept, nothing buffered);
- ray: two replicas of the same application in Ray Serve (`workers_in_ray.py`), run by a PYTHON that has ``ray[serve]``.

Callers post gathers as npy over connections that stay open, each the next one when it is answered: 1.4 MB (float32,
1 ms) and 0.18 MB (float16, 4 ms). A round measures every layout in turn, and a ratio is of one round; rows are medians
of the rounds. CPU time is of the layout's threads, of the callers, which share the cores, and of whatever else runs:
rounds in which that took more than ``--quiet`` cores are counted and left out, unless all did. CPU time a gather tells
on a busy machine, too, what one process leaves idle and what two can gain. Then the memory of one worker more, and
SIGKILL of a worker under load: what was lost, and on whose connections. One module because it is one measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
CORE_LEFT = 0.9  # cores that nobody used while the one process was measured: it left one idle
PROMISED = 1.6
MIB = 1 << 20
SETTLE_S = 3.0  # from the first answer of Ray Serve on
FIGURES = ("rate", "p50_ms", "p99_ms", "cpu_ms", "cores", "callers", "others", "idle")
ONE_THREAD = {"threads": 1, "device": "cpu"}

NGINX = """worker_processes auto; pid nginx.pid; error_log error.log warn; events {{ worker_connections 1024; }}
http {{
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path f; uwsgi_temp_path u; scgi_temp_path s;
  access_log off;
  upstream replicas {{ zone replicas 64k; least_conn; server {0}; server {1}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{2}; client_max_body_size 32m;
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 120s;
    }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where it listens, and its processes, whose children belong to it."""

    url: httpx.URL
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement. ``cores``: that the layout, the callers and all other processes used; what was ``idle``.
    ``broken``: connections that ended before their answer. ``cpu_ms``: CPU time a gather, of all threads of the layout;
    ``busiest_ms``: of that one which had most."""

    rate: float
    p50_ms: float
    p99_ms: float
    cores: float
    callers: float
    others: float
    idle: float
    broken: int
    cpu_ms: float
    busiest_ms: float


# The layouts


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def behind_nginx(gallery: Path) -> Iterator[Layout]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = [stack.enter_context(serving(gallery, **ONE_THREAD)) for _ in range(2)]
        port = free_port()
        (folder / "nginx.conf").write_text(NGINX.format(*(f"127.0.0.1:{url.port}" for url, _ in servers), port))
        command = ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off; user root;"]
        nginx = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(nginx.terminate)
        wait_for(f"http://127.0.0.1:{port}/readyz")
        yield Layout(httpx.URL(f"http://127.0.0.1:{port}"), (nginx.pid, *(pid for _, pid in servers)))


@contextmanager
def in_ray(gallery: Path, python: str) -> Iterator[Layout]:
    port = free_port()
    command = [python, str(Path(__file__).with_name("workers_in_ray.py")), str(gallery), str(port), "2"]
    more = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=os.environ | more
    ) as driver:
        try:
            if driver.stdout is None or not any("Serving" in line for line in driver.stdout):
                sys.exit("Ray Serve did not start.")
            wait_for(f"http://127.0.0.1:{port}/readyz")
            time.sleep(SETTLE_S)
            yield Layout(httpx.URL(f"http://127.0.0.1:{port}"), (driver.pid,))
        finally:
            driver.terminate()


@contextmanager
def seisbind(gallery: Path, workers: int) -> Iterator[Layout]:
    with serving(gallery, workers=workers, **ONE_THREAD) as (url, pid):
        yield Layout(url, (pid,))


def wait_for(url: str) -> None:
    for _ in range(600):
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=20).status_code == 200:
                return
        time.sleep(0.1)
    sys.exit(f"{url} does not answer.")


# What processes use


def family(pids: tuple[int, ...]) -> list[int]:
    """Processes and their children."""
    parents = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            parents[int(rest[1])].append(pid)
    found, new = list(pids), list(pids)
    while new:
        new = [child for parent in new for child in parents[parent]]
        found += new
    return found


def cpu_s(pids: tuple[int, ...]) -> dict[str, float]:
    """CPU time of each thread so far; one that has ended is not counted."""
    found = {}
    for stat in (stat for pid in family(pids) for stat in Path(f"/proc/{pid}/task").glob("*/stat")):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            found[stat.parent.name] = (int(fields[11]) + int(fields[12])) * TICK_S
    return found


def machine_s() -> tuple[float, float]:
    """CPU time of all cores so far: used, idle."""
    fields = [int(each) for each in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) * TICK_S, idle * TICK_S


def shared_out_bytes(pids: list[int], name: str = "Pss:") -> int:
    """Memory, a page that n processes have being an n-th of a page in each."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return total


# Measuring


async def load(layout: Layout, sent: list[bytes], query: str, callers: int, seconds: float) -> Run:
    """A closed loop; the first fifth is not counted."""
    spent: list[float] = []
    broken = 0
    async with clients(layout.url, callers) as opened:
        start = time.perf_counter()
        begin, end = start + seconds / 5, start + seconds

        async def caller(number: int, one: Client) -> None:
            nonlocal broken
            asked = number
            while time.perf_counter() < end:
                try:
                    reply = await one.ask(sent[asked % len(sent)], query)
                except (OSError, asyncio.IncompleteReadError):
                    broken += 1
                    one.writer.close()
                    opened[number] = one = await Client.connect(layout.url)
                    continue
                if reply.status != 200:
                    sys.exit(f"{layout.url} answered {reply.status}.")
                if begin <= time.perf_counter() < end:
                    spent.append(reply.ms)
                asked += 1

        running = asyncio.gather(*(caller(number, one) for number, one in enumerate(opened)))
        await asyncio.sleep(begin - time.perf_counter())
        threads, before = cpu_s(layout.pids), (time.perf_counter(), time.process_time(), *machine_s())
        await asyncio.sleep(end - time.perf_counter())
        later, after = cpu_s(layout.pids), (time.perf_counter(), time.process_time(), *machine_s())
        await running
    wall, ours, used, idle = (late - early for early, late in zip(before, after, strict=True))
    spent_cpu = [seconds - threads.get(name, 0.0) for name, seconds in later.items()]
    own, others, count = sum(spent_cpu), max(0.0, used - sum(spent_cpu) - ours), len(spent)
    p50, p99 = np.percentile(spent, [50, 99])
    return Run(
        count / wall, float(p50), float(p99), own / wall, ours / wall, others / wall, idle / wall, broken,
        1e3 * own / count, 1e3 * max(spent_cpu) / count,
    )  # fmt: skip


# A worker that is killed


def connections_of(pid: int) -> set[int]:
    """Ports of the clients whose connections a process has."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(str(descriptor.readlink()))
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {int(each[2].split(":")[1], 16) for each in lines if f"socket:[{each[9]}]" in inodes}


def workers_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def killed(layout: Layout, sent: list[bytes], query: str, callers: int, kills: int) -> Counter[str]:
    """Requests by what became of them; a caller whose connection breaks opens another."""
    counts: Counter[str] = Counter()
    doomed: set[int] = set()
    done = False

    async def caller(number: int) -> None:
        one, asked = await Client.connect(layout.url), number
        while not done:
            port = one.writer.get_extra_info("sockname")[1]
            try:
                reply = await one.ask(sent[asked % len(sent)], query)
                counts["answered" if reply.status == 200 else f"answered {reply.status}"] += 1
            except (OSError, asyncio.IncompleteReadError):
                counts["lost, on the killed worker" if port in doomed else "LOST, NOT ON IT"] += 1
                one.writer.close()
                one = await Client.connect(layout.url)
            asked += 1
        one.writer.close()

    running = [asyncio.create_task(caller(number)) for number in range(callers)]
    for number in range(kills):
        await asyncio.sleep(3)
        victim = workers_of(layout.pids[0])[number % 2]
        os.kill(victim, signal.SIGSTOP)  # so that it takes no connection between the look and its end
        doomed |= connections_of(victim)
        os.kill(victim, signal.SIGKILL)
        counts["kills"] += 1
        for _ in range(600):  # until another has its place
            await asyncio.sleep(0.1)
            if len(found := workers_of(layout.pids[0])) == 2 and victim not in found and await both_ready(layout.url):
                break
        else:
            sys.exit("No worker took its place.")
    await asyncio.sleep(3)
    done = True
    await asyncio.gather(*running)
    return counts


async def both_ready(url: httpx.URL) -> bool:
    async with httpx.AsyncClient(timeout=30) as http:
        answer = await http.get(f"{url}/readyz")
    return answer.status_code == 200 and [one["state"] for one in answer.json()["workers"]] == ["ready"] * 2


# The table


def memory(gallery: Path, sent: list[bytes], callers: int) -> None:
    """Of two workers and of three, after the same load; of all processes that share pages with them, this one too."""
    found = []
    for workers in (2, 3):
        with seisbind(gallery, workers) as layout:
            asyncio.run(load(layout, sent, "", 4 * callers, 5))
            pids = family(layout.pids)
            workers_alone = [shared_out_bytes([pid], "Private_") / MIB for pid in workers_of(layout.pids[0])]
            found.append((shared_out_bytes([os.getpid(), *pids]) / MIB, statistics.median(workers_alone)))
    (two, _), (three, private) = found
    print(f"\nmemory of one worker more: {three - two:.0f} MiB (proportional set size of all processes, 3 less 2)")
    print(f"  {private:.0f} MiB private to a worker; {two:.0f} MiB two workers, their supervisor and this script")


def table(rounds: dict[str, list[Run]]) -> None:
    print("         gathers/s  p50 ms  p99 ms  CPU ms  cores  callers  others  idle  broken   of one (range), of two")
    for name, runs in rounds.items():
        to_one, to_two = (
            sorted(own.rate / base.rate for own, base in zip(runs, rounds[other], strict=True))
            for other in ("one", "two")
        )
        row = [statistics.median(getattr(run, figure) for run in runs) for figure in FIGURES]
        print(
            f"{name:8}{row[0]:10.1f}{row[1]:8.1f}{row[2]:8.1f}{row[3]:8.1f}{row[4]:7.2f}{row[5]:9.2f}{row[6]:8.2f}{row[7]:6.2f}"
            f"{sum(run.broken for run in runs):8}   {statistics.median(to_one):.2f} ({to_one[0]:.2f} to "
            f"{to_one[-1]:.2f}), {statistics.median(to_two):.2f}"
        )
    (total, busiest), (of_two, _) = (
        (
            statistics.median(run.cpu_ms for run in rounds[name]),
            statistics.median(run.busiest_ms for run in rounds[name]),
        )
        for name in ("one", "two")
    )
    cores = os.cpu_count() or 1
    needs = total / busiest
    left, best = cores - needs, cores * busiest / of_two
    print(f"CPU time: {total:.1f} ms a gather in one, {busiest:.1f} of it in one thread: {needs:.2f} cores at most,")
    print(f"  {left:.2f} of {cores} left idle; {of_two:.1f} ms in two, which are {best:.2f} times one at best")
    if left >= CORE_LEFT:
        print(f"  one leaves a core idle: two have to be {PROMISED} times it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--models", type=int, default=2000, help="in the gallery")
    parser.add_argument("--kills", type=int, default=3, help="of a worker under load; 0: none")
    parser.add_argument("--ray", help="a Python that has ray[serve] and SeisBind")
    parser.add_argument("--quiet", type=float, default=0.3, help="cores that others may use in a round")
    arguments = parser.parse_args()
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    torch.set_num_threads(1)
    bodies = {"1.4 MB": (throughput.bodies(), ""), "0.18 MB": (overload.bodies(), overload.DT)}
    print(f"{throughput.hardware(torch.device('cpu'))}; commit {commit}; {arguments.models} models, seed 0")
    print(
        f"{arguments.rounds} rounds of {arguments.seconds:g} s, {arguments.callers} callers, load average "
        f"{os.getloadavg()[0]:.1f} before",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        gallery = Path(folder) / "gallery"
        velocity, families = mixed(arguments.models, seed=0)
        build_gallery(gallery, Embedder.load(device="cpu"), [(velocity, families.tolist())], source="benchmark")
        memory(gallery, bodies["1.4 MB"][0], arguments.callers)
        layouts = {"one": stack.enter_context(seisbind(gallery, 1)), "two": stack.enter_context(seisbind(gallery, 2))}
        if shutil.which("nginx"):
            layouts["nginx"] = stack.enter_context(behind_nginx(gallery))
        names = [*layouts, *(["ray"] if arguments.ray else [])]
        measured = {kind: {name: [] for name in names} for kind in bodies}  # type: dict[str, dict[str, list[Run]]]
        for number in range(arguments.rounds):
            for name in names if number % 2 == 0 else names[::-1]:
                with ExitStack() as here:  # Ray would burden the others with what it does while it serves nobody
                    layout = layouts[name] if name in layouts else here.enter_context(in_ray(gallery, arguments.ray))
                    for kind, (sent, query) in bodies.items():
                        run = asyncio.run(load(layout, sent, query, arguments.callers, arguments.seconds))
                        measured[kind][name].append(run)
                        print(f"round {number}, {name}, {kind}: {run}", file=sys.stderr, flush=True)
        for kind, rounds in measured.items():
            busiest = [max(run.others for run in one) for one in zip(*rounds.values(), strict=True)]
            kept = [number for number, others in enumerate(busiest) if others <= arguments.quiet]
            quiet = f"{len(kept)} of {len(busiest)} rounds quiet (others took {arguments.quiet} cores at most)"
            print(f"\n{kind} a gather; {quiet}")
            kept = kept or list(range(arguments.rounds))
            table({name: [runs[number] for number in kept] for name, runs in rounds.items()})
        print("cores: that its processes used; others: what else ran on the machine")
        if arguments.kills:
            sent, query = bodies["0.18 MB"]
            counts = asyncio.run(killed(layouts["two"], sent, query, arguments.callers, arguments.kills))
            print("\n" + ", ".join(f"{name}: {count}" for name, count in counts.items()))
            print(f"lost, not on the killed worker: {counts['LOST, NOT ON IT']} (none)")
        print(f"load average {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main()
