"""Large galleries are mapped, not read: the same answers, and every flip in the file is said (promises 60 and 61)."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from seisbind.index import Filter, Gallery, verify_folder
from seisbind.index.search import mapped, mapped_writer, vectors
from seisbind.index.search.mapped import BLOCK, MappedFile
from seisbind.index.storage import record_writer
from seisbind.index.storage.folder import MAPPED
from seisbind.index.storage.record import Added
from seisbind.index.storage.records import Records
from seisbind.model.errors import GalleryError, UnknownModel

MakeBatch = Callable[..., Any]
COUNT = 40
ASKED = 6


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gallery counts as large."""
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1)


@pytest.fixture
def path(tmp_path: Path, make_batch: MakeBatch) -> Path:
    """A closed gallery of 40 models, mapped, of which two are removed."""
    with Gallery.create(tmp_path / "gallery", fingerprint="weights-1", dimension=16) as gallery:
        make_batch(COUNT + 2).add_to(gallery)
        gallery.remove(["m40", "m41"])
    return tmp_path / "gallery"


def answers(gallery: Gallery, batch: Any) -> list[Any]:
    """What can be asked of it."""
    searches = (
        None,
        Filter(families=("FlatVel-A",)),
        Filter(tags=("field",)),
        Filter.parse({"mean_velocity": [2900, 3100]}),
    )
    return [
        gallery.model_ids(),
        gallery.families(),
        gallery.info().descriptor_ranges,
        gallery.distribution().histograms,
        *(gallery.search_velocity(batch.velocity_embeddings, 9, filter=each) for each in searches),
        *(gallery.search_physics(batch.physics_embeddings, 9, filter=each) for each in searches),
        [gallery.velocity(model_id).tobytes() for model_id in batch.model_ids],
        [each.tobytes() for each in gallery.embeddings(batch.model_ids)],
        [repr(gallery.record(model_id)) for model_id in batch.model_ids],
    ]


def said(gallery: Gallery) -> tuple[str, ...]:
    """The notes, once there are some: the thread that compares everything needs a moment."""
    for _ in range(2000):
        if gallery.notes:
            break
        time.sleep(0.005)
    return gallery.notes


@contextmanager
def flipped(file: Path, offset: int, bit: int) -> Iterator[None]:
    """One bit of a file, in place."""

    def flip() -> None:
        with file.open("r+b") as handle:
            handle.seek(offset)
            byte = handle.read(1)[0]
            handle.seek(offset)
            handle.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


def test_a_mapped_gallery_answers_as_one_that_is_read(
    path: Path, tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(ASKED)
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1000)
    with Gallery.create(tmp_path / "small", fingerprint="weights-1", dimension=16) as gallery:
        make_batch(COUNT + 2).add_to(gallery)
        gallery.remove(["m40", "m41"])
    assert not (tmp_path / "small" / MAPPED).exists() and (tmp_path / "small" / "velocity.faiss").exists()
    assert (path / MAPPED).exists() and not list(path.glob("*.faiss")) and not list(path.glob("columns.*"))
    with (
        Gallery.open(path, fingerprint="weights-1") as large,
        Gallery.open(tmp_path / "small", fingerprint="weights-1") as small,
    ):
        assert large._mapped is not None and small._mapped is None
        assert answers(large, batch)[:-1] == answers(small, batch)[:-1]  # records were added at another time
        assert large.info().notes == () and large.verify().ok and large.verify().notes == ()
        for model_id in ("m40", "m99", "m" * 128, "m3\0", "\udc80"):
            with pytest.raises(UnknownModel):
                large.record(model_id)


