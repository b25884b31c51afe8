"""A gallery as files that others read: a Parquet table, an npz, or a folder of npy files."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from seisbind.index.maintenance.models import Stored, stored_models
from seisbind.index.search.filter import Filter
from seisbind.index.storage.database import RECORDS, translate_errors
from seisbind.index.storage.records import Records
from seisbind.model.errors import GalleryError, InvalidConfig, MissingExtra
from seisbind.model.files import replacing, sync
from seisbind.model.ground.descriptors import DESCRIPTORS

PARTS = ("maps", "descriptors", "embeddings")
ROW_GROUP = 1024  # models: 20 MB of maps before they are packed
WORDS = ("model_id", "family", "source", "added_at", "tags")  # of the npy files, which are texts


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: how many models, of which generation."""

    count: int
    generation: int


def export(
    path: Path,
    out: Path,
    *,
    what: Sequence[str] = PARTS,
    filter: Filter | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Exported:
    """Write the models of the gallery in ``path`` to ``out``, whole or not at all; docs/formats.md has the columns.

    ``out`` ends with .parquet (a table, in row groups) or .npz, or is a folder, for npy files. Each record is compared
    with its checksum, and all with the digest of the gallery; others may write it meanwhile. Memory is that of a few
    hundred models, of a row group for Parquet. An npz needs the room of its arrays twice until it is done.

    Args:
        what: of maps, descriptors and embeddings; ids, family, tags, source and time are always there.
        filter: which models.
        progress: called with the number of models read so far.

    Raises:
        InvalidConfig: another ending, an unknown part, or ``out`` is there and ``overwrite`` is false.
        MissingExtra: Parquet without pyarrow.
        GalleryNotFound, GalleryDamaged, GalleryError: as `Gallery.open`; nothing was written.
        GalleryWriteFailed: the disk refused; nothing was written.
    """
    unknown = sorted(set(what) - set(PARTS))
    if unknown:
        raise InvalidConfig(f"{unknown[0]!r} is no part of an export; known: {', '.join(PARTS)}.")
    if out.suffix not in (".parquet", ".npz", ""):
        raise InvalidConfig(
            f"{out} ends with {out.suffix}; give .parquet, .npz, or a folder, whose name has no ending."
        )
    if out.exists() and (not overwrite or out.is_dir()):
        raise InvalidConfig(
            f"{out} is there already. Name another file" + ("." if out.is_dir() else ", or overwrite it.")
        )
    write = {".parquet": _parquet, ".npz": _npz, "": _folder}[out.suffix]
    with (
        closing(Records(path / RECORDS)) as records,
        records.reading(),
        translate_errors(out.parent, "export"),
    ):
        generation = records.state().generation
        chosen = _Chosen(records, filter or Filter(), progress)
        return Exported(write(out, records, chosen, _facts(records, what, generation), tuple(what)), generation)


class _Chosen:
    """The models within a filter, as often as they are read; each time the whole gallery is compared."""

    def __init__(self, records: Records, condition: Filter, progress: Callable[[int], None]) -> None:
        self._records, self._filter, self._progress = records, condition, progress

    def __iter__(self) -> Iterator[list[Stored]]:
        done = 0
        for batch in stored_models(self._records):
            yield [each for each in batch if self._filter.matches(each.record)]
            done += len(batch)
            self._progress(done)


def _facts(records: Records, what: Sequence[str], generation: int) -> dict[str, Any]:
    """What a reader has to know: of which gallery and weights, the cells, and the unit of every column."""
    units = {d.name: d.unit for d in DESCRIPTORS} if "descriptors" in what else {}
    if "maps" in what:
        units["velocity"] = "m/s"
    return {
        "format": "seisbind gallery export 1",
        "weights": records.fingerprint,
        "generation": generation,
        "dimension": records.dimension,
        "cell_m": records.frame.cell_m,
        "units": units,
        "frame": records.frame.to_dict(),
    }


def _parquet(out: Path, records: Records, chosen: _Chosen, facts: dict[str, Any], what: tuple[str, ...]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtra(
            "A .parquet export needs pyarrow: pip install 'seisbind[parquet]'. Or give an .npz, or a folder."
        ) from error
    number, vector = pyarrow.float32(), pyarrow.list_(pyarrow.float32(), records.dimension)

    def column(name: str, kind: Any, unit: str | None = None, nullable: bool = False) -> Any:
        return pyarrow.field(name, kind, nullable, None if unit is None else {"unit": unit})

    columns = [
        column("model_id", pyarrow.string()),
        column("family", pyarrow.string(), nullable=True),
        column("tags", pyarrow.list_(pyarrow.string())),
        column("source", pyarrow.string(), nullable=True),
        column("added_at", pyarrow.timestamp("ms", tz="UTC")),
    ]
    if "descriptors" in what:
        columns += [column(d.name, number, d.unit) for d in DESCRIPTORS]
    if "maps" in what:
        cells = [column(name, pyarrow.int32()) for name in ("depth_cells", "x_cells")]
        columns += [*cells, column("velocity", pyarrow.list_(number), "m/s")]
    if "embeddings" in what:
        columns += [column(name, vector) for name in ("velocity_embedding", "physics_embedding")]
    schema = pyarrow.schema(columns, {"seisbind": json.dumps(facts)})

    def table(models: Sequence[Stored]) -> Any:
        own = [each.record for each in models]
        values: dict[str, Any] = {
            "model_id": [r.model_id for r in own],
            "family": [r.family for r in own],
            "tags": [list(r.tags) for r in own],
            "source": [r.source for r in own],
            "added_at": [datetime.fromisoformat(r.added_at) for r in own],
        }
        if "descriptors" in what:
            values |= {d.name: np.array([r.descriptors[i] for r in own], np.float32) for i, d in enumerate(DESCRIPTORS)}
        if "maps" in what:
            values |= {"depth_cells": [r.shape[0] for r in own], "x_cells": [r.shape[1] for r in own]}
            ends = np.cumsum([0, *(each.velocity.size for each in models)]).astype(np.int32)
            flat = np.concatenate([each.velocity.ravel() for each in models])
            values["velocity"] = pyarrow.ListArray.from_arrays(ends, flat)
        if "embeddings" in what:
            for name in ("velocity_embedding", "physics_embedding"):
                flat = np.concatenate([getattr(each, name) for each in models])
                values[name] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat), records.dimension)
        arrays = [values[field.name] for field in schema]
        packed = [
            each if isinstance(each, pyarrow.Array) else pyarrow.array(each, field.type)
            for each, field in zip(arrays, schema, strict=True)
        ]
        return pyarrow.table(packed, schema=schema)

    count = 0
    with replacing(out) as partial, pyarrow.parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
        waiting: list[Stored] = []
        for batch in chosen:
            waiting += batch
            count += len(batch)
            if len(waiting) >= ROW_GROUP:
                writer.write_table(table(waiting))
                waiting = []
        if waiting:
            writer.write_table(table(waiting))
    return count


