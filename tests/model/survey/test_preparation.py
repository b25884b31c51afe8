import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisbind.model.confidence.intervals import shot_distance
from seisbind.model.errors import InvalidGather, InvalidSurvey
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.inversion.observed import Observed
from seisbind.model.survey.preparation import OPENFWI, Prepared, place_prepared, prepare
from seisbind.model.survey.resampling import receiver_map, time_kernel
from seisbind.model.survey.shots import spread_shots
from seisbind.model.waves.wavefield import simulate
from seisbind.model.waves.wavelet import ricker

LINE = np.arange(70) * 10.0


def gather(dt_s: float = 0.001, receivers: np.ndarray = LINE, *, samples: int | None = None, delay_s: float = 0.073):
    """(5, time, receiver): direct and reflected Ricker arrivals, sampled anywhere without error."""
    t = np.arange(samples or round(1.0 / dt_s)) * dt_s
    out = np.zeros((5, len(t), len(receivers)))
    for shot, x in enumerate(OPENFWI.shot_x_m):
        offset = np.abs(receivers - x)
        for velocity, t0, size in ((1800.0, 0.0, 3.0), (2200.0, 0.4, 0.5)):
            arrival = np.sqrt(t0**2 + (offset / velocity) ** 2) + delay_s
            a = np.square(np.pi * 15 * (t[:, None] - arrival))
            out[shot] += size * (1 - 2 * a) * np.exp(-a) * (1.5 if size > 1 else 1)
    return out.astype(np.float32)


def line(receivers: np.ndarray, dt_s: float = 0.001, shots: tuple[float, ...] = OPENFWI.shot_x_m) -> Survey:
    return Survey(shots, tuple(receivers.tolist()), dt_s)


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def test_canonical_gathers_pass_with_nothing_to_say() -> None:
    prepared = prepare(gather())
    assert prepared.traces.shape == (1, 5, 250, 70) and prepared.live.all() and prepared.notes == ((),)
    assert relative_rms(prepared.traces[0], gather(0.004)) < 1e-3  # 4 ms samples of the same wave


@pytest.mark.parametrize("dt_s", [0.0005, 0.002, 0.003, 0.004])
def test_time_sampling_does_not_matter(dt_s: float) -> None:
    prepared = prepare(gather(dt_s), line(LINE, dt_s))
    assert relative_rms(prepared.traces, prepare(gather()).traces) < 2e-3
    assert [note.code for note in prepared.notes[0]] == ([] if dt_s == 0.004 else ["resampled"])


def test_resampling_rejects_what_4_ms_cannot_carry() -> None:
    noise = 10 * np.sin(2 * np.pi * 300 * np.arange(1000) * 0.001)[None, :, None]
    disturbed = prepare((gather() + noise).astype(np.float32)).traces
    clean = prepare(gather()).traces
    inner = slice(10, 240)  # the record's ends cut the sine, which is broadband there
    assert np.abs(disturbed - clean)[:, :, inner].max() < 0.02
    naive = (gather() + noise)[:, ::4]
    assert np.abs(naive - clean[0])[:, inner].max() > 5  # without the filter it would alias


@pytest.mark.parametrize(("step", "bound"), [(5.0, 0.05), (15.0, 0.12), (20.0, 0.2)])
def test_other_receiver_spacings_are_mapped(step: float, bound: float) -> None:
    x = np.arange(0, 691, step)
    prepared = prepare(gather(receivers=x), line(x))
    known = prepared.live[0, 0]
    assert known.sum() >= 68
    reference = prepare(gather()).traces[..., known]
    assert relative_rms(prepared.traces[..., known], reference) < bound
    assert "receivers_mapped" in [note.code for note in prepared.notes[0]]


def test_gaps_wider_than_a_half_wavelength_stay_empty() -> None:
    x = np.concatenate([LINE[:30], LINE[40:]])
    prepared = prepare(gather(receivers=x), line(x))
    assert not prepared.live[0, 0, 31:39].any() and prepared.live[0, 0, [29, 40]].all()
    assert np.all(prepared.traces[0, :, :, 31:39] == 0)


