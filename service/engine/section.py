"""A long line as one velocity section: overlapping windows, each read by the encoders, joined cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from seisbind.model.confidence.novelty import Verdict, measure
from seisbind.model.encoders.embedder import NORMAL_90
from seisbind.model.errors import InvalidConfig, InvalidGather, InvalidSurvey
from seisbind.model.frame import Frame
from seisbind.model.scale import UNSCALED, AutoScale, Scale
from seisbind.model.survey.notes import Note
from seisbind.model.survey.resampling import samples_read
from seisbind.model.survey.scaling import ChosenScale
from seisbind.model.survey.spreads import Spread, lay_spread
from seisbind.model.survey.windows import WindowGather, choose_window, frame_interval, read_windows, window_starts
from seisbind.service.engine.answers import Quantity, WindowAnswer, approximate_note, quantities, scaled
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import Query, encode
from seisbind.service.formats.line_file import LineTraces
from seisbind.service.formats.velocity_model import VelocityModel

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Read = Sequence[tuple[WindowGather, Query | None]]

STEP_SHARE = 0.5  # of the frame's line, from one window to the next
MIN_STEP_SHARE = 0.05
BLOCK = 16  # windows that are read, and encoded, at once
REFINED_BLOCK = 8  # where each is refined, too: what is lost of a run that is stopped
ON_COLUMN = 1e-6  # of a cell: windows that start on a column are not interpolated
LEAST_PART = 0.05  # of a cell's weight: a window with less does not count among those that disagree


@dataclass(frozen=True, slots=True)
class WindowReading:
    """A window's answer and the model read from it, or refined, in the frame's units.

    Attributes:
        start_m: of the window.
        lit: ``(receiver,)`` pseudo-shots that each receiver of the frame is lit by; see `windows.WindowGather`.
        value, low, high: ``(depth, x)`` as `embedder.ReadModel`; None where nothing was read, or no interval is stated.
    """

    answer: WindowAnswer
    start_m: float
    lit: NDArray[np.int64]
    value: Float32 | None = None
    low: Float32 | None = None
    high: Float32 | None = None


Refiner = Callable[[Read, list[WindowReading]], list[WindowReading]]


@dataclass(frozen=True, slots=True)
class Section:
    """A velocity section along a line, in true metres and m/s; NaN where nothing is known.

    Attributes:
        x_m: ``(column,)`` along the line, evenly spaced.
        depth_m: ``(depth,)``, the first 0, of the same spacing.
        velocity: ``(depth, column)``, m/s.
        low, high: of the 90 % interval of each cell; None where the weights state none.
        disagreement: standard deviation of the windows that a cell comes from, m/s; NaN where it comes from one.
        weight: ``(column,)`` share of a whole window's data, tapers added; 0 where nothing is known.
        windows: in their order along the line.
        scale: true = factor x frame.
        weights, gallery: fingerprint and name of what answered.
        notes: what was assumed of the files and the line.
    """

    x_m: Float64
    depth_m: Float64
    velocity: Float32
    low: Float32 | None
    high: Float32 | None
    disagreement: Float32
    weight: Float32
    windows: tuple[WindowAnswer, ...]
    scale: Scale
    weights: str
    gallery: str
    notes: tuple[Note, ...] = ()

    @property
    def cell_m(self) -> float:
        """Spacing of the cells."""
        return float(self.depth_m[1] - self.depth_m[0])

    def model(self, frame: Frame) -> VelocityModel:
        """Its velocities alone, as files of velocity models and `formats.starting_model` take them.

        Args:
            frame: of the weights.
        """
        known = None if np.isfinite(self.velocity).all() else np.isfinite(self.velocity)
        return VelocityModel(
            self.velocity, self.low, self.high, self.cell_m, float(self.x_m[0]),
            range_m_s=self.scale.frame(frame).velocity_m_s, known=known,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class SectionPlan:
    """A line and the windows that its section is made of, before anything is read; `plan_section` makes it.

    Attributes:
        starts_m: ``(window,)`` in the frame's metres.
        shape: whether a band that the weights do not know is shaped (`survey.shaping`); where a scale was asked for.
    """

    frame: Frame
    scale: Scale
    line: LineTraces
    spread: Spread
    starts_m: Float64
    dt_s: float
    notes: tuple[Note, ...]
    shape: bool = False

    def __len__(self) -> int:
        return len(self.starts_m)

    def blocks(self, size: int = BLOCK) -> list[range]:
        """Numbers of the windows that are read at once."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def read(self, windows: range) -> list[tuple[WindowGather, Query | None]]:
        """The gathers of some windows, prepared and measured."""
        chosen = [choose_window(self.spread, float(start)) for start in self.starts_m[windows.start : windows.stop]]
        wanted = samples_read(self.dt_s, self.frame)
        gathers = read_windows(
            chosen,
            lambda numbers: self.line.read(numbers, wanted),
            frame=self.frame,
            dt_s=self.dt_s,
            sources=self.spread.sources,
            shape=self.scale.frame(self.frame) if self.shape else None,
        )
        return [
            (each, None if each.prepared is None else Query(each.prepared, measure(each.prepared), 1))
            for each in gathers
        ]


