"""The OpenFWI file layout: pairs of gathers and velocity models, read memory-mapped and written whole.

    <family>/data/data{i}.npy    and <family>/model/model{i}.npy       (Vel and Style families, and what we write)
    <family>/seis{a}_{b}_{i}.npy and <family>/vel{a}_{b}_{i}.npy       (fault families)

Either pair of names may lie side by side or in ``data`` and ``model``. Kaggle's edition puts the families into
``train_samples`` and spells them ``FlatVel_A``; here it is ``FlatVel-A`` throughout. Pairs of another frame than
OpenFWI's lie in a folder whose `MANIFEST` says so; shapes in comments are OpenFWI's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.files import replacing
from seisbind.model.frame import OPENFWI_FRAME, Frame, stored_frame

MANIFEST = "seisbind.json"  # of a simulated dataset, see `simulation.simulate_dataset`
FIRST_TEST_NUMBER = 49  # of data{i}: 1-48 train, 49-60 test
FIRST_TEST_NUMBER_STYLE = 121  # of data{i} of the Style families: 1-120 train, 121-134 test
FIRST_TEST_NUMBER_FAULT = 32  # of seis*_*_{i}: 0-31 train, 32-35 test
TEST_SHARE = 5  # one file in so many where none has a published test number

Float32 = NDArray[np.float32]
Mapped: TypeAlias = "np.memmap[Any, np.dtype[np.float32]]"
Split = Literal["train", "test", "all"]

_TWIN = {"data": "model", "seis": "vel"}
_GATHERS = re.compile(r"(data|seis)(\d+|\d+_\d+_\d+)\.npy")
_VELOCITY = re.compile(r"(model|vel)(\d+|\d+_\d+_\d+)\.npy")


@dataclass(frozen=True, slots=True)
class PairFile:
    """One file of gathers and its twin of velocity models.

    Attributes:
        family: as in ``FlatVel-A``.
        gathers: path of the ``(count, 5, 1000, 70)`` float32 file.
        velocity: path of the ``(count, 1, 70, 70)`` float32 file, m/s.
        count: samples in each.
        frame: what they were recorded in.
    """

    family: str
    gathers: Path
    velocity: Path
    count: int
    frame: Frame = OPENFWI_FRAME


@dataclass(frozen=True, slots=True)
class PairArrays:
    """Memory-mapped arrays of a pair being written: both float32, both to be filled."""

    velocity: Mapped  # (count, 1, depth, x), m/s
    gathers: Mapped  # (count, shot, time, receiver), pressure


def find_pairs(directory: Path, *, split: Split = "all") -> tuple[PairFile, ...]:
    """The pairs of files of one family or of a parent of families, checked by their headers.

    The split is by the published file numbers. Where a family has no file with a test number, as in Kaggle's
    edition or a small generated set, its last fifth of files (rounded down, at least one of two) is the test
    part: such a split moves when files are added, so split a set after it is complete.

    Args:
        directory: a family's folder, a folder of families, or a folder that holds ``train_samples``.
        split: which part.

    Returns:
        Sorted by family, then by file number.

    Raises:
        DatasetError: nothing found, a file without its twin, or a file that is damaged or of another shape.
    """
    if not directory.is_dir():
        raise DatasetError(f"{directory} is not a directory; give a family's folder or a folder of families.")
    frame = dataset_frame(directory)
    families = [directory]
    for parent in (directory, directory / "train_samples"):
        if parent.is_dir():
            families += sorted(p for p in parent.iterdir() if p.is_dir() and p.name not in ("data", "model"))
    found = [(f, names) for f in families if (names := _paths(f))]
    if not found:
        raise DatasetError(
            f"{directory} holds no data{{i}}.npy with model{{i}}.npy and no seis*_*_*.npy with vel*_*_*.npy, "
            "nor does any folder in it."
        )
    pairs: list[PairFile] = []
    for folder, names in sorted(found, key=lambda item: family_name(item[0].name)):
        family = family_name(folder.name)
        for number in _part(family, sorted(names), split):
            gathers, velocity = names[number]
            pairs.append(PairFile(family, gathers, velocity, _count(gathers, velocity, frame), frame))
    return tuple(pairs)


def dataset_frame(directory: Path) -> Frame:
    """What the pairs of a folder, or of a family's folder in it, were recorded in: its `MANIFEST` says, or OpenFWI's.

    Raises:
        DatasetError: the manifest cannot be read.
    """
    for folder in (directory, directory.resolve().parent):
        path = folder / MANIFEST
        if path.is_file():
            try:
                return stored_frame(json.loads(path.read_text(encoding="utf-8")).get("frame"))
            except (OSError, ValueError, AttributeError, InvalidConfig) as error:
                raise DatasetError(f"{path} cannot be read ({error}); restore it, or take it away.") from error
    return OPENFWI_FRAME


def channel_shape(frame: Frame) -> tuple[int, int, int]:
    """A velocity model's shape in a file: one channel, depth, x."""
    return 1, *frame.velocity_shape


