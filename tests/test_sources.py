"""data/sources.py: each format's rows, what is dropped and counted, and the messages for broken input."""

from __future__ import annotations

import ast
import csv
import dataclasses
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vdengine.data.formats import Conversation, Preference, Prompt, Row, choose_format, read
from vdengine.data.locate import SYNTH_VARIANTS, resolve
from vdengine.errors import InputError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(name: str | Path, kind: str = "preference", format: str = "auto") -> tuple[list[Row], Counter[str], str]:
    source = resolve(str(name))
    format = choose_format(source, format, kind)
    dropped: Counter[str] = Counter()
    return list(read(source, format, kind, dropped)), dropped, format


def one(tmp_path: Path, row: dict[str, Any], kind: str = "preference") -> tuple[Any, str]:
    """The example of a file of one row, and the format found."""
    rows, dropped, format = load(write(tmp_path / "one.jsonl", [row]), kind)
    assert not dropped
    return rows[0].example, format


def error(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- formats

PAIR = Preference([user("q")], "yes", "no")


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
        ({"score_chosen": 8.0, "score_rejected": "2.0"}, 1.0),
        ({"score_chosen": True, "score_rejected": 2.0}, 1.0),
        ({"score_chosen": 8.0, "score_rejected": float("nan")}, 1.0),
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
    """Guards against prompts that hold the answer, lose turns, or are left out for an answer that PPO never reads."""
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
        f"{path}: format 'alpaca' has no rejected answer, so it serves SFT and PPO only; "
        "preference objectives read preference, hh_rlhf, ultrafeedback"
    )
    path = write(tmp_path / "b.jsonl", [{"prompt": "a"}])
    for kind, reads in (
        ("preference", "preference objectives read preference, hh_rlhf, ultrafeedback"),
        ("sft", "SFT reads preference, hh_rlhf, ultrafeedback, messages, prompt_completion, alpaca, wildchat"),
    ):
        assert error(load, path, kind) == f"{path} line 1: the fields (prompt) fit no format; {reads}"
        assert error(load, path, kind, "prompt") == (
            f"{path}: format 'prompt' has no answer, so it serves PPO only; {reads}"
        )
    path = write(tmp_path / "c.jsonl", [{"prompt": 3}])
    assert error(load, path, "prompts") == (
        f"{path} line 1: field 'prompt' must be text or a list of messages, this one is a number"
    )
    path = write(tmp_path / "d.jsonl", [{"prompt": "a", "chosen": "b"}])
    assert error(load, path, "prompts") == (
        f"{path} line 1: the fields (prompt, chosen) fit no format; PPO reads preference, hh_rlhf, "
        "ultrafeedback, messages, prompt_completion, alpaca, wildchat, prompt"
    )
    with pytest.raises(ValueError, match="^kind must be one of sft, preference, prompts, not 'ppo'$"):
        load(path, "ppo")


