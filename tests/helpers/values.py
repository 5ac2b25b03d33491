"""Made-up readings of probes: shifts of one's choice, models whose stances are known, and logs of them."""

import math

import numpy as np

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import ProbeValues
from vdengine.panels.panel import LEADS, Branch, Panel, Request

POLARITIES = {24: [12, 12], 48: [30, 18], 550: [25] * 22}  # probes of each stratum


def probe_values(x, topics=None, polarity=None, steps=None, readout="text_likelihood", **more) -> ProbeValues:
    """ProbeValues of one channel x [S, P], and a yes-bias that says nothing."""
    x = np.asarray(x, float)
    steps = np.arange(len(x)) if steps is None else np.asarray(steps)
    polarity = np.array([1, -1] * x.shape[1])[: x.shape[1]] if polarity is None else np.asarray(polarity)
    topics = np.full(x.shape[1], "a") if topics is None else np.asarray(topics)
    name, unit = ("stance", "nats per byte") if readout == "text_likelihood" else ("graded", "probability")
    return ProbeValues(
        readout, unit, steps, int(steps[-1]), np.array([f"p{i}" for i in range(x.shape[1])]), topics, polarity,
        {t: "more" for t in topics}, {name: x, "yes_bias": np.zeros_like(x)}, **more,
    )  # fmt: skip


def strata(sizes, per_topic=2):
    """Topics and polarities of a panel with strata of these sizes."""
    topics = [f"t{i // per_topic:02}" for i, n in enumerate(sizes) for _ in range(n)]
    return np.array(topics), np.array([1 - 2 * (i % 2) for i, n in enumerate(sizes) for _ in range(n)])


DRAWS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "skewed": lambda rng, shape: rng.exponential(size=shape) - 1,
    "heavy": lambda rng, shape: rng.standard_t(3, size=shape) / math.sqrt(3),
}


def saturating(rng, num, runs, noise=0.1):
    """The time at which 1 - exp(-t / 0.2) is at 95% of its height at 1, and trajectories [41, num] of probes on it, to
    a height of its own each, with noise that neighbouring samples share."""
    t = np.linspace(0, 1, 41)
    path = (1 - np.exp(-t / 0.2)) / (1 - math.exp(-5))
    out = []
    for _ in range(runs):
        own = rng.normal(size=(41, num))
        for s in range(1, 41):
            own[s] = 0.8 * own[s - 1] + 0.6 * own[s]
        out.append(path[:, None] * (1 + rng.normal(size=num)) + noise * (own - own[0]))
    return -0.2 * math.log(1 - 0.95 * (1 - math.exp(-5))), out


def requests_of(panel, *, controls=False, leads=False):
    """A panel's requests without a tokenizer: 7 tokens an opening, and a yes and a no where leads are wanted."""
    trivial = Panel.load("controls")

    def openings(source, variant):
        return [Request([1], [2] * 7, b.text, b) for p in source.probes for b in p.branches(variant)]

    def null(of):
        return list({r.text: r._replace(branch=r.branch._replace(variant="null")) for r in of}.values())

    def spelled(source, variant):
        return [
            Request([1], ids, text, Branch(p, stance, "lead", text, len(text), variant, LEADS))
            for p in source.probes
            for stance, text, ids in (("support", "Yes", [3]), ("support", " yes", [4]), ("oppose", "No", [5]))
        ] if leads else []  # fmt: skip

    found = openings(panel, "question")
    found += null(found)
    if controls:
        off_topic = openings(trivial, "off-topic")
        found += [*openings(panel, "paraphrase"), *off_topic, *null(off_topic)]
    found += spelled(panel, "question")
    return found + ([*spelled(panel, "paraphrase"), *spelled(trivial, "off-topic")] if controls else [])


def opening_log(tmp_path, fill, *, panel="values-mini", controls=False):
    """Samples at 0, 4 and 8: fill(step, row) nats per byte on top of the first. Null prompts have rows of their own."""
    p = Panel.load(panel)
    log = DriftLog.create(tmp_path, p, requests_of(p, controls=controls), "t")
    rows = log.items("openings")
    base = np.random.default_rng(1).normal(-40, 5, len(rows))
    for step in (0, 4, 8):
        x = base + np.array([fill(step, row) * row["num_bytes"] for row in rows])
        log.append(step, x.astype(np.float32))
    return log


SIDE = {"support": 1, "neutral": 0, "oppose": -1}


