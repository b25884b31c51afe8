"""Every call of the server, over real HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from fastapi import FastAPI
from numpy.typing import NDArray

from seisbind.index import Filter, Gallery
from seisbind.model import errors as tree
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.weights_file import load_weights, save_weights
from seisbind.service.client.client import Client
from seisbind.service.engine.bodies import retrieval_body, search_result_body
from seisbind.service.engine.engine import Engine
from seisbind.service.http.app import create_app
from seisbind.service.runtime.images import DRAWING
from seisbind.service.runtime.serving import Serving
from seisbind.service.schemas import PARTS, SEARCH_PARTS, Problem, RetrieveAnswer, SearchResultBody
from seisbind.service.settings import Settings
from seisbind.service.transport.problems import CODE, OTHER, REQUEST_INVALID, status_of
from wire import RAW, connect, npy

Float32 = NDArray[np.float32]
DOCS = Path(__file__).parents[3] / "docs" / "http.md"


def assert_same(found: Any, expected: Any) -> None:
    """JSON that differs by no more than the rounding of float32 does with the size of a batch."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert found == expected


def test_retrieve_says_what_the_engine_says(served: Any, engine: Engine, gathers: Float32) -> None:
    """Promise 11: in process and over HTTP, in a form and raw, one gather and a stack."""
    wanted = {"max_velocity": [None, 4400]}
    expected = [retrieval_body(one, PARTS) for one in engine.retrieve(gathers, top_k=3, filter=Filter.parse(wanted))]
    form = served.http.post(
        "/v1/retrieve", files={"file": npy(gathers)}, data={"top_k": 3, "filter": json.dumps(wanted)}
    )
    assert form.status_code == 200, form.text
    answer = RetrieveAnswer.model_validate_json(form.content)
    assert answer.results == expected
    assert answer.gallery.models == 60
    assert answer.weights.fingerprint == engine.gallery.fingerprint
    assert answer.request_id == form.headers["x-request-id"]
    assert set(answer.timings_ms) == {"read", "prepare", "wait", "encode", "search", "infer", "rank", "total"}
    raw = served.http.post(
        "/v1/retrieve",
        content=npy(gathers[1]),
        params={"top_k": 3, "filter": json.dumps(wanted)},
        headers={"Content-Type": "application/x-npy"},
    )
    (alone,) = RetrieveAnswer.model_validate_json(raw.content).results
    assert [m.model_id for m in alone.matches] == [m.model_id for m in expected[1].matches]


def test_same_bytes_same_answer(served: Any, gathers: Float32) -> None:
    first, second = (served.http.post("/v1/retrieve", files={"file": npy(gathers)}).json() for _ in range(2))
    assert first["results"] == second["results"]
    assert first["request_id"] != second["request_id"]


def test_geometry_beside_the_file(served: Any, engine: Engine, gathers: Float32) -> None:
    other = gathers[0][1:4, ::2, 5:65]
    positions = ",".join(str(50 + 10 * i) for i in range(60))
    fields = {"dt_s": 0.002, "shot_x_m": "170, 340, 520", "receiver_x_m": positions, "peak_hz": 15}
    response = served.http.post("/v1/retrieve", files={"file": npy(other)}, data=fields)
    assert response.status_code == 200, response.text
    codes = [warning["code"] for warning in response.json()["results"][0]["warnings"]]
    assert {"resampled", "receivers_mapped", "shots_moved"} <= set(codes)


def test_an_assumption_is_a_warning(served: Any, gathers: Float32) -> None:
    response = served.http.post("/v1/retrieve", files={"file": npy(gathers[0][:, :900])})
    assert response.json()["results"][0]["warnings"][0]["code"] == "assumed_dt"


def test_include_leaves_parts_out(served: Any, gathers: Float32) -> None:
    bare = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data={"include": ""}).json()
    assert bare["results"][0]["physics"] is None
    assert bare["results"][0]["matches"][0]["descriptors"] is None


def test_search_by_velocity(served: Any, engine: Engine, models: tuple[Float32, Sequence[str]]) -> None:
    expected = [search_result_body(one, SEARCH_PARTS) for one in engine.search_velocity(models[0][:2], top_k=4)]
    response = served.http.post("/v1/search", files={"file": npy(models[0][:2])}, data={"top_k": 4})
    assert [SearchResultBody.model_validate(one) for one in response.json()["results"]] == expected
    assert expected[0].matches[0].similarity == pytest.approx(1, abs=1e-5)


