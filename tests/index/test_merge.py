"""Several galleries in one: everything that is stored stays as it is, and no model is lost, mixed or there twice."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery, verify_folder
from seisbind.index.maintenance import merge as module
from seisbind.index.maintenance.merge import merge
from seisbind.index.storage import record_writer
from seisbind.index.storage.codec import encode_map
from seisbind.model.errors import GalleryDamaged, InvalidConfig, InvalidQuery, WeightsMismatch

MakeBatch = Callable[..., Any]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, make_batch: MakeBatch) -> Make:
    """A gallery of the models ``first`` to ``end``, under other ids where they are given."""

    def gallery(name: str, first: int, end: int, ids: list[str] | None = None, fingerprint: str = "weights-1") -> Path:
        batch = make_batch(end - first, first=first)
        with Gallery.create(tmp_path / name, fingerprint=fingerprint, dimension=16) as made:
            (replace(batch, model_ids=ids) if ids else batch).add_to(made, source=f"from {name}")
        return tmp_path / name

    return gallery


def everything(path: Path) -> dict[str, Any]:
    """What is stored for each model."""
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.verify().ok
        ids = gallery.model_ids()
        embeddings = [np.concatenate(each).tobytes() for each in zip(*gallery.embeddings(ids), strict=True)]
        return {
            r.model_id: (r.family, r.tags, r.source, r.added_at, r.checksum, v.tobytes(), e)
            for r, v, e in zip(gallery.records(ids), gallery.velocities(ids), embeddings, strict=True)
        }


def test_a_new_gallery_has_all_of_both_as_they_were(make: Make, tmp_path: Path) -> None:
    one, two = make("one", 0, 300), make("two", 300, 320)
    merged = merge(tmp_path / "all", [one, two])
    assert (merged.count, merged.added, merged.present, merged.same_map) == (320, 320, 0, 0)
    assert everything(tmp_path / "all") == everything(one) | everything(two)
    with Gallery.open(tmp_path / "all", fingerprint="weights-1") as gallery:
        assert gallery.notes == () and gallery.model_ids() == [f"m{n}" for n in range(320)]
        query = gallery.embeddings(["m310"])[0]
        assert gallery.search_velocity(query, 1)[0][0].model_id == "m310"


def test_the_same_id_and_map_is_stored_once_and_said(make: Make, tmp_path: Path) -> None:
    merged = merge(tmp_path / "all", [make("one", 0, 20), make("two", 10, 30)])
    assert (merged.count, merged.added, merged.present) == (30, 30, 10)


def test_the_same_map_under_another_id_is_kept_and_named(make: Make, tmp_path: Path) -> None:
    merged = merge(tmp_path / "all", [make("one", 0, 20), make("two", 5, 7, ["x", "y"])])
    assert (merged.count, merged.same_map, merged.examples) == (22, 2, (("x", "m5"), ("y", "m6")))


def test_an_id_of_two_maps_is_refused_or_renamed(make: Make, tmp_path: Path) -> None:
    one, two = make("one", 0, 20), make("two", 40, 42, ["m3", "m50"])
    with pytest.raises(InvalidQuery, match=r"'m3' of .*two belongs to another velocity map"):
        merge(tmp_path / "all", [one, two])
    assert not (tmp_path / "all" / "records.sqlite").exists() and not (tmp_path / "all" / "building").exists()
    merged = merge(tmp_path / "all", [one, two], rename="{gallery}.{id}")
    assert (merged.count, merged.renamed) == (22, 1)
    held = everything(tmp_path / "all")
    assert held["two.m3"][5] == everything(two)["m3"][5] and held["m3"] == everything(one)["m3"]
    again = merge(tmp_path / "all", [two], into=True, rename="{gallery}.{id}")
    assert (again.added, again.present) == (0, 2)  # the same call goes on where it was stopped


@pytest.mark.parametrize("rule", ["fixed", "{name}.{id}", "{0}{id}", "{id"])
def test_a_rule_that_is_none_is_refused(make: Make, tmp_path: Path, rule: str) -> None:
    with pytest.raises(InvalidConfig, match=r"rule|same id"):
        merge(tmp_path / "all", [make("one", 0, 3)], rename=rule)


def test_other_weights_are_refused_by_name(make: Make, tmp_path: Path) -> None:
    with pytest.raises(WeightsMismatch, match=r"one .*weights-1.*two .*weights-2"):
        merge(tmp_path / "all", [make("one", 0, 3), make("two", 5, 8, fingerprint="weights-2")])
    with pytest.raises(WeightsMismatch, match="weights-2"):
        merge(tmp_path / "two", [tmp_path / "one"], into=True)


def test_into_one_that_is_there_while_it_is_read(make: Make) -> None:
    one, two = make("one", 0, 20), make("two", 15, 30)
    expected = everything(one) | {k: v for k, v in everything(two).items() if int(k[1:]) >= 20}
    with Gallery.open(one, fingerprint=None) as reader:
        merged = merge(one, [two], into=True)
        assert reader.refresh() and len(reader) == 30
    assert (merged.added, merged.present, merged.count) == (10, 5, 30)
    assert everything(one) == expected


def test_into_compares_all_ids_before_it_writes(make: Make) -> None:
    one, two, three = make("one", 0, 20), make("two", 20, 30), make("three", 40, 41, ["m29"])
    with pytest.raises(InvalidQuery, match=r"'m29' of .*three"):
        merge(one, [two, three], into=True)
    assert len(everything(one)) == 20


def test_a_damaged_source_is_refused_and_no_gallery_is_made(make: Make, tmp_path: Path) -> None:
    one, two = make("one", 0, 20), make("two", 20, 30)
    with Gallery.open(two, fingerprint=None) as gallery:
        part = encode_map(gallery.velocity("m25"))
    file = two / "records.sqlite"
    content = bytearray(file.read_bytes())
    content[content.index(part) + len(part) - 1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(GalleryDamaged, match="m25"):
        merge(tmp_path / "all", [one, two])
    assert not (tmp_path / "all" / "records.sqlite").exists()


def test_what_is_merged_is_not_where_it_goes(make: Make) -> None:
    one = make("one", 0, 3)
    for sources in ([one], [one, one], []):
        with pytest.raises(InvalidConfig):
            merge(one if sources == [one] else one.with_name("all"), sources, into=True)


def test_killed_in_the_middle_the_same_merge_goes_on(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop between two transactions, as a kill is: what was added stays whole."""
    one, two = make("one", 0, 5), make("two", 10, 600)

    class Stopped(BaseException):
        pass

    times = [0]

    def at_step(name: str) -> None:
        times[0] += name == "add:committed"
        if times[0] == 2:
            raise Stopped(signal.SIGKILL)

    with pytest.raises(Stopped):
        merge(one, [two], into=True, at_step=at_step)
    assert verify_folder(one).ok and verify_folder(one).count == 5 + 2 * 256
    assert merge(one, [two], into=True).count == 595
    assert {k: v[4] for k, v in everything(one).items() if int(k[1:]) >= 10} == {
        k: v[4] for k, v in everything(two).items()
    }


