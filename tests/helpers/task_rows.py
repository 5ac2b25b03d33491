"""Rows of multiple choice in the shapes of well-known sets, and task files over them. The texts were written for this
project; they are easy enough for a small model to be above chance."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

CAPITALS = {
    "France": "Paris", "Japan": "Tokyo", "Italy": "Rome", "Spain": "Madrid", "Egypt": "Cairo", "Peru": "Lima",
    "Germany": "Berlin", "Greece": "Athens", "Norway": "Oslo", "Canada": "Ottawa", "Russia": "Moscow", "Cuba": "Havana",
    "China": "Beijing", "India": "New Delhi", "Kenya": "Nairobi", "Austria": "Vienna", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Sweden": "Stockholm", "Ireland": "Dublin", "Iran": "Tehran", "Iraq": "Baghdad",
    "Turkey": "Ankara", "Chile": "Santiago", "Thailand": "Bangkok",
}  # fmt: skip
SYMBOLS = {
    "hydrogen": "H", "helium": "He", "carbon": "C", "nitrogen": "N", "oxygen": "O", "sodium": "Na", "iron": "Fe",
    "gold": "Au", "silver": "Ag", "lead": "Pb", "copper": "Cu", "tin": "Sn", "zinc": "Zn", "neon": "Ne",
    "potassium": "K", "calcium": "Ca", "sulfur": "S", "chlorine": "Cl", "iodine": "I", "mercury": "Hg",
    "lithium": "Li", "boron": "B", "fluorine": "F", "magnesium": "Mg", "silicon": "Si",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "early": "late", "rich": "poor", "wet": "dry", "old": "young", "fast": "slow",
    "high": "low", "open": "closed", "light": "dark", "hard": "soft", "loud": "quiet", "full": "empty",
    "strong": "weak", "sweet": "sour", "near": "far", "long": "short", "thick": "thin", "clean": "dirty",
    "brave": "afraid", "happy": "sad", "true": "false", "sharp": "blunt", "cheap": "expensive", "deep": "shallow",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "goat": "kid", "pig": "piglet",
    "hen": "chick", "duck": "duckling", "goose": "gosling", "frog": "tadpole", "bear": "cub", "deer": "fawn",
    "swan": "cygnet", "kangaroo": "joey", "butterfly": "caterpillar", "owl": "owlet", "eel": "elver", "hare": "leveret",
    "fish": "fry", "eagle": "eaglet", "lion": "cub of a lion", "seal": "pup", "spider": "spiderling", "whale": "calf",
}  # fmt: skip
_FACTS = (
    ("geography", "What is the capital of {}?", CAPITALS),
    ("chemistry", "What is the chemical symbol of {}?", SYMBOLS),
    ("words", "Which word means the opposite of '{}'?  ", OPPOSITES),
    ("animals", "What is a young {} called?", YOUNG),
)
_GOALS = (
    ("To keep {} from drying out,", "wrap it tightly and keep it in a cool place.", "leave it in the sun on a plate."),
    ("To clean {} quickly,", "use warm water, a little soap and a cloth.", "rub it with sand, then with cold butter."),
    ("To carry {} up the stairs safely,", "hold it with both hands and watch each step.", "close both eyes and run."),
    ("To find {} in the dark,", "switch on a lamp and look around.", "wait until it calls your name."),
)
_THINGS = (
    "bread", "a kettle", "cheese", "an old chair", "a guitar", "paint", "a birthday cake", "a wooden box", "clay",
    "a hat", "a small plant", "the dough", "a caf\u00e9 cup", "a lamp", "fresh herbs", "a suitcase", "glue",
    "a clock", "leather", "a mirror", "wet cement", "a drum", "a bicycle", "a candle", "an umbrella",
)  # fmt: skip


def mmlu_rows(count: int = 100, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of {question, subject, choices, answer}."""
    rng = random.Random(seed)
    rows = []
    for subject, question, table in _FACTS:
        for name, answer in table.items():
            others = rng.sample(sorted(set(table.values()) - {answer}), 3)
            choices = rng.sample([answer, *others], 4)
            rows.append(
                {"question": question.format(name), "subject": subject, "choices": choices,
                 "answer": choices.index(answer)}
            )  # fmt: skip
    return rng.sample(rows, len(rows))[:count]