def _folder(out: Path, records: Records, chosen: _Chosen, facts: dict[str, Any], what: tuple[str, ...]) -> int:
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        count = _write_npy(partial, records, chosen, facts, what)
        for file in (*partial.iterdir(), partial):
            sync(file)
        partial.rename(out)
        sync(out.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return count


def _npz(out: Path, records: Records, chosen: _Chosen, facts: dict[str, Any], what: tuple[str, ...]) -> int:
    arrays = out.with_name(f".{out.name}.partial")
    shutil.rmtree(arrays, ignore_errors=True)
    arrays.mkdir(parents=True)
    try:
        count = _write_npy(arrays, records, chosen, facts, what)
        with replacing(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as packed:
            for file in sorted(arrays.iterdir()):
                packed.write(file, file.name)
                file.unlink()
    finally:
        shutil.rmtree(arrays, ignore_errors=True)
    return count


def _write_npy(folder: Path, records: Records, chosen: _Chosen, facts: dict[str, Any], what: tuple[str, ...]) -> int:
    """npy files of arrays with a row for each model. The texts are read first: they say how many there are."""
    words: dict[str, list[str]] = {name: [] for name in WORDS}
    shapes: set[tuple[int, int]] = set()
    for batch in chosen:
        for each in batch:
            r = each.record
            texts = (r.model_id, r.family or "", r.source or "", r.added_at, json.dumps(r.tags))
            for name, text in zip(WORDS, texts, strict=True):
                words[name].append(text)
            shapes.add(r.shape)
    count = len(words["model_id"])
    for name, texts_of in words.items():
        np.save(folder / f"{name}.npy", np.array(texts_of, np.str_), allow_pickle=False)
    np.save(folder / "descriptor_names.npy", np.array([d.name for d in DESCRIPTORS]), allow_pickle=False)
    np.save(folder / "seisbind.npy", np.array(json.dumps(facts)), allow_pickle=False)
    wanted: dict[str, tuple[tuple[int, ...], Callable[[Stored], NDArray[np.float32]]]] = {}
    if "descriptors" in what:
        wanted["descriptors"] = ((count, len(DESCRIPTORS)), lambda each: each.record.descriptors)
    if "maps" in what:
        if len(shapes) > 1:
            raise GalleryError(
                f"The maps have {len(shapes)} shapes, which one array cannot hold. Export to .parquet, or choose by a "
                "filter."
            )
        wanted["velocity"] = ((count, *(*shapes, (0, 0))[0]), lambda each: each.velocity)
    if "embeddings" in what:
        size = (count, records.dimension)
        wanted["velocity_embedding"] = (size, lambda each: each.velocity_embedding)
        wanted["physics_embedding"] = (size, lambda each: each.physics_embedding)
    if not wanted:
        return count
    with ExitStack() as files:
        opened = []
        for name, (shape, value) in wanted.items():
            handle = files.enter_context((folder / f"{name}.npy").open("wb"))
            npy_format.write_array_header_2_0(handle, {"descr": "<f4", "fortran_order": False, "shape": shape})
            opened.append((handle, value))
        for batch in chosen:
            for each in batch:
                for handle, value in opened:
                    handle.write(value(each).astype("<f4").tobytes())
    return count
