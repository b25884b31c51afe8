"""The state of a training run, and the file that it continues from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seisbind.model.encoders.networks import Encoders
from seisbind.model.errors import InvalidConfig
from seisbind.model.files import replacing
from seisbind.model.frame import OPENFWI_FRAME

CHECKPOINT = "checkpoint.safetensors"


@dataclass(slots=True)
class State:
    """Everything that a step changes and a checkpoint keeps."""

    encoders: Encoders
    averaged: Encoders
    optimizer: torch.optim.AdamW
    step: int = 0


def save_checkpoint(path: Path, state: State, made: dict[str, str]) -> None:
    """Write ``state`` to ``path``; ``made`` says what the run was made of, so that no other run continues it."""
    tensors = {f"encoders.{name}": t for name, t in state.encoders.state_dict().items()}
    tensors |= {f"averaged.{name}": t for name, t in state.averaged.state_dict().items()}
    for index, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in slots.items()}
    metadata = {"step": str(state.step), **made}
    with replacing(path) as partial:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial, metadata)


def stored_parts(path: Path) -> int | None:
    """The ``parts`` of the recipe of the run that a checkpoint is of; None where there is no checkpoint.

    Raises:
        InvalidConfig: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["config"]).get("parts", 1))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InvalidConfig(f"{path} cannot be read ({error}); start again without --resume.") from error


def load_checkpoint(path: Path, state: State, made: dict[str, str]) -> None:
    """Continue from the checkpoint of `save_checkpoint`.

    Raises:
        InvalidConfig: it cannot be read, or is of a run with another recipe, start or frame.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise InvalidConfig(f"{path} cannot be read ({error}); start again without --resume.") from error
    if metadata.get("config") != made["config"]:
        raise InvalidConfig(f"{path} is of a run with another configuration; train into another folder.")
    if metadata.get("start", "") != made["start"]:
        raise InvalidConfig(f"{path} is of a run that began from other weights; give it the same --start.")
    if metadata.get("frame", "") != made.get("frame", ""):
        raise InvalidConfig(
            f"{path} is of a run on pairs of another frame ({metadata.get('frame') or OPENFWI_FRAME}); these are of "
            f"{made.get('frame') or OPENFWI_FRAME}. Train into another folder."
        )
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, rest = name.split(".", 1)
        groups.setdefault(group, {})[rest] = tensor
    state.encoders.load_state_dict(groups["encoders"])
    state.averaged.load_state_dict(groups["averaged"])
    optimizer = state.optimizer.state_dict()
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in groups.get("optimizer", {}).items():
        index, slot = name.split(".", 1)
        slots.setdefault(int(index), {})[slot] = tensor
    optimizer["state"] = slots
    state.optimizer.load_state_dict(optimizer)
    state.step = int(metadata["step"])
