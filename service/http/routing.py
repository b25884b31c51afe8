"""How a route is admitted to the work, and how its answer leaves: written on a thread, sent as its client takes it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from seisbind.index import GalleryInfo, Store
from seisbind.model.errors import NotWritable
from seisbind.service.engine.engine import Engine
from seisbind.service.runtime.request_body import RequestBody
from seisbind.service.runtime.serving import Serving

JSON = "application/json"
PIECE_BYTES = 65_536  # of a large answer

Stamped = TypeVar("Stamped", Store, GalleryInfo)


def serving_of(request: Request) -> Serving:
    """What the application owns."""
    held: Serving = request.app.state.serving
    return held


def stamp(request: Request, gallery: Stamped) -> Stamped:
    """Say in the answer's header which gallery it was made from: `request_log.RequestLog` sends it."""
    request.state.stamp = gallery.stamp
    return gallery


class Admitted(APIRoute):
    """A call that needs a place among those worked on, once its body has come and until its answer is sent.

    Where there is none now, it is refused before its body is read. A body that is on its way holds no place: its client
    may have stopped sending. POST reads its body before it works; the other methods have none, and work at once.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's; of an endpoint that takes the request and returns the response, itself: there is nothing to find
        out about each request."""
        said = get_type_hints(self.endpoint)
        if said == {"request": Request, "return": Response}:
            return self.endpoint
        return super().get_route_handler()

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = serving_of(Request(scope))
        serving.check_places()
        with ExitStack() as place:

            def enter() -> None:
                place.enter_context(serving.admitted())

            if scope["method"] == "POST":
                body: RequestBody = scope["state"]["body"]
                body.on_complete.append(enter)
            else:
                enter()
            await super().handle(scope, receive, send)


class InPieces(Response):
    """An answer that is sent as its client takes it: a large one given away at once would wait in memory, unbounded."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, max(1, len(self.body)), PIECE_BYTES):
            piece, more = self.body[start : start + PIECE_BYTES], start + PIECE_BYTES < len(self.body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


async def written(
    answer: Callable[[Engine], BaseModel],
    serving: Serving,
    *,
    status: int = 200,
    media_type: str = JSON,
    pack: Callable[[str], bytes] = str.encode,
    small: bool = False,
) -> Response:
    """What ``answer`` makes, as JSON, or what ``pack`` makes of that; on a thread unless it is ``small``."""

    def content(engine: Engine) -> bytes:
        with serving.metrics.stage("render"):
            return pack(answer(engine).model_dump_json(exclude_none=False))

    body = serving.here(content) if small else await serving.on_file(content)
    return InPieces(body, status_code=status, media_type=media_type)


def writable(request: Request) -> Serving:
    """What is served, where its gallery may be changed. Raises NotWritable."""
    serving = serving_of(request)
    if not serving.settings.writable:
        raise NotWritable("This server does not change its gallery. Start it with SEISBIND_WRITABLE=true to allow it.")
    return serving
