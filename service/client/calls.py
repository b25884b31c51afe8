"""Every call of both clients: its parameters, what is sent, and how the answer is read.

`client.Client` and `client.AsyncClient` have a method for each, which sends the `Call` and gives what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import DatasetError
from seisbind.model.frame import Survey
from seisbind.model.scale import AskedScale, Scale, parse_scale
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.client.answers import check, json_body, npz_arrays
from seisbind.service.client.parts import Parts, Stack, form
from seisbind.service.client.section_lines import SectionLines
from seisbind.service.formats.mdio import mdio_as_segy
from seisbind.service.formats.npy import NPZ, Limits, npy, read_npy
from seisbind.service.formats.reader import SURVEY_KEYS, Geometry
from seisbind.service.schemas import (
    PARTS,
    SEARCH_PARTS,
    AddAnswer,
    DistributionAnswer,
    GalleryAnswer,
    ModelBody,
    ReloadAnswer,
    RetrieveAnswer,
    SearchAnswer,
)
from seisbind.service.section_schemas import SectionProgress

if TYPE_CHECKING:  # which would import FAISS
    from seisbind.index import Filter

T = TypeVar("T")
Conditions: TypeAlias = "Filter | Mapping[str, object] | None"

FROM_FILE = Geometry()
MODEL_LIMITS = Limits(unpacked_bytes=4 << 20, items=1)  # of a velocity model that a server sends


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and how its answer is read.

    Attributes:
        sent: arguments of `httpx.Client.request`.
        repeatable: whether it may be carried out twice; see `retries`.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    sent: dict[str, Any] = field(default_factory=dict)
    repeatable: bool = True

    def answer(self, response: httpx.Response) -> T:
        """What the answer says.

        Raises:
            ServerRefused: the server did not do it.
            ServiceError: it answered something else.
        """
        check(response)
        return self.read(response)


def retrieve(
    gathers: ArrayLike,
    survey: Survey | Geometry = OPENFWI,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    distinct: float | None = None,
) -> Call[RetrieveAnswer]:
    """POST /v1/retrieve for arrays: see `engine.Engine.retrieve`.

    Args:
        gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure, any linear unit.
        survey: how they were recorded; what a `reader.Geometry` leaves open, the server assumes or refuses.
        include: parts of the answer.
        scale: of a line of another size than the weights' frame: a number ``s``, ``(s, k)``, ``"auto"``, or what
            `seisbind.model.scale` has; ``filter`` and the answer are then in true units.
        distinct: m/s; of matches whose velocities differ by no more, in the mean, only the best is given.
    """
    sent = form(npy(gathers), retrieve_fields(survey, top_k, filter, include, scale, distinct))
    return Call("POST", "/v1/retrieve", json_body(RetrieveAnswer), sent)


def retrieve_arrays(
    gathers: ArrayLike,
    survey: Survey | Geometry = OPENFWI,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    distinct: float | None = None,
) -> Call[dict[str, NDArray[Any]]]:
    """`retrieve`, answered in arrays, with the matched velocity models in ``velocity``: docs/http.md lists them.

    ``RetrieveAnswer.model_validate_json(arrays["answer"].tobytes())`` is what `retrieve` returns, of which
    ``include`` chooses the parts.
    """
    sent = form(npy(gathers), retrieve_fields(survey, top_k, filter, include, scale, distinct))
    return Call("POST", "/v1/retrieve", npz_arrays, sent | {"headers": {"Accept": NPZ}})


def retrieve_file(
    file: bytes | Path,
    geometry: Geometry = FROM_FILE,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    distinct: float | None = None,
) -> Call[RetrieveAnswer]:
    """POST /v1/retrieve for an npy, npz, SEG-Y, SU or SEG-2 file, or its bytes; ``geometry`` overrides what it says."""
    sent = form(file_bytes(file), retrieve_fields(geometry, top_k, filter, include, scale, distinct))
    return Call("POST", "/v1/retrieve", json_body(RetrieveAnswer), sent)


def read(
    file: bytes | Path,
    geometry: Geometry = FROM_FILE,
    *,
    format: str = "npz",
    grid: str | None = None,
    smooth_m: float | None = None,
    water: str | None = None,
    extend: bool = False,
    scale: AskedScale = None,
) -> Call[bytes]:
    """POST /v1/read: the model that is read from the one gather of a file, or of its bytes, as a file.

    Args:
        format: npz, npy, segy or nc.
        grid, smooth_m, water, extend: as an inversion takes it; see `formats.starting_model.parse_start`.
    """
    given = {"grid": grid, "smooth_m": None if smooth_m is None else repr(float(smooth_m)), "water": water}
    fields = {name: text for name, text in given.items() if text is not None}
    fields |= {"format": format} | ({"extend": "true"} if extend else {}) | _geometry_fields(geometry)
    sent = form(file_bytes(file), fields | scale_fields(scale))
    return Call("POST", "/v1/read", lambda response: response.content, sent)


def section(
    file: bytes | Path,
    *,
    scale: AskedScale = None,
    step_m: float | None = None,
    progress: Callable[[SectionProgress], None] = lambda line: None,
) -> SectionLines:
    """POST /v1/section for a SEG-Y, SU, SEG-2 or npz file of a line, or its bytes: see `engine.section`.

    Args:
        scale: as `retrieve_file`'s; None for a line of the frame's own size.
        step_m: from one window to the next at most, metres; None for half a window.
        progress: called with each line on windows that were read.
    """
    fields = scale_fields(scale) | ({} if step_m is None else {"step_m": repr(float(step_m))})
    return SectionLines(form(file_bytes(file), fields), progress)


def retrieve_stream(
    gathers: Stack,
    survey: Survey | Geometry = OPENFWI,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = PARTS,
    scale: AskedScale = None,
    distinct: float | None = None,
    first: int = 0,
) -> Parts:
    """POST /v1/retrieve/stream: an answer or an error for each gather, in order, however many there are.

    The stack is sent in parts of 64 MB, one after another: most clients of HTTP, this one too, read nothing before
    they have sent everything. When a connection breaks, it goes on with the first gather that has no answer.

    Args:
        gathers: ``(gather, shot, time, receiver)``; of a ``numpy.load(…, mmap_mode="r")`` no more is read at once.
        survey: as in `retrieve`, of all of them.
        first: gathers before this one are not asked about.
    """
    return Parts(gathers, first, retrieve_fields(survey, top_k, filter, include, scale, distinct))


def search_velocity(
    velocity: ArrayLike,
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = SEARCH_PARTS,
    scale: AskedScale = None,
    distinct: float | None = None,
) -> Call[SearchAnswer]:
    """POST /v1/search: the gallery's models most like each velocity model ``(batch, depth, x)``, m/s."""
    sent = form(npy(velocity), _search_fields(top_k, filter, include, distinct) | scale_fields(scale))
    return Call("POST", "/v1/search", json_body(SearchAnswer), sent)


