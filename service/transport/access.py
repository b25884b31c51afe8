"""What a call needs of its caller. Found from its path before any routing; what differs from the rule stands at its
route, as a `Policy`.

The rule is closed: a path that is not known needs a key like any other, and a method that may change something needs
the right to write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import compile_path

from seisbind.service.settings import Access, Settings

UNKNOWN = "unmatched"  # the template of a path that has none
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
ATTRIBUTE = "seisbind_policy"  # of an endpoint

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])


class Need(StrEnum):
    """What a caller needs: nothing, a key, or a key that may change the gallery. OFF: it is there for nobody."""

    NOTHING = "nothing"
    READ = "read"
    WRITE = "write"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Policy:
    """How a route differs from the rule. As a decorator it goes under that of the route.

    Attributes:
        need: of its callers, whatever the method.
        setting: name of the `Access` setting that opens or closes it.
        cache_control: of an answer with status 200.
        streamed: it limits each part of its body itself, and answers before the end of it.
    """

    need: Need | None = None
    setting: str | None = None
    cache_control: bytes = b"no-store"
    streamed: bool = False

    def __call__(self, endpoint: EndpointT) -> EndpointT:
        setattr(endpoint, ATTRIBUTE, self)
        return endpoint


def policies(routers: Iterable[APIRouter]) -> dict[str, Policy]:
    """Template → policy, of the routes that have one."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {r.path: getattr(r.endpoint, ATTRIBUTE) for r in routes if hasattr(r.endpoint, ATTRIBUTE)}


@dataclass(frozen=True, slots=True)
class Call:
    """``template``: the path with names for its variable parts, or `UNKNOWN`."""

    template: str
    need: Need
    policy: Policy


class Calls:
    """Finds the call that a request means.

    Args:
        templates: as ``/v1/models/{model_id}``; those with a policy are added.
    """

    def __init__(self, templates: Iterable[str], policies: Mapping[str, Policy], settings: Settings) -> None:
        self._policies = policies
        self._settings = settings
        known = dict.fromkeys([*templates, *policies])
        self._fixed = frozenset(template for template in known if "{" not in template)
        self._patterns = [(compile_path(template)[0], template) for template in known if "{" in template]

    def find(self, method: str, path: str) -> Call:
        """The call of ``method`` on ``path``, decoded and without its query."""
        template = path
        if path not in self._fixed:
            template = next((template for pattern, template in self._patterns if pattern.fullmatch(path)), UNKNOWN)
        policy = self._policies.get(template, Policy())
        return Call(template, self._need(method, policy), policy)

    def _need(self, method: str, policy: Policy) -> Need:
        access = None if policy.setting is None else getattr(self._settings, policy.setting)
        if access is Access.OFF:
            return Need.OFF
        if access is Access.OPEN:
            return Need.NOTHING
        return policy.need or (Need.READ if method in SAFE_METHODS else Need.WRITE)
