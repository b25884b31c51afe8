"""Worker processes of one thread each, which end with the process that started them."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def worker_pool(
    workers: int, *, uses_torch: bool, initializer: Callable[..., None] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """``workers`` processes; on leaving, what has not begun is dropped and what runs is waited for.

    Args:
        uses_torch: whether the workers do.
        initializer, initargs: called in each worker before its first task.
    """
    with _one_thread_each():
        pool = ProcessPoolExecutor(
            workers,
            mp_context=get_context("spawn"),  # torch's threads do not survive a fork
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
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile inherit OMP_NUM_THREADS=1: two threads on two busy cores were 20 times slower."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start(uses_torch: bool, initializer: Callable[..., None] | None, initargs: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if uses_torch:
        from torch import set_num_threads

        set_num_threads(1)
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()  # a killed parent cannot tell its workers to stop
        os._exit(1)
