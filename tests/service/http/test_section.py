"""POST /v1/section against a real server: the section that the engine makes, line by line, within limits."""

from __future__ import annotations

import asyncio
import io
import json
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from seisbind.index import Gallery
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.errors import ServerRefused
from seisbind.service.client.client import AsyncClient, Client
from seisbind.service.engine.engine import Engine
from seisbind.service.engine.section import Section, make_section, plan_section
from seisbind.service.formats.line_file import read_line
from seisbind.service.formats.npy import npy, npz
from seisbind.service.runtime.sections import section_lines
from seisbind.service.section_schemas import SectionAnswer, SectionProgress
from wire import until

RAW = {"Content-Type": "application/octet-stream"}
CHANNELS = 72


def line(shots: int = 70, *, dt_s: float = 0.004) -> bytes:
    """A towed line as npz: a shot every 20 m, 72 channels of 10 m from 50 m behind it."""
    source = np.repeat(np.arange(shots) * 20.0, CHANNELS)
    receiver = source - 50 - np.tile(np.arange(CHANNELS) * 10.0, shots)
    arrival = np.hypot(0.3 + 0.08 * np.sin((source + receiver) / 500), (source - receiver) / 2500)
    a2 = np.square(np.pi * 14 * (np.arange(250) * 0.004 - arrival[:, None]))
    traces = ((1 - 2 * a2) * np.exp(-a2)).astype(np.float32)
    return npz({"traces": traces, "source_x_m": source, "receiver_x_m": receiver, "dt_s": dt_s})


LINE = line()


def same(found: SectionAnswer, expected: Section) -> None:
    body = found.section
    assert (body.depth_cells, body.columns) == expected.velocity.shape
    assert (body.cell_m, body.x0_m) == (expected.cell_m, expected.x_m[0])
    for name in ("velocity", "disagreement", "weight", "low", "high"):
        wanted: NDArray[np.float32] | None = getattr(expected, name)
        got = body.array(name)
        assert (got is None) == (wanted is None)
        if got is not None and wanted is not None:
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=0.5)


@pytest.fixture(scope="module")
def expected(engine: Engine) -> Section:
    return make_section(engine, plan_section(read_line(LINE), frame=engine.frame, step_m=150))


def test_clients_get_the_section_of_the_engine(served: Any, expected: Section, tmp_path: Path) -> None:
    seen: list[SectionProgress] = []
    with Client(served.url) as client:
        found = client.section(LINE, step_m=150, progress=seen.append)
    same(found, expected)
    windows = [window for progress in seen for window in progress.read]
    assert [progress.done for progress in seen] == np.cumsum([len(each.read) for each in seen]).tolist()
    assert seen[-1].done == seen[-1].windows == len(expected.windows) == len(windows)
    assert len(seen) > 1
    for got, wanted in zip(windows, expected.windows, strict=True):
        assert (got.x_m, got.shots, got.lack) == (wanted.x_m, wanted.shots, wanted.lack)
        assert got.model_id == wanted.model_id
    (tmp_path / "line.npz").write_bytes(LINE)

    async def awaited() -> SectionAnswer:
        async with AsyncClient(served.url) as client:
            return await client.section(tmp_path / "line.npz", scale="1,1", step_m=150)

    same(asyncio.run(awaited()), expected)


def test_a_scaled_line_comes_back_in_true_units(served: Any, expected: Section) -> None:
    doubled = line(dt_s=0.008)
    with np.load(io.BytesIO(doubled)) as arrays:
        stated = dict(arrays)
    stated["source_x_m"], stated["receiver_x_m"] = stated["source_x_m"] * 2, stated["receiver_x_m"] * 2
    with Client(served.url) as client:
        found = client.section(npz(stated), scale=2, step_m=300).section
    assert (found.cell_m, found.x0_m, found.scale) == (20, expected.x_m[0] * 2, (2, 1))
    velocity = found.array("velocity")
    assert velocity is not None
    np.testing.assert_allclose(velocity, expected.velocity, rtol=1e-3)


def test_lines_are_json_and_raw_bodies_do(served: Any) -> None:
    response = served.http.post("/v1/section", content=LINE, headers=RAW, params={"step_m": 600})
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson"
    *progress, last = [json.loads(text) for text in response.text.splitlines()]
    assert all(set(each) == {"done", "windows", "read", "generation"} for each in progress)
    assert set(last) == {"section"}


