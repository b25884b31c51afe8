"""One table from errors to HTTP, and one shape for all of them: RFC 9457 ``application/problem+json``."""

from __future__ import annotations

import http
import json
import logging
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from seisbind.model import errors as tree
from seisbind.service.schemas import Problem

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
MAX_SENTENCE = 2000  # characters of a detail: whatever a request holds, its refusal repeats no more of it
MAX_PART = 300  # of each of several errors, and of a path
RETRY_AFTER_S = 1  # the least that the header can say: a place is free again after milliseconds, or after a stack
JOBS_RETRY_AFTER_S = 60  # a job takes minutes

# The nearest class in an error's ancestry decides.
STATUS: dict[type[tree.SeisBindError], int] = {
    tree.SeisBindError: 500,
    tree.InvalidGather: 422,
    tree.InvalidSurvey: 422,
    tree.InvalidVelocityModel: 422,
    tree.InvalidQuery: 422,
    tree.UploadRefused: 422,
    tree.UnsupportedFormat: 415,
    tree.UploadTooLarge: 413,
    tree.BodyTooSlow: 408,
    tree.UnknownModel: 404,
    tree.GalleryNotFound: 409,
    tree.GalleryLocked: 409,
    tree.GalleryUnreachable: 503,
    tree.GalleryWriteFailed: 507,
    tree.RemoteGalleryFailed: 502,
    tree.WeightsMismatch: 409,
    tree.UnknownJob: 404,
    tree.JobNotDone: 409,
    tree.JobsOff: 403,
    tree.JobsFull: 429,
    tree.JobsWriteFailed: 507,
    tree.NotWritable: 403,
    tree.KeyRequired: 401,
    tree.KeyUnknown: 401,
    tree.WriteScopeRequired: 403,
    tree.Overloaded: 429,
    tree.NotReady: 503,
    tree.ReloadIncomplete: 503,
    tree.DeadlinePassed: 504,
    tree.MissingExtra: 501,
}

# Errors of the framework, which know only a status.
CODE = {
    404: "not_found",
    405: "method_not_allowed",
    400: "bad_request",
    413: "upload_too_large",
    415: "unsupported_format",
}
OTHER = "http_error"
REQUEST_INVALID = "invalid_request"


def status_of(error: tree.SeisBindError) -> int:
    """The HTTP status that `STATUS` gives an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(
    scope: Scope,
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[str] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    """A problem document about the request in ``scope``, whose state keeps its code for `request_log.RequestLog`."""
    state = scope.setdefault("state", {})
    state["code"] = code
    body = Problem(
        type=f"urn:seisbind:error:{code}",
        title=http.HTTPStatus(status).phrase,
        status=status,
        detail=cut(detail, MAX_SENTENCE),
        code=code,
        instance=cut(scope.get("path", "/"), MAX_PART),
        request_id=state.get("request_id", ""),
        errors=[cut(each, MAX_PART) for each in errors] or None,
    )
    content = json.dumps(body.model_dump(exclude_none=True)).encode()
    return Response(content, status_code=status, media_type=PROBLEM_JSON, headers=headers)


def cut(text: str, limit: int) -> str:
    """``text``, or the first ``limit`` characters of it and an ellipsis."""
    return text if len(text) <= limit else text[:limit] + "…"


def refused(scope: Scope, error: tree.SeisBindError) -> Response:
    """The answer to an error of the tree. Those that are the server's own fault (5xx) are logged."""
    status = status_of(error)
    headers: dict[str, str] = {}
    if status in (429, 503):
        headers["Retry-After"] = str(JOBS_RETRY_AFTER_S if isinstance(error, tree.JobsFull) else RETRY_AFTER_S)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="seisbind"'
    if status >= 500 and not isinstance(error, tree.DeadlinePassed):  # that one is the caller's own wish
        path = cut(scope.get("path", "/"), MAX_PART)
        log.error("%s %s: %s", scope.get("method"), path, error, exc_info=error)
    errors = error.errors if isinstance(error, tree.ReloadIncomplete) else ()
    return problem(scope, status, error.code, error.sentence, errors=errors, headers=headers)


def broken(scope: Scope) -> Response:
    """The answer to a fault of the server, without its details: they are in the log."""
    detail = "Something went wrong inside the server; its log has the details under this request_id."
    return problem(scope, 500, tree.INTERNAL_ERROR, detail)


def install(app: FastAPI) -> None:
    """Give every way in which a request can fail its problem document."""

    @app.exception_handler(tree.SeisBindError)
    async def _ours(request: Request, error: tree.SeisBindError) -> Response:
        return refused(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        found = [
            cut(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}", MAX_PART) for each in error.errors()
        ]
        detail = "The request is not understood: " + "; ".join(found[:3]) + "."
        return problem(request.scope, 422, REQUEST_INVALID, detail, errors=found)

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> Response:
        code = CODE.get(error.status_code, OTHER)
        path = cut(request.url.path, MAX_PART)
        detail = {
            404: f"There is nothing at {path}; GET / lists the calls.",
            405: f"{path} does not take {request.method}; GET / lists the calls.",
        }.get(error.status_code, str(error.detail))
        headers = dict(error.headers) if error.headers else {}
        if error.status_code == 405:  # Starlette names the methods of one route of the path, not of all
            call = request.scope.get("state", {}).get("call")
            methods = app.openapi()["paths"].get(call.template if call else None, {})
            if methods:
                headers["Allow"] = ", ".join(sorted(name.upper() for name in methods))
        return problem(request.scope, error.status_code, code, detail, headers=headers)

    @app.exception_handler(ClientDisconnect)
    async def _disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody is there to read it

    @app.exception_handler(Exception)
    async def _bug(request: Request, error: Exception) -> Response:
        # Starlette logs the traceback; the answer says nothing of the inside.
        return broken(request.scope)
