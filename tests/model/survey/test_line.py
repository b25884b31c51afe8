"""Traces with positions become one line of shots and receivers, or are refused with the numbers."""

from __future__ import annotations

import numpy as np
import pytest

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import MAX_SHOTS
from seisbind.model.survey.line import MAX_STATIONS, Line, TracePositions, lay_out

RECEIVERS = np.arange(70) * 10.0
SHOTS = np.array([0.0, 170, 340, 520, 690])


def positions(pairs: list[tuple[float, float]] | np.ndarray, **changes: np.ndarray) -> TracePositions:
    """Traces of (source, group) pairs along x; ``changes`` are fields of `TracePositions`."""
    source, group = np.asarray(pairs, dtype=np.float64).T
    zero = np.zeros_like(source)
    fields = {
        "source_xy_m": np.stack([source, zero], axis=1),
        "group_xy_m": np.stack([group, zero], axis=1),
        "record": np.zeros(len(source), dtype=np.int64),
        "channel": np.zeros(len(source), dtype=np.int64),
    }
    return TracePositions(**(fields | changes))


def spread(shots: np.ndarray, receivers: np.ndarray) -> np.ndarray:
    return np.array([(s, r) for s in shots for r in receivers])


def found(line: Line, pairs: np.ndarray, atol: float = 1e-6) -> None:
    """Every trace of the table is of that shot and that receiver."""
    for s, x in enumerate(line.shot_x_m):
        for r, g in enumerate(line.receiver_x_m):
            if line.trace[s, r] >= 0:
                np.testing.assert_allclose(pairs[line.trace[s, r]], (x, g), atol=atol)


def test_any_order_of_traces_is_the_same_line() -> None:
    pairs = spread(SHOTS, RECEIVERS)
    for seed in range(3):
        mixed = np.random.default_rng(seed).permutation(pairs)
        line = lay_out(positions(mixed))
        assert (line.shot_x_m, line.receiver_x_m) == (tuple(SHOTS), tuple(RECEIVERS))
        assert (line.trace >= 0).all() and [note.code for note in line.notes] == ["traces_sorted"]
        found(line, mixed)


def test_turned_by_any_angle_it_is_the_same_line() -> None:
    pairs = spread(SHOTS, RECEIVERS)
    for degrees in (-89, -30, 0.01, 45, 89):
        direction = np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
        place = np.array([400_000.0, 6_000_000.0])
        turned = {"source_xy_m": place + pairs[:, :1] * direction, "group_xy_m": place + pairs[:, 1:] * direction}
        line = lay_out(positions(pairs, **turned))
        np.testing.assert_allclose(line.shot_x_m, SHOTS, atol=1e-6)
        np.testing.assert_allclose(line.receiver_x_m, RECEIVERS, atol=1e-6)
        assert [note.code for note in line.notes] == ["projected"]
        assert f"azimuth {90 - degrees:.1f}" in line.notes[0].sentence
        found(line, pairs)


@pytest.mark.parametrize(("across_m", "fits"), [(34.0, True), (35.0, False)])
def test_a_line_may_be_a_twentieth_wide(across_m: float, fits: bool) -> None:
    pairs = spread(SHOTS, RECEIVERS)
    beside = positions(pairs)
    beside.source_xy_m[:, 1] = across_m
    if fits:
        assert len(lay_out(beside).receiver_x_m) == 70
    else:
        with pytest.raises(InvalidSurvey, match=r"spread 35\.1 m across .* allowed are 34\.5 m"):
            lay_out(beside)


def test_receivers_that_some_shots_lack_are_in_the_union() -> None:
    pairs = spread(SHOTS, RECEIVERS)
    rng = np.random.default_rng(0)
    some = pairs[np.sort(rng.choice(len(pairs), 300, replace=False))]
    line = lay_out(positions(some))
    assert line.receiver_x_m == tuple(RECEIVERS)
    assert (line.trace < 0).sum() == 50
    assert "50 of 350 pairs" in line.notes[-1].sentence
    found(line, some)
    with pytest.raises(InvalidSurvey, match="150 of 350 pairs have no trace; at most 30%"):
        lay_out(positions(pairs[np.sort(rng.choice(len(pairs), 200, replace=False))]))


def test_stations_are_the_same_within_a_metre() -> None:
    pairs = spread(SHOTS, RECEIVERS)
    drift = pairs + [[0.0, 0.3]] * (pairs[:, :1] > 300)
    line = lay_out(positions(drift))
    np.testing.assert_allclose(line.receiver_x_m, RECEIVERS + 0.15)
    found(line, drift, atol=0.2)
    smeared = pairs + pairs[:, :1] * [[0.0, 1 / 190]]  # each shot's receivers 0.9 m further
    with pytest.raises(InvalidSurvey, match="no common stations"):
        lay_out(positions(smeared))


