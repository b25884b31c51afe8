"""A line of another size, all the way: the answer scales exactly in process, over HTTP, by both clients, on the command
line and in files; velocity models leave and enter in true units."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from command import seisbind
from seisbind.index import Filter
from seisbind.model.confidence.novelty import MEASURES, judge
from seisbind.model.errors import InvalidSurvey, ServerRefused
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import DESCRIPTORS
from seisbind.model.scale import AutoScale, Scale
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.client.client import AsyncClient, Client
from seisbind.service.engine.engine import Engine
from seisbind.service.formats import segy
from seisbind.service.formats.npy import npy, npz

Float32 = NDArray[np.float32]
RAW = {"Content-Type": "application/octet-stream"}
SCALE = Scale(3, 0.9)
TRUE = SCALE.frame(OPENFWI_FRAME)
FACTOR = {d.name: SCALE.of(d.unit) for d in DESCRIPTORS}
AT = "3,0.9"


def fields_of(survey: Any = TRUE.survey, **more: object) -> dict[str, Any]:
    """Form fields of a survey."""
    lists = {name: ",".join(map(repr, getattr(survey, name))) for name in ("shot_x_m", "receiver_x_m")}
    return {"dt_s": repr(survey.dt_s), **lists, **more}


def su(gather: Float32, scale: Scale) -> bytes:
    """An SU file of a gather of OpenFWI's layout on a line of another size, whole microseconds and centimetres."""
    survey = scale.frame(OPENFWI_FRAME).survey
    headers = np.zeros(gather.shape[::2], segy.header_dtype(segy.FIELDS, "little"))
    headers["samples"], headers["dt_us"] = gather.shape[1], round(survey.dt_s * 1e6)
    headers["coordinate_units"], headers["scalco"] = 1, -100
    headers["source_x"] = np.round(np.asarray(survey.shot_x_m)[:, None] * 100)
    headers["group_x"] = np.round(np.asarray(survey.receiver_x_m) * 100)
    shots = gather.astype("<f4").transpose(0, 2, 1)
    traces = zip(headers.ravel(), shots.reshape(-1, gather.shape[1]), strict=True)
    return b"".join(header.tobytes() + samples.tobytes() for header, samples in traces)


def scales(answer: dict[str, Any], own: dict[str, Any], factor: dict[str, float] = FACTOR) -> None:
    """Whether a result is one of the frame's own line, in true units."""
    assert [m["model_id"] for m in answer["matches"]] == [m["model_id"] for m in own["matches"]]
    for one, other in zip(answer["matches"], own["matches"], strict=True):
        assert one["similarity"] == pytest.approx(other["similarity"], abs=1e-5)
        for name, value in one["descriptors"].items():
            assert value == pytest.approx(other["descriptors"][name] * factor[name], rel=1e-5)
    for name, quantity in answer["physics"].items():
        for end in ("value", "low", "high"):
            assert quantity[end] == pytest.approx(own["physics"][name][end] * factor[name], rel=1e-3, abs=1e-3)
    assert answer["in_gallery"] == pytest.approx(own["in_gallery"], abs=1e-4)


