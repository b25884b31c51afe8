"""Which velocity models a search may return."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from seisbind.index.storage.record import Record
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES
from seisbind.model.scale import UNSCALED, Scale

MAX_VALUES = 500  # families or tags in one filter: more than anyone types, few enough to compare at once


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that all have to hold; without any, every model is returned.

    Attributes:
        families: the model's family is one of these.
        tags: the model carries every one of these.
        ranges: ``(descriptor name, (low, high))``, both ends included, in the descriptor's unit.
    """

    families: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    ranges: tuple[tuple[str, tuple[float, float]], ...] = ()

    def __post_init__(self) -> None:
        for name, (low, high) in self.ranges:
            if name not in NAMES:
                raise InvalidQuery(f"No descriptor is called {name!r}; known: {', '.join(NAMES)}.")
            if math.isnan(low) or math.isnan(high) or low > high:
                raise InvalidQuery(f"The range of {name} runs from {low:g} to {high:g}; give [low, high].")
        for kind, names in (("family", self.families), ("tag", self.tags)):
            if len(names) > MAX_VALUES:
                raise InvalidQuery(f"{len(names)} values for {kind!r}; a filter takes at most {MAX_VALUES}.")

    def __bool__(self) -> bool:
        return bool(self.families or self.tags or self.ranges)

    def in_frame(self, scale: Scale) -> Filter:
        """This filter, whose ranges are in true units, in those of a gallery's frame."""
        if scale == UNSCALED or not self.ranges:
            return self
        factor = {name: scale.of(DESCRIPTORS[NAMES.index(name)].unit) for name, _ in self.ranges}
        ranges = tuple((name, (low / factor[name], high / factor[name])) for name, (low, high) in self.ranges)
        return replace(self, ranges=ranges)

    def matches(self, record: Record) -> bool:
        """Whether all conditions hold for a record. Numbers are compared in float64."""
        return (
            (not self.families or record.family in self.families)
            and set(self.tags) <= set(record.tags)
            and all(low <= float(record.descriptors[NAMES.index(name)]) <= high for name, (low, high) in self.ranges)
        )

    @classmethod
    def parse(cls, conditions: Mapping[str, object]) -> Filter:
        """A filter from JSON: ``{"family": ["FlatVel-A"], "tag": "field", "mean_velocity": [2000, null]}``.

        ``family`` and ``tag`` take a string or a list of strings; a descriptor takes ``[low, high]``, where ``null``
        leaves that end open.

        Raises:
            InvalidQuery: an unknown key (the sentence lists the known ones), or a value of another shape.
        """
        families: tuple[str, ...] = ()
        tags: tuple[str, ...] = ()
        ranges: list[tuple[str, tuple[float, float]]] = []
        for key, value in conditions.items():
            if key == "family":
                families = _names(key, value)
            elif key == "tag":
                tags = _names(key, value)
            elif key in NAMES:
                ranges.append((key, _range(key, value)))
            else:
                raise InvalidQuery(f"A filter has no key {key!r}; known: family, tag, {', '.join(NAMES)}.")
        return cls(families, tags, tuple(ranges))

    def conditions(self) -> dict[str, object]:
        """This filter as JSON; `parse` is the inverse."""
        found: dict[str, object] = {}
        for name, words in (("family", self.families), ("tag", self.tags)):
            if words:
                found[name] = list(words)
        for name, ends in self.ranges:
            found[name] = [None if math.isinf(end) else end for end in ends]
        return found


def _names(key: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        raise InvalidQuery(f"The filter's {key!r} takes a string or a list of strings; got {value!r:.100}.")
    return tuple(dict.fromkeys(names))


def _range(key: str, value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise InvalidQuery(f"The filter's {key!r} takes [low, high]; got {value!r:.100}.")
    ends: list[float] = []
    for end, open_end in zip(value, (-math.inf, math.inf), strict=True):
        if end is None:
            ends.append(open_end)
        elif isinstance(end, int | float) and not isinstance(end, bool) and abs(end) < 1e300:
            ends.append(float(end))
        else:
            raise InvalidQuery(f"The filter's {key!r} takes two numbers or null; got {value!r:.100}.")
    return ends[0], ends[1]