def plan_section(
    line: LineTraces, *, frame: Frame, scale: Scale | AutoScale = UNSCALED, step_m: float | None = None
) -> SectionPlan:
    """Lay windows along a line.

    Args:
        line: its traces.
        frame: of the weights.
        scale: of the line to the frame; `AutoScale` is chosen from some of the traces (`survey.scaling`).
        step_m: from one window to the next, at most, in true metres; None for half a window.

    Raises:
        InvalidSurvey: positions that are no straight line, a sampling interval too coarse, a step out of range, or no
            scale that fits.
        InvalidGather: a record too short.
    """
    asked, chosen = scale, ChosenScale(scale) if isinstance(scale, Scale) else line.extent().choose(scale, frame)
    scale = chosen.scale
    own_m = frame.line_m * scale.s
    step_m = STEP_SHARE * own_m if step_m is None else step_m
    if not MIN_STEP_SHARE * own_m <= step_m <= own_m:  # also false for NaN
        raise InvalidSurvey(
            f"Windows of {own_m:g} m every {step_m:g} m; a step lies between {MIN_STEP_SHARE * own_m:g} m and "
            f"{own_m:g} m."
        )
    dt_s = frame_interval(line.dt_s, scale)
    if line.samples * dt_s < frame.min_record_s * (1 - ON_COLUMN):
        raise InvalidGather(
            f"The record ends {line.samples * line.dt_s:.3f} s after the shot; at least "
            f"{frame.min_record_s * scale.time:g} s are needed at scale s = {scale.s:g}, k = {scale.k:g}."
        )
    spread, notes = lay_spread(line.positions, frame=frame, scale=scale, usable=line.usable)
    notes = (*line.notes, *chosen.notes(frame), *notes)
    starts_m = window_starts(spread, step_m / scale.s)
    return SectionPlan(frame, scale, line, spread, starts_m, dt_s, notes, shape=asked != UNSCALED)


def answer_windows(engine: Engine, read: Read, scale: Scale) -> list[WindowReading]:
    """Encode windows together; read a model, physics and the gallery's first match for each.

    Raises:
        InvalidConfig: weights that read no model.
        InvalidGather: samples that float32 arithmetic does not hold.
    """
    queries = [query for _, query in read if query is not None]
    answers: Iterator[WindowReading] = iter(_answered(engine, read, queries, scale) if queries else ())
    return [
        next(answers)
        if query is not None
        else WindowReading(_place(gather, scale, engine.frame), gather.start_m, gather.lit)
        for gather, query in read
    ]