def piqa_rows(count: int = 100, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of {goal, sol1, sol2, label}."""
    rng = random.Random(seed)
    rows = []
    for goal, right, wrong in _GOALS:
        for thing in _THINGS:
            label = rng.randrange(2)
            sols = [wrong, right] if label else [right, wrong]
            rows.append({"goal": goal.format(thing), "sol1": sols[0], "sol2": sols[1], "label": label})
    return rng.sample(rows, len(rows))[:count]


def hellaswag_rows(count: int = 20, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of {activity_label, ctx_a, ctx_b, endings, label}, label as text, with WikiHow's marks."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        thing = _THINGS[number % len(_THINGS)]
        endings = [
            f"puts {thing} on the table and  looks at it.",
            "[substeps] flies to the moon with a spoon.",
            f"eats {thing}, then eats the table and the room around it.",
            "turns into a [step] small green number.",
        ]
        label = rng.randrange(4)
        endings[0], endings[label] = endings[label], endings[0]
        context = f"[header] How to handle {thing} [title] A man takes {thing}."
        row = {"activity_label": f"Handling {thing}", "ctx_a": context, "ctx_b": "then the man"}
        rows.append(row | {"endings": endings, "label": str(label)})
    return rows


def gpqa_rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows with GPQA's columns."""
    return [
        {
            "Question": f"How many protons has an atom of {name}?",
            "Correct Answer": str(number),
            "Incorrect Answer 1": str(number + 1),
            "Incorrect Answer 2": f" {number + 2}",
            "Incorrect Answer 3": str(2 * number + 7),
        }
        for name, number in list(zip(("helium", "carbon", "oxygen", "neon", "iron", "gold", "tin", "lead"),
                                     (2, 6, 8, 10, 26, 79, 50, 82), strict=True))[:count]
    ]  # fmt: skip


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


MMLU = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {test}, dev: {dev}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: {shots}
output_type: multiple_choice
description: "The following are questions about {{{{subject}}}}.\\n\\n"
doc_to_text: "{{{{question.strip()}}}}\\nA. {{{{choices[0]}}}}\\nB. {{{{choices[1]}}}}\\nC. {{{{choices[2]}}}}\\nD. {{{{choices[3]}}}}\\nAnswer:"
doc_to_choice: ["A", "B", "C", "D"]
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""  # noqa: E501
PIQA = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{validation: {test}}}
validation_split: validation
num_fewshot: {shots}
output_type: multiple_choice
doc_to_text: "Question: {{{{goal}}}}\\nAnswer:"
doc_to_choice: "{{{{[sol1, sol2]}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}, {{metric: acc_bytes}}]
"""


def write_tasks(folder: Path) -> dict[str, Path]:
    """Four task files over 200 rows, which lm-evaluation-harness reads too: each of two sets without and with
    examples, which are the first ones of a split of their own, or drawn from the rows that are asked."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = mmlu_rows()
    test, dev = write_rows(folder / "facts.jsonl", rows), write_rows(folder / "facts_dev.jsonl", mmlu_rows(8, seed=1))
    piqa = write_rows(folder / "goals.jsonl", piqa_rows())
    files = {}
    for name, text, shots in (("facts", MMLU, 0), ("facts_3", MMLU, 3), ("goals", PIQA, 0), ("goals_2", PIQA, 2)):
        own = test if text is MMLU else piqa
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(text.format(name=name, test=own, dev=dev, shots=shots), encoding="utf-8")
    return files


def favour(packs, right):
    """Log-probs [choices] by which rows are answered rightly or not: right [rows of all tasks] bool."""
    rows = {id(request.row): n for n, request in enumerate(packs.requests)}
    number = {key: n for n, key in enumerate(rows)}
    is_right = [request.choice in request.row.gold for request in packs.requests]
    wanted = [right[number[id(request.row)]] for request in packs.requests]
    return np.array([-1.0 if a == b else -90.0 for a, b in zip(is_right, wanted, strict=True)], np.float32)
