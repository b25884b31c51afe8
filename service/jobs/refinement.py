"""The refinement of `seisbind.model.inversion` as the worker takes its steps, from what a job holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig, RefineStep
from seisbind.model.inversion.refinement import Refinement
from seisbind.service.jobs.job import Float32, RefineInput, RefineRequest


class JobRefinement:
    """A `worker.Steps`."""

    def __init__(self, refinement: Refinement) -> None:
        self._refinement = refinement

    @property
    def done(self) -> bool:
        """Whether there is no further iteration."""
        return self._refinement.done

    @property
    def stopped(self) -> str | None:
        """Why it ended before its last iteration."""
        return self._refinement.stopped

    @property
    def velocity(self) -> Float32:
        """``(depth, x)`` m/s: the model so far."""
        return self._refinement.velocity

    def step(self) -> RefineStep:
        """One iteration."""
        return self._refinement.step()

    def state(self) -> dict[str, NDArray[Any]]:
        """From which it can be taken up again."""
        return self._refinement.state()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The result, in the frame's units; what it does not have is left out."""
        result = self._refinement.result()
        found = {each.name: getattr(result, each.name) for each in fields(result)}
        return {name: np.asarray(value) for name, value in found.items() if value is not None}


def make_refinement(
    request: RefineRequest, inputs: RefineInput, state: Mapping[str, NDArray[Any]] | None
) -> JobRefinement:
    """A refinement from its start, or from a checkpoint.

    Raises:
        InvalidConfig, InvalidGather, MissingExtra: it cannot be done.
    """
    torch.set_num_threads(1)
    observed = Observed(inputs.traces, inputs.live, inputs.shot_x_m, request.frame)
    config = RefineConfig(iterations=request.iterations)
    if state is None:
        return JobRefinement(Refinement.begin(observed, inputs.starts, config, prior=inputs.prior))
    return JobRefinement(Refinement.resume(observed, config, state))
