import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seisbind.model.datasets.acquisition import ANY_LINE, EXACT, AcquisitionConfig, draw, record, simulate_pairs
from seisbind.model.datasets.openfwi import Dataset, find_pairs, write_pairs
from seisbind.model.datasets.pairs import FIELDS, PairSet, load_pairs, prepare_files, save_pairs
from seisbind.model.datasets.writer import only_writer
from seisbind.model.errors import DatasetError
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.survey.preparation import prepare
from seisbind.model.waves.wavefield import simulate


def equal(a: PairSet, b: PairSet) -> bool:
    return a.families == b.families and all(torch.equal(getattr(a, n), getattr(b, n)) for n in FIELDS)


def test_round_trip_in_shards(tmp_path: Path, pairs: PairSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seisbind.model.datasets.pairs.SHARD", 16)
    save_pairs(tmp_path, pairs)
    assert len(list(tmp_path.iterdir())) == 3
    assert equal(load_pairs(tmp_path), pairs)
    first = load_pairs(tmp_path, 16, before=[tmp_path])
    assert equal(first, pairs.select([*range(len(pairs)), *range(16)]))
    with pytest.raises(DatasetError, match="absent"):
        load_pairs(tmp_path, before=[tmp_path / "absent"])


def test_sets_of_different_families_join_by_name(tmp_path: Path, pairs: PairSet) -> None:
    other = replace(pairs, families=("Blocks", *reversed(pairs.families)), family=len(pairs.families) - pairs.family)
    save_pairs(tmp_path / "one", pairs)
    save_pairs(tmp_path / "other", other)
    both = load_pairs(tmp_path / "other", before=[tmp_path / "one"])
    assert both.families == (*pairs.families, "Blocks")
    assert both.family_names().tolist() == [*pairs.family_names(), *other.family_names()]
    assert other.family_names().tolist() == pairs.family_names().tolist()
    foreign = replace(other, family=torch.zeros_like(other.family))
    save_pairs(tmp_path / "foreign", foreign)
    some = load_pairs(tmp_path / "foreign", before=[tmp_path / "one"], rows=lambda total: torch.arange(1, total, 3))
    assert some.family_names().tolist() == [*pairs.family_names(), *["Blocks"] * len(pairs)][1::3]


def test_damaged_and_missing_shards_are_named(tmp_path: Path, pairs: PairSet) -> None:
    with pytest.raises(DatasetError, match="No pairs"):
        load_pairs(tmp_path)
    save_pairs(tmp_path, pairs)
    shard = tmp_path / "pairs-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(DatasetError, match="pairs-00000"):
        load_pairs(tmp_path)


def test_parts_of_different_length_are_refused(pairs: PairSet) -> None:
    with pytest.raises(DatasetError, match="'family': 40"):
        PairSet(pairs.traces[:3], pairs.velocity, pairs.descriptors, pairs.family, pairs.families)


def test_files_in_openfwi_layout_become_pairs(tmp_path: Path, velocity: np.ndarray) -> None:
    gathers = np.random.default_rng(0).standard_normal((3, 5, 1000, 70)).astype(np.float32)
    write_pairs(tmp_path, "FlatVel-A", number=1, velocity=velocity[:3], gathers=gathers)
    made = prepare_files(Dataset(find_pairs(tmp_path)))
    assert len(made) == 3 and made.families == ("FlatVel-A",)
    np.testing.assert_array_equal(made.velocity.numpy(), velocity[:3])
    expected = prepare(gathers).traces
    expected /= np.sqrt(np.square(expected).mean(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(made.traces.float().numpy(), expected, atol=5e-3)


@pytest.mark.long
def test_simulated_pairs_do_not_depend_on_processes_and_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    families = ("FlatVel-A", "CurveFault-B")
    config = AcquisitionConfig(deepwave=0.0, frame=1.0)
    simulate_pairs(tmp_path / "one", 3, 5, families, config=config, processes=1)
    simulate_pairs(tmp_path / "two", 3, 5, families, config=config, processes=2)
    first = load_pairs(tmp_path / "one")
    assert equal(first, load_pairs(tmp_path / "two"))
    assert first.family.tolist() == [0, 1, 0]
    done = []
    simulate_pairs(tmp_path / "one", 3, 5, families, config=config, progress=lambda d, n: done.append(d))
    assert done == []  # nothing was left to do
    with pytest.raises(DatasetError, match="another recipe"):
        simulate_pairs(tmp_path / "one", 3, 6, families, config=config)


def test_a_second_writer_and_a_full_disk_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with only_writer(tmp_path), pytest.raises(DatasetError, match="Another process"):
        simulate_pairs(tmp_path, 3, 5, ("FlatVel-A",))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**5, 10**5))
    with pytest.raises(DatasetError, match=r"3 pairs to go need 583,800 bytes .* 100,000 are free"):
        simulate_pairs(tmp_path, 3, 5, ("FlatVel-A",))
    assert not list(tmp_path.glob("pairs-*"))


def test_the_exact_acquisition_is_openfwis(velocity: np.ndarray) -> None:
    acquisition = draw(EXACT, np.random.default_rng(0))
    traces = record(velocity[0], acquisition).float().numpy()
    expected = prepare(simulate(velocity[0], engine="openfwi")).traces
    expected /= np.sqrt(np.square(expected).mean())
    np.testing.assert_allclose(traces, expected, atol=2e-2, rtol=2e-3)


def test_drawn_acquisitions_follow_their_shares() -> None:
    rng = np.random.default_rng(1)
    drawn = [draw(AcquisitionConfig(), rng) for _ in range(400)]
    share = np.mean([a.engine == "deepwave" for a in drawn])
    assert abs(share - 0.15) < 0.06
    assert 5 < sum(a.boundary.free_surface for a in drawn) < 45
    assert len({len(a.wavelet) for a in drawn}) > 50  # wavelets of many frequencies


def test_any_lines_acquisitions_differ_in_source_places_and_depths() -> None:
    rng = np.random.default_rng(2)
    drawn = [draw(ANY_LINE, rng) for _ in range(300)]
    own = [a.survey.shot_x_m == OPENFWI_FRAME.shot_x_m for a in drawn]
    assert 0.5 < np.mean(own) < 0.8
    assert all(np.all(np.diff(a.survey.shot_x_m) > 0) and len(a.survey.shot_x_m) == 5 for a in drawn)
    assert all(a.survey.shot_x_m[0] >= 0 and a.survey.shot_x_m[-1] <= OPENFWI_FRAME.line_m for a in drawn)
    assert 3 < sum(a.survey.receiver_depth_m > 30 for a in drawn) < 50  # on a sea bed
    assert any(a.boundary.free_surface for a in drawn)


def test_a_model_with_ground_beside_it_is_recorded_in_its_middle(velocity: np.ndarray) -> None:
    """The record is that of the middle where all is the same beside it, and another where it is not."""
    how = draw(EXACT, np.random.default_rng(0))
    alone = record(velocity[0], how).float()
    edges = np.pad(velocity[0], ((0, 0), (8, 8)), mode="edge")
    torch.testing.assert_close(record(edges, how).float(), alone, atol=0.03, rtol=0.02)
    edges[20:, :8] = 4500
    assert (record(edges, how).float() - alone).abs().max() > 0.1


@pytest.mark.long
def test_pairs_remember_where_their_shots_were(tmp_path: Path, pairs: PairSet) -> None:
    simulate_pairs(tmp_path / "any", 4, 5, ("FlatVel-A", "Strata", "Strata"), config=ANY_LINE, processes=1)
    made = load_pairs(tmp_path / "any")
    assert made.families == ("FlatVel-A", "Strata") and made.family.tolist() == [0, 1, 1, 0]
    assert made.shot_x_m is not None and made.places().shape == (4, 5)
    assert torch.equal(made.select([2]).places(), made.places()[2:3])
    assert pairs.shot_x_m is None and pairs.places()[7].tolist() == list(OPENFWI_FRAME.shot_x_m)
    # beside pairs of the frame's own shots they are told apart
    simulate_pairs(tmp_path / "own", 2, 5, ("FlatVel-A", "Strata"), config=EXACT, processes=1)
    both = load_pairs(tmp_path / "any", before=[tmp_path / "own"])
    assert both.places()[1].tolist() == list(OPENFWI_FRAME.shot_x_m)
    assert torch.equal(both.places()[2:], made.places())
