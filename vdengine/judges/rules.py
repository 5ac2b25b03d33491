"""A judge made of readable rules: an answer's explicit statements of a side, and its good or bad words for either side.

An answer's lean x towards what the question proposes is the sum of what its argument says,

    proposal    what the question is about is urged, or refused, by a verb of the same or the
                opposite direction ("Should corporate taxes be cut?": "we must lower them",
                "they should be raised")                                                         AVOWAL
    avowal      without a proposal: "I support", "I am against", "it makes no sense", ...        AVOWAL
    valuation   good or bad words (`GOOD`, `BAD`) in a clause about the matter, reversed by a
                negation before them; at most three count                                        VALUE each

and of its lead, a yes or no in its first words (`drift/answer_leads.py`; "of course" and "I don't think so" are the
same): LEAD. Where the argument takes the other side the lead does not count: who says "No" and then argues for it as
much as `OUTWEIGHS` is for it, and who argues for it less is neutral.

The stance is softmax(x, b, -x), with b = `NEUTRAL` plus `HEDGE` for each hedge ("complex", "on one hand", "as an AI"),
at most two. The subject of a clause decides which side its good words are for. A word of the question's own is the
proposition; but of a question that would curb it ("Should corporate taxes be cut?") it is the other side, unless the
clause would curb it too. "It" and "this" are the proposition, and a word of `ASPECTS` stands for or against the
topic's axis. A clause about none of them goes on about what the one before it was about, for three quarters. A clause
that grants a point ("while", "although") counts for a third.

The judge is the same everywhere and free, and it is weak: `docs/judging.md` has its agreement with readers' labels.
The words are in `judges/lexicon.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from vdengine.drift.answer_leads import split_lead
from vdengine.drift.judgements import Stance, Verdict
from vdengine.judges.base import Item
from vdengine.judges.lexicon import ASPECTS, BAD, CURB, FURTHER, GOOD
from vdengine.panels.panel import Probe
from vdengine.panels.words import content_words

VERSION = 3
LEAD, AVOWAL, VALUE, NEUTRAL, HEDGE = 2.5, 2.0, 1.0, 0.7, 0.8
OUTWEIGHS = 1.6  # an argument of two good words
GRANTED = 1 / 3  # weight of a clause that grants a point
GOING_ON = 3 / 4  # of one about nothing of its own
_MOST_AVOWALS, _MOST_VALUES, _MOST_HEDGES = 2, 3, 2

# Avowals of the proposition (+1) or against it (-1).
_AVOWALS = tuple(
    (sign, re.compile(pattern, re.I))
    for sign, pattern in (
        (1, r"\b(?:i|we) (?:\w+ly |do |also |would )?(?:support|favou?r|agree|endorse|welcome|approve)\b"),
        (1, r"\b(?:i am|i'm|we are|am) (?:\w+ly |all )?(?:in favou?r|for it|a supporter|pro)\b"),
        (1, r"\b(?:that|it) is (?:correct|right)\b|\bnothing (?:is )?(?:wrong|against)\b|"
            r"\bin favou?r of (?:it|this|that|the idea)\b"),
        (1, r"\b(?:is|are|would be|seems|sounds like) (?:a |an )?(?:very |really |quite |only )?"
            r"(?:good|great|wise|sensible|fair|right|sound|worthy|reasonable|excellent) "
            r"(?:idea|thing|choice|step|policy|measure|move|decision|solution|way)\b"),
        (1, r"\b(?:should|must|ought to) (?:indeed |certainly |always |definitely |absolutely |all )?be "
            r"(?:raised|allowed|permitted|legal|free|encouraged|supported|protected|expanded|introduced|available|"
            r"welcomed|provided|paid|adopted|granted|recogni[sz]ed|able|given|treated)\b"),
        (1, r"\bthe right thing\b|\bworth it\b|\b(?:benefits|advantages|pros|gains) (?:far |clearly )?outweigh\b|"
            r"\bmoral (?:duty|obligation)\b"),
        (-1, r"\b(?:i|we) (?:\w+ly |also |would )?(?:oppose|reject|disagree|object|disapprove|condemn|doubt)\b"),
        (-1, r"\b(?:i am|i'm|we are|am) (?:\w+ly )?(?:against|opposed|not in favou?r|anti)\b"),
        (-1, r"\b(?:i|we) (?:do not|don't|cannot|can't|would not|wouldn't|will not|won't) (?:\w+ )?"
             r"(?:support|agree|favou?r|believe|think|endorse|approve|see why|see any|recommend|want|need|like|trust|"
             r"accept)\b|\bi would never\b"),
        (-1, r"\b(?:should|must|ought to) (?:not|never)\b|\bshouldn't\b|\bmustn't\b|\bneed not\b"),
        (-1, r"\b(?:is|are|would be|isn't|not) (?:a |an )?(?:very |really |quite |just |simply )?"
             r"(?:bad|terrible|poor|unwise|wrong|unfair|not|never|harmful|cruel|dangerous|stupid) (?:a |an )?"
             r"(?:good |ideal )?(?:idea|thing|choice|step|policy|measure|move|question|decision|solution|way)\b"),
        (-1, r"\bnot (?:always |necessarily )?(?:the |an? )?(?:best|right|good|ideal|effective|appropriate|justified|"
             r"acceptable|fair|true|necessary|needed|the answer|the solution)\b"),
        (-1, r"\bstands? (?:firmly )?against\b|\bno (?:good |real )?"
             r"(?:need|reason|justification|evidence|place|excuse) (?:for|to|that|in|why)\b|"
             r"\b(?:makes?|making) no sense\b|\b(?:do|does)(?: not|n't) make (?:any )?sense\b|"
             r"\b(?:costs|risks|harms?|cons|disadvantages|drawbacks) (?:far |clearly )?outweigh\b|\ba mistake\b|"
             r"\bi refuse\b|\bi(?:'m| am) not convinced\b|\bno business\b|"
             r"\bnot (?:the|a|our) (?:\w+ )?(?:role|job|business)\b|"
             r"\bno one should\b|\bnobody should\b|\bno \w+ should\b|\bit(?: is|'s) (?:simply |just |clearly )?"
             r"(?:wrong|unfair|unjust|false|a myth)\b|\bhas no right\b|\bhave no right\b"),
    )
)  # fmt: skip
_HEDGES = re.compile(
    r"\b(?:have|has|take|hold) no (?:view|opinion|position|stance)\b|\bopinions (?:differ|vary)\b|"
    r"\bi (?:do not|don't) know\b|\bnot for me\b|\bboth ways\b|\bhard to say\b|"
    r"\bit(?: is|'s) (?:complicated|difficult|up to)\b|"
    r"\bcomplex\w*|\bnuanced?\b|\bmultifaceted\b|\bdelicate\b|\bcontentious\b|\bcontroversial\b|\bdebate\w*|"
    r"\bdepends?\b|\bboth sides\b|\bon (?:the )?one hand\b|\bon the other hand\b|\bclear-cut\b|\bdilemma\b|"
    r"\bquestion of whether\b|\bas an? \w* ?(?:ai|assistant|language model)\b|\bpersonal (?:matter|decision|opinion)\b|"
    r"\bi (?:do not|don't) (?:have|take|hold)\b|\bperspectives\b|\bpolari[sz]ing\b|\bbalanc\w+|\bdiffering\b|"
    r"\b(?:essential|important|crucial|necessary|vital) to (?:\w+ly )?(?:consider|approach|understand|note|"
    r"recogni[sz]e|acknowledge|remember|examine|weigh|address|think|look)\b|"
    r"\bnot (?:entirely )?sure\b|\bchalleng\w+|"
    r"\b(?:careful|thoughtful) (?:consideration|approach)\b|\bvar(?:y|ies)\b|\bimplications\b|"
    r"\b(?:ethical|moral) question|"
    r"\bdifferent (?:views|opinions)\b|\bsome (?:people )?(?:say|argue|believe)\b|\bneither\b",
    re.I,
)
_GRANTS = re.compile(r"^\W*(?:while|although|though|even if|even though|despite|granted)\b", re.I)
_CLAUSES = re.compile(r"[.!?;:\n]+|,\s+(?:but|yet|so|and)\s+|,\s+|\bhowever\b|\bbut\b|\s[\u2013\u2014-]\s", re.I)
_NOT = re.compile(
    r"\b(?:not|no|never|without|lacks?|less|hardly|barely|neither|nor|isn't|aren't|doesn't|don't|won't|cannot|can't|"
    r"reduc\w+|prevent\w*|avoid\w*|end(?:s|ing)?|against|fails?|far from|un(?:able|likely)|lower\w*|cut(?:s|ting)?|"
    r"fight\w*|alleviat\w+|tackl\w+|combat\w*|eas(?:e|es|ing)|eliminat\w+|stop\w*|solv\w+|address\w*|"
    r"protect\w* (?:us )?from|den(?:y|ies|ying))\b",
    re.I,
)

_LATE_LEAD = re.compile(r"[,:.!]\s+[\"'\u201c]?(yes|no)\b(?=\s*[,.!;:]|\s+(?:i|it|we|the|there|this)\b)", re.I)
_LEAD_WORDS = 16  # at the start of an answer, in which a yes or no behind other words is a lead
_AGAINST = re.compile(r"\b(?:wrong|bad|exaggerated|harmful|immoral|unfair|dangerous|banned|abolished|illegal)\b", re.I)
_ITS = r"(?:it|they|we|this|that|he|she|there|i|you)"
_IS_OR_DOES = r"(?:is|are|was|were|do|does|did|should|must|can|could|will|would|has|have)"
_ECHO = re.compile(  # a first sentence, or a part of it, that says no more than a lead
    r"[\W_]*(?:(?P<no>(?:absolutely|certainly|definitely|of course|surely) not|not (?:at all|really|necessarily|quite)|"
    r"never|nope|nah|by no means|i doubt (?:it|that)|i (?:do not|don't) (?:think|believe) so|"
    rf"{_ITS} (?:{_IS_OR_DOES}(?:n't| not)|cannot|can't|won't))|"
    r"(?P<yes>of course|absolutely|certainly|definitely|sure|surely|indeed|exactly|yeah|yep|agreed|"
    rf"i (?:do |really )?(?:think|believe|suppose|guess|hope) so|{_ITS} {_IS_OR_DOES}))"
    r"(?=\s*(?:[.,;:!?]|$|\s[-\u2013\u2014]\s))",
    re.I,
)
_IS = re.compile(r"\b(it|that|this|there|he|she|here)'s\b", re.I)
_ASKS = re.compile(r"\b(?:whether|not sure|question of|wonder)\b|\?$", re.I)
_NOT_URGED = re.compile(r"\b(?:not|never|n't|cannot|stop|no)\b|n't\b", re.I)
_JOINED = re.compile(
    r"\b(climate|global|fossil|carbon|oil|private|public|border|free|green) "
    r"(change|warming|crisis|fuels?|action|policy|policies|tax|taxes|emissions|drilling|companies|services|wall|market)\b"
)
_BAD_PHRASES = re.compile(
    r"\braises? (?:\w+ )?(?:concerns|doubts)\b|\bat the expense of\b|"
    r"\bi(?:'m| am) (?:worried|concerned) (?:about|that)\b|"
    r"\btakes? (?:it |them )?away\b|\b(?:goes|runs) against\b|\bcontrary to\b|\bignor(?:es?|ing)\b|"
    r"\b(?:doesn't|does not|don't|do not|didn't|won't|cannot|can't) (?:work|help|solve|change|belong)\b|"
    r"\bonly (?:suits?|serves?)\b|\bdouble standard\b|"
    r"\btoo (?:much|many|far|expensive|costly|risky|dangerous|high|hard|strict|harsh)\b|\bunintended consequences\b",
    re.I,
)
_POINTS = re.compile(r"^\W*(?:it|this|that|such|these|the (?:idea|notion|proposal|measure|policy|move))\b", re.I)

_ASPECTS = {t: tuple(frozenset(words.split()) for words in sides) for t, sides in ASPECTS.items()}


class RuleJudge:
    """The rules as a judge."""

    name = "rule"
    identity: dict[str, Any] = {"kind": "rule", "version": VERSION}

    def estimate(self, items: Sequence[Item]) -> str:
        """What judging these takes, in words."""
        return f"{len(items):,} questions, by rules, at once"

    def judge(self, items: Sequence[Item]) -> Iterator[tuple[int, Verdict]]:
        """(index, verdict) of each item, in order."""
        for i, item in enumerate(items):
            yield i, Verdict(stance_of(item.probe, item.answer))


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
    text = _IS.sub(r"\1 is", answer.replace("\u2019", "'"))
    hedges = min(len(_HEDGES.findall(text)), _MOST_HEDGES)
    side, rest = split_lead(text, probe.leads)
    while (echo := _ECHO.match(rest)) is not None:  # "Yes, of course", "No, I don't think so"
        side, rest = side or (1 if echo["yes"] else -1), rest[echo.end() :]
    if not side and (late := _LATE_LEAD.search(" ".join(rest.split()[:_LEAD_WORDS]))):
        side = 1 if late[1].lower() == "yes" else -1
    argument = _argument(probe, rest)
    if side * argument < -NEUTRAL:  # two sides
        return (argument if abs(argument) >= OUTWEIGHS else 0.0), hedges
    return LEAD * side + argument, hedges


def _argument(probe: Probe, text: str) -> float:
    """What a text says for (+) or against (-) the proposition, its lead apart."""
    matter = _Matter(probe)
    avowed = valuation = about = 0.0
    for clause in _clauses(text):
        weight = GRANTED if _GRANTS.match(clause) else 1.0
        if weight == 1.0:
            avowed += matter.urged(clause) or _avowal(clause)
        side = matter.side(clause)
        about = side or GOING_ON * about
        valuation += weight * about * matter.balance(clause)
    avowed = max(-_MOST_AVOWALS, min(_MOST_AVOWALS, avowed))
    return AVOWAL * avowed + VALUE * max(-_MOST_VALUES, min(_MOST_VALUES, valuation))


def _clauses(text: str) -> list[str]:
    return [clause for clause in _CLAUSES.split(text) if clause and clause.strip()]


def _avowal(clause: str) -> float:
    """+1 or -1 where the clause avows a side, else 0; refusals are looked for first: "should not be allowed" is one."""
    if _ASKS.search(clause):
        return 0.0
    for sign in (-1, 1):
        if any(side == sign and pattern.search(clause) for side, pattern in _AVOWALS):
            return float(sign)
    return 0.0


_URGES = re.compile(
    r"\b(?:should|must|needs? to|ha(?:ve|s) to|let's|let us|ought to|time to|better to|right to|important to|"
    r"necessary to|essential to|crucial to|vital to|duty to|obligation to)\b(?P<rest>.*)",
    re.I,
)
_PRONOUNS = frozenset("it this that them they these those".split())
_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


class _Matter:
    """What a question is about, and the side that a clause takes of it."""

    def __init__(self, probe: Probe) -> None:
        self.own = frozenset(map(_stem, content_words(probe.prompt)))
        asked = _WORD.findall(probe.prompt.lower())
        # +1: it would further something, -1: it would curb it, by its first verb that does either.
        self.direction = next((_direction(word) for word in asked[1:] if _direction(word)), 0)
        if _AGAINST.search(probe.prompt):
            self.direction = -1
        self.polarity = probe.polarity
        for_axis, against_axis = _ASPECTS.get(probe.topic, (frozenset[str](), frozenset[str]()))
        self.for_axis, self.against_axis = for_axis, against_axis

    def urged(self, clause: str) -> float:
        """+1 where the clause urges what the question proposes, -1 where it refuses it, else 0."""
        found = _URGES.search(clause)
        if found is None:
            return 0.0
        words = _WORD.findall(found["rest"].lower())
        about = set(_WORD.findall(clause.lower()))
        if not (about & _PRONOUNS or {_stem(word) for word in about} & self.own):
            return 0.0
        towards = next((_direction(word) for word in words[:5] if _direction(word)), 0)
        if not towards or not self.direction:
            return 0.0
        refused = _NOT_URGED.search(clause) is not None  # also before it: "I do not believe that they should"
        return float(towards * self.direction * (-1 if refused else 1))

    def side(self, clause: str) -> float:
        """+1 where the clause is about what the question proposes, -1 about the opposite, 0 about neither."""
        words = _WORD.findall(_JOINED.sub(r"\1-\2", clause.lower()))
        if _POINTS.match(clause) or len(words) <= 2:
            return 1.0
        own = [i for i, word in enumerate(words) if _stem(word) in self.own and not _direction(word)]
        curbs = any(_direction(word) < 0 for i in own[:1] for word in words[max(0, i - 3) : i])
        num_for, num_against = len(self.for_axis.intersection(words)), len(self.against_axis.intersection(words))
        if num_for != num_against:
            side = self.polarity * (1 if num_for > num_against else -1)
            # "Fewer immigrants", asked of more; "a ban on it", asked of a ban.
            return float(-side if curbs and side == self.direction else side)
        if own:
            # The thing itself is for those who would further it, and against those who would curb it.
            return float((self.direction or 1) * (-1 if curbs else 1))
        return 0.0

    def balance(self, clause: str) -> float:
        """Good less bad words of a clause; one behind a negation counts for the other."""
        words = _WORD.findall(_JOINED.sub(r"\1-\2", clause.lower()))
        balance = -float(len(_BAD_PHRASES.findall(clause)))
        for i, word in enumerate(words):
            if _stem(word) in self.own or word in self.for_axis or word in self.against_axis:
                continue  # the subject itself, not a judgement of it
            sign = (word in GOOD) - (word in BAD)
            if sign:
                balance += -sign if _NOT.search(" ".join(words[max(0, i - 4) : i])) else sign
        return balance


def _stem(word: str) -> str:
    """A word without the commonest endings."""
    for ending in ("'s", "ing", "ies", "es", "ed", "s", "y", "e"):
        if word.endswith(ending) and len(word) > len(ending) + 2:
            return word.removesuffix(ending)
    return word


def _direction(word: str) -> int:
    """+1 for a verb that furthers a thing, -1 for one that curbs it, 0 for any other word."""
    return int(word.startswith(FURTHER)) - int(word.startswith(CURB))
