"""Training pairs on the canonical grid: prepared gathers beside their velocity models and descriptors.

They come from OpenFWI-layout files (`prepare_files`) or straight from a simulation (`acquisition.simulate_pairs`).
On disk a set is a folder of safetensors shards; a pair takes 0.2 MB.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seisbind.model.datasets.openfwi import Dataset
from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.files import replacing
from seisbind.model.frame import OPENFWI_FRAME, Frame, stored_frame
from seisbind.model.ground.descriptors import NAMES, describe
from seisbind.model.survey.preparation import prepare

SHARD = 250  # pairs per file: 49 MB of OpenFWI's, about half a minute of simulation
SHARDS = "pairs-*.safetensors"
CHUNK = 1000  # models described at once
FIELDS = ("traces", "velocity", "descriptors", "family")
PLACES = "shot_x_m"  # in shards whose shots are not all the frame's own


@dataclass(frozen=True, slots=True)
class PairSet:
    """Pairs held as tensors, on one device.

    Attributes:
        traces: ``(n, shot, time, receiver)`` float16, linear, each gather scaled to rms 1 (the encoder
            removes gain anyway).
        velocity: ``(n, depth, x)`` float32, m/s.
        descriptors: ``(n, 13)`` float32.
        family: ``(n,)`` int64 index into ``families``.
        families: names.
        frame: that they were made for; OpenFWI's has traces (5, 250, 70) and velocity (70, 70).
        shot_x_m: ``(n, shot)`` float32, metres from the first receiver; None where all are the frame's own.
    """

    traces: Tensor
    velocity: Tensor
    descriptors: Tensor
    family: Tensor
    families: tuple[str, ...]
    frame: Frame = OPENFWI_FRAME
    shot_x_m: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.traces)
        if not n == len(self.velocity) == len(self.descriptors) == len(self.family):
            lengths = [len(getattr(self, name)) for name in FIELDS]
            raise DatasetError(f"The parts of a pair set differ in length: {dict(zip(FIELDS, lengths, strict=True))}.")
        shapes = tuple(self.traces.shape[1:]), tuple(self.velocity.shape[1:])
        if shapes != (self.frame.prepared_shape, self.frame.velocity_shape):
            raise DatasetError(f"Traces {shapes[0]} and velocity {shapes[1]} are not of the frame {self.frame}.")

    def __len__(self) -> int:
        return len(self.traces)

    def to(self, device: torch.device | str) -> PairSet:
        return self._with(lambda part: part.to(device))

    def select(self, indices: Tensor | Sequence[int]) -> PairSet:
        index = torch.as_tensor(indices, device=self.traces.device)
        return self._with(lambda part: part[index])

    def _with(self, change: Callable[[Tensor], Tensor]) -> PairSet:
        names = FIELDS if self.shot_x_m is None else (*FIELDS, PLACES)
        parts: dict[str, Any] = {name: change(getattr(self, name)) for name in names}
        return replace(self, **parts)

    def places(self) -> Tensor:
        """``(n, shot)`` positions of the shots, the frame's own included."""
        if self.shot_x_m is not None:
            return self.shot_x_m
        return own_places(self.frame).to(self.traces.device).expand(len(self), -1)

    def family_names(self) -> NDArray[np.str_]:
        names: NDArray[np.str_] = np.asarray(self.families)[self.family.cpu().numpy()]
        return names


def own_places(frame: Frame) -> Tensor:
    """``(1, shot)`` positions of a frame's own shots, float32."""
    return torch.tensor([frame.shot_x_m])


def scale_to_unit_rms(traces: Tensor) -> Tensor:
    """Each gather of ``(n, shot, time, receiver)`` at rms 1, as float16 (peaks near 40, range to 6e-8)."""
    rms = traces.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp_min(1e-30)
    return (traces.float() / rms).half()


def pair_bytes(frame: Frame) -> int:
    """Of a pair on disk: float16 gathers, float32 velocity."""
    return 2 * math.prod(frame.prepared_shape) + 4 * math.prod(frame.velocity_shape)


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"pairs-{number:05d}.safetensors"


def save_shard(path: Path, pairs: PairSet) -> None:
    """Write one shard whole or not at all."""
    tensors = {name: getattr(pairs, name).cpu().contiguous() for name in FIELDS}
    if pairs.shot_x_m is not None:
        tensors[PLACES] = pairs.shot_x_m.cpu().contiguous()
    metadata = {"families": "\n".join(pairs.families)}
    if pairs.frame != OPENFWI_FRAME:
        metadata["frame"] = json.dumps(pairs.frame.to_dict())
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)


