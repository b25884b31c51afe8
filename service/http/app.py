"""The HTTP application: `create_app` opens weights and gallery and returns what an ASGI server runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp

from seisbind.model.errors import NotReady
from seisbind.service.http import check, gallery, jobs, openapi, page, retrieve, stream
from seisbind.service.http.parameters import split
from seisbind.service.http.routing import serving_of, stamp
from seisbind.service.runtime import metrics
from seisbind.service.runtime.serving import Serving
from seisbind.service.runtime.watch import GalleryWatch
from seisbind.service.schemas import Health, Ready, WorkerBody
from seisbind.service.settings import Settings
from seisbind.service.transport import problems
from seisbind.service.transport.access import Calls, Need, Policy, policies
from seisbind.service.transport.audit import AuditLog
from seisbind.service.transport.guard import Guard, Origins
from seisbind.service.transport.keys import read_keys
from seisbind.service.transport.request_log import RequestLog
from seisbind.service.workers.board import Board, Standing, State

state = APIRouter(tags=["state"], responses=openapi.PROBLEMS)


@state.get("/healthz", openapi_extra=openapi.NO_KEY)
@Policy(need=Need.NOTHING)
async def healthz() -> Health:
    """Live: the event loop answers."""
    return Health(status="live")


@state.get("/readyz", openapi_extra=openapi.NO_KEY)
@Policy(need=Need.NOTHING)
async def readyz(request: Request) -> Ready:
    """Ready: a canary gather was encoded and searched on the real device in the last seconds, by every worker that
    takes connections."""
    serving, board = serving_of(request), request.app.state.board
    await serving.ready()
    generation = serving.here(lambda engine: stamp(request, engine.gallery).stamp)
    workers = [] if board is None else await asyncio.to_thread(_standings, board, generation)
    return Ready(status="ready", generation=generation, workers=workers)


def _standings(board: Board, generation: str) -> list[WorkerBody]:
    """The workers, of which this one is ready and serves ``generation``. One that does not run takes no connections, so
    it keeps no request waiting.

    Raises:
        NotReady: one that takes connections is not ready for them.
    """
    standings = board.standings()
    standings[board.index] = Standing(board.index, State.READY, generation)
    if bad := [one for one in standings if one.state is State.NOT_READY]:
        said = " ".join(f"Worker {one.worker}: {one.why}" for one in bad)
        raise NotReady(f"{len(bad)} of {board.count} workers take connections and are not ready. {said}")
    return [WorkerBody(worker=one.worker, state=one.state.value, generation=one.generation) for one in standings]


@state.get("/metrics", response_class=PlainTextResponse)
@Policy(setting="metrics_access")
async def read_metrics(request: Request) -> Response:
    """What the server measures of itself, as the text that Prometheus reads; of several workers, what each does."""
    own, board = serving_of(request).metrics, request.app.state.board
    text = own.text() if board is None else await asyncio.to_thread(metrics.text_of, board.merged(own))
    return Response(text, media_type=metrics.TEXT)


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

    def __init__(self, settings: Settings, board: Board | None) -> None:
        keys, self._audit = read_keys(settings), AuditLog(settings.audit_log)
        self._settings, self._serving = settings, Serving(settings, sharing=1 if board is None else board.count)
        super().__init__(lifespan=_lifespan)
        self.state.serving, self.state.board = self._serving, board
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
    serving: Serving = app.state.serving
    board: Board | None = app.state.board
    in_turn = nullcontext if board is None else board.in_turn
    beside = [asyncio.create_task(GalleryWatch(serving, serving.settings.watch_s, in_turn).run())]
    if board is not None:

        async def reload() -> str:
            return (await serving.reload())[1].stamp

        async def ready() -> str:
            await serving.ready()
            return serving.here(lambda engine: engine.gallery.stamp)

        beside.append(
            asyncio.create_task(board.attend(serving.metrics, reload=reload, ready=ready, stopping=serving.stopping))
        )
    yield
    for task in beside:
        task.cancel()
    await asyncio.gather(*beside, return_exceptions=True)
    await asyncio.to_thread(app.state.serving.close)


def create_app(settings: Settings, *, board: Board | None = None) -> FastAPI:
    """The application, with weights and gallery open; they are let go of when the server shuts down.

    Args:
        board: where it meets the other workers of a server that has several.

    Raises:
        SeisBindError: they cannot be opened; the sentence says why.
    """
    return ServedApplication(settings, board)


def openapi_document() -> dict[str, Any]:
    """The API description; needs neither weights nor a gallery."""
    return Application().openapi()
