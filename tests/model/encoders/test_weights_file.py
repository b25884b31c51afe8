import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from seisbind.model.confidence.novelty import MEASURES, TrainingRanges
from seisbind.model.confidence.presence import Presence
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.runtimes import gflop
from seisbind.model.encoders.weights_file import SHIPPED, Calibration, Description, load_weights, save_weights
from seisbind.model.errors import InvalidConfig, WeightsError
from seisbind.model.ground.descriptors import NAMES

RANGES = TrainingRanges((0.0,) * len(MEASURES), (0.5,) * len(MEASURES), (1.5,) * len(MEASURES), 1.25)
CALIBRATION = Calibration(
    log_factor=(tuple(float(i) for i in range(len(NAMES))),),
    presence=Presence(-1.0, 2.0, 3.0, -0.5, 0.05, 3000),
    novelty=RANGES,
    pairs=100,
)


@pytest.fixture
def saved(tmp_path: Path, small: EncoderConfig) -> Path:
    torch.manual_seed(1)
    path = tmp_path / "w.safetensors"
    save_weights(path, Encoders(small), Description("test", small, {"pairs": 3}, CALIBRATION))
    return path


def test_round_trip(saved: Path, small: EncoderConfig) -> None:
    weights = load_weights(saved)
    assert weights.description == Description("test", small, {"pairs": 3}, CALIBRATION)
    assert len(weights.fingerprint) == 16 and not weights.encoders.training
    again = saved.with_name("again.safetensors")
    assert save_weights(again, weights.encoders, weights.description) == weights.fingerprint  # float16 once, not twice
    assert [p.name for p in sorted(saved.parent.iterdir())] == ["again.safetensors", "w.safetensors"]


def test_weights_from_before_encoders_could_grow(
    saved: Path, small: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their description names neither the layers that may be added nor later terms of presence and novelty."""
    real, tree = json.dumps, Description("old", small, {}, CALIBRATION).to_dict()
    for name in ("ahead", "blocks", "mixers", "finish"):
        del tree["config"][name]
    for name in ("log_far", "doubt"):
        del tree["calibration"]["presence"][name]
    del tree["calibration"]["familiar"]["middle"]
    monkeypatch.setattr(
        "seisbind.model.encoders.weights_file.json.dumps", lambda *args, **more: real(tree, sort_keys=True)
    )
    save_weights(saved, load_weights(saved).encoders, Description("old", small, {}, CALIBRATION))
    monkeypatch.undo()
    halfway = replace(RANGES, middle=(0.75,) * len(MEASURES))
    assert load_weights(saved).description == Description("old", small, {}, replace(CALIBRATION, novelty=halfway))


def test_larger_encoders_round_trip(saved: Path, small: EncoderConfig) -> None:
    larger = replace(small, ahead=1, blocks=(3, 2, 4), mixers=1, finish=2)
    save_weights(saved, Encoders(larger), Description("larger", larger))
    assert load_weights(saved).description.config == larger


@pytest.mark.parametrize(
    "change", [{"blocks": (1, 2, 2)}, {"blocks": (2, 2)}, {"mixers": -1}, {"kind": "paper", "ahead": 1}]
)
def test_encoders_that_cannot_be_are_refused(small: EncoderConfig, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig):
        replace(small, **change)


def test_another_calibration_is_another_fingerprint(saved: Path, small: EncoderConfig) -> None:
    weights = load_weights(saved)
    assert save_weights(saved, weights.encoders, Description("test", small)) != weights.fingerprint


def test_every_flipped_byte_is_refused_or_harmless(saved: Path) -> None:
    good = saved.read_bytes()
    reference = load_weights(saved)
    rng = np.random.default_rng(0)
    header = int.from_bytes(good[:8], "little")
    positions = [*range(0, min(8 + header, 400), 7), *rng.integers(8 + header, len(good), 60).tolist()]
    refused = 0
    for at in positions:
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        saved.write_bytes(damaged)
        try:
            loaded = load_weights(saved)
        except WeightsError:
            refused += 1
            continue
        assert loaded.fingerprint == reference.fingerprint  # e.g. a space in the JSON header
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                loaded.encoders.state_dict().values(), reference.encoders.state_dict().values(), strict=True
            )
        )
    assert refused >= 60


def test_truncated_missing_and_foreign_files(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a readable"):
        load_weights(saved)
    with pytest.raises(WeightsError, match="No weights"):
        load_weights(saved.with_name("absent"))
    save_file({"x": torch.zeros(3)}, saved)
    with pytest.raises(WeightsError, match="metadata lacks"):
        load_weights(saved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 99}, "format 99"),
        ({"policy": {"dt_s": 0.002}}, "preparation"),
        ({"descriptors": ["mean_velocity"]}, "other descriptors"),
        ({"config": {"colour": 1}}, "cannot be read"),
        ({"config": {"blocks": [2, 2], "families": []}}, "cannot be read"),
    ],
)
def test_weights_of_another_kind_are_refused_by_name(
    tmp_path: Path, small: EncoderConfig, change: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As written by another SeisBind: consistent in itself, but not for this one."""
    import seisbind.model.encoders.weights_file as module

    path = tmp_path / "w.safetensors"
    real = json.dumps
    with monkeypatch.context() as patch:
        patch.setattr(module.json, "dumps", lambda value, **k: real(value | change, **k))
        save_weights(path, Encoders(small), Description("test", small))
    with pytest.raises(WeightsError, match=words):
        load_weights(path)


def test_the_shipped_weights_load() -> None:
    weights = load_weights()
    training = weights.description.training
    assert weights.description.calibration is not None and training["start"]["pairs"] + training["pairs"] >= 20_000
    assert SHIPPED.stat().st_size < 25_000_000
    card = SHIPPED.with_name("MODEL_CARD.md").read_text(encoding="utf-8")
    cost = gflop(weights.encoders)
    assert 0 < cost <= 1.5 and f"{cost:.2f} GFLOP a gather" in card and f"`{weights.fingerprint}`" in card
