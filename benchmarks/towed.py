"""A towed streamer over broad ground under a sea: what is read below the water, and how often the intervals hold.

    python benchmarks/towed.py [--models 40] [--seed 41] [--refine N] [--weights W …] [--cache runs/towed] [--json]

Ground of `geology.draw_section` by a seed of its own, each kind in turn, under 50 to 400 m of water; 1.4 km deep. A
cable of 240 channels of 12.5 m, the first 100 m behind the source, a shot every 50 m. Simulated by deepwave in cells
of 12.5 m: a free surface, source and cable a cell below it (so with both ghosts), an impulsive source of minimum
phase with no signal under 4 Hz (24 dB an octave) and 25 Hz at the other end, noise 20 dB below the signal. Of the
shots, those over one window at s = 2, the offsets that it holds; read by reciprocity as `seisbind section` reads
them.

Columns are those of off_family.py, but for the error of the mean velocity: that of the read model over the cells that
are truly below the water. With --refine, windows are refined from the model that is read, at most so many iterations
(`inversion.refinement`, a minute of a core or two each), and a line for each says what became of it: the mean
velocity below the water, the model's mean absolute error over that of the best straight line, cells in their intervals.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from off_family import judge, print_rows, straight_line_error
from scipy.ndimage import zoom

from seisbind.model.encoders.embedder import Embedder, ReadModel
from seisbind.model.frame import OPENFWI_FRAME, VELOCITY_LIMITS_M_S, Survey
from seisbind.model.ground.families import FIRST_BROAD
from seisbind.model.ground.geology import WATER_M_S, draw_section
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refined import RefineConfig
from seisbind.model.inversion.refinement import Refinement
from seisbind.model.scale import Scale
from seisbind.model.survey.line import TracePositions
from seisbind.model.waves.wavefield import FREE_SURFACE, GridDispersionWarning, simulate
from seisbind.model.waves.wavelet import band_wavelet
from seisbind.service.engine.query import Query, encode
from seisbind.service.engine.refine import prior_of
from seisbind.service.engine.section import plan_section
from seisbind.service.formats.line_file import LineTraces
from seisbind.service.terminal.console import counting

FRAME, SCALE = OPENFWI_FRAME, Scale(2.0)
CELL_M = 12.5 / SCALE.s  # of the simulation, in the frame's metres
CHANNELS, NEAR_M, SHOT_M = 240, 100.0 / SCALE.s, 50.0 / SCALE.s
LOW_HZ, HIGH_HZ = 4.0 * SCALE.s, 25.0 * SCALE.s
WATER = 50.0 / 1400.0, 400.0 / 1400.0  # of the depth
BESIDE = 15  # cells of the frame beside the window
DT_S, STEP = 0.0005, 4  # simulated, and samples of them that are kept (1 ms of true time each 0.5 ms of the frame)
NOISE_DB = 20.0


def ground(seed: int, number: int) -> np.ndarray:
    """``(depth, x)`` in the frame's cells, with what lies beside the window."""
    kind = FIRST_BROAD[number % len(FIRST_BROAD)]
    wide = FRAME.x_cells + 2 * BESIDE
    return draw_section(np.random.default_rng([seed, number]), kind, wide, water=WATER).astype(np.float32)


def recorded(velocity: np.ndarray, seed: int) -> LineTraces:
    """The traces of one window, in true metres and seconds."""
    fine = zoom(velocity, FRAME.cell_m / CELL_M, order=0, grid_mode=True, mode="nearest")
    left_m = BESIDE * FRAME.cell_m
    nodes = np.arange(int(FRAME.line_m / CELL_M) + 1) * CELL_M
    shots = np.arange(0, nodes[-1] + 1e-6, SHOT_M)
    survey = Survey(tuple(shots + left_m), tuple(nodes + left_m), DT_S, FRAME.peak_hz, CELL_M, CELL_M)
    source = band_wavelet(LOW_HZ, HIGH_HZ, DT_S, slopes=(4, 3), impulsive=True, delay_s=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridDispersionWarning)
        gathers = simulate(
            fine,
            frame=FRAME,
            survey=survey,
            boundary=FREE_SURFACE,
            wavelet=source,
            samples=round(FRAME.duration_s / DT_S),
            cell_m=CELL_M,
        )[0]  # (shot, time, receiver)
    offset = shots[:, None] - nodes
    kept = (offset >= NEAR_M - 1e-6) & (offset <= NEAR_M + (CHANNELS - 1) * CELL_M + 1e-6)
    traces = gathers.transpose(0, 2, 1)[kept][:, ::STEP]
    level = np.sqrt(np.square(traces).mean()) * 10 ** (-NOISE_DB / 20)
    traces = traces + level * np.random.default_rng(seed).standard_normal(traces.shape, dtype=np.float32)
    at = [np.broadcast_to(x, kept.shape)[kept] * SCALE.s for x in (shots[:, None], nodes)]
    xy = [np.stack([x, np.zeros_like(x)], axis=1) for x in at]
    number = np.zeros(len(traces), dtype=np.int64)
    positions = TracePositions(*xy, number, number)
    dt_s = DT_S * STEP * SCALE.time

    def read(numbers: np.ndarray, samples: int) -> np.ndarray:
        rows = traces[numbers, :samples]
        return np.pad(rows, ((0, 0), (0, samples - rows.shape[1]))).astype(np.float32)

    return LineTraces(positions, np.ones(len(traces), bool), dt_s, traces.shape[1], read, (), "")