@pytest.mark.parametrize(("behind_m", "usable"), [(20.0, True), (21.0, False), (262.0, False)])
def test_a_towed_cable_has_no_shot_on_its_line(behind_m: float, usable: bool) -> None:
    pairs = np.array([(s, s - behind_m - r) for s in (700.0, 725, 750) for r in np.arange(24) * 25.0])
    if usable:
        assert len(lay_out(positions(pairs)).shot_x_m) == 3
    else:
        with pytest.raises(InvalidSurvey, match=f"each {behind_m:g} to {behind_m:g} m off the end"):
            lay_out(positions(pairs))


def test_of_a_long_line_the_fullest_stretch_is_taken() -> None:
    """Receivers everywhere, shots between 2000 and 2600 m only."""
    shots, receivers = np.arange(2000.0, 2601, 50), np.arange(0, 4000, 10.0)
    pairs = spread(shots, receivers)
    line = lay_out(positions(pairs))
    assert line.shot_x_m == tuple(shots)
    assert line.receiver_x_m[0] <= 2020 and line.receiver_x_m[0] + 690 >= 2580
    assert (line.shots, line.receivers) == (13, 400)
    assert [note.code for note in line.notes] == ["line_window"]
    found(line, pairs)


def test_more_shots_than_are_used_at_a_time_are_thinned() -> None:
    line = lay_out(positions(spread(np.arange(0, 691, 5.0), RECEIVERS)))
    assert len(line.shot_x_m) == MAX_SHOTS
    assert line.notes[-1].code == "shots_thinned"
    assert (line.shot_x_m[0], line.shot_x_m[-1]) == (0, 690)


def test_records_split_a_place_only_where_they_repeat_a_receiver() -> None:
    pairs = spread(np.array([100.0]), RECEIVERS)
    halves = positions(pairs, record=np.repeat([1, 2], 35))
    assert lay_out(halves).trace.shape == (1, 70)
    again = positions(np.concatenate([pairs, pairs]), record=np.repeat([1, 2], 70))
    line = lay_out(again)
    assert line.trace.tolist() == [list(range(70)), list(range(70, 140))]
    same = lay_out(positions(np.concatenate([pairs, pairs[:1]])))
    assert same.duplicates.tolist() == [[0, 70]]
    assert same.trace.tolist() == [list(range(70))]


def test_channels_place_receivers_that_are_given() -> None:
    receivers = tuple(RECEIVERS)
    pairs = np.zeros((140, 2))
    record, channel = np.repeat([7, 3], 70), np.tile(np.arange(70)[::-1], 2)
    line = lay_out(
        positions(pairs, record=record, channel=channel), shot_x_m=(5.0, 600.0), receiver_x_m=receivers
    )  # fmt: skip
    assert (line.shot_x_m, line.receiver_x_m) == ((5.0, 600.0), receivers)
    assert line.trace.tolist() == [list(range(70, 140))[::-1], list(range(70))[::-1]]
    by_file = lay_out(positions(pairs, record=record), shot_x_m=(5.0, 600.0), receiver_x_m=receivers)
    assert by_file.trace[0].tolist() == list(range(70, 140))


def test_what_is_no_geometry_is_refused() -> None:
    with pytest.raises(InvalidSurvey, match="no geometry"):
        lay_out(positions(np.full((20, 2), 5.0)))
    with pytest.raises(InvalidSurvey, match="2 shot positions were passed; the file holds 5"):
        lay_out(positions(spread(SHOTS, RECEIVERS)), shot_x_m=(0.0, 1.0))
    with pytest.raises(InvalidSurvey, match="69 receiver positions were passed; shot 0 of 5 has 70"):
        lay_out(positions(spread(SHOTS, RECEIVERS)), receiver_x_m=tuple(RECEIVERS[:-1]))


def test_a_file_of_stations_without_end_is_refused_not_tabled() -> None:
    many = np.arange(MAX_STATIONS + 1) * 2.0
    with pytest.raises(InvalidSurvey, match="at most 20000"):
        lay_out(positions(np.stack([many, many], axis=1)))
    with pytest.raises(InvalidSurvey, match="no trace"):  # each trace its own shot and receiver
        lay_out(positions(np.stack([many[:-1], many[:-1]], axis=1)))
