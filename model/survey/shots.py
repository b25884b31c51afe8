"""Which shots of a record are used, and where encoders see them.

Waves are modelled for shots where they were: all on the line, or of too many those that cover it most evenly. Encoders
know a few places best, where the shots of their training lay. For them each such place takes the nearest shot, if it is
within half a step, which is moved there with its receivers: its offsets stay right, and so do the times of flat ground;
ground that changes along the line is taken for that beside it. A record that this does not suit stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidSurvey
from seisbind.model.frame import Frame, Survey, in_words
from seisbind.model.survey.notes import Note
from seisbind.model.survey.recorded import ROUNDING, Recorded, short_line

MIN_LIVE = 1e-3  # share of live traces that a dead shot is taken to have, so that it is chosen last
MOST_MOVED = 2 / 15  # of the line, half of the widest step between OpenFWI's places; further was not measured
LEAST_KEPT = 0.5  # of a shot's live traces, when it is moved: the others come to lie off the line
COST_STEP = 1e-9  # to which costs of shots are rounded


@dataclass(frozen=True, slots=True)
class ChosenShots:
    """The shots of each gather that are used.

    Attributes:
        number: ``(batch, shot)``.
        x_m: ``(batch, shot)`` where they are seen, from the line's first receiver.
        moved_m: ``(batch, shot)`` how far from there they were, with their receivers.
        used: ``(batch, shot)``; false fills up the gathers of a stack that have fewer shots than others.
        notes: on the choice, a tuple for each gather.
    """

    number: NDArray[np.intp]
    x_m: NDArray[np.float64]
    moved_m: NDArray[np.float64]
    used: NDArray[np.bool_]
    notes: tuple[tuple[Note, ...], ...]


def select_shots(array: NDArray[Any], number: NDArray[np.intp]) -> NDArray[Any]:
    """The shots ``number`` ``(batch, shot)`` of each gather of ``(batch, shot, ..)``."""
    if number.shape[1] == array.shape[1] and (number == np.arange(array.shape[1])).all():  # all of them
        return array
    if (number == number[0]).all():
        return np.asarray(array[:, number[0]])
    return np.asarray(array[np.arange(len(array))[:, None], number])


@dataclass(frozen=True, slots=True)
class ShotsOnLine:
    """The shots of a record that may be used.

    Attributes:
        number, x_m: ``(shot,)``, places from the line's first receiver.
        recorded: with all shots.
        receiver_x_m: ``(receiver,)`` from the first one.
        on_line: ``(receiver,)``.
        notes: on those that are left out.
    """

    number: NDArray[np.intp]
    x_m: NDArray[np.float64]
    recorded: Recorded
    receiver_x_m: NDArray[np.float64]
    on_line: NDArray[np.bool_]
    notes: tuple[Note, ...]

    @property
    def alive(self) -> NDArray[np.bool_]:
        """``(batch, shot, receiver)``."""
        return np.asarray(self.recorded.alive[:, self.number])

    @property
    def live(self) -> NDArray[np.float64]:
        """``(batch, shot)`` share of the traces that are live, of those on the line."""
        return np.asarray(self.alive[..., self.on_line].mean(axis=2))

    @property
    def strength(self) -> NDArray[np.float64]:
        """``(batch, shot)`` of the recorded amplitudes, in any unit."""
        height = (self.recorded.high - self.recorded.low)[:, self.number]
        return np.asarray(height[..., self.on_line].sum(axis=2, dtype=np.float64))


def shots_on_line(recorded: Recorded, survey: Survey, frame: Frame) -> ShotsOnLine:
    """The shots that lie on the line.

    Raises:
        InvalidSurvey: a line too short, or no shot on it.
    """
    first, line_m, margin_m = survey.receiver_x_m[0], frame.line_m, frame.shot_margin_m / ROUNDING
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
    receiver_x_m = np.asarray(survey.receiver_x_m) - first
    on_line = receiver_x_m <= line_m + frame.on_node_m
    return ShotsOnLine(keep, x[keep], recorded, receiver_x_m, on_line, tuple(notes))


def choose_shots(shots: ShotsOnLine, frame: Frame) -> ChosenShots:
    """All shots where they were; of more than the frame has, those that `spread_shots` chooses."""
    gathers, count = len(shots.recorded.array), len(frame.shot_x_m)
    if len(shots.number) <= count:
        number = np.tile(np.arange(len(shots.number)), (gathers, 1))
    else:
        number = np.stack(
            [
                spread_shots(shots.x_m, *each, count=count, min_step_m=frame.on_node_m)
                for each in zip(shots.live, shots.strength, strict=True)
            ]
        )
    why = f"no record of training had more than {count}, and they lie as evenly as shots with live traces allow"
    moved_m, used = np.zeros(number.shape), np.ones(number.shape, bool)
    notes = tuple(
        (*shots.notes, *_chosen_note(shots, row, why), *_positions_note(shots.x_m[row], frame)) for row in number
    )
    return ChosenShots(shots.number[number], shots.x_m[number], moved_m, used, notes)


def place_shots(shots: ShotsOnLine, own: ChosenShots, frame: Frame) -> ChosenShots:
    """Shots at the frame's places: see `nearest_shots`; ``own``, of `choose_shots`, where nothing is to be moved."""
    if _at_places(shots.x_m, frame):
        return own
    gathers = len(shots.recorded.array)
    x_m = np.broadcast_to(shots.x_m, (gathers, len(shots.x_m)))
    near = nearest_shots(x_m, shots.alive, shots.strength, shots.receiver_x_m, frame)
    if not near.moved_m.any() and len(shots.number) <= len(frame.shot_x_m):
        return own
    rows = [np.flatnonzero(each) for each in near.served]
    width = max(own.number.shape[1] if not len(row) else len(row) for row in rows)
    number, used = np.zeros((gathers, width), np.intp), np.zeros((gathers, width), bool)
    at_m, moved_m = np.zeros((gathers, width)), np.zeros((gathers, width))
    notes = []
    for gather, row in enumerate(rows):
        if len(row):
            found, moved = near.number[gather, row], near.moved_m[gather, row]
            numbers, at = shots.number[found], shots.x_m[found] - moved
            chosen = _chosen_note(shots, found, "each place of training has the nearest one")
            notes.append((*shots.notes, *chosen, *_moved_note(shots.x_m[found], moved, frame)))
        else:
            numbers, at, moved = own.number[gather], own.x_m[gather], own.moved_m[gather]
            notes.append(own.notes[gather])
        filled = slice(len(numbers))
        number[gather, filled], at_m[gather, filled], moved_m[gather, filled] = numbers, at, moved
        used[gather, filled] = True
    return ChosenShots(number, at_m, moved_m, used, tuple(notes))


