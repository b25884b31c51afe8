"""The modules and names that CONTRIBUTING.md speaks of exist. Its recipes run: tests/service/test_blocks.py."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## (Add .+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)


def test_what_the_recipes_name_exists() -> None:
    assert len(RECIPES) == 4 and all(text.count("```python\n") == 1 for _, text in RECIPES)
    for path in re.findall(r"`((?:model|service|index|tests|benchmarks|docs)/[\w./]+\.\w+)`", TEXT):
        assert (ROOT / path).is_file(), path
    for name, path in re.findall(r"`(\w+)` of\s+`([\w/]+\.py)`", TEXT):
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name
