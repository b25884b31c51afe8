"""Scales: as they are asked for, what they make of surveys and frames; gathers of any size are prepared alike."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seisbind.model.errors import InvalidGather, InvalidQuery, InvalidSurvey, InvalidVelocityModel
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES, check_descriptors, check_velocity, describe
from seisbind.model.ground.families import mixed
from seisbind.model.scale import UNSCALED, AutoScale, Scale, parse_scale
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.engine import canary_gather

SCALES = [Scale(s, k) for s in (0.1, 1.0, 3.0, 10.0) for k in (0.4, 1.0, 1.2)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, None),
        (2, Scale(2)),
        ("2", Scale(2)),
        ("2, 0.4", Scale(2, 0.4)),
        ((2, 0.4), Scale(2, 0.4)),
        (np.float32(2), Scale(2)),
        ("auto", AutoScale()),
        ("auto,0.4", AutoScale(0.4)),
        (("auto", 0.4), AutoScale(0.4)),
        (Scale(3), Scale(3)),
        (AutoScale(0.5), AutoScale(0.5)),
    ],
)
def test_a_scale_as_it_is_asked_for(asked: Any, found: object) -> None:
    assert parse_scale(asked) == found
    if found is not None:
        assert parse_scale(str(found)) == found


@pytest.mark.parametrize(
    ("asked", "depth", "words"),
    [
        ("", None, "or 'auto'; got ''"),
        ("two", None, "got 'two'"),
        ("1,2,3", None, "got '1,2,3'"),
        ("2,", None, "got '2,'"),
        (True, None, "got True"),
        ((), None, r"got \(\)"),
        ("0", None, "s is 0; it lies between 0.01 and 100"),
        ("nan", None, "s is nan"),
        ("2,9", None, "k is 9; it lies between 0.1 and 3"),
        ("auto,0", None, "k is 0"),
        ("auto", -1, "target depth is -1 m"),
        ("auto", float("nan"), "target depth is nan m"),
        ("2", 900, r"target depth \(900 m\) goes with the scale 'auto'.*got s = 2"),
        (None, 900, "got no scale"),
    ],
)
def test_what_is_no_scale_is_refused(asked: Any, depth: float | None, words: str) -> None:
    with pytest.raises(InvalidSurvey, match=words):
        parse_scale(asked, depth)


def test_a_frame_at_a_scale() -> None:
    own = Scale(3, 0.9).frame(OPENFWI_FRAME)
    assert (own.line_m, own.cell_m, own.velocity_m_s) == (2070, 30, (1350, 4050))
    assert own.peak_hz == pytest.approx(4.5) and own.duration_s == pytest.approx(10 / 3)
    assert own.survey.dt_s == pytest.approx(0.001 * 3 / 0.9) and own.survey.receiver_x_m[1] == 30
    assert own.dt_limits_s == pytest.approx((1e-4 / 0.3, 0.008 / 0.3)) and own.gather_shape == (5, 1000, 70)
    assert UNSCALED.frame(OPENFWI_FRAME) is OPENFWI_FRAME and own != OPENFWI_FRAME
    assert copy.deepcopy(own) == own and hash(copy.deepcopy(own)) == hash(own)
    assert Scale(1.1).frame(OPENFWI_FRAME).min_line_m == 374.0  # without the rounding of 10 x 1.1
    assert OPENFWI_FRAME.dt_limits_s == (1e-4, 0.008)


@pytest.mark.parametrize("scale", SCALES, ids=str)
def test_a_gather_of_any_size_is_prepared_alike(scale: Scale) -> None:
    gather = canary_gather()
    own, prepared = prepare(gather), prepare(gather, scale.frame(OPENFWI_FRAME).survey, scale=scale, shape=True)
    np.testing.assert_allclose(prepared.traces, own.traces, atol=1e-6)
    np.testing.assert_allclose(prepared.shot_x_m, own.shot_x_m, atol=1e-4)
    assert prepared.frame == OPENFWI_FRAME and prepared.notes == ((),)


@pytest.mark.parametrize("scale", [Scale(0.5, 0.4), Scale(3.0)], ids=str)
def test_a_record_that_was_really_simulated_at_its_size_is_the_frames(scale: Scale, other_frame: Frame) -> None:
    for frame in (OPENFWI_FRAME, other_frame):
        velocity, _ = mixed(1, 4, ("CurveFault-A",), frame=frame)
        true = scale.frame(frame)
        record = prepare(simulate(velocity * scale.k, frame=true), true.survey, frame=frame, scale=scale).traces
        own = prepare(simulate(velocity, frame=frame), frame=frame).traces
        assert np.abs(record / np.abs(record).max() - own / np.abs(own).max()).max() < 1e-4
        described = describe(velocity * scale.k, cell_m=true.cell_m)[0]
        for d, value, mine in zip(DESCRIPTORS, described, describe(velocity, cell_m=frame.cell_m)[0], strict=True):
            if d.name != "interface_share":  # whose step is 50 m/s in the frame's units
                assert value == pytest.approx(mine * scale.of(d.unit), rel=1e-4)


def test_notes_and_refusals_are_in_true_units() -> None:
    gather, scale = canary_gather(), Scale(3.0)
    true = scale.frame(OPENFWI_FRAME).survey
    sparse = replace(true, receiver_x_m=true.receiver_x_m[::2])
    (notes,) = prepare(gather[..., ::2], sparse, scale=scale).notes
    assert any("35 receivers over 2040 m mapped to the canonical 70 over 2070 m" in note.sentence for note in notes)
    short = replace(true, receiver_x_m=true.receiver_x_m[:30])
    with pytest.raises(InvalidSurvey, match="870 m long; at least 1020 m of the canonical 2070 m"):
        prepare(gather[..., :30], short, scale=scale)
    with pytest.raises(InvalidGather, match=r"lasts 1\.500 s \(500 samples of 3 ms\); at least 1\.8 s"):
        prepare(gather[:, :, :500], true, scale=scale)
    far = replace(true, shot_x_m=tuple(x + 9000 for x in true.shot_x_m))
    with pytest.raises(InvalidSurvey, match="usable are -60 to 2130 m"):
        prepare(gather, far, scale=scale)


def test_sampling_intervals_are_judged_at_the_size_of_the_line() -> None:
    gather, scale = canary_gather(), Scale(10, 0.4)
    slow = replace(scale.frame(OPENFWI_FRAME).survey, dt_s=0.025)
    assert prepare(gather, slow, scale=scale).notes[0] == ()
    with pytest.raises(InvalidSurvey, match=r"Sampling interval 0\.025 s is outside 0\.0001-0\.008 s; .*milliseconds"):
        prepare(gather, slow)
    with pytest.raises(InvalidSurvey, match=r"0\.3 s is outside 0\.0025-0\.2 s"):
        prepare(gather, replace(slow, dt_s=0.3), scale=scale)
    for dt_s in (4.0, float("nan"), 0.0):
        with pytest.raises(InvalidSurvey, match="milliseconds"):
            Survey((0.0,), (0.0, 10.0), dt_s)


def test_velocities_are_checked_in_true_units() -> None:
    velocity = np.full((4, 4), 200.0)
    assert (check_velocity(velocity, k=0.1) == 2000).all()
    with pytest.raises(InvalidVelocityModel, match="from 200 to 200; expected m/s between 300 and 9000"):
        check_velocity(velocity)
    with pytest.raises(InvalidVelocityModel, match="from 20 to 20; expected m/s between 30 and 900"):
        check_velocity(velocity / 10, k=0.1)
    check_descriptors({"mean_velocity": 200}, scale=Scale(1, 0.4))
    with pytest.raises(InvalidQuery, match="mean_velocity is 100 m/s, which no ground has; give 120 to 3600 m/s"):
        check_descriptors({"mean_velocity": 100}, scale=Scale(1, 0.4))
    assert set(NAMES) == {d.name for d in DESCRIPTORS if Scale(2, 0.5).of(d.unit) > 0}
