"""The in-process twin: what its answers must hold, whatever the weights."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery, GalleryInfo
from seisbind.model.confidence.novelty import MEASURES, TrainingRanges
from seisbind.model.confidence.presence import Presence
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import InvalidQuery, InvalidVelocityModel, WeightsMismatch
from seisbind.model.ground.descriptors import NAMES, describe
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.service.engine.engine import Engine, canary_gather
from seisbind.service.engine.gallery_builder import build_gallery, from_files
from seisbind.service.engine.query import Query

Float32 = NDArray[np.float32]


def test_alone_or_in_a_batch_of_64(engine: Engine, gathers: Float32) -> None:
    """Promise 10, in two orders."""
    noise = np.random.default_rng(0).standard_normal((61, 5, 1000, 70)).astype(np.float32)
    stack = np.concatenate([gathers, noise])
    prepared = prepare(stack)
    together = engine.embedder.embed_gathers(prepared).embedding
    backwards = engine.embedder.embed_gathers(prepare(stack[::-1])).embedding[::-1]
    np.testing.assert_allclose(backwards, together, atol=1e-5)
    for i in (0, 1, 2, 40):
        alone = engine.embedder.embed_gathers(prepare(stack[i])).embedding[0]
        np.testing.assert_allclose(alone, together[i], atol=1e-5)
    ids = [[match.model_id for match in one.matches] for one in engine.retrieve(gathers)]
    assert ids == [[match.model_id for match in engine.retrieve(gather)[0].matches] for gather in gathers]


def test_matches_are_the_brute_force_nearest(engine: Engine, gathers: Float32) -> None:
    queries = engine.embedder.embed_gathers(prepare(gathers)).embedding
    ids = engine.gallery.model_ids()
    similarity = queries @ engine.gallery.embeddings(ids)[0].T
    for row, one in zip(similarity, engine.retrieve(gathers, top_k=7), strict=True):
        expected = np.argsort(-row)[:7]
        assert [match.model_id for match in one.matches] == [ids[i] for i in expected]
        assert [match.rank for match in one.matches] == list(range(1, 8))
        np.testing.assert_allclose([match.similarity for match in one.matches], row[expected], atol=1e-5)


def test_top_k_and_filter_choose_the_matches_and_nothing_else(engine: Engine, gathers: Float32) -> None:
    wanted = Filter.parse({"family": "Style-A"})
    plain, narrow = engine.retrieve(gathers)[0], engine.retrieve(gathers, top_k=2, filter=wanted)[0]
    assert {match.family for match in narrow.matches} == {"Style-A"}
    assert len(narrow.matches) == 2
    assert narrow.physics == plain.physics
    assert narrow.in_distribution == plain.in_distribution


def test_physics_names_units_and_interval(engine: Engine, gathers: Float32) -> None:
    for one in engine.retrieve(gathers):
        assert tuple(one.physics) == NAMES
        assert one.physics["mean_velocity"].unit == "m/s"
        for quantity in one.physics.values():
            assert quantity.low <= quantity.value <= quantity.high
            assert np.isfinite([quantity.low, quantity.high]).all()


def test_fewer_hits_are_said_to_be_fewer(engine: Engine, gathers: Float32) -> None:
    one = engine.retrieve(gathers[0], top_k=100)[0]
    assert len(one.matches) == 60
    assert [note.code for note in one.warnings] == ["fewer_matches"]
    nothing = engine.retrieve(gathers[0], filter=Filter.parse({"min_velocity": [8000, None]}))[0]
    assert nothing.matches == ()
    assert "0 models pass the filter" in nothing.warnings[-1].sentence


def test_an_empty_gallery_answers_with_physics_alone(tmp_path: Path, embedder: Embedder, gathers: Float32) -> None:
    with Gallery.create(tmp_path / "empty", fingerprint=embedder.fingerprint) as gallery:
        one = Engine(embedder, gallery).retrieve(gathers[0])[0]
    assert (one.matches, one.in_distribution.likely, one.in_distribution.similarity) == ((), True, None)
    assert len(one.physics) == 13


def test_in_distribution_compares_with_the_calibration(engine: Engine, gathers: Float32) -> None:
    likeness = engine.retrieve(gathers)[0].in_distribution
    assert (likeness.limit, likeness.likely, likeness.reason) == (1.0, True, None)
    assert likeness.score is not None and 0 <= likeness.score <= 1
    assert likeness.similarity == engine.retrieve(gathers, top_k=1)[0].matches[0].similarity


def test_a_gather_beyond_the_calibration_names_the_respect(
    gallery_path: Path, embedder: Embedder, gathers: Float32
) -> None:
    """Weights that saw one shot only are told of five."""
    calibration = embedder.weights.description.calibration
    assert calibration is not None
    at = [m.name for m in MEASURES].index("shots")
    known = calibration.novelty

    def with_shots(values: tuple[float, ...], shots: float) -> tuple[float, ...]:
        return (*values[:at], shots, *values[at + 1 :])

    few = TrainingRanges(
        with_shots(known.low, 0.0), with_shots(known.middle, 0.5), with_shots(known.high, 1.0), known.limit
    )
    narrow = replace(calibration, novelty=few)
    description = replace(embedder.weights.description, calibration=narrow)
    strict = Embedder(replace(embedder.weights, description=description), device="cpu")
    with Gallery.open(gallery_path, fingerprint=strict.fingerprint) as gallery:
        likeness = Engine(strict, gallery).retrieve(gathers[0])[0].in_distribution
    assert (likeness.likely, likeness.reason, likeness.score) == (False, "geometry", 9.0)
    assert likeness.detail is not None and "is 5; in training it lay between 0 and 1" in likeness.detail


def test_ground_that_is_not_in_the_gallery_is_matched_by_structure(engine: Engine, gathers: Float32) -> None:
    """The 30 most similar models, or those that pass the filter, by their difference to the model that was read."""
    weights = engine.embedder.weights
    assert weights.description.calibration is not None
    never = replace(weights.description.calibration, presence=Presence(-50.0, 0.0, 0.0, 0.0, 0.05, 3000))
    doubting = replace(weights, description=replace(weights.description, calibration=never))
    other = Engine(Embedder(doubting, device="cpu"), engine.gallery)
    read = engine.embedder.embed_gathers(prepare(gathers)).velocity
    assert read is not None
    for wanted in (None, Filter.parse({"family": "Style-A"})):
        similar = engine.retrieve(gathers, top_k=30, filter=wanted)
        for plain, found, predicted in zip(similar, other.retrieve(gathers, filter=wanted), read, strict=True):
            models = {match.model_id: engine.gallery.velocity(match.model_id) for match in plain.matches}
            far = {k: np.abs(v.reshape(35, 2, 35, 2).mean(axis=(1, 3)) - predicted).mean() for k, v in models.items()}
            assert [match.model_id for match in found.matches] == sorted(far, key=far.__getitem__)[:5]
            more = other.retrieve(gathers, top_k=60, filter=wanted)
            assert found.matches in [
                one.matches[:5] for one in more
            ]  # the first do not depend on how many are asked for
            assert [match.rank for match in found.matches] == list(range(1, len(found.matches) + 1))
            assert (plain.ranked_by, found.ranked_by) == ("similarity", "structure")
            assert plain.in_gallery is not None and found.in_gallery is not None
            assert found.in_gallery < 0.05 < plain.in_gallery and found.physics == plain.physics
    nothing = other.retrieve(gathers[0], filter=Filter.parse({"min_velocity": [8000, None]}))[0]
    assert nothing.matches == ()


def test_presence_is_that_of_each_gather_whatever_is_in_the_batch(engine: Engine, gathers: Float32) -> None:
    """The law's terms are of the gather's own reading and of its own best match; batches mix numbers of shots."""
    weights = engine.embedder.weights
    assert weights.description.calibration is not None
    law = Presence(6.0, 1.0, 2.0, -0.1, 0.0, 3000, log_structure_difference=-1.0, uncertainty=0.5)
    calibration = replace(weights.description.calibration, presence=law)
    weighing = replace(weights, description=replace(weights.description, calibration=calibration))
    other = Engine(Embedder(weighing, device="cpu"), engine.gallery)
    survey, some = replace(OPENFWI, shot_x_m=(0.0, 340.0, 690.0)), gathers[:, [0, 2, 4]]
    queries = [Query.prepare(gathers[:1]), Query.prepare(some, survey), Query.prepare(gathers[1:])]
    found = [one for answers in other.retrieve_batch(queries) for one in answers]
    assert len({one.in_gallery for one in found}) == 6
    alone = [prepare(gathers[0]), *(prepare(one, survey) for one in some), prepare(gathers[1]), prepare(gathers[2])]
    for one, prepared in zip(found, alone, strict=True):
        read = engine.embedder.embed_gathers(prepared)
        assert read.velocity is not None and read.descriptor_scale is not None
        first, second = one.matches[:2]
        best = engine.gallery.velocity(first.model_id).reshape(35, 2, 35, 2).mean(axis=(1, 3))
        doubt = np.log(read.descriptor_scale[0] / engine.embedder.descriptor_spread).mean()
        odds = 6 + first.similarity + 2 * (first.similarity - second.similarity) - 0.1 * np.log10(60)
        odds += 0.5 * doubt - np.log(np.abs(best - read.velocity[0]).mean())
        assert one.in_gallery == pytest.approx(1 / (1 + np.exp(-odds)), rel=1e-4)


def test_models_removed_by_another_process_are_no_longer_found(
    make_gallery: Callable[[], Path], embedder: Embedder, gathers: Float32
) -> None:
    path = make_gallery()
    with Gallery.open(path, fingerprint=embedder.fingerprint) as gallery:
        engine = Engine(embedder, gallery)
        assert engine.info().count == 60
        best = [match.model_id for match in engine.retrieve(gathers[0], top_k=3)[0].matches]
        remove = "import sys; from seisbind.service.commands.main import main; main()"
        subprocess.run([sys.executable, "-c", remove, "gallery", "remove", str(path), *best], check=True)
        left = [match.model_id for match in engine.retrieve(gathers[0], top_k=100)[0].matches]
        assert len(left) == 57
        assert not set(left) & set(best)
        assert engine.info().count == 57


def test_a_change_while_the_gallery_is_described_is_not_forgotten(
    tmp_path: Path, embedder: Embedder, models: tuple[Float32, Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count began before an addition and ends after it: what is remembered is not the old count."""
    counted, go_on = threading.Event(), threading.Event()
    with Gallery.create(tmp_path / "grown", fingerprint=embedder.fingerprint) as gallery:
        engine, count = Engine(embedder, gallery), gallery.info

        def slowly() -> GalleryInfo:
            found = count()
            counted.set()
            go_on.wait(30)
            return found

        monkeypatch.setattr(gallery, "info", slowly)
        with ThreadPoolExecutor(2) as pool:
            described = pool.submit(engine.info)
            assert counted.wait(30)
            added = pool.submit(engine.add_models, models[0][:2])
            while len(gallery) < 2:
                time.sleep(0.01)
            go_on.set()
            added.result()
            assert described.result().count == 0
        assert engine.info().count == 2
        gallery.remove(gallery.model_ids()[:1])  # not through the engine
        assert engine.info().count == 1


