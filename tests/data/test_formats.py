"""Each format's rows, and what is dropped and counted."""

from __future__ import annotations

import ast
import csv
import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import assistant, error, load, one, system, user, write

from vdengine.data.formats import Conversation, Preference, Prompt, choose_format, read
from vdengine.data.locate import resolve

# ---- formats


PAIR = Preference([user("q")], assistant("yes"), assistant("no"))


@pytest.mark.parametrize(
    "row, format",
    [
        ({"prompt": "q", "chosen": "yes", "rejected": "no"}, "preference"),
        ({"prompt": [user("q")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}, "preference"),
        ({"prompt": "q", "chosen": [assistant("yes")], "rejected": [assistant("no")]}, "preference"),
        ({"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]}, "preference"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: no"}, "hh_rlhf"),
        (
            {
                "prompt": "q",
                "prompt_id": "0",
                "messages": [user("q"), assistant("yes")],
                "chosen": [user("q"), assistant("yes")],
                "rejected": [user("q"), assistant("no")],
                "score_chosen": 8.0,
                "score_rejected": 2.0,
            },
            "ultrafeedback",
        ),
    ],
)
def test_preference_formats(tmp_path: Path, row: dict[str, Any], format: str) -> None:
    """Guards against a format that is taken for another, or read to other words than its siblings."""
    margin = 6.0 if format == "ultrafeedback" else 1.0
    assert one(tmp_path, row) == (dataclasses.replace(PAIR, margin=margin), format)
    assert one(tmp_path, row, kind="sft") == (Conversation([user("q"), assistant("yes")], last_only=True), format)
    assert one(tmp_path, row, kind="prompts") == (Prompt([user("q")]), format)


@pytest.mark.parametrize(
    "fields, margin",
    [
        ({"margin": 2}, 2.0),
        ({"margin": -0.25}, -0.25),
        ({"margin": None}, 1.0),
    ],
)
def test_margins(tmp_path: Path, fields: dict[str, Any], margin: float) -> None:
    """Guards against a margin that is lost on one of the two ways to give a pair, and null (Parquet's missing) as 0."""
    told = {"prompt": "q", "chosen": "yes", "rejected": "no"} | fields
    shared = {"chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]} | fields
    for row in (told, shared):
        example, _ = one(tmp_path, row)
        assert example == dataclasses.replace(PAIR, margin=margin) and type(example.margin) is float


@pytest.mark.parametrize(
    "value, shown",
    [
        ("true", "True"),
        ('"0.5"', "'0.5'"),
        ("NaN", "nan"),
        ("-Infinity", "-inf"),
        ("1e39", "1e+39"),
        ("1" + "0" * 400, "1" + "0" * 39),
        ("[1]", "[1]"),
    ],
)
def test_bad_margins(tmp_path: Path, value: str, shown: str) -> None:
    """Guards against a margin that turns the loss into NaN (1e39 is infinite in float32), or is read as 1 or 0."""
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + '{"prompt": "q", "chosen": "yes", "rejected": "no", "margin": ' + value + "}\n")
    assert error(load, path) == f"{path} line 2: field 'margin' must be a finite number, this one is {shown}"


@pytest.mark.parametrize(
    "scores, margin",
    [
        ({"score_chosen": 8, "score_rejected": 2.5}, 5.5),
        ({"score_chosen": 2.0, "score_rejected": 8.0}, -6.0),
        ({"score_chosen": 8.0}, 1.0),
        ({"score_chosen": 8.0, "score_rejected": None}, 1.0),
    ],
)
@pytest.mark.parametrize("parquet", [False, True])
def test_ultrafeedback_scores(tmp_path: Path, scores: dict[str, Any], margin: float, parquet: bool) -> None:
    """Guards against scores that are not read (Parquet reads named columns only), and a margin of NaN."""
    import pyarrow
    import pyarrow.parquet

    row = {"prompt": "q", "chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]} | scores
    if parquet:
        path = str(tmp_path / "a.parquet")
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    else:
        path = write(tmp_path / "a.jsonl", [row])
    (found,), _, format = load(path)
    assert (found.example, format) == (dataclasses.replace(PAIR, margin=margin), "ultrafeedback")


@pytest.mark.parametrize(
    "row, format, example",
    [
        (
            {"messages": [system("s"), user("a"), assistant("b"), user("c"), assistant("d"), user("e")]},
            "messages",
            Conversation([system("s"), user("a"), assistant("b"), user("c"), assistant("d")]),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"},
            "messages",
            Conversation([system("s"), user("a"), assistant("b")]),
        ),
        (
            {"prompt": "a", "completion": "b"},
            "prompt_completion",
            Conversation([user("a"), assistant("b")], last_only=True),
        ),
        (
            {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
            "prompt_completion",
            Conversation([user("a"), assistant("b"), user("c"), assistant("d")], last_only=True),
        ),
        (
            {"instruction": "a", "input": "", "output": "b"},
            "alpaca",
            Conversation([user("a"), assistant("b")], last_only=True),
        ),
        (
            {"instruction": "a", "input": "x", "output": "b", "system": "s", "history": [["h", "i"]]},
            "alpaca",
            Conversation([system("s"), user("h"), assistant("i"), user("a\n\nx"), assistant("b")], last_only=True),
        ),
        (
            {
                "conversation": [user("a") | {"toxic": False}, assistant("b") | {"redacted": False}],
                "language": "English",
                "model": "m",
            },
            "wildchat",
            Conversation([user("a"), assistant("b")]),
        ),
        (
            {"messages": [user("a"), {"role": "assistant", "content": [{"type": "text", "text": "b"}]}]},
            "messages",
            Conversation([user("a"), assistant("b")]),
        ),
    ],
)
def test_sft_formats(tmp_path: Path, row: dict[str, Any], format: str, example: Conversation) -> None:
    """Guards against lost turns, and against scoring turns that the format gives as context."""
    assert one(tmp_path, row, kind="sft") == (example, format)


TALK = [user("a"), assistant("b"), user("c"), assistant("d")]


@pytest.mark.parametrize(
    "row, format, messages",
    [
        ({"prompt": "a"}, "prompt", TALK[:1]),
        ({"prompt": [system("s"), *TALK[:3]], "id": 7, "answer": "x"}, "prompt", [system("s"), *TALK[:3]]),
        ({"messages": TALK}, "messages", TALK[:3]),
        ({"messages": TALK[:3]}, "messages", TALK[:3]),
        ({"messages": TALK[:1]}, "messages", TALK[:1]),
        ({"messages": [*TALK, system("s")]}, "messages", TALK[:3]),
        ({"messages": [user("a"), assistant("")]}, "messages", TALK[:1]),
        ({"prompt": "ignored", "messages": TALK}, "messages", TALK[:3]),
        ({"prompt": "a", "completion": "b"}, "prompt_completion", TALK[:1]),
        ({"instruction": "c", "output": "d", "history": [["a", "b"]]}, "alpaca", TALK[:3]),
        ({"conversation": TALK}, "wildchat", TALK[:3]),
        ({"prompt": TALK[:3], "chosen": "d", "rejected": ""}, "preference", TALK[:3]),
    ],
)
def test_prompts(tmp_path: Path, row: dict[str, Any], format: str, messages: list[dict[str, str]]) -> None:
    """Guards against prompts that hold the answer, lose turns, or are left out for an answer that is never read."""
    assert one(tmp_path, row, kind="prompts") == (Prompt(messages), format)


def test_unusable_prompts_are_counted(tmp_path: Path) -> None:
    """Guards against prompts that a model cannot answer, and against rows that are merged: equal prompts both count."""
    rows = [
        {"prompt": "q"},
        {"prompt": " \n"},
        {"prompt": []},
        {"prompt": TALK},
        {"prompt": [assistant("hello"), user("q")]},
        {"prompt": "q \ud83d"},
        {"prompt": [user("q"), {"role": "tool", "content": "4"}]},
        {"prompt": "q"},
    ]
    kept, dropped, _ = load(write(tmp_path / "a.jsonl", rows), "prompts")
    assert [(row.number, row.example) for row in kept] == [(0, Prompt([user("q")])), (7, Prompt([user("q")]))]
    assert dropped == {
        "empty prompt": 2,
        "the prompt does not end with a user turn": 1,
        "the first turn is not the user's": 1,
        "text is not valid Unicode": 1,
        "uses tools": 1,
    }
    talks: list[Any] = [[], [system("s")], [assistant("b")], [user("a"), assistant("b"), assistant("c")], [user("")]]
    kept, dropped, _ = load(write(tmp_path / "b.jsonl", [{"messages": talk} for talk in talks]), "prompts")
    assert not kept
    assert dropped == {"empty prompt": 3, "the prompt does not end with a user turn": 2}


def test_formats_that_lack_what_the_kind_learns_from(tmp_path: Path) -> None:
    """Guards against a DPO run over data that has no rejected answers, and SFT over prompts alone."""
    path = write(tmp_path / "a.jsonl", [{"instruction": "a", "output": "b"}])
    assert error(load, path) == (
        f"{path}: format 'alpaca' has no rejected answer; preference objectives read preference, hh_rlhf, ultrafeedback"
    )
    path = write(tmp_path / "b.jsonl", [{"prompt": "a"}])
    for kind, reads in (
        ("preference", "preference objectives read preference, hh_rlhf, ultrafeedback"),
        ("sft", "SFT reads preference, hh_rlhf, ultrafeedback, messages, prompt_completion, alpaca, wildchat"),
    ):
        nearest = {
            "preference": "preference: 'chosen' is missing, 'rejected' is missing",
            "sft": "prompt_completion: 'completion' is missing",
        }[kind]
        assert error(load, path, kind) == (
            f"{path} line 1: the fields (prompt) fit no format; nearest is {nearest}; {reads}"
        )
        assert error(load, path, kind, "prompt") == (f"{path}: format 'prompt' has no answer; {reads}")
    path = write(tmp_path / "c.jsonl", [{"prompt": 3}])
    assert error(load, path, "prompts") == (
        f"{path} line 1: field 'prompt' must be text or a list of messages, this one is a number"
    )
    path = write(tmp_path / "d.jsonl", [{"prompt": "a", "chosen": "b"}])
    assert error(load, path, "prompts") == (
        f"{path} line 1: the fields (prompt, chosen) fit no format; nearest is preference: "
        "'rejected' is missing; PPO, GRPO and RLOO read preference, hh_rlhf, "
        "ultrafeedback, messages, prompt_completion, alpaca, wildchat, prompt"
    )
    with pytest.raises(ValueError, match="^kind must be one of sft, preference, unpaired, prompts, not 'ppo'$"):
        load(path, "ppo")


def test_answers_with_labels(tmp_path: Path) -> None:
    """Guards KTO's rows: one answer and its label in the formats that have one, the last answer of a conversation, and
    both answers of a pair as rows of the same number."""
    rows = [
        {"prompt": "a", "completion": "b", "label": True},
        {"prompt": "a", "completion": "c", "label": False},
        {"prompt": "a", "completion": "d", "kto_tag": 0},
        {"prompt": "a", "completion": " ", "label": True},
    ]
    kept, dropped, format = load(write(tmp_path / "a.jsonl", rows), "unpaired")
    assert format == "prompt_completion" and dropped == {"empty response": 1}
    assert [row.example.wanted for row in kept] == [True, False, False]
    talk = [user("a"), assistant("b"), user("c"), assistant("d")]
    (row,), _, _ = load(write(tmp_path / "b.jsonl", [{"messages": talk, "label": False}]), "unpaired")
    assert row.example == Conversation(talk, last_only=True, wanted=False)
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    kept, dropped, _ = load(write(tmp_path / "c.jsonl", pairs), "unpaired")
    assert not dropped and [row.number for row in kept] == [0, 0, 1, 1]
    assert [(row.example.messages[-1]["content"], row.example.wanted) for row in kept] == [
        ("b", True),
        ("c", False),
        ("e", True),
        ("f", False),
    ]
    path = write(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}])
    assert error(load, path, "unpaired").startswith(f"{path} line 1: field 'label' is missing: true or false")
    path = write(tmp_path / "e.jsonl", [{"conversation": talk}])
    assert error(load, path, "unpaired", "wildchat") == (
        f"{path}: format 'wildchat' has no label; KTO reads, with a label beside one answer, preference, hh_rlhf, "
        "ultrafeedback, messages, prompt_completion, alpaca"
    )


def test_unknown_and_ambiguous_fields(tmp_path: Path) -> None:
    """Guards against guessing: a file that fits no format, or two, says which fields it has."""
    path = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    assert error(load, path, "sft") == (
        f"{path} line 1: the fields (question, answer) fit no format; nearest is prompt_completion: rename "
        "'question' to 'prompt', rename 'answer' to 'completion'; SFT reads preference, hh_rlhf, ultrafeedback, "
        "messages, prompt_completion, alpaca, wildchat"
    )
    both = {"prompt": "a", "completion": "b", "instruction": "a", "output": "b"}
    path = write(tmp_path / "b.jsonl", [both])
    assert error(load, path, "sft") == (
        f"{path} line 1: the fields (prompt, completion, instruction, output) fit several formats; "
        "set data.format: prompt_completion, alpaca"
    )
    assert error(load, path, "sft", "csv") == (
        "data.format: unknown format 'csv'; use auto, preference, hh_rlhf, ultrafeedback, messages, "
        "prompt_completion, alpaca, wildchat, prompt"
    )
    # An answer pair decides for a preference objective, where `messages` beside it would be ambiguous for SFT.
    row = {"prompt": "q", "chosen": "yes", "rejected": "no", "messages": [user("q"), assistant("yes")]}
    assert one(tmp_path, row) == (PAIR, "preference")
    assert "fit several formats" in error(load, tmp_path / "one.jsonl", "sft")


# ---- dropped rows


def test_unusable_preference_rows_are_counted(tmp_path: Path) -> None:
    """Guards against unusable pairs that are trained on, vanish silently, or end the run."""
    rows = [
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": "yes", "rejected": " \n"},
        {"prompt": "", "chosen": "yes", "rejected": "no"},
        {"prompt": "q \ud83d", "chosen": "yes", "rejected": "no"},
        {"prompt": "q", "chosen": "yes", "rejected": "no"},
        {"prompt": [assistant("hello"), user("q")], "chosen": "yes", "rejected": "no"},
        {"prompt": [user("q"), {"role": "tool", "content": "4"}], "chosen": "yes", "rejected": "no"},
        {"prompt": [], "chosen": "yes", "rejected": "no"},
        {"prompt": [user("q"), assistant("a")], "chosen": "yes", "rejected": "no"},
    ]
    kept, dropped, _ = load(write(tmp_path / "a.jsonl", rows))
    assert [(row.number, row.where) for row in kept] == [(4, f"{tmp_path / 'a.jsonl'} line 5")]
    assert dropped == {
        "chosen equals rejected": 1,
        "empty response": 1,
        "empty prompt": 2,
        "text is not valid Unicode": 1,
        "the first turn is not the user's": 1,
        "uses tools": 1,
        "the prompt does not end with a user turn": 1,
    }


def test_unusable_conversations_are_counted(tmp_path: Path) -> None:
    """Guards against conversations with nothing to learn, or nothing to learn it from."""
    rows = [
        {"messages": []},
        {"messages": [user("a")]},
        {"messages": [assistant("b"), user("a")]},
        {"messages": [user("a"), assistant("")]},
        {"messages": [user("a"), assistant("b"), user("c"), {"role": "assistant", "content": None}]},
        {"messages": [user(" "), assistant("b")]},
        {"messages": [user("a"), assistant("b") | {"tool_calls": [{"name": "f"}]}]},
        {"messages": [user("a"), {"role": "assistant", "content": [{"type": "image"}]}]},
        {"messages": [user("a"), assistant("b")]},
    ]
    kept, dropped, _ = load(write(tmp_path / "a.jsonl", rows), "sft")
    assert [row.number for row in kept] == [8]
    assert dropped == {
        "no assistant turn": 2,
        "empty prompt": 2,
        "empty response": 2,
        "uses tools": 1,
        "content that is not text": 1,
    }


def hh(*turns: str) -> str:
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {turn}" for i, turn in enumerate(turns))


def test_transcripts_split_at_the_first_difference(tmp_path: Path) -> None:
    """Guards against a pair whose answers would follow different words, and against cut or glued turns."""
    rows = [
        {"chosen": hh("a", "b", "c: Human", "d\n\ne"), "rejected": hh("a", "b", "c: Human", "f")},
        {"chosen": hh("a", "b", "c", "d"), "rejected": hh("a", "x", "c", "d")},
        {"chosen": hh("a", "b"), "rejected": hh("a", "x", "y", "z")},
        {"chosen": hh("a", "b"), "rejected": hh("a", "b", "c", "d")},
        {"chosen": hh("a", "b"), "rejected": hh("z", "b")},
        {"chosen": hh("a", ""), "rejected": hh("a", "b")},
        {"chosen": "so\n\nHuman: a\n\nAssistant: b", "rejected": hh("a", "c")},
        {"chosen": hh("a", "b") + "\n\nAssistant: c", "rejected": hh("a", "b") + "\n\nAssistant: d "},
        {"chosen": "Human: a\n\nAssistant:b", "rejected": "Human: a\n\nAssistant:c"},
    ]
    kept, dropped, format = load(write(tmp_path / "a.jsonl", rows))
    assert format == "hh_rlhf"
    assert [row.example for row in kept] == [
        Preference([user("a"), assistant("b"), user("c: Human")], assistant("d\n\ne"), assistant("f")),
        Preference([user("a")], assistant("b\n\nc"), assistant("b\n\nd")),
        Preference([user("a")], assistant("b"), assistant("c")),
    ]
    assert dropped == {
        "transcripts differ before the last turn": 2,
        "one transcript is the beginning of the other": 1,
        "transcripts differ in a turn that is not the assistant's": 1,
        "empty response": 1,
        "text before the first turn": 1,
    }


def test_real_hh_rlhf(shared_data: Path) -> None:
    """Guards against a parser that fits only tidy transcripts: all 2,312 real rows."""
    source = resolve(str(shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz"))
    assert source.count() == 2312
    assert choose_format(source) == "hh_rlhf"
    raw = list(source.rows())
    dropped: Counter[str] = Counter()
    rows = list(read(source, "hh_rlhf", "preference", dropped))
    # The four are transcripts that end in "Assistant:".
    assert len(rows) == 2308 and dropped == {"empty response": 4}
    for row in rows:
        pair, fields = row.example, raw[row.number][1]
        assert isinstance(pair, Preference)
        roles = [message["role"] for message in pair.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        said = [m["content"] for m in pair.prompt]
        for message, text in ((pair.chosen, fields["chosen"]), (pair.rejected, fields["rejected"])):
            answer = message["content"]
            # Nothing is lost or moved: the words in order, without the speakers' names.
            words = text.replace("\n\nHuman:", "\n\n").replace("\n\nAssistant:", "\n\n").split()
            assert " ".join([*said, answer]).split() == words
    dropped = Counter()
    prompts = {row.number: row.example for row in read(source, "hh_rlhf", "prompts", dropped)}
    # An empty answer does not matter: the model gives its own.
    assert len(prompts) == 2312 and not dropped
    assert all(prompts[row.number] == Prompt(row.example.prompt) for row in rows)  # type: ignore[union-attr]


def test_real_prism(shared_data: Path, tmp_path: Path) -> None:
    """Guards against real opening prompts that are dropped or altered: quotes, emphasis, one-word greetings."""
    with open(shared_data / "prism" / "opening_prompt_clusters.csv", newline="") as file:
        texts = [text for row in csv.DictReader(file) for text in ast.literal_eval(row["top_texts"])]
    rows, dropped, format = load(write(tmp_path / "a.jsonl", [{"prompt": text} for text in texts]), "prompts")
    assert (len(rows), format, dropped) == (115, "prompt", {})
    assert [row.example for row in rows] == [Prompt([user(text)]) for text in texts]


def test_real_alpaca(shared_data: Path) -> None:
    """Guards against losing `input`, which 412 of the 999 real rows have."""
    path = shared_data / "alpaca" / "alpaca_en_demo.json"
    rows, dropped, format = load(path, "sft")
    assert (len(rows), format, dropped) == (999, "alpaca", {})
    for row, fields in zip(rows, json.loads(path.read_text()), strict=True):
        question, answer = row.example.messages  # type: ignore[union-attr]
        assert question["content"].startswith(fields["instruction"]) and answer["content"] == fields["output"]
        assert question["content"].endswith(fields["input"])


# ---- broken input


GOOD = '{"prompt": "q", "chosen": "yes", "rejected": "no"}\n'