@pytest.mark.parametrize("scale", [Scale(s, k) for s in (0.1, 1.0, 3.0, 10.0) for k in (0.4, 1.0, 1.2)], ids=str)
def test_the_answer_scales_exactly(scale: Scale, engine: Engine, gathers: Float32) -> None:
    own = engine.retrieve(gathers, filter=Filter(ranges=(("mean_velocity", (2000.0, 3400.0)),)))
    line, k = scale.frame(engine.frame).survey, scale.k
    wanted = Filter(ranges=(("mean_velocity", (2000.0 * k, 3400.0 * k)),))
    found = engine.retrieve(gathers, line, scale=scale, filter=wanted)
    for one, other in zip(found, own, strict=True):
        assert [m.model_id for m in one.matches] == [m.model_id for m in other.matches]
        assert one.scale == scale and one.chosen is not None and not one.chosen.auto
        for match, its in zip(one.matches, other.matches, strict=True):
            assert match.similarity == pytest.approx(its.similarity, abs=1e-5)
            for d in DESCRIPTORS:
                assert match.descriptors[d.name] == pytest.approx(its.descriptors[d.name] * scale.of(d.unit))
        for name, q in one.physics.items():
            its_q, f = other.physics[name], scale.of(q.unit)
            assert (q.value, q.low, q.high) == pytest.approx((its_q.value * f, its_q.low * f, its_q.high * f), rel=1e-3)
        assert one.velocity is not None and other.velocity is not None
        np.testing.assert_allclose(one.velocity, other.velocity * k, rtol=1e-3)
        assert [note.code for note in one.warnings] == [note.code for note in other.warnings]


def test_without_a_scale_nothing_is_new(served: Any, engine: Engine, gathers: Float32) -> None:
    (one,) = engine.retrieve(gathers[0])
    assert one.scale == Scale() and one.chosen is None
    (result,) = served.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW).json()["results"]
    assert "scale" not in result and "?" not in result["matches"][0]["velocity_url"]
    (same,) = served.http.post("/v1/retrieve?scale=1", content=npy(gathers[0]), headers=RAW).json()["results"]
    assert same["scale"]["s"] == 1 and same["matches"] == result["matches"]


def test_novelty_is_worded_in_true_units(embedder: Any) -> None:
    ranges = embedder.weights.description.calibration.novelty
    values = np.tile((np.asarray(ranges.low) + np.asarray(ranges.high)) / 2, (2, 1))
    at = [m.name for m in MEASURES].index("centroid")
    values[:, at] = ranges.high[at] * 5
    own, true = judge(values, ranges, scales=[Scale(), SCALE])
    assert own.detail is not None and true.detail is not None
    assert f"is {ranges.high[at] * 5:.4g} Hz" in own.detail and f"is {ranges.high[at] * 1.5:.4g} Hz" in true.detail


def test_over_http(served: Any, gathers: Float32) -> None:
    content = {"include": "descriptors,physics,velocity,traces", "top_k": 3}
    own = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data=content).json()["results"][0]
    data = fields_of(scale=AT, **content)
    answer = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data=data).json()
    (result,) = answer["results"]
    scales(result, own)
    assert answer["ingest"]["receiver_x_m"] == [0, 2070] and result["velocity"]["cell_m"] == 60
    np.testing.assert_allclose(result["velocity"]["m_s"], 0.9 * np.asarray(own["velocity"]["m_s"]), atol=2)
    seen, its = result["traces"], own["traces"]
    assert seen["receiver_step_m"] == 30 and seen["dt_s"] == pytest.approx(0.004 * 3 / 0.9)
    assert seen["shot_x_m"] == pytest.approx([3 * x for x in its["shot_x_m"]])
    scale = result["scale"]
    assert (scale["s"], scale["k"], scale["auto"], scale["limits"], scale["band"]) == (3, 0.9, False, [], None)
    assert (scale["line_m"], scale["depth_m"], scale["cell_m"]) == (2070, 2100, 30)
    assert "2100 m deep in cells of 30 m" in scale["reason"] and result["warnings"] == []

    url = result["matches"][0]["velocity_url"]
    assert url.endswith("velocity.npy?scale=3,0.9") and result["matches"][0]["image_url"].endswith("png?scale=3,0.9")
    plain = np.load(io.BytesIO(served.http.get(url.partition("?")[0]).content))
    np.testing.assert_allclose(np.load(io.BytesIO(served.http.get(url).content)), plain * np.float32(0.9))
    about = served.http.get(url.replace("/velocity.npy", "")).json()
    assert about["cell_m"] == 30 and about["segy_url"].endswith("velocity.segy?scale=3,0.9")
    assert about["descriptors"]["mean_velocity"]["value"] == pytest.approx(plain.mean() * 0.9, rel=1e-4)
    file = served.http.get(about["segy_url"]).content
    assert int.from_bytes(file[3216:3218], "big") == 30_000  # millimetres
    assert int.from_bytes(file[3600 + 240 + 280 + 80 :][:4], "big") == 3000  # the second trace's x, centimetres
    images = [served.http.get(each).content for each in (about["image_url"], about["image_url"].partition("?")[0])]
    assert all(image.startswith(b"\x89PNG") for image in images) and images[0] != images[1]

    counted = served.http.get("/v1/gallery/distribution").json()["descriptors"]
    for d, mine in zip(
        counted, served.http.get(f"/v1/gallery/distribution?scale={AT}").json()["descriptors"], strict=True
    ):
        assert mine["counts"] == d["counts"] and mine["high"] == pytest.approx(d["high"] * FACTOR[d["name"]])


