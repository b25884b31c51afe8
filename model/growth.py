"""Trained encoders continued by larger ones: the layers that are added begin by adding nothing.

So the larger encoders answer as the smaller did until training moves them (Chen, Goodfellow and Shlens 2016, Net2Net).
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace

from torch import Tensor

from seisbind.model.encoders import EncoderConfig, Encoders

ADDED = ("ahead", "blocks", "mixers", "finish")  # counts of layers that may grow
NEW = re.compile(r"seismic\.(ahead|trunk|mixers|map_head\.middle|map_head\.fine)\.")


def difference(start: EncoderConfig, here: EncoderConfig) -> str:
    """Where ``here`` is not ``start`` with other families and perhaps more layers; empty where it is."""
    grown = {name: getattr(here, name) for name in ADDED if _covers(getattr(here, name), getattr(start, name))}
    pairs = zip(asdict(replace(start, families=here.families, **grown)).items(), asdict(here).values(), strict=True)
    return "; ".join(f"{name}: {there} there, {own} here" for (name, there), own in pairs if there != own)


def begin_as(encoders: Encoders, known: dict[str, Tensor], start: EncoderConfig) -> None:
    """Load the tensors ``known`` of encoders of the form ``start`` into larger ones.

    Raises:
        RuntimeError: a tensor that has no place here.
    """
    blocks = encoders.config.blocks
    first = [sum(blocks[:i]) for i in range(len(blocks))]
    stage = [i for i, count in enumerate(start.blocks) for _ in range(count)]

    def place(name: str) -> str:
        found = re.match(r"seismic\.trunk\.(\d+)\.", name)
        if found is None or start.kind != "seisbind":
            return name
        block = int(found[1])
        moved = first[stage[block]] + block - stage.index(stage[block])
        return f"seismic.trunk.{moved}.{name[found.end() :]}"

    missing, unexpected = encoders.load_state_dict({place(name): t for name, t in known.items()}, strict=False)
    lost = [name for name in missing if not NEW.match(name) and "family_head" not in name]
    if lost or unexpected:
        raise RuntimeError(f"No place for {unexpected}, and nothing for {lost}.")


def _covers(here: int | tuple[int, ...], start: int | tuple[int, ...]) -> bool:
    both = (here, start) if isinstance(here, tuple) and isinstance(start, tuple) else ((here,), (start,))
    return all(own >= there for own, there in zip(*both, strict=True))
