"""Full-waveform inversion on a small frame: what it is made of, and what it does as a whole."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.signal import butter, sosfiltfilt

from seisbind.model.errors import InvalidConfig, InvalidVelocityModel
from seisbind.model.frame import Frame
from seisbind.model.ground.families import generate
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed, noise_rms
from seisbind.model.inversion.refined import RefineConfig
from seisbind.model.inversion.refinement import Refinement
from seisbind.model.inversion.regularise import Roughness
from seisbind.model.inversion.sensitivity import COARSE, FINE, Sensitivity
from seisbind.model.inversion.source import Source
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import ABSORBING, FREE_SURFACE, Boundary, simulate
from seisbind.model.waves.wavelet import ricker

pytest.importorskip("deepwave")
Float32 = NDArray[np.float32]

SMALL = Frame(
    depth_cells=26, x_cells=30, cell_m=10.0, velocity_m_s=(1500.0, 3500.0), receivers=30, receiver_spacing_m=10.0,
    shot_x_m=(0.0, 140.0, 290.0), samples=110, dt_s=0.004, record_samples=440, record_dt_s=0.001, peak_hz=18.0,
    name="small",
)  # fmt: skip
CONFIG = RefineConfig(iterations=9, bands=(0.5, 1.0))


def layered() -> Float32:
    """Three layers."""
    model = np.full(SMALL.velocity_shape, 1700.0, np.float32)
    model[8:], model[16:] = 2100.0, 2600.0
    return model


def start() -> Float32:
    """A straight line through them."""
    return np.repeat(np.linspace(1600, 2500, SMALL.depth_cells, dtype=np.float32)[:, None], SMALL.x_cells, axis=1)


@pytest.fixture(scope="module")
def observed() -> Observed:
    """By OpenFWI's operator, with a gain that nothing is told of, and a dead trace."""
    record = prepare(3.7 * simulate(layered(), frame=SMALL, engine="openfwi"), SMALL.survey, frame=SMALL)
    record.traces[:, :, :, 9] = 0
    record.live[:, :, 9] = False
    return Observed.of(record)


def finished(refinement: Refinement) -> Refinement:
    while not refinement.done:
        refinement.step()
    return refinement


def starts() -> Float32:
    """Two; the first is hopeless."""
    return np.stack([np.full_like(start(), 3300), start()])


@pytest.fixture(scope="module")
def refined(observed: Observed) -> Refinement:
    return finished(Refinement.begin(observed, starts(), CONFIG))