def test_shifted_coordinates_are_the_same_line() -> None:
    moved = Survey(tuple(x + 5000 for x in OPENFWI.shot_x_m), tuple(x + 5000 for x in OPENFWI.receiver_x_m), 0.001)
    np.testing.assert_array_equal(prepare(gather(), moved).traces, prepare(gather()).traces)


def test_reversed_polarity_is_recognised_and_said() -> None:
    flipped = prepare(-gather())
    np.testing.assert_array_equal(flipped.traces, prepare(gather()).traces)
    assert [note.code for note in flipped.notes[0]] == ["polarity_flipped"]


def test_dead_traces_are_marked_not_guessed() -> None:
    g = gather()
    g[2, :, 30:34] = 0
    g[1, :, 5] = 7.0  # a stuck receiver
    prepared = prepare(g)
    assert (~prepared.live).sum() == 5 and not prepared.live[0, 1, 5]
    assert prepared.notes[0][0].code == "dead_traces" and "5 of 350" in prepared.notes[0][0].sentence


def test_fewer_shots_keep_their_positions() -> None:
    survey = Survey((170.0, 520.0), OPENFWI.receiver_x_m, 0.001)
    prepared = prepare(gather()[[1, 3]], survey)
    assert prepared.shot_x_m.tolist() == [[170.0, 520.0]]
    assert [note.code for note in prepared.notes[0]] == ["shot_positions"]


def test_shots_off_the_line_are_left_out() -> None:
    survey = Survey((-500.0, 0.0, 170.0, 340.0, 520.0), OPENFWI.receiver_x_m, 0.001)
    prepared = prepare(gather(), survey)
    assert prepared.traces.shape[1] == 4 and prepared.notes[0][0].code == "shots_left_out"


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((5, 1000, 70), np.float32), "constant"),
        (np.full((5, 1000, 70), np.nan, np.float32), "NaN"),
        (np.zeros((4, 1000, 70), np.float32), "shape"),
        (np.zeros((5, 1000), np.float32), "shape"),
        (np.zeros((5, 100, 70), np.float32), "0.100 s"),
        (np.zeros((5, 1000, 70), np.complex64), "complex64"),
        (np.zeros((5, 1000, 70), object), "object"),
        (np.zeros((0, 5, 1000, 70), np.float32), "no gather"),
    ],
)
def test_unusable_gathers_are_refused_with_numbers(array: np.ndarray, words: str) -> None:
    with pytest.raises(InvalidGather, match=words):
        prepare(array)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Survey((), (0.0,), 0.001), "at least one"),
        (lambda: Survey((0.0,), (0.0, 20.0, 10.0), 0.001), "increase"),
        (lambda: Survey((0.0,), (0.0, 10.0), 4.0), "milliseconds"),
        (lambda: Survey((float("nan"),), (0.0, 10.0), 0.004), "finite"),
        (lambda: Survey((0.0,), (0.0, 1e300), 0.004), r"1e\+300 m; .* within 1e\+08 m"),
        (lambda: Survey((-1.5e8,), (0.0, 10.0), 0.004), r"-1.5e\+08 m"),
        (lambda: Survey((0.0,) * 65, (0.0, 10.0), 0.004), "65"),
        (lambda: prepare(np.ones((1, 1000, 20), np.float32).cumsum(1), line(LINE[:20], shots=(0.0,))), "190 m"),
        (lambda: prepare(np.ones((1, 1000, 70), np.float32).cumsum(1), line(LINE, shots=(-900.0,))), "No shot"),
    ],
)
def test_unusable_surveys_are_refused_with_numbers(build, words: str) -> None:
    with pytest.raises(InvalidSurvey, match=words):
        build()


def test_positions_of_any_map_are_used() -> None:
    """Gauss-Krueger eastings begin with the number of their zone."""
    far = line(LINE + 32_500_000.0, shots=(32_500_340.0,))
    assert prepare(gather()[2:3], far).shot_x_m.tolist() == [[340.0]]


def test_a_record_that_is_short_both_ways_is_told_of_both() -> None:
    short = np.random.default_rng(0).standard_normal((1, 500, 24)).astype(np.float32)
    with pytest.raises(InvalidGather, match=r"0\.500 s.* 0\.6 s are needed.* The receiver line is 230 m long"):
        prepare(short, line(LINE[:24], shots=(0.0,)))


