"""Inputs and outputs in an object store: moto's S3 on this machine's loopback, through obstore as in a cloud."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parts import bulk, job_here, rows
from seisbind.model.errors import DatasetError, InvalidConfig
from seisbind.service.bulk import executors
from seisbind.service.bulk.folder import MANIFEST, PartsFolder
from seisbind.service.bulk.places import local_copy, named_inputs, open_at, split_url, state_of
from seisbind.service.formats.mdio import mdio_as_segy
from seisbind.service.formats.reader import Geometry

pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install -e '.[parquet]'")
pytest.importorskip("obstore", reason="obstore is not installed: pip install -e '.[cluster]'")
Float32 = NDArray[np.float32]
HERE = ("--engine", "processes", "--workers", 1)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "in_processes", job_here)


@pytest.fixture
def remote(bucket: str, tmp_path: Path) -> str:
    """A folder of the bucket that no other test uses."""
    return f"{bucket}/{tmp_path.name}"


def upload(folder: Path, url: str) -> None:
    bucket, key = split_url(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.write(f"{key}/{path.relative_to(folder)}", path)


def remote_rows(url: str) -> list[dict[str, Any]]:
    bucket, key = split_url(url)
    parts = [name for name in bucket.listing(key) if name.endswith(".parquet")]
    return [row for name in parts for row in pq.read_table(io.BytesIO(bucket.read(name))).to_pylist()]


@pytest.mark.long
def test_files_of_every_kind_from_a_bucket_into_a_bucket(
    remote: str, odd_files: Path, gallery_path: Path, weights: Path, tmp_path: Path
) -> None:
    upload(odd_files, f"{remote}/in")
    words = ("--gallery", gallery_path, "--weights", weights, "--device", "cpu", "--top-k", 2, "--chunk", 3, *HERE)
    local = bulk("retrieve", odd_files, *words, "--out", tmp_path / "out")
    run = ("retrieve", f"{remote}/in", *words, "--out", f"{remote}/out")
    done = bulk(*run)
    assert (local.exit_code, done.exit_code) == (1, 1), done.output
    assert "6 gathers answered, 3 failed" in done.stderr
    wanted, found = rows(tmp_path / "out"), remote_rows(f"{remote}/out")
    for row, own in zip(found, wanted, strict=True):
        assert row["file"] == f"{remote}/in/{Path(own['file']).name}"
        different = {each for each in row if row[each] != own[each]} - {"file"}
        assert different <= {"error_detail"}, different

    bucket, key = split_url(remote)
    gone = sorted(name for name in bucket.listing(f"{key}/out") if name.endswith(".parquet"))[1]
    before = bucket.read(gone)
    bucket.write(gone, b"PAR1 torn")
    again = bulk(*run)
    assert again.exit_code == 1 and "of them by an earlier run" in again.stderr
    assert pq.read_table(io.BytesIO(bucket.read(gone))) == pq.read_table(io.BytesIO(before))
    other = bulk(*run[:-1], f"{remote}/out", "--distinct", 50)
    assert other.exit_code == 2 and "other options" in other.stderr
    assert json.loads(bucket.read(f"{key}/out/{MANIFEST}"))["kind"] == "retrieve"


def test_pairs_and_sections_are_written_into_a_bucket(
    remote: str, gathers: Float32, gallery_path: Path, weights: Path, tmp_path: Path
) -> None:
    words = ("simulate", "--family", "FlatVel-A", "--count", 1, "--solver", "openfwi", "--seed", 7, *HERE)
    assert bulk(*words, "--out", tmp_path / "pairs").exit_code == 0
    assert bulk(*words, "--out", f"{remote}/pairs").exit_code == 0
    bucket, key = split_url(remote)
    for name in ("FlatVel-A/data/data1.npy", "FlatVel-A/model/model1.npy", "seisbind.json"):
        assert bucket.read(f"{key}/pairs/{name}") == (tmp_path / "pairs" / name).read_bytes(), name

    shots, receivers = [0.0, 170, 340, 520, 690], np.arange(70) * 10.0
    np.savez(tmp_path / "line.npz", gathers=gathers[0], shot_x_m=shots, receiver_x_m=receivers, dt_s=0.001)
    bucket.write(f"{key}/lines/line.npz", tmp_path / "line.npz")
    bucket.write(f"{key}/lines/no.sgy", b"hello")
    words = ("section", f"{remote}/lines", "--gallery", gallery_path, "--weights", weights, "--device", "cpu", *HERE)
    done = bulk(*words, "--out", f"{remote}/sections")
    assert done.exit_code == 1, done.output
    row, failed = remote_rows(f"{remote}/sections")
    assert f"{remote}/lines/no.sgy" in failed["error_detail"]
    with np.load(io.BytesIO(bucket.read(f"{key}/sections/{row['sections'][0]}")), allow_pickle=False) as found:
        assert found["velocity"].shape == (row["depth_cells"], row["columns"])


def test_what_the_store_refuses_is_one_sentence(remote: str, tmp_path: Path) -> None:
    nowhere = "s3://no-such-bucket/out"
    with pytest.raises(DatasetError, match=r"Listing s3://no-such-bucket/out.* failed"):
        PartsFolder(nowhere, {})
    with pytest.raises(DatasetError, match="No object"):
        named_inputs([f"{remote}/nothing/"])
    with pytest.raises(DatasetError, match=r"Reading .*/gone\.npy failed"):
        open_at(f"{remote}/gone.npy", Geometry())
    assert state_of(f"{remote}/gone.npy") == [0, "0"]
    with pytest.raises(InvalidConfig, match=r"URLs are s3://BUCKET"):
        named_inputs(["https://example.invalid/a.npy"])
    bucket, key = split_url(remote)
    bucket.write(f"{key}/foreign/a.parquet", b"PAR1")
    with pytest.raises(InvalidConfig, match="did not write"):
        PartsFolder(f"{remote}/foreign", {})


@pytest.mark.filterwarnings("ignore")
def test_mdio_stores_are_found_and_read_wherever_they_lie(
    remote: str, gathers: Float32, gallery_path: Path, weights: Path, tmp_path: Path
) -> None:
    """One in a folder whose name does not say so, one that is damaged, and a SEG-Y of the same traces beside them."""
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install -e '.[mdio]'")
    folder = tmp_path / "line"
    store(zarr, folder / "a.mdio", gathers[0, :, ::4])
    store(zarr, folder / "inner" / "b", gathers[1, :, ::4])
    store(zarr, folder / "c.mdio", gathers[0, :, ::4])
    (folder / "c.mdio" / "zarr.json").write_text("{")
    (folder / "d.sgy").write_bytes(mdio_as_segy(folder / "a.mdio"))
    assert named_inputs([str(folder)]) == [str(folder / name) for name in ("a.mdio", "c.mdio", "d.sgy")]
    upload(folder, f"{remote}/in")
    found = [f"{remote}/in/{name}" for name in ("a.mdio/", "c.mdio/", "d.sgy", "inner/b/")]
    assert named_inputs([f"{remote}/in"]) == found
    assert named_inputs([f"{remote}/in/a.mdio"]) == found[:1] == named_inputs([f"{remote}/in/a.*"])
    with local_copy(found[3]) as path:
        assert mdio_as_segy(path) == mdio_as_segy(folder / "inner" / "b")

    words = ("--gallery", gallery_path, "--weights", weights, "--device", "cpu", *HERE)
    for place, inputs in (("here", (folder, folder / "inner" / "b")), ("there", (f"{remote}/in",))):
        done = bulk("retrieve", *inputs, *words, "--out", tmp_path / place)
        assert done.exit_code == 1 and "3 gathers answered, 1 failed" in done.stderr, done.output
    here, there = rows(tmp_path / "here"), rows(tmp_path / "there")
    assert [row["model_id"] for row in here] == [row["model_id"] for row in there]
    assert here[0]["model_id"] == here[2]["model_id"] and here[1]["error_code"] == "dataset_error"
    assert here[1]["error_detail"].startswith(str(folder / "c.mdio")) and found[1] in there[1]["error_detail"]

    before = state_of(str(folder / "a.mdio"))
    chunk = next(
        path for path in sorted((folder / "a.mdio" / "amplitude").rglob("*")) if path.is_file() and path.name.isdigit()
    )
    chunk.write_bytes(chunk.read_bytes() + b"1")
    assert state_of(str(folder / "a.mdio")) != before


def store(zarr: Any, path: Path, gather: Float32) -> None:
    """``gather`` ``(shot, time, receiver)`` of 4 ms as an MDIO v1 store."""
    axes, (shots, samples, receivers) = ("shot_point", "channel"), gather.shape
    variables = {
        "amplitude": ((*axes, "time"), np.ascontiguousarray(gather.transpose(0, 2, 1))),
        "time": (("time",), (np.arange(samples) * 4).astype(np.int32)),
        "source_coord_x": (axes[:1], np.array([0.0, 170, 340, 520, 690])),
        "source_coord_y": (axes[:1], np.zeros(shots)),
        "group_coord_x": (axes, np.tile(np.arange(receivers) * 10.0, (shots, 1))),
        "group_coord_y": (axes, np.zeros((shots, receivers))),
    }
    made = {"apiVersion": "1.1.3", "name": "StreamerShotGathers2D", "attributes": {"defaultVariableName": "amplitude"}}
    group = zarr.create_group(str(path), zarr_format=3, attributes=made)
    for name, (dimensions, array) in variables.items():
        unit = {"unitsV1": {"length": "m"}} if "coord" in name else {}
        group.create_array(name, data=array, dimension_names=dimensions, attributes=unit)
