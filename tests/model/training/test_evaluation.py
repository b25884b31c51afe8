from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from seisbind.model.confidence.presence import Evidence, fit_presence
from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder, EncodedGathers
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import Description, Weights
from seisbind.model.errors import InvalidConfig
from seisbind.model.ground.descriptors import NAMES
from seisbind.model.training.calibration import calibrate, regression_quantile
from seisbind.model.training.evaluation import (
    Embedded,
    as_prepared,
    descriptor_errors,
    evaluate,
    nearest,
    ranks,
    recall,
    report,
)


@pytest.fixture(scope="module")
def embedder(small: EncoderConfig) -> Embedder:
    torch.manual_seed(2)
    return Embedder(Weights(Encoders(small).eval(), Description("test", small), "f" * 16), device="cpu")


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    x = rng.standard_normal((count, 256)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def oracle(pairs: PairSet, rng: np.random.Generator) -> Embedded:
    """Encoders that are always right."""
    e, d = unit(rng, len(pairs)), pairs.descriptors.numpy()
    heads = EncodedGathers(e, d, np.full_like(d, 1e-3), None)
    return Embedded(heads, e, e, pairs.velocity.numpy(), d, pairs.family_names())


def test_perfect_and_useless_encoders(pairs: PairSet, embedder: Embedder) -> None:
    rng = np.random.default_rng(0)
    perfect = report(embedder, oracle(pairs, rng))
    assert perfect["seismic_to_velocity"]["r_at_1"] == perfect["velocity_to_physics"]["r_at_1"] == 1
    assert perfect["seismic_to_velocity"]["positive_similarity"] == pytest.approx(1)
    assert max(perfect["descriptors"]["novel"]["inferred"].values()) < 1e-4
    assert min(perfect["descriptors"]["novel"]["interval_coverage"].values()) == 1
    found = recall(unit(rng, 1000), unit(rng, 1000))
    assert found["r_at_1"] < 0.01 and abs(found["negative_similarity"]) < 0.01


def test_identical_embeddings_do_not_count_as_found() -> None:
    same = np.ones((50, 256), np.float32) / 16
    assert recall(same, same)["r_at_1"] == 0


def test_ranks_and_nearest_equal_brute_force() -> None:
    rng = np.random.default_rng(1)
    q, g = unit(rng, 700), unit(rng, 900)
    similarity = q @ g.T
    own = rng.integers(0, 900, 700)
    expected = [(similarity[i] > similarity[i, own[i]]).sum() + 1 for i in range(700)]
    np.testing.assert_array_equal(ranks(q, g, own), expected)
    np.testing.assert_array_equal(nearest(q, g, 5, leave_out=False), np.argsort(-similarity, axis=1)[:, :5])
    similarity[np.arange(700), np.arange(700)] = -9
    np.testing.assert_array_equal(nearest(q, g, 5, leave_out=True), np.argsort(-similarity, axis=1)[:, :5])


def test_structure_of_a_copy_beside_each_model(pairs: PairSet, embedder: Embedder) -> None:
    """With its own model left out, the best of the gallery is the distractor that differs by 10 m/s."""
    embedded = oracle(pairs, np.random.default_rng(3))
    found = report(embedder, embedded, pairs.velocity.numpy() + 10)
    assert found["gallery_size"] == 80 and found["structure"]["best_mae_m_s"] == pytest.approx(10, rel=1e-3)
    assert found["structure"]["top1_mae_m_s"] >= found["structure"]["best_mae_m_s"]


def test_errors_are_per_cent_or_spreads() -> None:
    truth = np.full((4, len(NAMES)), 2000, np.float32)
    errors = descriptor_errors(truth + 20, truth, np.full(len(NAMES), 40, np.float32))
    assert errors["mean_velocity"] == pytest.approx(1.0) and errors["strongest_contrast"] == pytest.approx(0.5)


def test_report_of_real_encoders_has_the_contracts_names(pairs: PairSet, embedder: Embedder) -> None:
    result = evaluate(embedder, pairs, gallery_size=30, seed=1)
    overall = result["overall"]
    assert overall["pairs"] == overall["gallery_size"] == 30 and overall["weights"] == "f" * 16
    wanted = {"r_at_1", "r_at_5", "r_at_10", "positive_similarity", "negative_similarity"}
    assert set(overall["seismic_to_velocity"]) == set(overall["velocity_to_physics"]) == wanted
    assert set(overall["descriptors"]) == {"in_gallery", "novel"} and overall["structure"]["ratio"] >= 1
    assert set(result["families"]) == set(pairs.families)
    flat = result["families"]["FlatVel-A"]["descriptors"]["novel"]["inferred"]
    assert flat["mean_abs_lateral_gradient"] < 100  # flat ground has no spread of its own to measure errors by
    with pytest.raises(InvalidConfig, match="41"):
        evaluate(embedder, pairs, gallery_size=41)


def test_calibrated_intervals_cover_nine_in_ten(embedder: Embedder, pairs: PairSet) -> None:
    """On other pairs than those calibrated on; the split is exchangeable because the gathers are noise."""
    rng = np.random.default_rng(5)
    traces = torch.from_numpy(rng.standard_normal((400, 5, 250, 70)).astype(np.float16))
    rows = torch.from_numpy(rng.integers(0, len(pairs), 400))
    many = PairSet(traces, pairs.velocity[rows], pairs.descriptors[rows], pairs.family[rows], pairs.families)
    seen = as_prepared(many.select(range(50)))
    calibration = calibrate(embedder, many.select(range(200)), seen=seen)
    heads = embedder.embed_gathers(as_prepared(many.select(range(200, 400))))
    assert heads.descriptors is not None and heads.descriptor_scale is not None
    half = np.exp(np.asarray(calibration.log_factor)) * heads.descriptor_scale
    covered = np.abs(heads.descriptors - many.descriptors[200:].numpy()) <= half
    assert 0.85 <= covered.mean() <= 0.95 and calibration.pairs == 200
    with pytest.raises(InvalidConfig, match="too few"):
        calibrate(embedder, pairs.select(range(5)), seen=seen)


def test_pairs_of_other_lines_do_not_widen_the_intervals_of_the_frames_own(embedder: Embedder, pairs: PairSet) -> None:
    rng = np.random.default_rng(6)
    traces = torch.from_numpy(rng.standard_normal((120, 5, 250, 70)).astype(np.float16))
    rows = torch.from_numpy(rng.integers(0, len(pairs), 120))
    descriptors = pairs.descriptors[rows]
    descriptors[60:] += 20 * descriptors.std(dim=0)  # which are read that much worse
    many = PairSet(traces, pairs.velocity[rows], descriptors, pairs.family[rows], pairs.families)
    prepared, own = as_prepared(many), np.arange(120) < 60
    truth = descriptors[:60].numpy()

    def covered(own_line: NDArray[np.bool_] | None) -> float:
        calibration = calibrate(embedder, many, seen=prepared, own_line=own_line)
        form = embedder.weights.description.config
        weights = Weights(embedder.weights.encoders, Description("test", form, calibration=calibration), "f" * 16)
        judged = Embedder(weights, device="cpu")
        inferred = judged.infer_physics(judged.embed_gathers(prepared), None)
        return float(((inferred.low[:60] <= truth) & (truth <= inferred.high[:60])).mean())

    assert 0.87 < covered(own) < 0.95 and covered(None) > 0.99
    with pytest.raises(InvalidConfig, match="tells of 60 pairs"):
        calibrate(embedder, many, seen=prepared, own_line=own[:60])
    with pytest.raises(InvalidConfig, match="9 pairs are too few"):
        calibrate(embedder, many, seen=prepared, own_line=np.arange(120) < 9)


def test_cells_of_the_read_model_are_covered_nine_times_in_ten(small: EncoderConfig, pairs: PairSet) -> None:
    """Of encoders that state an error, on other pairs than those calibrated on; without calibration none is given."""
    torch.manual_seed(2)
    form = replace(small, map_error=1)
    encoders = Encoders(form).eval()
    rng = np.random.default_rng(5)
    traces = torch.from_numpy(rng.standard_normal((600, 5, 250, 70)).astype(np.float16))
    rows = torch.from_numpy(rng.integers(0, len(pairs), 600))
    many = PairSet(traces, pairs.velocity[rows], pairs.descriptors[rows], pairs.family[rows], pairs.families)
    plain = Embedder(Weights(encoders, Description("test", form), "f" * 16), device="cpu")
    calibration = calibrate(plain, many.select(range(400)), seen=as_prepared(many.select(range(50))))
    assert len(calibration.log_cell_factor) == 1
    others = as_prepared(many.select(range(400, 600)))
    encoded = plain.embed_gathers(others)
    alone = plain.read_model(encoded)
    assert alone is not None and alone.low is None and alone.high is None
    judged = Embedder(Weights(encoders, Description("test", form, calibration=calibration), "f" * 16), device="cpu")
    read = judged.read_model(encoded)
    assert read is not None and read.low is not None and read.high is not None
    assert read.value.shape == (200, 70, 70) and (read.low < read.value).all() and (read.value < read.high).all()
    truth = many.velocity[400:].numpy()
    assert 0.82 < ((read.low <= truth) & (truth <= read.high)).mean() < 0.97


def test_regression_quantile_holds_within_each_group() -> None:
    """Nine in ten of either group, whose scatters differ tenfold; one factor for both would cover all of the first."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, 4000)
    score = np.abs(rng.laplace(size=4000)) * np.where(group == 1, 10.0, 1.0)
    share = np.eye(2)[group]
    factor = np.exp(share[2000:] @ regression_quantile(np.log(score[:2000]), share[:2000], 0.9))
    covered = score[2000:] <= factor
    assert [0.87 <= covered[group[2000:] == g].mean() <= 0.93 for g in (0, 1)] == [True, True]
    one = np.exp(regression_quantile(np.log(score[:2000]), np.ones((2000, 1)), 0.9))
    assert (score[2000:] <= one)[group[2000:] == 0].mean() > 0.99


def test_presence_tells_the_ground_from_its_relatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relatives are at .7 to .8; a ground that is there is at .9, and its probability is that of being so."""
    rng = np.random.default_rng(1)
    gallery = rng.standard_normal((400, 64)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    queries = gallery + 0.06 * rng.standard_normal(gallery.shape).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    models = rng.uniform(1500, 4500, (400, 5, 5)).astype(np.float32)
    read = models + 50 * rng.standard_normal(models.shape).astype(np.float32)
    monkeypatch.setattr("seisbind.model.confidence.presence.BATCH", 100)
    rough = gallery[:300] + 0.3 * rng.standard_normal((300, 64)).astype(np.float32)  # the same again, hard to read
    rough /= np.linalg.norm(rough, axis=1, keepdims=True)
    law = fit_presence(
        np.concatenate([queries[:300], rough]),
        np.concatenate([read[:300], models[:300] + 500]),
        np.repeat(np.float32([0, 1]), 300),
        gallery,
        models,
        pairs=300,
    )
    own = float((queries * gallery).sum(axis=1).mean())

    def likely(first: float, second: float, far: float, size: int = 400) -> float:
        return float(law.probability(Evidence(*np.array([[first], [second], [far], [0.0]]), size=size))[0])

    assert likely(own, 0.3, 40) > 0.95 > 0.05 > likely(0.35, 0.33, 900)
    assert likely(0.5, 0.4, 40) > likely(0.5, 0.4, 400)
    assert law.largest == 399 and likely(0.5, 0.4, 40, 10**6) == likely(0.5, 0.4, 40, 399)
