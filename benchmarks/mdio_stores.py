"""MDIO stores that `multidimio` makes of SEG-Y, read again: whether samples, times and positions are the same.

    pip install multidimio==1.1.3    # in an environment of its own: it pins an fsspec that constraints.txt does not
    python benchmarks/mdio_stores.py [--seed 0]

Two prestack lines (StreamerShotGathers2D; one with centimetres, half milliseconds, a delay and a missing trace) are
read by `mdio_as_segy`, and a velocity model, written as SEG-Y by SeisBind, by zarr (PostStack2DDepth). Ends with 1
where anything differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from seisbind.service.formats.mdio import mdio_as_segy
from seisbind.service.formats.segy import FIELDS, SIGN, TraceFile, header_dtype, read_segy, write_velocity

SHOTS, SAMPLES, RECEIVERS = 5, 1500, 70
GATHERS = {"shot_point": (9, "int32"), "channel": (13, "int32"), "source_coord_x": (73, "int32"),
           "source_coord_y": (77, "int32"), "group_coord_x": (81, "int32"), "group_coord_y": (85, "int32"),
           "coordinate_scalar": (71, "int16")}  # fmt: skip
SECTION = {"cdp": (21, "int32"), "cdp_x": (181, "int32"), "cdp_y": (185, "int32"), "coordinate_scalar": (71, "int16")}


def line(rng: np.random.Generator, dt_us: int, scalco: int, delay_ms: int, missing: int | None) -> bytes:
    """A SEG-Y of shots every 170 m into receivers every 10 m, of noise."""
    trace = np.zeros(
        SHOTS * RECEIVERS, [("header", header_dtype(FIELDS, "big")), ("words", SIGN["big"] + "f4", (SAMPLES,))]
    )
    header, per_metre = trace["header"], -scalco if scalco < 0 else 1
    header["record"] = np.repeat(np.arange(SHOTS) + 1, RECEIVERS)
    header["channel"] = np.tile(np.arange(RECEIVERS) + 1, SHOTS)
    header["source_x"], header["group_x"] = (header["record"] - 1) * 170 * per_metre, header["channel"] * 10 * per_metre
    for name, value in {"kind": 1, "scalco": scalco, "coordinate_units": 1, "delay_ms": delay_ms, "samples": SAMPLES,
                        "dt_us": dt_us}.items():  # fmt: skip
        header[name] = value
    trace["words"] = rng.standard_normal(trace["words"].shape)
    binary = bytearray(400)
    for byte, value in ((3217, dt_us), (3221, SAMPLES), (3225, 5), (3255, 1), (3501, 256), (3503, 1)):
        binary[byte - 3201 : byte - 3199] = value.to_bytes(2, "big")
    kept = trace if missing is None else np.delete(trace, missing)
    return b"".join(f"C{n:2d}".ljust(80).encode("cp037") for n in range(1, 41)) + bytes(binary) + kept.tobytes()


def made(segy: Path, template: str, fields: dict[str, tuple[int, str]]) -> Path:
    """The store that `multidimio` makes of a SEG-Y."""
    from mdio import segy_to_mdio
    from mdio.builder.template_registry import get_template_registry
    from segy.schema import HeaderField
    from segy.standards import get_segy_standard

    own = [HeaderField(name=name, byte=byte, format=kind) for name, (byte, kind) in fields.items()]
    spec = get_segy_standard(1.0).customize(trace_header_fields=own)
    segy_to_mdio(spec, get_template_registry().get(template), segy, segy.with_suffix(".mdio"), overwrite=True)
    return segy.with_suffix(".mdio")


def differences(one: TraceFile, other: TraceFile) -> list[str]:
    found = [] if np.array_equal(one.words, other.words) else ["samples"]
    for name in ("record", "channel", "kind", "delay_ms", "samples", "dt_us"):
        if not np.array_equal(one.headers[name], other.headers[name]):
            found.append(name)
    for name in ("source_x", "source_y", "group_x", "group_y"):
        metres = [
            np.where(h["scalco"] < 0, h[name] / -h["scalco"].astype(float), h[name])
            for h in (one.headers, other.headers)
        ]
        if np.abs(metres[0] - metres[1]).max() > 5e-4:
            found.append(name)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed: int = parser.parse_args().seed
    os.environ.setdefault("MDIO__IMPORT__CPU_COUNT", "1")
    rng: Any = np.random.default_rng(seed)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    import mdio

    print(f"multidimio {mdio.__version__}; {os.cpu_count()} x {platform.machine()}; commit {commit}; seed {seed}")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, body in (("plain", line(rng, 4000, 1, 0, None)), ("odd", line(rng, 500, -100, 100, 100))):
            segy = Path(folder) / f"{name}.sgy"
            segy.write_bytes(body)
            store, start = made(segy, "StreamerShotGathers2D", GATHERS), time.perf_counter()
            found = differences(read_segy(mdio_as_segy(store)), read_segy(body))
            took_ms, wrong = (time.perf_counter() - start) * 1e3, wrong + bool(found)
            print(f"{name}: {len(body)} bytes, read in {took_ms:.0f} ms; {', '.join(found) or 'nothing'} differs")
        velocity = rng.uniform(1500, 4500, (70, 90)).astype(np.float32)
        segy = Path(folder) / "velocity.sgy"
        segy.write_bytes(write_velocity(velocity, cell_m=10.0, title="RANDOM"))
        import zarr

        store = made(segy, "PostStack2DDepth", SECTION)
        same = np.array_equal(np.asarray(zarr.open_group(str(store), mode="r")["amplitude"]).T, velocity)
        print(f"velocity model: {velocity.shape[0]} x {velocity.shape[1]}; {'nothing' if same else 'samples'} differs")
    return int(wrong > 0 or not same)


if __name__ == "__main__":
    sys.exit(main())
