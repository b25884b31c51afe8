"""Velocity models of a Parquet file that `seisbind gallery export` wrote, row group by row group."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import DatasetError, MissingExtra
from seisbind.model.frame import Frame

ENDING = ".parquet"
FORMAT = "seisbind gallery export 1"
COLUMNS = ("model_id", "family", "tags", "source", "depth_cells", "x_cells", "velocity")


@dataclass(frozen=True, slots=True)
class Words:
    """What the gallery that was exported knew of each model, besides its family."""

    model_ids: Sequence[str]
    tags: Sequence[tuple[str, ...]]
    sources: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class ExportedPart:
    """Rows of one row group."""

    path: Path
    group: int
    start: int
    stop: int

    def read(self) -> tuple[NDArray[np.float32], Sequence[str | None]]:
        """The maps ``(model, depth, x)``, m/s, and the family of each. Raises DatasetError."""
        rows = self._rows()
        shapes = {*zip(rows["depth_cells"].to_pylist(), rows["x_cells"].to_pylist(), strict=True)}
        maps = rows["velocity"].combine_chunks()
        if len(shapes) != 1:
            raise DatasetError(f"{self.path} has maps of {len(shapes)} shapes; a gallery that is built takes one.")
        ((depth, x),) = shapes
        flat = maps.flatten()
        if maps.null_count or flat.null_count or set(maps.value_lengths().to_pylist()) != {depth * x}:
            raise DatasetError(f"{self.path} has maps that are not of {depth} x {x} cells, as it says.")
        return flat.to_numpy().astype(np.float32).reshape(len(maps), depth, x), rows["family"].to_pylist()

    def words(self) -> Words:
        """Ids, tags and sources. Raises DatasetError."""
        rows = self._rows()
        tags = [tuple(each or ()) for each in rows["tags"].to_pylist()]
        return Words(rows["model_id"].to_pylist(), tags, rows["source"].to_pylist())

    def _rows(self) -> Any:
        return _group(self.path, self.group).slice(self.start, self.stop - self.start)


def count_exported(path: Path, frame: Frame) -> int:
    """How many models the file has.

    Raises:
        DatasetError: it is no export of a gallery with maps, or of another frame than ``frame``.
        MissingExtra: pyarrow is not installed.
    """
    opened = _opened(path)
    facts: Any = {}
    try:
        facts = json.loads((opened.schema_arrow.metadata or {}).get(b"seisbind", b"null"))
        own = Frame.from_dict(facts["frame"]) if facts["format"] == FORMAT else None
    except (ValueError, TypeError, KeyError, AttributeError):
        own = None
    missing = [name for name in COLUMNS if name not in opened.schema_arrow.names]
    if own is None or missing:
        lacks = f" It has no column {missing[0]!r}." if own is not None else ""
        raise DatasetError(
            f"{path} is no Parquet file that 'seisbind gallery export' wrote with maps.{lacks} Of other tables, save "
            "the maps as an npy file (model, depth, x)."
        )
    if own != frame:
        raise DatasetError(f"{path} is of another frame than the weights: {own} there, {frame} here.")
    return int(opened.metadata.num_rows)


def exported_parts(path: Path, size: int) -> Iterator[ExportedPart]:
    """Parts of up to ``size`` models, in order."""
    metadata = _opened(path).metadata
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for start in range(0, rows, size):
            yield ExportedPart(path, group, start, min(start + size, rows))


@lru_cache(2)
def _group(path: Path, number: int) -> Any:
    """A row group, which several parts are of: 20 MB."""
    import pyarrow

    try:
        return _opened(path).read_row_group(number, columns=list(COLUMNS))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error


def _opened(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra("A .parquet file needs pyarrow: pip install 'seisbind[parquet]'.") from error
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path} cannot be read as a Parquet file: {error}.") from error
