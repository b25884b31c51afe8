"""What a rounded gallery stores is what it says, and galleries of format 1 are written as what they are."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery
from seisbind.index.storage.record import content_id
from seisbind.model.errors import GalleryDamaged, InvalidConfig

MakeBatch = Callable[..., Any]
GOLDEN = Path(__file__).parent / "golden"


def test_a_rounded_gallery_stores_what_it_says_and_names_it_by_that(tmp_path: Path, make_batch: MakeBatch) -> None:
    batch = make_batch(8)
    with Gallery.create(tmp_path / "g", fingerprint="w", dimension=16, precision_m_s=0.5) as gallery:
        stored = gallery.stored(batch.velocity)
        arrays = (batch.descriptors, batch.velocity_embeddings, batch.physics_embeddings)
        ids = gallery.add(batch.velocity, *arrays)
        assert gallery.add(stored, *arrays, skip_existing=True) == ids and len(gallery) == 8
    assert 0 < np.abs(stored - batch.velocity).max() <= 0.5
    with Gallery.open(tmp_path / "g", fingerprint="w") as gallery:
        assert ids == [content_id(each) for each in stored]
        np.testing.assert_array_equal(np.stack(gallery.velocities(ids)), stored)
        assert gallery.precision_m_s == gallery.info().precision_m_s == 0.5 and gallery.verify().ok


def test_an_exact_gallery_stores_every_bit(tmp_path: Path, make_batch: MakeBatch) -> None:
    batch = make_batch(8)
    with Gallery.create(tmp_path / "g", fingerprint="w", dimension=16) as gallery:
        batch.add_to(gallery)
        assert gallery.info().precision_m_s == 0
        np.testing.assert_array_equal(np.stack(gallery.velocities(batch.model_ids)), batch.velocity)


def test_a_precision_that_makes_no_sense_makes_no_gallery(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="got 40"):
        Gallery.create(tmp_path / "g", fingerprint="w", precision_m_s=40)
    assert not (tmp_path / "g").exists()


def test_a_gallery_of_format_1_is_written_in_format_1(tmp_path: Path, make_batch: MakeBatch) -> None:
    path = tmp_path / "g"
    shutil.copytree(GOLDEN / "format-1", path)
    batch = make_batch(3, first=50, dimension=8, cells=5)
    with Gallery.open(path, fingerprint="golden", writable=True) as gallery:
        batch.add_to(gallery)
        gallery.remove(["m0"])
    with Gallery.open(path, fingerprint="golden") as gallery:
        assert gallery.info().format_version == 1 and gallery.verify().ok and len(gallery) == 10
        np.testing.assert_array_equal(np.stack(gallery.velocities(batch.model_ids)), batch.velocity)
    with closing(sqlite3.connect(path / "records.sqlite")) as connection:
        (raw,) = connection.execute("SELECT velocity FROM velocities ORDER BY row DESC LIMIT 1").fetchone()
    assert raw == batch.velocity[-1].astype("<f4").tobytes()


def test_every_flip_in_a_coded_blob_is_damage_or_changes_nothing(tmp_path: Path) -> None:
    """The flips of `test_damage` go through the file; these through each byte of blobs that zstd has made."""
    velocity = np.repeat(np.linspace(1500, 4500, 20, dtype=np.float32).round()[:, None], 20, axis=1)[None]
    unit = np.eye(1, 16, dtype=np.float32)
    path = tmp_path / "g"
    with Gallery.create(path, fingerprint="w", dimension=16) as gallery:
        gallery.add(velocity, np.ones((1, 13)), unit, unit, model_ids=["m"])
    with (
        Gallery.open(path, fingerprint="w") as gallery,
        closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as connection,
    ):
        refused = 0
        for table in ("velocities", "embeddings"):
            (blob,) = connection.execute(f"SELECT velocity FROM {table}").fetchone()
            for offset in range(len(blob)):
                changed = bytearray(blob)
                changed[offset] ^= 1 << offset % 8
                connection.execute(f"UPDATE {table} SET velocity = ?", (bytes(changed),))
                try:
                    if table == "velocities":
                        np.testing.assert_array_equal(gallery.velocity("m"), velocity[0])
                    else:
                        np.testing.assert_array_equal(gallery._records.embeddings(np.array([1]))[0], unit)
                except GalleryDamaged:
                    refused += 1
            connection.execute(f"UPDATE {table} SET velocity = ?", (blob,))
        assert refused > 50 and gallery.verify().ok
