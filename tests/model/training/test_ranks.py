"""Batches in parts, and runs of several processes: the same gradients, the same pairs, the same run."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from seisbind.model.datasets.pairs import PairSet, load_pairs, save_pairs
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.networks import Encoders
from seisbind.model.errors import InvalidConfig
from seisbind.model.training.augment import whole_batch
from seisbind.model.training.batches import make_batches
from seisbind.model.training.checkpoint import CHECKPOINT
from seisbind.model.training.ranks import ALONE, Ranks, joined, parts_for
from seisbind.model.training.recipe import TrainConfig
from seisbind.model.training.run import shared_parts
from seisbind.model.training.step import Part, gradients
from seisbind.model.training.trainer import train

RANK = Path(__file__).with_name("rank.py")


@pytest.fixture
def recipe(small: EncoderConfig) -> TrainConfig:
    return TrainConfig(
        encoders=small,
        steps=6,
        batch=8,
        warmup=3,
        ema=0.9,
        checkpoint_every=2,
        hard_negatives=0.5,
        parts=2,
        precision="fp32",
    )


def cut(pairs: PairSet, count: int, parts: int) -> list[Part]:
    """The first pairs as a batch in so many parts."""
    size = count // parts
    each = [pairs.select(range(start, start + size)) for start in range(0, count, size)]
    return [(whole_batch(part), part) for part in each]


def slopes(encoders: Encoders) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in encoders.named_parameters() if p.grad is not None}


def length(tensors: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([each.reshape(-1) for each in tensors.values()]).norm())


@pytest.mark.parametrize("locked", [False, True])
def test_gradients_of_parts_are_those_of_the_whole_batch(pairs: PairSet, recipe: TrainConfig, locked: bool) -> None:
    """Where norms do not look at the batch, to float32; the vacuous way, each part for itself, is far from it."""
    torch.manual_seed(0)
    encoders = Encoders(replace(recipe.encoders, families=pairs.families)).train()
    encoders.descriptor_mean.copy_(pairs.descriptors.mean(dim=0))
    encoders.descriptor_std.copy_(pairs.descriptors.std(dim=0))
    for _ in range(30):  # norms that know what they see
        gradients(encoders, cut(pairs, 8, 1), replace(recipe, parts=1), ALONE)
    encoders.eval()
    if locked:
        encoders.lock()
    found = {}
    for parts in (1, 2, 4):
        encoders.zero_grad()
        terms = gradients(encoders, cut(pairs, 8, parts), replace(recipe, parts=parts), ALONE)
        found[parts] = float(terms.total.detach()), terms.parts, slopes(encoders)
    encoders.zero_grad()
    for part in cut(pairs, 8, 2):
        gradients(encoders, [part], replace(recipe, parts=1), ALONE)
    alone = slopes(encoders)
    whole, terms, expected = found[1]
    assert ("logit_scale" in expected) is not locked and len(expected) > 20
    for parts in (2, 4):
        loss, own, slope = found[parts]
        assert loss == pytest.approx(whole, abs=1e-6) and list(own) == list(terms)
        assert slope.keys() == expected.keys()
        off = {name: slope[name] - value for name, value in expected.items()}
        assert all(off[name].abs().max() <= 2e-5 * value.abs().max() for name, value in expected.items())
        assert length(off) < 1e-5 * length(expected)  # sums in float32, in another order
    name = "seismic.project.weight"
    assert (alone[name] / 2 - expected[name]).abs().max() > 1e-3


def test_norms_take_the_mean_over_parts(pairs: PairSet, recipe: TrainConfig) -> None:
    torch.manual_seed(0)
    encoders = Encoders(replace(recipe.encoders, families=pairs.families)).train()
    before = {name: buffer.clone() for name, buffer in encoders.named_buffers()}
    moved = []
    for part in cut(pairs, 8, 2):
        encoders.load_state_dict(before, strict=False)
        gradients(encoders, [part], replace(recipe, parts=1), ALONE)
        moved.append({name: buffer.clone() for name, buffer in encoders.named_buffers()})
    encoders.load_state_dict(before, strict=False)
    gradients(encoders, cut(pairs, 8, 2), recipe, ALONE)
    name = next(name for name in before if name.endswith("running_mean"))
    after = dict(encoders.named_buffers())
    torch.testing.assert_close(after[name], (moved[0][name] + moved[1][name]) / 2)
    assert not torch.equal(after[name], before[name])
    assert int(after[name.replace("running_mean", "num_batches_tracked")]) == 1


def test_no_pair_is_seen_twice_in_an_epoch(pairs: PairSet, recipe: TrainConfig) -> None:
    """By two processes together, each of which holds half of the pairs; and one process sees the same batches."""
    some = replace(pairs.select(range(39)), family=torch.arange(39))  # an odd number, and each its own name
    config = replace(recipe, augment=None)

    def seen(rank: int, count: int) -> list[list[list[int]]]:
        held = _Counted(rank, count)
        own = some.select(held.rows(len(some), config.parts))
        features = np.arange(len(own), dtype=np.float32)[:, None]
        batches = make_batches(own, features, config, 0, 4, torch.device("cpu"), held)
        return [[part.family.tolist() for _, part in parts] for parts in batches]

    first, second = seen(0, 2), seen(1, 2)
    together = [a + b for a, b in zip(first, second, strict=True)]
    names = [name for parts in together for part in parts for name in part]
    assert len(names) == len(set(names)) == 32
    assert all({name % 2 for name in parts[0]} == {0} for parts in first)
    order = [[4, 4]] * 4
    assert [[len(part) for part in parts] for parts in seen(0, 1)] == order


class _Counted(Ranks):
    """A process of a run that is not there: it knows how many pairs the run has."""

    def total(self, number: int) -> int:
        return 39


def test_who_is_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variables that torchrun sets, and others (Kubeflow) too: by itself each would write the same folder."""
    for name, does in (("init_process_group", None), ("destroy_process_group", None), ("get_rank", 1)):
        monkeypatch.setattr(f"torch.distributed.{name}", lambda *given, does=does: does)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.count) == (0, 1)  # nobody says where the other one is
    for name, value in (("RANK", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with joined("cpu") as ranks:
        assert (ranks.rank, ranks.count) == (1, 2)


def start(processes: int, *arguments: object) -> None:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run([*command, str(RANK), *map(str, arguments)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]


def far(a: Path, b: Path) -> float:
    """The largest difference of two runs' checkpoints: weights, averages and the optimiser's state."""
    one, two = load_file(a / CHECKPOINT), load_file(b / CHECKPOINT)
    assert one.keys() == two.keys()
    return max(float((one[name].double() - two[name].double()).abs().max()) for name in one)


@pytest.mark.long
def test_two_processes_do_what_one_does(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    """The same losses and weights to 1e-6, and a run that goes on with one process, or with two, is the same run."""
    shards, file = tmp_path / "shards", tmp_path / "recipe.json"
    save_pairs(shards, pairs)
    file.write_text(json.dumps(asdict(recipe)))
    one, two, mixed = (tmp_path / name for name in ("one", "two", "mixed"))
    train(load_pairs(shards), recipe, one, device="cpu")
    start(2, shards, two, file, 6)
    start(2, shards, mixed, file, 2)
    start(1, shards, mixed, file, 4)
    start(2, shards, mixed, file, 6)
    assert far(one, two) < 1e-6
    assert far(one, mixed) < 1e-6
    assert (two / "log.csv").exists() is (one / "log.csv").exists()
    other = tmp_path / "other"
    train(load_pairs(shards), replace(recipe, seed=1), other, device="cpu")
    assert far(one, other) > 1e-3  # what the comparison would say of another run


def test_a_process_holds_its_own_pairs(tmp_path: Path, pairs: PairSet) -> None:
    save_pairs(tmp_path, pairs)
    rows = Ranks(1, 2).rows(len(pairs), 4)
    own = load_pairs(tmp_path, rows=lambda count: rows)
    assert torch.equal(own.velocity, pairs.velocity[rows]) and torch.equal(own.family, pairs.family[rows])
    assert {row % 4 for row in rows.tolist()} == {2, 3}
    both = torch.cat([Ranks(rank, 2).rows(39, 4) for rank in (0, 1)])
    assert sorted(both.tolist()) == list(range(39))


def test_parts_that_processes_cannot_share_are_refused(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    assert [parts_for(parts, Ranks(0, 4)) for parts in (1, 2, 6)] == [4, 4, 12]
    out = tmp_path / "run"
    assert shared_parts(recipe, ALONE, out, asked=None, resume=False) == 2
    assert shared_parts(recipe, ALONE, out, asked=4, resume=True) == 4
    with pytest.raises(InvalidConfig, match="3 processes cannot share batches of 2 parts; start 1 or 2"):
        shared_parts(recipe, Ranks(0, 3), out, asked=2, resume=False)
    train(pairs, recipe, out, device="cpu", stop_at=1)
    assert shared_parts(replace(recipe, parts=1), ALONE, out, asked=None, resume=True) == 2
    with pytest.raises(InvalidConfig, match="which the run in"):
        shared_parts(recipe, Ranks(0, 3), out, asked=None, resume=True)
    with pytest.raises(InvalidConfig, match="began with 2 parts"):
        shared_parts(recipe, ALONE, out, asked=4, resume=True)
    with pytest.raises(InvalidConfig, match="batch of 8 cannot be made of 3"):
        replace(recipe, parts=3)
    with pytest.raises(InvalidConfig, match="3 processes"):
        train(pairs, recipe, tmp_path / "other", device="cpu", ranks=_Counted(0, 3))


@pytest.mark.long
def test_a_run_draws_its_log(tmp_path: Path, pairs: PairSet, recipe: TrainConfig) -> None:
    train(pairs, replace(recipe, steps=30, checkpoint_every=30), tmp_path, device="cpu")
    picture = (tmp_path / "log.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000
