"""The page in a real browser (conftest.py has it). ``SEISBIND_AXE`` names axe-core's ``axe.min.js``."""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from chromium import INKED, Open, answered, ask_sample, send
from seisbind.model.encoders.embedder import Embedder
from seisbind.service.commands.demo import npy
from seisbind.service.formats.npy import npz
from seisbind.service.transport.keys import Scope, make_key

AXE = os.environ.get("SEISBIND_AXE")

Float32 = NDArray[np.float32]


def test_a_sample_is_asked_about_with_the_keyboard(visit: Open) -> None:
    page = visit()
    page.get_by_role("button", name="A fault").focus()
    page.keyboard.press("Enter")
    answered(page)
    assert "Answered in" in page.inner_text("#state-text")
    assert page.evaluate("document.activeElement.id") == "answer-title"
    assert page.locator("#models li").count() == 7  # the truth, the encoder's own, five matches
    for canvas in page.locator("#models canvas, #traces, #bar").all():
        assert canvas.evaluate(INKED) > 10, canvas.get_attribute("aria-label")
    assert page.locator("#physics tbody tr").count() == 13
    assert page.locator("#physics svg .h-band").count() == 13
    assert page.locator("#physics svg .h-truth").count() == 13
    assert page.inner_text("#verdict").startswith("✓ Familiar.")
    assert page.inner_text("#presence").startswith("✓ In the gallery.")
    page.get_by_label("Next shot").press("Enter")
    assert page.input_value("#shot") == "3"
    label = page.get_attribute("#traces", "aria-label")
    page.select_option("#axis", "offset")
    assert label.startswith("Shot 4 of 5 at 520 metres: 70 traces of 1 seconds, 0 of them dead.")


def test_a_line_of_another_size_is_shown_in_true_units(visit: Open, gathers: Float32) -> None:
    page = visit()
    page.locator("#options summary").click()
    for name, value in (("scale", "auto,0.9"), ("dt_s", "0.003333333333")):
        page.fill(f"[name={name}]", value)
    page.fill("[name=shot_x_m]", ",".join(str(3 * x) for x in (0, 170, 340, 520, 690)))
    page.fill("[name=receiver_x_m]", ",".join(str(30 * i) for i in range(70)))
    send(page, "long.npy", npy(gathers[0]))
    answered(page)
    size = page.inner_text("#ingest")
    assert "s = 3, k = 0.9 (chosen, decided by record): 2070 m of line, 2100 m deep" in size and "signal at" in size
    assert "Chosen s = 3, k = 0.9" in page.inner_text("#warnings")
    assert "of 3.333 seconds" in page.get_attribute("#traces", "aria-label")
    page.locator("#models canvas").nth(1).hover(position={"x": 100, "y": 100})
    assert "depth" in page.inner_text("#readout")
    links = [link.get_attribute("href") for link in page.locator("#models a[download]").all()]
    assert links and all(link.endswith(("velocity.npy?scale=3,0.9", "velocity.segy?scale=3,0.9")) for link in links)
    assert "scale=auto,0.9" in page.inner_text("#curl")
    page.fill("[name=target_depth_m]", "9000")
    page.get_by_role("button", name="Ask again").click()
    page.wait_for_selector("#state.refused")
    assert "target_depth asks for s of 12.9 or more" in page.inner_text("#state-text")


PRESENCE = """async ([probability, rankedBy]) => {
const { presence } = await import('/web/words.js');
const warnings = probability === null ? [{ code: "in_gallery_unknown", detail: "…" }] : [];
const { kind, mark, words } = presence({ in_gallery: probability, ranked_by: rankedBy, warnings });
return [kind, `${mark} ${words}`] }"""


@pytest.mark.parametrize(
    ("probability", "ranked_by", "kind", "said"),
    [
        (0.95, "similarity", "good", "In the gallery. Take the first match."),
        (0.5, "similarity", "", "Perhaps in the gallery. Where the first matches agree, believe them."),
        (0.05, "similarity", "doubt", "not in the gallery. Take the physics first; the matches are relatives."),
        (0.01, "structure", "doubt", "the matches are relatives, ranked by structure."),
        (None, "similarity", "doubt", "too unlike those of training to tell. Take the matches for a guess."),
        (None, "structure", "doubt", "Take the matches for a guess, ranked by structure."),
    ],
)
def test_whether_the_ground_is_in_the_gallery_is_said(
    visit: Open, probability: float | None, ranked_by: str, kind: str, said: str
) -> None:
    found, words = visit().evaluate(PRESENCE, [probability, ranked_by])
    assert found == kind and words.endswith(said)


