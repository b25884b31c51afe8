"""The model that is read from a gather, on all cells: in process, over HTTP, by the clients, in files."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from seisbind.model.encoders.embedder import Embedder, EncodedGathers, ReadModel, full_size
from seisbind.model.frame import Survey
from seisbind.model.scale import Scale
from seisbind.model.survey.preparation import OPENFWI, prepare
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.client.client import Client
from seisbind.service.commands.main import app
from seisbind.service.engine.engine import Engine
from seisbind.service.formats.npy import NPZ
from seisbind.service.formats.starting_model import parse_start, starting_model
from seisbind.service.schemas import PARTS, RetrieveAnswer
from wire import npy

Float32 = NDArray[np.float32]
READ = Embedder.read_model


@pytest.fixture(params=[False, True], ids=["bare", "interval"])
def interval(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the weights state an interval: those that ship and those of the tests do not, so their embedder does."""

    def stated(self: Embedder, encoded: EncodedGathers) -> ReadModel | None:
        read = READ(self, encoded)
        return None if read is None else replace(read, low=read.value - 120, high=read.value + 80)

    if request.param:
        monkeypatch.setattr(Embedder, "read_model", stated)
    return bool(request.param)


def expected(engine: Engine, gathers: Float32) -> Float32:
    coarse = engine.embedder.embed_gathers(prepare(gathers)).velocity
    assert coarse is not None
    return np.stack([full_size(each) for each in coarse])


def test_every_answer_of_the_engine_has_it(engine: Engine, gathers: Float32, interval: bool) -> None:
    survey = replace(OPENFWI, shot_x_m=tuple(x + 4000 for x in OPENFWI.shot_x_m),
                     receiver_x_m=tuple(x + 4000 for x in OPENFWI.receiver_x_m))  # fmt: skip
    wanted = expected(engine, gathers)
    for one, value in zip(engine.retrieve(gathers, survey), wanted, strict=True):
        assert one.model is not None and one.model.value.shape == (70, 70)
        np.testing.assert_allclose(one.model.value, value, rtol=1e-5)
        assert (one.model.cell_m, one.model.x0_m, one.model.depth0_m) == (10.0, 4000.0, 0.0)
        assert (one.model.interval is not None) == interval
        if one.model.interval is not None:
            np.testing.assert_allclose(one.model.interval[0], value - 120, rtol=1e-4)


def check_body(body: dict[str, Any], value: Float32, interval: bool, x0_m: float = 0.0) -> None:
    assert {name: body[name] for name in ("cell_m", "x0_m", "depth0_m", "unit")} == {
        "cell_m": 10.0, "x0_m": x0_m, "depth0_m": 0.0, "unit": "m/s"
    }  # fmt: skip
    np.testing.assert_allclose(body["value"], value, atol=0.06)
    if interval:
        np.testing.assert_allclose(body["low"], value - 120, atol=0.06)
        np.testing.assert_allclose(body["high"], value + 80, atol=0.06)
    else:
        assert body["low"] is body["high"] is None


def test_it_comes_where_asked_for_and_nowhere_else(
    served: Any, engine: Engine, gathers: Float32, interval: bool
) -> None:
    wanted = expected(engine, gathers)
    sent = {"files": {"file": npy(gathers)}, "data": {"include": "model", "top_k": 1}}
    for result, value in zip(served.http.post("/v1/retrieve", **sent).json()["results"], wanted, strict=True):
        check_body(result["model"], value, interval)
    for include in ("descriptors,physics", "velocity,traces", ""):
        bare = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data={"include": include}).json()
        assert "model" not in bare["results"][0]
    lines = served.http.post("/v1/retrieve/stream", **sent).text.splitlines()
    for line, value in zip(lines, wanted, strict=True):
        check_body(json.loads(line)["result"]["model"], value, interval)


