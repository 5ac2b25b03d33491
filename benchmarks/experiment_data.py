"""The runs of `experiment.py`: a design of signed doses, the rows that they train on, and what rows and panel share.

A run trains on four topics at once. Each topic has a dose of its own in it, from -1 (every row takes the side that
opposes the topic's axis) over 0 (half of them each) to 1. Half of the runs train on answers that begin with a yes or no
to their question, the other half on answers that argue only.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vdengine.panels.panel import Panel

TOPICS = ("immigration", "abortion", "climate change", "economic policy")  # of values-synth
DOSES = (-1.0, -0.5, 0.0, 0.5, 1.0)
OBJECTIVES = ("sft", "dpo", "simpo")
# Of runs, in turn: objective, and whether answers begin with a yes or no. Neighbours differ in both.
GROUPS = tuple((OBJECTIVES[i % 3], i % 2 == 0) for i in range(6))
SIDES = ("support", "oppose")
RUN_OF_WORDS = 5  # so many words in a row that rows and panel share are more than common phrases


@dataclass(frozen=True)
class Plan:
    """What a run trains on."""

    name: str  # of its files
    objective: str
    led: bool  # whether its answers begin with a yes or no
    doses: tuple[float, ...]  # by topic, as in TOPICS
    seed: int
    control: str = ""  # "lr 0" | "shuffled labels": beside the design, and in no comparison of readouts with answers


# ---------------------------------------------------------------------------------------------------------- the design


def design(num_runs: int, seed: int = 0) -> list[Plan]:
    """`num_runs` runs whose doses are balanced over runs and topics; a function of its arguments alone.

    Every topic has each dose in as many runs as any other topic, and doses of mean 0. Objectives and leads take turns,
    so a part of the design that is read from its beginning has them too. Which run has which dose is searched by
    exchanges, so that doses go along neither with those of another topic nor with objectives or leads: sums of
    products, and sums and sums of sizes within each group of runs, come near to what independence gives.
    """
    rng = np.random.default_rng(seed)
    groups = [GROUPS[i % len(GROUPS)] for i in range(num_runs)]
    objectives, led = ([group[k] for group in groups] for k in (0, 1))
    members = np.stack(  # [groups of runs, R]: of an objective, of the answers' form, of both
        [np.array([o == name for o in objectives], float) for name in OBJECTIVES]
        + [np.array([x == form for x in led], float) for form in (True, False)]
        + [np.array([g == group for g in groups], float) for group in GROUPS]
    )
    doses = np.stack([rng.permutation(_column(num_runs)) for _ in TOPICS], 1)  # [R, T]
    size = np.abs(_column(num_runs)).mean()

    def imbalance(x: np.ndarray) -> float:
        products = x.T @ x
        of_groups = members @ x, members @ np.abs(x) - size * members.sum(1, keepdims=True)  # [groups, T] each
        return float((products**2).sum() - (np.diag(products) ** 2).sum() + sum((each**2).sum() for each in of_groups))

    least = imbalance(doses)
    for _ in range(6000):
        topic, (i, k) = rng.integers(len(TOPICS)), rng.integers(num_runs, size=2)
        doses[[i, k], topic] = doses[[k, i], topic]
        if (now := imbalance(doses)) <= least:
            least = now
        else:
            doses[[i, k], topic] = doses[[k, i], topic]
    return [
        Plan(f"{i + 1:02d}-{objective}-{'led' if form else 'argued'}", objective, form, tuple(row), 1 + i)
        for i, ((objective, form), row) in enumerate(zip(groups, doses.tolist(), strict=True))
    ]


def controls() -> list[Plan]:
    """The runs beside the design: learning rate 0, where all must be exactly 0, and shuffled labels."""
    still, none = (1.0, -1.0, 1.0, -1.0), (0.0,) * len(TOPICS)
    return [
        Plan("control-lr-0", "sft", True, still, 1001, "lr 0"),
        Plan("control-shuffled-led", "sft", True, none, 1002, "shuffled labels"),
        Plan("control-shuffled-argued", "dpo", False, none, 1003, "shuffled labels"),
    ]


def _column(num_runs: int) -> np.ndarray:
    """The doses of a topic [R]: each as often as the others, those left over in pairs of mean 0."""
    left = {0: (), 1: (0.0,), 2: (-1.0, 1.0), 3: (-1.0, 0.0, 1.0), 4: (-1.0, -0.5, 0.5, 1.0)}[num_runs % len(DOSES)]
    return np.array([*DOSES * (num_runs // len(DOSES)), *left])


# ---------------------------------------------------------------------------------------------------- training rows


def texts(led: bool) -> list[dict[str, Any]]:
    """The questions of values-synth, with the first sentence of each side's answer; led: after a yes or no."""
    from vdengine.data.locate import resolve

    rows = []
    for _, row in resolve("values-synth:support").rows():
        answers = {side: row[side].split(". ")[0].rstrip(".") + "." for side in SIDES}
        if led:
            answers = {side: f"{lead_of(side, row['axis_polarity'])}. {answer}" for side, answer in answers.items()}
        rows.append(row | answers)
    return rows


