"""A gallery that was exported as a Parquet table is built again from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery
from seisbind.index.maintenance import export as exporting
from seisbind.index.maintenance.export import export
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import DatasetError
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed
from seisbind.service.building import sources
from seisbind.service.building.build import Encoders, add, build
from seisbind.service.building.sources import ModelFiles

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[parquet]'")
parquet = pytest.importorskip("pyarrow.parquet")

COUNT = 300  # more than are read from a gallery at once, so that there are two row groups


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory, embedder: Embedder) -> Path:
    """Of three sources, one of which is none; ids that are not those of the maps, families and tags."""
    path = tmp_path_factory.mktemp("exported") / "gallery"
    velocity, family = mixed(COUNT, 5)
    vectors = np.tile(embedder.embed_velocity(velocity[:10]), (COUNT // 10, 1))
    with Gallery.create(path, fingerprint=embedder.fingerprint) as made:
        for source, rows in (("a", slice(0, 90)), (None, slice(90, 95)), ("c", slice(95, COUNT))):
            ids = [f"m{i}" for i in range(COUNT)][rows]
            tags = [("field", f"t{i % 3}") if i % 2 else () for i in range(COUNT)][rows]
            made.add(
                velocity[rows], describe(velocity[rows]), vectors[rows], vectors[rows],
                model_ids=ids, families=[None if i == "m4" else family[0] for i in ids], tags=tags, source=source,
            )  # fmt: skip
    return path


def held(path: Path) -> list[Any]:
    with Gallery.open(path, fingerprint=None) as gallery:
        ids = gallery.model_ids()
        found = zip(gallery.records(ids), gallery.velocities(ids), strict=True)
        return [(r.model_id, r.family, r.tags, r.source, r.descriptors.tolist(), v.tobytes()) for r, v in found]


def test_what_was_exported_is_built_again(
    gallery: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "ROW_GROUP", 200)
    monkeypatch.setattr(sources, "BATCH", 110)  # parts that row groups do not end with
    file = tmp_path / "models.parquet"
    export(gallery, file, what=("maps",))
    assert parquet.ParquetFile(file).metadata.num_row_groups == 2
    source = ModelFiles.of([file])
    assert source.count == COUNT and [part.stop - part.start for part in source.parts()] == [110, 110, 36, 44]  # type: ignore[attr-defined]
    done = build(tmp_path / "again", source, Encoders(embedder, workers=0))
    assert (done.given, done.stored) == (COUNT, COUNT)
    assert held(tmp_path / "again") == held(gallery)
    with Gallery.open(tmp_path / "again", fingerprint=None, writable=True) as again:
        vectors = again.embeddings(["m7"])[0]
        np.testing.assert_allclose(vectors, embedder.embed_velocity(again.velocity("m7")[None]), atol=1e-5)
        again.remove(["m3", "m200"])
        assert add(again, source, Encoders(embedder, workers=0), tags=["late"]).stored == 2
        assert again.record("m3").tags == ("field", "late", "t0")


def test_parts_that_were_done_are_skipped(gallery: Path, tmp_path: Path) -> None:
    file = tmp_path / "models.parquet"
    export(gallery, file, what=("maps", "descriptors", "embeddings"))
    part = next(ModelFiles.of([file]).parts(1))
    velocity, families = part.read()
    assert velocity.shape == (COUNT - 256, 70, 70) and len(families) == len(velocity)


def test_what_is_no_export_of_maps_is_refused(gallery: Path, tmp_path: Path) -> None:
    file, other = tmp_path / "models.parquet", tmp_path / "other.parquet"
    export(gallery, file, what=("descriptors",))
    with pytest.raises(DatasetError, match="It has no column 'depth_cells'"):
        ModelFiles.of([file])
    export(gallery, file, what=("maps",), overwrite=True)
    with pytest.raises(DatasetError, match="of another frame than the weights"):
        ModelFiles.of([file], frame=replace(OPENFWI_FRAME, name="mine", cell_m=5.0))
    table = parquet.read_table(file)
    parquet.write_table(table.replace_schema_metadata({}), other)
    with pytest.raises(DatasetError, match="no Parquet file that 'seisbind gallery export' wrote"):
        ModelFiles.of([other])
    lying = table.set_column(table.schema.get_field_index("x_cells"), "x_cells", pyarrow.array([71] * COUNT))
    parquet.write_table(lying, other)
    with pytest.raises(DatasetError, match="maps that are not of 70 x 71 cells"):
        next(ModelFiles.of([other]).parts()).read()
    facts = json.loads(table.schema.metadata[b"seisbind"])
    parquet.write_table(table.replace_schema_metadata({"seisbind": json.dumps(facts | {"frame": 3})}), other)
    with pytest.raises(DatasetError, match="no Parquet file"):
        ModelFiles.of([other])
    other.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DatasetError, match="cannot be read as a Parquet file"):
        ModelFiles.of([other])
