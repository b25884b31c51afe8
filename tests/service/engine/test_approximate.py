"""An answer from an approximate search says so, with the recall that was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seisbind.index import ApproximateInfo, Hits
from seisbind.service.engine.answers import approximate_note
from seisbind.service.engine.engine import canary_gather

INFO = ApproximateInfo(1000, 8, 2, 64, 30, 1, 0.9941, 0.995, {"1": 1.0}, 600, served=True)


def test_an_answer_says_that_it_is_approximate(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def codes(answers: Any) -> list[list[str]]:
        return [[note.code for note in answer.warnings] for answer in answers]

    gather, frame = canary_gather(engine.frame), engine.frame
    velocity = np.full((1, *frame.velocity_shape), 2500.0, np.float32)
    assert "approximate_search" not in codes(engine.retrieve(gather, frame.survey))[0]
    exact = engine.gallery.search_velocity
    monkeypatch.setattr(engine.gallery, "search_velocity", lambda *args, **more: Hits(exact(*args, **more), INFO))
    (answer,) = engine.retrieve(gather, frame.survey)
    (sentence,) = [note.sentence for note in answer.warnings if note.code == "approximate_search"]
    assert "99.4%" in sentence
    assert "approximate_search" in codes(engine.search_velocity(velocity))[0]
    assert approximate_note(Hits([[]])) == () and approximate_note([[]]) == ()
