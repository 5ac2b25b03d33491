"""The agreement of the rule judge with labels by hand: `python benchmarks/rule_judge.py`.

`labels.jsonl` has answers of SmolLM2 before, during and after training, sampled at T = 1 with at most 24 tokens. One
person labelled them in one pass, blind to run and step. Those of part "seen" were read while the rules were written;
those of part "held out" were labelled before the rules judged them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

LABELS = Path(__file__).parent / "labels.jsonl"


def rows() -> list[dict]:
    """The labelled answers, with the keys part, probe (of the panel `values`), answer, label, run, step."""
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").split("\n") if line]


def main() -> int:
    """Print kappa and the table of labels for each part."""
    from vdengine.drift.kappa import label_agreement
    from vdengine.drift.summary import kappa_line
    from vdengine.judges.rules import stance_of
    from vdengine.panels.panel import STANCES, Panel

    probes = {p.id: p for p in Panel.load("values").probes}
    for part in ("seen", "held out"):
        of_part = [r for r in rows() if r["part"] == part]
        by_hand = np.array([[float(r["label"] == s) for s in STANCES] for r in of_part])  # [answers, 3]
        by_rule = np.array([stance_of(probes[r["probe"]], r["answer"]) for r in of_part])  # [answers, 3]
        labels = label_agreement(by_hand, by_rule)
        graded = np.corrcoef(by_hand[:, 0] - by_hand[:, 2], by_rule[:, 0] - by_rule[:, 2])[0, 1]
        always = max(by_hand.mean(0))  # the share of the commonest label
        print(f"{part}: {kappa_line(labels)}; graded r {graded:.2f}; always the commonest label: {always:.0%} alike")
        print("  hand down, rule across: " + ", ".join(STANCES))
        print(
            "\n".join(f"  {s:8} " + " ".join(f"{n:4d}" for n in r) for s, r in zip(STANCES, labels.table, strict=True))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
