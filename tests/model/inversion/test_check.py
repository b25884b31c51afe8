"""Velocity models against records: the true one passes whatever the source and the noise, wrong ones do not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import BROAD_FAMILIES, generate, mixed
from seisbind.model.inversion.check import check_models, compare, has_free_surface, lowest_usable_hz
from seisbind.model.inversion.observed import Observed
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import ABSORBING, FREE_SURFACE, simulate
from seisbind.model.waves.wavelet import band_wavelet

pytest.importorskip("deepwave")
FRAME = OPENFWI_FRAME
TRUE, WRONG = np.concatenate([generate("CurveFault-A", 1, np.random.default_rng(n)) for n in (3, 4)])
AIR_GUN = band_wavelet(6, 25, 0.001, slopes=(2, 3), impulsive=True, delay_s=0.03)


def noisy(record: np.ndarray, decibel: float) -> np.ndarray:
    noise = np.random.default_rng(0).standard_normal(record.shape, dtype=np.float32)
    return record + noise * np.sqrt(np.square(record).mean()) * np.float32(10 ** (-decibel / 20))


@pytest.fixture(scope="module")
def observed() -> Observed:
    """By OpenFWI's own operator, another wavelet, gain, sign and delay, and noise at 20 dB."""
    return Observed.of(prepare(noisy(-7 * simulate(TRUE, engine="openfwi", wavelet=AIR_GUN), 20)))


def test_the_true_model_passes_and_another_does_not(observed: Observed) -> None:
    true, wrong = check_models(observed, np.stack([TRUE, WRONG]))
    assert true.verdict.usable and true.verdict.reason == "explained" and not true.free_surface
    assert true.comparison.whole.residual > 0.04 > true.unexplained  # noise is left, and counts for nothing
    assert true.comparison.whole.in_time > 0.99 and true.comparison.whole.cosine > 0.95
    assert wrong.verdict.reason != "explained" and wrong.unexplained > 5 * true.unexplained
    assert len(wrong.comparison.shots) == 5 and wrong.predicted.shape == observed.traces.shape
    assert f"{wrong.unexplained:.0%}" in wrong.verdict.detail


def test_ground_far_too_slow_is_not_usable(observed: Observed) -> None:
    (slow,) = check_models(observed, np.full((1, 70, 70), 1000.0, np.float32), boundary=ABSORBING)
    assert not slow.verdict.usable and slow.verdict.reason == "cycle_skipped"


def test_where_traces_share_nothing_no_figure_is_given(observed: Observed) -> None:
    """One live trace has no neighbour: 0 would be the figure of a true model."""
    alone = replace(observed, live=np.arange(FRAME.receivers) == np.full((5, 1), 20))
    (check,) = check_models(alone, TRUE[None], boundary=ABSORBING)
    assert np.isnan(check.comparison.whole.unexplained) and check.unexplained == np.inf
    assert all(np.isnan(shot.unexplained) for shot in check.comparison.shots)
    assert not check.verdict.usable and check.verdict.reason == "no_signal"


def test_a_free_surface_is_found() -> None:
    record = noisy(simulate(TRUE, boundary=FREE_SURFACE), 20)
    found = list(check_models(Observed.of(prepare(record)), np.stack([WRONG, TRUE, TRUE])))
    assert all(check.free_surface for check in found)
    assert found[1].verdict.reason == found[2].verdict.reason == "explained"
    assert found[1].comparison == found[2].comparison


def test_a_shift_of_more_than_half_a_period_fails_the_windows(observed: Observed) -> None:
    hz = lowest_usable_hz(observed)
    assert 4 <= hz <= 6
    for share, in_time in ((0.3, True), (0.7, False)):
        late = np.roll(observed.traces, round(share / (hz * FRAME.dt_s)), axis=1)
        found = compare(observed, late, hz)
        assert (found.whole.in_time > 0.9) == in_time
        lag_s = float(np.nanmedian(found.lag_s)) if in_time else np.nan
        assert np.isnan(lag_s) or lag_s == pytest.approx(-share / hz, abs=0.01)
    same = compare(observed, observed.traces, hz).whole
    assert (same.residual, same.unexplained, same.in_time) == (0, 0, 1) and same.phase_rad < 1e-9
    assert same.cosine == pytest.approx(1)


def test_dead_traces_are_ignored(observed: Observed) -> None:
    live = observed.live.copy()
    live[:, ::3] = False
    traces = np.where(live[:, None], observed.traces, np.float32(0))
    (whole,) = check_models(observed, TRUE[None], boundary=ABSORBING)
    (some,) = check_models(replace(observed, traces=traces, live=live), TRUE[None], boundary=ABSORBING)
    assert some.verdict.reason == "explained"
    assert some.unexplained == pytest.approx(whole.unexplained, abs=0.01)
    assert np.isnan(some.comparison.phase_rad[:, ::3]).all() and not some.predicted[:, :, ::3].any()
    assert np.isnan(some.comparison.lag_s[:, ::3]).all()


def test_noise_alone_has_nothing_to_follow() -> None:
    rng = np.random.default_rng(2)
    noise = Observed.of(prepare(rng.standard_normal((1, *FRAME.gather_shape), dtype=np.float32)))
    (check,) = check_models(noise, TRUE[None], boundary=ABSORBING)
    assert check.verdict.reason == "no_signal" and not check.verdict.usable


def test_what_is_stopped_is_not_predicted(observed: Observed) -> None:
    asked: list[int] = []

    def between() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_models(observed, np.stack([TRUE] * 6), between=between)
    assert len(asked) == 3


def test_models_far_off_do_not_decide_on_the_surface(observed: Observed) -> None:
    """A record without a free surface, beside two wrong models."""
    others = generate("Style-A", 2, np.random.default_rng(1))
    found = check_models(observed, np.concatenate([others, TRUE[None]]))
    assert not found[2].free_surface and found[2].verdict.reason == "explained"
    assert not any(each.free_surface for each in check_models(observed, others))


def test_a_free_surface_has_to_explain_clearly_more_to_ground_of_one_velocity_too() -> None:
    """Two records without one, which a straight line explains better with one: a diapir's by little, a thrust's not."""
    line = np.repeat(np.linspace(1600, 4200, 70, dtype=np.float32)[:, None], 70, axis=1)[None]
    drawn, kinds = mixed(12, 951, BROAD_FAMILIES)
    assert (kinds[0], kinds[10]) == ("Diapir", "Thrust")
    little, much = (Observed.of(prepare(simulate(drawn[number], boundary=ABSORBING))) for number in (0, 10))
    without, below = (check_models(little, line, boundary=each)[0] for each in (ABSORBING, FREE_SURFACE))
    assert below.unexplained < 0.95 * without.unexplained
    assert not check_models(little, line)[0].free_surface
    assert check_models(much, line)[0].free_surface and not has_free_surface(much, line)
