"""A server that looks for changes itself (promise 108), and says which gallery each answer is from (promise 109)."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import GalleryDamaged
from seisbind.service.engine.engine import Engine
from seisbind.service.runtime.watch import GalleryWatch
from wire import RAW, npy

Float32 = NDArray[np.float32]
OFTEN = 0.05
PATIENCE_S = 60.0
HEADER = "SeisBind-Generation"


def until(met: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def failures(served: Any) -> float:
    text = served.http.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("seisbind_gallery_reload_fail"))


def grow(path: Path, embedder: Embedder, name: str) -> None:
    """Another process adds a model."""
    with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
        Engine(embedder, gallery).add_models(np.full((1, 70, 70), 2000.0, np.float32), model_ids=[name])


def test_what_another_process_changes_is_served_by_itself(
    serve: Any, make_gallery: Any, embedder: Embedder, gathers: Float32
) -> None:
    path = make_gallery()
    still, watching = serve(gallery=path), serve(gallery=path, watch_s=OFTEN)
    before = watching.http.get("/readyz").json()["generation"]
    grow(path, embedder, "late")
    until(lambda: watching.http.get("/readyz").json()["generation"] != before)
    assert watching.http.get("/v1/models/late").headers[HEADER] == watching.http.get("/readyz").json()["generation"]
    assert still.http.get("/v1/gallery").json()["gallery"]["generation"] == int(before.split("-")[0])
    assert failures(watching) == 0


def test_a_bad_gallery_displaces_nothing_and_is_not_tried_all_the_time(
    serve: Any, make_gallery: Any, embedder: Embedder, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_gallery()
    served = serve(gallery=path, watch_s=OFTEN)
    before = served.http.get("/readyz").json()
    looks = 0
    look = served.serving.look

    async def counted() -> Any:
        nonlocal looks
        looks += 1
        return await look()

    monkeypatch.setattr(served.serving, "look", counted)
    sound, bad = path.with_name("sound"), path.with_name("bad")
    shutil.copytree(path, sound)
    bad.mkdir()
    (bad / "records.sqlite").write_bytes(b"no gallery" * 1000)
    path.rename(path.with_name("old"))
    bad.rename(path)
    until(lambda: failures(served) >= 1)
    seen = looks
    until(lambda: looks >= seen + 20)
    assert failures(served) <= 6  # twice the time after each: of 20 looks no more than a few are attempts
    assert "The gallery was not reloaded" in caplog.text
    assert served.http.get("/readyz").json() == before
    path.rename(path.with_name("gone"))
    sound.rename(path)
    grow(path, embedder, "late")
    until(lambda: served.http.get("/v1/models/late").status_code == 200)


def test_the_time_between_attempts_doubles_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """In time that the test makes; another bad gallery is tried at once, a good one ends it."""
    now, tried = 0.0, []
    there: list[object] = ["served"]

    class Stub:
        async def look(self) -> tuple[object, object]:
            return "served", there[0]

        async def reload(self) -> Any:
            tried.append(now)
            raise GalleryDamaged("bad")

    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = GalleryWatch(Stub(), 1.0)  # type: ignore[arg-type]

    async def pass_time(seconds: int) -> list[float]:
        nonlocal now
        begun = len(tried)
        for _ in range(seconds):
            now += 1
            await watch.look()
        return tried[begun:]

    async def story() -> None:
        assert await pass_time(10) == []
        there[0] = "bad"
        assert np.diff(await pass_time(5000)).tolist() == [2, 4, 8, 16, 32, 64, 128, 256, 512, *[600] * 6]
        there[0] = "another bad one"
        assert len(await pass_time(2)) == 1
        there[0] = "served"
        assert await pass_time(10) == []

    asyncio.run(story())


def test_each_answer_says_which_gallery_it_is_from(
    serve: Any, make_gallery: Any, gathers: Float32, embedder: Embedder
) -> None:
    path = make_gallery()
    http = serve(gallery=path, writable=True).http
    model = npy(np.full((70, 70), 2300, np.float32))

    def stamps() -> set[str]:
        found = http.get("/v1/gallery").json()["gallery"]
        expected = f"{found['generation']}-{found['digest'][:8]}"
        name = http.post("/v1/search", content=model, headers=RAW).json()["results"][0]["matches"][0]["model_id"]
        answers = [
            http.get("/v1/gallery"),
            http.get("/readyz"),
            http.get("/v1/gallery/distribution"),
            http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW),
            http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW | {"accept": "application/x-npz"}),
            http.post("/v1/search", content=model, headers=RAW),
            *(http.get(f"/v1/models/{name}{part}") for part in ("", "/velocity.npy", "/velocity.segy", "/image.png")),
        ]
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert {answer.headers[HEADER] for answer in answers} == {expected}
        return {expected}

    before = stamps()
    added = http.post("/v1/models", content=model, headers=RAW)
    assert added.status_code == 201 and {added.headers[HEADER]} == stamps() != before
    assert HEADER not in http.get("/healthz").headers
    assert HEADER not in http.get("/v1/models/unknown").headers


def test_a_line_of_a_stream_is_of_one_gallery_and_says_which(
    serve: Any, make_gallery: Any, embedder: Embedder, gathers: Float32
) -> None:
    """The stack is sent over a reload: early lines are of the one gallery, late ones of the other, none of both."""
    path, other = make_gallery(), make_gallery()
    with Gallery.open(other, fingerprint=embedder.fingerprint, writable=True) as gallery:
        gallery.remove([match.model_id for match in Engine(embedder, gallery).retrieve(gathers[0])[0].matches])
    expected = {}
    for each in (path, other):
        with Gallery.open(each, fingerprint=embedder.fingerprint) as gallery:
            [answer] = Engine(embedder, gallery).retrieve(gathers[0])
            expected[gallery.info().digest] = [match.model_id for match in answer.matches]
    assert len(expected) == 2
    server = serve(gallery=path)
    answered, swapped = threading.Event(), threading.Event()
    count = 40
    body = npy(np.repeat(gathers[:1], count, axis=0))
    half = len(body) // 2

    def sent() -> Any:
        yield body[:half]
        answered.wait(PATIENCE_S)
        path.rename(path.with_name("aside"))
        other.rename(path)
        assert server.http.post("/v1/gallery/reload").status_code == 200
        swapped.set()
        yield body[half:]

    # a client that reads while it sends: the first half has been answered before the gallery is exchanged
    before = server.serving.metrics.stage_seconds.labels("encode")._sum.get()

    def wait_for_lines() -> None:
        until(lambda: server.serving.metrics.stage_seconds.labels("encode")._sum.get() > before)
        answered.set()

    waiting = threading.Thread(target=wait_for_lines)
    waiting.start()
    with httpx.stream(
        "POST", f"{server.url}/v1/retrieve/stream", content=sent(), headers=RAW, timeout=PATIENCE_S
    ) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    waiting.join()
    assert swapped.is_set() and len(lines) == count and not any("error" in line for line in lines)
    seen = [line["gallery"]["digest"] for line in lines]
    assert set(seen) == set(expected)
    for line, digest in zip(lines, seen, strict=True):
        assert [match["model_id"] for match in line["result"]["matches"]] == expected[digest]
    assert seen == sorted(seen, key=list(expected).index)  # once changed, for good
