import numpy as np
import pytest

from seisbind.model.confidence.intervals import CAP, HALF_KNOWN, KNEE, departures, interval_factor, shot_distance
from seisbind.model.confidence.novelty import MEASURES
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.survey.preparation import Prepared
from seisbind.model.training.calibration import COVERAGE, _by_departure, _by_family, _fitted, least_excess


def pinball(y: np.ndarray, x: np.ndarray, weight: np.ndarray, coefficients: np.ndarray) -> float:
    off = y - x @ coefficients
    return float(weight @ np.where(off > 0, COVERAGE * off, (COVERAGE - 1) * off))


def test_records_near_the_median_of_training_do_not_depart() -> None:
    scores = np.array([[0.0, KNEE], [KNEE + 0.5, 99.0], [np.nan, 1.0]])
    expected = [[0, 0, 0], [0.5, CAP, 0.4], [CAP, 1 - KNEE, CAP]]
    np.testing.assert_allclose(departures(scores, np.array([0.0, 0.4, 9.0])), expected)


def test_ground_that_is_hardly_foreign_departs_by_itself_and_earlier_weights_do_not_know() -> None:
    scores = np.zeros((3, len(MEASURES)))
    scores[:, -1] = [0.0, KNEE + HALF_KNOWN / 2, 1.0]
    departed = departures(scores, np.zeros(3))
    assert departed.shape == (3, len(MEASURES) + 2)
    np.testing.assert_allclose(departed[:, -1], [0, HALF_KNOWN / 2, HALF_KNOWN])
    rows = [[0.5]] * (len(MEASURES) + 1)
    shares, base = np.ones((3, 1), np.float32), [[0.0]]
    earlier, now = (interval_factor(shares, base, departed, rows + more)[:, 0] for more in ([], [[2.0]]))
    np.testing.assert_allclose(np.log(earlier), 0.5 * departed[:, -3], rtol=1e-5)
    np.testing.assert_allclose(np.log(now / earlier), 2 * departed[:, -1], rtol=1e-5, atol=1e-6)


def test_shots_that_are_elsewhere_or_lost_are_a_distance() -> None:
    shots, samples, receivers = OPENFWI_FRAME.prepared_shape
    traces, live = np.zeros((3, shots, samples, receivers), np.float32), np.ones((3, shots, receivers), bool)
    places = np.tile(np.asarray(OPENFWI_FRAME.shot_x_m, np.float32), (3, 1))
    places[1] += 43.0
    live[2, 1:] = False
    found = shot_distance(Prepared(traces, live, places))
    moved = Prepared(traces[1:2], live[1:2], places[:1], moved_m=places[1:2] - places[:1])
    assert shot_distance(moved) == pytest.approx(found[1:2])  # wherever the encoders see them
    spacing = OPENFWI_FRAME.line_m / (shots - 1)
    assert found[0] == 0 and found[1] == pytest.approx(43 / spacing) and found[2] == pytest.approx(2, rel=0.01)


def test_without_departures_the_factor_is_that_of_the_families_to_the_bit() -> None:
    """Weights from before, whose calibration has no such rows, and records that do not depart."""
    rng = np.random.default_rng(0)
    shares, rows = rng.dirichlet(np.ones(4), 20).astype(np.float32), rng.standard_normal((4, 13))
    plain = np.exp(shares @ rows.astype(np.float32))
    assert interval_factor(shares, rows).tobytes() == plain.tobytes()
    excess = rng.random((3, 13)).tolist()
    assert interval_factor(shares, rows, np.zeros((20, 3)), excess).tobytes() == plain.tobytes()
    assert (interval_factor(shares, rows, np.ones((20, 3)), excess) > plain).all()


def test_what_departures_add_is_found_and_never_less_than_nothing() -> None:
    """Errors that grow with the first measure, fall with the second and have no third: 90 % are covered all along."""
    rng = np.random.default_rng(1)
    x = np.column_stack([rng.random((6000, 2)), np.zeros(6000)])
    half_normal = np.quantile(np.abs(rng.standard_normal(100_000)), COVERAGE)
    y = np.log(np.abs(rng.standard_normal(6000)) / half_normal) + 1.5 * x[:, 0] - 0.2 * x[:, 1]
    weight = rng.uniform(0.5, 2.0, 6000)
    found = least_excess(y, x, weight, COVERAGE)
    assert found[1] == pytest.approx(0, abs=1e-9) and found[2] == 0
    assert 1.2 < found[0] < 1.6
    best = pinball(y, x, weight, found)
    for off in ([0.05, 0, 0], [-0.05, 0, 0], [0, 0.05, 0]):
        assert best < pinball(y, x, weight, found + off)


def test_foreign_ground_as_recorded_is_not_outweighed_by_many_disturbed_records() -> None:
    familiar, foreign = (np.repeat(np.eye(3, dtype=bool)[i], [200, 50, 1000]) for i in range(2))
    departed = np.where(familiar, 0.0, 1.0)[:, None]
    y = np.where(foreign, 2.0, np.where(familiar, -1.0, 1.0))[:, None]
    assert _by_departure(y, departed, familiar, foreign)[0, 0] == pytest.approx(2, abs=1e-6)
    without = ~foreign
    found = _by_departure(y[without], departed[without], familiar[without], foreign[without])
    assert found[0, 0] == pytest.approx(1, abs=1e-6)


def test_families_are_held_nine_times_in_ten_with_what_departures_add() -> None:
    """Every second familiar record departs a little: what other ground needs there made all of its intervals wider."""
    rng = np.random.default_rng(3)
    count = 4000
    family = rng.integers(0, 2, count)
    share, foreign = np.eye(2)[family], np.arange(count) >= count // 2
    departed = np.where(foreign, rng.uniform(0.2, 1.0, count), rng.choice([0.0, 0.1], count))[:, None]
    y = np.log(np.abs(rng.standard_normal(count))) + np.where(foreign, 4 * departed[:, 0], 0.7 * family)
    base, excess = _fitted(y[:, None], share, departed, ~foreign, ~foreign, foreign)
    held = (y <= (share @ base + departed @ excess)[:, 0])[~foreign]
    own = family[~foreign]
    assert abs(held[own == 0].mean() - COVERAGE) < 0.005 and abs(held[own == 1].mean() - COVERAGE) < 0.005
    once = _by_family(y[:, None], share, departed, ~foreign)
    wider = y <= (share @ once + departed @ _by_departure(y[:, None] - share @ once, departed, ~foreign, foreign))[:, 0]
    assert wider[~foreign].mean() > COVERAGE + 0.015
    assert (y <= (share @ base + departed @ excess)[:, 0])[foreign].mean() > 0.85
