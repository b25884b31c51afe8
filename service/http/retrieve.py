"""The calls that find velocity models: POST /v1/retrieve and /v1/read by gathers, POST /v1/search by a model or by
descriptors."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence

import numpy as np
from fastapi import APIRouter, Request, Response

from seisbind.index import Filter
from seisbind.model.errors import InvalidQuery
from seisbind.model.scale import UNSCALED, Scale, parse_model_scale, parse_scale
from seisbind.model.survey.preparation import Prepared
from seisbind.service.engine.answers import Retrieval, SearchResult
from seisbind.service.engine.bodies import (
    gallery_body,
    ingest_body,
    retrieval_body,
    search_result_body,
    weights_body,
)
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.query import Query, check_distinct
from seisbind.service.formats.npy import NPZ
from seisbind.service.formats.reader import Ingest, read_gathers, read_velocity
from seisbind.service.formats.starting_model import parse_start, starting_model
from seisbind.service.formats.velocity_model import write
from seisbind.service.http import openapi
from seisbind.service.http.forms import (
    allowed_top_k,
    content_type,
    limits_of,
    parse_fields,
    parse_filter,
    parse_search,
    read_file,
    read_json,
    within_deadline,
)
from seisbind.service.http.parameters import parse_format, parse_geometry, parse_include
from seisbind.service.http.routing import JSON, Admitted, InPieces, serving_of, stamp, written
from seisbind.service.runtime import npz_answer
from seisbind.service.runtime.batcher import Answered
from seisbind.service.runtime.serving import Serving
from seisbind.service.schemas import (
    LARGE_PARTS,
    MODEL_PART,
    PARTS,
    SEARCH_PARTS,
    CoarseVelocityBody,
    ReadFields,
    RetrievalBody,
    RetrieveAnswer,
    RetrieveFields,
    SearchAnswer,
    SearchFields,
    TracesBody,
)
from seisbind.service.transport.access import Need, Policy

FEW = 60  # numbers written on the event loop, in some 0.3 ms; a gather has as many as five matches
PICTURED_SHOTS = 64  # whose traces one answer holds: 3 MB of text
INT16 = 32767

Pack = Callable[[str], bytes]  # of the JSON of an answer

router = APIRouter(prefix="/v1", responses=openapi.PROBLEMS, route_class=Admitted)


@router.post(
    "/retrieve",
    response_model=RetrieveAnswer,
    tags=["search"],
    responses=openapi.arrays(),
    openapi_extra=openapi.within_deadline(openapi.upload(RetrieveFields, openapi.RETRIEVE_EXAMPLES)),
)
@Policy(need=Need.READ)
async def retrieve(request: Request) -> Response:
    """Velocity models that go with shot gathers, and the physics of the ground under them.

    Send one gather `(shot, time, receiver)` or a stack `(gather, shot, time, receiver)` as npy, as an npz that also
    holds its geometry, or the shots of one line as SEG-Y, SU or SEG-2. `ingest` says how the file was understood.
    With `Accept: application/x-npz` the answer is an npz, which has the matched velocity models in it.
    """
    serving, request_id, watch = serving_of(request), request.state.request_id, Stopwatch()
    as_npz = npz_answer.preferred(",".join(request.headers.getlist("accept")))
    serving.batches.check()
    sent = await read_file(request)
    fields = parse_fields(RetrieveFields, sent.fields)
    top_k, filter = allowed_top_k(fields.top_k, serving), parse_filter(fields.filter)
    include, geometry = parse_include(fields.include, PARTS + LARGE_PARTS), parse_geometry(fields)
    scale, distinct = parse_scale(fields.scale, fields.target_depth_m), fields.distinct
    check_distinct(distinct)

    def prepare(engine: Engine) -> tuple[Query, Ingest]:
        with watch("read"):
            limits, frame = limits_of(serving), engine.frame
            upload = read_gathers(sent.content, geometry=geometry, limits=limits, frame=frame, scale=scale)
        if as_npz:
            limit_bytes = serving.settings.max_body_bytes
            models = top_k + npz_answer.READ_PARTS * (MODEL_PART in include)
            npz_answer.check_size(upload.ingest.gathers, models, limit_bytes, frame=engine.frame)
        with watch("prepare"):
            query = Query.prepare(
                upload.gathers, upload.survey, frame=frame, top_k=top_k, filter=filter, notes=upload.notes,
                scale=upload.chosen, distinct=distinct,
            )  # fmt: skip
            return query, upload.ingest

    async def work() -> tuple[Query, Ingest, Answered, Pack]:
        with serving.batches.coming():
            query, ingest = await serving.on_reader(prepare)
        request.state.gathers = len(query)
        answered, pack = await (_as_npz(query, serving, watch, include) if as_npz else _as_json(query, serving))
        return query, ingest, answered, pack

    with watch("total"):
        query, ingest, answered, pack = await within_deadline(request, work())
    stamp(request, answered.gallery)
    timings_ms = watch.timings_ms | answered.timings_ms
    serving.metrics.observe_stages(timings_ms)

    def answer(engine: Engine) -> RetrieveAnswer:
        return RetrieveAnswer(
            request_id=request_id,
            weights=weights_body(engine.embedder.weights),
            gallery=gallery_body(answered.gallery),
            ingest=ingest_body(ingest),
            results=bodies(answered.retrievals, query, include),
            timings_ms=timings_ms,
        )

    small = not as_npz and not set(include) & set(LARGE_PARTS) and len(query) * (5 + top_k) <= FEW
    return await written(answer, serving, media_type=NPZ if as_npz else JSON, pack=pack, small=small)


async def _as_json(query: Query, serving: Serving) -> tuple[Answered, Pack]:
    return await serving.batches.answer(query), str.encode


async def _as_npz(query: Query, serving: Serving, watch: Stopwatch, include: Sequence[str]) -> tuple[Answered, Pack]:
    answered, velocity = await npz_answer.with_velocity(query, serving, watch)
    with_models = MODEL_PART in include
    return answered, lambda json: npz_answer.packed(json, answered.retrievals, velocity, with_models=with_models)


def bodies(retrievals: Sequence[Retrieval], query: Query, include: Sequence[str]) -> list[RetrievalBody]:
    """The answers for the gathers of one request, with the parts in ``include``.

    Traces are those of the first gathers, as many as have `PICTURED_SHOTS` shots between them.
    """
    prepared, own = query.prepared, query.scale.frame(query.prepared.frame)
    found = [retrieval_body(retrieval, include, prepared.frame) for retrieval in retrievals]
    if "velocity" in include:
        for body, retrieval in zip(found, retrievals, strict=True):
            if retrieval.velocity is not None:  # over the ground of a gallery's model, in fewer cells
                cell_m = own.depth_cells * own.cell_m / len(retrieval.velocity)
                body.velocity = CoarseVelocityBody(cell_m=cell_m, m_s=retrieval.velocity.round().astype(int).tolist())
    if "traces" in include:
        for number, body in enumerate(found[: PICTURED_SHOTS // prepared.traces.shape[1]]):
            body.traces = traces(prepared, number, query.scale)
    return found


def traces(prepared: Prepared, number: int, true: Scale = UNSCALED) -> TracesBody:
    """One of the prepared gathers, its positions and times in true units."""
    gather, own = prepared.traces[number], true.frame(prepared.frame)
    scale = float(np.abs(gather).max()) / INT16
    return TracesBody(
        shots=gather.shape[0],
        samples=gather.shape[1],
        receivers=gather.shape[2],
        dt_s=own.dt_s,
        shot_x_m=(prepared.shot_x_m[number] if true == UNSCALED else prepared.shot_x_m[number] * true.s).tolist(),
        receiver_step_m=own.receiver_spacing_m,
        scale=scale,
        int16=b64encode((gather / scale).round().astype("<i2").tobytes()).decode(),
    )


@router.post(
    "/read",
    tags=["search"],
    response_class=Response,
    responses=openapi.models(),
    openapi_extra=openapi.within_deadline(openapi.upload(ReadFields, openapi.READ_EXAMPLES)),
)
@Policy(need=Need.READ)
async def read(request: Request) -> Response:
    """The ground as the encoder reads it from one gather, without the gallery, as a file: the starting model to take.

    Send a gather as in POST /v1/retrieve; `format` is npz (with the 90 % interval where the weights state one), npy,
    segy (of which the unit of depth is the metre) or nc (netCDF, with the interval). With `grid`, `smooth_m`, `water`
    or `extend` it is as an inversion takes it, the interval as bounds. Other fields are those of that call; `top_k`,
    `filter`, `distinct` and `include` change nothing here.
    """
    serving, watch = serving_of(request), Stopwatch()
    serving.batches.check()
    sent = await read_file(request)
    fields = parse_fields(ReadFields, sent.fields)
    file_format, geometry = parse_format(fields.format), parse_geometry(fields)
    start = parse_start(grid=fields.grid, smooth_m=fields.smooth_m, water=fields.water, extend=fields.extend)
    scale = parse_scale(fields.scale, fields.target_depth_m)

    def prepare(engine: Engine) -> Query:
        with watch("read"):
            limits, frame = limits_of(serving), engine.frame
            upload = read_gathers(sent.content, geometry=geometry, limits=limits, frame=frame, scale=scale)
        if upload.ingest.gathers != 1:
            raise InvalidQuery(
                f"A model is read from one gather; the file holds {upload.ingest.gathers}. Send them one by one, or "
                "ask POST /v1/retrieve for the part 'model' of each."
            )
        with watch("prepare"):
            return Query.prepare(
                upload.gathers, upload.survey, frame=frame, top_k=1, notes=upload.notes, scale=upload.chosen
            )

    async def work() -> Answered:
        with serving.batches.coming():
            query = await serving.on_reader(prepare)
        request.state.gathers = 1
        return await serving.batches.answer(query)

    def content(engine: Engine) -> bytes:
        model = answered.retrievals[0].model
        if model is None:
            raise InvalidQuery("The weights that are served read no velocity model from a gather: they have no head.")
        title = f"READ FROM A GATHER BY SEISBIND, WEIGHTS {engine.embedder.fingerprint}"
        with serving.metrics.stage("render"):
            return write(starting_model(model, start), file_format, title=title)

    with watch("total"):
        answered = await within_deadline(request, work())
    serving.metrics.observe_stages(watch.timings_ms | answered.timings_ms)
    return InPieces(await serving.on_file(content), media_type=openapi.MODEL_TYPES[file_format])


@router.post("/search", response_model=SearchAnswer, tags=["search"], openapi_extra=openapi.search())
@Policy(need=Need.READ)
async def search(request: Request) -> Response:
    """Gallery models most like a velocity model (npy), or like descriptors (JSON)."""
    serving, request_id, watch = serving_of(request), request.state.request_id, Stopwatch()
    by = _by_descriptors if content_type(request) == JSON else _by_velocity
    include, scale, find = await by(request, serving, watch)

    def answer(engine: Engine) -> SearchAnswer:
        return SearchAnswer(
            request_id=request_id,
            weights=weights_body(engine.embedder.weights),
            gallery=gallery_body(stamp(request, engine.info())),
            results=[search_result_body(each, include, scale) for each in find(engine)],
            timings_ms={},
        )

    with watch("total"):
        answered = await serving.on_model(answer)
    answered.timings_ms = watch.timings_ms
    serving.metrics.observe_stages(watch.timings_ms)
    return await written(lambda engine: answered, serving)


# parts of the answer, its scale, and the search
Find = tuple[tuple[str, ...], Scale, Callable[[Engine], list[SearchResult]]]


async def _by_descriptors(request: Request, serving: Serving, watch: Stopwatch) -> Find:
    body = await read_json(request)
    asked = await serving.on_parser(lambda engine: parse_search(body))
    top_k, include = allowed_top_k(asked.top_k, serving), parse_include(asked.include, SEARCH_PARTS)
    filter, scale = None if asked.filter is None else Filter.parse(asked.filter), parse_model_scale(asked.scale)

    def find(engine: Engine) -> list[SearchResult]:
        with watch("search"):
            return [
                engine.search_descriptors(
                    asked.descriptors, top_k=top_k, filter=filter, scale=scale, distinct=asked.distinct
                )
            ]

    return include, scale, find


async def _by_velocity(request: Request, serving: Serving, watch: Stopwatch) -> Find:
    sent = await read_file(request)
    fields = parse_fields(SearchFields, sent.fields)
    top_k, include = allowed_top_k(fields.top_k, serving), parse_include(fields.include, SEARCH_PARTS)
    filter, scale = parse_filter(fields.filter), parse_model_scale(fields.scale)

    def find(engine: Engine) -> list[SearchResult]:
        with watch("read"):
            velocity = read_velocity(sent.content, limits=limits_of(serving))
        with watch("search"):
            return engine.search_velocity(velocity, top_k=top_k, filter=filter, scale=scale, distinct=fields.distinct)

    return include, scale, find