def test_a_model_finds_itself(engine: Engine, models: tuple[Float32, Sequence[str]]) -> None:
    for velocity, result in zip(models[0][:5], engine.search_velocity(models[0][:5], top_k=1), strict=True):
        np.testing.assert_array_equal(engine.gallery.velocity(result.matches[0].model_id), velocity)
        assert result.matches[0].similarity == pytest.approx(1, abs=1e-5)


def test_descriptors_find_their_model(engine: Engine, models: tuple[Float32, Sequence[str]]) -> None:
    physics = dict(zip(NAMES, describe(models[0][4])[0].tolist(), strict=True))
    result = engine.search_descriptors(physics, top_k=1)
    assert result.matches[0].descriptors == pytest.approx(physics)
    assert result.warnings == ()


def test_missing_descriptors_are_filled_and_said(engine: Engine) -> None:
    result = engine.search_descriptors({"mean_velocity": 2500.0})
    assert [note.code for note in result.warnings] == ["descriptors_filled"]
    assert "mean_velocity" not in result.warnings[0].sentence


@pytest.mark.parametrize("bad", [{}, {"vp": 1.0}, {"mean_velocity": float("nan")}, {"mean_velocity": 1e300}])
def test_unusable_descriptors(engine: Engine, bad: dict[str, float]) -> None:
    with pytest.raises(InvalidQuery):
        engine.search_descriptors(bad)


