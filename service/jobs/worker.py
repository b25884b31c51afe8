"""The process that works on the jobs of a folder, one after another: ``python -m seisbind.service.jobs.worker FOLDER``.

The keeper of a server starts it when there is something to do, and it ends when there is nothing more. It runs at the
lowest priority and on one thread, so that requests go before it. It ends after its iteration when it is told to
(SIGTERM), and when its server has gone: the pipe that is its standard input closes. However it ends, the next one goes
on from the last iteration.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import INTERNAL_ERROR, JobError, SeisBindError
from seisbind.model.files import lock
from seisbind.service.jobs.database import AtStep
from seisbind.service.jobs.job import Event, Float32, Job, RefineInput, RefineRequest
from seisbind.service.jobs.workbench import Arrays, Workbench

log = logging.getLogger(__name__)

LOCK = "worker.lock"
POLL_S = 0.2
IDLE_S = 10.0  # without anything to do; to begin again takes seconds, for torch
MAX_DEATHS = 3
GRACE_S = 60.0  # of an iteration beyond the time of its job; then the kernel ends the worker
RECENT = 5  # iterations that the time left is reckoned from


class StepReport(Protocol):
    """What an iteration says; `Event` has the meanings."""

    @property
    def iteration(self) -> int: ...
    @property
    def of(self) -> int: ...
    @property
    def stage(self) -> str: ...
    @property
    def residual(self) -> float: ...
    @property
    def step_s(self) -> float: ...


class Steps(Protocol):
    """Work that is done an iteration at a time, and can be taken up again from its state."""

    @property
    def done(self) -> bool: ...
    @property
    def stopped(self) -> str | None: ...
    @property
    def velocity(self) -> Float32: ...
    def step(self) -> StepReport: ...
    def state(self) -> dict[str, NDArray[Any]]: ...
    def arrays(self) -> dict[str, NDArray[Any]]:
        """What is kept of the result: ``velocity`` and whatever else there is, in the frame's units."""


Make = Callable[[RefineRequest, RefineInput, Mapping[str, NDArray[Any]] | None], Steps]  # None: from the start


def work(
    folder: Path,
    make: Make,
    *,
    stop: threading.Event,
    at_step: AtStep = lambda name: None,
    idle_s: float = IDLE_S,
    max_deaths: int = MAX_DEATHS,
) -> None:
    """Work until there is nothing more to do, or until ``stop`` is set.

    One process at a time works in a folder; others wait for their turn. The kernel drops the lock with its process.

    Args:
        make: the steps of a job, from a checkpoint.

    Raises:
        JobError: the folder cannot be used.
    """
    bench = Workbench(folder, at_step=at_step)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not _locked(handle, stop):
            return
        idle_since = time.monotonic()
        while not stop.is_set():
            job = bench.claim(max_deaths=max_deaths)
            if job is not None:
                _work_on(job, bench, make, stop, at_step)
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since > idle_s:
                return
            else:
                stop.wait(POLL_S)
    finally:
        os.close(handle)
        bench.close()


def _locked(handle: int, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            lock(handle)
            return True
        except BlockingIOError:
            stop.wait(POLL_S)
    return False


def _work_on(job: Job, bench: Workbench, make: Make, stop: threading.Event, at_step: AtStep) -> None:
    """Bring a job to its end, or to where it is stopped; whatever goes wrong with it ends it alone."""
    try:
        _iterate(job, bench, make, stop, at_step)
    except SeisBindError as error:
        bench.fail(job, code=error.code, sentence=error.sentence)
    except (Exception, MemoryError) as error:
        log.exception("The job %s failed.", job.job_id)
        sentence = f"Something went wrong inside: {type(error).__name__}. The server's log has the details."
        bench.fail(job, code=INTERNAL_ERROR, sentence=sentence)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit(left_s: float) -> None:
    """Whatever it hangs in, the kernel ends it."""
    signal.setitimer(signal.ITIMER_REAL, max(0.0, left_s) + GRACE_S)


def _iterate(job: Job, bench: Workbench, make: Make, stop: threading.Event, at_step: AtStep) -> None:
    _limit(job.request.seconds - job.worked_s)
    inputs, (state, damaged) = bench.input(job), bench.checkpoint(job)
    if damaged:
        where = "the beginning" if state is None else "the one before"
        bench.say(job, f"Of its checkpoints {damaged} were damaged on the disk; it goes on from {where}.")
    steps, worked_s, recent, sentence = make(job.request, inputs, state), job.worked_s, list[float](), None
    while not steps.done:
        if stop.is_set():
            bench.release(job)
            return
        left_s = job.request.seconds - worked_s
        if left_s <= 0:
            sentence = f"Its time, {job.request.seconds:g} s, was used up before its last iteration."
            break
        _limit(left_s)
        report = steps.step()
        at_step("step:computed")
        worked_s += report.step_s
        recent = [*recent[1 - RECENT :], report.step_s]
        left = float(np.median(recent)) * (report.of - report.iteration)
        event = Event(
            0, 0.0, job.state, report.iteration, report.of, report.stage, float(report.residual), report.step_s, left
        )
        model: Arrays = {"velocity": steps.velocity}
        if not bench.step(job, event, state=steps.state(), velocity=model):
            return
    _limit(job.request.seconds - worked_s)
    bench.done(job, steps.arrays(), sentence=sentence or steps.stopped)


def main(make: Make, **more: Any) -> None:
    """The process: its priority, and what ends it."""
    logging.basicConfig(format="%(levelname)s %(name)s %(message)s", level=logging.WARNING)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    os.nice(19)
    with suppress(OSError):  # where there is not enough memory, this process is to go, and not its server
        Path("/proc/self/oom_score_adj").write_text("500")

    def watch() -> None:
        while os.read(0, 1):  # until the server closes it, or ends
            pass
        stop.set()

    threading.Thread(target=watch, daemon=True).start()
    try:
        work(Path(sys.argv[1]), make, stop=stop, **more)
    except JobError as error:
        log.error("%s", error)
        raise SystemExit(1) from error


if __name__ == "__main__":
    from seisbind.service.jobs.refinement import make_refinement

    main(make_refinement)