def test_its_place_is_the_surveys(served: Any, engine: Engine, gathers: Float32, interval: bool) -> None:
    moved = Survey(tuple(x + 250.5 for x in OPENFWI.shot_x_m), tuple(x + 250.5 for x in OPENFWI.receiver_x_m), 0.001)
    with Client(served.url) as client:
        (result,) = client.retrieve(gathers[0], moved, include=("model",)).results
        arrays = client.retrieve_arrays(gathers[:2], moved, include=("model",), top_k=1)
    assert result.model is not None
    check_body(result.model.model_dump(), expected(engine, gathers[:1])[0], interval, 250.5)
    assert arrays["model_x0_m"].tolist() == [250.5, 250.5]


def test_arrays_of_an_npz_answer(served: Any, engine: Engine, gathers: Float32, interval: bool) -> None:
    def arrays_of(include: str) -> dict[str, NDArray[Any]]:
        sent = {"files": {"file": npy(gathers)}, "data": {"include": include, "top_k": 1}, "headers": {"Accept": NPZ}}
        with np.load(io.BytesIO(served.http.post("/v1/retrieve", **sent).content), allow_pickle=False) as found:
            return dict(found)

    with_model, without = arrays_of("model"), arrays_of("physics")
    ends = {"model_low", "model_high"} if interval else set()
    assert set(with_model) - set(without) == {"model_value", "model_cell_m", "model_x0_m", "model_depth0_m"} | ends
    np.testing.assert_allclose(with_model["model_value"], expected(engine, gathers), rtol=1e-5)
    assert with_model["model_value"].dtype == np.float32
    if interval:
        assert (with_model["model_low"] < with_model["model_high"]).all()


def test_an_npz_too_large_for_its_models_is_refused(serve: Any, gathers: Float32) -> None:
    """2 MiB hold 106 models: those of 106 matches, and not the model that is read and the ends of its interval too."""
    server = serve(max_body_bytes=2 << 20, max_top_k=106)
    for include, status in (("physics", 200), ("model", 422)):
        sent = {"files": {"file": npy(gathers[0])}, "data": {"top_k": 106, "include": include}}
        response = server.http.post("/v1/retrieve", headers={"Accept": NPZ}, **sent)
        assert response.status_code == status
    assert "1 x 109 velocity models" in response.json()["detail"]


FORMATS = {
    "npy": "application/x-npy",
    "npz": NPZ,
    "segy": "application/vnd.seg-y",
    "nc": "application/x-netcdf",
}


@pytest.mark.parametrize("format", FORMATS)
def test_as_a_file_over_http(served: Any, engine: Engine, gathers: Float32, interval: bool, format: str) -> None:
    response = served.http.post("/v1/read", files={"file": npy(gathers[0])}, data={"format": format})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == FORMATS[format]
    value = expected(engine, gathers[:1])[0]
    if format == "npy":
        np.testing.assert_allclose(np.load(io.BytesIO(response.content), allow_pickle=False), value, rtol=1e-5)
    elif format == "npz":
        with np.load(io.BytesIO(response.content), allow_pickle=False) as found:
            np.testing.assert_allclose(found["velocity"], value, rtol=1e-5)
            assert ("low" in found) == ("high" in found) == interval
    elif format == "segy":
        assert len(response.content) == 3600 + 70 * (240 + 280)
    else:
        assert response.content.startswith(b"CDF\x02") and (b"high" in response.content) == interval


def test_what_the_call_refuses(served: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    def code(content: bytes, **fields: Any) -> tuple[int, str, str]:
        response = served.http.post("/v1/read", files={"file": content}, data=fields)
        body = response.json()
        return response.status_code, body["code"], body["detail"]

    assert code(npy(gathers[0]), format="zarr")[:2] == (422, "invalid_query")
    assert "the file holds 3" in code(npy(gathers))[2]
    assert code(npy(gathers[0]), formats="npz")[1] == "invalid_request"
    for field, value, said in (
        ("grid", "dx=0", "dx is 0 m"),
        ("grid", "dx=0.01", "more than 65535 nodes"),
        ("smooth_m", "nan", "got nan m"),
        ("water", "depth=9000", "the model ends at 690 m"),
    ):
        status, name, detail = code(npy(gathers[0]), **{field: value})
        assert (status, name) == (422, "invalid_query") and said in detail
    assert code(npy(gathers[0]), extend="perhaps")[1] == "invalid_request"
    assert code(b"nothing")[1] == "unsupported_format"
    monkeypatch.setattr(Embedder, "read_model", lambda self, encoded: None)
    assert "no head" in code(npy(gathers[0]))[2]
    one = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data={"include": "model"}).json()
    assert "model" not in one["results"][0]


