"""A large gallery: filters, what one change costs, and writers that are killed.

    python benchmarks/million.py --folder /tmp/million --kills 60   # of `gallery_opening.py`; left as it was found

Filters are ranges of mean velocity that allow 0.1, 1, 10 and 50 % of the models. Each answer is compared with a product
of the query and all vectors in float64. Times are of whole calls of `Gallery`, one thread, medians in milliseconds; an
unfiltered search is exact, too. A change is one model, encoded already, as ``POST /v1/models`` adds and removes it.

A writer that is killed (SIGKILL, at a random moment of adding and removing, every fourth one while it writes snapshots)
says each change before it begins and after it was acknowledged. After each death another process opens the gallery and
compares: what was acknowledged, with the change under way wholly or not at all; the number of models; maps and
embeddings of all that were added; and that the last eight are the first match of their own embeddings.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch

from seisbind.index import Filter, Gallery, search_threads
from seisbind.model.ground.descriptors import NAMES

SEED, TOP_K, RUNS, CHANGES, NEAR = 31, 20, 7, 20, 1e-5
PART = 20_000
ULP = 6e-8  # what a gallery adds is made of unit length once more
KILLED, MODELS, MOST, BEFORE_SNAPSHOT, SOUGHT = "killed-", 800, 16, 5, 8
SHARES = 0.001, 0.01, 0.1, 0.5


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=0)
    args = parser.parse_args()
    killed = kills(args.folder, args.kills) if args.kills else {}  # first, because it forks: no thread may be there yet
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    search_threads(1)
    queries = np.load(f"{args.folder}.queries.npy")[:RUNS]
    with Gallery.open(args.folder, fingerprint=None, writable=True) as gallery:
        print(json.dumps({"models": len(gallery)} | filters(gallery, queries) | changes(gallery) | killed, indent=1))


def filters(gallery: Gallery, queries: np.ndarray) -> dict[str, object]:
    ids = gallery.model_ids()
    parts = [ids[start : start + PART] for start in range(0, len(ids), PART)]
    vectors = np.concatenate([gallery.embeddings(part)[0] for part in parts])
    speeds = np.array(
        [each.descriptors[NAMES.index("mean_velocity")] for part in parts for each in gallery.records(part)]
    )
    similarities = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    gallery.search_velocity(queries[:1], TOP_K, exact=True)  # reads what is mapped
    works = {"all": None} | {f"{share:.1%}": between(speeds, share) for share in SHARES}
    times: dict[str, list[float]] = {name: [] for name in works}
    wrong = 0
    for number, query in enumerate(queries):
        for name, allowed in works.items():
            found = Filter.parse({"mean_velocity": list(allowed)}) if allowed else None
            start = time.perf_counter()
            (hits,) = gallery.search_velocity(query[None], TOP_K, filter=found, exact=True)
            times[name].append((time.perf_counter() - start) * 1e3)
            inside = np.full(len(ids), True) if allowed is None else (speeds >= allowed[0]) & (speeds <= allowed[1])
            best = np.sort(similarities[number][inside])[::-1][:TOP_K]
            wrong += len(hits) != len(best) or bool(np.abs(best - [hit.similarity for hit in hits]).max() > NEAR)
    medians = {name: statistics.median(each) for name, each in times.items()}
    over = {name: round(each / medians["all"], 2) for name, each in medians.items()}
    return {"filtered_ms": medians, "over that of all": over, "answers": len(queries) * len(works), "wrong": wrong}


def between(values: np.ndarray, share: float) -> tuple[float, float]:
    """A range in the middle of ``values`` that holds ``share`` of them."""
    low, high = np.quantile(values, (0.5 - share / 2, 0.5 + share / 2))
    return float(low), float(high)


def changes(gallery: Gallery) -> dict[str, object]:
    rng = np.random.default_rng(SEED)
    added, removed, first = [], [], []
    for number in range(CHANGES):
        vector = rng.standard_normal((1, gallery.dimension)).astype(np.float32)
        vector /= np.linalg.norm(vector)
        maps, name = rng.uniform(1500, 4500, (1, 70, 70)).astype(np.float32), f"change-{number}"
        described = rng.uniform(1, 100, (1, len(NAMES)))
        added.append(milliseconds(lambda: gallery.add(maps, described, vector, vector, model_ids=[name])))  # noqa: B023
        first.append(milliseconds(lambda: gallery.search_velocity(vector, TOP_K)))  # noqa: B023
        removed.append(milliseconds(lambda: gallery.remove([name])))  # noqa: B023
    kinds = {"add": added, "first search after it": first, "remove": removed}
    return {
        f"{name}_ms": {"median": statistics.median(v), "first": v[0], "longest": max(v)} for name, v in kinds.items()
    }


def arrays(numbers: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Maps, descriptors and embeddings of these models: they follow from their numbers."""
    rngs = [np.random.default_rng([SEED, number]) for number in numbers]
    vectors = np.stack([rng.standard_normal(256).astype(np.float32) for rng in rngs])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    maps = np.stack([rng.uniform(1500, 4500, (4, 4)).astype(np.float32) for rng in rngs])
    return maps, np.stack([rng.uniform(1, 100, len(NAMES)) for rng in rngs]), vectors, vectors


