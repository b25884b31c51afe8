"""A request's body while it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Receive

DISCARD_S = (
    2.0  # what a client may still send once it has been refused, so that it reads why before the connection ends
)


class Incoming:
    """What ``receive`` brings. ``complete`` once the end of the body has come. One task at a time may read."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, as they arrive.

        Raises:
            ClientDisconnect: the client has left.
        """
        while not self.complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            self.complete = not message.get("more_body", False)
            yield message.get("body", b"")

    async def discard(self, most_bytes: int) -> None:
        """Read to the end, or until it is enough: a connection that is closed on unread bytes is reset.

        Raises:
            ClientDisconnect: the client has left.
        """
        received = 0
        try:
            async with asyncio.timeout(DISCARD_S):
                async for chunk in self.chunks():
                    received += len(chunk)
                    if received > most_bytes:
                        return
        except TimeoutError:
            pass

    async def until_left(self) -> None:
        """Wait for the client to leave."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
