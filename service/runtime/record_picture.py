"""A record as a picture: where it was shot and recorded, its fold, its spectrum and noise, and one of its gathers."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seisbind.model.inspection.signal import Signal
from seisbind.model.inspection.spread import Spread
from seisbind.model.inspection.traces import FieldTraces
from seisbind.model.survey.scaling import ChosenScale
from seisbind.service.engine.inspection import Inspection
from seisbind.service.runtime.images import DRAWING

MOST_POINTS = 20_000  # of traces in the drawing of positions
GAIN_POWER = 1.0  # of time, in the gather
CLIP_SHARE = 0.98  # of absolute gained samples


def record_png(found: Inspection, *, title: str) -> bytes:
    """Four panels as a PNG of 1000 x 760 pixels. Safe to call from several threads."""
    with DRAWING:
        figure = Figure(figsize=(10, 7.6), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        (positions, fold), (spectrum, gather) = figure.subplots(2, 2)
        figure.suptitle(f"{title}: {found.spread.kind} spread", fontsize=11, parse_math=False)
        _draw_positions(positions, found.traces)
        _draw_fold(fold, found.spread)
        band = found.auto.band if isinstance(found.auto, ChosenScale) else None
        _draw_spectrum(spectrum, found.signal, None if band is None else (band.low_hz, band.high_hz))
        _draw_gather(gather, found.traces)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_positions(axes: Axes, traces: FieldTraces) -> None:
    step = max(1, len(traces) // MOST_POINTS)
    axes.plot(traces.receiver_x_m[::step], traces.shot[::step], ".", markersize=2, color="#31688e", label="receivers")
    shots, first = np.unique(traces.shot, return_index=True)
    axes.plot(traces.shot_x_m[first], shots, "*", markersize=5, color="#b1420f", label="shots")
    axes.set(title="Shots and receivers", xlabel="position along the line (m)", ylabel="shot")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.legend(fontsize=8)


def _draw_fold(axes: Axes, spread: Spread) -> None:
    axes.fill_between(spread.midpoint_m, spread.fold_of, step="mid", color="#35b779")
    low, high = spread.offset_m
    axes.set(title=f"Fold; offsets {low:.6g} to {high:.6g} m", xlabel="midpoint (m)", ylabel="traces")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, None)


def _draw_spectrum(axes: Axes, signal: Signal | None, usable: tuple[float, float] | None) -> None:
    axes.set(title="Mean amplitude spectrum", xlabel="frequency (Hz)", ylabel="dB under the peak")
    if signal is None:
        axes.text(0.5, 0.5, "every trace is dead", ha="center", transform=axes.transAxes)
        return
    band = signal.band
    if usable is not None:
        axes.axvspan(*usable, color="#fde725", alpha=0.35, label="with signal")
    axes.axvspan(*band.within_10_db, color="#35b779", alpha=0.35, label="within 10 dB")
    axes.plot(signal.frequency_hz, signal.signal_db, color="#440154", label=f"peak {band.dominant_hz:.3g} Hz")
    if signal.noise_db is not None:
        axes.plot(signal.frequency_hz, signal.noise_db, color="#888888", label="before the first arrivals")
    axes.set_xlim(0, min(4 * band.within_10_db[1], float(signal.frequency_hz[-1])))
    axes.set_ylim(-60, 3)
    axes.legend(fontsize=8)


def _draw_gather(axes: Axes, traces: FieldTraces) -> None:
    """The middle one of the shots whose samples were read, traces in the order of their offsets."""
    of_shot = traces.shot[traces.sampled]
    shots = np.unique(of_shot)
    shot = shots[len(shots) // 2]
    rows = np.flatnonzero(of_shot == shot)
    offset = traces.offset_m[traces.sampled[rows]]
    order = np.argsort(offset, kind="stable")
    panel = np.nan_to_num(traces.samples[rows[order]].astype(np.float64))
    time = traces.start_s + (np.arange(panel.shape[1]) + 1) * traces.dt_s
    panel = panel / np.maximum(np.abs(panel).max(axis=1, keepdims=True), 1e-300) * np.maximum(time, 0) ** GAIN_POWER
    clip = float(np.quantile(np.abs(panel), CLIP_SHARE)) or 1.0
    extent = (float(offset[order[0]]), float(offset[order[-1]]), float(time[-1]), traces.start_s)
    if extent[0] == extent[1]:
        extent = (extent[0] - 0.5, extent[1] + 0.5, *extent[2:])
    axes.imshow(panel.T, cmap="gray_r", vmin=-clip, vmax=clip, aspect="auto", extent=extent)
    axes.set(title=f"Shot {shot}, each trace scaled, gain t", xlabel="offset (m)", ylabel="time (s)")
