"""The first thing that a request meets: its id, and the bounds on its body. Pure ASGI, before any parsing."""

from __future__ import annotations

import asyncio
import re
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seisbind.model.errors import BodyTooSlow, UploadTooLarge
from seisbind.service.errors import refused

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # what is taken over from the client


class RequestEdge:
    """Numbers requests, refuses a body that declares too many bytes, cuts off one that sends too many or too slowly.

    A body is cut within one read of the cap; the handler sees the error where it reads.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, body_deadline_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.body_deadline_s = body_deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        cut = False

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                if cut:  # the rest of the body is not read, so the connection cannot be used again
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        declared = headers.get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.max_body_bytes:
            cut = True
            await refused(scope, self._too_large(int(declared)))(scope, receive, send_with_id)
            return

        received, complete = 0, False
        deadline = asyncio.get_running_loop().time() + self.body_deadline_s

        async def bounded_receive() -> Message:
            nonlocal received, complete, cut
            if complete:
                return await receive()  # waits for the client to leave: no deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                cut = True
                raise BodyTooSlow(
                    f"{received} bytes of the body arrived in {self.body_deadline_s:g} s, and then no end. Send it "
                    "faster, or in smaller requests."
                ) from error
            received += len(message.get("body", b""))
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            if received > self.max_body_bytes:
                cut = True
                raise self._too_large(received)
            return message

        await self.app(scope, bounded_receive, send_with_id)

    def _too_large(self, size: int) -> UploadTooLarge:
        return UploadTooLarge(
            f"The body has {size} bytes or more; the limit is {self.max_body_bytes}. Send fewer gathers a request, or "
            "as float16."
        )
