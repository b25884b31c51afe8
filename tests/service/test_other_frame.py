"""Another line than OpenFWI's, end to end, by the commands and HTTP: simulated, trained on, saved, indexed, served."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import command
from seisbind.index import Gallery, rounded
from seisbind.model.datasets.openfwi import Dataset, find_pairs
from seisbind.model.encoders.embedder import Embedder
from seisbind.model.encoders.weights_file import SHIPPED, load_weights
from seisbind.model.errors import WeightsMismatch
from seisbind.model.frame import OPENFWI_FRAME, Frame
from seisbind.model.ground.descriptors import describe
from seisbind.model.ground.families import mixed
from seisbind.model.survey.preparation import prepare
from seisbind.service.bulk.backends import GalleryBackend, RetrieveOptions
from seisbind.service.client.client import Client
from seisbind.service.engine.engine import Engine
from seisbind.service.formats.npy import NPZ, npy
from seisbind.service.schemas import StreamAnswer
from seisbind.service.settings import Settings

Float32 = NDArray[np.float32]
Run = Callable[[Settings], AbstractContextManager[Any]]
FAMILIES = ("--family", "FlatVel-A", "--family", "CurveVel-A")
BOTH = r"(?s)Short line \(60 x 48 cells of 5 m.*OpenFWI \(70 x 70 cells of 10 m|OpenFWI \(70 x 70.*Short line \(60 x 48"
RAW = {"Content-Type": "application/octet-stream"}


def seisbind(*arguments: str | Path, code: int = 0) -> str:
    """What the command says, if it ends with ``code``."""
    done = command.seisbind(*arguments)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, other_frame: Frame) -> Path:
    """A dataset, trained weights and a gallery of 12 models of another frame, each made by its command."""
    root = tmp_path_factory.mktemp("frame")
    (root / "frame.json").write_text(json.dumps(other_frame.to_dict()))
    recipe = {"steps": 3, "batch": 4, "warmup": 1, "encoders": {"width": 8, "velocity_width": 8, "hidden": 16}}
    (root / "recipe.json").write_text(json.dumps(recipe))
    seisbind("simulate", root / "data", "--count", "10", *FAMILIES, "--engine", "openfwi", "--per-file", "5",
             "--frame", root / "frame.json")  # fmt: skip
    seisbind("train", "--data", root / "data", "--out", root / "run", "--config", root / "recipe.json")
    weights = root / "run" / "weights.safetensors"
    seisbind("gallery", "build", root / "gallery", "--count", "12", *FAMILIES, "--weights", weights)
    return root


@pytest.fixture(scope="module")
def its_weights(root: Path) -> Path:
    return root / "run" / "weights.safetensors"


@pytest.fixture(scope="module")
def gathers(root: Path) -> Float32:
    """``(3, 3, 1200, 48)``, of the dataset."""
    return Dataset(find_pairs(root / "data")).gathers([0, 1, 2])


@pytest.fixture(scope="module")
def server(
    root: Path, its_weights: Path, run_server: Callable[[Settings], AbstractContextManager[Any]]
) -> Iterator[Any]:
    settings = Settings(gallery=root / "gallery", weights=its_weights, device="cpu", port=0, writable=True)
    with run_server(settings) as served:
        yield served


def segy(gather: Float32, frame: Frame) -> bytes:
    """A gather ``(shot, time, receiver)`` of the frame's line as SEG-Y, IEEE floats, positions in centimetres."""
    step_us, binary = round(frame.record_dt_s * 1e6), bytearray(400)
    for byte, value in ((3217, step_us), (3221, gather.shape[1]), (3225, 5), (3255, 1),
                        (3501, 0x100), (3503, 1)):  # fmt: skip
        struct.pack_into(">H", binary, byte - 3201, value)
    out = [b"\xc3" + b"\x40" * 3199, bytes(binary)]
    for shot, x in enumerate(frame.shot_x_m):
        for receiver, at in enumerate(frame.survey.receiver_x_m):
            header = bytearray(240)
            for byte, kind, value in ((9, "i", shot + 1), (13, "i", receiver + 1), (29, "h", 1), (71, "h", -100),
                                      (73, "i", round(x * 100)), (81, "i", round(at * 100)), (89, "h", 1),
                                      (115, "H", gather.shape[1]), (117, "H", step_us)):  # fmt: skip
                struct.pack_into(f">{kind}", header, byte - 1, value)
            out += [bytes(header), gather[shot, :, receiver].astype(">f4").tobytes()]
    return b"".join(out)


