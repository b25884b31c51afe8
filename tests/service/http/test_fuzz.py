"""Promise 4 in small: the first uploads of `benchmarks/fuzz.py`, which runs 20,000."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import httpx
import pytest

from wire import RAW

SOURCE = Path(__file__).parents[3] / "benchmarks" / "fuzz.py"


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


@pytest.mark.parametrize(
    ("match", "said"),
    [
        ({}, None),
        ({"model_id": -1}, "not as described"),
        ({"model_id": ""}, "a model that does not exist"),
        ({"rank": 2}, "ranks"),
        ({"similarity": None}, "a number that is none"),
        ({"similarity": math.nan}, "a number that is none"),
        ({"descriptors": {"mean_velocity": None}}, "a number that is none"),
    ],
)
def test_an_answer_that_is_none_would_be_seen(fuzz: Any, match: dict[str, Any], said: str | None) -> None:
    """Promise 14."""
    good = {"rank": 1, "model_id": "v-0123456789abcdef", "similarity": 0.5, "descriptors": {"mean_velocity": 2000.0}}
    body = json.dumps({"results": [{"matches": [good | match], "physics": {}}]}).encode()
    request = httpx.Request("POST", "http://server/v1/retrieve")
    found = fuzz.fault(httpx.Response(200, content=body, request=request), 0.1)
    assert (found or "").startswith(said or "") and (found is None) == (said is None)
