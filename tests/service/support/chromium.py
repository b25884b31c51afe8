"""What tests of the page in a browser do with it; `browser` and `visit` are fixtures beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

CHROMIUM = os.environ.get("SEISBIND_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SHAKEN = 120_000  # ms, that a busy machine may need for a step
INKED = """canvas => { const d = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
const colours = Array.from({length: d.length / 4}, (_, i) => d[4 * i] << 16 | d[4 * i + 1] << 8 | d[4 * i + 2]);
return new Set(colours).size }"""

Open = Callable[..., Any]


def answered(page: Any) -> None:
    page.wait_for_selector("#state.done")
    page.locator("#models canvas[aria-label]").nth(5).wait_for()


def ask_sample(page: Any, title: str = "A fault") -> None:
    page.get_by_role("button", name=title).click()
    answered(page)


def send(page: Any, name: str, content: bytes) -> None:
    file = {"name": name, "mimeType": "application/octet-stream", "buffer": content}
    page.set_input_files("#file", files=[file])