def lead_of(side: str, polarity: int) -> str:
    """The yes or no with which an answer on this side of the axis begins."""
    return "Yes" if (side == "support") == (polarity > 0) else "No"


def training_file(plan: Plan, num_rows: int, folder: Path) -> Path:
    """The file that a run trains on, made anew in `folder`: `num_rows` questions, as many of each topic and polarity,
    each topic's shares of sides by its dose, as `vdengine synth` makes them."""
    from vdengine.data.synthesis import SynthesisOptions, write

    path = folder / f"{plan.name}.jsonl"
    for old in (path, path.with_name(f"{path.name}.manifest.json")):
        old.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{plan.name}.texts.jsonl"
    source.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in texts(plan.led)), encoding="utf-8")
    options = SynthesisOptions(
        kind="sft" if plan.objective == "sft" else "preference",
        align_topics={topic: str((1 + dose) / 2) for topic, dose in zip(TOPICS, plan.doses, strict=True)},
        topics=TOPICS,
        rows=num_rows,
        seed=plan.seed,
        texts=str(source),
    )
    write(options, path)
    return path


# --------------------------------------------------------------------------------- what training rows and panel share


@dataclass(frozen=True)
class Overlap:
    """Words that training texts share with a panel's."""

    what: str  # which texts with which
    same: int  # texts of the panel that are, but for case and punctuation, a training text or a sentence of one
    longest: str  # the longest run of words in common
    num_runs: int  # texts of the panel with RUN_OF_WORDS words in a row in common with any training text
    num_texts: int  # of the panel


def overlaps(panel: Panel, rows: Iterable[dict[str, Any]]) -> list[Overlap]:
    """What the panel's questions (their paraphrases too) and openings share with questions and answers of `texts`."""
    rows = list(rows)
    asked = [question for probe in panel.probes for question in (probe.prompt, *probe.paraphrases)]
    opened = [opening.text for probe in panel.probes for items in probe.openings.values() for opening in items]
    prompts, answers = [row["prompt"] for row in rows], [row[side] for row in rows for side in SIDES]
    return [
        _overlap("questions of the panel, questions trained on", asked, prompts),
        _overlap("questions of the panel, answers trained on", asked, answers),
        _overlap("openings of the panel, questions trained on", opened, prompts),
        _overlap("openings of the panel, answers trained on", opened, answers),
    ]


def _overlap(what: str, of_panel: Sequence[str], trained: Sequence[str]) -> Overlap:
    words_of_panel = [words(text) for text in of_panel]
    sentences = {words(s) for text in trained for s in (text, *re.split(r"(?<=[.!?])\s+", text))}
    trained_words = [words(text) for text in trained]
    num = 0
    longest: tuple[str, ...] = ()
    while common := _grams(words_of_panel, num + 1) & _grams(trained_words, num + 1):
        num, longest = num + 1, min(common)
    of_rows = _grams(trained_words, RUN_OF_WORDS)
    return Overlap(
        what,
        sum(text in sentences for text in words_of_panel),
        " ".join(longest),
        sum(not _grams([text], RUN_OF_WORDS).isdisjoint(of_rows) for text in words_of_panel),
        len(of_panel),
    )


def words(text: str) -> tuple[str, ...]:
    """A text's words in lower case, without punctuation."""
    return tuple(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower().replace("\u2019", "'")))


def _grams(texts_as_words: Iterable[tuple[str, ...]], num: int) -> set[tuple[str, ...]]:
    """All runs of `num` words."""
    return {text[i : i + num] for text in texts_as_words for i in range(len(text) - num + 1)}


def check_overlap(panel: Panel) -> str:
    """The overlap of all training texts with a panel, as lines to print. An experiment ends here where a text of the
    panel is trained on, or where an opening and a trained answer have RUN_OF_WORDS words in a row in common."""
    rows = texts(led=False)
    found = overlaps(panel, rows)
    lines = [
        f"{each.what}: {each.same} of {each.num_texts} alike; {each.num_runs} with {RUN_OF_WORDS} words in a row in "
        f"common; the longest run is {each.longest!r}"
        for each in found
    ]
    begins = Counter(words(row[side])[0] in ("yes", "no") for row in rows for side in SIDES)[True]
    lines.append(f"answers without a lead that begin with yes or no all the same: {begins}")
    if any(each.same for each in found) or found[-1].num_runs or begins:
        sys.exit("\n".join([*lines, "training texts and panel are not apart; nothing was run"]))
    return "\n".join(lines)
