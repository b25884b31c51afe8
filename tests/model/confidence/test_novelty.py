from dataclasses import replace

import numpy as np
import pytest

from seisbind.model.confidence.novelty import (
    MEASURES,
    NARROWEST,
    OF_RECORD,
    TrainingRanges,
    judge,
    learn,
    learn_foreign,
    measure,
    scores,
    with_uncertainty,
)
from seisbind.model.datasets.pairs import PairSet
from seisbind.model.survey.preparation import Prepared, prepare
from seisbind.model.training.augment import AugmentConfig, as_trained
from seisbind.model.waves.wavefield import simulate

NAMES = [m.name for m in MEASURES[: OF_RECORD + 1]]


@pytest.fixture(scope="module")
def recorded(velocity: np.ndarray) -> Prepared:
    """Twelve real gathers: three models of four families."""
    return prepare(simulate(velocity[:12], engine="deepwave"))


def values(prepared: Prepared) -> np.ndarray:
    return with_uncertainty(measure(prepared), np.zeros(len(prepared), np.float32))


def with_traces(prepared: Prepared, traces: np.ndarray) -> Prepared:
    return replace(prepared, traces=traces.astype(np.float32))


@pytest.fixture(scope="module")
def known(recorded: Prepared) -> TrainingRanges:
    """Of training with white noise 12 to 60 dB below the record."""
    rng = np.random.default_rng(1)
    noise = np.sqrt(np.square(recorded.traces).mean()) * rng.standard_normal(recorded.traces.shape)
    levels = (recorded.traces + 10 ** (-decibel / 20) * noise for decibel in range(12, 61, 4))
    return learn(np.concatenate([values(with_traces(recorded, traces)) for traces in levels]))


def reasons(known: TrainingRanges, changed: Prepared) -> set[str | None]:
    return {verdict.reason for verdict in judge(values(changed), known)}


def test_what_was_seen_is_likely(recorded: Prepared) -> None:
    known = learn(values(recorded))
    verdicts = judge(values(recorded), known)
    assert sum(v.likely for v in verdicts) >= 11  # 1 % of them exceed the limit, by its definition
    assert all((v.reason is None) == (v.detail is None) == v.likely for v in verdicts)


def test_foreign_ground_is_unlike_training_and_says_so(recorded: Prepared) -> None:
    """Its end is where one in a hundred over familiar ground lies beyond; other measures keep their ranges."""
    measured, none = measure(recorded), np.zeros(len(recorded), np.float32)
    before = learn(values(recorded))
    odds = np.random.default_rng(3).normal(-3.0, 1.0, 4000)
    known = learn_foreign(before, odds)
    assert known.low[:-1] == before.low and known.high[:-1] == before.high and known.limit == before.limit
    assert learn_foreign(known, odds) == known  # of weights that go on from such weights
    beyond = (odds - known.middle[-1]) / (known.high[-1] - known.middle[-1]) > known.limit
    assert abs(beyond.mean() - 0.01) < 0.001
    p = np.full(len(recorded), 0.04, np.float32)
    p[0] = 0.9
    verdicts = judge(with_uncertainty(measured, none, p), known)
    assert verdicts[0].reason == "ground" and "log odds" in (verdicts[0].detail or "")
    assert [v.likely for v in verdicts[1:]] == [v.likely for v in judge(values(recorded), before)[1:]]


def test_a_record_without_noise_is_not_unlike_noisy_ones(recorded: Prepared) -> None:
    rng = np.random.default_rng(2)
    noise = np.sqrt(np.square(recorded.traces).mean()) * rng.standard_normal(recorded.traces.shape)
    noisy = learn(np.concatenate([values(with_traces(recorded, recorded.traces + g * noise)) for g in (0.1, 0.05)]))
    at = [i for i, m in enumerate(MEASURES) if m.reason == "noise"]
    assert scores(values(recorded), noisy)[:, at].max() <= 1


