import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seisbind.model.datasets.pairs import PairSet
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.growth import begin_as
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.seismic import GatherEmbedding
from seisbind.model.encoders.weights_file import load_weights
from seisbind.model.errors import InvalidConfig
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.families import BROAD_FAMILIES
from seisbind.model.survey.preparation import OPENFWI
from seisbind.model.training.augment import AugmentConfig, Batch, augment, mirror, placed, whole_batch
from seisbind.model.training.batches import likeness, runs
from seisbind.model.training.loss import LossConfig, contrastive, structure_distance, targets, total_loss
from seisbind.model.training.recipe import PAPER, TrainConfig, load_config
from seisbind.model.training.trainer import check_start, train

PROBABILITIES = ("mirror", "noise", "shift", "phase", "tilt", "trace_gain", "dead", "shots", "sparse", "short")
OFFSETS = torch.arange(70) * 10.0 - torch.tensor(OPENFWI.shot_x_m)[:, None]  # (shot, receiver), m
OFF = dict.fromkeys(PROBABILITIES, 0.0)


@pytest.fixture
def recipe(small: EncoderConfig) -> TrainConfig:
    return TrainConfig(encoders=small, steps=12, batch=8, warmup=3, ema=0.9, checkpoint_every=5, hard_negatives=0.5)


def states(encoders: torch.nn.Module) -> list[torch.Tensor]:
    return list(encoders.state_dict().values())


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tmp_path: Path, pairs: PairSet, recipe: TrainConfig
) -> None:
    straight = train(pairs, recipe, tmp_path / "straight", device="cpu")
    train(pairs, recipe, tmp_path / "broken", device="cpu", stop_at=7)
    with pytest.raises(InvalidConfig, match="--resume"):
        train(pairs, recipe, tmp_path / "broken", device="cpu")
    log = tmp_path / "broken" / "log.csv"
    log.write_text(log.read_text() + "9,72,1.0\n")  # logged after the checkpoint, then killed
    resumed = train(pairs, recipe, tmp_path / "broken", device="cpu", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(states(straight), states(resumed), strict=True))
    assert log.read_text() == (tmp_path / "straight" / "log.csv").read_text()
    other = train(pairs, replace(recipe, seed=1), tmp_path / "other", device="cpu")
    assert not all(torch.equal(a, b) for a, b in zip(states(straight), states(other), strict=True))


def test_training_lowers_the_loss_and_says_so(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    seen = []
    config = replace(recipe, steps=40, augment=None, learning_rate=3e-3)
    train(pairs, config, tmp_path, device="cpu", progress=lambda p: seen.append(p.loss))
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) - 0.5
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40]
    assert {"seismic_velocity", "velocity_physics", "descriptors", "map", "scale", "learning_rate"} <= set(rows[0])


def test_the_papers_recipe_trains(tmp_path: Path, pairs: PairSet) -> None:
    encoders = train(pairs, replace(PAPER, steps=1, batch=4), tmp_path, device="cpu")
    assert encoders.config.kind == "paper"
    assert PAPER.loss == LossConfig(1.0, 0.1, 0.0, soft_share=0.0, descriptor_head=0.0, map_head=0.0, family_head=0.0)


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    train(pairs, recipe, tmp_path, device="cpu", stop_at=2)
    with pytest.raises(InvalidConfig, match="another configuration"):
        train(pairs, replace(recipe, learning_rate=1.0), tmp_path, device="cpu", resume=True)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        train(pairs, recipe, tmp_path, device="cpu", resume=True)