def save_pairs(directory: Path, pairs: PairSet) -> None:
    """Write ``pairs`` as shards ``pairs-00000.safetensors``, … into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, len(pairs), SHARD)):
        save_shard(shard_path(directory, number), pairs.select(range(start, min(start + SHARD, len(pairs)))))


def load_pairs(directory: Path, first: int | None = None, *, before: Sequence[Path] = ()) -> PairSet:
    """Read the shards of `save_pairs`; with ``first``, only those that hold the first so many pairs.

    All pairs of the folders ``before`` come before them.

    Raises:
        DatasetError: no shards there, or one that is not what it should be.
    """
    if first is None:
        files = sorted(directory.glob(SHARDS))
    else:
        files = [shard_path(directory, number) for number in range(math.ceil(first / SHARD))]
    found = [*((folder, sorted(folder.glob(SHARDS))) for folder in before), (directory, files)]
    for folder, shards in found:
        if not shards:
            raise DatasetError(f"No pairs-*.safetensors in {folder}.")
    files = [path for _, shards in found for path in shards]
    counts, families, frames = [], set(), []
    joined: dict[str, Tensor] = {}
    placed = False
    try:
        for path in files:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                families.add(metadata["families"])
                frames.append(stored_frame(json.loads(metadata.get("frame", "null"))))
                if frames[-1] != frames[0]:
                    raise DatasetError(
                        f"{path} is of another frame than {files[0]}: {frames[-1]}, not {frames[0]}. They cannot be "
                        "trained on together."
                    )
                counts.append(file.get_slice("family").get_shape()[0])
        for path, count, end in zip(files, counts, np.cumsum(counts), strict=True):
            with safe_open(path, framework="pt") as file:
                own = PLACES in file.keys()  # noqa: SIM118 (not a mapping)
                placed |= own
                for name in (*FIELDS, PLACES):
                    if name == PLACES and not own:
                        part = own_places(frames[0]).expand(count, -1)
                    else:
                        part = file.get_tensor(name)
                    if name not in joined:
                        joined[name] = torch.empty((sum(counts), *part.shape[1:]), dtype=part.dtype)
                    joined[name][end - count : end] = part
    except (SafetensorError, KeyError, OSError, RuntimeError, json.JSONDecodeError, InvalidConfig) as error:
        raise DatasetError(f"{path} is not a shard of training pairs ({error}); simulate it again.") from error
    if len(families) > 1:
        where = " and ".join(str(folder) for folder in (*before, directory))
        raise DatasetError(f"The shards in {where} list different families; they cannot be trained on together.")
    if not placed:
        del joined[PLACES]
    return PairSet(**joined, families=tuple(families.pop().split("\n")), frame=frames[0])


def prepare_files(dataset: Dataset, *, progress: Callable[[int, int], None] | None = None) -> PairSet:
    """Prepare every pair of OpenFWI-layout files, gathers recorded as those of their frame are.

    Args:
        dataset: the files.
        progress: called with (done, total).
    """
    if not len(dataset):
        raise DatasetError("There are no pairs in that part of the data; name another split, or give more files.")
    families = tuple(sorted(set(dataset.families.tolist())))
    names = {name: i for i, name in enumerate(families)}
    frame = dataset.frame
    traces = torch.empty((len(dataset), *frame.prepared_shape), dtype=torch.float16)
    velocity = np.empty((len(dataset), *frame.velocity_shape), dtype=np.float32)
    step = 50
    for start in range(0, len(dataset), step):
        index = np.arange(start, min(start + step, len(dataset)))
        prepared = prepare(dataset.gathers(index), frame=frame)
        traces[index] = scale_to_unit_rms(torch.from_numpy(prepared.traces))
        velocity[index] = dataset.velocity(index)
        if progress is not None:
            progress(int(index[-1]) + 1, len(dataset))
    described = np.concatenate(
        [describe(velocity[i : i + CHUNK], cell_m=frame.cell_m) for i in range(0, len(velocity), CHUNK)]
    )
    return PairSet(
        traces=traces,
        velocity=torch.from_numpy(velocity),
        descriptors=torch.from_numpy(described).reshape(len(dataset), len(NAMES)),
        family=torch.tensor([names[name] for name in dataset.families.tolist()], dtype=torch.int64),
        families=families,
        frame=frame,
    )
