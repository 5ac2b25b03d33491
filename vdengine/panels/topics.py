"""Which topic of a panel a text is about: a lexical matcher with the panel's own terms. No model, no training.

A term is a stemmed word, or two adjacent ones, of a panel's prompts, paraphrases and openings. It belongs to a topic if
at least `MIN_PROBES` of its probes use it and at least `CONCENTRATION` of all probes that use it are of that topic; it
weighs the log of how much more often that topic uses it. Topics whose terms are everyday words have few such terms, so
`KEY_TERMS` adds phrases for the built-in panel's topics, and a caller may add more for any. A text is on the topic with
the highest sum of weights, if that is at least `THRESHOLD` and one of its terms is not an everyday word. What was hit
is reported, so a reader can see why a row was taken.

Precision comes before recall: rows that are missed make an estimate wider, rows on other matters make it wrong.
Measured on texts by other hands: docs/panel.md.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from vdengine.errors import InputError
from vdengine.panels.panel import Panel, Probe
from vdengine.panels.words import content_words

OFF_TOPIC = "off-topic"  # the topic of control probes on trivial matters
MIN_PROBES = 2
CONCENTRATION = 0.7
THRESHOLD = 3.0
KEY_WEIGHT = 4.0

# For topics of the built-in panel `values`; stemmed as any text is. None of them is about anything else by itself.
KEY_TERMS: dict[str, tuple[str, ...]] = {
    "immigration": (
        "immigrant", "immigrate", "immigration", "illegal alien", "migrant", "migration policy", "refugees",
        "asylum seeker", "deport", "deportation", "foreigners", "border wall", "open borders", "border control",
        "path to citizenship", "undocumented", "naturalisation", "work visa",
    ),
    "abortion": (
        "abortion", "pro-life", "pro-choice", "unborn", "fetus", "foetus", "roe v wade",
        "terminate a pregnancy", "unwanted pregnancy",
    ),
    "climate change": (
        "climate change", "global warming", "greenhouse gas", "carbon emissions", "carbon tax", "carbon footprint",
        "fossil fuel", "net zero", "renewable energy", "paris agreement", "environmental issue", "climate crisis",
        "climate policy", "sea levels",
    ),
    "economic policy": (
        "minimum wage", "living wage", "basic income", "universal income", "social income", "income tax", "wealth tax",
        "sales tax", "tax the rich", "tax cut", "tax base", "higher taxes", "lower taxes", "taxation",
        "income inequality", "wealth inequality", "economic inequality", "redistribute", "redistribution", "capitalism",
        "socialism", "communism", "free market", "trade union", "labour union", "labor union", "welfare state",
        "welfare benefits", "unemployment", "unemployment rate", "universal healthcare", "privatise", "privatize",
        "nationalise", "nationalize", "billionaires", "austerity", "inflation", "tariffs", "public spending",
        "government spending", "price control", "rent control", "deregulation", "subsidies", "public debt",
    ),
    "family relations": (
        "divorce", "gender roles", "stay at home mother", "stay at home mom", "working mother", "single mother",
        "single parent", "unmarried couple", "arranged marriage", "traditional family", "family values", "spank",
        "in laws", "elderly parents", "filial", "raise children", "raise a child", "housewife",
    ),
    "religion": (
        "religion", "religious", "christianity", "christian", "islam", "muslim", "judaism", "hinduism", "hindu",
        "buddhism", "atheism", "atheist", "agnostic", "bible", "quran", "jesus", "allah", "church", "mosque",
        "afterlife", "prayer", "spirituality", "existence of god", "god exist", "believe in god",
    ),
    "elections and parties": (
        "election", "elections", "political party", "political parties", "voter id", "voting rights", "electoral",
        "ballot", "vote for", "republican party", "democratic party", "republicans", "democrats", "conservative party",
        "labour party", "gerrymandering", "referendum", "voter turnout", "campaign finance",
    ),
    "Israel and Palestine": (
        "israel", "israeli", "palestine", "palestinian", "gaza", "hamas", "zionism", "zionist", "west bank",
        "two state solution", "idf", "netanyahu",
    ),
    "gender and LGBTQ+ rights": (
        "gay", "lesbian", "lgbt", "lgbtq", "transgender", "trans people", "trans women", "trans men", "homosexual",
        "homosexuality", "same sex", "gender identity", "gender reassignment", "sexual orientation", "bisexual",
        "nonbinary", "non-binary", "drag queen", "homophobic", "homophobe", "transphobic", "their gender",
    ),
    "death penalty": (
        "death penalty", "capital punishment", "death row", "death sentence", "lethal injection", "electric chair",
    ),
    "race and racism": (
        "racism", "racist", "racial", "racially", "affirmative action", "black lives matter", "black people",
        "white people", "brown people", "n word", "white supremacy", "white supremacist", "segregation", "slavery",
        "reparations", "people of color", "people of colour", "ethnic minority", "skin color", "skin colour",
        "police brutality", "reverse racism", "white privilege",
    ),
}  # fmt: skip


def load_terms(path: str | Path) -> dict[str, list[str]]:
    """More key terms, from a JSON file {"topic": ["phrase", ...]}. InputError: not such a file."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: broken JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(value, dict) or not all(
        isinstance(v, list) and all(isinstance(p, str) for p in v) for v in value.values()
    ):
        raise InputError(f'{path}: must be a JSON object of lists of phrases, {{"topic": ["phrase", ...]}}')
    return value


