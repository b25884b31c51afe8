"""Forward modelling for checks and inversions against `simulate` and `prepare`, which make what is observed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from seisbind.model.errors import InvalidConfig, InvalidGather
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import generate
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import ABSORBING, FREE_SURFACE, Boundary, simulate
from seisbind.model.waves.wavelet import ricker

pytest.importorskip("deepwave")
FRAME = OPENFWI_FRAME
WAVELET = torch.from_numpy(ricker(FRAME.peak_hz, FRAME.record_dt_s)[::4].copy())
MODELS = generate("CurveFault-A", 2, np.random.default_rng(5))


def rms(a: np.ndarray) -> float:
    return float(np.sqrt(np.square(a, dtype=np.float64).mean()))


@pytest.mark.parametrize("boundary", [ABSORBING, FREE_SURFACE], ids=["absorbing", "free surface"])
def test_rows_are_those_of_a_prepared_record(boundary: Boundary) -> None:
    observed = Observed.of(prepare(simulate(MODELS[:1], boundary=boundary)))
    made = Forward(observed.shot_x_m, FRAME, boundary=boundary)(torch.from_numpy(MODELS), WAVELET).numpy()
    assert made.shape == (2, 5, 250, 70) and made.dtype == np.float32
    assert rms(made[0] - observed.traces) < 0.005 * rms(observed.traces)
    a_ms_late = np.diff(observed.traces, axis=1) / 4  # what a misalignment of 1 ms would leave
    assert rms(a_ms_late) > 0.05 * rms(observed.traces)


def test_a_shot_between_two_cells_is_heard_between_those_of_both() -> None:
    """At distances of many cells; and a shot beside the map is heard."""
    between, both = ([204.0, -7.0], [200.0, 210.0, -7.0])
    made, cells = (Forward(x, FRAME)(torch.from_numpy(MODELS[:1]), WAVELET)[0].numpy() for x in (between, both))
    np.testing.assert_allclose(made[0], 0.6 * cells[0] + 0.4 * cells[1], atol=1e-4 * np.abs(cells).max())
    assert rms(made[1]) > 0.2 * rms(cells[0])


def test_receivers_need_not_lie_on_cells() -> None:
    frame = replace(FRAME, receivers=44, receiver_spacing_m=15.0, shot_x_m=(0.0, 600.0))
    velocity = torch.full((1, *frame.velocity_shape), 2000.0)
    made = Forward([300.0], frame)(velocity, WAVELET)[0, 0].numpy()
    np.testing.assert_allclose(made[:, 16], made[:, 24], atol=1e-3 * np.abs(made).max())  # both 60 m away
    assert made.shape == (250, 44)


def test_the_gradient_is_that_of_the_record() -> None:
    """With respect to velocity, against a difference of two records."""
    forward = Forward([340.0], FRAME)
    velocity = torch.from_numpy(MODELS[:1]).requires_grad_()
    target = forward(torch.from_numpy(MODELS[1:]), WAVELET)
    misfit = (forward(velocity, WAVELET) - target).square().sum()
    misfit.backward()
    direction = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 70, 70)).astype(np.float32))
    direction = torch.nn.functional.avg_pool2d(direction, 9, 1, 4)
    step = 5 / direction.abs().max()
    with torch.no_grad():
        ends = [(forward(velocity + sign * step * direction, WAVELET) - target).square().sum() for sign in (1, -1)]
    assert velocity.grad is not None
    assert (velocity.grad * direction).sum().item() == pytest.approx(
        ((ends[0] - ends[1]) / (2 * step)).item(), rel=0.05
    )


def test_shots_without_a_live_trace_are_left_out() -> None:
    gathers = simulate(MODELS[:1])
    gathers[0, 1] = 0
    observed = Observed.of(prepare(gathers))
    assert observed.shot_x_m.tolist() == [0, 340, 520, 690] and observed.traces.shape == (4, 250, 70)
    with pytest.raises(InvalidGather, match="live"):
        replace(observed, live=np.zeros_like(observed.live))
    with pytest.raises(InvalidGather, match="shots"):
        replace(observed, shot_x_m=observed.shot_x_m[:2])


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(InvalidConfig, match="CUDA"):
        Forward([0.0], FRAME, device="cuda")
