"""The API description beyond the routes' types: uploads, problems, examples that really run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from seisbind.service.formats.npy import NPZ
from seisbind.service.http.forms import MULTIPART, RAW_TYPES, STREAM_TYPES
from seisbind.service.job_schemas import JobEvent
from seisbind.service.schemas import DescriptorSearch, Problem, SearchFields, StreamAnswer, StreamError
from seisbind.service.section_schemas import SectionAnswer, SectionError, SectionProgress

JsonObject = dict[str, Any]

_PROBLEM: JsonObject = {"application/problem+json": {"schema": Problem.model_json_schema()}}
PROBLEMS: dict[int | str, JsonObject] = {
    "4XX": {"description": "Refused; `code` says why and `detail` what to do.", "content": _PROBLEM},
    "5XX": {"description": "The server's fault.", "content": _PROBLEM},
}

MODEL_TYPES = {
    "npy": "application/x-npy",
    "npz": NPZ,
    "segy": "application/vnd.seg-y",
    "nc": "application/x-netcdf",
}  # of the formats of velocity models
NO_KEY: JsonObject = {"security": []}  # of calls for balancers, which have none
SECTION_LINES: tuple[type[BaseModel], ...] = (SectionProgress, SectionAnswer, SectionError)
NDJSON = "application/x-ndjson"
BINARY = {"type": "string", "format": "binary"}

DESCRIPTOR_EXAMPLES: JsonObject = {
    "slow and smooth": {
        "summary": "Slow models without strong contrasts",
        "value": {"descriptors": {"mean_velocity": 2200, "strongest_contrast": 150}, "top_k": 3},
    },
    "within a range": {
        "summary": "The same, but only models that nowhere exceed 4000 m/s",
        "value": {
            "descriptors": {"mean_velocity": 2200},
            "filter": {"max_velocity": [None, 4000]},
            "include": ["descriptors"],
        },
    },
}


FILE_EXAMPLE = "@gather.npy"  # as curl writes "the bytes of this file"
RETRIEVE_EXAMPLES: JsonObject = {
    "one gather": {
        "summary": "A gather of OpenFWI's geometry: its three best matches",
        "value": {"file": FILE_EXAMPLE, "top_k": 3},
    },
    "half the samples": {
        "summary": "Sampled at 2 ms; physics alone, from models of two families",
        "value": {
            "file": FILE_EXAMPLE,
            "dt_s": 0.002,
            "include": "physics",
            "filter": '{"family": ["FlatVel-A", "CurveVel-A"], "max_velocity": [null, 4200]}',
        },
    },
}
READ_EXAMPLES: JsonObject = {
    "as SEG-Y": {
        "summary": "The model as SEG-Y in the depth domain",
        "value": {"file": FILE_EXAMPLE, "format": "segy"},
    },
}
CHECK_EXAMPLES: JsonObject = {
    "three matches": {
        "summary": "Three matches, their mean and the model that is read",
        "value": {"file": FILE_EXAMPLE, "top_k": 3},
    },
}
SEARCH_EXAMPLES: JsonObject = {
    "one model": {
        "summary": "The three models most like this one",
        "value": {"file": "@velocity.npy", "top_k": 3},
    },
}
SECTION_EXAMPLES: JsonObject = {
    "a line": {
        "summary": "A line of the frame's own size, in windows every 400 m",
        "value": {"file": "@line.sgy", "scale": "1", "step_m": 400},
    },
}
JOB_EXAMPLES: JsonObject = {
    "one gather": {
        "summary": "Ten iterations from the model that the encoder reads",
        "value": {"file": FILE_EXAMPLE, "iterations": 10},
    },
}
REPEAT_KEY: JsonObject = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Chosen by the client for one request: the same again makes no second job.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
}
DEADLINE_HEADER: JsonObject = {
    "name": "SeisBind-Deadline-Ms",
    "in": "header",
    "required": False,
    "description": "How long the caller waits, milliseconds from the request's arrival: 504 then, and no more work.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 99999999, "examples": [60000]},
}
ADD_EXAMPLES: JsonObject = {
    "one model": {
        "summary": "A model with an id, a family and tags of one's own",
        "value": {"file": "@velocity.npy", "model_id": "mine-1", "family": "mine", "tags": "field,2026"},
    },
}


def upload(fields: type[BaseModel], examples: JsonObject) -> JsonObject:
    """The request of a call that takes a file and ``fields``, beside it in a form or as query parameters."""
    return _request(fields, _content(fields, examples))


def within_deadline(request: JsonObject) -> JsonObject:
    """A request that may say how long its caller waits."""
    request["parameters"].append(DEADLINE_HEADER)
    return request


def stream(fields: type[BaseModel]) -> JsonObject:
    """The request of POST /v1/retrieve/stream: npy alone, in a form as its last part."""
    file = {"file": BINARY | {"description": "An npy file."}}
    form = _form(fields.model_json_schema()["properties"] | file)  # in this order
    return _request(fields, {MULTIPART: {"schema": form}} | {kind: {"schema": file["file"]} for kind in STREAM_TYPES})


def lines() -> dict[int | str, JsonObject]:
    """The answer of POST /v1/retrieve/stream; what it shares with other calls is among the document's components."""
    answer = StreamAnswer.model_json_schema(ref_template="#/components/schemas/{model}")
    error = StreamError.model_json_schema()
    error["properties"]["error"] = Problem.model_json_schema()
    for schema in (answer, error):
        del schema["$defs"]
    content = {NDJSON: {"schema": {"oneOf": [answer, error]}}}
    return {200: {"description": "A line of JSON for each gather.", "content": content}}


