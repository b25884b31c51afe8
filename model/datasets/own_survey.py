"""A survey of one's own, to simulate records of: read from a JSON file, and put on the cells of a frame."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig, InvalidSurvey
from seisbind.model.frame import Frame, Survey
from seisbind.model.survey.recorded import short_line

NEEDED = ("shot_x_m", "receiver_x_m", "dt_s")
OPTIONAL = ("peak_hz", "source_depth_m", "receiver_depth_m")
BESIDE_CELLS = 9  # that a shot may lie outside the map: fewer than the thinnest absorbing frame has


@dataclass(frozen=True, slots=True)
class OnFrame:
    """A survey on the cells of a frame, its first receiver at x = 0, and sentences on what was moved or left out."""

    survey: Survey
    notes: tuple[str, ...]


def load_survey(path: Path, *, depth_m: float) -> Survey:
    """A survey from a JSON file: ``shot_x_m``, ``receiver_x_m`` and ``dt_s``; ``peak_hz`` and depths if known.

    Args:
        path: of the file.
        depth_m: of sources and receivers where the file says none.

    Raises:
        InvalidConfig: no such file, not JSON, or other fields.
        InvalidSurvey: numbers that are no survey.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidConfig(f"{path} cannot be read: {error.strerror}. Give a JSON file of a survey.") from error
    except ValueError as error:
        raise InvalidConfig(f"{path} is not JSON: {error}.") from error
    allowed = (*NEEDED, *OPTIONAL)
    if not isinstance(raw, dict):
        raise InvalidConfig(f"{path}: a survey is an object with {', '.join(allowed)}; got {type(raw).__name__}.")
    wrong = sorted({*NEEDED} - {*raw}) + sorted({*raw} - {*allowed})
    if wrong:
        raise InvalidConfig(
            f"{path}: a survey has {', '.join(NEEDED)} and may have {', '.join(OPTIONAL)}; missing or unknown: "
            f"{', '.join(wrong)}."
        )
    values: dict[str, Any] = {"source_depth_m": depth_m, "receiver_depth_m": depth_m}
    for name, value in raw.items():
        try:
            values[name] = tuple(map(_number, value)) if name.endswith("_x_m") else _number(value)
        except TypeError as error:
            raise InvalidConfig(f"{path}: {name!r} is {value!r:.80}; it should be of numbers.") from error
    try:
        return Survey(**values)
    except InvalidSurvey as error:
        raise InvalidSurvey(f"{path}: {error}") from error


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return float(value)


def on_frame(survey: Survey, frame: Frame) -> OnFrame:
    """``survey`` with every position on a cell of ``frame``; shots off the line are left out, as `prepare` does.

    Raises:
        InvalidSurvey: a line shorter than half the frame's or longer than it, no shot on it, samples coarser than the
            encoders', a peak frequency that the frame is not for, or depths below the map.
    """
    first, length_m = survey.receiver_x_m[0], survey.receiver_x_m[-1] - survey.receiver_x_m[0]
    if (fault := short_line(survey.receiver_x_m, frame)) is not None:
        raise InvalidSurvey(f"{fault} The frame is {frame}.")
    if length_m > frame.line_m + frame.cell_m / 2:
        raise InvalidSurvey(
            f"The survey's receivers span {length_m:g} m; the frame's line has {frame.line_m:g} m. Give the part of "
            f"the survey that lies on one line of the frame, or a longer frame than {frame}."
        )
    if survey.dt_s > frame.dt_s * (1 + 1e-6):
        raise InvalidSurvey(
            f"The survey is sampled every {survey.dt_s * 1e3:g} ms and the encoders every {frame.dt_s * 1e3:g} ms, "
            f"which it cannot fill. Give a frame whose 'dt_s' is {survey.dt_s:g} or more."
        )
    low_hz, high_hz = frame.trained_peak_hz
    if survey.peak_hz is not None and not low_hz <= survey.peak_hz <= high_hz:
        raise InvalidSurvey(
            f"The survey's peak frequency is {survey.peak_hz:g} Hz; weights of the frame are trained on {low_hz:g} to "
            f"{high_hz:g} Hz. Give a frame whose 'peak_hz' is nearer."
        )
    shots = np.sort(np.asarray(survey.shot_x_m)) - first
    margin_m = min(frame.shot_margin_m, BESIDE_CELLS * frame.cell_m)
    kept = shots[(shots >= -margin_m) & (shots <= frame.line_m + margin_m)]
    if not len(kept):
        raise InvalidSurvey(
            f"No shot lies on the line: shots at {shots[0]:g} to {shots[-1]:g} m from the first receiver, usable are "
            f"{-margin_m:g} to {frame.line_m + margin_m:g} m."
        )
    receivers = np.asarray(survey.receiver_x_m) - first
    notes = []
    if len(kept) < len(shots):
        notes.append(f"{len(shots) - len(kept)} of {len(shots)} shots lie off the line; left out.")
    shot_x, shots_moved_m = _snapped(kept, frame.cell_m)
    receiver_x, receivers_moved_m = _snapped(receivers, frame.cell_m)
    moved_m = max(shots_moved_m, receivers_moved_m)
    if moved_m > frame.cell_m * 1e-3:
        notes.append(f"Positions were moved to cells of {frame.cell_m:g} m, by up to {moved_m:.3g} m.")
    for what, x, given in (("shots", shot_x, kept), ("receivers", receiver_x, receivers)):
        if len(x) < len(given):
            notes.append(f"{len(given)} {what} fall on {len(x)} cells of {frame.cell_m:g} m; one of each is kept.")
    depths = {}
    for name in ("source_depth_m", "receiver_depth_m"):
        depth_m = getattr(survey, name)
        cells = max(1, round(depth_m / frame.cell_m)) if np.isfinite(depth_m) else 0
        if not 0 < cells < frame.depth_cells or depth_m < 0:
            raise InvalidSurvey(
                f"The survey's {name!r} is {depth_m:g}; the frame's models reach {frame.cell_m:g} to "
                f"{frame.cell_m * (frame.depth_cells - 1):g} m."
            )
        depths[name] = cells * frame.cell_m
        if abs(depths[name] - depth_m) > frame.cell_m * 1e-3:
            notes.append(f"{name} of {depth_m:g} m is {depths[name]:g} m in cells of {frame.cell_m:g} m.")
    placed = replace(survey, shot_x_m=shot_x, receiver_x_m=receiver_x, **depths)
    return OnFrame(placed, tuple(notes))


def _snapped(x_m: NDArray[np.float64], cell_m: float) -> tuple[tuple[float, ...], float]:
    """Positions on cells, each once, and by how much they were moved at most, metres."""
    cells = np.rint(x_m / cell_m)
    return tuple(float(cell * cell_m) for cell in np.unique(cells)), float(np.abs(cells * cell_m - x_m).max())


def drawn_shots(survey: Survey, count: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Up to ``count`` shots of a survey: of more, one at random of each of as many equal runs along the line."""
    shots = survey.shot_x_m
    if len(shots) <= count:
        return shots
    ends = np.linspace(0, len(shots), count + 1).round().astype(int)
    return tuple(shots[int(rng.integers(low, high))] for low, high in pairwise(ends))


def as_recipe(survey: Survey) -> dict[str, Any]:
    """All fields, for JSON."""
    values = asdict(survey)
    return {each.name: list(v) if isinstance(v := values[each.name], tuple) else v for each in fields(survey)}