def test_differences_to_the_first(visit: Open) -> None:
    page = visit()
    ask_sample(page)
    before = page.locator("#models canvas").nth(3).evaluate("canvas => canvas.toDataURL()")
    assert not page.is_visible("#difference-bar")
    page.check("#difference")
    assert page.is_visible("#difference-bar")
    assert page.locator("#models canvas").nth(3).evaluate("canvas => canvas.toDataURL()") != before
    page.locator("#models canvas").nth(2).hover()
    assert "depth" in page.inner_text("#readout")


def test_a_field_file_and_its_downloads(visit: Open, gathers: Float32, served: Any, tmp_path: Path) -> None:
    page = visit()
    send(page, "my line.npy", npy(gathers[:2]))
    answered(page)
    assert "npy, float32" in page.inner_text("#ingest")
    assert page.is_visible("#gather-choice")
    assert page.is_disabled("#check-ask") and "holds one" in page.inner_text("#check-state")
    page.select_option("#gather-choice", "1")
    page.locator("#models canvas[aria-label]").nth(5).wait_for()
    first = page.locator("#models li").nth(1)
    model_id = first.locator("code").inner_text()
    for kind, path in (("npy", "velocity.npy"), ("SEG-Y", "velocity.segy")):
        with page.expect_download() as download:
            first.get_by_text(kind, exact=True).click()
        target = tmp_path / path
        download.value.save_as(target)
        assert target.read_bytes() == served.http.get(f"/v1/models/{model_id}/{path}").content
    with page.expect_download() as download:
        page.click("#json")
    assert download.value.suggested_filename == "my line.npy.json"
    assert "-F 'file=@my line.npy' -F top_k=5" in page.inner_text("#curl")


def test_the_model_read_directly_is_taken_as_a_file(visit: Open, gathers: Float32, served: Any, tmp_path: Path) -> None:
    page = visit()
    send(page, "line.npy", npy(gathers[0]))
    page.locator("#models canvas[aria-label]").nth(5).wait_for()
    read = page.locator("#models li").first
    assert "state no interval" in read.inner_text() and page.locator("#models li").count() == 6
    for kind, format, ending in (("npz", "npz", "npz"), ("npy", "npy", "npy"), ("SEG-Y", "segy", "sgy"),
                                 ("netCDF", "nc", "nc")):  # fmt: skip
        with page.expect_download() as download:
            read.get_by_text(kind, exact=True).click()
        assert download.value.suggested_filename == f"line.npy-read.{ending}"
        download.value.save_as(tmp_path / ending)
        same = served.http.post("/v1/read", files={"file": npy(gathers[0])}, data={"format": format}).content
        assert len((tmp_path / ending).read_bytes()) == len(same)
    read.get_by_text("Files as an inversion takes it").click()
    page.get_by_label("Grid (m)").fill("dx=20,x0=-100,nx=50")
    page.get_by_label("Continued where nothing was read").check()
    with page.expect_download() as download:
        read.get_by_text("npz", exact=True).click()
    download.value.save_as(tmp_path / "start.npz")
    with np.load(tmp_path / "start.npz", allow_pickle=False) as start:
        assert start["velocity"].shape == (35, 50) and np.isfinite(start["velocity"]).all()
        assert start["x0"] == -100 and not start["known"][:, 0].any()
    written = np.load(tmp_path / "npy", allow_pickle=False)
    shown = served.http.post("/v1/retrieve", files={"file": npy(gathers[0])}, data={"include": "model"}).json()
    np.testing.assert_allclose(written, shown["results"][0]["model"]["value"], atol=0.06)
    assert "-o read.npz -F file=@line.npy" in page.inner_text("#curl") and "v1/read" in page.inner_text("#curl")


