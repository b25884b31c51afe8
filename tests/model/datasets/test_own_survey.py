"""A survey of one's own on another frame: where its records are made, what its pairs hold, which shards are refused."""

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from seisbind.model.datasets.acquisition import (
    ANY_LINE,
    EXACT,
    AcquisitionConfig,
    draw,
    record,
    simulate_pairs,
)
from seisbind.model.datasets.own_survey import drawn_shots, load_survey, on_frame
from seisbind.model.datasets.pairs import FIELDS, PairSet, held_out_shards, load_pairs, save_pairs, share_held_out
from seisbind.model.errors import DatasetError, InvalidConfig, InvalidSurvey
from seisbind.model.frame import OPENFWI_FRAME, Frame, Survey
from seisbind.model.ground.families import BROAD_FAMILIES, FAMILIES, draw_wide, expanded, generate
from seisbind.model.training.augment import AugmentConfig, Batch, augment, augmented, whole_batch
from seisbind.model.waves.wavefield import Boundary, simulate, stable_boundary

GAP = slice(8, 14)  # receivers that the survey lacks: 70 m, more than is interpolated


@pytest.fixture(scope="module")
def line() -> Frame:
    """Twice as wide as deep, recorded in steps that the solver has to halve."""
    return Frame(
        depth_cells=24,
        x_cells=48,
        cell_m=5.0,
        velocity_m_s=(500.0, 1500.0),
        receivers=24,
        receiver_spacing_m=10.0,
        shot_x_m=(0.0, 120.0, 230.0),
        samples=100,
        dt_s=0.004,
        record_samples=200,
        record_dt_s=0.002,
        peak_hz=10.0,
        name="Land line",
    )


@pytest.fixture(scope="module")
def survey(line: Frame) -> Survey:
    """Its receivers but for a gap, and two shots."""
    x = np.delete(np.arange(24) * 10.0, GAP)
    return Survey((10.0, 200.0), tuple(x.tolist()), 0.002, 12.0, 5.0, 5.0)


def written(path: Path, **change: object) -> Path:
    fields = {"shot_x_m": [100.0, 3], "receiver_x_m": [i * 10 for i in range(24)], "dt_s": 0.002} | change
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))
    return path


def test_positions_are_moved_to_cells_and_it_is_said(line: Frame, tmp_path: Path) -> None:
    moved = [1000.4 + 10 * i for i in range(24)]
    path = written(tmp_path / "s.json", shot_x_m=[1121.9, 1000.4, 1400], receiver_x_m=moved, receiver_depth_m=0.3)
    placed = on_frame(load_survey(path, depth_m=line.cell_m), line)
    assert placed.survey.shot_x_m == (0, 120) and placed.survey.receiver_x_m == line.survey.receiver_x_m
    assert (placed.survey.source_depth_m, placed.survey.receiver_depth_m) == (5, 5)
    said = " ".join(placed.notes)
    assert "1 of 3 shots lie off the line" in said and "moved to cells of 5 m, by up to 1.5 m" in said
    assert "receiver_depth_m of 0.3 m is 5 m" in said
    dense = on_frame(replace(placed.survey, receiver_x_m=tuple(2.0 * i for i in range(116))), line)
    assert "116 receivers fall on 47 cells of 5 m" in " ".join(dense.notes) and len(dense.survey.receiver_x_m) == 47
    assert on_frame(line.survey, line).notes == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"receiver_x_m": [i * 10 for i in range(40)]}, r"span 390 m; the frame's line has 230 m"),
        ({"receiver_x_m": [i * 10 for i in range(8)]}, r"70 m long; at least 110 m of the canonical 230 m.*Land line"),
        ({"shot_x_m": [900, 800]}, r"shots at 800 to 900 m from the first receiver, usable are -20 to 250 m"),
        ({"dt_s": 0.005}, r"sampled every 5 ms and the encoders every 4 ms"),
        ({"peak_hz": 40}, r"40 Hz; weights of the frame are trained on 5.33333 to 18.6667 Hz"),
        ({"receiver_depth_m": 200}, r"'receiver_depth_m' is 200; the frame's models reach 5 to 115 m"),
        ({"dt_s": 4}, r"4 s is outside 0.0001-0.008 s"),
        ({"receiver_x_m": [3, 1]}, r"Receiver positions must increase"),
        ({"dt_s": None}, r"missing or unknown: dt_s"),
        ({"depth": 3}, r"missing or unknown: depth"),
        ({"shot_x_m": ["a"]}, r"'shot_x_m' is \['a'\]; it should be of numbers"),
        ({"dt_s": True}, r"'dt_s' is True; it should be of numbers"),
        ({"shot_x_m": []}, r"at least one shot"),
    ],
)
def test_a_survey_that_is_not_on_the_frame_is_refused_with_numbers(
    change: dict[str, object], words: str, line: Frame, tmp_path: Path
) -> None:
    with pytest.raises((InvalidSurvey, InvalidConfig), match=words):
        on_frame(load_survey(written(tmp_path / "s.json", **change), depth_m=5.0), line)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for text, words in (("{", "not JSON"), ("[]", "got list")):
        (tmp_path / "s.json").write_text(text)
        with pytest.raises(InvalidConfig, match=words):
            load_survey(tmp_path / "s.json", depth_m=5.0)
    with pytest.raises(InvalidConfig, match="cannot be read"):
        load_survey(tmp_path / "absent.json", depth_m=5.0)


