"""The bounds on a request's body: how many bytes, how long they may take, how many arrive at once. Pure ASGI, before
any parsing.
"""

from __future__ import annotations

from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seisbind.model.errors import SeisBindError, UploadTooLarge
from seisbind.service.runtime.upload_slots import Arrival, Arrivals
from seisbind.service.transport.problems import refused


class BodyBounds:
    """Refuses a body that declares too many bytes, cuts off one that sends too many or too slowly.

    A body takes room among the ``arrivals`` from when it is first read until it has come. It is cut within one read of
    the cap; the handler sees the error where it reads. The calls in ``streams`` bound each part of their body
    themselves, and often answer before its end: after them the connection is closed.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        body_deadline_s: float,
        arrivals: Arrivals,
        streams: frozenset[str] = frozenset(),
    ) -> None:
        self.app = app
        self.arrivals = arrivals
        self.streams = streams
        self.max_body_bytes = max_body_bytes
        self.body_deadline_s = body_deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        streamed = scope["path"] in self.streams
        cut = streamed

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and cut:
                # the rest of the body is not read, so the connection cannot be used again
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        if streamed:
            await self.app(scope, receive, send_and_close)
            return

        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            cut = True
            await refused(scope, self._too_large(int(declared)))(scope, receive, send_and_close)
            return

        body: Arrival | None = None

        with ExitStack() as room:

            async def bounded_receive() -> Message:
                nonlocal body, cut
                try:
                    if body is None:
                        body = room.enter_context(self.arrivals.arriving(receive, deadline_s=self.body_deadline_s))
                    message = await body.receive()
                    if body.bytes > self.max_body_bytes:
                        raise self._too_large(body.bytes)
                except SeisBindError:
                    cut = True
                    room.close()
                    raise
                if body.complete:
                    room.close()
                return message

            await self.app(scope, bounded_receive, send_and_close)

    def _too_large(self, size: int) -> UploadTooLarge:
        return UploadTooLarge(
            f"The body has {size} bytes or more; the limit is {self.max_body_bytes}. Send fewer gathers a request, or "
            "as float16."
        )
