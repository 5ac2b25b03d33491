"""Rows without a task file, in the shapes of well-known sets."""

from __future__ import annotations

import json

import pytest
from helpers.task_rows import gpqa_rows, hellaswag_rows, mmlu_rows, piqa_rows, write_rows

from vdengine.errors import InputError
from vdengine.tasks.task import Task


def test_shapes(tmp_path):
    """Guards the prompts of MMLU, HellaSwag, PIQA and GPQA: as their tasks in lm-evaluation-harness write them."""
    mmlu, piqa, hellaswag, gpqa = (
        Task.load(write_rows(tmp_path / f"{name}.jsonl", rows))
        for name, rows in (("m", mmlu_rows()), ("p", piqa_rows()), ("h", hellaswag_rows()), ("g", gpqa_rows()))
    )
    doc = mmlu_rows()[0]
    choices = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", doc["choices"], strict=True))
    subject = f"The following are multiple choice questions (with answers) about {doc['subject']}.\n\n"
    assert mmlu.rows[0].text == f"{subject}{doc['question'].strip()}\n{choices}Answer:"
    assert (mmlu.name, mmlu.metrics, mmlu.rows[0].choices) == ("m", ("acc",), ("A", "B", "C", "D"))
    doc = piqa_rows()[0]
    assert piqa.rows[0].text == f"Question: {doc['goal']}\nAnswer:" and piqa.rows[0].gold == (doc["label"],)
    assert hellaswag.rows[0].text == "Handling bread: How to handle bread. A man takes bread. Then the man"
    assert " flies to the moon with a spoon." in hellaswag.rows[0].choices
    assert "puts bread on the table and looks at it." == hellaswag.rows[0].choices[hellaswag.rows[0].gold[0]]
    for row, doc in zip(gpqa.rows, gpqa_rows(), strict=True):
        right = row.choices[row.gold[0]]
        assert f"{right} {doc['Correct Answer']}\n" in row.text and row.text.startswith("What is the correct answer to")
    assert len({row.gold for row in gpqa.rows}) > 1


def test_gpqa_order_is_that_of_the_row(tmp_path):
    """Guards a drawn order that would change with the file's other rows, and so with a limit or a filter."""
    whole = Task.load(write_rows(tmp_path / "a.jsonl", gpqa_rows())).rows
    part = Task.load(write_rows(tmp_path / "b.jsonl", gpqa_rows()[3:])).rows
    assert [row.text for row in part] == [row.text for row in whole[3:]]


def test_processed_rows(tmp_path):
    """Guards the way out for tasks whose rows code prepares: their processed rows, as they are."""
    rows = [{"query": "One and one is", "choices": ["two", "six"], "gold": 0}]
    row = Task.load(write_rows(tmp_path / "x.jsonl", rows)).rows[0]
    assert (row.text, row.choices, row.gold) == ("One and one is", ("two", "six"), (0,))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"prompt": "x"}],
            r"rows.jsonl line 1: the columns prompt are of no task that is known \(hellaswag: activity",
        ),
        ([piqa_rows()[0], {"goal": "x"}], "line 2"),
        ([hellaswag_rows()[0] | {"endings": 3}], "line 1: not a row of the shape hellaswag"),
        ([mmlu_rows()[0] | {"answer": 4}], "the target '4' is none of the 4 choices"),
        ([], "has no rows|no rows"),
    ],
)
def test_other_rows_are_refused(tmp_path, rows, said):
    """Guards one line for rows of no known shape, or that leave it."""
    with pytest.raises(InputError, match=said) as error:
        Task.load(write_rows(tmp_path / "rows.jsonl", rows))
    assert "\n" not in str(error.value)


def test_halves_of_characters(tmp_path):
    """Guards one line for text that cannot be encoded, before a shape works on it."""
    rows = gpqa_rows()
    path = tmp_path / "g.jsonl"
    path.write_text("".join(json.dumps(row | {"Question": "\ud800"}) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"g\.jsonl line 1: 'Question' has half of a surrogate pair"):
        Task.load(path)
