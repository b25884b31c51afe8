"""The house: which room may import which, through which door, and how large modules and rooms may be."""

from __future__ import annotations

import ast
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
MODEL = {"model", "model/ground", "model/survey"}
# Every room, and all that it may import. Nothing imports a room below it in this list.
MAY_IMPORT: dict[str, set[str]] = {
    "model": set(),
    "model/ground": {"model"},
    "model/survey": {"model"},
    "model/inspection": {"model"},
    "model/waves": MODEL,
    "model/inversion": MODEL | {"model/waves"},
    "model/datasets": MODEL | {"model/waves"},
    "model/confidence": MODEL,
    "model/encoders": MODEL | {"model/confidence"},
    "model/training": MODEL | {"model/confidence", "model/encoders", "model/datasets"},
    "index/storage": MODEL,
    "index/scanning": MODEL | {"index/storage"},
    "index/approximate": MODEL | {"index/storage"},
    "index/search": MODEL | {"index/storage", "index/approximate", "index/scanning"},
    "index/cluster": MODEL | {"index/storage", "index/search"},
    "index": MODEL | {"index/storage", "index/search", "index/cluster", "index/approximate"},
    "index/maintenance": MODEL | {"index", "index/storage", "index/search"},
    "index/replicas": MODEL | {"index", "index/storage", "index/search"},
    "service": {"model"},
    "service/formats": MODEL | {"model/inspection"},
    "service/client": MODEL | {"index", "service", "service/formats"},
    "service/building": MODEL | {"model/encoders", "model/datasets", "index"},
    "service/engine": MODEL
    | {"model/confidence", "model/encoders", "model/datasets", "index", "service", "service/formats"}
    | {"model/inspection", "model/inversion", "service/building"},
    "service/jobs": {"model", "model/inversion", "service/formats"},
    "service/runtime": MODEL
    | {"model/encoders", "model/inspection", "index", "index/replicas", "service", "service/formats"}
    | {"service/engine", "service/jobs", "model/inversion"},
    "service/workers": {"model", "service", "service/runtime"},
    "service/transport": {"model", "service", "service/runtime"},
    "service/http": MODEL
    | {"model/encoders", "index", "service", "service/formats", "service/engine", "service/runtime"}
    | {"service/jobs", "service/transport", "service/workers", "model/inversion"},
    "service/bulk": MODEL
    | {"model/encoders", "index", "service", "service/formats", "service/engine", "service/client"},
}
MAY_IMPORT["service/terminal"] = set()
MAY_IMPORT["service/gallery_commands"] = {"model", "index", "index/maintenance", "index/replicas"}
MAY_IMPORT["service/gallery_commands"] |= {"service/terminal", "service/http"}
MAY_IMPORT["service/commands"] = set(MAY_IMPORT)
LONGEST = 400  # lines of a module; more, and its docstring says why: "One module because …"
REASON = "One module because"
MOST_MODULES = 12  # of a room, its door apart


def _load_drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_house", ROOT / "docs" / "draw_house.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


house = _load_drawing()
MODULES: dict[str, Path] = house.modules()


def faults(name: str, path: Path, tree: ast.AST) -> list[str]:
    """Imports of a module that its room may not make."""
    room, found = house.room_of(path), []
    for other in house.imported(tree, MODULES):
        target = MODULES[other]
        beyond = house.room_of(target)
        if beyond == room:
            continue
        if beyond not in MAY_IMPORT[room]:
            found.append(f"{room} may not import {other}")
        elif "/" in beyond and target.name != "__init__.py" and other.rsplit(".", 1)[1] not in door(beyond):
            found.append(f"{other} is not in the door of {beyond}")
    return found


def door(room: str) -> tuple[str, ...]:
    """The modules that other rooms may import: ``__all__`` of the room's ``__init__``."""
    tree = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return tuple(ast.literal_eval(node.value))
    return ()


ROOMS = sorted({house.room_of(path) for path in MODULES.values()})


def test_every_room_is_known() -> None:
    assert sorted(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down_and_through_doors(name: str) -> None:
    assert faults(name, MODULES[name], ast.parse(MODULES[name].read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("seisbind.service.engine.engine", "from seisbind.service.http.server import serve"),
        ("seisbind.service.engine.engine", "from seisbind.service.client import client"),
        ("seisbind.model.errors", "import seisbind.index"),
        ("seisbind.service.http.retrieve", "from seisbind.service.formats.segy_samples import decode"),
    ],
)
def test_a_wrong_import_is_seen(name: str, text: str) -> None:
    assert faults(name, MODULES[name], ast.parse(text))


@cache
def imports() -> list[tuple[Path, list[str]]]:
    """Of each module, the names of those that it imports."""
    return [
        (path, list(house.imported(ast.parse(path.read_text(encoding="utf-8")), MODULES))) for path in MODULES.values()
    ]


@pytest.mark.parametrize("room", [room for room in ROOMS if "/" in room])
def test_a_door_says_what_its_room_is_for(room: str) -> None:
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert 1 <= len([line for line in text.splitlines() if line.strip()]) <= 3
    names = {path.stem for path in (ROOT / room).glob("*.py")} - {"__init__"}
    public = door(room)
    assert public and set(public) <= names
    users = {
        other.rsplit(".", 1)[1]
        for path, others in imports()
        for other in others
        if house.room_of(MODULES[other]) == room and house.room_of(path) != room
    }
    assert room == "service/commands" or set(public) <= users, "a door that nobody uses"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_small(room: str) -> None:
    files = [path for path in (ROOT / room).glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_MODULES
    for path in files:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > LONGEST:
            assert REASON in (ast.get_docstring(ast.parse(text)) or ""), f"{path.name}: {len(text.splitlines())} lines"


def test_the_picture_in_contributing_is_the_house() -> None:
    text = house.CONTRIBUTING.read_text(encoding="utf-8")
    assert house.drawn(text) == text, "run: python docs/draw_house.py"
