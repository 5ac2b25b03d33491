"""Prompts of tasks: as lm-evaluation-harness puts them together."""

from __future__ import annotations

import random

import pytest
from helpers.task_rows import mmlu_rows, piqa_rows, write_rows, write_tasks

from vdengine.errors import InputError
from vdengine.tasks.task import Task, load_tasks


def write(tmp_path, text, rows=None):
    data = write_rows(tmp_path / "rows.jsonl", rows or [{"q": "Two?", "c": ["a", "b"], "a": 1, "t": "b"}] * 3)
    path = tmp_path / "task.yaml"
    head = f"task: t\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\ntest_split: train\n"
    path.write_text(head + "output_type: multiple_choice\n" + text)
    return path


FIELDS = "doc_to_text: q\ndoc_to_choice: c\ndoc_to_target: a\n"


def test_text_with_examples(tmp_path):
    """Guards a prompt that differs from lm-eval's by a blank: description, first examples, delimiters, the question."""
    task = Task.load(write_tasks(tmp_path)["facts_3"])
    row, dev = task.rows[0], mmlu_rows(8, seed=1)
    lines = [f"The following are questions about {mmlu_rows()[0]['subject']}.\n\n"]
    for example in [*dev[:3], mmlu_rows()[0]]:
        choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", example["choices"], strict=True))
        lines.append(f"{example['question'].strip()}{choices}\nAnswer: {'ABCD'[example['answer']]}\n\n")
    assert row.text == "".join(lines).rstrip()[: -len(" X")] and row.gold == (mmlu_rows()[0]["answer"],)
    assert [t["role"] for t in row.messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert row.messages[2]["content"] == "ABCD"[dev[0]["answer"]]


def test_examples_are_drawn_as_lm_eval_draws_them(tmp_path):
    """Guards other examples than lm-eval's: one generator of seed 1234 for all rows, the row itself left out where
    its split is the examples' (or neither is named)."""
    task = Task.load(write_tasks(tmp_path)["goals_2"])
    rows, drawn = piqa_rows(), random.Random(1234)
    own = {True: 0, False: 0}
    for row, doc in zip(task.rows, rows, strict=True):
        chosen = [d for d in drawn.sample(rows, 3) if d != doc][:2]
        own[doc in chosen] += 1
        assert [t.text for t in row.turns[1::2]] == [d[("sol1", "sol2")[d["label"]]] for d in chosen]
    assert own == {True: 0, False: 100}


@pytest.mark.parametrize(
    ("fields", "choices", "gold"),
    [
        (FIELDS, ("a", "b"), (1,)),
        ('doc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: "{{a}}"\n', ("a", "b"), (1,)),
        ("doc_to_text: q\ndoc_to_choice: [x, b]\ndoc_to_target: t\n", ("x", "b"), (1,)),
        ("doc_to_text: q\ndoc_to_choice: {one: x, two: y}\ndoc_to_target: 0\n", ("x", "y"), (0,)),
        ('doc_to_text: q\ndoc_to_choice: c\ndoc_to_target: "[0, 1]"\n', ("a", "b"), (0, 1)),
        ('doc_to_text: q\ndoc_to_choice: "{{c + [q | regex_replace(\'T.\', \'x\')]}}"\ndoc_to_target: a\n',
         ("a", "b", "xo?"), (1,)),
    ],
)  # fmt: skip
def test_fields(tmp_path, fields, choices, gold):
    """Guards the ways to say text, choices and target: column, template, list, mapping, number, several targets."""
    row = Task.load(write(tmp_path, fields)).rows[0]
    assert (row.text, row.choices, row.gold) == ("Two?", choices, gold)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("doc_to_text: q\ndoc_to_choice: [x, y]\ndoc_to_target: t\n", "line 1: the target 'b' is none of the 2"),
        ("doc_to_text: q\ndoc_to_choice: c\ndoc_to_target: 2\n", "the target '2' is none of the 2 choices"),
        ("doc_to_text: q\ndoc_to_choice: [x]\ndoc_to_target: 0\n", "gives 1 choices; 2 to 1000"),
        ('doc_to_text: q\ndoc_to_choice: [x, ""]\ndoc_to_target: 0\n', "a list of texts, none of them empty"),
        ("doc_to_text: q\ndoc_to_target: 0\n", "doc_to_choice is missing"),
        ('doc_to_text: "{{gone}}"\ndoc_to_choice: c\ndoc_to_target: 0\n', "doc_to_text, .*line 1: 'gone' is undefined"),
        ('doc_to_text: "{% if %}"\ndoc_to_choice: c\ndoc_to_target: 0\n', "task.yaml: doc_to_text: Expected"),
        ('doc_to_text: "{{a}}"\ndoc_to_choice: c\ndoc_to_target: 0\n', "several inputs"),
        ("doc_to_text: a\ndoc_to_choice: c\ndoc_to_target: 0\n", "several inputs"),
        ('doc_to_text: "{{\'x\' * 10 ** 9}}"\ndoc_to_choice: c\ndoc_to_target: 0\n', "memory|CPU time|characters"),
        ('doc_to_text: q\ndoc_to_choice: "{{q.__class__}}"\ndoc_to_target: 0\n', "unsafe"),
        ('doc_to_text: q\ndoc_to_choice: "__import__(\'os\')"\ndoc_to_target: 0\n', "not a usable list of choices"),
        (FIELDS + "num_fewshot: 3\n", "num_fewshot is 3; there are 2 rows to draw"),
    ],
)  # fmt: skip
def test_what_is_no_question_is_refused(tmp_path, fields, said):
    """Guards one clear line for a row or field that is none, and templates that misbehave."""
    fields += "fewshot_split: train\n" if "num_fewshot" in fields else ""
    with pytest.raises(InputError, match=said) as error:
        Task.load(write(tmp_path, fields))
    assert "\n" not in str(error.value)


