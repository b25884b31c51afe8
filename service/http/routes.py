"""The calls under /v1: retrieve, search, models, gallery. Each parses fields on the loop and works on a thread; answers
with few numbers are written on the loop.

Those that read a body, search, draw or change the gallery are `working`, which admits only so many at once; the others
are `quick`.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from numpy.typing import NDArray
from pydantic import BaseModel
from starlette.types import Message, Receive, Scope, Send

from seisbind.index import Filter
from seisbind.index.gallery import MAX_K
from seisbind.model.errors import InvalidQuery, NotWritable, SeisBindError, UploadTooLarge
from seisbind.model.ground.descriptors import DESCRIPTORS, Untrained
from seisbind.service.engine.answers import SearchResult
from seisbind.service.engine.bodies import (
    frame_body,
    gallery_body,
    ingest_body,
    model_body,
    search_result_body,
    weights_body,
)
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.query import Query
from seisbind.service.formats.npy import NPZ, Limits
from seisbind.service.formats.reader import Ingest, read_gathers, read_velocity
from seisbind.service.formats.segy import write_velocity
from seisbind.service.http import npz_answer, openapi
from seisbind.service.http.forms import (
    JSON,
    content_type,
    parse_fields,
    parse_filter,
    parse_search,
    read_file,
    read_json_body,
    unless_left,
)
from seisbind.service.http.parameters import parse_geometry, parse_include, split
from seisbind.service.http.views import bodies
from seisbind.service.runtime.batcher import Answered
from seisbind.service.runtime.images import velocity_png
from seisbind.service.runtime.serving import Serving
from seisbind.service.schemas import (
    LARGE_PARTS,
    PARTS,
    SEARCH_PARTS,
    AddAnswer,
    AddFields,
    DescriptorBody,
    DistributionAnswer,
    GalleryAnswer,
    HistogramBody,
    ModelBody,
    ReloadAnswer,
    RetrieveAnswer,
    RetrieveFields,
    SearchAnswer,
    SearchFields,
    WarningBody,
)
from seisbind.service.transport.auth import refuse
from seisbind.service.transport.problems import refused

NPY = "application/x-npy"
SEGY = "application/vnd.seg-y"
PIECE_BYTES = 65_536  # of a large answer
FEW = 60  # written on the event loop, in some 0.3 ms; a gather has as many numbers as five matches


def serving_of(request: Request) -> Serving:
    """What the application owns."""
    held: Serving = request.app.state.serving
    return held


class InPieces(Response):
    """An answer that is sent as its client takes it: a large one given away at once would wait in memory, unbounded."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        for start in range(0, max(1, len(self.body)), PIECE_BYTES):
            piece, more = self.body[start : start + PIECE_BYTES], start + PIECE_BYTES < len(self.body)
            await send({"type": "http.response.body", "body": piece, "more_body": more})


class Admitted(APIRoute):
    """A call that needs a place among those worked on, once its body has come and until its answer is sent.

    Where there is none now, it is refused before its body is read. A body that is on its way holds no place: its client
    may have stopped sending. POST reads its body before it works; the other methods have none, and work at once.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        serving = serving_of(Request(scope))
        serving.check_places()
        with ExitStack() as place:
            waiting = scope["method"] == "POST"
            if not waiting:
                place.enter_context(serving.admitted())

            async def receive_and_enter() -> Message:
                nonlocal waiting
                message = await receive()
                if waiting and not message.get("more_body", False):
                    waiting = False
                    place.enter_context(serving.admitted())
                return message

            await super().handle(scope, receive_and_enter, send)


class Searching(Admitted):
    """A call whose body may be JSON, which has a smaller limit than a file: it is read whole before it is believed."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if content_type(request) != JSON:
            await super().handle(scope, receive, send)
            return
        serving_of(request).check_places()

        async def receive_or_end() -> Message:
            try:
                return await receive()
            except SeisBindError:  # too large or too slow, of a body that has been refused already
                return {"type": "http.disconnect"}

        try:
            body = await read_json_body(request, receive)
        except UploadTooLarge as error:
            await refuse(refused(scope, error), scope, receive_or_end, send)
            return
        read = False

        async def receive_read() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await super().handle(scope, receive_read, send)


router = APIRouter(prefix="/v1", responses=openapi.PROBLEMS)
quick = APIRouter()
working = APIRouter(route_class=Admitted)


