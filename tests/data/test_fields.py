"""Keys that mean something: honoured, refused by a line, or their rows dropped and counted; never passed over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from helpers.rows import assistant, error, load, one, system, user, write

from vdengine.data.examples import Conversation, Preference, Prompt
from vdengine.data.formats import Account, read
from vdengine.data.locate import resolve
from vdengine.data.meanings import MESSAGE, ROW

PAIR = {"prompt": "q", "chosen": "yes", "rejected": "no"}
TOLD = {"prompt": "q", "completion": "yes"}
ALPACA = {"instruction": "q", "output": "yes"}
CHAT = {"messages": [user("q"), assistant("yes")]}
SHARE = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "yes"}]}
HH = {"chosen": "\n\nHuman: q\n\nAssistant: yes", "rejected": "\n\nHuman: q\n\nAssistant: no"}
ULTRA = {"prompt": "q", "chosen": [user("q"), assistant("yes")], "rejected": [user("q"), assistant("no")]}
WILD = {"conversation": [user("q"), assistant("yes")]}
SPLIT = {"chosen": ULTRA["chosen"], "rejected": ULTRA["rejected"]}
PAIRS = [PAIR, HH, ULTRA, SPLIT]
ALL = [*PAIRS, TOLD, ALPACA, CHAT, SHARE, WILD]


def dropped(tmp_path: Path, row: dict[str, Any], kind: str = "sft") -> dict[str, int]:
    """The reasons why the row is dropped; a good row before it decides the format."""
    plain = {
        k: v for k, v in row.items() if k in ("prompt", "chosen", "rejected", "completion", "instruction", "output")
    }
    good = next((r for r in ALL if set(r) <= set(row)), plain)
    rows, reasons, _ = load(write(tmp_path / "d.jsonl", [good, row]), kind)
    assert [r.number for r in rows] == [0]
    return dict(reasons)


def told(row: dict[str, Any], **message: Any) -> dict[str, Any]:
    """The row with keys added to its last message."""
    key = next(k for k in ("messages", "conversations", "conversation", "chosen") if k in row)
    return row | {key: [*row[key][:-1], row[key][-1] | message]}


# ---- a system prompt


@pytest.mark.parametrize("row", ALL)
@pytest.mark.parametrize("key", ["system", "system_prompt", "System"])
def test_a_system_field_is_a_system_turn(tmp_path: Path, row: dict[str, Any], key: str) -> None:
    """Guards against a system prompt that some formats read and others pass over."""
    for kind in ("sft", "prompts", *(["preference"] if row in PAIRS else [])):
        example, _ = one(tmp_path, row | {key: "be terse"}, kind)
        messages = example.prompt if isinstance(example, Preference) else example.messages
        assert messages[:2] == [system("be terse"), user("q")], kind
        plain, _ = one(tmp_path, row | {key: " "}, kind)
        assert plain == one(tmp_path, row, kind)[0]


def test_system_prompts_that_disagree(tmp_path: Path) -> None:
    """Guards against one of two system prompts that wins in silence."""
    row = {"messages": [system("be  kind"), *CHAT["messages"]]}
    assert one(tmp_path, row | {"system": "be kind"}, "sft")[0].messages[0] == system("be  kind")
    assert dropped(tmp_path, row | {"system": "be terse"}) == {"two system prompts that differ": 1}
    assert dropped(tmp_path, PAIR | {"system": "a", "system_prompt": "b"}) == {"two system prompts that differ": 1}
    path = write(tmp_path / "a.jsonl", [PAIR | {"system": ["be kind"]}])
    assert error(load, path) == f"{path} line 1: field 'system' must be text, this one is a list"


# ---- what is not to be trained on


@pytest.mark.parametrize(
    "mark",
    [
        {"train": False}, {"training": False}, {"trainable": False}, {"is_train": 0}, {"loss": False}, {"weight": 0},
        {"weight": 0.0}, {"loss_mask": 0}, {"lossMask": False}, {"masked": True}, {"Train": False}, {"scored": False},
        {"train_on_turn": False}, {"ignore_loss": 1}, {"loss_weight": 0},
    ],
)  # fmt: skip
def test_turns_that_are_not_scored(tmp_path: Path, mark: dict[str, Any]) -> None:
    """Guards against an answer that the data says is bad, and is learned all the same; in every spelling in use."""
    for row in (CHAT, SHARE, WILD, ULTRA):
        assert dropped(tmp_path, told(row, **mark)) == {"marked as not to be trained on": 1}
    talk = [user("a"), assistant("b") | mark, user("c"), assistant("d")]
    unscored = assistant("b") | {"scored": False}
    assert one(tmp_path, {"messages": talk}, "sft")[0] == Conversation([user("a"), unscored, *talk[2:]])
    turned = [user("a"), assistant("b"), user("c"), assistant("d") | mark]
    assert one(tmp_path, {"messages": turned}, "sft")[0] == Conversation(turned[:2])  # nothing scored follows
    assert one(tmp_path, {"messages": talk}, "prompts")[0] == Prompt([user("a"), assistant("b"), user("c")])
    assert one(tmp_path, {"prompt": talk[:3], "completion": "d"}, "sft")[0].messages[1] == assistant("b")
    for row in (PAIR, TOLD, ALPACA, CHAT):
        assert dropped(tmp_path, row | mark) == {"marked as not to be trained on": 1}
        other = {k: type(v)(1 - v) for k, v in mark.items()}
        assert one(tmp_path, row | other, "sft") == one(tmp_path, row, "sft")
        assert one(tmp_path, row | dict.fromkeys(mark, None), "sft") == one(tmp_path, row, "sft")


@pytest.mark.parametrize("key", ["train", "weight", "loss", "masked", "loss_mask"])
@pytest.mark.parametrize("value", [0.5, 2, -1, "false", "0", [0], {"a": 1}, math.nan])
def test_marks_that_are_neither_yes_nor_no(tmp_path: Path, key: str, value: Any) -> None:
    """Guards against a weight that is read as 1, and "false" that is true."""
    path = write(tmp_path / "a.jsonl", [told(CHAT, **{key: value})])
    assert f"message 2: '{key}' must be true or false (1 or 0), it is {value!r}" in error(load, path, "sft")
    path = write(tmp_path / "b.jsonl", [TOLD | {key: value}])
    assert f"line 1: {'field ' if value == [0] else ''}'{key}' " in error(load, path, "sft")


def test_marks_that_cannot_be_honoured(tmp_path: Path) -> None:
    """Guards against a user turn that the data wants trained, contradictions, and masks that are read both ways."""
    rows = {
        "message 1 asks for a user turn to be trained on; only assistant turns are": {
            "messages": [user("q") | {"train": True}, assistant("yes")]
        },
        "train and masked contradict each other": told(CHAT, train=True, masked=True),
        "message 2 has 'mask', which means one thing here and another there": told(CHAT, mask=True),
        "field 'assistant_masks' says what is trained on in a way that is not read": CHAT | {"assistant_masks": [1]},
        "field 'mask' says what is trained on in a way": CHAT | {"mask": "User"},
        "field 'loss_mask' must have one 0 or 1 for each of 2 messages": CHAT | {"loss_mask": [0]},
        "field 'loss_mask' is a list, which marks messages": PAIR | {"loss_mask": [0, 1]},
    }
    for message, row in rows.items():
        assert message in error(load, write(tmp_path / "a.jsonl", [row]), "sft")


def test_a_list_of_marks(tmp_path: Path) -> None:
    """Guards LLaMA-Factory's loss_mask, one value a message."""
    talk = [user("a"), assistant("b"), user("c"), assistant("d")]
    found, _ = one(tmp_path, {"messages": talk, "loss_mask": [1, 0, 0, True]}, "sft")
    assert [m.get("scored", True) for m in found.messages] == [True, False, True, True]
    assert dropped(tmp_path, {"messages": talk, "loss_mask": [0] * 4}) == {"marked as not to be trained on": 1}