def test_add_and_remove(tmp_path: Path, embedder: Embedder, models: tuple[Float32, Sequence[str]]) -> None:
    with Gallery.create(tmp_path / "grown", fingerprint=embedder.fingerprint) as gallery:
        engine = Engine(embedder, gallery)
        ids = engine.add_models(models[0][:3], families=models[1][:3])
        assert engine.info().count == 3
        assert engine.search_velocity(models[0][1], top_k=1)[0].matches[0].model_id == ids[1]
        engine.remove([ids[1]])
        assert engine.info().count == 2
        with pytest.raises(InvalidVelocityModel, match="70 x 70"):
            engine.add_models(np.full((1, 35, 35), 2000.0))


def test_a_gallery_of_other_weights_is_refused(other_weights: Path, engine: Engine) -> None:
    with pytest.raises(WeightsMismatch, match=engine.gallery.fingerprint):
        Engine(Embedder.load(other_weights), engine.gallery)


def test_the_canary_is_a_usable_gather(engine: Engine) -> None:
    engine.canary()
    assert engine.retrieve(canary_gather())[0].warnings == ()


def test_galleries_from_files(tmp_path: Path, embedder: Embedder, models: tuple[Float32, Sequence[str]]) -> None:
    np.save(tmp_path / "maps.npy", models[0][:5, None])
    batches, count = from_files([tmp_path / "maps.npy"])
    done: list[int] = []
    assert count == build_gallery(tmp_path / "own", embedder, batches, progress=done.append) == 5
    assert done == [5]
