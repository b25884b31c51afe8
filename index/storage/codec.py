"""How velocity maps and embeddings are stored: without loss, in as few bytes as pay (format 2 of `database`).

A map whose velocities are all multiples of a power of two (whole m/s, as rounded galleries and OpenFWI's files have
them) is coded as those whole numbers, any other as the bits of its floats. They are coded as they are, or as
differences of neighbours, whichever comes out shorter, by zstd. An embedding's bytes are all noise but the highest of
each float, which holds its exponent; only those are coded. `benchmarks/map_compression.py` has the figures.

What is decoded here is compared with its SHA-256 by the caller. The decoder only sees to it that no blob, whatever it
claims, makes more bytes than were asked for.
"""

from __future__ import annotations

import math
import struct
import threading
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from seisbind.index.storage.record import LITTLE, Float32
from seisbind.model.errors import InvalidConfig

LEVEL = 1  # of zstd; 3 is no shorter, and 19 saves a twentieth in thirty times the time
FINEST_EXPONENT = -6  # maps of multiples of 2^-6 m/s or more are coded as whole numbers
PRECISIONS_M_S = (2.0**-7, 2.0)  # the bounds of rounding; steps of at most 4 m/s divide `VELOCITY_LIMITS_M_S`
MAX_CODED_BYTES = 1 << 26  # of a decoded map; a larger one is stored as it is, so that nothing decodes into more

_HEAD = struct.Struct("<BBbi")  # method, orders of the differences, exponent of the step, the lowest whole number
_PLAIN, _FLOATS, _WHOLE = range(3)
_ORDERS = ((0, 1), (1, 0), (1, 1), (2, 2))  # of the differences along depth and x that are tried
_LOOKED_AT = 24  # rows in the middle of a map, by which the differences are chosen that are coded
_BLOCKY = 12  # a map that zstd alone makes this many times shorter is not tried with differences

Unsigned = NDArray[np.uint16] | NDArray[np.uint32]


class _Contexts(threading.local):
    """zstd's contexts, each of which one thread at a time may use."""

    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()


_own = _Contexts()


def step_m_s(precision_m_s: float) -> float:
    """The step of rounding: the largest power of two that is off by at most ``precision_m_s``; 0 for 0, exact.

    Raises:
        InvalidConfig: a precision that is neither 0 nor within `PRECISIONS_M_S`.
    """
    if precision_m_s == 0:
        return 0.0
    low, high = PRECISIONS_M_S
    if not low <= precision_m_s <= high:
        raise InvalidConfig(
            f"The precision of a gallery is 0 (exact) or from {low:g} to {high:g} m/s; got {precision_m_s:g}."
        )
    return 2.0 ** math.floor(math.log2(2 * precision_m_s))


def rounded(velocity: Float32, precision_m_s: float) -> Float32:
    """Maps with each velocity off by at most ``precision_m_s``; 0 leaves them as they are. Raises as `step_m_s`."""
    step = step_m_s(precision_m_s)
    if not step:
        return velocity
    return np.asarray(np.rint(velocity / np.float32(step)) * np.float32(step), np.float32)  # exact: powers of two


def encode_map(velocity: Float32, *, level: int = LEVEL) -> bytes:
    """A map ``(depth, x)``, m/s, as a blob of which `decode_map` makes every bit of it again."""
    plain = velocity.astype(LITTLE, copy=False)
    if plain.nbytes > MAX_CODED_BYTES:
        return _HEAD.pack(_PLAIN, 0, 0, 0) + plain.tobytes()
    whole = _whole(plain)
    if whole is None:
        method, exponent, lowest, numbers = _FLOATS, 0, 0, plain.view("<u4")
    else:
        method, (exponent, lowest, numbers) = _WHOLE, whole
    coded = _compress(numbers.tobytes(), level)
    orders = (0, 0)
    if len(coded) * _BLOCKY > numbers.nbytes:
        middle = (len(numbers) - min(len(numbers), _LOOKED_AT)) // 2
        part = numbers[middle : middle + _LOOKED_AT]
        likely = min(_ORDERS, key=lambda each: _bits(_differences(part, *each)[2:]))
        other = _compress(_planes(_differences(numbers, *likely)), level)
        if len(other) < len(coded):
            coded, orders = other, likely
    if len(coded) >= plain.nbytes:
        return _HEAD.pack(_PLAIN, 0, 0, 0) + plain.tobytes()
    head = _HEAD.pack(method, orders[0] << 4 | orders[1], exponent, lowest)
    return head + coded