@pytest.mark.parametrize("s", [10.0, 100.0])
def test_large_cells_fit_into_segy(s: float) -> None:
    body = segy.write_velocity(np.full((70, 70), 2000, np.float32), cell_m=10 * s, title="large")
    step, unit = {10.0: (10_000, "CENTIMETRES"), 100.0: (1000, "METRES")}[s]
    assert int.from_bytes(body[3216:3218], "big") == step and f"IN {unit} ({step})" in body[:3200].decode("cp037")
    odd = segy.write_velocity(np.full((70, 70), 2000, np.float32), cell_m=12.34567, title="odd")
    assert "CELLS ARE 12.34567 X 12.34567 M" in odd[:3200].decode("cp037")


def test_filters_and_searches_are_in_true_units(served: Any, engine: Engine, models: tuple[Float32, list[str]]) -> None:
    http = served.http
    own = http.post("/v1/search", json={"descriptors": {"strongest_contrast_depth": 400, "mean_velocity": 2500}}).json()
    asked = {"descriptors": {"strongest_contrast_depth": 1200, "mean_velocity": 2250}, "scale": AT}
    found = http.post("/v1/search", json=asked).json()
    assert [m["model_id"] for m in found["results"][0]["matches"]] == [
        m["model_id"] for m in own["results"][0]["matches"]
    ]
    depth = found["results"][0]["matches"][0]["descriptors"]["strongest_contrast_depth"]
    assert depth == pytest.approx(3 * own["results"][0]["matches"][0]["descriptors"]["strongest_contrast_depth"])
    true = npy(models[0][4] * np.float32(0.9))
    answer = http.post("/v1/search", files={"file": true}, data={"scale": AT, "top_k": 1}).json()
    (best,) = answer["results"][0]["matches"]
    assert best["similarity"] > 0.999 and best["velocity_url"].endswith(f"?scale={AT}")
    assert best["model_id"] == engine.search_velocity(models[0][4], top_k=1)[0].matches[0].model_id
    wanted = {"mean_velocity": [None, 2250], "strongest_contrast_depth": [600, None]}
    data = {"scale": AT, "top_k": 60, "filter": json.dumps(wanted)}
    matches = http.post("/v1/search", files={"file": true}, data=data).json()["results"][0]["matches"]
    assert 0 < len(matches) < 60
    for match in matches:
        assert match["descriptors"]["mean_velocity"] <= 2250.01
        assert match["descriptors"]["strongest_contrast_depth"] >= 599.99


def test_an_npz_answer_has_true_models(served: Any, engine: Engine, gathers: Float32) -> None:
    with Client(served.url) as client:
        arrays = client.retrieve_arrays(gathers[:2], TRUE.survey, scale=SCALE, top_k=2)
    assert arrays["scale"].tolist() == [3, 0.9]
    for ids, velocities in zip(arrays["model_id"], arrays["velocity"], strict=True):
        for model_id, velocity in zip(ids, velocities, strict=True):
            np.testing.assert_allclose(velocity, engine.gallery.velocity(model_id) * np.float32(0.9))
    (own,) = engine.retrieve(gathers[0])
    assert own.velocity is not None
    np.testing.assert_allclose(arrays["read_velocity"][0], own.velocity * 0.9, rtol=1e-3)


