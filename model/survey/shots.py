"""Which shots of a record are used: those on the line, and of too many those that cover it most evenly."""

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
    """The shots of each gather that are used: ``number`` and ``x_m``, ``(batch, shot)``, with notes on the choice."""

    number: NDArray[np.intp]
    x_m: NDArray[np.float64]
    notes: tuple[tuple[Note, ...], ...]


def select_shots(array: NDArray[Any], number: NDArray[np.intp]) -> NDArray[Any]:
    """The shots ``number`` ``(batch, shot)`` of each gather of ``(batch, shot, ..)``."""
    if np.array_equal(number[0], np.arange(array.shape[1])):  # all of them
        return array
    if (number == number[0]).all():
        return np.asarray(array[:, number[0]])
    return np.asarray(array[np.arange(len(array))[:, None], number])


def choose_shots(recorded: Recorded, survey: Survey, frame: Frame) -> ChosenShots:
    """The shots of each gather that lie on the line; of more than the frame has, those that `spread_shots` chooses."""
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
    gathers, count = len(recorded.array), len(frame.shot_x_m)
    if len(keep) <= count:
        all_notes = (*notes, *_positions_note(x[keep], frame))
        return ChosenShots(np.tile(keep, (gathers, 1)), np.tile(x[keep], (gathers, 1)), (all_notes,) * gathers)
    on_line = np.asarray(survey.receiver_x_m) - first <= line_m + frame.on_node_m
    live = recorded.alive[:, keep][..., on_line].mean(axis=2)
    strength = (recorded.high - recorded.low)[:, keep][..., on_line].sum(axis=2, dtype=np.float64)
    number = np.stack(
        [
            keep[spread_shots(x[keep], *each, count=count, min_step_m=frame.on_node_m)]
            for each in zip(live, strength, strict=True)
        ]
    )
    notes_of_each = []
    for chosen in x[number]:
        where = ", ".join(f"{position:g}" for position in chosen)
        text = (
            f"Of {len(keep)} shots on the line, {count} were used, those at {where} m: no record of training "
            "had more. They lie as evenly as shots with live traces allow."
        )
        notes_of_each.append((*notes, Note("shots_chosen", text), *_positions_note(chosen, frame)))
    return ChosenShots(number, x[number], tuple(notes_of_each))


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