@settings(max_examples=20, deadline=None)
@given(gain=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_preparation_is_linear_in_amplitude(gain: float, seed: int) -> None:
    g = gather() + np.random.default_rng(seed).normal(0, 0.01, (5, 1000, 70)).astype(np.float32)
    np.testing.assert_allclose(
        prepare(g * np.float32(gain)).traces, prepare(g).traces * np.float32(gain), rtol=1e-3, atol=1e-5 * gain
    )


def test_interpolation_keeps_a_constant() -> None:
    for step in (5.0, 15.0, 20.0, 30.0):
        rows = receiver_map(tuple(np.arange(0, 691, step)), frame=OPENFWI_FRAME).sum(axis=1)
        assert np.allclose(rows[rows != 0], 1)


def test_the_wavelet_of_the_tests_is_that_of_openfwi() -> None:
    assert np.argmax(ricker(15.0, 0.001)) == 73


def test_what_lies_beyond_the_canonical_second_costs_nothing() -> None:
    """Eight thousand seconds of a record: the same gather as its first second, and a kernel no larger than for two."""
    rng = np.random.default_rng(0)
    long = rng.standard_normal((1, 200_000, 70)).astype(np.float32)
    survey = Survey(shot_x_m=(340.0,), receiver_x_m=OPENFWI.receiver_x_m, dt_s=0.001)
    whole, part = prepare(long, survey), prepare(long[:, :2000], survey)
    np.testing.assert_array_equal(whole.traces, part.traces)
    assert all(
        across.stop <= 1100 for _, across, _ in time_kernel(1033, 0.001, OPENFWI_FRAME.samples, OPENFWI_FRAME.dt_s)
    )


def test_a_trace_that_vanishes_beside_the_others_is_dead() -> None:
    """Scaled so that the largest fits, what is 1e45 times smaller is zero, and carries nothing."""
    gathers = np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32) * np.float32(1e37)
    gathers[:, :, :10] = np.random.default_rng(1).standard_normal((5, 1000, 10)).astype(np.float32) * np.float32(8e-39)
    prepared = prepare(gathers)
    assert not prepared.live[0, :, :10].any() and prepared.live[0, :, 10:].all()


