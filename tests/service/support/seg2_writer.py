"""SEG-2 files written by hand, byte for byte, by Pullan (1990): so that each can be wrong in one place."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SAMPLES = {1: "i2", 2: "i4", 3: "", 4: "f4", 5: "f8"}  # by format code


def packed(values: NDArray[np.int64], order: str) -> bytes:
    """20-bit floats: of five words the first holds four exponents of two, then one's complements of 16 bits."""
    exponents = np.maximum(0, np.ceil(np.log2(np.maximum(np.abs(values), 1) / 32767)).astype(np.int64))
    mantissas = np.abs(values) >> exponents
    words = np.where(values < 0, ~mantissas & 0xFFFF, mantissas).reshape(-1, 4)
    first = (exponents.reshape(-1, 4) << np.arange(0, 16, 4)).sum(axis=1)
    return np.column_stack([first, words]).astype(order + "u2").tobytes()


def strings(pairs: dict[str, str], order: str) -> bytes:
    out = b""
    for key, value in pairs.items():
        text = f"{key} {value}".encode() + b"\0"
        out += struct.pack(order + "H", len(text) + 2) + text
    out += bytes(2)
    return out + bytes(-len(out) % 4)


def seg2(
    traces: NDArray[np.generic],
    headers: Sequence[dict[str, str]],
    *,
    file: dict[str, str] | None = None,
    code: int = 4,
    order: str = "<",
) -> bytes:
    """``traces`` ``(trace, time)`` with the strings of each, and those of the file."""
    common = strings({"UNITS": "METERS"} if file is None else file, order)
    blocks, at, pointers = [], 32 + 4 * len(traces) + len(common), []
    for samples, header in zip(traces, headers, strict=True):
        text = strings(header, order)
        data = packed(samples.astype(np.int64), order) if code == 3 else samples.astype(order + SAMPLES[code]).tobytes()
        start = struct.pack(order + "HHIIB", 0x4422, 32 + len(text), len(data), len(samples), code)
        pointers.append(at)
        blocks.append(start.ljust(32, b"\0") + text + data)
        at += len(blocks[-1])
    start = struct.pack(order + "HHHHBBBBBB", 0x3A55, 1, 4 * len(traces), len(traces), 1, 0, 0, 1, 10, 0)
    return start.ljust(32, b"\0") + struct.pack(f"{order}{len(traces)}I", *pointers) + common + b"".join(blocks)


def described(shot_x_m: float, receiver_x_m: Sequence[float], dt_s: float, **more: str) -> list[dict[str, str]]:
    """The strings of a shot's traces, one a receiver."""
    return [
        {"CHANNEL_NUMBER": str(number), "SAMPLE_INTERVAL": f"{dt_s:g}", "DELAY": "0.000",
         "RECEIVER_LOCATION": f"{x:.2f} 0.00 0.00", "SOURCE_LOCATION": f"{shot_x_m:.2f} 0.00 0.00"} | more
        for number, x in enumerate(receiver_x_m, 1)
    ]  # fmt: skip


def shots(gather: NDArray[np.generic], shot_x_m: Sequence[float], receiver_x_m: Sequence[float], dt_s: float) -> bytes:
    """All shots of ``gather`` ``(shot, time, receiver)`` in one file of float32."""
    headers = [
        header
        for number, x in enumerate(shot_x_m, 101)
        for header in described(x, receiver_x_m, dt_s, SHOT_SEQUENCE_NUMBER=str(number))
    ]
    return seg2(gather.transpose(0, 2, 1).reshape(len(headers), -1), headers)
