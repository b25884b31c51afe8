"""The page at /, and the files that it is made of: HTML, CSS and ES modules, which load nothing from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import HTMLResponse

from seisbind.index import GalleryInfo
from seisbind.model.frame import OPENFWI_FRAME, Frame, in_words
from seisbind.service.http.routing import serving_of
from seisbind.service.transport.access import Policy

WEB = Path(__file__).parents[1] / "web"
INDEX = "index.html"
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".npy": "application/x-npy",
    ".npz": "application/x-npz",
    ".svg": "image/svg+xml",
}
# of the page: files of this server and calls to it, nothing inline, nothing from anywhere else
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = Policy(setting="page_access")

router = APIRouter()


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file of the page as it is sent."""

    content: bytes
    media_type: str


@cache
def web_files() -> dict[str, WebFile]:
    """The files that the page may load, by their path under ``web/``; read once. Others are not there."""
    return {
        path.relative_to(WEB).as_posix(): WebFile(path.read_bytes(), MEDIA_TYPES[path.suffix])
        for path in sorted(WEB.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }


def _line(frame: Frame) -> dict[str, str]:
    """What the page says of the line that the weights are for. The samples are of OpenFWI's."""
    return {
        "frame": escape(frame.name),
        "cell_m": f"{frame.cell_m:g}",
        "slowest": f"{frame.velocity_m_s[0]:g}",
        "fastest": f"{frame.velocity_m_s[1]:g}",
        "samples": "" if frame == OPENFWI_FRAME else " hidden",
        "record_dt_s": f"{frame.record_dt_s:g}",
        "peak_hz": f"{frame.peak_hz:g}",
        "shot_x_m": ", ".join(f"{x:g}" for x in frame.shot_x_m),
        "receiver_x_m": ", ".join(f"{x:g}" for x in frame.survey.receiver_x_m[:3]) + ", …",
        "shots": in_words(len(frame.shot_x_m)).capitalize(),
        "receivers": str(frame.receivers),
        "dt_ms": f"{frame.dt_s * 1e3:g}",
        "spacing_m": f"{frame.receiver_spacing_m:g}",
    }


def landing(info: GalleryInfo, api: dict[str, Any], *, jobs: bool, writable: bool) -> str:
    """The page, as HTML: what is served and which calls there are is said in it, without a script too."""
    calls = "".join(
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td>"
        f"<td>{escape(operation.get('description', '').splitlines()[0])}</td></tr>"
        for path, operations in api["paths"].items()
        for method, operation in operations.items()
    )
    said = {
        "version": escape(api["info"]["version"]),
        "gallery": escape(info.name),
        "count": f"{info.count:,}".replace(",", " "),
        "weights": escape(info.fingerprint),
        "calls": calls,
        "jobs": "" if jobs else " hidden",
        "writable": "" if writable else " hidden",
        **_line(info.frame),
    }
    page = (WEB / INDEX).read_text(encoding="utf-8")
    for name, value in said.items():
        page = page.replace(f"{{{{{name}}}}}", value)
    return page


@router.get("/", include_in_schema=False)
@PAGE
async def index(request: Request) -> HTMLResponse:
    """The page."""
    serving = serving_of(request)
    info = await serving.on_file(lambda engine: engine.info())
    takes_jobs, writable = serving.settings.jobs is not None, serving.settings.writable
    page = landing(info, request.app.openapi(), jobs=takes_jobs, writable=writable)
    return HTMLResponse(page, headers={"Content-Security-Policy": POLICY})


@router.get("/web/{name:path}", include_in_schema=False)
@PAGE
async def web(name: str) -> Response:
    """A file that the page is made of."""
    file = web_files().get(name)
    if file is None:
        raise HTTPException(404)
    return Response(file.content, media_type=file.media_type)
