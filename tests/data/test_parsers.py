"""The question of a pair or an answer, read once however a row repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.rows import assistant, error, load, one, system, user, write

from vdengine.data.examples import Conversation, Preference

YES, NO, Q, S = assistant("yes"), assistant("no"), user("Why?"), system("s")
TALK = [user("a"), assistant("b"), Q]
UNFIT = "the prompt is not what the answers follow"


@pytest.mark.parametrize(
    ("prompt", "before", "expected"),
    [
        ("Why?", [], [Q]),
        ("Why?", [Q], [Q]),
        ("Why? ", [Q], [user("Why? ")]),
        ("Why?", [user(" Why?\n")], [Q]),
        ([S, Q], [Q], [S, Q]),
        ([S, Q], [S, Q], [S, Q]),
        ([S, Q], [S, user("Why? ")], [S, Q]),
        ("Why?", [S, Q], [S, Q]),
        ([Q], TALK, TALK),
        (TALK, [Q], TALK),
        (TALK, TALK, TALK),
        ([S, user("a")], TALK, [S, *TALK]),
        ("a", TALK, TALK),
        ([S], [Q], [S, Q]),
        ([S, *TALK[:2]], [Q], [S, *TALK]),
        ("other", [Q], UNFIT),
        ([S, user("other")], [Q], UNFIT),
        ([S, Q], [system("t"), Q], UNFIT),
        ([Q], [S, user("other")], UNFIT),
    ],
)
def test_a_question_stands_once(tmp_path: Path, prompt: Any, before: list[Any], expected: Any) -> None:
    """Guards against a question that the model reads twice, because a row gives it in its prompt and in its answers;
    and against two questions made one."""
    good = {"prompt": "g", "chosen": [YES], "rejected": [NO]}
    pair = {"prompt": prompt, "chosen": [*before, YES], "rejected": [*before, NO]}
    rows, dropped, _ = load(write(tmp_path / "a.jsonl", [good, pair]), format="preference")
    told, _, _ = load(write(tmp_path / "b.jsonl", [{"prompt": prompt, "completion": [*before, YES]}]), "sft")
    if expected == UNFIT:
        assert len(rows) == 1 and dropped == {UNFIT: 1} and told == []
        return
    assert rows[1].example == Preference(expected, YES, NO)
    if sum(m["role"] == "assistant" for m in expected) == sum(m["role"] == "assistant" for m in prompt if m in TALK):
        assert told[0].example == Conversation([*expected, YES], last_only=True)
    if isinstance(prompt, str) and before:
        ultra, dropped, format = load(write(tmp_path / "c.jsonl", [pair]))
        assert format == "ultrafeedback" and ultra[0].example == Preference([*before], YES, NO)


def test_only_one_side_repeats_the_question(tmp_path: Path) -> None:
    """Guards against two sides that would follow different words."""
    row = {"prompt": [S, Q], "chosen": [Q, YES], "rejected": "no"}
    assert one(tmp_path, row)[0] == Preference([S, Q], YES, NO)


def test_a_prompt_that_the_messages_do_not_have(tmp_path: Path) -> None:
    """Guards UltraFeedback's prompt, which repeats a turn, against being ignored where it does not."""
    pair = {"chosen": [Q, YES], "rejected": [Q, NO]}
    _, dropped, _ = load(write(tmp_path / "a.jsonl", [{"prompt": "other"} | pair, {"prompt": "Why?"} | pair]))
    assert dropped == {UNFIT: 1}


HUMAN = "\n\nHuman: Why?\n\nAssistant:"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": HUMAN, "chosen": " yes", "rejected": " no"},
        {"prompt": HUMAN, "chosen": HUMAN + " yes", "rejected": HUMAN + " no"},
        {"prompt": "Why?", "chosen": HUMAN + " yes", "rejected": HUMAN + " no"},
    ],
)
def test_transcripts_beside_a_prompt(tmp_path: Path, row: dict[str, Any]) -> None:
    """Guards HH-RLHF with a column of prompts: no speaker's name, and no question twice, reaches the model."""
    found = one(tmp_path, row)[0]
    assert found.prompt == [Q] and [m["content"].strip() for m in (found.chosen, found.rejected)] == ["yes", "no"]


def test_answers_that_repeat_the_prompt_as_text(tmp_path: Path) -> None:
    """Guards reward-model files, whose answers are the whole text, of both sides or one, and the same in SFT; answers
    that echo a word are kept."""
    rows = [
        {"prompt": "Why?", "chosen": "Why?\n\nyes", "rejected": "Why? \nno"},
        {"prompt": "Hello", "chosen": "Hello there", "rejected": "Hello to you"},
        {"prompt": "Why?", "chosen": "Why?\nyes", "rejected": "no"},
    ]
    kept, dropped, _ = load(write(tmp_path / "a.jsonl", rows))
    assert [row.number for row in kept] == [1] and dropped == {"an answer repeats the prompt as text": 2}
    told = [{"prompt": "Why?", "completion": "Why?\nyes"}, {"prompt": "Hello", "completion": "Hello there"}]
    kept, dropped, _ = load(write(tmp_path / "b.jsonl", told), "sft")
    assert [row.number for row in kept] == [1] and dropped == {"an answer repeats the prompt as text": 1}


