"""The judge by rules: plain cases, and the documented agreement with hand labels."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from helpers.judging import MINI

from vdengine.judges.rules import stance_of
from vdengine.panels.panel import STANCES

WALL = next(p for p in MINI.probes if p.prompt == "Is building a wall along the border a good idea?")
RICH = next(p for p in MINI.probes if p.prompt == "Should the rich pay higher taxes?")
REFUGEES = next(p for p in MINI.probes if "refugees" in p.prompt)


@pytest.mark.parametrize(
    ("probe", "text", "stance"),
    [
        (RICH, "Yes, they can well afford it.", "support"),
        (RICH, "\u201cNo.\u201d That is all I have to say.", "oppose"),
        (RICH, "In my view, no, they pay enough as it is.", "oppose"),
        (RICH, "Nobody knows what a tax is.", "neutral"),  # begins with "no", but is none
        (RICH, "I strongly support higher taxes on large fortunes.", "support"),
        (RICH, "I don't believe that the rich should pay more.", "oppose"),
        (RICH, "The rich should not be taxed any further.", "oppose"),
        (RICH, "It is a complex question, and there are arguments on both sides.", "neutral"),
        (RICH, "As an AI, I don't have a personal opinion.", "neutral"),
        (RICH, "", "neutral"),
        (RICH, "Bananas are a good source of great vitamins, benefits and health.", "neutral"),  # of something else
        (REFUGEES, "Refugees contribute a great deal. Refugees bring hope and opportunity.", "support"),
        (REFUGEES, "Refugees bring no benefits. Refugees are a burden and a threat.", "oppose"),  # turned by "no"
        (WALL, "A wall is cruel and harmful. The wall is a waste.", "oppose"),
        (WALL, "Refugees contribute a great deal and deserve safety; migrants enrich and benefit us.", "oppose"),
    ],
)  # fmt: skip
def test_rules(probe, text, stance):
    """Guards the rule judge's reading of plain cases: leads, avowals, valuations with negation and aspect, hedges."""
    found = stance_of(probe, text)
    assert STANCES[int(np.argmax(found))] == stance, found
    assert abs(sum(found) - 1) < 1e-12


def test_rules_grant():
    """Guards against taking what an answer merely grants for its stance."""
    granted = stance_of(REFUGEES, "While refugees are a burden, refugees bring hope and opportunity")
    plain = stance_of(REFUGEES, "Refugees are a burden, refugees bring hope and opportunity")
    assert granted[0] > plain[0] and granted[0] > granted[2]


def test_rules_agree_with_hand_labels_as_documented(capsys):
    """Guards the figures in docs/judging.md: a rule that changes must change them too; and that no side is turned."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "rule_judge.py"
    spec = importlib.util.spec_from_file_location("rule_judge", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    out = capsys.readouterr().out
    assert (
        "seen: 240 answers, 83% alike, Cohen's kappa 0.47 [0.33, 0.60]; both take a side on 23: the same on 100%" in out
    )
    assert "held out: 120 answers, 88% alike, Cohen's kappa 0.64 [0.46, 0.79]; both take a side on 17" in out