@working.post(
    "/retrieve",
    response_model=RetrieveAnswer,
    tags=["search"],
    responses=openapi.arrays(),
    openapi_extra=openapi.upload(RetrieveFields, openapi.RETRIEVE_EXAMPLES),
)
async def retrieve(request: Request) -> Response:
    """Velocity models that go with shot gathers, and the physics of the ground under them.

    Send one gather `(shot, time, receiver)` or a stack `(gather, shot, time, receiver)` as npy, as an npz that also
    holds its geometry, or the shots of one line as SEG-Y or SU. `ingest` says how the file was understood.
    With `Accept: application/x-npz` the answer is an npz, which has the matched velocity models in it.
    """
    serving, request_id = serving_of(request), _request_id(request)
    as_arrays = npz_answer.preferred(",".join(request.headers.getlist("accept")))
    serving.batches.check()
    sent = await read_file(request)
    fields = parse_fields(RetrieveFields, sent.fields)
    top_k, wanted, include = (
        allowed_top_k(fields.top_k, serving),
        parse_filter(fields.filter),
        parse_include(fields.include, PARTS + LARGE_PARTS),
    )
    geometry, limits, watch = parse_geometry(fields), _limits(serving), Stopwatch()

    def read(engine: Engine) -> tuple[Query, Ingest]:
        with watch("read"):
            upload = read_gathers(sent.content, geometry=geometry, limits=limits, frame=engine.frame)
        if as_arrays:
            limit_bytes = serving.settings.max_body_bytes
            npz_answer.check_size(upload.ingest.gathers, top_k, limit_bytes, frame=engine.frame)
        with watch("prepare"):
            query = Query.prepare(
                upload.gathers, upload.survey, frame=engine.frame, top_k=top_k, filter=wanted, notes=upload.notes
            )
            return query, upload.ingest

    async def answer() -> tuple[Answered, NDArray[np.float32] | None, Query, Ingest]:
        with serving.batches.coming():
            query, ingest = await serving.on_reader(read)
        request.state.gathers = len(query)
        if as_arrays:
            return *await npz_answer.with_velocity(query, serving, watch), query, ingest
        return await serving.batches.answer(query), None, query, ingest

    with watch("total"):
        answered, velocity, query, ingest = await unless_left(request, answer())
    timings_ms = watch.timings_ms | answered.timings_ms
    serving.metrics.observe_stages(timings_ms)

    def answer_body(engine: Engine) -> RetrieveAnswer:
        return RetrieveAnswer(
            request_id=request_id,
            weights=weights_body(engine.embedder.weights),
            gallery=gallery_body(answered.gallery),
            ingest=ingest_body(ingest),
            results=bodies(answered.retrievals, query.prepared, include),
            timings_ms=timings_ms,
        )

    if velocity is None:
        small = not set(include) & set(LARGE_PARTS) and len(query) * (5 + top_k) <= FEW
        return await _written(answer_body, serving, small=small)
    return await _written(
        answer_body,
        serving,
        media_type=NPZ,
        write=lambda json: npz_answer.packed(json, answered.retrievals, velocity),
    )


async def search(request: Request) -> Response:
    """Gallery models most like a velocity model (npy), or like descriptors (JSON)."""
    serving, request_id, watch = serving_of(request), _request_id(request), Stopwatch()
    if content_type(request) == JSON:
        body = await request.body()
        query = await serving.on_parser(lambda engine: parse_search(body))
        top_k, include = allowed_top_k(query.top_k, serving), parse_include(query.include, SEARCH_PARTS)
        wanted = None if query.filter is None else Filter.parse(query.filter)

        def find(engine: Engine) -> list[SearchResult]:
            with watch("search"):
                return [engine.search_descriptors(query.descriptors, top_k=top_k, filter=wanted)]
    else:
        sent = await read_file(request)
        fields = parse_fields(SearchFields, sent.fields)
        top_k, include = allowed_top_k(fields.top_k, serving), parse_include(fields.include, SEARCH_PARTS)
        wanted, limits = parse_filter(fields.filter), _limits(serving)

        def find(engine: Engine) -> list[SearchResult]:
            with watch("read"):
                velocity = read_velocity(sent.content, limits=limits)
            with watch("search"):
                return engine.search_velocity(velocity, top_k=top_k, filter=wanted)

    def answer(engine: Engine) -> SearchAnswer:
        return SearchAnswer(
            request_id=request_id,
            weights=weights_body(engine.embedder.weights),
            gallery=gallery_body(engine.info()),
            results=[search_result_body(each, include) for each in find(engine)],
            timings_ms={},
        )

    with watch("total"):
        answered = await serving.on_model(answer)
    answered.timings_ms = watch.timings_ms
    serving.metrics.observe_stages(watch.timings_ms)
    return await _written(lambda engine: answered, serving)


