"""Training pairs with random acquisitions: solver, boundary, wavelet and depths are drawn for each velocity model.

These differ between simulators and between field crews, and an encoder must not depend on them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import hilbert

from seisbind.model.datasets.pairs import SHARD, SHARDS, PairSet, pair_bytes, save_shard, scale_to_unit_rms, shard_path
from seisbind.model.datasets.writer import Chunk, Gathers, claim, fill, only_writer, rows_of_chunks
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import BROAD_FAMILIES, checksum, draw_wide, generate
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import Boundary, Engine, GridDispersionWarning, simulate
from seisbind.model.waves.wavelet import band_wavelet, ricker


@dataclass(frozen=True, slots=True)
class AcquisitionConfig:
    """Shares of each departure from the frame's own acquisition; zero everywhere is OpenFWI's operator exactly.

    Attributes:
        deepwave: share simulated by deepwave's matched layers (10-20 cells) instead of the sponge.
        frame: share of the rest with another sponge (of ``sponge_cells`` at 0.5-2.5 times the strength).
        free_surface: share with a free surface.
        wavelet: share with a Ricker of `Frame.trained_peak_hz` (OpenFWI: 8-28 Hz), log-uniform, half of them rotated in
            phase by up to 30 degrees.
        depth: share with sources and receivers one to three cells deep (OpenFWI: 10-30 m) instead of one.
        source: share whose source is none of these: a band of its own, impulsive (air gun, dynamite) or correlated
            (vibrator), with another delay.
        places: share with shots at places of their own.
        seabed: share with receivers 2 to 20 cells deep, as nodes are.
        beside: cells of ground on each side of a model of `families.BROAD_FAMILIES`; other models' edges continue.
    """

    deepwave: float = 0.15
    frame: float = 0.55
    free_surface: float = 0.05
    wavelet: float = 0.3
    depth: float = 0.15
    source: float = 0.0
    places: float = 0.0
    seabed: float = 0.0
    beside: int = 0
    sponge_cells: tuple[int, int] = (24, 90)


EXACT = AcquisitionConfig(0.0, 0.0, 0.0, 0.0, 0.0)
ANY_LINE = AcquisitionConfig(
    deepwave=0.1,
    frame=0.8,
    free_surface=0.3,
    wavelet=0.3,
    depth=0.2,
    source=0.35,
    places=0.35,
    seabed=0.06,
    beside=16,
    sponge_cells=(20, 56),
)


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How one velocity model is recorded."""

    engine: Engine
    boundary: Boundary
    survey: Survey
    wavelet: NDArray[np.float32]


def draw(config: AcquisitionConfig, rng: np.random.Generator, *, frame: Frame = OPENFWI_FRAME) -> Acquisition:
    """Draw one acquisition."""
    engine: Engine = "deepwave" if rng.random() < config.deepwave else "openfwi"
    width, strength = None, 1.0
    if engine == "deepwave":
        width = int(rng.integers(10, 21))
    elif rng.random() < config.frame:
        narrow, wide = config.sponge_cells
        width, strength = int(rng.integers(narrow, wide + 1)), float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    free_surface = bool(rng.random() < config.free_surface)
    peak_hz, angle = frame.peak_hz, 0.0
    lowest_hz, highest_hz = frame.trained_peak_hz
    if rng.random() < config.wavelet:
        peak_hz = float(np.exp(rng.uniform(np.log(lowest_hz), np.log(highest_hz))))
        angle = float(rng.uniform(-np.pi / 6, np.pi / 6)) if rng.random() < 0.5 else 0.0
    wavelet = ricker(peak_hz, frame.record_dt_s)
    if angle:
        wavelet = np.real(hilbert(wavelet) * np.exp(1j * angle)).astype(np.float32)
    survey = frame.survey
    if rng.random() < config.depth:
        source, receiver = (frame.cell_m * float(rng.integers(1, 4)) for _ in range(2))
        survey = replace(survey, source_depth_m=source, receiver_depth_m=receiver)
    if config.source and rng.random() < config.source:
        wavelet = band_wavelet(
            rng.uniform(0.05, 0.55) * frame.peak_hz,
            float(np.exp(rng.uniform(np.log(1.2), np.log(2.8)))) * frame.peak_hz,
            frame.record_dt_s,
            slopes=(int(rng.integers(1, 5)), int(rng.integers(1, 5))),
            impulsive=bool(rng.random() < 0.6),
            delay_s=float(rng.uniform(0.1, 1.2)) / frame.peak_hz,
        )
    if config.places and rng.random() < config.places:
        survey = replace(survey, shot_x_m=_places(rng, frame))
    if config.seabed and rng.random() < config.seabed:
        survey = replace(survey, receiver_depth_m=frame.cell_m * float(rng.integers(2, 21)))
    return Acquisition(engine, Boundary(width, strength, free_surface), survey, wavelet)


def _places(rng: np.random.Generator, frame: Frame) -> tuple[float, ...]:
    """As many shots as the frame has, spread over the line or a part of it, at receivers."""
    shots, last = len(frame.shot_x_m), frame.receivers - 1
    first, end = 0, last
    if rng.random() < 0.3:
        first, end = sorted(rng.choice(frame.receivers, 2, replace=False).tolist())
        if end - first < 2 * shots:
            first, end = 0, last
    step = (end - first) / (shots - 1)
    at = first + step * np.arange(shots) + rng.uniform(-0.45, 0.45, shots) * step
    cells = np.unique(np.clip(np.rint(at), 0, last).astype(int))
    if len(cells) < shots:
        return frame.shot_x_m
    return tuple(float(frame.receiver_spacing_m * cell) for cell in cells)


