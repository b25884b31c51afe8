"""Jobs over velocity models: pairs with their gathers, in OpenFWI's layout, from families' seeds or from files.

Drawn pairs are those of `seisbind simulate`, made by the same function and under the same manifest. Workers write pairs
into the output folder themselves; a row says where each is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.datasets.openfwi import MANIFEST, family_name, pair_paths, writing_pair, written_numbers
from seisbind.model.datasets.simulation import dataset_recipe, simulate_file, try_engine
from seisbind.model.datasets.writer import claim, only_writer, rows_of_chunks
from seisbind.model.errors import (
    DatasetError,
    InvalidConfig,
    InvalidVelocityModel,
    MalformedUpload,
    SeisBindError,
    UnsupportedFormat,
)
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import check_velocity
from seisbind.model.ground.families import FAMILIES
from seisbind.model.waves.wavefield import ABSORBING, Engine, Float32, simulate
from seisbind.service.bulk.backends import failure
from seisbind.service.bulk.chunks import Chunk, Outcome, Row, make_part, ranges
from seisbind.service.bulk.inputs import START_BYTES, NpyFile
from seisbind.service.bulk.parquet import need_pyarrow
from seisbind.service.bulk.places import RemoteNpy, is_url, output_place, split_url, write_at
from seisbind.service.client.parts import Stack
from seisbind.service.formats.npy import NPY_MAGIC, read_npy_header

OPENFWI_MODELS = re.compile(r"model(\d+)\.npy")


@dataclass(frozen=True, slots=True)
class SimulationJob:
    """What is done with every velocity model. A `chunks.Job`.

    Attributes:
        out: root of the dataset; a path or a URL that every worker reaches.
        engine: see `wavefield.simulate`.
        frame: that the pairs are recorded in.
        per_file: pairs in a file, which is what a worker does at a time.
        families, count, seed: of pairs that are drawn, see `simulation.simulate_dataset`; no family where the models
            come from files.
    """

    out: str
    engine: Engine
    frame: Frame = OPENFWI_FRAME
    device: str = "cpu"
    per_file: int = 500
    families: tuple[str, ...] = ()
    count: int = 0
    seed: int = 0
    kind: str = "simulate"

    def asked(self) -> dict[str, object]:
        """See `chunks.Job.asked`: the dataset's manifest."""
        if self.families:
            return dataset_recipe(
                self.families, count=self.count, seed=self.seed, engine=self.engine, frame=self.frame,
                per_file=self.per_file,
            )  # fmt: skip
        recipe: dict[str, object] = {"format": 1, "seisbind": version("seisbind"), "engine": self.engine}
        return recipe | ({} if self.frame == OPENFWI_FRAME else {"frame": self.frame.to_dict()})

    def open(self) -> SimulationWorker:
        """See `chunks.Job.open`."""
        return SimulationWorker(self)

    def chunks(self, files: Sequence[str]) -> list[Chunk]:
        """See `chunks.Job.chunks`: one for each pair of files; of OpenFWI's own ``model{i}.npy`` one a file.

        Raises:
            InvalidConfig: two inputs whose pairs would have one name.
        """
        if self.families:
            return [
                chunk for at, name in enumerate(self.families) for chunk in ranges(at, name, self.count, self.per_file)
            ]
        found: list[Chunk] = []
        for at, name in enumerate(files):
            try:
                count = open_models(name).shape[0]
            except (SeisBindError, OSError, ValueError):  # its row says what is wrong with it
                found.append(Chunk(at, name))
                continue
            whole = OPENFWI_MODELS.fullmatch(_name(name)) is not None
            found += ranges(at, name, count, max(count, 1) if whole else self.per_file)
        named: dict[tuple[str, int], str] = {}
        for chunk in found:
            other = named.setdefault(self.target(chunk), chunk.file)
            if other != chunk.file:
                family, number = self.target(chunk)
                raise InvalidConfig(
                    f"Pairs of {other} and of {chunk.file} would both be number {number} of {family}; simulate them "
                    "into two folders, or rename one."
                )
        return found

    @contextmanager
    def holding(self) -> Iterator[None]:
        """See `chunks.Job.holding`: the dataset's folder, which has its manifest then.

        `seisbind train` reads it, and `seisbind simulate` goes on with it.

        Raises:
            DatasetError: it is of another recipe, or another run writes it.
        """
        place, recipe = output_place(self.out), self.asked()
        if is_url(place):
            bucket, key = split_url(place)
            path = f"{key.rstrip('/')}/{MANIFEST}".lstrip("/")
            if path not in bucket.listing(key.rstrip("/")):
                write_at(place, MANIFEST, f"{json.dumps(recipe, indent=2)}\n".encode())
            elif json.loads(bucket.read(path)) != json.loads(json.dumps(recipe)):
                raise DatasetError(f"{place} holds pairs of another recipe, as {MANIFEST} says; give another --out.")
            yield
            return
        out = Path(place)
        out.mkdir(parents=True, exist_ok=True)
        with only_writer(out):
            claim(out / MANIFEST, recipe, holds_pairs=any(out.glob("*/data/data*.npy")), indent=2)
            yield

    def target(self, chunk: Chunk) -> tuple[str, int]:
        """Family and number of the pair of files that a chunk becomes."""
        if self.families:
            return chunk.file, chunk.first // self.per_file + 1
        own = OPENFWI_MODELS.fullmatch(_name(chunk.file))
        if own is None:
            return re.sub(r"[^\w-]+", "-", PurePosixPath(_name(chunk.file)).stem), chunk.first // self.per_file + 1
        folders = [step for step in PurePosixPath(chunk.file).parts[:-1] if step != "model"]
        return family_name(re.sub(r"[^\w-]+", "-", folders[-1] if folders else "models")), int(own[1])


