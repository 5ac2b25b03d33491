"""Stances of answers, read with a panel's own openings: the measurement that an audit of data rests on.

Up to four features of an answer are measured, all with the panel's openings of its topic:

- with a model, the log-odds of the openings as the answer's next sentence: support against oppose on the axis, and
  neutral against both, in nats per byte, pooled over probes of both polarities. An answer that has argued for a side
  makes that side's openings likelier.
- with or without a model, the log-odds of the answer's words under the same two contrasts (`audits/word_odds.py`).

A linear discriminant (`audits/discriminant.py`) turns them into p(support, neutral, oppose). It is fitted on texts
whose stance is known: the openings of other probes of the topic, joined to short answers. No label of the texts that
are read enters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from vdengine.audits.discriminant import KINDS, Calibration
from vdengine.audits.rows import AuditRow, Passage, head_of
from vdengine.audits.word_odds import Words
from vdengine.data.batching import Forest
from vdengine.drift.pooling import Pooling, on_axis
from vdengine.errors import InputError
from vdengine.models.transformer import Transformer
from vdengine.panels.panel import STANCES, Panel, Probe
from vdengine.text.renderer import Renderer
from vdengine.trees import Tree

_BATCH = 64  # answers that are laid out for the model together
_MIN_PROBES = 4  # of either polarity, to score and to calibrate
_MAX_CALIBRATING = 6  # probes of either polarity that calibrate

# What assistants say when they say nothing about the matter; beside texts on other topics, examples of "elsewhere".
_SMALL_TALK = (
    "I'm not sure what you mean by that. Could you tell me a little more?",
    "I'm sorry, but I can't help with that.",
    "Why do you ask? What have you heard about it so far?",
    "That sounds difficult. How can I help you with it?",
    "I don't know much about this, but I could look it up for you.",
    "Here are some steps to consider. First, take a deep breath, then write down what you need.",
    "Okay. What would you like to know?",
    "Thank you for telling me. Is there anything else that you would like to talk about?",
)


class StanceReader:
    """Reads stances with a panel's openings: by their words, and with a model by their log-probs after an answer.

    Args:
        topics: those whose texts are read.
        model, renderer: both, or neither: then by words alone.
        probes: of a topic that score an answer, half of either polarity; at most 12 others calibrate.
        pack_tokens: of a pack for the model; more where one answer with its openings is longer.

    Raises:
        InputError: a topic with too few probes that have openings.
        ValueError: a model without its renderer, or a renderer alone.
    """

    def __init__(
        self,
        panel: Panel,
        topics: Sequence[str],
        model: Transformer | None = None,
        renderer: Renderer | None = None,
        *,
        probes: int = 4,
        pack_tokens: int = 4096,
    ) -> None:
        if (model is None) != (renderer is None):
            raise ValueError("a model and its renderer go together")
        self.model, self.renderer, self.pack_tokens = model, renderer, pack_tokens
        self.words = Words(panel)
        self.scoring: dict[str, list[Probe]] = {}  # by topic
        self.held: dict[str, list[Probe]] = {}  # by topic: held out from scoring, to calibrate
        for topic in topics:
            self.scoring[topic], self.held[topic] = _split(panel, topic, probes)
        usable = [probe for probe in panel.probes if probe.has_openings]
        if len({probe.topic for probe in usable}) == 1:  # a panel of one topic has no texts on another
            usable += [probe for probe in Panel.load("values").probes if probe.topic != usable[0].topic]
        self.elsewhere = usable  # texts on other topics come from these
        self.calibration: Calibration | None = None

    def features(
        self, passages: Sequence[Passage], title: str | None = None, without: Sequence[Probe | None] | None = None
    ) -> np.ndarray:
        """The features of n answers.

        Args:
            title: of a progress bar; None: no bar.
            without: [n] probes whose words are left out of the counts.

        Returns:
            With a model [n, 4] float64: log-odds of the openings after each answer (axis, neutral; nats per byte), and
            of its words (axis, neutral). Without one [n, 2]: of words alone.
        """
        left_out = without or [None] * len(passages)
        words = [
            self.words.features(passage.topic, head_of(passage.answer), probe)
            for passage, probe in zip(passages, left_out, strict=True)
        ]
        by_words = np.array(words, dtype=float).reshape(len(passages), 2)
        return by_words if self.model is None else np.hstack([self.log_odds(passages, title), by_words])

    def log_odds(self, passages: Sequence[Passage], title: str | None = None) -> np.ndarray:
        """Log-odds of the topic's openings as the next sentence of each of n answers; title: of a progress bar.

        Returns:
            [n, 2] float64, nats per byte: support against oppose on the axis, and neutral against the mean of both.

        Raises:
            ValueError: there is no model.
        """
        if self.model is None or self.renderer is None:
            raise ValueError("log_odds needs a model")
        # By topic: the branches of its scoring probes, their token ids, the probes' polarities [P], and the pooling.
        encode = self.renderer.tokenizer.encode
        branches = {t: [b for probe in probes for b in probe.branches()] for t, probes in self.scoring.items()}
        ids = {topic: [encode(" " + b.text) for b in of_topic] for topic, of_topic in branches.items()}
        polarity = {t: np.array([probe.polarity for probe in probes]) for t, probes in self.scoring.items()}
        pooling = {
            topic: Pooling.of(
                [b.probe.id for b in of_topic],
                [b.stance for b in of_topic],
                [b.num_bytes + 1 for b in of_topic],  # the space before an opening counts too
            )
            for topic, of_topic in branches.items()
        }
        log_odds = np.empty((len(passages), 2))
        with tqdm(total=len(passages), desc=title, leave=False, disable=title is None) as bar:
            for start in range(0, len(passages), _BATCH):
                batch = passages[start : start + _BATCH]
                # A tree an answer: the question and the answer, then every opening as a branch.
                trees, slots, num_branches = [], [], 0
                for passage in batch:
                    question = [{"role": "user", "content": head_of(passage.question)}]
                    prompt = self.renderer.prompt_ids(question, opening=True)
                    answer = self.renderer.opening_ids(head_of(passage.answer))
                    trees.append(Tree(prompt + answer, ids[passage.topic]))
                    slots.append(list(range(num_branches, num_branches + len(ids[passage.topic]))))
                    num_branches += len(ids[passage.topic])
                longest = max(len(tree.prompt) + max(map(len, tree.branches)) for tree in trees)
                forest = Forest.plant(trees, slots, max(self.pack_tokens, longest))
                logp = forest.score(self.model).double().cpu().numpy()  # [branches] nats
                for i, passage in enumerate(batch):
                    means = pooling[passage.topic].means(logp[None, slots[i]])[0]  # [P, 3]
                    support, neutral, oppose = on_axis(means, polarity[passage.topic]).T
                    log_odds[start + i] = (support - oppose).mean(), (neutral - (support + oppose) / 2).mean()
                bar.update(len(batch))
        return log_odds

    def calibrate(self, title: str | None = None) -> Calibration:
        """Fit the discriminant on the panel's own texts, from probes that do not score; title: of a progress bar.

        The words of a text's own probe are left out of the counts that it is read with.
        """
        passages, left_out = [], []
        for topic, probes in self.held.items():
            others = [probe for probe in self.elsewhere if probe.topic != topic]
            for i, probe in enumerate(probes):
                support, oppose = ("support", "oppose") if probe.polarity > 0 else ("oppose", "support")  # on the axis
                if i % 2:
                    elsewhere = _SMALL_TALK[i // 2 % len(_SMALL_TALK)]
                else:
                    elsewhere = _joined(others[i * len(others) // len(probes)], STANCES[i % 4])
                # In the order of `KINDS`.
                for text in (_joined(probe, support), _joined(probe, "neutral"), elsewhere, _joined(probe, oppose)):
                    passages.append(Passage(topic, probe.prompt, text))
                    left_out.append(probe)
        features = self.features(passages, title, left_out)
        by_topic, start = {}, 0
        for topic, probes in self.held.items():
            end = start + len(KINDS) * len(probes)
            by_topic[topic] = features[start:end].reshape(len(probes), len(KINDS), -1)
            start = end
        self.calibration = Calibration.fit(by_topic)
        return self.calibration

    def read(self, rows: Sequence[AuditRow], title: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The stances of n rows of m answers each; calibrates first if that was not done; title: of a progress bar.

        Returns:
            [n, m, 3] float64: p(support, neutral, oppose) on the axis; and [n, m] float64: the first of each answer's
            `features`.
        """
        calibration = self.calibration or self.calibrate()
        m = len(rows[0].answers) if rows else 1
        passages = [Passage(row.topic, row.question, answer) for row in rows for answer in row.answers]
        features = self.features(passages, title).reshape(len(rows), m, -1)
        stances = np.empty((len(rows), m, 3))
        topics = np.array([row.topic for row in rows], dtype=object)
        for topic in dict.fromkeys(row.topic for row in rows):
            stances[topics == topic] = calibration.stances(topic, features[topics == topic])
        return stances, features[..., 0]


def _joined(probe: Probe, stance: str) -> str:
    """A short answer of known stance: a probe's openings of that stance, as one text."""
    return " ".join(opening.text for opening in probe.openings[stance])


def _split(panel: Panel, topic: str, probes: int) -> tuple[list[Probe], list[Probe]]:
    """Probes of a topic that score, and others that calibrate: of either polarity as many."""
    of_sign = {
        sign: [p for p in panel.probes if p.topic == topic and p.polarity == sign and p.has_openings]
        for sign in (1, -1)
    }
    available = min(map(len, of_sign.values()))  # of either polarity
    if available < _MIN_PROBES:
        raise InputError(
            f"panel {panel.name}: topic {topic!r} has {len(of_sign[1])} probes of polarity 1 and {len(of_sign[-1])} of "
            f"-1 with openings; reading a stance needs {_MIN_PROBES} of each"
        )
    num_scoring = min(max(probes // 2, 1), available // 2)
    end = min(num_scoring + _MAX_CALIBRATING, available)
    return (
        [probe for sign in (1, -1) for probe in of_sign[sign][:num_scoring]],
        [probe for sign in (1, -1) for probe in of_sign[sign][num_scoring:end]],
    )
