"""Both engines against OpenFWI's own gathers: relative rms and maps a second of one core.

    python benchmarks/wavefield_accuracy.py PATH/operator_reference.npz

The file holds ``velocity`` (map, 70, 70), ``gather`` (map, 5, 1000, 70) and ``family`` (map,); it is made from
OpenFWI's files and therefore not in the repository. Row 999 of OpenFWI's gathers is unreliable and left out.
"""

import argparse
import time
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from seisbind.model.waves.wavefield import Engine, Float32, simulate


def relative_rms(ours: Float32, truth: Float32) -> float:
    """Rms of the difference over rms of the truth."""
    return float(np.sqrt(np.square(ours - truth, dtype=np.float64).sum() / np.square(truth, dtype=np.float64).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--repeat", type=int, default=3, help="timed passes over the maps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(arguments.reference) as stored:
        velocity, truth, family = stored["velocity"], stored["gather"][:, :, :999], stored["family"]
    for engine in get_args(Engine):
        simulate(velocity[:1], engine=engine)  # compiles
        print(f"{engine}\n  map                 to 600 ms    overall")
        for number, (v, gather, name) in enumerate(zip(velocity, truth, family, strict=True)):
            ours = simulate(v, engine=engine)[0, :, :999]
            early = relative_rms(ours[:, :600], gather[:, :600])
            print(f"  {number} {name:<16}  {early:10.3e} {relative_rms(ours, gather):10.3e}")
        start = time.process_time()
        for _ in range(arguments.repeat):
            simulate(velocity, engine=engine)
        spent = time.process_time() - start
        print(f"  {arguments.repeat * len(velocity) / spent:.1f} maps of 5 shots a second a core\n")


if __name__ == "__main__":
    main()
