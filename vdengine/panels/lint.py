"""Warnings about what would bias a panel's readouts or make them noisy: lengths, polarity, wording, tokens."""

from __future__ import annotations

import re
from collections import Counter

from vdengine.panels.panel import STANCES, Panel, Probe
from vdengine.panels.words import content_words, overlap
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer

_BARE_ANSWER = re.compile(r"(yes|no|yeah|yep|nope|sure|certainly|absolutely|definitely|of course)\b", re.I)
# "Isn't it ...?", "..., don't you think?", "Surely ...": but not "people who don't ...".
_LEADING_QUESTION = re.compile(r"(?:^|[,.;!?] )\w+n't (?:you|we|it|they|there|the)\b|\b(?:surely|obviously)\b", re.I)
_NEGATION = re.compile(r"(\b(not|never|cannot|no|nothing|nobody|neither|nor)\b|n't\b)", re.I)


def lint(
    panel: Panel, *, max_gap_bytes: float = 10, max_neutral_gap_bytes: float = 20, max_overlap: float = 0.6
) -> list[str]:
    """Warnings about a panel; an empty list when there are none.

    Checked: equal numbers of both polarities in each topic; the same kinds in support and oppose; openings that start
    with a bare yes or no; questions that suggest an answer; negations far more often in one stance than in the other;
    and the lengths and repetitions below. Probes without openings are reported in one line, and checked without them.

    Args:
        max_gap_bytes: allowed difference of the mean length of a kind between support and oppose.
        max_neutral_gap_bytes: allowed difference of the mean length of neutral openings from the other two.
        max_overlap: allowed `overlap` of `content_words` between prompts or paraphrases of two probes of a topic.
    """
    warnings: list[str] = []
    scored = [probe for probe in panel.probes if probe.has_openings]
    if len(scored) < len(panel.probes):
        warnings.append(_without_openings(panel, scored))
    for topic in panel.topics:
        count = Counter(p.polarity for p in panel.probes if p.topic == topic)
        if count[1] != count[-1]:
            warnings.append(f"topic {topic!r}: {count[1]} probes of polarity 1, {count[-1]} of polarity -1")
    for probe in panel.probes:
        warnings += _lint_probe(probe, max_gap_bytes, max_neutral_gap_bytes)
    shares = {}
    for stance in ("support", "oppose"):
        texts = [opening.text for probe in scored for opening in probe.openings[stance]]
        shares[stance] = sum(bool(_NEGATION.search(text)) for text in texts) / max(len(texts), 1)
    if abs(shares["support"] - shares["oppose"]) > 0.1:
        warnings.append(
            f"{shares['support']:.0%} of support but {shares['oppose']:.0%} of oppose openings hold a "
            "negation: stance is confounded with negation (allowed difference 10%)"
        )
    for topic in panel.topics:
        words = [
            (probe.id, [content_words(t) for t in (probe.prompt, *probe.paraphrases)])
            for probe in panel.probes
            if probe.topic == topic
        ]
        for i, (id_a, sets_a) in enumerate(words):
            for id_b, sets_b in words[i + 1 :]:
                worst = max(overlap(a, b) for a in sets_a for b in sets_b)
                if worst > max_overlap:
                    warnings.append(f"{id_a} and {id_b}: nearly the same question (word overlap {worst:.2f})")
    return warnings


def lint_tokens(
    panel: Panel, renderer: Renderer, *, min_tokens: int = 6, max_tokens: int = 24, max_gap_tokens: float = 4
) -> list[str]:
    """Warnings about the tokens of the openings, as `renderer` puts them after a prompt.

    Checked: text that does not survive the tokenizer; lengths outside `min_tokens` to `max_tokens`; openings of one
    kind in support and oppose that differ by more than `max_gap_tokens` on average.
    """
    warnings = []
    for probe in (p for p in panel.probes if p.has_openings):
        lengths: dict[str, dict[str, list[int]]] = {}
        for stance in STANCES:
            for number, opening in enumerate(probe.openings[stance]):
                ids = renderer.opening_ids(opening.text)
                lengths.setdefault(stance, {}).setdefault(opening.kind, []).append(len(ids))
                where = f"{probe.id}: {stance}[{number}]"
                if renderer.tokenizer.decode(ids).strip() != opening.text:
                    warnings.append(f"{where} does not come back from its tokens: {renderer.tokenizer.decode(ids)!r}")
                if not min_tokens <= len(ids) <= max_tokens:
                    warnings.append(f"{where} has {len(ids)} tokens; {min_tokens} to {max_tokens} are usual")
        for kind in sorted(lengths["support"].keys() & lengths["oppose"].keys()):
            support, oppose = (sum(x) / len(x) for x in (lengths["support"][kind], lengths["oppose"][kind]))
            gap = support - oppose
            if abs(gap) > max_gap_tokens:
                warnings.append(f"{probe.id}: {kind} openings differ by {gap:+.1f} tokens, support less oppose")
    return warnings


