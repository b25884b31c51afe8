"""The demo's cases and answers, as a table and as a picture of seismic sections."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table

from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import DESCRIPTORS, NAMES
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.runtime.images import COLOURS
from seisbind.service.schemas import RetrievalBody
from seisbind.service.terminal.console import console

Float32 = NDArray[np.float32]

SHOWN = (
    "mean_velocity",
    "shallow_velocity",
    "middle_velocity",
    "deep_velocity",
    "strongest_contrast_depth",
    "strongest_contrast",
)
MATCHES_SHOWN = 3  # matches beside the true model
SHOT = 2  # of the five: the one in the middle of the line
GAIN_POWER = 1.5  # of time: makes up for spreading and reflection losses, as in any shot display
CLIP_PERCENTILE = 96  # of absolute gained pressure: the direct wave saturates, the reflections show
VELOCITY_RANGE_M_S = OPENFWI_FRAME.velocity_m_s  # OpenFWI's; one scale for all panels
FOUND = "#d1495b"


@dataclass(frozen=True, slots=True)
class Case:
    """A gather whose true velocity model is known.

    Attributes:
        velocity: ``(70, 70)`` m/s, the true model; gathers: ``(5, 1000, 70)``, simulated over it.
        model_id: of the true model in the gallery; None where it is not there.
        descriptors: ``(13,)`` of the true model.
    """

    family: str
    velocity: Float32
    gathers: Float32
    model_id: str | None
    descriptors: Float32


@dataclass(frozen=True, slots=True)
class Result:
    """A gather, the server's answer and what the answer is compared with.

    Attributes:
        retrieved: ``(k, 70, 70)`` m/s, fetched from the server, best first.
        best_mae_m_s: of the gallery's model closest to the true one, cell by cell; no retrieval can do better.
        answered_ms: from sending the gather to having read the answer.
    """

    case: Case
    answer: RetrievalBody
    retrieved: Float32
    best_mae_m_s: float
    answered_ms: float


def show(results: list[Result]) -> None:
    """Print a table: the cases, their answers, inferred physics against the truth."""
    table = Table(box=SIMPLE_HEAD, title="Answers against the truth", title_justify="left", pad_edge=False)
    for name in ("gather", "quantity"):
        table.add_column(name, no_wrap=True)
    for name in ("inferred", "90 % interval", "truth"):
        table.add_column(name, justify="right", no_wrap=True)
    held = total = 0
    shown = [d for d in DESCRIPTORS if d.name in SHOWN]
    for number, one in enumerate(results, start=1):
        for left, d in zip_longest(_about(number, one), shown):
            if d is None:
                table.add_row(left)
                continue
            q, truth = (one.answer.physics or {})[d.name], float(one.case.descriptors[NAMES.index(d.name)])
            inside = q.low <= truth <= q.high
            held, total = held + inside, total + 1
            interval = f"{q.low:.{d.decimals}f} to {q.high:.{d.decimals}f}"
            mark = "" if inside else "  outside"
            table.add_row(left or "", d.name.replace("_", " "), d.format(q.value), interval, d.format(truth) + mark)
        table.add_section()
    console().print(table)
    known = [one for one in results if one.case.model_id is not None]
    first = sum(rank(one) == 1 for one in known)
    novel = [one for one in results if one.case.model_id is None]
    print(f"True model at rank 1 for {first} of the {len(known)} gathers whose model is in the gallery.")
    print(
        f"For the {len(novel)} others the first match is off by "
        + " and ".join(f"{mae_m_s(one, 0):.0f} m/s (the gallery's closest: {one.best_mae_m_s:.0f})" for one in novel)
        + ", mean over cells."
    )
    print(f"{held} of {total} true values lie in their 90 % interval.")


def _about(number: int, one: Result) -> list[str]:
    lines = [f"{number}  {one.case.family}"]
    if one.case.model_id is None:
        lines.append("   model not in the gallery")
    else:
        at = rank(one)
        where = f"is rank {at}" if at else f"is not among {len(one.answer.matches)}"
        lines += ["   model in the gallery", f"   true model {where}"]
    top = one.answer.matches[0]
    lines += [f"   similarity {top.similarity:.3f}", f"   first match {top.family}"]
    if one.answer.in_distribution.likely is False:
        lines.append(f"   unlike the training set: {one.answer.in_distribution.reason}")
        lines.append("   in the gallery: unknown")
    lines.append(f"   answered in {one.answered_ms:.0f} ms")
    return lines


def rank(one: Result) -> int | None:
    """Where the true model is in the answer, from 1; None if it is not there."""
    return next((m.rank for m in one.answer.matches if m.model_id == one.case.model_id), None)


def mae_m_s(one: Result, match: int) -> float:
    """Mean absolute difference of a retrieved model from the truth."""
    return float(np.abs(one.retrieved[match] - one.case.velocity).mean())


def draw(results: list[Result], path: Path) -> None:
    """One row for each case: the gather, the true model, the first three matches, one colour bar."""
    figure = Figure(figsize=(13.2, 2.45 * len(results) + 0.9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(results), 2 + MATCHES_SHOWN, squeeze=False, width_ratios=[1.15] + [1] * (1 + MATCHES_SHOWN)
    )
    image: AxesImage | None = None
    for number, (row, one) in enumerate(zip(grid, results, strict=True), start=1):
        last = number == len(results)
        _draw_gather(row[0], one.case.gathers[SHOT], label=last)
        where = "in the gallery" if one.case.model_id else "not in the gallery"
        row[0].set_title(f"{number}  {one.case.family}, {where}", loc="left", fontsize=8.5, fontweight="bold")
        image = _draw_model(row[1], one.case.velocity, "true model", label=last)
        row[1].set_ylabel("depth (m)", fontsize=8)
        for k, axes in enumerate(row[2:]):
            if k >= len(one.retrieved):
                axes.set_axis_off()
                continue
            match = one.answer.matches[k]
            found = match.model_id == one.case.model_id
            off = "the true model" if found else f"{mae_m_s(one, k):.0f} m/s off"
            title = f"similarity {match.similarity:.3f}, {off}"
            _draw_model(axes, one.retrieved[k], title, label=last)
            axes.set_yticklabels([])
            if found:
                axes.title.set_color(FOUND)
                for spine in axes.spines.values():
                    spine.set(color=FOUND, linewidth=2.2)
    grid[0, 0].annotate("middle shot", (0.5, 1.19), xycoords="axes fraction", ha="center", fontsize=10)
    for k, axes in enumerate(grid[0, 2:], start=1):
        axes.annotate(f"match {k}", (0.5, 1.19), xycoords="axes fraction", ha="center", fontsize=10)
    if image is not None:
        bar = figure.colorbar(image, ax=grid[:, -1], location="right", shrink=0.5, aspect=40, pad=0.03)
        bar.set_label("velocity (m/s)", fontsize=9)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle("Velocity models retrieved by shot gathers", fontsize=12)
    figure.savefig(path)


def _draw_gather(axes: Axes, gather: Float32, *, label: bool) -> None:
    """One shot ``(time, receiver)`` as variable density, black positive, gained by a power of time."""
    time_s = (np.arange(len(gather)) + 1) * OPENFWI.dt_s
    gained = gather * time_s[:, None] ** GAIN_POWER
    offset_m = np.asarray(OPENFWI.receiver_x_m) - OPENFWI.shot_x_m[SHOT]
    clip = float(np.percentile(np.abs(gained), CLIP_PERCENTILE)) or 1.0
    extent = (offset_m[0], offset_m[-1], time_s[-1], 0.0)
    axes.imshow(gained, cmap="Greys", vmin=-clip, vmax=clip, aspect="auto", extent=extent, interpolation="bilinear")
    axes.set_ylabel("time (s)", fontsize=8)
    axes.tick_params(labelsize=7)
    if label:
        axes.set_xlabel("offset (m)", fontsize=8)
    else:
        axes.set_xticklabels([])


def _draw_model(axes: Axes, velocity: Float32, title: str, *, label: bool) -> AxesImage:
    depth_m, width_m = (n * OPENFWI_FRAME.cell_m for n in velocity.shape)
    low, high = VELOCITY_RANGE_M_S
    extent = (0.0, width_m, depth_m, 0.0)
    image = axes.imshow(velocity, cmap=COLOURS, vmin=low, vmax=high, aspect="auto", extent=extent)
    axes.set_title(title, fontsize=8.5)
    axes.tick_params(labelsize=7)
    axes.set_xticks([0, 200, 400, 600])
    axes.set_yticks([0, 200, 400, 600])
    if label:
        axes.set_xlabel("x (m)", fontsize=8)
    else:
        axes.set_xticklabels([])
    return image
