"""``seisbind train`` and ``evaluate`` through the real command, on a handful of pairs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from command import seisbind
from seisbind.model.datasets.openfwi import write_pairs
from seisbind.model.datasets.pairs import PairSet, save_pairs
from seisbind.model.encoders.weights_file import load_weights
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards to train on, others to calibrate on, and a recipe of two steps."""
    root = tmp_path_factory.mktemp("training")
    velocity, _ = mixed(24, seed=6)
    traces = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 5, 250, 70)).astype(np.float16))
    described = torch.from_numpy(describe(velocity))
    family = torch.arange(24) % 2
    pairs = PairSet(traces, torch.from_numpy(velocity), described, family, ("a", "b"))
    save_pairs(root / "train", pairs)
    save_pairs(root / "other", pairs.select(range(12)))
    recipe = {"steps": 2, "batch": 4, "warmup": 1, "encoders": {"width": 8, "velocity_width": 8, "hidden": 16}}
    (root / "recipe.json").write_text(json.dumps(recipe))
    return root


def test_train_then_evaluate(folder: Path) -> None:
    options = ("--config", folder / "recipe.json", "--out", folder / "run")
    refused = seisbind("train", "--data", folder / "train", *options)
    assert refused.returncode == 1 and "--held-out" in refused.stderr and not (folder / "run" / "log.csv").exists()
    done = seisbind("train", "--data", folder / "train", "--held-out", folder / "other", *options)
    assert done.returncode == 0, done.stderr
    weights = folder / "run" / "weights.safetensors"
    report = seisbind("evaluate", "--data", folder / "other", "--weights", weights, "--json")
    assert report.returncode == 0, report.stderr
    parsed = json.loads(report.stdout)
    assert parsed["overall"]["pairs"] == 12 and set(parsed["families"]) == {"a", "b"}
    further = ("--held-out", folder / "other", "--config", folder / "recipe.json", "--out", folder / "further")
    onward = seisbind("train", "--data", folder / "train", "--start", weights, *further)
    assert onward.returncode == 0, onward.stderr
    started = load_weights(folder / "further" / "weights.safetensors").description.training["start"]
    assert started["fingerprint"] == load_weights(weights).fingerprint
    assert started["embeddings"] == load_weights(weights).fingerprint.embeddings and started["config"]["steps"] > 0
    again = seisbind("train", "--data", folder / "train", "--held-out", folder / "other", *options)
    assert again.returncode == 1 and "--resume" in again.stderr


@pytest.mark.long
def test_two_processes_train_one_set_of_weights(folder: Path, tmp_path: Path) -> None:
    """Under torchrun: half of the pairs and of each batch to each; one log, one file; then one process goes on."""
    recipe = tmp_path / "recipe.json"
    recipe.write_text((folder / "recipe.json").read_text().replace('"steps": 2', '"steps": 10'))
    out = tmp_path / "run"
    train = ("train", "--data", folder / "train", "--held-out", folder / "other", "--config", recipe, "--out", out)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "--", "seisbind"]
    done = subprocess.run([sys.executable, *start, *map(str, train)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("weights ") == 1 and "Training on 24 pairs" in done.stderr
    made = load_weights(out / "weights.safetensors").description.training
    assert (made["pairs"], made["config"]["parts"]) == (24, 2)
    assert len((out / "log.csv").read_text().splitlines()) == 2
    again = seisbind(*train, "--resume")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout  # nothing was left to do, and it says the same weights
    other = seisbind(*train, "--resume", "--parts", "4")
    assert other.returncode == 1 and "began with 2 parts" in other.stderr


def test_a_set_that_is_too_small_is_told_what_is_held_out(folder: Path, tmp_path: Path) -> None:
    velocity, _ = mixed(4, seed=6)
    gathers = np.random.default_rng(0).standard_normal((4, 5, 1000, 70)).astype(np.float32)
    for files in (1, 3):
        data = tmp_path / f"of {files}"
        for number in range(1, files + 1):
            write_pairs(data, "FlatVel-A", number=number, velocity=velocity[:, None], gathers=gathers)
        options = ("--config", folder / "recipe.json", "--out", tmp_path / "run")
        done = seisbind("train", "--data", data, *options)
        assert done.returncode == 1
        said = done.stderr.strip().splitlines()[-1]
        held_out = 0 if files == 1 else 4
        assert f"{held_out} held-out pairs are too few to calibrate on; at least 10 are needed" in said
        assert "a fifth of the files of each family is held out" in said and "--held-out" in said
        assert said.endswith("[invalid_config]")
    few = seisbind("train", "--data", data, "--held-out", tmp_path / "of 1", *options)
    assert (
        f"4 held-out pairs are too few to calibrate on; at least 10 are needed. They are all of {tmp_path}"
        in few.stderr
    )


def test_bad_arguments_are_one_sentence(folder: Path) -> None:
    for arguments, words in (
        (("train", "--data", folder / "nowhere", "--out", folder / "x"), "nowhere"),
        (("train", "--data", folder / "train", "--out", folder / "x", "--config", "nosuch"), "nosuch"),
        (("evaluate", "--data", folder / "other", "--weights", folder / "recipe.json"), "safetensors"),
    ):
        result = seisbind(*arguments)
        assert result.returncode == 1 and words in result.stderr, result.stderr
        assert "Traceback" not in result.stderr and len(result.stderr.strip().splitlines()) == 1
