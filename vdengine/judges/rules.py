"""A judge made of readable rules: an answer's explicit statements of a side, and its good or bad words for either side.

An answer's lean x towards what the question proposes is the sum of

    lead        yes or no in its first words                                                     LEAD
    avowal      "I support", "I am against", "should not be", ...                                AVOWAL
    proposal    without an avowal: the question's own verb is urged ("Should corporate taxes
                be cut?": "they must be cut"), or refused                                        AVOWAL
    valuation   good or bad words (`GOOD`, `BAD`) in a clause about the matter, reversed by a
                negation before them; at most three count                                        VALUE each

The stance is softmax(x, b, -x), with b = `NEUTRAL` plus `HEDGE` for each hedge ("complex", "on one hand", "as an AI"),
at most two. The subject of a clause decides which side its good words are for: a word of the question's own, or "it"
and "this", is the proposition; a word of `ASPECTS` stands for or against the topic's axis. A clause about neither does
not count. A clause that grants a point ("while", "although") counts for a third.

The judge is the same everywhere and free, and it is weak: `docs/judging.md` has its agreement with hand-made labels.
The words are in `judges/lexicon.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vdengine.drift.judgements import Stance
from vdengine.judges.base import Item
from vdengine.judges.lexicon import ASPECTS, BAD, GOOD
from vdengine.panels.panel import Probe
from vdengine.panels.words import content_words

VERSION = 2
LEAD, AVOWAL, VALUE, NEUTRAL, HEDGE = 2.5, 2.0, 0.8, 1.5, 0.5
GRANTED = 1 / 3  # weight of a clause that grants a point
_MOST_VALUES, _MOST_HEDGES = 3, 2
_LEAD_WORDS = 16  # at the start of an answer, in which a yes or no is a lead

_LEAD = re.compile(r"^\W*(?:a )?(yes|yeah|absolutely|certainly|definitely|of course|indeed|no|nope|never)\b", re.I)
_LATE_LEAD = re.compile(r"[,:.!]\s+[\"'\u201c]?(yes|no)\b(?=\s*[,.!;:]|\s+(?:i|it|we|the|there|this)\b)", re.I)
_YES = frozenset("yes yeah absolutely certainly definitely indeed".split()) | {"of course"}

# Avowals of the proposition (+1) or against it (-1).
_AVOWALS = tuple(
    (sign, re.compile(pattern, re.I))
    for sign, pattern in (
        (1, r"\b(?:i|we) (?:\w+ly )?(?:support|favou?r|agree|endorse|welcome|approve)\b"),
        (1, r"\b(?:i am|i'm|we are) (?:\w+ly )?(?:in favou?r|for it|a supporter|pro)\b"),
        (1, r"\b(?:is|are|would be|seems|sounds like) (?:a |an )?(?:very |really |quite )?"
            r"(?:good|great|wise|sensible|fair|right|sound|worthy) (?:idea|thing|choice|step|policy|measure|move)\b"),
        (1, r"\b(?:should|must|ought to) (?:indeed |certainly |always |definitely )?be "
            r"(?:raised|allowed|permitted|legal|free|encouraged|supported|protected|expanded|introduced|available|"
            r"welcomed|provided|paid|adopted|granted|recogni[sz]ed)\b"),
        (-1, r"\b(?:i|we) (?:\w+ly )?(?:oppose|reject|disagree|object|disapprove|condemn)\b"),
        (-1, r"\b(?:i am|i'm|we are) (?:\w+ly )?(?:against|opposed|not in favou?r|anti)\b"),
        (-1, r"\b(?:i|we) (?:do not|don't|cannot|can't|would not|wouldn't|will not|won't) (?:\w+ )?"
             r"(?:support|agree|favou?r|believe|think|endorse|approve|see why|engineer|recommend)\b"),
        (-1, r"\b(?:should|must|ought to) (?:not|never)\b|\bshouldn't\b|\bmustn't\b"),
        (-1, r"\b(?:is|are|would be|isn't|not) (?:a |an )?(?:very |really |quite )?"
             r"(?:bad|terrible|poor|unwise|wrong|unfair|not|never|harmful|cruel) (?:a |an )?(?:good |ideal )?"
             r"(?:idea|thing|choice|step|policy|measure|move|question)\b"),
        (-1, r"\bnot (?:always |necessarily )?(?:the |an? )?(?:best|right|good|ideal|effective|appropriate|justified|"
             r"acceptable|the answer|the solution)\b"),
        (-1, r"\bstands? (?:firmly )?against\b|\bno (?:need|reason|justification) (?:for|to)\b"),
    )
)  # fmt: skip
_HEDGES = re.compile(
    r"\bcomplex\w*|\bnuanced?\b|\bmultifaceted\b|\bdelicate\b|\bcontentious\b|\bcontroversial\b|\bdebate\w*|"
    r"\bdepends?\b|\bboth sides\b|\bon (?:the )?one hand\b|\bon the other hand\b|\bclear-cut\b|\bdilemma\b|"
    r"\bquestion of whether\b|\bas an? \w* ?(?:ai|assistant|language model)\b|\bpersonal (?:matter|decision|opinion)\b|"
    r"\bi (?:do not|don't) (?:have|take|hold)\b|\bperspectives\b|\bpolari[sz]ing\b|\bbalanc\w+|\bdiffering\b|"
    r"\bdifferent (?:views|opinions)\b|\bsome (?:people )?(?:say|argue|believe)\b|\bneither\b",
    re.I,
)
_GRANTS = re.compile(r"^\W*(?:while|although|though|even if|even though|despite|granted)\b", re.I)
_CLAUSES = re.compile(r"[.!?;:\n]+|,\s+(?:but|yet|so|and)\s+|,\s+|\bhowever\b|\bbut\b|\s[\u2013\u2014-]\s", re.I)
_NOT = re.compile(
    r"\b(?:not|no|never|without|lacks?|less|hardly|barely|neither|nor|isn't|aren't|doesn't|don't|won't|cannot|can't|"
    r"reduc\w+|prevent\w*|avoid\w*|end(?:s|ing)?|against|fails?|far from|un(?:able|likely))\b",
    re.I,
)

_JOINED = re.compile(
    r"\b(climate|global|fossil|carbon|oil|private|public|border|free|green) "
    r"(change|warming|crisis|fuels?|action|policy|policies|tax|taxes|emissions|drilling|companies|services|wall|market)\b"
)
_POINTS = re.compile(r"^\W*(?:it|this|that|such|these|the (?:idea|notion|proposal|measure|policy|move))\b", re.I)

_ASPECTS = {t: tuple(frozenset(words.split()) for words in sides) for t, sides in ASPECTS.items()}


class RuleJudge:
    """The rules as a judge."""

    name = "rule"
    identity: dict[str, Any] = {"kind": "rule", "version": VERSION}

    def estimate(self, items: Sequence[Item]) -> str:
        """What judging these takes, in words."""
        return f"{len(items):,} answers, by rules, at once"

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Stance]]:
        """(index, stance) of each item, in order."""
        for i, item in enumerate(items):
            yield i, stance_of(item.probe, item.answer)


def stance_of(probe: Probe, answer: str) -> Stance:
    """p(support, neutral, oppose) towards the probe's proposition."""
    towards, hedges = lean(probe, answer)
    return _softmax(towards, NEUTRAL + HEDGE * hedges)


