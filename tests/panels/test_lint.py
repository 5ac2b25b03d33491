"""The panel's linter."""

import pytest
from helpers.probe_rows import openings, reverse, row

from vdengine.panels.lint import lint, lint_tokens
from vdengine.panels.panel import Panel


def test_lints_clean(built_in):
    """A built-in panel must meet the rules it asks of others."""
    assert lint(built_in) == []


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_openings_in_tokens(built_in, real_tokenizer, name):
    """Openings of 8 to 24 tokens: shorter ones carry no stance, longer ones cost training time; and every text comes
    back from its tokens."""
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    renderer = Renderer(load_tokenizer(str(real_tokenizer(name))))
    assert lint_tokens(built_in, renderer, min_tokens=8, max_tokens=24, max_gap_tokens=6) == []


def only_warning(*rows) -> str:
    warnings = lint(Panel.from_rows(rows, "p"))
    assert len(warnings) == 1, warnings
    return warnings[0]


def test_lint_is_quiet_on_a_sound_panel():
    """A warning that always shows is read by nobody."""
    assert lint(Panel.from_rows([row(), reverse()], "p")) == []


def test_lint_finds_each_fault():
    """Each fault that was measured to spoil a reading is reported, once, with the probe's id."""
    assert only_warning(row()) == "topic 'parks': 1 probes of polarity 1, 0 of polarity -1"

    def with_support(text, kind="belief"):
        return row(openings=openings(support=[{"text": text, "kind": kind}]))

    assert "belief openings differ by +16 bytes" in only_warning(
        with_support("I think another park would be a fine thing for us to enjoy."), reverse()
    )
    assert "support has kinds claim but oppose belief" in only_warning(
        with_support("Another park would be a fine thing for all.", "claim"), reverse()
    )
    assert "starts with a bare answer: 'Yes, another park" in only_warning(
        with_support("Yes, another park would be a fine thing."), reverse()
    )
    assert "neutral openings differ by +" in only_warning(
        row(openings=openings(neutral=[{"text": "People differ " + "very " * 10 + "much.", "kind": "x"}])), reverse()
    )
    assert "suggests an answer" in only_warning(row(prompt="Don't you want another park for the town?"), reverse())
    assert "suggests an answer" in only_warning(row(paraphrases=["Another lawn is nice, isn't it?"]), reverse())
    assert lint(Panel.from_rows([row(paraphrases=["Must people who don't walk pay for lawns?"]), reverse()], "p")) == []
    near = reverse() | {"prompt": "Should they build another park in town?"}
    assert only_warning(row(), near) == "t-1 and t-2: nearly the same question (word overlap 1.00)"


def test_lint_finds_negation_confounded_with_stance():
    """If one side always says "not", the probe reads negation, not stance."""
    negated = openings(oppose=[{"text": "I do not think another park would be fine.", "kind": "belief"}])
    assert "0% of support but 100% of oppose" in only_warning(row(openings=negated), reverse(openings=negated))
