"""The calls that a server knows, by their templates, and what each asks of its caller. Decided before any routing.

What is not known is closed: a path without a template needs a key like any other, and a method that may change
something needs the right to write unless it is listed as reading.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from starlette.routing import compile_path

from seisbind.service.settings import Access, Settings

UNKNOWN = "unmatched"  # the template of a path that has none
ALIVE = frozenset({"/healthz", "/readyz"})  # for balancers, which have no key
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READING_POSTS = frozenset({"/v1/retrieve", "/v1/retrieve/stream", "/v1/search"})  # their questions do not fit a URL


class Need(StrEnum):
    """What a caller needs: nothing, a key, or a key that may change the gallery. OFF: it is there for nobody."""

    NOTHING = "nothing"
    READ = "read"
    WRITE = "write"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Call:
    """``template``: the path with names for its variable parts, or `UNKNOWN`."""

    template: str
    need: Need


class Calls:
    """Finds the call that a request means.

    Args:
        templates: of the API description, as ``/v1/models/{model_id}``; the page, the description and the metrics are
            added.
    """

    def __init__(self, templates: Iterable[str], settings: Settings) -> None:
        self._access = {
            "/": settings.page_access,
            "/web/{name:path}": settings.page_access,
            "/openapi.json": settings.openapi_access,
            "/metrics": settings.metrics_access,
        }
        known = dict.fromkeys([*templates, *self._access])
        self._fixed = frozenset(template for template in known if "{" not in template)
        self._patterns = [(compile_path(template)[0], template) for template in known if "{" in template]

    def find(self, method: str, path: str) -> Call:
        """The call of ``method`` on ``path``, decoded and without its query."""
        template = self._template(path)
        return Call(template, self._need(method, template))

    def _template(self, path: str) -> str:
        if path in self._fixed:
            return path
        return next((template for pattern, template in self._patterns if pattern.fullmatch(path)), UNKNOWN)

    def _need(self, method: str, template: str) -> Need:
        access = self._access.get(template)
        if access is Access.OFF:
            return Need.OFF
        if template in ALIVE or access is Access.OPEN:
            return Need.NOTHING
        return Need.READ if method in SAFE_METHODS or template in READING_POSTS else Need.WRITE
