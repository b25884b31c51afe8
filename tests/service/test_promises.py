"""docs/promises.md names tests that exist, for every promise of the service; and the few that have no other place."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from seisbind.model.errors import InvalidConfig
from seisbind.service.settings import Settings, read_settings

ROOT = Path(__file__).parents[2]
NUMBERS = list(range(1, 95))
ROWS = {
    int(number): rest
    for number, rest in re.findall(
        r"^\| (\d+) \| (.+) \|$", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"), re.MULTILINE
    )
}


def those_of(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_promise_has_its_row() -> None:
    assert list(ROWS) == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_a_promise_names_tests_that_exist(number: int) -> None:
    promise, shown, vacuity = ROWS[number].split(" | ")
    assert promise and vacuity
    assert re.search(r"`tests/\S+::test_\w+`", shown), shown
    for path, name in re.findall(r"`(tests/\S+)::(\w+)`", ROWS[number]):
        assert name in those_of(path), f"{path}::{name}"
    for script in re.findall(r"`python ([\w/.]+)", ROWS[number]):
        assert (ROOT / script).is_file(), script
    assert ROWS[number].count("`tests/") == len(re.findall(r"`tests/\S+::test_\w+`", ROWS[number]))


def test_a_test_that_is_not_there_would_be_seen() -> None:
    assert "test_no_such_thing" not in those_of("tests/service/test_promises.py")
    assert "test_every_promise_has_its_row" in those_of("tests/service/test_promises.py")


def test_a_canary_is_never_older_than_30_seconds() -> None:
    """Promise 23: no setting allows it."""
    assert Settings.model_fields["canary_max_age_s"].default <= 30
    with pytest.raises(InvalidConfig, match="canary_max_age_s"):
        read_settings(canary_max_age_s=31)


def test_growth_would_be_seen(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """Promise 25: a file that is left open and memory that is kept are in what is looked at."""
    look = script("endurance").state
    memory, descriptors, _ = look(os.getpid())
    with (tmp_path / "open").open("w"):
        kept = bytearray(os.urandom(1 << 20) * 64)
        memory_after, descriptors_after, _ = look(os.getpid())
    assert descriptors_after == descriptors + 1
    assert memory_after > memory + len(kept) // 2
