"""The hostile uploads of tests/service/http/test_hostile.py against a real server: time and memory that each one costs.

    python benchmarks/hostile.py [--rounds 5] [--slowest 10]

Promised: each is refused in 100 ms and within twice the cap in memory. A row has the median time from the first byte
sent to the answer, over loopback; what of it the bytes take to arrive, which is the median of as many bytes that are
refused by their first; the difference, which is what the upload costs the server; and the most memory beyond what it
held before. The larger SEG-Y files are as large as the default cap lets them be. The last line is what `numpy.load`
makes of the zip bomb.
"""

from __future__ import annotations

import argparse
import io
import runpy
import statistics
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from served import forget_peak, memory_bytes, served

TEST = Path(__file__).parents[1] / "tests" / "service" / "http" / "test_hostile.py"
CAP = 32 << 20  # the default
SLOWEST_MS = 100.0
RAW = {"Content-Type": "application/octet-stream"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slowest", type=int, default=10, help="rows to print")
    arguments = parser.parse_args()
    sys.path.insert(0, str(TEST.parents[1] / "support"))
    test = runpy.run_path(str(TEST))
    corpus = {name: make() for name, (_, _, make) in test["CORPUS"].items()} | {
        "SEG-Y of traces of one sample, 31 MB": test["segy"](130_000, 1, 7),
        "SEG-Y of single traces, 32 MB": test["segy"](80_000, 160, 7),
        "SEG-Y that repeats a trace, 32 MB": test["segy"](80_000, 160),
    }
    rows: list[tuple[float, float, float, int, int, int, str]] = []
    with (
        served(20, max_body_bytes=CAP, max_gathers=5) as (url, pid),
        httpx.Client(base_url=url, timeout=60) as http,
    ):

        def ask(body: bytes) -> tuple[int, float]:
            start = time.perf_counter()
            status = http.post("/v1/retrieve", content=body, headers=RAW).status_code
            return status, (time.perf_counter() - start) * 1e3

        good = test["npy"](test["GOOD"])
        for _ in range(3):
            http.post("/v1/retrieve", content=good, headers=RAW).raise_for_status()
        for name, body in corpus.items():
            spent, arriving, most, status = [], [], 0, 0
            for _ in range(arguments.rounds):
                arriving.append(ask(b"x" * len(body))[1])
                forget_peak(pid)
                before = memory_bytes(pid)
                status, ms = ask(body)
                spent.append(ms)
                most = max(most, memory_bytes(pid, "VmHWM") - before)
            whole, floor = statistics.median(spent), statistics.median(arriving)
            rows.append((whole - floor, whole, floor, most, len(body), status, name))
        http.post("/v1/retrieve", content=good, headers=RAW).raise_for_status()
    rows.sort(reverse=True)
    print(f"{'cost, ms':>10}{'whole, ms':>11}{'arriving':>10}{'memory, MB':>12}{'sent, MB':>10}{'status':>8}  upload")
    for cost, whole, floor, most, size, status, name in rows[: arguments.slowest]:
        print(f"{cost:>10.1f}{whole:>11.1f}{floor:>10.1f}{most / 1e6:>12.1f}{size / 1e6:>10.1f}{status:>8}  {name}")
    memory = max(row[3] for row in rows)
    print(f"{len(rows)} uploads; slowest {rows[0][0]:.1f} ms; most memory {memory / 1e6:.1f} MB of {2 * CAP / 1e6:.1f}")
    bomb, start = io.BytesIO(corpus["bomb"]), time.perf_counter()
    loaded = np.load(bomb)["gathers"]
    print(f"numpy.load of the bomb: {(time.perf_counter() - start) * 1e3:.0f} ms, {loaded.nbytes / 1e6:.0f} MB")
    broken = [row for row in rows if not 400 <= row[5] < 500 or row[0] > SLOWEST_MS or row[3] > 2 * CAP]
    for row in broken:
        print("over:", row)
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
