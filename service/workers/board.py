"""What the workers of one server tell each other, in a folder of their own: metrics, whether each is ready, that a
gallery is to be loaded again and what became of that, and whose turn it is to load one.

A scrape, a reload or a check of readiness reaches one worker, whichever takes the connection. That one reads what the
others have written about themselves a moment ago, and asks them to follow.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from seisbind.model.errors import INTERNAL_ERROR, SeisBindError
from seisbind.service.runtime.metrics import Metrics

log = logging.getLogger(__name__)

WRITE_S = 1.0  # from one time that a worker writes its metrics, and whether it is ready, to the next
LOOK_S = 0.25  # from one look for a reload, or whose turn it is, to the next
FOLLOW_S = 120.0  # for the others to load a gallery, before the answer leaves without them
STALE_S = 15.0  # a worker that said nothing for so long hangs: it looks whether it is ready for 10 s at most
LABEL = "worker"

_RELOADS, _COUNTING, _TURN = "reloads", "counting", "turn"


class State(StrEnum):
    """Of a worker. One that is absent or starts takes no connections yet, and will serve the gallery that is there
    then."""

    READY = "ready"
    NOT_READY = "not_ready"
    STARTING = "starting"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a worker stands.

    Attributes:
        generation: of the gallery that it serves, as `GalleryInfo.stamp` has it; None where it serves none.
        why: it is not ready.
    """

    worker: int
    state: State
    generation: str | None = None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Followed:
    """What became of a reload in a worker.

    Attributes:
        number: of the last request that it followed.
        generation: that it serves since; None where it could not be loaded, or where the worker began later and opened
            what was there.
        code, why: of what failed.
    """

    worker: int
    number: int
    generation: str | None = None
    code: str | None = None
    why: str = ""


