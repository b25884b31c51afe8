"""Promise 4 in small: the first uploads of `benchmarks/fuzz.py`, which runs 20,000."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

RAW = {"Content-Type": "application/octet-stream"}
SOURCE = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"


@pytest.fixture(scope="module")
def fuzz() -> Any:
    spec = importlib.util.spec_from_file_location("seisbind_fuzz", SOURCE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mutated_uploads_are_answered_or_refused(served: Any, fuzz: Any) -> None:
    report = fuzz.attack(served.http, 250, seed=0, slowest_s=math.inf)
    assert report["faults"] == []
    answered = sum(count for answer, count in report["answers"].items() if answer.endswith("answered"))
    assert 20 < answered < 230 and len(report["answers"]) > 5  # both outcomes, for many reasons


def test_the_good_files_are_good(served: Any, fuzz: Any) -> None:
    for body in fuzz.good_files()[:-1]:
        response = served.http.post("/v1/retrieve", content=body, params={"dt_s": "0.004"}, headers=RAW)
        assert response.status_code == 200, response.text


def test_a_broken_promise_would_be_seen(fuzz: Any) -> None:
    assert fuzz.fault(httpx.Response(500), 0.1) == "status 500"
    assert fuzz.fault(httpx.Response(200), 6.0) == "6.0 s"
    assert fuzz.fault(httpx.Response(400, text="no"), 0.1) == "no problem+json"
