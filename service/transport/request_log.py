"""The outermost middleware: a request's id and body, safe headers, access line, audit line, metrics. Pure ASGI."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from seisbind.service.runtime.logs import FIELDS, REQUEST_ID
from seisbind.service.runtime.metrics import METHODS, OTHER_METHOD, Metrics
from seisbind.service.runtime.request_body import RequestBody
from seisbind.service.transport.access import Call, Calls, Need
from seisbind.service.transport.audit import AuditLog

access = logging.getLogger("seisbind.access")

CLIENT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")  # a client's own id
GENERATION = b"seisbind-generation"  # of the gallery that an answer was made from
CLIENT_LEFT = 499  # nginx's number for a request that was given up before it was answered

SAFE_HEADERS = {
    b"x-content-type-options": b"nosniff",  # an npy is no script, whatever its bytes say
    b"x-frame-options": b"DENY",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",  # the page brings its own
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",  # but for answers whose route says more
}


@dataclass(slots=True)
class _Exchange:
    """What is known of a request and its answer so far. Bodies count without their framing, bytes."""

    call: Call
    method: str
    body: RequestBody
    started: float
    status: int = CLIENT_LEFT
    sent: int = 0


class RequestLog:
    """Gives a request its id, its `access.Call` and its `RequestBody` (in the scope's state), and accounts for it.

    It is outside of everything else, Starlette's own last resort included: what answers a bug goes through here too.
    """

    def __init__(self, app: ASGIApp, *, calls: Calls, metrics: Metrics, audit: AuditLog) -> None:
        self.app = app
        self.calls = calls
        self.metrics = metrics
        self.audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = dict(scope["headers"])
        given, declared = sent.get(b"x-request-id", b""), sent.get(b"content-length", b"")
        request_id = given.decode() if CLIENT_ID.fullmatch(given) else uuid.uuid4().hex
        REQUEST_ID.set(request_id)  # for every log line of this task
        body = RequestBody(receive, declared=int(declared) if declared.isdigit() else 0)
        call, method = self.calls.find(scope["method"], scope["path"]), scope["method"]
        exchange = _Exchange(call, method, body, time.perf_counter())
        state = scope.setdefault("state", {})
        state |= {"request_id": request_id, "call": call, "body": body, "arrived": exchange.started}

        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = self._with_headers(message["headers"], exchange, request_id)
                if (stamp := state.get("stamp")) is not None and exchange.status < 400:
                    message["headers"].append((GENERATION, stamp.encode()))
                if call.need is Need.WRITE:  # what is acknowledged is written down
                    await self._audit(scope, exchange)
            exchange.sent += len(message.get("body", b""))
            await send(message)

        self.metrics.in_flight.inc()
        try:
            await self.app(scope, body.receive, send_and_record)
        finally:
            self.metrics.in_flight.dec()
            self._account(exchange, state)

    @staticmethod
    def _with_headers(
        headers: list[tuple[bytes, bytes]], exchange: _Exchange, request_id: str
    ) -> list[tuple[bytes, bytes]]:
        there = {name.lower() for name, _ in headers}
        own = {b"connection": b"close"} if exchange.body.cut else {}
        own |= SAFE_HEADERS
        if exchange.status == 200:
            own[b"cache-control"] = exchange.call.policy.cache_control
        added = [(name, value) for name, value in own.items() if name not in there]
        return [*headers, *added, (b"x-request-id", request_id.encode())]

    async def _audit(self, scope: Scope, exchange: _Exchange) -> None:
        state = scope["state"]
        if exchange.status == 401:
            return  # nobody is known to have asked, and anybody could fill the disk
        written = await self.audit.write(
            request_id=state["request_id"],
            caller=state.get("caller"),
            client=(scope.get("client") or ("", 0))[0],
            method=exchange.method,
            path=scope["path"],
            status=exchange.status,
            code=state.get("code"),
            changed=state.get("changed", {}),
        )
        if not written:
            self.metrics.audit_failures.inc()

    def _account(self, exchange: _Exchange, state: dict[str, object]) -> None:
        seconds = time.perf_counter() - exchange.started
        method = exchange.method if exchange.method in METHODS else OTHER_METHOD
        route, metrics = exchange.call.template, self.metrics
        gathers, code = state.get("gathers"), state.get("code")
        metrics.requests.labels(method, route, str(exchange.status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        metrics.received_bytes.inc(exchange.body.bytes)
        if isinstance(code, str):
            metrics.errors.labels(code).inc()
        elif isinstance(gathers, int):
            metrics.gathers.inc(gathers)
        fields = {
            "method": method,
            "route": route,
            "status": exchange.status,
            "ms": round(seconds * 1e3, 3),
            "bytes_in": exchange.body.bytes,
            "bytes_out": exchange.sent,
            "gathers": gathers,
            "code": code,
            "caller": state.get("caller"),
        }
        access.info("request", extra={FIELDS: {name: value for name, value in fields.items() if value is not None}})
