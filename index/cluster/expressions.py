"""Filters as Milvus's expressions.

Text of a filter never gets into an expression: what is compared is the hexadecimal form of its UTF-8 (`key`), which
rows hold beside it, so that no quote or backslash of anyone means anything to Milvus's parser. Prefixes stay prefixes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import MISSING, fields
from typing import Any

from seisbind.index.search.filter import Filter
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import NAMES

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def key(text: str | None) -> str:
    """What Milvus compares instead of ``text``; empty for none, which no text is."""
    return "" if text is None else text.encode(errors="surrogatepass").hex()  # whatever a filter asks for


def expression(condition: Filter | None) -> str:
    """``condition`` for Milvus; empty where every model fits.

    Raises:
        InvalidQuery: a kind of condition that Milvus cannot be asked.
    """
    if condition is None:
        return ""
    parts = []
    for field in fields(condition):
        value = getattr(condition, field.name)
        if field.name in _KINDS:
            parts += _KINDS[field.name](value)
        elif value != (field.default if field.default is not MISSING else ()):
            raise InvalidQuery(f"A gallery in Milvus cannot be filtered by {field.name!r}; leave that out.")
    return " and ".join(f"({part})" for part in parts)


def words(texts: Iterable[str]) -> str:
    """A list of ids or keys, none of which has a character that would have to be escaped."""
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def _families(families: tuple[str, ...]) -> list[str]:
    return [f"family_key in {words(map(key, families))}"] if families else []


def _tags(tags: tuple[str, ...]) -> list[str]:
    return [f'array_contains(tag_keys, "{key(tag)}")' for tag in tags]


def _ranges(ranges: tuple[tuple[str, tuple[float, float]], ...]) -> list[str]:
    parts = []
    for name, (low, high) in ranges:
        if name not in NAMES:
            raise InvalidQuery(f"No descriptor is called {name!r:.100}; known: {', '.join(NAMES)}.")
        if low == math.inf or high == -math.inf:
            parts.append("row < 0")
        parts += [f"{name} >= {float(low)!r}"] if math.isfinite(low) else []
        parts += [f"{name} <= {float(high)!r}"] if math.isfinite(high) else []
    return parts


def _any_tags(tags: tuple[str, ...]) -> list[str]:
    return [f"array_contains_any(tag_keys, {words(map(key, tags))})"] if tags else []


def _sources(sources: tuple[str, ...]) -> list[str]:
    return [f"source_key in {words(map(key, sources))}"] if sources else []


def _source_prefixes(prefixes: tuple[str, ...]) -> list[str]:
    return [" or ".join(f'source_key like "{key(prefix)}%"' for prefix in prefixes)] if prefixes else []


def _model_ids(model_ids: tuple[str, ...]) -> list[str]:
    """Ids have no character that would have to be escaped; what has one is no id."""
    known = [model_id for model_id in model_ids if _ID.fullmatch(model_id)]
    return [f"model_id in {words(known)}" if known else "row < 0"] if model_ids else []


def _any_of(filters: tuple[Filter, ...]) -> list[str]:
    return [" or ".join(f"({expression(each)})" for each in filters)] if filters else []


def _all_of(filters: tuple[Filter, ...]) -> list[str]:
    return [expression(each) for each in filters]


def _excluded(inner: Filter | None) -> list[str]:
    return [] if inner is None else [f"not ({expression(inner)})"]


# No times and no prefixes of tags: rows have the one as text, and Milvus no search within the elements of an array.
_KINDS: dict[str, Callable[[Any], list[str]]] = {
    "families": _families,
    "tags": _tags,
    "ranges": _ranges,
    "any_tags": _any_tags,
    "sources": _sources,
    "source_prefixes": _source_prefixes,
    "model_ids": _model_ids,
    "any_of": _any_of,
    "all_of": _all_of,
    "excluded": _excluded,
}
