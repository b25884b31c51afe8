"""The layout of a record is told from positions alone, in any order, mirrored or shifted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seisbind.model.inspection.spread import measure_spread
from seisbind.model.inspection.traces import FieldTraces, choose_traces, number_shots


def record(shot_x_m: np.ndarray, receiver_x_m: np.ndarray) -> FieldTraces:
    """``receiver_x_m``: (shot, channel)."""
    shots, channels = receiver_x_m.shape
    shot = np.repeat(np.arange(shots), channels)
    return FieldTraces(
        shot, np.repeat(shot_x_m, channels).astype(float), receiver_x_m.ravel().astype(float), 0.0, 0.002, 0.0,
        np.arange(0), np.zeros((0, 500), np.float32),
    )  # fmt: skip


SHOTS, LINE = np.arange(20) * 25.0, np.arange(48) * 12.5
SPREADS = {
    "fixed": record(SHOTS, np.tile(LINE, (20, 1))),
    "end-on": record(-50.0 - SHOTS, np.tile(LINE, (20, 1))),
    "towed": record(SHOTS, SHOTS[:, None] - 100.0 - LINE),
    "rolling": record(SHOTS, SHOTS[:, None] - 300.0 + LINE),
    "irregular": record(
        np.random.default_rng(0).uniform(0, 5000, 20), np.random.default_rng(1).uniform(0, 5000, (20, 48))
    ),
}


@pytest.mark.parametrize("kind", SPREADS)
def test_each_kind_is_told_whatever_the_order_the_place_and_the_side(kind: str) -> None:
    traces = SPREADS[kind]
    order = np.random.default_rng(2).permutation(len(traces))
    for sign, shift in ((1, 0.0), (-1, 0.0), (1, 431_000.0)):
        moved = replace(
            traces,
            shot=traces.shot[order],
            shot_x_m=sign * traces.shot_x_m[order] + shift,
            receiver_x_m=sign * traces.receiver_x_m[order] + shift,
        )
        spread = measure_spread(moved)
        assert spread.kind == kind
        assert spread.offset_m == pytest.approx(measure_spread(traces).offset_m)
        assert abs(spread.fold - measure_spread(traces).fold) <= (kind == "irregular")  # bins have an origin


def test_the_numbers_of_a_streamer() -> None:
    spread = measure_spread(SPREADS["towed"])
    assert (spread.shots, spread.traces, spread.channels) == (20, 960, (48, 48))
    assert (spread.shot_spacing_m, spread.receiver_spacing_m, spread.widest_gap_m) == (25.0, 12.5, 12.5)
    assert spread.offset_m == (100.0, 100.0 + 47 * 12.5) and spread.aperture_m == 47 * 12.5
    assert spread.receivers == 48 + 2 * 19  # a shot every second station
    assert spread.length_m == 475.0 + 100.0 + 47 * 12.5
    assert spread.fold == 12  # channels over twice the shot step in stations
    assert spread.fold_of.sum() == 960


def test_few_shots_of_a_streamer_are_no_spread_that_stays() -> None:
    """Of four shots 93 % of all pairs of a shot and a station have a trace."""
    shots = SHOTS[:4]
    assert measure_spread(record(shots, shots[:, None] - 100.0 - np.arange(96) * 12.5)).kind == "towed"
    assert measure_spread(record(shots, shots[:, None] - 300.0 + LINE)).kind == "rolling"


def test_a_gap_and_a_lone_shot() -> None:
    line = np.delete(LINE, np.arange(10, 14))
    spread = measure_spread(record(np.array([100.0]), line[None]))
    assert (spread.kind, spread.shots, spread.shot_spacing_m, spread.widest_gap_m) == ("fixed", 1, None, 5 * 12.5)
    off = measure_spread(record(np.array([-100.0]), line[None]))
    assert off.kind == "end-on"
    alone = measure_spread(record(np.array([0.0]), np.array([[50.0]])))
    assert (alone.receiver_spacing_m, alone.aperture_m, alone.offset_m) == (None, 0.0, (50.0, 50.0))


def test_shots_are_numbered_and_whole_ones_are_chosen() -> None:
    x = np.repeat([0.0, 25.0, 25.0, 50.0], 100)
    shot = number_shots(x, np.repeat([1, 2, 3, 4], 100))
    assert np.unique(shot).tolist() == [0, 1, 2, 3]
    chosen = choose_traces(shot, limit=200)
    assert len(chosen) == 200 and np.unique(shot[chosen]).tolist() == [0, 3]
    assert len(choose_traces(shot, limit=10)) == 100
