import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seisbind.model.errors import InvalidGather, InvalidSurvey
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.survey import OPENFWI, Survey, _time_kernel, prepare, receiver_map
from seisbind.model.wavefield import ricker

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
        (lambda: Survey((0.0,) * 65, (0.0, 10.0), 0.004), "65"),
        (lambda: prepare(np.ones((1, 1000, 20), np.float32).cumsum(1), line(LINE[:20], shots=(0.0,))), "190 m"),
        (lambda: prepare(np.ones((1, 1000, 70), np.float32).cumsum(1), line(LINE, shots=(-900.0,))), "No shot"),
    ],
)
def test_unusable_surveys_are_refused_with_numbers(build, words: str) -> None:
    with pytest.raises(InvalidSurvey, match=words):
        build()


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
        across.stop <= 1100 for _, across, _ in _time_kernel(1033, 0.001, OPENFWI_FRAME.samples, OPENFWI_FRAME.dt_s)
    )


def test_a_trace_that_vanishes_beside_the_others_is_dead() -> None:
    """Scaled so that the largest fits, what is 1e45 times smaller is zero, and carries nothing."""
    gathers = np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32) * np.float32(1e37)
    gathers[:, :, :10] = np.random.default_rng(1).standard_normal((5, 1000, 10)).astype(np.float32) * np.float32(8e-39)
    prepared = prepare(gathers)
    assert not prepared.live[0, :, :10].any() and prepared.live[0, :, 10:].all()