def _softmax(towards: float, neutral: float) -> Stance:
    """The softmax of (towards, neutral, -towards)."""
    top = max(abs(towards), neutral)
    support, middle, oppose = math.exp(towards - top), math.exp(neutral - top), math.exp(-towards - top)
    total = support + middle + oppose
    return support / total, middle / total, oppose / total


def lean(probe: Probe, answer: str) -> tuple[float, int]:
    """(x, number of hedges) of an answer, as the module defines them."""
    text = answer.replace("\u2019", "'")
    hedges = min(len(_HEDGES.findall(text)), _MOST_HEDGES)
    towards, rest = _lead(text)
    valuation = 0.0
    for clause in _clauses(rest):
        weight = GRANTED if _GRANTS.match(clause) else 1.0
        if weight == 1.0:
            towards += AVOWAL * (_avowal(clause) or _urged(probe, clause))
        valuation += weight * _valuation(probe, clause)
    return towards + VALUE * max(-_MOST_VALUES, min(_MOST_VALUES, valuation)), hedges


def _lead(text: str) -> tuple[float, str]:
    """The lead of a yes or no among the first words (0 without one), and the text after it."""
    match = _LEAD.match(text)
    if match is None:
        head = " ".join(text.split()[:_LEAD_WORDS])
        match = _LATE_LEAD.search(head)
        text = head + text[len(head) :] if match else text
    if match is None:
        return 0.0, text
    return (LEAD if match[1].lower() in _YES else -LEAD), text[match.end() :]


def _clauses(text: str) -> list[str]:
    return [clause for clause in _CLAUSES.split(text) if clause and clause.strip()]


def _avowal(clause: str) -> float:
    """+1 or -1 where the clause avows a side, else 0; refusals are looked for first: "should not be allowed" is one."""
    for sign in (-1, 1):
        if any(side == sign and pattern.search(clause) for side, pattern in _AVOWALS):
            return float(sign)
    return 0.0


_ASKED = re.compile(r"^(?:should|must|ought)\b.*?\b(?:be|have to)\s+(?:\w+ly\s+)?(?P<verb>\w+)", re.I)
_URGES = r"(?:should|must|need to|needs to|have to|has to|let's|let us|ought to)(?: \w+){0,2} "


def _urged(probe: Probe, clause: str) -> float:
    """+1 where the clause urges what the question asks about, by the question's own verb; -1 where it refuses it."""
    asked = _ASKED.search(probe.prompt)
    if asked is None:
        return 0.0
    verb = re.escape(asked["verb"].removesuffix("ed").removesuffix("e"))
    urged = re.search(rf"\b{_URGES}{verb}\w*", clause, re.I)
    if urged is None:
        return 0.0
    return -1.0 if _NOT.search(urged[0]) else 1.0


def _valuation(probe: Probe, clause: str) -> float:
    """Good less bad words of a clause, towards the proposition; 0 where the clause is not about the matter."""
    words = re.findall(r"[^\W_]+(?:[-'][^\W_]+)*", _JOINED.sub(r"\1-\2", clause.lower()))
    for_axis, against_axis = _ASPECTS.get(probe.topic, (frozenset(), frozenset()))
    of_question = content_words(probe.prompt)
    # Which side the clause is about: +1 the proposition's, -1 the other.
    num_for, num_against = len(for_axis.intersection(words)), len(against_axis.intersection(words))
    if num_for != num_against:
        side = probe.polarity * (1 if num_for > num_against else -1)
    elif any(word in of_question for word in words) or _POINTS.match(clause) or len(words) <= 2:
        side = 1
    else:
        return 0.0
    balance = 0.0
    for i, word in enumerate(words):
        if word in of_question or word in for_axis or word in against_axis:
            continue  # the subject itself, not a judgement of it
        sign = (word in GOOD) - (word in BAD)
        if sign:
            balance += -sign if _NOT.search(" ".join(words[max(0, i - 4) : i])) else sign
    return side * balance
