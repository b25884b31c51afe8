"""The frame: its checks, what is stored of it, what is refused by name, and that its numbers stand nowhere else."""

from __future__ import annotations

import ast
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seisbind.model.confidence.novelty import measure, thresholds_of
from seisbind.model.datasets.acquisition import AcquisitionConfig, simulate_pairs
from seisbind.model.datasets.openfwi import Dataset, find_pairs
from seisbind.model.datasets.pairs import PairSet, load_pairs, prepare_files, save_pairs
from seisbind.model.datasets.simulation import simulate_dataset
from seisbind.model.encoders.config import EncoderConfig
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.networks import Encoders
from seisbind.model.encoders.weights_file import SHIPPED, Description, Weights, load_weights, save_weights
from seisbind.model.errors import DatasetError, InvalidConfig, InvalidGather, InvalidVelocityModel
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey, load_frame
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import EXTRA_FAMILIES, FAMILIES, generate, mixed
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.model.training.augment import AugmentConfig, augment, whole_batch
from seisbind.model.training.evaluation import evaluate
from seisbind.model.training.recipe import TrainConfig
from seisbind.model.training.trainer import train
from seisbind.model.waves.wavefield import simulate

ROOT = Path(__file__).parents[2]
SMALL = EncoderConfig(width=8, velocity_width=8, hidden=16)


def numbers() -> dict[str, Any]:
    return OPENFWI_FRAME.to_dict()


@pytest.fixture(scope="module")
def pairs(other_frame: Frame) -> PairSet:
    """12 pairs of another frame, simulated."""
    velocity, family = mixed(12, 5, ("FlatVel-A", "CurveVel-A"), frame=other_frame)
    prepared = prepare(simulate(velocity, frame=other_frame), frame=other_frame)
    return PairSet(
        traces=torch.from_numpy(prepared.traces).half(),
        velocity=torch.from_numpy(velocity),
        descriptors=torch.from_numpy(describe(velocity, cell_m=other_frame.cell_m)),
        family=torch.from_numpy((family == "FlatVel-A").astype(np.int64)),
        families=("CurveVel-A", "FlatVel-A"),
        frame=other_frame,
    )


def test_openfwis_frame_is_openfwis_line() -> None:
    assert (
        OPENFWI
        == OPENFWI_FRAME.survey
        == Survey(
            tuple(float(10 * i) for i in (0, 17, 34, 52, 69)), tuple(float(10 * i) for i in range(70)), 0.001, 15.0
        )
    )
    f = OPENFWI_FRAME
    assert (f.gather_shape, f.prepared_shape, f.velocity_shape) == ((5, 1000, 70), (5, 250, 70), (70, 70))
    assert (f.map_shape, f.line_m, f.duration_s) == ((35, 35), 690, 1)
    assert (f.middle_m_s, f.spread_m_s, f.trained_peak_hz) == (3000, 1000, (8, 28))
    assert (f.on_node_m, f.max_gap_m, f.shot_margin_m, f.min_line_m, f.min_record_s) == (1, 30, 20, 340, 0.6)
    bounds = thresholds_of(f)
    assert (bounds.fastest_m_s, bounds.slowest_m_s, bounds.high_hz) == (4600, 1300, 62.5)
    assert (bounds.band_hz, bounds.late_s) == ((4, 60), 0.2)


def test_it_is_written_and_read(tmp_path: Path, other_frame: Frame) -> None:
    for frame in (OPENFWI_FRAME, other_frame):
        (tmp_path / "frame.json").write_text(json.dumps(frame.to_dict()))
        read = load_frame(tmp_path / "frame.json")
        assert read == frame and read.name == frame.name and read.survey == frame.survey and hash(read) == hash(frame)
        assert copy.deepcopy(frame) == frame  # by the way that worker processes get it
    assert other_frame != OPENFWI_FRAME and replace(OPENFWI_FRAME, name="mine") == OPENFWI_FRAME


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x_cells": 71}, "'x_cells' is 71"),
        ({"depth_cells": 4}, "'depth_cells' is 4"),
        ({"receivers": 70.0}, "'receivers' is 70.0"),
        ({"samples": 251}, "multiple of 5"),
        ({"cell_m": 0}, "'cell_m' is 0"),
        ({"cell_m": "wide"}, "'cell_m' is 'wide'"),
        ({"dt_s": 4}, "0.008"),
        ({"peak_hz": float("nan")}, "'peak_hz' is nan"),
        ({"peak_hz": 70}, "62.5 Hz"),
        ({"shot_x_m": [0]}, "2 to 64"),
        ({"shot_x_m": [0, 691]}, "0 to 690 m"),
        ({"shot_x_m": [20, 10]}, "increasing"),
        ({"velocity_m_s": [1500, 45000]}, "9000"),
        ({"velocity_m_s": [4500, 1500]}, "slowest"),
        ({"record_samples": 900}, "900 samples of 1 ms"),
        ({"name": "a\nb"}, "printable"),
        ({"depth": 70}, "unknown: depth"),
    ],
)
def test_numbers_that_are_no_frame_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidConfig, match=words):
        Frame.from_dict(numbers() | change)


