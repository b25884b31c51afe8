"""MDIO v1: a store laid out as `multidimio` 1.1.3 lays out its StreamerShotGathers2D is read as the SEG-Y it came from.

The layout below (names, dimensions, types, attributes, times cut to whole milliseconds) is that of stores which that
library wrote of the same gather; `multidimio` itself pins another fsspec than ours and cannot be installed beside it.
"""

from __future__ import annotations

import io
import json
import runpy
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import DatasetError, InvalidSurvey, SeisBindError, UnsupportedFormat, UploadTooLarge
from seisbind.model.survey.preparation import OPENFWI
from seisbind.service.bulk.inputs import gather_files, open_gathers
from seisbind.service.engine.inspection import inspect_record
from seisbind.service.formats.line_file import open_line
from seisbind.service.formats.mdio import is_mdio, mdio_as_segy
from seisbind.service.formats.reader import Geometry, read_gathers
from wire import RAW

zarr = pytest.importorskip("zarr", reason="the extra mdio is not installed")

Float32 = NDArray[np.float32]
FUZZ = Path(__file__).parents[3] / "benchmarks" / "fuzz.py"
AXES = ("shot_point", "channel")
GATHER = np.random.default_rng(2).standard_normal((5, 250, 70)).astype(np.float32)


def store(path: Path, gather: Float32, dt_us: int, **changed: Any) -> Path:
    """``gather`` ``(shot, time, receiver)`` as a store; ``changed`` variables take the place of good ones."""
    shots, samples, receivers = gather.shape
    headers = np.zeros((shots, receivers), [("sample_interval", "<i2"), ("delay_recording_time", "<i2")])
    headers["sample_interval"] = dt_us
    there = np.ones((shots, receivers), bool)
    variables: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {
        "amplitude": ((*AXES, "time"), np.ascontiguousarray(gather.transpose(0, 2, 1))),
        "time": (("time",), (np.arange(samples) * dt_us // 1000).astype(np.int32)),
        "source_coord_x": (AXES[:1], np.asarray(OPENFWI.shot_x_m[:shots], np.float64)),
        "source_coord_y": (AXES[:1], np.zeros(shots)),
        "group_coord_x": (AXES, np.tile(np.arange(receivers) * 10.0, (shots, 1))),
        "group_coord_y": (AXES, np.zeros((shots, receivers))),
        "trace_mask": (AXES, there),
        "headers": (AXES, headers),
    } | changed
    attributes = {"defaultVariableName": "amplitude", "gatherType": "common_source", "surveyType": "2D"}
    made = {"apiVersion": "1.1.3", "name": "StreamerShotGathers2D", "attributes": attributes}
    group = zarr.create_group(str(path), zarr_format=3, attributes=made)
    for name, variable in variables.items():
        if variable is not None:
            unit = {"unitsV1": {"length": "m"}} if "coord" in name else {}
            group.create_array(name, data=variable[1], dimension_names=variable[0], attributes=unit)
    return path


@pytest.mark.filterwarnings("ignore")
def test_the_same_traces_as_from_segy(tmp_path: Path) -> None:
    body = mdio_as_segy(store(tmp_path / "line.mdio", GATHER, 4000))
    upload, segy = read_gathers(body), read_gathers(runpy.run_path(str(FUZZ))["segy"](GATHER, 0.004))
    np.testing.assert_array_equal(upload.gathers, GATHER)
    assert upload.survey == segy.survey and upload.notes == segy.notes


@pytest.mark.filterwarnings("ignore")
def test_missing_traces_half_milliseconds_and_a_delay(tmp_path: Path) -> None:
    there = np.ones((5, 70), bool)
    there[1, 30] = False
    group = np.tile(np.arange(70) * 10.0, (5, 1)) + 0.07
    group[1, 30] = np.nan
    headers = np.zeros((5, 70), [("sample_interval", "<i2"), ("delay_recording_time", "<i2")])
    headers["sample_interval"], headers["delay_recording_time"] = 500, 100
    gather = np.repeat(GATHER, 8, axis=1)
    changed = {"trace_mask": (AXES, there), "group_coord_x": (AXES, group), "headers": (AXES, headers)}
    upload = read_gathers(mdio_as_segy(store(tmp_path / "line.mdio", gather, 500, **changed)))
    assert upload.survey.dt_s == 0.0005 and upload.ingest.traces == 349
    assert {note.code for note in upload.notes} == {"delay_applied", "missing_traces"}
    assert upload.survey.receiver_x_m[1] - upload.survey.receiver_x_m[0] == pytest.approx(10)
    np.testing.assert_array_equal(upload.gathers[0, 200:300], gather[0, :100])
    assert not upload.gathers[1, :, 30].any() and upload.gathers[1, 300:, 31].any()


@pytest.mark.filterwarnings("ignore")
def test_a_store_is_a_file_of_bulk_sections_and_inspection(tmp_path: Path) -> None:
    path = store(tmp_path / "line.mdio", GATHER, 4000)
    assert is_mdio(path) and gather_files([tmp_path]) == [path] == gather_files([path])
    body = open_gathers(path, Geometry()).content
    assert inspect_record(body).spread.shots == 5
    line = open_line([path])
    assert len(line) == 350
    np.testing.assert_array_equal(line.read(np.array([71]), 250)[0], GATHER[1, :, 1])


@pytest.mark.filterwarnings("ignore")
def test_the_same_answer_as_segy_over_http(served: Any, tmp_path: Path) -> None:
    """A client reads the store and sends SEG-Y; the server takes no folders."""
    bodies = mdio_as_segy(store(tmp_path / "a", GATHER, 4000)), runpy.run_path(str(FUZZ))["segy"](GATHER, 0.004)
    answers = [served.http.post("/v1/retrieve", content=body, headers=RAW) for body in bodies]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json()["results"] == answers[1].json()["results"]


POOR: dict[str, tuple[type[SeisBindError], str, dict[str, Any]]] = {
    "no positions": (UnsupportedFormat, "without source_coord_x", {"source_coord_x": None}),
    "depth": (UnsupportedFormat, "time comes last", {"amplitude": ((*AXES, "depth"), np.zeros((5, 70, 250), "f4"))}),
    "another shape": (UnsupportedFormat, "group_coord_y", {"group_coord_y": (AXES, np.zeros((5, 69)))}),
    "no traces": (DatasetError, "holds no trace", {"trace_mask": (AXES, np.zeros((5, 70), bool))}),
    "no number": (InvalidSurvey, "positions up to nan", {"source_coord_y": (AXES[:1], np.full(5, np.nan))}),
    "uneven times": (InvalidSurvey, "steps are even", {"time": (("time",), np.arange(250.0) ** 2)}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", POOR)
def test_a_store_that_is_of_no_use_is_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    kind, words, changed = POOR[name]
    with pytest.raises(kind, match=words):
        mdio_as_segy(store(tmp_path / "line.mdio", GATHER, 4000, **changed))


@pytest.mark.filterwarnings("ignore")
def test_sizes_and_codecs_are_looked_at_before_samples(tmp_path: Path) -> None:
    path = store(tmp_path / "line.mdio", GATHER, 4000)
    meta = path / "amplitude" / "zarr.json"
    good = json.loads(meta.read_text())
    meta.write_text(json.dumps(good | {"shape": [1 << 20, 70, 250]}))
    with pytest.raises(UploadTooLarge, match="at most 4294967296"):
        mdio_as_segy(path)
    chunks = {"name": "regular", "configuration": {"chunk_shape": [1 << 20, 70, 250]}}
    meta.write_text(json.dumps(good | {"chunk_grid": chunks}))
    with pytest.raises(UploadTooLarge, match="chunk"):
        mdio_as_segy(path)
    meta.write_text(json.dumps(good | {"codecs": [*good["codecs"], {"name": "pickle"}]}))
    with pytest.raises((DatasetError, UnsupportedFormat)):
        mdio_as_segy(path)
    meta.write_text("{")
    with pytest.raises(DatasetError, match="cannot be read"):
        mdio_as_segy(path)


def test_a_zipped_store_is_refused_in_a_sentence() -> None:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        for name in ("zarr.json", *(f"amplitude/c/{i}" for i in range(20))):
            archive.writestr(name, b"{}")
    with pytest.raises(UnsupportedFormat, match="zipped Zarr or MDIO store is not read"):
        read_gathers(body.getvalue())


def test_another_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no MDIO v1 store"):
        mdio_as_segy(tmp_path)
    assert not is_mdio(tmp_path)
