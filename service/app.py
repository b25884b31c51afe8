"""The HTTP application: `create_app` opens weights and gallery and returns what an ASGI server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

import seisbind.service.errors as errors
from seisbind.service import openapi, pages
from seisbind.service.edge import RequestEdge
from seisbind.service.routes import router as v1
from seisbind.service.routes import serving_of
from seisbind.service.schemas import Health
from seisbind.service.serving import Serving
from seisbind.service.settings import Settings

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


@outside.get("/", include_in_schema=False)
async def landing(request: Request) -> HTMLResponse:
    """A page that says what this is."""
    app: FastAPI = request.app
    info = await serving_of(request).on_file(lambda engine: engine.info())
    return HTMLResponse(pages.landing(info, app.openapi()))


def create_app(settings: Settings) -> FastAPI:
    """The application, with weights and gallery open; they are let go of when the server shuts down.

    Raises:
        SeisBindError: they cannot be opened; the sentence says why.
    """
    return _assembled(settings, Serving(settings))


def openapi_document() -> dict[str, Any]:
    """The API description; needs neither weights nor a gallery."""
    return _assembled(Settings.model_construct(), None).openapi()


def _assembled(settings: Settings, serving: Serving | None) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if serving is not None:
            await asyncio.to_thread(serving.close)

    app = FastAPI(
        title="SeisBind",
        version=version("seisbind"),
        summary="Velocity models and their physics from seismic shot gathers.",
        docs_url=None,  # FastAPI's pages load scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.serving = serving
    app.include_router(v1)
    app.include_router(outside)
    errors.install(app)
    app.add_middleware(RequestEdge, max_body_bytes=settings.max_body_bytes, body_deadline_s=settings.body_deadline_s)
    return app