class Match(NamedTuple):
    """The topic of a text (None: none of the panel's), its score, and the terms that were hit."""

    topic: str | None
    score: float
    terms: tuple[str, ...]


class TopicMatcher:
    """Matches texts to the topics of a panel.

    keys: more phrases by topic, of up to four words each. InputError: a topic that the panel does not have.
    """

    def __init__(self, panel: Panel, keys: Mapping[str, Sequence[str]] | None = None) -> None:
        self.topics = panel.topics
        for topic in keys or {}:
            if topic not in self.topics:
                raise InputError(f"terms: panel {panel.name} has no topic {topic!r}; it has {', '.join(self.topics)}")
        self.weights: dict[str, dict[str, float]] = defaultdict(dict)  # term -> topic -> weight
        using = {t: Counter(term for p in panel.probes if p.topic == t for term in _own_terms(p)) for t in self.topics}
        num = Counter(p.topic for p in panel.probes)
        total: Counter[str] = Counter()
        for counts in using.values():
            total.update(counts)
        for topic, counts in using.items():
            for term, k in counts.items():
                others = total[term] - k
                if k < MIN_PROBES or k < CONCENTRATION * (k + others):
                    continue
                odds = (k + 0.5) / (num[topic] + 1), (others + 0.5) / (len(panel.probes) - num[topic] + 1)
                weight = math.log(odds[0] / odds[1]) * min(1.0, math.sqrt(k / 6))  # less for what few probes use
                if weight > 0:
                    self.weights[term][topic] = weight * (0.5 if _is_common(term) else 1.0)
        self.keys: set[str] = set()
        for topic in self.topics:
            for phrase in (topic, *KEY_TERMS.get(topic, ()), *(keys or {}).get(topic, ())):
                words = tuple(words_of(phrase))
                if not 1 <= len(words) <= _LONGEST:
                    if phrase == topic:
                        continue
                    raise InputError(f"terms: {phrase!r} of topic {topic!r} must have 1 to {_LONGEST} words")
                term = " ".join(words)
                if phrase == topic and _is_common(term):
                    continue
                self.keys.add(term)
                self.weights[term][topic] = max(KEY_WEIGHT, self.weights[term].get(topic, 0.0))

    def match(self, text: str) -> Match:
        """The topic of one text."""
        score: dict[str, float] = defaultdict(float)
        hits: dict[str, list[str]] = defaultdict(list)
        strong: set[str] = set()
        for term in dict.fromkeys(_grams(words_of(text))):
            for topic, weight in self.weights.get(term, {}).items():
                score[topic] += weight
                hits[topic].append(term)
                if term in self.keys or not _is_common(term):
                    strong.add(topic)
        found = [t for t in self.topics if t in strong and score[t] >= THRESHOLD]
        if not found:
            return Match(None, 0.0, ())
        best = max(found, key=lambda t: score[t])
        return Match(best, score[best], tuple(hits[best]))


# ------------------------------------------------------------------------------------------------------ terms

_LONGEST = 4  # words of a key phrase
_SUFFIXES = ("ing", "ed", "es", "s", "ly", "e")


def stem(word: str) -> str:
    """A light stemmer: plurals and verb endings go, so that a word meets its own forms and few others."""
    word = word.removesuffix("'s")
    if word.endswith("ies") and len(word) > 5:
        return word[:-3] + "y"
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 4 and not word.endswith("ss"):
            return word[: -len(suffix)]
    return word