def test_files_that_are_no_frame_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "frame.json"
    with pytest.raises(InvalidConfig, match=r"frame\.json cannot be read"):
        load_frame(path)
    for text, words in (("{", "not JSON"), ("[]", "object"), ("{}", "missing"), (json.dumps({"x": 1}), "x_cells")):
        path.write_text(text)
        with pytest.raises(InvalidConfig, match=rf"frame\.json.*{words}"):
            load_frame(path)


def test_the_shipped_weights_are_of_openfwis_frame_and_their_format_says_so(tmp_path: Path, other_frame: Frame) -> None:
    shipped = load_weights(SHIPPED)
    assert shipped.description.format == 4 and shipped.description.frame == OPENFWI_FRAME
    for frame in (OPENFWI_FRAME, other_frame):
        path = tmp_path / "weights.safetensors"
        save_weights(path, Encoders(SMALL, frame=frame), Description("test", SMALL, frame=frame))
        read = load_weights(path).description
        assert read.format == 4 and read.frame == frame and read.frame.name == frame.name
        assert (read.policy["spacing_m"], read.policy["samples"]) == (frame.receiver_spacing_m, frame.samples)
    with pytest.raises(InvalidConfig, match=r"OpenFWI \(70 x 70.* there, Short line \(60 x 48"):
        save_weights(path, Encoders(SMALL, frame=other_frame), Description("test", SMALL))


@pytest.mark.parametrize("family", FAMILIES + EXTRA_FAMILIES)
def test_each_family_in_another_frame(family: str, other_frame: Frame) -> None:
    maps = generate(family, 4, np.random.default_rng(0), frame=other_frame)
    own = generate(family, 4, np.random.default_rng(0))
    assert maps.shape == (4, 60, 48) and maps.min() >= 1200 and maps.max() <= 3600
    # the same ground: each cell's share of the velocity range is that of the nearest cell
    share = (maps[:, ::59, ::47] - 1200) / 2400
    np.testing.assert_allclose(share, (own[:, ::69, ::69] - 1500) / 3000, atol=1e-5)


def test_a_direct_wave_arrives_in_another_frame_when_it_should(other_frame: Frame) -> None:
    """Over constant ground the first break moves out at its velocity, in recordings and as prepared."""
    v = 2000.0
    gathers = simulate(np.full((1, *other_frame.velocity_shape), v, np.float32), frame=other_frame)
    assert gathers.shape[1:] == other_frame.gather_shape
    prepared = prepare(gathers, frame=other_frame)
    assert prepared.traces.shape[1:] == other_frame.prepared_shape and prepared.frame == other_frame
    assert prepared.live.all() and not any(prepared.notes)
    peaks = prepared.traces[0, 0].argmax(axis=0) * other_frame.dt_s
    moveout = (peaks[40] - peaks[10]) / (30 * other_frame.receiver_spacing_m)
    assert moveout == pytest.approx(1 / v, rel=0.05)


def test_what_is_measured_scales_with_the_frame(other_frame: Frame) -> None:
    ground = np.full((1, *other_frame.velocity_shape), 2000.0, np.float32)
    prepared = prepare(simulate(ground, frame=other_frame), frame=other_frame)
    values = measure(prepared)[0]
    assert np.isfinite(values).all() and values[7] == 3 and values[6] == 1  # three shots, all alive
    bounds = thresholds_of(other_frame)
    assert bounds.band_hz[1] < 0.5 / other_frame.dt_s and bounds.late_s == pytest.approx(0.12)
    noise = np.random.default_rng(0).standard_normal(prepared.traces.shape).astype(np.float32)
    noisy = measure(replace(prepared, traces=prepared.traces + 0.3 * prepared.traces.std() * noise))[0]
    assert noisy[0] > values[0] + 10  # before the first arrivals