GRID = {"grid": "dx=12.5,dz=20,x0=-50,nx=40", "smooth_m": "30", "water": "depth=40", "extend": "true"}


def test_on_a_grid_of_the_users_own(served: Any, engine: Engine, gathers: Float32, interval: bool) -> None:
    """By the call, by both clients, and as the function makes it of the engine's answer."""
    model = engine.retrieve(gathers[0], OPENFWI)[0].model
    assert model is not None and model.range_m_s == (1500.0, 4500.0)
    wanted = starting_model(model, parse_start(grid=GRID["grid"], smooth_m=30, water="depth=40", extend=True))
    body = served.http.post("/v1/read", files={"file": npy(gathers[0])}, data=GRID).content
    with Client(served.url) as client:
        same = client.read(npy(gathers[0]), grid=GRID["grid"], smooth_m=30, water="depth=40", extend=True)
        bare = client.read(npy(gathers[0]), scale=2, format="npy", grid="dx=10")
    assert same == body
    assert np.load(io.BytesIO(bare), allow_pickle=False).shape == (139, 139)
    with np.load(io.BytesIO(body), allow_pickle=False) as found:
        np.testing.assert_allclose(found["velocity"], wanted.value, rtol=1e-5)
        assert found["velocity"].shape == (35, 40) and (found["velocity"][:2] == 1500).all()
        assert (found["dx"], found["dz"], found["x0"]) == (12.5, 20.0, -50.0)
        assert not found["known"][:, :3].any() and found["known"][:, 5:].all()
        assert ("low" in found) == ("high" in found) == interval
        if interval:
            assert wanted.low is not None
            np.testing.assert_allclose(found["low"], wanted.low, rtol=1e-5)
            assert (found["low"] <= found["velocity"]).all() and found["low"].min() >= 1500


def test_at_a_scale_bounds_are_those_of_the_scale(
    engine: Engine, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wide(self: Embedder, encoded: EncodedGathers) -> ReadModel | None:
        read = READ(self, encoded)
        return None if read is None else replace(read, low=read.value - 5000, high=read.value + 5000)

    monkeypatch.setattr(Embedder, "read_model", wide)
    survey = replace(OPENFWI, shot_x_m=tuple(2 * x for x in OPENFWI.shot_x_m), dt_s=0.001 * 2 / 0.5,
                     receiver_x_m=tuple(2 * x for x in OPENFWI.receiver_x_m), peak_hz=15 * 0.5 / 2)  # fmt: skip
    (answer,) = engine.retrieve(gathers[0], survey, scale=Scale(2, 0.5))
    assert answer.model is not None
    bounds = starting_model(answer.model, parse_start(grid="dx=20"))
    assert bounds.low is not None and bounds.high is not None
    assert bounds.low.min() == 750 and bounds.high.max() == 2250


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["retrieve", *map(str, arguments)])