def section_lines() -> dict[int | str, JsonObject]:
    """The answer of POST /v1/section, of the components that `with_keys` adds."""
    kinds = [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in SECTION_LINES]
    return {200: {"description": "Lines of JSON.", "content": {NDJSON: {"schema": {"oneOf": kinds}}}}}


def job_lines() -> dict[int | str, JsonObject]:
    """The answer of GET /v1/jobs/{job_id}/events, of the components."""
    schema = {"$ref": f"#/components/schemas/{JobEvent.__name__}"}
    return {200: {"description": "Lines of JSON.", "content": {NDJSON: {"schema": schema}}}}


def search() -> JsonObject:
    """The request of POST /v1/search: a file as elsewhere, or JSON."""
    content = _content(SearchFields, SEARCH_EXAMPLES)
    schema = DescriptorSearch.model_json_schema()
    del schema["description"]
    content["application/json"] = {"schema": schema, "examples": DESCRIPTOR_EXAMPLES}
    return _request(SearchFields, content)


def binary(media_type: str) -> dict[int | str, JsonObject]:
    """The answer of a call that returns a file."""
    return {200: {"description": "The file.", "content": {media_type: {"schema": BINARY}}}}


def models() -> dict[int | str, JsonObject]:
    """The answer of POST /v1/read: a file in one of the formats of velocity models."""
    content = {media_type: {"schema": BINARY} for media_type in MODEL_TYPES.values()}
    return {200: {"description": "The file, in the format that was asked for.", "content": content}}


def arrays() -> dict[int | str, JsonObject]:
    """The other answer of POST /v1/retrieve, beside its JSON."""
    file = BINARY | {"description": "The arrays that docs/http.md lists; `answer` has the JSON."}
    described = "JSON, or an npz where Accept prefers it."
    return {200: {"description": described, "content": {NPZ: {"schema": file}}}}


def job(fields: type[BaseModel]) -> JsonObject:
    """The request of POST /v1/jobs: a file as elsewhere, in a form a model beside it, and a key to repeat it with."""
    content = _content(fields, JOB_EXAMPLES)
    model = BINARY | {"description": "A velocity model of one's own to start from, m/s, of the frame's cells."}
    content[MULTIPART]["schema"]["properties"]["model"] = model
    request = _request(fields, content)
    request["parameters"].append(REPEAT_KEY)
    return request


def check(fields: type[BaseModel]) -> JsonObject:
    """The request of POST /v1/check: a file as elsewhere, and in a form a model beside it."""
    content = _content(fields, CHECK_EXAMPLES)
    model = BINARY | {
        "description": "A velocity model of one's own to check too, m/s: npy or npz of the frame's cells."
    }
    content[MULTIPART]["schema"]["properties"]["model"] = model
    return _request(fields, content)


def check_files() -> dict[int | str, JsonObject]:
    """The other answers of POST /v1/check, beside its JSON."""
    content = {kind: {"schema": BINARY} for kind in (NPZ, "image/png")}
    return {200: {"description": "JSON, or the file that was asked for.", "content": content}}


def with_keys(document: JsonObject) -> JsonObject:
    """``document``, which then says that a call may need a key, and has the lines of sections among its components.

    Calls that never need a key say so themselves (`NO_KEY`).
    """
    scheme = {
        "type": "http",
        "scheme": "bearer",
        "description": "A key of `seisbind key new`, where the server has keys; changes need one with the scope write.",
    }
    components = document.setdefault("components", {})
    components["securitySchemes"] = {"key": scheme}
    for kind in SECTION_LINES:
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        known = components.setdefault("schemas", {})
        for name, part in (*schema.pop("$defs", {}).items(), (kind.__name__, schema)):
            known.setdefault(name, part)
    document["security"] = [{}, {"key": []}]
    return document


def _request(fields: type[BaseModel], content: JsonObject) -> JsonObject:
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema["description"],
            "schema": {key: value for key, value in schema.items() if key not in ("description", "title")},
        }
        for name, schema in fields.model_json_schema()["properties"].items()
    ]
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def _form(properties: JsonObject) -> JsonObject:
    return {"type": "object", "required": ["file"], "additionalProperties": False, "properties": properties}


def _content(fields: type[BaseModel], examples: JsonObject) -> JsonObject:
    file = BINARY | {"description": "An npy or npz file; for a retrieval also SEG-Y, SU or SEG-2."}
    form = _form({"file": file} | fields.model_json_schema()["properties"])
    return {MULTIPART: {"schema": form, "examples": examples}} | {kind: {"schema": file} for kind in RAW_TYPES}