def decode_map(blob: bytes, shape: tuple[int, int]) -> bytes:
    """The little-endian float32 of the map ``(depth, x)`` that was encoded; another shape or blob gives others.

    Raises:
        ValueError: the blob cannot be of a map of that shape.
    """
    cells = shape[0] * shape[1]
    if len(blob) < _HEAD.size or min(shape) < 1:
        raise ValueError("it is no map")
    method, orders, exponent, lowest = _HEAD.unpack_from(blob)
    body = blob[_HEAD.size :]
    if method == _PLAIN:
        if len(body) != 4 * cells:
            raise ValueError(f"it has {len(body)} bytes and not those of {cells} cells")
        return body
    depth_order, x_order = orders >> 4, orders & 15
    if method not in (_FLOATS, _WHOLE) or (orders and (depth_order, x_order) not in _ORDERS):
        raise ValueError("it is coded in a way that this version does not know")
    if 4 * cells > MAX_CODED_BYTES:
        raise ValueError(f"it claims {cells} cells")
    dtype = np.dtype("<u4" if method == _FLOATS else "<u2")
    raw = _decompress(body, cells * dtype.itemsize)
    numbers = _summed(_joined(raw, dtype, shape), depth_order, x_order) if orders else np.frombuffer(raw, dtype)
    if method == _FLOATS:
        return numbers.tobytes()
    if not FINEST_EXPONENT <= exponent <= 16 or not -(2**24) <= lowest <= 2**24:
        raise ValueError("its velocities are out of range")
    decoded: bytes = ((numbers.astype(np.float64) + lowest) * 2.0**exponent).astype(LITTLE).tobytes()
    return decoded


def encode_embedding(embedding: Float32) -> bytes:
    """An embedding ``(dimension,)`` as a blob of which `decode_embedding` makes every bit of it again."""
    planes = embedding.astype(LITTLE, copy=False).view(np.uint8).reshape(-1, 4).T
    return planes[:3].tobytes() + _compress(planes[3].tobytes(), LEVEL)


def decode_embedding(blob: bytes, dimension: int) -> bytes:
    """The little-endian float32 of the embedding that was encoded. Raises ValueError as `decode_map` does."""
    if len(blob) <= 3 * dimension:
        raise ValueError(f"it has {len(blob)} bytes, too few for {dimension} dimensions")
    planes = np.frombuffer(blob[: 3 * dimension] + _decompress(blob[3 * dimension :], dimension), np.uint8)
    return planes.reshape(4, dimension).T.tobytes()


def _whole(velocity: Float32) -> tuple[int, int, NDArray[np.uint16]] | None:
    """Exponent of the step, lowest number, and the numbers above it, where the velocities are multiples of a step.

    What they decode to is compared with the velocities bit by bit, so that -0.0, NaN and the like are not among them.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        finest = velocity * np.float32(2.0**-FINEST_EXPONENT)
        if not np.array_equal(finest, np.rint(finest)) or float(np.abs(finest).max(initial=0)) >= 2**24:
            return None
    numbers = finest.astype(np.int32)
    bits = int(np.bitwise_or.reduce(numbers, axis=None))
    shift = min((bits & -bits).bit_length() - 1, 16) if bits else 0
    numbers >>= shift
    lowest = int(numbers.min())
    if int(numbers.max()) - lowest >= 1 << 16 or (np.signbit(velocity) & (velocity == 0)).any():
        return None
    return FINEST_EXPONENT + shift, lowest, (numbers - lowest).astype("<u2")


def _differences(numbers: Unsigned, depth_order: int, x_order: int) -> Unsigned:
    """Differences between neighbours, modulo what the type holds, small ones of either sign as small numbers."""
    found = numbers.copy()
    for _ in range(depth_order):
        found[1:] -= found[:-1].copy()
    for _ in range(x_order):
        found[:, 1:] -= found[:, :-1].copy()
    signed: NDArray[Any] = found.view(f"<i{found.itemsize}")
    folded: NDArray[Any] = (signed << 1) ^ (signed >> (8 * found.itemsize - 1))
    return folded.view(found.dtype)


def _summed(folded: Unsigned, depth_order: int, x_order: int) -> Unsigned:
    """The inverse of `_differences`."""
    found: NDArray[Any] = (folded >> 1) ^ -(folded & 1)
    for _ in range(x_order):
        np.cumsum(found, axis=1, dtype=found.dtype, out=found)
    for _ in range(depth_order):
        np.cumsum(found, axis=0, dtype=found.dtype, out=found)
    return found


def _bits(numbers: Unsigned) -> float:
    """How many bits they need, roughly."""
    return float(np.log2(numbers.astype(np.float32) + 1).sum())


def _planes(numbers: Unsigned) -> bytes:
    """The lowest byte of each number, then the next of each, and so on."""
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def _joined(planes: bytes, dtype: np.dtype[np.uint16] | np.dtype[np.uint32], shape: tuple[int, int]) -> Unsigned:
    """The inverse of `_planes`."""
    split = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(split.T).view(dtype).reshape(shape)


def _compress(content: bytes, level: int) -> bytes:
    compressor = _own.compressors.get(level)
    if compressor is None:
        compressor = zstandard.ZstdCompressor(level=level, write_checksum=False, write_content_size=True)
        _own.compressors[level] = compressor
    return compressor.compress(content)


def _decompress(frame: bytes, size: int) -> bytes:
    """The ``size`` bytes of a frame. Raises ValueError if it claims or holds any other number, or anything else."""
    try:
        if zstandard.get_frame_parameters(frame).content_size != size:
            raise ValueError("it is coded to another size")
        content = _own.decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"it cannot be decoded ({error})") from error
    if len(content) != size:
        raise ValueError("it is coded to another size")
    return content
