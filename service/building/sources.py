"""Where the models of a gallery come from: drawn at random, or read from files, in parts that any process can make."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seisbind.model.datasets.openfwi import Dataset, PairFile, find_pairs
from seisbind.model.errors import DatasetError
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.families import FAMILIES, Share, checksum, expanded, mixed, shares
from seisbind.service.building.exported import ENDING, count_exported, exported_parts

Float32 = NDArray[np.float32]
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
Batch = tuple[Float32, Sequence[str | None]]  # (model, depth, x), m/s, and the family of each

BATCH = 256  # models in a part and a transaction: 5 MB of velocities, and a progress bar that moves
WHOLE = 8192  # random models up to so many are drawn at once, further ones in blocks with a seed each
BLOCK_RULE = 1  # how blocks are drawn, which a build that goes on has to share with the one that began it


class Part(Protocol):
    """Up to `BATCH` models that can be made in another process."""

    def read(self) -> Batch:
        """Make them. Raises DatasetError."""
        ...


class Source(Protocol):
    """Models in a fixed order.

    Attributes:
        count: how many.
        origin: the words that a gallery keeps for where they came from.
    """

    @property
    def count(self) -> int: ...
    @property
    def origin(self) -> str: ...

    def parts(self, skipped: int = 0, *, run: Run = map) -> Iterator[Part]:
        """All parts in order, but the first ``skipped``.

        Args:
            run: calls a function with each of some arguments, perhaps in other processes, where work comes before them.
        """
        ...

    def plan(self) -> dict[str, Any]:
        """All that the models depend on, as JSON has it."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class GivenPart:
    """Models that are here."""

    velocity: Float32
    families: Sequence[str | None]

    def read(self) -> Batch:
        return self.velocity, self.families


@dataclass(frozen=True, slots=True)
class DrawnBlock:
    """Random models of a seed of their own."""

    count: int
    seed: int
    families: tuple[str, ...]
    frame: Frame

    def read(self) -> Batch:
        velocity, family = mixed(self.count, self.seed, self.families, frame=self.frame)
        return velocity, family.tolist()


@dataclass(frozen=True, slots=True)
class RandomModels:
    """Random models of `seisbind.model.ground.families`, shuffled.

    Up to `WHOLE` are `mixed(count, seed)`. More are drawn in blocks of as many of each family, at most `BATCH` in all,
    each block `mixed` with a seed of its own that follows from ``seed`` and its number; only the last may be smaller.
    """

    count: int
    seed: int
    families: tuple[str, ...]
    frame: Frame = OPENFWI_FRAME

    @classmethod
    def of(cls, count: int, seed: int, families: Sequence[str] | None, *, frame: Frame = OPENFWI_FRAME) -> RandomModels:
        """``families`` may name groups, see `seisbind.model.ground.families.GROUPS`; none means OpenFWI's ten."""
        named = expanded(families) if families else FAMILIES
        mixed(0, seed, named)  # names that nobody knows are refused before anything else is done
        return cls(count, seed, named, frame)

    @property
    def origin(self) -> str:
        return f"seisbind geology, seed {self.seed}"

    def parts(self, skipped: int = 0, *, run: Run = map) -> Iterator[Part]:
        if self.count <= WHOLE:
            families, order = shares(self.count, self.seed, self.families, frame=self.frame)
            maps = list(run(Share.draw, families))
            first = np.cumsum([0, *(share.count for share in families)])
            for start in range(skipped * BATCH, self.count, BATCH):
                rows = order[start : start + BATCH]
                of = np.searchsorted(first, rows, side="right") - 1
                velocity = np.empty((len(rows), *self.frame.velocity_shape), np.float32)
                for number, held in enumerate(maps):
                    velocity[of == number] = held[rows[of == number] - first[number]]
                yield GivenPart(velocity, [families[number].family for number in of])
            return
        size = BATCH - BATCH % min(len(self.families), BATCH)
        for number, start in enumerate(range(0, self.count, size)):
            if number >= skipped:
                drawn = np.random.SeedSequence([self.seed, number]).generate_state(2, np.uint64)
                seed = int.from_bytes(drawn.astype("<u8").tobytes(), "little")
                yield DrawnBlock(min(size, self.count - start), seed, self.families, self.frame)

    def plan(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "seed": self.seed,
            "families": list(self.families),
            "blocks": [BLOCK_RULE, WHOLE, BATCH],
            "generator": checksum(self.families)[:16],
        }


