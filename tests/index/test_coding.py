"""Models that another process has coded are stored as those that are given as arrays."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery, VerifyReport, code_models
from seisbind.model.errors import GalleryError, InvalidQuery, InvalidVelocityModel

MakeBatch = Callable[..., Any]


def rows(path: Path) -> list[list[Any]]:
    """Every byte that is stored, but for the time and the checksum that it is in."""
    with closing(sqlite3.connect(path / "records.sqlite")) as connection:
        models = connection.execute("SELECT * FROM models ORDER BY row")
        names = [column[0] for column in models.description]
        kept = [i for i, name in enumerate(names) if name not in ("added_at", "checksum")]
        found = [[row[i] for i in kept] for row in models]
        for table in ("velocities", "embeddings", "tags"):
            found += [list(row) for row in connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2")]
    return found


def coded(batch: Any, precision_m_s: float = 0.0) -> Any:
    arrays = (batch.velocity, batch.descriptors, batch.velocity_embeddings, batch.physics_embeddings)
    return code_models(*arrays, dimension=16, precision_m_s=precision_m_s)


@pytest.mark.parametrize("precision_m_s", [0.0, 0.5])
def test_coded_models_are_stored_as_the_others(tmp_path: Path, make_batch: MakeBatch, precision_m_s: float) -> None:
    facts: Any = {"fingerprint": "weights-1", "dimension": 16, "precision_m_s": precision_m_s}
    batch = make_batch(20)
    words = {"families": batch.families, "tags": batch.tags, "source": "a line"}
    with Gallery.create(tmp_path / "given", **facts) as given, Gallery.create(tmp_path / "coded", **facts) as other:
        for named in (words | {"model_ids": batch.model_ids}, words | {"skip_existing": True}, {"skip_existing": True}):
            more = make_batch(30) if "source" not in named else batch
            arrays = (more.velocity, more.descriptors, more.velocity_embeddings, more.physics_embeddings)
            expected = given.add(*arrays, **named)
            found = other.add_coded(coded(more, precision_m_s), **named)
            assert (found, found.same_map, found.written) == (expected, expected.same_map, expected.written)
        assert len(other) == 30 and other.verify() == VerifyReport(30, ())
        np.testing.assert_array_equal(np.stack(other.velocities(other.model_ids())), given.stored(more.velocity))
        with pytest.raises(InvalidQuery, match="already in the gallery"):
            other.add_coded(coded(batch, precision_m_s), model_ids=batch.model_ids)
        with pytest.raises(InvalidQuery, match="20 velocity models, 2 model_ids"):
            other.add_coded(coded(batch, precision_m_s), model_ids=["a", "b"])
    assert rows(tmp_path / "given") == rows(tmp_path / "coded")


def test_models_that_make_no_sense_are_not_coded(make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    batch.velocity[1] = 2.5
    with pytest.raises(InvalidVelocityModel, match="km/s"):
        coded(batch)
    batch = make_batch(3)
    batch.physics_embeddings[2] *= 2
    with pytest.raises(InvalidQuery, match="unit length"):
        coded(batch)


def test_a_gallery_of_format_1_takes_none(
    tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seisbind.index.storage.database.FORMAT_VERSION", 1)
    with Gallery.create(tmp_path / "old", fingerprint="weights-1", dimension=16) as gallery:
        assert not gallery.codes
        with pytest.raises(GalleryError, match="format 1, which holds no coded maps"):
            gallery.add_coded(coded(make_batch(3)))
        make_batch(3).add_to(gallery)
        assert gallery.verify() == VerifyReport(3, ())


def test_models_of_another_dimension_are_refused(tmp_path: Path, make_batch: MakeBatch) -> None:
    with Gallery.create(tmp_path / "g", fingerprint="weights-1", dimension=8) as gallery:
        with pytest.raises(InvalidQuery, match=r"embeddings of 16 numbers; those of .* have 8"):
            gallery.add_coded(coded(make_batch(3)))
        assert len(gallery) == 0
