"""v from judged answers: fresh ones at anchors, weighted ones between them.

v is the judged stance, the mean over answers y drawn at T = 1 of p(stance | question, y). At an anchor it is the mean
over the anchor's answers. Between anchors those answers are weighted, w = p_now(y) / p_anchor(y):

    v now = mean of f over all answers of the anchor + mean over its bank of (w f / mean w - f), less its bias

with f the stance of an answer. The second term is the shift since the anchor; both of its means are over the same
answers, so that most of their noise cancels. A ratio of means is biased by 1/n, here towards no shift: simulated, by
6-10% of the shift with 16 answers where the gate is open, by 12-16% with 8. The jackknife takes that off (below 1% is
left) and gives the variance of what remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.importance import Gate, gate
from vdengine.drift.probe_values import ProbeValues
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES

ANSWER_CHANNELS = (*STANCES, "graded", "yes_bias")
KINDS = ("both", "anchor", "weighted")


def answer_values(
    log: AnswerLog, stances: np.ndarray, total_steps: int | None = None, *, kind: str = "both", closed: bool = False
) -> ProbeValues:
    """v by probe, from judged answers: fresh ones at anchors, weighted ones between them (see the module).

    Channels: `support`, `neutral`, `oppose` on the topic's axis (polarity -1 swaps the two), `graded` (support less
    oppose), `yes_bias` (the same towards the prompt's proposition). At an anchor a probe's reading is the mean over all
    its judged answers; between anchors the bank's are weighted. Answers without a judgement are left out. Halves: every
    other answer.

    `noise` and the like are of the panel as it is: the variance that drawing other answers would give. At anchors
    s^2 / n; between them the jackknife's, in which a shift since the bank's own anchor (`anchor_noise`) counts answers
    that are in both of its means once. An interval over probes holds this noise already.

    Args:
        stances: [len(log.answers), 3] p(support, neutral, oppose) towards the prompt's proposition; NaN: not judged.
        total_steps: of the stage. Default: the last sample's step.
        kind: "both"; "anchor"; or "weighted": the first anchor and all readings of banks, those at later anchors'
            steps too (compare them with the fresh answers there by `agreement`).
        closed: keep readings whose gate is closed; they are NaN otherwise.

    Raises:
        InputError: no answers, none judged, judgements of other answers, or readings that do not fit the anchors.
    """
    if kind not in KINDS:
        raise InputError(f"kind: {kind!r} is not one of {', '.join(KINDS)}")
    if not log.answers:
        raise InputError(f"{log.folder}: no answers yet")
    if stances.shape != (len(log.answers), 3):
        raise InputError(f"{log.folder}: {len(log.answers)} answers, but judgements of shape {stances.shape}")
    if not np.isfinite(stances).any():
        raise InputError(f"{log.folder}: no answer has been judged")
    probes = log.panel.probes
    polarity = np.array([p.polarity for p in probes])
    anchors = log.anchors
    pools = {a: _Pool.of(log, a, stances, polarity) for a in anchors}
    samples = [pools[a].fresh() for a in (anchors[:1] if kind == "weighted" else anchors)]
    if kind != "anchor":
        samples += _weighted(log, pools, closed=closed, at_anchors=kind == "weighted")
    samples.sort(key=lambda s: s.step)
    channels, noise, anchor_noise = (
        {c: np.array([getattr(s, of)[:, k] for s in samples]) for k, c in enumerate(ANSWER_CHANNELS)}
        for of in ("value", "noise", "anchor_noise")
    )
    shift_noise = {c: x.copy() for c, x in anchor_noise.items()}
    for c in ANSWER_CHANNELS:
        for i, s in enumerate(samples):
            if s.anchor != anchors[0]:  # other answers than the first sample's: independent of them
                shift_noise[c][i] = noise[c][i] + noise[c][0]
    return ProbeValues(
        readout="answers",
        unit="probability",
        steps=np.array([s.step for s in samples], np.int64),
        total_steps=max(s.step for s in samples) if total_steps is None else total_steps,
        probes=np.array([p.id for p in probes]),
        topics=np.array([p.topic for p in probes]),
        polarity=polarity,
        axes={p.topic: p.axis for p in probes},
        channels=channels,
        kinds=np.array(["anchor" if s.gate is None else "weighted" for s in samples]),
        anchors=np.array([s.anchor for s in samples], np.int64),
        gates=[s.gate for s in samples],
        halves=(np.array([s.halves[0] for s in samples]), np.array([s.halves[1] for s in samples])),
        noise=noise,
        shift_noise=shift_noise,
        anchor_noise=anchor_noise,
    )


@dataclass(frozen=True)
class _Sample:
    """What one anchor, or one reading of its bank, says. [P, 5]: by channel."""

    step: int
    anchor: int
    value: np.ndarray
    noise: np.ndarray
    anchor_noise: np.ndarray  # of the shift since its own anchor
    halves: tuple[np.ndarray, np.ndarray]  # [P] graded
    gate: Gate | None


@dataclass(frozen=True)
class _Pool:
    """An anchor's judged answers, NaN where there is none; the first `samples` of a probe are its bank."""

    step: int
    samples: int
    f: np.ndarray  # [P, N, 5] stance of each answer, by channel

    @classmethod
    def of(cls, log: AnswerLog, anchor: int, stances: np.ndarray, polarity: np.ndarray) -> _Pool:
        place = {p.id: i for i, p in enumerate(log.panel.probes)}
        mine = [i for i, a in enumerate(log.answers) if a.anchor == anchor]
        at = [place[log.answers[i].probe] for i in mine], [log.answers[i].sample for i in mine]
        f = np.full((len(place), max(log.samples, 1 + max(at[1])), 3), np.nan)
        f[at] = stances[mine]
        f = np.where((polarity > 0)[:, None, None], f, f[..., ::-1])
        graded = f[..., 0] - f[..., 2]
        return cls(anchor, log.samples, np.concatenate([f, np.stack([graded, polarity[:, None] * graded], -1)], -1))

    @cached_property
    def judged(self) -> np.ndarray:  # [P, N]
        return np.isfinite(self.f).all(-1)

    @cached_property
    def mean(self) -> np.ndarray:  # [P, 5]
        return _mean(self.f, self.judged)

    @cached_property
    def variance(self) -> np.ndarray:  # [P, 5] of one answer
        return _variance(self.f, self.judged)

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:  # [P] graded
        even, odd = (_mean(self.f[:, k::2, 3:4], self.judged[:, k::2])[:, 0] for k in (0, 1))
        return even, odd

    def fresh(self) -> _Sample:
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = self.variance / self.judged.sum(1)[:, None]
        return _Sample(self.step, self.step, self.mean, noise, self.mean * 0, self.halves, None)

    def read(self, step: int, log_weights: np.ndarray, found: Gate, keep: bool) -> _Sample:
        """A reading of the bank. log_weights [P, samples]."""
        n = self.samples
        f, judged = self.f[:, :n], self.judged[:, :n]
        gain = reweighted(log_weights, f, judged)
        in_bank, in_pool = (x.sum(1)[:, None] for x in (judged, self.judged))
        with np.errstate(divide="ignore", invalid="ignore"):
            # the bank's answers are in both terms of v, the pool's others in the first alone
            both = _variance(f / in_pool[..., None] + gain / in_bank[..., None], judged) * in_bank
            noise = both + self.variance * (in_pool - in_bank) / in_pool**2
            raw = _variance(gain, judged) / in_bank
            anchor_noise = raw * inflation(log_weights, judged)[:, None]
            noise = noise + anchor_noise - raw
        halves = [
            self.halves[k] + _mean(reweighted(log_weights[:, k::2], f[:, k::2, 3:4], part), part)[:, 0]
            for k, part in ((k, judged[:, k::2]) for k in (0, 1))
        ]
        gone = 0.0 if keep else np.nan
        return _Sample(
            step, self.step, self.mean + _mean(gain, judged) + gone, noise + gone, anchor_noise + gone,
            (halves[0] + gone, halves[1] + gone), found,
        )  # fmt: skip


def _mean(x: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Mean over axis 1 of x [P, N, K] where taken [P, N]: [P, K], NaN where none is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(taken[..., None], x, 0.0).sum(1) / taken.sum(1)[:, None]


def _variance(x: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """The same of the variance, by n - 1; NaN below two."""
    count = taken.sum(1)[:, None]
    square = np.where(taken[..., None], (x - _mean(x, taken)[:, None]) ** 2, 0.0).sum(1)
    return np.where(count > 1, square / np.maximum(count - 1, 1), np.nan)


def _weighted(log: AnswerLog, pools: dict[int, _Pool], *, closed: bool, at_anchors: bool) -> list[_Sample]:
    """ProbeValues of banks, each step's of the newest anchor before it. An anchor's first record is what weights are
    against."""
    path = log.weights_path
    baselines: dict[int, np.ndarray] = {}
    latest: dict[int, tuple[int, np.ndarray]] = {}
    for record in log.readings():
        step, anchor, logp = int(record["step"]), int(record["anchor"]), record["logp"].astype(np.float64)
        if anchor not in pools:
            raise InputError(f"{path}: the reading of step {step} is of answers at step {anchor}, which are not there")
        if step == anchor:
            baselines[anchor] = logp
        elif (at_anchors or step not in pools) and (step not in latest or latest[step][0] < anchor):
            latest[step] = anchor, logp
    out = []
    for step, (anchor, logp) in sorted(latest.items()):
        if anchor not in baselines:
            raise InputError(f"{path}: the answers of step {anchor} have no reading at their own step")
        found = gate(baselines[anchor], logp)
        log_weights = (logp - baselines[anchor]).reshape(-1, log.samples)
        out.append(pools[anchor].read(step, log_weights, found, closed or found.open))
    return out


def reweighted(log_weights: np.ndarray, f: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """What each answer adds to the shift of its probe's mean: [P, n, K].

    Jackknife pseudo-values of sum(w f) / sum(w), less f. Their mean is the shift, its 1/n bias taken off; their
    variance over n is that of the shift. NaN for probes with fewer than two answers taken.

    Args:
        log_weights: [P, n] log p_now - log p_anchor.
        f: [P, n, K].
        taken: [P, n] bool.
    """
    count = taken.sum(1)[:, None, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        top = np.where(taken, log_weights, -np.inf).max(1, keepdims=True)
        w = np.where(taken, np.exp(log_weights - top), 0.0)[..., None]
        wf = w * np.where(taken[..., None], f, 0.0)
        whole, without = wf.sum(1, keepdims=True) / w.sum(1, keepdims=True), _others(wf) / _others(w)
        gain = count * whole - (count - 1) * without - f
    return np.where(count > 1, gain, np.nan)


def inflation(log_weights: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """[P] n / (n - 1), n a probe's effective number of answers: what the jackknife's variance is too small by
    (simulated with 16 answers: by 7% without drift and 15% at the gate's edge; of these 0 and 6 are left)."""
    kept = np.where(taken, log_weights, -np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        w = np.exp(kept - kept.max(1, keepdims=True))
        return 1 / (1 - (w**2).sum(1) / w.sum(1) ** 2)


def _others(x: np.ndarray) -> np.ndarray:
    """Sums over axis 1 of all but the own entry, without cancellation."""
    before, after = np.zeros_like(x), np.zeros_like(x)
    before[:, 1:] = np.cumsum(x, 1)[:, :-1]
    after[:, :-1] = np.cumsum(x[:, ::-1], 1)[:, ::-1][:, 1:]
    return before + after
