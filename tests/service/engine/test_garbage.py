"""Promise 35: a record unlike training never gets a confident identity; by the shipped weights, which know some."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.confidence.presence import Presence
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.ground.families import mixed
from seisbind.model.survey.preparation import prepare
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.bulk.parquet import write_parquet
from seisbind.service.bulk.run import retrieve_all
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.gallery_builder import build_gallery
from seisbind.service.engine.query import Query
from seisbind.service.formats.npy import npy

Float32 = NDArray[np.float32]

MODELS = 1_000
EACH = 15  # records of each kind
UNKNOWN = "in_gallery_unknown"
SURE = 0.2  # "probably not in the gallery" below it, in docs and on the page


@pytest.fixture(scope="module")
def shipped() -> Embedder:
    return Embedder.load(device="cpu")


@pytest.fixture(scope="module")
def path(shipped: Embedder, models: tuple[Float32, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of the shipped weights that holds the grounds of ``gathers``."""
    at = tmp_path_factory.mktemp("galleries") / "thousand"
    velocity, family = mixed(MODELS, 41)
    build_gallery(at, shipped, [models, (velocity, family.tolist())], source="tests")
    return at


@pytest.fixture(scope="module")
def knowing(shipped: Embedder, path: Path) -> Iterator[Engine]:
    with Gallery.open(path, fingerprint=shipped.fingerprint) as gallery:
        yield Engine(shipped, gallery)


@pytest.fixture
def garbage(script: Callable[[str], ModuleType]) -> Any:
    return script("garbage")


def test_garbage_is_never_in_the_gallery(knowing: Engine, gathers: Float32, garbage: Any) -> None:
    """By the law alone, which is what was served before, some of it is."""
    sound = np.resize(gathers, (EACH, *gathers.shape[1:]))
    kinds = [kind for kind in garbage.GARBAGE if kind.endswith("!")]
    assert len(kinds) * EACH >= 250
    alone = Engine(garbage.without_gate(knowing.embedder), knowing.gallery)
    sure = dict.fromkeys(kinds, 0)
    for kind in kinds:
        queries = [Query.prepare(garbage.GARBAGE[kind](sound, np.random.default_rng(0)))]
        (answers,), (before,) = knowing.retrieve_batch(queries), alone.retrieve_batch(queries)
        for one, ungated in zip(answers, before, strict=True):
            assert one.in_gallery is None or one.in_gallery < SURE, kind
            assert (one.in_gallery is None) == (one.in_distribution.likely is False), kind
            assert ungated.in_gallery is not None
            sure[kind] += ungated.in_gallery > SURE
    assert sum(sure.values()) >= 10 and sum(count > 0 for count in sure.values()) >= 3, sure


def test_unknown_has_its_reason_and_nothing_else_changes(knowing: Engine, gathers: Float32, garbage: Any) -> None:
    """Matches, their order and the physics are those of the same record, had it been like those of training."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(gathers[0].shape).astype(np.float32)
    noisy = garbage.white(gathers[:1], rng, decibel=0)[0][0]
    alone = Engine(garbage.without_gate(knowing.embedder), knowing.gallery)
    stack = np.stack([gathers[0], noise, noisy])
    (sound, *unlike), (same, *before) = knowing.retrieve(stack), alone.retrieve(stack)
    assert sound.in_gallery is not None and sound.in_gallery > 0.9 and sound.warnings == ()
    assert sound.in_gallery == same.in_gallery
    for one, ungated in zip(unlike, before, strict=True):
        assert one.in_gallery is None and ungated.in_gallery is not None
        assert one.ranked_by == ("structure" if ungated.in_gallery < SURE else "similarity") == ungated.ranked_by
        assert (one.matches, one.physics) == (ungated.matches, ungated.physics)
        (note,) = one.warnings
        assert note.code == UNKNOWN and one.in_distribution.detail is not None
        assert one.in_distribution.detail in note.sentence and "in training it lay between" in note.sentence


def test_sound_records_keep_theirs(knowing: Engine, gathers: Float32, garbage: Any) -> None:
    """Those of training are unlike themselves in one of a hundred; what noise of 20 dB leaves is still like them."""
    for kind in ("clean", "white noise at 20 dB", "20 % dead traces"):
        records, survey = garbage.KINDS[kind](prepare(gathers).traces, np.random.default_rng(0))
        for one in knowing.retrieve(records, survey):
            assert one.in_gallery is not None and one.in_gallery > 0.5
            assert UNKNOWN not in [note.code for note in one.warnings]


def test_too_few_models_are_another_reason(shipped: Embedder, tmp_path: Path, gathers: Float32) -> None:
    noise = np.random.default_rng(0).standard_normal(gathers[0].shape).astype(np.float32)
    with Gallery.create(tmp_path / "empty", fingerprint=shipped.fingerprint) as gallery:
        (one,) = Engine(shipped, gallery).retrieve(noise)
    assert one.in_gallery is None and UNKNOWN not in [note.code for note in one.warnings]


@pytest.mark.long
def test_it_is_said_over_http_on_the_command_line_and_in_files(serve: Any, path: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    body = npy(np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32))
    (tmp_path / "noise.npy").write_bytes(body)
    raw = {"Content-Type": "application/octet-stream"}
    served = serve(gallery=path, weights=None)
    found = served.http.post("/v1/retrieve", content=body, headers=raw)
    results = [found.json()["results"][0]]
    stream = served.http.post("/v1/retrieve/stream", content=body, headers=raw)
    results.append(json.loads(stream.text)["result"])
    packed = served.http.post("/v1/retrieve", content=body, headers=raw | {"Accept": "application/x-npz"})
    with np.load(io.BytesIO(packed.content), allow_pickle=False) as arrays:
        results.append(json.loads(arrays["answer"].tobytes())["results"][0])
    lines = tmp_path / "lines.jsonl"
    with GalleryBackend(path, None, "cpu", RetrieveOptions()) as backend:
        results.append(backend.file(body).results[0].model_dump())
        retrieve_all([tmp_path / "noise.npy"], backend, RetrieveOptions(), lines)
    results.append(json.loads(lines.read_text(encoding="utf-8"))["result"])
    for result in results:
        assert result["in_gallery"] is None and result["in_distribution"]["likely"] is False
        assert [warning["code"] for warning in result["warnings"]] == [UNKNOWN]
    write_parquet(lines, tmp_path / "lines.parquet")
    (row,) = pyarrow.parquet.read_table(tmp_path / "lines.parquet").to_pylist()
    assert (row["in_gallery"], row["likely"], row["warnings"]) == (None, False, [UNKNOWN])
    command = [sys.executable, "-m", "seisbind", "retrieve"]
    command += [str(tmp_path / "noise.npy"), "--gallery", str(path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert f"{UNKNOWN}: Whether the gallery holds this ground is unknown" in " ".join(shown.split())
    assert "with a probability of" not in shown


def test_what_is_unknown_is_not_new() -> None:
    law = Presence(0.0, 0.0, 0.0, 0.0, limit=0.6, largest=100)
    assert law.is_new(np.array([0.5, np.nan, 0.7])).tolist() == [True, False, False]
