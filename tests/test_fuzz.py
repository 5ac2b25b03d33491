"""Readers of what comes from outside, against mutated input."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers.fuzzing import Files, Finding, Format, Tally, campaign, lay, make_input, read_or_refused, verdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdengine.data.formats import choose_format, read
from vdengine.data.memory import rows_in_memory
from vdengine.errors import InputError
from vdengine.outside import parse_json, parse_toml
from vdengine.recipe import Recipe, make_recipe

FUZZ = Path(__file__).parent.parent / "benchmarks" / "fuzz.py"


@pytest.mark.slow
def test_no_reader_breaks_the_rule(tmp_path: Path) -> None:
    """Guards every reader against ends that are no `InputError` of one line: 2,000 inputs, the same at every run."""
    command = [sys.executable, FUZZ, "--inputs", "2000", "--seed", "0", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


SEED: Files = {"a.json": b'{"a": [1, "x"], "b": null}', "b.txt": b"text"}


def _campaign(target, folder: Path, inputs: int = 16, **bounds) -> tuple[Tally, list[Finding]]:
    told: list[Finding] = []
    format = Format("planted", "none", lambda: [SEED], target)
    (tally,) = campaign([format], inputs, folder=folder, told=told.append, jobs=2, **bounds)
    return tally, told


def _differs(folder: Path) -> bool:
    """Whether one file of the seed is changed: true of mutations alone."""
    path = folder / "a.json"
    return not path.is_file() or path.is_symlink() or path.read_bytes() != SEED["a.json"]


def _refuses(folder: Path) -> None:
    if _differs(folder):
        raise InputError("not the seed")


def _raises(error: BaseException):
    def target(folder: Path) -> None:
        if _differs(folder):
            raise error

    return target


def _allocates(folder: Path) -> None:
    if _differs(folder):
        bytearray(1 << 40)


def _aborts(folder: Path) -> None:
    if _differs(folder):
        os.abort()


def _exits(folder: Path) -> None:
    if _differs(folder):
        os._exit(0)


def _hangs(folder: Path) -> None:
    while _differs(folder):
        pass


def _sleeps(folder: Path) -> None:
    if _differs(folder):
        time.sleep(1000)


class Panic(BaseException):
    """As Rust's libraries raise it: no Exception."""