def _answered(engine: Engine, read: Read, queries: Sequence[Query], scale: Scale) -> list[WindowReading]:
    encoded = encode(engine.embedder, queries)
    if not np.isfinite(encoded.embedding).all():
        raise InvalidGather("The samples are too large or too small for float32 arithmetic; scale the traces.")
    model = engine.embedder.read_model(encoded)
    if model is None:
        raise InvalidConfig("These weights read no velocity model from a gather; a section needs some that do.")
    verdicts = engine.embedder.judge_novelty(np.concatenate([query.measured for query in queries]), encoded)
    hits = engine.gallery.search_velocity(encoded.embedding, 1)
    physics: list[dict[str, Quantity] | None] = [None] * len(queries)
    if encoded.descriptors is not None:
        inferred = quantities(engine.embedder.infer_physics(encoded, None))
        physics = [scaled(each, scale) for each in inferred]
    found = []
    for row, gather in enumerate(gather for gather, query in read if query is not None):
        verdict: Verdict | None = verdicts[row] if verdicts else None
        first = hits[row][0] if hits[row] else None
        place = _place(gather, scale, engine.frame)
        answer = replace(
            place,
            likely=None if verdict is None else verdict.likely,
            score=None if verdict is None else verdict.score,
            reason=None if verdict is None else verdict.reason,
            model_id=None if first is None else first.model_id,
            similarity=None if first is None else first.similarity,
            physics=physics[row],
        )
        low, high = (None if part is None else part[row] for part in (model.low, model.high))
        answer = replace(answer, notes=(*answer.notes, *approximate_note(hits)))
        found.append(WindowReading(answer, gather.start_m, gather.lit, model.value[row], low, high))
    return found


def _place(gather: WindowGather, scale: Scale, frame: Frame) -> WindowAnswer:
    x_m = gather.start_m * scale.s, (gather.start_m + frame.line_m) * scale.s
    if gather.prepared is None:
        return WindowAnswer(x_m, 0, 0.0, lack=gather.lack)
    live = gather.prepared.live[0]
    return WindowAnswer(x_m, len(live), float(live.mean()), notes=gather.prepared.notes[0])


def section_blocks(
    engine: Engine,
    plan: SectionPlan,
    *,
    done: Mapping[int, list[WindowReading]] | None = None,
    refine: Refiner | None = None,
) -> Iterator[tuple[int, list[WindowReading]]]:
    """The number and the readings of each block, in order; those ``done`` already are given as they are.

    A thread reads and prepares the next block while this one is encoded.

    Args:
        refine: makes better models of a block's gathers and readings (`refine.window_refiner`), of smaller blocks.
    """
    done = done or {}
    blocks = plan.blocks(BLOCK if refine is None else REFINED_BLOCK)
    left = [number for number in range(len(blocks)) if number not in done]
    with ThreadPoolExecutor(1, thread_name_prefix="windows") as reader:
        coming = [reader.submit(plan.read, blocks[number]) for number in left[:1]]
        for number in range(len(blocks)):
            if number in done:
                yield number, done[number]
                continue
            read = coming.pop().result()
            later = [each for each in left if each > number][:1]
            coming = [reader.submit(plan.read, blocks[each]) for each in later]
            readings = answer_windows(engine, read, plan.scale)
            yield number, readings if refine is None else refine(read, readings)


def make_section(
    engine: Engine,
    plan: SectionPlan,
    *,
    progress: Callable[[int], None] = lambda windows: None,
    refine: Refiner | None = None,
) -> Section:
    """The section of a line, read in this process; ``refine``: see `section_blocks`.

    Raises:
        InvalidGather: no window has enough traces.
        InvalidConfig: see `answer_windows`.
    """
    readings: list[WindowReading] = []
    for _, block in section_blocks(engine, plan, refine=refine):
        readings += block
        progress(len(readings))
    return join_section(engine, plan, readings)


