"""What README and docs tell people to type exists, with the options that they name."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "model" / "weights" / "MODEL_CARD.md", *(ROOT / "docs").glob("*.md")])


def commands(program: str) -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            for words in lines_of(block.replace("\\\n", " ")):
                words = words[1:] if words[:1] == ["$"] else words
                if words[:1] == [program]:
                    found.append((page.name, words[1:]))
    return found


def lines_of(block: str) -> Iterator[list[str]]:
    """The words of each command; one with an open quote goes on in the next line."""
    begun = ""
    for line in block.splitlines():
        begun += line + "\n"
        try:
            yield shlex.split(begun, comments=True)
        except ValueError:
            continue
        begun = ""
    assert not begun, f"an open quote: {begun}"


@cache
def help_of(*path: str) -> str:
    code = f"import sys; sys.argv = {['seisbind', *path, '--help']!r}; from seisbind.service.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"COLUMNS": "200", "PATH": ""}
    )
    assert result.returncode == 0, result.stderr
    return re.sub(r"\x1b\[[0-9;]*m", "", result.stdout)


@pytest.mark.parametrize(("page", "words"), commands("seisbind"), ids=lambda value: str(value)[:60])
def test_seisbind_commands_exist(page: str, words: list[str]) -> None:
    path = [words[0]] + ([words[1]] if words[0] in ("gallery", "key") else [])
    text = help_of(*path)
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in text, f"{page}: {word} of seisbind {' '.join(path)}"


@pytest.mark.parametrize(("page", "words"), commands("make"), ids=lambda value: str(value)[:60])
def test_make_targets_exist(page: str, words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        if "=" not in word:
            assert re.search(rf"^{word}:", makefile, re.MULTILINE), f"{page}: make {word}"


@pytest.mark.parametrize(("page", "words"), commands("python"), ids=lambda value: str(value)[:60])
def test_scripts_exist_and_take_their_options(page: str, words: list[str]) -> None:
    script = ROOT / words[0]
    assert script.is_file(), f"{page}: {words[0]}"
    source = script.read_text()
    for word in words[1:]:
        if word.startswith("--"):
            assert f'"{word}"' in source, f"{page}: {word} of {words[0]}"


def test_the_first_screen_is_the_two_commands() -> None:
    top = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45]
    text = "\n".join(top)
    assert text.index("make demo") < text.index("make test")


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_there_is_something_to_check() -> None:
    assert len(commands("seisbind")) >= 5 and len(commands("make")) >= 2 and len(commands("python")) >= 2