def _name(file: str) -> str:
    return PurePosixPath(file).name


class SimulationWorker:
    """Makes pairs. A `chunks.Worker`.

    Raises:
        SeisBindError: an engine that is not installed, or options that cannot be.
    """

    def __init__(self, job: SimulationJob) -> None:
        self._job = job
        self._place = output_place(job.out)
        family = (job.families or FAMILIES)[0]
        try_engine(family, engine=job.engine, boundary=ABSORBING, frame=job.frame, device=job.device)

    def close(self) -> None:
        """Nothing is held."""

    def source(self) -> dict[str, object]:
        """See `chunks.Worker.source`."""
        return {"weights": None, "gallery": None}

    def part(self, chunk: Chunk) -> Outcome:
        """See `chunks.Worker.part`. The pairs are written before."""
        try:
            rows = self._drawn(chunk) if self._job.families else self._given(chunk)
        except SeisBindError as error:
            found = failure(error, None)  # of the file: one of them, however many chunks it has
            rows = [{"error_code": found.code, "error_detail": found.detail}] if chunk.first == 0 else []
        family, number = self._job.target(chunk)
        about = {"file": None if self._job.families else chunk.file, "family": family, "number": number}
        return make_part(chunk, [about | row for row in rows], simulation_schema())

    def _drawn(self, chunk: Chunk) -> list[Row]:
        job = self._job
        family, number = job.target(chunk)
        with self._folder() as folder:
            if number not in written_numbers(folder, family):  # else by a run that was stopped before its part
                simulate_file(
                    folder, family, number=number, count=len(chunk), seed=job.seed, engine=job.engine,
                    frame=job.frame, device=job.device,
                )  # fmt: skip
            velocity = np.load(pair_paths(folder, family, number)[1], mmap_mode="r", allow_pickle=False)
            rows = [_pair(chunk.first + row, row, velocity[row]) for row in range(len(chunk))]
            self._send(folder, family, number)
        return rows

    def _given(self, chunk: Chunk) -> list[Row]:
        """Rows of models of a file: those that cannot be simulated have no pair, and the others move up."""
        job, (family, number) = self._job, self._job.target(chunk)
        stack = open_models(chunk.file)
        if tuple(stack.shape[2:]) != job.frame.velocity_shape:
            depth, x = job.frame.velocity_shape
            raise InvalidVelocityModel(
                f"{chunk.file} has models of {stack.shape[2]} x {stack.shape[3]} cells; pairs of {job.frame.name} have "
                f"{depth} x {x}. --frame names another."
            )
        last = stack.shape[0] if chunk.last is None else chunk.last
        usable: dict[int, Float32] = {}
        rows: dict[int, Row] = {}
        for index in range(chunk.first, last):
            try:
                usable[index] = self._checked(np.asarray(stack[index : index + 1]))
            except InvalidVelocityModel as error:
                rows[index] = {"model": index, "error_code": error.code, "error_detail": error.sentence}
        for row, (index, model) in enumerate(usable.items()):
            rows[index] = _pair(index, row, model)
        if usable:
            with self._folder() as folder:
                with writing_pair(folder, family, number=number, count=len(usable), frame=job.frame) as arrays:
                    arrays.velocity[:, 0] = np.stack(list(usable.values()))
                    for some in rows_of_chunks(len(usable)):
                        models = np.array(arrays.velocity[some, 0])
                        arrays.gathers[some] = simulate(models, frame=job.frame, engine=job.engine, device=job.device)
                self._send(folder, family, number)
        return [rows[index] for index in sorted(rows)]

    def _checked(self, stored: NDArray[Any]) -> Float32:
        """One model ``(depth, x)`` that the engine takes. Raises InvalidVelocityModel."""
        model: Float32 = check_velocity(stored)[0]
        simulate(model, frame=self._job.frame, engine=self._job.engine, samples=1, device=self._job.device)
        return model

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        """Where the worker writes: the output itself, or a folder whose files are sent there."""
        if not is_url(self._place):
            yield Path(self._place)
            return
        with TemporaryDirectory(prefix="seisbind-") as folder:
            yield Path(folder)

    def _send(self, folder: Path, family: str, number: int) -> None:
        """Pairs to the object store; the velocity models last, as on a disk."""
        if is_url(self._place):
            for path in pair_paths(folder, family, number):
                write_at(self._place, str(path.relative_to(folder)), path)


