"""Approximate search: recall is measured, below .99 it is not served, and the rest is exact (promises 104 to 106)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from seisbind.index import Filter, Gallery
from seisbind.index.approximate import lists, probe, recall
from seisbind.index.approximate.info import FLOOR, ApproximateInfo
from seisbind.index.approximate.probe import RecallProbe
from seisbind.index.maintenance.duplicates import near_equal
from seisbind.index.search import mapped_writer
from seisbind.index.search.mapped import MappedFile
from seisbind.index.search.reranking import best_of, source_of
from seisbind.index.search.vectors import VectorIndex
from seisbind.index.storage.folder import MAPPED
from seisbind.model.ground.descriptors import NAMES

MakeBatch = Callable[..., Any]
COUNT = 600
K = 10


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gallery counts as very large; lists are small, so that few of them are looked through."""
    monkeypatch.setattr(mapped_writer, "MAPPED_MODELS", 1)
    monkeypatch.setattr(mapped_writer, "APPROXIMATE_MODELS", 300)
    monkeypatch.setattr(lists, "PER_LIST", 16)
    monkeypatch.setattr(recall, "SAMPLES", 150)
    monkeypatch.setattr(recall, "CANDIDATES", (64, 128))


@pytest.fixture
def path(tmp_path: Path, make_batch: MakeBatch) -> Path:
    with Gallery.create(tmp_path / "gallery", fingerprint="weights-1", dimension=16) as gallery:
        make_batch(COUNT + 20).add_to(gallery)
        gallery.remove([f"m{i}" for i in range(COUNT, COUNT + 20)])
    return tmp_path / "gallery"


def found(gallery: Gallery, queries: Any, **options: Any) -> list[list[tuple[str, float]]]:
    return [[(hit.model_id, hit.similarity) for hit in hits] for hits in gallery.search_velocity(queries, K, **options)]


def queries_of(make_batch: MakeBatch, count: int = 200) -> Any:
    return make_batch(count, first=10_000).velocity_embeddings


def shared(some: list[Any], others: list[Any]) -> float:
    return float(
        np.mean([len({i for i, _ in a} & {i for i, _ in b}) / len(b) for a, b in zip(some, others, strict=True)])
    )


@contextmanager
def flipped(file: Path, offset: int) -> Iterator[None]:
    def flip() -> None:
        with file.open("r+b") as handle:
            handle.seek(offset)
            byte = handle.read(1)[0]
            handle.seek(offset)
            handle.write(bytes([byte ^ 4]))

    flip()
    try:
        yield
    finally:
        flip()


def test_the_recall_that_is_recorded_is_that_of_other_queries(path: Path, make_batch: MakeBatch) -> None:
    queries = queries_of(make_batch)
    with Gallery.open(path, fingerprint=None) as gallery:
        info = gallery.approximate
        assert info is not None and info.models == COUNT and info.probes <= info.lists and info.recall >= FLOOR
        assert set(info.filtered) == {"0.1", "1", "10", "50"} and min(info.filtered.values()) >= FLOOR
        hits = gallery.search_velocity(queries, K)
        assert hits.approximate == info
        truth = found(gallery, queries, exact=True)
        assert gallery.search_velocity(queries, K, exact=True).approximate is None
        assert shared(found(gallery, queries), truth) >= 0.97
        similarity = {(n, i): s for n, pairs in enumerate(truth) for i, s in pairs}
        both = [(n, i, s) for n, pairs in enumerate(found(gallery, queries)) for i, s in pairs if (n, i) in similarity]
        assert len(both) > 1000 and all(similarity[n, i] == s for n, i, s in both)  # to the bit
        said = gallery.info()
        assert said.searched == "approximate" and said.approximate == info and "recall@10" in said.search_text
    assert ApproximateInfo.parse(json.loads(json.dumps(info.to_dict()))) == info
    with Gallery.open(path, fingerprint=None, exact=True) as gallery:
        assert gallery.approximate is None and gallery.search_velocity(queries, K).approximate is None
        assert found(gallery, queries) == truth and gallery.info().searched == "exact"


