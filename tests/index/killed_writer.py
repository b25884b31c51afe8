"""Kill a writer again and again, and look after each death: the harness of `test_crash`.

    python killed_writer.py FOLDER STORE KILLS SEED

Every writer is a forked process that reports each change before it starts ("try") and after it was acknowledged
("done"), and dies of SIGKILL either at a named step or at a random moment. Then a second process opens the store and
compares: everything acknowledged, the change that was under way wholly or not at all, and every array the one that
belongs to its model. Prints one line a step with the number of deaths and of broken stores; the last line is JSON.

It runs in a process of its own because it forks: no thread, no FAISS search and no SQLite connection may come before.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seisbind.index import Gallery, verify_folder
from seisbind.index.search import mapped_writer
from seisbind.index.storage.folder import MAPPED
from seisbind.model.ground.descriptors import NAMES

MODELS = 60  # ids that come and go
DIMENSION = 16


def arrays(number: int) -> tuple[Any, Any, Any, Any]:
    """Map (8, 8), descriptors, and both embeddings of one model: they follow from its number."""
    generator = np.random.default_rng(number)
    vectors = generator.standard_normal((2, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    velocity = generator.uniform(1500, 4500, (8, 8)).astype(np.float32)
    descriptors = generator.uniform(1, 100, len(NAMES)).astype(np.float32)
    return velocity, descriptors, vectors[0].astype(np.float32), vectors[1].astype(np.float32)


class Store(Protocol):
    """What is being killed."""

    def add(self, numbers: list[int]) -> None: ...
    def remove(self, numbers: list[int]) -> None: ...
    def snapshot(self) -> None: ...
    def close(self) -> None: ...
    def contents(self) -> set[int]:
        """The numbers of the models that are there. Raises if anything is not as it was written."""


class GalleryStore:
    """The gallery itself."""

    def __init__(self, folder: Path, at_step: Callable[[str], None]) -> None:
        path = folder / "gallery"
        if (path / "records.sqlite").exists():
            report = verify_folder(path)  # as it was left, before a writer tidies up: nothing is lost, so all is well
            assert report.ok, report.problems
            self.gallery = Gallery.open(path, fingerprint="w", writable=True, at_step=at_step)
        else:
            self.gallery = Gallery.create(path, fingerprint="w", dimension=DIMENSION, at_step=at_step)

    def add(self, numbers: list[int]) -> None:
        columns = zip(*map(arrays, numbers), strict=True)
        self.gallery.add(*map(np.stack, columns), model_ids=[f"m{n}" for n in numbers], tags=[("t",)] * len(numbers))

    def remove(self, numbers: list[int]) -> None:
        self.gallery.remove([f"m{n}" for n in numbers])

    def snapshot(self) -> None:
        self.gallery.snapshot()

    def close(self) -> None:
        self.gallery.close()

    def contents(self) -> set[int]:
        numbers = [int(model_id[1:]) for model_id in self.gallery.model_ids()]
        for number in numbers:
            velocity, descriptors, *embeddings = arrays(number)
            record = self.gallery.record(f"m{number}")
            assert np.array_equal(self.gallery.velocity(f"m{number}"), velocity)
            assert np.array_equal(record.descriptors, descriptors) and record.tags == ("t",)
            for search, query in zip(
                (self.gallery.search_velocity, self.gallery.search_physics), embeddings, strict=True
            ):
                best = search(query[None], 1)[0][0]
                assert best.model_id == f"m{number}" and best.similarity > 0.99999
        self.gallery.snapshot()
        report = self.gallery.verify()
        assert report.ok, report.problems
        return set(numbers)


class MappedStore(GalleryStore):
    """A gallery that counts as large."""

    def __init__(self, folder: Path, at_step: Callable[[str], None]) -> None:
        mapped_writer.MAPPED_MODELS = 1
        super().__init__(folder, at_step)


class NaiveStore:
    """What one writes first: a file with everything in it, written in place. It has to fail here."""

    def __init__(self, folder: Path, at_step: Callable[[str], None]) -> None:
        self.path, self.at_step = folder / "naive.bin", at_step
        self.models = {number: self.encoded(number) for number in self.contents()} if self.path.exists() else {}

    @staticmethod
    def encoded(number: int) -> bytes:
        return number.to_bytes(4) + b"".join(array.tobytes() for array in arrays(number))

    def write(self) -> None:
        with self.path.open("wb") as handle:
            handle.write(len(self.models).to_bytes(4))
            for i, model in enumerate(self.models.values()):
                handle.write(model)
                if i % 4 == 0:
                    handle.flush()
                    self.at_step("naive:writing")
            handle.flush()
            os.fsync(handle.fileno())
        self.at_step("naive:written")

    def add(self, numbers: list[int]) -> None:
        self.models |= {number: self.encoded(number) for number in numbers}
        self.write()

    def remove(self, numbers: list[int]) -> None:
        for number in numbers:
            del self.models[number]
        self.write()

    def snapshot(self) -> None:
        pass

    def close(self) -> None:
        pass

    def contents(self) -> set[int]:
        content = self.path.read_bytes() if self.path.exists() else bytes(4)
        size = len(self.encoded(0))
        count = int.from_bytes(content[:4])
        found = [content[start : start + size] for start in range(4, len(content), size)]
        numbers = [int.from_bytes(model[:4]) for model in found]
        assert count == len(found) and all(self.encoded(n) == m for n, m in zip(numbers, found, strict=True))
        return set(numbers)


STORES: dict[str, Callable[[Path, Callable[[str], None]], Store]] = {
    "gallery": GalleryStore,
    "mapped": MappedStore,
    "naive": NaiveStore,
}
STEPS = {
    "gallery": [
        *("create:written", *(f"install:{step}" for step in ("settled", "cleared", "renamed", "indices"))),
        *("add:begun", "add:first-row", "add:before-commit", "add:committed", "add:published"),
        *("remove:begun", "remove:before-commit", "remove:committed"),
        *(
            f"{file}:{step}"
            for name, ending in (("velocity", "faiss"), ("physics", "faiss"), ("columns", "bin"))
            for file in (f"{name}.{ending}", f"{name}.json")
            for step in ("written", "synced", "renamed")
        ),
    ],
    "mapped": [
        *("add:before-commit", "add:committed", "remove:committed"),
        *(f"{MAPPED}:{step}" for step in ("written", "synced", "renamed")),
    ],
    "naive": ["naive:writing", "naive:written"],
}


def write_until_killed(
    store: str, folder: Path, there: set[int], step: str, countdown: int, dice: random.Random, out: int
) -> None:
    """The body of a writer. ``step`` "random": the parent kills it; otherwise it dies at the step's n-th time."""
    left = countdown

    def at_step(name: str) -> None:
        nonlocal left
        if name == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def report(*words: object) -> None:
        os.write(out, (json.dumps(words) + "\n").encode())

    opened = STORES[store](folder, at_step)
    for _ in range(12):
        absent = [number for number in range(MODELS) if number not in there]
        choice = dice.random()
        if choice < 0.55 and absent:
            numbers = dice.sample(absent, min(len(absent), dice.randint(1, 6)))
            report("try", "add", numbers)
            opened.add(numbers)
            there |= set(numbers)
        elif choice < 0.85 and there:
            numbers = dice.sample(sorted(there), min(len(there), dice.randint(1, 6)))
            report("try", "remove", numbers)
            opened.remove(numbers)
            there -= set(numbers)
        else:
            opened.snapshot()
            continue
        report("done")
    opened.close()


