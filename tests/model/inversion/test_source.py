"""The source estimated from a record: any wavelet, gain, sign and delay, but not the ground."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.signal import hilbert

from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import generate
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.source import Source, estimate_source, folded_wavelet, probing_wavelet
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate
from seisbind.model.waves.wavelet import band_wavelet, ricker

pytest.importorskip("deepwave")
FRAME = OPENFWI_FRAME
MODELS = np.concatenate([generate("FlatFault-B", 1, np.random.default_rng(n)) for n in (1, 2)])
RICKER = ricker(15, 0.001)
WAVELETS = {
    "10 Hz": ricker(10, 0.001),
    "air gun": band_wavelet(6, 30, 0.001, slopes=(2, 3), impulsive=True, delay_s=0.005),
    "turned by 90 degrees, -3 times": -3 * np.imag(hilbert(RICKER)),
    "60 ms late": np.concatenate([np.zeros(60, np.float32), RICKER]),
}


def residual(observed: Observed, made: np.ndarray) -> float:
    return float(np.sqrt(np.square(made - observed.traces).sum() / np.square(observed.traces).sum()))


@pytest.mark.filterwarnings("ignore::seisbind.model.waves.wavefield.GridDispersionWarning")
@pytest.mark.parametrize("name", WAVELETS)
def test_the_source_is_found(name: str) -> None:
    observed = Observed.of(prepare(simulate(MODELS[:1], wavelet=WAVELETS[name].astype(np.float32))))
    wavelet = torch.from_numpy(probing_wavelet(observed))
    right, wrong = Forward(observed.shot_x_m, FRAME)(torch.from_numpy(MODELS), wavelet).numpy()
    assert residual(observed, estimate_source(observed, right)[1]) < 0.03
    assert residual(observed, estimate_source(observed, wrong)[1]) > 0.3  # the filter does not absorb the ground


@pytest.mark.filterwarnings("ignore::seisbind.model.waves.wavefield.GridDispersionWarning")
@pytest.mark.parametrize("name", ["60 ms late"])
def test_predicted_with_what_it_was_found_to_be_the_source_is_found_better(name: str) -> None:
    observed = Observed.of(prepare(simulate(MODELS[:1], wavelet=WAVELETS[name].astype(np.float32))))
    forward, models = Forward(observed.shot_x_m, FRAME), torch.from_numpy(MODELS)
    wavelet, left = probing_wavelet(observed), list[float]()
    for _ in range(2):
        right, wrong = forward(models, torch.from_numpy(wavelet)).numpy()
        source, made = estimate_source(observed, right)
        left.append(residual(observed, made))
        wavelet = folded_wavelet(source, wavelet, FRAME)
    assert left[1] < 0.8 * left[0]
    assert residual(observed, estimate_source(observed, wrong)[1]) > 0.3  # it does not absorb the ground either
    assert len(wavelet) * FRAME.dt_s * FRAME.peak_hz == pytest.approx(5.1, abs=0.1)


def test_a_filter_is_linear_and_gradients_flow_through_it() -> None:
    source = Source(np.array([0.0, 0.0, 0.0, 2.0, 0.0]))  # twice, a row later
    records = torch.randn((2, 3, 50, 4), generator=torch.Generator().manual_seed(0)).requires_grad_()
    made = source.apply(records)
    torch.testing.assert_close(made[..., 1:, :], 2 * records[..., :-1, :])
    made[0, 0, 10, 0].backward()
    assert records.grad is not None and records.grad[0, 0, 9, 0] == pytest.approx(2)


def test_a_model_from_which_nothing_comes_back_has_no_source() -> None:
    observed = Observed.of(prepare(simulate(MODELS[:1])))
    source, made = estimate_source(observed, np.zeros_like(observed.traces))
    assert not source.filter.any() and not made.any()
