"""Geometries that nobody shoots: each is answered, or refused with numbers, by every call that reads a record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.model.errors import SeisBindError
from seisbind.service.engine.inspection import inspect_record
from seisbind.service.formats.npy import npz

Float64 = NDArray[np.float64]
SHOTS, RECEIVERS = np.array([0.0, 170, 340, 520, 690]), np.arange(70) * 10.0


def grid(shots: Float64, receivers: Float64) -> tuple[Float64, Float64]:
    """Source and receiver of each trace: every shot into every receiver."""
    source, receiver = np.meshgrid(shots, receivers, indexing="ij")
    return source.ravel(), receiver.ravel()


def back_and_forth() -> tuple[Float64, Float64]:
    """A cable towed along the line and back on it, 5 m beside the first places."""
    there = np.arange(0, 1000, 50.0)
    source = np.repeat(np.concatenate([there, there[::-1] + 5]), 24)
    side = np.repeat(np.where(np.arange(40) < 20, -1.0, 1.0), 24)
    return source, source + side * (50 + np.tile(np.arange(24) * 10.0, 40))


def with_one(name: str, value: float) -> tuple[Float64, Float64]:
    source, receiver = grid(SHOTS, RECEIVERS)
    (source if name == "source" else receiver)[17] = value
    return source, receiver


LINES: dict[str, Callable[[], tuple[Float64, Float64]]] = {
    "all shots beyond the line": lambda: grid(SHOTS + 900, RECEIVERS),
    "all shots far beyond it": lambda: grid(SHOTS + 1e6, RECEIVERS),
    "one receiver": lambda: grid(SHOTS, np.array([200.0])),
    "one trace": lambda: (np.array([0.0]), np.array([200.0])),
    "each shot twice": lambda: grid(np.repeat(SHOTS, 2), RECEIVERS),
    "receivers in reverse": lambda: grid(SHOTS, RECEIVERS[::-1].copy()),
    "64 shots at one place": lambda: grid(np.full(64, 300.0), RECEIVERS),
    "a source at NaN": lambda: with_one("source", float("nan")),
    "a receiver at infinity": lambda: with_one("receiver", float("inf")),
    "a source 1e12 m away": lambda: with_one("source", 1e12),
    "all of it 1e12 m away": lambda: grid(SHOTS + 1e12, RECEIVERS + 1e12),
    "zero offsets alone": lambda: (RECEIVERS, RECEIVERS),
    "all at one place": lambda: (np.zeros(350), np.zeros(350)),
    "back on itself": back_and_forth,
    "no order at all": lambda: (lambda x: (x[0], x[1]))(np.random.default_rng(0).uniform(-1e3, 1e3, (2, 500))),
}


def traces_of(source: Float64, receiver: Float64) -> NDArray[np.float32]:
    """``(trace, 250)`` at 4 ms: a reflection over a little noise."""
    offset = np.nan_to_num(np.abs(source - receiver), nan=0, posinf=0)
    a2 = np.square(np.pi * 14 * (np.arange(250) * 0.004 - np.hypot(0.3, np.minimum(offset, 1e4) / 2500)[:, None]))
    noise = np.random.default_rng(1).standard_normal((len(source), 250))
    return np.asarray((1 - 2 * a2) * np.exp(-a2) + 0.01 * noise, np.float32)


def sound(status: int, body: dict[str, Any]) -> bool:
    """Whether it is an answer (True), or else a refusal with a number in its sentence."""
    if status == 200:
        return True
    assert 400 <= status < 500 and body["code"] not in ("internal_error", "invalid_request"), body
    assert re.search(r"\d", body["detail"]), body["detail"]
    return False


@pytest.mark.parametrize("name", LINES)
def test_a_line_is_answered_or_refused_with_numbers(name: str, served: Any) -> None:
    source, receiver = LINES[name]()
    file = npz({"traces": traces_of(source, receiver), "source_x_m": source, "receiver_x_m": receiver, "dt_s": 0.004})
    for scale in ("1", "auto"):
        answer = served.http.post("/v1/section", files={"file": file}, data={"scale": scale})
        *_, last = answer.text.splitlines()
        body = json.loads(last)
        sound(body["error"]["status"] if "error" in body else answer.status_code, body.get("error", body))


GATHERS: dict[str, tuple[Float64, Float64, bool]] = {  # shots, receivers, whether there is an answer
    "all shots beyond the line": (SHOTS + 900, RECEIVERS, False),
    "one receiver": (SHOTS, np.array([200.0]), False),
    "each shot twice": (np.repeat(SHOTS, 2), RECEIVERS, True),
    "receivers in reverse": (SHOTS, RECEIVERS[::-1].copy(), False),
    "64 shots at one place": (np.full(64, 300.0), RECEIVERS, True),
    "65 shots": (np.linspace(0, 690, 65), RECEIVERS, False),
    "a shot at NaN": (np.array([0, 170, np.nan, 520, 690]), RECEIVERS, False),
    "a receiver 1e12 m away": (SHOTS, np.append(RECEIVERS[:-1], 1e12), False),
    "all of it 1e12 m away": (SHOTS + 1e12, RECEIVERS + 1e12, False),
    "one shot on one of two receivers": (np.array([10.0]), np.array([0.0, 10.0]), False),
}


@pytest.mark.parametrize("name", GATHERS)
def test_a_gather_is_answered_or_refused_with_numbers(name: str, served: Any) -> None:
    shots, receivers, answered = GATHERS[name]
    source, receiver = grid(shots, receivers)
    gathers = traces_of(source, receiver).reshape(len(shots), len(receivers), 250).transpose(0, 2, 1)
    file = npz({"gathers": gathers, "shot_x_m": shots, "receiver_x_m": receivers, "dt_s": 0.004})
    for path, fields in (("/v1/retrieve", {}), ("/v1/retrieve", {"scale": "auto"}), ("/v1/read", {"grid": "dx=20"})):
        reply = served.http.post(path, files={"file": file}, data=fields)
        body = {} if reply.status_code == 200 else reply.json()
        assert sound(reply.status_code, body) == answered, (path, fields, body)
    try:
        told = inspect_record(file)
    except SeisBindError as error:
        assert re.search(r"\d", str(error))
    else:
        assert (told.refusal is None) == answered


def test_duplicate_shots_are_those_once(served: Any) -> None:
    """Twice the same record is no more than the record."""
    found = []
    for shots in (SHOTS, np.repeat(SHOTS, 2)):
        gathers = traces_of(*grid(shots, RECEIVERS)).reshape(len(shots), 70, 250).transpose(0, 2, 1).copy()
        gathers[:] = gathers[0]
        file = npz({"gathers": gathers, "shot_x_m": shots, "receiver_x_m": RECEIVERS, "dt_s": 0.004})
        (answer,) = served.http.post("/v1/retrieve", files={"file": file}).json()["results"]
        found.append(answer)
    once, twice = ({name: each["value"] for name, each in answer["physics"].items()} for answer in found)
    assert twice == pytest.approx(once, rel=1e-3)
