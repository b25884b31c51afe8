"""Several servers, one gallery that changes: no failed request, no answer of two generations (promise 110)."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from seisbind.index import Gallery
from seisbind.index.replicas.publish import publish
from seisbind.model.encoders.embedder import Embedder
from seisbind.service.engine.engine import Engine

pytest.importorskip("obstore", reason="obstore is not installed: pip install -e '.[cluster]'")

Script = Callable[[str], ModuleType]


@pytest.mark.long
@pytest.mark.parametrize("shared", [False, True])
def test_a_rolling_reload_of_two_servers_under_load(
    tmp_path: Path, weights: Path, script: Script, shared: bool
) -> None:
    found = script("rolling_reload").roll(
        tmp_path, servers=2, rounds=2, models=60, clients=3, shared=shared, weights=weights
    )
    assert (found["failed"], found["mixed"]) == (0, 0), found["first_faults"]
    assert found["generations_seen"] == found["generations_made"] == 3
    assert found["answered"] > 10


def test_an_answer_that_mixes_two_generations_would_be_seen(script: Script) -> None:
    """A map of another generation under the same id, or a body that names another one than the header."""
    rolling = script("rolling_reload")
    one, other = (np.full((70, 70), value, np.float32) for value in (2000, 2100))
    sha256 = [hashlib.sha256(each.tobytes()).hexdigest() for each in (one, other)]
    truth = {"1-aaaaaaaa": {"a": sha256[0], "b": sha256[0]}, "1-bbbbbbbb": {"a": sha256[1], "b": sha256[1]}}

    def answer(*maps: Any, digest: str = "aaaaaaaa") -> bytes:
        body = json.dumps({"gallery": {"generation": 1, "digest": f"{digest}00000000"}}).encode()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            model_id=np.array([["a", "b"]]),
            velocity=np.stack(maps)[None],
            answer=np.frombuffer(body, np.uint8),
        )
        return buffer.getvalue()

    def faults(generation: str, content: bytes) -> Any:
        return rolling.faults(generation, *rolling.held(content), truth)

    assert faults("1-aaaaaaaa", answer(one, one)) == []
    assert faults("1-aaaaaaaa", answer(one, other)) == ["b is not as in 1-aaaaaaaa"]
    assert faults("1-aaaaaaaa", answer(one, one, digest="bbbbbbbb"))
    assert faults("2-cccccccc", answer(one, one))


def test_a_server_of_a_published_gallery(serve: Any, make_gallery: Any, embedder: Embedder, tmp_path: Path) -> None:
    """By reload: the new one; one that cannot be had leaves the old one, and has a name; nothing is left over."""
    path, published, cache = make_gallery(), tmp_path / "published" / "small", tmp_path / "cache"
    publish(path, published.as_uri())
    served = serve(gallery=published.as_uri(), cache=cache)
    before = served.http.get("/v1/gallery").json()["gallery"]
    with Gallery.open(path, fingerprint=embedder.fingerprint, writable=True) as gallery:
        assert before["name"] == "small" and before["digest"] == gallery.info().digest
        Engine(embedder, gallery).add_models(np.full((1, 70, 70), 2000.0, np.float32), model_ids=["late"])
    manifest = published / "latest.json"
    kept = manifest.read_bytes()
    manifest.write_bytes(kept[:-40])
    refused = served.http.post("/v1/gallery/reload")
    assert (refused.status_code, refused.json()["code"]) == (500, "gallery_damaged")
    published.rename(tmp_path / "away")
    assert served.http.post("/v1/gallery/reload").status_code in (409, 502)
    (tmp_path / "away").rename(published)
    assert served.http.get("/v1/gallery").json()["gallery"] == before
    publish(path, published.as_uri())
    assert served.http.post("/v1/gallery/reload").status_code == 200
    assert served.http.get("/v1/models/late").status_code == 200
    end = time.monotonic() + 60
    while len(list(cache.glob("*/generations/*"))) > 1:  # the old one goes with its last request
        assert time.monotonic() < end
        assert served.http.post("/v1/gallery/reload").status_code == 200
