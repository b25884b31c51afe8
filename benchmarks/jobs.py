"""What jobs cost and withstand: servers and workers that are killed, and retrieval while a refinement runs.

    python benchmarks/jobs.py [--kills 100] [--seed 0] [--seconds 10] [--blocks 3] [--only kills,speed]

- kills: tests/service/support/killed_jobs.py with a stand-in for what a job computes: SIGKILL of a server or a worker
  at named steps, between any two statements of SQL, and at random moments; then the same with a store whose statements
  are no transactions, which has to fail.
- speed: one client retrieves, one gather after the other, in blocks without and with a real refinement running on the
  same machine, in turn; the ratio of medians and of 99th percentiles, over all blocks of a kind.

Promised (55, 57): nothing acknowledged is lost in a hundred kills; retrieval is slowed by at most a fifth. It exits
with 1 where that is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
from served import served

from seisbind.service.engine.engine import canary_gather
from seisbind.service.formats.npy import npy

HARNESS = Path(__file__).parents[1] / "tests" / "service" / "support" / "killed_jobs.py"
MODELS = 500
WARM_UP = 30  # retrievals before any is timed
MOST_SLOWED = 1.2


def kills(count: int, seed: int) -> bool:
    """Print what the harness found; whether all is as promised."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(HARNESS), str(Path(folder) / "safe"), str(count), str(seed)]
        safe = json.loads(_last_line(command))
        print("kills:", json.dumps(safe))
        command[2] = str(Path(folder) / "unsafe")
        unsafe = json.loads(_last_line([*command, "--unsafe"]))
        print("without transactions:", json.dumps(unsafe))
    return not safe["faults"] and bool(unsafe["faults"])


def _last_line(command: list[str]) -> str:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as harness:
        line = ""
        for line in harness.stdout or ():
            print("  ", line.rstrip(), file=sys.stderr)
    return line


def speed(seconds: float, blocks: int) -> bool:
    """Print how retrieval goes with and without a job; whether it is as promised."""
    sent = npy(canary_gather()[0])
    times: dict[bool, list[float]] = {False: [], True: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        served(MODELS, jobs=folder) as (url, _),
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        retrieve(http, sent, count=WARM_UP)
        for number in range(2 * blocks):
            with_job = bool(number % 2)
            job = begin(http, sent) if with_job else ""
            times[with_job] += retrieve(http, sent, seconds=seconds)
            if job:
                state = http.get(job).json()
                print(f"  {state['state']}, {(state['progress'] or {}).get('iteration')} iterations", file=sys.stderr)
                http.delete(job)
                time.sleep(2)  # the worker ends its iteration
    found = {kind: np.percentile(each, (50, 99)) * 1e3 for kind, each in times.items()}
    ratio = found[True] / found[False]
    print(
        f"retrieval alone: p50 {found[False][0]:.1f} ms, p99 {found[False][1]:.1f} ms ({len(times[False])}); while a "
        f"refinement runs: {found[True][0]:.1f}, {found[True][1]:.1f} ms ({len(times[True])}); ratios {ratio[0]:.2f}, "
        f"{ratio[1]:.2f}"
    )
    return bool(ratio[1] <= MOST_SLOWED)


def begin(http: httpx.Client, sent: bytes) -> str:
    """The address of a job that has done an iteration."""
    answer = http.post("/v1/jobs", files={"file": sent}, data={"iterations": 200})
    answer.raise_for_status()
    address = str(answer.json()["links"]["self"])
    while not (state := http.get(address).json())["progress"]:
        if state["state"] == "failed":
            raise SystemExit(state["error"]["detail"])
        time.sleep(0.1)
    return address


def retrieve(http: httpx.Client, sent: bytes, *, seconds: float = 0.0, count: int = 0) -> list[float]:
    """Seconds of each retrieval."""
    end, taken = time.perf_counter() + seconds, []
    while len(taken) < count or time.perf_counter() < end:
        begun = time.perf_counter()
        http.post("/v1/retrieve", files={"file": sent}).raise_for_status()
        taken.append(time.perf_counter() - begun)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a block")
    parser.add_argument("--blocks", type=int, default=3, help="of each kind")
    parser.add_argument("--only", default="kills,speed")
    given = parser.parse_args()
    kept = True
    if "kills" in given.only:
        kept &= kills(given.kills, given.seed)
    if "speed" in given.only:
        kept &= speed(given.seconds, given.blocks)
    sys.exit(not kept)


if __name__ == "__main__":
    main()
