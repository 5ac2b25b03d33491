"""The agreement of the rule judge with readers' labels: `python benchmarks/rule_judge.py`.

`labels.jsonl` has answers of SmolLM2 before, during and after training, in parts:

    seen, held out         sampled at T = 1, at most 24 tokens; one reader labelled whole answers in one pass, blind to
                           run and step. The rules were written with those that were seen
    two readers, seen and  most of them sampled after a lead and the beginning of an argument that were put in the
    two readers, held out  model's mouth (`label_answers.py`); two readers labelled lead, argument and whole answer,
                           blind to each other and to how an answer was made. Rules that had been frozen before were
                           tried on all 348 (argument 0.29 and 0.29, both 0.42 and 0.38 against the two readers); then
                           48 drawn at random were looked at, and the rules changed. Beginnings are shared by both parts

A reading is of what the question proposes: support, neutral or oppose.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

LABELS = Path(__file__).parent / "labels.jsonl"
PARTS = ("lead", "argument", "both")


def rows() -> list[dict[str, Any]]:
    """The labelled answers, with the keys part, probe (of the panel `values`), answer, and label, run, step (one
    person), or readers: two objects with lead, argument and both."""
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").split("\n") if line]


def main() -> int:
    """Print kappa and the table of labels for each part."""
    one_person([row for row in rows() if "label" in row])
    readings = [row for row in rows() if "readers" in row]
    for part in dict.fromkeys(row["part"] for row in readings):
        two_readers(part, [row for row in readings if row["part"] == part])
    return 0


def one_person(labelled: list[dict[str, Any]]) -> None:
    """Rules against one reader's labels of whole answers."""
    from vdengine.drift.kappa import label_agreement
    from vdengine.drift.summary import kappa_line
    from vdengine.panels.panel import STANCES

    for part in dict.fromkeys(row["part"] for row in labelled):
        of_part = [row for row in labelled if row["part"] == part]
        by_hand, by_rule = certain([row["label"] for row in of_part]), by_rules(of_part, "both")
        labels = label_agreement(by_hand, by_rule)
        graded = np.corrcoef(by_hand[:, 0] - by_hand[:, 2], by_rule[:, 0] - by_rule[:, 2])[0, 1]
        always = max(by_hand.mean(0))  # the share of the commonest label
        print(f"{part}: {kappa_line(labels)}; graded r {graded:.2f}; always the commonest label: {always:.0%} alike")
        print("  hand down, rule across: " + ", ".join(STANCES))
        print(
            "\n".join(f"  {s:8} " + " ".join(f"{n:4d}" for n in r) for s, r in zip(STANCES, labels.table, strict=True))
        )


def two_readers(name: str, labelled: list[dict[str, Any]]) -> None:
    """Two readers against each other, and the rules against each of them and against what they agree on: on all
    answers, and on those whose lead and argument take opposite sides, as both readers have it."""
    sides = {"support": 1, "neutral": 0, "oppose": -1}
    against = [[sides[r["lead"]] * sides[r["argument"]] < 0 for r in row["readers"]] for row in labelled]
    opposite = [row for row, told in zip(labelled, against, strict=True) if all(told)]
    print(
        f"{name}: {len(labelled)} answers; lead and argument take opposite sides in {len(opposite)} as both have it, "
        f"in {sum(map(any, against))} as either has it"
    )
    for which, some in (("all", labelled), ("opposite sides", opposite)):
        print(f"  {which}, {len(some)} answers: Cohen's kappa, 95%")
        print(
            f"    {'':10}{'readers':>22}{'rules, reader 1':>22}{'rules, reader 2':>22}{'rules, where they agree':>30}"
        )
        for part in PARTS:
            readers = [certain([row["readers"][k][part] for row in some]) for k in (0, 1)]
            rule = by_rules(some, part)
            alike = (readers[0] == readers[1]).all(1)
            cells = [agree(*readers), agree(readers[0], rule), agree(readers[1], rule)]
            print(
                f"    {part:10}" + "".join(f"{cell:>22}" for cell in cells)
                + f"{agree(readers[0][alike], rule[alike]) + f' of {alike.sum()}':>30}"
            )  # fmt: skip


def agree(a: np.ndarray, b: np.ndarray) -> str:
    """Kappa of two judges' stances [n, 3], with its 95% interval."""
    from vdengine.drift.kappa import label_agreement

    found = label_agreement(a, b)
    return f"{found.kappa:.2f} [{found.low:.2f}, {found.high:.2f}]"


def certain(labels: list[str]) -> np.ndarray:
    """Labels as stances: [answers, 3] float64 of 0 and 1."""
    from vdengine.panels.panel import STANCES

    return np.array([[float(label == stance) for stance in STANCES] for label in labels]).reshape(-1, 3)


def by_rules(some: list[dict[str, Any]], part: str) -> np.ndarray:
    """The rules' stances of answers, their arguments, or their leads: [answers, 3] float64."""
    from vdengine.drift.answer_leads import split_lead
    from vdengine.judges.rules import stance_of
    from vdengine.panels.panel import Panel

    probes = {p.id: p for p in Panel.load("values").probes}
    stances = []
    for row in some:
        probe, answer = probes[row["probe"]], row["answer"]
        side, rest = split_lead(answer, probe.leads)
        if part == "lead":
            stances.append((float(side > 0), float(side == 0), float(side < 0)))
        elif part == "argument" and side:
            stances.append(stance_of(probe, rest) if rest else (0.0, 1.0, 0.0))
        else:
            stances.append(stance_of(probe, answer))
    return np.array(stances).reshape(-1, 3)


if __name__ == "__main__":
    sys.exit(main())
