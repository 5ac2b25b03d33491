"""Leads: the tokens that spell them under a tokenizer and template, and the panels that need their own."""

import pytest
from helpers.tiny import CHATML

from vdengine.errors import InputError
from vdengine.panels.leads import is_english, spellings
from vdengine.panels.panel import Panel
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


def probe(**changes) -> dict:
    return {
        "schema": 1, "id": "a", "topic": "t", "axis": "more", "polarity": 1, "prompt": "Should we do it?",
        "openings": {},
    } | changes  # fmt: skip


@pytest.fixture
def tokenizer(tiny_models):
    return load_tokenizer(str(tiny_models["llama"]))


def test_spellings_are_the_first_tokens_of_answers(tokenizer):
    """Guards the list: whole tokens alone ("yes" is bytes here), and what the template puts before an answer counts."""
    renderer = Renderer(tokenizer)
    assert [s.text for s in spellings(["yes"], renderer)] == ["Yes"]
    assert [renderer.tokenizer.decode([s.id]) for s in spellings(["no", "Yes"], renderer)] == ["No", "Yes"]
    with pytest.raises(InputError, match="'agree' is no single token at the start of an answer under .*chat template"):
        spellings(["agree"], renderer)
    with pytest.raises(InputError, match="leave 'lead' out of the readouts"):
        spellings(["yes"], Renderer(tokenizer, "plain"))  # an answer begins with a space there


def test_a_think_block_stands_before_the_lead(tiny_models, tmp_path):
    """Guards templates that open an answer with thinking: the lead comes after it, not in it."""
    template = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n\n</think>\n\n{% endif %}").replace(
        "{{ m['content'] }}", "{{ '<think>\n\n</think>\n\n' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    (tmp_path / "think.jinja").write_text(template)
    renderer = Renderer(load_tokenizer(str(tiny_models["llama"])), str(tmp_path / "think.jinja"))
    requests = Panel.from_rows([probe()], "p").requests(renderer, readouts=["lead"])
    assert [r.text for r in requests] == ["Yes", "No"]
    assert all(renderer.tokenizer.decode(r.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n") for r in requests)


def test_a_panel_may_bring_its_own_leads(tokenizer, tmp_path):
    """Guards other words than yes and no: kept by the file, part of the hash only where they are not the default."""
    own = probe(leads={"support": ["No"], "oppose": ["Yes"]})
    panel = Panel.from_rows([own, probe(id="b")], "p")
    panel.save(tmp_path / "p.jsonl")
    again = Panel.load(tmp_path / "p.jsonl")
    assert again.hash == panel.hash and again.probes[0].leads.support == ("No",)
    sides = [(r.branch.probe.id, r.branch.stance, r.text) for r in panel.requests(tokenizer, readouts=["lead"])]
    assert sides == [("a", "support", "No"), ("a", "oppose", "Yes"), ("b", "support", "Yes"), ("b", "oppose", "No")]
    default = probe(leads={"support": ["yes"], "oppose": ["no"]})
    assert Panel.from_rows([default], "x").hash == Panel.from_rows([probe()], "x").hash


@pytest.mark.parametrize(
    ("leads", "message"),
    [
        ("yes", "leads must be an object"),
        ({"support": ["yes"]}, "leads must be an object"),
        ({"support": ["yes"], "oppose": ["no"], "neutral": []}, "leads must be an object"),
        ({"support": [], "oppose": ["no"]}, "leads.support must be a list of at least one word"),
        ({"support": "yes", "oppose": ["no"]}, "leads.support must be a list of at least one word"),
        ({"support": ["yes"], "oppose": [3]}, r"leads.oppose\[0\] must be a string"),
        ({"support": ["yes "], "oppose": ["no"]}, "starts or ends with white space"),
        ({"support": ["yes"], "oppose": ["Yes"]}, "leads name a word twice"),
    ],
)
def test_leads_that_are_none(leads, message):
    """Guards the reader of a panel: one line with the place."""
    with pytest.raises(InputError, match=rf"p, row 1: .*{message}|p, row 1: {message}"):
        Panel.from_rows([probe(leads=leads)], "p")


def test_questions_in_another_language_need_leads(tokenizer):
    """Guards against yes and no as leads of answers that cannot begin so."""
    german = probe(prompt="Sollte unser Land jedes Jahr mehr Einwanderer aufnehmen?")
    with pytest.raises(InputError, match="its questions are not English"):
        Panel.from_rows([german], "p").requests(tokenizer, readouts=["lead"])
    own = german | {"leads": {"support": ["Yes"], "oppose": ["No"]}}
    assert len(Panel.from_rows([own], "p").requests(tokenizer, readouts=["lead"])) == 2


def test_english():
    """Guards the rule that tells English: not of a word or two, and on everything that is built in."""
    assert all(
        is_english([p.prompt for p in Panel.load(name).probes]) for name in ("values", "values-mini", "controls")
    )
    assert is_english(["Ban guns?"]) and is_english(["Is abortion morally acceptable?"])
    for text in (
        "Le gouvernement devrait-il accueillir plus de r\u00e9fugi\u00e9s chaque ann\u00e9e ?",
        "\u00bfDeber\u00eda nuestro pa\u00eds aceptar m\u00e1s inmigrantes cada a\u00f1o?",
        "\u6211\u4eec\u5e94\u8be5\u63a5\u53d7\u66f4\u591a\u79fb\u6c11\u5417\uff1f",
        "\u041d\u0443\u0436\u043d\u0430 \u043b\u0438 \u0432\u0438\u0437\u0430?",
    ):
        assert not is_english([text])
