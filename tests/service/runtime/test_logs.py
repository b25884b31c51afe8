"""The log of a real ``seisbind serve``: JSON lines with request ids, and never a key or a body in it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from seisbind.service.runtime.logs import FIELDS, REQUEST_ID, JsonLines, TextLines
from seisbind.service.transport.keys import Scope, make_key

SCRIPT = Path(sys.executable).with_name("seisbind")
SECRET, KEY = make_key("pipeline", Scope.WRITE)
BODY = b"the-samples-of-a-customer"


def logged(weights: Path, gallery: Path, tmp_path: Path) -> list[str]:
    """What a server says to some calls with keys right and wrong, a fault of the gallery included."""
    keys = tmp_path / "keys"
    keys.write_text(KEY.line + "\n", encoding="utf-8")
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "SEISBIND_LOG_FORMAT": "json",
        "SEISBIND_API_KEYS_FILE": str(keys),
        "SEISBIND_WEIGHTS": str(weights),
        "SEISBIND_GALLERY": str(gallery),
        "SEISBIND_DEVICE": "cpu",
        "SEISBIND_PORT": "0",
    }
    said = tmp_path / "log"
    with (
        said.open("wb") as errors,
        subprocess.Popen(
            [str(SCRIPT), "serve"], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            url = re.findall(r"http://\S+", line)[0]
            with httpx.Client(base_url=url, timeout=60) as http:
                right = {"Authorization": f"Bearer {SECRET}", "X-Request-ID": "run-7"}
                kind = {"Content-Type": "application/octet-stream"}
                assert http.get("/healthz").status_code == 200
                assert http.post("/v1/retrieve?filter=secret", content=BODY, headers=right | kind).status_code == 422
                assert http.get("/v1/gallery", headers={"Authorization": f"Bearer wrong-{SECRET}"}).status_code == 401
                assert http.delete("/v1/models/x", headers=right).status_code == 403  # read-only
                gallery.rename(gallery.with_name("away"))
                assert http.post("/v1/gallery/reload", headers=right).status_code == 409
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    assert process.returncode == 0
    return said.read_text(encoding="utf-8").splitlines()


def test_json_lines(weights: Path, make_gallery: Any, tmp_path: Path) -> None:
    text = logged(weights, make_gallery(), tmp_path)
    lines = [json.loads(line) for line in text]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    access = [line for line in lines if line["logger"] == "seisbind.access"]
    assert [(line["method"], line["route"], line["status"]) for line in access] == [
        ("GET", "/healthz", 200),
        ("POST", "/v1/retrieve", 422),
        ("GET", "/v1/gallery", 401),
        ("DELETE", "/v1/models/{model_id}", 403),
        ("POST", "/v1/gallery/reload", 409),
    ]
    assert [line.get("caller") for line in access] == [None, "pipeline", None, "pipeline", "pipeline"]
    assert [line["request_id"] for line in access if line.get("caller")] == ["run-7"] * 3
    assert len({line["request_id"] for line in access}) == 3
    (fault,) = [line for line in lines if line["level"] == "ERROR"]
    assert "gallery_not_found" in fault["message"]
    assert fault["request_id"] == "run-7"  # the id leads from the answer to the fault
    audit = [line for line in lines if line["logger"] == "seisbind.audit"]
    assert [(line["caller"], line["status"]) for line in audit] == [("pipeline", 403), ("pipeline", 409)]
    says_nothing_secret("\n".join(text))


def says_nothing_secret(text: str) -> None:
    for secret in (SECRET, SECRET.removeprefix("seisbind_"), KEY.digest, "wrong", "secret", BODY.decode(), "Bearer"):
        assert secret not in text


def test_a_traceback_is_one_json_line() -> None:
    try:
        raise ZeroDivisionError("a\nb")
    except ZeroDivisionError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "it %s", ("failed",), sys.exc_info())
    setattr(record, FIELDS, {"path": Path("a")})
    token = REQUEST_ID.set("id-1")
    try:
        line, text = JsonLines().format(record), TextLines().format(record)
    finally:
        REQUEST_ID.reset(token)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["message"], found["request_id"], found["path"]) == ("it failed", "id-1", "a")
    assert "ZeroDivisionError: a\nb" in found["exception"]
    assert text.splitlines()[0].endswith("ERROR x it failed path=a [id-1]")


@pytest.mark.parametrize("log_format", ["xml", ""])
def test_no_other_format(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from seisbind.model.errors import InvalidConfig
    from seisbind.service.settings import read_settings

    monkeypatch.setenv("SEISBIND_LOG_FORMAT", log_format)
    with pytest.raises(InvalidConfig, match="log_format"):
        read_settings()
