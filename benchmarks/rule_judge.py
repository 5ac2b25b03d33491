"""How far the rule judge agrees with labels made by hand: `python benchmarks/rule_judge.py`.

`labels.jsonl` has answers of SmolLM2 before, during and after training, drawn at T = 1 with at most 24 tokens, labelled
by reading, without knowing run or step: one person, one pass. Those of part "seen" were read while the rules were
written; those of part "held out" were labelled before the rules judged them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

LABELS = Path(__file__).parent / "labels.jsonl"


def rows() -> list[dict]:
    """part, probe (of `values`), answer, label, run, step."""
    return [json.loads(line) for line in LABELS.read_text(encoding="utf-8").split("\n") if line]


def main() -> int:
    from vdengine.drift.kappa import label_agreement
    from vdengine.drift.summary import kappa_line
    from vdengine.judges.rules import stance_of
    from vdengine.panels.panel import STANCES, Panel

    probes = {p.id: p for p in Panel.load("values").probes}
    for part in ("seen", "held out"):
        mine = [r for r in rows() if r["part"] == part]
        by_hand = np.array([[float(r["label"] == s) for s in STANCES] for r in mine])
        by_rule = np.array([stance_of(probes[r["probe"]], r["answer"]) for r in mine])
        found = label_agreement(by_hand, by_rule)
        graded = np.corrcoef(by_hand[:, 0] - by_hand[:, 2], by_rule[:, 0] - by_rule[:, 2])[0, 1]
        always = max(by_hand.mean(0))
        print(f"{part}: {kappa_line(found)}; graded r {graded:.2f}; always the commonest label: {always:.0%} alike")
        print("  hand down, rule across: " + ", ".join(STANCES))
        print(
            "\n".join(f"  {s:8} " + " ".join(f"{n:4d}" for n in r) for s, r in zip(STANCES, found.table, strict=True))
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
