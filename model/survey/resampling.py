"""Resampling to the grid of a frame: a windowed sinc in time, and the weights of recorded traces in space."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from seisbind.model.frame import Frame, Survey
from seisbind.model.survey.notes import Note

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

BLOCK = 25  # canonical samples that are resampled together
SINC_HALF_WIDTH = 8  # zero crossings kept on each side of the resampling kernel


@lru_cache(maxsize=16)
def time_kernel(
    samples: int, dt_s: float, out_samples: int, out_dt_s: float
) -> tuple[tuple[slice, slice, Float32], ...]:
    """An ``(out_samples, samples)`` band matrix, a Kaiser-windowed sinc, low-pass where the input is finer.

    In blocks of `BLOCK` rows: the rows, the columns that they reach, and the weights.
    """
    step = out_dt_s / dt_s
    width = max(step, 1.0)  # input samples from one zero crossing to the next
    out = np.arange(out_samples)[:, None] * step
    reach = int(np.ceil(SINC_HALF_WIDTH * width))
    columns = np.round(out).astype(int) + np.arange(-reach, reach + 1)[None]
    distance = (columns - out) / width
    inside = np.clip(1 - (distance / SINC_HALF_WIDTH) ** 2, 0, None)
    weights = np.sinc(distance) * np.i0(6.0 * np.sqrt(inside)) / np.i0(6.0) * (inside > 0)
    weights /= weights.sum(axis=1, keepdims=True)  # as if the record were padded by zeros at both ends
    valid = (columns >= 0) & (columns < samples)
    rows = np.broadcast_to(np.arange(out_samples)[:, None], columns.shape)
    matrix = np.zeros((out_samples, samples), dtype=np.float32)
    matrix[rows[valid], columns[valid]] = weights[valid]
    blocks = []
    for start in range(0, out_samples, BLOCK):
        block = matrix[start : start + BLOCK]
        reached = np.flatnonzero(block.any(axis=0))
        if len(reached):  # none beyond the end of a short record
            across = slice(int(reached[0]), int(reached[-1]) + 1)
            blocks.append((slice(start, start + BLOCK), across, np.ascontiguousarray(block[:, across])))
    return tuple(blocks)


def resample_time(array: Float32, dt_s: float, frame: Frame, notes: list[Note]) -> Float32:
    """Gathers ``(batch, shot, time, receiver)`` at the samples of a frame; zeros after the end of a short record."""
    batch, shots, samples, receivers = array.shape
    out_samples, out_dt_s = frame.samples, frame.dt_s
    if not np.isclose(dt_s, (frame.record_dt_s, out_dt_s), rtol=1e-6).any():
        notes.append(Note("resampled", f"Resampled in time from {dt_s * 1e3:g} ms to {out_dt_s * 1e3:g} ms."))
    missing = out_samples * out_dt_s - samples * dt_s
    if missing > out_dt_s:
        notes.append(
            Note(
                "record_short",
                f"The last {missing:.3f} s of the canonical {frame.duration_text} are missing; zeros there.",
            )
        )
    out = np.zeros((batch, shots, out_samples, receivers), dtype=np.float32)
    read = min(samples, samples_read(dt_s, frame))  # what lies beyond the kernel's reach
    for rows, across, weights in time_kernel(read, float(dt_s), out_samples, out_dt_s):
        np.matmul(weights, array[:, :, across], out=out[:, :, rows])
    return out


def resample_traces(traces: Float32, dt_s: float, frame: Frame) -> Float32:
    """Traces ``(trace, time)`` at the samples of a frame, as `resample_time`: ``(trace, frame.samples)``."""
    out = np.zeros((len(traces), frame.samples), dtype=np.float32)
    for rows, across, weights in time_kernel(traces.shape[1], float(dt_s), frame.samples, frame.dt_s):
        np.matmul(traces[:, across], weights.T, out=out[:, rows])
    return out


def samples_read(dt_s: float, frame: Frame) -> int:
    """How many samples from the shot on `resample_traces` looks at."""
    step = frame.dt_s / dt_s
    return int(np.ceil((frame.samples + SINC_HALF_WIDTH) * max(step, 1.0))) + 1


@lru_cache(maxsize=64)
def receiver_map(receiver_x_m: tuple[float, ...], *, frame: Frame, moved_m: float = 0.0) -> NDArray[np.float64]:
    """``(nodes, receivers)``: weights of the recorded traces in each canonical one; an all-zero row is uncovered.

    A trace on a node is taken as it is. On an evenly spaced line the rest are windowed-sinc interpolated (low-pass
    if the line is finer than the frame's); on any other, linearly between neighbours at most `Frame.max_gap_m` apart.

    Args:
        receiver_x_m: of the recorded traces; the first of them is x = 0.
        frame: whose receivers are the canonical ones.
        moved_m: how far further along the line than those the traces are taken from.
    """
    nodes, on_node_m, max_gap_m = frame.receivers, frame.on_node_m, frame.max_gap_m
    node_m = frame.receiver_spacing_m
    x = np.asarray(receiver_x_m) - receiver_x_m[0]
    gaps = np.diff(x)
    spacing = float(np.median(gaps))
    even = bool(np.ptp(gaps) < 0.02 * spacing) and spacing <= max_gap_m
    weights = np.zeros((nodes, len(x)))
    for node, at in enumerate(np.arange(nodes) * node_m + moved_m):
        distance = x - at
        nearest = int(np.abs(distance).argmin())
        if abs(distance[nearest]) <= on_node_m and (not even or spacing >= 0.9 * node_m):
            weights[node, nearest] = 1
        elif x[0] - on_node_m <= at <= x[-1] + on_node_m:
            if even:
                scaled = distance / max(spacing, node_m)
                inside = np.clip(1 - (scaled / SINC_HALF_WIDTH) ** 2, 0, None)
                row = np.sinc(scaled) * np.sqrt(inside)
                weights[node] = row / row.sum()
            else:
                right = int(np.clip(np.searchsorted(distance, 0), 1, len(x) - 1))
                gap = x[right] - x[right - 1]
                if gap <= max_gap_m:
                    share = np.clip(-distance[right - 1] / gap, 0, 1)
                    weights[node, right - 1 : right + 1] = 1 - share, share
    return weights


def map_receivers(
    array: Float32, alive: Bool, survey: Survey, across: NDArray[np.float64], frame: Frame, notes: list[Note]
) -> tuple[Float32, Bool]:
    """Traces and live traces at the receivers of a frame, by the weights ``across`` of `receiver_map`."""
    on_node = np.count_nonzero((across == 1).any(axis=1))
    made = np.count_nonzero(across.any(axis=1)) - on_node
    span = survey.receiver_x_m[-1] - survey.receiver_x_m[0]
    notes.append(
        Note(
            "receivers_mapped",
            f"{len(survey.receiver_x_m)} receivers over {span:g} m mapped to the canonical {frame.receivers} over "
            f"{frame.line_m:g} m: {on_node} taken as they are, {made} interpolated, "
            f"{frame.receivers - on_node - made} uncovered.",
        )
    )
    return weigh_receivers(array, alive, across)


def weigh_receivers(array: Float32, alive: Bool, across: NDArray[np.float64]) -> tuple[Float32, Bool]:
    """Traces ``(.., time, receiver)`` and live traces ``(.., receiver)`` by the weights of `receiver_map`."""
    if not ((across != 0) & (across != 1)).any():  # each is one as it is, or none
        picked, some = across.argmax(axis=1), across.any(axis=1)
        live = alive[..., picked] & some
        return np.where(live[..., None, :], array[..., picked], np.float32(0)), live
    array = np.where(alive[..., None, :], array, np.float32(0))  # a stuck receiver must not leak into its neighbours
    traces = np.einsum("...tr,nr->...tn", array, across.astype(np.float32), optimize=True)
    needs = (np.abs(across) > 0.05).astype(np.float32)  # one dead trace with such a weight kills the trace made of it
    live = np.einsum("...r,nr->...n", (~alive).astype(np.float32), needs) == 0
    return traces.astype(np.float32), live & (across != 0).any(axis=1)