def family_name(folder: str) -> str:
    """``FlatVel-A`` from ``FlatVel_A``, ``FlatVel-A`` or ``FlatVelA``."""
    return re.sub(r"^(\w*?)[_-]?([AB])$", r"\1-\2", folder)


class Dataset:
    """Random access to the samples of many pairs of files, in the order of the files.

    Files are mapped when first read and stay mapped; a copy sent to another process maps them anew.
    """

    def __init__(self, pairs: Sequence[PairFile]) -> None:
        self.pairs = tuple(pairs)
        self.frame = self.pairs[0].frame if self.pairs else OPENFWI_FRAME
        for pair in self.pairs:
            if pair.frame != self.frame:
                raise DatasetError(f"{pair.gathers} is of another frame than the rest: {pair.frame}, not {self.frame}.")
        counts = np.array([p.count for p in self.pairs], dtype=np.int64)
        self._ends = np.cumsum(counts)
        self.families: NDArray[np.str_] = np.repeat(np.asarray([p.family for p in self.pairs], dtype=np.str_), counts)
        self._maps: dict[Path, Float32] = {}

    def __len__(self) -> int:
        return len(self.families)

    def __reduce__(self) -> tuple[type[Dataset], tuple[tuple[PairFile, ...]]]:
        return Dataset, (self.pairs,)  # not the maps: pickling one would read the whole file

    def velocity(self, indices: ArrayLike) -> Float32:
        """Velocity models of samples ``(n,)``: (n, depth, x) float32, m/s.

        Raises:
            DatasetError: an index outside the set, or a file that changed or is damaged.
        """
        return self._gather_rows(indices, lambda pair: pair.velocity, channel_shape(self.frame))[:, 0]

    def gathers(self, indices: ArrayLike) -> Float32:
        """Shot gathers of samples ``(n,)``: (n, shot, time, receiver) float32 = (sample, shot, time, receiver).

        Raises:
            DatasetError: an index outside the set, or a file that changed or is damaged.
        """
        return self._gather_rows(indices, lambda pair: pair.gathers, self.frame.gather_shape)

    def _gather_rows(self, indices: ArrayLike, path_of: Callable[[PairFile], Path], shape: tuple[int, ...]) -> Float32:
        wanted = np.atleast_1d(np.asarray(indices))
        if wanted.size == 0:
            return np.empty((0, *shape), dtype=np.float32)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise DatasetError(f"Samples are asked for by whole numbers (n,); got {wanted.dtype} {wanted.shape}.")
        if wanted.min() < 0 or wanted.max() >= len(self):
            raise DatasetError(
                f"Samples {wanted.min()} to {wanted.max()} were asked for; this set has 0 to {len(self) - 1}."
            )
        file_of = np.searchsorted(self._ends, wanted, side="right")
        rows = np.empty((len(wanted), *shape), dtype=np.float32)
        for file in np.unique(file_of):
            pair = self.pairs[file]
            at = np.flatnonzero(file_of == file)
            at = at[np.argsort(wanted[at], kind="stable")]  # forwards through the file
            rows[at] = self._map(path_of(pair), shape, pair)[wanted[at] - (self._ends[file] - pair.count)]
        return rows

    def _map(self, path: Path, shape: tuple[int, ...], pair: PairFile) -> Float32:
        if path not in self._maps:
            array = _open(path, shape)
            if len(array) != pair.count:
                raise DatasetError(f"{path} has {len(array)} samples; it had {pair.count} when it was found.")
            self._maps[path] = array
        return self._maps[path]


@contextmanager
def writing_pair(
    directory: Path, family: str, *, number: int, count: int, frame: Frame = OPENFWI_FRAME
) -> Iterator[PairArrays]:
    """Memory-mapped arrays to fill, which become ``<family>/data/data{number}.npy`` and its twin on leaving.

    Each file appears whole or not at all, the velocity models last; leaving with an exception leaves neither.
    Disk space is reserved first, so that a full disk is an OSError here and not a crash while filling.

    Raises:
        DatasetError: a count below 1, a negative number, or a family that is not a plain name.
        OSError: the disk refuses.
    """
    if count < 1 or number < 0 or not re.fullmatch(r"[\w-]+", family):
        raise DatasetError(
            f"Cannot write file {number} of {count} samples for the family {family!r}: the number starts at 0, "
            "the count at 1, and a family is letters, digits, '-' and '_'."
        )
    gathers, velocity = pair_paths(directory, family, number)
    for path in (gathers, velocity):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _writing(velocity) as partial_velocity, _writing(gathers) as partial_gathers:
        arrays = PairArrays(
            velocity=_reserve(partial_velocity, (count, *channel_shape(frame))),
            gathers=_reserve(partial_gathers, (count, *frame.gather_shape)),
        )
        yield arrays
        arrays.gathers.flush()
        arrays.velocity.flush()


def _writing(path: Path) -> AbstractContextManager[Path]:
    """A name that the next run overwrites: such files are large, and a killed run leaves them."""
    return replacing(path, temporary=path.with_name(path.name + ".partial"))


