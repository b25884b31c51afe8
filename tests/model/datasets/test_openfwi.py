"""Round trips through the OpenFWI layouts, and every way in which a file can be wrong."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.datasets import openfwi
from seisbind.model.errors import DatasetError
from seisbind.model.frame import OPENFWI_FRAME

Float32 = NDArray[np.float32]


def sample(count: int, start: int = 0) -> tuple[Float32, Float32]:
    """Pairs that can be told apart: sample k holds start + k everywhere, +2000 in the velocity."""
    number = np.arange(start, start + count, dtype=np.float32)
    gathers = np.broadcast_to(number[:, None, None, None], (count, *OPENFWI_FRAME.gather_shape))
    velocity = np.broadcast_to(2000 + number[:, None, None, None], (count, *openfwi.channel_shape(OPENFWI_FRAME)))
    return np.ascontiguousarray(velocity), np.ascontiguousarray(gathers)


def save(folder: Path, names: tuple[str, str], count: int = 1, start: int = 0) -> None:
    """A pair written by numpy alone: ``names`` are of gathers and velocity, relative to ``folder``."""
    for name, array in zip(names, reversed(sample(count, start)), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array)


def test_round_trip(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    velocity = rng.uniform(1500, 4500, (3, 70, 70)).astype(np.float32)
    gathers = rng.standard_normal((3, 5, 1000, 70)).astype(np.float32)
    openfwi.write_pairs(tmp_path, "FlatVel-A", number=0, velocity=velocity[:2], gathers=gathers[:2])
    openfwi.write_pairs(tmp_path, "FlatVel-A", number=1, velocity=velocity[2:, None], gathers=gathers[2:])
    dataset = openfwi.Dataset(openfwi.find_pairs(tmp_path))
    assert len(dataset) == 3 and list(dataset.families) == ["FlatVel-A"] * 3
    order = [2, 0, 1, 0]
    np.testing.assert_array_equal(dataset.velocity(order), velocity[order])
    np.testing.assert_array_equal(dataset.gathers(np.array(order)), gathers[order])
    assert dataset.velocity(order).dtype == dataset.gathers(order).dtype == np.float32
    assert dataset.gathers([]).shape == (0, 5, 1000, 70) and dataset.velocity([]).shape == (0, 70, 70)


def test_numpy_reads_what_is_written(tmp_path: Path) -> None:
    velocity, gathers = sample(2)
    openfwi.write_pairs(tmp_path, "Style-A", number=7, velocity=velocity, gathers=gathers)
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {"Style-A/data/data7.npy", "Style-A/model/model7.npy"}
    np.testing.assert_array_equal(np.load(tmp_path / "Style-A/data/data7.npy", allow_pickle=False), gathers)
    np.testing.assert_array_equal(np.load(tmp_path / "Style-A/model/model7.npy", allow_pickle=False), velocity)


@pytest.mark.parametrize(
    "names",
    [
        ("data/data1.npy", "model/model1.npy"),
        ("data1.npy", "model1.npy"),
        ("seis2_1_0.npy", "vel2_1_0.npy"),
        ("data/seis2_1_0.npy", "model/vel2_1_0.npy"),
    ],
)
@pytest.mark.parametrize("place", ["FlatFault_A", "train_samples/FlatFault_A", "FlatFault-A"])
def test_layouts(tmp_path: Path, names: tuple[str, str], place: str) -> None:
    save(tmp_path / place, names, count=2)
    for directory in (tmp_path, tmp_path / place):
        (pair,) = openfwi.find_pairs(directory)
        assert (pair.family, pair.count) == ("FlatFault-A", 2)
        assert pair.gathers == tmp_path / place / names[0] and pair.velocity == tmp_path / place / names[1]


@pytest.mark.parametrize(
    ("folder", "family"),
    [("FlatVel_A", "FlatVel-A"), ("Style-B", "Style-B"), ("CurveFaultB", "CurveFault-B"), ("Salt", "Salt")],
)
def test_family_name(folder: str, family: str) -> None:
    assert openfwi.family_name(folder) == family


def test_files_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(tmp_path / "FlatVel_B", (f"data{number}.npy", f"model{number}.npy"), start=number)
    save(tmp_path / "CurveVel_A", ("data5.npy", "model5.npy"), start=99)
    dataset = openfwi.Dataset(openfwi.find_pairs(tmp_path))
    assert dataset.velocity(range(4))[:, 0, 0].tolist() == [2099, 2001, 2002, 2010]
    assert dataset.gathers([3, 0, 2, 2])[:, 0, 0, 0].tolist() == [10, 99, 2, 2]
    assert dataset.families.tolist() == ["CurveVel-A"] + ["FlatVel-B"] * 3


@pytest.mark.parametrize(
    ("family", "names", "train", "test"),
    [
        ("FlatVel_A", "data{}.npy model{}.npy", (1, 48), (49, 60)),
        ("Style_B", "data{}.npy model{}.npy", (48, 49, 120), (121, 134)),
        ("CurveFault_B", "seis6_1_{}.npy vel6_1_{}.npy", (0, 31), (32, 35)),
        ("FlatVel_B", "data{}.npy model{}.npy", (1,), (2,)),  # Kaggle: two files a family
        ("Salt", "data{}.npy model{}.npy", tuple(range(8)), (8, 9)),
        ("CurveVel_A", "data{}.npy model{}.npy", (1,), ()),
    ],
)
def test_split(tmp_path: Path, family: str, names: str, train: tuple[int, ...], test: tuple[int, ...]) -> None:
    for number in train + test:
        gathers, velocity = names.format(number, number).split()
        save(tmp_path / family, (gathers, velocity))

    def numbers(split: openfwi.Split) -> list[int]:
        found = openfwi.find_pairs(tmp_path, split=split)
        return [int(re.findall(r"\d+", p.gathers.stem)[-1]) for p in found]

    assert numbers("train") == list(train) and numbers("test") == list(test)
    assert numbers("all") == list(train + test)


def test_a_copy_maps_its_files_anew(tmp_path: Path) -> None:
    save(tmp_path, ("data1.npy", "model1.npy"), count=2)
    dataset = openfwi.Dataset(openfwi.find_pairs(tmp_path))
    dataset.gathers([0])
    assert dataset.__reduce__()[1] == (dataset.pairs,)  # all that goes to a worker process
    np.testing.assert_array_equal(copy.copy(dataset).gathers([1]), dataset.gathers([1]))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        openfwi.writing_pair(tmp_path, "Salt", number=0, count=1) as arrays,
    ):
        arrays.gathers[:] = 1
        assert list(tmp_path.rglob("*.npy")) == []
        raise KeyboardInterrupt
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_written_numbers(tmp_path: Path) -> None:
    assert openfwi.written_numbers(tmp_path, "Salt") == ()
    for number in (10, 0, 3):
        save(tmp_path / "Salt", (f"data/data{number}.npy", f"model/model{number}.npy"))
    (tmp_path / "Salt/model/model3.npy").unlink()  # stopped between the two files
    (tmp_path / "Salt/data/data4.npy.partial").touch()
    assert openfwi.written_numbers(tmp_path, "Salt") == (0, 10)


def test_a_replaced_file_is_noticed(tmp_path: Path) -> None:
    save(tmp_path, ("data1.npy", "model1.npy"), count=2)
    dataset = openfwi.Dataset(openfwi.find_pairs(tmp_path))
    save(tmp_path, ("data1.npy", "model1.npy"), count=1)
    with pytest.raises(DatasetError, match="has 1 samples; it had 2"):
        dataset.gathers([0])


def damaged(tmp_path: Path, damage: str) -> None:
    save(tmp_path, ("data1.npy", "model1.npy"), count=2)
    data, model = tmp_path / "data1.npy", tmp_path / "model1.npy"
    match damage:
        case "no velocity":
            model.unlink()
        case "no gathers":
            data.unlink()
        case "counts":
            np.save(model, sample(1)[0])
        case "object":
            np.save(model, np.array([{}, None]), allow_pickle=True)
        case "truncated":
            data.write_bytes(data.read_bytes()[:-1000])
        case "empty":
            data.write_bytes(b"")
        case "text":
            data.write_text("not an array")
        case "float64":
            np.save(model, sample(2)[0].astype(np.float64))
        case "shape":
            np.save(model, sample(2)[0][:, 0])
        case "scalar":
            np.save(model, np.float32(1))
        case "archive":
            with data.open("wb") as file:
                np.savez(file, a=np.zeros(1))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("no velocity", r"data1\.npy has no twin model1\.npy"),
        ("no gathers", r"model1\.npy has no gathers beside it \(1 such"),
        ("counts", r"data1\.npy has 2 samples and .*model1\.npy has 1"),
        ("object", r"model1\.npy cannot be read"),
        ("truncated", r"data1\.npy cannot be read"),
        ("empty", r"data1\.npy cannot be read"),
        ("text", r"data1\.npy cannot be read"),
        ("float64", r"model1\.npy holds float64 \(2, 1, 70, 70\); expected float32 \(n, 1, 70, 70\)"),
        ("shape", r"model1\.npy holds float32 \(2, 70, 70\)"),
        ("scalar", r"model1\.npy holds float32 \(\)"),
        ("archive", r"data1\.npy holds an archive"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: str, sentence: str) -> None:
    damaged(tmp_path, damage)
    with pytest.raises(DatasetError, match=sentence):
        openfwi.find_pairs(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no data"):
        openfwi.find_pairs(tmp_path)
    with pytest.raises(DatasetError, match="not a directory"):
        openfwi.find_pairs(tmp_path / "absent")


@pytest.mark.parametrize("indices", [[2], [-1], [0.5], [[0]]])
def test_samples_outside_the_set(tmp_path: Path, indices: list[object]) -> None:
    save(tmp_path, ("data1.npy", "model1.npy"), count=2)
    dataset = openfwi.Dataset(openfwi.find_pairs(tmp_path))
    with pytest.raises(DatasetError, match="asked for"):
        dataset.velocity(indices)


@pytest.mark.parametrize(
    ("velocity", "gathers", "sentence"),
    [
        (np.zeros((2, 70, 70)), np.zeros((1, 5, 1000, 70)), "got"),
        (np.zeros((1, 70, 71)), np.zeros((1, 5, 1000, 70)), "got"),
        (np.zeros((0, 70, 70)), np.zeros((0, 5, 1000, 70)), "count at 1"),
        (np.zeros((1, 70, 70), dtype=object), np.zeros((1, 5, 1000, 70)), "real numbers"),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, velocity: NDArray[np.float64], gathers: NDArray[np.float64], sentence: str
) -> None:
    with pytest.raises(DatasetError, match=sentence):
        openfwi.write_pairs(tmp_path, "Salt", number=0, velocity=velocity, gathers=gathers)
    assert list(tmp_path.rglob("*.npy")) == []


@pytest.mark.parametrize("family", ["../elsewhere", "", "a/b"])
def test_a_family_is_a_plain_name(tmp_path: Path, family: str) -> None:
    velocity, gathers = sample(1)
    with pytest.raises(DatasetError, match="letters, digits"):
        openfwi.write_pairs(tmp_path, family, number=0, velocity=velocity, gathers=gathers)
