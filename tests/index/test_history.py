"""Any history of changes: the gallery answers as a dictionary and a loop over it would."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from seisbind.index import Filter, Gallery
from seisbind.model.errors import InvalidQuery, UnknownModel
from seisbind.model.ground.descriptors import NAMES

MakeBatch = Callable[..., Any]
FINGERPRINT = "weights-1"


class History(RuleBasedStateMachine):
    """One writer and one reader on a folder, and what each should see: model number by id, in the order of adding."""

    def __init__(self, make_batch: MakeBatch, brute_force: Callable[..., Any]) -> None:
        super().__init__()
        self.make_batch = make_batch
        self.brute_force = brute_force
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "g"
        self.writer = Gallery.create(self.path, fingerprint=FINGERPRINT, dimension=16)
        self.reader = Gallery.open(self.path, fingerprint=FINGERPRINT)
        self.written: dict[str, int] = {}
        self.seen: dict[str, int] = {}

    def teardown(self) -> None:
        self.reader.close()
        self.writer.close()
        self.folder.cleanup()

    @rule(first=st.integers(0, 40), count=st.integers(1, 9))
    def add(self, first: int, count: int) -> None:
        batch = self.make_batch(count, first=first)
        if set(batch.model_ids) & set(self.written):
            with pytest.raises(InvalidQuery):
                batch.add_to(self.writer)
            batch.add_to(self.writer, skip_existing=True)
        else:
            batch.add_to(self.writer)
        for i, model_id in enumerate(batch.model_ids):
            self.written.setdefault(model_id, first + i)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), unknown=st.booleans())
    def remove(self, data: st.DataObject, unknown: bool) -> None:
        chosen = data.draw(st.lists(st.sampled_from(list(self.written)), min_size=1, unique=True))
        if unknown:
            with pytest.raises(UnknownModel):
                self.writer.remove([*chosen, "nobody"])
            return
        assert self.writer.remove(chosen) == len(chosen)
        for model_id in chosen:
            del self.written[model_id]

    @rule(harm=st.sampled_from(["none", "velocity.json", "physics.faiss", "columns.bin"]))
    def reopen(self, harm: str) -> None:
        self.writer.close()
        if harm != "none":
            (self.path / harm).unlink(missing_ok=True)
        self.writer = Gallery.open(self.path, fingerprint=FINGERPRINT, writable=True)

    @rule()
    def snapshot(self) -> None:
        self.writer.snapshot()

    @rule()
    def refresh(self) -> None:
        self.reader.refresh()
        self.seen = dict(self.written)

    @rule()
    def reopen_reader(self) -> None:
        self.reader.close()
        self.reader = Gallery.open(self.path, fingerprint=FINGERPRINT)
        self.seen = dict(self.written)

    @rule()
    def verify(self) -> None:
        report = self.writer.verify()
        assert all("snapshot cannot be used" in problem for problem in report.problems)

    @invariant()
    def both_hold_what_they_should(self) -> None:
        assert self.writer.model_ids() == list(self.written)
        assert self.reader.model_ids() == list(self.seen)
        assert (len(self.writer), len(self.reader)) == (len(self.written), len(self.seen))

    @rule()
    def count(self) -> None:
        for gallery, models in ((self.writer, self.written), (self.reader, self.seen)):
            batches = [self.make_batch(1, first=number) for number in models.values()]
            families = sorted(batch.families[0] for batch in batches if batch.families[0])
            assert gallery.families() == {name: families.count(name) for name in families}
            columns = np.reshape([batch.descriptors[0] for batch in batches], (-1, len(NAMES)))
            ends = zip(columns.min(axis=0), columns.max(axis=0), strict=True) if batches else ()
            assert list(gallery.info().descriptor_ranges.values()) == list(ends)

    @rule(
        seed=st.integers(0, 50),
        k=st.integers(1, 60),
        family=st.sampled_from([None, "FlatVel-A", "absent"]),
        tag=st.sampled_from([None, "field", "absent"]),
    )
    def search(self, seed: int, k: int, family: str | None, tag: str | None) -> None:
        queries = self.make_batch(2, first=seed).velocity_embeddings
        condition = Filter((family,) if family else (), (tag,) if tag else ())
        for gallery, models in ((self.writer, self.written), (self.reader, self.seen)):
            batches = {model_id: self.make_batch(1, first=number) for model_id, number in models.items()}
            allowed = [
                model_id
                for model_id, batch in batches.items()
                if family in (None, batch.families[0]) and (tag is None or tag in batch.tags[0])
            ]
            vectors = np.reshape([batches[each].velocity_embeddings for each in allowed], (-1, 16))
            expected = self.brute_force(vectors, allowed, queries, k)
            for hits, wanted in zip(gallery.search_velocity(queries, k, filter=condition), expected, strict=True):
                assert [hit.model_id for hit in hits] == [model_id for model_id, _ in wanted]
                np.testing.assert_allclose(
                    [hit.similarity for hit in hits], [similarity for _, similarity in wanted], atol=1e-6
                )

    @precondition(lambda self: self.written)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        model_id = data.draw(st.sampled_from(list(self.written)))
        batch = self.make_batch(1, first=self.written[model_id])
        record = self.writer.record(model_id)
        assert (record.family, record.tags) == (batch.families[0], tuple(sorted(batch.tags[0])))
        np.testing.assert_array_equal(record.descriptors, batch.descriptors[0])
        np.testing.assert_array_equal(self.reader.velocity(model_id), batch.velocity[0])


def test_any_history(make_batch: MakeBatch, brute_force: Callable[..., Any]) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: History(make_batch, brute_force),
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