def test_labels(tmp_path: Path) -> None:
    """Guards KTO's rows: an answer that is not wanted is never learned by SFT."""
    for key in ("label", "labels", "kto_tag"):
        for row in (TOLD, CHAT, ALPACA):
            assert dropped(tmp_path, row | {key: False}) == {f"{key} is false: an answer that is not wanted": 1}
            assert one(tmp_path, row | {key: True}, "sft") == one(tmp_path, row, "sft")
            assert one(tmp_path, row | {key: 1.0}, "sft") == one(tmp_path, row, "sft")
    for value in ("good", 2, [1, 2], "false"):
        path = write(tmp_path / "a.jsonl", [TOLD | {"label": value}])
        assert f"field 'label' must be true or false (whether the answer is a wanted one), this one is {value!r}" in (
            error(load, path, "sft")
        )
    assert "field 'label' must be true, this one is False" in error(
        load, write(tmp_path / "b.jsonl", [PAIR | {"label": False}])
    )
    assert one(tmp_path, {"prompt": "q", "label": "42"}, "prompts")[0] == Prompt([user("q")])  # of an answer


# ---- thinking


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_thinking(tmp_path: Path, key: str) -> None:
    """Guards against an answer that is learned without its thinking, and pairs that differ only there."""
    thoughtful = assistant("yes") | {"reasoning_content": "hm"}
    for row in (CHAT, SHARE, WILD):
        assert one(tmp_path, told(row, **{key: "hm"}), "sft")[0] == Conversation([user("q"), thoughtful])
    for row in (TOLD, ALPACA):
        assert one(tmp_path, row | {key: "hm"}, "sft")[0] == Conversation([user("q"), thoughtful], last_only=True)
    sides = [[assistant("yes") | {key: t}] for t in ("hm", "no, hm")]
    found, _ = one(tmp_path, {"prompt": "q", "chosen": sides[0], "rejected": sides[1]})
    assert found == Preference([user("q")], thoughtful, assistant("yes") | {"reasoning_content": "no, hm"})
    part = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
    parts = [part, {"type": "text", "text": "yes", "image_url": None}]
    assert one(tmp_path, told(CHAT, content=parts), "sft")[0] == Conversation([user("q"), thoughtful])
    for row in (PAIR, CHAT):
        assert f"field '{key}' does not say which answer it belongs to" in error(
            load, write(tmp_path / "a.jsonl", [row | {key: "hm"}]), "sft"
        )
    assert dropped(tmp_path, told(CHAT, **{key: 3})) == {"reasoning that is not text": 1}
    assert dropped(tmp_path, {"messages": [user("q") | {key: "hm"}, assistant("a")]}) == {
        "reasoning in a turn that is not the assistant's": 1
    }
    two = told(CHAT, **{key: "hm", "reasoning_text": "ah"})
    assert "two fields of thinking that differ" in error(load, write(tmp_path / "a.jsonl", [two]), "sft")