@pytest.mark.parametrize("where", ["server", "gallery"])
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".sgy", ".nc"])
def test_by_the_command(
    where: str, suffix: str, served: Any, weights: Path, gallery_path: Path, engine: Engine, gathers: Float32,
    interval: bool, tmp_path: Path,
) -> None:  # fmt: skip
    np.save(tmp_path / "gather.npy", gathers[0])
    ask = ("--url", served.url) if where == "server" else ("--gallery", gallery_path, "--weights", weights)
    out = tmp_path / f"model{suffix}"
    done = run(tmp_path / "gather.npy", *ask, "--json", "--model-out", out)
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout).values()
    assert "model" not in answer["results"][0]
    assert ("no interval" in done.stderr) != interval and ("200 m/s wide" in done.stderr) == interval
    value = expected(engine, gathers[:1])[0]
    if suffix == ".npz":
        with np.load(out, allow_pickle=False) as found:
            np.testing.assert_allclose(found["velocity"], value, atol=0.06)
            assert ("low" in found) == interval
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("where", ["server", "gallery"])
def test_a_grid_by_the_command(
    where: str, served: Any, weights: Path, gallery_path: Path, engine: Engine, gathers: Float32, interval: bool,
    tmp_path: Path,
) -> None:  # fmt: skip
    np.save(tmp_path / "gather.npy", gathers[0])
    ask = ("--url", served.url) if where == "server" else ("--gallery", gallery_path, "--weights", weights)
    out = tmp_path / "start.npz"
    done = run(tmp_path / "gather.npy", *ask, "--model-out", out, "--grid", "dx=10,x0=-100,nx=90", "--smooth", 20)
    assert done.exit_code == 0, done.output
    assert "70 x 90 samples of 10 m, 22% of them without a number, x from -100 m" in done.stderr
    assert ("bounds" in done.stderr) == interval
    model = engine.retrieve(gathers[0], OPENFWI)[0].model
    assert model is not None
    with np.load(out, allow_pickle=False) as found:
        wanted = starting_model(model, parse_start(grid="dx=10,x0=-100,nx=90", smooth_m=20))
        np.testing.assert_allclose(found["velocity"], wanted.value, atol=0.1)
        assert np.isnan(found["velocity"][:, :9]).all()
        assert found["range"].tolist() == [1500.0, 4500.0]


def test_parts_of_the_command(
    weights: Path, gallery_path: Path, gathers: Float32, interval: bool, tmp_path: Path
) -> None:
    np.save(tmp_path / "gather.npy", gathers[0])
    np.save(tmp_path / "two.npy", gathers[:2])
    ask = ("--gallery", gallery_path, "--weights", weights)
    done = run(tmp_path / "gather.npy", *ask, "--json", "--include", "model")
    (answer,) = json.loads(done.stdout).values()
    assert (answer["results"][0]["model"]["low"] is not None) == interval
    done = run(tmp_path / "two.npy", *ask, "--out", tmp_path / "out.jsonl", "--include", "model")
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [len(line["result"]["model"]["value"]) for line in lines] == [70, 70]


def test_what_the_command_refuses(weights: Path, gallery_path: Path, gathers: Float32, tmp_path: Path) -> None:
    np.save(tmp_path / "gather.npy", gathers[0])
    np.save(tmp_path / "two.npy", gathers[:2])
    one, two = tmp_path / "gather.npy", tmp_path / "two.npy"
    ask = ("--gallery", gallery_path, "--weights", weights)
    for words, said in (
        ((one, "--model-out", tmp_path / "model.h5"), "written as .npy, .npz"),
        ((one, two, "--model-out", tmp_path / "model.nc"), "2 files were named"),
        ((two, "--model-out", tmp_path / "model.nc"), "holds 2. Write them one by one"),
        ((one, "--grid", "dx=20"), "go with --model-out"),
        ((one, "--model-out", tmp_path / "model.nc", "--grid", "dx=-1"), "dx is -1 m"),
        ((one, "--model-out", tmp_path / "model.nc", "--water", "depth=690.1"), "690.1 m deep"),
    ):
        done = run(*words, *ask)
        assert said in str(done.exception)
    done = run(one, *ask, "--model-out", tmp_path / "model.nc", "--out", tmp_path / "out.jsonl")
    assert done.exit_code == 2 and "--out of any number" in done.stderr
    assert not list(tmp_path.glob("model*"))


def test_answers_of_before_are_what_they_were(weights: Path, gallery_path: Path, gathers: Float32) -> None:
    """Without the new part, an answer has exactly its old keys, and reading it back gives the same."""
    backend: Callable[..., GalleryBackend] = GalleryBackend
    with backend(gallery_path, weights, "cpu", RetrieveOptions(include=PARTS)) as asked:
        answer = asked.file(npy(gathers[0]))
    body = json.loads(answer.model_dump_json())
    assert list(body["results"][0]) == [
        "matches", "physics", "velocity", "traces", "in_distribution", "in_gallery", "ranked_by", "warnings"
    ]  # fmt: skip
    assert RetrieveAnswer.model_validate(body) == answer
