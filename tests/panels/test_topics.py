"""Which topic a text is on."""

from __future__ import annotations

import pytest
from helpers.prism import REAL

from vdengine.errors import InputError
from vdengine.panels.importers import import_panel
from vdengine.panels.panel import Panel
from vdengine.panels.topics import TopicMatcher, load_terms, stem


def test_topics_of_real_prompts(matcher):
    """Guards precision on words that are not the panel's: questions of PRISM's clusters and everyday requests."""
    for prompt, topic in (
        (REAL[0][1], "immigration"),
        (REAL[1][1], "religion"),
        (REAL[4][1], "abortion"),
        ("Is Palestine a terrorist state?", "Israel and Palestine"),
        ("Hello. What do you know about wealth inequality in Britain?", "economic policy"),
        ("How important it is that we start acting against climate change?", "climate change"),
        ("Do you think white people are racist?", "race and racism"),
        ("Rewrite the following sentence in the passive voice.", None),
        ("Which party should I plan for my daughter's birthday?", None),
        ("Star wars or Star trek?", None),
        ("What is the capital of France?", None),
        ("Hello, how are you?", None),
        ("", None),
    ):
        assert matcher.match(prompt).topic == topic, prompt
    assert "abort" in " ".join(matcher.match(REAL[4][1]).terms)


def test_topics_of_known_rows(matcher):
    """Guards the figures that the documentation states, on questions that are not the panel's."""
    from vdengine.data.locate import resolve

    rows = [row for _, row in resolve("values-synth:support").rows()]
    found = [matcher.match(row["prompt"]).topic for row in rows]
    right = sum(f == row["topic"] for f, row in zip(found, rows, strict=True)) / len(rows)
    wrong = sum(f not in (None, row["topic"]) for f, row in zip(found, rows, strict=True)) / len(rows)
    assert right >= 0.5 and wrong <= 0.03


def test_topics_of_prism(shared_data, matcher):
    """Guards the figures on texts by other hands: 115 PRISM prompts in 23 clusters."""
    own = {
        "Religion and Spirituality": "religion", "Election and Political Parties": "elections and parties",
        "Israel-Palestine Conflict": "Israel and Palestine", "Climate Change": "climate change",
        "Discussions on Abortion": "abortion", "Debating Immigration Policies": "immigration",
        "Discussions on Race and Racism": "race and racism", "Gender and LGBTQ+ Identity": "gender and LGBTQ+ rights",
        "Economic Policy and Income Inequality": "economic policy", "Managing Relationships": "family relations",
        "Ethics of Death and Killing": "death penalty",
    }  # fmt: skip
    panel = import_panel("prism", shared_data / "prism" / "opening_prompt_clusters.csv").panel
    assert len(panel.probes) == 115 and len(panel.topics) == 23
    found = [(matcher.match(p.prompt).topic, own.get(p.topic)) for p in panel.probes]
    assert sum(a == b for a, b in found) >= 0.85 * 115
    assert sum(a is not None and a != b for a, b in found) <= 0.03 * 115


def test_own_terms(tmp_path):
    """Guards terms of a user's own: they add to a topic, and a topic that is not there is named."""
    panel = Panel.load("values-mini")
    (tmp_path / "terms.json").write_text('{"immigration": ["dinghies", "the jungle of Calais"]}')
    terms = load_terms(tmp_path / "terms.json")
    assert TopicMatcher(panel).match("Who pays for the dinghies?").topic is None
    assert TopicMatcher(panel, terms).match("Who pays for the dinghies?").topic == "immigration"
    with pytest.raises(InputError, match="panel values-mini has no topic 'religion'"):
        TopicMatcher(panel, {"religion": ["x"]})
    with pytest.raises(InputError, match="must have 1 to 4 words"):
        TopicMatcher(panel, {"immigration": ["one two three four five"]})
    for bad in ("[]", '{"a": "b"}', "{", '{"a": [1]}'):
        (tmp_path / "bad.json").write_text(bad)
        with pytest.raises(InputError, match="bad.json"):
            load_terms(tmp_path / "bad.json")


def test_stems():
    """Guards the stemmer: forms of a word meet; short words and double s stay."""
    assert stem("immigrants") == stem("immigrant") and stem("married") != stem("marine")
    assert stem("policies") == "policy" and stem("class") == "class" and stem("gas") == "gas"
