"""Kill a build at every named step and at random moments until it is done: the harness of `test_build`.

    python killed_build.py FOLDER WEIGHTS RANDOM_KILLS SEED [naive]

Prints a JSON object: how often it died at each step, how many models each start had before it, and whether the gallery
that it became is the one of a build that nobody killed, and whether it was there before it was whole. ``naive`` does
not go on but begins a note too early, and has to be found out. In a process of its own because it forks.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import seisbind.index.building as index_building
from seisbind.index.search import mapped_writer
from seisbind.index.verify import verify_folder
from seisbind.model.encoders.embedder import Embedder
from seisbind.service.building import sources
from seisbind.service.building.build import Encoders, build
from seisbind.service.building.sources import RandomModels

MODELS, FAMILIES = 100, ("FlatVel-A", "CurveVel-A")
sources.BATCH, sources.WHOLE = 32, 64
index_building.FOLD_MODELS = 64
mapped_writer.MAPPED_MODELS = 48


def content(path: Path) -> list[Any]:
    """All that is stored, but for when."""
    with closing(sqlite3.connect(path / "records.sqlite")) as connection:
        models = connection.execute("SELECT * FROM models ORDER BY row")
        names = [column[0] for column in models.description]
        left_out = {names.index("added_at"), names.index("checksum")}
        return [tuple(value for at, value in enumerate(row) if at not in left_out) for row in models.fetchall()]


def run(path: Path, embedder: Embedder, *, step: str, number: int = 1, after_s: float = 60.0) -> tuple[bool, int]:
    """Build in a child that is killed at the ``number``-th ``step`` or after a time: whether it died, and what there
    was before."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        seen: Counter[str] = Counter()

        def at_step(name: str) -> None:
            seen[name] += 1
            os.write(writer, f"{name}\n".encode())
            if (name, seen[name]) == (step, number):
                os.kill(os.getpid(), signal.SIGKILL)

        def resumed(earlier: int) -> None:
            os.write(writer, f"resumed {earlier}\n".encode())

        source = RandomModels.of(MODELS, 3, FAMILIES)
        build(path, source, Encoders(embedder, workers=0), overwrite=True, at_step=at_step, resumed=resumed)
        os._exit(0)
    os.close(writer)
    deadline = time.monotonic() + after_s
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    status = os.waitpid(child, 0)[1]
    with os.fdopen(reader) as lines:
        said = lines.read().splitlines()
    steps.update(line for line in said if not line.startswith("resumed"))
    earlier = [int(line.split()[1]) for line in said if line.startswith("resumed")]
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise RuntimeError("the build failed")
    return os.WIFSIGNALED(status), earlier[0] if earlier else 0


steps: Counter[str] = Counter()


def main() -> None:
    folder, weights, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    naive = sys.argv[5:] == ["naive"]
    chance = random.Random(seed)
    embedder = Embedder.load(weights, device="cpu", runtime="torch")
    start = time.monotonic()
    run(folder / "whole", embedder, step="")
    took, whole = time.monotonic() - start, content(folder / "whole")
    every = [name for name in steps if name]
    deaths: Counter[str] = Counter()
    result: dict[str, Any] = {"whole": len(whole), "wrong": [], "early": [], "resumed": []}
    plans = [(name, 1, 60.0) for name in every] + [(name, 2, 60.0) for name in ("add:committed", "build:noted")]
    if naive:
        plans = [("build:noted", 1, 60.0)]
    plans += [("random", 0, chance.uniform(0.0, 1.1 * took)) for _ in range(kills)]
    for turn, (step, number, after_s) in enumerate(plans):
        path = folder / f"killed-{turn}"
        died, _ = run(path, embedder, step=step, number=number, after_s=after_s)
        deaths[step] += died
        if (path / "records.sqlite").exists() and content(path) != whole:
            result["early"].append(step)
        if naive and (path / "building" / "progress.json").exists():  # a note of what is not there yet
            note = json.loads((path / "building" / "progress.json").read_text())
            note["parts"] += 1
            (path / "building" / "progress.json").write_text(json.dumps(note))
        result["resumed"].append(run(path, embedder, step="")[1])
        if content(path) != whole or not verify_folder(path).ok or (path / "building").exists():
            result["wrong"].append(step)
        shutil.rmtree(path)
    print(json.dumps(result | {"deaths": deaths, "steps": every}))


if __name__ == "__main__":
    main()
