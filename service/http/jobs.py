"""The calls on jobs: work that takes minutes, which is asked for, followed, cancelled and fetched."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from seisbind.model.errors import InvalidConfig, InvalidQuery, JobNotDone, Overloaded, SeisBindError, WeightsMismatch
from seisbind.model.inversion.beside import Models
from seisbind.model.inversion.check import Check
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refinement import check_memory
from seisbind.model.scale import parse_scale
from seisbind.service.engine.bodies import gallery_body
from seisbind.service.engine.check_bodies import measures_body, verdict_body
from seisbind.service.engine.engine import Engine, Stopwatch
from seisbind.service.engine.keep import Kept, check_refined, keep_refined
from seisbind.service.engine.query import Query as GatherQuery
from seisbind.service.engine.refine import MEAN_OF, Starts, choose_starts, given_start, in_true_units
from seisbind.service.formats.npy import npz
from seisbind.service.formats.reader import read_gathers, read_velocity
from seisbind.service.formats.velocity_model import VelocityModel, arrays_of, write
from seisbind.service.http import openapi
from seisbind.service.http.forms import Sent, limits_of, parse_fields, parse_filter, read_file, unless_left
from seisbind.service.http.parameters import parse_format, parse_geometry
from seisbind.service.http.routing import Admitted, InPieces, serving_of, writable
from seisbind.service.job_schemas import (
    ITERATIONS,
    MAX_LISTED,
    JobBody,
    JobErrorBody,
    JobEvent,
    JobFields,
    JobLinks,
    JobsAnswer,
    KeptAnswer,
    moment,
)
from seisbind.service.jobs.job import Event, Float32, Job, JobState, RefineInput, RefineRequest
from seisbind.service.jobs.store import INPUT, RESULT, VELOCITY, Repeat
from seisbind.service.runtime import npz_answer
from seisbind.service.runtime.images import velocity_png
from seisbind.service.runtime.serving import Serving

T = TypeVar("T")

REPEAT_KEY = re.compile(r"[\x21-\x7e]{1,255}")
POLL_S = 0.25  # between looks for new lines of a job
QUIET_S = 15.0  # without a line; then a space, which JSON ignores, tells clients and proxies that there is a server
FOLLOWED_S = 300.0  # the longest answer of lines: who has left without a word holds no place for ever

working = APIRouter(prefix="/v1", tags=["jobs"], responses=openapi.PROBLEMS, route_class=Admitted)
quick = APIRouter(prefix="/v1", tags=["jobs"], responses=openapi.PROBLEMS)


@working.post(
    "/jobs",
    status_code=202,
    response_model=JobBody,
    openapi_extra=openapi.job(JobFields),
)
async def submit_job(request: Request, response: Response) -> JobBody:
    """A refinement of the model that is read from one gather: it begins when those before it are done.

    Send a gather as in POST /v1/retrieve, without `top_k` and `include`; a model of one's own, as `model` of the form,
    is the start then. A request with an `Idempotency-Key` that is sent again makes no second job.
    """
    serving, jobs = serving_of(request), serving_of(request).jobs
    if "idempotency-key" not in request.headers:  # else it may be one that was taken
        await on_store(serving, jobs.store.check_room)
    serving.batches.check()
    sent = await read_file(request, beside="model")
    fields = parse_fields(JobFields, sent.fields)
    repeat = _repeat(request, sent)
    job = await on_store(serving, lambda: jobs.store.find_repeat(repeat))
    if job is None:
        await on_store(serving, jobs.store.check_room)
        asked, arrays = await unless_left(request, _asked(serving, sent, fields))
        job = await on_store(serving, lambda: jobs.store.submit(asked, arrays, repeat=repeat))
        jobs.wake()
    body = job_body(job)
    response.headers["Location"] = body.links.self
    return body


async def _asked(serving: Serving, sent: Sent, fields: JobFields) -> tuple[RefineRequest, RefineInput]:
    """What a job works on: the gather on the weights' line, shots where they were, and the models to start from."""
    settings = serving.settings
    iterations = min(ITERATIONS, settings.max_iterations) if fields.iterations is None else fields.iterations
    if iterations > settings.max_iterations:
        raise InvalidQuery(
            f"{iterations} iterations; this server does at most {settings.max_iterations} in one job "
            "(SEISBIND_MAX_ITERATIONS)."
        )
    geometry, scale = parse_geometry(fields), parse_scale(fields.scale, fields.target_depth_m)
    filter, limits = parse_filter(fields.filter), limits_of(serving)

    def prepare(engine: Engine) -> tuple[GatherQuery, Observed, Starts | None]:
        frame = engine.frame
        upload = read_gathers(sent.content, geometry=geometry, limits=limits, frame=frame, scale=scale)
        if upload.ingest.gathers != 1:
            raise InvalidQuery(f"A job is about one gather; the file holds {upload.ingest.gathers}. Send each alone.")
        query = GatherQuery.prepare(
            upload.gathers, upload.survey, frame=frame, top_k=MEAN_OF, filter=filter, notes=upload.notes,
            scale=upload.chosen, keep_recorded=True,
        )  # fmt: skip
        observed = Observed.of(query.prepared)
        try:
            check_memory(observed)
        except InvalidConfig as error:  # of this server's weights, to its client
            raise InvalidQuery(error.sentence) from error
        given = None if sent.beside is None else read_velocity(sent.beside, limits=limits)
        return query, observed, None if given is None else given_start(query, given)

    with serving.batches.coming():
        query, observed, starts = await serving.on_reader(prepare)
    answered, matches = await npz_answer.with_velocity(query, serving, Stopwatch())
    (retrieval,) = answered.retrievals
    if starts is None:
        found = matches[0][: len(retrieval.matches)] / np.float32(query.scale.k)
        starts = choose_starts(query, retrieval, found, fields.start)
    scale = query.scale
    asked = RefineRequest(
        frame=observed.frame,
        iterations=iterations,
        seconds=settings.job_seconds,
        start=",".join(starts.names),
        starts=len(starts.names),
        s=scale.s,
        k=scale.k,
        x0_m=query.x0_m,
        warnings=tuple(note.sentence for note in retrieval.warnings),
        parents=tuple(starts.parents(name) for name in starts.names),
    )
    return asked, RefineInput(observed.traces, observed.live, observed.shot_x_m, starts.velocity, starts.prior)