class Loud(InputError):
    """An error that does not make its message printable, as `InputError` itself does."""

    def __str__(self) -> str:
        return str(self.message)

    def __init__(self, message: str) -> None:
        self.message = message


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (_raises(KeyError("a")), "KeyError at"),
        (_raises(Panic("a")), "Panic at"),
        (_raises(SystemExit(0)), "SystemExit at"),
        (_raises(InputError("")), "message is not one line"),
        (_raises(Loud("a\nb")), "message is not one line"),
        (_raises(Loud("a\u2028b")), "message is not one line"),
        (_raises(Loud("\ud800")), "message holds what cannot be printed"),
        (_raises(Loud("a" * 3000)), "message above 1000 characters"),
        (_allocates, "MemoryError at"),
        (_aborts, "process died (signal SIGABRT)"),
        (_exits, "process died (exit status 0)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_fault_is_found(target, what: str, tmp_path: Path) -> None:
    """Guards against a harness that cannot fail: each way of breaking the rule, in a target that breaks it."""
    tally, told = _campaign(target, tmp_path)
    assert tally.inputs == 16 and tally.findings == told and len(told) == 16 - tally.accepted
    assert len(told) > 5 and all(f.what.startswith(what) for f in told), {f.what for f in told}


@pytest.mark.parametrize("target", [_hangs, _sleeps])
def test_a_planted_hang_is_found(target, tmp_path: Path) -> None:
    """Guards against waiting for ever, busy or asleep; inputs after a hang are read all the same."""
    tally, told = _campaign(target, tmp_path, inputs=4, seconds=0.1)
    assert tally.inputs == 4 and told and all(f.what == "no end within 0.1 s" for f in told)
    assert len(told) == 4 - tally.accepted


def test_what_keeps_the_rule_is_no_finding(tmp_path: Path) -> None:
    """Guards against false alarms, and counts."""
    tally, told = _campaign(_refuses, tmp_path, inputs=60)
    assert not told and tally.accepted + tally.refused == tally.inputs == 60 and tally.refused > 20


def test_a_refused_seed_is_found(tmp_path: Path) -> None:
    """Guards against a campaign that shows nothing, because its reader refuses all that it is given."""
    _, told = _campaign(_raises(InputError("no")), tmp_path)
    assert not told
    format = Format("planted", "none", lambda: [{"a.json": b"{}"}], _refuses)
    (tally,) = campaign([format], 5, folder=tmp_path)
    assert [f.number for f in tally.findings] == [0]
    assert tally.findings[0].what.startswith("refuses a whole input")


def test_inputs_are_made_again(tmp_path: Path) -> None:
    """Guards replay: an input is a function of seed, format and number, whatever came before; and they differ."""
    format = Format("planted", "none", lambda: [SEED], _refuses)
    inputs = [make_input(format, [SEED], 3, n) for n in range(200)]
    assert inputs[0] == SEED and inputs == [make_input(format, [SEED], 3, n) for n in range(200)]
    assert make_input(format, [SEED], 3, 150) == inputs[150] != make_input(format, [SEED], 4, 150)
    assert len({repr(sorted(files.items())) for files in inputs}) > 180
    kinds = {content for files in inputs for content in files.values() if isinstance(content, str)}
    assert {"missing", "fifo", "folder"} <= kinds, "what may stand where a file should be"
    for files in inputs:
        lay(tmp_path / "x", files)
        assert verdict(_refuses, tmp_path / "x")[0] in ("accepted", "refused")


# --------------------------------------------------------------------------------------- made, and not mutated

KEYS = sorted({key.name for f in dataclasses.fields(Recipe()) for key in dataclasses.fields(getattr(Recipe(), f.name))})
ATOMS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
JSON = st.recursive(ATOMS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3))
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt"]) | JSON
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES, "content": st.text(max_size=12) | JSON, "from": ROLES, "value": JSON, "train": JSON,
        "weight": JSON, "reasoning_content": JSON, "tool_calls": JSON, "name": JSON,
    },
)  # fmt: skip
ANSWER = st.text(max_size=12) | st.lists(TURN, max_size=3) | JSON
ROW = st.fixed_dictionaries(
    {},
    optional={name: ANSWER for name in ("prompt", "chosen", "rejected", "messages", "conversations", "completion")}
    | {name: JSON for name in ("system", "tools", "label", "margin", "score_chosen", "score_rejected", "images")}
    | {name: ANSWER for name in ("instruction", "input", "output", "history", "conversation")},
)
RECIPE = st.dictionaries(
    st.sampled_from([f.name for f in dataclasses.fields(Recipe)]) | st.text(max_size=6),
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=6), JSON, max_size=4) | JSON,
    max_size=5,
)
seeded = settings(max_examples=200, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))


@seeded
@given(rows=st.lists(ROW, min_size=1, max_size=3), kind=st.sampled_from(["sft", "preference", "prompts"]))
def test_any_row_is_read_or_refused(rows, kind):
    """Guards the data formats against rows that nobody thought of: examples, or one line."""

    def read_all() -> None:
        source = rows_in_memory(rows, "data", 100)
        list(read(source, choose_format(source, "auto", kind), kind, Counter()))

    read_or_refused(read_all)


@seeded
@given(tables=RECIPE)
def test_any_recipe_is_read_or_refused(tables):
    """Guards recipes from programs and files: a recipe, or one line."""
    read_or_refused(lambda: make_recipe(tables))


@seeded
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda s: s.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_json_or_refused(data):
    """Guards the one reader of JSON."""
    read_or_refused(lambda: parse_json(data, "file"))
    read_or_refused(lambda: parse_toml(data.decode("utf-8", "replace"), "file"))