# ---- margins


@pytest.mark.parametrize("row", PAIRS)
def test_scores(tmp_path: Path, row: dict[str, Any]) -> None:
    """Guards scores by their other names, in every format of pairs, and two that say different things."""
    for better, worse in (
        ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"),
    ):  # fmt: skip
        assert one(tmp_path, row | {better: 8, worse: 2.5})[0].margin == 5.5
        for bad in ("8.0", True, math.nan, "N/A", 10**400, [1]):
            assert f"field '{better}' must be a finite number" in error(
                load, write(tmp_path / "a.jsonl", [row | {better: bad, worse: 2}])
            )
    assert one(tmp_path, row | {"score_chosen": 3, "score_rejected": 1, "margin": 2})[0].margin == 2
    path = write(tmp_path / "a.jsonl", [row | {"score_chosen": 3, "score_rejected": 1, "margin": 1}])
    assert error(load, path) == (
        f"{path} line 1: margin and score_chosen less score_rejected say different margins: 1, 2"
    )
    path, account = write(tmp_path / "b.jsonl", [row | {"score_chosen": 3}]), Account()
    _, reasons, format = load(path)
    (found,) = read(resolve(path), format, "preference", reasons, account)
    assert found.example.margin == 1.0  # type: ignore[union-attr]
    assert account.noted == {"margin 1: only one of score_chosen and score_rejected is there": 1}


# ---- more than text, another rendering


@pytest.mark.parametrize("row", ALL)
def test_rows_that_need_more_than_text(tmp_path: Path, row: dict[str, Any]) -> None:
    """Guards against answers that are learned without the tools or images that they speak of."""
    tool = [{"type": "function", "function": {"name": "f"}}]
    for key, value, reason in (
        ("tools", tool, "uses tools"),
        ("tools", '[{"name": "f"}]', "uses tools"),
        ("functions", tool, "uses tools"),
        ("images", ["a.png"], "has images, audio or video"),
        ("image", {"bytes": "x", "path": None}, "has images, audio or video"),
        ("videos", ["a"], "has images, audio or video"),
        ("audios", ["a"], "has images, audio or video"),
    ):
        assert dropped(tmp_path, row | {key: value}) == {reason: 1}
    nothing = {"tools": "[]", "functions": [], "images": None, "image": {"bytes": None, "path": None}, "audios": [""]}
    assert one(tmp_path, row | nothing, "sft") == one(tmp_path, row, "sft")
    for key in ("chat_template", "chat_template_kwargs", "input_ids", "add_generation_prompt", "prefix"):
        path = write(tmp_path / "a.jsonl", [row | {key: {"enable_thinking": True}}])
        assert error(load, path, "sft").startswith(f"{path} line 1: field '{key}' ")


