"""Prestack MDIO v1 stores (folders of Zarr v3) as the SEG-Y that they were made from: positions, times and samples.

Read with zarr, the extra ``mdio``; the names and dimensions are those of the templates of `multidimio` 1.1 that have
sources and groups. What is handed on is SEG-Y in memory, so that a store is read, sent and refused as that is.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import DatasetError, InvalidSurvey, MissingExtra, UnsupportedFormat, UploadTooLarge
from seisbind.service.formats.segy import (
    CARD,
    FIELDS,
    FILE_HEADER_BYTES,
    TEXT_BYTES,
    header_dtype,
)

META = "zarr.json"
MAX_META_BYTES = 16 << 20
MAX_BYTES = 4 << 30  # of samples, which are held in memory
POSITIONS = ("source_coord_x", "source_coord_y", "group_coord_x", "group_coord_y")
FIELD_OF = {"source_coord_x": "source_x", "source_coord_y": "source_y", "group_coord_x": "group_x",
            "group_coord_y": "group_y"}  # fmt: skip
CODECS = frozenset(("bytes", "blosc", "zstd", "gzip", "crc32c", "transpose", "sharding_indexed"))
PER_METRE = (1000, 100, 10, 1)  # coordinate scalars: the finest that 32 bits hold is taken
LENGTHS = {"m": 1, "meter": 1, "ft": 2, "foot": 2}  # SEG-Y's codes of bytes 3255-3256
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "second": 1.0, "millisecond": 1e3, "microsecond": 1e6}
UNEVEN = 0.51  # of a step, that times in whole milliseconds may be off


def is_mdio(path: Path) -> bool:
    """Whether a folder holds an MDIO v1 store."""
    meta = path / META
    try:
        return path.is_dir() and meta.stat().st_size <= MAX_META_BYTES and states_mdio(meta.read_bytes())
    except OSError:
        return False


def states_mdio(meta: bytes) -> bool:
    """Whether the content of a `META` is that of an MDIO v1 store."""
    try:
        found = json.loads(meta)
        attributes = found.get("attributes", {})
        return found.get("node_type") == "group" and str(attributes.get("apiVersion", "")).startswith("1.")
    except (ValueError, AttributeError):
        return False


def mdio_as_segy(path: Path) -> bytes:
    """The traces of a store as SEG-Y revision 1, IEEE floats: those that its ``trace_mask`` says are there.

    Raises:
        MissingExtra: zarr is not installed.
        DatasetError: no MDIO v1 store, or one that cannot be read.
        UnsupportedFormat: no times, or no positions of sources and groups.
        InvalidSurvey: times that are not even, or positions beyond 32 bits.
        UploadTooLarge: more than 4 GiB of samples, or of a chunk.
    """
    try:
        import zarr
    except ImportError as error:
        raise MissingExtra("MDIO is read with zarr: pip install 'seisbind[mdio]'.") from error
    if not is_mdio(path):
        raise DatasetError(
            f"{path} is a folder, and no MDIO v1 store: it has no {META} that states an apiVersion of 1."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # headers are structured, which Zarr v3 has not specified yet
            return _as_segy(path, zarr.open_group(str(path), mode="r"))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, (DatasetError, InvalidSurvey, UnsupportedFormat, UploadTooLarge)):
            raise
        raise DatasetError(f"{path} cannot be read as MDIO: {type(error).__name__}: {str(error)[:200]}.") from error


def _as_segy(path: Path, store: Any) -> bytes:
    attributes = store.attrs.asdict().get("attributes") or {}
    name = attributes.get("defaultVariableName", "amplitude")
    missing = [each for each in (name, "time", *POSITIONS) if each not in store]
    if missing:
        raise UnsupportedFormat(
            f"{path} is an MDIO of {store.attrs.get('name')!r} without {', '.join(map(str, missing))}; prestack stores "
            "in time with source and group positions are read, as of the template StreamerShotGathers2D."
        )
    data, axes = store[name], _dimensions(store[name])
    if len(axes) < 2 or axes[-1] != "time" or data.dtype.kind not in "fi":
        raise UnsupportedFormat(f"{path} has {data.dtype} samples along {', '.join(axes)}; time comes last.")
    there = _along(store, "trace_mask", data).astype(bool) if "trace_mask" in store else np.ones(data.shape[:-1], bool)
    if not there.any():
        raise DatasetError(f"{path} holds no trace: its trace_mask is empty.")
    headers, samples = store.get("headers", None), data.shape[-1]
    dt_us, start_ms = _times(path, store, headers, there)
    if samples >= 1 << 16:
        raise UnsupportedFormat(f"{path} has {samples} samples a trace; at most {(1 << 16) - 1} are read.")
    trace = np.zeros(
        int(there.sum()), np.dtype([("header", header_dtype(FIELDS, "big")), ("words", ">f4", (samples,))])
    )
    header = trace["header"]
    index = np.argwhere(there)
    header["record"] = np.ravel_multi_index(tuple(index[:, :-1].T), there.shape[:-1]) + 1 if there.ndim > 1 else 1
    header["channel"] = index[:, -1] + 1
    header["kind"] = _stored(headers, "trace_id_code", there, 1)
    header["coordinate_units"], header["samples"], header["dt_us"] = 1, samples, dt_us
    delay_ms = _stored(headers, "delay_recording_time", there, 0)  # the time axis starts at 0 all the same
    header["delay_ms"] = delay_ms if np.any(delay_ms) else start_ms
    at = {each: _along(store, each, data)[there].astype(np.float64) for each in POSITIONS}
    far = float(np.max([np.abs(x).max() for x in at.values()]))
    fitting = [each for each in PER_METRE if far * each < 1 << 31]
    if not fitting:  # not a number, too
        raise InvalidSurvey(f"{path} has positions up to {far:g}; SEG-Y holds 2147483647 at most.")
    header["scalco"] = -fitting[0] if fitting[0] > 1 else 1
    for each, x in at.items():
        header[FIELD_OF[each]] = np.rint(x * fitting[0])
    trace["words"] = data[...][there]
    unit = str((store["group_coord_x"].attrs.get("unitsV1") or {}).get("length", ""))
    binary = bytearray(FILE_HEADER_BYTES - TEXT_BYTES)
    for byte, value in (
        *((3217, dt_us), (3221, samples), (3225, 5)),
        *((3255, LENGTHS.get(unit, 0)), (3501, 0x0100), (3503, 1)),
    ):
        binary[byte - 1 - TEXT_BYTES : byte + 1 - TEXT_BYTES] = value.to_bytes(2, "big")
    text = "".join(f"C{number:2d}".ljust(CARD) for number in range(1, TEXT_BYTES // CARD + 1)).encode("cp037")
    return b"".join((text, bytes(binary), trace.tobytes()))


def _dimensions(array: Any) -> tuple[str, ...]:
    """Of an array, after a look at how it is stored and at its size. Raises UnsupportedFormat, UploadTooLarge."""
    odd = {str(codec.get("name")) for codec in array.metadata.to_dict()["codecs"]} - CODECS
    if odd:
        raise UnsupportedFormat(f"{array.path} of the MDIO is stored with {', '.join(sorted(odd))}, which is not read.")
    size = max(math.prod(array.shape), math.prod(array.chunks)) * array.dtype.itemsize
    if size > MAX_BYTES:
        raise UploadTooLarge(f"{array.path} of the MDIO, or a chunk of it, has {size} bytes; at most {MAX_BYTES}.")
    return tuple(str(each) for each in array.metadata.dimension_names or ())


def _along(store: Any, name: str, data: Any) -> NDArray[Any]:
    """A variable over all traces, from the dimensions that it has."""
    array, axes = store[name], _dimensions(data)[:-1]
    own = _dimensions(array)
    sizes = dict(zip(axes, data.shape[:-1], strict=True))
    if [each for each in axes if each in own] != list(own) or array.shape != tuple(sizes[each] for each in own):
        raise UnsupportedFormat(
            f"{name} of the MDIO has the shape {array.shape} along {own}; traces lie along {sizes}."
        )
    values = np.asarray(array[...]).reshape([sizes[each] if each in own else 1 for each in axes])
    return np.broadcast_to(values, data.shape[:-1])


def _stored(headers: Any, field: str, there: NDArray[np.bool_], default: int) -> Any:
    """A field of the trace headers that came with the SEG-Y."""
    if headers is None or headers.shape != there.shape or field not in (headers.dtype.names or ()):
        return default
    _dimensions(headers)
    return np.asarray(headers[...])[field][there]


def _times(path: Path, store: Any, headers: Any, there: NDArray[np.bool_]) -> tuple[int, int]:
    """Sampling interval in microseconds and first sample in milliseconds, both whole as SEG-Y has them."""
    unit = str((store["time"].attrs.get("unitsV1") or {}).get("time", "ms"))
    _dimensions(store["time"])
    time_ms = np.asarray(store["time"][...], np.float64) / PER_SECOND.get(unit, 1e3) * 1e3
    if time_ms.ndim != 1 or not 1 < len(time_ms) < 1 << 16 or not np.isfinite(time_ms).all():
        raise InvalidSurvey(f"{path} has times of the shape {time_ms.shape}; a trace has 2 to 65535 samples.")
    dt_us = (time_ms[-1] - time_ms[0]) / (len(time_ms) - 1) * 1e3
    stated = np.unique(_stored(headers, "sample_interval", there, 0))
    if len(stated) == 1 and stated[0] > 0:  # times may be whole milliseconds
        dt_us = float(stated[0])
    even = time_ms[0] + np.arange(len(time_ms)) * dt_us / 1e3
    off = float(np.abs(even - time_ms).max())
    if (
        dt_us <= 0
        or round(dt_us) >= 1 << 16
        or abs(dt_us - round(dt_us)) > 1e-3
        or off > max(1.0, UNEVEN * dt_us / 1e3)
    ):
        raise InvalidSurvey(
            f"{path} has times from {time_ms[0]:g} to {time_ms[-1]:g} ms, up to {off:g} ms off steps of {dt_us:g} us; "
            "steps are even, and whole microseconds."
        )
    start_ms = round(time_ms[0])
    if abs(start_ms) >= 1 << 15:
        raise InvalidSurvey(f"{path} begins {time_ms[0]:g} ms after the shot; SEG-Y holds 32767 ms at most.")
    return round(dt_us), start_ms
