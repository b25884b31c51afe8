"""Velocity models as files: what is written is what others read, with its place, units and interval."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.io import netcdf_file

from seisbind.model.errors import InvalidConfig, InvalidVelocityModel
from seisbind.service.formats.npy import npz
from seisbind.service.formats.reader import read_velocity
from seisbind.service.formats.segy import write_velocity
from seisbind.service.formats.velocity_model import FORMATS, SUFFIXES, VelocityModel, format_of, write

VALUE = np.random.default_rng(0).uniform(1500, 4500, (30, 40)).astype(np.float32)
BARE = VelocityModel(VALUE, None, None, 12.5, x0_m=431_250.75)
KNOWN = VelocityModel(VALUE, VALUE - 100, VALUE + 150, 30.0, x0_m=-60.0, depth0_m=30.0)


@pytest.mark.parametrize("model", [BARE, KNOWN])
def test_npz_holds_all_of_it(model: VelocityModel) -> None:
    with np.load(io.BytesIO(write(model, "npz", title="a")), allow_pickle=False) as found:
        arrays = dict(found)
    interval = {"low", "high"} if model is KNOWN else set()
    assert set(arrays) == {"velocity", "cell_m", "x0", "depth0", "units"} | interval
    np.testing.assert_array_equal(arrays["velocity"], VALUE)
    for name in interval:
        np.testing.assert_array_equal(arrays[name], getattr(model, name))
    assert (arrays["cell_m"], arrays["x0"], arrays["depth0"]) == (model.cell_m, model.x0_m, model.depth0_m)
    assert arrays["units"] == "m/s"


def test_npy_is_a_velocity_model_for_our_own_reader() -> None:
    np.testing.assert_array_equal(read_velocity(write(KNOWN, "npy", title="a")), VALUE)


@pytest.mark.parametrize(("model", "scalar", "unit"), [(BARE, -100, 0.01), (KNOWN, -100, 0.01)])
def test_segy_is_read_by_another_reader(model: VelocityModel, scalar: int, unit: float, tmp_path: Path) -> None:
    segyio = pytest.importorskip("segyio", reason="segyio, a second reader, is not installed")
    (tmp_path / "model.sgy").write_bytes(write(model, "segy", title="from a test"))
    field = segyio.TraceField
    with segyio.open(tmp_path / "model.sgy", ignore_geometry=True) as opened:
        np.testing.assert_array_equal(opened.trace.raw[:].T, VALUE)
        assert np.diff(opened.samples).tolist() == [model.cell_m] * 29
        for number in (0, 39):
            header = opened.header[number]
            assert header[field.SourceGroupScalar] == scalar
            assert header[field.CDP_X] * unit == pytest.approx(model.x0_m + number * model.cell_m, abs=0.005)
        assert "from a test" in segyio.tools.wrap(opened.text[0])


def test_segy_of_cells_that_its_header_cannot_hold() -> None:
    with pytest.raises(InvalidVelocityModel, match=r"65535 m; the model has 30 of 80000 m"):
        write_velocity(VALUE, cell_m=80_000.0, title="large")
    far = write_velocity(VALUE, cell_m=10.0, title="far", x0_m=5e7)
    assert int.from_bytes(far[3600 + 70 : 3600 + 72], "big", signed=True) == 1
    assert int.from_bytes(far[3600 + 180 : 3600 + 184], "big", signed=True) == 50_000_000
    assert "X IN METRES (SCALAR 1 " in far[:3200].decode("cp037")


@pytest.mark.parametrize("model", [BARE, KNOWN])
def test_netcdf_is_read_by_scipy(model: VelocityModel) -> None:
    with netcdf_file(io.BytesIO(write(model, "nc", title="from a test")), mmap=False) as found:
        assert found.title == b"from a test"
        assert found.dimensions == {"depth": 30, "x": 40}
        assert set(found.variables) == {"depth", "x", "velocity"} | ({"low", "high"} if model is KNOWN else set())
        for name, variable in found.variables.items():
            expected = {"velocity": VALUE, "low": model.low, "high": model.high}.get(name)
            if expected is not None:
                np.testing.assert_array_equal(variable[:], expected)
                assert variable.units == b"m s-1"
        np.testing.assert_allclose(found.variables["x"][:], model.x0_m + model.cell_m * np.arange(40))
        np.testing.assert_allclose(found.variables["depth"][:], model.depth0_m + model.cell_m * np.arange(30))


def test_netcdf_is_opened_by_xarray(tmp_path: Path) -> None:
    xarray = pytest.importorskip("xarray", reason="xarray, which users open netCDF with, is not installed")
    (tmp_path / "model.nc").write_bytes(write(KNOWN, "nc", title="from a test"))
    with xarray.open_dataset(tmp_path / "model.nc") as found:
        assert found.velocity.dims == ("depth", "x") and found.velocity.attrs["units"] == "m s-1"
        assert float(found.velocity.sel(x=-30.0, depth=60.0)) == VALUE[1, 1]
        assert float((found.high - found.low).mean()) == pytest.approx(250.0, abs=1e-3)


def test_formats_and_names() -> None:
    assert {format_of(Path(f"model{suffix}")) for suffix in SUFFIXES} == set(FORMATS)
    assert format_of(Path("MODEL.SGY")) == "segy"
    with pytest.raises(InvalidConfig, match=r"'\.h5'; a velocity model is written as \.npy, \.npz"):
        format_of(Path("model.h5"))
    with pytest.raises(InvalidConfig, match="no format 'zarr'"):
        write(KNOWN, "zarr", title="a")


def test_the_same_arrays_are_the_same_bytes_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first = npz({"velocity": np.ones((2, 2), np.float32)})
    monkeypatch.setattr(time, "localtime", lambda *_: time.struct_time((2031, 5, 4, 3, 2, 1, 0, 0, 0)))
    assert npz({"velocity": np.ones((2, 2), np.float32)}) == first
