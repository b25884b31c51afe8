"""Worker processes of one thread each, which end with the process that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": µs of all cores together, in each period of so many µs


def usable_cores() -> int:
    """Cores that this process may run on, or the time of so many where a container is given less (cgroup 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota_us, period_us = CPU_MAX.read_text().split()
        cores = min(cores, max(1, int(quota_us) // int(period_us)))
    return cores


def named_threads(name: str, count: int, begin: Callable[[], object] = lambda: None) -> ThreadPoolExecutor:
    """``count`` threads, which each call ``begin`` first. On Linux ``top -H`` shows them by their name, too."""

    def start() -> None:
        if sys.platform == "linux":
            with suppress(OSError):
                Path("/proc/thread-self/comm").write_text(name)  # of which Linux keeps 15 characters
        begin()

    return ThreadPoolExecutor(count, thread_name_prefix=name, initializer=start)


def release_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps some (glibc)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def worker_pool(
    workers: int,
    *,
    uses_torch: bool,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
    imported: Sequence[str] = (),
) -> Iterator[ProcessPoolExecutor]:
    """``workers`` processes; on leaving, what has not begun is dropped and what runs is waited for.

    Args:
        uses_torch: whether the workers do.
        initializer, initargs: called in each worker before its first task.
        imported: modules that one process imports for all workers, which are forked from it and share what it has in
            memory. It does nothing else, so that no thread of torch's is lost; it stays until this process ends.
    """
    with inherited(OMP_NUM_THREADS="1"):  # two threads on two busy cores were 20 times slower
        context = get_context("forkserver" if imported else "spawn")  # torch's threads do not survive a fork
        if imported:
            context.set_forkserver_preload(list(imported))
        pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_start,
            initargs=(uses_torch, initializer, initargs),
        )
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def in_order(pool: ProcessPoolExecutor, work: Callable[[T], R], tasks: Iterable[T], *, ahead: int) -> Iterator[R]:
    """What ``work`` returns for each of ``tasks``, in their order, with at most ``ahead`` of them begun and not taken.

    Raises:
        BrokenProcessPool: a worker died.
    """
    running: deque[Future[R]] = deque()
    for task in tasks:
        running.append(pool.submit(work, task))
        if len(running) >= ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


@contextmanager
def inherited(**variables: str) -> Iterator[None]:
    """Processes started meanwhile inherit these environment variables; this one has them for as long."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(uses_torch: bool, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    end_with_parent()
    if uses_torch:
        from torch import set_num_threads

        set_num_threads(1)
    if initializer is not None:
        initializer(*initargs)


def end_with_parent() -> None:
    """End this process once the one that started it is gone: a killed parent cannot tell its workers to stop."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