def many_shots(count: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``(1, count, 1000, 70)`` noise of another strength in each shot, and where the shots lie, evenly."""
    rng = np.random.default_rng(seed)
    gathers = rng.standard_normal((1, count, 1000, 70)).astype(np.float32) * rng.uniform(0.5, 2, (1, count, 1, 1))
    return gathers.astype(np.float32), np.linspace(0, 680, count)


def chosen(gathers: np.ndarray, x: np.ndarray, *, move_shots: bool = True) -> tuple[Prepared, list[float]]:
    prepared = prepare(gathers, line(LINE, shots=tuple(x.tolist())), move_shots=move_shots)
    return prepared, prepared.shot_x_m[0].tolist()


@pytest.mark.parametrize("move_shots", [True, False])
@pytest.mark.parametrize("count", [6, 9, 18, 64])
def test_of_many_shots_the_five_chosen_are_all_that_counts(count: int, move_shots: bool) -> None:
    """The same as these five sent alone, in whatever order all of them come; noted with the numbers."""
    gathers, x = many_shots(count)
    prepared, where = chosen(gathers, x, move_shots=move_shots)
    assert prepared.traces.shape == (1, len(OPENFWI.shot_x_m), 250, 70) and where == sorted(where)
    sentence = next(note.sentence for note in prepared.notes[0] if note.code == "shots_chosen")
    assert f"Of {count} shots on the line, 5 were used, those at 0, " in sentence
    used = np.array([float(each) for each in sentence.partition("those at ")[2].partition(" m:")[0].split(", ")])
    at = [int(np.abs(x - each).argmin()) for each in used]
    wanted = OPENFWI.shot_x_m if move_shots else np.linspace(0, 680, 5)
    assert np.abs(used - wanted).max() <= 680 / (count - 1) / 2 + 10
    alone, _ = chosen(gathers[:, at], x[at], move_shots=move_shots)
    order = np.random.default_rng(1).permutation(count)
    shuffled, _ = chosen(gathers[:, order], x[order], move_shots=move_shots)
    for other in (alone, shuffled):
        for name in ("traces", "live", "shot_x_m"):
            np.testing.assert_array_equal(getattr(prepared, name), getattr(other, name))
    assert prepared.notes == shuffled.notes
    assert [note for note in prepared.notes[0] if note.code != "shots_chosen"] == list(alone.notes[0])


@pytest.mark.parametrize("seed", range(5))
def test_a_mirrored_record_gets_the_mirrored_choice(seed: int) -> None:
    """Of 18 shots, two lie as close to the middle: not the left one is taken, but the stronger one."""
    gathers, x = many_shots(18, seed=seed)
    prepared, where = chosen(gathers, x, move_shots=False)
    mirrored, there = chosen(gathers[:, ::-1, :, ::-1], 690 - x[::-1], move_shots=False)
    np.testing.assert_allclose(690 - np.array(there[::-1]), where, atol=1e-3)
    np.testing.assert_allclose(mirrored.traces[:, ::-1, :, ::-1], prepared.traces, atol=1e-5)


def test_shots_without_live_traces_are_left_and_each_gather_has_its_own_choice() -> None:
    gathers, x = many_shots(18)
    gathers[:, :2] = 0  # the first two shots recorded nothing
    gathers[:, 17, :, ::2] = 0  # and half of the receivers failed in the last one
    for move_shots in (False, True):
        _, where = chosen(gathers, x, move_shots=move_shots)
        assert move_shots or (where[0] == x[2] and where[-1] == x[16])
        stack = np.concatenate([many_shots(18)[0], gathers])
        both = prepare(stack, line(LINE, shots=tuple(x.tolist())), move_shots=move_shots)
        for row, alone in zip(range(2), (stack[:1], stack[1:]), strict=True):
            one, there = chosen(alone, x, move_shots=move_shots)
            np.testing.assert_array_equal(both.traces[row], one.traces[0])
            np.testing.assert_array_equal(both.live[row], one.live[0])
            assert both.notes[row] == one.notes[0] and both.shot_x_m[row].tolist() == there
        assert both.live.any(axis=2).all()  # no dead shot is used where another is near
        assert not np.array_equal(both.traces[0, 0], both.traces[1, 0])


def test_a_shot_is_moved_with_its_receivers_to_the_place_of_training_next_to_it() -> None:
    """Offsets stay; what lies off the line's end is dead; a shot within a receiver of its place stays there."""
    gathers, _ = many_shots(5)
    x = np.array([60.0, 179.0, 300.0, 520.0, 640.0])
    survey = line(LINE, shots=tuple(x.tolist()))
    prepared, unmoved = prepare(gathers, survey), prepare(gathers, survey, move_shots=False)
    assert prepared.shot_x_m[0].tolist() == [0, 179, 340, 520, 690]
    for shot, cells in enumerate((6, 0, -4, 0, -5)):
        offset = np.round((LINE - prepared.shot_x_m[0, shot]) / 10, 1)
        was = np.round((LINE - x[shot]) / 10, 1)
        assert prepared.live[0, shot].tolist() == np.isin(offset, was).tolist()
        for receiver in np.flatnonzero(prepared.live[0, shot]):
            expected = np.abs(unmoved.traces[0, shot, :, receiver + cells])  # noise has no polarity of its own
            np.testing.assert_array_equal(np.abs(prepared.traces[0, shot, :, receiver]), expected)
    assert not prepared.traces[0][~prepared.live[0].repeat(250, axis=0).reshape(5, 250, 70)].any()
    note = next(note for note in prepared.notes[0] if note.code == "shots_moved")
    assert "60 to 0 m, 300 to 340 m, 640 to 690 m" in note.sentence and "5 of 5 places" in note.sentence
    with pytest.raises(InvalidGather, match="keep_recorded=True"):
        Observed.of(prepared)
    prepared = prepare(gathers, survey, keep_recorded=True)
    assert prepared.as_recorded is not None
    for name in ("traces", "live", "shot_x_m"):
        np.testing.assert_array_equal(getattr(prepared.as_recorded, name), getattr(unmoved, name))
    np.testing.assert_array_equal(Observed.of(prepared).shot_x_m, x)  # waves are modelled for where it was shot
    own = prepare(gathers, keep_recorded=True)
    assert own.as_recorded is None and not own.notes[0]


def test_gathers_of_a_stack_have_shots_of_their_own() -> None:
    """In the second, half of the traces of the shot nearest to 170 m are dead: that at 255 m is taken for it."""
    gathers, _ = many_shots(5)
    other = gathers.copy()
    other[0, 1, :, ::2] = 0
    survey = line(LINE, shots=(0.0, 100.0, 255.0, 520.0, 690.0))
    for stack in (np.concatenate([gathers, other]), np.concatenate([other, gathers])):
        both = prepare(stack, survey)
        for row in range(2):
            alone = prepare(stack[row], survey)
            for name in ("traces", "live", "shot_x_m", "moved_m"):
                np.testing.assert_array_equal(getattr(both, name)[row], getattr(alone, name)[0])
            assert both.notes[row] == alone.notes[0]
    assert both.moved_m is not None and both.moved_m[:, 1].tolist() == [80, -70]


def test_a_record_that_moving_does_not_suit_stays_as_it_was() -> None:
    """Traces that would all come to lie off the line, in one gather of a stack or in all."""
    gathers, _ = many_shots(1)
    gathers[..., 6:] = 0  # only the receivers up to 50 m
    survey = line(LINE, shots=(60.0,))
    alone, unmoved = prepare(gathers, survey), prepare(gathers, survey, move_shots=False)
    assert alone.moved_m is None or not alone.moved_m.any()
    np.testing.assert_array_equal(alone.traces, unmoved.traces)
    assert alone.notes == unmoved.notes
    both = prepare(np.concatenate([gathers, many_shots(1)[0]]), survey)
    np.testing.assert_array_equal(both.traces[0], unmoved.traces[0])
    assert both.notes[0] == unmoved.notes[0]
    assert both.moved_m is not None and both.moved_m.ravel().tolist() == [0, 60]
    five = many_shots(5)[0]
    lost = five.copy()
    lost[0, 0, :, :40] = 0  # of the first shot, what is left would lie off the line
    several = line(LINE, shots=(80.0, 90.0, 340.0, 520.0, 690.0))
    stack = prepare(np.concatenate([lost, five]), several)
    for row, alone in enumerate((prepare(lost, several), prepare(five, several))):
        assert stack.notes[row] == alone.notes[0]
        seen = stack.live[row].any(axis=1)
        np.testing.assert_array_equal(stack.traces[row][seen], alone.traces[0][alone.live[0].any(axis=1)])
    end_on, x = many_shots(24)
    offset = LINE - x[:, None]
    end_on *= ((offset >= 50) & (offset <= 400))[None, :, None]
    stays = chosen(end_on, x, move_shots=False)[0]
    np.testing.assert_array_equal(chosen(end_on, x)[0].live, stays.live)


def test_shots_of_other_frames_are_moved_by_little_or_not_at_all() -> None:
    two = replace(OPENFWI_FRAME, shot_x_m=(0.0, 690.0))
    middle = replace(OPENFWI_FRAME, shot_x_m=(300.0, 390.0))
    many = replace(OPENFWI_FRAME, shot_x_m=tuple(30.0 * i for i in range(24)))
    for frame, shots in ((two, (345.0,)), (middle, (0.0, 690.0)), (many, (300.0,)), (many, OPENFWI.shot_x_m)):
        gathers, _ = many_shots(len(shots))
        found = prepare(gathers, line(LINE, shots=shots), frame=frame)
        assert found.moved_m is None and found.shot_x_m[0].tolist() == list(shots)


def test_of_shots_as_near_and_as_strong_the_order_does_not_decide() -> None:
    gathers, _ = many_shots(2)
    gathers = np.sign(gathers)
    first = prepare(gathers, line(LINE, shots=(130.0, 210.0)))
    second = prepare(gathers[:, ::-1], line(LINE, shots=(210.0, 130.0)))
    np.testing.assert_array_equal(first.traces, second.traces)


def test_pairs_are_placed_as_records_are() -> None:
    """Gathers on the grid, each with shots of its own, become what `prepare` makes of the records."""
    gathers, _ = many_shots(5)
    places = [(60.0, 179.0, 300.0, 520.0, 640.0), OPENFWI.shot_x_m, (0.0, 90.0, 170.0, 600.0, 690.0)]
    records = [prepare(gathers, line(LINE, shots=x), move_shots=False) for x in places]
    stack = Prepared(*(np.concatenate([getattr(each, n) for each in records]) for n in ("traces", "live", "shot_x_m")))
    before = stack.traces.copy()
    found = place_prepared(stack)
    np.testing.assert_array_equal(stack.traces, before)
    for row, x in enumerate(places):
        expected, used = prepare(gathers, line(LINE, shots=x)), found.live[row].any(axis=1)
        np.testing.assert_array_equal(found.shot_x_m[row][used], expected.shot_x_m[0])
        np.testing.assert_array_equal(found.live[row][used], expected.live[0])
        np.testing.assert_array_equal(np.abs(found.traces[row][used]), np.abs(expected.traces[0]))
        moved = np.zeros(used.sum()) if expected.moved_m is None else expected.moved_m[0]
        assert found.moved_m is not None
        np.testing.assert_array_equal(found.moved_m[row][used], moved)
        np.testing.assert_allclose(shot_distance(found)[row], shot_distance(expected)[0], rtol=1e-6)
    assert shot_distance(found)[1] == 0 < shot_distance(found)[0]
    canonical = prepare(gathers)
    assert place_prepared(canonical) is canonical and canonical.moved_m is None


def test_receivers_beyond_the_line_serve_a_shot_that_is_moved() -> None:
    wide = np.random.default_rng(2).standard_normal((5, 1000, 90)).astype(np.float32)
    survey = line(np.arange(90) * 10.0, shots=(60.0, 170.0, 340.0, 520.0, 640.0))
    live = prepare(wide, survey).live[0]
    assert live[:4].all() and not live[4, :5].any() and live[4, 5:].all()


def test_over_flat_ground_a_shot_that_is_moved_is_the_shot_of_its_place() -> None:
    velocity = np.repeat(np.linspace(1600, 4000, 70, dtype=np.float32)[:, None], 70, axis=1)
    survey = Survey((40.0, 220.0, 300.0, 560.0, 640.0), OPENFWI.receiver_x_m, 0.001, 15.0)
    moved, own = prepare(simulate(velocity, survey=survey), survey), prepare(simulate(velocity))
    live = moved.live[0]
    assert 0.85 < live.mean() < 1 and moved.shot_x_m[0].tolist() == own.shot_x_m[0].tolist()
    for shot in range(5):
        here, there = (each.traces[0, shot][:, live[shot]] for each in (moved, own))
        assert relative_rms(here, there) < 0.02  # but for what comes back from the ends of the grid
    stayed = prepare(simulate(velocity, survey=survey), survey, move_shots=False)
    assert relative_rms(stayed.traces[0], own.traces[0]) > 0.3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 690), st.integers(0, 10)), min_size=6, max_size=9), st.integers(0, 99))