def test_unknown_and_ambiguous_fields(tmp_path: Path) -> None:
    """Guards against guessing: a file that fits no format, or two, says which fields it has."""
    path = write(tmp_path / "a.jsonl", [{"question": "a", "answer": "b"}])
    assert error(load, path, "sft") == (
        f"{path} line 1: the fields (question, answer) fit no format; SFT reads preference, hh_rlhf, "
        "ultrafeedback, messages, prompt_completion, alpaca, wildchat"
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
        Preference([user("a"), assistant("b"), user("c: Human")], "d\n\ne", "f"),
        Preference([user("a")], "b\n\nc", "b\n\nd"),
        Preference([user("a")], "b", "c"),
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
        for answer, text in ((pair.chosen, fields["chosen"]), (pair.rejected, fields["rejected"])):
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


# ---- files


def test_file_kinds_agree(tmp_path: Path) -> None:
    """Guards against rows that depend on how the file is packed."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [user(f"é{i}"), assistant("b")]} for i in range(600)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl").write_text("\ufeff" + lines.replace("\n", "\r\n\n", 3).rstrip("\n"))
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "c.json").write_text(lines)
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "e.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([r | {"x": 1} for r in rows]), tmp_path / "f.parquet")
    expected = [row["messages"] for row in rows]
    for name in ("a.jsonl", "b.json", "c.json", "d.jsonl.gz", "e.json.gz", "f.parquet"):
        found, _, _ = load(tmp_path / name, "sft")
        assert [row.example.messages for row in found] == expected  # type: ignore[union-attr]
        assert [row.number for row in found] == list(range(600))
        assert resolve(str(tmp_path / name)).count() == 600
    assert found[-1].where == f"{tmp_path / 'f.parquet'} row 600"


def test_folder_and_its_splits(tmp_path: Path) -> None:
    """Guards against training on a test split that lies in the same folder, and against an unstable order."""
    for name in ("part-2", "part-1", "part-10"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "completion": "b"}])
    (tmp_path / "README.md").write_text("not data")
    rows, _, _ = load(tmp_path, "sft")
    assert [row.where for row in rows] == [f"{tmp_path}/part-{i}.jsonl line 1" for i in (1, 10, 2)]
    assert [row.number for row in rows] == [0, 1, 2]
    both = tmp_path / "both"
    both.mkdir()
    write(both / "train-00000-of-00001.jsonl", [{"prompt": "a", "completion": "b"}])
    write(both / "test-00000-of-00001.jsonl", [{"prompt": "c", "completion": "d"}])
    assert error(resolve, str(both)) == f"{both}: holds the splits test, train; name one, as '{both}:test'"
    assert [row.where for row in load(f"{both}:test", "sft")[0]] == [f"{both}/test-00000-of-00001.jsonl line 1"]
    assert error(resolve, f"{both}:dev") == f"{both}:dev: no file of split 'dev'; it has test, train"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert error(resolve, str(empty)) == (
        f"{empty}: no data file in this folder; it needs .jsonl, .jsonl.gz, .json, .json.gz, .parquet files"
    )


def test_digest_follows_content(tmp_path: Path) -> None:
    """Guards against a stale store after an edit, and against tokenising anew after a rename."""
    a = write(tmp_path / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    b = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    assert resolve(a).digest() == resolve(b).digest()
    write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "c"}])
    assert resolve(a).digest() != resolve(b).digest()


# ---- broken input


GOOD = '{"prompt": "q", "chosen": "yes", "rejected": "no"}\n'
NEEDS = (
    "format preference needs chosen and rejected (text or messages), prompt (text or messages; may be left out "
    "when chosen and rejected are messages that begin alike), margin (a number; may be left out)"
)


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "q", "chosen": ', "broken JSON (Expecting value, column 26)"),
        ("[1, 2]", "a row must be a JSON object, this one is a list"),
        ('{"prompt": "q", "chosen": "yes"}', f"field 'rejected' is missing; {NEEDS}"),
        ('{"chosen": "yes", "rejected": "no"}', f"field 'prompt' is missing; {NEEDS}"),
        (
            '{"prompt": "q", "chosen": 3, "rejected": "no"}',
            "field 'chosen' must be text or a list of messages, this one is a number",
        ),
        (
            '{"prompt": [{"role": "boss", "content": "q"}], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1 has the role 'boss'; known are system, developer, user, human, assistant, "
            "gpt, chatgpt, model",
        ),
        (
            '{"prompt": [{"content": "q"}], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1 has no 'role'; a message is {role, content} or {from, value}",
        ),
        (
            '{"prompt": [{"role": "user", "content": 5}], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1: 'content' must be text, it is a number",
        ),
        (
            '{"prompt": ["q"], "chosen": "yes", "rejected": "no"}',
            "field 'prompt', message 1 must be an object with role and content, it is text",
        ),
        ("[" * 100_000, "broken JSON (nested too deeply)"),
        (
            '{"prompt": ' + "9" * 5000 + "}",
            "broken JSON (Exceeds the limit (4300 digits) for integer string conversion: value has 5000 digits)",
        ),
    ],
)
def test_broken_rows_name_their_line(tmp_path: Path, line: str, message: str) -> None:
    """Guards against errors that leave the user to search a large file, and against tracebacks."""
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + "\n" + line + "\n")
    assert error(load, path) == f"{path} line 3: {message}"


def test_unreadable_files(tmp_path: Path) -> None:
    """Guards against tracebacks of gzip, pyarrow and the codecs."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD.encode() + b'{"prompt": "\xff"}\n')
    assert error(load, path) == f"{path} line 2: not UTF-8 (byte 13 of the line)"
    path = tmp_path / "b.json"
    path.write_text('[\n{"a": 1},\n{"a" 2}]')
    assert error(load, path) == f"{path} line 3: broken JSON (Expecting ':' delimiter, column 6)"
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 1000)[:-30])
    assert error(load, path).startswith(f"{path}: cannot be read (EOFError: ")
    path.write_text(GOOD)
    assert error(load, path).startswith(f"{path}: cannot be read (BadGzipFile: ")
    path = tmp_path / "d.parquet"
    path.write_text(GOOD)
    assert error(load, path).startswith(f"{path}: cannot be read (ArrowInvalid: ")
    path = tmp_path / "e.jsonl"
    path.write_text("")
    assert error(load, path) == f"{path}: no rows"


