"""The calls of both clients for checks: `calls` has the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike, NDArray

from seisbind.model.frame import Survey
from seisbind.model.scale import AskedScale
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.check_schemas import BEST, CheckAnswer
from seisbind.service.client.answers import json_body, npz_arrays
from seisbind.service.client.calls import FROM_FILE, Call, Conditions, file_bytes, retrieve_fields
from seisbind.service.client.parts import form
from seisbind.service.formats.npy import npy
from seisbind.service.formats.reader import Geometry
from seisbind.service.schemas import PARTS

PATH = "/v1/check"


def check(
    gather: ArrayLike,
    survey: Survey | Geometry = OPENFWI,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    model: ArrayLike | None = None,
    distinct: float | None = None,
) -> Call[CheckAnswer]:
    """POST /v1/check: `retrieve` for one gather, with what each answer predicts compared with the record.

    Args:
        gather: ``(shot, time, receiver)``, also as a batch of one.
        survey, filter, include, scale, distinct: as those of `retrieve`.
        top_k: matches to check, 16 at most.
        model: one of your own to check beside them, ``(depth, x)`` m/s in cells of ``s`` times the frame's.
    """
    return check_file(
        npy(gather), survey, top_k=top_k, filter=filter, include=include, scale=scale, model=model, distinct=distinct
    )


def check_file(
    file: bytes | Path,
    geometry: Survey | Geometry = FROM_FILE,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    model: ArrayLike | None = None,
    distinct: float | None = None,
) -> Call[CheckAnswer]:
    """`check` for an npy, npz, SEG-Y, SU or SEG-2 file of one gather, or its bytes; ``geometry`` overrides it."""
    fields = retrieve_fields(geometry, top_k, filter, include, scale, distinct)
    return Call("POST", PATH, json_body(CheckAnswer), _sent(file, fields, model))


def check_arrays(
    file: bytes | Path,
    geometry: Survey | Geometry = FROM_FILE,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    model: ArrayLike | None = None,
    distinct: float | None = None,
) -> Call[dict[str, NDArray[Any]]]:
    """`check_file`, answered in arrays: the record, what each candidate predicts, lags; docs/check.md lists them."""
    fields = retrieve_fields(geometry, top_k, filter, include, scale, distinct) | {"format": "npz"}
    return Call("POST", PATH, npz_arrays, _sent(file, fields, model))


def check_image(
    file: bytes | Path,
    geometry: Survey | Geometry = FROM_FILE,
    *,
    candidate: str = BEST,
    top_k: int = 5,
    filter: Conditions = None,
    scale: AskedScale = None,
    model: ArrayLike | None = None,
    distinct: float | None = None,
) -> Call[bytes]:
    """`check_file` as a picture of one candidate: ``best``, ``read``, ``mean``, ``given``, ``match 1`` and so on."""
    fields = retrieve_fields(geometry, top_k, filter, (), scale, distinct) | {"format": "png", "candidate": candidate}
    return Call("POST", PATH, lambda response: response.content, _sent(file, fields, model))


def _sent(file: bytes | Path, fields: dict[str, str], model: ArrayLike | None) -> dict[str, Any]:
    sent = form(file_bytes(file), fields)
    if model is not None:
        sent["files"]["model"] = ("model", npy(model), "application/octet-stream")
    return sent