def _without_openings(panel: Panel, scored: list[Probe]) -> str:
    """The warning about probes without openings; scored: those that have some."""
    count, first = len(panel.probes) - len(scored), next(p.id for p in panel.probes if not p.has_openings)
    which = "no probe has" if not scored else f"{count} of {len(panel.probes)} probes ({first}, ...) have no"
    return f"{which} openings: read by leads and answers, not by text likelihood"


def _lint_probe(probe: Probe, max_gap_bytes: float, max_neutral_gap_bytes: float) -> list[str]:
    """Warnings about one probe, as `lint` describes them."""
    warnings = [
        f"{probe.id}: the question suggests an answer: {question[:60]!r}"
        for question in (probe.prompt, *probe.paraphrases)
        if _LEADING_QUESTION.search(question)
    ]
    if not probe.has_openings:
        return warnings
    kinds = {s: Counter(o.kind for o in probe.openings[s]) for s in ("support", "oppose")}
    if kinds["support"] != kinds["oppose"]:
        listed = {s: ", ".join(sorted(kinds[s].elements())) for s in kinds}
        warnings.append(f"{probe.id}: support has kinds {listed['support']} but oppose {listed['oppose']}")

    def mean_bytes(stance: str, kind: str | None = None) -> float:
        sizes = [o.num_bytes for o in probe.openings[stance] if kind in (None, o.kind)]
        return sum(sizes) / len(sizes)

    for kind in sorted(kinds["support"].keys() & kinds["oppose"].keys()):
        gap = mean_bytes("support", kind) - mean_bytes("oppose", kind)
        if abs(gap) > max_gap_bytes:
            warnings.append(f"{probe.id}: {kind} openings differ by {gap:+.0f} bytes, support less oppose")
    gap = mean_bytes("neutral") - (mean_bytes("support") + mean_bytes("oppose")) / 2
    if abs(gap) > max_neutral_gap_bytes:
        warnings.append(f"{probe.id}: neutral openings differ by {gap:+.0f} bytes from the other two")
    for stance in STANCES:
        for number, opening in enumerate(probe.openings[stance]):
            text = opening.text
            if _BARE_ANSWER.match(text):
                warnings.append(f"{probe.id}: {stance}[{number}] starts with a bare answer: {text[:20]!r}")
    return warnings


def lint_text(source: str, tokenizer: str | None = None) -> tuple[str, int]:
    """A panel's outline with all warnings, as text, and the number of warnings.

    Args:
        source: of the panel, as `Panel.load` takes it.
        tokenizer: a source, to check its tokens too.

    Raises:
        InputError: a panel, tokenizer or template that cannot be read.
    """
    panel = Panel.load(source)
    warnings = lint(panel)
    if tokenizer:
        warnings += lint_tokens(panel, Renderer(load_tokenizer(tokenizer)))
    openings = sum(len(o) for p in panel.probes for o in p.openings.values())
    lines = [f"{panel.name}: {len(panel.probes)} probes, {openings} openings, hash {panel.hash}"]
    for topic in panel.topics:
        signs = [p.polarity for p in panel.probes if p.topic == topic]
        positive = sum(sign > 0 for sign in signs)
        lines.append(f"  {topic}: {len(signs)} probes, {positive} of polarity 1; towards {panel.axis(topic)}")
    return "\n".join([*lines, *(warnings or ["no warnings"])]), len(warnings)