def _repeat(request: Request, sent: Sent) -> Repeat | None:
    """Of the same caller alone: another's key is another key."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    if not REPEAT_KEY.fullmatch(key):
        raise InvalidQuery("An Idempotency-Key has 1 to 255 visible ASCII characters.")
    digest = hashlib.sha256(hashlib.sha256(sent.content).digest() + hashlib.sha256(sent.beside or b"").digest())
    digest.update(json.dumps(sent.fields, sort_keys=True).encode())
    return Repeat(f"{request.scope['state'].get('caller', '')} {key}", digest.digest())


@quick.get("/jobs")
async def list_jobs(
    request: Request, limit: int = Query(20, ge=1, le=MAX_LISTED, description="Most jobs that are listed.")
) -> JobsAnswer:
    """The newest jobs, newest first."""
    serving, store = serving_of(request), serving_of(request).jobs.store
    newest, counts = await on_store(serving, lambda: (store.jobs(limit=limit), store.counts()))
    return JobsAnswer(jobs=[job_body(each) for each in newest], counts={str(k): n for k, n in counts.items()})


@quick.get("/jobs/{job_id}")
async def read_job(request: Request, job_id: str) -> JobBody:
    """A job: its state, its last iteration, and where its result is."""
    return job_body(await on_store(serving_of(request), lambda: serving_of(request).jobs.store.job(job_id)))


@quick.delete("/jobs/{job_id}", response_model=JobBody, responses={204: {"description": "It was removed."}})
async def end_job(request: Request, job_id: str) -> JobBody | Response:
    """Cancel a job, which keeps the model of its last iteration; or remove one that has ended, with its result."""
    job = await on_store(serving_of(request), lambda: serving_of(request).jobs.store.cancel(job_id))
    return Response(status_code=204) if job is None else job_body(job)


@quick.get("/jobs/{job_id}/events", response_class=Response, responses=openapi.job_lines())
async def follow_job(
    request: Request,
    job_id: str,
    after: int = Query(-1, ge=-1, le=1 << 31, description="The last line that is known; -1: from the first."),
) -> Response:
    """The lines of a job's progress, as they come: JSON, one a line, until the job ends.

    An answer ends after five minutes at the latest, and when the server is shutting down: ask again, `after` the last
    line. Where there is nothing new for long, spaces come before the next line.
    """
    serving = serving_of(request)
    await on_store(serving, lambda: serving.jobs.store.job(job_id))
    return EventLines(serving, job_id, after)


class EventLines(Response):
    """The lines of a job, sent as they come. A client that leaves is no longer waited for."""

    def __init__(self, serving: Serving, job_id: str, after: int) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": openapi.NDJSON})
        self._serving, self._job_id, self._after = serving, job_id, after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines.

        Raises:
            Overloaded: as many answers of lines are being sent as may be; this one has not begun.
        """
        jobs, most = self._serving.jobs, self._serving.settings.max_streams
        if jobs.followers >= most:
            raise Overloaded(f"{jobs.followers} jobs are being followed already. Ask for the job alone, or later.")
        jobs.followers += 1
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            with suppress(ClientDisconnect):
                await unless_left(Request(scope, receive), self._follow(send))
        finally:
            jobs.followers -= 1

    async def _follow(self, send: Send) -> None:
        serving, after, until = self._serving, self._after, time.monotonic() + FOLLOWED_S
        said_at = time.monotonic()
        with suppress(SeisBindError):  # it was removed: there is nothing more to say
            while True:
                lines, state = await on_store(serving, partial(serving.jobs.store.events, self._job_id, after=after))
                text = "".join(event_body(each).model_dump_json() + "\n" for each in lines)
                if not text and time.monotonic() > said_at + QUIET_S:
                    text = " "
                if text:
                    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                    said_at = time.monotonic()
                after = lines[-1].line if lines else after
                if state.ended or serving.stopping.is_set() or time.monotonic() > until:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(serving.stopping.wait(), POLL_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@working.get("/jobs/{job_id}/image.png", response_class=Response, responses=openapi.binary("image/png"))
async def job_image(request: Request, job_id: str) -> Response:
    """The model of a job's last iteration as a picture, axes in metres, colours in m/s."""
    serving = serving_of(request)

    def draw(engine: Engine) -> bytes:
        job = serving.jobs.store.job(job_id)
        model, _ = _model(serving, job)
        done = 0 if job.last is None else job.last.iteration
        key = (f"job {job_id} {job.state} {done}", f"{job_id[:8]}  iteration {done} of {job.request.iterations}")
        picture = serving.pictures.get(key)
        if picture is None:
            with serving.metrics.stage("render"):
                picture = velocity_png(model.value, title=key[1], cell_m=model.cell_m)
            serving.pictures.put(key, picture)
        return picture

    return Response(await serving.on_picture(draw), media_type="image/png")


@working.get("/jobs/{job_id}/result.{format}", response_class=Response, responses=openapi.models())
async def job_result(request: Request, job_id: str, format: str) -> Response:
    """The result of a job that is done, as npz (with everything that it has), npy, segy or nc.

    In true units, as POST /v1/read has them.
    """
    serving, file_format = serving_of(request), parse_format(format)

    def content() -> bytes:
        job = serving.jobs.store.job(job_id)
        _check_done(job)
        model, more = _model(serving, job)
        with serving.metrics.stage("render"):
            if file_format == "npz":
                return npz({**arrays_of(model), **more})
            return write(model, file_format, title=f"REFINED BY SEISBIND, JOB {job_id}")

    return InPieces(await on_store(serving, content), media_type=openapi.MODEL_TYPES[file_format])


def _check_done(job: Job) -> None:
    if job.state is not JobState.DONE:
        raise JobNotDone(f"The job {job.job_id} is {job.state}; it has a result when it is done.")


def _model(serving: Serving, job: Job) -> tuple[VelocityModel, dict[str, NDArray[Any]]]:
    """The result of a job, or its model as it is now, in true units; and what else the result has."""
    arrays = serving.jobs.store.arrays(job, RESULT) or serving.jobs.store.arrays(job, VELOCITY)
    if arrays is None:
        raise JobNotDone(f"The job {job.job_id} is {job.state} and has no model yet: its first iteration makes one.")
    return in_true_units(arrays, job.request.frame, job.request.scale, x0_m=job.request.x0_m)


@working.post(
    "/jobs/{job_id}/model",
    response_model=KeptAnswer,
    status_code=201,
    responses={200: {"model": KeptAnswer, "description": "The gallery had it already; nothing was changed."}},
)
async def keep_job_model(request: Request, response: Response, job_id: str) -> KeptAnswer:
    """Check the model that a job was refined to, and add it to the gallery if it is usable as a starting model.

    It is stored with the figures of its check, the models that it was refined from, and the job.
    """
    serving = writable(request)
    job = await on_store(serving, lambda: serving.jobs.store.job(job_id))
    _check_done(job)

    def check_frame(engine: Engine) -> None:
        if engine.frame != job.request.frame:
            raise WeightsMismatch(
                f"The job {job_id} is of another frame than the gallery that is served: {job.request.frame} there, "
                f"{engine.frame} here. Submit it again."
            )

    def examine(engine: Engine, models: Models) -> tuple[Float32, Check, tuple[str, ...]]:
        check_frame(engine)
        result, made = serving.jobs.store.arrays(job, RESULT), serving.jobs.store.arrays(job, INPUT)
        if result is None or made is None:
            raise JobNotDone(f"The job {job_id} was removed.")
        inputs = RefineInput(**made)
        observed = Observed(inputs.traces, inputs.live, inputs.shot_x_m, job.request.frame)
        with serving.metrics.stage("check"):
            check = check_refined(observed, result["velocity"], scale=job.request.scale, models=models)
        parents = job.request.parents
        return result["velocity"], check, parents[int(result["start"])] if parents else ()

    await request.body()  # empty, or ignored; who leaves is noticed after it
    velocity, check, parents = await unless_left(request, serving.on_check(examine))

    def keep(engine: Engine) -> Kept:
        check_frame(engine)  # another gallery may be served by now
        return keep_refined(engine, velocity, check, parents=parents, by=f"refined by job {job_id}")

    kept = await serving.on_model(keep)
    if kept.added:
        request.state.changed = {"added": [kept.model_id]}
    else:
        response.status_code = 200
    info = await serving.on_file(lambda engine: engine.info())
    return KeptAnswer(
        model_id=kept.model_id,
        source=kept.source,
        verdict=verdict_body(check.verdict),
        measures=measures_body(check.comparison.whole),
        gallery=gallery_body(info),
    )


async def on_store(serving: Serving, ask: Callable[[], T]) -> T:
    """Ask the store of the jobs, on a file thread."""
    return await serving.on_file(lambda engine: ask())


def event_body(event: Event) -> JobEvent:
    """A line of progress."""
    values = {name: getattr(event, name) for name in Event.__slots__}
    return JobEvent(**values | {"at": moment(event.at), "state": str(event.state)})


def job_body(job: Job) -> JobBody:
    """A job, for its client."""
    path = f"/v1/jobs/{job.job_id}"
    return JobBody(
        job_id=job.job_id,
        kind="refine",
        state=str(job.state),
        ahead=job.ahead,
        created_at=moment(job.created_at),
        started_at=None if job.started_at is None else moment(job.started_at),
        ended_at=None if job.ended_at is None else moment(job.ended_at),
        iterations=job.request.iterations,
        start=job.request.start,
        scale=(job.request.s, job.request.k),
        worked_s=job.worked_s,
        progress=None if job.last is None else event_body(job.last),
        detail=job.sentence if job.code is None else None,
        error=None if job.code is None else JobErrorBody(code=job.code, detail=job.sentence or ""),
        warnings=list(job.request.warnings),
        links=JobLinks(
            self=path,
            events=f"{path}/events",
            image=None if job.last is None else f"{path}/image.png",
            result=f"{path}/result.npz" if job.state is JobState.DONE else None,
        ),
    )