working.add_api_route(
    "/search",
    search,
    methods=["POST"],
    route_class_override=Searching,
    response_model=SearchAnswer,
    tags=["search"],
    openapi_extra=openapi.search(),
)


@quick.get("/models/{model_id}", tags=["gallery"])
async def model(request: Request, model_id: str) -> ModelBody:
    """One velocity model of the gallery: where it comes from and its physics."""

    def look(engine: Engine) -> ModelBody:
        return model_body(engine.gallery.record(model_id), engine.frame.cell_m)

    return await serving_of(request).on_file(look)


@quick.get("/models/{model_id}/velocity.npy", tags=["gallery"], response_class=Response, responses=openapi.binary(NPY))
async def model_velocity(request: Request, model_id: str) -> Response:
    """The velocity model as npy: `(depth, x)` float32, m/s; `cell_m` of GET /v1/gallery is the size of a cell."""

    def read(engine: Engine) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, engine.gallery.velocity(model_id), allow_pickle=False)
        return buffer.getvalue()

    return Response(await serving_of(request).on_file(read), media_type=NPY)


@quick.get(
    "/models/{model_id}/velocity.segy", tags=["gallery"], response_class=Response, responses=openapi.binary(SEGY)
)
async def model_segy(request: Request, model_id: str) -> Response:
    """The velocity model as SEG-Y revision 1 in the depth domain: a trace a column of cells, m/s, IEEE floats."""

    def read(engine: Engine) -> bytes:
        record = engine.gallery.record(model_id)
        title = f"{model_id}  {record.family or ''}".strip()
        return write_velocity(engine.gallery.velocity(model_id), cell_m=engine.frame.cell_m, title=title)

    return Response(await serving_of(request).on_file(read), media_type=SEGY)


@working.get(
    "/models/{model_id}/image.png", tags=["gallery"], response_class=Response, responses=openapi.binary("image/png")
)
async def model_image(request: Request, model_id: str) -> Response:
    """The velocity model as a picture, axes in metres, colours in m/s."""
    serving = serving_of(request)

    def look(engine: Engine) -> tuple[tuple[str, str], bytes | None]:
        record = engine.gallery.record(model_id)
        key = (record.checksum, f"{record.model_id}  {record.family or ''}")
        return key, serving.pictures.get(key)

    key, picture = await serving.on_file(look)

    def draw(engine: Engine) -> bytes:
        drawn = serving.pictures.get(key)  # by the request before this one
        if drawn is None:
            with serving.metrics.stage("render"):
                drawn = velocity_png(engine.gallery.velocity(model_id), title=key[1], cell_m=engine.frame.cell_m)
            serving.pictures.put(key, drawn)
        return drawn

    return Response(picture or await serving.picture(draw), media_type="image/png")


@working.post(
    "/models",
    response_model=AddAnswer,
    status_code=201,
    tags=["gallery"],
    openapi_extra=openapi.upload(AddFields, openapi.ADD_EXAMPLES),
)
async def add_models(request: Request) -> Response:
    """Add velocity models `(depth, x)` or `(model, depth, x)`, m/s; they are described and embedded here. All or none.

    Their cells are those of `frame` in GET /v1/gallery: 70 x 70 of OpenFWI's.
    """
    serving = _writable(request)
    sent = await read_file(request)
    fields = parse_fields(AddFields, sent.fields)
    ids, tags, limits = split(fields.model_id or ""), split(fields.tags), _limits(serving)

    def add(engine: Engine) -> AddAnswer:
        velocity = read_velocity(sent.content, limits=limits)
        count = 1 if velocity.ndim == 2 else len(velocity)
        added = engine.add_models(
            velocity,
            families=[fields.family] * count,
            tags=[tags] * count,
            model_ids=ids or None,
            source=fields.source,
        )
        answer = AddAnswer(model_ids=added, gallery=gallery_body(engine.info()))
        if untrained := Untrained.of(velocity, engine.frame):
            answer.warnings = [WarningBody(code="velocity_untrained", detail=untrained.sentence)]
        return answer

    answered = await serving.on_model(add)
    request.state.changed = {"added": answered.model_ids}
    return await _written(lambda engine: answered, serving, status=201)


