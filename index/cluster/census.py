"""What is counted over all models of a gallery in Milvus, which counts nothing itself but rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from seisbind.index.cluster.connection import Connection
from seisbind.index.storage.record import Histogram
from seisbind.model.ground.descriptors import NAMES

PAGE = 8192  # row numbers of one call: 2 MB


class Census:
    """Families and descriptors of some models, by row."""

    def __init__(self) -> None:
        self._family: dict[int, str] = {}
        self._numbers: dict[int, tuple[float, ...]] = {}

    def __len__(self) -> int:
        return len(self._family)

    def add(self, row: int, family_key: str, descriptors: tuple[float, ...]) -> None:
        self._family[row], self._numbers[row] = family_key, descriptors

    def remove(self, row: int) -> None:
        self._family.pop(row, None)
        self._numbers.pop(row, None)

    def families(self) -> dict[str, int]:
        """How many models each family has, by name."""
        counts = Counter(bytes.fromhex(each).decode() for each in self._family.values() if each)
        return dict(sorted(counts.items()))

    def _columns(self) -> NDArray[np.float64]:
        return np.asarray(list(self._numbers.values()), np.float64).reshape(-1, len(NAMES))

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Descriptor → lowest and highest; empty if there is no model."""
        columns = self._columns()
        if not len(columns):
            return {}
        ends = zip(NAMES, columns.min(axis=0).tolist(), columns.max(axis=0).tolist(), strict=True)
        return {name: (low, high) for name, low, high in ends}

    def histograms(self, parts: int) -> dict[str, Histogram]:
        """How many models lie in each of ``parts`` equal parts of each descriptor's range."""
        found = {}
        columns = self._columns()
        for name, (low, high) in self.ranges().items():
            values = columns[:, NAMES.index(name)]
            part = np.minimum(parts - 1, ((values - low) * parts / (high - low or 1.0)).astype(np.int64))
            found[name] = Histogram(low, high, tuple(np.bincount(part, minlength=parts).tolist()))
        return found


def count(connection: Connection, collection: str, last_row: int) -> Census:
    """The census of all models, of which the last has ``last_row`` at most. Goes through all of them."""
    census = Census()
    for first in range(0, last_row, PAGE):
        expression = f"row > {first} and row <= {first + PAGE}"
        for row in connection.query(collection, expression, ["row", "family_key", *NAMES]):
            census.add(int(row["row"]), row["family_key"], tuple(float(row[name]) for name in NAMES))
    return census