def test_nothing_is_described_or_embedded_again(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum of a record covers its map, descriptors, embeddings, tags and time: it is the same after copying."""
    one = make("one", 0, 20)
    written: list[bytes] = []
    made = record_writer.record_checksum
    monkeypatch.setattr(record_writer, "record_checksum", lambda *a: written.append(made(*a)) or written[-1])
    merge(tmp_path / "all", [one])
    assert [each.hex() for each in written] == [each[4] for each in everything(one).values()]
    assert module.merge is merge


def test_rounded_velocities_do_not_go_where_exact_ones_are_promised(
    make: Make, tmp_path: Path, make_batch: MakeBatch
) -> None:
    exact, rounded = make("exact", 0, 4), tmp_path / "rounded"
    with Gallery.create(rounded, fingerprint="weights-1", dimension=16, precision_m_s=0.5) as gallery:
        make_batch(4, first=10).add_to(gallery)
    before = everything(exact)
    with pytest.raises(InvalidConfig, match=r"are exact, those of .*rounded by up to 0\.5 m/s\. Merge both into a new"):
        merge(exact, [rounded], into=True)
    assert everything(exact) == before
    merge(rounded, [exact], into=True)
    merge(tmp_path / "new", [exact, rounded])
    with Gallery.open(tmp_path / "new", fingerprint=None) as gallery:
        assert gallery.precision_m_s == 0.5 and len(gallery) == 8
