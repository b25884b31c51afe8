"""The page in a real browser: models checked by the wave equation, and refined by jobs, whose worker is a stand-in."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import standin
from chromium import INKED, Open, send
from seisbind.service.commands.demo import npy
from seisbind.service.jobs import keeper
from seisbind.service.settings import Settings

pytest.importorskip("deepwave", reason="deepwave, which checks and refinements simulate with, is not installed")
Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def refining(
    run_server: Any, weights: Path, make_gallery: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A server that takes jobs, over a gallery that it may change; an iteration takes a fifth of a second."""
    folder = tmp_path_factory.mktemp("served") / "jobs"
    settings = Settings(gallery=make_gallery(), weights=weights, device="cpu", jobs=folder, writable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "WORKER", (sys.executable, standin.__file__))
        patch.setenv("STANDIN_S", "0.2")
        with run_server(settings) as server:
            yield server


def refine(page: Any, gather: Float32, iterations: int) -> None:
    send(page, "line.npy", npy(gather))
    page.wait_for_selector("#state.done")
    page.fill("#refine-form [name=iterations]", str(iterations))
    page.get_by_role("button", name="Refine", exact=True).press("Enter")
    page.wait_for_selector("#job-curve-figure:not([hidden])")


def test_a_refinement_is_followed_to_its_files_and_found_again(
    visit: Open, refining: Any, gathers: Float32, tmp_path: Path
) -> None:
    page = visit(url=refining.url)
    refine(page, gathers[0], 4)
    assert page.evaluate("document.activeElement.id") == "job-title"
    assert "of 4 (mix), residual" in page.inner_text("#job-line")
    page.locator("#job-models canvas").nth(1).wait_for()
    assert page.inner_text("#job-state") == "It is done."
    assert page.locator("#job-models h4").all_inner_texts() == ["Read directly", "Refined"]
    for canvas in page.locator("#job-models canvas, #job-bar").all():
        assert canvas.evaluate(INKED) > 10
    assert page.get_attribute("#job-curve", "aria-label") == "Residual over 4 iterations, from 1.000 to 0.250."
    (job,) = refining.http.get("/v1/jobs").json()["jobs"]
    for kind, format, ending in (("npz", "npz", "npz"), ("npy", "npy", "npy"), ("SEG-Y", "segy", "sgy"),
                                 ("netCDF", "nc", "nc")):  # fmt: skip
        with page.expect_download() as download:
            page.get_by_label(f"{kind} of the refined model").click()
        assert download.value.suggested_filename == f"line.npy-refined.{ending}"
        download.value.save_as(tmp_path / ending)
        same = refining.http.get(f"{job['links']['self']}/result.{format}").content
        assert len((tmp_path / ending).read_bytes()) == len(same)
    refined = np.load(io.BytesIO((tmp_path / "npy").read_bytes()), allow_pickle=False)
    page.get_by_role("button", name="Keep in the gallery").click()
    page.locator("#job-kept", has_text="The refined model is not kept, for it is not usable").wait_for()
    label = page.locator("#job-models canvas").nth(1).get_attribute("aria-label")
    assert label.startswith(f"Refined: {np.floor(refined.min() + 0.5):.0f} to {np.floor(refined.max() + 0.5):.0f} ")

    page.reload()
    page.get_by_text("Refinements", exact=True).click()
    row = page.locator("#jobs-list tbody tr")
    row.wait_for()
    assert row.locator("td").all_inner_texts()[:3] == ["done", "4 of 4", "0.250"]
    row.get_by_role("button").click()
    page.locator("#job-models canvas").wait_for()
    assert page.locator("#job-models h4").all_inner_texts() == ["Refined"]
    assert page.get_attribute("#job-curve", "aria-label") == "Residual over 4 iterations, from 1.000 to 0.250."
    page.get_by_role("button", name="Remove").click()
    page.wait_for_selector("#jobs-state >> text=There are none")
    assert not page.is_visible("#job") and refining.http.get("/v1/jobs").json()["jobs"] == []


