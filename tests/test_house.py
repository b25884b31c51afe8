"""Rules of the house that a parser can check, over all three packages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for package in ("model", "index", "service") for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))
MAY_IMPORT = {"model": {"model"}, "index": {"model", "index"}, "service": {"model", "index", "service"}}
PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            if node.module == "seisbind":
                yield from (f"seisbind.{alias.name}" for alias in node.names)


def pickle_faults(text: str) -> list[str]:
    """Every way in which a module could unpickle."""
    faults = []
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                faults.append("allow_pickle")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in {("torch", "load"), ("torch", "save"), ("jit", "load")}:
                faults.append(f"{node.value.id}.{node.attr}")
            if node.attr == "read_pickle":
                faults.append(node.attr)
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            faults += [f"torch.{alias.name}" for alias in node.names if alias.name in ("load", "save")]
    return faults + [name for name in imports(tree) if name.split(".")[0] in PICKLES]


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_unpickled(path: Path) -> None:
    assert pickle_faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "from torch import load",
     "np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=flag)", "import joblib"],
)  # fmt: skip
def test_the_pickle_rule_can_fail(text: str) -> None:
    assert pickle_faults(text)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_service_index_model_one_direction(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        assert not name.startswith("."), "absolute imports only"
        parts = name.split(".")
        assert parts[0] not in MAY_IMPORT, f"imports {name}, not seisbind.{name}"
        if parts[0] == "seisbind":
            assert len(parts) > 1
            assert parts[1] in MAY_IMPORT[package], f"{package} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_assert_no_bare_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert vanishes under python -O"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"line {node.lineno}: bare except"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert path.stem not in ("utils", "helpers", "common")