def test_training_goes_on_from_weights(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    """From them and not from random ones; on pairs of other families with a new head; in their form or not at all."""
    quick = replace(recipe, steps=1, learning_rate=1e-9)
    start = train(pairs, recipe, tmp_path / "start", device="cpu")
    on = train(pairs, quick, tmp_path / "on", start=start, device="cpu")
    weight = "seismic.project.weight"
    assert on.config == start.config and on is not start
    torch.testing.assert_close(on.state_dict()[weight], start.state_dict()[weight], atol=1e-6, rtol=0)
    others = replace(pairs, families=("mine", *pairs.families[1:]), descriptors=2 * pairs.descriptors)
    moved = train(others, quick, tmp_path / "moved", start=start, device="cpu")
    assert moved.config.families == others.families
    torch.testing.assert_close(moved.state_dict()[weight], start.state_dict()[weight], atol=1e-6, rtol=0)
    head = "seismic.family_head.weight"
    assert not torch.allclose(moved.state_dict()[head], start.state_dict()[head], atol=1e-4)
    assert torch.equal(moved.descriptor_mean, start.descriptor_mean)
    train(pairs, replace(quick, steps=2), tmp_path / "broken", start=start, device="cpu", stop_at=1)
    for other in (None, on):
        with pytest.raises(InvalidConfig, match="began from other weights"):
            train(pairs, replace(quick, steps=2), tmp_path / "broken", start=other, device="cpu", resume=True)
    wider = replace(quick, encoders=replace(recipe.encoders, width=16))
    with pytest.raises(InvalidConfig, match="width: 8 there, 16 here"):
        train(pairs, wider, tmp_path / "wider", start=start, device="cpu")


@pytest.mark.long
def test_larger_encoders_begin_as_smaller_ones_that_were_trained(
    tmp_path: Path, pairs: PairSet, recipe: TrainConfig
) -> None:
    """They answer alike at first, whatever place the layers that are added have; then these learn, too."""
    start = train(pairs, recipe, tmp_path / "start", device="cpu")
    form = replace(start.config, ahead=1, blocks=(3, 2, 4), mixers=1, finish=1)
    grown = Encoders(form).eval()
    begin_as(grown, start)
    gathers = whole_batch(pairs.select(range(4)))
    shots = gathers.traces.float(), gathers.live, gathers.shot_x_m
    with torch.inference_mode():
        before, after = start.embed_gathers(*shots), grown.embed_gathers(*shots)
    for name in ("embedding", "descriptors", "descriptor_scale", "velocity", "family"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name))
    larger = replace(recipe, encoders=replace(form, families=()))
    on = train(pairs, larger, tmp_path / "on", start=start, device="cpu")
    assert on.config == form
    for name in ("ahead.0.second_norm", "trunk.2.second_norm", "mixers.0.second", "map_head.fine.0.second"):
        assert on.state_dict()[f"seismic.{name}.weight"].abs().max() > 0, name
    assert train(pairs, replace(recipe, steps=1), tmp_path / "kept", start=on, device="cpu").config == form
    uneven = replace(recipe, steps=1, encoders=replace(recipe.encoders, blocks=(2, 4, 2), finish=2))
    both = train(pairs, uneven, tmp_path / "both", start=on, device="cpu").config
    assert both == replace(form, blocks=(3, 4, 4), finish=2)
    with pytest.raises(RuntimeError, match=r"trunk\.6\."):  # the smaller ones lack a place for the larger's blocks
        begin_as(Encoders(start.config), on)


