"""POST /v1/check over HTTP: its answers, its bounds, and that nothing else waits for it."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.inversion.beside import Checker
from seisbind.model.inversion.forward import Forward
from seisbind.service.check_schemas import CheckAnswer
from seisbind.service.client.client import Client
from seisbind.service.engine.check_bodies import check_body
from seisbind.service.engine.engine import Engine

pytest.importorskip("deepwave")
Float32 = NDArray[np.float32]
Send = Callable[..., httpx.Response]


def npy(array: NDArray[Any]) -> bytes:
    body = io.BytesIO()
    np.save(body, array)
    return body.getvalue()


def send(served: Any, gather: Float32, model: Float32 | None = None, **fields: object) -> httpx.Response:
    files = {"file": ("gather", npy(gather))} | ({} if model is None else {"model": ("model", npy(model))})
    return served.http.post("/v1/check", data={name: str(value) for name, value in fields.items()}, files=files)


def test_answers_are_the_engines(
    served: Any, engine: Engine, gathers: Float32, models: tuple[Float32, list[str]]
) -> None:
    answer = CheckAnswer.model_validate_json(send(served, gathers[0], models[0][0], top_k=2).content)
    expected = check_body(engine.check(gathers[0], top_k=2, model=models[0][0]))
    assert [each.name for each in answer.check.candidates][:3] == ["match 1", "match 2", "mean"]
    assert answer.check.model_dump() == expected.model_dump()
    assert answer.check.candidates[-1].verdict.usable and answer.check.best == "given"
    assert len(answer.result.matches) == 2 and answer.result.physics is not None
    assert {"check", "encode", "total"} <= set(answer.timings_ms)
    raw = served.http.post(
        "/v1/check?top_k=1&include=", content=npy(gathers[0]), headers={"Content-Type": "application/octet-stream"}
    )
    assert raw.status_code == 200 and raw.json()["result"]["physics"] is None


def test_arrays_and_pictures(served: Any, gathers: Float32, models: tuple[Float32, list[str]]) -> None:
    with Client(served.url) as client:
        arrays = client.check_arrays(npy(gathers[0]), top_k=1, model=models[0][0])
        assert client.check(gathers[0], top_k=1).check.candidates[0].rank == 1
        picture = client.check_image(npy(gathers[0]), top_k=1, candidate="match 1")
    names = arrays["candidate"].tolist()
    count, windows = len(names), len(arrays["window_s"])
    assert names[0] == "match 1" and names[-1] == "given"
    assert arrays["observed"].shape == (5, 250, 70) and arrays["predicted"].shape == (count, 5, 250, 70)
    assert arrays["lag_s"].shape == (count, 5, 70, windows) and arrays["phase_rad"].shape == (count, 5, 70)
    np.testing.assert_array_equal(arrays["velocity"][-1], models[0][0])
    left = arrays["predicted"][-1] - arrays["observed"]
    assert np.square(left).sum() < 0.01 * np.square(arrays["observed"]).sum()
    assert CheckAnswer.model_validate_json(arrays["answer"].tobytes()).check.best == "given"
    assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"top_k": 17}, "at most 16"),
        ({"format": "gif"}, "json, npz, png"),
        ({"format": "png", "candidate": "given", "top_k": 1}, "no candidate 'given'"),
        ({"include": "everything"}, "include"),
    ],
)
def test_fields_that_are_refused(served: Any, gathers: Float32, fields: dict[str, object], says: str) -> None:
    refused = send(served, gathers[0], **fields)
    assert refused.status_code == 422 and says in refused.json()["detail"]


@pytest.mark.parametrize("candidate", ["given", "match 3", "nobody"])
def test_a_candidate_that_there_is_not_is_refused_before_waves_are_modelled(
    served: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch, candidate: str
) -> None:
    modelled: list[int] = []
    monkeypatch.setattr(Checker, "check_models", lambda self, *args, **more: modelled.append(1))
    refused = send(served, gathers[0], format="png", candidate=candidate, top_k=2)
    assert (refused.status_code, refused.json()["code"], modelled) == (422, "invalid_query", [])
    assert f"no candidate {candidate!r}; there are best, match 1, match 2, mean" in refused.json()["detail"]


def test_files_that_are_refused(served: Any, gathers: Float32) -> None:
    several = send(served, gathers)
    assert several.status_code == 422 and "one by one" in several.json()["detail"]
    wrong = send(served, gathers[0], np.full((70, 71), 2000, np.float32))
    assert (wrong.status_code, wrong.json()["code"]) == (422, "invalid_velocity_model")
    other = served.http.post("/v1/retrieve", files={"file": npy(gathers[0]), "model": b"more"})
    assert other.status_code == 422  # no other call takes a second file


def test_one_too_many_is_told_to_retry_and_retrieval_goes_on(serve: Any, gathers: Float32) -> None:
    served, gate = serve(max_checks=1), threading.Event()
    served.serving._checker.apart = False  # as on a GPU
    served.serving._checking.submit(gate.wait)
    found: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: found.append(send(served, gathers[0], top_k=1)))
    waiting.start()
    try:
        until(lambda: served.serving._checks == 1)
        refused = send(served, gathers[0], top_k=1)
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded") and "Retry-After" in refused.headers
        assert "seisbind_checks 1.0" in served.http.get("/metrics").text
        assert served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}).status_code == 200
    finally:
        gate.set()
        waiting.join()
    assert [each.status_code for each in found] == [200] and served.serving._checks == 0
    assert send(served, gathers[0], top_k=1).status_code == 200


def test_who_leaves_is_not_modelled_for(serve: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch) -> None:
    served, begun, gate, modelled = serve(), threading.Event(), threading.Event(), []
    served.serving._checker.apart = False  # as on a GPU
    run = Forward.__call__

    def slow(self: Forward, *args: Any) -> Any:
        modelled.append(1)
        begun.set()
        gate.wait()
        return run(self, *args)

    monkeypatch.setattr(Forward, "__call__", slow)
    leaving = httpx.Client(base_url=served.url, timeout=0.5)

    def leave() -> None:
        with pytest.raises(httpx.ReadTimeout):
            send(Only(leaving), gathers[0], top_k=12)

    thread = threading.Thread(target=leave)
    thread.start()
    begun.wait()
    thread.join()
    leaving.close()
    before = served.http.get("/metrics").text
    assert "seisbind_checks 1.0" in before
    until(lambda: "seisbind_admitted_requests 0.0" in served.http.get("/metrics").text)  # the server has noticed
    gate.set()
    until(lambda: served.serving._checks == 0)
    assert len(modelled) == 1  # of 12 matches, their mean and the model that is read


def test_without_deepwave_there_is_one_clear_error(
    served: Any, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepwave", None)
    refused = send(served, gathers[0], top_k=1)
    assert (refused.status_code, refused.json()["code"]) == (501, "missing_extra")
    assert "seisbind[inversion]" in refused.json()["detail"]


class Only:
    """A served server with another client."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)
