"""Tests stand as the package does: a folder for each of its folders, a file named after the module that it tests."""

from __future__ import annotations

import ast
from pathlib import Path

import vdengine
import vdengine.kernels

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(vdengine.__file__).parent
KERNELS = Path(vdengine.kernels.__file__).parent  # mapped from its own folder
ROOMS = {p.parent.name: p.parent for p in PACKAGE.glob("*/__init__.py")} | {"kernels": KERNELS}
FILES = [p for p in TESTS.rglob("*.py") if p.relative_to(TESTS).parts[0] != "tokenizers"]
MODULES = [p for p in FILES if p.name.startswith("test_")]
NOT_ROOMS = {"helpers", "benchmarks", "tokenizers", "__pycache__"}
# What is about several modules, or about a file that is no module.
OTHERS = {
    "data/test_synth_texts", "engine/test_faults", "engine/test_kills", "kernels/test_aot",
    "kernels/test_kernels_together", "objectives/test_trl_parity", "report/test_report", "test_docs",
    "test_fuzz", "test_gpu", "test_helpers", "test_known_answer", "test_ladder", "test_layout",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Every part of every name that a file imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            found.update((node.module or "").split("."))
            if node.level:  # relative: from a folder of tests
                found.update(alias.name for alias in node.names)
    return found


def is_slow(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(d) == "pytest.mark.slow" for d in node.decorator_list)


def test_no_test_imports_another() -> None:
    """Guards against a test that fails, or is collected twice, because of another: what both use is in helpers."""
    stems = {p.stem for p in MODULES} | {"conftest", "tests"}
    wrong = {p.relative_to(TESTS).as_posix(): sorted(found) for p in FILES if (found := imported(p) & stems)}
    assert not wrong, wrong


def test_helpers_hold_no_test() -> None:
    """Guards against tests that are never collected."""
    names = {
        node.name
        for p in (TESTS / "helpers").rglob("*.py")
        for node in ast.parse(p.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    assert not [n for n in names if n.startswith("test_")] and not list((TESTS / "helpers").rglob("test_*.py"))


def test_every_room_has_its_tests() -> None:
    """Guards against a folder of the package that nothing tests, and tests whose folder is gone."""
    folders = {p.name for p in TESTS.iterdir() if p.is_dir()} - NOT_ROOMS
    rooms = {name for name, folder in ROOMS.items() if any(p.stem != "__init__" for p in folder.glob("*.py"))}
    assert folders == rooms
    assert all(any((TESTS / name).glob("test_*.py")) for name in rooms)


def test_every_file_is_named_after_a_module() -> None:
    """Guards names that can be guessed: tests/drift/test_run.py is about vdengine/drift/run.py."""
    strangers = set()
    for path in MODULES:
        place = path.relative_to(TESTS)
        folder = ROOMS.get(place.parts[0], PACKAGE) if len(place.parts) > 1 else PACKAGE
        module = path.stem.removeprefix("test_")
        known = [folder / f"{n}{end}" for n in (module, f"_{module}", f"__{module}__") for end in (".py", ".pyi")]
        if place.parts[0] != "benchmarks" and not any(p.exists() for p in known):
            strangers.add(place.with_suffix("").as_posix())
    assert strangers <= OTHERS, sorted(strangers - OTHERS)


def test_every_room_has_tests_that_are_fast() -> None:
    """Guards `pytest -m 'not slow'`: it comes to every folder."""
    without = set()
    for name in [*ROOMS, "benchmarks"]:
        tests = [
            node
            for p in (TESTS / name).rglob("test_*.py")
            for node in ast.walk(ast.parse(p.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        if all(is_slow(node) for node in tests):
            without.add(name)
    assert not without, sorted(without)
