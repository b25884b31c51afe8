"""The HTTP application: `create_app` opens weights and gallery and returns what an ASGI server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp

from seisbind.service.http import check, gallery, jobs, openapi, page, retrieve, stream
from seisbind.service.http.parameters import split
from seisbind.service.http.routing import serving_of
from seisbind.service.runtime import metrics
from seisbind.service.runtime.serving import Serving
from seisbind.service.schemas import Health
from seisbind.service.settings import Settings
from seisbind.service.transport import problems
from seisbind.service.transport.access import Calls, Need, Policy, policies
from seisbind.service.transport.audit import AuditLog
from seisbind.service.transport.guard import Guard, Origins
from seisbind.service.transport.keys import read_keys
from seisbind.service.transport.request_log import RequestLog

state = APIRouter(tags=["state"], responses=openapi.PROBLEMS)


@state.get("/healthz", openapi_extra=openapi.NO_KEY)
@Policy(need=Need.NOTHING)
async def healthz() -> Health:
    """Live: the event loop answers."""
    return Health(status="live")


@state.get("/readyz", openapi_extra=openapi.NO_KEY)
@Policy(need=Need.NOTHING)
async def readyz(request: Request) -> Health:
    """Ready: a canary gather was encoded and searched on the real device in the last seconds."""
    await serving_of(request).ready()
    return Health(status="ready")


@state.get("/metrics", response_class=PlainTextResponse)
@Policy(setting="metrics_access")
async def read_metrics(request: Request) -> Response:
    """What the server measures of itself, as the text that Prometheus reads."""
    return Response(serving_of(request).metrics.text(), media_type=metrics.TEXT)


ROUTERS = (
    retrieve.router,
    check.router,
    gallery.working,
    gallery.quick,
    stream.router,
    stream.sections,
    jobs.working,
    jobs.quick,
    state,
    page.router,
)
POLICIES = policies(ROUTERS) | {"/openapi.json": Policy(setting="openapi_access")}


class Application(FastAPI):
    """Every route, without middleware: enough for the API description."""

    def __init__(self, **more: Any) -> None:
        super().__init__(
            title="SeisBind",
            version=version("seisbind"),
            summary="Velocity models and their physics from seismic shot gathers.",
            docs_url=None,  # FastAPI's pages load scripts from other hosts
            redoc_url=None,
            **more,
        )
        for router in ROUTERS:
            self.include_router(router)
        problems.install(self)

    def openapi(self) -> dict[str, Any]:
        """The API description, with the key that a server may ask for."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.with_keys(super().openapi())
        return self.openapi_schema

    def calls(self, settings: Settings) -> Calls:
        """Every call, and what it needs of its caller."""
        return Calls(self.openapi()["paths"], POLICIES, settings)


class ServedApplication(Application):
    """The routes behind their middleware, and what they work with.

    From the outside in: the request log, outside of Starlette's own answer to a bug too, so that no answer leaves
    without its id and its headers, and none is left out of the metrics; CORS, because a browser's preflight brings no
    key; the guard; the routes, which admit only so many requests at once.
    """

    def __init__(self, settings: Settings) -> None:
        keys, self._audit = read_keys(settings), AuditLog(settings.audit_log)
        self._settings, self._serving = settings, Serving(settings)
        super().__init__(lifespan=_lifespan)
        self.state.serving = self._serving
        self.add_middleware(  # each one that is added goes outside of those before it
            Guard,
            keys=keys,
            max_body_bytes=settings.max_body_bytes,
            body_deadline_s=settings.body_deadline_s,
            slots=self._serving.uploads,
        )
        if settings.cors_origins:
            self.add_middleware(Origins, origins=split(settings.cors_origins))
        self._serving.metrics.describe_build(
            version=self.version,
            weights=self._serving.embedder.fingerprint,
            weights_name=self._serving.embedder.weights.description.name,
            gallery=self._serving.gallery_name,
        )

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's stack, inside the request log."""
        inside, calls = super().build_middleware_stack(), self.calls(self._settings)
        return RequestLog(inside, calls=calls, metrics=self._serving.metrics, audit=self._audit)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.serving.close)


def create_app(settings: Settings) -> FastAPI:
    """The application, with weights and gallery open; they are let go of when the server shuts down.

    Raises:
        SeisBindError: they cannot be opened; the sentence says why.
    """
    return ServedApplication(settings)


def openapi_document() -> dict[str, Any]:
    """The API description; needs neither weights nor a gallery."""
    return Application().openapi()
