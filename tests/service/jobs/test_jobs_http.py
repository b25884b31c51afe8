"""Jobs over real HTTP: a real server, the real keeper, a real worker process; what it computes is a stand-in."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import standin
from numpy.typing import NDArray
from wire import npy, until

from seisbind.service.jobs import keeper

Float32 = NDArray[np.float32]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "WORKER", (sys.executable, standin.__file__))
    monkeypatch.setattr(keeper, "POLL_S", 0.05)


def submit(served: Any, gather: Float32, **fields: object) -> Any:
    return served.http.post("/v1/jobs", files={"file": npy(gather)}, data=fields)


def ended(served: Any, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def there() -> bool:
        found.update(served.http.get(f"/v1/jobs/{job_id}").json())
        return found["state"] in ("done", "failed", "cancelled")

    until(there)
    return found


def test_a_job_from_its_request_to_its_result(serve: Any, gathers: Float32, tmp_path: Path) -> None:
    server = serve(jobs=tmp_path / "jobs")
    answer = submit(server, gathers[0], iterations=5, scale="2,0.9", start="read,matches", top_k=2)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['job_id']}" == job["links"]["self"]
    print(job)
    done = ended(server, job["job_id"])
    print(done)
    assert done["state"] == "done"
