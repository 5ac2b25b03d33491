"""What the words of a key say: spellings that are on no list, and columns of public data sets that say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.public_rows import PUBLIC
from helpers.rows import assistant, error, load, one, user, write

from vdengine.data.examples import Conversation, Preference
from vdengine.data.meanings import message_meaning, row_meaning
from vdengine.data.words import both_sides, guess_message, guess_row, side, words

PAIR = {"prompt": "q", "chosen": "yes", "rejected": "no"}
TOLD = {"prompt": "q", "completion": "yes"}
CHAT = {"messages": [user("q"), assistant("yes")]}


def refused(tmp_path: Path, row: dict[str, Any], kind: str = "sft") -> str:
    return error(load, write(tmp_path / "a.jsonl", [row]), kind)


def test_words() -> None:
    """Guards the spellings of one key: snake, camel, dashes, capitals, plurals, and words run together."""
    for key in ("train_on_turns", "trainOnTurns", "TrainOnTurns", "train-on-turn", "TRAIN_ON_TURN", "trainonturn"):
        assert words(key) == ("train", "on", "turn"), key
    assert words("KTOLabel") == ("kto", "label") and words("thinking_trajectories") == ("thinking", "trajectory")
    assert words("constraints") == ("constraint",) and words("loss") == ("loss",) and words("") == ()
    assert [side(k) for k in ("chosen", "rm_score_rejected", "non_preferred_output", "score", "chosen_rejected")] == [
        0, 1, 1, None, None,
    ]  # fmt: skip
    assert both_sides("rmScoreChosen")[0] == "rmScoreChosen"
    assert both_sides("rejected-rating") == ("chosen-rating", "rejected-rating")


@pytest.mark.parametrize(
    ("meaning", "keys"),
    [
        (
            "mark",
            "do_train trainOnInputs roles_to_train mask_history exclude_from_loss noGrad importance chosen_weight",
        ),
        ("scores", "chosen_ratings rejected_rewards rm_score_chosen chosen_avg_score winner_score"),
        ("margin", "margins score_diff reward-margin rating_gap preferenceDifference"),
        ("ratings", "scores rating all_rm_scores"),
        ("thoughts", "chosen_reasoning reasoning_rejected chosenThinkingContent rejected_cot"),
        ("reasoning", "think cot chain_of_thought Complex_CoT reasoning_trace deepseek_reasoning scratchpad"),
        ("perhaps", "rationale analysis"),
        ("system", "sys system_msg sysPrompt system_instruction"),
        ("beside", "persona preamble developer context meta_prompt bot_persona"),
        ("answer", "rejected_response chosen_conversations rejected_messages non_preferred_output"),
        ("verdict", "winner tie is_tie swapped preference_strength overall_preference"),
        ("wanted", "is_chosen is_good desired kto_label completion_label preferred"),
        ("media", "image_urls image_path img video_file"),
        (None, "id source train_source cot_type reasoning_tokens chosen_model is_reasoning_complete constraints lang"),
    ],
)
def test_guesses(meaning: str | None, keys: str) -> None:
    """Guards each kind of words, not single keys."""
    assert {key: guess_row(key) for key in keys.split()} == dict.fromkeys(keys.split(), meaning)
    assert meaning is None or all(row_meaning(key) for key in keys.split())


def test_guesses_of_messages() -> None:
    """Guards the same in messages."""
    for key in ("skip", "isTarget", "loss_masked", "with_grad", "train_turn", "ignored", "supervise"):
        assert guess_message(key) == "mark"
    assert [message_meaning(k) for k in ("cot", "score", "toxic", "context")] == [
        "reasoning",
        "ratings",
        "harmless",
        None,
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_data_is_read(tmp_path: Path, name: str) -> None:
    """Guards against guesses that refuse or drop what is in wide use."""
    kind, row = PUBLIC[name]
    rows, dropped, _ = load(write(tmp_path / "a.jsonl", [row]), kind)
    assert len(rows) == 1 and not dropped
    example = rows[0].example
    assert not any("reasoning_content" in m for m in getattr(example, "messages", []))


@pytest.mark.parametrize(
    "mark",
    [
        {"ignore": True}, {"skip": 1}, {"do_train": False}, {"supervise": 0}, {"is_supervised": False},
        {"no_grad": True},
        {"train_on_reasoning": False}, {"include_in_loss": False}, {"learnable": False}, {"is_target": False},
        {"train_on_assistant": False},
        {"mask_out": True}, {"masking": "user"}, {"context": True}, {"is_context": 1}, {"unheard_of": "false"},
        {"loss_masked": [1, 0]}, {"lossmasked": 0}, {"importance": 0.5},
    ],
)  # fmt: skip
def test_marks_of_messages_that_are_not_read(tmp_path: Path, mark: dict[str, Any]) -> None:
    """Guards against a turn that the data says not to learn from, in a spelling that nobody listed."""
    (key,) = mark
    message = refused(tmp_path, {"messages": [user("q"), assistant("yes") | mark]})
    assert f"message 2: '{key}'" in message and '"train": ' in message
    assert one(tmp_path, {"messages": [user("q"), assistant("yes") | {key: None}]}, "sft") == one(tmp_path, CHAT, "sft")


@pytest.mark.parametrize(
    "mark",
    [
        {"ignore": True}, {"exclude": 1}, {"deleted": "true"}, {"keep": False}, {"train_on_turns": [1, 0]},
        {"train_on_inputs": True}, {"train_on_prompt": False}, {"roles_to_train": ["user"]}, {"mask_history": True},
        {"importance_weight": 0.2}, {"do_mask": 1}, {"skip_row": True},
        {"train_idx": [1]}, {"mask_thinking": True}, {"bad": True}, {"finetune": False},
    ],
)  # fmt: skip
def test_marks_of_rows_that_are_not_read(tmp_path: Path, mark: dict[str, Any]) -> None:
    """Guards the same for rows, of all formats."""
    for row, kind in ((CHAT, "sft"), (TOLD, "sft"), (PAIR, "preference"), ({"prompt": "q"}, "prompts")):
        assert "seems to say what is trained on" in refused(tmp_path, row | mark, kind)


@pytest.mark.parametrize(
    "key", [{"tie": True}, {"swap": 1}, {"winner": "b"}, {"preferred": "rejected"}, {"preference_strength": -1},
            {"overall_preference": -2}, {"is_chosen": False}, {"chosen_weight": 0}],
)  # fmt: skip
def test_verdicts_beside_a_pair(tmp_path: Path, key: dict[str, Any]) -> None:
    """Guards against a pair that the row itself contradicts."""
    assert f"field '{next(iter(key))}'" in refused(tmp_path, PAIR | key, "preference")
    agreeing = {"tie": False, "winner": "chosen", "preferred": "chosen", "is_chosen": True, "chosen_weight": 1}
    assert one(tmp_path, PAIR | agreeing)[0] == Preference([user("q")], assistant("yes"), assistant("no"))


def test_wanted_answers(tmp_path: Path) -> None:
    """Guards KTO's label by its other names: an answer that is not wanted is dropped, and counted."""
    for key in ("is_chosen", "is_good", "desired", "kto_label", "completion_label", "isDesirable", "valid", "chosen"):
        rows, dropped, _ = load(write(tmp_path / "a.jsonl", [TOLD | {key: True}, TOLD | {key: False}]), "sft")
        assert len(rows) == 1 and sum(dropped.values()) == 1, key


