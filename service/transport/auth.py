"""Who may pass: API keys before any byte of a body is read, and the origins whose pages may call. Pure ASGI."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from seisbind.model.errors import SeisBindError, WriteScopeRequired
from seisbind.service.transport.access import Call, Need
from seisbind.service.transport.keys import Keys
from seisbind.service.transport.keys import Scope as KeyScope
from seisbind.service.transport.problems import CODE, problem, refused

CORS_METHODS = ("GET", "POST", "DELETE")
CORS_REQUEST_HEADERS = ("Authorization", "Content-Type", "X-Request-ID")
CORS_ANSWER_HEADERS = ("X-Request-ID", "Retry-After")


class KeyGate:
    """Lets through what `access.Call.need` allows; the scope's state then says whose key it was (``caller``)."""

    def __init__(self, app: ASGIApp, *, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call: Call = scope["state"]["call"]
        if call.need is Need.OFF:
            await refuse(problem(scope, 404, CODE[404], "This server does not show that."), scope, receive, send)
            return
        if self.keys and call.need is not Need.NOTHING:
            try:
                self._check(call, scope)
            except SeisBindError as error:
                await refuse(refused(scope, error), scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _check(self, call: Call, scope: Scope) -> None:
        key = self.keys.find([value for name, value in scope["headers"] if name == b"authorization"])
        scope["state"]["caller"] = key.name
        if call.need is Need.WRITE and key.scope is not KeyScope.WRITE:
            raise WriteScopeRequired(
                f"{scope['method']} {call.template} needs a key with the scope write; that of {key.name} is "
                f"{key.scope}."
            )


async def refuse(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer before the body has been read; where there is one, the connection is closed after it."""
    headers = dict(scope["headers"])
    if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
        response.headers["Connection"] = "close"
    await response(scope, receive, send)


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