def test_of_many_shots_each_pair_has_one_of_each_part_of_the_line(line: Frame, survey: Survey) -> None:
    many = replace(survey, shot_x_m=tuple(10.0 * i for i in range(24)))
    rng = np.random.default_rng(0)
    drawn = np.array([drawn_shots(many, 3, rng) for _ in range(200)])
    assert (np.diff(drawn, axis=1) > 0).all()
    assert [sorted({*column}) == [10.0 * i for i in range(8 * k, 8 * k + 8)] for k, column in enumerate(drawn.T)] == [
        True,
        True,
        True,
    ]
    assert drawn_shots(survey, 3, rng) == survey.shot_x_m
    taken = [draw(ANY_LINE, rng, frame=line, own_survey=many).survey for _ in range(60)]
    assert {each.receiver_x_m for each in taken} == {many.receiver_x_m}
    assert {len(each.shot_x_m) for each in taken} == {3} and len({each.shot_x_m for each in taken}) > 30
    assert {each.receiver_depth_m for each in taken} <= {5.0, 10.0, 15.0}  # not on a sea floor
    assert max(draw(replace(ANY_LINE, seabed=1.0), rng, frame=line).survey.receiver_depth_m for _ in range(99)) == 100


def test_a_record_is_that_of_the_line_where_there_are_receivers(line: Frame, survey: Survey) -> None:
    """And zero elsewhere; the step of the recording does not matter, for the solver takes a stable one."""
    (model,) = generate("CurveVel-A", 1, np.random.default_rng(1), frame=line)
    whole = draw(EXACT, np.random.default_rng(0), frame=line, own_survey=replace(line.survey, shot_x_m=(10.0, 200.0)))
    part = draw(EXACT, np.random.default_rng(0), frame=line, own_survey=replace(survey, peak_hz=None))
    assert whole.survey.dt_s == part.survey.dt_s == 0.001
    full, gapped = (record(model, each, frame=line)[0].float().numpy() for each in (whole, part))
    assert full.shape == gapped.shape == line.prepared_shape
    live = gapped.any(axis=1)
    assert not live[:, GAP].any() and not live[2].any()  # the gap, and the shot that the survey does not have
    assert live[:2].sum() == 2 * (24 - 6) and full[:2].any(axis=1).all()
    rows = np.nonzero(live)
    ours, theirs = gapped.transpose(0, 2, 1)[rows], full.transpose(0, 2, 1)[rows]
    np.testing.assert_allclose(
        ours / np.square(ours).mean() ** 0.5, theirs / np.square(theirs).mean() ** 0.5, atol=0.01
    )
    fine = replace(line, record_dt_s=0.001, record_samples=400)
    np.testing.assert_array_equal(
        record(model, draw(EXACT, np.random.default_rng(0), frame=fine), frame=fine),
        record(model, draw(EXACT, np.random.default_rng(0), frame=line), frame=line),
    )


def test_no_sponge_that_is_drawn_is_unstable(line: Frame) -> None:
    """Nor are records of fast ground beside the narrowest and strongest, which grew without bound."""
    fast = np.full(line.velocity_shape, 1500, np.float32)
    acquisition = draw(EXACT, np.random.default_rng(0), frame=line)
    for cells, strength in ((20, 2.5), (20, 0.5), (56, 2.5)):
        boundary = Boundary(cells, strength)
        stable = stable_boundary(boundary, fast, acquisition.survey.dt_s, line.cell_m)
        assert stable.strength <= strength and (cells == 20 or stable.strength == strength)
        traces = record(fast, replace(acquisition, boundary=boundary), frame=line).float()
        late = traces[:, :, 80:].abs().max() / traces.abs().max()  # 0.4 s, and the farthest arrives after 0.25 s
        assert torch.isfinite(traces).all() and late < 0.2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        grown = simulate(
            np.full(line.velocity_shape, 1500, np.float32), frame=line, survey=replace(line.survey, dt_s=0.002),
            engine="openfwi", boundary=Boundary(20, 2.5), samples=400,
        )  # fmt: skip
    assert not np.isfinite(grown).all() or np.abs(grown[:, :, -1]).max() > 100 * np.abs(grown[:, :, 60]).max()


