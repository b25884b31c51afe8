"""Training pairs with random acquisitions: solver, boundary, wavelet and depths are drawn for each velocity model.

These differ between simulators and between field crews, and an encoder must not depend on them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import hilbert

from seisbind.model.datasets.openfwi import MANIFEST
from seisbind.model.datasets.own_survey import as_recipe, drawn_shots
from seisbind.model.datasets.pairs import (
    RECIPE,
    SHARD,
    SHARDS,
    TEST_SHARDS,
    PairSet,
    pair_bytes,
    save_shard,
    scale_to_unit_rms,
    shard_path,
    share_held_out,
)
from seisbind.model.datasets.writer import Chunk, Gathers, claim, fill, only_writer, rows_of_chunks
from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import BROAD_FAMILIES, checksum, draw_wide, generate
from seisbind.model.survey.preparation import prepare
from seisbind.model.survey.resampling import receiver_map
from seisbind.model.waves.wavefield import (
    Boundary,
    Engine,
    GridDispersionWarning,
    simulate,
    stable_boundary,
    stable_step_s,
)
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


def draw(
    config: AcquisitionConfig,
    rng: np.random.Generator,
    *,
    frame: Frame = OPENFWI_FRAME,
    own_survey: Survey | None = None,
) -> Acquisition:
    """Draw one acquisition.

    Args:
        config: how they vary.
        rng: the only source of randomness.
        frame: whose line is recorded, unless there is a survey.
        own_survey: on the frame's cells (`own_survey.on_frame`); its shots are used, or as many as the frame has, and
            its receivers, whatever ``config`` says of ``places`` and ``seabed``.
    """
    survey = frame.survey if own_survey is None else own_survey
    dt_s = stable_step_s(frame, survey.dt_s)
    engine: Engine = "deepwave" if rng.random() < config.deepwave else "openfwi"
    width, strength = None, 1.0
    if engine == "deepwave":
        width = int(rng.integers(10, 21))
    elif rng.random() < config.frame:
        narrow, wide = config.sponge_cells
        width, strength = int(rng.integers(narrow, wide + 1)), float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    free_surface = bool(rng.random() < config.free_surface)
    peak_hz, angle = survey.peak_hz or frame.peak_hz, 0.0
    lowest_hz, highest_hz = frame.trained_peak_hz
    if rng.random() < config.wavelet:
        peak_hz = float(np.exp(rng.uniform(np.log(lowest_hz), np.log(highest_hz))))
        angle = float(rng.uniform(-np.pi / 6, np.pi / 6)) if rng.random() < 0.5 else 0.0
    wavelet = ricker(peak_hz, dt_s)
    if angle:
        wavelet = np.real(hilbert(wavelet) * np.exp(1j * angle)).astype(np.float32)
    if rng.random() < config.depth:
        source, receiver = (frame.cell_m * float(rng.integers(1, 4)) for _ in range(2))
        survey = replace(survey, source_depth_m=source, receiver_depth_m=receiver)
    if config.source and rng.random() < config.source:
        wavelet = band_wavelet(
            rng.uniform(0.05, 0.55) * frame.peak_hz,
            float(np.exp(rng.uniform(np.log(1.2), np.log(2.8)))) * frame.peak_hz,
            dt_s,
            slopes=(int(rng.integers(1, 5)), int(rng.integers(1, 5))),
            impulsive=bool(rng.random() < 0.6),
            delay_s=float(rng.uniform(0.1, 1.2)) / frame.peak_hz,
        )
    if config.places and own_survey is None and rng.random() < config.places:
        survey = replace(survey, shot_x_m=_places(rng, frame))
    if config.seabed and own_survey is None and rng.random() < config.seabed:
        deepest = min(20, frame.depth_cells - 1)
        survey = replace(survey, receiver_depth_m=frame.cell_m * float(rng.integers(2, deepest + 1)))
    if own_survey is not None:
        survey = replace(survey, shot_x_m=drawn_shots(own_survey, len(frame.shot_x_m), rng))
    survey = replace(survey, dt_s=dt_s)
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


def record(
    velocity: NDArray[np.float32], acquisition: Acquisition, *, frame: Frame = OPENFWI_FRAME, device: str = "cpu"
) -> torch.Tensor:
    """Prepared traces ``(1, shot, time, receiver)`` of one model ``(depth, x)``, float16 at rms 1.

    Of a model wider than the frame's, the middle is recorded. Traces are zero where the survey has no receiver, and
    shots are where it has fewer than the frame.
    """
    left_m = frame.cell_m * ((velocity.shape[1] - frame.x_cells) // 2)
    survey = acquisition.survey
    if left_m:
        survey = replace(
            survey,
            shot_x_m=tuple(x + left_m for x in survey.shot_x_m),
            receiver_x_m=tuple(x + left_m for x in survey.receiver_x_m),
        )
    boundary = acquisition.boundary
    if acquisition.engine == "openfwi":
        boundary = stable_boundary(boundary, velocity, survey.dt_s, frame.cell_m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridDispersionWarning)  # dispersion, too, differs between simulators
        gathers = simulate(
            velocity,
            frame=frame,
            survey=survey,
            engine=acquisition.engine,
            boundary=boundary,
            wavelet=acquisition.wavelet,
            samples=round(frame.record_samples * frame.record_dt_s / survey.dt_s),
            device=device,
        )
    traces = torch.from_numpy(prepare(gathers, acquisition.survey, frame=frame, move_shots=False).traces)
    missing = len(frame.shot_x_m) - traces.shape[1]
    return scale_to_unit_rms(torch.nn.functional.pad(traces, (0, 0, 0, 0, 0, missing)))


def simulate_pairs(
    out: Path,
    count: int,
    seed: int,
    families: Sequence[str],
    *,
    config: AcquisitionConfig | None = None,
    frame: Frame = OPENFWI_FRAME,
    own_survey: Survey | None = None,
    per_shard: int = SHARD,
    hold_out: bool = False,
    processes: int | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Simulate ``count`` training pairs into shards (`pairs.save_pairs`); continues where an earlier run stopped.

    The result depends on the arguments alone, not on the number of processes or interruptions (a GPU rounds otherwise).

    Args:
        out: folder of the shards.
        count: pairs; families take turns.
        seed: of the velocity models and the acquisitions.
        families: see `families.generate`; one that is named twice has two turns.
        config: how acquisitions vary; None for `AcquisitionConfig`'s defaults.
        frame: that the pairs are for.
        own_survey: where the records are made, see `draw`; None for the frame's line.
        per_shard: pairs in a shard.
        hold_out: the recipe says that the last fifth of the shards is the test part (`pairs.load_pairs`).
        processes: workers, each of one thread; None: one per core.
        device: of records by deepwave.
        progress: called with (pairs done, pairs in all) as they are done.

    Raises:
        InvalidConfig: an unknown family, or a number or a device that cannot be.
        InvalidSurvey: the line is not on the frame's cells.
        DatasetError: ``out`` holds pairs of another recipe, another process writes it, the disk is too full, or a
            worker died.
    """
    config = config or AcquisitionConfig()
    if count < 1 or per_shard < 1 or seed < 0:
        raise InvalidConfig(
            f"{count} pairs, {per_shard} a shard, seed {seed}: the first two start at 1, the seed at 0."
        )
    recipe: dict[str, Any] = {"count": count, "seed": seed, "families": list(families), "config": asdict(config)}
    if frame != OPENFWI_FRAME:
        recipe["frame"] = frame.to_dict()
    if own_survey is not None:
        recipe["survey"] = as_recipe(own_survey)
    if per_shard != SHARD:
        recipe["per_shard"] = per_shard
    if hold_out:
        recipe[TEST_SHARDS] = share_held_out(math.ceil(count / per_shard))
    recipe["geology"] = checksum(tuple(dict.fromkeys(families)))
    _try(families[0], config, frame, own_survey, device)
    if (out / MANIFEST).exists():
        raise DatasetError(f"{out} holds a dataset of files, as {MANIFEST} says; use a new directory for shards.")
    out.mkdir(parents=True, exist_ok=True)
    made = partial(_record_all, frame=frame, device=device)
    draw_one = partial(draw, config, frame=frame, own_survey=own_survey)
    with only_writer(out):
        claim(out / RECIPE, recipe, holds_pairs=any(out.glob(SHARDS)))
        starts = [start for start in range(0, count, per_shard) if not shard_path(out, start // per_shard).exists()]
        gaps = own_survey is not None
        places = config.places > 0 or gaps
        shards = (
            _Shard(shard_path(out, at // per_shard), at, min(per_shard, count - at), seed, config.beside, places, gaps)
            for at in starts
        )
        fill(
            out,
            (chunk for shard in shards for chunk in _chunks(shard, tuple(families), frame, draw_one, made)),
            left=sum(min(per_shard, count - start) for start in starts),
            total=count,
            pair_bytes=pair_bytes(frame),
            processes=processes,
            uses_torch=True,
            progress=progress,
        )


def _try(family: str, config: AcquisitionConfig, frame: Frame, own_survey: Survey | None, device: str) -> None:
    """Record one sample by each engine that may be drawn: what cannot be is refused before anything is written."""
    model = generate(family, 1, np.random.default_rng(0), frame=frame)
    engines: list[Engine] = ["openfwi"] if config.deepwave < 1 else []
    engines += ["deepwave"] if config.deepwave > 0 else []
    survey = draw(EXACT, np.random.default_rng(0), frame=frame, own_survey=own_survey).survey
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridDispersionWarning)
        for engine in engines:
            simulate(model, frame=frame, survey=survey, engine=engine, samples=1, device=_device_of(engine, device))


def _device_of(engine: Engine, device: str) -> str:
    return device if engine == "deepwave" else "cpu"


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    start: int  # number of its first pair
    count: int
    seed: int
    beside: int  # cells of ground on each side
    places: bool  # whether shots may be elsewhere than the frame's
    gaps: bool  # whether traces may be missing


def _chunks(
    shard: _Shard,
    turns: tuple[str, ...],
    frame: Frame,
    draw_one: Callable[[np.random.Generator], Acquisition],
    made: Callable[[Sequence[NDArray[np.float32]], Sequence[Acquisition]], Gathers],
) -> Iterator[Chunk]:
    """Draw the velocity models and acquisitions of one shard, and cut it into chunks; the last one stored saves it."""
    count, beside = shard.count, shard.beside
    rng = np.random.default_rng([shard.seed, shard.start])
    families = tuple(dict.fromkeys(turns))
    turn = np.arange(shard.start, shard.start + count) % len(turns)
    family = np.array([families.index(name) for name in turns])[turn]
    velocity = np.empty((count, *frame.velocity_shape), dtype=np.float32)
    recorded: list[NDArray[np.float32]] = [velocity[0]] * count  # with what lies beside them
    for index, name in enumerate(families):
        members = np.flatnonzero(family == index)
        if beside and name in BROAD_FAMILIES:
            models = draw_wide(name, len(members), rng, beside=beside, frame=frame)
            velocity[members] = models[:, :, beside:-beside]
        else:
            models = velocity[members] = generate(name, len(members), rng, frame=frame)
        for member, model in zip(members, models, strict=True):
            recorded[member] = model
    acquisitions = [draw_one(rng) for _ in range(count)]
    shots = len(frame.shot_x_m)
    placed = [(*x, *x[-1:] * (shots - len(x))) for x in (each.survey.shot_x_m for each in acquisitions)]
    live = np.stack([_covered(each.survey, frame) for each in acquisitions])
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
            shot_x_m=torch.tensor(placed) if shard.places else None,
            live=torch.from_numpy(live) if shard.gaps else None,
        )
        save_shard(shard.path, pairs)

    for rows in rows_of_chunks(count):
        work = partial(made, recorded[rows], acquisitions[rows])
        yield Chunk(len(acquisitions[rows]), work, partial(store, rows))


def _covered(survey: Survey, frame: Frame) -> NDArray[np.bool_]:
    """``(shot, receiver)``: which traces of the frame a survey has; one in which nothing arrives is recorded, too."""
    covered = (receiver_map(survey.receiver_x_m, frame=frame) != 0).any(axis=1)
    return np.asarray((np.arange(len(frame.shot_x_m)) < len(survey.shot_x_m))[:, None] & covered)


def _record_all(
    velocity: Sequence[NDArray[np.float32]], acquisitions: Sequence[Acquisition], *, frame: Frame, device: str
) -> Gathers:
    records = [
        record(model, acquisition, frame=frame, device=_device_of(acquisition.engine, device))
        for model, acquisition in zip(velocity, acquisitions, strict=True)
    ]
    return np.asarray(torch.cat(records).numpy())
