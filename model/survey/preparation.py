"""Acquisition geometry, and the way from recorded gathers to the canonical grid that the encoders see.

The canonical grid is that of a `Frame`: its receivers, samples and sampling interval. OpenFWI's is a line of 70
receivers every 10 m over 1 s, in samples of 4 ms: a 15 Hz Ricker has less than 1e-5 of its power above 60 Hz, so the
published 1 ms axis carries nothing more. `prepare` is the only place that resamples, maps receivers and fixes
polarity; amplitude is normalised inside the seismic encoder (`networks.condition`), so that training and serving share
both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey
from seisbind.model.frame import MAX_SHOTS as MAX_SHOTS
from seisbind.model.frame import OPENFWI_FRAME, Frame, in_words
from seisbind.model.frame import Survey as Survey

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

REACH_BITS = 30  # peaks within 1e-9 to 1e9 are summed and squared in float32 as they are
BLOCK = 25  # canonical samples that are resampled together
SINC_HALF_WIDTH = 8  # zero crossings kept on each side of the resampling kernel
POLARITY_TRACES = 3  # nearest live traces of each shot that vote on polarity
POLARITY_RATIO = 1.15  # the larger lobe must exceed the other by this much to vote
LEAST_LIVE = 1e-3  # share of live traces that a dead shot is taken to have, so that it is chosen last
COST_STEP = 1e-9  # to which costs of shots are rounded
LEAST_STEP_M = 1e-3  # between places, where all shots are at one


OPENFWI = OPENFWI_FRAME.survey


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the preparation did or assumed: a stable ``code`` and a sentence for people."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """Gathers on the canonical grid, amplitudes still linear.

    Attributes:
        traces: ``(batch, shot, time, receiver)`` float32; zero where a trace is not live.
        live: ``(batch, shot, receiver)`` bool.
        shot_x_m: ``(batch, shot)`` float32, metres from the first receiver of the line.
        notes: what was done, a tuple for each gather.
        frame: whose grid it is; OpenFWI's has 250 samples and 70 receivers.
    """

    traces: Float32
    live: Bool
    shot_x_m: Float32
    notes: tuple[tuple[Note, ...], ...] = field(default=())
    frame: Frame = OPENFWI_FRAME

    def __len__(self) -> int:
        return len(self.traces)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """Gathers ``(batch, shot, time, receiver)`` as they came, with each trace's extremes, which say most of them."""

    array: Float32
    high: Float32  # (batch, shot, receiver)
    low: Float32

    @property
    def alive(self) -> Bool:
        """``(batch, shot, receiver)``; a trace that is constant in time carries nothing."""
        return np.asarray(self.high > self.low)


def short_line(receiver_x_m: tuple[float, ...], frame: Frame) -> str | None:
    """What is wrong with a line of receivers that is too short, if it is."""
    length_m = receiver_x_m[-1] - receiver_x_m[0]
    if length_m >= frame.min_line_m:
        return None
    return (
        f"The receiver line is {length_m:g} m long; at least {frame.min_line_m:g} m of the canonical "
        f"{frame.line_m:g} m are needed."
    )


def _also(fault: str | None) -> str:
    return f" {fault}" if fault else ""


def check_gathers(gathers: ArrayLike, survey: Survey, *, frame: Frame = OPENFWI_FRAME) -> Float32:
    """Gathers as float32 ``(batch, shot, time, receiver)``, checked against ``survey``.

    Raises:
        InvalidGather: wrong axes or lengths, not real numbers, NaN or infinite samples, a record too short, or a
            gather that is zero or constant throughout.
    """
    return _checked(gathers, survey, frame).array


