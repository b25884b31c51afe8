"""Weights of each released format still load and answer as recorded with them (promise 20).

``golden/weights-3.safetensors`` was made by `make` below, at the commit that added it; it is never made again. A new
format adds files of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seisbind.model.confidence.novelty import MEASURES, TrainingRanges
from seisbind.model.confidence.presence import Presence
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Calibration, Description, save_weights
from seisbind.model.ground.descriptors import NAMES
from seisbind.model.survey.preparation import OPENFWI, prepare

GOLDEN = Path(__file__).parents[1] / "golden"


def answers(embedder: Embedder) -> dict[str, Any]:
    """What is recorded of weights, as JSON has it: of one made-up gather, one layered model and one row of physics."""
    generator = np.random.default_rng(3)
    gather = generator.standard_normal((1, 5, 1000, 70)).astype(np.float32)
    layers = np.linspace(1500, 4000, 70, dtype=np.float32)[None, :, None].repeat(70, 2)
    encoded = embedder.embed_gathers(prepare(gather, OPENFWI))
    physics = embedder.infer_physics(encoded, np.ones((1, 5, len(NAMES)), np.float32))
    return {
        "fingerprint": embedder.fingerprint,
        "gather": encoded.embedding[0].tolist(),
        "velocity": embedder.embed_velocity(layers)[0].tolist(),
        "descriptors": embedder.embed_descriptors(np.arange(1.0, 14.0)[None])[0].tolist(),
        "physics": [physics.low[0].tolist(), physics.value[0].tolist(), physics.high[0].tolist()],
    }


def make(path: Path) -> None:
    """How golden weights are made: untrained encoders of a small size, with a calibration."""
    torch.manual_seed(20)
    config = EncoderConfig(width=8, velocity_width=8, hidden=16)
    low, middle, high = ((value,) * len(MEASURES) for value in (-1.0, 0.5, 2.0))
    calibration = Calibration(
        ((0.5,) * len(NAMES),),
        Presence(-1.0, 2.0, 3.0, -0.5, 0.05, 3000),
        TrainingRanges(low, middle, high, 1.25),
        pairs=100,
    )
    save_weights(path, Encoders(config), Description("golden", config, {"pairs": 3}, calibration))
    path.with_suffix(".json").write_text(json.dumps(answers(Embedder.load(path, device="cpu", runtime="torch"))) + "\n")


@pytest.mark.parametrize("name", ["weights-3"])
def test_weights_of_a_released_format_still_answer(name: str) -> None:
    recorded = json.loads((GOLDEN / f"{name}.json").read_text())
    given = answers(Embedder.load(GOLDEN / f"{name}.safetensors", device="cpu", runtime="torch"))
    assert given.pop("fingerprint") == recorded.pop("fingerprint") and set(given) == set(recorded)
    for part, numbers in recorded.items():
        np.testing.assert_allclose(given[part], numbers, rtol=1e-4, atol=1e-5, err_msg=part)
