"""The first screen of the README, and the links of README and docs. Their blocks: tests/service/test_blocks.py."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "model" / "weights" / "MODEL_CARD.md", *(ROOT / "docs").glob("*.md")])


def test_the_first_screen_is_the_two_commands() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45]
    text = "\n".join(top)
    assert 0 < text.index("make demo") < text.index("make test")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
