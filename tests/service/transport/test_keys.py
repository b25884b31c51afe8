"""API keys: how they are made and kept, and who may call what over real HTTP (promise 7)."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import InvalidConfig, KeyRequired, KeyUnknown, ServerRefused
from seisbind.service.client.client import Client
from seisbind.service.commands.demo import npy
from seisbind.service.settings import Access, Settings
from seisbind.service.transport import keys as module
from seisbind.service.transport.access import Calls, Need
from seisbind.service.transport.keys import ApiKey, Keys, Scope, make_key, read_keys
from wire import connect, rest_of

Float32 = NDArray[np.float32]
SCRIPT = Path(sys.executable).with_name("seisbind")
READ, READER = make_key("pipeline", Scope.READ)
WRITE, WRITER = make_key("curator", Scope.WRITE)
BOTH = f"{READER.line}, {WRITER.line}"


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_key_is_random_and_only_its_hash_is_kept() -> None:
    secret, key = make_key("a", Scope.READ)
    assert secret.startswith("seisbind_")
    assert len(secret) == len("seisbind_") + 43
    assert secret != make_key("a", Scope.READ)[0]
    assert key.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert secret not in key.line and secret not in repr(key)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a,b", "é", "x" * 65, "a\n"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(InvalidConfig, match="name"):
        make_key(name, Scope.READ)


def test_keys_from_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{WRITER.line}  # until June\n", encoding="utf-8")
    monkeypatch.setenv("SEISBIND_API_KEYS", READER.line)
    monkeypatch.setenv("SEISBIND_API_KEYS_FILE", str(file))
    settings = Settings()
    keys = read_keys(settings)
    assert len(keys) == 2
    assert keys.find([b"Bearer " + READ.encode()]) == READER
    assert keys.find([b"bearer  " + WRITE.encode()]) == WRITER
    assert READER.digest not in repr(settings)
    assert len(read_keys(Settings.model_construct())) == 0


@pytest.mark.parametrize(
    "text",
    ["", "  ", "# none", READ, f"a:read:{READ}", f"a:admin:{READER.digest}", f"a b:read:{READER.digest}", "a:read",
     f"{READER.line}\n{READER.line}", f"a:read:{READER.digest.upper()}"],
    ids=range(10),  # keys are made anew in each process, and no part of a test's name
)  # fmt: skip
@pytest.mark.parametrize("where", ["environment", "file"])
def test_keys_that_cannot_be_read_open_no_server(text: str, where: str, tmp_path: Path) -> None:
    """Fails closed, and does not repeat what may be a key that was put there by mistake."""
    file = tmp_path / "keys"
    file.write_text(text, encoding="utf-8")
    given = {"api_keys": text} if where == "environment" else {"api_keys_file": file}
    with pytest.raises(InvalidConfig) as caught:
        read_keys(Settings(**given))  # type: ignore[arg-type]
    assert READ not in str(caught.value)
    assert READER.digest not in str(caught.value)


def test_a_key_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_keys(Settings(api_keys_file=tmp_path / "none"))


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By `hmac.compare_digest`, each of them, whichever it is: the place of a key in the list is not to be timed."""
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    class Recorded:
        compare_digest = staticmethod(compare)

    monkeypatch.setattr(module, "hmac", Recorded)
    keys = Keys((READER, WRITER, ApiKey("last", Scope.READ, "0" * 64)))
    for secret, found in ((READ, READER), (WRITE, WRITER)):
        compared.clear()
        assert keys.find([f"Bearer {secret}".encode()]) == found
        digest = hashlib.sha256(secret.encode()).hexdigest()
        assert compared == [(READER.digest, digest), (WRITER.digest, digest), ("0" * 64, digest)]
    compared.clear()
    with pytest.raises(KeyUnknown):
        keys.find([b"Bearer wrong"])
    assert len(compared) == 3


@pytest.mark.parametrize(
    "sent", [[], [b""], [b"Bearer"], [b"Bearer "], [b"Basic eDp5"], [READ.encode()], [b"Bearer a", b"Bearer b"]]
)
def test_no_key_or_not_one(sent: list[bytes]) -> None:
    with pytest.raises(KeyRequired):
        Keys((READER,)).find(sent)


# what they ask does not fit a URL
READING_POSTS = {"/v1/check", "/v1/read", "/v1/retrieve", "/v1/retrieve/stream", "/v1/search", "/v1/section"}


@pytest.fixture(scope="module")
def calls() -> Calls:
    from seisbind.service.http.app import Application

    return Application().calls(Settings.model_construct())


