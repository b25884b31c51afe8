"""What a true model leaves of a record up to the peak frequency, as the source is first found and then:

    python benchmarks/refine_source.py [--seed 99]

One model of each of five families, records by deepwave (the equation that it is predicted with) and by OpenFWI's
operator. A line each: rms of record less prediction over the record's, through the refinement's band of 1, predicted
with `probing_wavelet` and with `folded_wavelet` of what that gave. One thread.
"""

from __future__ import annotations

import argparse
from typing import get_args

import numpy as np
import torch

from seisbind.model.ground.families import FAMILIES, generate
from seisbind.model.inversion.forward import Forward
from seisbind.model.inversion.observed import Observed
from seisbind.model.inversion.refinement import BOUNDARY
from seisbind.model.inversion.seen import Seen
from seisbind.model.inversion.source import estimate_source, folded_wavelet, probing_wavelet
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import Engine, simulate

DRAWN = ("FlatVel-A", "CurveVel-A", "FlatFault-A", "CurveFault-B", "Style-A")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=99)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for engine in get_args(Engine):
        for family in DRAWN:
            truth = generate(family, 1, np.random.default_rng([args.seed, FAMILIES.index(family)]))
            observed = Observed.of(prepare(simulate(truth, engine=engine)))
            forward = Forward(observed.shot_x_m, observed.frame, boundary=BOUNDARY)
            seen, wavelet, left = Seen(observed), probing_wavelet(observed), list[float]()
            for _ in range(2):
                with torch.no_grad():
                    made = forward(torch.from_numpy(truth), torch.from_numpy(wavelet))[0].numpy()
                source, predicted = estimate_source(observed, made)
                missed = seen.through(seen.record - torch.from_numpy(predicted), 1.0)
                left.append(float(missed.norm() / seen.through(seen.record, 1.0).norm()))
                wavelet = folded_wavelet(source, wavelet, observed.frame)
            print(f"{engine} {family}: {left[0]:.4f} -> {left[1]:.4f}", flush=True)


if __name__ == "__main__":
    main()