def test_disturbances_keep_the_frame(pairs: PairSet) -> None:
    config = AugmentConfig(1.0, 1.0, shift=1.0, phase=1.0, tilt=1.0, trace_gain=1.0, dead=1.0, shots=1.0, sparse=1.0)
    batch = augment(whole_batch(pairs), config, torch.Generator().manual_seed(0))
    assert batch.frame == pairs.frame and batch.traces.shape == pairs.traces.shape and batch.traces.isfinite().all()
    assert batch.shot_x_m[0].tolist() == [0, 120, 235]  # 0, 115 and 235 m of 235, mirrored


@pytest.mark.parametrize("kind", ["seisbind", "paper"])
def test_training_resumes_and_evaluates_in_another_frame(pairs: PairSet, kind: str, tmp_path: Path) -> None:
    form = EncoderConfig(kind="paper") if kind == "paper" else SMALL
    config = TrainConfig(encoders=form, steps=3, batch=4, warmup=1)
    train(pairs, config, tmp_path, device="cpu", stop_at=2)
    encoders = train(pairs, config, tmp_path, device="cpu", resume=True)
    assert encoders.frame == pairs.frame
    description = Description("other", encoders.config, frame=pairs.frame)
    embedder = Embedder(Weights(encoders, description, "f" * 16), device="cpu")
    report = evaluate(embedder, pairs)
    assert report["overall"]["pairs"] == 12
    read = embedder.embed_gathers(prepare(simulate(pairs.velocity[:1].numpy(), frame=pairs.frame), frame=pairs.frame))
    if kind == "seisbind":
        assert read.velocity is not None and read.velocity.shape == (1, 30, 24)
        torch_only = Embedder(Weights(encoders, description, "f" * 16), device="cpu", runtime="torch")
        other = torch_only.embed_gathers(
            prepare(simulate(pairs.velocity[:1].numpy(), frame=pairs.frame), frame=pairs.frame)
        )
        np.testing.assert_allclose(read.embedding, other.embedding, atol=1e-5)


def both(here: Frame, there: Frame) -> str:
    """A pattern: the sentence names both."""
    names = [rf"{frame.name} \({frame.depth_cells} x {frame.x_cells} cells" for frame in (here, there)]
    return rf"(?s){names[0]}.*{names[1]}|{names[1]}.*{names[0]}"


def test_pairs_say_their_frame_and_others_are_refused(pairs: PairSet, other_frame: Frame, tmp_path: Path) -> None:
    pattern = both(OPENFWI_FRAME, other_frame)
    save_pairs(tmp_path / "pairs", pairs)
    assert load_pairs(tmp_path / "pairs").frame == other_frame
    velocity, _ = mixed(4, 0)
    own = PairSet(
        torch.zeros(4, 5, 250, 70).half(),
        torch.from_numpy(velocity),
        torch.from_numpy(describe(velocity)),
        torch.zeros(4).long(),
        pairs.families,
    )
    save_pairs(tmp_path / "own", own)
    with pytest.raises(DatasetError, match=pattern):
        load_pairs(tmp_path / "pairs", before=[tmp_path / "own"])
    with pytest.raises(DatasetError, match="not of the frame OpenFWI"):
        replace(pairs, frame=OPENFWI_FRAME)
    config = TrainConfig(encoders=SMALL, steps=1, batch=4, warmup=1)
    with pytest.raises(InvalidConfig, match=pattern):
        train(pairs, config, tmp_path / "run", start=Encoders(SMALL), device="cpu")
    embedder = Embedder(Weights(Encoders(SMALL).eval(), Description("own", SMALL), "f" * 16), device="cpu")
    with pytest.raises(DatasetError, match=pattern):
        evaluate(embedder, pairs)
    with pytest.raises(InvalidGather, match=pattern):
        embedder.embed_gathers(prepare(simulate(pairs.velocity[:1].numpy(), frame=other_frame), frame=other_frame))
    with pytest.raises(InvalidVelocityModel, match="70 x 70 cells of 10 m; got 60 x 48"):
        embedder.embed_velocity(pairs.velocity.numpy())
    train(pairs, config, tmp_path / "run", device="cpu")
    with pytest.raises(InvalidConfig, match="another frame"):
        train(own, config, tmp_path / "run", device="cpu", resume=True)