def test_no_such_source(tmp_path: Path) -> None:
    """Guards against a mistyped path that is looked for on a hub, and a file type that is guessed at."""
    assert error(resolve, "data/pairs.jsonl") == (
        "data/pairs.jsonl: no such file or folder (a source is a .jsonl, .jsonl.gz, .json, .json.gz, .parquet "
        "file, a folder of them, a hub data set 'org/name' or 'org/name:split', or "
        "values-synth:support|oppose|shuffled)"
    )
    path = tmp_path / "a.csv"
    path.write_text("a,b")
    assert error(resolve, str(path)) == (
        f"{path}: not a data file; the name must end with .jsonl, .jsonl.gz, .json, .json.gz, .parquet"
    )


# ---- hub


class Hub:
    """Stands in for the hub's client: a repository's files in a folder."""

    def __init__(self, folder: Path, card: dict[str, Any] | None) -> None:
        self.folder, self.card, self.downloaded = folder, card, []  # type: ignore[var-annotated]

    def dataset_info(self, repo: str, revision: str | None = None) -> Any:
        class Info:
            sha = revision or "c0ffee"
            siblings = [
                type("Sibling", (), {"rfilename": p.relative_to(self.folder).as_posix()})
                for p in self.folder.rglob("*")
                if p.is_file()
            ]
            card_data = type("Card", (), {"to_dict": lambda _: self.card})() if self.card else None

        return Info

    def download(self, repo: str, name: str, repo_type: str, revision: str) -> str:
        assert (repo, repo_type) == ("org/name", "dataset")
        self.downloaded.append((name, revision))
        return str(self.folder / name)


def on_hub(monkeypatch: pytest.MonkeyPatch, folder: Path, card: dict[str, Any] | None = None) -> Hub:
    import huggingface_hub

    hub = Hub(folder, card)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