@pytest.mark.parametrize(
    ("content", "params", "status", "code"),
    [
        (LINE, {"scale": "two"}, 422, "invalid_survey"),
        (LINE, {"scale": "2"}, 422, "invalid_gather"),  # the record is too short
        (LINE, {"step_m": 1}, 422, "invalid_survey"),
        (LINE, {"step": 100}, 422, "invalid_request"),
        (npy(np.zeros((5, 9))), {}, 415, "unsupported_format"),
        (npz({"traces": np.zeros((4, 250))}), {}, 422, "invalid_survey"),
        (LINE + b"\0" * (8 << 20), {}, 413, "upload_too_large"),
    ],
)
def test_what_cannot_be_read_is_a_problem(
    served: Any, content: bytes, params: dict[str, Any], status: int, code: str
) -> None:
    response = served.http.post("/v1/section", content=content, headers=RAW, params=params)
    assert (response.status_code, response.json()["code"]) == (status, code), response.text


def test_a_small_body_does_not_unpack_to_a_large_one(served: Any) -> None:
    """Zeros that a zip holds in a thousandth of their size, more than the server's bodies may be."""
    packed = io.BytesIO()
    x = np.zeros(40_000)
    np.savez_compressed(packed, traces=np.zeros((40_000, 1000), np.float32), source_x_m=x, receiver_x_m=x, dt_s=0.004)
    assert len(packed.getvalue()) < 1 << 20
    response = served.http.post("/v1/section", content=packed.getvalue(), headers=RAW)
    assert (response.status_code, response.json()["code"]) == (413, "upload_too_large"), response.text


def test_a_line_without_enough_traces_ends_with_its_error(served: Any) -> None:
    with np.load(io.BytesIO(LINE)) as arrays:
        few = {name: array if name == "dt_s" else array[::9] for name, array in arrays.items()}
    response = served.http.post("/v1/section", content=npz(few), headers=RAW)
    assert response.status_code == 200
    assert json.loads(response.text.splitlines()[-1])["error"]["code"] == "invalid_gather"
    with (
        Client(served.url) as client,
        pytest.raises(ServerRefused, match="windows of 690 m has enough traces") as refused,
    ):
        client.section(npz(few))
    assert refused.value.code == "invalid_gather"


def test_more_windows_than_a_server_reads_are_refused(serve: Callable[..., Any]) -> None:
    server = serve(max_windows=4)
    response = server.http.post("/v1/section", content=LINE, headers=RAW)
    assert response.status_code == 413 and "SEISBIND_MAX_WINDOWS" in response.json()["detail"]
    assert server.http.post("/v1/section", content=LINE, headers=RAW, params={"step_m": 690}).status_code == 200


def test_a_retrieval_is_answered_while_a_section_is_read(served: Any, gathers: NDArray[np.float32]) -> None:
    """Between two blocks: the section is not done when the answer has come."""
    begun, done = threading.Event(), threading.Event()

    def read() -> None:
        with Client(served.url) as client:
            client.section(LINE, step_m=35, progress=lambda line: begun.set())
        done.set()

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert begun.wait(60)
        response = served.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW)
        assert response.status_code == 200
        assert not done.is_set()
    finally:
        thread.join()
    assert done.is_set()


def test_who_leaves_ends_the_section(
    served: Any, busy: Callable[..., AbstractContextManager[None]], gathers: NDArray[np.float32]
) -> None:
    """Its model thread is held: nothing of it is left in the queue when the client has gone."""
    with busy(served), pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{served.url}/v1/section", content=LINE, headers=RAW, timeout=1.0)
    response = served.http.post("/v1/retrieve", content=npy(gathers[0]), headers=RAW)
    assert response.status_code == 200
    until(lambda: served.serving._admitted == 0)


def test_a_section_is_of_one_gallery_over_a_reload(
    serve: Any, make_gallery: Callable[[], Path], embedder: Embedder
) -> None:
    """Windows read after the reload find models of the gallery that the section began with, and its lines name it."""
    path, other = make_gallery(), make_gallery()
    with Gallery.open(path, fingerprint=embedder.fingerprint) as gallery:
        began, ids = gallery.stamp, set(gallery.model_ids())
    with Gallery.open(other, fingerprint=embedder.fingerprint, writable=True) as gallery:
        gallery.remove(gallery.model_ids())
    server = serve(gallery=path)
    plan = plan_section(read_line(LINE), frame=embedder.frame, step_m=150)

    async def read() -> list[Any]:
        found: list[Any] = []
        async with aclosing(section_lines(server.serving, plan)) as lines:
            async for text in lines:
                found.append(json.loads(text))
                if len(found) == 1:
                    path.rename(path.with_name("aside"))
                    other.rename(path)
                    assert server.http.post("/v1/gallery/reload").json()["after"]["models"] == 0
        return found

    *progress, last = asyncio.run(read())
    assert len(progress) > 1
    assert {each["generation"] for each in progress} | {last["section"]["generation"]} == {began}
    read_windows = [window for each in progress for window in each["read"] if window["lack"] is None]
    assert read_windows and {window["model_id"] for window in read_windows} <= ids
    assert server.http.get("/readyz").json()["generation"] != began
