"""Which shots of a record are used, and where encoders see them.

Waves are modelled for shots where they were: all on the line, or of too many those that cover it most evenly. Encoders
know a few places best, where the shots of their training lay. For them the shot next to each such place is moved there
with its receivers, if it is not nearer to another: its offsets stay right, and so do the times of flat ground; ground
that changes along the line is taken for that up to half a step beside it.
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
COST_STEP = 1e-9  # to which costs of shots are rounded


@dataclass(frozen=True, slots=True)
class ChosenShots:
    """The shots of each gather that are used.

    Attributes:
        number: ``(batch, shot)``.
        x_m: ``(batch, shot)`` where they are seen, from the line's first receiver.
        moved_m: ``(batch, shot)`` how far from there they were, with their receivers.
        notes: on the choice, a tuple for each gather.
    """

    number: NDArray[np.intp]
    x_m: NDArray[np.float64]
    moved_m: NDArray[np.float64]
    notes: tuple[tuple[Note, ...], ...]

    def same_as(self, other: ChosenShots) -> bool:
        """Whether both are the same shots, in whatever order, and none is moved."""
        return np.array_equal(np.sort(self.number), np.sort(other.number)) and not (
            self.moved_m.any() or other.moved_m.any()
        )


def select_shots(array: NDArray[Any], number: NDArray[np.intp]) -> NDArray[Any]:
    """The shots ``number`` ``(batch, shot)`` of each gather of ``(batch, shot, ..)``."""
    if np.array_equal(number[0], np.arange(array.shape[1])):  # all of them
        return array
    if (number == number[0]).all():
        return np.asarray(array[:, number[0]])
    return np.asarray(array[np.arange(len(array))[:, None], number])


@dataclass(frozen=True, slots=True)
class ShotsOnLine:
    """The shots of a record that may be used.

    Attributes:
        number, x_m: ``(shot,)``, places from the line's first receiver.
        live: ``(batch, shot)`` share of the traces that are live.
        strength: ``(batch, shot)`` of the recorded amplitudes, in any unit.
        notes: on those that are left out.
    """

    number: NDArray[np.intp]
    x_m: NDArray[np.float64]
    live: NDArray[np.float64]
    strength: NDArray[np.float64]
    notes: tuple[Note, ...]


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
    on_line = np.asarray(survey.receiver_x_m) - first <= line_m + frame.on_node_m
    live = recorded.alive[:, keep][..., on_line].mean(axis=2)
    strength = (recorded.high - recorded.low)[:, keep][..., on_line].sum(axis=2, dtype=np.float64)
    return ShotsOnLine(keep, x[keep], live, strength, tuple(notes))


def choose_shots(shots: ShotsOnLine, frame: Frame) -> ChosenShots:
    """All shots where they were; of more than the frame has, those that `spread_shots` chooses."""
    gathers, count = len(shots.live), len(frame.shot_x_m)
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
    return _chosen(shots, number, np.zeros(number.shape), frame, why)


def place_shots(shots: ShotsOnLine, frame: Frame) -> ChosenShots:
    """For each place of the frame's shots the nearest one, moved there: see `nearest_shots`."""
    near = nearest_shots(np.broadcast_to(shots.x_m, shots.live.shape), shots.live, shots.strength, frame)
    served = near.served[0]  # the same in all gathers
    why = "the nearest to each place that training had a shot at"
    return _chosen(shots, near.number[:, served], near.moved_m[:, served], frame, why)


@dataclass(frozen=True, slots=True)
class NearestShots:
    """For each gather and each place of a frame's shots, ``(batch, place)``.

    Attributes:
        number: of the shot that is nearest.
        moved_m: how far from the place it is, in whole receiver spacings; 0 up to one of them.
        served: whether it is within half of the largest step between places.
    """

    number: NDArray[np.intp]
    moved_m: NDArray[np.float64]
    served: NDArray[np.bool_]


def nearest_shots(
    x_m: NDArray[np.floating], live: NDArray[np.floating], strength: NDArray[np.floating], frame: Frame
) -> NearestShots:
    """The shot next to each place of a frame's shots.

    A shot with a fifth of its traces dead counts as one a quarter of a step further off, as in `spread_shots`.

    Args:
        x_m, live, strength: ``(batch, shot)`` places from the line's first receiver, share of the traces that are live,
            and recorded amplitudes in any unit, which decide between shots as near.
        frame: in whose metres they are.
    """
    place_m, spacing = np.asarray(frame.shot_x_m), frame.receiver_spacing_m
    step = float(np.diff(place_m).max())
    ends_m = frame.shot_margin_m + max(float(place_m[0]), frame.line_m - float(place_m[-1]))
    reach_m = max(step / 2, ends_m) + frame.on_node_m  # so that every shot is near some place
    away_m = np.abs(x_m[:, None] - place_m[:, None])  # (batch, place, shot)
    dead = (1 - live) / np.maximum(live, MIN_LIVE)
    cost = np.rint((np.square(away_m / step) + np.square(dead)[:, None]) / COST_STEP)
    cost = np.where(away_m <= reach_m, cost, np.inf)
    number = np.lexsort((np.broadcast_to(-strength[:, None], cost.shape), cost))[..., 0]
    off_m = np.take_along_axis(np.asarray(x_m, np.float64), number, axis=1) - place_m
    moved_m = np.where(np.abs(off_m) <= spacing + frame.on_node_m, 0.0, np.rint(off_m / spacing) * spacing)
    return NearestShots(number, moved_m, (away_m <= reach_m).any(axis=2))


def _chosen(
    shots: ShotsOnLine, number: NDArray[np.intp], moved_m: NDArray[np.float64], frame: Frame, why: str
) -> ChosenShots:
    """``number``: ``(batch, shot)`` among those on the line."""
    notes_of_each = []
    for gather, moved in zip(number, moved_m, strict=True):
        at, notes = shots.x_m[gather], list(shots.notes)
        if len(used := np.unique(gather)) < len(shots.number):
            where = ", ".join(f"{position:g}" for position in np.sort(shots.x_m[used]))
            text = f"Of {len(shots.number)} shots on the line, {len(used)} were used, those at {where} m: {why}."
            notes.append(Note("shots_chosen", text))
        if moved.any():
            furthest = int(np.abs(moved).argmax())
            text = (
                f"Shots are taken, with their receivers, for those of training next to them, the one at "
                f"{at[furthest]:g} m over {abs(moved[furthest]):g} m: offsets stay as they are, and the ground is "
                "taken for that beside it."
            )
            notes.append(Note("shots_moved", text))
        notes_of_each.append((*notes, *_positions_note(at - moved, frame)))
    return ChosenShots(shots.number[number], shots.x_m[number] - moved_m, moved_m, tuple(notes_of_each))


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
