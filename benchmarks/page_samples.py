"""Makes the sample gathers of the page, with the ground that each was simulated over:

    python benchmarks/page_samples.py --out service/web/samples

The same seed gives the same ground; that of the fault is in every gallery of OpenFWI's families with seed 1
(that of `make demo`) and 640 models or more. The gathers are simulated by deepwave with a 15 Hz Ricker,
five shots into 70 receivers, put on the canonical 4 ms grid and kept as float16.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import NAMES, describe
from seisbind.model.ground.families import generate, mixed
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.model.waves.wavefield import simulate

SEED = 20260
GALLERY_SEED = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """``snr_db``: white noise under the rms of the gather; ``dead``: traces of each shot that are zero."""

    name: str
    family: str
    title: str
    about: str
    snr_db: float | None = None
    dead: int = 0
    left_out: tuple[int, ...] = ()  # shots
    in_gallery: bool = False  # of `make demo`


SAMPLES = (
    Sample("layers", "FlatVel-A", "Flat layers", "Flat layers, faster with depth; clean."),
    Sample("folds", "CurveVel-B", "Folded layers", "Folded layers with velocity inversions; clean."),
    Sample(
        "fault",
        "FlatFault-A",
        "A fault",
        "Few layers cut by a fault; clean. The gallery of make demo holds this very ground.",
        in_gallery=True,
    ),
    Sample(
        "salt",
        "Salt",
        "A salt body",
        "A fast body in a gradient: a kind of ground that a gallery of OpenFWI's families does not hold.",
    ),
    Sample(
        "incomplete",
        "CurveFault-A",
        "Noisy and incomplete",
        "Folded and faulted; noise 12 dB under the signal, one shot missing, 8 dead traces a shot.",
        snr_db=12.0,
        dead=8,
        left_out=(1,),
    ),
)


def make(sample: Sample, rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32], list[int]]:
    """The gather ``(shot, 250, 70)``, the ground ``(70, 70)`` in m/s, and which shots are in the gather."""
    if sample.in_gallery:
        velocity, family = mixed(640, GALLERY_SEED)
        ground = velocity[family == sample.family][:1]
    else:
        ground = generate(sample.family, 1, rng)
    gather = prepare(simulate(ground)).traces[0]
    if sample.snr_db is not None:
        rms = float(np.sqrt(np.square(gather).mean()))
        gather = gather + rng.normal(0, rms * 10 ** (-sample.snr_db / 20), gather.shape).astype(np.float32)
    for shot in gather:
        shot[:, rng.choice(shot.shape[1], sample.dead, replace=False)] = 0
    kept = [shot for shot in range(len(gather)) if shot not in sample.left_out]
    return gather[kept] / np.abs(gather).max(), ground[0], kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    listed = []
    for number, sample in enumerate(SAMPLES):
        gather, ground, kept = make(sample, np.random.default_rng([SEED, number]))
        np.savez_compressed(
            out / f"{sample.name}.npz",
            gathers=gather.astype(np.float16),
            dt_s=OPENFWI_FRAME.dt_s,
            shot_x_m=np.asarray(OPENFWI.shot_x_m)[kept],
            receiver_x_m=np.asarray(OPENFWI.receiver_x_m),
            peak_hz=15.0,
        )
        np.save(out / f"{sample.name}-ground.npy", ground.round().astype(np.uint16))
        listed.append(
            {
                "title": sample.title,
                "about": sample.about,
                "file": f"{sample.name}.npz",
                "ground": f"{sample.name}-ground.npy",
                "physics": {
                    name: float(f"{value:.5g}") for name, value in zip(NAMES, describe(ground[None])[0], strict=True)
                },
            }
        )
        print(f"{sample.name}: {(out / f'{sample.name}.npz').stat().st_size} bytes")
    (out / "samples.json").write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
