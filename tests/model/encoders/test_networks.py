from dataclasses import replace

import numpy as np
import pytest
import torch

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.blocks import EMBEDDING, condition
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder, full_size
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Description, Weights
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import NAMES
from seisbind.model.survey.preparation import OPENFWI, Prepared


@pytest.fixture(scope="module")
def embedder(small: EncoderConfig) -> Embedder:
    torch.manual_seed(0)
    encoders = Encoders(small).eval()
    for module in encoders.modules():  # untrained running statistics would hide errors of batching
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return Embedder(Weights(encoders, Description("test", small), "0" * 16), device="cpu")


def prepared(count: int, *, shots: int = 5, seed: int = 0) -> Prepared:
    rng = np.random.default_rng(seed)
    return Prepared(
        traces=rng.standard_normal((count, shots, 250, 70)).astype(np.float32),
        live=np.ones((count, shots, 70), dtype=bool),
        shot_x_m=np.tile(np.asarray(OPENFWI.shot_x_m[:shots], np.float32), (count, 1)),
    )


@pytest.mark.parametrize("kind", ["seisbind", "paper"])
def test_embeddings_are_unit_vectors(kind: str, velocity: np.ndarray) -> None:
    encoders = Encoders(EncoderConfig(kind=kind)).eval()  # type: ignore[arg-type]
    p = prepared(2)
    with torch.inference_mode():
        out = encoders.embed_gathers(*(torch.from_numpy(a) for a in (p.traces, p.live, p.shot_x_m)))
        v = encoders.embed_velocity(torch.from_numpy(velocity[:2]))
        d = encoders.embed_descriptors(torch.randn(2, 13))
    for embedding in (out.embedding, v, d):
        assert embedding.shape == (2, EMBEDDING)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    assert (out.descriptors is None) == (kind == "paper")


def test_alone_or_in_a_batch(embedder: Embedder) -> None:
    p = prepared(64)
    together = embedder.embed_gathers(p).embedding
    for i in (0, 31, 63):
        alone = Prepared(p.traces[i : i + 1], p.live[i : i + 1], p.shot_x_m[i : i + 1])
        np.testing.assert_allclose(embedder.embed_gathers(alone).embedding[0], together[i], atol=1e-5)


def test_the_order_of_shots_does_not_matter(embedder: Embedder) -> None:
    p = prepared(2)
    order = [3, 0, 4, 1, 2]
    shuffled = Prepared(p.traces[:, order], p.live[:, order], p.shot_x_m[:, order])
    np.testing.assert_allclose(
        embedder.embed_gathers(shuffled).embedding, embedder.embed_gathers(p).embedding, atol=1e-5
    )


def test_a_dead_shot_is_a_missing_shot(embedder: Embedder) -> None:
    p = prepared(1)
    p.live[:, 2] = False
    keep = [0, 1, 3, 4]
    missing = Prepared(p.traces[:, keep], p.live[:, keep], p.shot_x_m[:, keep])
    np.testing.assert_allclose(
        embedder.embed_gathers(missing).embedding, embedder.embed_gathers(p).embedding, atol=1e-5
    )


def test_where_a_shot_lies_matters(embedder: Embedder) -> None:
    p = prepared(1, shots=1)
    moved = Prepared(p.traces, p.live, p.shot_x_m + 300)
    assert np.abs(embedder.embed_gathers(moved).embedding - embedder.embed_gathers(p).embedding).max() > 1e-3


def test_gain_is_removed_exactly_shot_by_shot(embedder: Embedder) -> None:
    p = prepared(1)
    gains = np.array([1, 1e-3, 50, 7, 1e4], np.float32)[None, :, None, None]
    np.testing.assert_allclose(
        embedder.embed_gathers(Prepared(p.traces * gains, p.live, p.shot_x_m)).embedding,
        embedder.embed_gathers(p).embedding,
        atol=1e-5,
    )


def test_condition_ignores_what_is_not_live() -> None:
    p = prepared(1)
    live = torch.from_numpy(p.live).clone()
    live[0, 1, :10] = False
    loud = torch.from_numpy(p.traces).clone()
    loud[0, 1, :, :10] = 1e6
    quiet = torch.from_numpy(p.traces).clone()
    quiet[0, 1, :, :10] = 0
    torch.testing.assert_close(condition(loud, live), condition(quiet, live))


def test_a_mirrored_survey_of_shots_off_centre_is_told_apart(embedder: Embedder) -> None:
    """OpenFWI's middle shot is at 340 m of 690: its mirror image lies at 350 m, between two bins."""
    p = prepared(1)
    mirrored = Prepared(p.traces, p.live, (OPENFWI_FRAME.line_m - p.shot_x_m)[:, ::-1].copy())
    assert np.abs(embedder.embed_gathers(mirrored).embedding - embedder.embed_gathers(p).embedding).max() > 1e-5


def test_intervals_end_where_ground_does() -> None:
    """No ground has a negative contrast, or interfaces in more than all of its cells; a gradient has either sign."""
    shipped = Embedder.load(device="cpu", runtime="torch")
    encoded = shipped.embed_gathers(prepared(2))
    wide = replace(encoded, descriptor_scale=np.full_like(encoded.embedding[:, :13], 1e6))
    physics = shipped.infer_physics(wide, None)
    lowest = dict(zip(NAMES, physics.low.min(axis=0), strict=True))
    highest = dict(zip(NAMES, physics.high.max(axis=0), strict=True))
    assert lowest.pop("mean_vertical_gradient") < -1 and set(lowest.values()) == {0.0}
    assert highest["interface_share"] == 1.0 and highest["deep_velocity"] > 1e5
    assert (physics.low <= physics.value).all() and (physics.value <= physics.high).all()


def test_infer_physics_without_head_is_the_mean_of_five(pairs: PairSet) -> None:
    config = EncoderConfig(kind="paper")
    paper = Embedder(Weights(Encoders(config).eval(), Description("paper", config), "1" * 16), device="cpu")
    neighbours = np.random.default_rng(0).uniform(size=(2, 8, 13)).astype(np.float32)
    inferred = paper.infer_physics(paper.embed_gathers(prepared(2)), neighbours)
    np.testing.assert_allclose(inferred.value, neighbours[:, :5].mean(axis=1), rtol=1e-5)
    assert (inferred.low <= inferred.value).all() and (inferred.value <= inferred.high).all()


def test_full_size_keeps_levels() -> None:
    coarse = np.repeat(np.linspace(1500, 4500, 35, dtype=np.float32)[:, None], 35, axis=1)
    out = full_size(coarse)
    assert out.shape == (70, 70) and out.mean() == pytest.approx(coarse.mean(), rel=1e-3)
    assert np.all(np.diff(out[:, 0]) >= 0)