def test_the_usual_is_in_the_middle_even_where_it_is_the_most(recorded: Prepared) -> None:
    """Five shots are what training had but for a few lost ones: not on the edge, and more are beyond it."""
    at = NAMES.index("shots")
    trained = np.repeat(values(recorded), 100, axis=0)
    trained[::50, at] = 1
    known = learn(trained)
    asked = np.repeat(values(recorded)[:1], 4, axis=0)
    asked[:, at] = 5, 3, 1, 9
    assert scores(asked, known)[:, at].tolist() == pytest.approx([0, 0.5, 1, 4 / NARROWEST])
    assert [verdict.likely for verdict in judge(asked, known)] == [True, True, True, False]


def test_gain_changes_no_measure(recorded: Prepared) -> None:
    np.testing.assert_allclose(values(with_traces(recorded, recorded.traces * 1e-7)), values(recorded), atol=1e-2)


def test_each_disturbance_is_named(recorded: Prepared, known: TrainingRanges) -> None:
    rng = np.random.default_rng(0)
    rms = np.sqrt(np.square(recorded.traces).mean())
    noise = rms * rng.standard_normal(recorded.traces.shape, dtype=np.float32)
    # white noise is also a record of another frequency, where one wavelet is all that was seen
    assert reasons(known, with_traces(recorded, recorded.traces + noise)) <= {"noise", "frequency"}
    assert reasons(known, with_traces(recorded, np.clip(recorded.traces, -rms, rms))) == {"amplitudes"}
    few = replace(recorded, live=recorded.live & (np.arange(5) < 1)[:, None])
    few = with_traces(few, recorded.traces * few.live[:, :, None, :])
    assert reasons(known, few) == {"geometry"}
    x = np.abs(np.arange(70) * 10.0 - recorded.shot_x_m[..., None])  # (batch, shot, receiver)
    after = np.arange(250)[:, None] * 0.004 - 0.1 - x[:, :, None] / 400.0
    roll = 3 * rms * np.sin(2 * np.pi * 15 * after) * np.exp(-np.square(after / 0.1))  # at the wavelet's own frequency
    rolling = with_traces(recorded, recorded.traces + roll)
    assert reasons(known, rolling) <= {"slow_waves", "amplitudes"}
    assert scores(values(rolling), known)[:, NAMES.index("slow_power")].min() > known.limit


def test_measures_by_hand() -> None:
    """A 30 Hz tone on every trace of one shot, the same everywhere: infinitely fast, and there too early."""
    t = np.arange(250) * 0.004
    traces = np.broadcast_to(np.sin(2 * np.pi * 30 * t)[None, :, None], (1, 1, 250, 70)).astype(np.float32)
    tone = Prepared(traces, np.ones((1, 1, 70), bool), np.zeros((1, 1), np.float32))
    found = dict(zip(NAMES, values(tone)[0].tolist(), strict=True))
    assert found["centroid"] == pytest.approx(30, abs=0.5) and found["high_power"] < -60
    assert found["early_power"] == pytest.approx(0, abs=1) and found["late_power"] == pytest.approx(0, abs=0.5)
    assert found["crest"] == pytest.approx(3.01, abs=0.1) and found["slow_power"] < -20
    assert (found["live_traces"], found["shots"]) == (1, 1)


def test_the_detail_has_the_numbers(recorded: Prepared, known: TrainingRanges) -> None:
    far = values(recorded)[:1].copy()
    far[0, NAMES.index("centroid")] = 90.0
    (verdict,) = judge(far, known)
    assert verdict.reason == "frequency" and verdict.detail is not None
    assert "is 90 Hz" in verdict.detail and "in training it lay between" in verdict.detail


def test_gathers_as_trained_are_augmented_and_drawn_once(pairs: PairSet) -> None:
    clean = as_trained(pairs, None, count=10)
    assert len(clean) == 10 and clean.live.all()
    augmented = as_trained(pairs, AugmentConfig(dead=1.0), count=100)
    assert len(augmented) == len(pairs) and not augmented.live.all()
    again = as_trained(pairs, AugmentConfig(dead=1.0), count=100)
    np.testing.assert_array_equal(augmented.traces, again.traces)
