"""What docs/operations.md and docs/troubleshooting.md tell operators is complete, and true where it can be run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from seisbind.model import errors as tree
from seisbind.service.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"


def codes(page: str, row: str) -> list[str]:
    return re.findall(row, (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)


def kinds() -> list[type[tree.SeisBindError]]:
    found: list[type[tree.SeisBindError]] = [tree.SeisBindError]
    for kind in found:
        found += kind.__subclasses__()
    return found


def test_every_code_has_its_trouble_shot() -> None:
    """Those that http.md lists, in its order, and those that only a command prints."""
    from_http = codes("http.md", r"^\| (?:\dxx|\d{3}) \| `(\w+)` \|")
    shot = codes("troubleshooting.md", r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$")
    assert shot[: len(from_http)] == from_http
    assert len(shot) == len(set(shot))
    assert set(shot) == {kind.code for kind in kinds()} | set(from_http) | {"os_error"}


def test_settings_that_are_named_exist() -> None:
    for page in ("operations.md", "troubleshooting.md", "http.md"):
        named = set(codes(page, r"SEISBIND_([A-Z_]+)\b")) - {"API_KEY"}  # the client's
        assert named - {name.upper() for name in Settings.model_fields} == set(), page


@pytest.mark.parametrize("page", ["operations.md", "troubleshooting.md"])
def test_anchors_exist(page: str) -> None:
    for target, anchor in codes(page, r"\]\(([\w.]*)#([\w-]+)\)"):
        text = (DOCS / (target or page)).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        known = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in known, f"{page}: {target}#{anchor}"
