"""The house in one picture, from the imports: rooms, and an arrow from each room to those that it imports.

    python docs/draw_house.py            # write the picture into CONTRIBUTING.md
    python docs/draw_house.py --sizes    # print modules, lines and arrows of each room

An arrow that a longer way already implies is left out. A test compares the picture with the imports.
"""

from __future__ import annotations

import argparse
import ast
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
PACKAGES = ("model", "index", "service")
BEGIN, END = "<!-- drawn by docs/draw_house.py -->", "<!-- end of the drawing -->"


def modules() -> dict[str, Path]:
    """Dotted name, as it is imported, to file, of every module."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(("seisbind", *parts)).removesuffix(".__init__")] = path
    return found


def room_of(path: Path) -> str:
    """The folder of a module: ``model/survey``."""
    return path.parent.relative_to(ROOT).as_posix()


def imported(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """The modules of the house that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in inner if name in known)
            if node.module in known and any(name not in known for name in inner):
                yield node.module


def arrows() -> dict[str, set[str]]:
    """For each room, the rooms that its modules import."""
    known = modules()
    found: dict[str, set[str]] = {room_of(path): set() for path in known.values()}
    for path in known.values():
        for name in imported(ast.parse(path.read_text(encoding="utf-8")), known):
            if (other := room_of(known[name])) != room_of(path):
                found[room_of(path)].add(other)
    return found


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """The rooms that ``start`` imports, itself or through others."""
    seen: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        room = waiting.pop()
        if room not in seen:
            seen.add(room)
            waiting += graph[room]
    return seen


def picture() -> str:
    """The rooms as a Mermaid graph."""
    graph = arrows()
    lines = ["```mermaid", "graph TD"]
    for package in PACKAGES:
        lines.append(f"  subgraph {package}")
        lines += [f'    {_node(room)}["{_label(room)}"]' for room in sorted(graph) if room.split("/")[0] == package]
        lines.append("  end")
    for room in sorted(graph):
        implied = set().union(*(reachable(graph, other) for other in graph[room]))
        lines += [f"  {_node(room)} --> {_node(other)}" for other in sorted(graph[room] - implied)]
    return "\n".join([BEGIN, *lines, "```", END])


def _node(room: str) -> str:
    return room.replace("/", "_") if "/" in room else f"{room}_top"  # a subgraph has the plain name


def _label(room: str) -> str:
    package, _, name = room.partition("/")
    return f"{name}/" if name else f"{package}/*.py"


def sizes() -> str:
    """A line for each room: modules, lines, median and longest module, rooms that it imports."""
    graph, known = arrows(), modules()
    lines = [f"{'room':20} modules  lines  median  longest  imports"]
    for room in sorted(graph):
        counts = [len(p.read_text(encoding="utf-8").splitlines()) for p in known.values()
                  if room_of(p) == room and p.name != "__init__.py"]  # fmt: skip
        if counts:
            lines.append(
                f"{room:20} {len(counts):7} {sum(counts):6} {statistics.median(counts):7.0f} {max(counts):8} "
                f"{len(graph[room]):8}"
            )
    lines.append(f"{sum(map(len, graph.values()))} arrows between rooms")
    return "\n".join(lines)


def drawn(text: str) -> str:
    """``text`` with the picture between its two marks drawn anew."""
    before, _, rest = text.partition(BEGIN)
    return before + picture() + rest.partition(END)[2]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", action="store_true", help="print the sizes of the rooms instead")
    if parser.parse_args().sizes:
        print(sizes())
    else:
        CONTRIBUTING.write_text(drawn(CONTRIBUTING.read_text(encoding="utf-8")), encoding="utf-8")