def test_auto_chooses_says_and_answers(served: Any, gathers: Float32) -> None:
    own = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).json()["results"][0]
    for file, data in (
        (su(gathers[0], Scale(3)), {}),
        (npy(gathers[0]), fields_of(Scale(3).frame(OPENFWI_FRAME).survey)),
        (npz({"gathers": gathers[0], "dt_s": np.array(0.003), "shot_x_m": 3 * np.asarray(OPENFWI_FRAME.shot_x_m),
              "receiver_x_m": 30.0 * np.arange(70)}), {}),
    ):  # fmt: skip
        response = served.http.post("/v1/retrieve", files={"file": file}, data={"scale": "auto"} | data)
        (result,) = response.json()["results"]
        scales(result, own, {d.name: Scale(3).of(d.unit) for d in DESCRIPTORS})
        scale = result["scale"]
        assert (scale["s"], scale["auto"], scale["decided_by"]) == (3, True, "aperture")
        assert {limit["name"] for limit in scale["limits"]} == {
            "aperture",
            "record",
            "spacing",
            "sampling",
            "band",
            "range",
        }
        assert scale["band"]["low_hz"] < 5 < scale["band"]["high_hz"]
        assert "scale_chosen" in [warning["code"] for warning in result["warnings"]]
    refused = served.http.post(
        "/v1/retrieve", files={"file": su(gathers[0], Scale(3))}, data={"scale": "auto", "target_depth_m": "9000"}
    ).json()
    assert refused["code"] == "invalid_survey" and "target_depth asks for s of 12.9 or more" in refused["detail"]
    assumed = served.http.post("/v1/retrieve?scale=3", content=npy(gathers[0]), headers=RAW).json()["results"][0]
    assert [warning["code"] for warning in assumed["warnings"]] == ["assumed_line"]


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        ({"scale": "big"}, "invalid_survey", "got 'big'"),
        ({"scale": "1000"}, "invalid_survey", "between 0.01 and 100"),
        ({"target_depth_m": "500"}, "invalid_survey", "got no scale"),
        (fields_of(OPENFWI_FRAME.survey, scale="2"), "invalid_gather", "at least 1.2 s are needed"),
        ({"scale": "3", "dt_s": "0.05"}, "invalid_survey", "outside 0.0003-0.024 s"),
    ],
)
def test_refusals_over_http(data: dict[str, str], code: str, words: str, served: Any, gathers: Float32) -> None:
    answer = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data=data)
    assert answer.status_code == 422 and answer.json()["code"] == code and words in answer.json()["detail"]


def test_models_have_no_record_to_choose_from(served: Any, models: tuple[Float32, list[str]]) -> None:
    url = "/v1/models/none/velocity.npy?scale=auto"
    assert served.http.get(url).json()["code"] == "invalid_query"
    found = served.http.post("/v1/search", files={"file": npy(models[0][0])}, data={"scale": "auto"}).json()
    assert found["code"] == "invalid_query" and "s or s,k" in found["detail"]