def test_search_by_descriptors(served: Any, engine: Engine) -> None:
    query = {"descriptors": {"mean_velocity": 2500, "deep_velocity": 3000}, "top_k": 2, "filter": {"family": "Style-A"}}
    expected = engine.search_descriptors(
        {"mean_velocity": 2500, "deep_velocity": 3000}, top_k=2, filter=Filter.parse({"family": "Style-A"})
    )
    (found,) = served.http.post("/v1/search", json=query).json()["results"]
    assert SearchResultBody.model_validate(found) == search_result_body(expected, SEARCH_PARTS)


def test_one_model(served: Any, engine: Engine) -> None:
    model_id = engine.gallery.model_ids()[7]
    body = served.http.get(f"/v1/models/{model_id}").json()
    record = engine.gallery.record(model_id)
    assert (body["family"], body["checksum"], body["depth_cells"]) == (record.family, record.checksum, 70)
    assert body["descriptors"]["deep_velocity"] == {"value": float(record.descriptors[9]), "unit": "m/s"}
    npy_response = served.http.get(body["velocity_url"])
    assert npy_response.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(npy_response.content)), engine.gallery.velocity(model_id))
    first, again = (served.http.get(body["image_url"]) for _ in range(2))
    assert first.content.startswith(b"\x89PNG")
    assert first.content == again.content


def test_pictures_from_many_threads(served: Any, engine: Engine) -> None:
    async def fetch() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, timeout=60) as http:
            ids = engine.gallery.model_ids()[:12]
            return list(await asyncio.gather(*(http.get(f"/v1/models/{i}/image.png") for i in ids + ids)))

    found = asyncio.run(fetch())
    assert {response.status_code for response in found} == {200}
    assert [r.content for r in found[:12]] == [r.content for r in found[12:]]


@pytest.mark.parametrize("tail", ["", "/velocity.npy", "/image.png"])
def test_an_unknown_model(served: Any, tail: str) -> None:
    response = served.http.get(f"/v1/models/v-none{tail}")
    assert (response.status_code, response.json()["code"]) == (404, "unknown_model")


def test_gallery(served: Any, engine: Engine) -> None:
    body = served.http.get("/v1/gallery").json()
    assert body["gallery"] == {"name": "small", "models": 60, "generation": 1, "digest": engine.info().digest}
    assert body["families"] == engine.gallery.families()
    assert [d["name"] for d in body["descriptors"]][:2] == ["mean_velocity", "std_velocity"]
    assert (body["writable"], body["calibrated"]) == (False, True)
    assert "/" not in body["gallery"]["name"]


def test_live_ready_and_the_page(served: Any) -> None:
    stamp = served.serving._held.engine.gallery.stamp
    assert served.http.get("/healthz").json() == {"status": "live"}
    assert served.http.get("/readyz").json() == {
        "status": "ready",
        "generation": stamp,
    }
    assert "60 velocity models" in served.http.get("/").text


def test_a_read_only_server_does_not_change(served: Any, models: tuple[Float32, Sequence[str]]) -> None:
    for response in (
        served.http.post("/v1/models", files={"file": npy(models[0][0])}),
        served.http.delete("/v1/models/v-none"),
    ):
        assert (response.status_code, response.json()["code"]) == (403, "not_writable")


def test_velocities_that_the_weights_do_not_know_are_said(serve: Any, make_gallery: Any) -> None:
    """And nothing is said of others: their answer has the two fields that it always had."""
    server = serve(gallery=make_gallery(), writable=True)
    own = np.linspace(1500, 4500, 70 * 70, dtype=np.float32).reshape(70, 70)
    added = server.http.post("/v1/models", files={"file": npy(own)})
    assert (added.status_code, list(added.json())) == (201, ["model_ids", "gallery"])
    added = server.http.post("/v1/models", files={"file": npy(np.stack([own + 1, own + 3500, own - 100]))})
    assert added.status_code == 201, added.text
    (warning,) = added.json()["warnings"]
    assert warning["code"] == "velocity_untrained"
    assert "leave 1500 to 4500 m/s" in warning["detail"] and ": 3, with 1400 to 8000 m/s" in warning["detail"]
    with Client(server.url) as client:
        assert client.add_models(own + 3400).warnings[0].code == "velocity_untrained"
        assert client.add_models(own[::-1]).warnings == []