def write_pairs(
    directory: Path,
    family: str,
    *,
    number: int,
    velocity: ArrayLike,
    gathers: ArrayLike,
    frame: Frame = OPENFWI_FRAME,
) -> None:
    """Writes one pair of files, see `writing_pair`.

    Args:
        directory: the parent of the families.
        family: names the folder.
        number: of the file; an existing one is replaced.
        velocity: ``(n, depth, x)`` or ``(n, 1, depth, x)``, m/s.
        gathers: ``(n, shot, time, receiver)``.
        frame: whose shapes they have; another than OpenFWI's needs a `MANIFEST` that says so, to be read again.

    Raises:
        DatasetError: other shapes, or what `writing_pair` refuses.
    """
    v, g = np.asarray(velocity), np.asarray(gathers)
    if v.ndim == 3:
        v = v[:, None]
    if v.shape[1:] != channel_shape(frame) or g.shape != (len(v), *frame.gather_shape):
        cells, gather = (", ".join(map(str, shape)) for shape in (frame.velocity_shape, frame.gather_shape))
        raise DatasetError(
            f"A pair is velocity (n, {cells}) with gathers (n, {gather}); got {np.shape(velocity)} and {g.shape}."
        )
    if v.dtype.kind not in "fiu" or g.dtype.kind not in "fiu":
        raise DatasetError(f"A pair is real numbers; got {v.dtype} velocity and {g.dtype} gathers.")
    with writing_pair(directory, family, number=number, count=len(v), frame=frame) as arrays:
        arrays.velocity[:] = v
        arrays.gathers[:] = g


def written_numbers(directory: Path, family: str) -> tuple[int, ...]:
    """Numbers of the pairs that `write_pairs` completed, ascending: what a resumed simulation can skip."""
    found = (_GATHERS.fullmatch(p.name) for p in (directory / family / "data").glob("data*.npy"))
    numbers = sorted(int(m[2]) for m in found if m and "_" not in m[2])
    return tuple(n for n in numbers if pair_paths(directory, family, n)[1].is_file())


def pair_paths(directory: Path, family: str, number: int) -> tuple[Path, Path]:
    """Where `write_pairs` puts gathers and velocity: ``<family>/data/data{number}.npy`` and its twin."""
    folder = directory / family
    return folder / "data" / f"data{number}.npy", folder / "model" / f"model{number}.npy"


def _paths(folder: Path) -> dict[tuple[int, ...], tuple[Path, Path]]:
    """Number, e.g. (12,) or (2, 1, 30), to the paths of gathers and velocity."""
    places = [p for p in (folder, folder / "data", folder / "model") if p.is_dir()]
    files = sorted(f for p in places for f in p.iterdir() if f.is_file())
    gathers = {(m[1], m[2]): f for f in files if (m := _GATHERS.fullmatch(f.name))}
    velocity = {(m[1], m[2]): f for f in files if (m := _VELOCITY.fullmatch(f.name))}
    pairs: dict[tuple[int, ...], tuple[Path, Path]] = {}
    for (kind, number), path in gathers.items():
        twin = velocity.pop((_TWIN[kind], number), None)
        if twin is None:
            raise DatasetError(f"{path} has no twin {_TWIN[kind]}{number}.npy; add it or take the file away.")
        pairs[tuple(int(n) for n in number.split("_"))] = path, twin
    if velocity:
        alone = next(iter(velocity.values()))
        raise DatasetError(
            f"{alone} has no gathers beside it ({len(velocity)} such files in {folder}); add them or take it away."
        )
    return pairs


def _part(family: str, numbers: list[tuple[int, ...]], split: Split) -> list[tuple[int, ...]]:
    if split == "all":
        return numbers

    def published_test(number: tuple[int, ...]) -> bool:
        if len(number) == 3:
            return number[2] >= FIRST_TEST_NUMBER_FAULT
        return number[0] >= (FIRST_TEST_NUMBER_STYLE if family.startswith("Style") else FIRST_TEST_NUMBER)

    test = [n for n in numbers if published_test(n)]
    if not test and len(numbers) > 1:
        test = numbers[-max(1, len(numbers) // TEST_SHARE) :]
    return test if split == "test" else [n for n in numbers if n not in test]


def _open(path: Path, shape: tuple[int, ...]) -> Float32:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a .npy array, it may be truncated: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape[1:] != shape:
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DatasetError(f"{path} holds {got}; expected float32 (n, {', '.join(map(str, shape))}).")
    return array


def _count(gathers: Path, velocity: Path, frame: Frame) -> int:
    counts = len(_open(gathers, frame.gather_shape)), len(_open(velocity, channel_shape(frame)))
    if counts[0] != counts[1]:
        raise DatasetError(f"{gathers} has {counts[0]} samples and {velocity} has {counts[1]}; they must agree.")
    return counts[0]


def _reserve(path: Path, shape: tuple[int, ...]) -> Mapped:
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(np.float32), shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
