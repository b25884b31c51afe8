"""Flip one bit of ``records.sqlite`` at a time and compare every answer of the gallery with the right one.

    python benchmarks/flips.py                                          # 3,000 flips: 9 minutes beside other work
    PYTHONPATH=OTHER/.typing python benchmarks/flips.py --flips 500     # the same against another checkout

A quarter of the flips is in pages of SQLite's indices (ids and tags), a quarter in family names, half anywhere. Each is
*refused* (opening says that the gallery is damaged), *said* (an answer is refused, all others are right) or *right*
(all answers are right). `gallery list`, which does without opening, is asked each time. Anything else is wrong without
a word: it is counted, printed, and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery
from seisbind.index.listing import list_records
from seisbind.index.storage.database import PAGE_BYTES
from seisbind.model.errors import GalleryError, UnknownModel
from seisbind.model.ground.descriptors import NAMES

MODELS = 240  # several pages of each index
DIMENSION = 16
FAMILIES = ("FlatVel-A", "CurveVel-A", "FlatFault-A", "CurveFault-A")
TAGS = ("field", "synthetic", "noisy")
INDEX_PAGES = (2, 10)  # the first byte of a page of an index, or of a table that is one, as that of the tags

Answers = dict[str, Any]


def make(path: Path, seed: int) -> NDArray[np.float32]:
    """A gallery of `MODELS` models in the folder ``path``; returns some of their velocity embeddings."""
    generator = np.random.default_rng(seed)
    vectors = generator.standard_normal((2, MODELS, DIMENSION))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    with Gallery.create(path, fingerprint="flips", dimension=DIMENSION) as gallery:
        gallery.add(
            generator.uniform(1500, 4500, (MODELS, 4, 4)).astype(np.float32),
            generator.uniform(1, 100, (MODELS, len(NAMES))).astype(np.float32),
            vectors[0],
            vectors[1],
            model_ids=[f"model-{number}" for number in range(MODELS)],
            families=[FAMILIES[number] for number in generator.integers(len(FAMILIES), size=MODELS)],
            tags=[[tag for tag in TAGS if generator.random() < 0.4] for _ in range(MODELS)],
        )
    return vectors[0, :4].astype(np.float32)


def ask(question: Callable[[], Any]) -> Any:
    """The answer, or the error that refused it."""
    try:
        return question()
    except (GalleryError, UnknownModel) as error:
        return error


def listed(path: Path) -> Any:
    """What `gallery list` has of the gallery in the folder ``path``, or the error that it ends with."""
    return ask(lambda: [repr(record) for record in list_records(path)])


def answers(gallery: Gallery, queries: NDArray[np.float32]) -> Answers:
    """Everything that the gallery can be asked, each answer on its own."""

    def found(**conditions: Any) -> Any:
        condition = Filter.parse(conditions) if conditions else None
        hits = gallery.search_velocity(queries, 300, filter=condition)
        return [[(hit.model_id, hit.similarity) for hit in row] for row in hits]

    asked: dict[str, Callable[[], Any]] = {
        "ids": gallery.model_ids,
        "search": found,
        "families": gallery.families,
        "ranges": lambda: gallery.info().descriptor_ranges,
        "count": lambda: gallery.info().count,
        "histograms": lambda: gallery.distribution().histograms,
        "by range": lambda: found(mean_velocity=[20, 60]),
        **{f"by family {name}": lambda name=name: found(family=name) for name in FAMILIES},
        **{f"by tag {name}": lambda name=name: found(tag=name) for name in TAGS},
    }
    for number in range(MODELS):
        model_id = f"model-{number}"
        asked[f"map of {model_id}"] = lambda model_id=model_id: gallery.velocity(model_id).tobytes()
        asked[f"record of {model_id}"] = lambda model_id=model_id: repr(gallery.record(model_id))
    return {name: ask(question) for name, question in asked.items()}


def places(content: bytes, flips: int, generator: np.random.Generator) -> list[int]:
    """Offsets to flip: a quarter in index pages, a quarter in family names, half anywhere."""
    array = np.frombuffer(content, np.uint8)
    pages = array.reshape(-1, PAGE_BYTES)
    of_index = np.repeat(np.isin(pages[:, 0], INDEX_PAGES), PAGE_BYTES) & (array != 0)
    in_family = np.zeros(len(array), np.bool_)
    for name in FAMILIES:
        at = content.find(name.encode())
        while at >= 0:
            in_family[at : at + len(name)] = True
            at = content.find(name.encode(), at + 1)
    aimed = [
        generator.choice(np.flatnonzero(mask), flips // 4, replace=True) for mask in (of_index, in_family & ~of_index)
    ]
    rest = generator.integers(len(array), size=flips - 2 * (flips // 4))
    return [int(offset) for offset in np.concatenate([*aimed, rest])]


def outcome(path: Path, queries: NDArray[np.float32], truth: Answers) -> tuple[str, list[str]]:
    """What a gallery with one bit flipped came to, and which answers were wrong without a word."""
    given: Answers = {"list": listed(path)}
    opened = True
    try:
        with Gallery.open(path, fingerprint=None) as gallery:
            given |= answers(gallery, queries)
    except GalleryError:
        opened = False
    different = [name for name in given if given[name] != truth[name]]
    wrong = [name for name in different if not isinstance(given[name], GalleryError)]
    if not opened and not wrong:
        return "refused", []
    return ("wrong" if wrong else "said" if different else "right"), wrong


def flip(flips: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Counts by outcome, and a line for each flip that was answered wrongly without a word."""
    path = folder / "gallery"
    queries = make(path, seed)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = answers(gallery, queries) | {"list": listed(path)}
    records = path / "records.sqlite"
    content = records.read_bytes()
    generator = np.random.default_rng(seed + 1)
    counts: Counter[str] = Counter()
    examples: list[str] = []
    for offset in places(content, flips, generator):
        bit = int(generator.integers(8))
        changed = bytearray(content)
        changed[offset] ^= 1 << bit
        records.write_bytes(changed)
        for leftover in path.glob("records.sqlite-*"):
            leftover.unlink()
        kind, wrong = outcome(path, queries, truth)
        counts[kind] += 1
        if wrong:
            examples.append(f"byte {offset}, bit {bit}: {len(wrong)} wrong answers: {', '.join(wrong[:4])}")
    return counts, examples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    faiss.omp_set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        counts, examples = flip(args.flips, args.seed, Path(folder))
    for line in examples[:10]:
        print(line)
    print(json.dumps({"flips": args.flips, "seed": args.seed, **dict(sorted(counts.items()))}))
    sys.exit(1 if examples else 0)


if __name__ == "__main__":
    main()