def windows(count: int, seed: int, cache: Path) -> tuple[list[Query], np.ndarray]:
    """The prepared windows, and the true models ``(n, depth, x)`` under them."""
    cache.mkdir(parents=True, exist_ok=True)
    queries, truth = [], []
    with counting("Simulating windows", count) as progress:
        for number in range(count):
            velocity = ground(seed, number)
            at = cache / f"{seed}-{number}.npz"
            if not at.exists():
                line = recorded(velocity, number)
                np.savez(
                    at, traces=line.read(np.arange(len(line)), line.samples).astype(np.float32), dt_s=line.dt_s,
                    source=line.positions.source_xy_m, group=line.positions.group_xy_m,
                )  # fmt: skip
            with np.load(at, allow_pickle=False) as kept:
                traces, zeros = kept["traces"], np.zeros(len(kept["traces"]), np.int64)
                line = LineTraces(
                    TracePositions(kept["source"], kept["group"], zeros, zeros), np.ones(len(zeros), bool),
                    float(kept["dt_s"]), traces.shape[1],
                    lambda numbers, samples, traces=traces: np.pad(
                        traces[numbers, :samples], ((0, 0), (0, max(0, samples - traces.shape[1])))
                    ), (), "",
                )  # fmt: skip
            plan = plan_section(line, frame=FRAME, scale=SCALE)
            query = plan.read(range(1))[0][1]
            if query is None:
                raise SystemExit(f"window {number} has too few traces")
            queries.append(query)
            truth.append(velocity[:, BESIDE:-BESIDE])
            progress(number + 1)
    return queries, np.stack(truth)


def below_water(model: np.ndarray, truth: np.ndarray) -> float:
    """Error, per cent, of the mean velocity over the cells that are truly below the water."""
    below = truth != WATER_M_S
    return float(100 * abs(model[below].mean() / truth[below].mean() - 1))


def refine_windows(read: ReadModel, queries: list[Query], truth: np.ndarray, iterations: int) -> None:
    """Prints a line a window, and their mean."""
    rows = []
    for number, query in enumerate(queries):
        low, high = (None if each is None else each[number : number + 1] for each in (read.low, read.high))
        own, true = ReadModel(read.value[number : number + 1], low, high), truth[number]
        start = np.clip(own.value, *VELOCITY_LIMITS_M_S)
        observed = Observed.of(query.prepared)
        refinement = Refinement.begin(observed, start, RefineConfig(iterations=iterations), prior=prior_of(own))
        while not refinement.done:
            refinement.step()
        found = refinement.result()
        straight = straight_line_error(true[None])[0]
        row = [
            *(below_water(model, true) for model in (start[0], found.velocity)),
            *(np.abs(model - true).mean() / straight for model in (start[0], found.velocity)),
            found.residual_before,
            found.residual_after,
            ((found.low <= true) & (true <= found.high)).mean(),
        ]
        rows.append(row)
        print(f"window {number}, free surface {found.free_surface}: {refined_row(row)}", flush=True)
    print(f"mean of {len(rows)}: {refined_row(list(np.mean(rows, axis=0)))}")


def refined_row(row: list[float]) -> str:
    return (
        "mean velocity {:.1f} -> {:.1f} %, over the straight line {:.2f} -> {:.2f}, residual {:.3f} -> {:.3f}, "
        "{:.0%} of the cells within"
    ).format(*row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--seed", type=int, default=41)
    parser.add_argument("--refine", type=int, default=0, metavar="N", help="at most so many iterations a window")
    parser.add_argument("--weights", type=Path, nargs="*", default=[None], help="one or several; default: the shipped")
    parser.add_argument("--cache", type=Path, default=Path("runs/towed"), help="simulated traces are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    queries, truth = windows(args.models, args.seed, args.cache)
    rows = []
    for path in args.weights:
        embedder = Embedder.load(path)
        encoded, measured = encode(embedder, queries), np.concatenate([query.measured for query in queries])
        row = judge(embedder, encoded, measured, truth, "towed, mean velocity below the water")
        model = embedder.read_model(encoded)
        if model is None:
            sys.exit(f"Weights {embedder.fingerprint} read no model.")
        off = np.mean([below_water(value, true) for value, true in zip(model.value, truth, strict=True)])
        rows.append(row | {"mean_velocity_percent": float(off)})
        if args.refine:
            refine_windows(model, queries, truth, args.refine)
    print_rows(rows, as_json=args.json)


if __name__ == "__main__":
    main()
