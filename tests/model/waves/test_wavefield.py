"""Both engines against physics: analytic waveforms, symmetries, image sources; and against OpenFWI's own files."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from seisbind.model.errors import InvalidConfig, InvalidSurvey, InvalidVelocityModel, MissingExtra
from seisbind.model.frame import Survey
from seisbind.model.survey.preparation import OPENFWI
from seisbind.model.waves.openfwi_operator import Sponge, propagate
from seisbind.model.waves.wavefield import (
    ABSORBING,
    FREE_SURFACE,
    Boundary,
    Engine,
    Float32,
    GridDispersionWarning,
    simulate,
)
from seisbind.model.waves.wavelet import ricker

REFERENCE = Path(__file__).parents[4] / "shared" / "data" / "operator_reference.npz"
ENGINES: tuple[Engine, ...] = get_args(Engine)
V = 2500.0
both = pytest.mark.parametrize("engine", ENGINES)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def line(shots: list[float], receivers: list[float], **other: Any) -> Survey:
    return Survey(shot_x_m=tuple(shots), receiver_x_m=tuple(receivers), dt_s=0.001, peak_hz=15.0, **other)


def relative_rms(ours: Float32, truth: Any) -> float:
    return float(np.sqrt(np.square(ours - truth, dtype=np.float64).sum() / np.square(truth, dtype=np.float64).sum()))


def layered(seed: int = 0, shape: tuple[int, int] = (40, 50)) -> Float32:
    """A dipping contrast and a bump: no symmetry left, (depth, x)."""
    rng = np.random.default_rng(seed)
    depth, x = np.mgrid[: shape[0], : shape[1]]
    below = depth > 14 + 0.2 * x + 3 * np.sin(x / 6)
    return (2000 + 900 * below + 100 * rng.random(shape)).astype(np.float32)


def waveform(distance_m: float, samples: int, *, v: float = V, dt_s: float = 0.001, cell_m: float = 10.0) -> Any:
    """Pressure of a line source in a homogeneous medium, (time,).

    ``p_tt = v^2 (laplacian(p) + w delta dx^2)``, so ``p = dx^2 / (2 pi) int w(t - r/v cosh u) du`` (the 2-D Green's
    function ``1 / (2 pi sqrt(t^2 - r^2/v^2))``, e.g. Aki & Richards, with t = r/v cosh u).
    """
    delay = 0.5 * (len(ricker(15, dt_s)) - 1) * dt_s
    t = (np.arange(samples) + 1) * dt_s
    u = np.linspace(0, 6, 6001)
    tau = t[:, None] - distance_m / v * np.cosh(u)
    a2 = np.square(np.pi * 15 * (tau - delay))
    w = np.where((tau >= 0) & (tau <= 2 * delay), (1 - 2 * a2) * np.exp(-a2), 0)
    return cell_m**2 / (2 * np.pi) * np.trapezoid(w, u, axis=1)


def test_ricker_is_openfwis() -> None:
    w = ricker(15, 0.001)
    assert w.shape == (147,) and w.dtype == np.float32 and w.argmax() == 73 and w[73] == 1
    np.testing.assert_allclose(w, w[::-1])
    assert abs(w[0]) < 3e-4
    assert ricker(15, 0.001, 401).argmax() == 200
    spectrum = np.abs(np.fft.rfft(ricker(22, 0.001), 10_000))
    assert spectrum.argmax() * 0.1 == pytest.approx(22, abs=0.3)
    with pytest.raises(InvalidSurvey, match=r"62\.5 Hz"):
        ricker(100, 0.004)


@both
def test_homogeneous_waveform_time_amplitude_and_decay(engine: Engine) -> None:
    offsets = [100.0, 200.0, 300.0, 400.0]
    survey = line([50.0], [50 + o for o in offsets], source_depth_m=200.0, receiver_depth_m=200.0)
    gather = simulate(np.full((40, 50), V), survey=survey, engine=engine, samples=330)[0, 0]
    truth = np.stack([waveform(o, 330) for o in offsets], axis=1)
    assert relative_rms(gather, truth) < 0.03
    for trace, analytic, offset in zip(gather.T, truth.T, offsets, strict=True):
        assert abs(int(trace.argmax()) - int(analytic.argmax())) <= 1
        # half a period of the half-integrated wavelet apart from its own peak at 73 ms, later for longer paths
        assert trace.argmax() == pytest.approx(73 + offset / V * 1000, abs=8)
    peaks = gather.max(axis=0)
    np.testing.assert_allclose(peaks * np.sqrt(offsets) / (peaks[-1] * 20), 1, atol=0.03)


@both
def test_first_sample_is_the_source_term(engine: Engine) -> None:
    v = layered()
    gather = simulate(v, survey=line([100.0, 230.0], [100.0, 230.0]), engine=engine, samples=3)[0]
    w0 = float(ricker(15, 0.001)[0])
    for shot, column in ((0, 10), (1, 23)):
        assert gather[shot, 0, shot] == pytest.approx((float(v[1, column]) * 0.001) ** 2 * w0, rel=1e-5)
    assert gather[0, 0, 1] == 0


@pytest.mark.parametrize(("engine", "within"), [("openfwi", 1e-4), ("deepwave", 2e-3)])
def test_reciprocity(engine: Engine, within: float) -> None:
    v = layered()
    there = simulate(v, survey=line([30.0], [420.0], receiver_depth_m=250.0), engine=engine, samples=500)[0, 0, :, 0]
    back = line([420.0], [30.0], source_depth_m=250.0)
    again = simulate(v, survey=back, engine=engine, samples=500)[0, 0, :, 0]
    assert v[25, 42] > 1.2 * v[1, 3]  # (v dt)^2 of the source's cell is what makes the two alike
    assert relative_rms(there, again) < within


@both
def test_mirror_symmetry(engine: Engine) -> None:
    v = layered()
    end = 10.0 * (v.shape[1] - 1)
    spots = [0.0, 110.0, 300.0, 490.0]
    gather = simulate(v, survey=line([120.0], spots), engine=engine, samples=400)
    mirror = line([end - 120.0], [end - x for x in reversed(spots)])
    mirrored = simulate(v[:, ::-1], survey=mirror, engine=engine, samples=400)
    assert relative_rms(mirrored[..., ::-1], gather) < 1e-5


@both
def test_linear_in_the_wavelet(engine: Engine) -> None:
    v, survey = layered(), line([120.0], [0.0, 300.0])
    a, b = ricker(15, 0.001), ricker(20, 0.001, 147)
    of_a, of_b, of_both = (
        simulate(v, survey=survey, engine=engine, wavelet=w, samples=300) for w in (a, b, 3 * a - 2 * b)
    )
    assert relative_rms(3 * of_a - 2 * of_b, of_both) < 1e-5


@both
def test_reflection_arrives_when_the_image_source_says(engine: Engine) -> None:
    survey = line([250.0], [250.0, 350.0, 450.0])
    half_space = np.full((60, 60), V, dtype=np.float32)
    layer = half_space.copy()
    layer[31:] = 3200  # 29.5 cells under the source, half way between the last slow and the first fast cell
    direct = simulate(half_space, survey=survey, engine=engine, samples=450)[0, 0]
    reflected = simulate(layer, survey=survey, engine=engine, samples=450)[0, 0] - direct
    for trace, offset in zip(reflected.T, (0, 100, 200), strict=True):
        image = waveform(float(np.hypot(offset, 590)), 450)
        assert abs(int(trace.argmax()) - int(image.argmax())) <= 3
        incident = np.arctan(offset / 590)
        refracted = np.arcsin(3200 / V * np.sin(incident))
        up, down = 3200 * np.cos(incident), V * np.cos(refracted)  # impedances of constant density
        assert trace.max() / image.max() == pytest.approx((up - down) / (up + down), rel=0.05)


@both
def test_free_surface_is_a_negative_image_source(engine: Engine) -> None:
    survey = line([150.0], [200.0, 250.0], source_depth_m=150.0, receiver_depth_m=100.0)
    v = np.full((50, 50), V)
    free = simulate(v, survey=survey, engine=engine, boundary=FREE_SURFACE, samples=320)[0, 0]
    without = simulate(v, survey=survey, engine=engine, samples=320)[0, 0]
    ghost = np.stack([-waveform(float(np.hypot(dx, 250)), 320) for dx in (50, 100)], axis=1)
    assert relative_rms(free - without, ghost) < 0.03


@pytest.mark.parametrize("boundary", [ABSORBING, FREE_SURFACE])
def test_the_engines_agree(boundary: Boundary) -> None:
    survey = line([0.0, 240.0], [0.0, 120.0, 490.0])
    ours, theirs = (simulate(layered(3), survey=survey, engine=e, boundary=boundary, samples=600) for e in ENGINES)
    assert relative_rms(ours, theirs) < 0.01


@both
def test_positions_beside_the_map(engine: Engine) -> None:
    wide = np.pad(layered(), ((0, 0), (20, 20)), mode="edge")
    beside = simulate(layered(), survey=line([-100.0], [-50.0, 520.0]), engine=engine, samples=250)
    inside = simulate(wide, survey=line([100.0], [150.0, 720.0]), engine=engine, samples=250)
    assert relative_rms(beside, inside) < 0.01  # the sponge of openfwi starts where the map ends


@both
def test_a_map_answers_alike_alone_and_in_a_stack(engine: Engine) -> None:
    survey = line([120.0], [0.0, 300.0])
    stack = np.stack([layered(1), layered(2), layered(1) + 500])
    gathers = simulate(stack, survey=survey, engine=engine, samples=200)
    assert gathers.shape == (3, 1, 200, 2) and gathers.dtype == np.float32
    for v, gather in zip(stack, gathers, strict=True):
        np.testing.assert_array_equal(simulate(v, survey=survey, engine=engine, samples=200)[0], gather)
    assert simulate(stack[:0], survey=survey, engine=engine).shape == (0, 1, 1000, 2)


def test_another_sampling_interval() -> None:
    survey, v = line([120.0], [0.0, 300.0]), layered()
    fine = simulate(v, survey=survey, samples=400)[0, 0]
    coarse = simulate(v, survey=replace(survey, dt_s=0.004), wavelet=ricker(15, 0.001)[1::4], samples=100)[0, 0]
    assert relative_rms(coarse[:-1], fine[4::4][: len(coarse) - 1]) < 0.01  # both at (n + 1) 4 ms + 1 ms
    half = simulate(v, survey=replace(survey, dt_s=0.0005), engine="openfwi", samples=800)[0, 0]
    assert relative_rms(half[1::2], fine) < 0.02


def by_numpy(v: Float32, sponge: Sponge, source: tuple[int, int], receiver: tuple[int, int], samples: int) -> Any:
    """The operator as openly as it can be written, whole frame, float64, (time,)."""
    top, side = sponge.pads()
    padded = np.pad(v.astype(np.float64), ((top, side), (side, side)), mode="edge")
    a = np.square(padded * 0.001 / 10)
    k = sponge.damping(v.shape, vmin_m_s=float(v.min()), dt_s=0.001, cell_m=10.0)
    p, before, out = np.zeros_like(padded), np.zeros_like(padded), []
    for n in range(samples):
        around = sum(
            c * np.roll(p, s, axis) for axis in (0, 1) for c, far in ((4 / 3, 1), (-1 / 12, 2)) for s in (far, -far)
        )
        p, before = (2 - 5 * a - k) * p - (1 - k) * before + a * around, p
        if n < 147:
            p[source[0] + top, source[1] + side] += (padded[source[0] + top, source[1] + side] * 0.001) ** 2 * ricker(
                15, 0.001
            )[n]
        out.append(p[receiver[0] + top, receiver[1] + side])
    return np.array(out)


@pytest.mark.parametrize(("cells", "strength", "samples"), [(11, 1.0, 500), (30, 0.2, 700), (2, 0.0, 300)])
def test_skipping_cells_changes_nothing(cells: int, strength: float, samples: int) -> None:
    v, sponge = layered(5, (37, 50)), Sponge(cells, strength)
    gather = propagate(
        v,
        wavelet=ricker(15, 0.001),
        source_cells=[(1, 4)],
        receiver_cells=[(1, 44)],
        samples=samples,
        dt_s=0.001,
        cell_m=10.0,
        sponge=sponge,
    )
    assert relative_rms(gather[0, :, 0], by_numpy(v, sponge, (1, 4), (1, 44), samples)) < 1e-4


def test_weaker_absorption_returns_more() -> None:
    v, survey = layered(), line([120.0], [0.0, 300.0])
    quiet = simulate(v, survey=survey, engine="openfwi", samples=700)
    left = [
        relative_rms(simulate(v, survey=survey, engine="openfwi", boundary=b, samples=700), quiet)
        for b in (Boundary(80), Boundary(40), Boundary(40, 0.3))
    ]
    assert left == sorted(left) and left[-1] > 0.05
    narrow = simulate(v, survey=survey, boundary=Boundary(5), samples=700)
    assert 0.001 < relative_rms(narrow, simulate(v, survey=survey, samples=700)) < 0.2


@pytest.mark.skipif(not REFERENCE.exists(), reason="OpenFWI's files are not in the repository (CC BY-NC-SA)")
@pytest.mark.parametrize("number", range(6))
def test_openfwis_files(number: int) -> None:
    with np.load(REFERENCE) as stored:
        v, truth = stored["velocity"][number], stored["gather"][number, :, :999]
    assert relative_rms(simulate(v, engine="openfwi")[0, :, :999], truth) < 1e-4
    by_deepwave = simulate(v)[0, :, :999]
    assert relative_rms(by_deepwave[:, :600], truth[:, :600]) < 0.01
    assert relative_rms(by_deepwave, truth) < 0.033  # 0.0321 of map 0 is the frame that wraps around, not deepwave


def test_dispersion_is_said_with_numbers() -> None:
    survey = line([20.0], [50.0])
    with pytest.warns(GridDispersionWarning, match=r"Only 3\.1 cells per wavelength at 32 Hz and 1000 m/s"):
        simulate(np.full((8, 8), 1000.0), survey=survey, samples=5)
    simulate(np.full((8, 8), 1500.0), survey=survey, samples=5)  # OpenFWI's slowest: a warning would be an error


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"survey": line([12.5], [0.0])}, InvalidSurvey, r"12\.5 m lies 2\.5 m off"),
        ({"survey": line([0.0], [0.0], source_depth_m=400.0)}, InvalidSurvey, "0 to 390 m"),
        ({"survey": line([2000.0], [0.0])}, InvalidSurvey, "covers 0 to 490 m and its frame 200 m"),
        ({"survey": line([0.0], [0.0], source_depth_m=0.0), "boundary": FREE_SURFACE}, InvalidSurvey, "below a free"),
        ({"samples": 0}, InvalidSurvey, "0 samples"),
        ({"wavelet": []}, InvalidSurvey, "non-empty"),
        ({"wavelet": [np.nan]}, InvalidSurvey, "finite"),
        ({"cell_m": 0.0}, InvalidSurvey, "cell size of 0 m"),
        ({"engine": "spectral"}, InvalidConfig, "deepwave, openfwi"),
        ({"boundary": Boundary(strength=2.0)}, InvalidConfig, "no strength"),
        ({"engine": "openfwi", "device": "cuda"}, InvalidConfig, "runs on the CPU"),
        ({"velocity": np.full((40, 50), 7000.0), "engine": "openfwi"}, InvalidVelocityModel, r"0\.700.*0\.612.*0\.875"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], says: str) -> None:
    arguments: dict[str, Any] = {"velocity": layered(), "survey": line([0.0], [0.0]), "samples": 5} | change
    with pytest.raises(error, match=says):
        simulate(arguments.pop("velocity"), **arguments)


def test_refusals_of_boundaries_and_cells() -> None:
    with pytest.raises(InvalidConfig, match="1 cells"):
        Boundary(1)
    with pytest.raises(InvalidConfig, match="-1"):
        Boundary(strength=-1)
    with pytest.raises(InvalidSurvey, match="1001 cells"):
        Sponge(1001)
    good: dict[str, Any] = {"wavelet": [1.0], "samples": 2, "dt_s": 0.001, "cell_m": 10.0, "source_cells": [(1, 0)]}
    for cells, says in (
        ([(1, 200)], "x cells 200-200 of -120-169"),
        ([(40, 0)], "depth cells 40-40 of 0-39"),
        ([(1.0, 2.0)], "integers"),
    ):
        with pytest.raises(InvalidSurvey, match=says):
            propagate(layered(), receiver_cells=cells, **good)
    with pytest.raises(InvalidSurvey, match="free surface"):
        propagate(layered(), receiver_cells=[(0, 0)], sponge=Sponge(free_surface=True), **good)


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepwave", None)
    with pytest.raises(MissingExtra, match=r"pip install 'seisbind\[simulation\]'"):
        simulate(layered(), survey=line([0.0], [0.0]), samples=5)


def test_openfwi_line_is_the_default() -> None:
    assert simulate(layered(shape=(12, 70)), engine="openfwi", samples=2).shape == (1, 5, 2, 70)
    assert OPENFWI.peak_hz == 15