def test_the_interval_of_the_model_read_directly_is_drawn(
    visit: Open, gathers: Float32, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Embedder.read_model

    def stated(self: Embedder, encoded: Any) -> Any:
        found = read(self, encoded)
        assert found is not None
        half = np.linspace(50, 200, 70, dtype=np.float32)[:, None]  # wider with depth
        return replace(found, low=found.value - half, high=found.value + half)

    monkeypatch.setattr(Embedder, "read_model", stated)
    page = visit()
    send(page, "line.npy", npy(gathers[0]))
    page.locator("#models canvas[aria-label]").nth(6).wait_for()
    panel = page.locator("#models li").nth(1)
    assert "Its 90 % interval" in panel.inner_text() and "100 to 400 m/s" in panel.inner_text()
    assert panel.locator("canvas").evaluate(INKED) > 10
    assert "width of: 100 to 400" in str(panel.locator("canvas").get_attribute("aria-label"))
    assert "state no interval" not in page.locator("#models li").first.inner_text()


def test_what_is_refused_is_said_and_can_be_mended(visit: Open, gathers: Float32) -> None:
    page = visit()
    send(page, "notes.txt", b"no gather at all")
    page.wait_for_selector("#state.refused")
    assert "unsupported_format" in page.inner_text("#state-text")
    short = io.BytesIO()
    np.save(short, gathers[0][:3], allow_pickle=False)
    send(page, "three.npy", short.getvalue())
    page.wait_for_selector("#state-text >> text=invalid_survey")
    page.fill("[name=shot_x_m]", "0, 170, 340")
    page.fill("[name=receiver_x_m]", ",".join(str(10 * i) for i in range(70)))
    page.get_by_role("button", name="Ask again").click()
    answered(page)
    assert "3, at 0 m to 340 m" in page.inner_text("#ingest").replace("0 to 340 m", "0 m to 340 m")
    assert "shot_x_m=0, 170, 340" in page.inner_text("#curl")


def test_after_a_refusal_there_is_no_answer_to_something_else(visit: Open) -> None:
    """The answer before it, with its pictures and its file's name, would be read as one to what was refused."""
    page = visit()
    ask_sample(page)
    assert page.is_visible("#answer")
    send(page, "notes.txt", b"no gather at all")
    page.wait_for_selector("#state.refused")
    assert not page.is_visible("#answer")
    ask_sample(page)
    page.route("**/v1/retrieve", lambda route: None)
    page.get_by_role("button", name="Folded layers").click()
    page.wait_for_selector("#busy progress")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#state-text >> text=still the answer to fault.npz")
    assert page.inner_text("#answer-title") == "Answer: fault.npz"
    page.unroute("**/v1/retrieve")
    page.route("**/v1/retrieve", lambda route: route.abort())
    page.get_by_role("button", name="Folded layers").click()
    page.wait_for_selector("#state.refused")
    assert not page.is_visible("#answer")


def test_of_nineteen_shots_those_used_are_shown(visit: Open, gathers: Float32) -> None:
    page = visit()
    x = [36.0 * i for i in range(19)]
    page.click("#options summary")
    page.fill("[name=shot_x_m]", ", ".join(f"{each:g}" for each in x))
    page.fill("[name=receiver_x_m]", ",".join(str(10 * i) for i in range(70)))
    send(page, "nineteen.npy", npy(np.resize(gathers[0], (19, 1000, 70))))
    answered(page)
    assert "19, at 0 to 648 m; 5 of them used" in page.inner_text("#ingest")
    assert "Of 19 shots on the line, 5 were used, those at 0, 180, 324, 468, 648 m" in page.inner_text("#warnings")
    assert page.locator("#shot option").all_inner_texts()[1] == "2 of 5, at 180 m"
    assert "few" not in page.inner_text("#verdict")


def test_geometry_unlike_training_is_not_called_too_few(visit: Open) -> None:
    """Weights may have had fewer shots in training than a record has: it is too many then."""
    words = visit().evaluate(
        "async () => (await import('/web/words.js')).verdict({ likely: false, reason: 'geometry', score: 9, limit: 1, "
        "detail: 'Shots (shots on the line) is 5; in training it lay between 1 and 3.' })"
    )
    assert "too few" not in words["words"] and "more shots" in words["words"] and "is 5" in words["detail"]


def test_waiting_cancelling_and_an_unreachable_server(visit: Open) -> None:
    page = visit()
    page.route("**/v1/retrieve", lambda route: None)
    page.get_by_role("button", name="A fault").click()
    page.wait_for_selector("#busy progress")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#state-text >> text=Cancelled")
    page.unroute("**/v1/retrieve")
    page.route("**/v1/retrieve", lambda route: route.abort())
    page.get_by_role("button", name="A fault").click()
    page.wait_for_selector("#state-text >> text=cannot be reached")
    page.unroute("**/v1/retrieve")
    page.get_by_role("button", name="Try again").click()
    answered(page)


def test_a_key_is_asked_for_and_kept_in_memory_only(visit: Open, serve: Any, tmp_path: Path) -> None:
    secret, key = make_key("reader", Scope.READ)
    url = serve(api_keys=key.line, page_access="open").url
    page = visit(url=url)
    page.wait_for_selector("#key")
    assert page.evaluate("document.activeElement.id") == "key"
    page.fill("#key", secret)
    page.keyboard.press("Enter")
    ask_sample(page)
    with page.expect_download() as download:
        page.locator("#models li").nth(2).get_by_text("npy", exact=True).click()
    download.value.save_as(tmp_path / "model.npy")
    assert np.load(tmp_path / "model.npy", allow_pickle=False).shape == (70, 70)
    assert "$SEISBIND_API_KEY" in page.inner_text("#curl") and secret not in page.content()
    kept = "[localStorage.length, sessionStorage.length, document.cookie, location.href]"
    assert page.evaluate(kept) == [0, 0, "", f"{url}/"]


SHIFTED = """() => new Promise(done => { let sum = 0;
new PerformanceObserver(list => list.getEntries().forEach(each => { sum += each.hadRecentInput ? 0 : each.value }))
  .observe({ type: 'layout-shift', buffered: true });
setTimeout(() => done(sum), 500) })"""


@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_jumps_while_it_loads(visit: Open, width: int) -> None:
    """Cumulative layout shift, of which browsers call 0.1 good; a box that is pushed down would be seen."""
    page = visit(width=width)
    page.wait_for_selector("#samples button")
    assert page.evaluate(SHIFTED) < 0.1
    page.evaluate("() => document.body.prepend(Object.assign(document.createElement('div'), {style: 'height: 400px'}))")
    assert page.evaluate(SHIFTED) > 0.1


def test_it_fits_a_phone(visit: Open) -> None:
    page = visit(width=360)
    ask_sample(page)
    page.click("#options summary")
    page.click(".calls summary")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.skipif(AXE is None, reason="SEISBIND_AXE does not name axe-core's axe.min.js")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_axe_finds_nothing_serious(visit: Open, width: int, scheme: str) -> None:
    page = visit(width=width, scheme=scheme, bypass_csp=True)
    source = Path(str(AXE)).read_text(encoding="utf-8")
    page.add_script_tag(content=source)
    page.wait_for_selector("#samples button")

    def found() -> list[str]:
        report = page.evaluate("async () => await axe.run()")
        assert len(report["passes"]) > 15  # it did look
        violations = report["violations"]
        return [
            f"{each['id']}: {[node['html'] for node in each['nodes']]}"
            for each in violations
            if each["impact"] in ("serious", "critical")
        ]

    assert found() == []
    page.click("#options summary")
    page.click(".calls summary")
    ask_sample(page, "Noisy and incomplete")
    assert found() == []
    send(page, "notes.txt", b"no gather at all")
    page.wait_for_selector("#state.refused")
    assert found() == []


def test_a_long_line_becomes_a_section(visit: Open) -> None:
    source = np.repeat(np.arange(0, 1400, 20.0), 72)
    receiver = source - 50 - np.tile(np.arange(72) * 10.0, 70)
    a2 = np.square(np.pi * 14 * (np.arange(250) * 0.004 - 0.1 - np.abs(source - receiver)[:, None] / 2000))
    traces = ((1 - 2 * a2) * np.exp(-a2)).astype(np.float32)
    line = npz({"traces": traces, "source_x_m": source, "receiver_x_m": receiver, "dt_s": 0.004})
    page = visit()
    page.get_by_text("A long line as a velocity section").click()
    file = {"name": "line.npz", "mimeType": "application/octet-stream", "buffer": line}
    page.set_input_files("#line-file", files=[file])
    page.fill("#line-form [name=step_m]", "1")
    page.get_by_role("button", name="Make the section").click()
    page.locator("#line-state", has_text="a step lies between").wait_for()
    page.fill("#line-form [name=step_m]", "345")
    page.get_by_role("button", name="Make the section").click()
    page.wait_for_selector("#line-answer:not([hidden])")
    assert "windows have enough traces" in page.inner_text("#line-state")
    for canvas in page.locator("#line-picture, #line-bar").all():
        assert canvas.evaluate(INKED) > 10
    page.select_option("#line-which", "disagreement")
    assert page.locator("#line-picture").evaluate(INKED) > 10
    with page.expect_download() as saved:
        page.get_by_role("button", name="Answer (JSON lines)").click()
    assert Path(saved.value.path()).read_bytes().rstrip().splitlines()[-1].startswith(b'{"section":')
