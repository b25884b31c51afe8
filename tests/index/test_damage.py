"""Flipped bytes are refused or harmless, and said (promise 16)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from seisbind.index import Filter, Gallery
from seisbind.model.errors import GalleryError, UnknownModel

MakeBatch = Callable[..., Any]
COUNT = 5


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, make_batch: MakeBatch) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "gallery"
    with Gallery.create(path, fingerprint="weights-1", dimension=8) as gallery:
        make_batch(COUNT + 2, dimension=8, cells=5).add_to(gallery)
        gallery.remove(["m5", "m6"])
    return path


def answers(gallery: Gallery, batch: Any) -> dict[str, Any]:
    """Everything that the gallery can be asked, each answer on its own, or the error that refused it."""

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except (GalleryError, UnknownModel) as error:
            return error

    asked: dict[str, Callable[[], Any]] = {
        "ids": gallery.model_ids,
        "velocity search": lambda: gallery.search_velocity(batch.velocity_embeddings, 9),
        "physics search": lambda: gallery.search_physics(batch.physics_embeddings, 9),
        "by family": lambda: gallery.search_velocity(
            batch.velocity_embeddings, 9, filter=Filter(families=("FlatVel-A", "CurveVel-A"))
        ),
        "by tag": lambda: gallery.search_velocity(batch.velocity_embeddings, 9, filter=Filter(tags=("field",))),
        "by range": lambda: gallery.search_velocity(
            batch.velocity_embeddings, 9, filter=Filter.parse({"mean_velocity": [2900, 3100]})
        ),
        "families": gallery.families,
        "ranges": lambda: gallery.info().descriptor_ranges,
        "weights": lambda: gallery.fingerprint,
    }
    for model_id in batch.model_ids:
        asked[f"map of {model_id}"] = lambda model_id=model_id: gallery.velocity(model_id).tobytes()
        asked[f"record of {model_id}"] = lambda model_id=model_id: repr(gallery.record(model_id))
    return {name: ask(question) for name, question in asked.items()}


# What SQL computes over columns at once, unchecked: a flip may change the answer, and then verify() has to say so.
AGGREGATES = ("by family", "by tag", "by range", "families", "ranges")


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    content = path.read_bytes()
    changed = bytearray(content)
    changed[offset] ^= 1 << bit
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(content)
        for leftover in path.parent.glob("records.sqlite-*"):
            leftover.unlink()


@pytest.mark.parametrize("name", ["velocity.faiss", "velocity.json", "physics.faiss", "physics.json"])
def test_every_flip_in_a_snapshot_is_said_and_changes_no_answer(
    pristine: Path, tmp_path: Path, make_batch: MakeBatch, name: str
) -> None:
    path = tmp_path / "gallery"
    shutil.copytree(pristine, path)
    batch = make_batch(COUNT, dimension=8, cells=5)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = answers(gallery, batch)
        assert gallery.info().notes == () and gallery.verify().ok
    for offset in range(0, (path / name).stat().st_size, 5):
        with flipped(path / name, offset, offset % 8), Gallery.open(path, fingerprint=None) as gallery:
            assert any(f"{name.split('.')[0]} snapshot was not used" in note for note in gallery.info().notes), offset
            assert answers(gallery, batch) == truth, offset
            if offset % 25 == 0:
                assert not gallery.verify().ok, offset


def test_faiss_alone_would_have_believed_some_of_them(pristine: Path) -> None:
    """Vacuity: without the checksum the same flips give other vectors without a word."""
    content = (pristine / "velocity.faiss").read_bytes()
    right = faiss.deserialize_index(np.frombuffer(content, np.uint8))
    query = np.eye(1, 8, dtype=np.float32)
    believed = 0
    for offset in range(len(content) - 8 * COUNT - 8 * 4 * COUNT, len(content) - 8 * COUNT - 16, 5):
        changed = bytearray(content)
        changed[offset] ^= 1 << (offset % 8)
        index = faiss.deserialize_index(np.frombuffer(bytes(changed), np.uint8))
        believed += not np.array_equal(index.search(query, 5)[0], right.search(query, 5)[0])
    assert believed > 0


@pytest.mark.parametrize("start", range(4))
def test_a_flip_in_the_records_is_refused_or_harmless_or_found(
    pristine: Path, tmp_path: Path, make_batch: MakeBatch, start: int
) -> None:
    path = tmp_path / "gallery"
    shutil.copytree(pristine, path)
    batch = make_batch(COUNT, dimension=8, cells=5)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = answers(gallery, batch)
    records = path / "records.sqlite"
    refused = found = harmless = 0
    for offset in offsets(records)[start::4]:
        with flipped(records, offset, offset % 8):
            try:
                gallery = Gallery.open(path, fingerprint=None)
            except GalleryError:
                refused += 1
                continue
            with gallery:
                given = answers(gallery, batch)
                wrong = [name for name in truth if given[name] != truth[name]]
                if wrong:
                    assert not gallery.verify().ok, (offset, wrong)
                    found += 1
                else:
                    harmless += 1
                for name in set(wrong) - set(AGGREGATES):
                    assert isinstance(given[name], GalleryError | UnknownModel), (offset, name, given[name])
    assert refused > 10 and found > 0 and harmless > 0


def offsets(records: Path) -> list[int]:
    """Every byte that is not zero and every 97th of the rest: empty space is most of a small SQLite file."""
    content = np.frombuffer(records.read_bytes(), np.uint8)
    dense = np.flatnonzero(content)
    sparse = np.arange(0, len(content), 97)
    return sorted({*dense[::9].tolist(), *sparse.tolist()})
