"""What each stage of a retrieval costs a core of this machine, a gather: the inputs of `capacity.py`.

    python benchmarks/stage_costs.py [--models 2000] [--vectors 20000 200000] [--rounds 9] [--out stage_costs.json]

One thread. Seconds of the processor as the calling thread has used them, so that what else the machine does counts
little; medians. Stages are those of `seisbind_stage_seconds`, by the engine's own stopwatches; the batch as a whole is
given, too, with what no stage accounts for. Search at sizes is `VectorIndex` over vectors between embeddings
(`gallery_search.py`), exact. What the event loop and the kernel take of a request is not in here: `served` shows it,
processor time of the server's process for a request that comes alone, less the stages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from gallery_search import SEED, between
from overload import bodies as small_bodies
from served import clients, serving
from throughput import bodies, hardware

from seisbind.index import Gallery, search_threads
from seisbind.index.search.vectors import VectorIndex
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.query import Query, encode
from seisbind.service.formats.reader import read_gathers
from seisbind.service.http.retrieve import bodies as answer_bodies
from seisbind.service.schemas import PARTS

BATCHES = (1, 8, 32)
DT = "dt_s=0.004"


def cost_ms(work: Callable[[], object], rounds: int) -> float:
    """Median milliseconds of the processor, after a call that is not counted."""
    work()
    found = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        found.append((time.thread_time() - start) * 1e3)
    return statistics.median(found)


def processor_s(pid: int) -> float:
    """User and system time of a process, seconds, in ticks of 10 ms."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / 100


async def ask(url: object, sent: list[bytes], query: str, count: int) -> None:
    async with clients(url, 1) as (one,):  # type: ignore[arg-type]
        for number in range(count):
            await one.ask(sent[number % len(sent)], query)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=2000, help="in the gallery of the whole path")
    parser.add_argument("--vectors", type=int, nargs="*", default=[20_000, 200_000], help="sizes of searches alone")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=None, help="JSON, for capacity.py --costs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    search_threads(1)
    embedder, rounds = Embedder.load(device="cpu"), arguments.rounds
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=Path(__file__).parent
    ).stdout.strip()
    sent, small = bodies(), small_bodies()
    costs: dict[str, float] = {}
    queries = [Query.prepare(read_gathers(body).gathers) for body in sent]
    with tempfile.TemporaryDirectory() as folder:
        velocity, family = mixed(arguments.models, seed=0)
        build_gallery(Path(folder) / "g", embedder, [(velocity, family.tolist())], source="benchmark")
        with Gallery.open(Path(folder) / "g", fingerprint=embedder.fingerprint) as gallery:
            engine = Engine(embedder, gallery)
            costs["read"] = cost_ms(lambda: read_gathers(sent[0]), rounds)
            upload = read_gathers(sent[0])
            costs["prepare"] = cost_ms(lambda: Query.prepare(upload.gathers, upload.survey), rounds)
            for count in BATCHES:
                many = (queries * 2)[:count]
                costs[f"encode, batch {count}"] = cost_ms(lambda many=many: encode(embedder, many), rounds) / count
                whole = cost_ms(lambda many=many: engine.retrieve_batch(many), rounds) / count
                costs[f"encode, search, infer and rank, batch {count}"] = whole
            (found,) = engine.retrieve_batch(queries[:1])
            costs["render"] = cost_ms(
                lambda: [one.model_dump_json() for one in answer_bodies(found, queries[0], PARTS)], rounds
            )
        with serving(Path(folder) / "g", threads=1, device="cpu") as (url, pid):
            for name, asked, query in (("1.4 MB", sent, ""), ("175 kB", small, DT)):
                asyncio.run(ask(url, asked, query, 20))
                before = processor_s(pid)
                asyncio.run(ask(url, asked, query, 20 * rounds))
                costs[f"served, {name}"] = (processor_s(pid) - before) / (20 * rounds) * 1e3
    rng = np.random.default_rng(SEED)
    embeddings = embedder.embed_velocity(velocity)
    for count in arguments.vectors:
        index, asked = VectorIndex.build(between(embeddings, count, rng)), between(embeddings, 64, rng)
        costs[f"search {count}, one"] = cost_ms(lambda index=index, asked=asked: index.search(asked[:1], 20), rounds)
        costs[f"search {count}, of 64"] = cost_ms(lambda index=index, asked=asked: index.search(asked, 20), rounds) / 64
    print(f"{hardware(torch.device('cpu'))}, one thread, {embedder.runtime}; commit {commit}; seed {SEED}")
    print(f"{arguments.models} models; medians of {rounds}; milliseconds of the processor, a gather\n")
    for name, ms in costs.items():
        print(f"{name:<48}{ms:>10.3f}")
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"hardware": hardware(torch.device("cpu")), "commit": commit} | costs))


if __name__ == "__main__":
    main()
