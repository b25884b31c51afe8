"""Batches of gathers from many requests: what the model thread encodes and searches at once.

A batch leaves when the model thread is free and

- nobody else is on the way: every gather that is being read and prepared has come; or
- it is full; or
- its oldest gather has waited long enough for the others.

So a request that is alone never waits, and while the model thread is busy the next batch forms by itself.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from seisbind.index import GalleryInfo
from seisbind.model.errors import Overloaded, SeisBindError
from seisbind.service.engine.answers import Retrieval
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.query import Query
from seisbind.service.lost_gpu import end_if_lost

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one query.

    Attributes:
        retrievals: one for each gather.
        gallery: what was searched.
        batch: gathers that were encoded together, those of other requests included.
        timings_ms: stage → time for the whole batch; ``wait``: of this query, for the batch to start.
    """

    retrievals: list[Retrieval]
    gallery: GalleryInfo
    batch: int
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A query, when it came, and the future of its answer. ``patient``: of a stream, which limits its own gathers."""

    query: Query
    since: float
    patient: bool
    answer: asyncio.Future[Answered]


class Batcher:
    """Joins the queries of many requests, and answers them on the model thread.

    Who owns what: ``_lock`` guards ``_waiting``, ``_coming`` and ``_working``, which the event loop and the model
    thread both touch. The loop adds queries, takes out those whose client has left, and owns ``_timer``. At most one
    job of the batcher is in the model thread's queue at a time, so that searches and changes have their turn between
    two batches; it takes its batch when it begins, not when it is queued.

    Args:
        submit: queues a job for the model thread, to which it hands the current engine.
        max_batch: gathers encoded at once; a single request may have more.
        max_wait_s: how long a free model thread waits for gathers that are being prepared.
        max_queue: gathers that wait; beyond them requests are refused.
        on_batch: called with the gathers of each batch, on the model thread.
    """

    def __init__(
        self,
        submit: Callable[[Callable[[Engine], None]], object],
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda gathers: None,
    ) -> None:
        self._submit = submit
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._coming = 0
        self._working = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Gathers in the queue."""
        with self._lock:
            return sum(len(each.query) for each in self._waiting)

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While a query is being read and prepared: a batch that has not left may wait for it. On the loop."""
        with self._lock:
            self._coming += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming -= 1
            asyncio.get_running_loop().call_soon(self._start)  # after this query has joined those that wait

    def check(self, gathers: int = 1) -> None:
        """Whether a request with so many gathers may wait now; one always may when nobody else does.

        Raises:
            Overloaded: the queue is full.
        """
        with self._lock:
            held = sum(len(each.query) for each in self._waiting if not each.patient)
        if held and held + gathers > self._max_queue:
            raise Overloaded(
                f"{held} gathers wait for the encoders; the queue holds {self._max_queue}. Try again soon."
            )

    async def answer(self, query: Query, *, patient: bool = False) -> Answered:
        """The answer to ``query``, from the batch that it is given a place in. Cancelled, it gives the place back.

        Args:
            patient: wait even if the queue is full, for a caller that limits how many of its gathers wait.

        Raises:
            Overloaded: see `check`.
            SeisBindError: see `Engine.retrieve`.
        """
        if not patient:
            self.check(len(query))
        mine = _Waiting(query, time.monotonic(), patient, asyncio.get_running_loop().create_future())
        with self._lock:
            self._waiting.append(mine)
        self._start()
        try:
            return await mine.answer
        finally:
            with self._lock:
                if mine in self._waiting:
                    self._waiting.remove(mine)

    def _start(self) -> None:
        """Send a batch off if one is due, or see again when it will be. On the loop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            if self._working or not self._waiting:
                return
            left_s = self._until_due()
            self._working = left_s <= 0
        if left_s <= 0:
            self._submit(self._work)
        else:
            self._timer = asyncio.get_running_loop().call_later(left_s, self._start)

    def _until_due(self) -> float:
        """Seconds that what waits may still wait. Under the lock."""
        if not self._coming or sum(len(each.query) for each in self._waiting) >= self._max_batch:
            return 0.0
        return self._waiting[0].since + self._max_wait_s - time.monotonic()

    def _work(self, engine: Engine) -> None:
        """Answer one batch, then see to the next. On the model thread."""
        with self._lock:
            batch = self._take()
        try:
            if batch:
                self._on_batch(sum(len(each.query) for each in batch))
                self._answer(engine, batch)
        finally:
            with self._lock:
                self._working = go_on = bool(self._waiting) and self._until_due() <= 0
                waited_on = self._waiting[0].answer.get_loop() if self._waiting and not go_on else None
            if go_on:
                self._submit(self._work)
            elif waited_on is not None:
                waited_on.call_soon_threadsafe(self._start)

    def _take(self) -> list[_Waiting]:
        """The oldest queries that fit into one batch: at least one. Under the lock."""
        gathers, count = 0, 0
        for each in self._waiting:
            gathers += len(each.query)
            if count and gathers > self._max_batch:
                break
            count += 1
        batch, self._waiting = self._waiting[:count], self._waiting[count:]
        return batch

    def _answer(self, engine: Engine, batch: list[_Waiting]) -> None:
        try:
            answered: list[Answered | Exception] = list(_answered(engine, batch))
        except Exception as error:
            end_if_lost(error)  # asked one by one, the queries would fail as well
            answered = [error] if len(batch) == 1 else [_alone(engine, each) for each in batch]
        batch[0].answer.get_loop().call_soon_threadsafe(_resolve, batch, answered)


def _answered(engine: Engine, batch: list[_Waiting]) -> list[Answered]:
    start, watch = time.monotonic(), Stopwatch()
    found = engine.retrieve_batch([each.query for each in batch], watch=watch)
    gallery, gathers = engine.info(), sum(len(each.query) for each in batch)
    return [
        Answered(
            retrievals,
            gallery,
            gathers,
            {"wait": round((start - each.since) * 1e3, 3)} | watch.timings_ms,
        )
        for each, retrievals in zip(batch, found, strict=True)
    ]


def _alone(engine: Engine, one: _Waiting) -> Answered | Exception:
    """One query of a batch that failed: whatever is wrong with it is no fault of the others."""
    try:
        return _answered(engine, [one])[0]
    except Exception as error:
        if not isinstance(error, SeisBindError):
            log.exception("A gather could not be answered.")
        return error


def _resolve(batch: list[_Waiting], answered: list[Answered | Exception]) -> None:
    """On the loop, which owns the futures."""
    for each, answer in zip(batch, answered, strict=True):
        if each.answer.done():  # its client has left
            continue
        if isinstance(answer, Exception):
            each.answer.set_exception(answer)
        else:
            each.answer.set_result(answer)