def test_a_locked_run_moves_the_seismic_encoder_only(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    locked = replace(recipe, locked=True, loss=load_config("reading").loss)
    with pytest.raises(InvalidConfig, match="--start"):
        train(pairs, locked, tmp_path / "none", device="cpu")
    start = train(pairs, recipe, tmp_path / "start", device="cpu")
    on = train(pairs, locked, tmp_path / "on", start=start, device="cpu")
    assert "velocity_physics" not in (tmp_path / "on" / "log.csv").read_text()  # nothing in it could move
    for name, before in start.state_dict().items():
        if not name.startswith("seismic."):  # norms and their running means, the temperature, the standardisation
            assert torch.equal(on.state_dict()[name], before), name
        elif before.ndim > 1:
            assert not torch.equal(on.state_dict()[name], before), name
    train(pairs, locked, tmp_path / "broken", start=start, device="cpu", stop_at=7)
    resumed = train(pairs, locked, tmp_path / "broken", start=start, device="cpu", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(states(on), states(resumed), strict=True))


@pytest.mark.parametrize("name", ["further", "larger", "reading"])
def test_recipes_that_go_on_do_so_from_the_shipped_weights(name: str) -> None:
    shipped = load_weights().encoders
    check_start(load_config(name), shipped)
    assert load_config(name).locked == (name == "reading")


def test_alike_models_share_batches(pairs: PairSet) -> None:
    """A run holds models that lie together; every model is in one, and the next epoch's are others."""
    centres = np.repeat(np.arange(8.0) * 100, 16)[np.random.default_rng(0).permutation(128)]
    features = (centres[:, None] + np.random.default_rng(1).standard_normal((128, 3))).astype(np.float32)
    found = runs(features, 16, np.random.default_rng(2))
    assert sorted(np.concatenate(found).tolist()) == list(range(128)) and {len(run) for run in found} == {16}
    assert all(np.ptp(centres[run]) == 0 for run in found)
    uneven = runs(features[:75], 8, np.random.default_rng(3))
    assert sorted(np.concatenate(uneven).tolist()) == list(range(75))
    assert min(map(len, uneven)) >= 8 and max(map(len, uneven)) < 16
    same = runs(np.zeros((40, 3), np.float32), 8, np.random.default_rng(4))
    assert sorted(np.concatenate(same).tolist()) == list(range(40))
    seen = likeness(pairs.velocity, None)
    np.testing.assert_allclose(1000 * seen.mean(axis=1), pairs.velocity.mean(dim=(1, 2)), rtol=1e-5)


def test_too_few_pairs_are_refused(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    with pytest.raises(InvalidConfig, match="40 pairs are fewer than one batch of 64"):
        train(pairs, replace(recipe, batch=64), tmp_path, device="cpu")


def test_configurations_by_name_and_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"base": "default", "steps": 7, "loss": {"soft_share": 0.0}}')
    config = load_config(str(path))
    assert config.steps == 7 and config.loss.soft_share == 0 and config.loss.map_head == LossConfig().map_head
    assert load_config("paper") == PAPER
    path.write_text('{"base": "paper", "augment": {"noise": 0.5}}')
    assert load_config(str(path)).augment == AugmentConfig(noise=0.5)
    for wrong, words in (
        ('{"step": 7}', "no 'step'"),
        ('{"steps": "x"}', "steps"),
        ('{"batch": 0}', "at least 1"),
        ('{"encoders": {"kind": "Paper"}}', "encoders.kind"),
        ('{"loss": {"soft": 1}}', "no 'soft'"),
        ('{"base": "papr"}', "'base'"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
    ):
        path.write_text(wrong)
        with pytest.raises(InvalidConfig, match=words):
            load_config(str(path))
    with pytest.raises(InvalidConfig, match="default"):
        load_config("absent")


def batch_of(pairs: PairSet, count: int = 8) -> Batch:
    return Batch(
        traces=pairs.traces[:count].float(),
        live=torch.ones(count, 5, 70, dtype=torch.bool),
        shot_x_m=torch.tensor(OPENFWI.shot_x_m).expand(count, -1),
        velocity=pairs.velocity[:count],
    )


def test_mirroring_twice_is_nothing_and_moves_positions(pairs: PairSet) -> None:
    batch = batch_of(pairs)
    everything = torch.ones(8, dtype=torch.bool)
    once = mirror(batch, everything)
    assert once.shot_x_m[0].tolist() == [0.0, 170.0, 350.0, 520.0, 690.0]
    torch.testing.assert_close(once.traces[:, 0, :, 0], batch.traces[:, 4, :, 69])
    torch.testing.assert_close(once.velocity[:, :, 0], batch.velocity[:, :, 69])
    twice = mirror(once, everything)
    torch.testing.assert_close(twice.traces, batch.traces)
    torch.testing.assert_close(twice.shot_x_m, batch.shot_x_m)


def test_no_augmentation_is_the_identity(pairs: PairSet) -> None:
    batch = batch_of(pairs)
    same = augment(batch, AugmentConfig(**OFF), torch.Generator().manual_seed(0))
    torch.testing.assert_close(same.traces, batch.traces, atol=1e-4, rtol=1e-4)
    assert same.live.all()


@pytest.mark.parametrize("decibel", [10.0, 20.0, 40.0])
def test_noise_has_the_level_that_it_says(pairs: PairSet, decibel: float) -> None:
    batch = batch_of(pairs)
    config = AugmentConfig(**OFF | {"noise": 1.0, "noise_db": (decibel, decibel)})
    noisy = augment(batch, config, torch.Generator().manual_seed(0))
    level = (noisy.traces - batch.traces).square().mean(dim=(1, 2, 3)).sqrt()
    signal = batch.traces.square().mean(dim=(1, 2, 3)).sqrt()
    measured = 20 * torch.log10(signal / level)
    assert (measured - decibel).abs().max() < 0.5


def test_a_shift_moves_an_arrival_by_what_it_says() -> None:
    t = torch.arange(250) * 0.004
    a = (torch.pi * 15 * (t - 0.4)) ** 2
    traces = ((1 - 2 * a) * torch.exp(-a))[None, None, :, None].expand(64, 5, 250, 70).contiguous()
    shot_x_m = torch.tensor(OPENFWI.shot_x_m).expand(64, -1)
    batch = Batch(traces, torch.ones(64, 5, 70, dtype=torch.bool), shot_x_m, torch.zeros(64, 70, 70))
    config = AugmentConfig(**OFF | {"shift": 1.0, "shift_s": 0.02})
    moved = augment(batch, config, torch.Generator().manual_seed(1)).traces[:, 0, :, 0]
    peak = moved.argmax(dim=1) * 0.004 - 0.4
    assert peak.abs().max() <= 0.0201 and peak.min() < -0.008 and peak.max() > 0.008


def test_lost_shots_and_traces_are_marked_and_silent(pairs: PairSet) -> None:
    config = AugmentConfig(**OFF | {"dead": 1.0, "shots": 1.0, "sparse": 0.5})
    out = augment(batch_of(pairs), config, torch.Generator().manual_seed(2))
    assert out.live.flatten(1).any(dim=1).all() and not out.live.all()
    silent = ~out.live[:, :, None, :].expand_as(out.traces)
    assert (out.traces[silent] == 0).all()


def test_spreads_lack_the_offsets_that_they_say(pairs: PairSet) -> None:
    """A gap below an offset, none beyond another, one side only: of all shots of a gather alike."""
    for field, kept in (
        ("gap", lambda offset: offset.abs()),
        ("far", lambda offset: -offset.abs()),
        ("one_sided", lambda offset: offset),
    ):
        out = augment(batch_of(pairs), AugmentConfig(**OFF | {field: 1.0}), torch.Generator().manual_seed(3))
        assert not out.live.all()
        for live, traces in zip(out.live, out.traces, strict=True):
            if field == "one_sided" and not live[OFFSETS > 0].any():
                live, traces = live.flip(0, 1), traces.flip(0, 2)
            order = kept(OFFSETS)[live].min() if live.any() else None
            assert order is not None and not live[kept(OFFSETS) < order - 1e-3].any()
            assert live[kept(OFFSETS) > max(float(order), 0.0) + 1e-3].all() or field == "one_sided"
            assert (traces.permute(0, 2, 1)[~live] == 0).all()


def test_low_cuts_and_ghosts_take_low_frequencies(pairs: PairSet) -> None:
    """White records: below the corner little is left, far above it nothing changed; a ghost has its notch at zero."""
    batch = batch_of(pairs)
    before = torch.fft.rfft(batch.traces, dim=2).abs().square().mean(dim=(1, 3))
    for field, lost, whole in (("low_cut", slice(0, 1), slice(80, 125)), ("ghost", slice(0, 1), None)):
        config = AugmentConfig(**OFF | {field: 1.0})
        out = augment(batch, config, torch.Generator().manual_seed(4))
        ratio = torch.fft.rfft(out.traces, dim=2).abs().square().mean(dim=(1, 3)) / before
        assert (ratio[:, lost].mean(dim=1) < 0.45).all()
        if whole is not None:
            assert (ratio[:, whole].mean(dim=1) > 0.8).all()


@pytest.mark.long
def test_a_head_that_is_added_states_errors_and_learns_them(
    tmp_path: Path, pairs: PairSet, recipe: TrainConfig
) -> None:
    start = train(pairs, recipe, tmp_path / "start", device="cpu")
    assert start.config.map_error == 0
    more = replace(recipe, encoders=replace(recipe.encoders, map_error=1), loss=LossConfig(map_error=1.0), augment=None)
    stated = []
    for name, steps, rate in (("once", 1, 1e-9), ("long", 60, 3e-3)):
        encoders = train(
            pairs, replace(more, steps=steps, learning_rate=rate), tmp_path / name, start=start, device="cpu"
        )
        batch = whole_batch(pairs)
        with torch.inference_mode():
            out = encoders.embed_gathers(batch.traces.float(), batch.live, batch.shot_x_m)
        assert out.velocity_scale is not None and out.velocity_scale.shape == (40, 35, 35)
        stated.append(out.velocity_scale)
    assert stated[0].std() < 1e-3 and abs(float(stated[0].mean()) - 0.15) < 1e-3
    assert stated[1].mean() > 0.3  # of gathers that are noise, models are off by a quarter of a unit and more


def test_contrastive_loss_by_hand() -> None:
    eye = torch.eye(4, 256)
    expected = -torch.log_softmax(torch.tensor([10.0, 0, 0, 0]), 0)[0]
    torch.testing.assert_close(contrastive(eye, eye, torch.tensor(10.0)), expected)
    torch.testing.assert_close(contrastive(eye, eye, torch.tensor(10.0), torch.eye(4)), expected)


def test_soft_targets_follow_the_distance_of_the_models(velocity: np.ndarray) -> None:
    v = torch.from_numpy(velocity[:4]).clone()
    v[1] = v[0] + 30.0
    v[2] = v[0] + 400.0
    assert structure_distance(v)[0, 1] == pytest.approx(30, rel=1e-3)
    target = targets(v, LossConfig(soft_share=0.5, softness_m_s=40.0))
    assert target is not None
    torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
    assert target[0, 0] > target[0, 1] > 100 * target[0, 2]
    assert targets(v, LossConfig(soft_share=0.0)) is None


def test_with_beta_descriptors_that_are_unsure_count_alike(velocity: np.ndarray) -> None:
    embedding = torch.eye(4, 256)
    pulls = []
    for beta in (0.0, 1.0):
        value = torch.ones(4, 13, requires_grad=True)
        scale = torch.tensor([0.1, 0.4, 1.0, 2.0])[:, None].repeat(1, 13).requires_grad_()
        config = LossConfig(0.0, 0.0, 0.0, map_head=0.0, family_head=0.0, descriptor_head=1.0, descriptor_beta=beta)
        terms = total_loss(
            GatherEmbedding(embedding, value, scale),
            embedding,
            embedding,
            velocity=torch.from_numpy(velocity[:4]),
            descriptors=torch.zeros(4, 13),
            family=torch.zeros(4, dtype=torch.int64),
            scale=torch.tensor(10.0),
            config=config,
        )
        pull, widen = torch.autograd.grad(terms.total, (value, scale))
        pulls.append(52 * pull)
        assert (torch.sign(widen) == torch.sign(scale.detach() - 1)).all()  # the scale is drawn to the error, 1
    torch.testing.assert_close(pulls[0], 1 / scale.detach())
    torch.testing.assert_close(pulls[1], torch.ones(4, 13))


def test_heads_that_are_right_cost_nothing(velocity: np.ndarray) -> None:
    v = torch.from_numpy(velocity[:4])
    coarse = torch.nn.functional.avg_pool2d((v[:, None] - 3000) / 1000, 2)[:, 0]
    embedding = torch.nn.functional.normalize(torch.randn(4, 256), dim=1)
    descriptors = torch.randn(4, 13)
    gathers = GatherEmbedding(embedding, descriptors, torch.full((4, 13), 0.5), coarse)
    terms = total_loss(
        gathers,
        embedding,
        embedding,
        velocity=v,
        descriptors=descriptors,
        family=torch.zeros(4, dtype=torch.int64),
        scale=torch.tensor(10.0),
        config=LossConfig(),
    )
    assert float(terms.parts["map"]) == 0
    assert float(terms.parts["descriptors"]) == pytest.approx(np.log(0.5))
    assert OPENFWI_FRAME.line_m == 690


def test_the_head_of_kinds_alone_forgets_in_training() -> None:
    encoders = Encoders(EncoderConfig(width=8, hidden=16, kinds=("FlatVel-A", "Beds"))).train()
    encoders.lock_readings()
    forgetful = torch.nn.Dropout | torch.nn.BatchNorm2d
    training = {n for n, part in encoders.seismic.named_modules() if isinstance(part, forgetful) and part.training}
    assert training == {"kind_head.2.1"}
    h = torch.randn(4, 16)
    head = encoders.seismic.kind_head
    assert not torch.equal(head(h), head(h)) and torch.equal(head.eval()(h), head(h))


def test_a_head_that_forgets_is_the_same_after_a_stop(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    """Whatever a process drew before: torch's own generator is elsewhere in each."""
    start = Encoders(replace(recipe.encoders, families=pairs.families[:5]))
    config = replace(load_config("kinds"), encoders=replace(recipe.encoders, map_error=1), steps=4, batch=8, ema=0.9)
    config = replace(config, warmup=1, checkpoint_every=1, learning_rate=1e-2)
    torch.manual_seed(1)
    straight = train(pairs, config, tmp_path / "straight", start=start, device="cpu")
    torch.manual_seed(2)
    train(pairs, config, tmp_path / "broken", start=start, device="cpu", stop_at=2)
    torch.manual_seed(3)
    resumed = train(pairs, config, tmp_path / "broken", start=start, device="cpu", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(states(straight), states(resumed), strict=True))
    other = train(pairs, replace(config, seed=6), tmp_path / "other", start=start, device="cpu")
    assert not torch.equal(other.seismic.kind_head[1].weight, straight.seismic.kind_head[1].weight)


@pytest.mark.long
def test_errors_alone_are_trained_and_nothing_else_moves(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    start = train(pairs, recipe, tmp_path / "start", device="cpu")
    errors = load_config("errors")
    form = replace(recipe.encoders, map_error=1)
    own = replace(errors, encoders=form, steps=40, batch=20, warmup=2, augment=None, learning_rate=2e-2)
    kinds = replace(pairs, families=(*pairs.families[:5], *BROAD_FAMILIES[:5]))
    after = train(kinds, own, tmp_path / "errors", start=start, device="cpu")
    gathers = whole_batch(pairs)
    with torch.inference_mode():
        before, now = (
            each.embed_gathers(gathers.traces.float(), gathers.live, gathers.shot_x_m) for each in (start, after)
        )
    for name in ("embedding", "descriptors", "descriptor_scale", "velocity", "family"):
        assert torch.equal(getattr(before, name), getattr(now, name)), name
    assert now.velocity_scale.std() > 0 and before.kind is None
    assert after.config.foreign == (False,) * 5 + (True,) * 5
    assert torch.nn.functional.cross_entropy(now.kind, pairs.family) < np.log(10)  # which is that of a guess
    for wrong in ({"loss": replace(errors.loss, family_head=0.1)}, {"errors_only": False}, {"loss": LossConfig()}):
        with pytest.raises(InvalidConfig, match=r"errors_only|contrastive"):
            replace(errors, **wrong)
    with pytest.raises(InvalidConfig, match="'errors_only' recipe goes on from trained"):
        check_start(errors, None)


def test_shots_of_pairs_are_where_encoders_will_see_them() -> None:
    """As `prepare` moves those of records; pairs at the frame's own places stay as they are."""
    rng = np.random.default_rng(0)
    traces = torch.from_numpy(rng.standard_normal((3, 5, 250, 70)).astype(np.float16))
    places = torch.tensor([[60.0, 170, 340, 520, 640], list(OPENFWI.shot_x_m), [0, 170, 340, 500, 690]])
    rest = torch.zeros(3, 70, 70), torch.zeros(3, 13), torch.zeros(3, dtype=torch.int64), ("-",)
    own = PairSet(traces.clone(), *rest)
    assert placed(own) is own
    found = placed(PairSet(traces.clone(), *rest, shot_x_m=places.clone()))
    assert found.shot_x_m is not None and found.shot_x_m.tolist() == [list(OPENFWI.shot_x_m)] * 3
    assert found.live is not None and found.live.sum(dim=(1, 2)).tolist() == [350 - 6 - 5, 350, 350 - 2]
    torch.testing.assert_close(found.traces[0, 0, :, :64], traces[0, 0, :, 6:], rtol=0, atol=0)
    torch.testing.assert_close(found.traces[2, 3, :, 2:], traces[2, 3, :, :68], rtol=0, atol=0)
    torch.testing.assert_close(found.traces[1], traces[1], rtol=0, atol=0)
