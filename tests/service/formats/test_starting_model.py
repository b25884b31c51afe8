"""A starting model: on any grid the same ground, with its travel times, its water exact, its interval as bounds."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest

from seisbind.model.errors import InvalidQuery
from seisbind.service.formats.starting_model import MAX_COUNT, parse_start, starting_model
from seisbind.service.formats.velocity_model import VelocityModel, write

Z, X = np.mgrid[:40, :60] * 10.0
VALUE = np.where(Z < 200, 1800.0, 2600.0) + X * 0.5 + Z * 0.4
VALUE[:, 30:] += 200 * (Z[:, 30:] > 240)
MODEL = VelocityModel(
    VALUE.astype(np.float32), (VALUE - 300).astype(np.float32), (VALUE + 400).astype(np.float32), 10.0, x0_m=5000.0,
    range_m_s=(1700.0, 3100.0),
)  # fmt: skip


def start(model: VelocityModel = MODEL, **asked: object) -> VelocityModel:
    return starting_model(model, parse_start(**asked))  # type: ignore[arg-type]


def down(model: VelocityModel) -> np.ndarray:
    """Vertical travel times from the first row to the last, by column."""
    slowness = 1 / model.value.astype(np.float64)
    return np.asarray(model.step_z_m * ((slowness[1:] + slowness[:-1]) / 2).sum(axis=0))


def test_nothing_asked_nothing_changed() -> None:
    assert start() is MODEL
    same = start(grid="dx=10")
    np.testing.assert_allclose(same.value, MODEL.value, rtol=1e-6)
    assert (same.cell_m, same.dz_m, same.x0_m, same.known) == (10.0, None, 5000.0, None)


def test_on_a_finer_grid_nodes_are_kept_and_between_them_it_is_interpolated() -> None:
    fine = start(grid="dx=5,dz=2.5")
    assert fine.value.shape == (157, 119) and (fine.cell_m, fine.dz_m) == (5.0, 2.5)
    np.testing.assert_allclose(fine.value[::4, ::2], MODEL.value, rtol=1e-6)
    np.testing.assert_allclose(1 / fine.value[:, 1], (1 / fine.value[:, 0] + 1 / fine.value[:, 2]) / 2, rtol=1e-6)
    np.testing.assert_allclose(down(fine)[::2], down(MODEL), rtol=1e-6)


def test_a_part_of_it_lies_where_it_lay() -> None:
    part = start(grid="dx=10,x0=5100,z0=100,nx=7,nz=4")
    np.testing.assert_allclose(part.value, MODEL.value[10:14, 10:17], rtol=1e-6)
    assert (part.x0_m, part.depth0_m) == (5100.0, 100.0)


def test_a_coarser_grid_sees_what_lies_between_its_nodes() -> None:
    """A layer thinner than a step keeps its part of the travel time; nearest nodes would lose or double it."""
    thin = np.full((81, 4), 2000.0, np.float32)
    thin[42:45] = 4000.0
    model = VelocityModel(thin, None, None, 5.0)
    coarse = start(model, grid="dx=5,dz=40")
    assert coarse.value.shape == (11, 4)
    assert down(model)[0] < 0.197 < down(replace(model, value=np.full_like(thin, 2000.0)))[0]
    np.testing.assert_allclose(down(coarse), down(model), rtol=0.004)


def test_smoothing_keeps_travel_times_and_lowers_steps() -> None:
    smooth = start(smooth_m=30)
    assert np.abs(np.diff(smooth.value, axis=0)).max() < np.abs(np.diff(MODEL.value, axis=0)).max() / 4
    np.testing.assert_allclose(down(smooth)[:15], down(MODEL)[:15], rtol=0.003)  # away from the fault
    velocity_smoothed = np.mean(MODEL.value[15:25, 5])  # by velocity it would be off by more
    assert smooth.value[20, 5] < velocity_smoothed


@pytest.mark.parametrize("water", ["depth=60,velocity=1480", "velocity=1480"])
def test_water_is_exact_and_its_bottom_sharp(water: str) -> None:
    value = MODEL.value.copy()
    value[:6] = 1500 + 10 * np.random.default_rng(0).standard_normal((6, 60))
    low, high = value - 100, value + 100
    model = replace(MODEL, value=value.astype(np.float32), low=low.astype(np.float32), high=high.astype(np.float32))
    wet = start(model, water=water, smooth_m=40, grid="dx=10,dz=5")
    assert wet.low is not None and wet.high is not None
    for part in (wet.value, wet.low, wet.high):
        assert (part[:12] == 1480).all()  # slower than all ground of training
    assert (wet.value[12] > 1750).all()  # the water is not smeared into the ground
    np.testing.assert_allclose(wet.value[12], start(MODEL, smooth_m=40).value[6], rtol=0.02)


def test_water_follows_its_bottom() -> None:
    value = np.where(Z < 50 + X / 4, 1490.0, 2200.0).astype(np.float32)
    wet = start(VelocityModel(value, None, None, 10.0), water="velocity=1500", smooth_m=100)
    np.testing.assert_array_equal(wet.value == 1500, value == 1490)
    assert set(np.unique(wet.value)) == {1500.0, 2200.0}


def test_bounds_hold_the_model_and_stay_in_the_range_of_training() -> None:
    for model in (start(grid="dx=7"), start(grid="dx=7", smooth_m=60)):
        assert model.low is not None and model.high is not None
        assert (model.low <= model.value).all() and (model.value <= model.high).all()
        outside = (model.value < 1700) | (model.value > 3100)
        assert not (outside & (model.low < model.value) & (model.value < model.high)).any()
        assert (model.low >= np.minimum(1700, model.value)).all() and (
            model.high <= np.maximum(3100, model.value)
        ).all()
    bare = replace(MODEL, low=None, high=None)
    assert start(bare, smooth_m=60).interval is None


def test_outside_of_what_is_known_there_is_no_number_unless_asked_for() -> None:
    value, hole = MODEL.value.copy(), slice(20, 30)
    value[:, hole] = np.nan
    low, high = value - 100, value + 100
    model = replace(MODEL, value=value, low=low, high=high)
    grid = "dx=10,x0=4950,nx=70,nz=45"
    known = np.zeros((45, 70), bool)
    known[:40, 5:25] = known[:40, 35:65] = True
    left_out, extended = start(model, grid=grid, smooth_m=20), start(model, grid=grid, smooth_m=20, extend=True)
    for found in (left_out, extended):
        assert found.known is not None and np.array_equal(found.known, known)
    for part in (left_out.value, left_out.low, left_out.high):
        assert part is not None and np.array_equal(np.isfinite(part), known)
    assert extended.low is not None and extended.high is not None
    assert np.isfinite(extended.value).all()
    np.testing.assert_array_equal(extended.value[known], left_out.value[known])
    np.testing.assert_allclose(extended.value[:40, :5], np.repeat(extended.value[:40, 5:6], 5, axis=1))
    np.testing.assert_allclose(extended.value[40:, 10], extended.value[39, 10])
    inside = ~known & (extended.value > 1700) & (extended.value < 3100)  # nothing is known there but the range
    assert set(extended.low[inside]) == {1700.0} and set(extended.high[inside]) == {3100.0}


@pytest.mark.parametrize("format", ["npz", "npy", "segy", "nc"])
def test_every_format_holds_it(format: str) -> None:
    made = start(grid="dx=12.5,dz=4,x0=4900,nx=30", smooth_m=25)
    body = write(made, format, title="from a test")
    assert made.known is not None
    if format == "npz":
        with np.load(io.BytesIO(body), allow_pickle=False) as found:
            assert set(found) == {"velocity", "low", "high", "known", "dx", "dz", "x0", "depth0", "range", "units"}
            assert (found["dx"], found["dz"], found["x0"]) == (12.5, 4.0, 4900.0)
            assert found["range"].tolist() == [1700.0, 3100.0]
            np.testing.assert_array_equal(np.isnan(found["velocity"]), ~found["known"])
    elif format == "segy":
        assert len(body) == 3600 + 30 * (240 + 4 * len(made.value))
        assert int.from_bytes(body[3216:3218], "big") == 4000  # mm
        assert int.from_bytes(body[3600 + 180 : 3600 + 184], "big") == 490_000  # cm
        assert np.frombuffer(body[3840:3844], ">f4") == 0
    elif format == "nc":
        from scipy.io import netcdf_file

        with netcdf_file(io.BytesIO(body), mmap=False) as opened:
            np.testing.assert_allclose(np.diff(opened.variables["depth"][:]), 4.0)
            np.testing.assert_allclose(np.diff(opened.variables["x"][:]), 12.5)
            np.testing.assert_array_equal(opened.variables["low"][:], made.low)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"grid": "dx=0"}, "dx is 0 m; a step is larger than 0"),
        ({"grid": "dx=10,dz=-5"}, "dz is -5 m"),
        ({"grid": "dx=nan"}, "dx is nan; it is a finite number"),
        ({"grid": "dx=10,x0=1e12"}, "x0 is 1e+12 m; it lies within 1e+08 m"),
        ({"grid": "dx=10,nx=0"}, "nx is 0; it is 1 to"),
        ({"grid": "dx=10,nz=2.5"}, "nz is 2.5; it is a whole number"),
        ({"grid": "dx=10,nx=1e300"}, f"it is 1 to {MAX_COUNT}"),
        ({"grid": "dx=1e-3"}, "more than 65535 nodes along z, every 0.001 m"),
        ({"grid": "dx=1e-300"}, "more than 65535 nodes along z"),
        ({"grid": "dx=0.001,dz=10,nx=2000000,nz=1", "extend": True}, "nx is 2000000; it is 1 to 65535"),
        ({"grid": "dx=10,nx=2000,nz=2000"}, "2000 x 2000 = 4000000 nodes; at most 2000000"),
        ({"grid": "dz=10"}, "has its step dx"),
        ({"grid": "dx=10,dx=20"}, "each once at most"),
        ({"grid": "12.5"}, "each once at most, as in dx=12.5; got '12.5'"),
        ({"grid": "dx=ten"}, "dx is no number: 'ten'"),
        ({"grid": "dx=10,x0=9000"}, "begins at x = 9000 m; the model ends at 5590 m"),
        ({"grid": "dx=10,x0=9000,nx=5"}, "Nothing is known on the grid, x 9000 to 9040 m"),
        ({"smooth_m": -1.0}, "smoothed over 0 m or more; got -1 m"),
        ({"smooth_m": float("nan")}, "got nan m"),
        ({"smooth_m": 700.0}, "700 m; the model has 590 m along its longer side"),
        ({"water": "depth=0"}, "depth is 0 m"),
        ({"water": "depth=391"}, "391 m deep; the model ends at 390 m"),
        ({"water": "velocity=30"}, "velocity is 30 m/s; it lies in 300-9000"),
        ({"water": "velocity=1500"}, "first row is 1800 m/s or more, and over 1575 m/s is ground"),
        ({"water": "velocity=4000"}, "nowhere faster than 4200 m/s"),
        ({"water": "salty"}, "as in depth=60; got 'salty'"),
    ],
)  # fmt: skip
def test_what_is_refused_has_its_numbers(asked: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidQuery) as refused:
        start(**asked)
    assert said in str(refused.value)
