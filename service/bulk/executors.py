"""What runs chunks side by side: processes of this machine, or actors of Ray Data. Both open the job's worker once.

Chunks name their items; arrays are read where they are worked on. Bytes of parts come back, to the one that writes.
"""

from __future__ import annotations

import os
import socket
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from seisbind.model.errors import GalleryError, InvalidConfig, MissingExtra, SeisBindError
from seisbind.model.processes import usable_cores, worker_pool
from seisbind.service.bulk.chunks import Chunk, Job, Outcome, Worker

AHEAD = 2  # chunks that a worker has or waits for it
DEATHS = 3  # of workers, one after another without a chunk done in between; on Ray, of a chunk's workers
RESTARTS = 5  # of an actor of Ray, which may also die while it opens weights and gallery
CONNECT_S = 10.0  # to a cluster's head
MOST_BLOCKS = 10_000  # of a dataset of Ray; more chunks share them
OBJECT_STORE_BYTES = 256 << 20  # of a Ray started here: it holds names of chunks and parts, no gathers


class OpenedJob:
    """A worker, opened once; what is wrong with more than a chunk becomes an outcome, which crosses to the writer."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._worker: Worker | None = None
        self._wrong = ""
        try:
            self._worker = job.open()
        except (SeisBindError, OSError) as error:
            self._wrong = str(error)

    def __call__(self, chunk: Chunk) -> Outcome:
        if self._worker is None:
            return Outcome(chunk, stopped=self._wrong)
        try:
            return self._worker.part(chunk)
        except (SeisBindError, OSError) as error:
            return Outcome(chunk, stopped=str(error))
        except MemoryError:
            return Outcome(
                chunk, stopped=f"A worker has no memory left for {chunk.file}; --workers gives fewer of them."
            )  # fmt: skip


_held: OpenedJob | None = None  # of a process of the pool


def default_workers(device: str) -> int:
    """One for a GPU of this process, else one a core."""
    from seisbind.model.encoders.embedder import choose_device

    return 1 if choose_device(device).type == "cuda" else usable_cores()


def have_ray() -> bool:
    """Whether Ray Data can be imported."""
    try:
        import ray.data  # noqa: F401
    except ImportError:
        return False
    return True


def in_processes(job: Job, chunks: Sequence[Chunk], workers: int) -> Iterator[Outcome]:
    """The outcomes of ``chunks``, in the order in which they are done, by ``workers`` processes.

    What a process that dies had begun is done again by another.

    Raises:
        GalleryError: processes died one after another without any chunk done.
    """
    left, deaths = deque(chunks), 0
    while left:
        running: dict[Future[Outcome], Chunk] = {}
        try:
            with worker_pool(min(workers, len(left)), uses_torch=True) as pool:
                while left or running:
                    while left and len(running) < AHEAD * workers:
                        running[pool.submit(_work, job, left[0])] = left[0]
                        left.popleft()
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        outcome = future.result()
                        del running[future]
                        deaths = 0
                        yield outcome
        except BrokenProcessPool as error:
            deaths += 1
            left.extendleft(reversed(running.values()))
            if deaths > DEATHS:
                raise GalleryError(
                    f"Worker processes died {deaths} times one after another, perhaps out of memory, with {len(left)} "
                    "parts to go. The same command continues; --workers gives fewer of them."
                ) from error


def _work(job: Job, chunk: Chunk) -> Outcome:
    global _held
    if _held is None or _held.job != job:
        _held = OpenedJob(job)
    return _held(chunk)


class Actor:
    """An `OpenedJob` as Ray Data calls it: a row with a chunk's fields in, the outcome's out."""

    def __init__(self, job: Job) -> None:
        from torch import set_num_threads

        set_num_threads(1)
        self._opened = OpenedJob(job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        chunk = Chunk(
            int(row["number"]), str(row["file"]), int(row["first"]), None if row["whole"] else int(row["last"])
        )
        found = self._opened(chunk)
        done = {"part": found.part, "answered": found.answered, "failed": found.failed, "stopped": found.stopped or ""}
        return {"place": int(row["place"]), **done}


def on_ray(job: Job, chunks: Sequence[Chunk], workers: int | None, address: str | None) -> Iterator[Outcome]:
    """The outcomes of ``chunks`` by actors of Ray Data, one a GPU where there are some and else one a core.

    Ray Data holds back work whose results are not taken, and gives what a dead actor had begun to another.

    Args:
        workers: actors; None for as many as the cluster has GPUs, or cores.
        address: of a running cluster; None starts Ray on this machine, and ends it afterwards.

    Raises:
        MissingExtra: Ray is not installed.
        InvalidConfig: no cluster there.
        GalleryError: Ray gave up, as for a chunk whose actors die again and again.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MissingExtra("--address needs Ray Data, which is not installed: pip install 'seisbind[bulk]'.") from error
    began = not ray.is_initialized()
    if began:
        _begin(ray, workers, address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        resources = ray.cluster_resources()
        gpus = 0 if job.device == "cpu" else int(resources.get("GPU", 0))
        size = workers or gpus or max(1, int(resources.get("CPU", 1)) - (address is None))
        rows = [
            {"place": place, "number": each.number, "file": each.file, "first": each.first, "last": each.last or 0,
             "whole": each.last is None}
            for place, each in enumerate(chunks)
        ]  # fmt: skip
        with _translated(ray, len(chunks)), warnings.catch_warnings():
            # The last two are to go with Ray 2.64 and have no other name in 2.60, which the extra names.
            warnings.filterwarnings("ignore", message=".*ray_remote_args. is deprecated")
            made = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_BLOCKS)).map(
                Actor,
                fn_constructor_args=(job,),
                compute=ray.data.ActorPoolStrategy(size=min(size, len(rows))),
                num_cpus=None if gpus else 1,
                num_gpus=1 if gpus else None,
                max_task_retries=DEATHS,
                max_restarts=RESTARTS,
            )
            found = iter(made.iter_rows())
        while True:
            with _translated(ray, len(chunks)):
                row = next(found, None)
            if row is None:
                break
            chunk = chunks[int(row["place"])]
            yield Outcome(chunk, row["part"], int(row["answered"]), int(row["failed"]), row["stopped"] or None)
    finally:
        if began:
            ray.shutdown()