@pytest.mark.parametrize("coded", [True, False])
def test_searches_of_mapped_vectors_are_exact(
    tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, coded: bool
) -> None:
    """With the codes of the file, and on a machine that does not use them."""
    monkeypatch.setattr(vectors, "pays", lambda: coded)
    batch = make_batch(100)
    with Gallery.create(tmp_path / "gallery", fingerprint="weights-1", dimension=16) as gallery:
        batch.add_to(gallery)
        truth = answers(gallery, batch)
    with Gallery.open(tmp_path / "gallery", fingerprint=None) as gallery:
        assert (gallery._view.velocity._segments[0].codes is not None) == coded
        assert answers(gallery, batch) == truth


def test_every_flip_is_said_and_changes_no_answer(path: Path, make_batch: MakeBatch) -> None:
    """In each section, what lies between them, the checksums and the description."""
    batch = make_batch(ASKED)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = answers(gallery, batch)
        sections = gallery._mapped.facts["sections"]  # type: ignore[union-attr]
    file = path / MAPPED
    size = file.stat().st_size
    described = max(start for start, _ in sections.values()) + BLOCK
    offsets = [start + share * (length - 1) // 3 for start, length in sections.values() for share in (0, 2)]
    offsets += [start + length + 5 for start, length in list(sections.values())[::4]]
    offsets += [*range(described, size, 331), size - 1, size - 9]
    assert len(offsets) > 30
    for offset in offsets:
        with flipped(file, offset, offset % 8), Gallery.open(path, fingerprint=None) as gallery:
            assert answers(gallery, batch) == truth, offset
            assert "mapped snapshot was not used" in said(gallery)[0] or "does not match" in gallery.notes[0], offset
            assert answers(gallery, batch) == truth, offset
            if offset % 4 == 0:
                assert not gallery.verify().ok and not verify_folder(path).ok, offset


def test_a_flip_while_it_is_mapped_is_said(path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every block was sound: by the next look at all of them."""
    batch = make_batch(ASKED)
    monkeypatch.setattr(mapped, "RECHECK_S", 0.01)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = answers(gallery, batch)
        start, _ = gallery._mapped.facts["sections"]["velocity.vectors"]  # type: ignore[union-attr]
        with flipped(path / MAPPED, start + 3, 6):  # an exponent of the first vector
            assert "does not match its checksum" in said(gallery)[0]
            assert answers(gallery, batch) == truth
            assert gallery._mapped is None and gallery.info().notes == gallery.notes


def test_a_closed_gallery_does_not_read_its_file_any_more(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes into that file after it would end the process with SIGBUS."""
    reading, go, order = threading.Event(), threading.Event(), []
    compare = MappedFile._compare

    def slow(file: MappedFile, block: int) -> None:
        if threading.current_thread().name == "snapshot watch" and not go.is_set():
            reading.set()
            go.wait(60)
            order.append("compared")
        compare(file, block)

    monkeypatch.setattr(MappedFile, "_compare", slow)
    gallery = Gallery.open(path, fingerprint=None)
    assert reading.wait(60)

    def close() -> None:
        gallery.close()
        order.append("closed")

    closing = threading.Thread(target=close)
    closing.start()
    closing.join(0.5)  # without waiting for the block it has long ended
    go.set()
    closing.join(60)
    assert order == ["compared", "closed"]


def test_without_another_look_a_flip_would_change_answers(path: Path, make_batch: MakeBatch) -> None:
    """Vacuity: a mapping shows what is in the file now."""
    batch = make_batch(ASKED)
    with Gallery.open(path, fingerprint=None) as gallery:
        gallery._mapped.check_all(Event())  # type: ignore[union-attr]
        truth = answers(gallery, batch)
        start, _ = gallery._mapped.facts["sections"]["velocity.vectors"]  # type: ignore[union-attr]
        with flipped(path / MAPPED, start + 3, 6):
            assert gallery.embeddings(["m0"])[0].tobytes() != batch.velocity_embeddings[:1].tobytes()
            assert answers(gallery, batch) != truth
        assert answers(gallery, batch) == truth and gallery.notes == ()


def test_nothing_is_searched_before_it_was_compared(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the thread: the search itself finds the block, and answers from the records."""
    monkeypatch.setattr(MappedFile, "check_all", lambda self, stopping: None)
    batch = make_batch(ASKED)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = answers(gallery, batch)
        sections = gallery._mapped.facts["sections"]  # type: ignore[union-attr]
    name = "velocity.codes" if gallery._view.velocity._segments[0].codes is not None else "velocity.vectors"
    with flipped(path / MAPPED, sections[name][0] + 3, 6), Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.notes == ()
        assert gallery.search_velocity(batch.velocity_embeddings, 9) == truth[4]
        assert "does not match its checksum" in gallery.notes[0] and gallery._mapped is None


def test_changes_are_made_up_for_and_written_when_many(path: Path, make_batch: MakeBatch) -> None:
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        written = (path / MAPPED).stat().st_mtime_ns
        gallery.remove(["m3"])
        assert "m3" not in gallery.model_ids()
    assert (path / MAPPED).stat().st_mtime_ns == written  # one of 40 is not worth it
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        assert gallery._mapped is not None and gallery._behind == 1 and len(gallery) == COUNT - 1
        with pytest.raises(UnknownModel):
            gallery.record("m3")
        make_batch(1, first=3).add_to(gallery)
        longer = make_batch(1, first=90)
        gallery.add(
            longer.velocity, longer.descriptors, longer.velocity_embeddings, longer.physics_embeddings,
            model_ids=["a-much-longer-id-than-any-before"],
        )  # fmt: skip
        assert gallery.record("m3").model_id == "m3" and len(gallery) == COUNT + 1
        expected = answers(gallery, make_batch(ASKED))
        assert gallery.verify().ok
    assert (path / MAPPED).stat().st_mtime_ns != written
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery._behind == 0 and answers(gallery, make_batch(ASKED)) == expected
        assert gallery.model_ids()[-1] == "a-much-longer-id-than-any-before"


def test_a_reader_keeps_up_and_a_gallery_changes_its_kind_with_its_size(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Gallery.open(path, fingerprint=None) as reader:
        with Gallery.open(path, fingerprint=None, writable=True) as writer:
            make_batch(30, first=50).add_to(writer)
            writer.remove([f"m{i}" for i in range(20)])
            expected = answers(writer, make_batch(20, first=20))
        assert reader.refresh() and not reader.refresh()
        assert answers(reader, make_batch(20, first=20)) == expected and reader.verify().ok
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1000)
    with Gallery.open(path, fingerprint=None, writable=True) as writer:
        assert writer._mapped is not None
        writer.remove([f"m{i}" for i in range(50, 60)])
    assert not (path / MAPPED).exists() and (path / "velocity.faiss").exists()
    with Gallery.open(path, fingerprint=None) as reader:
        assert reader._mapped is None and len(reader) == 40 and reader.notes == ()
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1)  # as if made before there were mapped snapshots
    with Gallery.open(path, fingerprint=None, writable=True):
        pass
    with Gallery.open(path, fingerprint=None) as reader:
        assert reader._mapped is not None and not (path / "velocity.faiss").exists()


def test_older_records_put_back_are_not_mixed_with_it(path: Path, make_batch: MakeBatch) -> None:
    records = (path / "records.sqlite").read_bytes()
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=50).add_to(gallery)
    (path / "records.sqlite").write_bytes(records)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert "an older copy of the records was put back" in gallery.info().notes[0]
        assert gallery.model_ids() == [f"m{i}" for i in range(COUNT)]
        gallery.search_velocity(make_batch(5, first=50).velocity_embeddings, 3)
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=70).add_to(gallery)  # as many changes as the snapshot knows
        gallery._behind = 0  # as if killed before the snapshot
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery._mapped is not None and gallery.generation == gallery._mapped.facts["generation"]
        found = gallery.search_velocity(make_batch(5, first=70).velocity_embeddings, 1)
        assert [hits[0].model_id for hits in found] == [f"m{i}" for i in range(70, 75)]


@pytest.mark.parametrize("content", [b"", b"SBNDMAP\n" * 3, bytes(100_000)])
def test_another_file_in_its_place_is_not_believed(path: Path, make_batch: MakeBatch, content: bytes) -> None:
    (path / MAPPED).write_bytes(content)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert "mapped snapshot was not used" in gallery.info().notes[0]
        assert len(gallery.search_velocity(make_batch(3).velocity_embeddings, 5)) == 3


def crafted(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a mapped snapshot with another description, and the checksum that belongs to it."""
    content = (path / MAPPED).read_bytes()
    length = int.from_bytes(content[-16:-8], "little")
    facts = json.loads(content[-16 - length : -16])
    del facts["check"]
    changed = mapped.dump_facts(change(facts) or facts)  # type: ignore[arg-type]
    (path / MAPPED).write_bytes(content[: -16 - length] + changed + len(changed).to_bytes(8, "little") + content[-8:])


def within(name: str, *change: Any) -> Callable[[dict[str, Any]], None]:
    def apply(facts: dict[str, Any]) -> None:
        facts[name].update(change[0])

    return apply


CRAFTED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no approximate indices": lambda facts: facts | {"approximate": ["velocity"]},
    "an approximate index of another kind": within("approximate", {"velocity": "all"}),
    "an approximate index that is served and not there": within(
        "approximate",
        {
            "velocity": dict.fromkeys(("models", "lists", "probes", "candidates", "deepest", "bytes", "samples"), 9)
            | {"recall": 1.0, "recall_deepest": 1.0, "filtered": {"1": 1.0}, "served": True}
        },
    ),
    "an approximate index without facts": within("approximate", {"velocity": {"models": 3}}),
    "no description": lambda facts: {"format": facts["format"]},
    "another format": lambda facts: facts | {"format": ["2"]},
    "sections in a list": lambda facts: facts | {"sections": [[0, 1]]},
    "a section behind the end": within("sections", {"rows": [1 << 40, 320]}),
    "a section before the beginning": within("sections", {"rows": [-BLOCK, 320]}),
    "a section of another size": within("sections", {"velocity.codes": [0, 16]}),
    "a section that is none": within("sections", {"rows": "320"}),
    "fewer blocks": lambda facts: facts | {"blocks": -1},
    "blocks of a fraction": lambda facts: facts | {"blocks": 2.5},
    "columns that are not compared": lambda facts: facts | {"columns_end": 0},
    "ids of no bytes": lambda facts: facts | {"id_bytes": 0},
    "ids of many": lambda facts: facts | {"id_bytes": 1 << 40},
    "a count of another kind": lambda facts: facts | {"count": True},
    "a count that is huge": lambda facts: facts | {"count": 1 << 80},
    "families that are none": lambda facts: facts | {"families": {"FlatVel-A": 3}},
    "families without number": lambda facts: facts | {"families": []},
    "ranges of another shape": lambda facts: facts | {"ranges": [1, 2]},
    "codes of a kind": within("codes", {"physics": None}),
    "no digest": lambda facts: facts | {"digest": "x" * 64},
    "a fingerprint in a list": lambda facts: facts | {"fingerprint": ["weights-1"]},
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_description_that_somebody_made_up_is_one_sentence(path: Path, make_batch: MakeBatch, name: str) -> None:
    """Its checksum is right: whoever can write the file can write that, too."""
    crafted(path, CRAFTED[name])
    with Gallery.open(path, fingerprint=None) as gallery:
        assert "mapped snapshot was not used and was rebuilt from the records" in gallery.info().notes[0]
        assert len(gallery.search_velocity(make_batch(3).velocity_embeddings, 5)) == 3
    assert "mapped snapshot" in verify_folder(path).problems[0]


def test_the_same_description_written_again_is_believed(path: Path) -> None:
    crafted(path, lambda facts: facts | {"more": [1]})
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.info().notes == () and gallery._mapped is not None


@pytest.mark.parametrize("name", ["order", "family", "tag_set", "source"])
def test_numbers_that_point_nowhere_are_not_followed(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A snapshot that was written so, with right checksums: its ids in no order, or labels that it does not name."""
    written = mapped_writer._Blocks.write
    section: list[str] = []
    opened = mapped_writer._Blocks.section

    def write(self: Any, content: Any) -> None:
        if section and section[-1] == name and not isinstance(content, bytes):
            content = content + 1000
        written(self, content)

    def begun(self: Any, section_name: str) -> Any:
        section.append(section_name)
        return opened(self, section_name)

    monkeypatch.setattr(mapped_writer._Blocks, "write", write)
    monkeypatch.setattr(mapped_writer._Blocks, "section", begun)
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=100).add_to(gallery)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert "mapped snapshot was not used" in gallery.info().notes[0]
        assert len(gallery.search_velocity(make_batch(3).velocity_embeddings, 5)) == 3


def test_that_of_another_gallery_is_not_believed(path: Path, tmp_path: Path, make_batch: MakeBatch) -> None:
    with Gallery.create(tmp_path / "other", fingerprint="weights-2", dimension=16) as gallery:
        make_batch(COUNT).add_to(gallery)
    shutil.copy(tmp_path / "other" / MAPPED, path / MAPPED)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert "belongs to another gallery" in gallery.info().notes[0]


def test_a_list_of_models_that_is_damaged_is_said(path: Path, make_batch: MakeBatch) -> None:
    """Opening does not read it."""
    records = path / "records.sqlite"
    content = records.read_bytes()
    with Gallery.open(path, fingerprint=None) as gallery:
        checksum = bytes.fromhex(gallery.record("m5").checksum)
    with flipped(records, content.index(checksum) + 3, 2), Gallery.open(path, fingerprint=None) as gallery:
        batch = make_batch(ASKED)
        assert gallery.search_velocity(batch.velocity_embeddings[5:6], 1)[0][0].model_id == "m5"
        with pytest.raises(GalleryError, match="does not match its checksum"):
            gallery.record("m5")
        assert "list of models does not match its digest" in said(gallery)[0]


def test_the_table_of_maps_is_read_ahead(
    tmp_path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large gallery's writer knows equal maps at its first addition, and waits for no table when it closes."""
    monkeypatch.setattr(record_writer, "AHEAD_MODELS", 1)
    batch = make_batch(30)
    with Gallery.create(tmp_path / "g", fingerprint="w", dimension=16) as gallery:
        batch.add_to(gallery)
    Gallery.open(tmp_path / "g", fingerprint=None, writable=True).close()
    with Gallery.open(tmp_path / "g", fingerprint=None, writable=True) as gallery:
        gallery.remove(["m3"])
        again = replace(batch, model_ids=[f"n{i}" for i in range(30)]).add_to(gallery)
        assert isinstance(again, Added)
        assert again.same_map == {f"n{i}": f"m{i}" for i in range(30) if i != 3}
    assert not any(thread.name == "maps" for thread in threading.enumerate())


def test_a_closed_writer_leaves_one_whole_file(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the list of models is still being compared; a copy of records.sqlite alone has the last change."""
    compare, close = Gallery._compare_list, mapped.SnapshotWatch.close
    begun, closing = threading.Event(), threading.Event()

    def slowly(self: Gallery) -> None:
        reader = Records(self.path / "records.sqlite")
        begun.set()
        closing.wait(60)
        time.sleep(0.2)  # in which the writer would be closed
        reader.close()
        compare(self)

    def noted(self: mapped.SnapshotWatch, *, wait: bool) -> None:
        closing.set()
        close(self, wait=wait)

    monkeypatch.setattr(Gallery, "_compare_list", slowly)
    monkeypatch.setattr(mapped.SnapshotWatch, "close", noted)
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(5, first=50).add_to(gallery)
        assert begun.wait(60)
    assert not (path / "records.sqlite-wal").exists()
