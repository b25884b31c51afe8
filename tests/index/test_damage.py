"""Flipped bytes are refused or harmless, and said (promise 16)."""

from __future__ import annotations

import importlib.util
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import faiss
import numpy as np
import pytest

from seisbind.index import Filter, Gallery
from seisbind.index.storage.database import PAGE_BYTES
from seisbind.index.storage.records import Records
from seisbind.model.errors import GalleryDamaged, GalleryError, UnknownModel

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
        "histograms": lambda: gallery.distribution().histograms,
        "weights": lambda: gallery.fingerprint,
    }
    for model_id in batch.model_ids:
        asked[f"map of {model_id}"] = lambda model_id=model_id: gallery.velocity(model_id).tobytes()
        asked[f"record of {model_id}"] = lambda model_id=model_id: repr(gallery.record(model_id))
    return {name: ask(question) for name, question in asked.items()}


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


@pytest.mark.parametrize(
    "name", ["velocity.faiss", "velocity.json", "physics.faiss", "physics.json", "columns.bin", "columns.json"]
)
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


@pytest.mark.parametrize("start", [0, *(pytest.param(start, marks=pytest.mark.long) for start in (1, 2, 3))])
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
                for name in wrong:
                    assert isinstance(given[name], GalleryError), (offset, name, given[name])
    assert refused > 10 and found > 0 and harmless > 0


def offsets(records: Path) -> list[int]:
    """Every byte that is not zero and every 97th of the rest: empty space is most of a small SQLite file."""
    content = np.frombuffer(records.read_bytes(), np.uint8)
    dense = np.flatnonzero(content)
    sparse = np.arange(0, len(content), 97)
    return sorted({*dense[::9].tolist(), *sparse.tolist()})


@pytest.fixture(scope="module")
def flips() -> ModuleType:
    """benchmarks/flips.py, which has galleries with several pages of each index, and aims."""
    place = Path(__file__).parents[2] / "benchmarks" / "flips.py"
    specification = importlib.util.spec_from_file_location("flips", place)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.long
def test_flips_aimed_at_indices_tags_and_families(flips: ModuleType, tmp_path: Path) -> None:
    """120 of the 3,000 of ``python benchmarks/flips.py``: refused, right, or said."""
    counts, wrong = flips.flip(120, 4, tmp_path)
    assert wrong == [] and counts["wrong"] == 0
    assert counts["said"] > 20 and counts["right"] > 20


def test_sqlite_alone_answers_some_of_them_wrongly(flips: ModuleType, tmp_path: Path) -> None:
    """Vacuity: what a gallery did before, looking models up by SQLite's indices and filtering by its columns."""
    path = tmp_path / "g"
    flips.make(path, 4)
    records = path / "records.sqlite"
    content = records.read_bytes()

    def ask() -> list[Any]:
        with closing(sqlite3.connect(f"{records.as_uri()}?mode=ro", uri=True)) as connection:
            by_id = "SELECT velocity FROM models JOIN velocities USING (row) WHERE model_id = ?"
            maps = [connection.execute(by_id, (f"model-{i}",)).fetchall() for i in range(flips.MODELS)]
            tagged = connection.execute("SELECT row FROM tags WHERE tag = 'field' ORDER BY row").fetchall()
            return [maps, tagged, connection.execute("SELECT family, count(*) FROM models GROUP BY family").fetchall()]

    truth, wrong = ask(), 0
    for offset in flips.places(content, 80, np.random.default_rng(5))[:40]:
        changed = bytearray(content)
        changed[offset] ^= 1
        records.write_bytes(changed)
        with suppress(sqlite3.DatabaseError):
            wrong += ask() != truth
    assert wrong > 10


def test_a_missing_index_entry_is_not_an_unknown_model(pristine: Path, tmp_path: Path, make_batch: MakeBatch) -> None:
    path = tmp_path / "gallery"
    shutil.copytree(pristine, path)
    with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as connection:
        [(page,)] = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name LIKE 'sqlite_autoindex_models%'")
    content = bytearray((path / "records.sqlite").read_bytes())
    start = (page - 1) * PAGE_BYTES
    content[start + 3 : start + 5] = (0).to_bytes(2)  # the number of entries of the page
    (path / "records.sqlite").write_bytes(content)
    batch = make_batch(COUNT, dimension=8, cells=5)
    with Gallery.open(path, fingerprint=None) as gallery:
        for model_id, velocity in zip(batch.model_ids, batch.velocity, strict=True):
            np.testing.assert_array_equal(gallery.velocity(model_id), velocity)
        with pytest.raises(UnknownModel):
            gallery.velocity("m5")
        assert not gallery.verify().ok


def test_a_row_that_cannot_be_found_is_damage_and_not_an_unknown_model(
    pristine: Path, tmp_path: Path, make_batch: MakeBatch
) -> None:
    path = tmp_path / "gallery"
    shutil.copytree(pristine, path)
    with Gallery.open(path, fingerprint=None) as gallery:
        with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as connection:
            connection.execute("DELETE FROM velocities WHERE row = 2")
            connection.execute("DELETE FROM models WHERE row = 3")  # and no change was counted
        for ask in (gallery.velocity, gallery.record):
            with pytest.raises(GalleryDamaged, match="cannot be found"):
                ask("m2")
        with pytest.raises(GalleryDamaged, match="velocity map of m1"):
            gallery.velocity("m1")


@pytest.mark.parametrize(
    "harm", ["UPDATE models SET checksum = zeroblob(32) WHERE row = 8", "DELETE FROM models WHERE row = 2"]
)
def test_a_change_elsewhere_that_is_damaged_is_not_served(
    pristine: Path, tmp_path: Path, make_batch: MakeBatch, harm: str
) -> None:
    """Catching up reads what is new and looks for what is gone: the digest is what says that this is all."""
    path = tmp_path / "gallery"
    shutil.copytree(pristine, path)
    with Gallery.open(path, fingerprint=None) as reader:
        with Gallery.open(path, fingerprint=None, writable=True) as writer:
            make_batch(2, first=30, dimension=8, cells=5).add_to(writer)  # rows 8 and 9
            writer.remove(["m0"])
        with closing(sqlite3.connect(path / "records.sqlite", isolation_level=None)) as connection:
            connection.execute(harm)
        with pytest.raises(GalleryDamaged):
            reader.refresh()
        assert reader.model_ids() == [f"m{i}" for i in range(COUNT)]


def test_a_model_replaced_while_others_are_read_is_no_damage(
    tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is of the generation before, the row of the one after."""
    batch = make_batch(4)
    with Gallery.create(tmp_path / "gallery", fingerprint="weights-1", dimension=16) as gallery:
        batch.add_to(gallery)
        read = Records._velocity
        replaced: list[str] = []

        def replace_after_the_first(self: Records, connection: sqlite3.Connection, row: int, model_id: str) -> Any:
            found = read(self, connection, row, model_id)
            if not replaced:
                replaced.append(model_id)
                changing = Thread(target=lambda: (gallery.remove(["m3"]), make_batch(1, first=3).add_to(gallery)))
                changing.start()
                changing.join()
            return found

        monkeypatch.setattr(Records, "_velocity", replace_after_the_first)
        np.testing.assert_array_equal(np.stack(gallery.velocities(batch.model_ids)), batch.velocity)
        assert replaced == ["m0"] and gallery.generation == 3
