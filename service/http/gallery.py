"""The calls on the gallery and its models.

Those that read a body, search, draw or change the gallery are `working`, which admits only so many at once; the others
are `quick`.
"""

from __future__ import annotations

import asyncio
import io
from contextlib import nullcontext
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray

from seisbind.model.errors import ReloadIncomplete
from seisbind.model.ground.descriptors import DESCRIPTORS, Untrained
from seisbind.model.scale import Scale, parse_model_scale
from seisbind.service.engine.bodies import frame_body, gallery_body, model_body, same_map_sentence, weights_body
from seisbind.service.engine.engine import Engine
from seisbind.service.formats.reader import read_velocity
from seisbind.service.formats.segy import write_velocity
from seisbind.service.http import openapi
from seisbind.service.http.forms import limits_of, parse_fields, read_file
from seisbind.service.http.parameters import split
from seisbind.service.http.routing import Admitted, serving_of, stamp, writable, written
from seisbind.service.runtime.images import velocity_png
from seisbind.service.schemas import (
    AddAnswer,
    AddFields,
    DescriptorBody,
    DistributionAnswer,
    GalleryAnswer,
    HistogramBody,
    ModelBody,
    ReloadAnswer,
    WarningBody,
    WorkerBody,
)
from seisbind.service.transport.access import Policy
from seisbind.service.workers.board import FOLLOW_S, Board

NPY = "application/x-npy"
SEGY = "application/vnd.seg-y"
# A velocity model changes only if it is removed and another is added under its id.
CACHED = Policy(cache_control=b"private, max-age=300")

AtScale = Annotated[
    str | None, Query(max_length=60, description="Of the line that it is compared with: s, or s,k; true units then.")
]
Float32 = NDArray[np.float32]

quick = APIRouter(prefix="/v1", responses=openapi.PROBLEMS)
working = APIRouter(prefix="/v1", responses=openapi.PROBLEMS, route_class=Admitted)


@quick.get("/models/{model_id}", tags=["gallery"])
async def model(request: Request, model_id: str, scale: AtScale = None) -> ModelBody:
    """One velocity model of the gallery: where it comes from and its physics."""
    true = parse_model_scale(scale)

    def look(engine: Engine) -> ModelBody:
        stamp(request, engine.gallery)
        return model_body(engine.gallery.record(model_id), engine.frame.cell_m, true)

    return await serving_of(request).on_file(look)


@quick.get("/models/{model_id}/velocity.npy", tags=["gallery"], response_class=Response, responses=openapi.binary(NPY))
@CACHED
async def model_velocity(request: Request, model_id: str, scale: AtScale = None) -> Response:
    """The velocity model as npy: `(depth, x)` float32, m/s; `cell_m` of GET /v1/gallery is the size of a cell."""
    true = parse_model_scale(scale)

    def read(engine: Engine) -> bytes:
        stamp(request, engine.gallery)
        buffer = io.BytesIO()
        np.save(buffer, _true(engine.gallery.velocity(model_id), true), allow_pickle=False)
        return buffer.getvalue()

    return Response(await serving_of(request).on_file(read), media_type=NPY)


@quick.get(
    "/models/{model_id}/velocity.segy", tags=["gallery"], response_class=Response, responses=openapi.binary(SEGY)
)
@CACHED
async def model_segy(request: Request, model_id: str, scale: AtScale = None) -> Response:
    """The velocity model as SEG-Y revision 1 in the depth domain: a trace a column of cells, m/s, IEEE floats."""
    true = parse_model_scale(scale)

    def read(engine: Engine) -> bytes:
        stamp(request, engine.gallery)
        record = engine.gallery.record(model_id)
        title = f"{model_id}  {record.family or ''}".strip()
        velocity = _true(engine.gallery.velocity(model_id), true)
        return write_velocity(velocity, cell_m=true.frame(engine.frame).cell_m, title=title)

    return Response(await serving_of(request).on_file(read), media_type=SEGY)


