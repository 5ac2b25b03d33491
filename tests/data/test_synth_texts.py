"""The texts of the built-in synthetic preference set (values-synth)."""

import json
import re
from collections import Counter
from importlib import resources

import pytest

from vdengine.panels.panel import Panel
from vdengine.panels.words import content_words, overlap


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    data = resources.files("vdengine.data").joinpath("synth/values-synth.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in data.split("\n") if line]


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel.load("values")


def by_topic(rows, topic):
    return [r for r in rows if r["topic"] == topic]


def test_shape(rows, panel):
    """120 rows a topic: the first four topics of the panel and their axes, word for word, half of each polarity."""
    assert len(rows) == 480 and len({r["id"] for r in rows}) == 480
    assert tuple(dict.fromkeys(r["topic"] for r in rows)) == panel.topics[:4]
    for topic in panel.topics[:4]:
        mine = by_topic(rows, topic)
        assert {r["axis"] for r in mine} == {panel.axis(topic)}
        assert Counter(r["axis_polarity"] for r in mine) == {1: 60, -1: 60}
    for r in rows:
        assert set(r) == {"id", "topic", "axis", "axis_polarity", "prompt", "support", "oppose"}
        assert all(r[k] == r[k].strip() and r[k] for k in ("prompt", "support", "oppose"))
        assert r["prompt"].endswith("?")


def test_polarities_are_mixed_in_order(rows):
    """The first n rows of a topic are near balance for any n: a run that stops early sees both polarities."""
    for topic in {r["topic"] for r in rows}:
        total = 0
        for r in by_topic(rows, topic):
            total += r["axis_polarity"]
            assert abs(total) <= 3, r["id"]


def test_answers_match_in_length(rows):
    """If one side were longer, training would teach length: rows within 15%, topic means within 3%."""
    for r in rows:
        a, b = len(r["support"]), len(r["oppose"])
        assert abs(a - b) <= 0.15 * max(a, b), r["id"]
        assert all(20 <= len(r[k].split()) <= 60 for k in ("support", "oppose")), r["id"]
    for topic in {r["topic"] for r in rows}:
        for polarity in (1, -1):
            mine = [r for r in by_topic(rows, topic) if r["axis_polarity"] == polarity]
            a, b = (sum(len(r[k]) for r in mine) / len(mine) for k in ("support", "oppose"))
            assert abs(a - b) <= 0.03 * max(a, b), (topic, polarity)


def test_questions_are_not_the_panels(rows, panel):
    """Training on the panel's own questions would measure memory. Word overlap with any prompt or paraphrase of the
    panel stays at or below one half (the panel lints its own questions at 0.6)."""
    words = [(p.id, content_words(text)) for p in panel.probes for text in (p.prompt, *p.paraphrases)]
    exact = {text.lower() for p in panel.probes for text in (p.prompt, *p.paraphrases)}
    for r in rows:
        assert r["prompt"].lower() not in exact
        mine = content_words(r["prompt"])
        assert all(overlap(mine, other) <= 0.5 for _, other in words), r["id"]


def test_no_opening_in_an_answer(rows, panel):
    """An opening of the panel, or a piece of one, inside a training answer would be read back as drift: no run of
    five words is in both."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[a-z']+", text.lower())
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    trained = set().union(*(runs(r[k]) for r in rows for k in ("support", "oppose")))
    assert not [b.text for b in panel.branches() if runs(b.text) & trained]


def test_no_near_duplicates(rows):
    """Repeated questions or answers would weight some sub-question above the rest and smell of a template."""
    for topic in {r["topic"] for r in rows}:
        mine = by_topic(rows, topic)
        prompts = [content_words(r["prompt"]) for r in mine]
        answers = [content_words(r[k]) for r in mine for k in ("support", "oppose")]
        for sets, limit in ((prompts, 0.5), (answers, 0.35)):
            assert all(overlap(a, b) <= limit for i, a in enumerate(sets) for b in sets[:i]), topic
    starts = Counter(" ".join(r[k].split()[:3]) for r in rows for k in ("support", "oppose"))
    assert starts.most_common(1)[0][1] <= 0.01 * 2 * len(rows)


def test_answers_differ_in_stance_alone(rows):
    """Stance must not be readable from a leading yes or no, nor from negations or a first person that one side of
    the axis uses more: training would move those too."""
    assert not [r["id"] for r in rows for k in ("support", "oppose") if re.match(r"(yes|no)\b", r[k], re.I)]
    for pattern in (r"(?i)\b(not|never|cannot|no|nobody|nothing|nor|neither)\b|n't\b", r"\b(I|[Mm]y)\b"):
        share = {k: sum(bool(re.search(pattern, r[k])) for r in rows) / len(rows) for k in ("support", "oppose")}
        assert abs(share["support"] - share["oppose"]) <= 0.05, pattern  # about two standard errors at n = 480


def test_plain_text(rows):
    """No line breaks, odd quotation marks or chat markup in texts that are rendered by many templates."""
    for r in rows:
        for k in ("prompt", "support", "oppose"):
            assert re.fullmatch(r"[A-Za-z0-9 ,.;:?'éÉ-]+", r[k]), (r["id"], k)
