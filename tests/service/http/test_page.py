"""The page and what it is made of, without a browser: types, headers, no outside host, samples, what it asks for."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.confidence.presence import LIMIT
from seisbind.model.encoders.weights_file import load_weights
from seisbind.model.ground.descriptors import NAMES, describe
from seisbind.model.ground.families import mixed
from seisbind.model.survey.preparation import prepare
from seisbind.service.commands.demo import npy
from seisbind.service.engine.engine import Engine
from seisbind.service.formats.segy import write_velocity
from seisbind.service.http.page import INDEX, MEDIA_TYPES, POLICY, WEB, web_files
from seisbind.service.schemas import RetrieveFields
from seisbind.service.transport.keys import Scope, make_key

Float32 = NDArray[np.float32]
FILES = sorted(path.relative_to(WEB).as_posix() for path in WEB.rglob("*") if path.is_file())
TEXTS = [name for name in FILES if not name.endswith((".npz", ".npy"))]


def test_every_file_is_served_with_its_type_and_safe_headers(served: Any) -> None:
    assert {name for name in FILES if name != INDEX} == set(web_files())
    for name, file in web_files().items():
        response = served.http.get(f"/web/{name}")
        assert (response.status_code, response.content) == (200, (WEB / name).read_bytes())
        assert response.headers["content-type"] == file.media_type == MEDIA_TYPES[Path(name).suffix]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize("name", ["", INDEX, "none.js", "../pages.py", "%2e%2e/pages.py", "..%2fpages.py", "samples"])
def test_nothing_else_is(served: Any, name: str) -> None:
    response = served.http.get(f"/web/{name}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


def test_the_policy_allows_this_servers_files_and_nothing_inline(served: Any) -> None:
    response = served.http.get("/")
    assert response.headers["content-security-policy"] == POLICY
    policy = dict(part.strip().partition(" ")[::2] for part in POLICY.split(";"))
    assert policy["default-src"] == "'none'"
    for name in ("script-src", "style-src", "img-src", "connect-src"):
        assert policy[name] == "'self'"
    for name in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == "'none'"
    assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son[a-z]+=", response.text)


def test_the_page_says_what_is_served_and_which_calls_there_are(served: Any) -> None:
    page = served.http.get("/").text
    assert "60 velocity models" in page and "{{" not in page
    for path in served.http.get("/openapi.json").json()["paths"]:
        assert f" {path}</code>" in page


@pytest.mark.parametrize("name", TEXTS)
def test_nothing_refers_to_another_host(name: str) -> None:
    text = (WEB / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, not an address
    assert not re.search(
        r"\b(https?|wss?):|[\"'(]//|innerHTML|eval\(|localStorage|sessionStorage|document\.cookie", text
    )


def test_what_the_page_loads_is_there() -> None:
    index = (WEB / INDEX).read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="web/([^"]+)"', index)
    for module in WEB.glob("*.js"):
        loaded += re.findall(r'from "\./([^"]+)"', module.read_text(encoding="utf-8"))
    assert set(loaded) <= set(web_files()) and {"page.js", "page.css", "draw.js"} <= set(loaded)


def test_the_page_sends_the_fields_of_the_call() -> None:
    index, script = (WEB / INDEX).read_text(encoding="utf-8"), (WEB / "question.js").read_text(encoding="utf-8")
    (sent,) = re.findall(r"const GEOMETRY = \[(.+)\];", script)
    names = set(re.findall(r'"(\w+)"', sent))
    assert {"scale", "target_depth_m"} < names < set(RetrieveFields.model_fields)
    assert all(f'name="{name}"' in index for name in names)


def test_the_scripts_ids_are_the_pages() -> None:
    index = (WEB / INDEX).read_text(encoding="utf-8")
    ids = re.findall(r'\bid="([^"]+)"', index)
    assert len(ids) == len(set(ids))
    named = {name: set(re.findall(r'\bby\("([^"]+)"\)', (WEB / name).read_text(encoding="utf-8"))) for name in TEXTS}
    assert len([name for name, found in named.items() if found]) > 5
    for script, found in named.items():
        assert found <= set(ids), script


def test_the_page_and_the_docs_draw_the_line_where_the_weights_do() -> None:
    """Below it ground is taken for new, and its matches are ranked by structure."""
    calibration = load_weights().description.calibration
    assert calibration is not None and calibration.presence.limit == LIMIT
    assert f"probability >= {LIMIT:g})" in (WEB / "words.js").read_text(encoding="utf-8")
    answers = (Path(__file__).parents[3] / "docs" / "answers.md").read_text(encoding="utf-8")
    assert f"| below {LIMIT:g} |" in answers and f"\nBelow {LIMIT:g} the 30 most similar" in answers


def test_the_page_can_be_closed_and_opened(serve: Any) -> None:
    line = make_key("reader", Scope.READ)[1].line
    closed = serve(page_access="off")
    keyed, opened = serve(api_keys=line), serve(api_keys=line, page_access="open")
    for path in ("/", "/web/page.js", "/web/samples/samples.json"):
        assert closed.http.get(path).json()["code"] == "not_found"
        assert keyed.http.get(path).json()["code"] == "key_required"
        assert opened.http.get(path).status_code == 200
    assert opened.http.get("/v1/gallery").json()["code"] == "key_required"


def test_samples_are_small_ours_and_answered(served: Any) -> None:
    samples = json.loads((WEB / "samples" / "samples.json").read_text(encoding="utf-8"))
    assert sum(path.stat().st_size for path in (WEB / "samples").iterdir()) < 1_000_000
    assert {"salt.npz", "incomplete.npz", "fault.npz"} <= {sample["file"] for sample in samples}
    for sample in samples:
        content = (WEB / "samples" / sample["file"]).read_bytes()
        answer = served.http.post("/v1/retrieve", files={"file": content}).json()
        assert (answer["ingest"]["format"], answer["ingest"]["dt_s"]) == ("npz", 0.004)
        assert "resampled" not in {warning["code"] for warning in answer["results"][0]["warnings"]}
        ground = np.load(WEB / "samples" / sample["ground"], allow_pickle=False)
        assert (ground.shape, ground.dtype) == ((70, 70), np.dtype("<u2"))
        physics = describe(ground[None].astype(np.float32))[0]
        assert list(sample["physics"]) == list(NAMES)
        assert np.allclose(list(sample["physics"].values()), physics, rtol=2e-3, atol=0.05)


def test_the_ground_of_the_fault_is_in_the_demos_gallery() -> None:
    ground = np.load(WEB / "samples" / "fault-ground.npy", allow_pickle=False)
    velocity, family = mixed(2000, 1)
    assert (np.abs(velocity[family == "FlatFault-A"] - ground).max(axis=(1, 2)) <= 0.5).sum() == 1


def test_traces_and_the_coarse_model_come_where_asked_for(served: Any, gathers: Float32, engine: Engine) -> None:
    sent = {"files": {"file": npy(gathers)}, "data": {"include": "velocity,traces"}}
    results = served.http.post("/v1/retrieve", **sent).json()["results"]
    prepared = prepare(gathers)
    expected = engine.retrieve(gathers)
    for number, result in enumerate(results):
        part = result["traces"]
        assert (part["shots"], part["samples"], part["receivers"]) == prepared.traces.shape[1:]
        counts = np.frombuffer(base64.b64decode(part["int16"]), "<i2").reshape(prepared.traces.shape[1:])
        assert np.abs(counts * part["scale"] - prepared.traces[number]).max() <= 0.51 * part["scale"]
        assert part["shot_x_m"] == prepared.shot_x_m[number].tolist()
        velocity = expected[number].velocity
        assert velocity is not None
        assert np.abs(np.asarray(result["velocity"]["m_s"]) - velocity).max() <= 1.0
        assert result["velocity"]["cell_m"] * len(velocity) == 700
    bare = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).json()["results"][0]
    assert bare["traces"] is None and bare["velocity"] is None
    refused = served.http.post("/v1/retrieve/stream", **(sent | {"data": {"include": "traces"}}))
    assert refused.json()["code"] == "invalid_query"


def test_traces_are_bounded(serve: Any, gathers: Float32) -> None:
    few = gathers[:1, :, ::4, :].repeat(14, axis=0)  # 14 x 5 shots, and 64 are given
    data = {"include": "traces", "dt_s": "0.004"}
    results = serve().http.post("/v1/retrieve", files={"file": npy(few)}, data=data).json()["results"]
    assert [result["traces"] is not None for result in results] == [True] * 12 + [False] * 2


def test_the_distribution_counts_every_model_and_follows_changes(serve: Any, make_gallery: Any) -> None:
    server = serve(gallery=make_gallery(), writable=True)
    body = server.http.get("/v1/gallery/distribution").json()
    assert [each["name"] for each in body["descriptors"]] == list(NAMES)
    ranges = {
        each["name"]: (each["low"], each["high"]) for each in server.http.get("/v1/gallery").json()["descriptors"]
    }
    with Gallery.open(server.settings.gallery, fingerprint=None) as gallery:
        held = np.stack([record.descriptors for record in gallery.records(gallery.model_ids())])
    for column, each in zip(held.T.astype(np.float64), body["descriptors"], strict=True):
        assert (each["low"], each["high"]) == ranges[each["name"]]
        expected, _ = np.histogram(column, 24, (each["low"], each["high"]))
        assert sum(each["counts"]) == 60
        assert np.abs(np.cumsum(each["counts"]) - np.cumsum(expected)).max() <= 1  # a value on an edge
    flat = np.full((70, 70), 1234, np.float32)
    assert server.http.post("/v1/models", files={"file": npy(flat)}).status_code == 201
    after = server.http.get("/v1/gallery/distribution").json()
    assert after["generation"] > body["generation"]
    assert (after["descriptors"][0]["low"], sum(after["descriptors"][0]["counts"])) == (1234, 61)


def test_the_distribution_of_nothing_and_of_one(tmp_path: Path, engine: Engine) -> None:
    path = tmp_path / "empty"
    with Gallery.create(path, fingerprint=engine.embedder.fingerprint, dimension=engine.gallery.dimension) as gallery:
        assert gallery.distribution().histograms == {}
        Engine(engine.embedder, gallery).add_models(np.full((1, 70, 70), 2000, np.float32))
        found = gallery.distribution().histograms["mean_velocity"]
        assert (found.low, found.high, sum(found.counts)) == (2000, 2000, 1)


def test_a_model_as_segy_is_read_by_another_reader(served: Any, tmp_path: Path) -> None:
    segyio = pytest.importorskip("segyio", reason="segyio, a second reader, is not installed")
    found = served.http.post("/v1/search", json={"descriptors": {"mean_velocity": 2500}}).json()
    match = found["results"][0]["matches"][0]
    about = served.http.get(f"/v1/models/{match['model_id']}").json()
    response = served.http.get(about["segy_url"])
    assert response.headers["content-type"] == "application/vnd.seg-y"
    assert response.headers["cache-control"] == "private, max-age=300"
    path = tmp_path / "model.segy"
    path.write_bytes(response.content)
    velocity = np.load(io.BytesIO(served.http.get(match["velocity_url"]).content), allow_pickle=False)
    with segyio.open(path, ignore_geometry=True) as opened:
        assert np.array_equal(opened.trace.raw[:].T, velocity)
        assert opened.samples.tolist() == [10.0 * i for i in range(70)]  # metres
        assert opened.bin[segyio.BinField.SEGYRevision] in (1, 256)
        assert opened.bin[segyio.BinField.MeasurementSystem] == 1
        field = segyio.TraceField
        for number in (0, 42):
            header = opened.header[number]
            assert header[field.CDP] == number + 1
            assert header[field.SourceGroupScalar] == -100
            assert header[field.CDP_X] == header[field.SourceX] == header[field.GroupX] == number * 1000
        text = segyio.tools.wrap(opened.text[0])
        assert match["model_id"] in text and "DEPTH DOMAIN" in text and "SEG Y REV1" in text
    refused = served.http.post("/v1/search", files={"file": response.content})
    assert refused.json()["code"] == "unsupported_format"


def test_segy_of_a_title_that_ebcdic_has_not() -> None:
    body = write_velocity(np.full((70, 70), 2000, np.float32), cell_m=10.0, title="Größe 速度 " + "x" * 200)
    assert len(body) == 3600 + 70 * (240 + 280)
    assert body[:3200].decode("cp037").split("C 3")[0].endswith("x" * 20)
