"""Acquisition geometry, and the way from recorded gathers to the canonical grid that the encoders see.

The canonical grid is OpenFWI's line (70 receivers every 10 m) over 1 s, in samples of 4 ms: a 15 Hz Ricker has
less than 1e-5 of its power above 60 Hz, so the published 1 ms axis carries nothing more. `prepare` is the only
place that resamples, maps receivers and fixes polarity; amplitude is normalised inside the seismic encoder
(`encoders.condition`), so that training and serving share both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidGather, InvalidSurvey

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

CANONICAL_DT_S = 0.004
CANONICAL_SAMPLES = 250  # 1 s
CANONICAL_RECEIVERS = 70
CANONICAL_SPACING_M = 10.0
LINE_M = CANONICAL_SPACING_M * (CANONICAL_RECEIVERS - 1)

MAX_SHOTS = 64  # a gather of more shots than this is a stack of gathers sent with the wrong axes
TRAINED_SHOTS = 5  # of one record in training, at most; with 18, the 90 % intervals held .74 of the truths
ON_NODE_M = 1.0  # a receiver this close to a grid node is that node's receiver
MAX_GAP_M = 30.0  # traces further apart are not interpolated: 50 m is half a wavelength at 15 Hz and 1500 m/s
SHOT_MARGIN_M = 20.0  # a shot further outside the line than this was never trained on
MIN_LINE_M = 340.0  # half the canonical line: less aperture does not determine the middle of the model
REACH_BITS = 30  # peaks within 1e-9 to 1e9 are summed and squared in float32 as they are
MAX_POSITION_M = 1e8  # of any map projection: eastings with a zone number before them reach 6e7
MIN_RECORD_S = 0.6  # about the two-way time to 700 m at 2300 m/s
BLOCK = 25  # canonical samples that are resampled together
SINC_HALF_WIDTH = 8  # zero crossings kept on each side of the resampling kernel
POLARITY_TRACES = 3  # nearest live traces of each shot that vote on polarity
POLARITY_RATIO = 1.15  # the larger lobe must exceed the other by this much to vote
LEAST_LIVE = 1e-3  # share of live traces that a dead shot is taken to have, so that it is chosen last
COST_STEP = 1e-9  # to which costs of shots are rounded


@dataclass(frozen=True, slots=True)
class Survey:
    """Positions and sampling of a 2-D line, in metres along x and seconds.

    Raises:
        InvalidSurvey: positions not finite, too far off or not increasing (receivers); a sampling interval out of
            range.
    """

    shot_x_m: tuple[float, ...]
    receiver_x_m: tuple[float, ...]
    dt_s: float
    peak_hz: float | None = None
    source_depth_m: float = 10.0
    receiver_depth_m: float = 10.0

    def __post_init__(self) -> None:
        if not self.shot_x_m or not self.receiver_x_m:
            raise InvalidSurvey("A survey needs at least one shot and one receiver.")
        if len(self.shot_x_m) > MAX_SHOTS:
            raise InvalidSurvey(f"A gather of {len(self.shot_x_m)} shots; at most {MAX_SHOTS} are used at a time.")
        positions = np.asarray(self.shot_x_m + self.receiver_x_m, dtype=np.float64)
        if not np.isfinite(positions).all():
            raise InvalidSurvey("Shot and receiver positions must be finite numbers in metres.")
        farthest = float(positions[np.abs(positions).argmax()])
        if abs(farthest) > MAX_POSITION_M:
            raise InvalidSurvey(
                f"A position is {farthest:g} m; shots and receivers lie within {MAX_POSITION_M:g} m of the origin. Are "
                "they in another unit?"
            )
        if len(self.receiver_x_m) > 1 and np.diff(self.receiver_x_m).min() <= 0:
            at = int(np.diff(self.receiver_x_m).argmin())
            raise InvalidSurvey(
                f"Receiver positions must increase; receiver {at + 1} at {self.receiver_x_m[at + 1]:g} m follows "
                f"{self.receiver_x_m[at]:g} m. Sort the traces by position."
            )
        if not 1e-4 <= self.dt_s <= 0.008:
            raise InvalidSurvey(
                f"Sampling interval {self.dt_s:g} s is outside 0.0001-0.008 s; is it given in milliseconds?"
            )


OPENFWI = Survey(
    shot_x_m=tuple(float(10 * i) for i in (0, 17, 34, 52, 69)),
    receiver_x_m=tuple(float(10 * i) for i in range(70)),
    dt_s=0.001,
    peak_hz=15.0,
)


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the preparation did or assumed: a stable ``code`` and a sentence for people."""

    code: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """Gathers on the canonical grid, amplitudes still linear.

    Attributes:
        traces: ``(batch, shot, 250, 70)`` float32; zero where a trace is not live.
        live: ``(batch, shot, 70)`` bool.
        shot_x_m: ``(batch, shot)`` float32, metres from the first receiver of the line.
        notes: what was done, a tuple for each gather.
    """

    traces: Float32
    live: Bool
    shot_x_m: Float32
    notes: tuple[tuple[Note, ...], ...] = field(default=())

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