def words_of(text: str) -> list[str]:
    """Stems of all words of a text, in order; function words as they are."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower().replace("\u2019", "'"))
    return [w if is_filler(w) else stem(w) for w in words]


def _grams(words: Sequence[str]) -> Iterator[str]:
    for i in range(len(words)):
        for n in range(1, min(_LONGEST, len(words) - i) + 1):
            yield " ".join(words[i : i + n])


def _own_terms(probe: Probe) -> set[str]:
    """Words and pairs of adjacent words of a probe, without function words."""
    terms: set[str] = set()
    for text in (probe.prompt, *probe.paraphrases, *(b.text for b in probe.branches())):
        words = [None if is_filler(w) else w for w in words_of(text)]
        terms.update(w for w in words if w)
        terms.update(f"{a} {b}" for a, b in zip(words, words[1:], strict=False) if a and b)
    return terms


@lru_cache(maxsize=1 << 16)
def is_filler(word: str) -> bool:
    """Whether a word carries no subject matter."""
    return len(word) < 3 or word in _FILLERS or not content_words(word)


def _is_common(term: str) -> bool:
    return term in _common() or (term.endswith("s") and term[:-1] in _common())


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    return frozenset(map(stem, _COMMON.split()))


_FILLERS = frozenset(
    """i'd i've i'll i'm he'd he's she'd she's they'd they've they're we'd we've we're you'd you've you're it's that's
    there's what's who's let's don't doesn't didn't can't won't wouldn't shouldn't couldn't isn't aren't wasn't weren't
    hasn't haven't hadn't him his she her hers himself herself themselves itself myself yourself one ones say said tell
    told want wants thing things something anything really well even still much many rather ever never always often
    both other others each every either side sides view views""".split()
)

# Everyday words: as part of a topic's vocabulary they add half their weight, and none of them decides by itself.
_COMMON = """
    able accept access account accountability act action activity actual add additional address adult advantage
    advice affect afford affordable after again against age agency aging ago agree ahead aim air allow ally almost
    alone along already although always american amount analysis animal annual another answer anyone anything appear
    apply approach arab arabs area argue arm arms army around arrive art article artist ask asleep assume attack
    attempt attention author authority available average avoid award aware away baby back bad balance ball band bank
    bar base basic bear beat beautiful became become bed begin behavior behaviour behind belief belong below benefit
    best better between beyond bias big bill bird black blood blue board boat body bomb bond book border born both
    bottom box boy brain branch brand brave break brief bring british broad brother brown budget build building bus
    business busy button buy call camera camp campaign capital car carbon card care career careful carry cars case
    cast catch cause cell center central centre century certain chair challenge chance change character charge cheap
    check child children choice choose church citizen city civilian claim class clean cleaner clear clearly client
    climb close clothes coach coast code coffee cold collect college color colour come comfort command comment
    commit common community company compare competition complete computer concern condition conference confirm
    connect conscious consider consumer contain content context continue contract contribute control conversation
    cook cool copy cost count couple course court cover cream create credit creed crime cross crowd cry culture cup
    current custom customer cut daily damage dance danger dark data date daughter day dead deal death debate debt
    decade decide decision deep defence defense degree deliver demand deny depend describe deserve design despite
    detail determine develop development device die diet difference different difficult dinner direct direction
    director discover discuss discussion disease distance district divide doctor dog door double doubt down draw
    dream dress drink drive driver drop drug dry due during duty each early earn earth easily east easy eat economic
    economy edge education effect effective effort eight either electric electricity element else email empire
    employ employee empty end enemy energy engine enjoy enough ensure enter entire environment equal especially
    establish even evening event ever every everyone everything evidence exact example except exist expect expensive
    experience expert explain express extra eye face fact factor fail failure fair fall family famous fan far farm
    farmer fast fat father fear feature feed feel feeling fellow female few field fifth fight fighter figure file
    fill film final finance financial find fine finger finish fire firm first fish fit five fix flag flat flight
    flood floor flow flower flows fly focus follow food foot force foreign forest forget form formal former forward
    fossil found four frame free freedom freely fresh friend front fruit fuel full fun function fund funds funny
    further future gain game garden garment gas gather general generally generation gift girl glass global goal gold
    gone governor grade grand grandmother grandparent grant grass great green grid ground group grow growth guard
    guess guest guide guilty gun guy hair half hall hand hang happen happy hard harm hat hate head health healthy
    hear heart heat heavy height held hello help here hide high hill hire historic history hit hold holiday home
    honest hope horse hospital host hot hotel hour house housing however huge human hundred hurt husband ice ideal
    identify image imagine impact importance important impose improve include income increase indeed independent
    individual industry influence inform information innocent inside instead institution instrument insult insurance
    intend interest internal international internet interview introduce invest investment invite involve island
    issue item jail jewish jews job join joint joke judge jump junior jury keep key kid kids kill killer killing
    kind king kitchen knee knife knock know knowledge labor labour lack lady lake land language large last late
    later laugh launch law lawyer lay lead leader learn least leave left leg legal lesson letter level lie life lift
    light like likely limit line link list listen literature little live living load loan local locate location long
    look lose loss lost lot love low lunch machine magazine main maintain major majority male man manage manager
    many map mark market marriage married marries marry mass master match material matter meal mean meaning measure
    meat media medical medication medicine meet meeting member memory mention message metal method middle mile
    military milk million mind mine minister minority minute miss mission mistake mix model modern moment money
    month moral morning mother mountain mouth move movement movie multiple murder murderer murders music name narrow
    nation national native natural nature near nearly necessary neck need neighbor neighbour neighbourhood neither
    network never new news next nice night nine noise none normal north nose note nothing notice novel number nurse
    object obtain occasion occur ocean offer office officer official often oil old older once one online open
    operate operation opportunity oppose option orange order ordinary organ organisation organization organize
    origin original other others otherwise outside oversea overseas own owner page pain paint pair pan paper parent
    park part particular particularly partner party pass passenger past path patient pattern pay payment peace peer
    pen penalty per percent perfect perform perhaps period permission permit person personal persuade phone photo
    phrase physical pick picture piece pill pilot pink place plan plane plant plastic plate platform play player
    please pleasure plenty plus pocket poem point police policy political politics poll pollute poor pop popular
    population position positive possible post postal potential pound power practical practice prefer preference
    prepare presence present president press pressure pretty prevent previous price print prior priority prison
    private prize probably problem process produce product production profession professional professor profit
    program programme project promise promote pronoun proper property proportion propose protect protection prove
    provide provider public publish pull punishment purchase pure purpose push put qualify quality quarter queen
    question quick quickly quiet quite race radio rain raise range rate rather reach react read reader ready real
    reality realize reason receive recent recipe recognise recognize recommend record recover red reduce refer
    reflect refuse regard region register regular regulation relate relation relationship relative relatively
    release relevant reliable relief remain remember remorse remove rent repair repeat replace reply report
    represent representative republic request require research reserve resident resource respect respond response
    responsibility responsible rest restaurant restrict result return reveal review reward rich ride ring rise risk
    river road rock rocket role roll roof room round route row royal rule run rural safe safety sail salary sale
    salt same sample sand save say scale scene schedule school science scientist score sea search season seat second
    secret section sector secure security see seek seeker seem select self sell send senior sense sentence separate
    series serious serve service session set settle settled settlement seven several sex shape share sharp she sheet
    shelf ship shirt shock shoe shoot shop short shot shoulder show shut sick side sight sign signal silent silver
    similar simple simply since sing single sister sit site situation six size skill skin sky sleep slice slow small
    smart smile smoke smooth soap social society soft soil solar soldier solid solution solve someone something
    sometimes son song sons soon sort sound soup source south space speak special specific speech speed spend spirit
    split sport spot spread spring square stable staff stage stand standard star start statement station status stay
    steal steam steel step stick still stock stomach stone stop store storm story straight strange strategy stream
    street strength strike string strong structure struggle student study stuff style subject succeed success such
    sudden suffer sugar suggest suit summer sun supply sure surface surprise surround survive swap sweet swim switch
    system table take talk tall target task taste teach teacher team tear technology teen teenager tell temperature
    ten tend tension term terms test thank theory thick thin thing third thought thousand threat three throw thus
    ticket tie tight till tired title today toddler together tomorrow tone tonight tool tooth top topic torture
    total touch tour toward town track trade tradition traditional traffic train transfer transition transport
    travel treat treatment tree trip trouble truck true trust truth try turn twice two type typical uncle understand
    understood union unit university unless until upon upper upset urban useful user usual usually value variety
    various vegetable vehicle version victim view village violence visa visit visitor voice vow wait walk wall want
    war warm warn wash waste watch water wave way weak weapon wear weather web wedding week weekend weight welcome
    well west whatever wheel whether white whole wide wife wild win wind window wine winner winter wish within
    without woman women wonder wood word work worker world worry worth write writer wrong yard year yellow yesterday
    yet young youth zero zone
"""