def write(folder: Path, there: set[int], dice: random.Random, snapshot: bool, say: Callable[..., None]) -> None:
    """Add and remove until the end."""
    gallery = Gallery.open(folder, fingerprint=None, writable=True)
    say("open")
    changes = 0
    while True:
        if there and dice.random() < len(there) / MODELS:
            numbers = dice.sample(sorted(there), min(len(there), dice.randint(1, MOST)))
            say("remove", numbers)
            gallery.remove([name(number) for number in numbers])
            there -= set(numbers)
        else:
            absent = sorted(set(range(MODELS)) - there)
            numbers = dice.sample(absent, min(len(absent), dice.randint(1, MOST)))
            say("add", numbers)
            gallery.add(*arrays(numbers), model_ids=[name(number) for number in numbers])
            there |= set(numbers)
        say("done")
        changes += 1
        if snapshot and changes == BEFORE_SNAPSHOT:
            gallery.snapshot()


def look(folder: Path, say: Callable[..., None]) -> None:
    """What a reader finds."""
    with Gallery.open(folder, fingerprint=None) as gallery:
        held = [int(each.removeprefix(KILLED)) for each in gallery.model_ids() if each.startswith(KILLED)]
        if not held:
            say("holds", held, len(gallery), 0, *gallery.notes)
            return
        maps, _, vectors, _ = arrays(held)
        ids = [name(number) for number in held]
        wrong = int((np.abs(gallery.embeddings(ids)[0] - vectors) > ULP).any(1).sum())
        wrong += int((np.stack(gallery.velocities(ids)) != maps).any((1, 2)).sum())
        found = gallery.search_velocity(vectors[-SOUGHT:], 1, exact=True)  # a sample: each goes through all
        wrong += sum(hit.model_id != name(number) for (hit,), number in zip(found, held[-SOUGHT:], strict=True))
        say("holds", held, len(gallery), wrong, *gallery.notes)


def name(number: int) -> str:
    return f"{KILLED}{number}"


def in_child(body: Callable[[Callable[..., None]], None]) -> tuple[int, int]:
    """Fork and run ``body`` with what writes a line to a pipe; returns the child's id and the pipe's reading end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    try:
        body(lambda *words: os.write(writing, (json.dumps(words) + "\n").encode()))
    except BaseException as error:
        os.write(writing, (json.dumps(["failed", repr(error)[:300]]) + "\n").encode())
    finally:
        os._exit(1)


def kills(folder: Path, count: int) -> dict[str, object]:
    dice, there, broken = random.Random(SEED), set[int](), list[str]()
    base, changes, snapshots = None, 0, 0
    for number in range(count + 1):
        if number:
            turn, snapshot = random.Random(dice.random()), number % 4 == 0
            child, reading = in_child(lambda say: write(folder, set(there), turn, snapshot, say))  # noqa: B023
            with os.fdopen(reading, "rb") as pipe:
                opened = json.loads(pipe.readline())
                time.sleep(dice.uniform(0, 30 if snapshot else 2))
                os.kill(child, signal.SIGKILL)
                said = [json.loads(line) for line in pipe.read().splitlines()]
            os.waitpid(child, 0)
            possible = [there]
            for word, *rest in [opened, *said]:
                if word == "done":
                    possible, changes = possible[-1:], changes + 1
                elif word in ("add", "remove"):
                    possible.append(possible[0] | set(*rest) if word == "add" else possible[0] - set(*rest))
                elif word == "failed":
                    broken.append(f"kill {number}: the writer failed: {rest}")
            snapshots += snapshot
        child, reading = in_child(lambda say: look(folder, say))
        with os.fdopen(reading, "rb") as pipe:
            word, *rest = json.loads(pipe.read().splitlines()[-1])
        os.waitpid(child, 0)
        if word == "failed" or not number:
            broken += [str(rest)] if word == "failed" else []
            base = base if word == "failed" else rest[1]
            continue
        held, models, wrong, *notes = rest
        if set(held) not in possible or models != base + len(held) or wrong or notes:
            broken.append(f"kill {number}: {len(held)} held, {models} models, {wrong} wrong, {notes}")
        there = set(held)
    with Gallery.open(folder, fingerprint=None, writable=True) as gallery:
        gallery.remove([name(number) for number in there])
    return {"kills": count, "of them in snapshots": snapshots, "changes acknowledged": changes, "broken": broken}


if __name__ == "__main__":
    main()
