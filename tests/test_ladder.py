"""Rooms stand on a ladder: no import climbs it, and no file stands in a circle. Lazy and type-only imports count."""

from __future__ import annotations

import ast
from pathlib import Path

import vdengine

PACKAGE = Path(vdengine.__file__).parent
# From the ground up, as in CONTRIBUTING.md; a room is a folder, or a file beside the folders.
LADDER = (
    (
        "errors",
        "outside",
        "files",
        "noise",
        "hub",
        "signals",
        "gguf",
        "progress",
        "runfolder",
        "settings",
        "kernels",
        "_native",
    ),
    ("trees",),
    ("text", "objectives"),
    ("recipe", "models"),
    ("data",),
    ("panels", "tasks"),
    ("drift",),
    ("judges", "engine"),
    ("audits", "integrations", "report"),
    ("cli", "train", "__main__"),
)
FLOOR = {room: floor for floor, rooms in enumerate(LADDER) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module of the package by its name without "vdengine."; `kernels` is mapped from its own folder."""
    kernels = Path(vdengine.kernels.__file__).parent
    found = {f"kernels.{p.stem}".removesuffix(".__init__"): p for p in kernels.glob("*.py")}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":  # vdengine itself: the public names, loaded on first use
            found[name] = path
    return found | {"_native": PACKAGE / "_native.pyi"}


def imports(path: Path, known: set[str]) -> set[str]:
    """Modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]  # a module, or a name in one
        for name in names:
            parts = name.split(".")
            if parts[0] == "vdengine":
                longest = next((k for k in range(len(parts), 1, -1) if ".".join(parts[1:k]) in known), None)
                if longest is not None:
                    found.add(".".join(parts[1:longest]))
    return found


GRAPH = {name: imports(path, set(modules())) - {name} for name, path in modules().items()}


def test_every_room_has_its_place() -> None:
    """A new room that nobody put on the ladder would be checked by nothing."""
    rooms = {name.split(".")[0] for name in GRAPH}
    assert rooms <= set(FLOOR), f"not on the ladder: {sorted(rooms - set(FLOOR))}"


def test_no_import_climbs() -> None:
    """A room imports rooms below it, itself, and of its own floor only the ground's."""
    climbing = []
    for name, targets in GRAPH.items():
        room = name.split(".")[0]
        for target in targets:
            other = target.split(".")[0]
            level = FLOOR[other] == FLOOR[room] and other != room and FLOOR[room] not in (0, len(LADDER) - 1)
            if FLOOR[other] > FLOOR[room] or level:
                climbing.append(f"{name} -> {target}")
    assert not climbing, "\n".join(sorted(climbing))


def test_kernels_stand_alone() -> None:
    """Others embed the kernels without the engine."""
    outside = [
        f"{name} -> {target}"
        for name, targets in GRAPH.items()
        for target in targets
        if name.split(".")[0] == "kernels" and target.split(".")[0] not in ("kernels", "_native")
    ]
    assert not outside, sorted(outside)


def test_no_circles() -> None:
    """Files that import each other, however late, are one file in two names."""
    state: dict[str, int] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        state[name] = 1
        path.append(name)
        for target in sorted(GRAPH[name]):
            if state.get(target) == 1:
                raise AssertionError(" -> ".join([*path[path.index(target) :], target]))
            if target not in state:
                visit(target)
        path.pop()
        state[name] = 2

    for name in sorted(GRAPH):
        if name not in state:
            visit(name)
