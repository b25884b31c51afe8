"""What crosses HTTP for sections: the fields of a request, and the lines of its answer."""

from __future__ import annotations

from base64 import b64decode

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from seisbind.service.schemas import Problem, QuantityBody, Strict, WarningBody


class SectionFields(Strict):
    """Query parameters or form fields of a section."""

    scale: str = Field(
        "1",
        max_length=60,
        description="True lengths over those of the weights' frame, s; where the ground is slower or faster also its "
        "velocities, as s,k; auto chooses from the record.",
        examples=["1"],
    )
    target_depth_m: float | None = Field(None, description="That the section has to reach; with scale auto.")
    step_m: float | None = Field(
        None, description="From one window to the next at most, metres; half a window.", examples=[400]
    )


class WindowBody(BaseModel):
    """What one window contributed to a section, in true units."""

    x_m: tuple[float, float] = Field(description="First and last position along the line.")
    shots: int = Field(description="Pseudo-shots that were used.")
    live: float = Field(description="Share of their traces that are live.")
    lack: str | None = Field(description="Why nothing was read; null where something was.")
    likely: bool | None = Field(description="As in in_distribution of a retrieval, like score and reason.")
    score: float | None
    reason: str | None
    model_id: str | None = Field(description="Of the gallery's first match.")
    similarity: float | None
    physics: dict[str, QuantityBody] | None
    warnings: list[WarningBody]


class SectionProgress(BaseModel):
    """A line of a section's answer: the windows that were read since the last."""

    done: int = Field(description="Windows so far.")
    windows: int = Field(description="In the whole section.")
    read: list[WindowBody]
    generation: str | None = Field(
        default=None, description="Of the gallery that was searched; null if it was changed meanwhile."
    )


class SectionBody(BaseModel):
    """Arrays are base64 of little-endian float32, ``(depth, column)``, NaN where nothing is known."""

    depth_cells: int
    columns: int
    cell_m: float = Field(description="Spacing of the cells along depth and the line, metres.")
    x0_m: float = Field(description="Position of the first column along the line, metres.")
    velocity: str = Field(description="m/s.")
    low: str | None = Field(description="Lower end of each cell's 90 % interval; null where the weights state none.")
    high: str | None
    disagreement: str = Field(description="Standard deviation of the windows that overlap there, m/s.")
    weight: str = Field(description="``(column,)`` how much data each column has; 0 where nothing is known.")
    scale: tuple[float, float] = Field(description="s and k.")
    weights: str
    gallery: str
    generation: str | None = Field(
        default=None, description="Of the gallery, for all windows; null if it was changed meanwhile."
    )
    warnings: list[WarningBody]

    def array(self, name: str) -> NDArray[np.float32] | None:
        """One of its arrays; None where there is none."""
        text = getattr(self, name)
        if text is None:
            return None
        array = np.frombuffer(b64decode(text), "<f4").astype(np.float32)
        return array if name == "weight" else array.reshape(self.depth_cells, self.columns)


class SectionAnswer(BaseModel):
    """The last line of a section's answer."""

    section: SectionBody


class SectionError(BaseModel):
    """The last line of a section's answer where it could not be made."""

    error: Problem
