"""Retrieval under what records suffer: noise, dead traces, other wavelets, fewer shots, delays, sparser lines.

    python benchmarks/train_weights.py --only test    # the 1,000 pairs
    python benchmarks/robustness.py [--pairs runs/pairs/test] [--weights W] [--count 1000] [--json]

Every disturbed gather goes the whole way of an uploaded one, `preparation.prepare` included, and is looked for among
all velocity models. Kinds marked * are never part of training (`acquisition`, `augment`), so they show what
generalises. Signal over noise compares the rms of the whole record with that of the noise. Then what is read of the
ground: error of the mean velocity, and the share of truths in the 90 % intervals (all descriptors; the worst of them).
The last two columns are of `in_distribution`: the area under the ROC curve of its score as a detector of the
disturbance (.5 is blind, 1 sees every one), and the share of gathers that it calls unlike training. The peak
frequencies are simulated anew, kept in --cache.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import butter, sosfiltfilt

from seisbind.model.confidence.novelty import measure
from seisbind.model.datasets.acquisition import Acquisition, record
from seisbind.model.datasets.pairs import PairSet, load_pairs, save_pairs
from seisbind.model.encoders.embedder import Embedder, InferredPhysics
from seisbind.model.frame import OPENFWI_FRAME, Survey
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import EXTRA_FAMILIES, mixed
from seisbind.model.survey.preparation import OPENFWI, Prepared, prepare
from seisbind.model.training.evaluation import coverage, descriptor_errors, recall
from seisbind.model.waves.wavefield import Boundary
from seisbind.model.waves.wavelet import ricker

Array = NDArray[np.float32]
Disturbed = tuple[Array, Survey]  # (batch, shot, time, receiver) and how it was recorded

SURVEY = Survey(OPENFWI.shot_x_m, OPENFWI.receiver_x_m, OPENFWI_FRAME.dt_s, OPENFWI.peak_hz)
PEAK_HZ = (10.0, 25.0)
EXTRA_SEED = 14  # of models of families that training never saw


def rms(p: Array) -> Array:
    return np.sqrt(np.square(p).mean(axis=(1, 2, 3), keepdims=True))


def white(p: Array, rng: np.random.Generator, *, decibel: float) -> Disturbed:
    return p + rms(p) * np.float32(10 ** (-decibel / 20)) * rng.standard_normal(p.shape, dtype=np.float32), SURVEY


def band_limited(p: Array, rng: np.random.Generator, *, decibel: float, band_hz: tuple[float, float]) -> Disturbed:
    sos = butter(4, band_hz, btype="band", fs=1 / OPENFWI_FRAME.dt_s, output="sos")
    noise = sosfiltfilt(sos, rng.standard_normal(p.shape, dtype=np.float32), axis=2).astype(np.float32)
    return p + noise * (rms(p) / rms(noise) * np.float32(10 ** (-decibel / 20))), SURVEY


def dead(p: Array, rng: np.random.Generator, *, share: float) -> Disturbed:
    alive = rng.random((len(p), p.shape[1], 1, p.shape[3])) >= share
    return p * alive, SURVEY


def fewer_shots(p: Array, rng: np.random.Generator, *, kept: int) -> Disturbed:
    """All of the batch loses the same shots: a survey is one geometry."""
    chosen = np.sort(rng.permutation(p.shape[1])[:kept])
    x = tuple(OPENFWI.shot_x_m[i] for i in chosen)
    return p[:, chosen], Survey(x, OPENFWI.receiver_x_m, OPENFWI_FRAME.dt_s, OPENFWI.peak_hz)


def delayed(p: Array, rng: np.random.Generator, *, delay_s: float) -> Disturbed:
    late = delay_s * rng.choice([-1.0, 1.0], (len(p), 1, 1, 1))
    n = p.shape[2] + 2 * round(abs(delay_s) / OPENFWI_FRAME.dt_s) + 2  # nothing wraps around
    f = np.fft.rfftfreq(n, OPENFWI_FRAME.dt_s)[:, None]
    moved = np.fft.irfft(np.fft.rfft(p, n, axis=2) * np.exp(-2j * np.pi * f * late), n, axis=2)
    return moved[:, :, : p.shape[2]].astype(np.float32), SURVEY


def gain_and_polarity(p: Array, rng: np.random.Generator) -> Disturbed:
    gain = 10 ** rng.uniform(-6, 6, (len(p), 1, 1, 1)) * rng.choice([-1.0, 1.0], (len(p), 1, 1, 1))
    return (p * gain).astype(np.float32), SURVEY


def every(p: Array, rng: np.random.Generator, *, step: int) -> Disturbed:
    x = OPENFWI.receiver_x_m[::step]
    return p[..., ::step], Survey(OPENFWI.shot_x_m, x, OPENFWI_FRAME.dt_s, OPENFWI.peak_hz)


def spaced(p: Array, rng: np.random.Generator, *, spacing_m: float) -> Disturbed:
    """Receivers every ``spacing_m``, read from the 10 m line by a sinc: at 15 Hz it holds four samples a wavelength."""
    nodes = np.asarray(OPENFWI.receiver_x_m)
    x = np.arange(0, nodes[-1] + 1e-6, spacing_m)
    weights = np.sinc((x[:, None] - nodes) / (nodes[1] - nodes[0]))
    weights /= weights.sum(axis=1, keepdims=True)
    read = np.einsum("bstr,nr->bstn", p, weights.astype(np.float32), optimize=True)
    return read, Survey(OPENFWI.shot_x_m, tuple(x.tolist()), OPENFWI_FRAME.dt_s, OPENFWI.peak_hz)


def clipped(p: Array, rng: np.random.Generator, *, at_rms: float) -> Disturbed:
    bound = at_rms * rms(p)
    return np.clip(p, -bound, bound), SURVEY


def swapped(p: Array, rng: np.random.Generator, *, share: float) -> Disturbed:
    """Neighbouring traces change places."""
    out = p.copy()
    for gather in out:
        for shot in gather:
            for r in np.flatnonzero(rng.random(p.shape[3] - 1) < share):
                shot[:, [r, r + 1]] = shot[:, [r + 1, r]]
    return out, SURVEY


def surface_wave(p: Array, rng: np.random.Generator, *, times_rms: float) -> Disturbed:
    """A slow dispersive-looking train from each shot, 6-12 Hz at 300-600 m/s, at ``times_rms`` of the record."""
    t = np.arange(p.shape[2])[:, None] * OPENFWI_FRAME.dt_s
    offset = np.abs(np.subtract.outer(np.asarray(OPENFWI.shot_x_m), np.asarray(OPENFWI.receiver_x_m)))  # (shot, r)
    velocity, hz = rng.uniform(300, 600, (len(p), 1, 1, 1)), rng.uniform(6, 12, (len(p), 1, 1, 1))
    after = t - 0.1 - offset[None, :, None, :] / velocity  # (batch, shot, time, receiver)
    train = np.sin(2 * np.pi * hz * after) * np.exp(-np.square(after / 0.12))
    train = train.astype(np.float32)
    return p + train * (times_rms * rms(p) / rms(train)), SURVEY


Kind = Callable[[Array, np.random.Generator], Disturbed]
KINDS: dict[str, Kind] = {
    "clean": lambda p, rng: (p, SURVEY),
    "white noise at 30 dB": partial(white, decibel=30),
    "white noise at 20 dB": partial(white, decibel=20),
    "white noise at 10 dB": partial(white, decibel=10),
    "noise of 5-40 Hz at 20 dB": partial(band_limited, decibel=20, band_hz=(5, 40)),
    "20 % dead traces": partial(dead, share=0.2),
    "3 of the 5 shots": partial(fewer_shots, kept=3),
    "a single shot": partial(fewer_shots, kept=1),
    "20 ms late or early": partial(delayed, delay_s=0.02),
    "unknown gain and polarity": gain_and_polarity,
    "every second receiver": partial(every, step=2),
    "receivers at 15 m": partial(spaced, spacing_m=15.0),
    "clipped at 4 rms *": partial(clipped, at_rms=4.0),
    "10 % of neighbours swapped *": partial(swapped, share=0.1),
    "surface wave at 0.1 rms *": partial(surface_wave, times_rms=0.1),
    "surface wave at 1 rms *": partial(surface_wave, times_rms=1.0),
}


def auroc(usual: Array, unusual: Array) -> float:
    """Probability that an unusual gather scores below a usual one (ties count half)."""
    ordered = np.sort(usual)
    below = np.searchsorted(ordered, unusual, "left"), np.searchsorted(ordered, unusual, "right")
    return float(1 - (below[0] + below[1]).mean() / (2 * len(usual)))


def read_off(physics: InferredPhysics, truth: Array) -> dict[str, float]:
    """How far off the mean velocity is, and what share of ``truth`` (batch, 13) lies in the intervals."""
    covered = coverage(physics, truth)
    off = descriptor_errors(physics.value, truth, truth.std(axis=0) + 1e-9)["mean_velocity"]
    return {"mean_velocity": off, "covered": float(covered.mean()), "least": float(covered.min())}


def of_peak(peak_hz: float, velocity: Array, number: int) -> torch.Tensor:
    """Prepared traces of one model with another wavelet (``number`` is the pool's running index)."""
    return record(velocity, Acquisition("openfwi", Boundary(), OPENFWI, ricker(peak_hz, OPENFWI.dt_s)))


def single_threaded() -> None:
    torch.set_num_threads(1)


def recorded(velocity: Array, peaks: NDArray[np.float64], cache: Path) -> PairSet:
    """Gathers of ``velocity`` by OpenFWI's operator, each with its own peak frequency; kept in ``cache``."""
    if not cache.exists():
        print(f"simulating {len(velocity)} gathers into {cache}", file=sys.stderr, flush=True)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(os.cpu_count(), context, initializer=single_threaded) as pool:
            traces = torch.cat(list(pool.map(of_peak, peaks, velocity, range(len(peaks)), chunksize=8)))
        part = cache.with_suffix(".part")
        blank = torch.zeros(len(velocity), dtype=torch.int64)
        save_pairs(part, PairSet(traces, torch.from_numpy(velocity), torch.zeros(len(velocity), 13), blank, ("-",)))
        part.rename(cache)
    return load_pairs(cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=Path, default=Path("runs/pairs/test"))
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--cache", type=Path, default=Path("runs/robustness"), help="simulated gathers are kept here")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.cache.mkdir(parents=True, exist_ok=True)
    embedder = Embedder.load(args.weights)
    pairs = load_pairs(args.pairs)
    pairs = pairs.select(range(min(args.count, len(pairs))))
    traces, velocity = pairs.traces.float().numpy(), pairs.velocity.numpy()
    gallery = embedder.embed_velocity(velocity)

    rows: list[dict[str, Any]] = []
    scores: list[Array] = []  # the first are those of the clean gathers

    def add(name: str, prepared: Prepared, *, own: bool = True, truth: Array | None = None) -> None:
        encoded = embedder.embed_gathers(prepared)
        verdicts = embedder.judge_novelty(measure(prepared), encoded)
        if verdicts is None:
            sys.exit("These weights are not calibrated: there is no in_distribution to measure.")
        scores.append(np.asarray([verdict.score for verdict in verdicts], dtype=np.float32))
        row = {"kind": name, "auroc": auroc(-scores[0], -scores[-1])}
        row |= {"unlikely": float(np.mean([not verdict.likely for verdict in verdicts]))}
        row |= recall(encoded.embedding, gallery) if own else {}
        row |= {} if truth is None else read_off(embedder.infer_physics(encoded, None), truth)
        rows.append(row)

    described = pairs.descriptors.numpy()
    for name, disturb in KINDS.items():
        add(name, prepare(*disturb(traces, np.random.default_rng(0))), truth=described)
    peaks = np.random.default_rng(0).uniform(*PEAK_HZ, len(velocity))
    other = recorded(velocity, peaks, args.cache / f"peaks-{len(velocity)}")
    add(
        f"peak frequency {PEAK_HZ[0]:g}-{PEAK_HZ[1]:g} Hz",
        prepare(other.traces.float().numpy(), SURVEY),
        truth=described,
    )
    ground, _ = mixed(300, EXTRA_SEED, EXTRA_FAMILIES)
    extra = recorded(ground, np.full(len(ground), 15.0), args.cache / "extra-300")
    unseen = prepare(extra.traces.float().numpy()[: len(ground)], SURVEY)
    add("ground of families never seen *", unseen, own=False, truth=describe(ground))
    noise = np.random.default_rng(1).standard_normal(traces[:300].shape, dtype=np.float32)
    add("nothing but noise *", prepare(noise, SURVEY), own=False)

    if args.json:
        print(json.dumps({"weights": embedder.fingerprint, "pairs": len(pairs), "rows": rows}, indent=1))
        return
    print(f"weights {embedder.fingerprint}, {len(pairs)} pairs")
    print(
        "| gathers | R@1 | R@10 | mean velocity, % | in the intervals | AUROC | called unlike training |\n"
        + 7 * "|---"
        + "|"
    )
    for row in rows:
        cells = {key: f"{value:.3f}" for key, value in row.items() if key != "kind"}
        if "covered" in row:
            cells |= {
                "mean_velocity": f"{row['mean_velocity']:.1f}",
                "covered": f"{row['covered']:.2f} ({row['least']:.2f})",
            }
        columns = ("r_at_1", "r_at_10", "mean_velocity", "covered", "auroc", "unlikely")
        print(f"| {row['kind']} | " + " | ".join(cells.get(key, "") for key in columns) + " |")


if __name__ == "__main__":
    main()
