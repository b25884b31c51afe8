"""Sections: their wall time over that of the encoder alone, and how close they come to lines of broad ground.

    python benchmarks/section.py [--windows 200] [--lines 3] [--length 10000] [--refine N] [--weights W] [--json]

Time: a towed line of --windows windows, read, encoded, matched and joined by `make_section`, against the encoding of
the same windows, prepared beforehand, in the same batches by as many threads; and against preparing them from gathers
and encoding them, as a retrieval does. The least of --repeats runs each, taken in turn.

Lines: --length metres long at scale 2 (cells of 20 m, 7.5 Hz), ground of `geology.draw_section` by seed, simulated by
deepwave with absorbing edges: recorded by fixed receivers every 20 m with a shot every 340 m, and by a towed cable (240
channels of 12.5 m, the first 100 m behind a shot every 50 m). Columns: mean absolute error of the section, of the best
straight line v(z) fitted to the truth of each 1.4 km, their ratio; share of the cells in their 90 % intervals, where
the weights state them; share of the columns known; share of the windows called like training. With --refine, each
line again with every window refined by at most so many iterations.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from off_family import straight_line_error
from scipy.ndimage import zoom

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.ground.families import mixed
from seisbind.model.ground.geology import MAKERS, draw_section
from seisbind.model.scale import Scale
from seisbind.model.survey.line import TracePositions
from seisbind.model.waves.wavefield import simulate
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.query import Query, encode
from seisbind.service.engine.refine import window_refiner
from seisbind.service.engine.section import BLOCK, Section, make_section, plan_section
from seisbind.service.formats.line_file import LineTraces, read_line
from seisbind.service.formats.npy import npz

FRAME = OPENFWI_FRAME
SCALE = Scale(2.0)
MODELS = 500  # of the gallery that is matched
CHANNELS, CHANNEL_M, NEAR_M, SHOT_M = 240, 12.5, 100.0, 50.0  # of the cable, true metres
FIXED_SHOT_M = 340.0
REACH_M = 750.0  # offsets that a window holds, in the frame's metres; others are not simulated
SIDE_M = 50.0  # of ground beside what is recorded


def towed_line(windows: int) -> LineTraces:
    """Noise, recorded by a cable, of so many windows; its traces repeat, so that memory is no matter."""
    length_m = FRAME.line_m * SCALE.s * (windows - 1) / 2
    shots = np.arange(0, length_m, SHOT_M)
    source = np.repeat(shots, CHANNELS)
    receiver = source - NEAR_M - np.tile(np.arange(CHANNELS) * CHANNEL_M, len(shots))
    noise = np.random.default_rng(0).standard_normal((4000, 1000)).astype(np.float32)

    def read(numbers: np.ndarray, samples: int) -> np.ndarray:
        return noise[numbers % len(noise), :samples]

    xy = [np.stack([x, np.zeros_like(x)], axis=1) for x in (source, receiver)]
    number = np.zeros(len(source), dtype=np.int64)
    return LineTraces(TracePositions(*xy, number, number), np.ones(len(source), bool), 0.002, 1000, read, (), "noise")


def measure_time(engine: Engine, windows: int, repeats: int) -> dict[str, float]:
    """Seconds of each, and their ratios."""
    plan = plan_section(towed_line(windows), frame=FRAME, scale=SCALE)
    read = [query for block in plan.blocks() for _, query in plan.read(block) if query is not None]
    gathers = [np.repeat(query.prepared.traces[0], 4, axis=1) for query in read]  # as recorded at 1 ms
    surveys = [
        Survey(tuple(query.prepared.shot_x_m[0].astype(float)), FRAME.survey.receiver_x_m, 0.001) for query in read
    ]

    def encoder() -> None:
        for start in range(0, len(read), BLOCK):
            encode(engine.embedder, read[start : start + BLOCK])

    def prepared() -> None:
        pairs = list(zip(gathers, surveys, strict=True))
        for start in range(0, len(pairs), BLOCK):
            encode(engine.embedder, [Query.prepare(*pair, frame=FRAME) for pair in pairs[start : start + BLOCK]])

    least = dict.fromkeys(("section", "encoder", "prepared"), float("inf"))
    for _ in range(repeats):
        for name, run in (
            ("section", lambda: make_section(engine, plan)),
            ("encoder", encoder),
            ("prepared", prepared),
        ):
            began = time.perf_counter()
            run()
            least[name] = min(least[name], time.perf_counter() - began)
    return least | {
        "windows": len(read),
        "over_encoder": least["section"] / least["encoder"],
        "over_prepared": least["section"] / least["prepared"],
    }


def record(velocity: np.ndarray, shots: np.ndarray, receivers: list[np.ndarray], cell_m: float) -> LineTraces:
    """The line over ``velocity``, in the frame's metres, each shot into its own ``receivers`` over its own ground."""
    source, group, traces = [], [], []
    for x, own in zip(shots, receivers, strict=True):
        left = max(0, int((min(x, own.min()) - SIDE_M) // cell_m))
        right = min(velocity.shape[1], int((max(x, own.max()) + SIDE_M) // cell_m) + 2)
        own = own[(own >= left * cell_m) & (own <= (right - 1) * cell_m)]
        local = Survey((float(x - left * cell_m),), tuple(own - left * cell_m), 0.001, FRAME.peak_hz, cell_m, cell_m)
        gather = simulate(velocity[:, left:right], frame=FRAME, survey=local, samples=1000, cell_m=cell_m)[0, 0]
        traces.append(gather[::2].T)  # 2 ms
        source.append(np.full(len(own), x))
        group.append(own)
    arrays = {
        "traces": np.concatenate(traces),
        "source_x_m": np.concatenate(source) * SCALE.s,
        "receiver_x_m": np.concatenate(group) * SCALE.s,
        "dt_s": 0.002 * SCALE.time,
    }
    return read_line(npz(arrays))


def fixed(velocity: np.ndarray, cells: int) -> LineTraces:
    receivers = np.arange(cells) * FRAME.cell_m
    shots = np.arange(0, receivers[-1] + 1, FIXED_SHOT_M / SCALE.s)
    return record(velocity, shots, [receivers[np.abs(receivers - x) <= REACH_M] for x in shots], FRAME.cell_m)


def towed(velocity: np.ndarray, cells: int) -> LineTraces:
    cell_m = CHANNEL_M / SCALE.s
    fine = zoom(velocity, FRAME.cell_m / cell_m, order=0, grid_mode=True, mode="nearest")
    offsets = (NEAR_M + np.arange(CHANNELS) * CHANNEL_M) / SCALE.s
    shots = np.arange(offsets[0], cells * FRAME.cell_m, SHOT_M / SCALE.s)
    cable = [x - offsets[(offsets <= REACH_M) & (offsets <= x)][::-1] for x in shots]
    return record(fine, shots, cable, cell_m)


def judge(found: Section, truth: np.ndarray) -> dict[str, float | None]:
    """``truth``: ``(depth, column)`` of the whole line, its first column at x = 0."""
    at = np.rint(found.x_m / found.cell_m).astype(int)
    inside = (at >= 0) & (at < truth.shape[1]) & (found.weight > 0)
    velocity, true = found.velocity[:, inside], truth[:, at[inside]]
    width = FRAME.x_cells
    parts = [true[:, start : start + width] for start in range(0, true.shape[1], width)]
    straight = [float(straight_line_error(part[None])[0]) * part.shape[1] for part in parts]
    cells = None
    if found.low is not None and found.high is not None:
        cells = float(((found.low[:, inside] <= true) & (true <= found.high[:, inside])).mean())
    likely = [window.likely for window in found.windows if window.lack is None]
    error, line = float(np.abs(velocity - true).mean()), sum(straight) / true.shape[1]
    return {
        "error_m_s": error,
        "straight_m_s": line,
        "over_straight_line": error / line,
        "cell_coverage": cells,
        "known": float(inside.sum() / truth.shape[1]),
        "likely": float(np.mean([bool(each) for each in likely])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lines", type=int, default=3)
    parser.add_argument("--length", type=float, default=10_000.0, help="of each line, metres")
    parser.add_argument("--refine", type=int, default=0, help="iterations of a window; minutes of a core each")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    embedder = Embedder.load(args.weights)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        velocity, family = mixed(MODELS, args.seed)
        build_gallery(Path(folder) / "gallery", embedder, [(velocity, family.tolist())], source="benchmark")
        with Gallery.open(Path(folder) / "gallery", fingerprint=embedder.fingerprint) as gallery:
            engine = Engine(embedder, gallery)
            spent = measure_time(engine, args.windows, args.repeats) if args.windows else {}
            cells = round(args.length / (FRAME.cell_m * SCALE.s))
            for number in range(args.lines):
                kind = list(MAKERS)[number % len(MAKERS)]
                truth = draw_section(np.random.default_rng([args.seed, number]), kind, cells).astype(np.float32)
                for spread, make in (("fixed", fixed), ("towed", towed)):
                    plan = plan_section(make(truth, cells), frame=FRAME, scale=SCALE)
                    rows.append({"ground": kind, "spread": spread} | judge(make_section(engine, plan), truth))
                    if args.refine:
                        with window_refiner(args.refine, "cpu") as refiner:
                            found = make_section(engine, plan, refine=refiner)
                        rows.append({"ground": kind, "spread": f"{spread}, refined"} | judge(found, truth))
                    print(rows[-1], file=sys.stderr, flush=True)
    if args.json:
        print(json.dumps({"weights": embedder.fingerprint, "time": spent, "lines": rows}, indent=1))
        return
    if spent:
        print(
            f"{spent['windows']} windows: section {spent['section']:.2f} s, encoder alone {spent['encoder']:.2f} s "
            f"({spent['over_encoder']:.2f}x), prepared and encoded {spent['prepared']:.2f} s "
            f"({spent['over_prepared']:.2f}x)"
        )
    print("| ground | spread | section | best straight v(z) | ratio | cells in intervals | known | likely |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells_in = "" if row["cell_coverage"] is None else f"{row['cell_coverage']:.2f}"
        print(
            f"| {row['ground']} | {row['spread']} | {row['error_m_s']:.0f} m/s | {row['straight_m_s']:.0f} m/s | "
            f"{row['over_straight_line']:.2f} | {cells_in} | {row['known']:.0%} | {row['likely']:.0%} |"
        )


if __name__ == "__main__":
    main()