def in_child(body: Callable[[int], None]) -> tuple[int, int]:
    """Fork, run ``body`` with the writing end of a pipe; returns the child's id and the reading end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        body(writing)
        status = 0
    except BaseException as error:
        os.write(writing, (json.dumps(["failed", f"{type(error).__name__}: {error}"[:500]]) + "\n").encode())
    finally:
        os._exit(status)


def drain(child: int, reading: int) -> tuple[list[Any], bool]:
    """Everything that a child said until it ended, and whether it was killed."""
    with os.fdopen(reading, "rb") as pipe:
        lines = [json.loads(line) for line in pipe.read().splitlines()]
    return lines, os.WIFSIGNALED(os.waitpid(child, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="made anew")
    parser.add_argument("store", choices=sorted(STORES))
    parser.add_argument("kills", type=int)
    parser.add_argument("seed", type=int)
    given = parser.parse_args()
    folder, store, kills, seed = given.folder, given.store, given.kills, given.seed
    dice = random.Random(seed)
    deaths: Counter[str] = Counter()
    broken: Counter[str] = Counter()
    examples: list[str] = []
    there: set[int] = set()
    steps = STEPS[store] + ["random"] * (len(STEPS[store]) // 2 + 1)
    for kill in range(kills):
        step = steps[kill % len(steps)]
        if step.startswith(("create", "install")) and store == "gallery":
            shutil.rmtree(folder / "gallery", ignore_errors=True)
            there = set()
        turn = random.Random(dice.random())
        before, countdown = set(there), dice.randint(1, 3) if step.startswith(("add", "remove", "naive")) else 1

        def writer(
            out: int, there: set[int] = before, step: str = step, n: int = countdown, turn: random.Random = turn
        ) -> None:
            write_until_killed(store, folder, set(there), step, n, turn, out)

        child, reading = in_child(writer)
        if step == "random":
            time.sleep(dice.uniform(0, 0.06))
            os.kill(child, signal.SIGKILL)
        said, killed = drain(child, reading)
        deaths[step] += killed
        possible = [set(there)]
        for word, *rest in said:
            if word == "try":
                what, numbers = rest
                changed = possible[0] | set(numbers) if what == "add" else possible[0] - set(numbers)
                possible = [possible[0], changed]
            elif word == "done":
                possible = [possible[-1]]
            else:
                examples.append(f"{step}: the writer failed: {rest[0]}")
                broken[step] += 1

        def reader(out: int) -> None:
            opened = STORES[store](folder, lambda name: None)
            os.write(out, (json.dumps(["holds", sorted(opened.contents())]) + "\n").encode())
            opened.close()

        answer, _ = drain(*in_child(reader))
        held = set(answer[-1][1]) if answer and answer[-1][0] == "holds" else None
        if held is None or held not in possible:
            broken[step] += 1
            examples.append(f"{step}: {answer[-1:] if held is None else 'lost or mixed'}")
            shutil.rmtree(folder)
            folder.mkdir()
            held = set()
        there = held
    print(json.dumps({"deaths": deaths, "broken": broken, "examples": examples[:5]}))


if __name__ == "__main__":
    main()
