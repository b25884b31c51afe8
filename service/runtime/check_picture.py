"""A check as a picture: what was recorded, what one candidate predicts, their difference, and where it comes late."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from seisbind.service.engine.check import Checked, CheckedCandidate
from seisbind.service.runtime.images import DRAWING

GAIN_POWER = 1.0  # of time, in the gathers
CLIP_SHARE = 0.98  # of the record's absolute gained samples
LINE = 95  # characters of the verdict on a line


def check_png(checked: Checked, found: CheckedCandidate, *, title: str) -> bytes:
    """Four panels of the middle shot as a PNG of 1200 x 460 pixels. Safe to call from several threads."""
    shot = len(checked.observed.shot_x_m) // 2
    own, scale = checked.scale.frame(checked.observed.frame), checked.scale
    recorded, predicted = checked.observed.traces[shot], found.check.predicted[shot]
    time_s = np.arange(len(recorded)) * own.dt_s
    gain = np.power(np.maximum(time_s, own.dt_s) / own.duration_s, GAIN_POWER)[:, None]
    clip = float(np.quantile(np.abs(recorded * gain), CLIP_SHARE)) or 1.0
    extent = (0.0, own.line_m, own.duration_s, 0.0)
    comparison = found.check.comparison
    half_s = 0.5 / (comparison.lowest_hz * scale.frequency)
    with DRAWING:
        figure = Figure(figsize=(12, 4.6), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 4, sharey=True)
        x_m = float(checked.observed.shot_x_m[shot]) * scale.s
        heading = f"{title}, {found.candidate.name}, shot at {x_m:g} m: {'' if found.verdict.usable else 'not '}usable"
        figure.suptitle(f"{heading}\n{_wrapped(found.verdict.detail)}", fontsize=10, parse_math=False)
        for axes, name, gather in zip(
            panels, ("recorded", "predicted", "difference"), (recorded, predicted, recorded - predicted), strict=False
        ):
            axes.imshow(gather * gain, cmap="gray_r", vmin=-clip, vmax=clip, aspect="auto", extent=extent)
            axes.set(title=f"{name} (gain t)", xlabel="receiver (m)")
        panels[0].set_ylabel("time (s)")
        _draw_lag(figure, panels[3], comparison.lag_s[shot].T * scale.time, comparison.window_s * scale.time, extent,
                  half_s)  # fmt: skip
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_lag(
    figure: Figure,
    axes: Axes,
    lag_s: NDArray[np.float32],
    window_s: NDArray[np.float64],
    extent: tuple[float, ...],
    half_s: float,
) -> None:
    """``lag_s``: ``(window, receiver)``; grey where nothing is followed."""
    step = float(window_s[1] - window_s[0]) if len(window_s) > 1 else 2 * float(window_s[0])
    own = (extent[0], extent[1], float(window_s[-1]) + step / 2, float(window_s[0]) - step / 2)
    axes.set_facecolor("#888888")
    image = axes.imshow(lag_s * 1e3, cmap="RdBu_r", vmin=-half_s * 1e3, vmax=half_s * 1e3, aspect="auto", extent=own)
    axes.set(title="lag, to half a period", xlabel="receiver (m)", ylim=(extent[2], extent[3]))
    figure.colorbar(image, ax=axes, label="ms; blue: the prediction is late")


def _wrapped(text: str) -> str:
    words, lines = text.split(" "), [""]
    for word in words:
        if len(lines[-1]) + len(word) > LINE:
            lines.append("")
        lines[-1] += f"{word} "
    return "\n".join(lines)