def test_what_each_call_needs(calls: Calls) -> None:
    assert calls.find("GET", "/healthz").need is Need.NOTHING
    assert calls.find("GET", "/readyz").need is Need.NOTHING
    for method, path, need in [
        ("GET", "/", Need.READ),
        ("GET", "/metrics", Need.READ),
        ("GET", "/openapi.json", Need.READ),
        ("GET", "/v1/gallery", Need.READ),
        ("HEAD", "/v1/models/x", Need.READ),
        ("POST", "/v1/retrieve", Need.READ),
        ("POST", "/v1/search", Need.READ),
        ("POST", "/v1/models", Need.WRITE),
        ("DELETE", "/v1/models/x", Need.WRITE),
        ("POST", "/v1/gallery/reload", Need.WRITE),
        ("POST", "/healthz\n", Need.WRITE),
        ("GET", "/healthz/", Need.READ),
        ("GET", "/healthz\n", Need.READ),
        ("GET", "/HEALTHZ", Need.READ),
        ("GET", "//healthz", Need.READ),
        ("PUT", "/nowhere", Need.WRITE),
    ]:
        assert calls.find(method, path).need is need, (method, path)


def test_every_documented_change_needs_write(calls: Calls) -> None:
    """A call that is added later is closed until its route says that it reads."""
    from seisbind.service.http.app import openapi_document

    changes = {
        (method.upper(), path)
        for path, operations in openapi_document()["paths"].items()
        for method in operations
        if calls.find(method.upper(), path.replace("{model_id}", "x").replace("{job_id}", "x")).need is Need.WRITE
    }
    posts = {path for path, operations in openapi_document()["paths"].items() if "post" in operations}
    deletes = {("DELETE", "/v1/models/{model_id}"), ("DELETE", "/v1/jobs/{job_id}")}
    assert changes == {("POST", path) for path in posts - READING_POSTS} | deletes


@pytest.fixture(scope="module")
def keyed(run_server: Any, weights: Path, make_gallery: Any) -> Iterator[Any]:
    settings = Settings(
        gallery=make_gallery(),
        weights=weights,
        device="cpu",
        port=0,
        writable=True,
        api_keys=BOTH,  # type: ignore[arg-type]
    )
    with run_server(settings) as one:
        yield one


