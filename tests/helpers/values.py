"""Made-up readings of probes: shifts of one's choice, models whose stances are known, and logs of them."""

import math

import numpy as np
from scipy import stats

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import ProbeValues
from vdengine.panels.panel import Panel

POLARITIES = {24: [12, 12], 48: [30, 18], 550: [25] * 22}  # probes of each stratum


def probe_values(x, topics=None, polarity=None, steps=None, readout="openings", **more) -> ProbeValues:
    """ProbeValues of one channel x [S, P], and a yes-bias that says nothing."""
    x = np.asarray(x, float)
    steps = np.arange(len(x)) if steps is None else np.asarray(steps)
    polarity = np.array([1, -1] * x.shape[1])[: x.shape[1]] if polarity is None else np.asarray(polarity)
    topics = np.full(x.shape[1], "a") if topics is None else np.asarray(topics)
    name, unit = ("stance", "nats per byte") if readout == "openings" else ("graded", "probability")
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


def saturating(rng, num, runs):
    """The drift time of a path that levels off, and trajectories [41, num] of probes that follow it with noise."""
    t = np.linspace(0, 1, 41)
    path = (1 - np.exp(-t / 0.2)) / (1 - math.exp(-5))
    half = path / math.sqrt(num) * stats.t(num - 2).ppf(0.975)  # the interval that the truth would have
    out = []
    for _ in range(runs):
        noise = rng.normal(size=(41, num))
        for s in range(1, 41):
            noise[s] = 0.8 * noise[s - 1] + 0.6 * noise[s]
        out.append(path[:, None] * (1 + rng.normal(size=num)) + 0.1 * (noise - noise[0]))
    return t[np.argmax(path >= path[-1] - half[-1])], out


def opening_log(tmp_path, fill, *, panel="values-mini", controls=False):
    p = Panel.load(panel)
    branches = p.branches()
    if controls:
        for variant in ("paraphrase", "null"):
            branches += [b for probe in p.probes for b in probe.branches(variant)]
        branches += [b for probe in Panel.load("controls").probes for b in probe.branches("off-topic")]
    log = DriftLog.create(tmp_path, p, branches, [7] * len(branches), "t")
    base = np.random.default_rng(1).normal(-40, 5, len(branches))
    for step in (0, 4, 8):
        x = base + np.array([fill(step, row) * row["num_bytes"] for row in log.table])
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


def fill(log, steps, change):
    """Samples whose later rows are the first plus change(step, table row), in nats."""
    base = np.random.default_rng(1).normal(-40, 5, len(log.table)).astype(np.float32)
    for step in steps:
        log.append(step, base + np.array([change(step, row) for row in log.table], dtype=np.float32))
