"""Windows of any spread: what reciprocity makes of a towed cable is what a fixed spread would have recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.scale import Scale
from seisbind.model.survey.line import TracePositions
from seisbind.model.survey.preparation import prepare
from seisbind.model.survey.spreads import Spread, find_spread, lay_spread
from seisbind.model.survey.windows import (
    Window,
    WindowGather,
    best_window,
    choose_window,
    frame_interval,
    read_windows,
    window_starts,
)
from seisbind.model.waves.wavefield import simulate

Float64 = NDArray[np.float64]
NODES = np.asarray(OPENFWI_FRAME.survey.receiver_x_m)


def fixed(shots: object, receivers: object) -> tuple[Float64, Float64]:
    """Sources and receivers of every pair of a shot and a receiver."""
    source, receiver = np.meshgrid(np.asarray(shots, float), np.asarray(receivers, float), indexing="ij")
    return source.ravel(), receiver.ravel()


def towed(shots: Float64, *, channels: int, spacing_m: float, near_m: float) -> tuple[Float64, Float64]:
    source = np.repeat(shots, channels)
    return source, source - near_m - np.tile(np.arange(channels) * spacing_m, len(shots))


def tone(source: Float64, receiver: Float64, *, samples: int = 250, dt_s: float = 0.004) -> NDArray[np.float32]:
    """``(trace, time)``: a direct wave at 2000 m/s and a structure under the midpoint; the same with ends exchanged."""
    time_s = np.arange(samples) * dt_s
    late = 0.1 + np.abs(receiver - source) / 2000
    deep = 0.35 + 0.1 * np.sin((receiver + source) / 2 / 300) + np.square((receiver - source) / 3000)

    def wave(arrival: Float64) -> NDArray[np.float64]:
        a2 = np.square(np.pi * 12 * (time_s - arrival[:, None]))
        return np.asarray((1 - 2 * a2) * np.exp(-a2))

    return np.asarray(wave(late) + 0.3 * wave(deep), dtype=np.float32)


def read_all(
    source: Float64, receiver: Float64, traces: NDArray[np.float32], *, step_m: float = 345.0, dt_s: float = 0.004
) -> tuple[Spread, list[WindowGather]]:
    spread = find_spread(source, receiver)
    windows = [choose_window(spread, float(start)) for start in window_starts(spread, step_m)]
    read = lambda numbers: traces[numbers]  # noqa: E731
    return spread, read_windows(windows, read, frame=OPENFWI_FRAME, dt_s=dt_s, sources=spread.sources)


def test_of_the_frames_own_line_it_is_what_preparation_gives() -> None:
    gather = np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32)
    source, receiver = fixed(OPENFWI_FRAME.shot_x_m, NODES)
    for order in (np.arange(350), np.random.default_rng(1).permutation(350)):
        flat = gather.transpose(0, 2, 1).reshape(350, 1000)[order]
        _, (found,) = read_all(source[order] + 5e5, receiver[order] + 5e5, flat, dt_s=0.001)
        expected = prepare(gather)
        assert found.prepared is not None
        np.testing.assert_allclose(found.prepared.traces, expected.traces, atol=2e-6)
        np.testing.assert_array_equal(found.prepared.live, expected.live)
        np.testing.assert_allclose(found.prepared.shot_x_m, expected.shot_x_m, atol=1e-4)
        assert found.prepared.notes == expected.notes
        assert (found.lit == 5).all()


def test_a_towed_cable_is_a_fixed_spread_with_a_gap(other_frame: Frame) -> None:
    """Both simulated, over ground that has no symmetry; the towed one has a pair only as it was recorded."""
    z, x = np.mgrid[:60, :120]
    velocity = (1500 + 20 * z + 300 * (z > 25 + 8 * np.sin(x / 9)) + 2 * x).astype(np.float32)
    start_m, gap_m = 200.0, 15.0
    at = {"frame": other_frame, "cell_m": 5.0, "samples": other_frame.record_samples}
    shots = np.arange(215.0, 560.0, 10.0)
    cable = gap_m + np.arange(40) * 5.0
    survey = Survey(tuple(shots), tuple(np.arange(0, 600, 5.0)), other_frame.record_dt_s, 25.0, 5.0, 5.0)
    recorded = simulate(velocity, survey=survey, **at)[0]  # of which the cable keeps its own
    source = np.repeat(shots, len(cable))
    receiver = source - np.tile(cable, len(shots))
    number = np.searchsorted(shots, source)
    traces = recorded[number, :, np.rint(receiver / 5).astype(int)]
    spread = find_spread(source, receiver, frame=other_frame)
    window = choose_window(spread, start_m)
    (found,) = read_windows(
        [window], lambda n: traces[n], frame=other_frame, dt_s=other_frame.record_dt_s, sources=spread.sources
    )
    assert found.prepared is not None and len(window.shots) == 3
    line = tuple(start_m + x for x in other_frame.survey.receiver_x_m)
    places = tuple(float(p) for p in np.round(start_m + found.prepared.shot_x_m[0], 6))
    whole = simulate(velocity, survey=Survey(places, line, other_frame.record_dt_s, 25.0, 5.0, 5.0), **at)
    expected = prepare(whole, Survey(places, line, other_frame.record_dt_s), frame=other_frame)
    offset = np.asarray(line) - np.asarray(places)[:, None]
    live = found.prepared.live[0]
    assert not live[np.abs(offset) < gap_m - 1].any()
    assert live[(offset <= -gap_m) & (offset > -cable[-1])].all()
    ahead = (offset >= gap_m) & (offset < cable[-1] - 10)
    assert live[ahead].sum() > 20, "by reciprocity"
    assert live[ahead].mean() > 0.8
    difference = np.abs(found.prepared.traces - expected.traces)[0].max(axis=1)  # (shot, receiver)
    size = np.abs(expected.traces[0]).max(axis=1)
    behind = live & (offset < 0)
    assert (difference[behind] <= 1e-5 * size[behind]).all(), "as recorded"
    on_shots = live & ahead & (np.abs((np.asarray(line) - 5) % 10) < 1e-6)
    assert on_shots.sum() > 10
    assert (difference[on_shots] <= 2e-3 * size[on_shots]).all(), "as exchanged"
    between = live & ahead
    assert (difference[between] <= 0.07 * size[between]).all(), "as interpolated, 10 m apart at 25 Hz"


def test_a_single_end_on_shot_stays_one_sided() -> None:
    source, receiver = towed(np.array([690.0]), channels=60, spacing_m=10, near_m=60)
    spread, (found,) = read_all(source, receiver, tone(source, receiver))
    assert spread.sources == 1 and found.prepared is not None
    (live,) = found.prepared.live[0]
    assert np.flatnonzero(live).tolist() == list(range(int(live.sum()))) or live.sum() == 60
    assert found.prepared.traces.shape[1] == 1


def gathered(found: list[WindowGather]) -> NDArray[np.float32]:
    return np.concatenate([each.prepared.traces.ravel() for each in found if each.prepared is not None])


LINES: dict[str, Callable[[], tuple[Float64, Float64]]] = {
    "fixed": lambda: fixed(np.arange(0, 2761, 170.0), np.arange(0, 2761, 10.0)),
    "towed": lambda: towed(np.arange(1500.0, 3000, 20), channels=120, spacing_m=10, near_m=50),
    "rolling": lambda: towed(np.arange(0.0, 2500, 30), channels=96, spacing_m=10, near_m=-480),
}


@pytest.mark.parametrize("name", LINES)
def test_a_shifted_survey_is_the_same(name: str) -> None:
    source, receiver = LINES[name]()
    traces = tone(source, receiver)
    spread, found = read_all(source, receiver, traces)
    assert sum(each.prepared is not None for each in found) >= 3
    for by_m in (1000.0, -123456.789):
        moved, again = read_all(source + by_m, receiver + by_m, traces)
        assert [each.start_m for each in again] == pytest.approx([each.start_m + by_m for each in found], abs=1e-6)
        np.testing.assert_allclose(gathered(again), gathered(found), atol=1e-5)
        assert moved.sources == spread.sources


@pytest.mark.parametrize("name", ["fixed", "rolling"])
def test_a_mirrored_survey_is_mirrored(name: str) -> None:
    source, receiver = LINES[name]()
    traces = tone(source, receiver)
    _, found = read_all(source, receiver, traces)
    _, turned = read_all(-source, -receiver, traces)
    assert len(turned) == len(found)
    for one, other in zip(found, turned[::-1], strict=True):
        assert (one.prepared is None) == (other.prepared is None)
        assert other.start_m == pytest.approx(-one.start_m - OPENFWI_FRAME.line_m, abs=10)
        if one.prepared is not None and other.prepared is not None:
            x = np.sort(OPENFWI_FRAME.line_m - other.prepared.shot_x_m[0])
            np.testing.assert_allclose(x, one.prepared.shot_x_m[0], atol=31)  # of equal places, either


@pytest.mark.parametrize("name", LINES)
def test_a_line_split_into_files_in_any_order_is_one_line(name: str) -> None:
    source, receiver = LINES[name]()
    traces = tone(source, receiver)
    order = np.random.default_rng(3).permutation(len(source))
    _, found = read_all(source, receiver, traces)
    _, again = read_all(source[order], receiver[order], traces[order])
    np.testing.assert_allclose(gathered(again), gathered(found), atol=1e-5)


def test_a_scaled_survey_is_the_same_window() -> None:
    source, receiver = LINES["towed"]()
    traces = tone(source, receiver)
    spread, found = read_all(source, receiver, traces)
    scale = Scale(3.0, 1.2)
    big, notes = lay_spread(positions(source * 3, receiver * 3), scale=scale)
    assert not notes
    np.testing.assert_allclose(big.key, spread.key, atol=1e-6)
    dt_s = frame_interval(0.004 * scale.time, scale)
    assert dt_s == pytest.approx(0.004)
    windows = [choose_window(big, float(start)) for start in window_starts(big, 345.0)]
    again = read_windows(windows, lambda n: traces[n], frame=OPENFWI_FRAME, dt_s=0.004, sources=big.sources)
    np.testing.assert_allclose(gathered(again), gathered(found), atol=1e-5)


def test_receivers_anywhere_are_interpolated_where_they_are_close() -> None:
    rng = np.random.default_rng(5)
    receivers = np.sort(np.concatenate([rng.uniform(0, 400, 60), rng.uniform(500, 700, 40), [0.0, 400, 500, 700]]))
    source, receiver = fixed(OPENFWI_FRAME.shot_x_m, receivers)
    spread = find_spread(source, receiver)
    window = choose_window(spread, 0.0)
    (found,) = read_windows([window], lambda n: tone(source, receiver)[n], frame=OPENFWI_FRAME, dt_s=0.004, sources=5)
    assert found.prepared is not None
    live = found.prepared.live[0]
    assert not live[:, 42:49].any() and live[:, 51:].mean() > 0.9
    place, node = (each.ravel() for each in np.meshgrid(found.prepared.shot_x_m[0], NODES, indexing="ij"))
    expected = tone(place.astype(float), node).reshape(5, 70, 250).transpose(0, 2, 1)
    error = np.abs(found.prepared.traces[0] - expected).max(axis=1)[live]
    assert np.median(error) < 0.05 and error.max() < 0.4


def test_dead_traces_are_not_interpolated_from() -> None:
    source, receiver = fixed(OPENFWI_FRAME.shot_x_m, NODES)
    traces = tone(source, receiver)
    traces[70 + 20] = 3.0
    traces[140 + 30, 7] = np.nan
    _, (found,) = read_all(source, receiver, traces)
    assert found.prepared is not None and np.isfinite(found.prepared.traces).all()
    dead = np.argwhere(~found.prepared.live[0])
    # each lies between live neighbours 20 m apart, from which it is made; so nothing is missing, nor stuck
    assert len(dead) == 0
    assert np.abs(found.prepared.traces[0, 1, :, 20]).max() < 2
    traces[70 + 19 : 70 + 24] = 0
    _, (found,) = read_all(source, receiver, traces)
    assert found.prepared is not None
    assert np.argwhere(~found.prepared.live[0]).tolist() == [[1, 19], [1, 20], [1, 21], [1, 22], [1, 23]]


def test_windows_of_too_little_say_so() -> None:
    source, receiver = fixed([0.0, 500, 1400], np.arange(0, 700, 10.0))
    _, found = read_all(source, receiver, tone(source, receiver), step_m=690)
    assert found[0].prepared is not None
    assert [each.lack is None for each in found] == [each.prepared is not None for each in found]
    assert found[-1].lack is not None and "pseudo-shots have traces over 25%" in found[-1].lack
    assert (found[-1].lit == 0).all()
    sparse = fixed(np.arange(0, 700, 170.0), np.arange(0, 700, 50.0))
    _, (empty,) = read_all(*sparse, tone(*sparse))
    assert empty.prepared is None, "50 m are not interpolated"


def positions(source: Float64, receiver: Float64, cross: Float64 | float = 0.0) -> TracePositions:
    zero = np.zeros(len(source), dtype=np.int64)
    y = np.broadcast_to(cross, source.shape)
    return TracePositions(np.stack([source, y], axis=1), np.stack([receiver, y], axis=1), zero, zero)


def test_hostile_geometries_are_refused_with_numbers() -> None:
    source, receiver = fixed(OPENFWI_FRAME.shot_x_m, NODES)
    broken = source.copy()
    broken[[7, 9]] = np.nan, np.inf
    with pytest.raises(InvalidSurvey, match=r"2 of 350 traces have positions .* first is trace 8"):
        lay_spread(positions(broken, receiver))
    with pytest.raises(InvalidSurvey, match="no geometry"):
        lay_spread(positions(source * 0, source * 0))
    with pytest.raises(InvalidSurvey, match="no 2-D line"):
        lay_spread(positions(source, receiver, np.square(source / 20)))
    with pytest.raises(InvalidSurvey, match="None of 350 traces has an offset that fits the line of 690 m"):
        lay_spread(positions(source, receiver + 5000))
    with pytest.raises(InvalidSurvey, match="None of 350"):
        lay_spread(positions(source, receiver), usable=np.zeros(350, dtype=bool))
    with pytest.raises(InvalidSurvey, match=r"4 ms is 40 ms of the frame at scale s = 0.1, k = 1"):
        frame_interval(0.004, Scale(0.1))
    with pytest.raises(InvalidSurvey, match="at most 8 ms"):
        frame_interval(float("nan"))


def test_the_best_window_is_found_between_traces_that_lie_ends_of_the_world_apart() -> None:
    source, receiver = fixed([4e7 + x for x in OPENFWI_FRAME.shot_x_m], 4e7 + NODES)
    spread = find_spread(np.append(source, -9e7), np.append(receiver, -9e7))
    window = best_window(spread)
    assert len(window.shots) >= 3 and abs(window.start_m - 4e7) < 400


def test_no_line_is_longer_than_its_windows_can_be_laid_out() -> None:
    """Two ends of the world at a scale of a hundredth: 290 million windows, which nobody lays out."""
    source, receiver = fixed(OPENFWI_FRAME.shot_x_m, NODES)
    spread = find_spread(np.append(source, 1e10), np.append(receiver, 1e10))
    with pytest.raises(InvalidSurvey, match=r"28985507 windows; at most 1000000 are laid out"):
        window_starts(spread, 345.0)
    assert abs(best_window(spread).start_m) < 400  # of what has traces, all the same


def test_one_trace_is_too_little() -> None:
    one = np.array([0.0]), np.array([200.0])
    spread = find_spread(*one)
    (found,) = read_windows([best_window(spread)], lambda n: tone(*one)[n], frame=OPENFWI_FRAME, dt_s=0.004, sources=1)
    assert found.prepared is None and found.lack


def test_a_million_traces_are_sorted_within_little_memory() -> None:
    source, receiver = towed(np.arange(0, 52_100, 12.5), channels=240, spacing_m=12.5, near_m=100)
    assert len(source) > 1_000_000
    spread = find_spread(source / 2, receiver / 2)
    assert len(spread.key) < 2 * len(source)
    window = choose_window(spread, 20_000.0)
    assert [round(shot.x_m / 172.5) for shot in window.shots] == [0, 1, 2, 3, 4]
    assert sum(shot.reversed for shot in window.shots) > 100


def test_repeated_traces_are_taken_once_the_nearest_first() -> None:
    source, receiver = fixed(OPENFWI_FRAME.shot_x_m, NODES)
    twice = np.concatenate([source, source + 2]), np.concatenate([receiver, receiver + 2])
    window: Window = choose_window(find_spread(*twice), 0.0)
    middle = next(shot for shot in window.shots if 300 < shot.x_m < 400)
    assert len(np.unique(np.round(middle.far_m))) == len(middle.far_m)
