"""Whether a refinement takes the surface that a record has, from starts near and far:

    python benchmarks/surface.py [--drawn 12] [--seed 951] [--weights W]

So many models of the drawn families and as many of the broad ones, a record of each by deepwave without a free surface
and one with. Printed for each, from the model that is read from the record and from a straight line from 1600 to 4200
m/s: what that leaves unexplained with a free surface over what without (a check of it takes one below `CLEARLY`), and
whether a refinement takes the right one (`has_free_surface`). Ends with the range of the ratio, and how often it was
right, of each. One thread.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from numpy.typing import NDArray

from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import FAMILIES, FIRST_BROAD, mixed
from seisbind.model.inversion.check import CLEARLY, check_models, has_free_surface
from seisbind.model.inversion.observed import Observed
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import ABSORBING, FREE_SURFACE, simulate

Float32 = NDArray[np.float32]
BY = ("read", "line")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=int, default=12)
    parser.add_argument("--seed", type=int, default=951)
    parser.add_argument("--weights", default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    embedder, frame = Embedder.load(args.weights), OPENFWI_FRAME
    depth, x = frame.velocity_shape
    line = np.repeat(np.linspace(1600, 4200, depth, dtype=np.float32)[:, None], x, axis=1)
    found: dict[tuple[str, bool], list[tuple[float, bool]]] = {}
    for families in (FAMILIES, FIRST_BROAD):
        velocity, kinds = mixed(args.drawn, args.seed, families)
        for kind, truth in zip(kinds.tolist(), velocity, strict=True):
            for free in (False, True):
                prepared = prepare(simulate(truth, boundary=FREE_SURFACE if free else ABSORBING))
                read = embedder.read_model(embedder.embed_gathers(prepared))
                if read is None:
                    sys.exit("These weights read no model.")
                near, observed = np.clip(read.value[0], *frame.velocity_m_s), Observed.of(prepared)
                said = []
                for by, model in zip(BY, (near, line), strict=True):
                    one = np.asarray(model, np.float32)[None]
                    without, below = (
                        check_models(observed, one, boundary=each)[0].unexplained for each in (ABSORBING, FREE_SURFACE)
                    )
                    right = has_free_surface(observed, one) is free
                    found.setdefault((by, free), []).append((below / without, right))
                    said.append(f"{by} {below / without:.2f}{'' if right else ' wrong'}")
                print(f"{kind} {'with' if free else 'without'} a free surface: {', '.join(said)}", flush=True)
    print(f"a check takes a free surface below {CLEARLY:g}; a refinement:")
    for (by, free), of in found.items():
        ratios = [ratio for ratio, _ in of]
        print(
            f"{by}, {'with' if free else 'without'} a free surface: {min(ratios):.2f} to {max(ratios):.2f}, "
            f"{sum(right for _, right in of)} of {len(of)} right"
        )


if __name__ == "__main__":
    main()
