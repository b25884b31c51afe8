"""Answers that are checked by the wave equation, in process."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Filter
from seisbind.model.errors import InvalidQuery, InvalidVelocityModel
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.scale import Scale
from seisbind.service.engine.check import named
from seisbind.service.engine.engine import Engine

pytest.importorskip("deepwave")
Float32 = NDArray[np.float32]


def test_the_match_that_explains_the_record_becomes_the_first(
    engine: Engine, gathers: Float32, models: tuple[Float32, list[str]]
) -> None:
    """Among the six models of its family, which untrained encoders order as they like."""
    velocity, family = models
    chosen = Filter.parse({"family": [family[0]]})
    plain = engine.retrieve(gathers[0], top_k=6, filter=chosen)[0]
    checked = engine.check(gathers[0], top_k=6, filter=chosen, model=velocity[0])
    true = engine.gallery.model_ids()
    found = checked.retrieval.matches
    np.testing.assert_array_equal(engine.gallery.velocity(found[0].model_id), velocity[0])
    assert {m.model_id for m in found} == {m.model_id for m in plain.matches} <= set(true)
    assert [m.rank for m in found] == [1, 2, 3, 4, 5, 6] and checked.retrieval.ranked_by == "check"
    assert checked.reordered == (plain.matches[0].model_id != found[0].model_id)
    kinds = [each.candidate.kind for each in checked.candidates]
    assert kinds[:7] == ["match"] * 6 + ["mean"] and kinds[-1] == "given"
    given, best = named(checked, "given"), named(checked, "best")
    assert given.verdict.reason == best.verdict.reason == "explained"
    assert given.check.comparison == best.check.comparison
    assert checked.retrieval.in_gallery == plain.in_gallery  # a filter's matches tell nothing of the gallery
    with pytest.raises(InvalidQuery, match="match 7"):
        named(checked, "match 7")


def test_the_gallery_is_believed_less_where_nothing_explains(engine: Engine, gathers: Float32) -> None:
    flipped = np.ascontiguousarray(gathers[0][::-1, :, ::-1])  # the mirror image of a model is in no gallery
    plain, checked = engine.retrieve(flipped, top_k=5)[0], engine.check(flipped, top_k=5)
    assert checked.retrieval.matches == plain.matches and not checked.reordered
    assert checked.retrieval.ranked_by == plain.ranked_by
    assert plain.in_gallery is not None and checked.retrieval.in_gallery is not None
    assert checked.retrieval.in_gallery < plain.in_gallery
    few = engine.check(flipped, top_k=2).retrieval.in_gallery  # the true one could be the third
    assert few == engine.retrieve(flipped, top_k=2)[0].in_gallery


def test_a_check_does_not_depend_on_the_scale(
    engine: Engine, gathers: Float32, models: tuple[Float32, list[str]]
) -> None:
    own, truth = OPENFWI_FRAME.survey, models[0][0]
    large = Survey(tuple(3 * x for x in own.shot_x_m), tuple(3 * x for x in own.receiver_x_m), 3 * own.dt_s, 5.0)
    small = engine.check(gathers[0], scale=Scale(), top_k=1, model=truth)
    found = engine.check(gathers[0], large, scale=3, top_k=1, model=truth)
    for a, b in zip(small.candidates, found.candidates, strict=True):
        assert a.check.comparison.whole.unexplained == pytest.approx(b.check.comparison.whole.unexplained, abs=1e-3)
        assert a.check.comparison.whole.in_time == pytest.approx(b.check.comparison.whole.in_time, abs=0.01)
    assert " 4 Hz" in small.candidates[-1].verdict.detail and " 1.33 Hz" in found.candidates[-1].verdict.detail


def test_what_cannot_be_checked_is_refused(engine: Engine, gathers: Float32) -> None:
    with pytest.raises(InvalidQuery, match="3"):
        engine.check(gathers)
    with pytest.raises(InvalidQuery, match="at most 16"):
        engine.check(gathers[0], top_k=17)
    with pytest.raises(InvalidVelocityModel, match="70 x 70 cells"):
        engine.check(gathers[0], model=np.full((60, 70), 2000.0))
    with pytest.raises(InvalidVelocityModel, match="300 and 9000"):
        engine.check(gathers[0], model=np.full((70, 70), 2.0))