def short_line(receiver_x_m: tuple[float, ...]) -> str | None:
    """What is wrong with a line of receivers that is too short, if it is."""
    length_m = receiver_x_m[-1] - receiver_x_m[0]
    if length_m >= MIN_LINE_M:
        return None
    return (
        f"The receiver line is {length_m:g} m long; at least {MIN_LINE_M:g} m of the canonical {LINE_M:g} m are needed."
    )


def _also(fault: str | None) -> str:
    return f" {fault}" if fault else ""


def check_gathers(gathers: ArrayLike, survey: Survey) -> Float32:
    """Gathers as float32 ``(batch, shot, time, receiver)``, checked against ``survey``.

    Raises:
        InvalidGather: wrong axes or lengths, not real numbers, NaN or infinite samples, a record too short, or a
            gather that is zero or constant throughout.
    """
    return _checked(gathers, survey).array


def _checked(gathers: ArrayLike, survey: Survey) -> _Recorded:
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
    if record_s < MIN_RECORD_S:
        raise InvalidGather(
            f"The record lasts {record_s:.3f} s ({array.shape[2]} samples of {survey.dt_s * 1e3:g} ms); at least "
            f"{MIN_RECORD_S:g} s are needed. If the sampling interval is another, pass dt_s."
            + _also(short_line(survey.receiver_x_m))
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


def prepare(gathers: ArrayLike, survey: Survey = OPENFWI) -> Prepared:
    """Map gathers to the canonical grid: anti-aliased in time, by position in space, in OpenFWI's polarity.

    Args:
        gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure in any linear unit.
        survey: where and how they were recorded; its first receiver becomes x = 0.

    Returns:
        The prepared gathers, each with notes on what was done.

    Raises:
        InvalidGather: see `check_gathers`.
        InvalidSurvey: a line too short, or no shot on it.
    """
    recorded = _in_reach(_checked(gathers, survey))
    shots = _shots_on_line(recorded, survey)
    notes: list[Note] = []
    array = _resample_time(_of_shots(recorded.array, shots.number), survey.dt_s, notes)
    alive = _of_shots(recorded.alive, shots.number)
    across = receiver_map(survey.receiver_x_m)
    if len(survey.receiver_x_m) == CANONICAL_RECEIVERS and np.array_equal(across, np.eye(CANONICAL_RECEIVERS)):
        traces, live = array, alive
    else:
        traces, live = _map_receivers(array, alive, survey, across, notes)
    if not live.all():
        traces = np.where(live[:, :, None, :], traces, np.float32(0))
    each = []
    for gather, gather_live, shot_x_m, said in zip(traces, live, shots.x_m, shots.notes, strict=True):
        own = [*said, *notes]
        if not gather_live.any():
            raise InvalidGather("No live trace falls on the line after mapping; check the receiver positions.")
        dead = int(gather_live.size - gather_live.sum())
        if dead:
            own.append(Note("dead_traces", f"{dead} of {gather_live.size} canonical traces are dead or uncovered."))
        if _polarity(gather, gather_live, shot_x_m) < 0:
            np.negative(gather, out=gather)
            own.append(Note("polarity_flipped", "The direct wave starts negative; the gather was multiplied by -1."))
        each.append(tuple(own))
    return Prepared(
        traces=np.ascontiguousarray(traces, dtype=np.float32),
        live=live,
        shot_x_m=shots.x_m.astype(np.float32),
        notes=tuple(each),
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


def _shots_on_line(recorded: _Recorded, survey: Survey) -> _Shots:
    """The shots of each gather that lie on the line; of more than `TRAINED_SHOTS`, those that `spread_shots` takes."""
    first = survey.receiver_x_m[0]
    if (fault := short_line(survey.receiver_x_m)) is not None:
        raise InvalidSurvey(fault)
    x = np.asarray(survey.shot_x_m, dtype=np.float64) - first
    keep = np.flatnonzero((x >= -SHOT_MARGIN_M) & (x <= LINE_M + SHOT_MARGIN_M))
    if not len(keep):
        raise InvalidSurvey(
            f"No shot lies on the line: shots at {x.min():g} to {x.max():g} m from the first receiver, usable are "
            f"{-SHOT_MARGIN_M:g} to {LINE_M + SHOT_MARGIN_M:g} m."
        )
    notes: list[Note] = []
    if len(keep) < len(x):
        notes.append(Note("shots_left_out", f"{len(x) - len(keep)} of {len(x)} shots lie off the line; left out."))
    gathers = len(recorded.array)
    if len(keep) <= TRAINED_SHOTS:
        said = (*notes, *_positions_said(x[keep]))
        return _Shots(np.tile(keep, (gathers, 1)), np.tile(x[keep], (gathers, 1)), (said,) * gathers)
    on_line = np.asarray(survey.receiver_x_m) - first <= LINE_M + ON_NODE_M
    live = recorded.alive[:, keep][..., on_line].mean(axis=2)
    strength = (recorded.high - recorded.low)[:, keep][..., on_line].sum(axis=2, dtype=np.float64)
    number = np.stack([keep[spread_shots(x[keep], *each)] for each in zip(live, strength, strict=True)])
    said_of_each = []
    for chosen in x[number]:
        where = ", ".join(f"{position:g}" for position in chosen)
        text = (
            f"Of {len(keep)} shots on the line, {TRAINED_SHOTS} were used, those at {where} m: no record of training "
            "had more. They lie as evenly as shots with live traces allow."
        )
        said_of_each.append((*notes, Note("shots_chosen", text), *_positions_said(chosen)))
    return _Shots(number, x[number], tuple(said_of_each))


def _positions_said(x_m: NDArray[np.float64]) -> tuple[Note, ...]:
    """A note unless the shots lie where OpenFWI's do."""
    if len(x_m) == len(OPENFWI.shot_x_m) and np.allclose(x_m, OPENFWI.shot_x_m, atol=ON_NODE_M):
        return ()
    where = ", ".join(f"{position:g}" for position in x_m[:8])
    return (Note("shot_positions", f"{len(x_m)} shots at {where} m; trained mostly on five at 0-690 m."),)


def spread_shots(
    x_m: NDArray[np.float64], live: NDArray[np.floating], strength: NDArray[np.floating], count: int = TRAINED_SHOTS
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
    """
    order = np.lexsort((strength, live, x_m))
    x, live, strength = x_m[order], live[order], strength[order]
    seen = x[live > 0] if (live > 0).any() else x
    step = max(float(np.ptp(seen)) / (count - 1), ON_NODE_M)
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
def _time_kernel(samples: int, dt_s: float) -> tuple[tuple[slice, slice, Float32], ...]:
    """A ``(250, samples)`` band matrix, a Kaiser-windowed sinc, low-pass where the input is finer than 4 ms.

    In blocks of `BLOCK` rows: the rows, the columns that they reach, and the weights.
    """
    step = CANONICAL_DT_S / dt_s
    width = max(step, 1.0)  # input samples from one zero crossing to the next
    out = np.arange(CANONICAL_SAMPLES)[:, None] * step
    reach = int(np.ceil(SINC_HALF_WIDTH * width))
    columns = np.round(out).astype(int) + np.arange(-reach, reach + 1)[None]
    distance = (columns - out) / width
    inside = np.clip(1 - (distance / SINC_HALF_WIDTH) ** 2, 0, None)
    weights = np.sinc(distance) * np.i0(6.0 * np.sqrt(inside)) / np.i0(6.0) * (inside > 0)
    weights /= weights.sum(axis=1, keepdims=True)  # as if the record were padded by zeros at both ends
    valid = (columns >= 0) & (columns < samples)
    rows = np.broadcast_to(np.arange(CANONICAL_SAMPLES)[:, None], columns.shape)
    matrix = np.zeros((CANONICAL_SAMPLES, samples), dtype=np.float32)
    matrix[rows[valid], columns[valid]] = weights[valid]
    blocks = []
    for start in range(0, CANONICAL_SAMPLES, BLOCK):
        block = matrix[start : start + BLOCK]
        reached = np.flatnonzero(block.any(axis=0))
        if len(reached):  # none beyond the end of a short record
            across = slice(int(reached[0]), int(reached[-1]) + 1)
            blocks.append((slice(start, start + BLOCK), across, np.ascontiguousarray(block[:, across])))
    return tuple(blocks)


def _resample_time(array: Float32, dt_s: float, notes: list[Note]) -> Float32:
    batch, shots, samples, receivers = array.shape
    if not np.isclose(dt_s, (OPENFWI.dt_s, CANONICAL_DT_S), rtol=1e-6).any():
        notes.append(Note("resampled", f"Resampled in time from {dt_s * 1e3:g} ms to {CANONICAL_DT_S * 1e3:g} ms."))
    missing = CANONICAL_SAMPLES * CANONICAL_DT_S - samples * dt_s
    if missing > CANONICAL_DT_S:
        notes.append(
            Note("record_short", f"The last {missing:.3f} s of the canonical second are missing; zeros there.")
        )
    out = np.zeros((batch, shots, CANONICAL_SAMPLES, receivers), dtype=np.float32)
    step = CANONICAL_DT_S / dt_s  # what lies beyond the kernel's reach from the last canonical sample is not read
    read = min(samples, int(np.ceil((CANONICAL_SAMPLES + SINC_HALF_WIDTH) * max(step, 1.0))) + 1)
    for rows, across, weights in _time_kernel(read, float(dt_s)):
        np.matmul(weights, array[:, :, across], out=out[:, :, rows])
    return out


@lru_cache(maxsize=16)
def receiver_map(receiver_x_m: tuple[float, ...]) -> NDArray[np.float64]:
    """``(70, receivers)``: weights of the recorded traces in each canonical one; an all-zero row is uncovered.

    A trace on a node is taken as it is. On an evenly spaced line the rest are windowed-sinc interpolated (low-pass
    if the line is finer than 10 m); on any other, linearly between neighbours at most `MAX_GAP_M` apart.
    """
    x = np.asarray(receiver_x_m) - receiver_x_m[0]
    gaps = np.diff(x)
    spacing = float(np.median(gaps))
    even = bool(np.ptp(gaps) < 0.02 * spacing) and spacing <= MAX_GAP_M
    weights = np.zeros((CANONICAL_RECEIVERS, len(x)))
    for node in range(CANONICAL_RECEIVERS):
        distance = x - node * CANONICAL_SPACING_M
        nearest = int(np.abs(distance).argmin())
        if abs(distance[nearest]) <= ON_NODE_M and (not even or spacing >= 0.9 * CANONICAL_SPACING_M):
            weights[node, nearest] = 1
        elif x[0] - ON_NODE_M <= node * CANONICAL_SPACING_M <= x[-1] + ON_NODE_M:
            if even:
                scaled = distance / max(spacing, CANONICAL_SPACING_M)
                inside = np.clip(1 - (scaled / SINC_HALF_WIDTH) ** 2, 0, None)
                row = np.sinc(scaled) * np.sqrt(inside)
                weights[node] = row / row.sum()
            else:
                right = int(np.clip(np.searchsorted(distance, 0), 1, len(x) - 1))
                gap = x[right] - x[right - 1]
                if gap <= MAX_GAP_M:
                    share = np.clip(-distance[right - 1] / gap, 0, 1)
                    weights[node, right - 1 : right + 1] = 1 - share, share
    return weights


def _map_receivers(
    array: Float32, alive: Bool, survey: Survey, across: NDArray[np.float64], notes: list[Note]
) -> tuple[Float32, Bool]:
    on_node = np.count_nonzero((across == 1).any(axis=1))
    made = np.count_nonzero(across.any(axis=1)) - on_node
    span = survey.receiver_x_m[-1] - survey.receiver_x_m[0]
    notes.append(
        Note(
            "receivers_mapped",
            f"{len(survey.receiver_x_m)} receivers over {span:g} m mapped to the canonical 70 over {LINE_M:g} m: "
            f"{on_node} taken as they are, {made} interpolated, {CANONICAL_RECEIVERS - on_node - made} uncovered.",
        )
    )
    array = np.where(alive[:, :, None, :], array, np.float32(0))  # a stuck receiver must not leak into its neighbours
    traces = np.einsum("bstr,nr->bstn", array, across.astype(np.float32), optimize=True)
    needs = (np.abs(across) > 0.05).astype(np.float32)  # one dead trace with such a weight kills the trace made of it
    live = np.einsum("bsr,nr->bsn", (~alive).astype(np.float32), needs) == 0
    return traces.astype(np.float32), live & (across != 0).any(axis=1)


def _polarity(gather: Float32, live: Bool, shot_x_m: NDArray[np.float64]) -> int:
    """-1 if the direct wave's larger lobe is negative on most near traces, else +1.

    In 2-D the direct wave of a positive Ricker is its half integral: one positive lobe about twice the negative
    ones (OpenFWI: -27..57). ``gather``: (shot, time, receiver), ``live``: (shot, receiver).
    """
    vote = 0
    nodes = np.arange(CANONICAL_RECEIVERS) * CANONICAL_SPACING_M
    for shot, shot_live, x in zip(gather, live, shot_x_m, strict=True):
        near = np.argsort(np.abs(nodes - x) + 1e6 * ~shot_live, kind="stable")[:POLARITY_TRACES]
        for receiver in near[shot_live[near]]:
            high, low = float(shot[:, receiver].max()), float(-shot[:, receiver].min())
            vote += (high > POLARITY_RATIO * low) - (low > POLARITY_RATIO * high)
    return -1 if vote < 0 else 1
