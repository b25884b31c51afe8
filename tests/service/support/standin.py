"""A refinement that is none: quick, and right only if it goes on from exactly where it was.

    python standin.py FOLDER

is a worker of such jobs. What it does besides comes from the environment: STANDIN_S an iteration's seconds, STANDIN_DIE
a step and a count (``step:committed 3``) at which it dies of SIGKILL, STANDIN_UNSAFE that every statement is a
transaction of its own, which a store must not do. A request whose start is ``dies`` kills its worker in iteration 4,
``raises`` has a bug there, and ``hangs`` never ends it; two others hang before the first and after the last.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.frame import OPENFWI_FRAME
from seisbind.service.jobs import worker
from seisbind.service.jobs.database import JobDatabase
from seisbind.service.jobs.job import Float32, RefineInput, RefineRequest

STEP_S = float(os.environ.get("STANDIN_S", "0.002"))
LONG, LONG_S = 100, 0.02  # iterations of a job that takes its time, so that it can be looked at
FAULTY = 4


@dataclass(frozen=True)
class Report:
    iteration: int
    of: int
    stage: str
    residual: float
    step_s: float


class StandIn:
    """Each iteration mixes the model so that one that is left out, done twice or begun elsewhere shows in all after."""

    stopped = None

    def __init__(self, request: RefineRequest, inputs: RefineInput, state: Mapping[str, NDArray[Any]] | None) -> None:
        self._request, self._traces = request, inputs.traces
        self._hang("hangs in the beginning")
        self.velocity: Float32 = inputs.starts[0] if state is None else state["velocity"]
        self._iteration = 0 if state is None else int(state["iteration"])

    def _hang(self, start: str) -> None:
        if self._request.start == start:
            time.sleep(600)

    @property
    def done(self) -> bool:
        return self._iteration >= self._request.iterations

    def step(self) -> Report:
        self._iteration += 1
        with alone():
            time.sleep(LONG_S if self._request.iterations >= LONG else STEP_S)
            if self._iteration == FAULTY:
                if self._request.start == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                if self._request.start == "raises":
                    raise ZeroDivisionError("a bug")
                if self._request.start == "hangs":
                    time.sleep(600)
        mixed = np.roll(self.velocity, self._iteration, axis=1) * 1.37 + self._iteration + np.abs(self._traces).mean()
        self.velocity = (1500 + mixed % 3000).astype(np.float32)
        return Report(self._iteration, self._request.iterations, "mix", 1 / self._iteration, STEP_S)

    def state(self) -> dict[str, NDArray[Any]]:
        return {"velocity": self.velocity, "iteration": np.array(self._iteration)}

    def arrays(self) -> dict[str, NDArray[Any]]:
        self._hang("hangs in the end")
        return {"velocity": self.velocity, "residual": np.arange(self._iteration, dtype=np.float32)}


@contextmanager
def alone() -> Iterator[None]:
    """Leaves a file ``twice`` beside where two processes are in an iteration at once, whatever the store's own lock."""
    folder = os.environ.get("STANDIN_FOLDER")
    if folder is None:
        yield
        return
    with Path(folder, "iterating").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Path(folder, "twice").touch()
        yield


def job(number: int, *, iterations: int = 12, start: str = "read") -> tuple[RefineRequest, RefineInput]:
    """A request and its arrays; they follow from ``number``."""
    generator, frame = np.random.default_rng(number), OPENFWI_FRAME
    traces = generator.standard_normal((2, 5, frame.receivers)).astype(np.float32)
    starts = generator.uniform(1500, 4500, (1, *frame.velocity_shape)).astype(np.float32)
    arrays = RefineInput(traces, np.ones((2, frame.receivers), bool), np.array([0, 300], np.float32), starts)
    return RefineRequest(frame, iterations, 60.0, start, warnings=(f"number {number}",)), arrays


def uninterrupted(number: int, **asked: Any) -> Float32:
    """The model that a job ends with."""
    request, arrays = job(number, **asked)
    steps = StandIn(request, arrays, None)
    while not steps.done:
        steps.step()
    return steps.velocity


def dying(told: str | None, died: Path) -> Callable[[str], None]:
    """What is called at each step: nothing, or death at a step's n-th time, once: it leaves the file ``died``."""
    name, _, left = (told or "").rpartition(" ")
    times = 0 if died.exists() else int(left or 0)

    def at_step(step: str) -> None:
        nonlocal times
        if step == name:
            times -= 1
            if times == 0:
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    return at_step


def unsafe() -> None:
    """Let every statement be a transaction of its own, and be a step ``statement``."""

    @contextmanager
    def writing(self: JobDatabase, name: str) -> Iterator[Any]:
        with self._lock:
            yield self._connection
            self._at_step(f"{name}:before-commit")
        self._at_step(f"{name}:committed")

    JobDatabase.writing = writing  # type: ignore[method-assign]


def statements() -> None:
    """Make each statement of SQL a step before it runs: ``statement``, and what it begins with."""
    prepare = JobDatabase._prepare

    def traced(self: JobDatabase, connection: Any) -> None:
        prepare(self, connection)

        def trace(sql: str) -> None:
            self._at_step("statement")
            self._at_step(sql[:18])

        connection.set_trace_callback(trace)

    JobDatabase._prepare = traced  # type: ignore[method-assign]


def arm(folder: Path, told: str) -> Callable[[str], None]:
    """What the environment asks of a process of the harness; ``told`` is the variable with its death."""
    statements()
    if "STANDIN_UNSAFE" in os.environ:
        unsafe()
    return dying(os.environ.get(told), folder / "died")


if __name__ == "__main__":
    worker.GRACE_S = float(os.environ.get("STANDIN_GRACE", worker.GRACE_S))
    if "STANDIN_UNLOCKED" in os.environ:
        worker.lock = lambda handle: None
    at_step = arm(Path(sys.argv[1]), "STANDIN_DIE")
    new = Path(sys.argv[1], f"worker.{os.getpid()}")  # who reads it finds a number, never an empty file
    new.write_text(str(os.getpid()))
    new.replace(new.with_name("worker.pid"))
    deaths = int(os.environ.get("STANDIN_DEATHS", "3"))
    worker.main(StandIn, at_step=at_step, idle_s=0.3, max_deaths=deaths)