@pytest.mark.long
def test_pairs_of_a_survey_know_which_traces_live(line: Frame, survey: Survey, tmp_path: Path) -> None:
    families, config = ("FlatVel-A", "Strata"), replace(ANY_LINE, deepwave=0.0, beside=4)

    def make(name: str, processes: int) -> PairSet:
        simulate_pairs(
            tmp_path / name, 6, 5, families, config=config, frame=line, own_survey=survey, per_shard=3, hold_out=True,
            processes=processes,
        )  # fmt: skip
        return load_pairs(tmp_path / name)

    pairs = make("one", 1)
    again = make("two", 2)
    assert all(torch.equal(getattr(pairs, name), getattr(again, name)) for name in (*FIELDS, "shot_x_m"))
    recipe = json.loads((tmp_path / "one" / "recipe.json").read_text())
    assert recipe["survey"]["shot_x_m"] == [10, 200] and (recipe["per_shard"], recipe["test_shards"]) == (3, 1)
    with pytest.raises(DatasetError, match="survey"):
        simulate_pairs(tmp_path / "one", 6, 5, families, config=config, frame=line, per_shard=3, hold_out=True)
    assert pairs.places().tolist() == [[10, 200, 200]] * 6
    live = whole_batch(pairs).live
    assert not pairs.traces.permute(0, 1, 3, 2)[~live].any()
    expected = torch.ones(3, 24, dtype=torch.bool)
    expected[:, GAP], expected[2] = False, False
    assert (live == expected).all()
    assert (torch.from_numpy(augmented(pairs, None).live) == expected).all()  # as evaluation reads them
    lossy = AugmentConfig(mirror=0.0, dead=1.0, dead_share=1.0, shots=1.0)
    for seed in range(30):
        batch = augment(whole_batch(pairs), lossy, torch.Generator().manual_seed(seed))
        assert not (batch.live & ~expected).any() and batch.live.flatten(1).any(dim=1).all()
        assert not batch.traces[~batch.live[:, :, None, :].expand_as(batch.traces)].any()


def test_pairs_whose_traces_all_live_are_trained_on_as_before(tmp_path: Path) -> None:
    simulate_pairs(tmp_path, 2, 0, ("FlatVel-A",), config=AcquisitionConfig(deepwave=0.0), processes=1)
    pairs = load_pairs(tmp_path)
    batch = whole_batch(pairs)
    assert batch.live.all()
    ones = Batch(pairs.traces, torch.ones_like(batch.live), pairs.places(), pairs.velocity)
    config = AugmentConfig(dead=1.0, shots=1.0, sparse=0.5)
    for seed in range(10):
        ours, before = (augment(each, config, torch.Generator().manual_seed(seed)) for each in (batch, ones))
        assert torch.equal(ours.traces, before.traces) and torch.equal(ours.live, before.live)


def test_the_last_fifth_of_the_shards_is_the_test_part(pairs: PairSet, tmp_path: Path) -> None:
    assert [share_held_out(n) for n in (1, 2, 5, 9, 10, 23)] == [0, 1, 1, 1, 2, 4]
    for number in range(3):
        save_pairs(tmp_path / "made", pairs.select(range(10 * number, 10 * number + 10)))
        (tmp_path / "made" / "pairs-00000.safetensors").rename(tmp_path / f"{number}")
    for number in range(3):
        (tmp_path / f"{number}").rename(tmp_path / "made" / f"pairs-{number:05d}.safetensors")
    assert held_out_shards(tmp_path / "made") is None
    with pytest.raises(DatasetError, match="without a test part"):
        load_pairs(tmp_path / "made", split="test")
    recipe = tmp_path / "made" / "recipe.json"
    recipe.write_text(json.dumps({"count": 30, "per_shard": 10, "test_shards": 1}))
    parts = load_pairs(tmp_path / "made", split="train"), load_pairs(tmp_path / "made", split="test")
    assert torch.equal(torch.cat([each.velocity for each in parts]), load_pairs(tmp_path / "made").velocity)
    assert [len(each) for each in parts] == [20, 10]
    (tmp_path / "made" / "pairs-00001.safetensors").unlink()
    with pytest.raises(DatasetError, match=r"1 of the 3 shards of .* are missing; run its simulation again"):
        load_pairs(tmp_path / "made", split="test")
    for text in ("{", "[]", '{"test_shards": "1"}'):
        recipe.write_text(text)
        with pytest.raises(DatasetError, match=r"recipe\.json cannot be read"):
            load_pairs(tmp_path / "made", split="test")


