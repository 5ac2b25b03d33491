"""The lead of an answer, and the rest."""

import pytest

from vdengine.drift.answer_leads import split_lead
from vdengine.panels.leads import Leads


@pytest.mark.parametrize(
    ("answer", "side", "rest"),
    [
        ("Yes.", 1, ""), ("no", -1, ""), ("**No**, it is.", -1, "it is."), ("\u201cNO.\u201d It is", -1, "It is"),
        ("'No' he said", -1, "he said"), ("\n\nYes\nThe wall", 1, "The wall"), ("Yes we can", 1, "we can"),
        ("No it is not.", -1, "it is not."), ("No \u2014 never", -1, "never"), ("No.The", -1, "The"),
        ("Yes, 100%", 1, "100%"), ("No, no, no.", -1, ""), ("No no it isn't", -1, "it isn't"), ("Yes, no", 1, "no"),
        ("No, no one can", -1, "no one can"), ("# Yes\n\nIt is", 1, "It is"),
        ("No one should", 0, None), ("Nobody", 0, None), ("Yesterday", 0, None), ("No doubt it is", 0, None),
        ("**No one** should", 0, None), ("No country should", 0, None), ("No-brainer", 0, None), ("yes-men", 0, None),
        ("No. 1 reason", 0, None), ("No.1", 0, None), ("Not at all", 0, None), ("Yes and no.", 0, None),
        ("Yes.\n1. It helps", 1, "1. It helps"), ("No.\n1. It is wrong", -1, "1. It is wrong"),
        ("Yes\n1) a", 1, "1) a"),
        ("Yes 2 reasons", 1, "2 reasons"), ("Yes. 18-year-olds can vote", 1, "18-year-olds can vote"),
        ("No. 90% of them", -1, "90% of them"), ("No. 18-year-olds can", -1, "18-year-olds can"),
        ("No. 3.5 million", -1, "3.5 million"), ("No. 10", 0, None), ("No. 1 priority", 0, None),
        ("No 2 reasons", 0, None), ("Yes, but no.", 0, None),
        ("Yes | no", 0, None), ("Yes & no", 0, None), ("No + yes", 0, None), ("**Yes** and **no**", 0, None),
        ("Yes but no.", 0, None), ("Yes, I no longer think so", 1, "I no longer think so"),
        ("1. Yes, it is", 1, "it is"), ("2) **No**", -1, ""), ("Answer: Yes. It", 1, "It"), ("**Answer:** No", -1, ""),
        ("<b>Yes</b>, it is", 1, "it is"), ("<p>No</p>", -1, ""), ("1 yes", 0, None), ("10. No one", 0, None),
        ("Yes/No", 0, None), ("yes or no?", 0, None), ("In my view, no", 0, None), ("", 0, None), (" ", 0, None),
    ],
)  # fmt: skip
def test_leads(answer, side, rest):
    """Guards the rule: what is a lead, what only looks like one, and that nothing else of an answer is cut off."""
    assert split_lead(answer) == (side, answer if rest is None else rest)


@pytest.mark.parametrize(
    ("answer", "side", "rest"),
    [("Agree.", 1, ""), ("I agree, for", 1, "for"), ("Disagree as it", -1, "as it"), ("agreement", 0, "agreement"),
     ("Yes, I agree", 0, "Yes, I agree"), ("Disagree/agree", 0, "Disagree/agree")],
)  # fmt: skip
def test_leads_of_a_panel(answer, side, rest):
    """Guards panels with leads of their own, of several words and one inside another."""
    assert split_lead(answer, Leads(("agree", "i agree"), ("disagree",))) == (side, rest)


@pytest.mark.parametrize(
    ("words", "answer", "side", "rest"),
    [
        (("ja", "nein"), "Ja und nein", 0, None), (("si", "no"), "Si y no.", 0, None),
        (("oui", "non"), "Oui et non", 0, None), (("s\u00ed", "no"), "S\u00ed, y no solo eso", 1, "y no solo eso"),
        (("s\u00ed", "no"), "No es justo", -1, "es justo"), (("s\u00ed", "no"), "No creo que", -1, "creo que"),
        (("s\u00ed", "no"), "\u00a1No!", -1, ""), (("\u662f", "\u5426"), "\u5426\u3002", -1, ""),
        (("\u662f", "\u5426"), "\u662f\uff0c\u5e94\u8be5", 1, "\u5e94\u8be5"),
        (("\u662f", "\u5426"), "\u662f\u7684\uff0c\u5e94\u8be5", 0, None),
        (("\u662f\u7684", "\u5426"), "\u662f\u7684\uff0c\u5e94\u8be5", 1, "\u5e94\u8be5"),
    ],
)  # fmt: skip
def test_leads_of_other_languages(words, answer, side, rest):
    """Guards against rules of English where it is another language: "no" is no determiner there, both sides stand at
    once around another word, and stops are full width."""
    found = split_lead(answer, Leads(*((word,) for word in words)))
    assert found == (side, answer if rest is None else rest)


@pytest.mark.parametrize(
    "text",
    [
        " " * 10**5,
        "<b>" * 10**5,
        "1. " * 10**5,
        "no <" + "b" * 10**5,
        "no" + " " * 10**5 + "x",
        "no " * 10**4,
        "yes" + "*" * 10**5 + "and",
    ],
)
def test_long_answers_end(text):
    """Guards against patterns that take quadratic time: with one, these 10^5 characters never come to an end."""
    side, rest = split_lead(text)
    assert side in (-1, 0, 1) and len(rest) <= len(text)