# ---- scores, thinking, system prompts


@pytest.mark.parametrize(
    ("scores", "margin"),
    [
        ({"chosen_ratings": 5, "rejected_ratings": 1}, 4), ({"rm_score_chosen": 3, "rm_score_rejected": 1}, 2),
        ({"chosen_rm_score": 3, "rejected_rm_score": 1}, 2), ({"rating": {"chosen": 8, "rejected": 1}}, 7),
        ({"winner_reward": 2, "loser_reward": 3}, -1), ({"margins": 3}, 3), ({"score_diff": 3}, 3),
        ({"reward_margin": 2.5}, 2.5), ({"scores": [8, 1]}, 1), ({"score": 4}, 1),
    ],
)  # fmt: skip
def test_margins_by_other_names(tmp_path: Path, scores: dict[str, Any], margin: float) -> None:
    """Guards against margins that become 1 because of a plural."""
    assert one(tmp_path, PAIR | scores)[0].margin == margin
    for key in ("chosen_scores", "margins"):
        assert f"field '{key}' must be a finite number" in refused(tmp_path, PAIR | {key: [8]}, "preference")


def test_scores_in_messages(tmp_path: Path) -> None:
    """Guards scores that stand in the answers."""
    row = {"prompt": "q", "chosen": [assistant("yes") | {"score": 3}], "rejected": [assistant("no") | {"score": 1}]}
    assert "message 1: 'score' is not read in a message" in refused(tmp_path, row, "preference")