def _checked(gathers: ArrayLike, survey: Survey, frame: Frame) -> _Recorded:
    array = np.asarray(gathers)
    if array.dtype.kind not in "fiu" or array.dtype.itemsize > 8:
        raise InvalidGather(f"Gathers hold real samples (float or integer); this array has dtype {array.dtype}.")
    if array.ndim == 3:
        array = array[None]
    shots, receivers = len(survey.shot_x_m), len(survey.receiver_x_m)
    if array.ndim != 4 or array.shape[1] != shots or array.shape[3] != receivers:
        raise InvalidGather(
            f"Expected (shot, time, receiver) or (batch, shot, time, receiver) with {shots} shots and "
            f"{receivers} receivers; got shape {np.shape(gathers)}."
        )
    if not len(array):
        raise InvalidGather("The stack holds no gather (its first axis has length 0).")
    record_s = array.shape[2] * survey.dt_s
    if record_s < frame.min_record_s:
        raise InvalidGather(
            f"The record lasts {record_s:.3f} s ({array.shape[2]} samples of {survey.dt_s * 1e3:g} ms); at least "
            f"{frame.min_record_s:g} s are needed. If the sampling interval is another, pass dt_s."
            + _also(short_line(survey.receiver_x_m, frame))
        )
    high, low = array.max(axis=2), array.min(axis=2)  # both are NaN where a sample is
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        first = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
        count = int(array.size - np.isfinite(array).sum())
        raise InvalidGather(
            f"{count} of {array.size} samples are NaN or infinite, the first at (gather, shot, time, receiver) = "
            f"{first}. Mute or interpolate them first."
        )
    with np.errstate(over="ignore"):  # said below
        array, high, low = (each.astype(np.float32, copy=False) for each in (array, high, low))
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise InvalidGather("Some samples exceed the range of float32 (3.4e38); scale the gathers down.")
    recorded = _Recorded(array, high, low)
    varies = recorded.alive.any(axis=(1, 2))
    if not varies.all():
        raise InvalidGather(
            f"Gather {int(np.argmin(varies))} is constant along time in every trace: nothing was recorded."
        )
    return recorded


def prepare(gathers: ArrayLike, survey: Survey | None = None, *, frame: Frame = OPENFWI_FRAME) -> Prepared:
    """Map gathers to the grid of a frame: anti-aliased in time, by position in space, in OpenFWI's polarity.

    Args:
        gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure in any linear unit.
        survey: where and how they were recorded; its first receiver becomes x = 0. None for the frame's own line.
        frame: of the weights that will see them.

    Returns:
        The prepared gathers, each with notes on what was done.

    Raises:
        InvalidGather: see `check_gathers`.
        InvalidSurvey: a line too short, or no shot on it.
    """
    survey = frame.survey if survey is None else survey
    recorded = _in_reach(_checked(gathers, survey, frame))
    shots = _shots_on_line(recorded, survey, frame)
    notes: list[Note] = []
    array = _resample_time(_of_shots(recorded.array, shots.number), survey.dt_s, frame, notes)
    alive = _of_shots(recorded.alive, shots.number)
    across = receiver_map(survey.receiver_x_m, frame=frame)
    if len(survey.receiver_x_m) == frame.receivers and np.array_equal(across, np.eye(frame.receivers)):
        traces, live = array, alive
    else:
        traces, live = _map_receivers(array, alive, survey, across, frame, notes)
    if not live.all():
        traces = np.where(live[:, :, None, :], traces, np.float32(0))
    each, nodes = [], np.asarray(frame.survey.receiver_x_m)
    for gather, gather_live, shot_x_m, said in zip(traces, live, shots.x_m, shots.notes, strict=True):
        own = [*said, *notes]
        if not gather_live.any():
            raise InvalidGather("No live trace falls on the line after mapping; check the receiver positions.")
        dead = int(gather_live.size - gather_live.sum())
        if dead:
            own.append(Note("dead_traces", f"{dead} of {gather_live.size} canonical traces are dead or uncovered."))
        if _polarity(gather, gather_live, shot_x_m, nodes) < 0:
            np.negative(gather, out=gather)
            own.append(Note("polarity_flipped", "The direct wave starts negative; the gather was multiplied by -1."))
        each.append(tuple(own))
    return Prepared(
        traces=np.ascontiguousarray(traces, dtype=np.float32),
        live=live,
        shot_x_m=shots.x_m.astype(np.float32),
        notes=tuple(each),
        frame=frame,
    )


def _in_reach(recorded: _Recorded) -> _Recorded:
    """Gathers whose squares would leave float32's range, scaled by a power of two; the gain is removed later anyway."""
    _, exponent = np.frexp(np.maximum(recorded.high, -recorded.low).max(axis=(1, 2)))
    exponent = np.where(np.abs(exponent) > REACH_BITS, exponent, 0)
    if not exponent.any():
        return recorded
    down = -exponent[:, None, None]
    scaled = np.ldexp(recorded.array, down[..., None])
    return _Recorded(scaled, np.ldexp(recorded.high, down), np.ldexp(recorded.low, down))


@dataclass(frozen=True, slots=True)
class _Shots:
    """Which shots of each gather are used: ``number`` and ``x_m`` ``(batch, shot)``, and what is said of the choice."""

    number: NDArray[np.intp]
    x_m: NDArray[np.float64]
    notes: tuple[tuple[Note, ...], ...]


