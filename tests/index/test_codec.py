"""Maps and embeddings come back to the bit, rounding keeps its bound, and no blob decodes into more than was asked."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zstandard
from numpy.typing import NDArray

from seisbind.index.storage import codec
from seisbind.model.errors import InvalidConfig
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, mixed

Float32 = NDArray[np.float32]
PRECISIONS = (2.0**-7, 0.01, 0.1, 0.25, 0.5, 0.7, 1.0, 2.0)


def back(velocity: Float32, blob: bytes) -> bool:
    """Whether the blob decodes to every bit of the map."""
    return codec.decode_map(blob, velocity.shape) == velocity.astype("<f4").tobytes()  # type: ignore[arg-type]


def odd_maps() -> dict[str, Float32]:
    generator = np.random.default_rng(0)
    noise = generator.uniform(300, 9000, (31, 17))
    return {
        "noise": noise.astype(np.float32),
        "whole": np.rint(noise).astype(np.float32),
        "quarters": (np.rint(noise * 4) / 4).astype(np.float32),
        "sixty-fourths, too wide for 16 bits": (np.rint(noise * 64) / 64).astype(np.float32),
        "hundreds": (np.rint(noise / 100) * 100).astype(np.float32),
        "constant": np.full((4, 4), 1500, np.float32),
        "zeros": np.zeros((5, 6), np.float32),
        "negative zero": np.full((5, 6), -0.0, np.float32),
        "not numbers": np.array([[np.nan, np.inf], [-np.inf, 1e38]], np.float32),
        "tiny": np.array([[1e-45, 1e-38], [-1e-40, 0.5]], np.float32),
        "one cell": np.array([[2000.5]], np.float32),
        "one row": generator.uniform(300, 9000, (1, 40)).astype(np.float32),
    }


@pytest.mark.parametrize("name", odd_maps())
def test_any_map_comes_back_to_the_bit(name: str) -> None:
    velocity = odd_maps()[name]
    assert back(velocity, codec.encode_map(velocity))


@pytest.mark.parametrize("families", [FAMILIES, BROAD_FAMILIES], ids=["openfwi", "geology"])
@pytest.mark.parametrize("precision_m_s", [0.0, 0.5])
def test_drawn_maps_come_back_to_the_bit_in_fewer_bytes(families: tuple[str, ...], precision_m_s: float) -> None:
    maps = codec.rounded(mixed(40, 3, families)[0], precision_m_s)
    blobs = [codec.encode_map(each) for each in maps]
    assert all(back(*pair) for pair in zip(maps, blobs, strict=True))
    share = sum(map(len, blobs)) / maps.nbytes
    assert share < (0.5 if precision_m_s == 0 else 0.18)


def test_maps_together_are_coded_as_each_alone() -> None:
    """Whole ones among others, more than are coded at once, and those that nothing makes shorter."""
    drawn = mixed(codec.AT_ONCE + 9, 3, (*FAMILIES, *BROAD_FAMILIES))[0]
    drawn[::3] = np.rint(drawn[::3] * 4) / 4
    drawn[1] = np.random.default_rng(0).integers(0, 2**32, (70, 70), np.uint32).view(np.float32)
    drawn[2, 3, 3] = -0.0
    assert codec.encode_maps(drawn) == [codec.encode_map(each) for each in drawn]
    assert {blob[0] for blob in codec.encode_maps(drawn)} == {0, 1, 2}
    assert codec.encode_maps(drawn[:0]) == []
    vectors = np.random.default_rng(2).standard_normal((5, 256)).astype(np.float32)
    assert codec.encode_embeddings(vectors) == [codec.encode_embedding(each) for each in vectors]


@pytest.mark.parametrize("precision_m_s", PRECISIONS)
def test_rounding_is_within_its_bound_and_changes_nothing_twice(precision_m_s: float) -> None:
    exact = np.random.default_rng(1).uniform(300, 9000, (50, 8, 8)).astype(np.float32)
    exact[0, 0, :4] = (300, 9000, 300.3, 8999.9)
    rounded = codec.rounded(exact, precision_m_s)
    off = np.abs(rounded.astype(np.float64) - exact)
    assert 0 < off.max() <= precision_m_s
    assert off.max() > precision_m_s / 4  # and it does round
    assert rounded.min() >= 300 and rounded.max() <= 9000
    np.testing.assert_array_equal(codec.rounded(rounded, precision_m_s), rounded)


def test_exact_is_exact() -> None:
    exact = np.random.default_rng(1).uniform(300, 9000, (5, 8, 8)).astype(np.float32)
    assert codec.rounded(exact, 0.0).tobytes() == exact.tobytes()


@pytest.mark.parametrize("precision_m_s", [-0.5, 0.001, 2.5, 100.0, float("nan"), float("inf")])
def test_a_precision_that_makes_no_sense_is_refused(precision_m_s: float) -> None:
    with pytest.raises(InvalidConfig, match=r"from 0\.0078125 to 2 m/s"):
        codec.step_m_s(precision_m_s)


def test_embeddings_come_back_to_the_bit_in_fewer_bytes() -> None:
    vectors = np.random.default_rng(2).standard_normal((20, 256)).astype(np.float32)
    vectors[0, :3] = (0.0, -0.0, 1e-40)
    for each in vectors:
        blob = codec.encode_embedding(each)
        assert codec.decode_embedding(blob, 256) == each.astype("<f4").tobytes()
        assert len(blob) < 0.92 * each.nbytes


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(size))


def test_a_blob_that_decodes_into_more_is_refused_before_it_does() -> None:
    """Vacuity: zstd alone would have made all of it."""
    size = 1 << 28
    frame = bomb(size)
    assert len(frame) < 20_000 and len(zstandard.ZstdDecompressor().decompress(frame)) == size
    head = codec.encode_map(np.full((70, 70), 1500, np.float32))[:7]
    for decode in (
        lambda: codec.decode_map(head + frame, (70, 70)),
        lambda: codec.decode_map(head + frame, (1 << 14, 1 << 13)),  # a record that claims so many cells, 2^27
        lambda: codec.decode_embedding(bytes(768) + frame, 256),
    ):
        with pytest.raises(ValueError):
            decode()


def test_a_frame_that_does_not_say_its_size_is_refused() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(9800))
    head = codec.encode_map(np.full((70, 70), 1500, np.float32))[:7]
    with pytest.raises(ValueError, match="another size"):
        codec.decode_map(head + silent, (70, 70))


@pytest.mark.parametrize(
    "blob", [b"", b"\0", bytes(7), bytes(6) + b"\xff" * 20, b"\x07" + bytes(30), b"\x02\x13" + bytes(30), b"\x01" * 40]
)
def test_what_is_no_blob_is_refused(blob: bytes) -> None:
    with pytest.raises(ValueError):
        codec.decode_map(blob, (70, 70))
    with pytest.raises(ValueError):
        codec.decode_embedding(blob, 256)


@pytest.mark.parametrize("kind", ["floats", "whole", "blocky"])
def test_every_flip_of_a_blob_is_refused_or_makes_a_map_of_that_size(kind: str) -> None:
    velocity: Any = mixed(1, 5, ("FlatVel-A",) if kind == "blocky" else ("Smooth",))[0][0]
    velocity = velocity if kind == "floats" else codec.rounded(velocity, 0.5)
    blob = codec.encode_map(velocity)
    right, refused, other = velocity.astype("<f4").tobytes(), 0, 0
    for offset in range(0, len(blob), 1 if len(blob) < 500 else 3):
        changed = bytearray(blob)
        changed[offset] ^= 1 << offset % 8
        try:
            decoded = codec.decode_map(bytes(changed), (70, 70))
        except ValueError:
            refused += 1
            continue
        assert len(decoded) == len(right)
        other += decoded != right
    assert refused > 0 and refused + other > 0.5 * len(range(0, len(blob), 1 if len(blob) < 500 else 3))