@pytest.mark.parametrize("boundary", [ABSORBING, FREE_SURFACE], ids=["absorbing", "free surface"])
@pytest.mark.parametrize("cells", [COARSE, FINE], ids=["coarse", "fine"])
def test_the_jacobian_is_the_change_of_the_record(cells: tuple[int, int], boundary: Boundary) -> None:
    """Of blocks within the map, at low frequencies, against the difference of two records."""
    wavelet = ricker(8.0, SMALL.dt_s)
    sensitivity = Sensitivity(np.asarray(SMALL.shot_x_m, np.float32), SMALL, cells=cells, boundary=boundary)
    hz, model = sensitivity.frequency_hz, np.full(SMALL.velocity_shape, 2000.0)
    unfiltered = Source(np.eye(1, 11, 5)[0])
    jacobian = sensitivity.jacobian(model, wavelet, unfiltered, torch.exp(-((hz / 18) ** 4)))
    blocks = np.zeros(sensitivity.blocks.shape)
    blocks[10 // cells[0] : 14 // cells[0], 12 // cells[1] : 18 // cells[1]] = 10.0
    predicted = (jacobian @ torch.from_numpy(blocks.ravel()).float()).transpose(1, 2).numpy()
    both = torch.from_numpy(np.stack([model, model + sensitivity.blocks.spread(blocks)]))
    made = Forward(SMALL.shot_x_m, SMALL, boundary=boundary)(both, torch.from_numpy(wavelet)).numpy()
    change = made[1] - made[0]
    size = 1024
    response = np.exp(-((np.fft.rfftfreq(size, SMALL.dt_s) / 18) ** 4))[None, :, None]
    change = np.fft.irfft(np.fft.rfft(change, size, axis=1) * response, size, axis=1)[:, : SMALL.samples]
    change = change[:, :: sensitivity.stride, sensitivity.receivers]
    assert np.sum(predicted * change) > 0.98 * np.linalg.norm(predicted) * np.linalg.norm(change)
    assert abs(np.linalg.norm(predicted) / np.linalg.norm(change) - 1) < 0.1


def below_a_free_surface(truth: Float32) -> Observed:
    """A record of a model."""
    record = simulate(truth, frame=SMALL, boundary=FREE_SURFACE)
    return Observed.of(prepare(record, SMALL.survey, frame=SMALL))


@pytest.mark.parametrize("hopeless", [False, True], ids=["near", "beside a hopeless one"])
def test_the_surface_is_that_of_the_record(observed: Observed, hopeless: bool) -> None:
    models = starts() if hopeless else start()[None]
    for record, free in ((observed, False), (below_a_free_surface(layered()), True)):
        assert bool(Refinement.begin(record, models, CONFIG).state()["free_surface"]) is free
        forced = Refinement.begin(record, models, replace(CONFIG, free_surface=not free))
        assert bool(forced.state()["free_surface"]) is not free


def test_below_a_free_surface_it_is_taken_up_with_one_and_an_older_state_without() -> None:
    config = RefineConfig(iterations=3, bands=(0.5, 1.0))
    begun = Refinement.begin(below_a_free_surface(layered()), start()[None], config)
    begun.step()
    state = begun.state()
    again = finished(Refinement.resume(below_a_free_surface(layered()), config, state))
    whole, other = finished(begun).result(), again.result()
    assert whole.free_surface and other.free_surface
    np.testing.assert_array_equal(other.velocity, whole.velocity)
    np.testing.assert_array_equal(other.residual, whole.residual)
    np.testing.assert_array_equal(other.high, whole.high)
    assert whole.residual_after < 0.7 * whole.residual_before
    assert state.pop("free_surface")
    older = Refinement.resume(below_a_free_surface(layered()), config, state)
    assert not bool(older.state()["free_surface"])


@pytest.mark.long
def test_below_a_free_surface_the_ground_is_found_with_one_and_not_without() -> None:
    """Of a drawn model, from a smooth one."""
    truth = generate("CurveVel-A", 1, np.random.default_rng(3), frame=SMALL)
    smooth = gaussian_filter(truth[0], 6, mode="nearest")
    record, config = below_a_free_surface(truth), RefineConfig(iterations=10, bands=(0.5, 1.0, 1.5))
    chosen, forced = (
        finished(Refinement.begin(record, smooth[None], each)).result()
        for each in (config, replace(config, free_surface=False))
    )
    assert chosen.free_surface and not forced.free_surface
    assert chosen.residual_after < 0.1 * forced.residual_after
    errors = [float(np.abs(each - truth[0]).mean()) for each in (smooth, forced.velocity, chosen.velocity)]
    assert errors[2] < 0.7 * min(errors[:2])


def test_layers_come_out_of_a_straight_line(observed: Observed) -> None:
    refined = finished(Refinement.begin(observed, start()[None], RefineConfig(iterations=12, bands=(0.5, 1.0))))
    before, after = (np.abs(model - layered()).mean() for model in (start(), refined.velocity))
    assert after < 0.5 * before
    result = refined.result()
    assert len(result.residual) == 12
    assert result.residual[-1] < 0.4 * result.residual[0]
    assert (result.low <= result.velocity).all() and (result.velocity <= result.high).all()
    assert result.illumination.min() > 0 and result.illumination.max() <= 1
    assert result.illumination[:4].mean() > 2 * result.illumination[-4:].mean()
    with torch.no_grad():  # the wavelet is that of the record
        made = Forward(observed.shot_x_m, SMALL)(
            torch.from_numpy(result.velocity[None]), torch.from_numpy(result.source)
        )  # fmt: skip
    left = (made[0].numpy() - observed.traces) * observed.live[:, None]
    assert np.linalg.norm(left) < 1.3 * result.residual[-1] * np.linalg.norm(observed.traces)


def test_the_better_start_is_gone_on_from(refined: Refinement) -> None:
    result = refined.result()
    assert result.start == 1 and len(result.residual) == CONFIG.iterations
    assert result.residual_after == pytest.approx(result.residual[-1], rel=1e-3)
    assert result.residual_after < 0.5 * result.residual_before < 0.5 * result.residual[0]  # which is the other start's


@pytest.mark.parametrize(("iterations", "stages"), [(1, ["up to"]), (3, ["start 1", "start 2", "up to"])])
def test_few_iterations_try_each_start_alike(observed: Observed, iterations: int, stages: list[str]) -> None:
    refinement = Refinement.begin(observed, starts(), RefineConfig(iterations=iterations, bands=(0.5, 1.0)))
    said = [refinement.step().stage for _ in range(iterations)]
    assert all(each.startswith(stage) for each, stage in zip(said, stages, strict=True))
    result = refinement.result()
    assert refinement.done and result.start == refinement.start == 1
    assert np.abs(result.velocity - layered()).mean() < np.abs(start() - layered()).mean()
    assert result.residual_after < result.residual_before


def test_within_the_trial_the_model_and_its_start_go_together(observed: Observed) -> None:
    """As a job whose time is used up ends."""
    refinement = Refinement.begin(observed, starts()[::-1], CONFIG)
    for _ in range(3):
        refinement.step()
    result = refinement.result()
    assert result.start == 0 and np.abs(result.velocity - start()).mean() < 300
    assert result.residual_after < result.residual_before
    assert result.residual_after < result.residual[-1]  # of the hopeless one, tried last


def test_a_frame_that_takes_too_much_memory_is_refused_with_the_number() -> None:
    text = (Path(__file__).parents[3] / "benchmarks" / "frames" / "kimberlina.json").read_text()
    frame = Frame.from_dict(json.loads(text))
    shots = np.asarray(frame.shot_x_m, np.float32)
    traces = np.zeros((len(shots), frame.samples, frame.receivers), np.float32)
    large = Observed(traces, np.ones((len(shots), frame.receivers), bool), shots, frame)
    with pytest.raises(InvalidConfig, match=r"142 x 402 cells, 9 shots\) takes 1\d\.\d GiB of memory; 4 GiB"):
        Refinement.begin(large, np.full((1, *frame.velocity_shape), 2000, np.float32), CONFIG)


def test_an_interface_is_found_to_the_cell(observed: Observed) -> None:
    """Between the two cells of a coarse block, from a model that has it a cell too deep."""
    truth = np.full(SMALL.velocity_shape, 1700.0, np.float32)
    truth[9:] = 2300.0
    record = Observed.of(prepare(simulate(truth, frame=SMALL, engine="openfwi"), SMALL.survey, frame=SMALL))
    near = truth.copy()
    near[9] = 1700.0
    refined = finished(Refinement.begin(record, near[None], RefineConfig(iterations=3, bands=(1.5,))))
    assert np.abs(refined.velocity[9] - 2300).mean() < 150 and np.abs(refined.velocity[8] - 1700).mean() < 150


def test_it_never_ends_with_what_explains_less_than_its_start(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of low bands may: here each does."""
    monkeypatch.setattr(Refinement, "_gauss_newton", lambda self, model, band: (model + 300, 0.5, 0.5))
    result = finished(Refinement.begin(observed, start()[None], RefineConfig(iterations=2))).result()
    np.testing.assert_array_equal(result.velocity, start())
    assert result.residual_after == pytest.approx(result.residual_before, rel=1e-2)


def test_a_state_of_a_version_that_kept_no_best_model_is_taken_up(observed: Observed) -> None:
    begun = Refinement.begin(observed, start()[None], RefineConfig(iterations=2, bands=(0.5, 1.0)))
    begun.step()
    state = {name: array for name, array in begun.state().items() if name not in ("best", "least")}
    again = Refinement.resume(observed, begun.config, state)
    np.testing.assert_array_equal(again.velocity, begun.velocity)
    assert finished(again).result().residual_after == pytest.approx(finished(begun).result().residual_after, rel=1e-2)


@pytest.mark.parametrize("after", [3, 6], ids=["in the trial", "after it"])
def test_taken_up_again_it_gives_the_same_numbers(observed: Observed, refined: Refinement, after: int) -> None:
    begun = Refinement.begin(observed, starts(), CONFIG)
    for _ in range(after):
        begun.step()
    kept = io.BytesIO()
    np.savez(kept, **begun.state())  # type: ignore[arg-type]
    kept.seek(0)
    with np.load(kept, allow_pickle=False) as state:
        again = Refinement.resume(observed, CONFIG, {name: state[name] for name in state.files})
    assert not np.array_equal(again.velocity, refined.velocity)
    finished(again)
    np.testing.assert_array_equal(again.velocity, refined.velocity)
    np.testing.assert_array_equal(again.result().residual, refined.result().residual)


@pytest.mark.long
def test_a_prior_holds_where_the_record_says_little_and_is_kept_with_the_state(observed: Observed) -> None:
    """Its mean is off by as much at the top, where waves say better, as at the bottom."""
    config = RefineConfig(iterations=4, bands=(0.5, 1.0))
    mean = start() + np.float32(300)
    prior = np.stack([mean, np.full_like(mean, 50)])
    without = finished(Refinement.begin(observed, start()[None], config))
    begun = Refinement.begin(observed, start()[None], config, prior=prior)
    begun.step()
    again = finished(Refinement.resume(observed, config, begun.state()))
    held = finished(begun)
    np.testing.assert_array_equal(again.velocity, held.velocity)
    np.testing.assert_array_equal(again.result().high, held.result().high)
    near = [np.abs(each.velocity - mean)[-4:].mean() for each in (held, without)]
    assert near[0] < 0.5 * near[1]
    assert np.abs(held.velocity - layered())[:8].mean() < 100
    sure, unsure = (each.result() for each in (held, without))
    assert (sure.high - sure.low)[-4:].mean() < (unsure.high - unsure.low)[-4:].mean()


@pytest.mark.parametrize("deviation", [0.0, np.nan])
def test_a_prior_that_is_none(observed: Observed, deviation: float) -> None:
    prior = np.stack([start(), np.full_like(start(), deviation)])
    with pytest.raises(InvalidVelocityModel, match="prior"):
        Refinement.begin(observed, start()[None], CONFIG, prior=prior)


def test_velocities_stay_within_the_frame_and_water_as_it_is(observed: Observed) -> None:
    outside = start()
    outside[12:], outside[:5] = 9000, 1480
    config = RefineConfig(iterations=2, bands=(1.0,), keep_m=50.0)
    result = finished(Refinement.begin(observed, outside[None], config)).result()
    kept = result.velocity
    assert kept[5:].min() >= SMALL.velocity_m_s[0] and kept.max() <= SMALL.velocity_m_s[1]
    np.testing.assert_array_equal(kept[:5], 1480)
    assert not np.array_equal(kept[5], start()[5])
    assert (result.low <= kept).all() and (kept <= result.high).all()


def test_what_a_filter_of_zero_phase_leaves_before_an_arrival_is_no_noise(observed: Observed) -> None:
    low_cut = butter(8, 0.27 * SMALL.peak_hz, "highpass", fs=1 / SMALL.dt_s, output="sos")
    traces = np.asarray(sosfiltfilt(low_cut, observed.traces, axis=1), np.float32)
    rms = float(np.sqrt(np.square(traces).mean()))
    early = float(np.sqrt(np.square(traces[0, :8, 12:]).mean()))  # 120 m away within 36 ms
    assert noise_rms(replace(observed, traces=traces)) < 0.02 * rms < 0.5 * early
    noise = np.random.default_rng(0).normal(0, 0.1 * rms, traces.shape).astype(np.float32)
    noisy = replace(observed, traces=(traces + noise) * observed.live[:, None])
    assert noise_rms(noisy) == pytest.approx(0.1 * rms, rel=0.1)


def test_dead_traces_have_no_noise(observed: Observed) -> None:
    """Of a record that is mostly dead, rms over all traces is less than over the live ones, which the noise is of."""
    live = np.zeros_like(observed.live)
    live[0, -8:] = live[1, :8] = live[2, :8] = True
    rms = float(np.sqrt(np.square(observed.traces.transpose(0, 2, 1)[live]).mean()))
    noise = np.random.default_rng(0).normal(0, 0.15 * rms, observed.traces.shape)
    part = replace(observed, traces=((observed.traces + noise) * live[:, None]).astype(np.float32), live=live)
    share = noise_rms(part) / float(np.sqrt(np.square(part.traces.transpose(0, 2, 1)[live]).mean()))
    assert share == pytest.approx(0.15, rel=0.1)
    refinement = Refinement.begin(part, start()[None], replace(CONFIG, free_surface=False))
    assert 1.1 * share < refinement.step().residual < 1.9 * share
    assert refinement.stopped is None


def test_it_stops_at_the_noise(observed: Observed) -> None:
    noise = np.random.default_rng(0).normal(0, np.abs(observed.traces).max(), observed.traces.shape)
    noisy = Observed((observed.traces + noise).astype(np.float32), observed.live, observed.shot_x_m, SMALL)
    assert noise_rms(noisy) == pytest.approx(noise.std(), rel=0.1)
    stopped = finished(Refinement.begin(noisy, layered()[None], CONFIG))
    assert stopped.stopped is not None and "noise" in stopped.stopped
    assert len(stopped.result().residual) < CONFIG.iterations
    with pytest.raises(InvalidConfig, match="done"):
        stopped.step()


@pytest.mark.parametrize("starts", [np.zeros((0, 26, 30)), np.ones((1, 70, 70)), np.full((1, 26, 30), np.nan)])
def test_starts_that_are_none(observed: Observed, starts: NDArray[Any]) -> None:
    with pytest.raises(InvalidVelocityModel):
        Refinement.begin(observed, starts.astype(np.float32), CONFIG)


def test_total_variation_keeps_an_interface_and_removes_what_ripples() -> None:
    clean = np.where(np.arange(20)[:, None] < 10, 2000.0, 3000.0) * np.ones((20, 15))
    rippled = clean + np.random.default_rng(1).normal(0, 20, clean.shape)
    change = Roughness((20, 15)).solve(np.eye(300) / 20**2, np.zeros(300), rippled.ravel(), 1 / 15)
    smooth = rippled + change.reshape(20, 15)
    assert np.abs(smooth - clean).mean() < 0.5 * np.abs(rippled - clean).mean()
    assert (smooth[10] - smooth[9]).mean() > 900