def _of_shots(array: NDArray[Any], number: NDArray[np.intp]) -> NDArray[Any]:
    """``(batch, shot, ..)``: the shots ``number`` (batch, shot) of each gather."""
    if np.array_equal(number[0], np.arange(array.shape[1])):  # all of them
        return array
    if (number == number[0]).all():
        return np.asarray(array[:, number[0]])
    return np.asarray(array[np.arange(len(array))[:, None], number])


def _shots_on_line(recorded: _Recorded, survey: Survey, frame: Frame) -> _Shots:
    """The shots of each gather that lie on the line; of more than the frame has, those that `spread_shots` takes."""
    first, line_m, margin_m = survey.receiver_x_m[0], frame.line_m, frame.shot_margin_m
    if (fault := short_line(survey.receiver_x_m, frame)) is not None:
        raise InvalidSurvey(fault)
    x = np.asarray(survey.shot_x_m, dtype=np.float64) - first
    keep = np.flatnonzero((x >= -margin_m) & (x <= line_m + margin_m))
    if not len(keep):
        raise InvalidSurvey(
            f"No shot lies on the line: shots at {x.min():g} to {x.max():g} m from the first receiver, usable are "
            f"{-margin_m:g} to {line_m + margin_m:g} m."
        )
    notes: list[Note] = []
    if len(keep) < len(x):
        notes.append(Note("shots_left_out", f"{len(x) - len(keep)} of {len(x)} shots lie off the line; left out."))
    gathers, most = len(recorded.array), len(frame.shot_x_m)
    if len(keep) <= most:
        said = (*notes, *_positions_said(x[keep], frame))
        return _Shots(np.tile(keep, (gathers, 1)), np.tile(x[keep], (gathers, 1)), (said,) * gathers)
    on_line = np.asarray(survey.receiver_x_m) - first <= line_m + frame.on_node_m
    live = recorded.alive[:, keep][..., on_line].mean(axis=2)
    strength = (recorded.high - recorded.low)[:, keep][..., on_line].sum(axis=2, dtype=np.float64)
    number = np.stack([keep[spread_shots(x[keep], *each, count=most)] for each in zip(live, strength, strict=True)])
    said_of_each = []
    for chosen in x[number]:
        where = ", ".join(f"{position:g}" for position in chosen)
        text = (
            f"Of {len(keep)} shots on the line, {most} were used, those at {where} m: no record of training "
            "had more. They lie as evenly as shots with live traces allow."
        )
        said_of_each.append((*notes, Note("shots_chosen", text), *_positions_said(chosen, frame)))
    return _Shots(number, x[number], tuple(said_of_each))


def _positions_said(x_m: NDArray[np.float64], frame: Frame) -> tuple[Note, ...]:
    """A note unless the shots lie where the frame's own do."""
    own = frame.shot_x_m
    if len(x_m) == len(own) and np.allclose(x_m, own, atol=frame.on_node_m):
        return ()
    where = ", ".join(f"{position:g}" for position in x_m[:8])
    usual = f"{in_words(len(own))} at {own[0]:g}-{own[-1]:g} m"
    return (Note("shot_positions", f"{len(x_m)} shots at {where} m; trained mostly on {usual}."),)


def spread_shots(
    x_m: NDArray[np.float64], live: NDArray[np.floating], strength: NDArray[np.floating], *, count: int
) -> NDArray[np.intp]:
    """``(count,)`` numbers, by position, of the shots that cover a line most evenly.

    ``count`` places divide the span of the shots into equal steps. Of all choices the one is taken with the least sum,
    over its shots, of the squared distance to the place, in steps, and the squared number of dead traces for each live
    one: a shot with a fifth of its traces dead counts as one a quarter of a step off its place. The order of the shots
    does not matter; of choices that are as good, which the mirror image may exchange, the one with the stronger shots
    is taken, so that a mirrored record gets the mirrored choice.

    Args:
        x_m: ``(shot,)``, more than ``count`` of them.
        live: ``(shot,)`` share of the traces that are live.
        strength: ``(shot,)`` of the recorded amplitudes, in any unit.
        count: shots wanted, two or more.
    """
    order = np.lexsort((strength, live, x_m))
    x, live, strength = x_m[order], live[order], strength[order]
    seen = x[live > 0] if (live > 0).any() else x
    step = max(float(np.ptp(seen)) / (count - 1), LEAST_STEP_M)
    places = np.linspace(seen.min(), seen.max(), count)
    dead = (1 - live) / np.maximum(live, LEAST_LIVE)
    cost = np.square((x - places[:, None]) / step) + np.square(dead)  # (place, shot)
    whole = np.rint(cost / COST_STEP).astype(np.int64).tolist()  # as whole numbers, equal choices are exactly equal
    weak = (-strength).tolist()
    ends: list[tuple[int, float, tuple[int, ...]]]  # the best choice so far that ends with each shot
    ends = [(first, weak[shot], (shot,)) for shot, first in enumerate(whole[0])]
    for place in range(1, count):
        before = accumulate(ends, min)
        ends = [
            (cost + whole[place][shot], weakness + weak[shot], (*chosen, shot))
            for shot, (cost, weakness, chosen) in zip(range(place, len(x)), before, strict=False)
        ]
    return np.asarray(order[list(min(ends)[2])])