def test_add_find_and_remove(serve: Any, make_gallery: Any, busy: Any) -> None:
    server = serve(gallery=make_gallery(), writable=True)
    new = np.linspace(1500, 4000, 70 * 70, dtype=np.float32).reshape(70, 70)
    added = server.http.post("/v1/models", files={"file": npy(new)}, data={"family": "ramp", "tags": "own, smooth"})
    assert added.status_code == 201, added.text
    (model_id,) = added.json()["model_ids"]
    assert added.json()["gallery"]["models"] == 61
    body = server.http.get(f"/v1/models/{model_id}").json()
    assert (body["family"], body["tags"]) == ("ramp", ["own", "smooth"])
    found = server.http.post("/v1/search", files={"file": npy(new)}, params={"filter": '{"tag": "own"}'}).json()
    assert [match["model_id"] for match in found["results"][0]["matches"]] == [model_id]
    again = server.http.post("/v1/models", files={"file": npy(new)})
    assert (again.status_code, again.json()["code"]) == (422, "invalid_query")
    with busy(server):  # the model thread, which removing does without
        assert server.http.delete(f"/v1/models/{model_id}").status_code == 204
    assert server.http.delete(f"/v1/models/{model_id}").json()["code"] == "unknown_model"
    assert server.http.get("/v1/gallery").json()["gallery"]["models"] == 60
    assert server.http.post("/v1/gallery/reload").status_code == 200


def test_reload_serves_what_another_process_added(
    serve: Any, make_gallery: Any, embedder: Embedder, other_weights: Path, gathers: Float32
) -> None:
    path = make_gallery()
    server = serve(gallery=path)
    with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
        Engine(embedder, gallery).add_models(np.linspace(2000, 3000, 4900).reshape(1, 70, 70), model_ids=["ramp"])
    assert server.http.get("/v1/gallery").json()["gallery"]["models"] == 60  # not before it is told to
    body = server.http.post("/v1/gallery/reload").json()
    assert (body["before"]["models"], body["after"]["models"]) == (60, 61)
    assert server.http.get("/v1/models/ramp").status_code == 200
    # promise 17: a gallery that cannot be served never displaces a good one
    Gallery.create(path, fingerprint=Embedder.load(other_weights).fingerprint, overwrite=True).close()
    refused = server.http.post("/v1/gallery/reload")
    assert (refused.status_code, refused.json()["code"]) == (409, "weights_mismatch")
    answer = server.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).json()
    assert answer["gallery"]["models"] == 61


def test_weights_of_the_same_embeddings_serve_and_reload_a_gallery_without_a_rebuild(
    serve: Any, make_gallery: Any, weights: Path, embedder: Embedder, models: tuple[Float32, Sequence[str]],
    gathers: Float32, tmp_path: Path,
) -> None:  # fmt: skip
    """The gallery was made with weights whose heads over the gathers were others; it is read, written, reloaded."""
    before = load_weights(weights)
    later = deepcopy(before.encoders)
    with torch.no_grad():
        later.state_dict()["seismic.descriptor_head.2.bias"].add_(0.5)
    changed = tmp_path / "later.safetensors"
    fingerprint = save_weights(changed, later, before.description)
    assert fingerprint != before.fingerprint
    path = make_gallery()
    server = serve(gallery=path, weights=changed)
    body = server.http.get("/v1/gallery").json()
    assert (body["weights"]["fingerprint"], body["gallery"]["models"]) == (fingerprint, 60)
    answer = server.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data={"top_k": 60}).json()
    with Gallery.open(path, fingerprint=embedder.fingerprint) as gallery:
        own = Engine(embedder, gallery).retrieve(gathers[0], top_k=60)[0]
    found = {each["model_id"]: each["similarity"] for each in answer["results"][0]["matches"]}
    assert found == {each.model_id: pytest.approx(each.similarity, abs=1e-6) for each in own.matches}
    after = Embedder.load(changed, device="cpu")
    with Gallery.open(path, fingerprint=after.fingerprint, writable=True) as gallery:
        Engine(after, gallery).add_models(np.linspace(2000, 3000, 4900).reshape(1, 70, 70), model_ids=["ramp"])
    reloaded = server.http.post("/v1/gallery/reload")
    assert (reloaded.status_code, reloaded.json()["after"]["models"]) == (200, 61)


