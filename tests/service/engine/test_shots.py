"""Records of more shots than training had: five of them are used, whichever way the record comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.confidence.intervals import shot_distance
from seisbind.model.frame import Survey
from seisbind.model.survey.preparation import OPENFWI
from seisbind.model.waves.wavefield import simulate
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.bulk.run import retrieve_all
from seisbind.service.client.client import Client
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import Query, _joined, encode
from seisbind.service.formats.npy import npy
from seisbind.service.formats.reader import Geometry

Float32 = NDArray[np.float32]

SHOTS = 18
SHOT_X_M = tuple(40.0 * i for i in range(SHOTS))
RECEIVER_X_M = OPENFWI.receiver_x_m
RAW = {"Content-Type": "application/octet-stream"}


def line(shot_x_m: tuple[float, ...] = SHOT_X_M) -> Survey:
    return Survey(shot_x_m, RECEIVER_X_M, 0.001, 15.0)


@pytest.fixture(scope="module")
def record(models: tuple[Float32, list[str]]) -> Float32:
    """``(18, 1000, 70)``, simulated over the first model of the gallery."""
    return simulate(models[0][0], survey=line())[0]


def positions(x: tuple[float, ...]) -> str:
    return ",".join(f"{each:g}" for each in x)


def said(warnings: list[dict[str, str]]) -> list[str]:
    return [warning["code"] for warning in warnings]


def used(engine: Engine, record: Float32) -> list[int]:
    """The shots that the answer says were used."""
    (note,) = (note for note in engine.retrieve(record, line())[0].warnings if note.code == "shots_chosen")
    where = note.sentence.partition("those at ")[2].partition(" m:")[0]
    return [SHOT_X_M.index(float(x)) for x in where.split(", ")]


def test_the_answer_is_that_of_the_five_alone(engine: Engine, record: Float32) -> None:
    at = used(engine, record)
    assert len(at) == len(OPENFWI.shot_x_m) and (at[0], at[-1]) == (0, SHOTS - 1)
    whole = engine.retrieve(record, line())[0]
    alone = engine.retrieve(record[at], line(tuple(SHOT_X_M[i] for i in at)))[0]
    order = np.random.default_rng(0).permutation(SHOTS)
    shuffled = engine.retrieve(record[order], line(tuple(SHOT_X_M[i] for i in order)))[0]
    for other in (alone, shuffled):
        assert (whole.matches, whole.physics, whole.in_gallery) == (other.matches, other.physics, other.in_gallery)
        assert whole.in_distribution == other.in_distribution
    assert whole.warnings == shuffled.warnings
    assert tuple(note for note in whole.warnings if note.code != "shots_chosen") == alone.warnings


def test_records_with_moved_shots_and_others_go_through_the_encoder_together(engine: Engine, record: Float32) -> None:
    at = used(engine, record)
    moved = Query.prepare(record[at], line(tuple(SHOT_X_M[i] for i in at)))
    own = Query.prepare(record[at], line(OPENFWI.shot_x_m))  # as if it had been recorded there
    assert moved.prepared.moved_m is not None and own.prepared.moved_m is None
    together, distance = (
        encode(engine.embedder, [own, moved, own]),
        shot_distance(_joined([own.prepared, moved.prepared])),
    )
    for row, query in enumerate((own, moved, own)):
        alone = encode(engine.embedder, [query])
        np.testing.assert_allclose(together.embedding[row], alone.embedding[0], atol=1e-5)
    assert distance[0] == 0 < distance[1] == shot_distance(moved.prepared)[0]


def test_shots_that_are_not_chosen_do_not_matter(engine: Engine, record: Float32) -> None:
    """They may be garbage; without the choice each of them moves the answer."""
    at = used(engine, record)
    others = np.setdiff1d(np.arange(SHOTS), at)
    disturbed = record.copy()
    quiet = np.random.default_rng(0).standard_normal(disturbed[others].shape).astype(np.float32)
    disturbed[others] = quiet * 1e-3 * np.abs(record).max()
    assert engine.retrieve(disturbed, line())[0].matches == engine.retrieve(record, line())[0].matches


def test_over_http_as_a_stream_in_bulk_and_in_files(
    served: Any, engine: Engine, gallery_path: Path, weights: Path, record: Float32, tmp_path: Path
) -> None:
    expected = engine.retrieve(record, line())[0]
    fields = {"shot_x_m": positions(SHOT_X_M), "receiver_x_m": positions(RECEIVER_X_M), "include": "physics,traces"}
    found = served.http.post("/v1/retrieve", content=npy(record), params=fields, headers=RAW).json()
    assert found["ingest"]["shots"] == SHOTS
    results = [found["results"][0]]
    assert results[0]["traces"]["shots"] == len(OPENFWI.shot_x_m)  # what is pictured is what was used
    fields["include"] = "physics"
    stack = served.http.post("/v1/retrieve/stream", content=npy(record[None]), params=fields, headers=RAW)
    results += [json.loads(text)["result"] for text in stack.text.splitlines()]
    with Client(served.url) as client:
        results.append(client.retrieve(record, line()).results[0].model_dump())
    wanted = RetrieveOptions(geometry=Geometry(shot_x_m=SHOT_X_M, receiver_x_m=RECEIVER_X_M))
    (tmp_path / "record.npy").write_bytes(npy(record))
    with GalleryBackend(gallery_path, weights, "cpu", wanted) as backend:
        results.append(backend.file(npy(record)).results[0].model_dump())
        retrieve_all([tmp_path / "record.npy"], backend, wanted, tmp_path / "lines.jsonl")
    results.append(json.loads((tmp_path / "lines.jsonl").read_text(encoding="utf-8"))["result"])
    for result in results:
        assert [match["model_id"] for match in result["matches"]] == [match.model_id for match in expected.matches]
        assert said(result["warnings"]) == [note.code for note in expected.warnings]
        assert result["warnings"][0]["detail"] == expected.warnings[0].sentence
