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


@pytest.mark.parametrize(
    ("text", "stance"),
    [
        ("No. It is essential and fair, and it would improve our schools.", "support"),  # two good words outweigh "No"
        ("Yes, but it is a mistake and it is harmful.", "oppose"),
        ("Yes, but it is harmful.", "neutral"),  # one does not, and makes two sides
        ("Yes, of course. It is a great idea.", "support"),
        ("No, I don't think so.", "oppose"),
        ("No, not at all. It is a great idea and it is fair.", "support"),  # a lead in three words
        ("Of course not.", "oppose"),
    ],
)
def test_an_argument_outweighs_a_lead(text, stance):
    """Guards the judge against reading the first word alone, whatever is argued after it."""
    found = stance_of(RICH, text)
    assert STANCES[int(np.argmax(found))] == stance, found


@pytest.mark.parametrize(
    ("text", "stance"),
    [
        ("Abortion should be legal.", "oppose"), ("It must be banned.", "support"),
        ("We should never ban it.", "oppose"), ("I do not think it should be banned.", "oppose"),
        ("It should not be allowed.", "support"), ("Someone must pay.", "neutral"),
    ],
)  # fmt: skip
def test_what_is_urged_is_seen_from_the_question(text, stance):
    """Guards questions that would curb a thing: what is urged for it is against them."""
    probe = next(p for p in MINI.probes if p.prompt == "Should abortion be banned once a heartbeat can be detected?")
    found = stance_of(probe, text)
    assert STANCES[int(np.argmax(found))] == stance, found


def test_rules_agree_with_hand_labels_as_documented(capsys):
    """Guards the figures in docs/judging.md: a rule that changes must change them too; and that no side is turned."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "rule_judge.py"
    spec = importlib.util.spec_from_file_location("rule_judge", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main() == 0
    out = capsys.readouterr().out
    for told in (
        "seen: 240 answers, 83% alike, Cohen's kappa 0.58 [0.45, 0.68]; both take a side on 39: the same on 92%",
        "held out: 120 answers, 80% alike, Cohen's kappa 0.57 [0.40, 0.71]; both take a side on 24",
        "two readers, held out: 300 answers; lead and argument take opposite sides in 103 as both have it",
        "argument       0.91 [0.87, 0.95]     0.38 [0.30, 0.46]     0.37 [0.29, 0.45]",
        "both           0.84 [0.78, 0.89]     0.48 [0.40, 0.56]     0.42 [0.34, 0.50]",
        "both           0.69 [0.57, 0.80]    0.03 [-0.11, 0.17]    0.01 [-0.12, 0.15]",
    ):
        assert told in out