@working.get(
    "/models/{model_id}/image.png", tags=["gallery"], response_class=Response, responses=openapi.binary("image/png")
)
@CACHED
async def model_image(request: Request, model_id: str, scale: AtScale = None) -> Response:
    """The velocity model as a picture, axes in metres, colours in m/s."""
    serving, true = serving_of(request), parse_model_scale(scale)

    def look(engine: Engine) -> tuple[tuple[str, str], bytes | None]:
        stamp(request, engine.gallery)
        record = engine.gallery.record(model_id)
        key = (f"{record.checksum} {true}", f"{record.model_id}  {record.family or ''}")
        return key, serving.pictures.get(key)

    key, picture = await serving.on_file(look)

    def draw(engine: Engine) -> bytes:
        drawn = serving.pictures.get(key)  # by the request before this one
        if drawn is None:
            with serving.metrics.stage("render"):
                velocity = _true(engine.gallery.velocity(model_id), true)
                drawn = velocity_png(velocity, title=key[1], cell_m=true.frame(engine.frame).cell_m)
            serving.pictures.put(key, drawn)
        return drawn

    return Response(picture or await serving.on_picture(draw), media_type="image/png")


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
    serving = writable(request)
    sent = await read_file(request)
    fields = parse_fields(AddFields, sent.fields)
    ids, tags, limits = split(fields.model_id or ""), split(fields.tags), limits_of(serving)
    scale = parse_model_scale(fields.scale)

    def add(engine: Engine) -> tuple[AddAnswer, list[str]]:
        velocity = read_velocity(sent.content, limits=limits)
        count = 1 if velocity.ndim == 2 else len(velocity)
        added = engine.add_models(
            velocity,
            families=[fields.family] * count,
            tags=[tags] * count,
            model_ids=ids or None,
            source=fields.source,
            scale=scale,
            skip_existing=fields.skip_existing,
        )
        answer = AddAnswer(model_ids=added, gallery=gallery_body(stamp(request, engine.info())))
        if untrained := Untrained.of(velocity, scale.frame(engine.frame)):
            answer.warnings = [WarningBody(code="velocity_untrained", detail=untrained.sentence)]
        if added.same_map:
            answer.warnings = [*answer.warnings, WarningBody(code="duplicate_map", detail=same_map_sentence(added))]
        return answer, added.written

    answered, written_ids = await serving.on_model(add)
    request.state.changed = {"added": written_ids}
    return await written(lambda engine: answered, serving, status=201)


@working.delete("/models/{model_id}", status_code=204, tags=["gallery"])
async def remove_model(request: Request, model_id: str) -> Response:
    """Remove a velocity model from the gallery."""
    # no work for the model thread: it needs no encoder, and now and then it copies the whole gallery
    await writable(request).on_file(lambda engine: engine.remove([model_id]))
    request.state.changed = {"removed": [model_id]}
    return Response(status_code=204)


@quick.get("/gallery", tags=["gallery"])
async def gallery(request: Request) -> GalleryAnswer:
    """What is being served: gallery, weights, the descriptors with their units and ranges."""
    serving = serving_of(request)

    def look(engine: Engine) -> GalleryAnswer:
        info, nothing = stamp(request, engine.info()), (None, None)
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
            search_device=info.search_device,
            precision_m_s=info.precision_m_s,
            notes=list(info.notes),
        )

    return await serving.on_file(look)


@working.get("/gallery/distribution", tags=["gallery"])
async def distribution(request: Request, scale: AtScale = None) -> DistributionAnswer:
    """How the descriptors of the gallery's models are distributed: a histogram each."""
    true = parse_model_scale(scale)

    def look(engine: Engine) -> DistributionAnswer:
        stamp(request, engine.gallery)
        found = engine.distribution()
        return DistributionAnswer(
            generation=found.generation,
            descriptors=[
                HistogramBody(
                    name=d.name,
                    unit=d.unit,
                    definition=d.definition,
                    low=h.low * true.of(d.unit),
                    high=h.high * true.of(d.unit),
                    counts=list(h.counts),
                )
                for d in DESCRIPTORS
                if (h := found.histograms.get(d.name)) is not None
            ],
        )

    return await serving_of(request).on_file(look)


@quick.post("/gallery/reload", tags=["gallery"])
async def reload(request: Request) -> ReloadAnswer:
    """Open the gallery's folder again and serve what is there now; running requests finish with the old one."""
    board: Board | None = request.app.state.board
    async with nullcontext() if board is None else board.in_turn():
        before, after = await serving_of(request).reload()
    stamp(request, after)
    request.state.changed = {"generation": after.generation}
    workers = [] if board is None else await _followers(board, after.stamp)
    return ReloadAnswer(before=gallery_body(before), after=gallery_body(after), workers=workers)


async def _followers(board: Board, generation: str) -> list[WorkerBody]:
    """The workers once all serve the gallery that is there now, of which this one serves ``generation``; they load it
    one after another.

    Raises:
        ReloadIncomplete: one could not, or has not yet.
    """
    outcomes = await board.all_followed(await asyncio.to_thread(board.ask, generation))
    errors = [
        f"worker {index}: it has not loaded it in {FOLLOW_S:g} s"
        if outcome is None
        else f"worker {index}: {outcome.code}: {outcome.why}"
        for index, outcome in enumerate(outcomes)
        if outcome is None or outcome.code is not None
    ]
    if errors:
        raise ReloadIncomplete(
            f"{len(errors)} of {board.count} workers go on with the gallery before, the others serve {generation}: "
            f"{'; '.join(errors)}. Mend that and reload again; /readyz says what each serves.",
            tuple(errors),
        )
    return [
        WorkerBody(worker=one.worker, state="ready" if one.generation else "starting", generation=one.generation)
        for one in outcomes
        if one is not None
    ]


def _true(velocity: Float32, scale: Scale) -> Float32:
    """A velocity model of the gallery, in true m/s."""
    return velocity if scale.k == 1 else velocity * np.float32(scale.k)