def test_messages_of_more_than_text(tmp_path: Path) -> None:
    """Guards the same for keys of single messages; and answers that are only begun, or were refused elsewhere."""
    for keys, reason in (
        ({"tool_calls": [{"name": "f"}]}, "uses tools"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "uses tools"),
        ({"tool_call_id": "1"}, "uses tools"),
        ({"images": ["a"]}, "has images, audio or video"),
        ({"audio": {"id": "x"}}, "has images, audio or video"),
        ({"prefix": True}, "an answer that is only begun"),
        ({"eot": False}, "an answer that is only begun"),
        ({"refusal": "I cannot", "content": None}, "a refusal beside the content"),
        ({"channel": "analysis"}, "a turn of another channel than final"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "content that is not text"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "image"}]}, "content that is not text"),
    ):
        assert dropped(tmp_path, told(CHAT, **keys)) == {reason: 1}, keys
    nothing = {
        "tool_calls": [], "function_call": {"name": None, "arguments": None}, "prefix": False, "refusal": None,
        "channel": "final", "images": [], "train": None, "reasoning_content": "", "name": "",
    }  # fmt: skip
    assert one(tmp_path, told(CHAT, **nothing), "sft") == one(tmp_path, CHAT, "sft")
    calls = {"messages": [user("q"), {"role": "assistant", "tool_calls": [{"name": "f"}]}, assistant("yes")]}
    assert dropped(tmp_path, calls) == {"uses tools": 1}
    named = {"messages": [user("q") | {"name": "ann"}, assistant("yes")]}
    assert one(tmp_path, named, "sft")[0] == Conversation(named["messages"])


# ---- values, not presence


UNION = {
    "prompt": None, "chosen": None, "rejected": None, "completion": None, "messages": None, "conversations": None,
    "conversation": None, "instruction": None, "input": None, "output": None, "system": None, "tools": None,
    "images": [], "label": None, "score_chosen": None, "history": [], "margin": None,
}  # fmt: skip


@pytest.mark.parametrize("row", ALL)
@pytest.mark.parametrize("nothing", [None, "", []])
def test_null_filled_unions(tmp_path: Path, row: dict[str, Any], nothing: Any) -> None:
    """Guards merged data sets, whose rows have all columns and nulls in most: what is null is not there."""
    filled = {key: row.get(key, nothing) for key in UNION}
    kind = "preference" if row in PAIRS else "sft"
    assert one(tmp_path, filled, kind) == one(tmp_path, row, kind)
    rows, _, _ = load(write(tmp_path / "a.jsonl", [dict.fromkeys(UNION, nothing), filled]), kind)
    assert [found.number for found in rows] == [1]


def test_null_filled_messages(tmp_path: Path) -> None:
    """Guards messages of two schemas in one list."""
    share = [{"from": m["role"], "value": m["content"], "role": None, "content": None} for m in CHAT["messages"]]
    plain = [{"from": "", "value": None, **m, "tool_calls": None} for m in CHAT["messages"]]
    both = [{"from": f, "value": m["content"], **m} for f, m in zip(("human", "gpt"), CHAT["messages"], strict=True)]
    expected = Conversation(CHAT["messages"])
    for messages in (share, plain, both, [*share, {"role": None, "content": None}]):
        assert one(tmp_path, {"messages": messages}, "sft")[0] == expected
        assert one(tmp_path, {"conversations": messages, "messages": None}, "sft")[0] == expected
    for keys, message in (
        ({"value": "other"}, "message 2 has 'content' and 'value', and they differ"),
        ({"from": "human"}, "message 2 has 'role' and 'from', and they differ"),
    ):
        assert message in error(load, write(tmp_path / "a.jsonl", [told(CHAT, **keys)]), "sft")
    path = write(tmp_path / "b.jsonl", [{"messages": [{"role": None, "content": "q"}]}])
    assert "message 1 has no 'role'" in error(load, path, "sft")
    assert dropped(tmp_path, PAIR | {"rejected": None}, "preference") == {"no 'rejected'": 1}


# ---- nothing is passed over


def test_no_known_key_is_passed_over(tmp_path: Path) -> None:
    """Guards the lists: a row with any key that means something is read otherwise, dropped or refused; never as if the
    key were not there."""
    seen: list[str] = []
    for table, wrap in ((ROW, lambda key, v: TOLD | {key: v}), (MESSAGE, lambda key, v: told(CHAT, **{key: v}))):
        for meaning, keys in table.items():
            for key in keys.split():
                if meaning in ("content", "topic", "margin", "scores"):  # above; a margin needs a pair
                    continue
                path = write(tmp_path / "a.jsonl", [wrap(key, "something")])
                try:
                    rows, reasons, _ = load(path, "sft")
                except ValueError:
                    continue
                plain = one(tmp_path, TOLD if table is ROW else CHAT, "sft")[0]
                if not reasons and rows[0].example == plain:
                    seen.append(f"{meaning}: {key}")
    assert not seen


def test_unknown_keys_are_named(tmp_path: Path) -> None:
    """Guards the list of what was not read: names of columns and of keys in messages, once each."""
    rows = [CHAT | {"id": i, "source": "", "output": "yes"} for i in range(3)]
    rows.append({"messages": [user("q") | {"toxic": False}, assistant("yes")]})
    path, account = write(tmp_path / "a.jsonl", rows), Account()
    _, reasons, format = load(path, "sft", "messages")
    assert len(list(read(resolve(path), format, "sft", reasons, account))) == 4
    assert list(account.unread) == ["output", "id", "messages.toxic"]
