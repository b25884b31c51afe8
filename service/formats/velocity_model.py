"""A velocity model that leaves SeisBind, with its place and its interval: as npy, npz, SEG-Y and netCDF.

netCDF is written in its classic form (netCDF-3), by scipy, which is there anyway: xarray, netCDF4, MATLAB, GDAL and
ParaView open it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig
from seisbind.service.formats.npy import npy, npz
from seisbind.service.formats.segy import write_velocity

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

SUFFIXES = {".npy": "npy", ".npz": "npz", ".sgy": "segy", ".segy": "segy", ".nc": "nc"}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
UNITS = "m/s"


@dataclass(frozen=True, slots=True)
class VelocityModel:
    """A velocity model on a regular grid, a sample at each node.

    Attributes:
        value: ``(depth, x)``, m/s; NaN where nothing is known.
        low, high: of the 90 % interval of each sample, same shape; None where nothing states it. Of a
            `starting_model.starting_model` they are bounds.
        cell_m: between two samples, along both axes, or along x alone where there is ``dz_m``.
        x0_m: position of the first column, on the axis of the survey's receivers.
        depth0_m: of the first row.
        dz_m: between two samples along depth, where that is another.
        range_m_s: slowest and fastest ground that training drew, in true units; None where it is not known.
        known: ``(depth, x)`` which samples were read; None: all. The others are NaN, or continue what is beside them.
    """

    value: Float32
    low: Float32 | None
    high: Float32 | None
    cell_m: float
    x0_m: float = 0.0
    depth0_m: float = 0.0
    dz_m: float | None = None
    range_m_s: tuple[float, float] | None = None
    known: NDArray[np.bool_] | None = None

    @property
    def step_z_m(self) -> float:
        """Between two samples along depth."""
        return self.cell_m if self.dz_m is None else self.dz_m

    @property
    def axes(self) -> tuple[Float64, Float64]:
        """Depths of the rows, positions of the columns."""
        rows, columns = self.value.shape
        return nodes(self.depth0_m, self.step_z_m, rows), nodes(self.x0_m, self.cell_m, columns)

    @property
    def interval(self) -> tuple[Float32, Float32] | None:
        """``low`` and ``high``, where both are there."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def nodes(first: float, step: float, count: int) -> Float64:
    """Positions of samples."""
    return np.asarray(first + step * np.arange(count), np.float64)


def format_of(path: Path) -> str:
    """The format that a file's name asks for. Raises InvalidConfig."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidConfig(f"{path} ends with {path.suffix!r}; a velocity model is written as {', '.join(SUFFIXES)}.")
    return SUFFIXES[path.suffix.lower()]


def write(model: VelocityModel, format: str, *, title: str) -> bytes:
    """A file of one of `FORMATS`; npy and SEG-Y hold the model without its interval, SEG-Y with 0 for no number.

    Args:
        title: what the model is, in the textual header of SEG-Y and the attributes of netCDF.

    Raises:
        InvalidConfig: an unknown format.
        InvalidVelocityModel: cells or positions too large for SEG-Y (`segy.write_velocity`).
    """
    if format == "npy":
        return npy(model.value)
    if format == "npz":
        return npz(arrays_of(model))
    if format == "segy":
        value = np.nan_to_num(model.value, nan=0.0)
        return write_velocity(
            value, cell_m=model.cell_m, dz_m=model.dz_m, x0_m=model.x0_m, depth0_m=model.depth0_m, title=title
        )
    if format == "nc":
        return _netcdf(model, title)
    raise InvalidConfig(f"There is no format {format[:60]!r} of velocity models; there are {', '.join(FORMATS)}.")


def arrays_of(model: VelocityModel) -> Mapping[str, NDArray[Any]]:
    """The arrays of an npz; what is not known is not there, and ``cell_m`` only where both steps are the same."""
    arrays: dict[str, NDArray[Any]] = {"velocity": model.value}
    if model.interval is not None:
        arrays["low"], arrays["high"] = model.interval
    if model.known is not None:
        arrays["known"] = model.known
    steps = {"cell_m": model.cell_m} if model.dz_m is None else {"dx": model.cell_m, "dz": model.dz_m}
    for name, number in (*steps.items(), ("x0", model.x0_m), ("depth0", model.depth0_m)):
        arrays[name] = np.array(number, np.float64)
    if model.range_m_s is not None:
        arrays["range"] = np.array(model.range_m_s, np.float64)
    return arrays | {"units": np.array(UNITS)}


def _netcdf(model: VelocityModel, title: str) -> bytes:
    from scipy.io import netcdf_file  # 0.2 s, which clients of a server do without

    buffer = io.BytesIO()
    with netcdf_file(buffer, "w", version=2) as file:
        file.title, file.Conventions = title, "CF-1.8"
        for name, positions, words in zip(
            ("depth", "x"),
            model.axes,
            ("depth below the surface of the line", "position along the line"),
            strict=True,
        ):
            file.createDimension(name, len(positions))
            axis = file.createVariable(name, "f8", (name,))
            axis[:] = positions
            axis.units, axis.long_name = "m", words
        file.variables["depth"].positive = "down"
        parts = {"velocity": (model.value, "P velocity")}
        if model.interval is not None:
            low, high = model.interval
            parts["low"] = (low, "lower end of the 90 % interval of the P velocity")
            parts["high"] = (high, "upper end of the 90 % interval of the P velocity")
        for name, (values, words) in parts.items():
            part = file.createVariable(name, "f4", ("depth", "x"))
            part[:] = values
            part.units, part.long_name = "m s-1", words
        file.flush()
        return buffer.getvalue()
