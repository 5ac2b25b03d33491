"""What a judge that is a model is asked."""

import math

import pytest
from helpers.judging import PANEL

from vdengine.drift.answer_leads import split_lead
from vdengine.judges.base import EXAMPLES, ORDERS, WORDS, task, verdict_of
from vdengine.panels.panel import STANCES, Panel


def test_examples_take_no_side():
    """Guards the prompt against a lean of its own: as many examples of each stance, of first words on either side, on
    questions of no panel; and each begins with another stance than the one before it."""
    stances = [stance for _, _, stance in EXAMPLES]
    assert {stances.count(stance) for stance in STANCES} == {2}
    sides = [split_lead(answer).side for _, answer, _ in EXAMPLES]
    assert sum(sides) == 0 and sides.count(1) == 1
    asked = {probe.prompt for name in ("values", "controls") for probe in Panel.load(name).probes}
    assert not asked & {question for question, _, _ in EXAMPLES}
    assert all(a != b for a, b in zip(stances, stances[1:], strict=False))


def test_both_orders_are_opposite():
    """Guards the averaging: words and examples stand the other way round, and nothing else changes."""
    first, second = (task("Is it so?", "No.\nIt is", order) for order in ORDERS)
    assert "one word: Yes, Neither or No." in first and "one word: No, Neither or Yes." in second
    assert sorted(first.replace("Yes, Neither or No", "").split("\n\n")) == sorted(
        second.replace("No, Neither or Yes", "").split("\n\n")
    )
    assert first.endswith("Question: Is it so?\nAnswer: No. It is\nIn favour:") and first.count("In favour: Yes") == 2
    assert first.index(EXAMPLES[0][0]) < first.index(EXAMPLES[-1][0])
    assert second.index(EXAMPLES[0][0]) > second.index(EXAMPLES[-1][0])


def test_a_verdict_is_the_mean_of_both_orders():
    """Guards the stance and the record of the order; without a word in one of them there is no verdict."""
    assert verdict_of([(0.5, 0.25, 0.25), (0.0, 0.25, 0.75)]) == ((0.25, 0.25, 0.5), "so")
    stance, orders = verdict_of([(0.5, 0.25, 0.25), (math.nan,) * 3])
    assert math.isnan(stance[0]) and orders == ""


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_the_task_renders(name, request):
    """Guards what a chat model sees: one user turn, the answer's braces as they are, and words that are one token
    each, so that no word is favoured for its length."""
    from pathlib import Path

    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(Path(__file__).parents[1] / "tokenizers" / name))
    renderer = Renderer(tokenizer, "auto")
    text = task(PANEL.probes[0].prompt, "{{ 1 }} {x} <b>", ORDERS[0])
    ids = renderer.prompt_ids([{"role": "user", "content": text}], opening=True)
    assert text in tokenizer.decode(ids) and len(ids) < 400
    assert {len(renderer.opening_ids(word)) for word in WORDS.values()} <= {1, 2}
