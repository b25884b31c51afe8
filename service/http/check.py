"""POST /v1/check: the matches of one gather, their mean and the model that is read, against the wave equation."""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray

from seisbind.model.errors import InvalidQuery
from seisbind.model.inversion.beside import Models
from seisbind.model.scale import parse_scale
from seisbind.service.check_schemas import CheckAnswer, CheckFields
from seisbind.service.engine.bodies import gallery_body, ingest_body, weights_body
from seisbind.service.engine.check import (
    Checked,
    candidates,
    check_candidates,
    check_name,
    check_query,
    check_top_k,
    given_model,
    named,
)
from seisbind.service.engine.check_bodies import check_body, check_npz
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.query import Query
from seisbind.service.formats.npy import NPZ
from seisbind.service.formats.reader import Ingest, read_gathers, read_velocity
from seisbind.service.http import openapi
from seisbind.service.http.forms import (
    allowed_top_k,
    limits_of,
    parse_fields,
    parse_filter,
    read_file,
    within_deadline,
)
from seisbind.service.http.parameters import parse_geometry, parse_include
from seisbind.service.http.retrieve import bodies
from seisbind.service.http.routing import JSON, Admitted, InPieces, serving_of, stamp
from seisbind.service.runtime import npz_answer
from seisbind.service.runtime.batcher import Answered
from seisbind.service.runtime.check_picture import check_png
from seisbind.service.schemas import LARGE_PARTS, PARTS
from seisbind.service.transport.access import Need, Policy

TYPES = {"json": JSON, "npz": NPZ, "png": "image/png"}

router = APIRouter(prefix="/v1", responses=openapi.PROBLEMS, route_class=Admitted)


@router.post(
    "/check",
    response_model=CheckAnswer,
    tags=["search"],
    responses=openapi.check_files(),
    openapi_extra=openapi.within_deadline(openapi.check(CheckFields)),
)
@Policy(need=Need.READ)
async def check(request: Request) -> Response:
    """What one gather's matches, their mean, the model that is read and one of your own predict of the record.

    Send a gather as in POST /v1/retrieve; a velocity model as `model` of the form is checked beside them. Each is
    modelled through the gather's own line with the source estimated from the record, and gets measures and a verdict;
    a match that explains the record becomes the first.
    """
    serving, request_id, watch = serving_of(request), request.state.request_id, Stopwatch()
    serving.batches.check()
    sent = await read_file(request, beside="model")
    fields = parse_fields(CheckFields, sent.fields)
    top_k, filter = allowed_top_k(fields.top_k, serving), parse_filter(fields.filter)
    check_top_k(top_k)
    include, geometry = parse_include(fields.include, PARTS + LARGE_PARTS), parse_geometry(fields)
    scale = parse_scale(fields.scale, fields.target_depth_m)
    if fields.format not in TYPES:
        raise InvalidQuery(f"There is no format {fields.format!r} of a check; there are {', '.join(TYPES)}.")

    def prepare(engine: Engine) -> tuple[Query, Ingest, NDArray[np.float32] | None]:
        with watch("read"):
            limits, frame = limits_of(serving), engine.frame
            upload = read_gathers(sent.content, geometry=geometry, limits=limits, frame=frame, scale=scale)
            model = None if sent.beside is None else read_velocity(sent.beside, limits=limits)
        with watch("prepare"):
            query = Query.prepare(
                upload.gathers, upload.survey, frame=frame, top_k=top_k, filter=filter, notes=upload.notes,
                scale=upload.chosen, distinct=fields.distinct, keep_recorded=True,
            )  # fmt: skip
            check_query(query)
            return query, upload.ingest, None if model is None else given_model(model, query)

    async def work() -> tuple[Query, Ingest, Answered, Checked]:
        with serving.batches.coming():
            query, ingest, given = await serving.on_reader(prepare)
        request.state.gathers = 1
        answered, velocity = await npz_answer.with_velocity(query, serving, watch)
        (retrieval,) = answered.retrievals
        found = candidates(query, retrieval, velocity[0][: len(retrieval.matches)] / query.scale.k, given)
        check_name(found, fields.candidate)

        def run(engine: Engine, models: Models) -> Checked:
            with watch("check"):
                return check_candidates(query, retrieval, found, models=models)

        return query, ingest, answered, await serving.on_check(run)

    with watch("total"):
        query, ingest, answered, checked = await within_deadline(request, work())
    stamp(request, answered.gallery)
    timings_ms = watch.timings_ms | answered.timings_ms
    serving.metrics.observe_stages(timings_ms)

    def picture(engine: Engine) -> bytes:
        return check_png(checked, named(checked, fields.candidate), title=ingest.format)

    def content(engine: Engine) -> bytes:
        (result,) = bodies([checked.retrieval], query, include)
        answer = CheckAnswer(
            request_id=request_id,
            weights=weights_body(engine.embedder.weights),
            gallery=gallery_body(answered.gallery),
            ingest=ingest_body(ingest),
            result=result,
            check=check_body(checked),
            timings_ms=timings_ms,
        ).model_dump_json()
        return check_npz(checked, answer) if fields.format == "npz" else answer.encode()

    body = await (serving.on_picture(picture) if fields.format == "png" else serving.on_file(content))
    return InPieces(body, media_type=TYPES[fields.format])
