"""Parsing of request fields and command options: JSON, lists, positions, parts of the answer."""

from __future__ import annotations

import json
from collections import Counter

from seisbind.model.errors import InvalidQuery, InvalidSurvey
from seisbind.service.formats.reader import Geometry
from seisbind.service.formats.velocity_model import FORMATS
from seisbind.service.schemas import GatherFields


def parse_json(text: str | bytes, what: str) -> dict[str, object]:
    """A JSON object, in which no object has a name twice.

    Raises:
        InvalidQuery: anything else.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            name = next(name for name in counts if counts[name] > 1)
            raise InvalidQuery(f"{what} has {name[:60]!r} {counts[name]} times in one object; give it once.")
        return found

    try:
        found = json.loads(text, object_pairs_hook=once)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is JSON, but no text
    except InvalidQuery:
        raise
    except (ValueError, RecursionError) as error:
        raise InvalidQuery(f"{what} is not valid JSON ({str(error)[:80]}).") from error
    if not isinstance(found, dict):
        raise InvalidQuery(f"{what} is a JSON object; got {type(found).__name__}.")
    return found


def parse_include(parts: str | list[str], known: tuple[str, ...]) -> tuple[str, ...]:
    """The requested parts, all of them ``known``.

    Raises:
        InvalidQuery: an unknown one.
    """
    names = split(parts) if isinstance(parts, str) else tuple(parts)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidQuery(f"There is no part {unknown[0][:60]!r} to include; known: {', '.join(known)}.")
    return names


def parse_format(name: str) -> str:
    """A format of velocity models. Raises InvalidQuery."""
    if name not in FORMATS:
        raise InvalidQuery(f"There is no format {name[:60]!r} of velocity models; there are {', '.join(FORMATS)}.")
    return name


def parse_geometry(fields: GatherFields) -> Geometry:
    """The geometry that was sent beside the file."""
    return Geometry(
        fields.dt_s, _positions("shot_x_m", fields.shot_x_m), _positions("receiver_x_m", fields.receiver_x_m),
        fields.peak_hz,
    )  # fmt: skip


def split(text: str) -> tuple[str, ...]:
    """Words between commas, without spaces around them; none of an empty text."""
    return tuple(word.strip() for word in text.split(",")) if text.strip() else ()


def _positions(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(word) for word in split(text))
    except ValueError as error:
        raise InvalidSurvey(f"{name} is a list of metres separated by commas; got {text[:60]!r}.") from error
