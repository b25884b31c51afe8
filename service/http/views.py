"""The large parts of an answer, from which pictures are drawn: the gather and the ground as the encoder sees them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from seisbind.model.frame import Frame
from seisbind.model.survey.preparation import Prepared
from seisbind.service.engine.answers import Retrieval
from seisbind.service.engine.bodies import retrieval_body
from seisbind.service.schemas import CoarseVelocityBody, RetrievalBody, TracesBody

PICTURED_SHOTS = 64  # whose traces one answer holds: 3 MB of text
INT16 = 32767


def bodies(retrievals: Sequence[Retrieval], prepared: Prepared, include: Sequence[str]) -> list[RetrievalBody]:
    """The answers for the gathers of one request, with the parts in ``include``.

    Traces are those of the first gathers, as many as have `PICTURED_SHOTS` shots between them.
    """
    found = []
    pictured = PICTURED_SHOTS // prepared.traces.shape[1]
    for number, retrieval in enumerate(retrievals):
        body = retrieval_body(retrieval, include)
        if "velocity" in include and retrieval.velocity is not None:
            body.velocity = coarse_velocity(retrieval.velocity, prepared.frame)
        if "traces" in include and number < pictured:
            body.traces = traces(prepared, number)
        found.append(body)
    return found


def coarse_velocity(velocity: NDArray[np.float32], frame: Frame) -> CoarseVelocityBody:
    """``velocity``: ``(depth, x)`` over the ground of a gallery's model, m/s, in fewer cells."""
    cell_m = frame.depth_cells * frame.cell_m / len(velocity)
    return CoarseVelocityBody(cell_m=cell_m, m_s=velocity.round().astype(int).tolist())


def traces(prepared: Prepared, number: int) -> TracesBody:
    """One of the prepared gathers."""
    gather = prepared.traces[number]
    scale = float(np.abs(gather).max()) / INT16
    return TracesBody(
        shots=gather.shape[0],
        samples=gather.shape[1],
        receivers=gather.shape[2],
        dt_s=prepared.frame.dt_s,
        shot_x_m=prepared.shot_x_m[number].tolist(),
        receiver_step_m=prepared.frame.receiver_spacing_m,
        scale=scale,
        int16=b64encode((gather / scale).round().astype("<i2").tobytes()).decode(),
    )
