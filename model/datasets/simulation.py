"""Datasets of simulated pairs in OpenFWI's layout, each file from a random stream of its own."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from seisbind.model.datasets.openfwi import MANIFEST as MANIFEST
from seisbind.model.datasets.openfwi import writing_pair, written_numbers
from seisbind.model.datasets.writer import Chunk, Gathers, claim, fill, only_writer, rows_of_chunks
from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.families import BROAD_FAMILIES, EXTRA_FAMILIES, FAMILIES, checksum, generate
from seisbind.model.waves.wavefield import ABSORBING, Boundary, Engine, Float32, simulate


def pair_bytes(frame: Frame) -> int:
    """Of a pair on disk, float32: 1.42 MB in OpenFWI's frame."""
    return 4 * (math.prod(frame.gather_shape) + math.prod(frame.velocity_shape))


@dataclass(frozen=True, slots=True)
class SimulatedDataset:
    """Result of a run.

    Attributes:
        directory: root of the dataset, one folder per family.
        pairs: in the dataset, all families together.
        files: data files, each with its model file.
        kept: of these, how many were complete before this run.
    """

    directory: Path
    pairs: int
    files: int
    kept: int


@dataclass(frozen=True, slots=True)
class _File:
    family: str
    number: int
    count: int


def simulate_dataset(
    out: Path,
    *,
    families: Sequence[str],
    count: int,
    seed: int,
    engine: Engine = "deepwave",
    boundary: Boundary = ABSORBING,
    frame: Frame = OPENFWI_FRAME,
    processes: int | None = None,
    per_file: int = 500,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedDataset:
    """Simulate pairs of velocity models and gathers into OpenFWI's files.

    What file ``number`` (from 1) of a family holds depends on the seed, the family, the number and its length alone:
    not on the number of processes, the other families, or how often the run was stopped. Call again with the same
    arguments to go on. The workers import the calling script anew, so that it needs ``if __name__ == "__main__":``.

    Args:
        out: root of the dataset; made if absent.
        families: of `families.FAMILIES`, `families.EXTRA_FAMILIES` and `families.BROAD_FAMILIES`.
        count: pairs of each family.
        seed: of everything drawn, 0 or more.
        engine: see `wavefield.simulate`.
        boundary: likewise.
        frame: that the pairs are recorded in.
        processes: workers, each of one thread; None: one per core.
        per_file: pairs per file.
        device: of ``deepwave``, see `wavefield.simulate`; a GPU rounds otherwise than a CPU.
        progress: called with (pairs done, pairs in all) as they are done.

    Raises:
        InvalidConfig: an unknown or repeated family, or a number out of range.
        DatasetError: ``out`` holds a dataset of other arguments, another run writes it, the disk is too full, or a
            worker died.
        MissingExtra: the engine is not installed.
    """
    if processes is not None and processes < 1:
        raise InvalidConfig(f"{processes} processes; at least 1 is needed.")
    manifest = dataset_recipe(
        families, count=count, seed=seed, engine=engine, boundary=boundary, frame=frame, per_file=per_file
    )
    # Tried here so that a wrong option is refused before anything is written
    try_engine(families[0], engine=engine, boundary=boundary, frame=frame, device=device)
    files = [
        _File(family, number, min(per_file, count - start))
        for family in families
        for number, start in enumerate(range(0, count, per_file), start=1)
    ]
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out), ExitStack() as opened:
        written = {family: set(written_numbers(out, family)) for family in families}
        claim(out / MANIFEST, manifest, holds_pairs=any(written.values()), indent=2)
        missing = [file for file in files if file.number not in written[file.family]]
        left, total = sum(file.count for file in missing), count * len(families)
        if progress is not None:
            progress(total - left, total)
        record = partial(simulate, frame=frame, engine=engine, boundary=boundary, device=device)
        fill(
            out,
            (chunk for file in missing for chunk in _chunks(out, file, seed, frame, record, opened)),
            left=left,
            total=total,
            pair_bytes=pair_bytes(frame),
            processes=processes,
            uses_torch=engine == "deepwave",
            progress=progress,
        )
    return SimulatedDataset(out, total, len(files), len(files) - len(missing))


