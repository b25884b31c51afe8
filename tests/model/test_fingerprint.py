"""Which galleries weights go with: those whose embeddings they would make themselves, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Description, Weights, load_weights, save_weights
from seisbind.model.fingerprint import Fingerprint, embeds_alike, kept_since
from seisbind.model.frame import OPENFWI_FRAME

SMALL = EncoderConfig(width=8, velocity_width=8, hidden=16, map_error=1)


@pytest.fixture
def encoders() -> Encoders:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoders(SMALL)


def saved(path: Path, encoders: Encoders, **training: Any) -> Fingerprint:
    save_weights(path, encoders, Description("test", encoders.config, training, frame=encoders.frame))
    found = load_weights(path).fingerprint
    assert isinstance(found, Fingerprint)
    return found


def test_what_a_gallery_does_not_hold_leaves_its_embeddings(encoders: Encoders, tmp_path: Path) -> None:
    before = saved(tmp_path / "w", encoders)
    with torch.no_grad():
        for name, tensor in encoders.named_parameters():
            if name.startswith("seismic.") or name == "logit_scale":
                tensor.add_(0.5)
    after = saved(tmp_path / "w", encoders)
    assert after != before and after.embeddings == before.embeddings and embeds_alike(after, before, before.embeddings)
    assert not embeds_alike(after, before, None), "nothing says so where the gallery has no fingerprint of embeddings"


@pytest.mark.parametrize(
    "part", ["velocity.project.bias", "physics.layers.0.weight", "descriptor_mean", "velocity.stem.1.running_var"]
)
def test_each_part_of_a_gallerys_embeddings_counts(encoders: Encoders, tmp_path: Path, part: str) -> None:
    before = saved(tmp_path / "w", encoders)
    encoders.state_dict()[part].view(-1)[0].add_(0.5)
    after = saved(tmp_path / "w", encoders)
    assert after.embeddings != before.embeddings and not embeds_alike(after, before, before.embeddings)


def test_another_frame_is_other_embeddings(encoders: Encoders, tmp_path: Path) -> None:
    before = saved(tmp_path / "w", encoders)
    encoders.frame = replace(OPENFWI_FRAME, velocity_m_s=(1500.0, 4600.0))
    assert saved(tmp_path / "w", encoders).embeddings != before.embeddings


ERRORS, LOCKED, ALL = {"errors_only": True}, {"locked": True, "errors_only": False}, {"locked": False}


@pytest.mark.parametrize(
    ("training", "same"),
    [
        ({}, set()),
        ({"config": ERRORS, "start": None}, set()),
        ({"config": ERRORS, "start": "aa"}, {"aa"}),
        ({"config": ALL, "start": {"fingerprint": "aa"}}, set()),
        ({"start": {"fingerprint": "aa"}}, set()),
        ({"config": {"errors_only": "yes"}, "start": "aa"}, set()),
        ({"config": ERRORS, "start": {"fingerprint": "aa", "config": LOCKED, "start": "bb"}}, {"aa", "bb"}),
        ({"config": ERRORS, "start": {"fingerprint": "aa", "config": ALL, "start": {"fingerprint": "bb"}}}, {"aa"}),
        ({"config": ERRORS, "start": {"fingerprint": "aa", "embeddings": "e"}}, {"aa"}),
        ({"config": ERRORS, "start": {"fingerprint": "aa", "embeddings": "others"}}, set()),
    ],
)  # fmt: skip
def test_the_chain_goes_as_far_as_it_says_that_embeddings_were_kept(training: dict[str, Any], same: set[str]) -> None:
    assert kept_since(training, "e") == same


def test_what_a_gallery_says_of_its_embeddings_is_believed_before_the_chain() -> None:
    weights = Fingerprint("cc", embeddings="e", same=frozenset({"aa"}))
    assert embeds_alike(weights, "aa", None) and not embeds_alike(weights, "aa", "others")
    assert embeds_alike("aa", "aa", "e") and not embeds_alike("cc", "aa", "e")


def test_the_shipped_weights_take_galleries_of_those_they_were_trained_from(tmp_path: Path) -> None:
    weights = load_weights()
    found = weights.fingerprint
    assert isinstance(found, Fingerprint) and found == "b027102325f0dd69"
    # calibrated again from the first, `kinds` from the second, `errors` from the third, `locked` from the fourth
    assert found.same == {"8e91a2d1bc435828", "a9fa6997ddf6272b", "10443f04dbef88bb", "7131501ff4702337"}
    assert weights.as_start == weights.description.training | {
        "fingerprint": str(found),
        "embeddings": found.embeddings,
    }
    assert Weights(weights.encoders, weights.description, "plain").as_start["fingerprint"] == "plain"
