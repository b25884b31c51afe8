"""What records of other sources than a Ricker are answered with, when a scale is asked for.

    python benchmarks/wavelets.py [--models 40] [--seed 43] [--others 2000] [--weights W …] [--cache runs/wavelets]
                                  [--as-recorded] [--json]

The frame's own line, simulated by deepwave, half over ground of the ten families and half over that of
`geology.draw_section`, white noise 30 dB below the signal. Sources, with corners in the frame's hertz (at scale 2 half
of them): a Ricker, as it is and turned by 90 degrees; bands of minimum phase from the shot on, as explosions and air
guns have; and of zero phase about it, as correlated sweeps. Each record is prepared as one with a scale is: its band
shaped, its clock and its phase set (`shaping.suit_wavelet`); with --as-recorded it is not.

Columns, a row for each ground: share of the true descriptors in the 90 % intervals (all thirteen; the worst of them),
and of the cells of the read model; error of the mean velocity; mean absolute error of the read model; R@1 among the
models and --others more of the ten families; records called like those of training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.confidence.novelty import measure
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.ground.descriptors import NAMES, describe
from seisbind.model.ground.families import FIRST_BROAD, mixed
from seisbind.model.ground.geology import draw_section
from seisbind.model.survey.preparation import prepare
from seisbind.model.training.evaluation import ranks
from seisbind.model.waves.wavefield import simulate
from seisbind.model.waves.wavelet import band_wavelet, ricker
from seisbind.service.engine.query import Query, encode
from seisbind.service.terminal.console import counting

Array = NDArray[np.float32]

FRAME = OPENFWI_FRAME
DT_S = 0.001
SURVEY = Survey(FRAME.shot_x_m, FRAME.survey.receiver_x_m, DT_S, FRAME.peak_hz)
OTHERS_SEED = 31
NOISE_DB = 30.0
# Corners, Hz, and whether of minimum phase; or the degrees by which a Ricker of the frame's is turned
SOURCES: dict[str, tuple[float, float, bool] | float] = {
    "Ricker": 0.0,
    "Ricker, 90 degrees": 90.0,
    "minimum phase 1-32 Hz": (1.0, 32.0, True),
    "minimum phase 3-32 Hz": (3.0, 32.0, True),
    "minimum phase 8-32 Hz": (8.0, 32.0, True),
    "minimum phase 4-24 Hz": (4.0, 24.0, True),
    "zero phase 4-24 Hz": (4.0, 24.0, False),
    "zero phase 8-32 Hz": (8.0, 32.0, False),
}


def source(kind: tuple[float, float, bool] | float) -> tuple[Array, int]:
    """A wavelet, and the sample of it at which the shot is."""
    if isinstance(kind, float):
        wavelet = ricker(FRAME.peak_hz, DT_S)
        spectrum = np.fft.rfft(wavelet, 8 * len(wavelet)) * np.exp(1j * np.radians(kind))
        return np.fft.irfft(spectrum)[: 2 * len(wavelet)].astype(np.float32), 0
    low, high, impulsive = kind
    before = 0.0 if impulsive else 2 / low
    found = band_wavelet(low, high, DT_S, slopes=(3, 3), impulsive=impulsive, delay_s=before)
    return found, round(before / DT_S)


def recorded(velocity: Array, name: str, cache: Path) -> Array:
    """``(model, shot, time, receiver)`` from the shot on, with noise; without it kept in ``cache``."""
    at = cache / f"{name.replace(' ', '-')}-{len(velocity)}.npy"
    if not at.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wavelet, shot = source(SOURCES[name])
        samples = round(FRAME.duration_s / DT_S) + shot
        gathers = []
        with counting(f"Simulating {name}", len(velocity)) as progress:
            for number, model in enumerate(velocity):
                found = simulate(model, frame=FRAME, survey=SURVEY, wavelet=wavelet, samples=samples)[0]
                gathers.append(found[:, shot:].astype(np.float32))
                progress(number + 1)
        part = at.with_suffix(".part.npy")
        np.save(part, np.stack(gathers))
        part.rename(at)
    clean = np.load(at, allow_pickle=False)
    level = np.sqrt(np.square(clean).mean(axis=(1, 2, 3), keepdims=True)) * 10 ** (-NOISE_DB / 20)
    return np.asarray(
        clean + level * np.random.default_rng(0).standard_normal(clean.shape, dtype=np.float32), np.float32
    )


def ground(count: int, seed: int) -> Array:
    """``(count, depth, x)``: half of the ten families, half broad."""
    familiar = mixed(count // 2, seed)[0]
    broad = [
        draw_section(np.random.default_rng([seed, number]), FIRST_BROAD[number % len(FIRST_BROAD)], FRAME.x_cells)
        for number in range(count - len(familiar))
    ]
    return np.concatenate([familiar, np.stack(broad).astype(np.float32)])


def answered(embedder: Embedder, queries: list[Query], velocity: Array, others: Array) -> list[dict[str, object]]:
    """A row for each half of the models ``(n, depth, x)``, the second of broad ground."""
    encoded, truth = encode(embedder, queries), describe(velocity)
    gallery = embedder.embed_velocity(np.concatenate([velocity, others]))
    rank = ranks(encoded.embedding, gallery, np.arange(len(velocity)))
    physics, model = embedder.infer_physics(encoded, None), embedder.read_model(encoded)
    if model is None or model.low is None or model.high is None:
        raise SystemExit(f"Weights {embedder.fingerprint} read no model with intervals.")
    inside = (physics.low <= truth) & (truth <= physics.high)
    cells = ((model.low <= velocity) & (velocity <= model.high)).mean(axis=(1, 2))
    off = np.abs(model.value - velocity).mean(axis=(1, 2))
    at = NAMES.index("mean_velocity")
    mean = np.abs(physics.value[:, at] / truth[:, at] - 1)
    verdicts = embedder.judge_novelty(np.concatenate([query.measured for query in queries]), encoded) or []
    likely = np.array([verdict.likely for verdict in verdicts])
    rows: list[dict[str, object]] = []
    for ground, some in (("familiar", slice(0, len(velocity) // 2)), ("broad", slice(len(velocity) // 2, None))):
        covered = inside[some].mean(axis=0)
        rows.append(
            {
                "ground": ground,
                "covered": float(covered.mean()),
                "lowest": [NAMES[int(covered.argmin())], float(covered.min())],
                "cells": float(cells[some].mean()),
                "mean_velocity_percent": float(100 * mean[some].mean()),
                "read_model_m_s": float(off[some].mean()),
                "r_at_1": float((rank[some] <= 1).mean()),
                "likely": float(likely[some].mean()),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40)
    parser.add_argument("--seed", type=int, default=43)
    parser.add_argument("--others", type=int, default=2_000)
    parser.add_argument("--weights", type=Path, nargs="*", default=[None], help="one or several; default: the shipped")
    parser.add_argument("--cache", type=Path, default=Path("runs/wavelets"), help="simulated gathers are kept here")
    parser.add_argument("--as-recorded", action="store_true", help="leave band, clock and phase as they are")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    velocity, others = ground(args.models, args.seed), mixed(args.others, OTHERS_SEED)[0]
    rows = []
    for path in args.weights:
        embedder = Embedder.load(path)
        for name in SOURCES:
            gathers = recorded(velocity, name, args.cache / str(args.seed))
            each = [prepare(gather[None], SURVEY, shape=not args.as_recorded) for gather in gathers]
            queries = [Query(prepared, measure(prepared)) for prepared in each]
            own = {"weights": embedder.fingerprint, "source": name}
            rows += [own | row for row in answered(embedder, queries, velocity, others)]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{args.models} models (seed {args.seed}), {args.others} others; weights {rows[0]['weights']}")
    print("| source | ground | in the intervals (worst); cells | mean velocity, % | read model, m/s | R@1 | likely |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            "| {source} | {ground} | {covered:.2f} ({lowest[1]:.2f} {lowest[0]}); {cells:.2f} | "
            "{mean_velocity_percent:.1f} | {read_model_m_s:.0f} | {r_at_1:.2f} | {likely:.2f} |".format(**row)
        )


if __name__ == "__main__":
    main()
