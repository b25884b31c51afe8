"""What every answer carries, which origins may call, and what is written down about a call."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig
from seisbind.service.commands.demo import npy
from seisbind.service.http.app import create_app
from seisbind.service.http.server import listen
from seisbind.service.settings import Settings
from seisbind.service.transport.audit import MAX_CLIENT, MAX_PATH, AuditLog
from seisbind.service.transport.keys import Scope, make_key
from wire import RAW

Float32 = NDArray[np.float32]
SAFE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
ORIGIN = "https://maps.example.org"
READ, READER = make_key("pipeline", Scope.READ)
WRITE, WRITER = make_key("curator", Scope.WRITE)


def is_safe(response: httpx.Response, **other: str) -> None:
    expected = SAFE | {name.replace("_", "-"): value for name, value in other.items()}
    assert {name: response.headers.get(name) for name in expected} == expected
    assert len(response.headers.get_list("x-request-id")) == 1
    assert "server" not in response.headers or response.headers["server"] == "uvicorn"  # `server.serve` leaves it out


def test_an_answer_is_not_held_back() -> None:
    """Without TCP_NODELAY the kernel keeps an answer's body until its head is acknowledged: 40 ms each."""

    async def accepted_without_delay() -> bool:
        delayed: asyncio.Queue[int] = asyncio.Queue()

        def opened(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            delayed.put_nowait(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with listen("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(opened, sock=listener):
                _, writer = await asyncio.open_connection(*listener.getsockname())
                writer.close()
                return bool(await delayed.get())

    assert asyncio.run(accepted_without_delay())


def test_every_answer_is_safe_to_show(served: Any, gathers: Float32) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/gallery", "/v1/models/v-none", "/nowhere"):
        is_safe(served.http.get(path))
    is_safe(served.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW))
    is_safe(served.http.post("/v1/retrieve", content=b"x", headers=RAW))
    is_safe(served.http.post("/v1/retrieve", content=bytes(9 << 20), headers=RAW))
    is_safe(served.http.delete("/v1/gallery"))


def test_maps_and_pictures_are_kept_by_the_browser_that_asked(served: Any) -> None:
    model_id = served.http.post("/v1/search", json={"descriptors": {"mean_velocity": 2500}}).json()["results"][0][
        "matches"
    ][0]["model_id"]
    for tail in ("velocity.npy", "image.png"):
        is_safe(served.http.get(f"/v1/models/{model_id}/{tail}"), cache_control="private, max-age=300")
        is_safe(served.http.get(f"/v1/models/v-none/{tail}"))


def test_the_page_brings_its_own_policy(served: Any) -> None:
    response = served.http.get("/")
    policy = response.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe" not in policy
    is_safe(response, content_security_policy=policy)


def test_the_answer_to_a_bug_is_safe_and_counted(weights: Path, gallery_path: Path) -> None:
    app = create_app(Settings(gallery=gallery_path, weights=weights, device="cpu"))

    @app.get("/boom")
    def boom() -> None:
        raise ZeroDivisionError("secret")

    async def call() -> tuple[httpx.Response, str]:
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.get("/boom"), (await http.get("/metrics")).text

    response, metrics = asyncio.run(call())
    app.state.serving.close()
    assert response.status_code == 500
    is_safe(response)
    assert 'seisbind_errors_total{code="internal_error"} 1.0' in metrics
    assert 'seisbind_requests_total{method="GET",route="/boom",status="500"} 1.0' in metrics


def preflight(http: httpx.Client, origin: str, method: str = "POST") -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": method}
    return http.request(
        "OPTIONS", "/v1/retrieve", headers=headers | {"Access-Control-Request-Headers": "authorization"}
    )


def test_no_other_origin_may_call_unless_it_is_set(served: Any) -> None:
    for response in (
        served.http.get("/v1/gallery", headers={"Origin": ORIGIN}),
        served.http.get("/healthz", headers={"Origin": ORIGIN}),
        preflight(served.http, ORIGIN),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert response.json()["code"] == "method_not_allowed"


def test_an_origin_that_is_set_may_call(serve: Any) -> None:
    server = serve(cors_origins=f"{ORIGIN}, https://other.example.org", api_keys=READER.line)
    allowed = preflight(server.http, ORIGIN)  # which brings no key
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == ORIGIN
    for name in ("authorization", "seisbind-deadline-ms"):
        assert name in allowed.headers["access-control-allow-headers"].lower()
    assert "access-control-allow-credentials" not in allowed.headers
    is_safe(allowed)
    refused = server.http.get("/v1/gallery", headers={"Origin": ORIGIN})  # the page may read why
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)
    right = server.http.get("/v1/gallery", headers={"Origin": ORIGIN, "Authorization": f"Bearer {READ}"})
    assert (right.status_code, right.headers["access-control-allow-origin"]) == (200, ORIGIN)
    assert (
        "SeisBind-Generation" in right.headers["access-control-expose-headers"] and right.headers["SeisBind-Generation"]
    )
    assert "Origin" in right.headers["vary"]
    strange = preflight(server.http, "https://evil.example.org")
    assert (strange.status_code, strange.json()["code"]) == (400, "bad_request")
    assert "access-control-allow-origin" not in strange.headers
    assert preflight(server.http, ORIGIN, "PUT").status_code == 400


@pytest.fixture
def audited(serve: Any, make_gallery: Any, tmp_path: Path) -> tuple[Any, Path]:
    log = tmp_path / "audit.jsonl"
    keys = f"{READER.line},{WRITER.line}"
    return serve(gallery=make_gallery(), writable=True, audit_log=log, api_keys=keys, max_body_bytes=1 << 20), log


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def test_who_changed_what_and_when(audited: tuple[Any, Path]) -> None:
    server, log = audited
    write, read = ({"Authorization": f"Bearer {secret}"} for secret in (WRITE, READ))
    new = npy(np.linspace(1500, 4000, 4900, dtype=np.float32).reshape(70, 70))
    added = server.http.post("/v1/models?model_id=ramp", content=new, headers=RAW | write)
    assert added.status_code == 201, added.text
    (line,) = lines_of(log)  # there before the answer was
    assert line["request_id"] == added.headers["x-request-id"]
    assert (line["caller"], line["client"], line["method"], line["path"]) == (
        "curator",
        "127.0.0.1",
        "POST",
        "/v1/models",
    )
    assert (line["status"], line["code"], line["added"]) == (201, None, ["ramp"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"])
    server.http.delete("/v1/models/ramp", headers=write)
    server.http.delete("/v1/models/ramp", headers=write)
    server.http.post("/v1/gallery/reload", headers=write)
    server.http.delete("/v1/models/x", headers=read)
    server.http.delete("/v1/models/x", headers={"Authorization": "Bearer wrong"})  # nobody: not here
    server.http.delete("/v1/models/x")
    server.http.get("/v1/gallery", headers=write)  # no change
    said = [(each["caller"], each["path"], each["status"], each["code"]) for each in lines_of(log)[1:]]
    assert said == [
        ("curator", "/v1/models/ramp", 204, None),
        ("curator", "/v1/models/ramp", 404, "unknown_model"),
        ("curator", "/v1/gallery/reload", 200, None),
        ("pipeline", "/v1/models/x", 403, "write_scope_required"),
    ]
    assert lines_of(log)[1]["removed"] == ["ramp"]
    text = log.read_text(encoding="utf-8")
    assert not [secret for secret in (READ, WRITE, READER.digest, WRITER.digest, "wrong") if secret in text]


def test_the_audit_log_is_only_added_to(audited: tuple[Any, Path]) -> None:
    """And it may be moved away while the server runs."""
    server, log = audited
    headers = {"Authorization": f"Bearer {WRITE}"}
    for _ in range(2):
        server.http.delete("/v1/models/x", headers=headers)
    old = log.rename(log.with_suffix(".1"))
    server.http.delete("/v1/models/y", headers=headers)
    assert [line["path"] for line in lines_of(old)] == ["/v1/models/x"] * 2
    assert [line["path"] for line in lines_of(log)] == ["/v1/models/y"]
    assert log.stat().st_mode & 0o007 == 0


def test_an_audit_line_is_no_longer_than_a_call_can_be(audited: tuple[Any, Path]) -> None:
    server, log = audited
    for method in ("DELETE", "POST"):
        headers = {"Authorization": f"Bearer {WRITE}", "X-Forwarded-For": "y" * 25_000}
        server.http.request(method, "/v1/models/" + "x" * 25_000, headers=headers)
    assert [len(line["client"]) for line in lines_of(log)] == [MAX_CLIENT, MAX_CLIENT]
    assert [len(line["path"]) for line in lines_of(log)] == [MAX_PATH, MAX_PATH]
    assert log.stat().st_size < 4000


def test_an_audit_line_that_is_not_taken_is_in_the_log(
    audited: tuple[Any, Path], caplog: pytest.LogCaptureFixture
) -> None:
    server, log = audited
    log.unlink()
    log.mkdir()
    with caplog.at_level(logging.INFO, logger="seisbind"):
        assert server.http.delete("/v1/models/x", headers={"Authorization": f"Bearer {WRITE}"}).status_code == 404
    (record,) = [record for record in caplog.records if record.name == "seisbind.audit"]
    assert record.levelname == "ERROR"
    assert record.seisbind_fields["path"] == "/v1/models/x"  # type: ignore[attr-defined]
    headers = {"Authorization": f"Bearer {READ}"}
    assert "seisbind_audit_failures_total 1.0" in server.http.get("/metrics", headers=headers).text


def test_an_audit_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="SEISBIND_AUDIT_LOG"):
        AuditLog(tmp_path / "none" / "audit.jsonl")


def test_without_a_file_changes_are_in_the_log(
    writable: Any, models: tuple[Float32, Sequence[str]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="seisbind"):
        writable.http.delete("/v1/models/v-none")
    (record,) = [record for record in caplog.records if record.name == "seisbind.audit"]
    assert record.seisbind_fields["status"] == 404  # type: ignore[attr-defined]
    assert record.seisbind_fields["caller"] is None  # type: ignore[attr-defined]


def test_one_access_line_a_request(served: Any, gathers: Float32, caplog: pytest.LogCaptureFixture) -> None:
    body = npy(gathers[:2])

    def chunks() -> Iterator[bytes]:
        yield body[:100]
        yield body[100:]

    with caplog.at_level(logging.INFO, logger="seisbind.access"):
        served.http.post("/v1/retrieve?top_k=1", content=body, headers=RAW)
        served.http.post("/v1/retrieve?top_k=0", content=chunks(), headers=RAW)
        served.http.get("/secret/path?token=secret")
        until = time.monotonic() + 10  # the line is written when the answer is out: another test's may come first
        lines: list[dict[str, Any]] = []
        while not (lines and lines[-1]["status"] == 404) and time.monotonic() < until:
            time.sleep(0.01)
            lines = [r.seisbind_fields for r in caplog.records if r.name == "seisbind.access"]  # type: ignore[attr-defined]
    lines = lines[-3:]
    found = [{name: line.get(name) for name in ("method", "route", "status", "gathers", "code")} for line in lines]
    assert found == [
        {"method": "POST", "route": "/v1/retrieve", "status": 200, "gathers": 2, "code": None},
        {"method": "POST", "route": "/v1/retrieve", "status": 422, "gathers": None, "code": "invalid_request"},
        {"method": "GET", "route": "unmatched", "status": 404, "gathers": None, "code": "not_found"},
    ]
    assert [line["bytes_in"] for line in lines] == [len(body), len(body), 0]
    assert all(line["ms"] > 0 and line["bytes_out"] > 0 for line in lines)
    assert "secret" not in json.dumps(lines)