def best(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(match["model_id"], round(match["similarity"], 4)) for match in answer["matches"]]


def test_the_weights_and_the_gallery_say_their_frame(root: Path, its_weights: Path, other_frame: Frame) -> None:
    description = load_weights(its_weights).description
    assert description.frame == other_frame and description.calibration is not None
    info = json.loads(seisbind("gallery", "info", root / "gallery", "--json"))
    assert Frame.from_dict(info["frame"]) == other_frame and info["count"] == 12
    report = json.loads(seisbind("evaluate", "--data", root / "data", "--weights", its_weights, "--json"))
    assert report["overall"]["pairs"] == 10
    assert json.loads(seisbind("gallery", "verify", root / "gallery", "--json"))["ok"]


def test_the_gallery_answer_shows_it(server: Any, other_frame: Frame) -> None:
    assert Frame.from_dict(server.http.get("/v1/gallery").json()["frame"]) == other_frame
    with Client(server.url) as client:
        said = client.info().frame
        assert said is not None and said.name == "Short line" and said.receivers == 48
        found = client.retrieve(np.zeros((3, 1200, 48)) + np.arange(1200)[:, None] % 7, other_frame.survey)
        assert len(found.results[0].matches) == 5
    assert server.http.get("/readyz").status_code == 200  # the canary is of the frame


def test_npy_segy_npz_and_stream_give_one_answer(server: Any, gathers: Float32, other_frame: Frame) -> None:
    form = {"top_k": 4, "include": "descriptors,physics,velocity,traces"}
    answer = server.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data=form).json()
    (result,) = answer["results"]
    assert answer["ingest"]["dt_s"] == 0.0005 and answer["ingest"]["receiver_x_m"] == [0, 235]
    assert result["warnings"] == [] and len(result["matches"]) == 4
    assert (len(result["velocity"]["m_s"]), len(result["velocity"]["m_s"][0])) == (30, 24)
    assert result["velocity"]["cell_m"] == 10
    traces = result["traces"]
    assert [traces[name] for name in ("shots", "samples", "receivers", "dt_s", "receiver_step_m")] == [
        3,
        300,
        48,
        0.002,
        5,
    ]

    field = server.http.post("/v1/retrieve", content=segy(gathers[0], other_frame), headers=RAW, params=form).json()
    assert field["ingest"]["format"] == "segy" and field["ingest"]["receivers"] == 48
    assert best(field["results"][0]) == best(result)

    packed = server.http.post("/v1/retrieve", files={"file": npy(gathers)}, data=form, headers={"Accept": NPZ})
    with np.load(io.BytesIO(packed.content)) as arrays:
        assert arrays["velocity"].shape == (3, 4, 60, 48) and arrays["read_velocity"].shape == (3, 30, 24)
        assert arrays["model_id"][0].tolist() == [name for name, _ in best(result)]

    stream = server.http.post("/v1/retrieve/stream", content=npy(gathers), headers=RAW, params={"top_k": 4})
    lines = [json.loads(line) for line in stream.text.splitlines()]
    assert [line["index"] for line in lines] == [0, 1, 2] and best(lines[0]["result"]) == best(result)