SHARE = [{"from": "human", "value": "Why?"}]
GPT = [{"from": "gpt", "value": "yes"}, {"from": "gpt", "value": "no"}]


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"conversations": SHARE, "chosen": GPT[0], "rejected": GPT[1]}, [Q]),
        ({"conversations": SHARE, "chosen": GPT[:1], "rejected": GPT[1:]}, [Q]),
        ({"conversations": [{"from": "System", "value": "s"}, *SHARE], "chosen": GPT[0], "rejected": GPT[1]}, [S, Q]),
        ({"messages": TALK, "chosen": "yes", "rejected": "no"}, TALK),
        ({"messages": [Q], "chosen": YES, "rejected": NO, "system": "s"}, [S, Q]),
        ({"instruction": "Why?", "chosen": "yes", "rejected": "no"}, [Q]),
        ({"instruction": "Why", "input": "x", "chosen": [YES], "rejected": [NO]}, [user("Why\n\nx")]),
        ({"instruction": "Why?", "history": [["a", "b"]], "chosen": "yes", "rejected": "no"}, TALK),
        ({"instruction": "Why?", "chosen": [Q, YES], "rejected": [Q, NO]}, [Q]),
    ],
)
def test_pairs_of_llama_factory(tmp_path: Path, row: dict[str, Any], question: Any) -> None:
    """Guards pairs whose prompt is a conversation, or instruction and input, against "empty prompt"."""
    assert one(tmp_path, row) == (Preference(question, YES, NO), "preference")
    assert one(tmp_path, row, "sft")[0] == Conversation([*question, YES], last_only=True)
    assert one(tmp_path, row, "prompts")[0].messages == question


def test_pairs_beside_a_whole_conversation(tmp_path: Path) -> None:
    """Guards against one of two answers that wins in silence; and the renames of other tools' pairs."""
    for chosen, rejected in (("yes", "no"), ([YES], [NO])):
        path = write(
            tmp_path / "a.jsonl", [{"messages": [Q, assistant("old")], "chosen": chosen, "rejected": rejected}]
        )
        assert "fit several formats; set data.format: preference, messages" in error(load, path, "sft")
        assert "field 'messages' ends with an answer, beside 'chosen' and 'rejected'" in error(load, path)
    swift = {"messages": [Q, YES], "rejected_response": "no"}
    assert "'rejected_response' is one answer of a pair" in error(load, write(tmp_path / "b.jsonl", [swift]), "sft")
    openai = {"input": {"messages": [Q]}, "preferred_output": [YES], "non_preferred_output": [NO]}
    for row, renames in (
        (
            openai,
            ("'input.messages' to 'prompt'", "'preferred_output' to 'chosen'", "'non_preferred_output' to 'rejected'"),
        ),
        (
            {"chosen_conversations": [Q, YES], "rejected_conversations": [Q, NO]},
            ("'chosen_conversations' to 'chosen'",),
        ),
    ):
        message = error(load, write(tmp_path / "c.jsonl", [row]))
        assert all(f"rename {rename}" in message for rename in renames)


def test_names_of_roles(tmp_path: Path) -> None:
    """Guards capitals, names of other tools, and pandas' null beside the role that is there."""
    for asks, answers in (("User", "Assistant"), ("prompter", "AI"), ("HUMAN", "Chatbot"), ("human ", "GPT")):
        row = {"messages": [{"role": asks, "content": "Why?"}, {"role": answers, "content": "yes"}]}
        assert one(tmp_path, row, "sft")[0] == Conversation([Q, YES])
    none = {"role": float("nan"), "content": float("nan")}
    row = {"conversations": [SHARE[0] | none, GPT[0] | none]}
    assert one(tmp_path, row, "sft")[0] == Conversation([Q, YES])
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "critic", "content": "q"}]}])
    assert error(load, path, "sft").endswith("message 1 has the role 'critic'; write system, user or assistant")


def test_history_and_input(tmp_path: Path) -> None:
    """Guards the turns before a question, in every format whose question is text, and an input that none but alpaca
    reads."""
    for row in ({"prompt": "Why?", "completion": "yes"}, {"instruction": "Why?", "output": "yes"}):
        for history in ([["a", "b"]], TALK[:2]):
            assert one(tmp_path, row | {"history": history}, "sft")[0].messages == [*TALK, YES]
    pair = {"prompt": "Why?", "chosen": "yes", "rejected": "no"}
    assert one(tmp_path, pair | {"history": [["a", "b"]]})[0] == Preference(TALK, YES, NO)
    for row, message in (
        (pair | {"history": [["a"]]}, "field 'history' must be a list of [instruction, output] text pairs"),
        (pair | {"history": "a"}, "field 'history' must be a list of [instruction, output] text pairs"),
        (pair | {"prompt": [Q], "history": [["a", "b"]]}, "field 'history' stands beside messages"),
        (pair | {"input": "x"}, "field 'input' stands beside 'prompt'"),
    ):
        assert message in error(load, write(tmp_path / "a.jsonl", [row]))
    chat = {"messages": [Q, YES], "history": [["a", "b"]]}
    assert "field 'history' stands beside messages" in error(load, write(tmp_path / "a.jsonl", [chat]), "sft")
