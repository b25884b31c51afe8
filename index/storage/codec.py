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

AT_ONCE = 32  # maps that are coded together: what is made of them on the way stays in the cache of a core

Bool = NDArray[np.bool_]
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
    return encode_maps(velocity[None], level=level)[0]


def encode_maps(velocity: Float32, *, level: int = LEVEL) -> list[bytes]:
    """The blobs of maps ``(map, depth, x)``, each that of `encode_map`, which many take less time for together."""
    blobs: list[bytes] = []
    for start in range(0, len(velocity), AT_ONCE):
        blobs += _encode_some(velocity[start : start + AT_ONCE].astype(LITTLE, copy=False), level)
    return blobs


def _encode_some(plain: Float32, level: int) -> list[bytes]:
    blobs = [_HEAD.pack(_PLAIN, 0, 0, 0)] * len(plain)
    if plain[0].nbytes > MAX_CODED_BYTES:
        return [head + each.tobytes() for head, each in zip(blobs, plain, strict=True)]
    whole, exponents, lowest, numbers = _whole(plain)
    for method, members, coded in (
        (_WHOLE, np.flatnonzero(whole), _code(numbers, level)),
        (_FLOATS, np.flatnonzero(~whole), _code(plain[~whole].view("<u4"), level)),
    ):
        for i, ((depth_order, x_order), body) in zip(members.tolist(), coded, strict=True):
            if len(body) < plain[i].nbytes:
                blobs[i] = _HEAD.pack(method, depth_order << 4 | x_order, exponents[i], lowest[i]) + body
            else:
                blobs[i] += plain[i].tobytes()
    return blobs


def _code(numbers: Unsigned, level: int) -> list[tuple[tuple[int, int], bytes]]:
    """Maps of numbers ``(map, depth, x)``, each as they are or as differences: which, and their bytes by zstd."""
    coded = [((0, 0), _compress(each.tobytes(), level)) for each in numbers]
    tried = np.array([i for i, (_, body) in enumerate(coded) if len(body) * _BLOCKY > numbers[i].nbytes], np.int64)
    if not len(tried):
        return coded
    rows = numbers.shape[1]
    middle = (rows - min(rows, _LOOKED_AT)) // 2
    part = numbers[tried, middle : middle + _LOOKED_AT]
    likely = np.stack([_bits(_differences(part, *each)[:, 2:]) for each in _ORDERS]).argmin(axis=0)
    for number, orders in enumerate(_ORDERS):
        members = tried[likely == number]
        if not len(members):
            continue
        for i, planes in zip(members.tolist(), _planes(_differences(numbers[members], *orders)), strict=True):
            other = _compress(planes, level)
            if len(other) < len(coded[i][1]):
                coded[i] = (orders, other)
    return coded


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
    return encode_embeddings(embedding[None])[0]


def encode_embeddings(embeddings: Float32) -> list[bytes]:
    """The blobs of embeddings ``(embedding, dimension)``, each that of `encode_embedding`."""
    numbers = np.ascontiguousarray(embeddings, LITTLE).view("<u4")
    return [planes[:3].tobytes() + _compress(planes[3].tobytes(), LEVEL) for planes in _in_planes(numbers)]


def decode_embedding(blob: bytes, dimension: int) -> bytes:
    """The little-endian float32 of the embedding that was encoded. Raises ValueError as `decode_map` does."""
    if len(blob) <= 3 * dimension:
        raise ValueError(f"it has {len(blob)} bytes, too few for {dimension} dimensions")
    planes = np.frombuffer(blob[: 3 * dimension] + _decompress(blob[3 * dimension :], dimension), np.uint8)
    return planes.reshape(4, dimension).T.tobytes()


def _whole(velocity: Float32) -> tuple[Bool, list[int], list[int], NDArray[np.uint16]]:
    """Which of the maps ``(map, depth, x)`` have velocities that are all multiples of a step, the exponent of the step
    of each map and the lowest number of steps in it, and the numbers above that, of these maps alone.

    No map has -0.0, NaN and the like among them, which would not decode to the same bits.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        finest = velocity * np.float32(2.0**-FINEST_EXPONENT)
        whole = np.asarray((finest == np.rint(finest)).all(axis=(1, 2)))
        whole &= np.abs(finest).max(axis=(1, 2)) < 2**24
    whole[whole] = ~(np.signbit(velocity[whole]) & (velocity[whole] == 0)).any(axis=(1, 2))
    exponents, lowest = np.zeros(len(velocity), np.int64), np.zeros(len(velocity), np.int64)
    if not whole.any():
        return whole, exponents.tolist(), lowest.tolist(), np.empty((0, *velocity.shape[1:]), "<u2")
    numbers = finest[whole].astype(np.int32)
    bits = np.bitwise_or.reduce(numbers.reshape(len(numbers), -1), axis=1).tolist()
    shift = np.array([min((each & -each).bit_length() - 1, 16) if each else 0 for each in bits], np.int32)
    numbers >>= shift[:, None, None]
    low = numbers.min(axis=(1, 2))
    exponents[whole], lowest[whole] = FINEST_EXPONENT + shift, low
    above = numbers - low[:, None, None]
    fits = above.max(axis=(1, 2)) < 1 << 16
    whole[whole] = fits
    exponents[~whole], lowest[~whole] = 0, 0
    return whole, exponents.tolist(), lowest.tolist(), above[fits].astype("<u2")


def _differences(numbers: Unsigned, depth_order: int, x_order: int) -> Unsigned:
    """Differences between neighbours in maps ``(map, depth, x)``, modulo what the type holds, small ones of either
    sign as small numbers."""
    found = numbers
    for _ in range(depth_order):
        before, found = found, np.empty_like(found)
        found[:, :1] = before[:, :1]
        np.subtract(before[:, 1:], before[:, :-1], out=found[:, 1:])
    for _ in range(x_order):
        before, found = found, np.empty_like(found)
        found[:, :, :1] = before[:, :, :1]
        np.subtract(before[:, :, 1:], before[:, :, :-1], out=found[:, :, 1:])
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


def _bits(numbers: Unsigned) -> Float32:
    """How many bits each map ``(map, depth, x)`` needs, roughly."""
    needed = np.log2(numbers.astype(np.float32) + 1)
    return np.asarray(needed.reshape(len(numbers), -1).sum(axis=1))


def _planes(numbers: Unsigned) -> list[bytes]:
    """Of each map the lowest byte of each number, then the next of each, and so on."""
    return [planes.tobytes() for planes in _in_planes(numbers.reshape(len(numbers), -1))]


def _in_planes(numbers: Unsigned) -> NDArray[np.uint8]:
    """The bytes of numbers ``(row, number)`` as ``(row, byte, number)``, the lowest byte first."""
    split = numbers.view(np.uint8).reshape(*numbers.shape, numbers.itemsize)
    return np.ascontiguousarray(np.moveaxis(split, 2, 1))


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