@lru_cache(maxsize=16)
def _time_kernel(
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


def _resample_time(array: Float32, dt_s: float, frame: Frame, notes: list[Note]) -> Float32:
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
    step = out_dt_s / dt_s  # what lies beyond the kernel's reach from the last canonical sample is not read
    read = min(samples, int(np.ceil((out_samples + SINC_HALF_WIDTH) * max(step, 1.0))) + 1)
    for rows, across, weights in _time_kernel(read, float(dt_s), out_samples, out_dt_s):
        np.matmul(weights, array[:, :, across], out=out[:, :, rows])
    return out


@lru_cache(maxsize=16)
def receiver_map(receiver_x_m: tuple[float, ...], *, frame: Frame) -> NDArray[np.float64]:
    """``(nodes, receivers)``: weights of the recorded traces in each canonical one; an all-zero row is uncovered.

    A trace on a node is taken as it is. On an evenly spaced line the rest are windowed-sinc interpolated (low-pass
    if the line is finer than the frame's); on any other, linearly between neighbours at most `Frame.max_gap_m` apart.
    """
    nodes, on_node_m, max_gap_m = frame.receivers, frame.on_node_m, frame.max_gap_m
    node_m = frame.receiver_spacing_m
    x = np.asarray(receiver_x_m) - receiver_x_m[0]
    gaps = np.diff(x)
    spacing = float(np.median(gaps))
    even = bool(np.ptp(gaps) < 0.02 * spacing) and spacing <= max_gap_m
    weights = np.zeros((nodes, len(x)))
    for node in range(nodes):
        distance = x - node * node_m
        nearest = int(np.abs(distance).argmin())
        if abs(distance[nearest]) <= on_node_m and (not even or spacing >= 0.9 * node_m):
            weights[node, nearest] = 1
        elif x[0] - on_node_m <= node * node_m <= x[-1] + on_node_m:
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


def _map_receivers(
    array: Float32, alive: Bool, survey: Survey, across: NDArray[np.float64], frame: Frame, notes: list[Note]
) -> tuple[Float32, Bool]:
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
    array = np.where(alive[:, :, None, :], array, np.float32(0))  # a stuck receiver must not leak into its neighbours
    traces = np.einsum("bstr,nr->bstn", array, across.astype(np.float32), optimize=True)
    needs = (np.abs(across) > 0.05).astype(np.float32)  # one dead trace with such a weight kills the trace made of it
    live = np.einsum("bsr,nr->bsn", (~alive).astype(np.float32), needs) == 0
    return traces.astype(np.float32), live & (across != 0).any(axis=1)


def _polarity(gather: Float32, live: Bool, shot_x_m: NDArray[np.float64], nodes: NDArray[np.float64]) -> int:
    """-1 if the direct wave's larger lobe is negative on most near traces, else +1.

    In 2-D the direct wave of a positive Ricker is its half integral: one positive lobe about twice the negative
    ones (OpenFWI: -27..57). ``gather``: (shot, time, receiver), ``live``: (shot, receiver), ``nodes``:
    (receiver,) x in metres.
    """
    vote = 0
    for shot, shot_live, x in zip(gather, live, shot_x_m, strict=True):
        near = np.argsort(np.abs(nodes - x) + 1e6 * ~shot_live, kind="stable")[:POLARITY_TRACES]
        for receiver in near[shot_live[near]]:
            high, low = float(shot[:, receiver].max()), float(-shot[:, receiver].min())
            vote += (high > POLARITY_RATIO * low) - (low > POLARITY_RATIO * high)
    return -1 if vote < 0 else 1
