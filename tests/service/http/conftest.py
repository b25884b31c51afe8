"""The page in a real browser: Chromium through Playwright, over the real server.

Both have to be there (``pip install -c constraints.txt -e '.[browser]'``, Debian's ``chromium``); the tests are skipped
otherwise. ``SEISBIND_CHROMIUM`` names another program.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from chromium import ARGUMENTS, CHROMIUM, SHAKEN, Open


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine: apt install chromium")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, served: Any) -> Iterator[Open]:
    """Opens the page; afterwards holds it to no fault in its scripts, no violated policy, no other host."""
    contexts, faults = [], []

    def open_page(*, url: str = served.url, width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        options = {"reduced_motion": "reduce"} | options  # else the page may scroll on under the pointer
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        context.set_default_timeout(SHAKEN)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: faults.append(line.text) if "Content Security" in line.text else None)
        page.on("request", lambda request: _belongs(request.url, url) or faults.append(request.url))
        page.goto(f"{url}/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def _belongs(address: str, url: str) -> bool:
    return address.startswith((f"{url}/", f"blob:{url}/"))
