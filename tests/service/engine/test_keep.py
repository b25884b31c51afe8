"""Refined models that are kept in the gallery: what is checked before, and what their records say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidVelocityModel, NotReady
from seisbind.model.inversion.beside import Models, unless_stopped
from seisbind.model.inversion.check import check_models
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.preparation import prepare
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.keep import check_refined, keep_refined
from seisbind.service.engine.refine import Starts

pytest.importorskip("deepwave")
Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def own(embedder: Embedder, make_gallery: Any) -> Iterator[Engine]:
    path: Path = make_gallery()
    with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
        yield Engine(embedder, gallery)


@pytest.fixture(scope="module")
def observed(gathers: Float32) -> Observed:
    return Observed.of(prepare(gathers[:1]))


def test_a_model_that_explains_its_record_is_kept_with_its_figures(
    own: Engine, observed: Observed, models: tuple[Float32, list[str]]
) -> None:
    refined = (models[0][0] * np.float32(1.001)).astype(np.float32)
    check = check_refined(observed, refined, scale=UNSCALED)
    kept = keep_refined(own, refined, check, parents=("v-1", "v-2"), by="refined by a test")
    record = own.gallery.record(kept.model_id)
    np.testing.assert_array_equal(own.gallery.velocity(kept.model_id), refined)
    assert set(record.tags) == {"refined", "parent:v-1", "parent:v-2"} and record.source == kept.source
    unexplained = check.comparison.whole.unexplained
    assert f"refined by a test, from v-1, v-2: {unexplained:.1%} unexplained" in kept.source
    assert kept.source.endswith("explained") and unexplained < 0.05
    (found,) = own.search_velocity(refined, filter=Filter.parse({"tag": "refined"}))
    assert [match.model_id for match in found.matches] == [kept.model_id]
    size = len(own.gallery)
    again = keep_refined(own, refined, check, parents=(), by="again")
    assert kept.added and again == replace(kept, added=False)  # its source is that of its record
    assert len(own.gallery) == size


def test_a_model_that_does_not_explain_its_record_is_refused_in_true_units(
    observed: Observed, models: tuple[Float32, list[str]]
) -> None:
    with pytest.raises(InvalidVelocityModel, match=r"not kept.* at 4 Hz"):
        check_refined(observed, np.full_like(models[0][0], 4400), scale=UNSCALED)
    with pytest.raises(InvalidVelocityModel, match=r"not kept.* at 1\.33 Hz"):
        check_refined(observed, np.full_like(models[0][0], 4400), scale=Scale(3.0))


def test_the_check_of_a_refined_model_stops_between_its_surfaces(
    observed: Observed, models: tuple[Float32, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    modelled: list[int] = []
    run = Forward.__call__

    def counted(self: Forward, *args: Any) -> Any:
        modelled.append(1)
        return run(self, *args)

    def stopping(stop: Callable[[], bool]) -> Models:
        return partial(check_models, between=unless_stopped(stop))

    monkeypatch.setattr(Forward, "__call__", counted)
    wrong = np.full_like(models[0][0], 4400)  # explains nothing, so that a free surface is tried, too
    with pytest.raises(NotReady, match="stopped"):
        check_refined(observed, wrong, scale=UNSCALED, models=stopping(lambda: True))
    assert not modelled
    with pytest.raises(NotReady, match="stopped"):
        check_refined(observed, wrong, scale=UNSCALED, models=stopping(lambda: bool(modelled)))
    assert len(modelled) == 1


def test_the_parents_of_a_start() -> None:
    starts = Starts(("read", "match", "mean"), np.zeros((3, 2, 2), np.float32), ("v-1", "v-2"))
    assert [starts.parents(name) for name in starts.names] == [("read",), ("v-1",), ("v-1", "v-2")]
