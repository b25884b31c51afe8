"""``seisbind bulk simulate``: the pairs of `seisbind simulate`, and pairs of velocity models that are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from parts import bulk, job_here, rows
from seisbind.model.datasets.openfwi import Dataset, find_pairs
from seisbind.model.datasets.simulation import simulate_dataset
from seisbind.model.ground.families import generate
from seisbind.model.waves.wavefield import simulate
from seisbind.service.bulk import executors

pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install -e '.[parquet]'")
FAMILIES = ("FlatVel-A", "Style-B")
HERE = ("--engine", "processes", "--workers", 1)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "in_processes", job_here)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.npy"))}


@pytest.mark.long
def test_drawn_pairs_are_those_of_simulate(tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    simulate_dataset(own, families=FAMILIES, count=2, seed=7, engine="openfwi", processes=1, per_file=1)
    words = ("simulate", "--family", FAMILIES[0], "--family", FAMILIES[1], "--count", 2, "--seed", 7)
    words = (*words, "--solver", "openfwi", "--per-file", 1, "--out", out, *HERE)
    done = bulk(*words)
    assert done.exit_code == 0, done.output
    assert "4 pairs simulated, 0 failed" in done.stderr
    assert contents(out) == contents(own)
    assert (out / "seisbind.json").read_bytes() == (own / "seisbind.json").read_bytes()
    found = rows(out)
    assert [(row["family"], row["number"], row["model"], row["row"]) for row in found] == [
        (family, number, number - 1, 0) for family in FAMILIES for number in (1, 2)
    ]
    velocity = Dataset(find_pairs(out)).velocity([0])
    assert (found[0]["min_velocity"], found[0]["max_velocity"]) == (velocity.min(), velocity.max())

    kept = out / FAMILIES[0] / "data" / "data1.npy"
    before = kept.stat().st_mtime_ns
    for name in ("000000-000000000-000000001.parquet", "000001-000000001-000000002.parquet"):
        (out / name).unlink()
    (out / FAMILIES[1] / "model" / "model2.npy").unlink()  # killed between the two files of a pair
    again = bulk(*words)
    assert again.exit_code == 0 and "2 of them by an earlier run" in again.stderr
    assert contents(out) == contents(own) and rows(out) == found and kept.stat().st_mtime_ns == before
    kept_all = simulate_dataset(out, families=FAMILIES, count=2, seed=7, engine="openfwi", processes=1, per_file=1)
    assert kept_all.kept == 4  # one dataset, whichever command goes on with it

    other = bulk(*words[:-6], "--per-file", 2, "--out", out, *HERE)
    assert other.exit_code == 2 and "other" in other.stderr, other.output


def test_models_of_files_become_pairs_beside_what_is_wrong_with_them(tmp_path: Path) -> None:
    models = generate("CurveVel-A", 4, np.random.default_rng(3))
    given = tmp_path / "given" / "CurveVel_A" / "model"
    given.mkdir(parents=True)
    np.save(given / "model49.npy", models[:2, None])
    stack = models.copy()
    stack[1, 3, 3] = np.nan
    stack[2] = 9.0
    np.save(tmp_path / "given" / "my stack.npy", stack)
    np.save(tmp_path / "given" / "small.npy", models[:, :30, :30])
    (tmp_path / "given" / "text.npy").write_text("hello")
    out = tmp_path / "out"
    words = ("simulate", given, tmp_path / "given", "--solver", "openfwi", "--per-file", 3, "--out", out, *HERE)
    done = bulk(*words)
    assert done.exit_code == 1, done.output
    assert "4 pairs simulated, 4 failed" in done.stderr
    found = rows(out)
    told = [(row["family"], row["number"], row["model"], row["row"], row["error_code"]) for row in found]
    assert told == [
        ("CurveVel-A", 49, 0, 0, None),
        ("CurveVel-A", 49, 1, 1, None),
        ("my-stack", 1, 0, 0, None),
        ("my-stack", 1, 1, None, "invalid_velocity_model"),
        ("my-stack", 1, 2, None, "invalid_velocity_model"),
        ("my-stack", 2, 3, 0, None),
        ("small", 1, None, None, "invalid_velocity_model"),
        ("text", 1, None, None, "unsupported_format"),
    ]
    assert "30 x 30 cells" in found[6]["error_detail"] and "NaN" in found[3]["error_detail"]
    pairs = Dataset(find_pairs(out))
    assert pairs.families.tolist() == ["CurveVel-A"] * 2 + ["my-stack"] * 2
    np.testing.assert_array_equal(pairs.velocity(np.arange(4)), models[[0, 1, 0, 3]])
    np.testing.assert_array_equal(pairs.gathers([3]), simulate(models[3], engine="openfwi"))


def test_what_cannot_be_asked_for_is_refused_at_once(tmp_path: Path) -> None:
    models = generate("FlatVel-A", 1, np.random.default_rng(3))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "same.npy", models)
    out = ("--out", tmp_path / "out", *HERE)
    for words, said in (
        ((tmp_path / "a", "--family", "FlatVel-A", "--count", 2), "one of the two"),
        ((), "one of the two"),
        ((tmp_path / "a", "--seed", 3), "--count, and --seed"),
        (("--family", "FlatVel-A"), "--count, and --seed"),
        (("--family", "NoSuch", "--count", 1), "NoSuch"),
        ((tmp_path / "a", tmp_path / "b"), "would both be number 1 of same"),
        (("--family", "FlatVel-A", "--count", 1, "--solver", "openfwi", "--device", "cuda"), "CPU"),
    ):
        done = bulk("simulate", *words, *out)
        assert done.exit_code == 2 and said in " ".join(done.stderr.split()), done.output
    assert not list(tmp_path.glob("out/*/data"))