@pytest.mark.parametrize("key", ["think", "cot", "chain_of_thought", "reasoning_steps", "thinking_trajectories", "CoT"])
def test_thinking_by_other_names(tmp_path: Path, key: str) -> None:
    """Guards against an answer that is learned after an empty think block; texts of nothing are none."""
    thoughtful = assistant("yes") | {"reasoning_content": "hm"}
    for value in ("hm", ["hm"]):
        assert one(tmp_path, TOLD | {key: value}, "sft")[0].messages[1] == thoughtful
    talk = {"messages": [user("q"), assistant("yes") | {key: "hm"}]}
    assert one(tmp_path, talk, "sft")[0] == Conversation([user("q"), thoughtful])
    assert "does not say which answer" in refused(tmp_path, CHAT | {key: "hm"})
    for value in (False, "None", "nan", float("nan")):
        assert one(tmp_path, TOLD | {key: value}, "sft") == one(tmp_path, TOLD, "sft")
    for sided, of in ((f"chosen_{key}", "chosen"), (f"{key}-rejected", "rejected")):
        pair = one(tmp_path, PAIR | {sided: "hm"})[0]
        assert [m["role"] for m in (pair.chosen, pair.rejected) if "reasoning_content" in m] == ["assistant"]
        assert getattr(pair, of)["reasoning_content"] == "hm"


def test_what_may_be_thinking(tmp_path: Path) -> None:
    """Guards a rationale, which is the model's or the labeller's: of one answer it is refused, of a pair a note."""
    for key in ("rationale", "analysis"):
        assert "may be the thinking before the answer" in refused(tmp_path, TOLD | {key: "hm"})
        talk = {"messages": [user("q"), assistant("yes") | {key: "hm"}]}
        assert "may be the thinking before the answer" in refused(tmp_path, talk)
        assert one(tmp_path, PAIR | {key: "hm"}) == one(tmp_path, PAIR)


def test_system_prompts_by_other_names(tmp_path: Path) -> None:
    """Guards against an answer that is learned without what it was told."""
    for key in ("sys", "system_msg", "sys_prompt", "systemText"):
        assert one(tmp_path, PAIR | {key: "be terse"})[0].prompt[0] == {"role": "system", "content": "be terse"}
    for key in ("system", "sys"):
        for nothing in ("null", "None", "nan", float("nan")):
            assert one(tmp_path, PAIR | {key: nothing}) == one(tmp_path, PAIR)
    for key in ("persona", "preamble", "developer", "context", "instruction", "input", "completion"):
        assert f"field '{key}' stands beside" in refused(tmp_path, PAIR | {key: "be terse"}, "preference")
    for key in ("context", "instruction", "input"):
        assert f"field '{key}' stands beside" in refused(tmp_path, CHAT | {key: "be terse"})
        assert one(tmp_path, {"messages": [user("q, be  terse"), assistant("yes")]} | {key: "be terse"}, "sft")
    both = PAIR | {"instruction": "x", "input": "y"}
    assert "field 'input' stands beside 'prompt'" in refused(tmp_path, both, "preference")


# ---- media


def test_media_by_other_names(tmp_path: Path) -> None:
    """Guards answers about an image that the model does not see, in a column or marked in the text."""
    media = "has images, audio or video"
    rows: list[dict[str, Any]] = [CHAT | {k: ["x"]} for k in ("image_urls", "image_path", "image_bytes", "img")]
    marks = ("<image>\nq", "What is <image>?", "<video>\nq", "q\n<audio>", "<|image|>q", "<image_1> q")
    rows += [{"messages": [user(text), assistant("yes")]} for text in marks]
    rows += [TOLD | {"prompt": "<image>q"}, CHAT | {"tool_choice": "required"}]
    for row in rows:
        good = TOLD if "completion" in row else CHAT
        kept, dropped, _ = load(write(tmp_path / "a.jsonl", [good, row]), "sft")
        assert len(kept) == 1 and list(dropped) in ([media], ["uses tools"]), row
    for text in ("Close <video>: </video>", "In HTML a <video> element", "a <b> c"):
        assert one(tmp_path, {"messages": [user(text), assistant("<image>")]}, "sft")
    no = {"has_image": False, "num_images": 2, "parallel_tool_calls": False, "tool_choice": "none", "images": 0}
    assert one(tmp_path, CHAT | no, "sft") == one(tmp_path, CHAT, "sft")