def record(velocity: NDArray[np.float32], acquisition: Acquisition, *, frame: Frame = OPENFWI_FRAME) -> torch.Tensor:
    """Prepared traces ``(1, shot, time, receiver)`` of one model ``(depth, x)``, float16 at rms 1.

    Of a model wider than the frame's, the middle is recorded.
    """
    left_m = frame.cell_m * ((velocity.shape[1] - frame.x_cells) // 2)
    survey = acquisition.survey
    if left_m:
        survey = replace(
            survey,
            shot_x_m=tuple(x + left_m for x in survey.shot_x_m),
            receiver_x_m=tuple(x + left_m for x in survey.receiver_x_m),
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridDispersionWarning)  # dispersion, too, differs between simulators
        gathers = simulate(
            velocity,
            frame=frame,
            survey=survey,
            engine=acquisition.engine,
            boundary=acquisition.boundary,
            wavelet=acquisition.wavelet,
        )
    return scale_to_unit_rms(torch.from_numpy(prepare(gathers, acquisition.survey, frame=frame).traces))


def simulate_pairs(
    out: Path,
    count: int,
    seed: int,
    families: Sequence[str],
    *,
    config: AcquisitionConfig | None = None,
    frame: Frame = OPENFWI_FRAME,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Simulate ``count`` training pairs into shards (`pairs.save_pairs`); continues where an earlier run stopped.

    The result depends on the arguments alone, not on the number of processes or interruptions.

    Args:
        out: folder of the shards.
        count: pairs; families take turns.
        seed: of the velocity models and the acquisitions.
        families: see `families.generate`; one that is named twice has two turns.
        config: how acquisitions vary; None for `AcquisitionConfig`'s defaults.
        frame: that the pairs are for.
        processes: workers, each of one thread; None: one per core.
        progress: called with (pairs done, pairs in all) as they are done.

    Raises:
        DatasetError: ``out`` holds pairs of another recipe, another process writes it, the disk is too full, or a
            worker died.
    """
    config = config or AcquisitionConfig()
    recipe = {"count": count, "seed": seed, "families": list(families), "config": asdict(config)}
    if frame != OPENFWI_FRAME:
        recipe["frame"] = frame.to_dict()
    recipe["geology"] = checksum(tuple(dict.fromkeys(families)))
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        claim(out / "recipe.json", recipe, holds_pairs=any(out.glob(SHARDS)))
        starts = [start for start in range(0, count, SHARD) if not shard_path(out, start // SHARD).exists()]
        fill(
            out,
            (chunk for start in starts for chunk in _chunks(out, start, count, seed, tuple(families), config, frame)),
            left=sum(min(SHARD, count - start) for start in starts),
            total=count,
            pair_bytes=pair_bytes(frame),
            processes=processes,
            uses_torch=True,
            progress=progress,
        )


def _chunks(
    out: Path, start: int, count: int, seed: int, turns: tuple[str, ...], config: AcquisitionConfig, frame: Frame
) -> Iterator[Chunk]:
    """Draw the velocity models and acquisitions of one shard, and cut it into chunks; the last one stored saves it."""
    count = min(SHARD, count - start)
    rng = np.random.default_rng([seed, start])
    families = tuple(dict.fromkeys(turns))
    turn = np.arange(start, start + count) % len(turns)
    family = np.array([families.index(name) for name in turns])[turn]
    velocity = np.empty((count, *frame.velocity_shape), dtype=np.float32)
    recorded: list[NDArray[np.float32]] = [velocity[0]] * count  # with what lies beside them
    for index, name in enumerate(families):
        members = np.flatnonzero(family == index)
        if config.beside and name in BROAD_FAMILIES:
            models = draw_wide(name, len(members), rng, beside=config.beside, frame=frame)
            velocity[members] = models[:, :, config.beside : -config.beside]
        else:
            models = velocity[members] = generate(name, len(members), rng, frame=frame)
        for member, model in zip(members, models, strict=True):
            recorded[member] = model
    acquisitions = [draw(config, rng, frame=frame) for _ in range(count)]
    traces = torch.empty((count, *frame.prepared_shape), dtype=torch.float16)
    left = count

    def store(rows: slice, gathers: Gathers) -> None:
        nonlocal left
        traces[rows] = torch.from_numpy(gathers)
        left -= len(gathers)
        if left:
            return
        pairs = PairSet(
            traces=traces,
            velocity=torch.from_numpy(velocity),
            descriptors=torch.from_numpy(describe(velocity, cell_m=frame.cell_m)),
            family=torch.from_numpy(family),
            families=families,
            frame=frame,
            shot_x_m=torch.tensor([each.survey.shot_x_m for each in acquisitions]) if config.places else None,
        )
        save_shard(shard_path(out, start // SHARD), pairs)

    for rows in rows_of_chunks(count):
        work = partial(_record_all, recorded[rows], acquisitions[rows], frame)
        yield Chunk(len(acquisitions[rows]), work, partial(store, rows))


def _record_all(
    velocity: Sequence[NDArray[np.float32]], acquisitions: Sequence[Acquisition], frame: Frame
) -> NDArray[np.floating]:
    pairs = zip(velocity, acquisitions, strict=True)
    return np.asarray(torch.cat([record(model, acquisition, frame=frame) for model, acquisition in pairs]).numpy())