def test_datasets_say_their_frame_and_others_are_refused(other_frame: Frame, tmp_path: Path) -> None:
    def make(out: Path, frame: Frame) -> None:
        simulate_dataset(
            out, families=["FlatVel-A"], count=2, seed=1, engine="openfwi", frame=frame, processes=1, per_file=2
        )

    make(tmp_path / "other", other_frame)
    dataset = Dataset(find_pairs(tmp_path / "other"))
    assert dataset.frame == other_frame and Dataset(find_pairs(tmp_path / "other" / "FlatVel-A")).frame == other_frame
    np.testing.assert_array_equal(
        dataset.gathers([1]), simulate(dataset.velocity([1]), engine="openfwi", frame=other_frame)
    )
    assert prepare_files(dataset).frame == other_frame
    with pytest.raises(DatasetError, match=both(OPENFWI_FRAME, other_frame)):
        make(tmp_path / "other", OPENFWI_FRAME)
    make(tmp_path / "other", replace(other_frame, name="renamed"))  # the same numbers: nothing is left to do
    make(tmp_path / "own", OPENFWI_FRAME)
    assert "frame" not in json.loads((tmp_path / "own" / "seisbind.json").read_text())
    with pytest.raises(DatasetError, match=both(OPENFWI_FRAME, other_frame)):
        Dataset(find_pairs(tmp_path / "own") + find_pairs(tmp_path / "other"))
    (tmp_path / "other" / "seisbind.json").write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        find_pairs(tmp_path / "other")


def test_random_acquisitions_of_another_frame(other_frame: Frame, tmp_path: Path) -> None:
    def make(frame: Frame) -> None:
        config = AcquisitionConfig(free_surface=0.0)
        simulate_pairs(tmp_path, 3, 0, ["FlatVel-A"], config=config, frame=frame, processes=1)

    make(other_frame)
    pairs = load_pairs(tmp_path)
    assert pairs.frame == other_frame and pairs.traces.shape == (3, *other_frame.prepared_shape)
    with pytest.raises(DatasetError, match="another recipe"):
        make(OPENFWI_FRAME)


FORBIDDEN_NAMES = {"CELL_M", "MODEL_CELLS", "MAP_CELLS", "GRID", "LINE_M", "GATHER_SHAPE", "VELOCITY_SHAPE", "PEAK_HZ"}
# OpenFWI's cells, spacing, samples, shots' ends and velocities, where they stand for the line and not for a limit
LINES_NUMBERS = {70, 250, 690, 340, 520, 170, 4500, 35}


def _numbers_of(tree: ast.AST) -> set[float]:
    return {
        each.value
        for each in ast.walk(tree)
        if isinstance(each, ast.Constant) and isinstance(each.value, int | float) and not isinstance(each.value, bool)
    }


def _named(statement: ast.stmt) -> list[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


def literals(source: str) -> list[str]:
    """What a module holds of OpenFWI's line by itself: numbers of it anywhere, and constants named for it."""
    tree = ast.parse(source)
    found = [f"{number:g}" for number in sorted(_numbers_of(tree) & LINES_NUMBERS)]
    for statement in tree.body:
        for name in _named(statement):
            its = name in FORBIDDEN_NAMES or name.startswith(("CANONICAL_", "OPENFWI_"))
            if its and _numbers_of(statement.value if isinstance(statement, ast.Assign | ast.AnnAssign) else statement):
                found.append(name)
    return found


# numbers that are not the line's: pairs in a shard, and velocities and depths that families are drawn from
UNRELATED = {
    "model/encoders/blocks.py": ["OPENFWI_RMS"],  # every shot of every frame is brought to it
    "model/datasets/pairs.py": ["250"],
    "model/ground/families.py": ["35", "250", "350", "4500"],
}


@pytest.mark.parametrize(
    "path",
    [p for package in ("model", "index", "service") for p in sorted((ROOT / package).glob("**/*.py"))],
    ids=lambda p: p.relative_to(ROOT).as_posix(),
)
def test_no_other_module_holds_the_lines_numbers(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    found = literals(path.read_text(encoding="utf-8"))
    if name == "model/frame.py":
        assert {"70", "250", "690"} <= set(found)
    else:
        assert [each for each in found if each not in UNRELATED.get(name, [])] == []


def test_a_literal_would_be_seen() -> None:
    assert literals("CELL_M = 10.0") == ["CELL_M"]
    assert literals("CANONICAL_DT_S: float = 0.004") == ["CANONICAL_DT_S"]
    assert literals("def f():\n    return np.empty((5, 250, 70))") == ["70", "250"]
    assert literals("GRID = OPENFWI_FRAME.x_cells") == []


def test_the_page_holds_none_either() -> None:
    page = (ROOT / "service" / "web" / "page.js").read_text(encoding="utf-8")
    for number in ("70", "690", "1500", "4500", "0.004"):
        assert f" {number} " not in page and f"{number};" not in page and f" {number}," not in page