def test_hostile_shards_are_refused_by_name(pairs: PairSet, tmp_path: Path) -> None:
    save_pairs(tmp_path, pairs.select(range(4)))
    shard = tmp_path / "pairs-00000.safetensors"
    sound, metadata = load_file(shard), {"families": "\n".join(pairs.families)}

    def refused(words: str, **change: torch.Tensor) -> None:
        save_file(sound | change, shard, metadata)
        with pytest.raises(DatasetError, match=words) as caught:
            load_pairs(tmp_path)
        assert "pairs-00000" in str(caught.value)

    refused(r"traces of F32 .*; pairs of OpenFWI have F16", traces=sound["traces"].float())
    refused(r"velocity of F32 \[4, 35, 140\]; .* F32 \[4, 70, 70\]", velocity=sound["velocity"].reshape(4, 35, 140))
    refused(r"descriptors of F32 \[3, 13\]", descriptors=sound["descriptors"][:3].contiguous())
    refused(r"shot_x_m of F32 \[4, 4\]", shot_x_m=torch.zeros(4, 4))
    refused(r"live of F32 \[4, 5, 70\]; .* BOOL", live=torch.ones(4, 5, 70))
    refused(r"families 0 to 10, and lists 10", family=torch.tensor([0, 1, 2, 10]))
    refused(r"families -1 to 3", family=torch.tensor([-1, 1, 2, 3]))
    endless = sound["velocity"].clone()
    endless[0, 0, 0] = torch.nan
    refused(r"1 of 19600 numbers of velocity that are NaN", velocity=endless)
    save_file({name: t for name, t in sound.items() if name != "family"}, shard, metadata)
    with pytest.raises(DatasetError, match="family"):
        load_pairs(tmp_path)
    save_file(sound, tmp_path / "elsewhere", metadata)
    shard.unlink()
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="is a link or no regular file"):
        load_pairs(tmp_path)
    shard.unlink()
    os.mkfifo(shard)  # which would be waited for
    with pytest.raises(DatasetError, match="is a link or no regular file"):
        load_pairs(tmp_path)


def test_what_cannot_be_simulated_is_refused_before_anything_is_written(line: Frame, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    off_cells = replace(line, receiver_spacing_m=9.0, shot_x_m=(0.0, 200.0))
    with pytest.raises(InvalidSurvey, match="off the cells of 5 m"):
        simulate_pairs(out, 2, 0, ("FlatVel-A",), frame=off_cells)
    with pytest.raises(InvalidConfig, match=r"No family 'Nowhere'.*groups of them are openfwi, extra, broad"):
        simulate_pairs(out, 2, 0, ("Nowhere",), frame=line)
    with pytest.raises(InvalidConfig, match="0 pairs"):
        simulate_pairs(out, 0, 0, ("FlatVel-A",), frame=line)
    if not torch.cuda.is_available():
        with pytest.raises(InvalidConfig, match="no CUDA device"):
            simulate_pairs(out, 2, 0, ("FlatVel-A",), frame=line, config=AcquisitionConfig(deepwave=1.0), device="cuda")
    assert not out.exists()
    out.mkdir()
    (out / "seisbind.json").write_text("{}")
    with pytest.raises(DatasetError, match="use a new directory"):
        simulate_pairs(out, 2, 0, ("FlatVel-A",), frame=line)


@pytest.mark.parametrize("shape", [(24, 48), (142, 402), (96, 16)])
def test_broad_ground_of_frames_that_are_not_square(shape: tuple[int, int], line: Frame) -> None:
    frame = replace(line, depth_cells=shape[0], x_cells=shape[1])
    for family in BROAD_FAMILIES:
        (model,) = generate(family, 1, np.random.default_rng(2), frame=frame)
        assert model.shape == shape and model.dtype == np.float32
        assert 500 <= model.min() < model.max() <= 1500
        (wide,) = draw_wide(family, 1, np.random.default_rng(2), beside=16, frame=frame)
        assert wide.shape == (shape[0], shape[1] + 32)
    assert expanded(["broad", "FlatVel-A"]) == (*BROAD_FAMILIES, "FlatVel-A")
    assert expanded(["openfwi"]) == FAMILIES and OPENFWI_FRAME.velocity_shape == (70, 70)
