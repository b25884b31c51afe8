"""What a refinement is asked for, what it says of an iteration, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RefineConfig:
    """How a refinement is done.

    Attributes:
        iterations: at most, over the trial of the starts and all bands.
        bands: upper corners, over the frame's peak frequency.
        keep_m: of the frame, from the top: not changed, as a layer of water.
        device: of torch.
        free_surface: whether waves are modelled with one; None for what explains the record better, `has_free_surface`.

    Raises:
        InvalidConfig: numbers that no refinement has.
    """

    iterations: int = 48
    bands: tuple[float, ...] = (0.4, 0.67, 1.0, 1.5)
    keep_m: float = 0.0
    device: str = "cpu"
    free_surface: bool | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= 10_000:
            raise InvalidConfig(f"A refinement takes 1 to 10000 iterations; got {self.iterations}.")
        if not self.bands or min(self.bands) <= 0 or self.keep_m < 0:
            raise InvalidConfig("A refinement has bands above 0 Hz, and keeps no negative depth.")


@dataclass(frozen=True, slots=True)
class RefineStep:
    """What one iteration did.

    Attributes:
        iteration: its number, from 1.
        of: most iterations that there will be.
        stage: ``start 1``, or ``up to 0.4 of the peak frequency``, which is true at any scale.
        residual: of the model that it ended with, which while starts are tried is that start's: rms of record less
            prediction over the record's, all frequencies, live traces.
        step_s: seconds that it took.
    """

    iteration: int
    of: int
    stage: str
    residual: float
    step_s: float


@dataclass(frozen=True, slots=True)
class Refined:
    """What came of a refinement, in the units of its frame.

    Attributes:
        velocity: ``(depth, x)`` m/s.
        low, high: ``(depth, x)`` m/s, 90 % interval: of the Gaussian about the model whose curvature is that of the
            misfit and of the priors, `WIDENED` to what it misses on drawn models, within the frame's velocities. Over
            many maps it holds so many cells, not in each (docs/refine.md has how many).
        illumination: ``(depth, x)`` how strongly the record answers to each block, over the strongest; 0 where no wave
            of the record has been.
        residual: ``(iteration,)`` see `RefineStep`.
        residual_before, residual_after: of the start that was gone on from as it was, and of ``velocity``.
        misfit: what is left of the record in the last band, rms over the record's there.
        source: ``(n,)`` the wavelet that was estimated, at the frame's samples, on the scale of the record.
        start: the number of the start that was gone on from.
        stopped: why it ended before its iterations did, or None.
        free_surface: whether waves were modelled with one.
    """

    velocity: Float32
    low: Float32
    high: Float32
    illumination: Float32
    residual: Float32
    residual_before: float
    residual_after: float
    misfit: float
    source: Float32
    start: int
    stopped: str | None
    free_surface: bool
