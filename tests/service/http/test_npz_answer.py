"""POST /v1/retrieve answered as an npz: over real HTTP, against the JSON and the models' own addresses."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.frame import OPENFWI_FRAME
from seisbind.model.ground.descriptors import DESCRIPTORS
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.query import encode
from seisbind.service.formats.npy import NPZ
from seisbind.service.runtime.npz_answer import model_bytes, preferred
from seisbind.service.schemas import RetrieveAnswer
from wire import npy

Float32 = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]


def ask(served: Any, gathers: NDArray[Any], **fields: Any) -> httpx.Response:
    response: httpx.Response = served.http.post(
        "/v1/retrieve", files={"file": npy(gathers)}, data=fields, headers={"Accept": NPZ}
    )
    return response


def arrays_of(response: httpx.Response) -> Arrays:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == NPZ
    with np.load(io.BytesIO(response.content), allow_pickle=False) as found:
        return dict(found)


def answer_of(arrays: Arrays) -> RetrieveAnswer:
    return RetrieveAnswer.model_validate_json(arrays["answer"].tobytes())


def stored(served: Any, model_id: str) -> Float32:
    content = served.http.get(f"/v1/models/{model_id}/velocity.npy").content
    found: Float32 = np.load(io.BytesIO(content), allow_pickle=False)
    return found


def check(served: Any, arrays: Arrays, top_k: int) -> RetrieveAnswer:
    """The arrays agree with the JSON in them, and the maps with their own addresses."""
    answer = answer_of(arrays)
    count = len(answer.results)
    assert {name: (array.dtype.kind, array.shape) for name, array in arrays.items() if name != "answer"} == {
        "matches": ("i", (count,)),
        "model_id": ("U", (count, top_k)),
        "similarity": ("f", (count, top_k)),
        "velocity": ("f", (count, top_k, 70, 70)),
        "descriptor": ("U", (13,)),
        "unit": ("U", (13,)),
        **{f"physics_{what}": ("f", (count, 13)) for what in ("value", "low", "high")},
        "read_velocity": ("f", (count, 35, 35)),
    }
    assert {array.dtype for array in arrays.values() if array.dtype.kind == "f"} == {np.dtype("f4")}
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind == "f")
    for row, result in enumerate(answer.results):
        found = len(result.matches)
        assert arrays["matches"][row] == found
        assert arrays["model_id"][row].tolist() == [m.model_id for m in result.matches] + [""] * (top_k - found)
        np.testing.assert_array_equal(
            arrays["similarity"][row], np.float32([m.similarity for m in result.matches] + [0] * (top_k - found))
        )
        for place, match in enumerate(result.matches):
            np.testing.assert_array_equal(arrays["velocity"][row, place], stored(served, match.model_id))
        assert not arrays["velocity"][row, found:].any()
    return answer


def test_the_arrays_say_what_the_json_says(served: Any, engine: Engine, gathers: Float32) -> None:
    arrays = arrays_of(ask(served, gathers, top_k=4, include="descriptors,physics,velocity"))
    answer = check(served, arrays, 4)
    as_json = served.http.post(
        "/v1/retrieve",
        files={"file": npy(gathers)},
        data={"top_k": 4, "include": "descriptors,physics,velocity"},
        headers={"Accept": "*/*"},
    )
    assert as_json.headers["content-type"] == "application/json"
    assert answer.results == RetrieveAnswer.model_validate_json(as_json.content).results
    assert (answer.gallery.models, answer.weights.fingerprint) == (60, engine.gallery.fingerprint)
    assert {"maps", "encode", "total"} <= set(answer.timings_ms)
    units = dict(zip(arrays["descriptor"].tolist(), arrays["unit"].tolist(), strict=True))
    assert units == {d.name: d.unit for d in DESCRIPTORS}
    for row, result in enumerate(answer.results):
        assert result.physics is not None and result.velocity is not None
        for column, name in enumerate(arrays["descriptor"]):
            quantity = result.physics[name]
            own = [arrays[f"physics_{what}"][row, column] for what in ("value", "low", "high")]
            assert own == np.float32([quantity.value, quantity.low, quantity.high]).tolist()
        assert arrays["read_velocity"][row].round().astype(int).tolist() == result.velocity.m_s


def test_include_is_about_the_json_in_it(served: Any, gathers: Float32) -> None:
    arrays = arrays_of(ask(served, gathers[0], top_k=1, include=""))
    (result,) = check(served, arrays, 1).results
    assert result.physics is result.velocity is None
    assert (arrays["physics_low"] <= arrays["physics_value"]).all() and arrays["read_velocity"].all()


def test_fewer_matches_than_asked_for(served: Any, models: tuple[Float32, list[str]], gathers: Float32) -> None:
    family = models[1][0]
    few = models[1].count(family)
    assert 0 < few < 20
    arrays = arrays_of(ask(served, gathers[:2], top_k=20, filter=json.dumps({"family": family})))
    check(served, arrays, 20)
    assert arrays["matches"].tolist() == [few, few]
    assert arrays["velocity"][:, few - 1].all()


def test_no_match_at_all(served: Any, gathers: Float32) -> None:
    arrays = arrays_of(ask(served, gathers[:2], top_k=3, filter='{"family": "none such"}'))
    answer = check(served, arrays, 3)
    assert arrays["matches"].tolist() == [0, 0]
    assert {note.code for note in answer.results[0].warnings} >= {"fewer_matches"}


def test_the_size_is_bounded_before_gathers_are_encoded_or_models_read(serve: Any, gathers: Float32) -> None:
    two = gathers[:2].astype(np.float16)
    server = serve(max_body_bytes=2 * 40 * model_bytes(OPENFWI_FRAME))
    refused = ask(server, two, top_k=41)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_query")
    assert refused.headers["content-type"] == "application/problem+json"
    for number in (2, 41, 2 * 41 * model_bytes(OPENFWI_FRAME), 2 * 40 * model_bytes(OPENFWI_FRAME), 80):
        assert str(number) in refused.json()["detail"]
    metrics = server.http.get("/metrics").text
    assert 'stage="decode"' not in metrics and 'stage="encode"' not in metrics and 'stage="maps"' not in metrics
    assert arrays_of(ask(server, two, top_k=40))["velocity"].nbytes == 2 * 40 * model_bytes(OPENFWI_FRAME)
    metrics = server.http.get("/metrics").text
    assert 'stage="encode"' in metrics and 'stage="maps"' in metrics
    as_json = server.http.post("/v1/retrieve", files={"file": npy(two)}, data={"top_k": 41})
    assert len(as_json.json()["results"][1]["matches"]) == 41


@pytest.mark.parametrize(
    ("accept", "npz"),
    [
        ("application/x-npz", True),
        ("Application/X-NPZ ; q=0.3", True),
        ("application/x-npz, */*", True),
        ("application/x-npz;q=0.9, application/json;q=0.8", True),
        ("text/html, application/x-npz;q=0.5, */*;q=0.1", True),
        ("application/json;q=0, application/x-npz;q=0.1, */*", True),
        ("application/json, application/x-npz", False),
        ("application/x-npz;q=0.5, */*", False),
        ("application/x-npz;q=0.5, application/*;q=0.6", False),
        ("application/x-npz;q=0, */*;q=0", False),
        ("application/x-npz;q=nan", False),
        ("application/x-npz;q=2, application/json;q=0.1", False),
        ("application/zip", False),
        ("application/*", False),
        ("*/*", False),
        ("image/png", False),
        ("", False),
        (",;=q;,\x80/\xff;q=,", False),
    ],
)
def test_what_prefers_arrays(accept: str, npz: bool) -> None:
    assert preferred(accept) is npz


@pytest.mark.parametrize(
    ("headers", "kind"),
    [
        ([], "application/json"),
        ([("Accept", "image/png")], "application/json"),  # a wish: 406 is not answered
        ([("Accept", "application/json;q=0.1"), ("Accept", NPZ)], NPZ),
    ],
)
def test_the_header_is_heeded(served: Any, gathers: Float32, headers: list[tuple[str, str]], kind: str) -> None:
    with httpx.Client(base_url=served.url, timeout=60) as http:
        del http.headers["Accept"]
        raw = [("Content-Type", "application/octet-stream"), *headers]
        response = http.post("/v1/retrieve?top_k=1", content=npy(gathers[0]), headers=raw)
    assert (response.status_code, response.headers["content-type"]) == (200, kind)


@pytest.mark.parametrize("replaced", [False, True], ids=["removed", "replaced"])
def test_a_model_that_changes_before_it_is_read(
    serve: Any,
    make_gallery: Any,
    busy: Any,
    embedder: Embedder,
    gathers: Float32,
    replaced: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found by the search, gone or another one when its map is read: the answer is about what is there then.

    While the gathers are encoded, the second time as the first, others read the gallery.
    """
    path = make_gallery()
    server = serve(gallery=path)
    before = arrays_of(ask(server, gathers[0], top_k=3))
    best, second = before["model_id"][0, :2].tolist()
    waited: list[bool] = []

    def encode_while_others_read(embedder: Embedder, queries: Any) -> Any:
        reading = threading.Thread(target=server.serving.here, args=(lambda engine: engine.gallery.velocity(second),))
        reading.start()
        reading.join(5)
        waited.append(reading.is_alive())
        return encode(embedder, queries)

    monkeypatch.setattr("seisbind.service.engine.engine.encode", encode_while_others_read)
    found: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: found.append(ask(server, gathers[0], top_k=3)))
    with busy(server):
        asking.start()
        while not server.serving.batches.waiting:
            time.sleep(0.01)
        holding = busy(server, on="on_file", count=4)
        holding.__enter__()
    try:
        asyncio.run(server.serving.on_model(lambda engine: None))  # behind the search
        with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
            gallery.remove([best])
            if replaced:
                ramp = np.linspace(2000, 3000, 4900, dtype=np.float32).reshape(1, 70, 70)
                Engine(embedder, gallery).add_models(ramp, model_ids=[best])
        assert not found
    finally:
        holding.__exit__(None, None, None)
    asking.join()
    assert waited == [False, False]
    arrays = arrays_of(found[0])
    answer = check(server, arrays, 3)
    assert answer.gallery.models == (60 if replaced else 59)
    assert replaced or best not in arrays["model_id"]
    for match in answer.results[0].matches:
        record = server.http.get(f"/v1/models/{match.model_id}").json()
        assert match.descriptors == {name: each["value"] for name, each in record["descriptors"].items()}