def test_in_process_the_answers_are_the_servers(
    root: Path, its_weights: Path, server: Any, gathers: Float32, other_frame: Frame
) -> None:
    over_http = server.http.post("/v1/retrieve", files={"file": npy(gathers[1])}).json()
    with GalleryBackend(root / "gallery", its_weights, "cpu", RetrieveOptions()) as backend:
        answer = backend.file(npy(gathers[1]))
        (line, *_) = backend.stack(gathers[1:2], RetrieveOptions().geometry, 0)
    assert best(answer.model_dump()["results"][0]) == best(over_http["results"][0])
    assert isinstance(line, StreamAnswer) and best(line.result.model_dump()) == best(over_http["results"][0])
    np.save(root / "stack.npy", gathers)
    options = ("--gallery", root / "gallery", "--weights", its_weights, "--out", root / "answers.jsonl")
    seisbind("retrieve", root / "stack.npy", *options)
    written = [json.loads(line)["result"] for line in (root / "answers.jsonl").read_text().splitlines()]
    assert len(written) == 3 and best(written[1]) == best(over_http["results"][0])


def test_a_gather_of_another_line_is_said_or_refused_with_this_ones_numbers(server: Any, gathers: Float32) -> None:
    openfwis = np.random.default_rng(0).standard_normal((5, 1000, 70)).astype(np.float32)
    refused = server.http.post("/v1/retrieve", files={"file": npy(openfwis)})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_survey")
    assert "only 3 shots into 48 receivers are taken for Short line's line" in refused.json()["detail"]
    sparse = {"shot_x_m": "0,115", "receiver_x_m": ",".join(f"{10 * i}" for i in range(24)), "peak_hz": "70"}
    answer = server.http.post("/v1/retrieve", files={"file": npy(gathers[0, :2, :900, ::2])}, data=sparse).json()
    said = {each["code"]: each["detail"] for each in answer["results"][0]["warnings"]}
    assert "13.3333 to 46.6667 Hz" in said["peak_frequency_untrained"]
    assert "trained mostly on three at 0-235 m" in said["shot_positions"]
    assert "mapped to the canonical 48 over 235 m" in said["receivers_mapped"]
    assert "0.150 s of the canonical 0.6 s are missing" in said["record_short"]
    short = {"shot_x_m": "0,50", "receiver_x_m": ",".join(f"{2 * i}" for i in range(48))}
    refused = server.http.post("/v1/retrieve", files={"file": npy(gathers[0, :2])}, data=short)
    assert "at least 115 m of the canonical 235 m" in refused.json()["detail"]


def test_models_are_added_in_its_cells_and_shown(server: Any, other_frame: Frame) -> None:
    (velocity,), _ = mixed(1, 99, frame=other_frame)
    added = server.http.post("/v1/models", files={"file": npy(velocity)}, data={"model_id": "mine", "family": "own"})
    assert added.status_code == 201, added.text
    velocity = rounded(velocity, 0.5)  # as a gallery of random models is, unless told otherwise
    refused = server.http.post("/v1/models", files={"file": npy(mixed(1, 99)[0])})
    assert refused.status_code == 422 and "60 x 48 cells of 5 m; got 70 x 70" in refused.json()["detail"]
    model = server.http.get("/v1/models/mine").json()
    assert (model["depth_cells"], model["x_cells"], model["cell_m"]) == (60, 48, 5)
    described = describe(velocity, cell_m=5.0)[0]
    values = [each["value"] for each in model["descriptors"].values()]
    np.testing.assert_allclose(values, described, rtol=1e-5)
    np.testing.assert_array_equal(np.load(io.BytesIO(server.http.get(model["velocity_url"]).content)), velocity)
    in_depth = server.http.get(model["segy_url"]).content
    assert int.from_bytes(in_depth[3216:3218], "big") == 5000  # mm
    assert len(in_depth) == 3600 + 48 * (240 + 4 * 60)
    picture = server.http.get(model["image_url"])
    assert picture.headers["content-type"] == "image/png" and len(picture.content) > 5000
    found = server.http.post("/v1/search", files={"file": npy(velocity)}, data={"top_k": 1}).json()
    assert found["results"][0]["matches"][0]["model_id"] == "mine"
    assert server.http.delete("/v1/models/mine").status_code == 204