def search_descriptors(
    descriptors: Mapping[str, float],
    *,
    top_k: int = 5,
    filter: Conditions = None,
    include: Sequence[str] = SEARCH_PARTS,
    scale: AskedScale = None,
    distinct: float | None = None,
) -> Call[SearchAnswer]:
    """POST /v1/search: the gallery's models whose physics is most like ``descriptors`` (name → value)."""
    asked: dict[str, Any] = {"descriptors": dict(descriptors), "top_k": top_k, "include": list(include)}
    asked |= scale_fields(scale)
    if filter is not None:
        asked["filter"] = _json(filter)
    if distinct is not None:
        asked["distinct"] = float(distinct)
    # not httpx's json=, which refuses NaN with a ValueError of its own; the server has a sentence for it
    sent = {"content": json.dumps(asked).encode(), "headers": {"Content-Type": "application/json"}}
    return Call("POST", "/v1/search", json_body(SearchAnswer), sent)


def info() -> Call[GalleryAnswer]:
    """GET /v1/gallery: what is being served."""
    return Call("GET", "/v1/gallery", json_body(GalleryAnswer))


def distribution(*, scale: AskedScale = None) -> Call[DistributionAnswer]:
    """GET /v1/gallery/distribution: how the gallery's descriptors are distributed."""
    return Call("GET", "/v1/gallery/distribution", json_body(DistributionAnswer), _query(scale))


def reload() -> Call[ReloadAnswer]:
    """POST /v1/gallery/reload: serve what is in the gallery's folder now."""
    return Call("POST", "/v1/gallery/reload", json_body(ReloadAnswer))


def record(model_id: str, *, scale: AskedScale = None) -> Call[ModelBody]:
    """GET /v1/models/{id}: where one velocity model comes from, and its physics; at the scale of a query."""
    return Call("GET", _model(model_id), json_body(ModelBody), _query(scale))


