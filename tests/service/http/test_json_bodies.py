"""Bodies of JSON, and whatever else a request is parsed from: bounded before it is parsed, and said what is wrong."""

from __future__ import annotations

import asyncio
import json
import re
import select
import socket
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import httpx
import pytest

from seisbind.index import Filter
from seisbind.model.errors import InvalidQuery
from seisbind.model.ground.descriptors import NAMES
from seisbind.service.engine.engine import Engine
from seisbind.service.http.forms import MAX_JSON_BYTES, PARSED_BYTES, parse_search
from seisbind.service.http.parameters import parse_json
from seisbind.service.runtime.npz_answer import MAX_ACCEPT
from seisbind.service.transport.problems import MAX_PART, MAX_SENTENCE
from wire import connect, npy

JSON = {"Content-Type": "application/json"}


def body_of(size: int) -> bytes:
    """A search that is right, of so many bytes."""
    start = b'{"descriptors": {"mean_velocity": 2500}'
    return start + b" " * (size - len(start) - 1) + b"}"


def raw(url: httpx.URL, head: str, chunks: Iterator[bytes]) -> tuple[bytes, int]:
    """The answer to a request whose body goes on until it is answered, and how much of that was taken."""
    sent, answer = 0, bytearray()
    with connect(url, timeout=60) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # what was sent was taken, or nearly
        try:
            client.sendall(head.encode())
            for chunk in chunks:
                if select.select([client], [], [], 0)[0]:  # answered
                    break
                client.sendall(chunk)
                sent += len(chunk)
        except OSError:  # closed on
            pass
        try:
            while received := client.recv(65536):
                answer.extend(received)
        except ConnectionResetError:
            pass
    return bytes(answer), sent


def test_json_has_a_limit_of_its_own(served: Any) -> None:
    assert served.http.post("/v1/search", content=body_of(MAX_JSON_BYTES), headers=JSON).status_code == 200
    refused = served.http.post("/v1/search", content=body_of(MAX_JSON_BYTES + 1), headers=JSON)
    assert (refused.status_code, refused.json()["code"]) == (413, "upload_too_large")
    assert "65537" in refused.json()["detail"] and "65536" in refused.json()["detail"]
    largest = {"family": [f"{i:040d}" for i in range(500)]} | {name: [1500.25, 4500.25] for name in NAMES}
    asked = {"descriptors": dict.fromkeys(NAMES, 0.5) | dict.fromkeys((n for n in NAMES if "velo" in n), 2500.25)}
    assert served.http.post("/v1/search", json=asked | {"filter": largest}).status_code == 200


def test_json_that_declares_too_much_is_refused_before_it_is_read(served: Any) -> None:
    """8 MiB is what any body may have here."""
    head = "POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: Application/JSON; charset=utf-8\r\n"
    answer, sent = raw(httpx.URL(served.url), f"{head}Content-Length: {8 << 20}\r\n\r\n", iter(()))
    assert answer.startswith(b"HTTP/1.1 413 ") and b'"code": "upload_too_large"' in answer
    assert b"connection: close" in answer.lower()
    assert sent == 0


def test_json_in_chunks_is_cut_within_a_read(served: Any) -> None:
    head = "POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"

    def chunks() -> Iterator[bytes]:
        while True:
            yield b"10000\r\n" + b" " * 65536 + b"\r\n"

    answer, sent = raw(httpx.URL(served.url), head, chunks())
    assert answer.startswith(b"HTTP/1.1 413 ") and b"upload_too_large" in answer
    assert sent < 8 << 20  # what any body may have


def test_a_limit_of_json_is_none_of_files(served: Any, models: Any) -> None:
    many = npy(models[0][:5])
    assert len(many) > MAX_JSON_BYTES
    assert served.http.post("/v1/search", files={"file": many}).status_code == 200