def test_a_refinement_is_cancelled(visit: Open, refining: Any, gathers: Float32) -> None:
    page = visit(url=refining.url, width=360)
    refine(page, gathers[0], 99)
    page.wait_for_selector("#job-now:not([hidden])")
    assert page.locator("#job-now canvas").evaluate(INKED) > 10
    page.locator("#job").get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#job-state >> text=It was cancelled; its last model is kept.")
    page.locator("#job").get_by_role("button", name="Remove").wait_for()
    assert not page.is_visible("#job-files a, #job-progress")
    assert page.locator("#jobs-list tbody td").first.inner_text() == "cancelled"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.route("**/v1/jobs", lambda route: route.abort())
    page.get_by_role("button", name="Refine", exact=True).click()
    page.wait_for_selector("#refine-state >> text=cannot be reached")
    assert page.is_enabled("#refine-ask")


def test_lines_of_a_connection_that_breaks_are_gone_on_with(visit: Open, refining: Any, gathers: Float32) -> None:
    page = visit(url=refining.url)
    asked = []

    def cut(route: Any) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.abort()
        elif len(asked) == 2:  # ends after a line, as an answer does that has become too old
            route.fulfill(body=refining.http.get(route.request.url).text.splitlines()[0] + "\n")
        else:
            route.continue_()

    page.route("**/events?after=*", cut)
    refine(page, gathers[0], 2)
    page.locator("#job-models canvas").nth(1).wait_for()
    assert [url.partition("after=")[2] for url in asked] == ["-1", "-1", "0"]
    assert page.get_attribute("#job-curve", "aria-label") == "Residual over 2 iterations, from 1.000 to 0.500."


def test_models_are_checked_and_without_jobs_none_is_offered(visit: Open, gathers: Float32) -> None:
    page, calls = visit(width=360), []
    page.on("request", lambda request: calls.append(request.url))
    page.click("#options summary")
    page.fill("[name=top_k]", "1")
    send(page, "line.npy", npy(gathers[0]))
    page.wait_for_selector("#state.done")
    page.route("**/v1/check", lambda route: None)
    page.click("#check-ask")
    page.click("#check-cancel")
    page.wait_for_selector("#check-state >> text=Cancelled.")
    page.unroute("**/v1/check")
    page.get_by_role("button", name="Check by the wave equation").press("Enter")
    page.wait_for_selector("#check-answer:not([hidden])")
    names = page.locator("#checked tbody th").all_inner_texts()
    assert len(names) == 2 and names[0].startswith("match 1") and sum("(best)" in name for name in names) == 1
    assert page.locator("#checked tbody .number").count() == 8
    assert all("sable. " in said for said in page.locator("#checked tbody td:nth-child(6)").all_inner_texts())
    assert "models may start an inversion" in page.inner_text("#check-state")
    pictures = page.locator("#check-answer canvas")
    assert pictures.count() == 4 and all(each.evaluate(INKED) > 2 for each in pictures.all())
    before = [each.evaluate("canvas => canvas.toDataURL()") for each in pictures.all()]
    page.locator("#checked tbody button[aria-pressed=false]").first.click()
    after = [each.evaluate("canvas => canvas.toDataURL()") for each in pictures.all()]
    assert [one == other for one, other in zip(before, after, strict=True)][:3] == [True, False, False]
    page.select_option("#check-shot", "0")
    assert page.get_attribute("#check-observed", "aria-label") == "Recorded, shot 1 of 5."
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    send(page, "other.npy", npy(gathers[1]))
    page.wait_for_selector("#answer-title >> text=other.npy")
    assert not page.is_visible("#check-answer")
    assert not page.is_visible("#jobs") and not page.is_visible("#refine-ask")
    assert calls and not [url for url in calls if "/v1/jobs" in url]
