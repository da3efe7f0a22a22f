"""The house has floors: each uses those below it, and nothing that trains knows what analyses."""

import ast
import graphlib
from pathlib import Path

import pytest

import tsflora

ROOT = Path(tsflora.__file__).parent
ROOMS = {
    "units": (),
    "paper": ("units",),
    "costs": ("units", "paper"),
    "theory": (),
    "runs": ("units",),
    "sizing": ("units", "costs"),
    "tables": ("units", "paper", "costs", "runs", "theory"),
    "figures": ("units", "paper", "costs", "runs", "theory"),
    "tour": ("figures",),
    "page": ("runs", "tables", "figures"),
}
"""Rooms of the analysis, and which others each may use."""


def imported(path: Path) -> set[str]:
    """Modules of this package that a file imports, where a name is a module also that."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] == "tsflora"}


def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package's face is the package."""
    named = {path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in named.items()}


def test_nothing_that_trains_knows_what_analyses():
    for name, path in modules().items():
        if not name.startswith(("tsflora.analysis", "tsflora.cli")):
            assert not [used for used in imported(path) if used.startswith("tsflora.analysis")], path


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_analysis_use_those_below(room):
    allowed = {room, *ROOMS[room]}
    for name, path in modules().items():
        parts = name.split(".")
        if parts[1:2] == ["analysis"] and parts[2:3] == [room]:
            used = {other.split(".")[2] for other in imported(path) if other.startswith("tsflora.analysis.")}
            assert used <= allowed, path


def test_every_room_is_one_of_the_house():
    found = {path.stem if path.is_file() else path.name for path in (ROOT / "analysis").iterdir()}
    assert found - {"__init__", "__pycache__"} == ROOMS.keys()


def test_no_circles():
    known = modules()
    graph = {name: imported(path) & known.keys() - {name} for name, path in known.items()}
    # A package's face imports its modules; a module that imports a sibling by its full name passes the face.
    faces = {name for name, path in known.items() if path.name == "__init__.py"}
    inner = {name: {used for used in uses if used not in faces} for name, uses in graph.items() if name not in faces}
    list(graphlib.TopologicalSorter(inner).static_order())
