"""An export has what the gallery has, in files that numpy and pyarrow read alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from seisbind.index import Filter, Gallery
from seisbind.index.maintenance import export as module
from seisbind.index.maintenance.duplicates import equal_maps, near_equal
from seisbind.index.maintenance.export import export
from seisbind.index.storage.codec import encode_map
from seisbind.model.errors import GalleryDamaged, InvalidConfig
from seisbind.model.ground.descriptors import DESCRIPTORS

MakeBatch = Callable[..., Any]


def test_a_parquet_table_in_row_groups_has_everything(
    filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROW_GROUP", 16)
    monkeypatch.setattr("seisbind.index.maintenance.models.AT_ONCE", 8)
    out = tmp_path / "all.parquet"
    assert export(filled, out).count == 40
    read = pyarrow.parquet.ParquetFile(out)
    assert read.num_row_groups == 3
    table, facts = read.read(), json.loads(read.schema_arrow.metadata[b"seisbind"])
    with Gallery.open(filled, fingerprint=None) as gallery:
        ids = gallery.model_ids()
        records, maps = gallery.records(ids), gallery.velocities(ids)
        embeddings = gallery.embeddings(ids)
        assert (facts["weights"], facts["generation"]) == (gallery.fingerprint, gallery.generation)
    assert facts["units"]["velocity"] == "m/s" and facts["units"] | {"velocity": "m/s"} == facts["units"]
    for d in DESCRIPTORS:
        assert facts["units"][d.name] == d.unit == read.schema_arrow.field(d.name).metadata[b"unit"].decode()
    for row, record, velocity, *vectors in zip(table.to_pylist(), records, maps, *embeddings, strict=True):
        assert (row["model_id"], row["family"], tuple(row["tags"]), row["source"]) == (
            record.model_id, record.family, record.tags, record.source,
        )  # fmt: skip
        assert row["added_at"].isoformat(timespec="milliseconds") == record.added_at
        assert np.array_equal([row[d.name] for d in DESCRIPTORS], record.descriptors)
        shape = (row["depth_cells"], row["x_cells"])
        assert np.array_equal(np.reshape(row["velocity"], shape).astype(np.float32), velocity)
        assert np.array_equal(row["velocity_embedding"], vectors[0])
        assert np.array_equal(row["physics_embedding"], vectors[1])


@pytest.mark.parametrize("name", ["all.npz", "all"])
def test_arrays_without_pickle(filled: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    chosen = Filter(families=("FlatVel-A",))
    count = export(filled, out, filter=chosen).count
    if out.is_dir():
        arrays = {file.stem: np.load(file, allow_pickle=False) for file in out.iterdir()}
    else:
        arrays = dict(np.load(out, allow_pickle=False))
    with Gallery.open(filled, fingerprint=None) as gallery:
        wanted = [r for r in gallery.records(gallery.model_ids()) if r.family == "FlatVel-A"]
        ids = [record.model_id for record in wanted]
        assert 0 < count == len(ids) < 40 and arrays["model_id"].tolist() == ids
        assert np.array_equal(arrays["velocity"], np.stack(gallery.velocities(ids)))
        assert np.array_equal(arrays["velocity_embedding"], gallery.embeddings(ids)[0])
        assert np.array_equal(arrays["physics_embedding"], gallery.embeddings(ids)[1])
    assert np.array_equal(arrays["descriptors"], np.stack([record.descriptors for record in wanted]))
    assert [tuple(json.loads(text)) for text in arrays["tags"]] == [record.tags for record in wanted]
    assert json.loads(str(arrays["seisbind"]))["units"]["mean_velocity"] == "m/s"
    assert {path.name for path in tmp_path.iterdir()} == {"gallery", name}


def test_only_the_parts_that_are_asked_for(filled: Path, tmp_path: Path) -> None:
    export(filled, tmp_path / "some.parquet", what=("descriptors",))
    names = pyarrow.parquet.read_schema(tmp_path / "some.parquet").names
    assert "mean_velocity" in names and not {"velocity", "velocity_embedding"} & set(names)
    with pytest.raises(InvalidConfig, match="no part"):
        export(filled, tmp_path / "x.npz", what=("waves",))
    with pytest.raises(InvalidConfig, match=r"\.csv"):
        export(filled, tmp_path / "x.csv")
    with pytest.raises(InvalidConfig, match="already"):
        export(filled, tmp_path / "some.parquet")


@pytest.mark.parametrize("name", ["all.parquet", "all.npz", "all"])
def test_a_damaged_gallery_is_not_exported(filled: Path, tmp_path: Path, name: str) -> None:
    with Gallery.open(filled, fingerprint=None) as gallery:
        part = encode_map(gallery.velocity("m30"))
    file = filled / "records.sqlite"
    content = bytearray(file.read_bytes())
    content[content.index(part) + len(part) - 1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(GalleryDamaged, match="m30"):
        export(filled, tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {"gallery"}


def test_the_same_map_under_another_id_is_told_when_it_is_added(filled: Path, make_batch: MakeBatch) -> None:
    batch = make_batch(2, first=7)
    batch.model_ids[:] = ["again", "new"]
    batch.velocity[1] += 1
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        added = batch.add_to(gallery)
        assert added == ["again", "new"] and added.same_map == {"again": "m7"} and len(gallery) == 42  # type: ignore[attr-defined]
        batch.model_ids[:] = ["third", "fourth"]
        added = batch.add_to(gallery, skip_existing=True)
        assert added == ["m7", "new"] and added.written == [] and len(gallery) == 42  # type: ignore[attr-defined]
        gallery.remove(["m7", "again"])
        added = batch.add_to(gallery, skip_existing=True)  # a map that is gone is no duplicate
        assert added.written == ["third"] and added.same_map == {"fourth": "new"}  # type: ignore[attr-defined]


def test_twice_in_one_batch_is_told_too(filled: Path, make_batch: MakeBatch) -> None:
    batch = make_batch(2, first=100)
    batch.velocity[1] = batch.velocity[0]
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        added = batch.add_to(gallery, skip_existing=True)
        assert added == ["m100", "m100"] and added.same_map == {"m101": "m100"}  # type: ignore[attr-defined]


def test_groups_of_equal_maps_and_pairs_alike(filled: Path, make_batch: MakeBatch) -> None:
    assert list(equal_maps(filled)) == []
    batch = make_batch(3, first=4)
    batch.model_ids[:] = ["a", "b", "c"]
    batch.velocity[2] += 1  # another map, with the same embedding
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        batch.add_to(gallery)
    assert [group.model_ids for group in equal_maps(filled)] == [("m4", "a"), ("m5", "b")]
    with Gallery.open(filled, fingerprint=None) as gallery:
        pairs = {(pair.first, pair.second) for pair in near_equal(gallery, 0.99999)}
    assert pairs == {("m4", "a"), ("m5", "b"), ("m6", "c")}
