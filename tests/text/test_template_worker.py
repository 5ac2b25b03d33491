"""Chat templates from strangers: what misbehaves ends with one line, and harms no other."""

from __future__ import annotations

import os

import pytest

from vdengine.errors import InputError
from vdengine.text.renderer import Renderer
from vdengine.text.template_worker import RowTemplates

transformers = pytest.importorskip("transformers")


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    return messages + [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


HOSTILE = {
    "loops": ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "CPU time"),
    "one long call": ("{{ 'x' * 10 ** 9 * 0 ~ ('a' * 10 ** 8) | list | length }}", "CPU time|memory"),
    "huge power": ("{{ (7 ** (10 ** 9)) % 3 }}", "CPU time|memory"),
    "huge string": ("{{ '%3000000000d' | format(1) }}", "memory"),
    "long output": ("{{ 'x' * 20000000 }}", "characters"),
    "much more than it was given": ("{{ lipsum(n=3000) }}{{ messages[0].content }}", r"more than 104\d{4} characters"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "way out": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "unsafe"),
    "syntax": ("\n{% if %}", "line 2"),
    "own words": ("{{ raise_exception('roles must\nalternate') }}", "roles must alternate"),
    "missing variable": ("{{ messages[7].content.x }}", "undefined|has no"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(qwen3, tmp_path, name):
    """Guards against a template from outside that runs forever, fills the memory or leaves the sandbox."""
    text, reason = HOSTILE[name]
    (tmp_path / "t.jinja").write_text(text)
    # little time for those that should run out of it, enough on a busy machine for the others
    renderer = Renderer(qwen3, str(tmp_path / "t.jinja"), cpu_seconds=0.3 if "CPU" in reason else 20.0)
    for _ in range(2):  # the worker comes back after it was ended
        with pytest.raises(InputError, match=reason) as error:
            renderer.text(turns("x"))
        assert "\n" not in str(error.value) and "t.jinja" in str(error.value)


def test_a_slow_template_does_not_end_the_worker_of_another(qwen3, tmp_path):
    """Guards against a worker that stays broken, or is shared, after one conversation went over the limit."""
    (tmp_path / "t.jinja").write_text(
        "{% if messages | length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% endif %}{{ messages[0].content }}"
    )
    renderer = Renderer(qwen3, str(tmp_path / "t.jinja"), cpu_seconds=0.3)
    assert renderer.text(turns("x")) == "x"
    with pytest.raises(InputError, match="CPU time"):
        renderer.text(turns("x", "y"))
    assert renderer.text(turns("x")) == "x"


def test_worker_survives_a_fork(qwen3):
    """Guards against a forked data process that answers its parent's questions over the shared pipe."""
    before = qwen3.renderer.text(turns("x"))
    child = os.fork()
    if child == 0:
        os._exit(0 if qwen3.renderer.text(turns("x")) == before else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert qwen3.renderer.text(turns("x")) == before


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ [1, 2, 3] | random }}", "t: field: .*'random'"),
        ("{{ [[1, 2, 3]] | map('random') | first }}", "field, row 1: .*'random'"),
        ("{{ lipsum() }}", "'lipsum' is undefined"),
        ("{{ q.upper }}", "another one each time"),
        ("{{ [cycler('a')] }}", "another one each time"),
        ("{{ [q] | map('upper') }}", "another one each time"),
    ],
)
def test_a_row_has_one_text(template, reason):
    """Guards the hash of a task: its prompts must not be drawn at random, nor hold an address of memory."""
    with pytest.raises(InputError, match=reason) as error:
        RowTemplates("t", {"field": template}).render([("field", "row 1", {"q": "x"})])
    assert "\n" not in str(error.value)


def test_a_set_has_one_order():
    """Guards the hash of a task whose template takes columns apart: Python orders sets of text anew in each process."""
    job = ("f", "row 1", {"q": {name: 0 for name in "abcdefghij"}})
    texts = {RowTemplates("t", {"f": "{{ (q.keys() - ['a']) | list }}"}).render([job])[0] for _ in range(3)}
    assert len(texts) == 1
