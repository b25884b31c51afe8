"""What a gallery keeps, gives back and refuses."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from seisbind.index import Filter, Gallery, VerifyReport, verify_folder
from seisbind.index.search import mapped_writer
from seisbind.index.search.columns import GrowableArray
from seisbind.index.storage import database
from seisbind.model.errors import (
    GalleryDamaged,
    GalleryError,
    GalleryLocked,
    GalleryNotFound,
    GalleryWriteFailed,
    InvalidConfig,
    InvalidQuery,
    InvalidVelocityModel,
    UnknownModel,
    WeightsMismatch,
)
from seisbind.model.fingerprint import Fingerprint
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES

MakeBatch = Callable[..., Any]
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")


@pytest.fixture
def gallery(tmp_path: Path) -> Any:
    with Gallery.create(tmp_path / "gallery", fingerprint="weights-1", dimension=16) as gallery:
        yield gallery


def test_what_goes_in_comes_out_bit_for_bit(gallery: Gallery, make_batch: MakeBatch) -> None:
    batch = make_batch(12)
    assert batch.add_to(gallery, source="a test") == batch.model_ids
    gallery.close()
    with Gallery.open(gallery.path, fingerprint="weights-1") as opened:
        assert opened.model_ids() == batch.model_ids
        for i, record in enumerate(opened.records(batch.model_ids)):
            assert (record.model_id, record.family) == (batch.model_ids[i], batch.families[i])
            assert (record.tags, record.source) == (tuple(sorted(batch.tags[i])), "a test")
            np.testing.assert_array_equal(record.descriptors, batch.descriptors[i])
            assert record.shape == (6, 6)
            np.testing.assert_array_equal(opened.velocity(record.model_id), batch.velocity[i])
            assert record.added_at.endswith("+00:00")
        wanted = [batch.model_ids[i] for i in (7, 2, 7)]
        np.testing.assert_array_equal(np.stack(opened.velocities(wanted)), batch.velocity[[7, 2, 7]])
        with pytest.raises(UnknownModel, match="'nobody'"):
            opened.velocities(["m1", "nobody"])
        velocity, physics = opened.embeddings(batch.model_ids[::-1])
        np.testing.assert_allclose(velocity[::-1], batch.velocity_embeddings, atol=1e-6)
        np.testing.assert_allclose(physics[::-1], batch.physics_embeddings, atol=1e-6)


def test_a_model_without_a_name_is_named_after_its_map(gallery: Gallery, make_batch: MakeBatch) -> None:
    batch = make_batch(3)
    arrays = (batch.velocity, batch.descriptors, batch.velocity_embeddings, batch.physics_embeddings)
    ids = gallery.add(*arrays)
    assert all(len(each) == 18 and each.startswith("v-") for each in ids)
    with pytest.raises(InvalidQuery, match=f"{ids[0]}.*already in the gallery"):
        gallery.add(*arrays)
    with pytest.raises(InvalidQuery, match="already in the gallery"):
        gallery.add(*(np.concatenate([array[:1] + 0, array[:1]]) for array in arrays))
    more = make_batch(5)
    assert (
        gallery.add(
            more.velocity, more.descriptors, more.velocity_embeddings, more.physics_embeddings, skip_existing=True
        )[:3]
        == ids
    )
    assert len(gallery) == 5


def test_an_id_never_changes_its_map(gallery: Gallery, make_batch: MakeBatch) -> None:
    make_batch(2).add_to(gallery)
    other = replace(make_batch(2, first=5), model_ids=["new", "m1"])
    for skip_existing in (False, True):
        with pytest.raises(InvalidQuery, match="'m1' already belongs to another"):
            other.add_to(gallery, skip_existing=skip_existing)
    assert gallery.model_ids() == ["m0", "m1"]


def test_descriptors_of_minus_zero_are_not_damage(gallery: Gallery, make_batch: MakeBatch) -> None:
    batch = make_batch(1)
    batch.descriptors[0, 4] = -0.0
    batch.add_to(gallery)
    assert gallery.verify().ok


def test_removing_is_all_or_nothing_and_an_id_may_return(gallery: Gallery, make_batch: MakeBatch) -> None:
    batch = make_batch(6)
    batch.add_to(gallery)
    with pytest.raises(UnknownModel, match="'nobody'"):
        gallery.remove(["m1", "nobody"])
    assert len(gallery) == 6
    before = gallery.search_velocity(batch.velocity_embeddings[1:2], 1)[0][0]
    assert gallery.remove(["m1", "m2", "m1"]) == 2
    assert gallery.model_ids() == ["m0", "m3", "m4", "m5"]
    with pytest.raises(UnknownModel):
        gallery.velocity("m1")
    make_batch(1, first=1).add_to(gallery)
    again = gallery.search_velocity(batch.velocity_embeddings[1:2], 1)[0][0]
    assert (again.model_id, before.model_id) == ("m1", "m1")
    assert again.row > before.row
    gallery.remove(gallery.model_ids())
    assert len(gallery) == 0 and gallery.verify().ok


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"velocity": np.full((2, 6, 6), np.nan)}, InvalidVelocityModel, "NaN"),
        ({"velocity": np.full((2, 6, 6), 2.5)}, InvalidVelocityModel, "km/s"),
        ({"velocity": np.full((3, 6, 6), 2500.0)}, InvalidQuery, "3 velocity models, 2 descriptors"),
        ({"descriptors": np.zeros((2, 12))}, InvalidQuery, r"\(count, 13\)"),
        ({"descriptors": np.full((2, 13), 1e300)}, InvalidQuery, "too large"),
        ({"velocity_embeddings": np.ones((2, 16))}, InvalidQuery, "unit length: number 0 has 4"),
        ({"physics_embeddings": np.eye(2, 15)}, InvalidQuery, r"\(count, 16\)"),
        ({"model_ids": ["a", "a/b"]}, InvalidQuery, "cannot be a model id"),
        ({"model_ids": ["a", ""]}, InvalidQuery, "cannot be a model id"),
        ({"model_ids": ["a", 3]}, InvalidQuery, "cannot be a model id"),
        ({"model_ids": ["a"]}, InvalidQuery, "1 model_ids"),
        ({"families": ["", None]}, InvalidQuery, "cannot be a family"),
        ({"tags": ["ab", ()]}, InvalidQuery, "list for each model"),
        ({"tags": [("a\n",), ()]}, InvalidQuery, "cannot be a tag"),
        ({"tags": [(None,), ()]}, InvalidQuery, "cannot be a tag"),
    ],
)
def test_what_cannot_go_in_is_refused_whole(
    gallery: Gallery, make_batch: MakeBatch, change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        replace(make_batch(2), **change).add_to(gallery)
    assert len(gallery) == 0


def test_nothing_to_add_is_nothing_added(gallery: Gallery, make_batch: MakeBatch) -> None:
    assert make_batch(0).add_to(gallery) == []
    assert gallery.info().generation == 0


def test_leaving_out_what_is_there_is_no_change(filled: Path, make_batch: MakeBatch) -> None:
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        before = {file.name: file.stat().st_mtime_ns for file in filled.glob("*.faiss")}
        assert make_batch(5).add_to(gallery, skip_existing=True) == [f"m{i}" for i in range(5)]
        assert gallery.generation == gallery.info().generation == 1
    assert {file.name: file.stat().st_mtime_ns for file in filled.glob("*.faiss")} == before
    with Gallery.open(filled, fingerprint=None) as reader:
        assert len(reader) == 40 and reader.generation == 1 and not reader.refresh()


def test_the_generation_is_of_what_is_searched(filled: Path, make_batch: MakeBatch) -> None:
    with (
        Gallery.open(filled, fingerprint=None, writable=True) as writer,
        Gallery.open(filled, fingerprint=None) as reader,
    ):
        make_batch(2, first=40).add_to(writer)
        writer.remove(["m0"])
        assert (writer.generation, reader.generation) == (3, 1)
        reader.refresh()
        assert reader.generation == reader.info().generation == 3


def test_maps_of_different_shapes_live_side_by_side(gallery: Gallery, make_batch: MakeBatch) -> None:
    make_batch(1).add_to(gallery)
    make_batch(1, first=1, cells=9).add_to(gallery)
    assert [gallery.velocity(each).shape for each in ("m0", "m1")] == [(6, 6), (9, 9)]
    assert gallery.verify().ok


def test_it_says_what_it_is(filled: Path, make_batch: MakeBatch) -> None:
    batch = make_batch(40)
    with Gallery.open(filled, fingerprint=None) as gallery:
        info = gallery.info()
    assert (info.count, info.fingerprint, info.dimension, info.notes) == (40, "weights-1", 16, ())
    assert info.families == {
        family: batch.families.count(family) for family in sorted({each for each in batch.families if each})
    }
    assert list(info.descriptor_ranges) == list(NAMES) == [each.name for each in DESCRIPTORS]
    assert info.descriptor_ranges["mean_velocity"] == (
        batch.descriptors[:, 0].min(),
        batch.descriptors[:, 0].max(),
    )
    assert info.bytes == sum(file.stat().st_size for file in filled.iterdir())


def test_other_weights_are_refused_by_name(filled: Path) -> None:
    with pytest.raises(WeightsMismatch, match=r"weights-1.*weights-2"):
        Gallery.open(filled, fingerprint="weights-2", writable=True)
    Gallery.open(filled, fingerprint="weights-1", writable=True).close()  # and the lock was let go


def test_no_gallery_there(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(GalleryNotFound, match=str(path)):
            Gallery.open(path, fingerprint=None)
    assert list(tmp_path.iterdir()) == []


def test_making_one_over_another_has_to_be_meant(filled: Path, make_batch: MakeBatch) -> None:
    with pytest.raises(GalleryError, match="already is a gallery"):
        Gallery.create(filled, fingerprint="weights-2")
    reader = Gallery.open(filled, fingerprint=None)
    with Gallery.create(filled, fingerprint="weights-2", dimension=16, overwrite=True) as fresh:
        assert len(fresh) == 0
        make_batch(2, first=100).add_to(fresh)
        assert len(reader.search_velocity(make_batch(1).velocity_embeddings, 100)[0]) == 40
        np.testing.assert_array_equal(reader.velocity("m5"), make_batch(1, first=5).velocity[0])
        with pytest.raises(GalleryError, match="replaced"):
            reader.refresh()
    reader.close()
    with Gallery.open(filled, fingerprint="weights-2") as opened:
        assert opened.model_ids() == ["m100", "m101"]
        assert opened.info().notes == ()


def test_the_old_gallery_is_served_until_the_new_one_is_done(filled: Path, make_batch: MakeBatch) -> None:
    def only(model_ids: list[str]) -> None:
        with Gallery.open(filled, fingerprint=None) as opened:
            assert opened.model_ids() == model_ids and opened.verify().ok and opened.info().notes == ()

    old = make_batch(40).model_ids
    reader = Gallery.open(filled, fingerprint=None)
    with pytest.raises(ZeroDivisionError), Gallery.building(filled, fingerprint="w", overwrite=True):
        only(old)
        raise ZeroDivisionError
    only(old)
    assert not reader.refresh()
    with pytest.raises(GalleryError, match="already is a gallery"), Gallery.building(filled, fingerprint="w"):
        pass
    with Gallery.building(filled, fingerprint="w", dimension=16, overwrite=True) as fresh:
        make_batch(2, first=100).add_to(fresh)
        with pytest.raises(GalleryLocked):
            Gallery.open(filled, fingerprint=None, writable=True)
        only(old)
    only(["m100", "m101"])
    np.testing.assert_array_equal(reader.velocity("m5"), make_batch(1, first=5).velocity[0])
    with pytest.raises(GalleryError, match="replaced"):
        reader.refresh()
    reader.close()
    assert not (filled / "building").exists()


def test_a_gallery_that_was_not_finished_is_none(tmp_path: Path, make_batch: MakeBatch) -> None:
    with pytest.raises(ZeroDivisionError), Gallery.building(tmp_path / "g", fingerprint="w", dimension=16) as fresh:
        make_batch(2).add_to(fresh)
        raise ZeroDivisionError
    with pytest.raises(GalleryNotFound):
        Gallery.open(tmp_path / "g", fingerprint=None)
    with Gallery.building(tmp_path / "g", fingerprint="w", dimension=16) as fresh:
        make_batch(2).add_to(fresh)
    with Gallery.open(tmp_path / "g", fingerprint=None) as opened:
        assert opened.model_ids() == ["m0", "m1"]


@pytest.mark.parametrize("content", [b"", b"not a database" * 1000])
def test_a_ruined_gallery_can_be_replaced(filled: Path, content: bytes) -> None:
    (filled / "records.sqlite").write_bytes(content)
    Gallery.create(filled, fingerprint="w", overwrite=True).close()
    with Gallery.open(filled, fingerprint="w") as opened:
        assert opened.verify().ok


@pytest.mark.parametrize("name", ["records.sqlite.bak-2025", "records.sqlite-old", "building/thesis.tex", "old/a"])
def test_a_backup_beside_the_records_is_not_ours(filled: Path, name: str) -> None:
    (filled / name).parent.mkdir(exist_ok=True)
    (filled / name).write_text("years of work")
    with pytest.raises(GalleryError, match="other files"):
        Gallery.create(filled, fingerprint="w", overwrite=True)
    assert (filled / name).read_text() == "years of work"
    with Gallery.open(filled, fingerprint=None) as opened:
        assert len(opened) == 40


def test_folders_that_it_makes_survive_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def recorded(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", recorded)
    Gallery.create(tmp_path / "a" / "b" / "g", fingerprint="w").close()
    assert {str(tmp_path / each) for each in (".", "a", "a/b", "a/b/g")} <= set(synced)


def test_other_files_are_not_swept_away(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(GalleryError, match=r"thesis\.tex"):
        Gallery.create(tmp_path, fingerprint="w", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(("fingerprint", "dimension"), [("", 16), ("w", 0), ("w", 5000)])
def test_a_gallery_needs_a_fingerprint_and_a_dimension(tmp_path: Path, fingerprint: str, dimension: int) -> None:
    with pytest.raises(InvalidConfig):
        Gallery.create(tmp_path / "g", fingerprint=fingerprint, dimension=dimension)


@pytest.mark.parametrize(
    ("pragma", "error", "reason"),
    [
        ("user_version = 7", GalleryError, "gallery format 7; this SeisBind reads formats 1 and 2"),
        ("application_id = 1", GalleryDamaged, "not a SeisBind gallery"),
    ],
)
def test_an_unknown_format_is_refused_by_name(filled: Path, pragma: str, error: type[Exception], reason: str) -> None:
    with closing(sqlite3.connect(filled / "records.sqlite")) as connection:
        connection.execute(f"PRAGMA {pragma}")
    with pytest.raises(error, match=reason):
        Gallery.open(filled, fingerprint=None)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON models BEGIN DELETE FROM velocities; END",
        "CREATE VIEW v AS SELECT * FROM models",
        "CREATE VIRTUAL TABLE f USING fts5(model_id)",
    ],
)
def test_what_would_run_by_itself_in_a_foreign_gallery_is_refused(filled: Path, statement: str) -> None:
    with closing(sqlite3.connect(filled / "records.sqlite")) as connection:
        connection.execute(statement)
        connection.commit()
    with pytest.raises(GalleryDamaged, match="which no gallery has"):
        Gallery.open(filled, fingerprint=None)
    assert "which no gallery has" in verify_folder(filled).problems[0]


def test_the_schema_of_a_foreign_gallery_is_not_trusted(filled: Path) -> None:
    connection, _ = database.connect(filled / "records.sqlite", writable=True)
    with closing(connection):
        assert connection.execute("PRAGMA trusted_schema").fetchone() == (0,)
        assert connection.execute("PRAGMA cell_size_check").fetchone() == (1,)
        assert connection.getlimit(sqlite3.SQLITE_LIMIT_LENGTH) == database.MAX_VALUE_BYTES


@pytest.mark.parametrize("what", ["source", "added"])
@pytest.mark.parametrize("mapped", [False, True])
def test_sources_and_times_of_snapshots_are_verified(
    filled: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, what: str, mapped: bool
) -> None:
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1 if mapped else 1000)
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        make_batch(3, first=700).add_to(gallery, source="a line")
        view = gallery._view
        arrays = list(view.columns.arrays)
        number = {"source": 6, "added": 7}[what]  # the order of `Columns.of`
        changed = arrays[number].values.copy()
        changed[3] = (0 if changed[3] else -1) if what == "source" else changed[3] + 1
        arrays[number] = GrowableArray(changed)
        other = replace(view, columns=replace(view.columns, arrays=tuple(arrays)))
        mapped_writer.write_snapshots(other, filled, fingerprint=gallery.fingerprint, at_step=lambda step: None)
        gallery._behind = 0
    (problem,) = verify_folder(filled).problems
    assert "snapshot of the columns has 1 models that differ from the records" in problem


def test_the_second_writer_is_told_who_is_first(filled: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from seisbind.index import Gallery;"
        "g = Gallery.open(Path(sys.argv[1]), fingerprint=None, writable=True);"
        "print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(filled)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as first:
        assert first.stdout is not None and first.stdout.readline() == b"open\n"
        for attempt in (
            lambda: Gallery.open(filled, fingerprint=None, writable=True),
            lambda: Gallery.create(filled, fingerprint="w", overwrite=True),
        ):
            with pytest.raises(GalleryLocked, match=f"written by process {first.pid} on "):
                attempt()
        Gallery.open(filled, fingerprint=None).close()  # readers are welcome
        first.kill()
    with Gallery.open(filled, fingerprint=None, writable=True) as second:
        assert len(second) == 40
        with pytest.raises(GalleryLocked):
            Gallery.open(filled, fingerprint=None, writable=True)


def test_a_file_system_without_locks_is_not_another_writer(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    handles = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(GalleryWriteFailed, match="No locks available"):
        Gallery.open(filled, fingerprint=None, writable=True)
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


def test_a_gallery_opened_for_reading_cannot_be_changed(filled: Path, make_batch: MakeBatch) -> None:
    before = {file.name: file.read_bytes() for file in filled.iterdir()}
    with Gallery.open(filled, fingerprint=None) as gallery:
        for attempt in (
            lambda: make_batch(1, first=90).add_to(gallery),
            lambda: gallery.remove(["m1"]),
            gallery.snapshot,
        ):
            with pytest.raises(GalleryError, match="opened for reading"):
                attempt()
    assert {name: (filled / name).read_bytes() for name in before} == before


@pytest.fixture
def for_all(make_batch: MakeBatch) -> Iterator[Path]:
    """A gallery of 40 models that other users may read and not write; the test runs as one of them."""
    with tempfile.TemporaryDirectory() as name:  # tmp_path is closed to others
        path = Path(name) / "g"
        with Gallery.create(path, fingerprint="w", dimension=16) as gallery:
            make_batch(40).add_to(gallery)
        Path(name).chmod(0o755)
        yield path


@contextmanager
def as_someone_else() -> Iterator[None]:
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@needs_root
def test_who_may_not_write_does_not_take_a_living_gallery_for_frozen(for_all: Path, make_batch: MakeBatch) -> None:
    """Told that a file never changes, SQLite would look at neither the log nor the locks of a writer."""
    with as_someone_else(), pytest.raises(GalleryError, match="needs to write in the folder"):
        Gallery.open(for_all, fingerprint=None)
    with Gallery.open(for_all, fingerprint=None, writable=True) as writer:
        with as_someone_else():
            reader = Gallery.open(for_all, fingerprint=None)
        make_batch(2, first=40).add_to(writer)
        with as_someone_else(), reader:
            assert reader.refresh() and reader.model_ids() == writer.model_ids()


@needs_root
def test_where_nothing_can_be_written_a_writer_is_refused_by_name(for_all: Path, make_batch: MakeBatch) -> None:
    with as_someone_else():
        for attempt in (
            lambda: Gallery.open(for_all, fingerprint=None, writable=True),
            lambda: Gallery.create(for_all, fingerprint="w", overwrite=True),
        ):
            with pytest.raises(GalleryWriteFailed, match="Permission denied"):
                attempt()
    with Gallery.open(for_all, fingerprint=None, writable=True) as gallery:
        make_batch(1, first=40).add_to(gallery)
        assert len(gallery) == 41 and gallery.verify().ok


@needs_root
def test_on_a_read_only_file_system_it_can_be_read(for_all: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = os.statvfs(for_all)
    read_only = os.statvfs_result((*where[:8], where.f_flag | os.ST_RDONLY, where.f_namemax))
    monkeypatch.setattr(os, "statvfs", lambda path: read_only)
    with as_someone_else(), Gallery.open(for_all, fingerprint=None) as reader:
        assert len(reader) == 40 and reader.verify().ok


def test_a_reader_sees_changes_when_it_asks(filled: Path, make_batch: MakeBatch) -> None:
    batch = make_batch(45)
    with (
        Gallery.open(filled, fingerprint=None, writable=True) as writer,
        Gallery.open(filled, fingerprint=None) as reader,
    ):
        assert not reader.refresh()
        make_batch(5, first=40).add_to(writer)
        writer.remove(["m0", "m7"])
        assert len(reader) == 40
        assert reader.refresh() and not reader.refresh()
        assert reader.model_ids() == writer.model_ids()
        queries = batch.velocity_embeddings
        assert reader.search_velocity(queries, 50) == writer.search_velocity(queries, 50)
        assert reader.verify().ok


def test_after_closing_it_says_so(gallery: Gallery, make_batch: MakeBatch) -> None:
    gallery.close()
    gallery.close()
    with pytest.raises(GalleryError, match="closed"):
        make_batch(1).add_to(gallery)
    with pytest.raises(GalleryError, match="closed"):
        gallery.record("m0")


def test_what_the_snapshot_lacks_is_replayed(filled: Path, make_batch: MakeBatch) -> None:
    old = {file.name: file.read_bytes() for file in filled.iterdir() if file.suffix in (".faiss", ".bin", ".json")}
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=40).add_to(gallery)
        gallery.remove(["m0", "m41"])
        expected = gallery.search_physics(make_batch(45).physics_embeddings, 50)
    for name, content in old.items():
        (filled / name).write_bytes(content)
    with Gallery.open(filled, fingerprint=None) as opened:
        assert opened.info().notes == ()
        assert opened.search_physics(make_batch(45).physics_embeddings, 50) == expected
        assert opened.verify().ok


def test_older_records_put_back_are_not_mixed_with_newer_snapshots(filled: Path, make_batch: MakeBatch) -> None:
    records = (filled / "records.sqlite").read_bytes()
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=40).add_to(gallery)
    (filled / "records.sqlite").write_bytes(records)
    with Gallery.open(filled, fingerprint=None) as opened:
        assert "older copy of the records" in opened.info().notes[0]
        assert len(opened) == 40
    with Gallery.open(filled, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=70).add_to(gallery)  # the rows that the snapshot has for m40 to m44
        gallery._snapshot_generation = gallery._view.generation  # as if killed before the snapshot
    with Gallery.open(filled, fingerprint=None) as opened:
        for model_id, hits in zip(
            [f"m{i}" for i in range(70, 75)],
            opened.search_velocity(make_batch(5, first=70).velocity_embeddings, 1),
            strict=True,
        ):
            assert hits[0].model_id == model_id and hits[0].similarity > 0.999


@pytest.mark.parametrize("space", ["velocity", "physics", "columns"])
def test_a_writer_killed_between_snapshots_leaves_all_well(filled: Path, make_batch: MakeBatch, space: str) -> None:
    """Content in place and its manifest not yet: `verify` used to call that damage."""

    class Killed(BaseException):
        pass

    def kill(name: str) -> None:
        if armed and name in (f"{space}.faiss:renamed", f"{space}.bin:renamed"):
            raise Killed

    armed: list[bool] = []
    batch = make_batch(50)
    gallery = Gallery.open(filled, fingerprint=None, writable=True, at_step=kill)
    make_batch(10, first=40).add_to(gallery)
    gallery.remove(["m3"])
    armed.append(True)
    with pytest.raises(Killed):
        gallery.snapshot()
    gallery._files.close()  # what the system does for a killed process
    report = verify_folder(filled)
    assert report.ok and report.count == 49
    lagging = ["velocity", "physics", "columns"][["velocity", "physics", "columns"].index(space) + 1 :]
    assert [note.split()[1] for note in report.notes] == lagging
    assert all("lacks 10 models and has 1 that were removed. Nothing is lost" in note for note in report.notes)
    with Gallery.open(filled, fingerprint=None) as reader:
        assert reader.info().notes == ()
        assert [h[0].model_id for h in reader.search_velocity(batch.velocity_embeddings[4:], 1)] == batch.model_ids[4:]
    with Gallery.open(filled, fingerprint=None, writable=True) as writer:  # which finishes what was begun
        assert writer.info().notes == () and not list(filled.glob("*.tmp"))
    assert verify_folder(filled) == VerifyReport(49, ())


def test_closing_after_a_few_changes_writes_no_snapshot(tmp_path: Path, make_batch: MakeBatch) -> None:
    path = tmp_path / "g"
    with Gallery.create(path, fingerprint="w", dimension=16) as gallery:
        make_batch(200).add_to(gallery)

    def stamps() -> dict[str, int]:
        return {file.name: file.stat().st_mtime_ns for file in path.glob("*.json")}

    written = stamps()
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(3, first=200).add_to(gallery)
        gallery.remove(["m0", "m7", "m201"])
    assert stamps() == written
    report = verify_folder(path)
    assert report.ok and len(report.notes) == 3
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        assert gallery.info().notes == () and len(gallery) == 200
        batch = make_batch(203)
        best = [hits[0].model_id for hits in gallery.search_velocity(batch.velocity_embeddings, 1)]
        gone = {"m0", "m7", "m201"}
        assert all(found == own for found, own in zip(best, batch.model_ids, strict=True) if own not in gone)
        assert not gone & set(best) and gallery.verify().ok
        gallery.remove(["m1", "m2", "m4"])  # with those before, more than the next opening should make up for
    assert stamps() != written and verify_folder(path) == VerifyReport(197, ())


@pytest.mark.parametrize("name", ["columns.bin", "columns.json"])
@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "other gallery"])
def test_columns_that_are_not_right_are_rebuilt(
    filled: Path, tmp_path: Path, make_batch: MakeBatch, name: str, harm: str
) -> None:
    """A gallery of an older SeisBind has none: nothing is said of that."""
    file = filled / name
    with Gallery.open(filled, fingerprint=None) as gallery:
        families, ranges = gallery.families(), gallery.info().descriptor_ranges
    if harm == "missing":
        file.unlink()
    elif harm == "other gallery":
        with Gallery.create(tmp_path / "other", fingerprint="weights-1", dimension=16) as other:
            make_batch(41, first=500).add_to(other)
        file.write_bytes((tmp_path / "other" / name).read_bytes())
    else:
        file.write_bytes(b"" if harm == "empty" else file.read_bytes()[:-3])
    with Gallery.open(filled, fingerprint=None, writable=True) as opened:
        notes = opened.info().notes
        assert (notes == ()) if harm == "missing" else ("columns snapshot was not used" in notes[0])
        assert (opened.families(), opened.info().descriptor_ranges) == (families, ranges)
        assert opened.verify().ok == (harm == "missing")
    with Gallery.open(filled, fingerprint=None) as again:  # closing wrote new ones
        assert again.info().notes == () and again.verify() == VerifyReport(40, ())


@pytest.mark.parametrize("name", ["velocity.faiss", "velocity.json", "physics.faiss", "physics.json"])
@pytest.mark.parametrize("harm", ["missing", "empty", "truncated", "other gallery"])
def test_a_snapshot_that_is_not_right_is_rebuilt_and_said(
    filled: Path, tmp_path: Path, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture, name: str, harm: str
) -> None:
    file = filled / name
    if harm == "missing":
        file.unlink()
    elif harm == "other gallery":
        with Gallery.create(tmp_path / "other", fingerprint="weights-1", dimension=16) as other:
            make_batch(40, first=500).add_to(other)
        file.write_bytes((tmp_path / "other" / name).read_bytes())
    else:
        file.write_bytes(b"" if harm == "empty" else file.read_bytes()[:-3])
    batch = make_batch(40)
    with caplog.at_level(logging.INFO), Gallery.open(filled, fingerprint=None, writable=True) as opened:
        [note] = opened.info().notes
        assert f"The {name.split('.')[0]} snapshot was not used" in note
        level = logging.INFO if harm == "missing" else logging.WARNING
        assert [record.levelno for record in caplog.records if record.getMessage() == note] == [level]
        for search, queries in (
            (opened.search_velocity, batch.velocity_embeddings),
            (opened.search_physics, batch.physics_embeddings),
        ):
            assert [hits[0].model_id for hits in search(queries, 1)] == batch.model_ids
    with Gallery.open(filled, fingerprint=None) as again:  # closing wrote a new one
        assert again.info().notes == () and again.verify().ok


def test_a_whole_snapshot_of_another_gallery_lends_it_no_vectors(
    filled: Path, tmp_path: Path, make_batch: MakeBatch
) -> None:
    """Same weights, same number of models, same row numbers: only the content tells them apart."""
    with Gallery.create(tmp_path / "other", fingerprint="weights-1", dimension=16) as other:
        make_batch(40, first=500).add_to(other)
    for name in ("velocity.faiss", "velocity.json", "physics.faiss", "physics.json"):
        (filled / name).write_bytes((tmp_path / "other" / name).read_bytes())
    batch = make_batch(40)
    with Gallery.open(filled, fingerprint=None) as opened:
        assert [h[0].model_id for h in opened.search_velocity(batch.velocity_embeddings, 1)] == batch.model_ids
        assert opened.verify().ok


def test_swapped_spaces_are_noticed(filled: Path) -> None:
    for ending in ("faiss", "json"):
        velocity, physics = filled / f"velocity.{ending}", filled / f"physics.{ending}"
        content = velocity.read_bytes()
        velocity.write_bytes(physics.read_bytes())
        physics.write_bytes(content)
    with Gallery.open(filled, fingerprint=None) as opened:
        assert len(opened.info().notes) == 2


def test_verify_names_what_is_wrong(filled: Path) -> None:
    with closing(sqlite3.connect(filled / "records.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE velocities SET velocity = zeroblob(144) WHERE row = 3")
        connection.execute("UPDATE models SET mean_velocity = mean_velocity + 1 WHERE row = 5")
        connection.execute("UPDATE embeddings SET physics = velocity WHERE row = 7")
        connection.execute("DELETE FROM tags WHERE row = (SELECT max(row) FROM tags)")
    with Gallery.open(filled, fingerprint=None) as opened:
        report = opened.verify()
        assert not report.ok
        for wanted in ("velocity map of m2", "record of 'm4'", "embeddings of row 7"):
            assert any(wanted in problem for problem in report.problems), wanted
        assert len(report.problems) == 4
        with pytest.raises(GalleryDamaged, match="velocity map of m2"):
            opened.velocity("m2")
        with pytest.raises(GalleryDamaged, match="record of 'm4'"):
            opened.record("m4")


def test_a_row_that_vanished_is_damage(filled: Path) -> None:
    with closing(sqlite3.connect(filled / "records.sqlite", isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("DELETE FROM models WHERE row = 4")
    with pytest.raises(GalleryDamaged, match="digest"):
        Gallery.open(filled, fingerprint=None)


def test_verify_lists_what_is_wrong_in_a_gallery_that_cannot_be_opened(filled: Path) -> None:
    with closing(sqlite3.connect(filled / "records.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE models SET checksum = zeroblob(32) WHERE row = 4")
        connection.execute("UPDATE velocities SET velocity = zeroblob(144) WHERE row = 6")
        connection.execute("UPDATE embeddings SET physics = velocity WHERE row IN (8, 9)")
    with pytest.raises(GalleryDamaged, match=r"digest.*'seisbind gallery verify' lists what is wrong"):
        Gallery.open(filled, fingerprint=None)
    report = verify_folder(filled)
    for wanted in ("record of 'm3'", "velocity map of m5", "digest", "embeddings of row 8", "embeddings of row 9"):
        assert any(wanted in problem for problem in report.problems), wanted
    assert (len(report.problems), report.count) == (5, 40)


def test_verify_of_a_folder_is_that_of_the_gallery(filled: Path, tmp_path: Path) -> None:
    with Gallery.open(filled, fingerprint=None) as opened:
        assert verify_folder(filled) == opened.verify() == VerifyReport(40, ())
    for name in ("velocity.faiss", "velocity.json", "physics.faiss", "physics.json"):
        (filled / name).unlink()
    with closing(sqlite3.connect(filled / "records.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE embeddings SET physics = velocity WHERE row = 7")
    with pytest.raises(GalleryDamaged, match="embeddings of row 7"):
        Gallery.open(filled, fingerprint=None)
    [problem] = verify_folder(filled).problems
    assert "embeddings of row 7" in problem
    with closing(sqlite3.connect(filled / "records.sqlite", isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = 'others' WHERE name = 'fingerprint'")
    [problem] = verify_folder(filled).problems
    assert "facts about the whole gallery" in problem
    with pytest.raises(GalleryNotFound):
        verify_folder(tmp_path / "absent")


def test_the_manifest_is_readable_and_says_what_the_index_is(filled: Path) -> None:
    manifest = json.loads((filled / "velocity.json").read_text())
    assert (manifest["space"], manifest["count"], manifest["dimension"]) == ("velocity", 40, 16)
    assert manifest["fingerprint"] == "weights-1"


def test_families_in_filters_follow_changes(gallery: Gallery, make_batch: MakeBatch) -> None:
    batch = replace(make_batch(4), families=["A", "A", "B", None])
    batch.add_to(gallery)
    query = batch.velocity_embeddings[:1]
    assert {h.model_id for h in gallery.search_velocity(query, 9, filter=Filter(("A",)))[0]} == {"m0", "m1"}
    gallery.remove(["m0"])
    assert {h.model_id for h in gallery.search_velocity(query, 9, filter=Filter(("A",)))[0]} == {"m1"}
    assert gallery.families() == {"A": 1, "B": 1}


def test_what_changes_while_removed_models_are_dropped_from_memory(
    tmp_path: Path, make_batch: MakeBatch, brute_force: Callable[..., Any]
) -> None:
    """Searches and changes do not wait for that copy, and nothing of them is lost by it."""
    batch, more = make_batch(50), make_batch(20, first=100)
    meanwhile: list[Any] = []

    def change() -> None:
        meanwhile.append(gallery.search_velocity(batch.velocity_embeddings[:3], 5))
        more.add_to(gallery)
        gallery.remove(["m104", "m20", "m21"])
        make_batch(1, first=21).add_to(gallery)
        with gallery.unchanging():
            meanwhile.append(gallery.velocity("m21"))

    def at_step(name: str) -> None:
        if name == "compact:copied" and not meanwhile:
            thread = Thread(target=change)
            thread.start()
            thread.join(20)
            assert not thread.is_alive()

    with Gallery.create(tmp_path / "g", fingerprint="w", dimension=16, at_step=at_step) as gallery:
        batch.add_to(gallery)
        gallery.remove(batch.model_ids[:10])
        left = batch.model_ids[10:20] + batch.model_ids[22:] + more.model_ids[:4] + more.model_ids[5:] + ["m21"]
        assert len(meanwhile) == 2 and gallery.model_ids() == left and len(gallery) == len(left)
        np.testing.assert_array_equal(meanwhile[1], batch.velocity[21])
        vectors, _ = gallery.embeddings(left)
        for found, expected in zip(
            gallery.search_velocity(batch.velocity_embeddings[:5], 9),
            brute_force(vectors, left, batch.velocity_embeddings[:5], 9),
            strict=True,
        ):
            assert [hit.model_id for hit in found] == [model_id for model_id, _ in expected]
        assert sum(gallery.families().values()) == sum(record.family is not None for record in gallery.records(left))
        assert gallery.verify().ok and len(gallery._view.alive) < 70
    with Gallery.open(tmp_path / "g", fingerprint=None) as opened:
        assert opened.model_ids() == left
        chosen = Filter(families=("FlatVel-A",), tags=("field",))
        expected = [r.model_id for r in opened.records(left) if r.family == "FlatVel-A" and "field" in r.tags]
        found = opened.search_velocity(batch.velocity_embeddings[:1], 100, filter=chosen)[0]
        assert {hit.model_id for hit in found} == set(expected)


def test_a_reader_that_refreshes_also_drops_removed_models(filled: Path, make_batch: MakeBatch) -> None:
    with (
        Gallery.open(filled, fingerprint=None, writable=True) as writer,
        Gallery.open(filled, fingerprint=None) as reader,
    ):
        writer.remove([f"m{i}" for i in range(20)])
        make_batch(1, first=3).add_to(writer)
        assert reader.refresh() and reader.model_ids() == writer.model_ids()
        assert len(reader._view.alive) == 21 and len(writer._view.alive) == 21
        np.testing.assert_array_equal(reader.velocity("m3"), make_batch(1, first=3).velocity[0])
        with pytest.raises(UnknownModel):
            reader.record("m4")
        assert reader.verify().ok


def test_other_weights_of_the_same_embeddings_are_served_and_may_write(tmp_path: Path, make_batch: MakeBatch) -> None:
    made = Fingerprint("weights-1", embeddings="e")
    with Gallery.create(tmp_path / "g", fingerprint=made, dimension=16) as gallery:
        make_batch(3).add_to(gallery)
    assert verify_folder(tmp_path / "g").ok
    later = Fingerprint("weights-2", embeddings="e")
    with Gallery.open(tmp_path / "g", fingerprint=later, writable=True) as gallery:
        make_batch(3, first=3).add_to(gallery)
        assert (gallery.fingerprint, gallery.embeddings_fingerprint, gallery.notes) == ("weights-1", "e", ())
    with Gallery.open(tmp_path / "g", fingerprint=made) as gallery:
        assert len(gallery) == 6 and gallery.notes == ()
    for others in ("weights-2", Fingerprint("weights-2"), Fingerprint("weights-2", embeddings="f")):
        with pytest.raises(WeightsMismatch, match=r"weights-1.*weights-2"):
            Gallery.open(tmp_path / "g", fingerprint=others)


def test_a_gallery_that_does_not_name_its_embeddings_is_served_by_what_was_trained_from_its_weights(
    filled: Path,
) -> None:
    later = Fingerprint("weights-2", embeddings="e", same=frozenset({"weights-1"}))
    with Gallery.open(filled, fingerprint=later) as gallery:
        assert gallery.embeddings_fingerprint is None
