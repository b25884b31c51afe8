"""Request bodies that are on their way: how many at once, how large together, how long each, and who makes room."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Receive

from seisbind.model.errors import BodyTooSlow, Overloaded

PATIENCE_S = 1.0  # a client that is silent for so long may have to make room; lost packets come again sooner


class Arrival:
    """A body, read by one task with `receive` until it is ``complete``; ``bytes`` of it have arrived."""

    def __init__(self, receive: Receive, deadline_s: float | None, grown: Callable[[int], None]) -> None:
        self.bytes = 0
        self.complete = False
        self._receive = receive
        self._deadline_s = deadline_s
        self._deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s
        self._grown = grown
        self._displaced = False
        self._silent_since = math.inf
        self._waiting: asyncio.Timeout | None = None  # while its client is waited for

    def silent_s(self) -> float:
        """For how long its client has been waited for by now; no time while it is not the client who is slow."""
        return max(0.0, time.monotonic() - self._silent_since)

    def displace(self) -> None:
        """End it, which waits for its client."""
        self._displaced = True
        if self._waiting is not None and not self._waiting.expired():  # or its deadline ends it now
            self._waiting.reschedule(asyncio.get_running_loop().time())

    async def receive(self) -> Message:
        """The next message.

        Raises:
            BodyTooSlow: it did not come before the deadline, or another body needs the room.
            Overloaded: there is no room for it.
        """
        if self.complete:
            return await self._receive()  # waits for the client to leave, however long
        self._silent_since = time.monotonic()
        try:
            async with asyncio.timeout_at(self._deadline) as self._waiting:
                message = await self._receive()
        except TimeoutError as error:
            raise self._too_slow() from error
        finally:
            self._silent_since, self._waiting = math.inf, None
        if self._displaced:  # and the message came at the same moment
            raise self._too_slow()
        size = len(message.get("body", b""))
        self.bytes += size
        self.complete = message["type"] != "http.request" or not message.get("more_body", False)
        self._grown(size)
        return message

    def _too_slow(self) -> BodyTooSlow:
        if self._displaced:
            return BodyTooSlow(
                f"{self.bytes} bytes of the body arrived, and then nothing for {PATIENCE_S:g} s or more, while others "
                "waited for its room. Send it again, without pauses."
            )
        return BodyTooSlow(
            f"{self.bytes} bytes of the body arrived in {self._deadline_s:g} s, and then no end. Send it faster, or in "
            "smaller requests."
        )


class Arrivals:
    """Bodies that arrive at once. On the event loop.

    Where there is no room for one more, or for more of one, the client that has been silent for longest loses its own,
    if it has been so for `PATIENCE_S`: those that keep still stop nobody, whatever they have sent.

    Args:
        most: bodies.
        most_bytes: of them together.
    """

    def __init__(self, *, most: int, most_bytes: float = math.inf) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bodies: set[Arrival] = set()

    def __len__(self) -> int:
        return len(self._bodies)

    @contextmanager
    def arriving(self, receive: Receive, *, deadline_s: float | None = None) -> Iterator[Arrival]:
        """A body that takes room until the block ends.

        Args:
            deadline_s: time for all of it; None where another bounds it.

        Raises:
            Overloaded: there is none.
        """
        self._make_room(most=self._most - 1)
        body = Arrival(receive, deadline_s, lambda size: self._make_room(most=self._most))
        self._bodies.add(body)
        try:
            yield body
        finally:
            self._bodies.discard(body)

    def _make_room(self, *, most: int) -> None:
        while len(self._bodies) > most or sum(body.bytes for body in self._bodies) > self._most_bytes:
            slowest = max(self._bodies, key=Arrival.silent_s)
            if slowest.silent_s() < PATIENCE_S:
                raise Overloaded(
                    f"{len(self._bodies)} requests are being received, and none of them stands still. Try again soon."
                )
            slowest.displace()
            self._bodies.discard(slowest)
