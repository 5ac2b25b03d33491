"""Documentation that shows examples: a page's text of an example is the example's file, and its code can be read.

After an example was edited, `python tests/test_docs.py` writes its text into the pages that show it.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import pytest

from vdengine import recipe as recipes

REPO = Path(__file__).resolve().parent.parent
DOCS = REPO / "docs"
EXAMPLES = sorted((REPO / "examples").glob("*.py"))
# What shows a file is marked by a comment with its path, which neither GitHub nor the site shows.
SHOWN = re.compile(r"<!-- (?P<path>examples/\w+\.py) -->\n```python\n(?P<text>.*?)```\n", re.DOTALL)
MARK = re.compile(r"<!-- (?P<path>examples/\S+) -->")
CODE = re.compile(r"^( *)```python\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(DOCS.rglob("*.md"))


def with_files(page: str) -> str:
    """A page with the text of the files that it shows."""

    def shown(match: re.Match[str]) -> str:
        text = (REPO / match["path"]).read_text(encoding="utf-8")
        return f"<!-- {match['path']} -->\n```python\n{text}```\n"

    return SHOWN.sub(shown, page)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_a_page_shows_the_examples_as_they_are(page):
    """Guards a reader's copy of an example against being an older one: CI runs the file, not the page."""
    text = page.read_text(encoding="utf-8")
    assert len(SHOWN.findall(text)) == len(MARK.findall(text)), "a mark without a block of python below it"
    assert with_files(text) == text, "run: python tests/test_docs.py"


def test_every_example_has_its_line_and_every_trainer_its_page():
    """Guards an example that nobody finds."""
    table = (REPO / "examples" / "README.md").read_text(encoding="utf-8")
    assert [p.name for p in EXAMPLES if f"]({p.name})" not in table] == []
    shown = {m["path"] for p in (DOCS / "trainers").glob("*.md") for m in SHOWN.finditer(p.read_text(encoding="utf-8"))}
    for name in ("trl_dpo", "transformers_trainer", "lightning_module", "accelerate_loop", "torchtitan_loop",
                 "scores_from_elsewhere", "own_loop", "own_everything"):  # fmt: skip
        assert f"examples/{name}.py" in shown


@pytest.mark.parametrize("page", sorted((DOCS / "trainers").glob("*.md")), ids=lambda p: p.name)
def test_code_on_the_pages_of_trainers_is_python(page):
    """Guards the shorter pieces of code, which no file holds."""
    for indent, code in CODE.findall(page.read_text(encoding="utf-8")):
        ast.parse("\n".join(line.removeprefix(indent) for line in code.splitlines()))


def recipe_keys() -> set[str]:
    """Every key of a recipe, as section.key."""
    sections = {f.name: f for f in dataclasses.fields(recipes.Recipe)}
    text = (DOCS / "recipe.md").read_text(encoding="utf-8")
    found = set(re.findall(r"^\| `([a-z]+\.[a-z_]+)`", text, re.MULTILINE))
    assert {key.split(".")[0] for key in found} <= set(sections)
    return found


def rows_of_comparison() -> list[list[str]]:
    """The lines of the tables of coming-from-trl.md, by cell."""
    lines = (DOCS / "coming-from-trl.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| `")]


def test_the_recipe_keys_beside_those_of_trl_exist():
    """Guards the second column: a key that was renamed."""
    keys = recipe_keys()
    named = {key for _, ours, *_ in rows_of_comparison() for key in re.findall(r"`([a-z]+\.[a-z_]+)", ours)}
    assert len(named) > 20 and named <= keys, named - keys


@pytest.mark.slow
def test_the_keys_of_trl_exist():
    """Guards the first column: keys of another version of TRL, and defaults that it does not have."""
    trl = pytest.importorskip("trl")
    configs = [trl.DPOConfig, trl.SFTConfig, trl.KTOConfig, trl.GRPOConfig, trl.RLOOConfig]
    fields = {f.name: f for config in configs for f in dataclasses.fields(config)}
    named = {name for theirs, *_ in rows_of_comparison() for name in re.findall(r"`([a-z_0-9]+)`", theirs)}
    assert len(named) > 30 and named <= set(fields), named - set(fields)
    for theirs, *_ in rows_of_comparison():
        for name, default in re.findall(r"`([a-z_0-9]+)` = (\S+?)(?=,|$)", theirs):
            defaults = [f.default for c in configs for f in dataclasses.fields(c) if f.name == name]
            assert ast.literal_eval(default) in defaults, (name, default, defaults)


if __name__ == "__main__":
    for path in PAGES:
        old = path.read_text(encoding="utf-8")
        if (new := with_files(old)) != old:
            path.write_text(new, encoding="utf-8")
            print("written:", path.relative_to(REPO))