def test_no_other_five_shots_lie_more_evenly(shots: list[tuple[int, int]], seed: int) -> None:
    x, live = (np.array(column, dtype=np.float64) for column in zip(*shots, strict=True))
    live /= 10
    strength = np.random.default_rng(seed).uniform(1, 2, len(x))
    seen = x[live > 0] if live.any() else x
    places, step = np.linspace(seen.min(), seen.max(), 5), max(np.ptp(seen) / 4, 1.0)

    def cost(number: np.ndarray) -> float:
        number = number[np.argsort(x[number], kind="stable")]
        off, dead = (x[number] - places) / step, (1 - live[number]) / np.maximum(live[number], 1e-3)
        return float(np.square(off).sum() + np.square(dead).sum())

    found = spread_shots(x, live, strength, count=5)
    assert len(set(found.tolist())) == 5 and (np.diff(x[found]) >= 0).all()
    least = min(cost(np.array(each)) for each in itertools.combinations(range(len(x)), 5))
    assert cost(found) <= least * (1 + 1e-6) + 1e-6


@pytest.mark.parametrize("count", [1, 3, 5])
def test_up_to_five_shots_are_used_as_they_are(count: int) -> None:
    survey = line(LINE, shots=OPENFWI.shot_x_m[:count][::-1])
    prepared = prepare(gather()[:count][::-1], survey)
    assert prepared.shot_x_m[0].tolist() == list(survey.shot_x_m)
    assert "shots_chosen" not in [note.code for note in prepared.notes[0]]
