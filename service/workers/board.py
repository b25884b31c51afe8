"""What the workers of one server tell each other, in a folder of their own: metrics, and that a gallery is to be loaded
again.

A scrape or a reload reaches one worker, whichever takes the connection. That one reads what the others have written
about themselves a moment ago, and asks them to follow.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from seisbind.model.errors import SeisBindError
from seisbind.service.runtime.metrics import Metrics

log = logging.getLogger(__name__)

WRITE_S = 1.0  # from one time that a worker writes its metrics to the next
LOOK_S = 0.25  # from one look for a reload to the next
FOLLOW_S = 120.0  # for the others to load a gallery, before the answer leaves without them
LABEL = "worker"

_RELOADS, _TURN = "reloads", "turn"


class Board:
    """The folder, as worker ``index`` of ``count`` sees it."""

    def __init__(self, folder: Path, index: int, count: int) -> None:
        self.folder, self.index, self.count = folder, index, count
        self._seen = self._asked()

    # Metrics

    def write_metrics(self, metrics: Metrics) -> None:
        """Write what this worker measures for the others to read."""
        told = [
            [one.name, one.documentation, one.type, [[s.name, s.labels, s.value] for s in one.samples]]
            for one in metrics.collect()
        ]
        self._put(f"metrics-{self.index}", json.dumps(told))

    def merged(self, metrics: Metrics) -> Iterator[Metric]:
        """The metrics of all workers, each sample with the label `LABEL`: this one's of now, the others' of `WRITE_S`
        ago at most."""
        families: dict[str, Metric] = {}
        for index in range(self.count):
            for one in metrics.collect() if index == self.index else self._read_metrics(index):
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                family.samples += [
                    Sample(sample.name, {**sample.labels, LABEL: str(index)}, sample.value) for sample in one.samples
                ]
        yield from families.values()

    def _read_metrics(self, index: int) -> Iterable[Metric]:
        with suppress(OSError, ValueError):  # it has not begun, or is being started again
            told: list[Any] = json.loads((self.folder / f"metrics-{index}").read_text())
            for name, documentation, kind, samples in told:
                metric = Metric(name, documentation, kind)
                metric.samples = [Sample(own, labels, value) for own, labels, value in samples]
                yield metric

    # Reloading

    def ask(self) -> int:
        """Ask all others to load the gallery again; returns the number of this request."""
        with self._turn():
            number = self._asked() + 1
            self._put(_RELOADS, str(number))
        self.followed(number)
        return number

    def followed(self, number: int) -> None:
        """This worker serves what was there after request ``number``."""
        self._seen = max(self._seen, number)
        with suppress(OSError):  # a full disk; who asked waits, and then answers without this worker
            self._put(f"served-{self.index}", str(self._seen))

    def waiting_for(self, number: int) -> list[int]:
        """The workers that have not followed request ``number`` yet."""
        return [index for index in range(self.count) if self._number(f"served-{index}") < number]

    async def all_followed(self, number: int) -> bool:
        """Wait until all workers have followed, `FOLLOW_S` at most; whether they have."""
        for _ in range(int(FOLLOW_S / LOOK_S)):
            if not self.waiting_for(number):
                return True
            await asyncio.sleep(LOOK_S)
        log.warning("Workers %s have not loaded the gallery again.", self.waiting_for(number))
        return False

    async def attend(self, metrics: Metrics, reload: Callable[[], Awaitable[object]]) -> None:
        """Write metrics, and load the gallery when another worker asks for it, one worker after another. Endless."""
        self.followed(self._seen)
        while True:
            with suppress(OSError):
                self.write_metrics(metrics)
            for _ in range(round(WRITE_S / LOOK_S)):
                if (asked := self._asked()) > self._seen:
                    await self._follow(asked, reload)
                await asyncio.sleep(LOOK_S)

    async def _follow(self, asked: int, reload: Callable[[], Awaitable[object]]) -> None:
        turn = await asyncio.to_thread(self._take_turn)
        try:
            await reload()
        except SeisBindError:
            pass  # counted and logged where it was met; the old gallery goes on being served
        except Exception:  # whatever it is, this worker hears the next request too
            log.exception("Worker %d has not loaded the gallery again.", self.index)
        finally:
            os.close(turn)
            self.followed(asked)

    # Files

    def _take_turn(self) -> int:
        turn = os.open(self.folder / _TURN, os.O_RDWR | os.O_CREAT)
        fcntl.flock(turn, fcntl.LOCK_EX)
        return turn

    @contextmanager
    def _turn(self) -> Iterator[None]:
        turn = self._take_turn()
        try:
            yield
        finally:
            os.close(turn)

    def _asked(self) -> int:
        return self._number(_RELOADS)

    def _number(self, name: str) -> int:
        with suppress(OSError, ValueError):
            return int((self.folder / name).read_text())
        return 0

    def _put(self, name: str, text: str) -> None:
        """Whole or not at all, for whoever reads it now; nothing here has to survive a power cut."""
        partial = self.folder / f".{name}.{os.getpid()}"  # a worker and its successor write the same name
        partial.write_text(text)
        partial.replace(self.folder / name)
