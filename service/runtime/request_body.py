"""A request's body while it arrives: how much of it, how long, and how many bodies at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Message, Receive

from seisbind.model.errors import BodyTooSlow, Overloaded, SeisBindError, UploadTooLarge

PATIENCE_S = 1.0  # a client that is silent for so long may have to make room; lost packets come again sooner


class RequestBody:
    """The only layer between the connection and whoever reads a body: it counts, and enforces the limits set on it.

    One task at a time may read. Without limits until `limit_bytes` and `UploadSlots.enter`.

    Attributes:
        bytes: received so far.
        complete: its end has come, or the client has left.
        cut: the rest of it is not read, so the connection is closed after the answer.
        on_first_read: called before the first read, where it is set; what it raises refuses the body.
        on_complete: called in turn at the end of the body; what they raise refuses the request.
    """

    def __init__(self, receive: Receive, *, declared: int = 0) -> None:
        self.bytes = 0
        self.complete = self.cut = False
        self.on_first_read: Callable[[], None] | None = None
        self.on_complete: list[Callable[[], None]] = []
        self._receive = receive
        self._declared = declared
        self._max_bytes: float = math.inf
        self._sentence = ""
        self._slots: UploadSlots | None = None
        self._deadline_s: float | None = None
        self._deadline: float | None = None
        self._displaced = False
        self._silent_since = math.inf
        self._waiting: asyncio.Timeout | None = None  # while its client is waited for

    def limit_bytes(self, max_bytes: int, sentence: str) -> None:
        """Refuse more than ``max_bytes``: now, if more are declared, else within one read.

        Args:
            sentence: of the refusal, with places for ``size`` and ``limit``.

        Raises:
            UploadTooLarge: more are declared.
        """
        self._max_bytes, self._sentence = max_bytes, sentence
        self._check_size(self._declared)

    def enter(self, slots: UploadSlots, deadline_s: float | None) -> None:
        """It has a place among ``slots``, and ``deadline_s`` from now to arrive."""
        self._slots, self._deadline_s = slots, deadline_s
        self._deadline = None if deadline_s is None else asyncio.get_running_loop().time() + deadline_s

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
            UploadTooLarge: see `limit_bytes`.
            Overloaded: there is no room for it.
        """
        if self.complete:
            return await self._receive()  # waits for the client to leave, however long
        try:
            if self.on_first_read is not None:
                begin, self.on_first_read = self.on_first_read, None
                begin()
            message = await self._next()
            self.bytes += len(message.get("body", b""))
            self.complete = message["type"] != "http.request" or not message.get("more_body", False)
            if self._slots is not None:
                self._slots.make_room()
            self._check_size(self.bytes)
        except SeisBindError:
            self.cut = True
            if self._slots is not None:
                self._slots.leave(self)
            raise
        if self.complete:
            for call in self.on_complete:
                call()
        return message

    async def _next(self) -> Message:
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
        return message

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            self.cut = True
            raise UploadTooLarge(self._sentence.format(size=size, limit=self._max_bytes))

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


class UploadSlots:
    """Room for the bodies that arrive at once. On the event loop.

    Where there is no room for one more, or for more of one, the client that has been silent for longest loses its own,
    if it has been so for `PATIENCE_S`: silent clients stop nobody, whatever they have sent.

    Args:
        max_bytes: of all bodies together.
    """

    def __init__(self, *, max_bodies: int, max_bytes: float = math.inf) -> None:
        self._max_bodies = max_bodies
        self._max_bytes = max_bytes
        self._bodies: set[RequestBody] = set()

    def __len__(self) -> int:
        return len(self._bodies)

    def enter(self, body: RequestBody, deadline_s: float | None = None) -> None:
        """Give ``body`` a place until it leaves, and ``deadline_s`` to arrive in (None: it has no deadline of its own).

        Raises:
            Overloaded: there is none.
        """
        self.make_room(for_bodies=1)
        body.enter(self, deadline_s)
        self._bodies.add(body)

    def leave(self, body: RequestBody) -> None:
        """Free the place of ``body``, if it still has one."""
        self._bodies.discard(body)

    @contextmanager
    def hold(self, body: RequestBody, *, deadline_s: float | None = None) -> Iterator[RequestBody]:
        """A place for ``body`` until the block ends; see `enter`."""
        self.enter(body, deadline_s)
        try:
            yield body
        finally:
            self.leave(body)

    def make_room(self, *, for_bodies: int = 0) -> None:
        """Displace silent clients until so many more bodies, and the bytes of all, have room.

        Raises:
            Overloaded: none is silent.
        """
        while (
            len(self._bodies) + for_bodies > self._max_bodies
            or sum(body.bytes for body in self._bodies) > self._max_bytes
        ):
            slowest = max(self._bodies, key=RequestBody.silent_s)
            if slowest.silent_s() < PATIENCE_S:
                raise Overloaded(
                    f"{len(self._bodies)} requests are being received, and none of them stands still. Try again soon."
                )
            slowest.displace()
            self._bodies.discard(slowest)