def _at_places(x_m: NDArray[np.float64], frame: Frame) -> bool:
    """Whether each shot lies at a place of its own."""
    away_m = np.abs(x_m[:, None] - np.asarray(frame.shot_x_m))
    at = away_m.argmin(axis=1)
    near = away_m.min(axis=1) <= frame.receiver_spacing_m + frame.on_node_m
    return len(set(at.tolist())) == len(at) and bool(near.all())


@dataclass(frozen=True, slots=True)
class NearestShots:
    """For each gather and each place of a frame's shots, ``(batch, place)``.

    Attributes:
        number: of the shot that is nearest.
        moved_m: how far from the place it is, in whole receiver spacings; 0 up to one of them.
        served: whether there is one; nowhere in gathers that are not suited.
    """

    number: NDArray[np.intp]
    moved_m: NDArray[np.float64]
    served: NDArray[np.bool_]


def nearest_shots(
    x_m: NDArray[np.floating],
    alive: NDArray[np.bool_],
    strength: NDArray[np.floating],
    receiver_x_m: NDArray[np.float64],
    frame: Frame,
) -> NearestShots:
    """The shot next to each place of a frame's shots, at most half of the step to the next place away.

    The squared number of traces that are dead then, per live one, counts as `spread_shots` counts it. A gather is not
    suited if one of its shots is near no place, if a shot would be moved by more than `MOST_MOVED` of the line, or if a
    place could only have a shot that loses too many of its traces (`LEAST_KEPT`).

    Args:
        x_m: ``(batch, shot)`` places from the line's first receiver.
        alive: ``(batch, shot, receiver)``.
        strength: ``(batch, shot)`` recorded amplitudes in any unit, which decide between shots as near.
        receiver_x_m: ``(receiver,)``, increasing from 0.
        frame: in whose metres they are.
    """
    place_m, spacing = np.asarray(frame.shot_x_m), frame.receiver_spacing_m
    half, margin = np.diff(place_m) / 2, frame.shot_margin_m
    left_m = np.concatenate([[margin + min(place_m[0], half[0])], half]) + frame.on_node_m
    right_m = np.concatenate([half, [margin + min(frame.line_m - place_m[-1], half[-1])]]) + frame.on_node_m
    off_m = np.asarray(x_m, np.float64)[:, None] - place_m[:, None]  # (batch, place, shot)
    near = (off_m >= -left_m[:, None]) & (off_m <= right_m[:, None])
    moved_m = np.where(np.abs(off_m) <= spacing + frame.on_node_m, 0.0, np.rint(off_m / spacing) * spacing)
    stays, kept = (_live_share(alive, receiver_x_m, each, frame) for each in (np.zeros_like(moved_m), moved_m))
    whole = near & (kept >= LEAST_KEPT * stays) & (kept > 0)
    dead = (1 - kept) / np.maximum(kept, MIN_LIVE)
    cost = np.rint((np.square(off_m / (2 * half.max())) + np.square(dead)) / COST_STEP)
    cost = np.where(whole, cost, np.inf)
    ties = np.broadcast_to(-strength[:, None], cost.shape), np.broadcast_to(x_m[:, None], cost.shape)
    number = np.lexsort((ties[1], ties[0], cost))[..., 0]
    moved_m = np.take_along_axis(moved_m, number[..., None], axis=2)[..., 0]
    served = whole.any(axis=2)
    living = np.asarray(alive.any(axis=2))
    homeless = np.asarray(living & ~near.any(axis=1)).any(axis=1)
    robbed = np.asarray((near & living[:, None, :]).any(axis=2) & ~served).any(axis=1)
    too_far = (served & (np.abs(moved_m) > MOST_MOVED * frame.line_m + frame.on_node_m)).any(axis=1)
    served &= ~(homeless | robbed | too_far)[:, None]
    return NearestShots(number, np.where(served, moved_m, 0.0), served)