PATHS = ["/", "/metrics", "/openapi.json", "/v1/gallery", "/v1/models/x", "/v1/retrieve", "/nowhere", "/healthz/"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "code"),
    [({}, "key_required"), (bearer("wrong"), "key_unknown"), (bearer(READ[:-1]), "key_unknown"),
     ({"X-API-Key": READ}, "key_required"), (bearer(READER.digest), "key_unknown")],
)  # fmt: skip
def test_without_a_known_key_nothing_is_shown(keyed: Any, path: str, headers: dict[str, str], code: str) -> None:
    response = keyed.http.get(path, headers=headers)
    assert (response.status_code, response.json()["code"]) == (401, code)
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_no_log_line_holds_a_key(keyed: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Nor its hash, whether it is known, wrong, or where no key belongs; the name of a known one is there."""
    with caplog.at_level(logging.DEBUG):
        for headers in (bearer(READ), bearer(WRITE), bearer("wrong-key"), {"X-API-Key": READ}):
            keyed.http.get("/v1/gallery", headers=headers)
            keyed.http.delete("/v1/models/v-none", headers=headers)
            keyed.http.post(f"/v1/retrieve?key={READ}", headers=headers)
        time.sleep(0.2)  # a line is written when its answer is out
    own = [record for record in caplog.records if record.name.startswith(("seisbind", "uvicorn"))]
    lines = [f"{record.getMessage()} {getattr(record, 'seisbind_fields', '')} {record.exc_info}" for record in own]
    assert sum("'caller': 'pipeline'" in line for line in lines) >= 2  # vacuity: the lines are looked at
    assert not [line for line in lines for key in (READ, WRITE, "wrong-key", READER.digest) if key in line]


def test_probes_need_no_key(keyed: Any) -> None:
    assert keyed.http.get("/healthz").status_code == 200
    assert keyed.http.get("/readyz").status_code == 200


def test_a_key_that_reads(keyed: Any, gathers: Float32, models: tuple[Float32, Sequence[str]]) -> None:
    headers = bearer(READ)
    assert keyed.http.get("/", headers=headers).status_code == 200
    assert keyed.http.get("/v1/gallery", headers=headers).json()["gallery"]["models"] == 60
    assert keyed.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, headers=headers).status_code == 200
    assert keyed.http.get("/nowhere", headers=headers).status_code == 404
    for response in (
        keyed.http.post("/v1/models", files={"file": npy(models[0][0])}, headers=headers),
        keyed.http.delete("/v1/models/v-none", headers=headers),
        keyed.http.post("/v1/gallery/reload", headers=headers),
        keyed.http.put("/v1/gallery", headers=headers),
    ):
        assert (response.status_code, response.json()["code"]) == (403, "write_scope_required")


def test_a_key_that_writes(keyed: Any) -> None:
    headers = bearer(WRITE)
    new = np.linspace(1500, 4000, 4900, dtype=np.float32).reshape(70, 70)
    added = keyed.http.post("/v1/models", files={"file": npy(new)}, data={"model_id": "ramp"}, headers=headers)
    assert added.status_code == 201, added.text
    assert keyed.http.get("/v1/models/ramp", headers=headers).status_code == 200
    assert keyed.http.delete("/v1/models/ramp", headers=headers).status_code == 204
    assert keyed.http.post("/v1/gallery/reload", headers=headers).status_code == 200


HEAD = b"POST /v1/retrieve HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: 1000000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_keys_are_checked_before_a_body_is_read(keyed: Any, framing: bytes) -> None:
    """Answered before a byte of the body is there, and even where the body is too large (which would be a 413)."""
    with connect(keyed.url, timeout=20) as connection:
        connection.sendall(HEAD + framing)
        answer = rest_of(connection)
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in answer.lower()
    assert b'"key_required"' in answer


def test_who_sends_a_large_body_without_a_key_is_told(keyed: Any) -> None:
    """Not reset: the answer is there to read for a client that sends everything before it listens."""
    for _ in range(3):
        response = keyed.http.post("/v1/retrieve", content=bytes(20 << 20), headers={"Content-Type": "x/y"})
        assert response.json()["code"] == "key_required"
    assert keyed.http.get("/healthz").status_code == 200


@pytest.mark.parametrize("setting", ["page_access", "openapi_access", "metrics_access"])
def test_pages_can_be_opened_and_closed(serve: Any, setting: str) -> None:
    path = {"page_access": "/", "openapi_access": "/openapi.json", "metrics_access": "/metrics"}[setting]
    opened = serve(api_keys=BOTH, **{setting: Access.OPEN})
    assert opened.http.get(path).status_code == 200
    assert opened.http.get("/v1/gallery").status_code == 401
    closed = serve(**{setting: Access.OFF})
    response = closed.http.get(path)
    assert (response.status_code, response.json()["code"]) == (404, "not_found")
    assert closed.http.get("/v1/gallery").status_code == 200


def test_the_command_prints_a_key_and_its_line() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(SCRIPT), "key", "new", *arguments], capture_output=True, text=True, check=False)

    made = json.loads(run("pipeline", "--json").stdout)
    settings = Settings(api_keys=made["line"])
    key = read_keys(settings).find([f"Bearer {made['key']}".encode()])
    assert (key.name, key.scope) == ("pipeline", Scope.READ)
    lines = run("curator", "--scope", "write").stdout.splitlines()
    (secret,) = [line for line in lines if line.startswith("seisbind_")]
    (line,) = [line for line in lines if line.startswith("curator:write:")]
    assert line.endswith(hashlib.sha256(secret.encode()).hexdigest())
    bad = run("a b")
    assert bad.returncode == 1
    assert bad.stderr.strip().endswith("[invalid_config]")


def test_the_client_sends_its_key(keyed: Any, gathers: Float32, tmp_path: Path) -> None:
    """And the command takes it from the environment."""
    with Client(keyed.url, key=READ) as client:
        assert client.retrieve(gathers[0], top_k=1).gallery.models == 60
    with Client(keyed.url) as client, pytest.raises(ServerRefused) as refused:
        client.retrieve(gathers[0])
    assert refused.value.code == "key_required"
    for bad in (f"{READ}\n", "a b", "é"):
        with pytest.raises(InvalidConfig) as caught:
            Client(keyed.url, key=bad)
        assert READ not in str(caught.value)
    (tmp_path / "gather.npy").write_bytes(npy(gathers[0]))
    command = [str(SCRIPT), "retrieve", str(tmp_path / "gather.npy"), "--url", keyed.url, "--json"]
    environment = os.environ | {"SEISBIND_API_KEY": READ}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert READ not in done.stdout + done.stderr
