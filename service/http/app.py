"""The HTTP application: `create_app` opens weights and gallery and returns what an ASGI server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import seisbind.service.transport.problems as errors
from seisbind.service.http import openapi, page
from seisbind.service.http.parameters import split
from seisbind.service.http.routes import router as v1
from seisbind.service.http.routes import serving_of
from seisbind.service.http.stream import STREAM_PATH
from seisbind.service.http.stream import router as streams
from seisbind.service.runtime import metrics
from seisbind.service.runtime.serving import Serving
from seisbind.service.runtime.upload_slots import Arrivals
from seisbind.service.schemas import Health
from seisbind.service.settings import Settings
from seisbind.service.transport.access import Calls
from seisbind.service.transport.audit import AuditLog
from seisbind.service.transport.auth import KeyGate, Origins
from seisbind.service.transport.body_limits import BodyBounds
from seisbind.service.transport.keys import Keys, read_keys
from seisbind.service.transport.request_log import RequestEdge

outside = APIRouter()


@outside.get("/healthz", tags=["state"], responses=openapi.PROBLEMS)
async def healthz() -> Health:
    """Live: the event loop answers."""
    return Health(status="live")


@outside.get("/readyz", tags=["state"], responses=openapi.PROBLEMS)
async def readyz(request: Request) -> Health:
    """Ready: a canary gather was encoded and searched on the real device in the last seconds."""
    await serving_of(request).ready()
    return Health(status="ready")


@outside.get("/metrics", tags=["state"], response_class=PlainTextResponse, responses=openapi.PROBLEMS)
async def read_metrics(request: Request) -> Response:
    """What the server measures of itself, as the text that Prometheus reads."""
    return Response(serving_of(request).metrics.text(), media_type=metrics.TEXT)


@outside.get("/", include_in_schema=False)
async def landing(request: Request) -> HTMLResponse:
    """The page."""
    app: FastAPI = request.app
    info = await serving_of(request).on_file(lambda engine: engine.info())
    headers = {"Content-Security-Policy": page.POLICY}
    return HTMLResponse(page.landing(info, app.openapi()), headers=headers)


@outside.get("/web/{name:path}", include_in_schema=False)
async def web(name: str) -> Response:
    """A file that the page is made of."""
    file = page.web_files().get(name)
    if file is None:
        raise HTTPException(404)
    return Response(file.content, media_type=file.media_type)


class Application(FastAPI):
    """FastAPI behind the edge, which is outermost: outside of Starlette's own answer to a bug, so that no answer leaves
    without its id and its headers, and none is left out of the metrics.

    From the outside in: the edge; origins, because a browser's preflight brings no key; keys, before a byte of the body
    is read; the body's bounds; the routes, which admit only so many at once.
    """

    def __init__(self, settings: Settings, serving: Serving | None, keys: Keys, audit: AuditLog, **more: Any) -> None:
        super().__init__(**more)
        self._settings = settings
        self._measured = serving.metrics if serving else metrics.Metrics()
        self._audit = audit
        self.state.serving = serving
        self.add_middleware(  # each one that is added goes outside of those before it
            BodyBounds,
            max_body_bytes=settings.max_body_bytes,
            body_deadline_s=settings.body_deadline_s,
            arrivals=serving.uploads if serving else Arrivals(most=settings.max_uploads),
            streams=frozenset({STREAM_PATH}),
        )
        self.add_middleware(KeyGate, keys=keys)
        if settings.cors_origins:
            self.add_middleware(Origins, origins=split(settings.cors_origins))

    def build_middleware_stack(self) -> ASGIApp:
        """Starlette's stack, inside the edge."""
        calls = Calls(self.openapi()["paths"], self._settings)
        return RequestEdge(super().build_middleware_stack(), calls=calls, metrics=self._measured, audit=self._audit)

    def openapi(self) -> dict[str, Any]:
        """The API description, with the key that a server may ask for."""
        if self.openapi_schema is None:
            self.openapi_schema = openapi.with_keys(super().openapi())
        return self.openapi_schema


def create_app(settings: Settings) -> FastAPI:
    """The application, with weights and gallery open; they are let go of when the server shuts down.

    Raises:
        SeisBindError: they cannot be opened; the sentence says why.
    """
    keys, audit = read_keys(settings), AuditLog(settings.audit_log)
    return _assembled(settings, Serving(settings), keys, audit)


def openapi_document() -> dict[str, Any]:
    """The API description; needs neither weights nor a gallery."""
    return _assembled(Settings.model_construct(), None, Keys(), AuditLog(None)).openapi()


def _assembled(settings: Settings, serving: Serving | None, keys: Keys, audit: AuditLog) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if serving is not None:
            await asyncio.to_thread(serving.close)

    app = Application(
        settings,
        serving,
        keys,
        audit,
        title="SeisBind",
        version=version("seisbind"),
        summary="Velocity models and their physics from seismic shot gathers.",
        docs_url=None,  # FastAPI's pages load scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    app.include_router(v1)
    app.include_router(streams)
    app.include_router(outside)
    errors.install(app)
    if serving is not None:
        serving.metrics.describe_build(
            version=app.version,
            weights=serving.embedder.fingerprint,
            weights_name=serving.embedder.weights.description.name,
            gallery=settings.gallery.resolve().name,
        )
    return app