def test_json_is_not_parsed_on_the_event_loop(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    where = []
    monkeypatch.setattr(
        "seisbind.service.http.retrieve.parse_search", lambda body: where.append(_loop()) or parse_search(body)
    )
    assert served.http.post("/v1/search", content=body_of(100), headers=JSON).status_code == 200
    assert where == [False]


def _loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@pytest.mark.parametrize(
    "kind", ["nested", "many keys", "small objects", "long numbers", "wrong list", "unknown fields", "one string"]
)
def test_what_is_wrong_is_said_shortly(served: Any, script: Callable[[str], ModuleType], kind: str) -> None:
    """Thousands of faults in one body: what the benchmark sends."""
    body = script("json_bodies").BODIES[kind](MAX_JSON_BYTES)
    refused = served.http.post("/v1/search", content=body, headers=JSON)
    assert refused.status_code == 422, refused.text
    assert len(refused.content) < 10_000


def test_the_first_faults_are_said_and_how_many_more(served: Any) -> None:
    asked = {"descriptors": {"mean_velocity": 2500}} | {f"unknown{i}": 0 for i in range(50)}
    errors = served.http.post("/v1/search", json=asked).json()["errors"]
    assert len(errors) == 21
    assert errors[0].startswith("unknown0: ") and errors[-1].startswith("30 more: ")
    query = "&".join(f"n{i}=" for i in range(5000))
    refused = served.http.post(f"/v1/search?{query}", content=b"", headers={"Content-Type": "application/x-npy"})
    assert (refused.status_code, refused.json()["errors"]) == (422, ["query: 5000 fields; a call takes 100"])


def test_a_refusal_repeats_no_more_than_a_part_of_what_it_refuses(served: Any) -> None:
    long = "a" * 50_000
    for method, path in (("GET", f"/v1/models/{long}"), ("GET", f"/{long}"), ("PUT", "/healthz?" + long)):
        refused = served.http.request(method, path)
        assert refused.status_code in (404, 405)
        problem = refused.json()
        assert len(problem["detail"]) <= MAX_SENTENCE + 1
        assert len(problem["instance"]) <= MAX_PART + 1
    filtered = {"descriptors": {"mean_velocity": 2500}, "filter": {long: 1}}
    assert len(served.http.post("/v1/search", json=filtered).content) < 3000
    assert len(served.http.post("/v1/search", json={long: 1}).content) < 3000


def test_headers_are_parsed_no_further_than_they_mean_something(served: Any, gathers: Any) -> None:
    one = npy(gathers[0])
    long = {"Content-Type": "multipart/form-data; boundary=b" + ";a=b" * 10_000}
    for path in ("/v1/search", "/v1/retrieve", "/v1/retrieve/stream", "/v1/models"):
        refused = served.http.post(path, content=b"", headers=long)
        expected = (403, "not_writable") if path == "/v1/models" else (415, "unsupported_format")
        assert (refused.status_code, refused.json()["code"]) == expected
    wanted = {"Content-Type": "application/x-npy", "Accept": "a/b," * (MAX_ACCEPT // 4) + "application/x-npz"}
    assert served.http.post("/v1/retrieve", content=one, headers=wanted).headers["content-type"] == "application/json"
    wanted["Accept"] = "a/b," * 100 + "application/x-npz"
    assert served.http.post("/v1/retrieve", content=one, headers=wanted).headers["content-type"] == "application/x-npz"


def test_a_form_is_parsed_in_pieces(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much of it comes at once."""
    from seisbind.service.http import forms

    fed = []
    parse = forms.MultiPartParser.parse

    async def noted(self: Any) -> Any:
        stream = self.stream

        async def told() -> Any:
            async for chunk in stream:
                fed.append(len(chunk))
                yield chunk

        self.stream = told()
        return await parse(self)

    monkeypatch.setattr(forms.MultiPartParser, "parse", noted)
    file = b"\r\n-" * 200_000
    refused = served.http.post("/v1/search", files={"file": file})
    assert refused.status_code == 415
    assert max(fed) <= PARSED_BYTES and sum(fed) > len(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": 2, "a": 1}', r"'a' 2 times in one object; give it once"),
        ('{"a": {"family": "x", "family": "y", "family": "x"}}', "'family' 3 times"),
        ('{"a": [{"": 0, "": 0}]}', "'' 2 times"),
    ],
)
def test_a_name_that_comes_twice_is_refused_by_name(text: str, reason: str) -> None:
    with pytest.raises(InvalidQuery, match=f"The filter has {reason}"):
        parse_json(text, "The filter")


def test_a_name_that_comes_twice_is_refused_over_http(served: Any, gathers: Any) -> None:
    for text in (
        '{"descriptors": {"mean_velocity": 2500, "mean_velocity": 2600}}',
        '{"descriptors": {"mean_velocity": 2500}, "filter": {"tag": "a", "tag": "b"}}',
        '{"descriptors": {"mean_velocity": 2500}, "top_k": 1, "top_k": 2}',
    ):
        refused = served.http.post("/v1/search", content=text, headers=JSON)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_query"), text
        assert " 2 times" in refused.json()["detail"]
    field = {"filter": '{"max_velocity": [null, 4000], "max_velocity": [null, 3000]}'}
    refused = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data=field)
    assert refused.json()["code"] == "invalid_query" and "'max_velocity' 2 times" in refused.json()["detail"]


IMPOSSIBLE = [
    ({"mean_velocity": -2000}, r"mean_velocity is -2000 m/s, which no ground has; give 300 to 9000 m/s"),
    ({"deep_velocity": 2.5}, r"deep_velocity is 2.5 m/s.* Multiply by 1000 if it is in km/s"),
    ({"min_velocity": 0}, "300 to 9000"),
    ({"max_velocity": 20_000}, "300 to 9000"),
    ({"std_velocity": -1}, "0 m/s or more"),
    ({"mean_abs_lateral_gradient": -0.5}, "0 1/s or more"),
    ({"strongest_contrast_depth": -10}, "0 m or more"),
    ({"interface_share": 1.5}, "interface_share is 1.5, which no ground has; give 0 to 1"),
]


@pytest.mark.parametrize(("described", "reason"), IMPOSSIBLE)
def test_what_no_ground_has_is_refused(served: Any, engine: Engine, described: dict[str, float], reason: str) -> None:
    with pytest.raises(InvalidQuery, match=reason):
        engine.search_descriptors(described)
    refused = served.http.post("/v1/search", json={"descriptors": described})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_query")
    assert re.search(reason, refused.json()["detail"])


def test_the_ends_of_what_ground_has_are_answered(engine: Engine) -> None:
    ends = {"mean_velocity": 300, "max_velocity": 9000, "interface_share": 1, "std_velocity": 0}
    assert engine.search_descriptors(ends | {"mean_vertical_gradient": -40.0}).matches
    for model_id in engine.gallery.model_ids():
        found = engine.gallery.record(model_id).descriptors.tolist()
        assert engine.search_descriptors(dict(zip(NAMES, found, strict=True)), filter=Filter()).matches


def test_true_is_no_number(served: Any, engine: Engine) -> None:
    with pytest.raises(InvalidQuery, match="mean_velocity is True"):
        engine.search_descriptors({"mean_velocity": True})
    for asked, name in (
        ({"descriptors": {"interface_share": True}}, "descriptors.interface_share"),
        ({"descriptors": {"mean_velocity": 2500}, "top_k": True}, "top_k"),
    ):
        refused = served.http.post("/v1/search", content=json.dumps(asked), headers=JSON)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert refused.json()["errors"] == [f"{name}: Value error, true is no number"]
