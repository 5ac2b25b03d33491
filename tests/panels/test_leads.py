"""Leads: the tokens that spell them under a tokenizer and template, and the panels that need their own."""

import pytest
from helpers.tiny import CHATML

from vdengine.errors import InputError
from vdengine.panels.leads import YES_NO, Leads, is_english, spellings
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


def test_spellings_begin_answers(tokenizer):
    """Guards the list: whole words ("yes" is bytes here), as the template lets an answer begin."""
    renderer = Renderer(tokenizer)
    found = spellings(YES_NO, renderer)
    assert [(s.stance, s.text) for s in found] == [("support", "Yes"), ("oppose", "No")]
    assert all(renderer.tokenizer.decode(list(s.ids)) == s.text for s in found)
    with pytest.raises(InputError, match="'Agree' takes more than 2 tokens at the start of an answer under .*template"):
        spellings(Leads(("agree",), ("no",)), renderer)
    with pytest.raises(InputError, match="leave 'lead' out of the readouts"):
        spellings(YES_NO, Renderer(tokenizer, "plain"))  # an answer begins with a space there: "\u0120", "Yes" of bytes


@pytest.mark.parametrize("name", ["qwen3", "llama3"])
def test_spellings_of_real_tokenizers(real_tokenizer, name):
    """Guards the balance of the two sides: every way to spell the words of one is there for the other, in words that
    tokenizers cut differently too (" oppose" is one token, "Oppose" is two)."""
    renderer = Renderer(load_tokenizer(str(real_tokenizer(name))), "plain" if name == "llama3" else "auto")
    for leads in (
        YES_NO,
        Leads(("agree",), ("disagree",)),
        Leads(("support",), ("oppose",)),
        Leads(("ja",), ("nein",)),
    ):
        found = spellings(leads, renderer)
        ways = {
            side: [s.text.replace(s.text.strip(' "\u201c_(*'), "w") + str(s.text.strip(' "\u201c_(*').isupper())
                   + str(s.text.strip(' "\u201c_(*').islower()) for s in found if s.stance == side]
            for side in ("support", "oppose")
        }  # fmt: skip
        assert ways["support"] == ways["oppose"] and len(found) >= 4
        assert len({s.ids for s in found}) == len(found) and all(len(s.ids) <= 2 for s in found)
    assert all(len(s.ids) == 1 for s in spellings(YES_NO, renderer) if s.text.strip() in ("Yes", "No"))


def test_leads_that_cannot_be_told_apart(tokenizer):
    """Guards probabilities against counting an answer twice, or for both sides."""
    renderer = Renderer(tokenizer)
    with pytest.raises(InputError, match="begins with the lead 'Yes': answers would count twice"):
        spellings(Leads(("yes",), ("yesx",)), renderer)


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
    said = Panel.from_rows([probe(leads={"support": ["yes"], "oppose": ["no"]})], "x")
    assert (
        said.probes[0] == Panel.from_rows([probe()], "x").probes[0]
    )  # but it was said: another language may have them
    assert "leads" in said.probes[0].to_row() and "leads" not in probe()


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
    own = german | {"leads": {"support": ["yes"], "oppose": ["no"]}}
    assert len(Panel.from_rows([own], "p").requests(tokenizer, readouts=["lead"])) == 2


def test_english():
    """Guards the rule that tells English: another language's own words are the evidence, not the lack of English
    ones."""
    assert all(
        is_english([p.prompt for p in Panel.load(name).probes]) for name in ("values", "values-mini", "controls")
    )
    assert is_english(["Ban guns?"]) and is_english(["Is abortion morally acceptable?"]) and is_english([])
    assert is_english(["Legalize abortion nationwide?", "Raise taxes on wealthy citizens?", "Guns save lives."])
    for texts in (
        ["Le gouvernement devrait-il accueillir plus de r\u00e9fugi\u00e9s chaque ann\u00e9e ?"],
        ["\u00bfDeber\u00eda nuestro pa\u00eds aceptar m\u00e1s inmigrantes cada a\u00f1o?"],
        ["I ricchi dovrebbero pagare pi\u00f9 tasse?", "I genitori dovrebbero poter scegliere la scuola per i figli?"],
        ["Skal vi have flere flygtninge i landet?", "Er det en god id\u00e9 at forbyde biler?"],
        ["Moeten wij meer vluchtelingen opnemen?", "Is het een goed idee om auto's te verbieden?"],
        ["Czy powinni\u015bmy przyjmowa\u0107 wi\u0119cej uchod\u017ac\u00f3w?", "Czy aborcja jest dopuszczalna?"],
        ["\u6211\u4eec\u5e94\u8be5\u63a5\u53d7\u66f4\u591a\u79fb\u6c11\u5417\uff1f"],
        ["\u041d\u0443\u0436\u043d\u0430 \u043b\u0438 \u0432\u0438\u0437\u0430?"],
    ):
        assert not is_english(texts), texts


def test_trivial_matters_are_read_by_the_panels_leads(tokenizer):
    """Guards the control: of other words it would say nothing of these, and they may be no tokens at all."""
    own = probe(
        leads={"support": ["No"], "oppose": ["Yes"]}, openings=Panel.load("controls").probes[0].to_row()["openings"]
    )
    requests = Panel.from_rows([own], "p").requests(tokenizer, controls=True)
    sides = {
        (r.branch.stance, r.text) for r in requests if r.branch.variant == "off-topic" and r.branch.channel == "leads"
    }
    assert sides == {("support", "No"), ("oppose", "Yes")}
    null = [r.text for r in requests if r.branch.variant == "null"]
    assert len(set(null)) == len(null)  # the panel shares openings with the control's
    mixed = Panel.from_rows([own, own | {"id": "b", "leads": {"support": ["Yes"], "oppose": ["No"]}}], "p")
    assert not [
        r for r in mixed.requests(tokenizer, controls=True, readouts=["lead"]) if r.branch.variant == "off-topic"
    ]
