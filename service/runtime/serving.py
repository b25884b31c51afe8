"""What a running server owns: the weights, the current gallery, the threads that use them, the canary."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.index import GalleryInfo, open_store, search_threads
from seisbind.index.replicas.source import Lease, source_of
from seisbind.model.encoders.embedder import Embedder, choose_device
from seisbind.model.errors import INTERNAL_ERROR, JobsOff, NotReady, Overloaded, SeisBindError
from seisbind.model.inversion.beside import Checker, Models
from seisbind.model.inversion.check import Check
from seisbind.model.inversion.observed import Observed
from seisbind.model.processes import named_threads, usable_cores
from seisbind.model.survey.preparation import prepare
from seisbind.service.engine.engine import Engine, canary_gather
from seisbind.service.jobs.job import JobState
from seisbind.service.jobs.keeper import Jobs
from seisbind.service.jobs.store import JobLimits
from seisbind.service.lost_gpu import end_if_lost
from seisbind.service.runtime.batcher import Batcher
from seisbind.service.runtime.images import PictureCache
from seisbind.service.runtime.metrics import Metrics
from seisbind.service.runtime.request_body import UploadSlots
from seisbind.service.settings import Search, Settings

log = logging.getLogger(__name__)

T = TypeVar("T")

CANARY_DEADLINE_S = 10.0  # behind what the model thread has to do first; a server later than this is not ready for more
FILE_THREADS = 4  # records read, models removed and answers written: mostly outside the interpreter's lock
MAX_READERS = 4


class _Held:
    """An engine and how many jobs are using it; its gallery is closed after the last one once it is retired."""

    def __init__(self, engine: Engine, lease: Lease) -> None:
        self.engine = engine
        self.lease = lease
        self.users = 0
        self.retired = False

    def close(self) -> None:
        self.engine.gallery.close(lists=False)  # making them takes a minute, and a server has less to stop in
        self.lease.release()


class Serving:
    """Opens weights and gallery, and lets requests at them.

    Who owns what: one *model* thread runs the encoders and searches (torch spreads each call over the cores by itself),
    for gathers in the batches that ``batches`` forms; *reader* threads, one for each core that the encoders leave, read
    and prepare gathers; `FILE_THREADS` *file* threads read records, remove models and write large answers; one
    *picture* thread draws, so that pictures that wait for each other keep nobody else waiting; one *check* thread
    waits for waves to be modelled, on a CPU in a process of low priority (`Checker`). The event loop owns
    ``admitted``, ``uploads``, ``streams``, ``stopping``, ``_reloading`` and ``_parsing``. The current engine is
    replaced as a whole under ``_lock``, which guards ``_checks`` too; a job keeps the one it began with.

    Args:
        sharing: processes that share the cores of the machine, this one included.

    Raises:
        SeisBindError: no usable weights, device or gallery.
    """

    def __init__(self, settings: Settings, *, sharing: int = 1) -> None:
        self.settings = settings
        left = max(1, usable_cores() // sharing)
        threads = settings.threads or max(1, min(left, torch.get_num_threads()) - 1)
        if choose_device(settings.device).type == "cpu":
            torch.set_num_threads(threads)
            left -= threads
        elif sharing > 1:  # what is done on the CPU beside a GPU
            torch.set_num_threads(threads)
        self.embedder = Embedder.load(
            settings.weights, device=settings.device, runtime=settings.runtime, precision=settings.precision
        )
        self.pictures = PictureCache()
        self.metrics = Metrics()
        self._lock = threading.Lock()
        self._source = source_of(
            settings.gallery, cache=settings.cache, fingerprint=self.embedder.fingerprint, writable=settings.writable
        )
        self._held = self._open()
        log.info("Gathers are embedded by %s on %s.", self.embedder.runtime, self.embedder.device)
        # else a search's second thread waits, busily, for work on the core that reads requests
        self._model = named_threads("model", 1, partial(search_threads, torch.get_num_threads()))
        # more readers than cores would only take the interpreter's lock from each other
        self._readers = named_threads("reader", max(1, min(MAX_READERS, left)))
        self._files = named_threads("file", FILE_THREADS)
        self._drawing = named_threads("picture", 1)
        self._checking = named_threads("check", 1)
        self._checker = Checker(str(self.embedder.device))
        self.batches = Batcher(
            lambda job: self._submit(self._model, job),
            max_batch=settings.max_batch,
            max_wait_s=settings.max_wait_ms / 1e3,
            max_queue=settings.max_queue,
            on_batch=self.metrics.batch_gathers.observe,
        )
        self.uploads = UploadSlots(
            max_bodies=settings.max_uploads, max_bytes=settings.max_concurrency * settings.max_body_bytes
        )
        self.streams = UploadSlots(max_bodies=settings.max_streams)
        self.stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._parsing = asyncio.Lock()
        self._admitted = 0
        self._checks = 0  # under ``_lock``
        self._canary_at = float("-inf")
        self._canary: asyncio.Task[bool] | None = None
        self._warm_up()
        self.metrics.admitted.set_function(lambda: self._admitted)
        self.metrics.arriving.set_function(lambda: len(self.uploads))
        self.metrics.checks.set_function(lambda: self._checks)
        self.metrics.streams.set_function(lambda: len(self.streams))
        self.metrics.waiting_gathers.set_function(lambda: self.batches.waiting)
        self.metrics.gallery_models.set_function(lambda: len(self._held.engine.gallery))
        self.metrics.gallery_generation.set_function(lambda: self._held.engine.gallery.generation)
        self.metrics.search_bytes.set_function(lambda: self._held.engine.gallery.device_bytes)
        self.metrics.search_approximate.set_function(lambda: self._held.engine.gallery.approximate is not None)
        self.metrics.search_recall.labels("recorded").set_function(self._recorded_recall)
        self.metrics.search_recall.labels("live").set_function(self._live_recall)
        self.metrics.search_compared.set_function(lambda: self._held.engine.gallery.live_recall.compared)
        self._jobs = None if settings.jobs is None else self._open_jobs(settings.jobs)

    def _open_jobs(self, folder: Path) -> Jobs:
        settings = self.settings
        jobs = Jobs(folder, limits=JobLimits(settings.max_jobs, settings.jobs_bytes, settings.jobs_keep_s))
        for state in JobState:
            self.metrics.jobs.labels(state).set_function(partial(jobs.count, state))
        return jobs

    @property
    def jobs(self) -> Jobs:
        """The jobs. Raises JobsOff."""
        if self._jobs is None:
            raise JobsOff("This server takes no jobs. Its operator sets SEISBIND_JOBS to a folder to let it.")
        return self._jobs

    def _open(self) -> _Held:
        """The present gallery, and what is needed to use it; nothing stays open where it cannot be served."""
        with ExitStack() as opened:
            lease = self._source.lease()
            opened.callback(lease.release)
            gallery = open_store(
                lease.place,
                fingerprint=self.embedder.fingerprint,
                frame=self.embedder.frame,
                writable=self.settings.writable,
                exact=self.settings.search is Search.EXACT,
            )
            opened.callback(gallery.close)
            gallery.search_on(self._search_device(), on_fall_back=self._fell_back)
            engine = Engine(self.embedder, gallery)
            engine.info()
            opened.pop_all()
        log.info("Gallery %s of %s is searched on %s.", gallery.stamp, self._source.name, gallery.search_device)
        return _Held(engine, lease)

    def _search_device(self) -> torch.device:
        asked = self.settings.search_device
        return self.embedder.device if asked == "auto" else choose_device(asked)

    def _fell_back(self, reason: str) -> None:
        self.metrics.search_fall_backs.labels(reason).inc()

    def _recorded_recall(self) -> float:
        info = self._held.engine.gallery.approximate
        return 1.0 if info is None else info.recall

    def _live_recall(self) -> float:
        live = self._held.engine.gallery.live_recall.recall
        return float("nan") if live is None else live

    def _warm_up(self) -> None:
        """Encode once what will be encoded, so that the first request does not wait for kernels to be chosen."""
        frame = self.embedder.frame
        for gathers in (1, self.settings.max_batch) if self.embedder.device.type == "cuda" else (1,):
            canary = np.repeat(canary_gather(frame), gathers, axis=0)
            self.embedder.embed_gathers(prepare(canary, frame=frame))

    def check_places(self) -> None:
        """Whether a request may be worked on now.

        Raises:
            Overloaded: as many are as may be.
        """
        if self._admitted >= self.settings.max_concurrency:
            raise Overloaded(f"{self._admitted} requests are being worked on or answered already. Try again soon.")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place among the requests that are worked on or whose answers are sent at once.

        Raises:
            Overloaded: there is none.
        """
        self.check_places()
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def on_model(self, job: Callable[[Engine], T]) -> T:
        """Run ``job`` on the model thread."""
        with self.metrics.queued() as begun:

            def begin(engine: Engine) -> T:
                begun()
                return job(engine)

            return await self._run(self._model, begin)

    async def on_reader(self, job: Callable[[Engine], T]) -> T:
        """Run ``job``, which reads and prepares gathers, on a reader thread."""
        return await self._run(self._readers, job)

    async def on_parser(self, job: Callable[[Engine], T]) -> T:
        """Run ``job``, which parses text, on a file thread, one at a time: it keeps the interpreter's lock for
        milliseconds, and several would not let the event loop have it in between."""
        async with self._parsing:
            return await self.on_file(job)

    async def on_file(self, job: Callable[[Engine], T]) -> T:
        """Run ``job`` on a file thread."""
        return await self._run(self._files, job)

    def here(self, job: Callable[[Engine], T]) -> T:
        """Run ``job`` now, on the event loop: for what takes less than half a millisecond."""
        with self.using() as engine:
            return job(engine)

    async def on_picture(self, draw: Callable[[Engine], bytes]) -> bytes:
        """Run ``draw`` on the picture thread."""
        return await self._run(self._drawing, draw)

    async def on_check(self, job: Callable[[Engine, Models], T]) -> T:
        """Run ``job`` on the check thread; it is given what models waves, which ends once nobody wants its result.

        Raises:
            Overloaded: as many checks wait or run as may.
        """
        with self._lock:
            if self._checks >= self.settings.max_checks:
                raise Overloaded(
                    f"{self._checks} checks wait or run already (SEISBIND_MAX_CHECKS). Try again in a few seconds."
                )
            self._checks += 1
        left = threading.Event()

        def models(observed: Observed, velocity: NDArray[np.float32]) -> list[Check]:
            return self._checker.check_models(observed, velocity, stop=lambda: left.is_set() or self.stopping.is_set())

        running = self._submit(self._checking, lambda engine: job(engine, models))
        running.add_done_callback(self._check_ended)
        try:
            return await asyncio.wrap_future(running)
        finally:
            left.set()

    def _check_ended(self, check: Future[T]) -> None:
        with self._lock:
            self._checks -= 1

    async def _run(self, pool: ThreadPoolExecutor, job: Callable[[Engine], T]) -> T:
        return await asyncio.wrap_future(self._submit(pool, job))  # cancelled before it runs, it never runs

    def _submit(self, pool: ThreadPoolExecutor, job: Callable[[Engine], T]) -> Future[T]:
        def run() -> T:
            try:
                with self.using() as engine:
                    return job(engine)
            except RuntimeError as error:
                end_if_lost(error)
                raise

        return pool.submit(run)

    @contextmanager
    def using(self) -> Iterator[Engine]:
        """The current engine, whose gallery stays open until the block ends, also if another one is served by then."""
        with self._lock:
            held = self._held
            held.users += 1
        try:
            yield held.engine
        finally:
            with self._lock:
                held.users -= 1
                last = held.retired and not held.users
            if last:
                held.close()

    async def reload(self) -> tuple[GalleryInfo, GalleryInfo]:
        """Open the gallery anew and serve it from the next job on; says what was served before and what is now.

        A writable gallery, which nobody else can have changed, is refreshed in place.

        Raises:
            SeisBindError: what is there now cannot be served; the old one goes on being served.
        """

        def fresh(engine: Engine) -> tuple[GalleryInfo, _Held | None, GalleryInfo]:
            before = engine.info()
            if self.settings.writable:
                engine.refresh()
                return before, None, engine.info()
            held = self._open()
            return before, held, held.engine.info()

        async with self._reloading:  # one at a time: each opens a whole gallery, and the last one opened is served
            try:
                before, new, after = await self.on_file(fresh)
            except Exception as error:  # whatever it is, the old gallery goes on being served
                code = error.code if isinstance(error, SeisBindError) else INTERNAL_ERROR
                self.metrics.reload_failures.labels(code).inc()
                log.error("The gallery was not reloaded; the one before goes on being served: %s [%s]", error, code)
                raise
            if new is not None:
                with self._lock:
                    old, self._held = self._held, new
                    old.retired = True
                    idle = not old.users
                if idle:
                    old.close()
                await self.on_file(lambda engine: self._clean())
            self.metrics.reloads.inc()
        return before, after

    @property
    def gallery_name(self) -> str:
        """Of its folder, or the last part of its URL."""
        return self._source.name

    def _clean(self) -> None:
        """Remove copies of galleries that are served no more."""
        try:
            self._source.clean()
        except (SeisBindError, OSError) as error:  # the next time
            log.warning("Old galleries were not removed: %s", error)

    async def look(self) -> tuple[object, object]:
        """What is served and what is there now, as marks that can be compared."""
        held = self._held
        return await self.on_file(lambda engine: self._source.marks(held.lease, held.engine.gallery))

    async def ready(self) -> None:
        """Return if a canary gather was encoded and searched lately, or now.

        Raises:
            NotReady: it was not, or the server is shutting down.
        """
        if self.stopping.is_set():
            raise NotReady("The server is shutting down; ask another one.")
        if time.monotonic() - self._canary_at <= self.settings.canary_max_age_s:
            return
        if self._canary is None or self._canary.done():
            self._canary = asyncio.create_task(self._run_canary())
        done, _ = await asyncio.wait([self._canary], timeout=CANARY_DEADLINE_S)
        if not done:
            raise NotReady(f"A canary gather was not answered in {CANARY_DEADLINE_S:g} s.")
        if not self._canary.result():
            raise NotReady("A canary gather could not be answered; the server's log says why.")

    async def _run_canary(self) -> bool:
        try:
            await self.on_model(lambda engine: engine.canary())
        except (SeisBindError, RuntimeError):  # RuntimeError: torch, FAISS, a pool that has shut down
            log.exception("The canary gather failed.")
            return False
        self._canary_at = time.monotonic()
        return True

    def close(self) -> None:
        """Finish what is running, then let go of the gallery; a job goes on when there is a server again."""
        if self._jobs is not None:
            self._jobs.close()
        for pool in (self._model, self._readers, self._files, self._drawing, self._checking):
            pool.shutdown(wait=True)
        self._checker.close()
        self._held.close()