def open_models(name: str) -> Stack:
    """The velocity models ``(model, 1, depth, x)`` of an npy file or object, of which a range is read at a time.

    Raises:
        UploadRefused: no npy, or one that holds no models.
        DatasetError: it cannot be read.
    """
    try:
        if is_url(name):
            bucket, key = split_url(name)
            start, length = bucket.read(key, 0, START_BYTES), int(str(bucket.state(key)[0]))
        else:
            with Path(name).open("rb") as file:
                start, length = file.read(START_BYTES), Path(name).stat().st_size
    except OSError as error:
        raise DatasetError(f"{name} cannot be read: {error.strerror}.") from error
    if not start.startswith(NPY_MAGIC):
        raise UnsupportedFormat(f"Velocity models are read from npy; {name} starts with {start[:6]!r}.")
    header = read_npy_header(start)
    shape = header.shape
    shape = (1, *shape) if len(shape) == 2 else shape
    shape = (shape[0], 1, *shape[1:]) if len(shape) == 3 else shape
    if len(shape) != 4 or shape[1] != 1:
        raise MalformedUpload(
            f"Velocity models have the axes (depth, x), (model, depth, x) or (model, 1, depth, x); {name} has the "
            f"shape {header.shape}."
        )
    if header.fortran:
        raise UnsupportedFormat(f"{name} is stored with its first axis fastest; save numpy.ascontiguousarray of it.")
    header.check_length(length)
    header = replace(header, shape=shape)
    return RemoteNpy(bucket, key, header) if is_url(name) else NpyFile(Path(name), header)


def _pair(index: int, row: int, velocity: NDArray[Any]) -> Row:
    return {"model": index, "row": row, "min_velocity": float(velocity.min()), "max_velocity": float(velocity.max())}


def simulation_schema() -> Any:
    """The columns of a row for each model: ``row`` is its place in the pair of files. Raises MissingExtra."""
    pyarrow = need_pyarrow()
    text, number, whole = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    columns = {"file": text, "model": whole, "error_code": text, "error_detail": text, "family": text}
    columns |= {"number": whole, "row": whole, "min_velocity": number, "max_velocity": number}
    return pyarrow.schema(list(columns.items()))