def test_reload_under_load_mixes_nothing(
    serve: Any, make_gallery: Any, embedder: Embedder, models: tuple[Float32, Sequence[str]], gathers: Float32
) -> None:
    """Two galleries take turns in one place; each answer is wholly that of the one whose generation it states."""
    path, other = make_gallery(), make_gallery()
    with Gallery.open(other, fingerprint=embedder.fingerprint, writable=True) as gallery:
        gallery.remove([match.model_id for match in Engine(embedder, gallery).retrieve(gathers[0])[0].matches])
    expected = {}
    for each in (path, other):
        with Gallery.open(each, fingerprint=embedder.fingerprint) as gallery:
            engine = Engine(embedder, gallery)
            results = [retrieval_body(one, PARTS).model_dump() for one in engine.retrieve(gathers[0])]
            expected[engine.info().generation] = (engine.info().count, results)
    assert len(expected) == 2
    server = serve(gallery=path)
    body = npy(gathers[0])
    seen = []

    async def swap_and_ask() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            for _ in range(8):
                calls = [asyncio.create_task(http.post("/v1/retrieve", content=body, headers=RAW)) for _ in range(3)]
                aside = path.with_name("aside")
                path.rename(aside)
                other.rename(path)
                aside.rename(other)
                assert (await http.post("/v1/gallery/reload")).status_code == 200
                calls += [asyncio.create_task(http.post("/v1/retrieve", content=body, headers=RAW)) for _ in range(2)]
                for response in await asyncio.gather(*calls):
                    assert response.status_code == 200, response.text
                    seen.append(response.json())

    asyncio.run(swap_and_ask())
    for answer in seen:
        models, results = expected[answer["gallery"]["generation"]]
        assert answer["gallery"]["models"] == models
        assert_same(answer["results"], results)
    assert {answer["gallery"]["generation"] for answer in seen} == set(expected)


Call = Callable[[httpx.Client], httpx.Response]


def post(path: str, **sent: Any) -> Call:
    return lambda http: http.post(path, **sent)


def raw(query: str, content: bytes = b"x") -> Call:
    return post(f"/v1/retrieve?{query}", content=content, headers=RAW)


def form(data: dict[str, object]) -> Call:
    return post("/v1/retrieve", files={"file": b"x"}, data=data)


def typed(path: str, kind: str, content: bytes) -> Call:
    return post(path, content=content, headers={"Content-Type": kind})


FORM = b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n3\r\n--b--\r\n'

BAD: dict[str, tuple[str, int, Call]] = {
    "nothing there": ("not_found", 404, lambda http: http.get("/v2/retrieve")),
    "another method": ("method_not_allowed", 405, lambda http: http.get("/v1/retrieve")),
    "no type": ("unsupported_format", 415, post("/v1/retrieve", content=b"x")),
    "JSON gathers": ("unsupported_format", 415, post("/v1/retrieve", json={"gathers": []})),
    "another file": ("malformed_upload", 422, post("/v1/retrieve", files={"wrong": b"x"})),
    "two files": ("malformed_upload", 422, post("/v1/retrieve", files=[("file", b"x"), ("file", b"x")])),
    "a form without files": ("malformed_upload", 422, post("/v1/retrieve", files={"file": (None, "x")})),
    "a form without boundary": ("malformed_upload", 422, typed("/v1/retrieve", "multipart/form-data", b"x")),
    "a broken form": ("malformed_upload", 422, typed("/v1/retrieve", "multipart/form-data; boundary=b", b"x")),
    **{
        f"a form in {charset}": (
            "unsupported_format",
            415,
            typed("/v1/retrieve", f"multipart/form-data; boundary=b; charset={charset}", FORM),
        )
        for charset in ("undefined", "punycode", "idna", "utf-16", "none-such")
    },
    "a huge field": ("malformed_upload", 422, form({"top_k": "1" * 40_000})),
    "many fields": ("malformed_upload", 422, form({f"a{i}": i for i in range(40)})),
    "an unknown field": ("invalid_request", 422, form({"topk": 1})),
    "top_k 0": ("invalid_request", 422, form({"top_k": 0})),
    "top_k a word": ("invalid_request", 422, raw("top_k=many")),
    "top_k too large": ("invalid_query", 422, raw("top_k=71")),
    "an unknown part": ("invalid_query", 422, raw("include=all")),
    "physics of a search": ("invalid_query", 422, post("/v1/search?include=physics", files={"file": b"x"})),
    "physics of a search in JSON": (
        "invalid_query",
        422,
        post("/v1/search", json={"descriptors": {"mean_velocity": 2500}, "include": ["physics"]}),
    ),
    "a filter cut off": ("invalid_query", 422, raw("filter={")),
    "a filter of a list": ("invalid_query", 422, raw("filter=[]")),
    "a filter by colour": ("invalid_query", 422, raw('filter={"color":1}')),
    "a filter with half a character": ("invalid_query", 422, raw('filter={"family":"\\ud800"}')),
    "a deep filter": ("invalid_query", 422, raw("filter=" + "[" * 19_000)),
    "positions of letters": ("invalid_survey", 422, raw("shot_x_m=a,b")),
    "JSON cut off": ("invalid_query", 422, typed("/v1/search", "application/json", b"{")),
    "JSON without descriptors": ("invalid_request", 422, post("/v1/search", json={"top_k": 1})),
    "a descriptor of letters": (
        "invalid_request",
        422,
        post("/v1/search", json={"descriptors": {"mean_velocity": "x"}}),
    ),
    "an unknown descriptor": ("invalid_query", 422, post("/v1/search", json={"descriptors": {"vp": 1.0}})),
    "a descriptor of NaN": (
        "invalid_query",
        422,
        typed("/v1/search", "application/json", b'{"descriptors": {"mean_velocity": NaN}}'),
    ),
    "km/s": ("invalid_velocity_model", 422, post("/v1/search", files={"file": npy(np.full((70, 70), 2.5))})),
    "other cells": ("invalid_velocity_model", 422, post("/v1/search", files={"file": npy(np.full((50, 70), 2500.0))})),
}


