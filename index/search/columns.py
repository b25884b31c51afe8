"""The columns of all records that filters and counts need, in memory.

They were compared with each record's checksum when they were read (`Records.columns`), which what SQLite computes
over a column or through an index never is. An array here grows at its end without being copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.index.search.filter import Filter
from seisbind.index.search.labels import NO_FAMILY, Bool, Labels
from seisbind.index.storage.record import CHECKSUM, Checksums, Float32, Histogram, Ids, Int64, RecordColumns, objects
from seisbind.model.ground.descriptors import NAMES

Int32 = NDArray[np.int32]
CodedIds = NDArray[np.bytes_]  # a byte a character, as ids are ASCII, and no object each

SPARE_SHARE = 8  # a full array gets this fraction more than it needs, so that additions are rarely a copy
MIN_SPARE = 1024  # entries


class _Buffer:
    __slots__ = ("array", "used")

    def __init__(self, array: NDArray[Any], used: int) -> None:
        self.array = array
        self.used = used


class GrowableArray:
    """The first entries, along the last axis, of an array with room behind them.

    Its values never change: ``extended`` writes behind the end, or copies if something is there already.
    One thread at a time may extend.
    """

    __slots__ = ("_buffer", "values")

    def __init__(self, values: NDArray[Any], buffer: _Buffer | None = None) -> None:
        self._buffer = _Buffer(values, values.shape[-1]) if buffer is None else buffer
        self.values = values

    def extended(self, more: NDArray[Any]) -> GrowableArray:
        held, buffer = self.values.shape[-1], self._buffer
        count, dtype = held + more.shape[-1], np.promote_types(self.values.dtype, more.dtype)  # longer ids
        if buffer.used != held or buffer.array.shape[-1] < count or dtype != buffer.array.dtype:
            room = count + max(MIN_SPARE, count // SPARE_SHARE)
            buffer = _Buffer(np.empty((*self.values.shape[:-1], room), dtype), held)
            buffer.array[..., :held] = self.values
        buffer.array[..., held:count] = more
        buffer.used = count
        return GrowableArray(buffer.array[..., :count], buffer)


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Entry i of each array belongs to position i; never changed once made."""

    labels: Labels
    arrays: tuple[GrowableArray, ...]  # in the order of the properties

    @classmethod
    def of(
        cls,
        labels: Labels,
        rows: Int64,
        ids: Ids | CodedIds,
        checksums: Checksums,
        family: Int32,
        tag_set: Int32,
        descriptors: Float32,
        source: Int32,
        added: Int64,
    ) -> Columns:
        """Columns of these arrays ``(model,)``, ``descriptors`` being ``(13, model)``."""
        arrays = (rows, coded(ids), checksums, family, tag_set, descriptors, source, added)
        return cls(labels, tuple(map(GrowableArray, arrays)))

    @classmethod
    def empty(cls) -> Columns:
        no_codes = np.empty(0, np.int32)
        no_descriptors = np.empty((len(NAMES), 0), np.float32)
        return cls.of(
            Labels(), np.empty(0, np.int64), np.empty(0, object), np.empty(0, CHECKSUM), no_codes, no_codes,
            no_descriptors, no_codes, np.empty(0, np.int64),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> Int64:
        return self.arrays[0].values

    @property
    def coded_ids(self) -> CodedIds:
        return self.arrays[1].values

    def ids_at(self, positions: Int64 | Bool) -> Ids:
        return objects([model_id.decode() for model_id in self.coded_ids[positions].tolist()])

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

    @property
    def source(self) -> Int32:
        """The number of each model's source in `Labels`."""
        return self.arrays[6].values

    @property
    def added(self) -> Int64:
        """When each model was added, `seisbind.index.storage.record.milliseconds`."""
        return self.arrays[7].values

    def extended(self, more: RecordColumns) -> Columns:
        """These, then ``more``."""
        source = np.array([self.labels.source(name) for name in more.sources], np.int32)
        family = np.array([self.labels.family(name) for name in more.families], np.int32)
        tag_set = np.array([self.labels.tag_set(tags) for tags in more.tags], np.int32)
        added: tuple[NDArray[Any], ...] = (
            more.rows,
            coded(more.ids),
            more.checksums,
            family,
            tag_set,
            more.descriptors.T,
            source,
            more.added,
        )
        return Columns(self.labels, tuple(held.extended(each) for held, each in zip(self.arrays, added, strict=True)))

    def at(self, positions: Int64) -> RecordColumns:
        """The entries at ``positions``, as they were given to `extended`."""
        labels = self.labels
        return RecordColumns(
            self.rows[positions],
            self.ids_at(positions),
            self.checksums[positions],
            [None if code == NO_FAMILY else labels.families[code] for code in self.family[positions].tolist()],
            [labels.tag_sets[code] for code in self.tag_set[positions].tolist()],
            np.ascontiguousarray(self.descriptors[:, positions].T),
            [None if code == NO_FAMILY else labels.sources[code] for code in self.source[positions].tolist()],
            self.added[positions],
        )

    def select(self, positions: Int64) -> Columns:
        """A copy of the entries at ``positions``, with only their labels."""
        used, family = np.unique(self.family[positions], return_inverse=True)
        sets, tag_set = np.unique(self.tag_set[positions], return_inverse=True)
        sources, source = np.unique(self.source[positions], return_inverse=True)
        without = int(len(used) > 0 and used[0] == NO_FAMILY)
        unknown = int(len(sources) > 0 and sources[0] == NO_FAMILY)
        labels = Labels(
            [self.labels.families[code] for code in used[without:]],
            [self.labels.tag_sets[code] for code in sets],
            [self.labels.sources[code] for code in sources[unknown:]],
        )
        return Columns.of(
            labels,
            self.rows[positions],
            self.coded_ids[positions],
            self.checksums[positions],
            (family - without).astype(np.int32),
            tag_set.astype(np.int32),
            np.ascontiguousarray(self.descriptors[:, positions]),
            (source - unknown).astype(np.int32),
            self.added[positions],
        )

    def matching(self, condition: Filter) -> Bool:
        """Which positions a filter lets through, removed models included.

        Numbers are compared as SQLite compares them, in float64: a float32 reaches a number where it reaches the first
        float32 that does.
        """
        mask = np.ones(len(self), np.bool_)
        if condition.families:
            mask &= self.labels.is_one_of(condition.families)[self.family]
        if condition.tags:
            mask &= self.labels.has_all(condition.tags)[self.tag_set]
        for name, (low, high) in condition.ranges:
            column = self.descriptors[NAMES.index(name)]
            mask &= column >= -_float32_below(-low)
            mask &= column <= _float32_below(high)
        if condition.any_tags:
            mask &= self.labels.has_any(condition.any_tags, ())[self.tag_set]
        if condition.tag_prefixes:
            mask &= self.labels.has_any((), condition.tag_prefixes)[self.tag_set]
        if condition.sources:
            mask &= self.labels.is_from(condition.sources, ())[self.source]
        if condition.source_prefixes:
            mask &= self.labels.is_from((), condition.source_prefixes)[self.source]
        if condition.added is not None:
            mask &= (self.added >= condition.added[0]) & (self.added <= condition.added[1])
        if condition.model_ids:
            mask &= self._named(condition.model_ids)
        if condition.any_of:
            mask &= np.logical_or.reduce([self.matching(each) for each in condition.any_of])
        for each in condition.all_of:
            mask &= self.matching(each)
        if condition.excluded is not None:
            mask &= ~self.matching(condition.excluded)
        return mask

    def _named(self, model_ids: Sequence[str]) -> Bool:
        """Which positions have one of these ids: by their first bytes, and then as a whole."""
        wanted = {model_id.encode(errors="surrogatepass") for model_id in model_ids}
        ids, size = self.coded_ids, min(8, self.coded_ids.itemsize)
        heads = np.zeros((len(ids), 8), np.uint8)
        heads[:, :size] = ids.view(np.uint8).reshape(len(ids), -1)[:, :size] if len(ids) else 0
        named = np.array([int.from_bytes(each[:8].ljust(8, b"\0"), "little") for each in wanted], np.uint64)
        mask = np.isin(heads.view("<u8")[:, 0], named)
        at = np.flatnonzero(mask)
        mask[at] = [each in wanted for each in ids[at].tolist()]
        return mask

    def dump(self, positions: Int64, write: Callable[[bytes], None]) -> None:
        """Write the entries at ``positions`` for `ColumnsSnapshot.load`."""
        kept = self.select(positions)
        write(keys_of(kept.checksums).astype("<i8").tobytes())
        write(kept.family.astype("<i4").tobytes())
        write(kept.tag_set.astype("<i4").tobytes())
        write(kept.descriptors.astype("<f4").tobytes())
        write(kept.source.astype("<i4").tobytes())
        write(kept.added.astype("<i8").tobytes())
        write(kept.labels.dump())

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
class Statistics:
    """Counts and ranges over the models that are not removed, updated with each change.

    Attributes:
        families: ``(family number,)``, how many models each has.
        low, high: ``(13,)``, the range of each descriptor; inf and -inf if there is no model.
    """

    families: Int64
    low: Float32
    high: Float32

    @classmethod
    def of(cls, columns: Columns, alive: Bool) -> Statistics:
        ends = np.array([_range(column[alive]) for column in columns.descriptors], np.float32)
        return cls(_count_families(columns.family[alive], len(columns.labels.families)), ends[:, 0], ends[:, 1])

    def extended(self, columns: Columns, count: int) -> Statistics:
        """With the last ``count`` models of ``columns``."""
        if not count:
            return self
        families = _count_families(columns.family[-count:], len(columns.labels.families))
        families[: len(self.families)] += self.families
        new = columns.descriptors[:, -count:]
        return Statistics(families, np.minimum(self.low, new.min(axis=1)), np.maximum(self.high, new.max(axis=1)))

    def without(self, columns: Columns, positions: Int64, alive: Bool) -> Statistics:
        """Without the models at ``positions``, ``alive`` being what is left.

        Only where one of them was the lowest or the highest is a column read again.
        """
        if not len(positions):
            return self
        families = self.families - _count_families(columns.family[positions], len(self.families))
        gone = columns.descriptors[:, positions]
        low, high = self.low.copy(), self.high.copy()
        for i in np.flatnonzero((gone <= low[:, None]).any(axis=1) | (gone >= high[:, None]).any(axis=1)):
            low[i], high[i] = _range(columns.descriptors[i][alive])
        return Statistics(families, low, high)

    def by_name(self, labels: Labels) -> dict[str, int]:
        """How many models each family has, sorted by name."""
        held = np.flatnonzero(self.families)
        return dict(sorted((labels.families[code], int(self.families[code])) for code in held))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Descriptor → lowest and highest; empty if there is no model."""
        if not np.isfinite(self.low).all():
            return {}
        return {name: (float(self.low[i]), float(self.high[i])) for i, name in enumerate(NAMES)}


def _float32_below(end: float) -> np.float32:
    """The last float32 that is no higher than ``end``."""
    with np.errstate(over="ignore"):
        nearest = np.float32(end)
    return nearest if float(nearest) <= end else np.nextafter(nearest, np.float32(-np.inf))


def _count_families(family: Int32, families: int) -> Int64:
    return np.bincount(family[family >= 0], minlength=families).astype(np.int64)


def _range(column: Float32) -> tuple[float, float]:
    return float(column.min(initial=np.inf)), float(column.max(initial=-np.inf))


@dataclass(frozen=True, slots=True, eq=False)
class ColumnsSnapshot:
    """Loaded columns: entry i belongs to the record with key ``keys[i]``."""

    keys: Int64
    labels: Labels
    family: Int32
    tag_set: Int32
    descriptors: Float32  # (13, model)
    source: Int32
    added: Int64

    @classmethod
    def of(cls, columns: Columns) -> ColumnsSnapshot:
        return cls(
            keys_of(columns.checksums), columns.labels, columns.family, columns.tag_set, columns.descriptors,
            columns.source, columns.added,
        )  # fmt: skip

    @classmethod
    def load(cls, content: NDArray[np.uint8], count: int) -> ColumnsSnapshot:
        """The inverse of `Columns.dump`. Raises ValueError if ``content``, whose checksum fits, is anything else."""
        ends = np.cumsum([8 * count, 4 * count, 4 * count, 4 * len(NAMES) * count, 4 * count, 8 * count])
        if len(content) < ends[-1]:
            raise ValueError("it is shorter than its manifest says")
        keys, family, tag_set, descriptors, source, added, rest = np.split(content, ends)
        found = cls(
            keys.view("<i8").astype(np.int64),
            Labels.load(rest.tobytes()),
            family.view("<i4").astype(np.int32),
            tag_set.view("<i4").astype(np.int32),
            descriptors.view("<f4").astype(np.float32).reshape(len(NAMES), count),
            source.view("<i4").astype(np.int32),
            added.view("<i8").astype(np.int64),
        )
        found.labels.check(found.family, found.tag_set, found.source)
        return found


def coded(ids: Ids | CodedIds) -> CodedIds:
    """Ids as bytes of one length."""
    if ids.dtype.kind == "S":
        return np.asarray(ids, np.bytes_)
    return np.array([model_id.encode() for model_id in ids.tolist()], np.bytes_)


def keys_of(checksums: Checksums) -> Int64:
    """The first eight bytes of each checksum, by which a snapshot identifies a record."""
    return np.ascontiguousarray(checksums).view("<i8").reshape(-1, 4)[:, 0].astype(np.int64)