def dataset_recipe(
    families: Sequence[str],
    *,
    count: int,
    seed: int,
    engine: Engine,
    boundary: Boundary = ABSORBING,
    frame: Frame = OPENFWI_FRAME,
    per_file: int,
) -> dict[str, Any]:
    """What a folder of `simulate_dataset` says of itself, as JSON; arguments as there.

    Raises:
        InvalidConfig: an unknown or repeated family, or a number out of range.
    """
    _check(families, count, seed, per_file)
    manifest: dict[str, Any] = {
        "format": 1,
        "seisbind": version("seisbind"),
        "seed": seed,
        "families": list(families),
        "count": count,
        "per_file": per_file,
        "engine": engine,
        "boundary": asdict(boundary),
        "geology": checksum(families),
    }
    if frame != OPENFWI_FRAME:
        manifest["frame"] = frame.to_dict()
    return manifest


def try_engine(family: str, *, engine: Engine, boundary: Boundary, frame: Frame, device: str) -> None:
    """Record one sample. Raises what `wavefield.simulate` raises for options that cannot be."""
    tried = generate(family, 1, np.random.default_rng(0), frame=frame)
    simulate(tried, frame=frame, engine=engine, boundary=boundary, samples=1, device=device)


def simulate_file(
    out: Path,
    family: str,
    *,
    number: int,
    count: int,
    seed: int,
    engine: Engine,
    boundary: Boundary = ABSORBING,
    frame: Frame = OPENFWI_FRAME,
    device: str = "cpu",
) -> None:
    """Write one pair of files of a dataset in this process: what `simulate_dataset` writes under its number.

    Args:
        out: root of the dataset.
        number: of the file, from 1.
        count: pairs in it.

    Raises:
        OSError: the disk refuses.
    """
    record = partial(simulate, frame=frame, engine=engine, boundary=boundary, device=device)
    with ExitStack() as opened:
        for chunk in _chunks(out, _File(family, number, count), seed, frame, record, opened):
            chunk.store(chunk.record())


def _check(families: Sequence[str], count: int, seed: int, per_file: int) -> None:
    known = FAMILIES + EXTRA_FAMILIES + BROAD_FAMILIES
    unknown = [family for family in families if family not in known]
    if unknown or not families or len(set(families)) != len(families):
        raise InvalidConfig(
            f"Name one or more different families of {', '.join(known)}; got {', '.join(families) or 'none'}."
        )
    if count < 1 or per_file < 1 or seed < 0:
        raise InvalidConfig(
            f"count {count}, per_file {per_file} and seed {seed}: the first two start at 1, the seed at 0."
        )


def _chunks(
    out: Path, file: _File, seed: int, frame: Frame, record: Callable[[Float32], Float32], opened: ExitStack
) -> Iterator[Chunk]:
    """Open a pair of files, draw its velocity models, and cut it into chunks; the last one stored closes the files.

    Their random stream is the child (family, number) of the seed. Unwinding ``opened`` with an exception removes them.
    """
    writing = opened.enter_context(ExitStack())
    arrays = writing.enter_context(writing_pair(out, file.family, number=file.number, count=file.count, frame=frame))
    child = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(file.family.encode()), file.number))
    arrays.velocity[:, 0] = generate(file.family, file.count, np.random.default_rng(child), frame=frame)
    left = file.count

    def store(rows: slice, gathers: Gathers) -> None:
        nonlocal left
        arrays.gathers[rows] = gathers
        left -= len(gathers)
        if not left:
            writing.close()

    for rows in rows_of_chunks(file.count):
        velocity = np.array(arrays.velocity[rows, 0])
        yield Chunk(len(velocity), partial(record, velocity), partial(store, rows))
