"""``seisbind refine``, and where refinements start, on OpenFWI's frame."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig, InvalidQuery
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.inversion.refined import RefineConfig
from seisbind.model.inversion.refinement import Refinement
from seisbind.service.commands.refine import refine
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import Query
from seisbind.service.engine.refine import (
    begin,
    choose_starts,
    contents,
    find_starts,
    given_start,
    in_true_units,
    result_arrays,
)

pytest.importorskip("deepwave")
Float32 = NDArray[np.float32]


@pytest.fixture
def gather(tmp_path: Path, gathers: Float32) -> Path:
    np.save(tmp_path / "gather.npy", gathers[0])
    return tmp_path / "gather.npy"


def options(weights: Path, **more: Any) -> dict[str, Any]:
    return {"weights": weights, "device": "cpu", "iterations": 3, "start": "read"} | more


@pytest.mark.long
def test_what_was_interrupted_goes_on_and_gives_the_same(
    gather: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, out = gather.with_name("whole.npz"), gather.with_name("out.npz")
    refine(gather, whole, **options(weights, as_json=True))
    said = json.loads(capsys.readouterr().out)
    assert said["start"] == "read" and said["iterations"] == 3 and said["free_surface"] is False
    assert said["residual_after"] == pytest.approx(said["residual"][-1], rel=1e-3)
    assert said["residual_after"] < said["residual"][0] < said["residual_before"]
    step, steps = Refinement.step, [0]

    def interrupted(self: Refinement) -> Any:
        steps[0] += 1
        if steps[0] == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Refinement, "step", interrupted)
    with pytest.raises(SystemExit) as ended:
        refine(gather, out, **options(weights))
    assert ended.value.code == 130 and not out.exists() and out.with_name("out.npz.part").exists()
    part = out.with_name("out.npz.part")
    content = part.read_bytes()
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(SystemExit) as ended:
        refine(gather, out, **options(weights))
    assert ended.value.code == 2 and "Remove it" in capsys.readouterr().err
    part.write_bytes(content)
    with pytest.raises(SystemExit) as ended:  # of another option
        refine(gather, out, **options(weights, keep_m=100.0))
    assert ended.value.code == 2
    refine(gather, out, **options(weights))
    assert steps[0] == 4 and not out.with_name("out.npz.part").exists()  # one iteration was left
    with np.load(whole, allow_pickle=False) as one, np.load(out, allow_pickle=False) as other:
        assert set(one.files) == set(other.files) and one["velocity"].shape == OPENFWI_FRAME.velocity_shape
        for name in one.files:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"out": "x.gif"}, ".npz"),
        ({"out": "nowhere/x.npz"}, "writable"),
        ({"out": "gather.npy/x.npz"}, "writable"),
        ({"start": "nowhere.npy"}, "nor a file"),
        ({"start": "match"}, "--gallery"),
        ({"surface": "sea"}, "absorbing"),
        ({"part": b"PK nonsense"}, "Remove it"),
    ],
)
def test_what_cannot_be_used(
    gather: Path, weights: Path, more: dict[str, Any], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = gather.parent / more.pop("out", "out.npz")
    if content := more.pop("part", None):
        out.with_name(out.name + ".part").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        refine(gather, out, **options(weights, **more))
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_starts_are_the_answers_models(engine: Engine, gathers: Float32, models: tuple[Float32, list[str]]) -> None:
    query = Query.prepare(gathers[0], OPENFWI_FRAME.survey)
    found = find_starts(engine, query)
    assert found.names == ("read", "match", "mean") and found.velocity.shape == (3, *OPENFWI_FRAME.velocity_shape)
    (answer,) = engine.retrieve(gathers[0], top_k=5)
    (first,) = engine.gallery.velocities([answer.matches[0].model_id])
    np.testing.assert_array_equal(found.velocity[1], first)
    np.testing.assert_array_equal(find_starts(engine, query, start="match").velocity[0], first)
    np.testing.assert_array_equal(given_start(query, models[0][0]).velocity, models[0][:1])
    with pytest.raises(InvalidConfig):
        find_starts(engine, query, start="given")
    with pytest.raises(InvalidQuery, match="one gather"):
        find_starts(engine, Query.prepare(gathers[:2], OPENFWI_FRAME.survey))


def test_the_interval_of_the_model_that_is_read_is_the_prior(engine: Engine, gathers: Float32) -> None:
    query = Query.prepare(gathers[0], OPENFWI_FRAME.survey)
    ((answer,),) = engine.retrieve_batch([query])
    assert answer.model is not None
    read = answer.model.value
    stated, unstated = (
        replace(answer),
        replace(answer),
    )  # each makes its own model when it is asked for it, but for these
    vars(stated)["model"] = replace(answer.model, low=read - 50, high=read + np.float32(164.5))
    vars(unstated)["model"] = replace(answer.model, low=None, high=None)
    prior = choose_starts(query, stated, [], "read").prior
    assert prior is not None
    np.testing.assert_array_equal(prior[0], read)
    np.testing.assert_allclose(prior[1], 100, rtol=1e-3)
    assert choose_starts(query, unstated, [], "read").prior is None


@pytest.mark.long
def test_three_times_as_large_it_is_the_same_model(gathers: Float32, models: tuple[Float32, list[str]]) -> None:
    """Positions and times three times as large are the same record to the frame; the answer is in true metres."""
    line = OPENFWI_FRAME.survey
    large = Survey(
        tuple(3 * x + 500 for x in line.shot_x_m),
        tuple(3 * x + 500 for x in line.receiver_x_m),
        3 * line.dt_s,
        source_depth_m=3 * line.source_depth_m,
        receiver_depth_m=3 * line.receiver_depth_m,
    )
    start, made = np.clip(models[0][0] * 0.95, 1500, 4500), []
    for survey, scale in ((line, None), (large, 3)):
        query = Query.prepare(gathers[0], survey, scale=scale)
        refinement = begin(query, given_start(query, start), RefineConfig(iterations=1))
        stage = refinement.step().stage
        assert stage.startswith("up to") and stage.endswith("of the peak frequency")  # true at both scales
        refined = refinement.result()
        arrays = result_arrays(refined)
        made.append(in_true_units(arrays, OPENFWI_FRAME, query.scale, x0_m=query.x0_m)[0])
        assert len(contents(query, refined, "nc", title="refined")) > 4900 * 12
    np.testing.assert_allclose(made[1].value, made[0].value, atol=1.0)
    assert (made[0].cell_m, made[1].cell_m, made[0].x0_m, made[1].x0_m) == (10, 30, 0, 500)
    assert not np.allclose(made[0].value, start, atol=20)