def test_all_lists_and_all_candidates_are_brute_force(make_batch: MakeBatch, brute_force: Any) -> None:
    batch, queries = make_batch(COUNT), queries_of(make_batch, 50)
    index = VectorIndex.build(batch.velocity_embeddings)
    made = lists.Lists.build(index.vectors_at, COUNT, lists.principal(index.vectors_at, COUNT))
    candidates = made.candidates(queries, probes=made.count, count=COUNT)
    answers = best_of(index, queries, candidates, K)
    truth = brute_force(batch.velocity_embeddings, batch.model_ids, queries, K)
    assert [[batch.model_ids[i] for i in at] for at, _ in answers] == [[i for i, _ in each] for each in truth]
    exact = index.search(queries, K)
    assert all((a == c).all() and (b == d).all() for (a, b), (c, d) in zip(answers, exact, strict=True))
    few = best_of(index, queries, made.candidates(queries, probes=1, count=COUNT), K)
    assert any(len(a) < K or (a != c).any() for (a, _), (c, _) in zip(few, exact, strict=True))  # vacuity


def test_an_index_that_lost_its_order_is_refused(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lists hold other vectors than they say: recall falls, that is recorded, and search is exact."""
    candidates = lists.Lists.candidates
    moved = np.random.default_rng(3).permutation(COUNT + 1)

    def permuted(self: lists.Lists, queries: Any, *, probes: int, count: int) -> Any:
        at = candidates(self, queries, probes=probes, count=count)
        return np.where(at < 0, -1, moved[at] % len(self))

    queries = queries_of(make_batch)
    with Gallery.open(path, fingerprint=None, exact=True) as gallery:
        truth = found(gallery, queries)
    monkeypatch.setattr(lists.Lists, "candidates", permuted)
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        gallery._snapshot_generation = -1
        gallery.snapshot()
    with Gallery.open(path, fingerprint=None) as gallery:
        info = gallery.info().approximate
        assert info is not None and info.recall < 0.5 and not info.served and gallery.approximate is None
        assert "at least 0.99 is served" in gallery.notes[0]
        assert found(gallery, queries) == truth and gallery.search_velocity(queries, K).approximate is None
        assert "velocity.lists" not in gallery._mapped.facts["sections"]  # type: ignore[union-attr]


@pytest.mark.parametrize("share", [0.1, 1, 10, 50])
def test_what_has_a_filter_is_exact(path: Path, make_batch: MakeBatch, brute_force: Any, share: float) -> None:
    batch, queries = make_batch(COUNT), queries_of(make_batch, 30)
    column = batch.descriptors[:, NAMES.index("mean_velocity")]
    condition = Filter.parse({"mean_velocity": [0, float(np.quantile(column, share / 100))]})
    with Gallery.open(path, fingerprint=None) as gallery:
        hits = gallery.search_velocity(queries, K, filter=condition)
        assert hits.approximate is None and gallery.approximate is not None
        allowed = np.flatnonzero(column <= np.quantile(column, share / 100))
        truth = brute_force(batch.velocity_embeddings[allowed], [batch.model_ids[i] for i in allowed], queries, K)
        assert [[hit.model_id for hit in each] for each in hits] == [[i for i, _ in each] for each in truth]


def test_changes_are_searched_at_once(path: Path, make_batch: MakeBatch) -> None:
    """Added models exactly, removed ones never; many removed ones, and the index is left out."""
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        more = make_batch(60, first=20_000)
        more.add_to(gallery)
        hits = gallery.search_velocity(more.velocity_embeddings, K)
        assert hits.approximate is not None
        assert [each[0].model_id for each in hits] == more.model_ids
        truth = found(gallery, queries_of(make_batch), exact=True)
        assert shared(found(gallery, queries_of(make_batch)), truth) >= 0.97
        gone = make_batch(50)
        gallery.remove(gone.model_ids)
        hits = gallery.search_velocity(gone.velocity_embeddings, K)
        assert hits.approximate is not None and not {h.model_id for each in hits for h in each} & set(gone.model_ids)
        assert all(len(each) == K for each in hits)
        gallery.remove([f"m{i}" for i in range(50, 150)])
        assert gallery.search_velocity(gone.velocity_embeddings, K).approximate is None  # compacted
        assert found(gallery, gone.velocity_embeddings) == found(gallery, gone.velocity_embeddings, exact=True)
    with Gallery.open(path, fingerprint=None) as gallery:  # closing wrote a new snapshot with an index
        assert gallery.approximate is not None and gallery.approximate.models == COUNT + 60 - 150


def test_where_most_candidates_are_gone_it_is_exact(make_batch: MakeBatch, path: Path) -> None:
    queries = queries_of(make_batch, 1)
    with Gallery.open(path, fingerprint=None) as gallery:
        view = gallery._view
        assert view.lists is not None
        near = np.unique(view.lists.candidates(queries))
        near = near[near >= 0]
        gone = view.rows[near[: len(near) // 2 + 5]]
        less = view.without(replace(view.state, count=COUNT - len(gone)), gone)
        assert less.searched_lists is not None  # few of all models are gone
        some = less.search("velocity", queries, K, None, exact=False)
        assert some == less.search("velocity", queries, K, None)


def test_where_many_models_are_gone_every_process_searches_exactly(path: Path, make_batch: MakeBatch) -> None:
    """Also one that opens the snapshot of before, whose writer was killed before it wrote another."""
    queries = queries_of(make_batch, 20)
    reader = Gallery.open(path, fingerprint=None)
    with Gallery.open(path, fingerprint=None, writable=True) as writer:
        writer.remove([f"m{i}" for i in range(COUNT // 8 - 2)])
        assert writer.approximate is not None
        writer.remove([f"m{i}" for i in range(COUNT // 8 - 2, COUNT // 8 + 2)])
        assert writer.approximate is None
        writer._snapshot_generation, writer._behind, writer._lacks_lists = writer.generation, 0, False  # killed
    with Gallery.open(path, fingerprint=None) as opened:
        assert opened._mapped is not None and opened._view.lists is not None  # the snapshot of before
        hits = opened.search_velocity(queries, K)
        assert hits.approximate is None and opened.approximate is None and opened.info().searched == "exact"
        reader.refresh()
        assert reader.approximate is None and found(reader, queries) == found(opened, queries, exact=True)
    reader.close()
    Gallery.open(path, fingerprint=None, writable=True).close()
    with Gallery.open(path, fingerprint=None) as anew:
        assert anew.approximate is not None and anew.search_velocity(queries, K).approximate is not None


def test_more_matches_than_were_measured_are_exact(path: Path, make_batch: MakeBatch) -> None:
    queries = queries_of(make_batch, 5)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.search_velocity(queries, recall.DEEPEST).approximate is not None
        assert gallery.search_velocity(queries, recall.DEEPEST + 1).approximate is None


def test_a_flip_in_the_lists_is_said_and_changes_no_answer(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the thread that compares all blocks: by the search that would use them."""
    monkeypatch.setattr(MappedFile, "check_all", lambda self, stopping: None)
    queries = queries_of(make_batch, 20)
    with Gallery.open(path, fingerprint=None) as gallery:
        truth = found(gallery, queries, exact=True)
        start, size = gallery._mapped.facts["sections"]["velocity.lists"]  # type: ignore[union-attr]
    for offset in (start, start + size // 2, start + size - 1):
        with flipped(path / MAPPED, offset), Gallery.open(path, fingerprint=None) as gallery:
            assert gallery.notes == ()
            assert found(gallery, queries) == truth
            assert "does not match its checksum" in gallery.notes[0] and gallery.approximate is None


def test_a_snapshot_of_the_format_before_is_made_anew(path: Path, make_batch: MakeBatch, monkeypatch: Any) -> None:
    """It has no sources and no times: what is searched is read from the records, and that is said."""
    queries = queries_of(make_batch, 20)
    with Gallery.open(path, fingerprint=None, exact=True) as gallery:
        truth = found(gallery, queries)
    with monkeypatch.context() as before, Gallery.open(path, fingerprint=None, writable=True) as gallery:
        before.setattr(mapped_writer, "FORMAT_VERSION", 1)
        gallery._snapshot_generation = -1
        gallery.snapshot()
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery._mapped is None and "its format is 1" in gallery.notes[0]
        assert gallery.approximate is None and found(gallery, queries) == truth


def test_an_index_that_was_left_out_is_made_by_the_next_writer(path: Path, make_batch: MakeBatch) -> None:
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        gallery.remove(["m3"])  # so that what it holds is elsewhere in the new snapshot
        gallery.snapshot(lists=False)
        gallery.close(lists=False)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery._mapped is not None and gallery.approximate is None and gallery.notes == ()
    written = (path / MAPPED).stat().st_mtime_ns
    Gallery.open(path, fingerprint=None, writable=True).close(lists=False)  # which is no reason to write all again
    assert (path / MAPPED).stat().st_mtime_ns == written
    Gallery.open(path, fingerprint=None, writable=True).close()
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.approximate is not None


def test_whoever_cannot_wait_keeps_the_index_that_is_there(path: Path, make_batch: MakeBatch) -> None:
    """A server that stops: what was added since is searched exactly, and an index that lacks much is made anew."""
    queries = queries_of(make_batch, 30)
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(40, first=2000).add_to(gallery)
        gallery.close(lists=False)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery._mapped is not None and gallery._mapped.facts["count"] == COUNT + 40
        info, truth = gallery.approximate, found(gallery, queries, exact=True)
        assert info is not None and info.models == COUNT
        assert shared(found(gallery, queries), truth) >= 0.97
        new = gallery.embeddings(["m2039"])[0]
        assert gallery.search_velocity(new, 1)[0][0].model_id == "m2039"
    with Gallery.open(path, fingerprint=None, writable=True) as gallery:
        make_batch(100, first=3000).add_to(gallery)
        gallery.close(lists=False)
    Gallery.open(path, fingerprint=None, writable=True).close()
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.approximate is not None and gallery.approximate.models == COUNT + 140


def test_models_are_added_while_a_snapshot_is_written(path: Path, make_batch: MakeBatch) -> None:
    """Which takes a minute where an index is made: the next opening makes up for what it lacks."""
    added: list[bool] = []

    def add(step: str) -> None:
        if step != f"{MAPPED}:written" or added:
            return
        thread = Thread(target=make_batch(1, first=5000).add_to, args=(gallery,), daemon=True)
        thread.start()
        thread.join(60)  # it would wait for the snapshot, which waits here
        added.append(not thread.is_alive())

    with Gallery.open(path, fingerprint=None, writable=True, at_step=add) as gallery:
        make_batch(30, first=4000).add_to(gallery)
        gallery.snapshot()
        assert added == [True] and gallery._behind == 1
    with Gallery.open(path, fingerprint=None) as gallery:
        assert len(gallery) == COUNT + 31 and gallery.record("m5000") and gallery.notes == ()
        assert gallery._mapped is not None and gallery._mapped.facts["count"] == COUNT + 30


def test_live_queries_go_on_being_measured(path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here each is compared. While recall is well, nothing changes; once candidates are lost, search is exact again."""
    monkeypatch.setattr(probe, "EVERY", 1)
    monkeypatch.setattr(probe, "ENOUGH", 20)
    monkeypatch.setattr(probe, "Thread", _AtOnce)
    queries = queries_of(make_batch)
    with Gallery.open(path, fingerprint=None) as gallery:
        for query in queries[:60]:
            gallery.search_velocity(query[None], K)
        assert gallery.live_recall.compared == 60 and (gallery.live_recall.recall or 0) > 0.97
        good = gallery.live_recall.recall or 0
        candidates = lists.StoredLists.candidates
        monkeypatch.setattr(
            lists.StoredLists, "candidates", lambda self, queries: _every_other(candidates(self, queries))
        )
        for query in queries:
            gallery.search_velocity(query[None], K)
        assert gallery.live_recall.recall is not None and gallery.live_recall.recall < min(good, FLOOR)
        assert gallery.approximate is None and "Search is exact again" in gallery.notes[-1]
        assert gallery.search_velocity(queries, K).approximate is None


class _AtOnce:
    """A thread that is done when it has started."""

    def __init__(self, *, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> None:
        self._work = lambda: target(*args)

    def start(self) -> None:
        self._work()


def _every_other(candidates: Any) -> Any:
    """Half of the candidates, best first, lost."""
    kept = candidates.copy()
    kept[:, ::2] = -1
    return kept


def test_a_few_chance_misses_do_not_end_it() -> None:
    """Mean .985 of 20, and of 400; the second is beyond chance."""
    ended: list[Any] = []
    watch = RecallProbe(ended.append)
    rng = np.random.default_rng(1)

    def compare(count: int, share: float) -> None:
        for _ in range(count):
            kept = [number for number in range(K) if rng.random() < share]
            watch.record(kept, list(range(K)))

    compare(probe.ENOUGH - 1, 0.5)
    assert not ended
    watch = RecallProbe(ended.append)
    compare(400, 0.995)
    assert not ended
    compare(400, 0.97)
    assert len(ended) == 1 and ended[0].recall < FLOOR


def test_sample_queries_are_not_stored_vectors(make_batch: MakeBatch) -> None:
    index = VectorIndex.build(make_batch(COUNT).velocity_embeddings)
    source = source_of(index, np.ones(COUNT, np.bool_))
    directions = lists.principal(index.vectors_at, COUNT)
    queries = recall.sample_queries(source, directions, 90, np.random.default_rng(0))
    best = np.array([similarity[0] for _, similarity in index.search(queries, 1)])
    assert best.max() < 0.99 and 0.3 < best.min() < 0.7 and np.allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-6)


def test_lists_that_faiss_does_not_read_leave_the_exact_search(
    path: Path, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that another version of FAISS wrote: said, and no query fails."""
    queries = queries_of(make_batch, 20)
    with Gallery.open(path, fingerprint=None, exact=True) as gallery:
        truth = found(gallery, queries)

    def refuse(reader: object) -> None:
        raise RuntimeError("Index type 0x20202020 not recognized")

    monkeypatch.setattr(lists.faiss, "read_index", refuse)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.approximate is not None
        hits = gallery.search_velocity(queries, K)
        assert hits.approximate is None and found(gallery, queries) == truth
        assert any("FAISS does not read it" in note for note in gallery.notes)


def test_lists_of_other_vectors_are_refused(make_batch: MakeBatch) -> None:
    index = VectorIndex.build(make_batch(COUNT).velocity_embeddings)
    content = bytearray()
    lists.Lists.build(index.vectors_at, COUNT, lists.principal(index.vectors_at, COUNT)).dump(content.extend)
    stored = np.frombuffer(bytes(content), np.uint8)
    assert len(lists.Lists.read(stored, count=COUNT, dimension=16)) == COUNT
    for count, dimension in ((COUNT - 1, 16), (COUNT, 32)):
        with pytest.raises(ValueError, match="it holds 600 vectors of 16"):
            lists.Lists.read(stored, count=count, dimension=dimension)


def test_pairs_that_look_alike_are_searched_exactly(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    search = Gallery.search_velocity

    def note(gallery: Gallery, *given: Any, **options: Any) -> Any:
        hits = search(gallery, *given, **options)
        asked.append(hits.approximate)
        return hits

    monkeypatch.setattr(Gallery, "search_velocity", note)
    with Gallery.open(path, fingerprint=None) as gallery:
        assert gallery.approximate is not None
        list(near_equal(gallery, 0.999))
    assert asked and set(asked) == {None}
