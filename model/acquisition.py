"""Random acquisitions: the same ground recorded through other solvers, boundaries, wavelets and depths.

What an encoder must not learn from is what differs between simulators and crews: how well the frame absorbs, a free
surface, the source's spectrum and phase, how deep sources and receivers lie. `simulate_pairs` draws these for each
velocity model, so that no two share an operator.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from scipy.signal import hilbert

from seisbind.model.descriptors import describe
from seisbind.model.errors import DatasetError
from seisbind.model.geology import checksum, generate
from seisbind.model.pairs import (
    PAIR_BYTES,
    SHARD,
    PairSet,
    claim_recipe,
    save_shard,
    scale_to_unit_rms,
    shard_path,
)
from seisbind.model.simulation import only_writer
from seisbind.model.survey import OPENFWI, Survey, prepare
from seisbind.model.wavefield import Boundary, Engine, GridDispersionWarning, ricker, simulate

PEAK_HZ = 15.0


@dataclass(frozen=True, slots=True)
class AcquisitionConfig:
    """Shares of each departure from OpenFWI's own acquisition; zero everywhere is OpenFWI's operator exactly.

    Attributes:
        deepwave: share simulated by deepwave's matched layers (10-20 cells) instead of the sponge.
        frame: share of the rest with another sponge (24-90 cells at 0.5-2.5 times the strength).
        free_surface: share with a free surface.
        wavelet: share with a Ricker of 8-28 Hz (log-uniform), half of them rotated in phase by up to 30 degrees.
        depth: share with sources and receivers at 10-30 m instead of 10 m.
    """

    deepwave: float = 0.15
    frame: float = 0.55
    free_surface: float = 0.05
    wavelet: float = 0.3
    depth: float = 0.15


EXACT = AcquisitionConfig(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Acquisition:
    """How one velocity model is recorded."""

    engine: Engine
    boundary: Boundary
    survey: Survey
    wavelet: NDArray[np.float32]


def draw(config: AcquisitionConfig, rng: np.random.Generator) -> Acquisition:
    """Draw one acquisition."""
    engine: Engine = "deepwave" if rng.random() < config.deepwave else "openfwi"
    width, strength = None, 1.0
    if engine == "deepwave":
        width = int(rng.integers(10, 21))
    elif rng.random() < config.frame:
        width, strength = int(rng.integers(24, 91)), float(np.exp(rng.uniform(np.log(0.5), np.log(2.5))))
    free_surface = bool(rng.random() < config.free_surface)
    peak_hz, angle = PEAK_HZ, 0.0
    if rng.random() < config.wavelet:
        peak_hz = float(np.exp(rng.uniform(np.log(8), np.log(28))))
        angle = float(rng.uniform(-np.pi / 6, np.pi / 6)) if rng.random() < 0.5 else 0.0
    wavelet = ricker(peak_hz, OPENFWI.dt_s)
    if angle:
        wavelet = np.real(hilbert(wavelet) * np.exp(1j * angle)).astype(np.float32)
    survey = OPENFWI
    if rng.random() < config.depth:
        source, receiver = (10.0 * float(rng.integers(1, 4)) for _ in range(2))
        survey = replace(OPENFWI, source_depth_m=source, receiver_depth_m=receiver)
    return Acquisition(engine, Boundary(width, strength, free_surface), survey, wavelet)


def record(velocity: NDArray[np.float32], acquisition: Acquisition) -> torch.Tensor:
    """Prepared traces ``(1, 5, 250, 70)`` of one model ``(70, 70)``, float16 at rms 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GridDispersionWarning)  # one more thing that differs between simulators
        gathers = simulate(
            velocity,
            survey=acquisition.survey,
            engine=acquisition.engine,
            boundary=acquisition.boundary,
            wavelet=acquisition.wavelet,
        )
    return scale_to_unit_rms(torch.from_numpy(prepare(gathers, OPENFWI).traces))


def simulate_pairs(
    out: Path,
    count: int,
    seed: int,
    families: Sequence[str],
    *,
    config: AcquisitionConfig | None = None,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Simulate ``count`` training pairs into ``out`` as `pairs.save_pairs` lays them out; goes on where it stopped.

    The result depends on the arguments alone, not on the number of processes or interruptions.

    Args:
        out: folder of the shards.
        count: pairs; families take turns.
        seed: of the geology and the acquisitions.
        families: see `geology.generate`.
        config: how acquisitions vary; None for `AcquisitionConfig`'s defaults.
        processes: single-threaded workers; None for one a core.
        progress: called with (done, total).

    Raises:
        DatasetError: ``out`` holds pairs of another recipe, another process writes it, or the disk is too full.
    """
    config = config or AcquisitionConfig()
    recipe = {"count": count, "seed": seed, "families": list(families), "config": asdict(config)}
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out):
        claim_recipe(out, recipe | {"geology": checksum(families)})
        starts = [s for s in range(0, count, SHARD) if not shard_path(out, s // SHARD).exists()]
        left = sum(min(SHARD, count - s) for s in starts)
        free = shutil.disk_usage(out).free
        if free < left * PAIR_BYTES:
            raise _disk_full(out, left, f"{free:,} are free")
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(processes or os.cpu_count(), context, initializer=_single_threaded) as pool:
            task = partial(_simulate_shard, out, count=count, seed=seed, families=tuple(families), config=config)
            jobs = [pool.submit(task, start) for start in starts]
            try:
                for job in as_completed(jobs):
                    left -= job.result()
                    if progress is not None:
                        progress(count - left, count)
            except (OSError, SafetensorError) as error:
                pool.shutdown(cancel_futures=True)
                if getattr(error, "errno", None) not in (None, errno.ENOSPC, errno.EDQUOT):
                    raise
                raise _disk_full(out, left, str(error)) from error


def _disk_full(out: Path, left: int, cause: str) -> DatasetError:
    return DatasetError(
        f"The {left} pairs to go need {left * PAIR_BYTES:,} bytes in {out}: {cause}. Make room, and run again to go on."
    )


def _single_threaded() -> None:
    torch.set_num_threads(1)


def _simulate_shard(
    out: Path, start: int, *, count: int, seed: int, families: tuple[str, ...], config: AcquisitionConfig
) -> int:
    count = min(SHARD, count - start)
    rng = np.random.default_rng([seed, start])
    family = np.arange(start, start + count) % len(families)
    velocity = np.empty((count, 70, 70), dtype=np.float32)
    for index, name in enumerate(families):
        members = np.flatnonzero(family == index)
        velocity[members] = generate(name, len(members), rng)
    traces = [record(model, draw(config, rng)) for model in velocity]
    pairs = PairSet(
        traces=torch.cat(traces),
        velocity=torch.from_numpy(velocity),
        descriptors=torch.from_numpy(describe(velocity)),
        family=torch.from_numpy(family),
        families=families,
    )
    save_shard(shard_path(out, start // SHARD), pairs)
    return count
