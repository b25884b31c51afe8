"""Small things that several tests of `seisbind.model` look at."""

import numpy as np
import pytest
import torch

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import FAMILIES, mixed

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> EncoderConfig:
    """Our encoders, small enough to train a step in a few milliseconds."""
    return EncoderConfig(width=8, velocity_width=8, hidden=32)


@pytest.fixture(scope="session")
def velocity() -> np.ndarray:
    """(40, 70, 70), four models a family."""
    return mixed(40, seed=3)[0]


@pytest.fixture(scope="session")
def pairs(velocity: np.ndarray) -> PairSet:
    """Forty pairs whose gathers are noise: enough for the mechanics of training, not for learning."""
    rng = np.random.default_rng(4)
    return PairSet(
        traces=torch.from_numpy(rng.standard_normal((len(velocity), 5, 250, 70)).astype(np.float16)),
        velocity=torch.from_numpy(velocity),
        descriptors=torch.from_numpy(describe(velocity)),
        family=torch.arange(len(velocity)) % len(FAMILIES),
        families=FAMILIES,
    )
