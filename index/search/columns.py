"""What filters and counts are made from: the small columns of every model, in memory.

They were compared with each record's checksum when they were read (`Records.described`), which what SQLite computes
over a column or through an index never is. An array here grows at its end without being copied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.index.search.filter import Filter
from seisbind.index.storage.record import CHECKSUM, Checksums, Described, Float32, Histogram, Ids, Int64
from seisbind.model.ground.descriptors import NAMES

Bool = NDArray[np.bool_]
Int32 = NDArray[np.int32]

SPARE_SHARE = 8  # a full array gets this fraction more than it needs, so that additions are rarely a copy
SPARE_LEAST = 1024  # entries
NO_FAMILY = -1


class _Buffer:
    __slots__ = ("array", "used")

    def __init__(self, array: NDArray[Any], used: int) -> None:
        self.array = array
        self.used = used


class Growing:
    """The first entries, along the last axis, of an array with room behind them.

    Never changed for whoever has it: ``extended`` writes behind the end, or copies if something is there already.
    One thread at a time may extend.
    """

    __slots__ = ("_buffer", "values")

    def __init__(self, values: NDArray[Any], buffer: _Buffer | None = None) -> None:
        self._buffer = _Buffer(values, values.shape[-1]) if buffer is None else buffer
        self.values = values

    def extended(self, more: NDArray[Any]) -> Growing:
        held, buffer = self.values.shape[-1], self._buffer
        count = held + more.shape[-1]
        if buffer.used != held or buffer.array.shape[-1] < count:
            room = count + max(SPARE_LEAST, count // SPARE_SHARE)
            buffer = _Buffer(np.empty((*self.values.shape[:-1], room), self.values.dtype), held)
            buffer.array[..., :held] = self.values
        buffer.array[..., held:count] = more
        buffer.used = count
        return Growing(buffer.array[..., :count], buffer)


class Labels:
    """Families and sets of tags by number. Only ever added to, so that older numbers stay true."""

    __slots__ = ("_family", "_tag_set", "_with_tag", "families", "tag_sets")

    def __init__(self, families: Sequence[str] = (), tag_sets: Sequence[tuple[str, ...]] = ()) -> None:
        self.families: list[str] = []
        self.tag_sets: list[tuple[str, ...]] = []
        self._family: dict[str, int] = {}
        self._tag_set: dict[tuple[str, ...], int] = {}
        self._with_tag: dict[str, list[int]] = {}
        for name in families:
            self.family(name)
        for tags in tag_sets:
            self.tag_set(tags)

    def family(self, name: str | None) -> int:
        """The number of a family, a new one if need be; `NO_FAMILY` for None."""
        if name is None:
            return NO_FAMILY
        code = self._family.get(name)
        if code is None:
            self.families.append(name)  # before its number is known to a search
            code = self._family[name] = len(self.families) - 1
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

    def among(self, families: Sequence[str]) -> Bool:
        """Which numbers are of ``families``; the last entry, which `NO_FAMILY` points at, is False."""
        found = [self._family[name] for name in families if name in self._family]
        chosen = np.zeros(len(self.families) + 1, np.bool_)  # after ``found``: numbers may be added meanwhile
        chosen[found] = True
        return chosen

    def carrying(self, tags: Sequence[str]) -> Bool:
        """Which sets have every one of ``tags``."""
        found = set.intersection(*(set(self._with_tag.get(tag, ())) for tag in tags))
        chosen = np.zeros(len(self.tag_sets) + 1, np.bool_)
        chosen[list(found)] = True
        return chosen


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Entry i of each array belongs to position i; never changed once made."""

    labels: Labels
    arrays: tuple[Growing, Growing, Growing, Growing, Growing, Growing]

    @classmethod
    def of(
        cls,
        labels: Labels,
        rows: Int64,
        ids: Ids,
        checksums: Checksums,
        family: Int32,
        tag_set: Int32,
        descriptors: Float32,
    ) -> Columns:
        """Columns of these arrays ``(model,)``, ``descriptors`` being ``(13, model)``."""
        first, second, *rest = (Growing(each) for each in (rows, ids, checksums, family, tag_set, descriptors))
        third, fourth, fifth, sixth = rest
        return cls(labels, (first, second, third, fourth, fifth, sixth))

    @classmethod
    def empty(cls) -> Columns:
        no_codes = np.empty(0, np.int32)
        no_descriptors = np.empty((len(NAMES), 0), np.float32)
        return cls.of(
            Labels(), np.empty(0, np.int64), np.empty(0, object), np.empty(0, CHECKSUM), no_codes, no_codes,
            no_descriptors,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> Int64:
        return self.arrays[0].values

    @property
    def ids(self) -> Ids:
        return self.arrays[1].values

    @property
    def checksums(self) -> Checksums:
        return self.arrays[2].values

    @property
    def family(self) -> Int32:
        """The number of each model's family in `Labels`."""
        return self.arrays[3].values

    @property
    def tag_set(self) -> Int32:
        return self.arrays[4].values

    @property
    def descriptors(self) -> Float32:
        """``(13, model)``: a column of each descriptor lies together."""
        return self.arrays[5].values

    def extended(self, more: Described) -> Columns:
        """These, then ``more``."""
        family = np.array([self.labels.family(name) for name in more.families], np.int32)
        tag_set = np.array([self.labels.tag_set(tags) for tags in more.tags], np.int32)
        added: tuple[NDArray[Any], ...] = (more.rows, more.ids, more.checksums, family, tag_set, more.descriptors.T)
        first, second, *rest = (held.extended(each) for held, each in zip(self.arrays, added, strict=True))
        third, fourth, fifth, sixth = rest
        return Columns(self.labels, (first, second, third, fourth, fifth, sixth))

    def taken(self, positions: Int64) -> Columns:
        """A copy of the entries at ``positions``, with labels that only they have."""
        used, family = np.unique(self.family[positions], return_inverse=True)
        sets, tag_set = np.unique(self.tag_set[positions], return_inverse=True)
        without = int(len(used) > 0 and used[0] == NO_FAMILY)
        labels = Labels(
            [self.labels.families[code] for code in used[without:]], [self.labels.tag_sets[code] for code in sets]
        )
        return Columns.of(
            labels,
            self.rows[positions],
            self.ids[positions],
            self.checksums[positions],
            (family - without).astype(np.int32),
            tag_set.astype(np.int32),
            np.ascontiguousarray(self.descriptors[:, positions]),
        )

    def passing(self, condition: Filter) -> Bool:
        """Which positions a filter lets through, whether or not their models are still there.

        Numbers are compared in float64, as SQLite compares them.
        """
        mask = np.ones(len(self), np.bool_)
        if condition.families:
            mask &= self.labels.among(condition.families)[self.family]
        if condition.tags:
            mask &= self.labels.carrying(condition.tags)[self.tag_set]
        for name, (low, high) in condition.ranges:
            column = self.descriptors[NAMES.index(name)].astype(np.float64)
            mask &= (column >= low) & (column <= high)
        return mask

    def histograms(self, alive: Bool, parts: int) -> dict[str, Histogram]:
        """How many models lie in each of ``parts`` equal parts of each descriptor's range; empty if there is none."""
        if not alive.any():
            return {}
        found = {}
        for name, column in zip(NAMES, self.descriptors, strict=True):
            values = column[alive].astype(np.float64)
            low, high = float(values.min()), float(values.max())
            part = np.minimum(parts - 1, ((values - low) * parts / (high - low or 1.0)).astype(np.int64))
            found[name] = Histogram(low, high, tuple(np.bincount(part, minlength=parts).tolist()))
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """Sums over the living models, kept up with each change.

    Attributes:
        families: ``(family number,)``, how many models each has.
        low, high: ``(13,)``, the ends of each descriptor; infinite the wrong way round if there is no model.
    """

    families: Int64
    low: Float32
    high: Float32

    @classmethod
    def of(cls, columns: Columns, alive: Bool) -> Tally:
        ends = np.array([_ends(column[alive]) for column in columns.descriptors], np.float32)
        return cls(_counted(columns.family[alive], len(columns.labels.families)), ends[:, 0], ends[:, 1])

    def extended(self, columns: Columns, count: int) -> Tally:
        """With the last ``count`` models of ``columns``."""
        if not count:
            return self
        families = _counted(columns.family[-count:], len(columns.labels.families))
        families[: len(self.families)] += self.families
        new = columns.descriptors[:, -count:]
        return Tally(families, np.minimum(self.low, new.min(axis=1)), np.maximum(self.high, new.max(axis=1)))

    def without(self, columns: Columns, positions: Int64, alive: Bool) -> Tally:
        """Without the models at ``positions``, ``alive`` being what is left.

        Only where one of them was the lowest or the highest is a column read again.
        """
        if not len(positions):
            return self
        families = self.families - _counted(columns.family[positions], len(self.families))
        gone = columns.descriptors[:, positions]
        low, high = self.low.copy(), self.high.copy()
        for i in np.flatnonzero((gone <= low[:, None]).any(axis=1) | (gone >= high[:, None]).any(axis=1)):
            low[i], high[i] = _ends(columns.descriptors[i][alive])
        return Tally(families, low, high)

    def by_name(self, labels: Labels) -> dict[str, int]:
        """How many models each family has, sorted by name."""
        held = np.flatnonzero(self.families)
        return dict(sorted((labels.families[code], int(self.families[code])) for code in held))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Descriptor → lowest and highest; empty if there is no model."""
        if not np.isfinite(self.low).all():
            return {}
        return {name: (float(self.low[i]), float(self.high[i])) for i, name in enumerate(NAMES)}


def _counted(family: Int32, families: int) -> Int64:
    return np.bincount(family[family >= 0], minlength=families).astype(np.int64)


def _ends(column: Float32) -> tuple[float, float]:
    return float(column.min(initial=np.inf)), float(column.max(initial=-np.inf))


def dump_columns(columns: Columns, positions: Int64) -> list[bytes]:
    """The file of `load_columns` for the models at ``positions``, in blocks."""
    kept = columns.taken(positions)
    labels = {"families": kept.labels.families, "tag_sets": kept.labels.tag_sets}
    return [
        keys_of(kept.checksums).astype("<i8").tobytes(),
        kept.family.astype("<i4").tobytes(),
        kept.tag_set.astype("<i4").tobytes(),
        kept.descriptors.astype("<f4").tobytes(),
        json.dumps(labels).encode(),
    ]


@dataclass(frozen=True, slots=True, eq=False)
class StoredColumns:
    """Columns out of a snapshot: entry i belongs to the record with key ``keys[i]``."""

    keys: Int64
    labels: Labels
    family: Int32
    tag_set: Int32
    descriptors: Float32  # (13, model)


def load_columns(content: NDArray[np.uint8], count: int) -> StoredColumns:
    """The inverse of `dump_columns`. Raises ValueError if ``content``, whose checksum was right, is anything else."""
    ends = np.cumsum([8 * count, 4 * count, 4 * count, 4 * len(NAMES) * count])
    if len(content) < ends[-1]:
        raise ValueError("it is shorter than its manifest says")
    keys, family, tag_set, descriptors, rest = np.split(content, ends)
    labels = json.loads(rest.tobytes())
    return StoredColumns(
        keys.view("<i8").astype(np.int64),
        Labels(labels["families"], [tuple(tags) for tags in labels["tag_sets"]]),
        family.view("<i4").astype(np.int32),
        tag_set.view("<i4").astype(np.int32),
        descriptors.view("<f4").astype(np.float32).reshape(len(NAMES), count),
    )


def keys_of(checksums: Checksums) -> Int64:
    """The first eight bytes of each checksum, by which a snapshot knows a record."""
    return np.ascontiguousarray(checksums).view("<i8").reshape(-1, 4)[:, 0].astype(np.int64)