def join_section(engine: Engine, plan: SectionPlan, readings: Sequence[WindowReading]) -> Section:
    """Windows joined into a section: each cell the mean of the models read over it.

    A window weighs by a squared sine along it, nothing at its ends, and by the share of its pseudo-shots that light a
    column. Intervals are averaged alike, and widened by 1.645 standard deviations of the windows that overlap there.

    Raises:
        InvalidGather: no window has enough traces.
    """
    frame, scale = plan.frame, plan.scale
    known = [each for each in readings if each.value is not None]
    if not known:
        lacks = list(dict.fromkeys(each.answer.lack for each in readings if each.answer.lack))
        raise InvalidGather(
            f"None of {len(readings)} windows of {frame.line_m * scale.s:g} m has enough traces. The first: {lacks[0]}"
        )
    first_m = min(each.start_m for each in known)
    last_m = max(each.start_m for each in known)
    columns = int(np.floor((last_m - first_m) / frame.cell_m + ON_COLUMN)) + frame.x_cells
    stated = all(each.low is not None and each.high is not None for each in known)
    sums = np.zeros((3, frame.depth_cells, columns))  # of value, low, high
    squares = np.zeros((frame.depth_cells, columns))
    weight = np.zeros(columns)
    parts = [_on_columns(each, first_m, columns, frame) for each in known]
    for models, across, own in parts:
        weight[across] += own
        for of, model in enumerate(models):
            sums[of][:, across] += own * model
    lit = weight > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        value, low, high = (np.where(lit, each / weight, np.nan) for each in sums[:3])
        count = np.zeros(columns, dtype=int)
        for models, across, own in parts:
            count[across] += own > LEAST_PART * weight[across]
            squares[:, across] += own * np.square(models[0] - value[:, across])
        spread = np.sqrt(squares / weight)
    several = lit & (count > 1)
    widened = np.where(several, NORMAL_90 * spread, 0.0)
    low, high = value - np.hypot(value - low, widened), value + np.hypot(high - value, widened)
    return Section(
        x_m=np.asarray((first_m + np.arange(columns) * frame.cell_m) * scale.s, dtype=np.float64),
        depth_m=np.asarray(np.arange(frame.depth_cells) * frame.cell_m * scale.s, dtype=np.float64),
        velocity=(value * scale.k).astype(np.float32),
        low=(low * scale.k).astype(np.float32) if stated else None,
        high=(high * scale.k).astype(np.float32) if stated else None,
        disagreement=np.where(several, spread * scale.k, np.nan).astype(np.float32),
        weight=weight.astype(np.float32),
        windows=tuple(each.answer for each in readings),
        scale=scale,
        weights=engine.embedder.fingerprint,
        gallery=engine.gallery.name,
        notes=plan.notes,
    )


def _on_columns(
    reading: WindowReading, first_m: float, columns: int, frame: Frame
) -> tuple[list[Float64 | Float32], slice, Float64]:
    """The models of a window on the section's columns, which columns, and their weights."""
    offset = (reading.start_m - first_m) / frame.cell_m
    begin = int(np.ceil(offset - ON_COLUMN))
    end = min(columns, int(np.floor(offset + frame.x_cells - 1 + ON_COLUMN)) + 1)
    at = np.clip(np.arange(begin, end) - offset, 0, frame.x_cells - 1)
    near = np.rint(at)
    at = np.where(np.abs(at - near) < ON_COLUMN, near, at)
    left = np.minimum(at.astype(int), frame.x_cells - 2) if (at != near).any() else near.astype(int)
    share = at - left
    given = [model for model in (reading.value, reading.low, reading.high) if model is not None]
    if share.any():
        models = [model[:, left] * (1 - share) + model[:, left + 1] * share for model in given]
    else:
        models = [model[:, left] for model in given]
    node = np.clip(np.rint(at * frame.cell_m / frame.receiver_spacing_m), 0, frame.receivers - 1).astype(int)
    lit = reading.lit[node] / len(frame.shot_x_m)
    return models, slice(begin, end), np.square(np.sin(np.pi * (at + 0.5) / frame.x_cells)) * lit