def test_limit_and_names(tmp_path):
    """Guards --limit: the first rows, with the examples they have among all; and two tasks of one name."""
    path = write_tasks(tmp_path)["goals_2"]
    assert Task.load(path, limit=7).rows == Task.load(path).rows[:7]
    assert Task.load(path, limit=7).hash != Task.load(path).hash
    with pytest.raises(InputError, match="two tasks have the name 'goals_2'"):
        load_tasks([path, path])


def test_samples_as_examples(tmp_path):
    """Guards examples that stand in the file itself, with fields of their own."""
    more = (
        "num_fewshot: 1\nfewshot_delimiter: '##'\nfewshot_config:\n  sampler: first_n\n  target_delimiter: '='\n"
        "  doc_to_target: t\n  samples: [{q: 'One?', c: [a, b], t: b}, {q: 'No?', c: [a, b], t: a}]\n"
    )
    assert Task.load(write(tmp_path, FIELDS + more)).rows[0].text == "One?=b##Two?"


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_examples_that_are_the_question(tmp_path, sampler):
    """Guards rows that are there several times: none of them is an example of itself, and too few others are an error
    and not fewer examples."""
    rows = [{"q": "Two?", "c": ["a", "b"], "a": 1}] * 6
    fields = f"{FIELDS}num_fewshot: 2\nfewshot_split: train\nfewshot_config: {{sampler: {sampler}}}\n"
    with pytest.raises(InputError, match=r"task\.yaml: num_fewshot is 2; only 0 of the 6 rows .*line 1"):
        Task.load(write(tmp_path, fields, rows))
    others = [{"q": f"{i}?", "c": ["a", "b"], "a": 1} for i in range(2)]
    task = Task.load(write(tmp_path, fields, rows + others), limit=6)
    assert all({t.text for t in row.turns[:-1:2]} == {"0?", "1?"} for row in task.rows)


@pytest.mark.parametrize(
    "name", ["~nosuchuser/b.yaml", "a\0b.yaml", "x" * 5000 + ".yaml", "~nosuchuser/b.jsonl", "\ud800.yaml"]
)
def test_names_that_are_no_path(name):
    """Guards one line for a name that this machine cannot look up."""
    with pytest.raises(InputError, match="cannot be read|no such file") as error:
        Task.load(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ['""', '" "', '"a\\nb"', '"\\e[31m"', '"\\ud800"'])
def test_names_of_tasks(tmp_path, name):
    """Guards a log and a console against a name that is no line of text."""
    path = write(tmp_path, FIELDS)
    path.write_text(path.read_text().replace("task: t", f"task: {name}"))
    with pytest.raises(InputError, match=r"task\.yaml: .*(one line of text|half of a surrogate)"):
        Task.load(path)