def test_the_page_is_drawn_for_it(server: Any, served: Any) -> None:
    page = server.http.get("/").text
    assert 'data-cell-m="5"' in page and 'data-slowest-m-s="1200"' in page and 'data-fastest-m-s="3600"' in page
    assert "Three shots into 48 receivers without positions are taken for Short line's line." in page
    assert (
        'placeholder="0, 115, 235"' in page and 'placeholder="0, 5, 10, …"' in page and 'placeholder="0.0005"' in page
    )
    assert "As the encoder sees it: 2 ms, 5 m" in page and '<fieldset class="samples" hidden>' in page
    assert not re.search(r"OpenFWI|\{\{", page)
    own = served.http.get("/").text
    assert 'data-cell-m="10"' in own and '<fieldset class="samples">' in own and "4 ms, 10 m" in own
    assert "Five shots into 70 receivers without positions are taken for OpenFWI's line." in own
    script = server.http.get("/web/models.js").text
    assert "dataset" in script and "FRAME.cellM" in script


def test_the_page_reads_models_in_its_metres(server: Any, gathers: Float32) -> None:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[browser]'")
    program = os.environ.get("SEISBIND_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("there is no chromium on this machine: apt install chromium")
    faults: list[str] = []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox"])
        # smooth scrolling to the answer may go on under the pointer, which then leaves the model that it points at
        page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"{server.url}/")
        page.set_input_files("#file", {"name": "short.npy", "mimeType": "x/y", "buffer": npy(gathers[0])})
        page.wait_for_selector("#state.done")
        assert not page.is_visible("#samples") and page.locator("#shot option").count() == 3
        assert "Read directly" in page.inner_text("#models")
        page.wait_for_selector("#models canvas[aria-label*='Match 1,']")
        page.locator("#models canvas").nth(1).hover()
        page.wait_for_function("document.querySelector('#readout').textContent.startsWith('x ')")
        found = re.match(r"x (\d+) m, depth (\d+) m", page.inner_text("#readout"))
        assert found is not None
        x, depth = (int(each) for each in found.groups())
        assert 90 < x < 150 and 110 < depth < 190  # of 240 m and 300 m
        browser.close()
    assert faults == []


def test_each_mismatch_is_refused_with_both_frames(
    root: Path, its_weights: Path, gallery_path: Path, other_frame: Frame, tmp_path: Path
) -> None:
    embedder = Embedder.load(its_weights, device="cpu")
    with pytest.raises(WeightsMismatch, match=BOTH):
        Gallery.open(gallery_path, fingerprint=embedder.fingerprint, frame=other_frame)
    with Gallery.create(tmp_path / "lying", fingerprint=embedder.fingerprint) as gallery:
        assert gallery.frame == OPENFWI_FRAME
        with pytest.raises(WeightsMismatch, match=BOTH):
            Engine(embedder, gallery)
    shutil.copytree(root / "gallery", tmp_path / "copy")  # the server holds the other
    for words in (
        ("serve", "--gallery", root / "gallery", "--port", "0"),
        ("evaluate", "--data", root / "data"),
        ("gallery", "build", tmp_path / "g", "--data", root / "data"),
        ("gallery", "add", tmp_path / "copy", "--count", "1"),
        ("train", "--data", root / "data", "--out", tmp_path / "run", "--start", SHIPPED),
        ("simulate", root / "data", "--count", "10", *FAMILIES, "--engine", "openfwi", "--per-file", "5"),
    ):
        said = seisbind(*words, code=1)
        assert re.search(BOTH, said.replace("\n", " ")), said
        assert "Traceback" not in said


def test_what_prepare_makes_of_it(gathers: Float32, other_frame: Frame) -> None:
    prepared = prepare(gathers, frame=other_frame)
    assert prepared.traces.shape == (3, *other_frame.prepared_shape) and prepared.live.all()
