"""Larger encoders initialised from trained smaller ones: added layers start as the identity.

So the larger encoders answer as the smaller ones until they are trained (Chen, Goodfellow and Shlens 2016, Net2Net).
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace

from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.networks import Encoders

ADDED = ("ahead", "blocks", "mixers", "finish", "map_error")  # counts of layers that may grow
COUNT_OF = {"ahead": "ahead", "mixers": "mixers", "map_head.middle": "finish", "map_head.fine": "finish"} | {
    "map_head.error": "map_error"
}
NUMBERED = re.compile(r"seismic\.(trunk|ahead|mixers|map_head\.middle|map_head\.fine|map_head\.error)\.(\d+)\.")
CLASSES_OF = {
    "family_head": "families",
    "kind_head": "kinds",
}  # heads that tell names apart


def difference(start: EncoderConfig, here: EncoderConfig) -> str:
    """How ``here`` differs from ``start``, other than in names and numbers of layers; empty if it does not."""
    free = {name: getattr(here, name) for name in (*CLASSES_OF.values(), *ADDED)}
    pairs = zip((asdict(start) | free).items(), asdict(here).values(), strict=True)
    return "; ".join(f"{name}: {there} there, {own} here" for (name, there), own in pairs if there != own)


def grown(start: EncoderConfig, here: EncoderConfig) -> EncoderConfig:
    """``here`` with at least as many layers as ``start``, so that no trained layer is dropped."""
    first, second, third = (max(pair) for pair in zip(start.blocks, here.blocks, strict=True))
    return replace(
        here,
        ahead=max(start.ahead, here.ahead),
        blocks=(first, second, third),
        mixers=max(start.mixers, here.mixers),
        finish=max(start.finish, here.finish),
        map_error=max(start.map_error, here.map_error),
    )


def begin_as(encoders: Encoders, start: Encoders) -> None:
    """Load the tensors of ``start`` into encoders without a `difference` and with at least as many layers.

    A head that tells names apart is loaded if both have the same names.

    Raises:
        RuntimeError: the forms do not match.
    """
    form, old = encoders.config, start.config
    anew = tuple(head for head, names in CLASSES_OF.items() if getattr(form, names) != getattr(old, names))

    def kept(name: str) -> bool:
        return not any(head in name for head in anew)

    known = {_place(name, old, form): t for name, t in start.state_dict().items() if kept(name)}
    missing, unexpected = encoders.load_state_dict(known, strict=False)
    lost = [name for name in missing if not _is_added(name, old, form) and kept(name)]
    if lost or unexpected:
        raise RuntimeError(f"No place for {unexpected}, and nothing for {lost}.")


def _place(name: str, old: EncoderConfig, form: EncoderConfig) -> str:
    """Name in a larger ``form`` of a parameter of the form ``old``: blocks are numbered across the stages."""
    found = NUMBERED.match(name)
    if found is None or found[1] != "trunk":
        return name
    stage, block = _stage_of(int(found[2]), old.blocks)
    return f"seismic.trunk.{sum(form.blocks[:stage]) + block}.{name[found.end() :]}"


def _is_added(name: str, old: EncoderConfig, form: EncoderConfig) -> bool:
    """Whether a parameter of ``form`` belongs to a layer that ``old`` lacks."""
    found = NUMBERED.match(name)
    if found is None:
        return False
    if found[1] != "trunk":
        return int(found[2]) >= int(getattr(old, COUNT_OF[found[1]]))
    stage, block = _stage_of(int(found[2]), form.blocks)
    return block >= old.blocks[stage]


def _stage_of(number: int, blocks: tuple[int, ...]) -> tuple[int, int]:
    """Stage of a block, and its number within the stage."""
    stage = 0
    while number >= blocks[stage]:
        number, stage = number - blocks[stage], stage + 1
    return stage, number
