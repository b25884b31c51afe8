"""What a request has to pass before any route: its API key, then the limits on its body; and CORS. Pure ASGI."""

from __future__ import annotations

from functools import partial

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from seisbind.model.errors import SeisBindError, WriteScopeRequired
from seisbind.service.runtime.request_body import RequestBody, UploadSlots
from seisbind.service.transport.access import Call, Need
from seisbind.service.transport.keys import Keys
from seisbind.service.transport.keys import Scope as KeyScope
from seisbind.service.transport.problems import CODE, problem, refused

CORS_METHODS = ("GET", "POST", "DELETE")
CORS_REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "SeisBind-Deadline-Ms", "X-Request-ID")
CORS_ANSWER_HEADERS = ("X-Request-ID", "Retry-After", "Location", "SeisBind-Generation")
TOO_LARGE = (
    "The body has {size} bytes or more; the limit is {limit}. Send fewer gathers a request, or as float16."
)  # fmt: skip


class Guard:
    """Refuses a request without the key that its call needs (``caller`` in the scope's state is the key's name), then
    sets the limits of its body. What is refused here is refused before a byte of the body is read.

    A body takes a slot from when it is first read until it has come. Streamed calls limit each part of their body
    themselves, and often answer before its end: after them the connection is closed.
    """

    def __init__(
        self, app: ASGIApp, *, keys: Keys, max_body_bytes: int, body_deadline_s: float, slots: UploadSlots
    ) -> None:
        self.app = app
        self.keys = keys
        self.max_body_bytes = max_body_bytes
        self.body_deadline_s = body_deadline_s
        self.slots = slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call: Call = scope["state"]["call"]
        body: RequestBody = scope["state"]["body"]
        refusal = None
        if call.need is Need.OFF:
            refusal = problem(scope, 404, CODE[404], "This server does not show that.")
        else:
            try:
                self._check_key(call, scope)
                if not call.policy.streamed:
                    body.limit_bytes(self.max_body_bytes, TOO_LARGE)
            except SeisBindError as error:
                refusal = refused(scope, error)
        if refusal is not None:
            headers = dict(scope["headers"])
            body.cut = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
            await refusal(scope, receive, send)
            return
        if call.policy.streamed:
            body.cut = True
        else:
            body.on_first_read = partial(self.slots.enter, body, self.body_deadline_s)
            body.on_complete.append(partial(self.slots.leave, body))
        try:
            await self.app(scope, receive, send)
        finally:
            self.slots.leave(body)

    def _check_key(self, call: Call, scope: Scope) -> None:
        if not self.keys or call.need is Need.NOTHING:
            return
        key = self.keys.find([value for name, value in scope["headers"] if name == b"authorization"])
        scope["state"]["caller"] = key.name
        if call.need is Need.WRITE and key.scope is not KeyScope.WRITE:
            raise WriteScopeRequired(
                f"{scope['method']} {call.template} needs a key with the scope write; that of {key.name} is "
                f"{key.scope}."
            )


class Origins(CORSMiddleware):
    """Starlette's CORS, with a problem document where it refuses a preflight."""

    def __init__(self, app: ASGIApp, *, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=CORS_METHODS,
            allow_headers=CORS_REQUEST_HEADERS,
            expose_headers=CORS_ANSWER_HEADERS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        preflight = "origin" in headers and "access-control-request-method" in headers
        if preflight and scope["method"] == "OPTIONS":
            response = self.preflight_response(request_headers=headers)
            if response.status_code >= 400:
                detail = f"{bytes(response.body).decode()}. SEISBIND_CORS_ORIGINS says which pages may call."
                response = problem(scope, 400, CODE[400], detail, headers={"Vary": "Origin"})
            await response(scope, receive, send)
            return
        await super().__call__(scope, receive, send)