def _live_share(
    alive: NDArray[np.bool_], receiver_x_m: NDArray[np.float64], moved_m: NDArray[np.float64], frame: Frame
) -> NDArray[np.float64]:
    """``(batch, place, shot)``: of the receivers on the line, the live ones on it as it lies ``moved_m`` further on."""
    before = np.zeros((*alive.shape[:2], alive.shape[2] + 1))
    np.cumsum(alive, axis=2, out=before[..., 1:])
    low = np.searchsorted(receiver_x_m, moved_m - frame.on_node_m)
    high = np.searchsorted(receiver_x_m, moved_m + frame.line_m + frame.on_node_m, side="right")
    first, last = (np.take_along_axis(before[:, None], each[..., None], axis=3)[..., 0] for each in (low, high))
    on_line = np.searchsorted(receiver_x_m, frame.line_m + frame.on_node_m, side="right")
    return np.asarray(np.minimum((last - first) / on_line, 1.0))


def _chosen_note(shots: ShotsOnLine, number: NDArray[np.intp], why: str) -> tuple[Note, ...]:
    """A note unless all shots are used; ``number``: ``(shot,)`` among those on the line."""
    if len(used := np.unique(number)) == len(shots.number):
        return ()
    where, count = ", ".join(f"{position:g}" for position in np.sort(shots.x_m[used])), len(used)
    were = "was used, that" if count == 1 else "were used, those"
    return (Note("shots_chosen", f"Of {len(shots.number)} shots on the line, {count} {were} at {where} m: {why}."),)


def _moved_note(x_m: NDArray[np.float64], moved_m: NDArray[np.float64], frame: Frame) -> tuple[Note, ...]:
    if not moved_m.any():
        return _positions_note(x_m, frame)
    where = ", ".join(
        f"{x:g} to {x - moved:g} m" for x, moved in zip(x_m[:8], moved_m[:8], strict=True) if moved
    )  # fmt: skip
    text = (
        f"For the encoders shots were moved, with their receivers, to places that training had shots at, {where}: "
        "offsets stay as they are, and the ground is taken for that beside it. "
        f"{len(x_m)} of {len(frame.shot_x_m)} places have a shot."
    )
    return (Note("shots_moved", text),)


def _positions_note(x_m: NDArray[np.float64], frame: Frame) -> tuple[Note, ...]:
    """A note unless the shots lie where the frame's own do."""
    own = frame.shot_x_m
    if len(x_m) == len(own) and np.allclose(x_m, own, atol=frame.on_node_m):
        return ()
    where = ", ".join(f"{position:g}" for position in x_m[:8])
    usual = f"{in_words(len(own))} at {own[0]:g}-{own[-1]:g} m"
    return (Note("shot_positions", f"{len(x_m)} shots at {where} m; trained mostly on {usual}."),)


def spread_shots(
    x_m: NDArray[np.float64],
    live: NDArray[np.floating],
    strength: NDArray[np.floating],
    *,
    count: int,
    min_step_m: float = 1.0,
) -> NDArray[np.intp]:
    """``(count,)`` numbers, by position, of the shots that cover a line most evenly.

    ``count`` places divide the span of the shots into equal steps. The choice is the one with the smallest sum, over
    its shots, of the squared distance to the place, in steps, and the squared number of dead traces per live trace: a
    shot with a fifth of its traces dead counts as one a quarter of a step off its place. The order of the shots does
    not matter. Of equally good choices, which a mirror image may exchange, the one with the stronger shots is taken,
    so that a mirrored record gets the mirrored choice.

    Args:
        x_m: ``(shot,)``, more than ``count`` of them.
        live: ``(shot,)`` share of the traces that are live.
        strength: ``(shot,)`` of the recorded amplitudes, in any unit.
        count: shots wanted, two or more.
        min_step_m: between places, where all shots are at one: as much off it costs a step.
    """
    order = np.lexsort((strength, live, x_m))
    x, live, strength = x_m[order], live[order], strength[order]
    seen = x[live > 0] if (live > 0).any() else x
    step = max(float(np.ptp(seen)) / (count - 1), min_step_m)
    places = np.linspace(seen.min(), seen.max(), count)
    dead = (1 - live) / np.maximum(live, MIN_LIVE)
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