def test_models_of_a_true_size_are_added(serve: Any, make_gallery: Any, models: tuple[Float32, list[str]]) -> None:
    server = serve(gallery=make_gallery(), writable=True)
    velocity = (models[0][:1] + 7).astype(np.float32)
    with Client(server.url) as client:
        client.add_models(velocity * np.float32(0.9), model_ids=["true"], scale=SCALE)
        np.testing.assert_allclose(client.velocity("true"), velocity[0], rtol=1e-6)
        np.testing.assert_allclose(client.velocity("true", scale=SCALE), velocity[0] * 0.9, rtol=1e-6)
        assert client.record("true", scale=SCALE).cell_m == 30 and client.record("true").cell_m == 10
        assert client.image("true", scale=SCALE) != client.image("true")
        assert client.distribution(scale=SCALE).descriptors[0].high < client.distribution().descriptors[0].high
        answer = client.add_models(np.full((70, 70), 1200.0), model_ids=["slow"], scale="3,0.4")
        assert "leave 600 to 1800" not in str(answer.warnings) and answer.warnings == []
        (warning,) = client.add_models(np.full((70, 70), 2400.0), model_ids=["fast"], scale="3,0.4").warnings
        assert "leave 600 to 1800 m/s" in warning.detail and "2400 to 2400 m/s" in warning.detail
        with pytest.raises(ServerRefused, match="70 x 70 cells of 30 m"):
            client.add_models(np.full((60, 70), 2000.0), scale=3)


def test_both_clients_and_the_stream(served: Any, gathers: Float32) -> None:
    with Client(served.url) as client:
        one = client.retrieve(gathers[0], TRUE.survey, scale=(3, 0.9))
        lines = list(client.retrieve_stream(gathers, TRUE.survey, scale=SCALE))
        (searched,) = client.search_velocity(np.full((70, 70), 1800.0), scale=SCALE, top_k=1).results
        assert client.search_descriptors({"mean_velocity": 1800.0}, scale=SCALE, top_k=1).results[0].matches
        auto = client.retrieve(gathers[0], TRUE.survey, scale=AutoScale(0.9, 1500.0))
    assert one.results[0].scale is not None and one.results[0].scale.s == 3
    assert [line.result.scale.s for line in lines] == [3, 3, 3]
    assert lines[0].result.matches == one.results[0].matches
    assert searched.matches[0].velocity_url.endswith("?scale=3,0.9")
    assert auto.results[0].scale is not None and auto.results[0].scale.decided_by == "target_depth"

    async def ask() -> Any:
        async with AsyncClient(served.url) as client:
            return await client.retrieve(gathers[0], TRUE.survey, scale=SCALE)

    assert asyncio.run(ask()).results[0].matches == one.results[0].matches
    with pytest.raises(InvalidSurvey, match="a number s"):
        Client(served.url).retrieve(gathers[0], scale="wide")


def test_in_bulk_and_on_the_command_line(
    tmp_path: Path, weights: Path, gallery_path: Path, engine: Engine, gathers: Float32
) -> None:
    (tmp_path / "line.su").write_bytes(su(gathers[0], Scale(3)))
    (own,) = engine.retrieve(gathers[0])
    options = RetrieveOptions(scale=AutoScale())
    assert options.to_json()["scale"] == "auto" and "scale" not in RetrieveOptions().to_json()
    with GalleryBackend(gallery_path, weights, "cpu", options) as backend:
        (result,) = backend.file((tmp_path / "line.su").read_bytes()).results
    assert result.scale is not None and result.scale.s == 3
    assert [match.model_id for match in result.matches] == [match.model_id for match in own.matches]

    asked = ("retrieve", tmp_path / "line.su", "--gallery", gallery_path, "--weights", weights, "--device", "cpu")
    done = seisbind(*asked, "--scale", "auto")
    assert done.returncode == 0, done.stderr
    assert "Scale s = 3: a line of 2070 m, 2100 m deep" in done.stdout.replace("\n", " ")
    out = tmp_path / "answers.jsonl"
    assert seisbind(*asked, "--scale", "3", "--out", out).returncode == 0
    (line,) = [json.loads(text) for text in out.read_text().splitlines()]
    assert line["asked"]["scale"] == "3" and line["result"]["scale"]["cell_m"] == 30
    refused = seisbind(*asked, "--scale", "auto", "--target-depth", "9000")
    assert refused.returncode == 1 and "target_depth asks for s of 12.9 or more" in refused.stderr.replace("\n", " ")