class Categorical:
    """A model that answers probe i with k of K answers at p(k) ~ exp(tilt * z[i, k]) p0; stances of each are known."""

    def __init__(self, rng, probes, answers=200, towards=0.5):
        self.f = rng.dirichlet([0.4, 0.8, 0.4], size=(probes, answers))  # [P, K, 3]
        graded = self.f[..., 0] - self.f[..., 2]
        self.z = towards * (graded - graded.mean()) / graded.std() + rng.normal(size=graded.shape)
        self.p0 = rng.dirichlet(np.full(answers, 0.5), size=probes)
        self.rng = rng

    def logp(self, tilt):
        p = np.log(np.maximum(self.p0, 1e-300)) + tilt * self.z
        return p - np.log(np.exp(p).sum(1, keepdims=True))

    def mean(self, tilt):
        return (np.exp(self.logp(tilt))[..., None] * self.f).sum(1)  # [P, 3]

    def draw(self, tilt, n):
        cumulative = np.exp(self.logp(tilt)).cumsum(1)
        u = self.rng.random((len(self.p0), n)) * cumulative[:, -1:]
        return np.minimum((u[..., None] > cumulative[:, None]).sum(-1), cumulative.shape[1] - 1)  # [P, n]


def answer_log(tmp_path, texts, samples, steps, panel=None, pool=None):
    """A log with anchors: {step: [P, N] text}, and readings [(step, anchor, [P, samples] logp)]."""
    p = panel or Panel("some", Panel.load("values-mini").probes[:4])
    log = AnswerLog.create(tmp_path, p, "t", samples=samples, max_tokens=8)
    for anchor, of_probe in texts.items():
        log.append(
            [Answer(anchor, q.id, k, [1], True, str(t)) for q, row in zip(p.probes, of_probe, strict=True)
             for k, t in enumerate(row)]
        )  # fmt: skip
    for step, anchor, logp in steps:
        log.append_reading(step, anchor, np.asarray(logp, np.float32).ravel())
    return AnswerLog.open(tmp_path)


def still_log(tmp_path, rng, probes=24, samples=16, steps=(0, 2, 4, 32), drift=0.365):
    """A log whose anchors at `steps` follow one another, each but the first with a reading of the bank before it, of a
    model in which something moves that no stance depends on: log weights of deviation `drift` (at 0.365 fresh answers
    vary 14 times as much as weighted ones)."""
    panel = Panel("still", Panel.load("values-mini").probes[:probes])
    drawn = {step: np.full((probes, samples), "yes") for step in steps}
    readings = [(step, step, np.zeros((probes, samples))) for step in steps]
    for before, step in zip(steps, steps[1:], strict=False):
        readings.append((step, before, drift * rng.normal(size=(probes, samples)) - drift**2 / 2))
    return answer_log(tmp_path, drawn, samples, readings, panel)


def still_stances(rng, log):
    """One-hot stances of the answers of a log, with shares of each probe that stay: [answers, 3]."""
    number = {probe.id: i for i, probe in enumerate(log.panel.probes)}
    share = rng.dirichlet([1.0, 3.0, 1.0], len(number))[[number[answer.probe] for answer in log.answers]]
    above = rng.random((len(share), 1)) > share.cumsum(1)[:, :2]
    return np.eye(3)[above.sum(1)]


def noisy_pair(rng, probes=600, steps=6, noise=(0.7, 1.5)):
    """Two readouts of the same shifts, each with noise of its own in each half of its items."""
    topics, polarity = strata([probes // 12] * 12)
    of_topic = np.repeat(rng.normal(size=6), probes // 6)
    truth = np.linspace(0, 1, steps)[:, None] * (of_topic + rng.normal(size=probes))
    out = []
    for size in noise:
        halves = [truth + size * math.sqrt(2) * rng.normal(size=truth.shape) for _ in range(2)]
        out.append(
            probe_values(
                (halves[0] + halves[1]) / 2, topics, polarity, readout="answers", halves=(halves[0], halves[1])
            )
        )
    return truth, out


def crossed_pair(rng, shape, r, shares, noise):
    """Two series [3, runs, topics] (all items, halves) that correlate at r in every part: runs and topics have these
    shares of the variance 1, cells the rest; b has noise of its own in each half, of variance noise^2 (of both noise^2
    / 2)."""
    parts = [(*shape[:1], 1), (1, shape[1]), shape]
    sizes = np.sqrt([*shares, 1 - sum(shares)])
    draws = [
        (size * rng.normal(size=part), size * rng.normal(size=part)) for size, part in zip(sizes, parts, strict=True)
    ]
    a = sum(own for own, _ in draws)
    b = sum(r * own + math.sqrt(1 - r**2) * other for own, other in draws)
    halves = [b + noise * rng.normal(size=shape) for _ in range(2)]
    return np.stack([a, a, a]), np.stack([(halves[0] + halves[1]) / 2, *halves])


def fill(log, steps, change):
    """Samples whose later rows are the first plus change(step, table row), in nats."""
    rows = log.items("openings")
    base = np.random.default_rng(1).normal(-40, 5, len(rows)).astype(np.float32)
    for step in steps:
        log.append(step, base + np.array([change(step, row) for row in rows], dtype=np.float32))
