"""Rows with the columns of well-known public data sets, which must be read: kind of store and row, by name."""

from __future__ import annotations

from typing import Any

from helpers.rows import assistant, user

Q = "How do magnets work, and why?"
M: list[Any] = [user(Q), assistant("yes")]
P: dict[str, Any] = {"prompt": Q, "chosen": M, "rejected": [user(Q), assistant("no")]}
T: dict[str, Any] = {"prompt": Q, "chosen": "yes", "rejected": "no"}
SG: list[Any] = [{"from": "human", "value": Q}, {"from": "gpt", "value": "yes"}]


def asked(text: str, **keys: Any) -> dict[str, Any]:
    return user(text) | keys


def said(text: str, **keys: Any) -> dict[str, Any]:
    return assistant(text) | keys


PUBLIC: dict[str, tuple[str, dict[str, Any]]] = {
    "ultrafeedback_binarized": (
        "preference",
        {**P, "prompt_id": "ab", "messages": M, "score_chosen": 8.0, "score_rejected": 2.0},
    ),
    "ultrafeedback-binarized-preferences": (
        "preference",
        {
            "source": "x",
            "instruction": Q,
            "chosen": P["chosen"],
            "rejected": P["rejected"],
            "chosen-rating": 8.0,
            "rejected-rating": 2.0,
            "chosen-model": "a",
            "rejected-model": "b",
        },
    ),
    "dpo-mix-7k": (
        "preference",
        {
            "dataset": "x",
            "prompt": Q,
            "chosen": P["chosen"],
            "rejected": P["rejected"],
            "chosen_rating": 5.0,
            "rejected_rating": 4.0,
        },
    ),
    "orpo-dpo-mix": ("preference", {"source": "x", "question": "", **P}),
    "tulu-pref": ("preference", {**P, "id": "a", "source": "b", "chosen_model": "m", "rejected_model": "n"}),
    "llama3-ultrafeedback-armorm": (
        "preference",
        {**P, "prompt_id": "a", "all_generated_responses": ["a", "b"], "all_rm_scores": [0.1, 0.2, 0.3]},
    ),
    "distilabel-capybara": (
        "preference",
        {
            "source": "x",
            "conversation": None,
            "original_response": "a",
            "generation_prompt": ["p"],
            "raw_generation_responses": ["r"],
            "new_generations": ["a"],
            "prompt": Q,
            "chosen": P["chosen"],
            "rejected": P["rejected"],
            "rating_chosen": 5,
            "rating_rejected": 4,
            "chosen_model": "m",
            "rejected_model": "n",
        },
    ),
    "distilabel-orca (renamed)": (
        "preference",
        {
            "system": "",
            "prompt": Q,
            "chosen": "yes",
            "rejected": "no",
            "generations": ["a", "b"],
            "order": ["chosen", "rejected"],
            "labelling_model": "gpt4",
            "labelling_prompt": [asked("x")],
            "raw_labelling_response": "9 9",
            "rating": [9.0, 3.0],
            "rationale": "because one is better",
            "status": "unchanged",
            "original_chosen": "yes",
            "original_rejected": "no",
            "chosen_score": 9.0,
            "in_gsm8k_train": False,
        },
    ),
    "hh": ("preference", {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}),
    "truthy": ("preference", {"id": "a", "source": "b", "system": "s", **T}),
    "skywork": ("preference", {"chosen": P["chosen"], "rejected": P["rejected"], "source": "x"}),
    "preference_700K": (
        "preference",
        {"chosen": P["chosen"], "rejected": P["rejected"], "chosen_score": 4.0, "rejected_score": 2.0},
    ),
    "pku-like": (
        "preference",
        {
            **T,
            "better_response_id": 0,
            "safer_response_id": 1,
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "response_0_severity_level": 1,
            "better_category": "x",
        },
    ),
    "helpsteer-ish": (
        "preference",
        {**T, "chosen_helpfulness": 4, "rejected_helpfulness": 1, "domain": "x", "language": "en"},
    ),
    "code-pref": (
        "preference",
        {
            **T,
            "chosen_token_length": 12,
            "rejected_token_length": 11,
            "preference_type": "style",
            "score_type": "rm",
            "tie_breaker_id": 1,
        },
    ),
    "magpie-dpo": (
        "preference",
        {
            "uuid": "a",
            "instruction": Q,
            "chosen": P["chosen"],
            "rejected": P["rejected"],
            "task_category": "Math",
            "difficulty": "easy",
            "input_quality": "good",
            "reward_model": "x",
            "llama_guard_2": "safe",
            "min_neighbor_distance": 0.2,
            "repeat_count": 0,
            "gen_input_configs": {"temperature": 1.0},
            "intent": "x",
            "knowledge": "y",
        },
    ),
    "wildchat": (
        "sft",
        {
            "conversation_hash": "a",
            "model": "gpt-4",
            "timestamp": 1.0,
            "conversation": [
                asked(
                    Q,
                    toxic=False,
                    redacted=False,
                    turn_identifier=1,
                    timestamp=None,
                    country="US",
                    state="x",
                    hashed_ip="z",
                    header={"a": "b"},
                    language="English",
                ),
                said("yes", toxic=True, redacted=True, turn_identifier=0, language="English", timestamp=1),
            ],
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False}],
            "detoxify_moderation": [{"toxicity": 0.1}],
            "toxic": False,
            "redacted": False,
            "state": "x",
            "country": "y",
            "hashed_ip": "z",
            "header": {"a": "b"},
        },
    ),
    "lmsys": (
        "sft",
        {
            "conversation_id": "a",
            "model": "vicuna",
            "conversation": M,
            "turn": 1,
            "language": "English",
            "openai_moderation": [{"flagged": False, "categories": {"hate": False}}],
            "redacted": True,
        },
    ),
    "ultrachat_200k": ("sft", {"prompt": Q, "prompt_id": "a", "messages": M}),
    "no_robots": ("sft", {"prompt": Q, "prompt_id": "a", "messages": M, "category": "x"}),
    "tulu3": ("sft", {"id": "a", "messages": M, "source": "x"}),
    "tulu-personas": (
        "sft",
        {"id": "a", "prompt": "other text", "messages": M, "constraints": ["x:y"], "persona": "a chemist in Peru"},
    ),
    "smoltalk": ("sft", {"messages": M, "source": "x", "full_topic": "a/b"}),
    "openhermes": (
        "sft",
        {
            "custom_instruction": None,
            "topic": None,
            "model_name": None,
            "model": None,
            "skip_prompt_formatting": True,
            "category": "orca",
            "conversations": [
                {"from": "human", "value": Q, "weight": None},
                {"from": "gpt", "value": "yes", "weight": None},
            ],
            "views": None,
            "language": None,
            "id": None,
            "title": None,
            "idx": None,
            "hash": None,
            "avatarUrl": None,
            "system_prompt": None,
            "source": "x",
        },
    ),
    "openhermes-bools": (
        "sft",
        {"custom_instruction": False, "skip_prompt_formatting": False, "conversations": SG, "idx": 3, "views": 0},
    ),
    "slimorca": (
        "sft",
        {
            "conversations": [
                {"from": "system", "value": "s", "weight": None},
                {"from": "human", "value": Q, "weight": 0.0},
                {"from": "gpt", "value": "yes", "weight": 1.0},
            ]
        },
    ),
    "sharegpt": (
        "sft",
        {
            "id": "a_0",
            "conversations": [
                {"from": "human", "value": Q, "markdown": None, "text": None},
                {"from": "gpt", "value": "yes", "markdown": False, "text": None},
            ],
        },
    ),
    "numina": ("sft", {"source": "x", "problem": Q, "solution": "yes", "messages": M}),
    "openr1": (
        "sft",
        {
            "problem": Q,
            "solution": "yes",
            "answer": "42",
            "problem_type": "Algebra",
            "question_type": "MCQ",
            "source": "o",
            "uuid": "u",
            "is_reasoning_complete": [True, False],
            "generations": ["a"],
            "correctness_math_verify": [True],
            "correctness_llama": None,
            "finish_reasons": None,
            "correctness_count": 1,
            "messages": M,
        },
    ),
    "magpie-sft": (
        "sft",
        {
            "uuid": "a",
            "instruction": Q,
            "response": "yes",
            "conversations": SG,
            "gen_input_configs": {"x": 1},
            "intent": "a",
            "knowledge": "b",
            "difficulty": "easy",
            "difficulty_generator": "x",
            "input_quality": "good",
            "quality_explanation": "fine enough",
            "quality_generator": "x",
            "task_category": "Math",
            "other_task_category": ["a"],
            "task_category_generator": "x",
            "llama_guard_2": "safe",
            "reward_model": "x",
            "instruct_reward": -3.2,
            "min_neighbor_distance": 0.1,
            "repeat_count": 0,
            "min_similar_uuid": "z",
            "instruction_length": 3,
            "response_length": 4,
            "language": "EN",
        },
    ),
    "alpaca": ("sft", {"instruction": Q, "input": "", "output": "yes", "text": "Below is an instruction."}),
    "alpaca-templated": (
        "sft",
        {
            "instruction": Q,
            "input": "a noun",
            "output": "yes",
            "prompt": f"Below is an instruction.\n### Instruction:\n{Q}\n### Input:\na noun\n### Response:",
        },
    ),
    "nemotron-ish": (
        "sft",
        {
            "messages": M,
            "category": "math",
            "generator": "x",
            "license": "cc",
            "version": "v1",
            "used_in_training": "yes",
        },
    ),
    "mot": ("sft", {"messages": M, "num_tokens": 100, "source": "x"}),
    "am": (
        "sft",
        {"messages": [asked(Q, info={"source": "x", "test_case": None}), said("yes", info={"think_content": "a"})]},
    ),
    "cot-type": (
        "sft",
        {"prompt": Q, "completion": "yes", "cot_type": "math", "reasoning_tokens": 200, "thinking_budget": 3},
    ),
    "learning": (
        "sft",
        {
            "prompt": Q,
            "completion": "yes",
            "learning_objective": "Understand magnets well",
            "deleted": False,
            "masked_text": "the [MASK] sat on it",
            "train_source": "web",
            "target": 98,
            "nums": [1, 2],
            "keep": True,
            "loss_type": "sigmoid",
        },
    ),
    "oasst": (
        "sft",
        {
            "messages": M,
            "review_count": 3,
            "review_result": True,
            "deleted": False,
            "rank": 0,
            "synthetic": False,
            "labels": None,
            "tree_state": "ready",
        },
    ),
    "images-described": (
        "sft",
        {"messages": M, "has_image": False, "num_images": 0, "image_description": "", "audio_transcript": None},
    ),
    "html": ("sft", {"messages": [asked("Close it:\n<video>\n<p>x</p>\n</video>"), said("yes")]}),
    "grpo prompts": (
        "prompts",
        {
            "prompt": [asked(Q)],
            "reward_model": {"style": "rule", "ground_truth": "1"},
            "data_source": "x",
            "ability": "math",
            "extra_info": {"index": 0, "split": "train"},
            "label": "42",
        },
    ),
}