@contextmanager
def _translated(ray: Any, parts: int) -> Iterator[None]:
    """Whatever Ray raises as one sentence: it has dozens of kinds, and puts traces of other machines into them."""
    try:
        yield
    except SeisBindError:
        raise
    except Exception as error:
        kind = type(error).__name__
        if isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnavailableError):
            what = f"workers died again and again ({kind}), perhaps out of memory"
        elif isinstance(error, ray.exceptions.RayError):
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            what = f"{kind}: {(lines or ['no reason given'])[-1]:.200}"
        else:
            what = f"{kind}: {(str(error).splitlines() or ['no reason given'])[0]:.200}"
        raise GalleryError(
            f"Ray ended the run of {parts} parts: {what}. Parts that are written are kept, and the same command "
            "continues; Ray's own logs have more."
        ) from error


def _begin(ray: Any, workers: int | None, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    quiet["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    if address is not None:
        _knock(address)
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidConfig(
                f"No Ray cluster answers at {address}: {reason:.300} One with token authentication is reached with "
                "RAY_AUTH_MODE=token and its token."
            ) from error
        return
    cores = (workers or usable_cores()) + 1  # one for the dataset's own tasks
    try:
        ray.init(
            address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GalleryError(
            f"Ray does not start on this machine: {reason:.300} Give --engine processes to go without it."
        ) from error


def _knock(address: str) -> None:
    """Raises InvalidConfig where nobody listens: Ray itself would try again for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host:  # auto
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise InvalidConfig(
            f"No Ray cluster answers at {address}: {error}. An address is HOST:PORT of its head, or auto."
        ) from error
