"""Which velocity models a search may return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, date, datetime, time

from seisbind.index.storage.record import Record, milliseconds
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES
from seisbind.model.scale import UNSCALED, Scale

MAX_VALUES = 500  # names in one condition: more than anyone types, few enough to compare at once
MAX_FILTERS = 64  # filters of a whole one ...
MAX_DEPTH = 8  # ... and how deep they lie within each other
# Keys whose value is a name or a list of names, and the fields that they are kept in.
WORDS = {
    "family": "families",
    "tag": "tags",
    "tag_any": "any_tags",
    "tag_prefix": "tag_prefixes",
    "source": "sources",
    "source_prefix": "source_prefixes",
    "model_id": "model_ids",
}
KEYS = (*WORDS, "added", "any", "all", "not")  # and the descriptors
EARLIEST, LATEST = 0, 253_402_300_799_999  # milliseconds from 1970 to the end of 9999
ALWAYS = (-(2**62), 2**62)  # open ends of `Filter.added`


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that all have to hold; without any, every model is returned.

    Attributes:
        families: the model's family is one of these.
        tags: the model carries every one of these.
        ranges: ``(descriptor name, (low, high))``, both ends included, in the descriptor's unit.
        any_tags: it carries one of these.
        tag_prefixes: one of its tags begins with one of these.
        sources: where it came from is one of these.
        source_prefixes: where it came from begins with one of these.
        added: when it was added, first and last millisecond since 1970 (UTC); None: at any time.
        model_ids: its id is one of these.
        any_of: one of these filters lets it through.
        all_of: every one of these does.
        excluded: this one does not.
    """

    families: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ranges: tuple[tuple[str, tuple[float, float]], ...] = ()
    any_tags: tuple[str, ...] = ()
    tag_prefixes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    source_prefixes: tuple[str, ...] = ()
    added: tuple[int, int] | None = None
    model_ids: tuple[str, ...] = ()
    any_of: tuple[Filter, ...] = ()
    all_of: tuple[Filter, ...] = ()
    excluded: Filter | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges:
            if name not in NAMES:
                raise InvalidQuery(f"No descriptor is called {name!r}; known: {', '.join(NAMES)}.")
            if math.isnan(low) or math.isnan(high) or low > high:
                raise InvalidQuery(f"The range of {name} runs from {low:g} to {high:g}; give [low, high].")
        for kind, kept in WORDS.items():
            if len(names := getattr(self, kept)) > MAX_VALUES:
                raise InvalidQuery(f"{len(names)} values for {kind!r}; a filter takes at most {MAX_VALUES}.")

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) not in ((), None) for each in fields(self))

    def in_frame(self, scale: Scale) -> Filter:
        """This filter, whose ranges are in true units, in those of a gallery's frame."""
        if scale == UNSCALED or not self:
            return self
        factor = {name: scale.of(DESCRIPTORS[NAMES.index(name)].unit) for name, _ in self.ranges}
        return replace(
            self,
            ranges=tuple((name, (low / factor[name], high / factor[name])) for name, (low, high) in self.ranges),
            any_of=tuple(each.in_frame(scale) for each in self.any_of),
            all_of=tuple(each.in_frame(scale) for each in self.all_of),
            excluded=None if self.excluded is None else self.excluded.in_frame(scale),
        )

    def matches(self, record: Record) -> bool:
        """Whether all conditions hold for a record. Numbers are compared in float64."""
        tags, source = set(record.tags), record.source
        return (
            (not self.families or record.family in self.families)
            and set(self.tags) <= tags
            and all(low <= float(record.descriptors[NAMES.index(name)]) <= high for name, (low, high) in self.ranges)
            and (not self.any_tags or bool(tags.intersection(self.any_tags)))
            and (not self.tag_prefixes or any(tag.startswith(self.tag_prefixes) for tag in tags))
            and (not self.sources or source in self.sources)
            and (not self.source_prefixes or (source is not None and source.startswith(self.source_prefixes)))
            and (self.added is None or self.added[0] <= milliseconds(record.added_at) <= self.added[1])
            and (not self.model_ids or record.model_id in self.model_ids)
            and (not self.any_of or any(each.matches(record) for each in self.any_of))
            and all(each.matches(record) for each in self.all_of)
            and (self.excluded is None or not self.excluded.matches(record))
        )

    @classmethod
    def parse(cls, conditions: Mapping[str, object]) -> Filter:
        """A filter from JSON: ``{"family": ["FlatVel-A"], "tag": "field", "mean_velocity": [2000, null]}``.

        All keys of an object have to hold. ``family``, ``source`` and ``model_id`` take a name or a list of which one
        has to fit, ``tag`` one of which all, ``tag_any``, ``tag_prefix`` and ``source_prefix`` one of which any. A
        descriptor takes ``[low, high]``, ``added`` two dates or times of ISO 8601 (UTC), where ``null`` leaves that end
        open. ``any`` and ``all`` take a list of filters, ``not`` one.

        Raises:
            InvalidQuery: an unknown key (the sentence lists the known ones), a value of another shape, or filters that
                are too many or too deep.
        """
        return _parse(conditions, "", 0, [0])

    def conditions(self) -> dict[str, object]:
        """This filter as JSON; `parse` is the inverse."""
        found: dict[str, object] = {
            key: list(getattr(self, kept)) for key, kept in WORDS.items() if getattr(self, kept)
        }
        for name, ends in self.ranges:
            found[name] = [None if math.isinf(end) else end for end in ends]
        if self.added is not None:
            found["added"] = [None if end in ALWAYS else _iso(end) for end in self.added]
        for key, inner in (("any", self.any_of), ("all", self.all_of)):
            if inner:
                found[key] = [each.conditions() for each in inner]
        if self.excluded is not None:
            found["not"] = self.excluded.conditions()
        return found


