"""A server that looks by itself whether its gallery has changed, and then serves what is there now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

from seisbind.model.errors import SeisBindError

if TYPE_CHECKING:
    from seisbind.service.runtime.serving import Serving

Turn = Callable[[], AbstractAsyncContextManager[None]]

log = logging.getLogger(__name__)

LONGEST_S = 600.0  # between two attempts at a gallery that cannot be served and does not change


class GalleryWatch:
    """Looks every ``every_s`` seconds; a look costs a few reads, and what has changed is opened as a reload does.

    A gallery that cannot be served leaves the one before in its place, counted and logged by `Serving.reload`. The same
    one is tried again after twice the time, and twice that, up to `LONGEST_S`; another one at the next look.

    Args:
        in_turn: makes the block in which it is opened: of the workers of one server, one at a time does so.
    """

    def __init__(self, serving: Serving, every_s: float, in_turn: Turn = nullcontext) -> None:
        self._serving = serving
        self._every_s = every_s
        self._in_turn = in_turn
        self._failed: object = None
        self._wait_s = every_s
        self._again_at = 0.0

    async def run(self) -> None:
        """Until the server stops; no time if it is never to look."""
        if not self._every_s:
            return
        stopping = self._serving.stopping
        while not stopping.is_set():
            try:
                await asyncio.wait_for(stopping.wait(), self._every_s)
            except TimeoutError:
                try:
                    await self.look()
                except Exception:  # the watch ends with the server, not with a fault
                    log.exception("Looking at the gallery failed.")

    async def look(self) -> None:
        """Once."""
        served, there = await self._serving.look()
        if there == served:
            self._failed, self._wait_s = None, self._every_s
            return
        if there == self._failed and time.monotonic() < self._again_at:
            return
        async with self._in_turn():  # of several workers all see the change at once
            await self._load()

    async def _load(self) -> None:
        served, there = await self._serving.look()  # a reload was asked for, or it has changed again, meanwhile
        if there == served:
            return
        try:
            before, after = await self._serving.reload()
        except SeisBindError:  # counted and logged
            self._wait_s = min(LONGEST_S, 2 * (self._wait_s if there == self._failed else self._every_s))
            self._failed, self._again_at = there, time.monotonic() + self._wait_s
            return
        self._failed, self._wait_s = None, self._every_s
        log.info("The gallery has changed: %s is served in place of %s.", after.stamp, before.stamp)
