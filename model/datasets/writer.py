"""A folder of simulated pairs: written by one run at a time, and continued by the next where a run was stopped.

The calling process draws the velocity models and writes the files; worker processes only record gathers of them. So
the content does not depend on the number of workers, and a stopped run loses no more than its unfinished files.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.files import lock, replacing
from seisbind.model.frame import stored_frame
from seisbind.model.processes import worker_pool

Gathers = NDArray[np.floating]

LOCK = ".seisbind.lock"
CHUNK = 8  # pairs that a worker simulates at a time, about 1.5 s: Ctrl-C waits for them, and progress moves by them
CHUNKS_PER_WORKER = 2  # submitted ahead, so that no worker waits while a file is finished and the next is drawn


@dataclass(frozen=True, slots=True)
class Chunk:
    """A few pairs of one file.

    Attributes:
        count: pairs.
        record: runs in a worker, and returns the gathers.
        store: runs in this process, and puts them into the file; the last of a file completes it.
    """

    count: int
    record: Callable[[], Gathers]
    store: Callable[[Gathers], None]


def rows_of_chunks(count: int) -> Iterator[slice]:
    """The rows of a file of ``count`` pairs, chunk by chunk."""
    return (slice(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK))


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the system releases it when the process ends, however it ends.

    Raises:
        DatasetError: another process holds it.
    """
    with (out / LOCK).open("w") as file:
        try:
            lock(file.fileno())
        except BlockingIOError as error:
            raise DatasetError(f"Another process is writing {out}; wait for it or choose another directory.") from error
        yield


def claim(path: Path, recipe: dict[str, Any], *, holds_pairs: bool, indent: int | None = None) -> None:
    """Write the recipe of a folder to ``path`` in it, or check that the one already there is the same.

    Raises:
        DatasetError: it is not, or cannot be read, or the folder ``holds_pairs`` without one.
    """
    text = json.dumps(recipe, indent=indent, ensure_ascii=False)
    if not path.exists():
        if holds_pairs:
            raise DatasetError(f"{path.parent} holds pairs, but {path} is missing; use a new directory.")
        with replacing(path) as partial:
            partial.write_text(text if indent is None else text + "\n", encoding="utf-8")
        return
    here = json.loads(text)
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        frames = stored_frame(there.get("frame")), stored_frame(here.get("frame"))
    except (ValueError, AttributeError, InvalidConfig) as error:
        raise DatasetError(f"{path} cannot be read ({error}); use a new directory.") from error
    there["frame"], here["frame"] = (str(frame) for frame in (frames if frames[0] != frames[1] else frames[:1] * 2))
    differences = [
        f"{key} {there.get(key)!r} there, {here.get(key)!r} here"
        for key in here | there
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise DatasetError(
            f"{path.parent} holds pairs of another recipe: {'; '.join(differences)}. Give the same arguments to go on "
            "with it, or use a new directory."
        )


def fill(
    out: Path,
    chunks: Iterator[Chunk],
    *,
    left: int,
    total: int,
    pair_bytes: int,
    processes: int | None,
    uses_torch: bool,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Record ``chunks`` and store them in files of ``out``, with as many as `CHUNKS_PER_WORKER` ahead of the workers.

    Args:
        out: the folder, held by `only_writer`.
        chunks: drawn one after the other as workers become free.
        left: pairs in the chunks.
        total: pairs in the folder when it is complete.
        pair_bytes: of a pair on disk.
        processes: workers, each of one thread; None: one per core.
        uses_torch: whether the workers do.
        progress: called with (pairs done, pairs in all) as they are done.

    Raises:
        DatasetError: the disk is too full, or a worker died.
    """
    workers = (os.cpu_count() or 1) if processes is None else processes
    free = shutil.disk_usage(out).free
    if free < left * pair_bytes:
        raise _disk_full(out, left, pair_bytes, f"{free:,} are free")
    try:
        with closing(_record(chunks, workers, uses_torch)) as recorded:
            for done in recorded:
                left -= done
                if progress is not None:
                    progress(total - left, total)
    except BrokenProcessPool as error:
        raise DatasetError(
            f"A simulation process died with {left} pairs to go, perhaps out of memory. Run again to go on, with "
            f"fewer processes than {workers}."
        ) from error
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _disk_full(out, left, pair_bytes, str(error)) from error


def _disk_full(out: Path, left: int, pair_bytes: int, cause: str) -> DatasetError:
    return DatasetError(
        f"The {left} pairs to go need {left * pair_bytes:,} bytes in {out}: {cause}. Make room and run again to go on, "
        "or ask for fewer pairs in a new directory."
    )


_Running = dict[Future[Gathers], Chunk]


def _record(chunks: Iterator[Chunk], workers: int, uses_torch: bool) -> Generator[int, None, None]:
    """Run the chunks; yields the number of pairs that each one added."""
    with worker_pool(workers, uses_torch=uses_torch) as pool:
        running: _Running = {}
        for chunk in chunks:
            running[pool.submit(chunk.record)] = chunk
            while len(running) >= CHUNKS_PER_WORKER * workers:
                yield from _collect(running)
        while running:
            yield from _collect(running)


def _collect(running: _Running) -> Iterator[int]:
    """Wait for chunks, and store them."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        chunk = running.pop(future)
        chunk.store(future.result())
        yield chunk.count