def velocity(model_id: str, *, scale: AskedScale = None) -> Call[NDArray[np.float32]]:
    """GET /v1/models/{id}/velocity.npy: ``(depth, x)`` m/s; at the scale of a query."""

    def read(response: httpx.Response) -> NDArray[np.float32]:
        return np.array(read_npy(response.content, limits=MODEL_LIMITS), dtype=np.float32)

    return Call("GET", f"{_model(model_id)}/velocity.npy", read, _query(scale))


def image(model_id: str, *, scale: AskedScale = None) -> Call[bytes]:
    """GET /v1/models/{id}/image.png; at the scale of a query."""
    return Call("GET", f"{_model(model_id)}/image.png", lambda response: response.content, _query(scale))


def add_models(
    velocity: ArrayLike,
    *,
    family: str | None = None,
    tags: Sequence[str] = (),
    model_ids: Sequence[str] | None = None,
    source: str | None = None,
    scale: AskedScale = None,
    skip_existing: bool = False,
) -> Call[AddAnswer]:
    """POST /v1/models: add velocity models ``(batch, depth, x)``, m/s, all with one family and the same tags.

    ``scale``: of models in cells of ``s`` times the frame's, which are stored in the frame's units.
    ``skip_existing``: leave out those whose map the gallery has.
    """
    given = {
        "family": family,
        "tags": ",".join(tags) or None,
        "model_id": None if model_ids is None else ",".join(model_ids),
        "source": source,
        "skip_existing": "true" if skip_existing else None,
    }
    fields = {name: text for name, text in given.items() if text is not None} | scale_fields(scale)
    sent = form(npy(velocity), fields)
    return Call("POST", "/v1/models", json_body(AddAnswer), sent, repeatable=False)


def remove_model(model_id: str) -> Call[None]:
    """DELETE /v1/models/{id}."""
    return Call("DELETE", _model(model_id), lambda response: None, repeatable=False)


def metrics() -> Call[str]:
    """GET /metrics: the text that Prometheus reads."""
    return Call("GET", "/metrics", lambda response: response.text)


def file_bytes(file: bytes | Path) -> bytes:
    """The content of ``file``, of a folder that is an MDIO store as SEG-Y. Raises DatasetError if it cannot be read."""
    if isinstance(file, bytes):
        return file
    if file.is_dir():
        return mdio_as_segy(file)
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror}.") from error


def _search_fields(top_k: int, filter: Conditions, include: Sequence[str], distinct: float | None) -> dict[str, str]:
    """Form fields as in `schemas.SearchFields`."""
    fields = {"top_k": str(top_k), "include": ",".join(include)}
    fields |= {} if distinct is None else {"distinct": repr(float(distinct))}
    return fields | _filter_fields(filter)


def _filter_fields(filter: Conditions) -> dict[str, str]:
    return {} if filter is None else {"filter": json.dumps(_json(filter))}


def scale_fields(scale: AskedScale) -> dict[str, str]:
    """Form fields of a scale; none without one. Raises InvalidSurvey."""
    asked = parse_scale(scale)
    if asked is None:
        return {}
    if isinstance(asked, Scale):
        return {"scale": str(asked)}
    depth = {} if asked.target_depth_m is None else {"target_depth_m": repr(float(asked.target_depth_m))}
    return {"scale": str(asked)} | depth


def _query(scale: AskedScale) -> dict[str, Any]:
    fields = scale_fields(scale)
    return {"params": fields} if fields else {}


def retrieve_fields(
    survey: Survey | Geometry,
    top_k: int,
    filter: Conditions,
    include: Sequence[str],
    scale: AskedScale,
    distinct: float | None = None,
) -> dict[str, str]:
    """Form fields as in `schemas.RetrieveFields`."""
    return _search_fields(top_k, filter, include, distinct) | scale_fields(scale) | _geometry_fields(survey)


def gather_fields(survey: Survey | Geometry, filter: Conditions, scale: AskedScale) -> dict[str, str]:
    """Form fields as in `schemas.GatherFields`."""
    return _filter_fields(filter) | scale_fields(scale) | _geometry_fields(survey)


def _geometry_fields(survey: Survey | Geometry) -> dict[str, str]:
    """Form fields of a geometry; what it leaves open is left to the server."""
    fields = {}
    for name in SURVEY_KEYS:
        value = getattr(survey, name)
        if value is not None:
            fields[name] = ",".join(repr(float(x)) for x in value) if isinstance(value, tuple) else repr(float(value))
    return fields


def _json(filter: Filter | Mapping[str, object]) -> dict[str, object]:
    return dict(filter) if isinstance(filter, Mapping) else filter.conditions()


def _model(model_id: str) -> str:
    return f"/v1/models/{quote(model_id, safe='')}"
