"""Datasets of simulated pairs in OpenFWI's layout, by as many processes as there are cores.

The calling process draws the velocity models and writes the files; workers only turn maps into gathers. So what is
written does not depend on how many workers there are, and a run that was stopped, however rudely, goes on where it was:
finished files stay, the others are made again.
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from seisbind.model.datasets.openfwi import MANIFEST as MANIFEST
from seisbind.model.datasets.openfwi import PairArrays, writing_pair, written_numbers
from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.files import lock, replacing
from seisbind.model.frame import OPENFWI_FRAME, Frame, stored_frame
from seisbind.model.ground.families import EXTRA_FAMILIES, FAMILIES, checksum, generate
from seisbind.model.waves.wavefield import ABSORBING, Boundary, Engine, Float32, simulate

LOCK = ".seisbind.lock"
CHUNK = 8  # pairs a worker simulates at a time, about 1.5 s: Ctrl-C waits for them, and progress moves by them
CHUNKS_A_WORKER = 2  # handed out ahead, so that no worker waits while a file is finished and the next is drawn


class Manifest(BaseModel):
    """``seisbind.json``: all that determines the pairs of a dataset.

    ``geology`` is a checksum of two maps of each family at seed 0, so that a changed generator is noticed. Without a
    ``frame`` the pairs are of OpenFWI's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    seisbind: str
    seed: int
    families: tuple[str, ...]
    count: int
    per_file: int
    engine: Engine
    boundary: Boundary
    geology: str
    frame: dict[str, Any] | None = None

    def written(self) -> str:
        """As JSON; OpenFWI's frame is left out, as before there were others."""
        return self.model_dump_json(indent=2, exclude={"frame"} if self.frame is None else None)

    def of_frame(self) -> Frame:
        """What the pairs are recorded in. Raises InvalidConfig."""
        return stored_frame(self.frame)


def pair_bytes(frame: Frame) -> int:
    """Of a pair on disk, float32: 1.42 MB in OpenFWI's frame."""
    return 4 * (math.prod(frame.gather_shape) + math.prod(frame.velocity_shape))


@dataclass(frozen=True, slots=True)
class SimulatedDataset:
    """What a run left behind.

    Attributes:
        directory: root of the dataset, one folder a family.
        pairs: in the dataset, all families together.
        files: data files, each with its model file.
        kept: of these, found finished by this run.
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
    progress: Callable[[int, int], None] | None = None,
) -> SimulatedDataset:
    """Simulate pairs of velocity models and gathers into OpenFWI's files.

    What file ``number`` (from 1) of a family holds depends on the seed, the family, the number and its length alone:
    not on the number of processes, the other families, or how often the run was stopped. Call again with the same
    arguments to go on. The workers import the calling script anew, so that it needs ``if __name__ == "__main__":``.

    Args:
        out: root of the dataset; made if absent.
        families: of `families.FAMILIES` and `families.EXTRA_FAMILIES`.
        count: pairs of each family.
        seed: of everything drawn, 0 or more.
        engine: see `wavefield.simulate`.
        boundary: likewise.
        frame: that the pairs are recorded in.
        processes: workers, each of one thread; None: one a core.
        per_file: pairs a file.
        progress: called with (pairs done, pairs in all) as they are done.

    Raises:
        InvalidConfig: an unknown or repeated family, or a number out of range.
        DatasetError: ``out`` holds a dataset of other arguments, another run writes it, the disk is too full, or a
            worker died.
        MissingExtra: the engine is not installed.
    """
    manifest = _manifest(families, count, seed, engine, boundary, per_file, frame)
    workers = (os.cpu_count() or 1) if processes is None else processes
    if workers < 1:
        raise InvalidConfig(f"{workers} processes; at least 1 is needed.")
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        _claim(out, manifest)
        files = _files(manifest)
        written = {family: set(written_numbers(out, family)) for family in manifest.families}
        missing = [file for file in files if file.number not in written[file.family]]
        left = sum(file.count for file in missing)
        total = count * len(manifest.families)
        free = shutil.disk_usage(out).free
        if free < left * pair_bytes(frame):
            raise _disk_full(out, left, frame, f"{free:,} are free")
        report = progress or (lambda done, total: None)
        report(total - left, total)
        try:
            with closing(_write(out, manifest, missing, workers)) as writing:
                for done in writing:
                    left -= done
                    report(total - left, total)
        except BrokenProcessPool as error:
            raise DatasetError(
                f"A simulation process died with {left} pairs to go, perhaps out of memory. Run again to go on, with "
                f"fewer processes than {workers}."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full(out, left, frame, str(error)) from error
    return SimulatedDataset(out, total, len(files), len(files) - len(missing))


def _manifest(
    families: Sequence[str],
    count: int,
    seed: int,
    engine: Engine,
    boundary: Boundary,
    per_file: int,
    frame: Frame,
) -> Manifest:
    known = FAMILIES + EXTRA_FAMILIES
    unknown = [family for family in families if family not in known]
    if unknown or not families or len(set(families)) != len(families):
        raise InvalidConfig(
            f"Name one or more different families of {', '.join(known)}; got {', '.join(families) or 'none'}."
        )
    if count < 1 or per_file < 1 or seed < 0:
        raise InvalidConfig(
            f"count {count}, per_file {per_file} and seed {seed}: the first two start at 1, the seed at 0."
        )
    # Tried here so that a wrong option is refused before anything is written
    tried = generate(families[0], 1, np.random.default_rng(0), frame=frame)
    simulate(tried, frame=frame, engine=engine, boundary=boundary, samples=1)
    return Manifest(
        seisbind=version("seisbind"),
        seed=seed,
        families=tuple(families),
        count=count,
        per_file=per_file,
        engine=engine,
        boundary=boundary,
        geology=checksum(families),
        frame=None if frame == OPENFWI_FRAME else frame.to_dict(),
    )


def _files(manifest: Manifest) -> list[_File]:
    starts = range(0, manifest.count, manifest.per_file)
    return [
        _File(family, number, min(manifest.per_file, manifest.count - start))
        for family in manifest.families
        for number, start in enumerate(starts, start=1)
    ]


def _velocity(manifest: Manifest, file: _File) -> Float32:
    """``(count, depth, x)``, from the file's own stream: the seed's child (family, number)."""
    child = np.random.SeedSequence(manifest.seed, spawn_key=(zlib.crc32(file.family.encode()), file.number))
    return generate(file.family, file.count, np.random.default_rng(child), frame=manifest.of_frame())


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Hold the directory's lock; the system lets go of it when the process ends, however it ends."""
    with (out / LOCK).open("w") as file:
        try:
            lock(file.fileno())
        except BlockingIOError as error:
            raise DatasetError(f"Another process is writing {out}; wait for it or choose another directory.") from error
        yield


