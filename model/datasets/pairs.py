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

from seisbind.model.datasets.openfwi import TEST_SHARE, Dataset, Split
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
LIVE = "live"  # in shards of surveys that do not record every trace of the frame
DTYPES = {"traces": "F16", "velocity": "F32", "descriptors": "F32", "family": "I64", PLACES: "F32", LIVE: "BOOL"}
RECIPE = "recipe.json"  # of a folder of simulated shards, see `acquisition.simulate_pairs`
TEST_SHARDS = "test_shards"  # in a recipe: how many of the last shards are the test part


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
        live: ``(n, shot, receiver)`` bool, false where the survey has no trace; None where it has all.
    """

    traces: Tensor
    velocity: Tensor
    descriptors: Tensor
    family: Tensor
    families: tuple[str, ...]
    frame: Frame = OPENFWI_FRAME
    shot_x_m: Tensor | None = None
    live: Tensor | None = None

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
        parts: dict[str, Any] = {name: change(part) for name, part in self.parts().items()}
        return replace(self, **parts)

    def parts(self) -> dict[str, Tensor]:
        """The tensors that there are, by name."""
        parts = {name: getattr(self, name) for name in (*FIELDS, PLACES, LIVE)}
        return {name: part for name, part in parts.items() if part is not None}

    def places(self) -> Tensor:
        """``(n, shot)`` positions of the shots, the frame's own included."""
        if self.shot_x_m is not None:
            return self.shot_x_m
        return own_places(self.frame).to(self.traces.device).expand(len(self), -1)

    def live_traces(self) -> Tensor:
        """``(n, shot, receiver)`` bool: which traces were recorded."""
        if self.live is not None:
            return self.live
        shape = len(self), self.traces.shape[1], self.traces.shape[3]
        return torch.ones(shape, dtype=torch.bool, device=self.traces.device)

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
    tensors = {name: part.cpu().contiguous() for name, part in pairs.parts().items()}
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


def share_held_out(shards: int) -> int:
    """How many of so many shards are the test part: the last fifth, at least one of two, none of one."""
    return max(1, shards // TEST_SHARE) if shards > 1 else 0


def held_out_shards(directory: Path) -> int | None:
    """How many of the last shards of a folder its recipe sets apart; None: it sets none apart, or there is none.

    Raises:
        DatasetError: the recipe cannot be read.
    """
    shards = _recipe(directory).get(TEST_SHARDS)
    return None if shards is None else int(shards)


def load_pairs(
    directory: Path,
    first: int | None = None,
    *,
    before: Sequence[Path] = (),
    split: Split = "all",
    rows: Callable[[int], Tensor] | None = None,
) -> PairSet:
    """Read the shards of `save_pairs`; with ``first``, only those that hold the first so many pairs.

    All pairs of the folders ``before`` come before them. The families are those of all, in the order in which they are
    first listed.

    Args:
        directory: of the shards.
        first: see above.
        before: see above.
        split: which part of ``directory``, where its recipe sets some shards apart.
        rows: of the number of all these pairs, those to keep in memory, ascending (`training.ranks`).

    Raises:
        DatasetError: no shards there, one that is not what it should be, or, of a part, no recipe that has parts or
            shards that are missing.
    """
    if split != "all":
        files = _part_of(directory, split)
    elif first is None:
        files = sorted(directory.glob(SHARDS))
    else:
        files = [shard_path(directory, number) for number in range(math.ceil(first / SHARD))]
    found = [*((folder, sorted(folder.glob(SHARDS))) for folder in before), (directory, files)]
    for folder, shards in found:
        if not shards:
            raise DatasetError(f"No pairs-*.safetensors in {folder}.")
    files = [path for _, shards in found for path in shards]
    counts, listed, frames = [], [], []
    joined: dict[str, Tensor] = {}
    there = set(FIELDS)
    try:
        for path in files:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise DatasetError(f"{path} is a link or no regular file; put the shard itself there.")
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                listed.append(metadata["families"].split("\n"))
                frames.append(stored_frame(json.loads(metadata.get("frame", "null"))))
                if frames[-1] != frames[0]:
                    raise DatasetError(
                        f"{path} is of another frame than {files[0]}: {frames[-1]}, not {frames[0]}. They cannot be "
                        "trained on together."
                    )
                _check_header(path, file, frames[0])
                counts.append(file.get_slice("family").get_shape()[0])
        families = list(dict.fromkeys(name for names in listed for name in names))
        total, held = sum(counts), 0
        kept = torch.arange(total) if rows is None else rows(total)
        for path, names, count, end in zip(files, listed, counts, np.cumsum(counts).tolist(), strict=True):
            chosen = kept[(kept >= end - count) & (kept < end)] - (end - count)
            with safe_open(path, framework="pt") as file:
                own = {PLACES, LIVE}.intersection(file.keys())
                there |= own
                for name in (*FIELDS, PLACES, LIVE):
                    part = file.get_tensor(name) if name in own or name in FIELDS else _usual(name, count, frames[0])
                    _check_values(path, name, part, len(names))
                    if name == "family":
                        part = torch.tensor([families.index(each) for each in names])[part]
                    if name not in joined:
                        joined[name] = torch.empty((len(kept), *part.shape[1:]), dtype=part.dtype)
                    joined[name][held : held + len(chosen)] = part if rows is None else part[chosen]
            held += len(chosen)
    except (SafetensorError, KeyError, OSError, RuntimeError, ValueError, InvalidConfig) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is not a shard of training pairs ({error}); simulate it again.") from error
    joined = {name: part for name, part in joined.items() if name in there}
    return PairSet(**joined, families=tuple(families), frame=frames[0])


def _usual(name: str, count: int, frame: Frame) -> Tensor:
    """What a shard without `PLACES` or `LIVE` means by it."""
    if name == PLACES:
        return own_places(frame).expand(count, -1)
    shots, _, receivers = frame.prepared_shape
    return torch.ones((1, shots, receivers), dtype=torch.bool).expand(count, -1, -1)


def _recipe(directory: Path) -> dict[str, Any]:
    """The recipe of a folder of shards; empty where there is none."""
    path = directory / RECIPE
    if not path.is_file():
        return {}
    try:
        recipe = json.loads(path.read_text(encoding="utf-8"))
        shards = recipe.get(TEST_SHARDS)
        if shards is not None and not (type(shards) is int and shards >= 0):
            raise ValueError(f"{TEST_SHARDS} is {shards!r}")
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); restore it, or take it away.") from error
    return dict(recipe)