@pytest.mark.parametrize("name", BAD)
def test_one_error_shape(served: Any, name: str) -> None:
    code, status, call = BAD[name]
    response = call(served.http)
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    found = Problem.model_validate(response.json())
    assert response.headers["content-type"] == "application/problem+json"
    assert found.status == status
    assert found.type == f"urn:seisbind:error:{code}"
    assert found.instance == response.request.url.path
    assert found.request_id == response.headers["x-request-id"]


@pytest.mark.parametrize(
    "sent", [b"no request\r\n\r\n", b"GET /v1/gallery?x=%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"x" * 70_000)]
)
def test_bytes_that_are_no_request_have_the_same_shape(served: Any, sent: bytes) -> None:
    head, _, body = raw_exchange(served.url, sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"x-content-type-options: nosniff" in head
    found = Problem.model_validate_json(body)
    assert (found.code, found.status) == ("bad_request", 400)
    assert found.request_id


def test_a_method_that_is_not_taken_is_told_those_that_are(served: Any) -> None:
    for path, allowed in (("/v1/models/any", "DELETE, GET"), ("/v1/retrieve", "POST"), ("/", "GET")):
        response = served.http.request("PATCH", path)
        assert (response.status_code, response.headers["allow"]) == (405, allowed), path


def test_a_bug_says_nothing_of_the_inside(weights: Path, gallery_path: Path) -> None:
    app: FastAPI = create_app(Settings(gallery=gallery_path, weights=weights, device="cpu"))

    @app.get("/boom")
    def boom() -> None:
        raise ZeroDivisionError("secret")

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.get("/boom")

    response = asyncio.run(call())
    app.state.serving.close()
    assert (response.status_code, response.json()["code"]) == (500, tree.INTERNAL_ERROR)
    assert "secret" not in response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_not_ready_once_the_canary_fails(weights: Path, gallery_path: Path) -> None:
    app = create_app(Settings(gallery=gallery_path, weights=weights, device="cpu", canary_max_age_s=0.001))

    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as http:
            return await http.get("/readyz")

    assert asyncio.run(call()).status_code == 200
    app.state.serving.close()  # no threads, no gallery
    response = asyncio.run(call())
    assert (response.status_code, response.json()["code"]) == (503, "not_ready")
    assert response.headers["retry-after"] == "1"


def test_searches_take_as_many_threads_as_the_encoders(weights: Path, gallery_path: Path) -> None:
    """By themselves they take every core, those that read requests, too."""
    before = torch.get_num_threads()
    serving = Serving(Settings(gallery=gallery_path, weights=weights, device="cpu", threads=3))
    try:
        assert "omp_get_max_threads() : 3\n" in asyncio.run(
            serving.on_model(lambda engine: torch.__config__.parallel_info())
        )
    finally:
        serving.close()
        torch.set_num_threads(before)


def test_the_clients_request_id_is_kept_if_it_is_harmless(served: Any) -> None:
    assert served.http.get("/healthz", headers={"X-Request-ID": "run-7.a"}).headers["x-request-id"] == "run-7.a"
    assert served.http.get("/healthz", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"


# What no request raises: the command line, the client, or the server before it listens.
ELSEWHERE = {
    tree.SeisBindError,
    tree.InvalidConfig,
    tree.DatasetError,
    tree.WeightsError,
    tree.ServerRefused,
    tree.ServiceError,
    tree.PortTaken,
    tree.ServerUnreachable,
}


def test_every_error_of_a_request_has_a_status_and_is_documented() -> None:
    kinds: list[type[tree.SeisBindError]] = [tree.SeisBindError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    expected = {(str(status_of(kind("x"))), kind.code) for kind in kinds if kind not in ELSEWHERE}
    expected |= {(str(status), code) for status, code in CODE.items()}
    expected |= {("422", REQUEST_INVALID), ("500", tree.INTERNAL_ERROR), ("4xx", OTHER)}
    text = DOCS.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| (\dxx|\d{3}) \| `(\w+)` \|", text, re.MULTILINE)) == expected


def raw_exchange(url: str, request: bytes, *, chunks: Iterator[bytes] | None = None) -> bytes:
    """What the server says to bytes that no proper client would send."""
    with connect(url, timeout=20) as connection:
        connection.sendall(request)
        answer = b""
        try:
            for chunk in chunks or ():
                connection.sendall(chunk)
        except OSError:
            pass
        try:
            while part := connection.recv(65536):
                answer += part
        except OSError:
            pass
        return answer


HEAD = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"


def test_a_declared_large_body_is_refused_before_it_is_sent(served: Any) -> None:
    answer = raw_exchange(served.url, HEAD + b"Content-Length: 9999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'"upload_too_large"' in answer


def test_a_chunked_body_is_cut_at_the_cap(served: Any) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1 << 20
            yield b"100000\r\n" + bytes(1 << 20) + b"\r\n"

    answer = raw_exchange(served.url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunks=chunks())
    assert sent < 64 << 20  # the cap is 8 MiB; the rest is the sockets' buffers
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""  # a reset may overtake the answer
    assert served.http.get("/healthz").status_code == 200


def test_a_lying_length_gains_nothing(served: Any, gathers: Float32) -> None:
    body = npy(gathers[0])
    answer = raw_exchange(served.url, HEAD + b"Content-Length: 200\r\nConnection: close\r\n\r\n" + body)
    assert answer.startswith((b"HTTP/1.1 422", b"HTTP/1.1 400"))  # 400: the surplus is no second request
    assert served.http.get("/healthz").status_code == 200


def test_a_body_that_never_ends_is_given_up(serve: Any) -> None:
    server = serve(body_deadline_s=0.3)
    answer = raw_exchange(server.url, HEAD + b"Content-Length: 1000\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"body_too_slow"' in answer


def test_overload_is_told_to_retry(serve: Any, gathers: Float32) -> None:
    server = serve(max_concurrency=1)
    body = npy(np.repeat(gathers, 5, axis=0))

    async def crowd() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            return list(await asyncio.gather(*(http.post("/v1/retrieve", content=body, headers=RAW) for _ in range(6))))

    found = asyncio.run(crowd())
    codes = sorted(response.status_code for response in found)
    assert codes[0] == 200
    assert codes[-1] == 429
    late = next(response for response in found if response.status_code == 429)
    assert (late.json()["code"], late.headers["retry-after"]) == ("overloaded", "1")


POST_HEAD = "POST {} HTTP/1.1\r\nHost: x\r\nContent-Type: {}\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n"


REQUESTS = [
    POST_HEAD.format("/v1/retrieve", "application/octet-stream"),
    POST_HEAD.format("/v1/retrieve", "multipart/form-data; boundary=b"),
    POST_HEAD.format("/v1/search", "application/octet-stream"),
    POST_HEAD.format("/v1/search", "application/json"),
    POST_HEAD.format("/v1/models", "application/octet-stream"),
    "GET /v1/models/any/image.png HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "DELETE /v1/models/any HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
]


def test_no_place_no_body_read(serve: Any, busy: Any, make_gallery: Any, gathers: Float32) -> None:
    """A request that is worked on holds the only place; others are refused before a byte of their body is sent."""
    server = serve(gallery=make_gallery(), writable=True, max_concurrency=1, body_deadline_s=60)
    with ThreadPoolExecutor(1) as pool, busy(server):
        first = pool.submit(server.http.post, "/v1/retrieve", content=npy(gathers[0]), headers=RAW)
        while not server.serving.batches.waiting:
            time.sleep(0.005)
        for head in REQUESTS:
            answer = raw_exchange(server.url, head.encode())
            assert answer.startswith(b"HTTP/1.1 429"), (head, answer)
            assert b'"overloaded"' in answer
        with httpx.Client(base_url=server.url, timeout=60) as http:
            assert http.get("/healthz").status_code == 200  # what is small and quick goes on
            assert http.get("/v1/gallery").status_code == 200
    assert first.result().status_code == 200


def test_what_nobody_waits_for_leaves_the_queue(serve: Any, busy: Any, gathers: Float32) -> None:
    """A gather whose caller's deadline passes while it waits is answered at once, and never encoded."""
    server = serve()
    with busy(server):
        late = server.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW | {"SeisBind-Deadline-Ms": "300"})
        assert (late.status_code, late.json()["code"]) == (504, "deadline_passed") and "300 ms" in late.json()["detail"]
        assert server.serving.batches.waiting == 0
    in_time = server.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW | {"SeisBind-Deadline-Ms": "60000"})
    assert in_time.status_code == 200
    assert "seisbind_gathers_total 1.0" in server.http.get("/metrics").text
    for wrong in ("0", "-5", "1.5", "soon", "1" * 9):
        refused = server.http.post(
            "/v1/retrieve", content=npy(gathers[0]), headers=RAW | {"SeisBind-Deadline-Ms": wrong}
        )
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_query"), wrong


def test_a_place_is_held_until_the_answer_is_sent(weights: Path, gallery_path: Path, gathers: Float32) -> None:
    app = create_app(Settings(gallery=gallery_path, weights=weights, device="cpu", max_concurrency=1))
    serving, codes = app.state.serving, []

    async def call() -> None:
        sending, sent = asyncio.Event(), asyncio.Event()

        async def exchange(send: Callable[[Any], Any]) -> None:
            scope = {"type": "http", "method": "POST", "path": "/v1/retrieve", "query_string": b"", "app": app}
            scope |= {"headers": [(b"content-type", b"application/octet-stream")]}
            messages: asyncio.Queue[Any] = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": npy(gathers[0]), "more_body": False})
            await app(scope, messages.get, send)

        async def slow(message: Any) -> None:
            if message["type"] == "http.response.start":
                codes.append(message["status"])
                sending.set()
                await sent.wait()

        async def quick(message: Any) -> None:
            if message["type"] == "http.response.start":
                codes.append(message["status"])

        first = asyncio.create_task(exchange(slow))
        await sending.wait()
        await exchange(quick)
        sent.set()
        await first
        await exchange(quick)

    asyncio.run(call())
    serving.close()
    assert codes == [200, 429, 200]


def test_pictures_that_wait_keep_nobody_else_waiting(serve: Any, engine: Engine) -> None:
    server, ids = serve(), engine.gallery.model_ids()

    async def fetch() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
            with DRAWING:
                pictures = [asyncio.create_task(http.get(f"/v1/models/{i}/image.png")) for i in ids[:8]]
                await asyncio.sleep(0.5)
                assert (await http.get(f"/v1/models/{ids[0]}/velocity.npy", timeout=20)).status_code == 200
                assert (await http.get("/v1/gallery", timeout=20)).status_code == 200
                assert not any(picture.done() for picture in pictures)
            assert {(await picture).status_code for picture in pictures} == {200}

    asyncio.run(fetch())


def test_a_client_that_leaves_does_no_harm(served: Any, gathers: Float32) -> None:
    body = npy(gathers)
    for stop in (100, 2_000_000, len(body)):
        with connect(served.url) as connection:
            connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body[:stop])
    time.sleep(0.2)
    assert served.http.get("/readyz").status_code == 200
