"""Opening a gallery of a million: time to the first answer, and the memory that each further process of the host adds.

    python benchmarks/gallery_opening.py --folder /tmp/million --models 1000000   # 7 GB of disk; made once, kept

The vectors lie between embeddings of models of the ten families, and of their descriptors (see `gallery_search.py`);
each has a map of 4 x 4 cells. Each figure is of a process of its own: one that opens no gallery, one after another that
map it, and one that reads snapshots as smaller galleries have them (``--read``; as all galleries did before). Memory is
what belongs to a process alone (USS), less that of the process without a gallery.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from gallery_search import REAL, SEED, between

from seisbind.index import Gallery
from seisbind.index.storage.folder import MAPPED, READ
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed
from seisbind.service.terminal.console import counting

PART = 20_000

# In a process of its own: argv is the folder, the fingerprint and what to do.
PROCESS = """
import sys, time
began = time.perf_counter()
import json, os
from pathlib import Path
import numpy as np, torch
from seisbind.index import Filter, Gallery
torch.set_num_threads(1)
imported = time.perf_counter()
queries = np.load(sys.argv[1] + ".queries.npy")
report = {"import_s": imported - began}
def ms(work):
    found = []
    for _ in range(5):
        start = time.perf_counter()
        work()
        found.append((time.perf_counter() - start) * 1e3)
    return min(found)
if sys.argv[3] != "none":
    start = time.perf_counter()
    gallery = Gallery.open(Path(sys.argv[1]), fingerprint=sys.argv[2])
    opened = time.perf_counter()
    hits = gallery.search_velocity(queries[:1], 20)
    answered = time.perf_counter()
    gallery.velocity(hits[0][0].model_id)
    report |= {"open_s": opened - start, "to_first_answer_s": answered - start, "first": hits[0][0].model_id}
    report["from_start_s"] = answered - began
    for count in (1, 64):
        report[f"search_{count}_ms"] = ms(lambda: gallery.search_velocity(queries[:count], 20))
    low, high = gallery.info().descriptor_ranges["mean_velocity"]
    middle = Filter.parse({"mean_velocity": [low + 0.45 * (high - low), low + 0.5 * (high - low)]})
    report["filtered_ms"] = ms(lambda: gallery.search_velocity(queries[:1], 20, filter=middle))
    gallery.search_physics(queries[:1], 20)
    report["notes"] = gallery.notes
private = sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private_"))
report["private_mb"] = private / 1024
print(json.dumps(report), flush=True)
sys.stdin.readline()  # stays while others start
"""


def make(folder: Path, models: int) -> None:
    """A gallery of ``models`` and, beside it, queries."""
    rng = np.random.default_rng(SEED)
    embedder = Embedder.load()
    drawn, _ = mixed(REAL, SEED)
    descriptors = describe(drawn, cell_m=embedder.frame.cell_m)
    spaces = embedder.embed_velocity(drawn), embedder.embed_descriptors(descriptors)
    np.save(f"{folder}.queries.npy", between(spaces[0], 64, rng))
    with (
        Gallery.building(folder, fingerprint=embedder.fingerprint) as gallery,
        counting("Adding models", models) as progress,
    ):
        for start in range(0, models, PART):
            count = min(PART, models - start)
            maps = rng.uniform(1500, 4500, (count, 4, 4)).astype(np.float32)
            families = [f"family {number % 10}" for number in range(count)]
            of_maps = descriptors[rng.integers(REAL, size=count)]
            gallery.add(maps, of_maps, *(between(each, count, rng) for each in spaces), families=families)
            progress(start + count)


def started(folder: Path, fingerprint: str, what: str) -> tuple[subprocess.Popen[str], dict[str, object]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(folder), fingerprint, what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/opening"), help="of galleries, made once")
    parser.add_argument("--models", type=int, default=1_000_000)
    parser.add_argument("--read", action="store_true", help="also write and read the snapshots of smaller galleries")
    args = parser.parse_args()
    args.folder.parent.mkdir(parents=True, exist_ok=True)
    if not args.folder.exists():
        make(args.folder, args.models)
    with Gallery.open(args.folder, fingerprint=None) as gallery:
        fingerprint = gallery.fingerprint
    report: dict[str, object] = {}
    running = []
    try:
        for name, what in (("without a gallery", "none"), ("first", "map"), ("second", "map"), ("third", "map")):
            process, found = started(args.folder, fingerprint, what)
            running.append(process)
            report[name] = found
        alone = report["without a gallery"]["private_mb"]  # type: ignore[index]
        report["added_mb"] = {name: report[name]["private_mb"] - alone for name in ("first", "second", "third")}  # type: ignore[index]
    finally:
        for process in running:
            process.communicate("\n")
    if args.read:
        report["read"] = read(args.folder, fingerprint, float(alone))
    print(json.dumps(report, indent=1))


def read(folder: Path, fingerprint: str, alone: float) -> dict[str, object]:
    """The same gallery with the snapshots that are read whole; the mapped one is put back afterwards."""
    aside = folder.with_name(folder.name + ".mapped")
    start = time.perf_counter()
    with Gallery.open(folder, fingerprint=fingerprint) as gallery:
        gallery._view.write_snapshots(folder, fingerprint=fingerprint, at_step=lambda step: None)
    written = time.perf_counter() - start
    (folder / MAPPED).replace(aside)
    try:
        process, found = started(folder, fingerprint, "read")
        process.communicate("\n")
    finally:
        aside.replace(folder / MAPPED)
        for name in READ:
            (folder / name).unlink(missing_ok=True)
    return {**found, "added_mb": float(str(found["private_mb"])) - alone, "written_s": written}


if __name__ == "__main__":
    main()
