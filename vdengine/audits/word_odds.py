"""Log-odds of an answer's words, by how often a panel's openings of either side use them."""

from __future__ import annotations

import math
from collections import Counter

from vdengine.panels.panel import Panel, Probe
from vdengine.panels.topics import is_filler, words_of


class Words:
    """Counts of words in a panel's openings, for two contrasts.

    `axis`: openings for the topic's axis against those against it, by the topic's own words without function words.
    `hedge`: neutral openings against those of either side, by all words of the panel.
    """

    def __init__(self, panel: Panel) -> None:
        # By topic and side of the axis: openings that use a word.
        self.axis: dict[str, dict[int, Counter[str]]] = {t: {1: Counter(), -1: Counter()} for t in panel.topics}
        self.hedge: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}  # by neutral or not: the same
        self.count: Counter[bool] = Counter()  # by neutral or not: openings
        for probe in panel.probes:
            axis, hedge, count = _word_counts(probe)
            for side, words in axis.items():
                self.axis[probe.topic][side].update(words)
            for neutral, words in hedge.items():
                self.hedge[neutral].update(words)
            self.count.update(count)

    def features(self, topic: str, text: str, without: Probe | None = None) -> tuple[float, float]:
        """(axis, neutral) of a text: sums of its words' log-odds, in nats, over the root of their number plus 1.

        without: a probe whose openings are left out of the counts.
        """
        axis, hedge, count = self.axis[topic], self.hedge, self.count
        if without is not None:
            its_axis, its_hedge, its_count = _word_counts(without)
            axis = {side: axis[side] - its_axis[side] for side in axis}
            hedge = {neutral: hedge[neutral] - its_hedge[neutral] for neutral in hedge}
            count = count - its_count
        words = set(words_of(text))
        # The axis: half an opening is added to each count.
        content = [w for w in words if not is_filler(w)]
        for_axis = sum(math.log((axis[1][w] + 0.5) / (axis[-1][w] + 0.5)) for w in content)
        # Neutral: counts as if there were as many neutral openings as others; words of a single opening are left out.
        scale = (count[False] + 1) / (count[True] + 1)
        known = [w for w in words if hedge[True][w] + hedge[False][w] > 1]
        neutral = sum(math.log(scale * (hedge[True][w] + 0.5) / (hedge[False][w] + 0.5 * scale)) for w in known)
        return for_axis / math.sqrt(len(content) + 1), neutral / math.sqrt(len(known) + 1)


def _word_counts(probe: Probe) -> tuple[dict[int, Counter[str]], dict[bool, Counter[str]], Counter[bool]]:
    """Of a probe's openings: those that use a word, by side of the axis and by neutral or not; and their number."""
    axis: dict[int, Counter[str]] = {1: Counter(), -1: Counter()}
    hedge: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    count: Counter[bool] = Counter()
    for stance, openings in probe.openings.items():
        for opening in openings:
            words = set(words_of(opening.text))
            hedge[stance == "neutral"].update(words)
            count[stance == "neutral"] += 1
            if stance != "neutral":
                side = probe.polarity if stance == "support" else -probe.polarity
                axis[side].update(w for w in words if not is_filler(w))
    return axis, hedge, count
