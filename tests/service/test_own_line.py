"""A line of one's own by the commands: simulated at the survey's positions, trained on, measured, indexed, asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from seisbind.model.datasets.own_survey import load_survey, on_frame
from seisbind.model.datasets.pairs import FIELDS, load_pairs
from seisbind.model.encoders.weights_file import load_weights
from seisbind.model.errors import DatasetError, InvalidConfig, InvalidSurvey
from seisbind.model.frame import Frame, load_frame
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, generate
from seisbind.model.waves.wavefield import simulate
from seisbind.service.commands.main import app

ROOT = Path(__file__).parents[2]
TWO = ("--family", "Strata", "--family", "Basin")


def seisbind(*arguments: str | Path) -> str:
    """What the command prints, run in this process; its own errors are raised."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame, survey, recipe and 22 pairs of ten steps of another line: half as deep as wide, k = 1/3."""
    root = tmp_path_factory.mktemp("line")
    frame = {
        "name": "Land line", "depth_cells": 24, "x_cells": 48, "cell_m": 5, "velocity_m_s": [500, 1500],
        "receivers": 24, "receiver_spacing_m": 10, "shot_x_m": [0, 120, 230], "samples": 100, "dt_s": 0.004,
        "record_samples": 200, "record_dt_s": 0.002, "peak_hz": 10,
    }  # fmt: skip
    survey = {"shot_x_m": [101.2, 145, 180, 325], "receiver_x_m": [100.0 + 10 * i for i in range(20)], "dt_s": 0.002}
    recipe = {"steps": 2, "batch": 4, "warmup": 1, "encoders": {"width": 8, "velocity_width": 8, "hidden": 16}}
    for name, value in (("frame", frame), ("survey", survey), ("recipe", recipe)):
        (root / f"{name}.json").write_text(json.dumps(value))
    said = seisbind("simulate", root / "pairs", "--count", "11", *TWO, "--per-file", "11", "--processes", "1",
                    "--frame", root / "frame.json", "--survey", root / "survey.json",
                    "--engine", "openfwi")  # fmt: skip
    assert "22 pairs in 2 shards, the last 1 of them held out" in said
    return root


def test_end_to_end_by_the_commands(root: Path) -> None:
    frame = load_frame(root / "frame.json")
    pairs = load_pairs(root / "pairs")
    assert pairs.frame == frame and pairs.families == ("Strata", "Basin")
    assert not pairs.live_traces()[:, :, 20:].any() and pairs.live_traces()[:, :, :20].all()  # 190 m of 230
    assert {tuple(x) for x in pairs.places().tolist()} == {(0, 45, 225), (0, 80, 225)}
    seisbind(
        "train", "--data", root / "pairs", "--out", root / "run", "--config", root / "recipe.json", "--device", "cpu"
    )
    weights = root / "run" / "weights.safetensors"
    description = load_weights(weights).description
    assert description.frame == frame and description.training["pairs"] == 11
    assert description.calibration is not None and description.calibration.pairs == 11
    held_out = json.loads(seisbind("evaluate", "--data", root / "pairs", "--weights", weights, "--json"))
    whole = json.loads(seisbind("evaluate", "--data", root / "pairs", "--weights", weights, "--json", "--split", "all"))
    assert (held_out["overall"]["pairs"], whole["overall"]["pairs"]) == (11, 22)
    seisbind("gallery", "build", root / "gallery", "--count", "12", "--family", "broad", "--weights", weights)
    info = json.loads(seisbind("gallery", "info", root / "gallery", "--json"))
    assert set(info["families"]) == set(BROAD_FAMILIES) and Frame.from_dict(info["frame"]) == frame

    survey = on_frame(load_survey(root / "survey.json", depth_m=frame.cell_m), frame).survey
    (model,) = generate("Diapir", 1, np.random.default_rng(5), frame=frame)
    np.save(root / "record.npy", simulate(model, frame=frame, survey=survey)[0])
    positions = [",".join(map(str, x)) for x in (survey.shot_x_m, survey.receiver_x_m)]
    (answer,) = json.loads(
        seisbind("retrieve", root / "record.npy", "--gallery", root / "gallery", "--weights", weights, "--json",
                 "--shot-x-m", positions[0], "--receiver-x-m", positions[1], "--dt-s", "0.002")
    ).values()  # fmt: skip
    (result,) = answer["results"]
    assert len(result["matches"]) == 5 and 500 < result["physics"]["mean_velocity"]["value"] < 1500
    assert "dead_traces" in {each["code"] for each in result["warnings"]}


def test_the_same_command_goes_on_and_another_is_refused(root: Path) -> None:
    shards = sorted((root / "pairs").glob("pairs-*"))
    before = load_pairs(root / "pairs")
    shards[1].unlink()
    with pytest.raises(DatasetError, match=r"1 of the 2 shards of .* are missing"):
        seisbind("train", "--data", root / "pairs", "--out", root / "x", "--config", root / "recipe.json")
    same = ("simulate", root / "pairs", "--count", "11", *TWO, "--per-file", "11", "--processes", "1",
            "--frame", root / "frame.json", "--engine", "openfwi")  # fmt: skip
    with pytest.raises(DatasetError, match="survey"):
        seisbind(*same, "--acquisitions", "any-line")
    seisbind(*same, "--survey", root / "survey.json", "--acquisitions", "any-line")  # as the survey alone means
    again = load_pairs(root / "pairs")
    assert all(torch.equal(getattr(again, name), getattr(before, name)) for name in FIELDS)
    with pytest.raises(DatasetError, match="holds shards; use a new directory"):
        seisbind(*same)


def test_what_does_not_go_together_is_refused(root: Path, tmp_path: Path) -> None:
    simulation = ("simulate", tmp_path / "x", "--count", "1", "--frame", root / "frame.json")
    done = CliRunner().invoke(app, [*map(str, simulation), "--acquisitions", "anything"])
    assert done.exit_code == 2 and "any-line" in done.output
    with pytest.raises(InvalidConfig, match="runs on the CPU, not on 'cuda'"):
        seisbind(*simulation, "--acquisitions", "any-line", "--engine", "openfwi", "--device", "cuda")
    with pytest.raises(InvalidSurvey, match=r"190 m long; at least 340 m of the canonical 690 m.*OpenFWI"):
        seisbind("simulate", tmp_path / "x", "--count", "1", "--survey", root / "survey.json")
    with pytest.raises(DatasetError, match=r"(?s)another frame.*Land line.*OpenFWI"):
        seisbind("evaluate", "--data", root / "pairs")
    assert not (tmp_path / "x").exists()


def test_the_frames_of_the_benchmarks_are_sound() -> None:
    """Sampled well enough for their slowest ground, and on cells."""
    for name, cells in (("land_line", 4.5), ("kimberlina", 6.8)):
        frame = load_frame(ROOT / "benchmarks" / "frames" / f"{name}.json")
        wavelength_m = frame.velocity_m_s[0] / (2.2 * frame.peak_hz)
        assert round(wavelength_m / frame.cell_m, 1) == cells >= 4
        assert on_frame(frame.survey, frame).notes == ()
    placed = on_frame(load_survey(ROOT / "benchmarks" / "frames" / "kimberlina_survey.json", depth_m=10), frame)
    assert placed.notes == () and (len(placed.survey.shot_x_m), len(placed.survey.receiver_x_m)) == (9, 101)
    assert set(FAMILIES).isdisjoint(BROAD_FAMILIES)