class Board:
    """The folder, as worker ``index`` of ``count`` sees it.

    A worker that is being replaced serves on until its successor does, but says nothing from when that has begun: what
    is read there is of the successor, and who asked for a reload waits for that one.
    """

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self.folder, self.index, self.count = folder, index, count
        self._begun = time.monotonic()
        self._seen = self._asked()

    def begin(self) -> None:
        """This worker is there, and opens the gallery from now on."""
        self._begun = time.monotonic()
        self._tell(Standing(self.index, State.STARTING))
        self._seen = self._asked()

    @staticmethod
    def has_ended(folder: Path, index: int) -> None:
        """Worker ``index`` is no more: it measures nothing, and nobody waits for it."""
        for name in ("metrics", "standing"):
            (folder / f"{name}-{index}").unlink(missing_ok=True)

    # Metrics

    def write_metrics(self, metrics: Metrics) -> None:
        """Write what this worker measures for the others to read."""
        told = [
            [one.name, one.documentation, one.type, [[s.name, s.labels, s.value] for s in one.samples]]
            for one in metrics.collect()
        ]
        if self._speaks():
            self._put(f"metrics-{self.index}", json.dumps(told))

    def merged(self, metrics: Metrics) -> Iterator[Metric]:
        """The metrics of all workers, one family for each name, each sample with the label `LABEL`.

        This worker's are of now. The others' are what each has written last: `WRITE_S` ago, longer where its event loop
        is busy; none of one that has ended or has not begun to serve. Nothing is added up: that is for whoever reads
        them, and counters of a worker that was started again begin at 0.
        """
        families: dict[str, Metric] = {}
        for index in range(self.count):
            for one in metrics.collect() if index == self.index else self._read_metrics(index):
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                family.samples += [
                    Sample(sample.name, {**sample.labels, LABEL: str(index)}, sample.value) for sample in one.samples
                ]
        yield from families.values()

    def _read_metrics(self, index: int) -> Iterable[Metric]:
        for name, documentation, kind, samples in self._read(f"metrics-{index}") or ():
            metric = Metric(name, documentation, kind)
            metric.samples = [Sample(own, labels, value) for own, labels, value in samples]
            yield metric

    # Readiness

    def standings(self) -> list[Standing]:
        """How each worker stands, as it has said last."""
        return [self._standing(index) for index in range(self.count)]

    def _standing(self, index: int) -> Standing:
        told = self._read(f"standing-{index}")
        if told is None:
            return Standing(index, State.ABSENT)
        silent_s = time.monotonic() - told.pop("at")  # of the machine, the same for all its processes
        del told["begun"]
        found = Standing(**told | {"state": State(told["state"])})
        if found.state is not State.STARTING and silent_s > STALE_S:
            return Standing(index, State.NOT_READY, found.generation, f"It has said nothing for {silent_s:.0f} s.")
        return found

    def _tell(self, standing: Standing) -> None:
        if self._speaks():
            told = asdict(standing) | {"at": time.monotonic(), "begun": self._begun}
            self._put(f"standing-{self.index}", json.dumps(told))

    def _speaks(self) -> bool:
        """Whether no successor has begun, or the one that had begun has ended."""
        told = self._read(f"standing-{self.index}")
        return told is None or bool(told["begun"] <= self._begun)

    # Reloading

    @asynccontextmanager
    async def in_turn(self) -> AsyncIterator[None]:
        """While one worker is in this block no other one is: to load a gallery takes memory and time of a core."""
        turn = os.open(self.folder / _TURN, os.O_RDWR | os.O_CREAT)
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await asyncio.sleep(LOOK_S)
            yield
        finally:
            os.close(turn)

    def ask(self, generation: str) -> int:
        """Ask all others to load the gallery again, of which this worker serves ``generation`` now; returns the number
        of this request."""
        with self._counting():
            number = self._asked() + 1
            self._put(_RELOADS, str(number))
        self.followed(Followed(self.index, number, generation))
        return number

    def followed(self, one: Followed) -> None:
        """What became of a request in this worker."""
        self._seen = max(self._seen, one.number)
        with suppress(OSError):  # a full disk; who asked waits, and then answers without this worker
            if self._speaks():
                self._put(f"followed-{self.index}", json.dumps(asdict(one)))

    def outcomes(self, number: int) -> list[Followed | None]:
        """Of request ``number``, for each worker; None: it is yet to follow. One that is not there need not, for it
        will open what is there when it starts."""
        found: list[Followed | None] = []
        for index in range(self.count):
            told = self._read(f"followed-{index}")
            if told is not None and told["number"] >= number:
                found.append(Followed(**told))
            elif (self.folder / f"standing-{index}").exists():
                found.append(None)
            else:
                found.append(Followed(index, number))
        return found

    async def all_followed(self, number: int) -> list[Followed | None]:
        """`outcomes` once all workers have followed, after `FOLLOW_S` at most."""
        end = time.monotonic() + FOLLOW_S
        while None in (found := self.outcomes(number)) and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
        return found

    # What a worker does beside serving

    async def attend(
        self,
        metrics: Metrics,
        *,
        reload: Callable[[], Awaitable[str]],
        ready: Callable[[], Awaitable[str]],
        stopping: asyncio.Event,
    ) -> None:
        """Write metrics and whether this worker is ready, and load the gallery when another one asks for it, one
        worker after another, until the server stops.

        Args:
            reload: loads it; returns the generation that is served then.
            ready: returns the generation that is served, or raises what is wrong.
        """
        await asyncio.gather(self._write(metrics, stopping), self._attest(ready, stopping), self._listen(reload))

    async def _write(self, metrics: Metrics, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            with suppress(OSError):
                self.write_metrics(metrics)
            await asyncio.sleep(WRITE_S)

    async def _attest(self, ready: Callable[[], Awaitable[str]], stopping: asyncio.Event) -> None:
        while True:
            try:
                found = Standing(self.index, State.READY, await ready())
            except Exception as error:  # whatever it is, this worker is not ready
                found = Standing(self.index, State.NOT_READY, None, str(error))
            if stopping.is_set():  # its successor may have begun to write in its place
                return
            with suppress(OSError):
                self._tell(found)
            await asyncio.sleep(WRITE_S)

    async def _listen(self, reload: Callable[[], Awaitable[str]]) -> None:
        self.followed(Followed(self.index, self._seen))  # what was asked for before it began
        while True:
            if (asked := self._asked()) > self._seen:
                self.followed(await self._follow(asked, reload))
            await asyncio.sleep(LOOK_S)

    async def _follow(self, asked: int, reload: Callable[[], Awaitable[str]]) -> Followed:
        try:
            async with self.in_turn():
                return Followed(self.index, asked, await reload())
        except SeisBindError as error:  # counted and logged where it was met; the old gallery goes on being served
            return Followed(self.index, asked, None, error.code, error.sentence)
        except Exception:  # whatever it is, this worker hears the next request too
            log.exception("Worker %d has not loaded the gallery again.", self.index)
            return Followed(self.index, asked, None, INTERNAL_ERROR, "Its log has the details.")

    # Files

    @contextmanager
    def _counting(self) -> Iterator[None]:
        counting = os.open(self.folder / _COUNTING, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(counting, fcntl.LOCK_EX)
            yield
        finally:
            os.close(counting)

    def _asked(self) -> int:
        return self._read(_RELOADS) or 0

    def _read(self, name: str) -> Any:
        """What was put there; None: nothing yet."""
        with suppress(OSError, ValueError):
            return json.loads((self.folder / name).read_text())
        return None

    def _put(self, name: str, text: str) -> None:
        """Whole or not at all, for whoever reads it now; nothing here has to survive a power cut."""
        partial = self.folder / f".{name}.{os.getpid()}"  # a worker and its successor write the same name
        partial.write_text(text)
        partial.replace(self.folder / name)
