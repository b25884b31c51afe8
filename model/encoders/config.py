"""The sizes that encoders are built from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seisbind.model.errors import InvalidConfig

MIN_BLOCKS = (2, 2, 2)


@dataclass(frozen=True, slots=True)
class EncoderConfig:
    """All that is needed to build the encoders again, with a `Frame`; stored with the weights.

    Attributes:
        kind: ``seisbind`` or ``paper``.
        width: channels of the first residual stage over the gathers; doubled in each of the next two.
        velocity_width: the same for the velocity encoder.
        neck: channels of the last feature map over the gathers, before it is read as a whole.
        hidden: width of the layer before each embedding.
        ahead: residual blocks over the gathers before the first stage halves them.
        blocks: residual blocks of each stage over the gathers, at least two.
        mixers: residual layers over the gather as a whole.
        finish: residual blocks at each of the map head's two resolutions.
        map_error: 1 where the map head states the error of each cell, else 0.
        families: names of the family head's classes; without any, there is no such head. Training takes them from
            its pairs.
        kinds: names of the kinds of ground that another head tells apart, ``families`` and kinds foreign to them, over
            which nothing is read well; without any, there is no such head. Training of `errors_only` takes them from
            its pairs.
    """

    kind: Literal["seisbind", "paper"] = "seisbind"
    width: int = 48
    velocity_width: int = 32
    neck: int = 96
    hidden: int = 768
    ahead: int = 0
    blocks: tuple[int, int, int] = MIN_BLOCKS
    mixers: int = 0
    finish: int = 0
    map_error: int = 0
    families: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def foreign(self) -> tuple[bool, ...]:
        """Of each of the ``kinds``, whether it is none of the ``families``."""
        return tuple(kind not in self.families for kind in self.kinds)

    def __post_init__(self) -> None:
        counts = self.ahead, self.mixers, self.finish
        if min(counts) < 0 or len(self.blocks) != len(MIN_BLOCKS) or min(self.blocks) < MIN_BLOCKS[0]:
            raise InvalidConfig(
                f"Encoders need 'ahead', 'mixers' and 'finish' of 0 or more (got {counts}) and three 'blocks' of "
                f"{MIN_BLOCKS[0]} or more (got {self.blocks})."
            )
        if self.map_error not in (0, 1):
            raise InvalidConfig(f"Encoders' 'map_error' is 0 or 1; got {self.map_error!r}.")
        if self.kind == "paper" and (any(counts) or self.map_error or self.blocks != MIN_BLOCKS):
            raise InvalidConfig("The paper's encoders have a fixed number of layers.")