def _claim(out: Path, manifest: Manifest) -> None:
    """Write the manifest, or check that the one there says the same.

    Raises:
        DatasetError: it does not, or cannot be read, or there are pairs without one.
    """
    path = out / MANIFEST
    if path.exists():
        try:
            there = Manifest.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise DatasetError(f"{path} cannot be read ({error.error_count()} faults); use a new directory.") from error
        mine, theirs = manifest.model_dump(), there.model_dump()
        here, its = manifest.of_frame(), _frame_of(there, path)
        mine["frame"], theirs["frame"] = str(here), str(here if its == here else its)
        differs = [f"{key} {theirs[key]!r} there, {mine[key]!r} here" for key in mine if mine[key] != theirs[key]]
        if differs:
            raise DatasetError(
                f"{out} holds a dataset made otherwise: {'; '.join(differs)}. Give the same arguments to go on with "
                "it, or use a new directory."
            )
        return
    strangers = [family for family in manifest.families if written_numbers(out, family)]
    if strangers:
        raise DatasetError(f"{out / strangers[0]} holds pairs, but {path} is missing; use a new directory.")
    with replacing(path, temporary=path.with_name(MANIFEST + ".partial")) as temporary:
        temporary.write_text(manifest.written() + "\n")


def _frame_of(manifest: Manifest, path: Path) -> Frame:
    try:
        return manifest.of_frame()
    except InvalidConfig as error:
        raise DatasetError(f"{path} cannot be read ({error}); use a new directory.") from error


def _disk_full(out: Path, left: int, frame: Frame, cause: str) -> DatasetError:
    size = left * pair_bytes(frame)
    return DatasetError(
        f"The {left} pairs to go need {size:,} bytes in {out}: {cause}. Make room, or ask for fewer pairs in a new "
        "directory."
    )


@dataclass(slots=True)
class _OpenFile:
    """A pair of files being filled: closing ``writing`` makes it appear, unwinding it with an exception removes it."""

    writing: ExitStack
    arrays: PairArrays
    empty: int  # pairs without gathers yet


_Running = dict[Future[Float32], tuple[_OpenFile, slice]]


def _write(out: Path, manifest: Manifest, files: Sequence[_File], workers: int) -> Generator[int, None, None]:
    """Make the files; yields the number of pairs that each chunk added. Leaving early leaves whole files only."""
    with ExitStack() as everything, _one_thread_each():
        pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(manifest.engine,)
        )
        everything.callback(pool.shutdown, cancel_futures=True)
        running: _Running = {}
        frame = manifest.of_frame()
        for file, rows in _chunks(out, manifest, files, everything):
            velocity = np.array(file.arrays.velocity[rows, 0])
            running[pool.submit(_gathers, velocity, manifest.engine, manifest.boundary, frame)] = file, rows
            while len(running) >= CHUNKS_A_WORKER * workers:
                yield from _collect(running)
        while running:
            yield from _collect(running)


def _chunks(
    out: Path, manifest: Manifest, files: Sequence[_File], everything: ExitStack
) -> Iterator[tuple[_OpenFile, slice]]:
    """Open one file after the other, its velocity filled in, and cut it into rows to simulate."""
    for file in files:
        writing = everything.enter_context(ExitStack())
        arrays = writing.enter_context(
            writing_pair(out, file.family, number=file.number, count=file.count, frame=manifest.of_frame())
        )
        arrays.velocity[:, 0] = _velocity(manifest, file)
        opened = _OpenFile(writing, arrays, file.count)
        for start in range(0, file.count, CHUNK):
            yield opened, slice(start, min(start + CHUNK, file.count))


def _collect(running: _Running) -> Iterator[int]:
    """Wait for chunks, put them into their files, close those that are full."""
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        file, rows = running.pop(future)
        gathers = future.result()
        file.arrays.gathers[rows] = gathers
        file.empty -= len(gathers)
        if not file.empty:
            file.writing.close()
        yield len(gathers)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started meanwhile inherit OMP_NUM_THREADS=1: two threads on two busy cores were 20 times slower."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _start_worker(engine: Engine) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if engine == "deepwave":
        import torch

        torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()  # a killed parent cannot tell its workers to stop
        os._exit(1)


def _gathers(velocity: Float32, engine: Engine, boundary: Boundary, frame: Frame) -> Float32:
    return simulate(velocity, frame=frame, engine=engine, boundary=boundary)
