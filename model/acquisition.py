"""Random acquisitions: the same ground recorded through other boundaries, wavelets and depths, on a GPU.

What an encoder must not learn from is what differs between simulators and crews: how well the frame absorbs, a free
surface, the source's spectrum and phase, how deep sources and receivers lie. `simulate_pairs` draws these for each
velocity model, so that no two share an operator.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import hilbert

from seisbind.model.descriptors import CELL_M, describe
from seisbind.model.finite_difference_cuda import propagate_batch
from seisbind.model.geology import generate
from seisbind.model.pairs import PairSet, scale_to_unit_rms
from seisbind.model.survey import OPENFWI

STEPS = 1000
KEEP_EVERY = 4  # 4 ms: no wavelet drawn here has power above 100 Hz worth filtering
GEOLOGY_CHUNK = 500  # models drawn by a worker at a time
CHUNK_BATCH = {120: 48, 80: 80, 40: 160, 24: 200}  # models a launch for each frame width, about 10 GB of fields
FRAMES = tuple(CHUNK_BATCH)


@dataclass(frozen=True, slots=True)
class AcquisitionConfig:
    """Shares of each departure from OpenFWI's own acquisition; zero everywhere is OpenFWI's operator exactly.

    Attributes:
        frame: share with another absorbing frame (24-80 cells at 0.5-2.5 times the strength).
        free_surface: share with a free surface.
        wavelet: share with a Ricker of 8-28 Hz (log-uniform), half of them rotated in phase by up to 30 degrees.
        depth: share with source and receivers at depth index 1-3 instead of 1.
    """

    frame: float = 0.55
    free_surface: float = 0.06
    wavelet: float = 0.35
    depth: float = 0.2


EXACT = AcquisitionConfig(0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One drawn acquisition for each model (arrays of length n)."""

    cells: NDArray[np.int64]
    strength: NDArray[np.float32]
    free_surface: NDArray[np.bool_]
    wavelets: NDArray[np.float32]
    source_row: NDArray[np.int32]
    receiver_row: NDArray[np.int32]


def ricker_at(t: NDArray[np.floating], peak_hz: float) -> NDArray[np.float64]:
    """OpenFWI's Ricker of another frequency: starts at t = 0 and peaks at 1.095 / peak (73 ms at 15 Hz)."""
    delay = 1.095 / peak_hz
    a = np.square(np.pi * peak_hz * (t - delay))
    return np.asarray((1 - 2 * a) * np.exp(-a) * (t < 2 * delay + 1e-9))


def draw(count: int, config: AcquisitionConfig, rng: np.random.Generator) -> Drawn:
    """Draw ``count`` acquisitions."""

    def chosen(share: float) -> NDArray[np.bool_]:
        return rng.random(count) < share

    other = chosen(config.frame)
    cells = np.where(other, rng.choice(FRAMES[1:], count), FRAMES[0])
    # a narrow frame needs no help to reflect; a strong one reflects from its inner edge, a weak one from the outer
    strength = np.where(other, np.exp(rng.uniform(np.log(0.5), np.log(2.5), count)), 1.0).astype(np.float32)
    peak = np.where(chosen(config.wavelet), np.exp(rng.uniform(np.log(8), np.log(28), count)), 15.0)
    t = np.arange(320) * OPENFWI.dt_s
    wavelets = np.empty((count, len(t)), dtype=np.float32)
    for i, hz in enumerate(peak):
        wave = ricker_at(t, hz)
        if hz != 15.0 and rng.random() < 0.5:
            angle = rng.uniform(-np.pi / 6, np.pi / 6)
            wave = np.real(hilbert(wave) * np.exp(1j * angle))
        wavelets[i] = wave
    deep = chosen(config.depth)
    return Drawn(
        cells=cells,
        strength=strength,
        free_surface=chosen(config.free_surface),
        wavelets=wavelets,
        source_row=np.where(deep, rng.integers(1, 4, count), 1).astype(np.int32),
        receiver_row=np.where(deep, rng.integers(1, 4, count), 1).astype(np.int32),
    )


