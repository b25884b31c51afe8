"""Families, sources and sets of tags as numbers, which columns hold in place of the words."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Bool = NDArray[np.bool_]

NO_FAMILY = -1  # the number of none, also of a source


class Labels:
    """Families, sources and sets of tags by number. Only ever added to, so that older numbers stay true."""

    __slots__ = ("_family", "_source", "_tag_set", "_with_tag", "families", "sources", "tag_sets")

    def __init__(
        self, families: Sequence[str] = (), tag_sets: Sequence[tuple[str, ...]] = (), sources: Sequence[str] = ()
    ) -> None:
        self.families: list[str] = []
        self.sources: list[str] = []
        self.tag_sets: list[tuple[str, ...]] = []
        self._family: dict[str, int] = {}
        self._source: dict[str, int] = {}
        self._tag_set: dict[tuple[str, ...], int] = {}
        self._with_tag: dict[str, list[int]] = {}
        for name in families:
            self.family(name)
        for tags in tag_sets:
            self.tag_set(tags)
        for name in sources:
            self.source(name)

    @classmethod
    def load(cls, text: bytes) -> Labels:
        """The inverse of `dump`. Raises ValueError if ``text`` is anything else."""
        try:
            held = json.loads(text)
            families, sets, sources = held["families"], [tuple(tags) for tags in held["tag_sets"]], held["sources"]
            words = [*families, *sources, *(tag for tags in sets for tag in tags)]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError("its labels are not what was written") from error
        if not all(type(word) is str for word in words):
            raise ValueError("its labels are not what was written")
        return cls(families, sets, sources)

    def check(self, family: NDArray[np.int32], tag_set: NDArray[np.int32], source: NDArray[np.int32]) -> None:
        """Raises ValueError where a number has no word."""
        for numbers, lowest, words in (
            (family, NO_FAMILY, self.families), (tag_set, 0, self.tag_sets), (source, NO_FAMILY, self.sources),
        ):  # fmt: skip
            if len(numbers) and not (lowest <= numbers.min() and numbers.max() < len(words)):
                raise ValueError("it has numbers of labels that it does not name")

    def dump(self) -> bytes:
        """As JSON."""
        held = {"families": self.families, "tag_sets": self.tag_sets, "sources": self.sources}
        return json.dumps(held).encode()

    def family(self, name: str | None) -> int:
        """The number of a family, a new one if need be; `NO_FAMILY` for None."""
        if name is None:
            return NO_FAMILY
        code = self._family.get(name)
        if code is None:
            self.families.append(name)  # before its number is known to a search
            code = self._family[name] = len(self.families) - 1
        return code

    def source(self, name: str | None) -> int:
        """The number of a source, as `family` of a family; `NO_FAMILY` for None."""
        if name is None:
            return NO_FAMILY
        code = self._source.get(name)
        if code is None:
            self.sources.append(name)
            code = self._source[name] = len(self.sources) - 1
        return code

    def tag_set(self, tags: tuple[str, ...]) -> int:
        """The number of a set of tags (sorted), a new one if need be."""
        code = self._tag_set.get(tags)
        if code is None:
            self.tag_sets.append(tags)
            code = self._tag_set[tags] = len(self.tag_sets) - 1
            for tag in tags:
                self._with_tag.setdefault(tag, []).append(code)
        return code

    def is_one_of(self, families: Sequence[str]) -> Bool:
        """Which numbers are of ``families``; the last entry, which `NO_FAMILY` points at, is False."""
        found = [self._family[name] for name in families if name in self._family]
        chosen = np.zeros(len(self.families) + 1, np.bool_)  # after ``found``: numbers may be added meanwhile
        chosen[found] = True
        return chosen

    def is_from(self, sources: Sequence[str], prefixes: tuple[str, ...]) -> Bool:
        """Which numbers are of sources that are among ``sources`` or begin with one of ``prefixes``; as `is_one_of`."""
        found = [self._source[name] for name in sources if name in self._source]
        if prefixes:
            found += [code for code, name in enumerate(self.sources[:]) if name.startswith(prefixes)]
        chosen = np.zeros(len(self.sources) + 1, np.bool_)
        chosen[found] = True
        return chosen

    def has_any(self, tags: Sequence[str], prefixes: tuple[str, ...]) -> Bool:
        """Which sets have one of ``tags``, or a tag that begins with one of ``prefixes``."""
        named = [tag for tag in list(self._with_tag) if tag.startswith(prefixes)] if prefixes else tags
        found = [code for tag in named for code in self._with_tag.get(tag, ())]
        chosen = np.zeros(len(self.tag_sets) + 1, np.bool_)
        chosen[found] = True
        return chosen

    def has_all(self, tags: Sequence[str]) -> Bool:
        """Which sets have every one of ``tags``."""
        found = set.intersection(*(set(self._with_tag.get(tag, ())) for tag in tags))
        chosen = np.zeros(len(self.tag_sets) + 1, np.bool_)
        chosen[list(found)] = True
        return chosen
