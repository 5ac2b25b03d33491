"""What stances a data set takes, read before anything is trained on it, by a judge that knows them and by words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from helpers.audits import HH, TOPICS, judged, lines

from vdengine.audits.audit import Settings, audit
from vdengine.cli.audit import prior as prior_main
from vdengine.data.synthesis import SynthesisOptions, write
from vdengine.panels.panel import STANCES

# ---- the value gap


@pytest.mark.slow
def test_gap_finds_the_sign(oracle):
    """Guards sign and size by topic: answers of known stance, 0.7 graded on either side, make a gap of 1.4 for the
    support-aligned set, -1.4 for the opposed one, and about none where labels are shuffled."""
    for variant, expected in (("support", 1.4), ("oppose", -1.4)):
        found = judged(f"values-synth:{variant}", limit=None)
        assert list(found["topics"]) == list(TOPICS)
        for topic in (*TOPICS, "all"):
            each = found["all"] if topic == "all" else found["topics"][topic]
            assert each["gap"] == pytest.approx(expected) and each["low"] == pytest.approx(expected)
            assert each["chosen"]["graded"] == pytest.approx(expected / 2) and not each["few"]
            assert each["rejected"]["support"] == pytest.approx(0.1 if expected > 0 else 0.8)
    found = judged("values-synth:shuffled", limit=None)
    for each in (*found["topics"].values(), found["all"]):
        assert each["gap"] == pytest.approx(0, abs=1e-9) and each["low"] < 0 < each["high"]


@pytest.mark.slow
def test_gap_is_linear_in_the_mix(oracle, tmp_path):
    """Guards the scale: a set with a share p of support-aligned rows has the gap 1.4 (2p - 1), to the rounding of p in
    30 rows a topic."""
    gaps = {}
    for share in (0, 0.2, 0.5, 0.8, 1):
        path = tmp_path / f"{share}.jsonl"
        write(SynthesisOptions(align=str(share), rows=120, seed=3), path)
        gaps[share] = judged(str(path))
        for each in gaps[share]["topics"].values():
            assert each["rows"] == 30 and each["gap"] == pytest.approx(1.4 * (2 * share - 1), abs=1.4 / 30 + 1e-9)
            assert each["low"] <= each["gap"] <= each["high"]
    write(SynthesisOptions(align="bimodal", rows=40), tmp_path / "two.jsonl")
    assert judged(str(tmp_path / "two.jsonl"))["all"]["gap"] == pytest.approx(0)


def test_injected_rows_show(oracle, tmp_path):
    """Guards the use of an audit: a handful of strong rows in a set that takes no sides is seen, on their topics."""
    base = lines(tmp_path / "hh.jsonl", HH * 20)
    write(SynthesisOptions(into=base, inject=8, align="oppose"), tmp_path / "mixed.jsonl")
    assert judged(base)["all"]["gap"] == 0
    found = judged(str(tmp_path / "mixed.jsonl"))
    assert {t for t, v in found["topics"].items() if v["gap"] < -1} == set(TOPICS)
    assert found["topics"]["race and racism"]["gap"] == 0


def test_judge_is_asked_about_the_axis(oracle):
    """Guards reversed questions: the judge is asked whether the answer is for the axis, not for what the question
    proposes, and sees that question."""
    judged("values-synth:support", topics=("immigration",), limit=2)
    probe = oracle.seen[0].probe
    assert probe.polarity == 1 and probe.axis == "more open immigration" and len(oracle.seen) == 4
    assert probe.prompt.endswith("Are you in favour of more open immigration?") and probe.prompt.count("?") == 2


def test_silent_judge(oracle):
    """Guards missing verdicts: a pair without one is left out and counted, not read as neutral."""
    oracle.silent = 3
    found = judged("values-synth:support", topics=("immigration",), limit=4)
    assert found["not_read"] == 3 and found["topics"]["immigration"]["rows"] == 2
    assert found["topics"]["immigration"]["gap"] == pytest.approx(1.4) and found["all"]["few"]
    oracle.silent = 99
    found = judged("values-synth:support", topics=("immigration",), limit=4)
    assert found["topics"] == {} and found["all"]["rows"] == 0 and math.isnan(found["all"]["gap"])
    assert found["agreement"]["answers"] == 0


# ---- the prior


def test_prior_of_known_stances(oracle, tmp_path):
    """Guards the mix and the shares: 32 rows on topics, 3 of 4 on the support side, among 48 that are on none."""
    write(SynthesisOptions(kind="sft", align="0.75", rows=32), tmp_path / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    rows += [{"prompt": f"What is {i} plus {i}?", "completion": str(2 * i)} for i in range(48)]
    found = audit("prior", Settings(lines(tmp_path / "all.jsonl", rows), judge="oracle")).result
    found |= found["judge"]
    assert found["value_laden"]["share"] == 0.4 and 0.28 < found["value_laden"]["low"] < 0.4
    assert found["value_laden"]["high"] < 0.52 and found["taking_sides"]["share"] == pytest.approx(0.4 * 0.9)
    assert found["shares"] == pytest.approx(dict.fromkeys(TOPICS, 0.1))
    everything = found["all"]
    assert everything["rows"] == 32 and everything["graded"]["mean"] == pytest.approx(0.35)
    assert everything["support"]["low"] < everything["support"]["mean"] < everything["support"]["high"]
    assert sum(everything[s]["mean"] for s in STANCES) == pytest.approx(1)


def test_prior_of_plain_data(oracle, tmp_path):
    """Guards a file that is on no topic: that is a finding, not an error; and nothing is asked of the judge."""
    path = lines(tmp_path / "plain.jsonl", [{"prompt": "What is 1 plus 1?", "completion": "2"}] * 5)
    found = audit("prior", Settings(path, judge="oracle")).result
    assert found["value_laden"]["share"] == 0 and found["topics"] == {} and oracle.seen == []
    assert prior_main([path, "--judge", "oracle"]) == 0


# ---- the panel's texts


@pytest.mark.slow
def test_words_read_stances_and_mixes(tmp_path):
    """Guards the audit without a model, on answers of known stance: the sign by topic, about none where labels are
    shuffled, and a gap that grows with the mix."""
    found = audit("gap", Settings("values-synth:support", limit=None)).result
    opposed = audit("gap", Settings("values-synth:oppose", limit=None)).result
    assert found["method"] == "words" and set(found["quality"]) == set(TOPICS)
    for topic in TOPICS:
        assert found["topics"][topic]["low"] > 0.2 and opposed["topics"][topic]["high"] < -0.2
    shuffled = audit("gap", Settings("values-synth:shuffled", limit=None)).result
    for each in (*shuffled["topics"].values(), shuffled["all"]):
        assert each["low"] < 0 < each["high"]
    gaps = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        write(SynthesisOptions(align=str(share)), tmp_path / f"{share}.jsonl")
        gaps.append(audit("gap", Settings(str(tmp_path / f"{share}.jsonl"), limit=None)).result["all"]["gap"])
    assert np.polyfit([0, 0.25, 0.5, 0.75, 1], gaps, 1)[0] == pytest.approx(gaps[4] - gaps[0], rel=0.1)
    assert all(
        abs(g - (gaps[0] + s * (gaps[4] - gaps[0]))) < 0.1 for s, g in zip((0, 0.25, 0.5, 0.75, 1), gaps, strict=True)
    )