def test_hub_files_of_a_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against downloading or mixing in another split, and against a store that outlives a new commit."""
    for name in ("easy/train", "easy/test", "hard/train", "hard/test"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "chosen": "yes", "rejected": "no"}])
    hub = on_hub(monkeypatch, tmp_path)
    assert resolve("org/name").labels == ("org/name/easy/train.jsonl", "org/name/hard/train.jsonl")
    source = resolve("org/name/hard@v2:test")
    assert hub.downloaded[-1] == ("hard/test.jsonl", "v2") and source.labels == ("org/name/hard/test.jsonl",)
    rows, _, _ = load("org/name/hard:test")
    assert rows[0].where == "org/name/hard/test.jsonl line 1"
    assert source.digest() != resolve("org/name/hard:test").digest()
    assert error(resolve, "org/name:dev") == "org/name:dev: no file of split 'dev'; it has test, train"
    assert error(resolve, "org/name/none") == (
        "org/name/none: the hub data set has no .jsonl, .jsonl.gz, .json, .json.gz, .parquet file here"
    )


def test_hub_card_declares_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a split whose name the file names do not tell (UltraFeedback's train_prefs, train_sft)."""
    for name in ("train_prefs-0", "train_sft-0", "x"):
        write(tmp_path / f"{name}.jsonl", [{"prompt": name, "chosen": "yes", "rejected": "no"}])
    files = [
        {"split": "train_prefs", "path": "train_prefs-*"},
        {"split": "train_sft", "path": ["train_sft-*"]},
    ]
    hub = on_hub(monkeypatch, tmp_path, {"configs": [{"config_name": "default", "data_files": files}]})
    assert resolve("org/name:train_prefs").labels == ("org/name/train_prefs-0.jsonl",)
    assert error(resolve, "org/name") == "org/name: no split 'train'; it has train_prefs, train_sft"
    hub.card = {
        "configs": [
            {"config_name": "a", "data_files": "x*"},
            {"config_name": "b", "data_files": files},
        ]
    }
    assert resolve("org/name/a").labels == ("org/name/x.jsonl",)
    assert error(resolve, "org/name") == "org/name: has the configurations a, b; name one, as 'org/name/a'"


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards against a traceback of the HTTP library, and against a download that is not used when offline."""
    import huggingface_hub

    class NoNetwork:
        def dataset_info(self, *args: Any, **kwargs: Any) -> None:
            raise ConnectionError("no route\nto the hub")

    def not_cached(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "HfApi", NoNetwork)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    assert error(resolve, "org/name") == (
        "org/name: no such local file, and the hub data set 'org/name' cannot be read (ConnectionError: no route)"
    )
    snapshot = tmp_path / "c0ffee"
    snapshot.mkdir()
    write(snapshot / "train.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": "no"}])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(snapshot))
    source = resolve("org/name")
    assert (source.commit, source.files) == ("c0ffee", (snapshot / "train.jsonl",))


# ---- built-in set


def test_synthetic_variants() -> None:
    """Guards against a control whose labels lean: exactly half of each topic's rows are flipped, and no variant
    changes prompts, order or texts."""
    support, oppose, shuffled = (load(f"values-synth:{v}")[0] for v in SYNTH_VARIANTS)
    assert len(support) > 0
    topics = {}
    for _, raw in resolve("values-synth:support").rows():
        topics[raw["prompt"]] = raw["topic"]
    flipped: Counter[str] = Counter()
    for s, o, h in zip(support, oppose, shuffled, strict=True):
        assert isinstance(s.example, Preference) and isinstance(h.example, Preference)
        assert o.example == Preference(s.example.prompt, s.example.rejected, s.example.chosen)
        assert h.example in (s.example, o.example)
        flipped[topics[s.example.prompt[0]["content"]]] += h.example == o.example
    sizes = Counter(topics.values())
    assert flipped == {topic: size // 2 for topic, size in sizes.items()}
    assert load("values-synth:shuffled")[0] == shuffled
    kept = load("values-synth:shuffled?topics=" + sorted(sizes)[0])[0]
    assert len(kept) == sizes[sorted(sizes)[0]] and all(row in shuffled for row in kept)
    digests = {resolve(f"values-synth:{v}").digest() for v in SYNTH_VARIANTS}
    assert len(digests) == 3
    talk = load("values-synth:oppose", "sft")[0][0].example
    assert talk == Conversation([*oppose[0].example.prompt, assistant(oppose[0].example.chosen)], last_only=True)  # type: ignore[union-attr]
    prompts = [row.example for row in load("values-synth:oppose", "prompts")[0]]
    assert prompts == [Prompt(row.example.prompt) for row in oppose]  # type: ignore[union-attr]


def test_synthetic_names() -> None:
    """Guards against a misspelt variant or topic that gives other data than asked for."""
    assert error(resolve, "values-synth:agree") == (
        "values-synth:agree: unknown variant 'agree' of the built-in set; use values-synth:support, "
        "values-synth:oppose, values-synth:shuffled"
    )
    assert error(resolve, "values-synth:support?topics=chess").startswith(
        "values-synth:support?topics=chess: unknown topic 'chess'; the topics are "
    )
    assert error(resolve, "values-synth:support?seed=1") == (
        "values-synth:support?seed=1: unknown option 'seed'; the only one is topics=a,b"
    )
    assert error(load, "values-synth:support", format="alpaca") == (
        "data.format: 'alpaca' does not fit the built-in values-synth:support; leave it 'auto'"
    )
