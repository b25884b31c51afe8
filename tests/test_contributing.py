"""The recipes of CONTRIBUTING.md run, and the modules and names that it speaks of exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## (Add .+?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("title", "text"), RECIPES, ids=[title for title, _ in RECIPES])
def test_a_recipe_runs_as_printed(title: str, text: str) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_recipes_name_exists() -> None:
    assert len(RECIPES) == 3
    for path in re.findall(r"`((?:model|service|index|tests|benchmarks|docs)/[\w./]+\.\w+)`", TEXT):
        assert (ROOT / path).is_file(), path
    for name, path in re.findall(r"`(\w+)` of\s+`([\w/]+\.py)`", TEXT):
        assert re.search(rf"^(def |class )?{name}\b", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE), name
