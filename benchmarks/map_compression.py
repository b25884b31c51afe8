"""Coders of velocity maps: bytes a map and microseconds to code and decode one, by kind of ground.

    python benchmarks/map_compression.py                  # 40 maps a kind, seed 29
    python benchmarks/map_compression.py --precision 2    # the coders that round, to 2 m/s

Kinds: each of the ten families, geology (`broad`), and the maps of ../shared/data where they are. The first rows are
without loss, those after the line are off by at most the precision. "as stored" is what galleries do
(`seisbind.index.storage.codec`). blosc2 and zfpy are no part of SeisBind: ``pip install blosc2 zfpy``, or their rows
are left out. Every map is decoded and compared. The last line is of embeddings by the shipped encoders.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import zstandard

from seisbind.index.storage import codec
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, mixed

SEED = 29
TRAINED_ON = 600  # other maps that a dictionary is trained on, half of the ten families, half of geology
DICTIONARY = 65_536

Encode = Callable[[np.ndarray], bytes]
Decode = Callable[[bytes], np.ndarray]
SHAPE = (70, 70)


def module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: its rows are left out", file=sys.stderr)
        return None


def planes(numbers: np.ndarray) -> bytes:
    return numbers.view(np.uint8).reshape(-1, numbers.itemsize).T.tobytes()


def joined(content: bytes, dtype: str) -> np.ndarray:
    split = np.frombuffer(content, np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(split.T).view(dtype).reshape(SHAPE)


def zstd(
    level: int,
    to: Callable[[np.ndarray], bytes],
    back: Callable[[bytes], np.ndarray],
    samples: np.ndarray | None = None,
) -> tuple[Encode, Decode]:
    """``samples``: maps that a dictionary is trained on."""
    trained = None if samples is None else zstandard.train_dictionary(DICTIONARY, [to(each) for each in samples])
    coder = zstandard.ZstdCompressor(level=level, dict_data=trained) if trained else zstandard.ZstdCompressor(level)
    decoder = zstandard.ZstdDecompressor(dict_data=trained) if trained else zstandard.ZstdDecompressor()
    return lambda each: coder.compress(to(each)), lambda blob: back(decoder.decompress(blob))


def coders(precision_m_s: float, samples: np.ndarray) -> dict[str, tuple[Encode, Decode]]:
    """By name, without loss first, an empty row between."""
    step = np.float32(codec.step_m_s(precision_m_s))

    def whole(each: np.ndarray) -> np.ndarray:
        return np.rint(each / step).astype("<i2")

    def back(numbers: np.ndarray) -> np.ndarray:
        return numbers.astype(np.float32) * step

    def floats(content: bytes) -> np.ndarray:
        return np.frombuffer(content, "<f4").reshape(SHAPE)

    def along(axis: int) -> Callable[[np.ndarray], bytes]:
        return lambda each: planes(np.diff(whole(each), axis=axis, prepend=np.int16(0)))

    def summed(axis: int) -> Callable[[bytes], np.ndarray]:
        return lambda content: back(np.cumsum(joined(content, "<i2"), axis=axis, dtype=np.int16))

    def as_stored(bound: float) -> tuple[Encode, Decode]:
        return (
            lambda each: codec.encode_map(codec.rounded(each, bound)),
            lambda blob: floats(codec.decode_map(blob, SHAPE)),
        )

    shuffled = (planes, lambda content: joined(content, "<f4"))
    found: dict[str, tuple[Encode, Decode]] = {
        "float32": (lambda each: each.tobytes(), floats),
        **{f"zstd {level}": zstd(level, lambda each: each.tobytes(), floats) for level in (1, 3, 19)},
        **{f"zstd {level}, bytes shuffled": zstd(level, *shuffled) for level in (1, 3, 19)},
        "zstd 3, bytes shuffled, dictionary": zstd(3, *shuffled, samples),
    }
    blosc2, zfpy = module("blosc2"), module("zfpy")
    if blosc2 is not None:
        filters = {"shuffle": blosc2.Filter.SHUFFLE, "bitshuffle": blosc2.Filter.BITSHUFFLE}
        for name, chosen in filters.items():
            found[f"blosc2 zstd 5, {name}"] = (
                lambda each, chosen=chosen: blosc2.compress2(
                    each, codec=blosc2.Codec.ZSTD, clevel=5, typesize=4, filters=[chosen], nthreads=1
                ),
                lambda blob: floats(blosc2.decompress2(blob, nthreads=1)),
            )
    if zfpy is not None:
        found["zfp, reversible"] = (lambda each: zfpy.compress_numpy(each), lambda blob: zfpy.decompress_numpy(blob))
    found["as stored, exact"] = as_stored(0.0)
    whole_bytes = (
        lambda each: whole(each).tobytes(),
        lambda content: back(np.frombuffer(content, "<i2").reshape(SHAPE)),
    )
    found |= {f"int16 + zstd {level}": zstd(level, *whole_bytes) for level in (3, 19)} | {
        f"int16, differences along {axis}, shuffled + zstd {level}": zstd(level, along(number), summed(number))
        for number, axis in enumerate(("depth", "x"))
        for level in (3, 19)
    }
    found["int16, differences along x, shuffled + zstd 3, dictionary"] = zstd(3, along(1), summed(1), samples)
    if zfpy is not None:
        found["zfp, tolerance"] = (
            lambda each: zfpy.compress_numpy(each, tolerance=precision_m_s),
            lambda blob: zfpy.decompress_numpy(blob),
        )
    found["as stored, rounded"] = as_stored(precision_m_s)
    return found


def kinds(count: int, data: Path) -> dict[str, np.ndarray]:
    found = {name: mixed(count, SEED, (name,))[0] for name in FAMILIES}
    found["geology"] = mixed(2 * count, SEED, BROAD_FAMILIES)[0]
    for name in ("openfwi_dev.npz", "off_family_dev.npz"):
        if not (data / name).is_file():
            print(f"{data / name} is not there: its maps are left out", file=sys.stderr)
            continue
        with np.load(data / name, allow_pickle=False) as maps:
            found |= {f"real {key}": maps[key][:count].astype(np.float32) for key in maps.files}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40, help="maps a kind")
    parser.add_argument("--precision", type=float, default=0.5, help="m/s")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    ground = kinds(args.count, args.data)
    samples = np.concatenate([mixed(TRAINED_ON // 2, SEED + 1, group)[0] for group in (FAMILIES, BROAD_FAMILIES)])
    print("| coder | ten families | " + " | ".join(ground) + " | code, us | decode, us |")
    print("|---" * (len(ground) + 4) + "|")
    exact = True
    for name, (encode, decode) in coders(args.precision, samples).items():
        sizes, coding, decoding = {}, 0.0, 0.0
        exact = exact and not name.startswith("int16")
        for kind, maps in ground.items():
            start = time.process_time()
            blobs = [encode(each) for each in maps]
            middle = time.process_time()
            decoded = [decode(blob) for blob in blobs]
            coding, decoding = coding + middle - start, decoding + time.process_time() - middle
            off = max(float(np.abs(each - other).max()) for each, other in zip(maps, decoded, strict=True))
            if off > (0.0 if exact else args.precision):
                sys.exit(f"{name} is off by {off} m/s for {kind}")
            sizes[kind] = float(np.mean([len(blob) for blob in blobs]))
        done = sum(map(len, ground.values())) / 1e6
        ten = np.mean([sizes[family] for family in FAMILIES])
        cells = " | ".join(f"{size:,.0f}" for size in (ten, *sizes.values()))
        print(f"| {name} | {cells} | {coding / done:.0f} | {decoding / done:.0f} |", flush=True)
    embedder = Embedder.load()
    maps = samples[:: max(1, len(samples) // 200)]
    embeddings = np.concatenate([embedder.embed_velocity(maps), embedder.embed_descriptors(describe(maps))])
    coded = np.mean([len(codec.encode_embedding(each)) for each in embeddings])
    print(f"\nAn embedding: {coded:,.0f} of {4 * embeddings.shape[1]:,} bytes (mean of {len(embeddings)}).")


if __name__ == "__main__":
    main()
