"""``seisbind check`` by a gallery and by a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.service.commands.check import check

pytest.importorskip("deepwave")
Float32 = NDArray[np.float32]


@pytest.fixture
def gather(tmp_path: Path, gathers: Float32) -> Path:
    np.save(tmp_path / "gather.npy", gathers[0])
    return tmp_path / "gather.npy"


def test_a_gallery_is_checked(
    gather: Path,
    gallery_path: Path,
    weights: Path,
    models: tuple[Float32, list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    np.save(gather.with_name("own.npy"), models[0][0])
    own = {"gallery": gallery_path, "weights": weights, "device": "cpu", "top_k": 1}
    check(gather, **own, model=gather.with_name("own.npy"), out=gather.with_name("check.png"))
    text = capsys.readouterr().out
    assert "Best: given. It explains the record" in text and "match 1" in text
    assert gather.with_name("check.png").read_bytes().startswith(b"\x89PNG")


def test_a_server_gives_the_same(
    gather: Path, gallery_path: Path, weights: Path, served: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    check(gather, gallery=gallery_path, weights=weights, device="cpu", top_k=1, as_json=True)
    here = json.loads(capsys.readouterr().out)
    check(gather, url=served.url, key=None, top_k=1, as_json=True, out=gather.with_name("check.npz"))
    there = json.loads(capsys.readouterr().out)
    assert here["check"] == there["check"] and here["gallery"] == there["gallery"]
    with np.load(gather.with_name("check.npz"), allow_pickle=False) as arrays:
        assert arrays["observed"].shape == (5, 250, 70)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"out": Path("x.gif")}, 2, ".npz or .png"),
        ({"out": Path("nowhere/x.npz")}, 2, "writable"),
        ({}, 2, "one of the two"),
        ({"gallery": Path("nowhere")}, 2, "gallery"),
        ({"url": "http://127.0.0.1:9", "key": None}, 3, "127.0.0.1:9"),
    ],
)
def test_exit_codes(
    gather: Path, weights: Path, options: dict[str, Any], code: int, says: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from seisbind.service.client import client

    monkeypatch.setattr(client, "RETRIES", 0)
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as ended:
        check(gather, weights=weights, device="cpu", **options)
    assert ended.value.code == code and says in capsys.readouterr().err