@dataclass(frozen=True, slots=True)
class FilePart:
    """Rows of an npy file or of an OpenFWI folder."""

    held: Path | tuple[PairFile, ...]
    start: int
    stop: int

    def read(self) -> Batch:
        opened = _opened(self.held)
        if isinstance(opened, Dataset):
            index = np.arange(self.start, self.stop)
            return opened.velocity(index), opened.families[index].tolist()
        velocity = np.array(opened[self.start : self.stop])  # checked where it is described, at its scale
        return velocity, [None] * len(velocity)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """Models of npy files, OpenFWI folders and exported galleries, one after another; those of npy files have no
    family."""

    held: tuple[tuple[Path | tuple[PairFile, ...], int], ...]  # each with its count
    names: tuple[str, ...]

    @classmethod
    def of(cls, paths: Sequence[Path], *, frame: Frame = OPENFWI_FRAME) -> ModelFiles:
        """Raises DatasetError: none of them, a file that cannot be read, or a dataset of another frame."""
        held: list[tuple[Path | tuple[PairFile, ...], int]] = []
        for path in paths:
            if not path.is_dir():
                exported = path.suffix == ENDING
                held.append((path, count_exported(path, frame) if exported else len(_opened(path))))
                continue
            dataset = Dataset(find_pairs(path))
            if dataset.frame != frame:
                raise DatasetError(f"{path} is of another frame than the weights: {dataset.frame} there, {frame} here.")
            held.append((dataset.pairs, len(dataset)))
        return cls(tuple(held), tuple(path.name for path in paths))

    @property
    def count(self) -> int:
        return sum(count for _, count in self.held)

    @property
    def origin(self) -> str:
        return ", ".join(self.names)

    def parts(self, skipped: int = 0, *, run: Run = map) -> Iterator[Part]:
        number = 0
        for held, count in self.held:
            parts: Iterator[Part] = (_part(held, start, min(start + BATCH, count)) for start in range(0, count, BATCH))
            if isinstance(held, Path) and held.suffix == ENDING:
                parts = exported_parts(held, BATCH)
            for part in parts:
                if number >= skipped:
                    yield part
                number += 1

    def plan(self) -> dict[str, Any]:
        """By place, size and time of change of each file, so that another content is not taken for the same."""
        files: list[list[str | int]] = []
        for held, _ in self.held:
            for path in [held] if isinstance(held, Path) else [pair.velocity for pair in held]:
                found = path.stat()
                files.append([str(path.resolve()), found.st_size, found.st_mtime_ns])
        return {"data": files, "batch": BATCH}


def _part(held: Path | tuple[PairFile, ...], start: int, stop: int) -> FilePart:
    """With those files of a folder alone that it takes rows of: it goes to another process."""
    if isinstance(held, Path):
        return FilePart(held, start, stop)
    ends = np.cumsum([pair.count for pair in held])
    first, last = np.searchsorted(ends, [start, stop - 1], side="right")
    before = int(ends[first - 1]) if first else 0
    return FilePart(held[first : last + 1], start - before, stop - before)


def _opened(held: Path | tuple[PairFile, ...]) -> Dataset | Float32:
    """Mapped, not read; anew for each part, so that what was read of the one before is no memory of this process."""
    if not isinstance(held, Path):
        return Dataset(held)
    try:
        array = np.load(held, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DatasetError(f"{held} cannot be read as an npy file of velocity models: {error}.") from error
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3, 4):
        raise DatasetError(f"{held} does not hold velocity models (model, depth, x).")
    return array[None] if array.ndim == 2 else array