def _part_of(directory: Path, split: Split) -> list[Path]:
    """The shards of a part, of which none may be missing: they would be found in the other after the simulation."""
    recipe = _recipe(directory)
    test = recipe.get(TEST_SHARDS)
    if test is None:
        raise DatasetError(f"{directory} holds shards without a test part; read all of them, or name other pairs.")
    count, per_shard = recipe.get("count"), recipe.get("per_shard", SHARD)
    if type(count) is not int or type(per_shard) is not int or per_shard < 1:
        raise DatasetError(f"{directory / RECIPE} says {count!r} pairs, {per_shard!r} a shard; restore it.")
    whole = [shard_path(directory, number) for number in range(math.ceil(count / per_shard))]
    missing = sum(not path.exists() for path in whole)
    if missing:
        raise DatasetError(
            f"{missing} of the {len(whole)} shards of {directory} are missing; run its simulation again to go on."
        )
    return whole[len(whole) - test :] if split == "test" else whole[: len(whole) - test]


def _check_header(path: Path, file: Any, frame: Frame) -> None:
    """Raises DatasetError where a part of a shard has another dtype or shape than pairs of the frame have."""
    count = file.get_slice("family").get_shape()[:1]
    shapes: dict[str, tuple[int, ...]] = {
        "traces": frame.prepared_shape,
        "velocity": frame.velocity_shape,
        "descriptors": (len(NAMES),),
        "family": (),
        PLACES: (len(frame.shot_x_m),),
        LIVE: (len(frame.shot_x_m), frame.receivers),
    }
    for name in (*FIELDS, *{PLACES, LIVE}.intersection(file.keys())):
        part = file.get_slice(name)
        found, wanted = (part.get_dtype(), part.get_shape()), (DTYPES[name], [*count, *shapes[name]])
        if found != wanted:
            raise DatasetError(
                f"{path} has {name} of {found[0]} {found[1]}; pairs of {frame.name} have {wanted[0]} {wanted[1]}. "
                "Simulate it again."
            )


def _check_values(path: Path, name: str, part: Tensor, listed: int) -> None:
    """Raises DatasetError for numbers that no pair has: not finite, or a family that is not listed."""
    if name == "family":
        if len(part) and not 0 <= int(part.min()) <= int(part.max()) < listed:
            raise DatasetError(f"{path} has families {int(part.min())} to {int(part.max())}, and lists {listed}.")
    elif not bool(torch.isfinite(part).all()):
        count = int(part.numel() - torch.isfinite(part).sum())
        raise DatasetError(f"{path} has {count} of {part.numel()} numbers of {name} that are NaN or infinite.")


def prepare_files(
    dataset: Dataset,
    *,
    rows: Callable[[int], Tensor] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairSet:
    """Prepare every pair of OpenFWI-layout files, gathers recorded as those of their frame are.

    Args:
        dataset: the files.
        rows: as `load_pairs`.
        progress: called with (done, total).
    """
    if not len(dataset):
        raise DatasetError("There are no pairs in that part of the data; name another split, or give more files.")
    families = tuple(sorted(set(dataset.families.tolist())))
    names = {name: i for i, name in enumerate(families)}
    frame = dataset.frame
    kept = np.arange(len(dataset)) if rows is None else rows(len(dataset)).numpy()
    traces = torch.empty((len(kept), *frame.prepared_shape), dtype=torch.float16)
    velocity = np.empty((len(kept), *frame.velocity_shape), dtype=np.float32)
    step = 50
    for start in range(0, len(kept), step):
        part = slice(start, min(start + step, len(kept)))
        prepared = prepare(dataset.gathers(kept[part]), frame=frame)
        traces[part] = scale_to_unit_rms(torch.from_numpy(prepared.traces))
        velocity[part] = dataset.velocity(kept[part])
        if progress is not None:
            progress(part.stop, len(kept))
    described = np.concatenate(
        [describe(velocity[i : i + CHUNK], cell_m=frame.cell_m) for i in range(0, len(velocity), CHUNK)]
    )
    return PairSet(
        traces=traces,
        velocity=torch.from_numpy(velocity),
        descriptors=torch.from_numpy(described).reshape(len(kept), len(NAMES)),
        family=torch.tensor([names[name] for name in dataset.families[kept].tolist()], dtype=torch.int64),
        families=families,
        frame=frame,
    )
