"""A request's body while it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import ClientDisconnect
from starlette.types import Receive


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

    async def until_left(self) -> None:
        """Wait for the client to leave."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