def _draw_geology(task: tuple[str, int, np.random.SeedSequence]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    family, count, seed = task
    velocity = generate(family, count, np.random.default_rng(seed))
    return velocity, describe(velocity)


def draw_geology(
    count: int, seed: int, families: Sequence[str], *, processes: int | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Velocity models in equal shares of ``families``, with descriptors, whatever the number of processes.

    Returns:
        velocity ``(count, 70, 70)``, descriptors ``(count, 13)``, family index ``(count,)``.
    """
    shares = [count // len(families) + (i < count % len(families)) for i in range(len(families))]
    seeds = np.random.SeedSequence(seed).spawn(sum(-(-share // GEOLOGY_CHUNK) for share in shares))
    tasks: list[tuple[str, int, np.random.SeedSequence]] = []
    owner: list[int] = []
    for index, (family, share) in enumerate(zip(families, shares, strict=True)):
        for start in range(0, share, GEOLOGY_CHUNK):
            tasks.append((family, min(GEOLOGY_CHUNK, share - start), seeds[len(tasks)]))
            owner.append(index)
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        drawn = list(pool.map(_draw_geology, tasks))
    family_index = np.repeat(owner, [task[1] for task in tasks])
    return np.concatenate([v for v, _ in drawn]), np.concatenate([d for _, d in drawn]), family_index


def simulate_pairs(
    count: int,
    seed: int,
    families: Sequence[str],
    *,
    config: AcquisitionConfig | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PairSet:
    """Simulate ``count`` training pairs on the GPU and leave them there.

    Args:
        count: pairs, in equal shares of ``families``.
        seed: of the geology and the acquisitions.
        config: how acquisitions vary; None for `AcquisitionConfig`'s defaults.
        processes: workers that draw the geology.
        progress: called with (done, total).
    """
    velocity, descriptors, family = draw_geology(count, seed, families, processes=processes)
    return record_pairs(
        velocity,
        descriptors,
        family,
        tuple(families),
        seed=seed,
        config=config or AcquisitionConfig(),
        progress=progress,
    )


def record_pairs(
    velocity: NDArray[np.float32],
    descriptors: NDArray[np.float32],
    family: NDArray[np.int64],
    families: tuple[str, ...],
    *,
    seed: int,
    config: AcquisitionConfig,
    progress: Callable[[int, int], None] | None = None,
) -> PairSet:
    """Record given velocity models ``(n, 70, 70)`` through drawn acquisitions."""
    count = len(velocity)
    drawn = draw(count, config, np.random.default_rng([seed, 1]))
    columns = np.round(np.asarray(OPENFWI.shot_x_m) / CELL_M).astype(np.int32)
    traces = torch.empty((count, len(columns), STEPS // KEEP_EVERY, 70), dtype=torch.float16, device="cuda")
    done = 0
    for cells in FRAMES:
        members = np.flatnonzero(drawn.cells == cells)
        for start in range(0, len(members), CHUNK_BATCH[cells]):
            index = members[start : start + CHUNK_BATCH[cells]]
            rows = np.broadcast_to(drawn.source_row[index, None], (len(index), len(columns)))
            recorded = propagate_batch(
                velocity[index],
                wavelets=drawn.wavelets[index],
                source_cells=np.stack([rows, np.broadcast_to(columns, rows.shape)], axis=-1).astype(np.int32),
                receiver_row=drawn.receiver_row[index],
                strength=drawn.strength[index],
                free_surface=drawn.free_surface[index],
                cells=cells,
                samples=STEPS,
                keep_every=KEEP_EVERY,
                dt_s=OPENFWI.dt_s,
                cell_m=CELL_M,
            )
            traces[torch.from_numpy(index).to("cuda")] = scale_to_unit_rms(recorded)
            done += len(index)
            if progress is not None:
                progress(done, count)
    return PairSet(
        traces=traces,
        velocity=torch.from_numpy(velocity).to("cuda"),
        descriptors=torch.from_numpy(descriptors).to("cuda"),
        family=torch.from_numpy(family).to("cuda"),
        families=families,
    )
