"""Searches of a gallery while another thread adds and removes models at full speed: nothing lost, nothing wrong.

    python benchmarks/busy_gallery.py --folder /tmp/million --seconds 600   # a gallery of `gallery_opening.py`

One thread searches, one query after another, first alone and then beside a second thread that adds models, one to
sixteen at a time, and removes those of before. Each answer is compared with books:

- lost: a model that was added before the search began, was removed after it ended, and whose own embedding was asked
  for, is not the first hit;
- wrong: similarities that do not fall, a hit that was removed before the search began, or the similarity of a known
  model that is not that of its embedding with the query.

At the end the gallery is opened again and has exactly the models of the books. It is left as it was found. Times are
milliseconds of the same searches, alone and beside the changes.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seisbind.index import Gallery

SEED, TOP_K, MOST, KEPT = 5, 10, 16, 400  # models added at once, and kept before the oldest are removed
NEAR = 1e-5


def unit(rng: np.random.Generator, count: int, dimension: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Books:
    """What was acknowledged: id → embedding, when it was there for sure, and from when on it was not."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.vector: dict[str, np.ndarray] = {}
        self.added: dict[str, float] = {}
        self.removing: dict[str, float] = {}
        self.removed: dict[str, float] = {}


def change(gallery: Gallery, books: Books, stopping: threading.Event, tally: dict[str, int]) -> None:
    rng, there, number = np.random.default_rng([SEED, 1]), deque[str](), 0
    while not stopping.is_set():
        count = int(rng.integers(1, MOST + 1))
        ids = [f"busy-{number + i}" for i in range(count)]
        vectors = unit(rng, count, gallery.dimension)
        maps = rng.uniform(1500, 4500, (count, 4, 4)).astype(np.float32)
        gallery.add(maps, rng.uniform(1, 100, (count, 13)), vectors, vectors, model_ids=ids)
        now = time.perf_counter()
        with books.lock:
            books.vector |= dict(zip(ids, vectors, strict=True))
            books.added |= dict.fromkeys(ids, now)
        number += count
        there.extend(ids)
        tally["added"] += count
        if len(there) > KEPT:
            gone = [there.popleft() for _ in range(int(rng.integers(1, MOST + 1)))]
            with books.lock:
                books.removing |= dict.fromkeys(gone, time.perf_counter())
            gallery.remove(gone)
            with books.lock:
                books.removed |= dict.fromkeys(gone, time.perf_counter())
            tally["removed"] += len(gone)
        tally["changes"] += 1


def search(gallery: Gallery, books: Books, seconds: float, tally: dict[str, int]) -> list[float]:
    rng, took = np.random.default_rng([SEED, 2]), []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        own = None
        with books.lock:
            recent = [each for each in list(books.added)[-KEPT // 2 :] if each not in books.removing]
        if recent:
            own = recent[int(rng.integers(len(recent)))]
        query = unit(rng, 1, gallery.dimension)[0] if own is None else books.vector[own]
        (hits,) = gallery.search_velocity(query[None], TOP_K, exact=True)
        ended = time.perf_counter()
        took.append((ended - began) * 1e3)
        with books.lock:
            sure = own is not None and books.removing.get(own, np.inf) > ended
            tally["asked for"] += sure
            tally["lost"] += sure and hits[0].model_id != own
            similarities = [hit.similarity for hit in hits]
            wrong = len(hits) != TOP_K or similarities != sorted(similarities, reverse=True)
            for hit in hits:
                wrong |= books.removed.get(hit.model_id, np.inf) < began
                known = books.vector.get(hit.model_id)
                wrong |= known is not None and abs(float(known.astype(np.float64) @ query) - hit.similarity) > NEAR
            tally["wrong"] += wrong
        tally["searches"] += 1
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--alone", type=float, default=20.0, help="seconds of searches before the changes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tally = dict.fromkeys(("searches", "asked for", "lost", "wrong", "added", "removed", "changes"), 0)
    books, stopping = Books(), threading.Event()
    with Gallery.open(args.folder, fingerprint=None, writable=True) as gallery:
        before = len(gallery)
        gallery.search_velocity(unit(np.random.default_rng(SEED), 1, gallery.dimension), TOP_K, exact=True)
        alone = search(gallery, books, args.alone, dict.fromkeys(tally, 0))
        changing = threading.Thread(target=change, args=(gallery, books, stopping, tally))
        changing.start()
        beside = search(gallery, books, args.seconds, tally)
        stopping.set()
        changing.join()
        held = set(books.added) - set(books.removed)
    with Gallery.open(args.folder, fingerprint=None, writable=True) as gallery:
        found = {each for each in gallery.model_ids() if each.startswith("busy-")}
        report: dict[str, Any] = {"models": before, "seconds": args.seconds} | tally
        report |= {"missing at the end": len(held - found), "too many at the end": len(found - held)}
        report["count is right"] = len(gallery) == before + len(held)
        gallery.remove(sorted(found))
    for name, took in (("alone", alone), ("beside", beside)):
        report[f"{name}_ms"] = {p: round(float(np.percentile(took, q)), 2) for p, q in (("median", 50), ("p99", 99))}
        report[f"{name}_ms"]["longest"] = round(max(took), 2)
    report["p99 over that alone"] = round(report["beside_ms"]["p99"] / report["alone_ms"]["p99"], 2)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
