import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from seisbind.model.datasets.acquisition import EXACT, AcquisitionConfig, draw, record, simulate_pairs
from seisbind.model.datasets.openfwi import Dataset, find_pairs, write_pairs
from seisbind.model.datasets.pairs import FIELDS, PairSet, load_pairs, prepare_files, save_pairs
from seisbind.model.datasets.writer import only_writer
from seisbind.model.errors import DatasetError
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