def _parse(conditions: object, place: str, depth: int, seen: list[int]) -> Filter:
    """``place``: where in the whole it is, as in ``any[1].not``; ``seen``: filters so far."""
    seen[0] += 1
    if seen[0] > MAX_FILTERS or depth > MAX_DEPTH:
        raise InvalidQuery(
            f"A filter is made of at most {MAX_FILTERS} filters, {MAX_DEPTH} within each other; at {place[:100]!r} "
            "there are more."
        )
    if not isinstance(conditions, Mapping):
        raise InvalidQuery(f"The filter's {place!r} takes an object of conditions; got {conditions!r:.100}.")
    if place and not conditions:
        raise InvalidQuery(f"The filter's {place!r} has no condition; leave it out.")
    given: dict[str, object] = {}
    ranges: list[tuple[str, tuple[float, float]]] = []
    for key, value in conditions.items():
        where = f"{place}.{key}" if place else str(key)
        if key in WORDS:
            given[WORDS[key]] = _names(where, value)
        elif key in NAMES:
            ranges.append((key, _range(where, value)))
        elif key == "added":
            given["added"] = _times(where, value)
        elif key in ("any", "all"):
            given[f"{key}_of"] = _filters(where, value, depth + 1, seen)
        elif key == "not":
            given["excluded"] = _parse(value, where, depth + 1, seen)
        else:
            raise InvalidQuery(f"A filter has no key {where!r:.150}; known: {', '.join((*KEYS, *NAMES))}.")
    return Filter(ranges=tuple(ranges), **given)  # type: ignore[arg-type]


def _filters(where: str, value: object, depth: int, seen: list[int]) -> tuple[Filter, ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidQuery(f"The filter's {where!r} takes a list of filters; got {value!r:.100}.")
    return tuple(_parse(each, f"{where}[{number}]", depth, seen) for number, each in enumerate(value))


def _names(where: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidQuery(f"The filter's {where!r} takes a string or a list of strings; got {value!r:.100}.")
    if len(names) > MAX_VALUES:
        raise InvalidQuery(f"{len(names)} values for {where!r}; a filter takes at most {MAX_VALUES}.")
    return tuple(dict.fromkeys(names))


def _range(where: str, value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InvalidQuery(f"The filter's {where!r} takes [low, high]; got {value!r:.100}.")
    ends: list[float] = []
    for end, open_end in zip(value, (-math.inf, math.inf), strict=True):
        if end is None:
            ends.append(open_end)
        elif isinstance(end, int | float) and not isinstance(end, bool) and abs(end) < 1e300:
            ends.append(float(end))
        else:
            raise InvalidQuery(f"The filter's {where!r} takes two numbers or null; got {value!r:.100}.")
    if ends[0] > ends[1]:
        raise InvalidQuery(f"The range of {where} runs from {ends[0]:g} to {ends[1]:g}; give [low, high].")
    return ends[0], ends[1]


def _times(where: str, value: object) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InvalidQuery(f"The filter's {where!r} takes [from, to]; got {value!r:.100}.")
    first, last = (
        _time(where, end, last=number == 1) if end is not None else ALWAYS[number] for number, end in enumerate(value)
    )
    if first > last:
        raise InvalidQuery(f"The filter's {where!r} ends before it begins: {value!r:.100}.")
    return first, last


def _time(where: str, value: object, *, last: bool) -> int:
    """Milliseconds since 1970; of a day its first, or its last one."""
    try:
        if not isinstance(value, str) or not value.isascii():
            raise ValueError
        if len(value) <= len("2026-01-01"):
            day = datetime.combine(date.fromisoformat(value), time.max if last else time.min, UTC)
            found = int(day.timestamp() * 1000)
        else:
            moment = datetime.fromisoformat(value)
            found = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        if not EARLIEST <= found <= LATEST:
            raise ValueError
        return found
    except (ValueError, OverflowError) as error:
        raise InvalidQuery(
            f"The filter's {where!r} takes dates or times as in '2026-01-31' or '2026-01-31T12:00:00Z', from 1970 on, "
            f"or null; got {value!r:.100}."
        ) from error


def _iso(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds")
