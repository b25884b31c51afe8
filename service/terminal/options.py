"""Options that several commands share, as the fields of a dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints


def takes_options(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as a command of typer: of a parameter whose type is a dataclass, each field becomes an option.

    All of its parameters are given by name.
    """
    groups: dict[str, Any] = {}
    options: dict[str, Parameter] = {}
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            options[name] = parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=kind)
            continue
        groups[name] = kind
        own = get_type_hints(kind, include_extras=True)
        for each in fields(kind):
            default = Parameter.empty if each.default is MISSING else each.default
            options[each.name] = Parameter(
                each.name, Parameter.KEYWORD_ONLY, default=default, annotation=own[each.name]
            )

    def command(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{each.name: given.pop(each.name) for each in fields(kind)})
        function(**given)

    command.__name__, command.__doc__ = function.__name__, function.__doc__
    command.__signature__ = inspect.Signature(list(options.values()))  # type: ignore[attr-defined]
    command.__annotations__ = {name: each.annotation for name, each in options.items()}
    return command
