"""Records one after another, in the memory of a few."""

from __future__ import annotations

import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from seisbind.index import Filter, Gallery
from seisbind.index.listing import PAGE, list_records
from seisbind.model.errors import GalleryDamaged, GalleryNotFound
from seisbind.model.ground.descriptors import NAMES, describe


def filled(path: Path, count: int) -> Path:
    """A gallery of ``count`` models of 4 x 4 cells, every third tagged."""
    velocity = 1500 + np.arange(count, dtype=np.float32)[:, None, None] / 10 + np.zeros((4, 4), np.float32)
    unit = np.eye(4, dtype=np.float32)[np.arange(count) % 4]
    with Gallery.create(path, fingerprint="test", dimension=4) as gallery:
        gallery.add(
            velocity,
            describe(velocity),
            unit,
            unit,
            model_ids=[f"m-{i}" for i in range(count)],
            families=["a" if i % 2 else "b" for i in range(count)],
            tags=[("third",) if i % 3 == 0 else () for i in range(count)],
        )
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("listing") / "g", 2 * PAGE + 7)


def test_all_in_the_order_they_were_added(large: Path) -> None:
    found = list(list_records(large))
    assert [record.model_id for record in found] == [f"m-{i}" for i in range(2 * PAGE + 7)]
    with Gallery.open(large, fingerprint=None) as gallery:
        assert found[PAGE].checksum == gallery.record(f"m-{PAGE}").checksum


def test_by_family_tag_and_range_and_so_many(large: Path) -> None:
    chosen = Filter(("a",), ("third",), ((NAMES[0], (1510.0, np.inf)),))
    expected = [f"m-{i}" for i in range(100, 2 * PAGE + 7) if i % 2 and i % 3 == 0]
    assert [record.model_id for record in list_records(large, filter=chosen)] == expected
    assert [record.model_id for record in list_records(large, filter=chosen, limit=2)] == expected[:2]


def test_none_and_no_gallery(tmp_path: Path) -> None:
    assert list(list_records(filled(tmp_path / "g", 3), filter=Filter(("c",)))) == []
    with pytest.raises(GalleryNotFound):
        list(list_records(tmp_path / "none"))


@pytest.mark.parametrize("limit", [None, 2, PAGE, 2 * PAGE])
def test_models_that_are_gone_from_the_file_are_missed_at_the_end(tmp_path: Path, limit: int | None) -> None:
    """Each record that is left is right; only the digest of all of them knows."""
    path = filled(tmp_path / "g", PAGE + 20)
    with closing(sqlite3.connect(path / "records.sqlite")) as connection:
        connection.execute("DELETE FROM models WHERE row BETWEEN 5 AND 14")
        connection.commit()
    found = []
    with pytest.raises(GalleryDamaged, match="digest"):
        for record in list_records(path, filter=Filter(("a",)), limit=limit):
            found.append(record.model_id)
    assert len(found) == min(limit or PAGE, PAGE // 2 + 5)


def test_what_is_removed_meanwhile_is_left_out(tmp_path: Path) -> None:
    path = filled(tmp_path / "g", PAGE + 3)
    records = list_records(path)
    next(records)
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        gallery.remove([f"m-{PAGE + 1}"])
    assert [record.model_id for record in records][-2:] == [f"m-{PAGE}", f"m-{PAGE + 2}"]


def test_a_page_is_held_at_a_time(tmp_path: Path) -> None:
    """Four times the models, the same memory: two pages, while one follows the other."""
    small, large = filled(tmp_path / "small", 2 * PAGE), filled(tmp_path / "large", 8 * PAGE)

    def peak_bytes(path: Path) -> int:
        tracemalloc.start()
        for _ in list_records(path):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak_bytes(small)  # what is imported and compiled first
    assert peak_bytes(large) < 1.3 * peak_bytes(small)