@working.delete("/models/{model_id}", status_code=204, tags=["gallery"])
async def remove_model(request: Request, model_id: str) -> Response:
    """Remove a velocity model from the gallery."""
    await _writable(request).on_model(lambda engine: engine.remove([model_id]))
    request.state.changed = {"removed": [model_id]}
    return Response(status_code=204)


@quick.get("/gallery", tags=["gallery"])
async def gallery(request: Request) -> GalleryAnswer:
    """What is being served: gallery, weights, the descriptors with their units and ranges."""
    serving = serving_of(request)

    def look(engine: Engine) -> GalleryAnswer:
        info = engine.info()
        nothing = (None, None)
        return GalleryAnswer(
            gallery=gallery_body(info),
            weights=weights_body(engine.embedder.weights),
            writable=serving.settings.writable,
            calibrated=engine.embedder.weights.description.calibration is not None,
            frame=frame_body(engine.frame),
            families=info.families,
            descriptors=[
                DescriptorBody(
                    name=d.name,
                    unit=d.unit,
                    definition=d.definition,
                    low=info.descriptor_ranges.get(d.name, nothing)[0],
                    high=info.descriptor_ranges.get(d.name, nothing)[1],
                )
                for d in DESCRIPTORS
            ],
            created_at=info.created_at,
            bytes=info.bytes,
            notes=list(info.notes),
        )

    return await serving.on_file(look)


@working.get("/gallery/distribution", tags=["gallery"])
async def distribution(request: Request) -> DistributionAnswer:
    """How the descriptors of the gallery's models are distributed: a histogram each."""

    def look(engine: Engine) -> DistributionAnswer:
        found = engine.distribution()
        return DistributionAnswer(
            generation=found.generation,
            descriptors=[
                HistogramBody(
                    name=d.name, unit=d.unit, definition=d.definition, low=h.low, high=h.high, counts=list(h.counts)
                )
                for d in DESCRIPTORS
                if (h := found.histograms.get(d.name)) is not None
            ],
        )

    return await serving_of(request).on_file(look)


@quick.post("/gallery/reload", tags=["gallery"])
async def reload(request: Request) -> ReloadAnswer:
    """Open the gallery's folder again and serve what is there now; running requests finish with the old one."""
    before, after = await serving_of(request).reload()
    request.state.changed = {"generation": after.generation}
    return ReloadAnswer(before=gallery_body(before), after=gallery_body(after))


router.include_router(working)
router.include_router(quick)


def _writable(request: Request) -> Serving:
    serving = serving_of(request)
    if not serving.settings.writable:
        raise NotWritable("This server does not change its gallery. Start it with SEISBIND_WRITABLE=true to allow it.")
    return serving


def allowed_top_k(top_k: int, serving: Serving) -> int:
    """``top_k``, if this server gives so many. Raises InvalidQuery."""
    most = serving.settings.max_top_k
    if top_k > most:
        raise InvalidQuery(
            f"top_k is {top_k}; this server gives at most {most} matches (SEISBIND_MAX_TOP_K; a gallery without a "
            f"server gives {MAX_K})."
        )
    return top_k


def _limits(serving: Serving) -> Limits:
    return Limits(unpacked_bytes=serving.settings.max_body_bytes, items=serving.settings.max_gathers)


def _request_id(request: Request) -> str:
    request_id: str = request.scope["state"]["request_id"]
    return request_id


async def _written(
    answer: Callable[[Engine], BaseModel],
    serving: Serving,
    *,
    status: int = 200,
    media_type: str = JSON,
    write: Callable[[str], bytes] = str.encode,
    small: bool = False,
) -> Response:
    """What ``answer`` makes, as JSON, or what ``write`` makes of that; on a thread unless ``small``."""

    def content(engine: Engine) -> bytes:
        with serving.metrics.stage("render"):
            return write(answer(engine).model_dump_json(exclude_none=False))

    return InPieces(
        serving.here(content) if small else await serving.on_file(content),
        status_code=status,
        media_type=media_type,
    )
