"""Preparation of recorded gathers: mapping them to the canonical grid that the encoders see.

The canonical grid is that of a `Frame`: its receivers, samples and sampling interval. OpenFWI's is a line of 70
receivers every 10 m over 1 s, in samples of 4 ms: a 15 Hz Ricker has less than 1e-5 of its power above 60 Hz, so the
published 1 ms axis carries nothing more. Only `prepare` resamples, maps receivers and corrects
polarity; amplitude is normalised inside the seismic encoder (`networks.condition`), so that training and serving share
both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seisbind.model.errors import InvalidGather
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.scale import UNSCALED, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.recorded import Recorded, check_gathers, limit_range
from seisbind.model.survey.resampling import map_receivers, receiver_map, resample_time, weigh_receivers
from seisbind.model.survey.shaping import matched, suit_wavelet
from seisbind.model.survey.shots import (
    ChosenShots,
    choose_shots,
    nearest_shots,
    place_shots,
    select_shots,
    shots_on_line,
)

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

POLARITY_TRACES = 3  # nearest live traces of each shot that vote on polarity
POLARITY_RATIO = 1.15  # the larger lobe must exceed the other by this much to vote

OPENFWI = OPENFWI_FRAME.survey


@dataclass(frozen=True, slots=True)
class Prepared:
    """Gathers on the canonical grid, amplitudes still linear.

    Attributes:
        traces: ``(batch, shot, time, receiver)`` float32; zero where a trace is not live.
        live: ``(batch, shot, receiver)`` bool.
        shot_x_m: ``(batch, shot)`` float32, metres from the first receiver of the line.
        notes: what was done, a tuple for each gather.
        frame: whose grid it is; OpenFWI's has 250 samples and 70 receivers.
        moved_m: ``(batch, shot)`` how far from there each shot was, with its receivers; None where none was moved.
        as_recorded: the same with all shots where they were, as waves are modelled for them, if it was asked for; None
            where they are.
    """

    traces: Float32
    live: Bool
    shot_x_m: Float32
    notes: tuple[tuple[Note, ...], ...] = field(default=())
    frame: Frame = OPENFWI_FRAME
    moved_m: Float32 | None = None
    as_recorded: Prepared | None = None

    def __len__(self) -> int:
        return len(self.traces)


def prepare(
    gathers: ArrayLike,
    survey: Survey | None = None,
    *,
    frame: Frame = OPENFWI_FRAME,
    scale: Scale = UNSCALED,
    shape: bool = False,
    move_shots: bool = True,
    keep_recorded: bool = False,
) -> Prepared:
    """Map gathers to the grid of a frame: anti-aliased in time, by position in space, in OpenFWI's polarity.

    With a scale, all checks and notes are in true units; what is returned is in those of the frame.

    Args:
        gathers: ``(batch, shot, time, receiver)`` or one ``(shot, time, receiver)``, pressure in any linear unit.
        survey: where and how they were recorded; its first receiver becomes x = 0. None for the frame's own line.
        frame: of the weights that will see them.
        scale: of the survey to the frame.
        shape: whether a band, a phase and a delay that weights do not know are changed (`shaping.suit_wavelet`).
        move_shots: to the nearest places of the frame's (`shots.place_shots`), as encoders know them best.
        keep_recorded: whether `Prepared.as_recorded` is made where shots are moved or chosen otherwise.

    Returns:
        The prepared gathers, each with notes on what was done.

    Raises:
        InvalidGather: see `check_gathers`.
        InvalidSurvey: a line too short, or no shot on it; a sampling interval outside those of the frame.
    """
    true_frame = scale.frame(frame)
    survey = true_frame.survey if survey is None else survey
    recorded = limit_range(check_gathers(gathers, survey, true_frame))
    shots = shots_on_line(recorded, survey, true_frame)
    own = choose_shots(shots, true_frame)
    placed = place_shots(shots, own, true_frame) if move_shots else own
    prepared = _on_grid(recorded, survey, placed, frame, scale, shape=shape)
    if placed is own or not keep_recorded:
        return prepared
    return replace(prepared, as_recorded=_on_grid(recorded, survey, own, frame, scale, shape=shape))


def _on_grid(
    recorded: Recorded, survey: Survey, shots: ChosenShots, of_weights: Frame, scale: Scale, *, shape: bool
) -> Prepared:
    """See `prepare`."""
    frame, notes = scale.frame(of_weights), list[Note]()
    array = resample_time(select_shots(recorded.array, shots.number), survey.dt_s, frame, notes)
    alive = select_shots(recorded.alive, shots.number)
    if not shots.used.all():
        alive = alive & shots.used[..., None]
    across = receiver_map(survey.receiver_x_m, frame=frame)
    if len(survey.receiver_x_m) == frame.receivers and np.array_equal(across, np.eye(frame.receivers)):
        traces, live = array, alive
    else:
        traces, live = map_receivers(array, alive, survey, across, frame, notes)
    if shots.moved_m.any():
        live = live.copy()
    for moved_m in np.unique(shots.moved_m[shots.moved_m != 0]).tolist():
        of_these = shots.moved_m == moved_m
        further = receiver_map(survey.receiver_x_m, frame=frame, moved_m=moved_m)
        traces[of_these], live[of_these] = weigh_receivers(array[of_these], alive[of_these], further)
    if not live.all():
        traces = np.where(live[:, :, None, :], traces, np.float32(0))
    each, nodes = [], np.asarray(frame.survey.receiver_x_m)
    rows = zip(traces, live, shots.x_m, shots.used, shots.notes, strict=True)
    for gather, gather_live, shot_x_m, used, shot_notes in rows:
        own = [*shot_notes, *notes]
        if not gather_live.any():
            raise InvalidGather("No live trace falls on the line after mapping; check the receiver positions.")
        of_used = gather_live[used]
        dead = int(of_used.size - of_used.sum())
        if dead:
            own.append(Note("dead_traces", f"{dead} of {of_used.size} canonical traces are dead or uncovered."))
        if shape:
            gather[:], more = suit_wavelet(gather, gather_live, shot_x_m, frame)
            own += more
        each.append((*own, *set_polarity(gather, gather_live, shot_x_m, nodes, own)))
    return Prepared(
        traces=np.ascontiguousarray(traces, dtype=np.float32),
        live=live,
        shot_x_m=(shots.x_m / scale.s).astype(np.float32),
        notes=tuple(each),
        frame=of_weights,
        moved_m=(shots.moved_m / scale.s).astype(np.float32) if shots.moved_m.any() else None,
    )


def place_prepared(prepared: Prepared) -> Prepared:
    """Gathers that are on the grid already, such as pairs are, with their shots moved as `prepare` does.

    As many shots as the frame has. What a shot had beyond the line's ends is not there: traces that are moved from
    there are dead.
    """
    frame, live = prepared.frame, prepared.live
    nodes = np.asarray(frame.survey.receiver_x_m)
    near = nearest_shots(prepared.shot_x_m, live, np.zeros(live.shape[:2]), nodes, frame)
    rows = np.flatnonzero(near.moved_m.any(axis=1))
    if not len(rows):
        return prepared
    traces, alive, x_m = prepared.traces.copy(), live.copy(), prepared.shot_x_m.copy()
    traces[rows], alive[rows] = 0, False
    for row in rows:
        x_m[row] = frame.shot_x_m
        for place in np.flatnonzero(near.served[row]):
            shot, moved_m = near.number[row, place], near.moved_m[row, place]
            cells = round(moved_m / frame.receiver_spacing_m)
            here = slice(max(-cells, 0), frame.receivers - max(cells, 0))
            there = slice(max(cells, 0), frame.receivers + min(cells, 0))
            traces[row, place][:, here] = prepared.traces[row, shot][:, there]
            alive[row, place, here] = live[row, shot, there]
            x_m[row, place] = prepared.shot_x_m[row, shot] - moved_m
    return replace(prepared, traces=traces, live=alive, shot_x_m=x_m, moved_m=near.moved_m.astype(np.float32))


def set_polarity(
    gather: Float32, live: Bool, shot_x_m: NDArray[np.float64], nodes: NDArray[np.float64], notes: Sequence[Note]
) -> tuple[Note, ...]:
    """Turn a gather, in place, whose direct wave starts negative, and say so; arguments as those of `polarity`.

    Args:
        notes: on the gather so far; one whose direct wave was made one of training is left.
    """
    if matched(notes) or polarity(gather, live, shot_x_m, nodes) >= 0:
        return ()
    np.negative(gather, out=gather)
    return (Note("polarity_flipped", "The direct wave starts negative; the gather was multiplied by -1."),)


def polarity(gather: Float32, live: Bool, shot_x_m: NDArray[np.float64], nodes: NDArray[np.float64]) -> int:
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
