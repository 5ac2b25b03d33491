"""v by probe and sample from judged answers: fresh answers at anchors, weighted ones between them.

v is the mean, over answers y drawn at temperature 1, of the judged stance f = p(stance | question, y). At an anchor it
is the mean over the anchor's answers. Between anchors the bank (the first n answers of each probe) is weighted by
w = p_now(y) / p_anchor(y):

    v now = mean of f over all answers of the anchor + mean over its bank of (w f / mean w - f), less its bias

The second term is the shift since the anchor. Both of its means are over the same answers, so most of their noise
cancels (f is a control variate). The ratio has a bias of order 1/n, here towards no shift: simulated, 6-10% of the
shift with 16 answers where the gate is open, 12-16% with 8. The jackknife takes it off (less than 1% is left) and gives
the variance of what remains: `drift/reweighting.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.importance import Gate, gate
from vdengine.drift.probe_values import ProbeValues, topic_name
from vdengine.drift.reweighting import inflation, reweighted
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES

ANSWER_CHANNELS = (*STANCES, "graded", "yes_bias")
KINDS = ("both", "anchor", "weighted")


def answer_values(
    log: AnswerLog, stances: np.ndarray, total_steps: int | None = None, *, kind: str = "both", closed: bool = False
) -> ProbeValues:
    """v by probe and sample, from judged answers: see the module.

    Channels, in probability: `support`, `neutral`, `oppose` on the topic's axis (polarity -1 swaps the first and the
    last), `graded` (support less oppose), `yes_bias` (the same towards the prompt's proposition). Answers without a
    judgement are left out. Halves: every other answer.

    `noise`, `shift_noise` and `anchor_noise` are variances under other answers drawn for the same probes: s^2 / n at
    anchors, the jackknife's between them. An answer that is in both means of a shift since the bank's own anchor
    counts once. An interval over probes holds this noise already.

    Args:
        stances: [len(log.answers), 3] float64, p(support, neutral, oppose) towards the prompt's proposition; NaN: not
            judged.
        total_steps: of the stage. Default: the last sample's step.
        kind: "both"; "anchor"; or "weighted": the first anchor and all readings of banks, those at later anchors'
            steps too (compare them with the fresh answers there by `agreement`).
        closed: keep what a closed gate leaves out; it is NaN otherwise.

    Raises:
        InputError: an unknown kind, no answers, none judged, judgements of other answers, or readings that do not fit
            the anchors.
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
    towards = by_answer(log, stances)
    pools = {anchor: _Pool.of(log, anchor, towards) for anchor in anchors}
    samples = [pools[anchor].fresh() for anchor in (anchors[:1] if kind == "weighted" else anchors)]
    if kind != "anchor":
        samples += _bank_readings(log, pools, closed=closed, at_anchors=kind == "weighted")
    samples.sort(key=lambda sample: sample.step)
    # By channel, [S, P] float64 each.
    channels, noise, anchor_noise = (
        {channel: np.array([getattr(s, array)[:, k] for s in samples]) for k, channel in enumerate(ANSWER_CHANNELS)}
        for array in ("value", "noise", "anchor_noise")
    )
    # The shift since the first sample: its answers are independent of those of other anchors, so variances add.
    shift_noise = {channel: variance.copy() for channel, variance in anchor_noise.items()}
    for channel in ANSWER_CHANNELS:
        for i, sample in enumerate(samples):
            if sample.anchor != anchors[0]:
                shift_noise[channel][i] = noise[channel][i] + noise[channel][0]
    return ProbeValues(
        readout="answers",
        unit="probability",
        steps=np.array([s.step for s in samples], np.int64),
        total_steps=max(s.step for s in samples) if total_steps is None else total_steps,
        probes=np.array([p.id for p in probes]),
        topics=np.array([topic_name(p.topic) for p in probes]),
        polarity=polarity,
        axes={topic_name(p.topic): p.axis for p in probes},
        channels=channels,
        kinds=np.array(["anchor" if s.gate is None else "weighted" for s in samples]),
        anchors=np.array([s.anchor for s in samples], np.int64),
        gates=[s.gate for s in samples],
        halves=(np.array([s.halves[0] for s in samples]), np.array([s.halves[1] for s in samples])),
        anchor_shift={c: np.array([s.anchor_shift[:, k] for s in samples]) for k, c in enumerate(ANSWER_CHANNELS)},
        anchor_halves=(
            np.array([s.anchor_halves[0] for s in samples]),
            np.array([s.anchor_halves[1] for s in samples]),
        ),
        noise=noise,
        shift_noise=shift_noise,
        anchor_noise=anchor_noise,
    )


def by_answer(log: AnswerLog, stances: np.ndarray) -> np.ndarray:
    """The channels of each answer, on its topic's axis.

    Args:
        stances: [len(log.answers), 3] float64, p(support, neutral, oppose) towards the prompt's proposition; NaN: not
            judged.

    Returns:
        [len(log.answers), 5] float64 by channel, as in `ANSWER_CHANNELS`.
    """
    polarity_of = {probe.id: probe.polarity for probe in log.panel.probes}
    polarity = np.array([polarity_of[answer.probe] for answer in log.answers])[:, None]  # [answers, 1]
    # Support and oppose change places where polarity is -1.
    on_axis = np.where(polarity > 0, stances, stances[:, ::-1])
    graded = on_axis[:, :1] - on_axis[:, 2:]
    return np.concatenate([on_axis, graded, polarity * graded], 1)


@dataclass(frozen=True)
class _Sample:
    """v of P probes at one step, from an anchor's fresh answers or from a reading of a bank, in probability.

    Arrays [P, 5] float64 by channel, as in `ANSWER_CHANNELS`; NaN where there is too little.
    """

    step: int
    anchor: int  # step at which the answers were drawn
    value: np.ndarray
    noise: np.ndarray  # variance of `value` under other answers
    anchor_noise: np.ndarray  # variance of the shift since `anchor`
    halves: tuple[np.ndarray, np.ndarray]  # [P] each: `graded` from every other answer
    anchor_shift: np.ndarray  # the shift since `anchor`
    anchor_halves: tuple[np.ndarray, np.ndarray]  # [P] each: the same of `halves`
    gate: Gate | None  # None: fresh answers


@dataclass(frozen=True)
class _Pool:
    """An anchor's judged answers: up to N of each of P probes. The first `samples` of a probe are its bank."""

    step: int
    samples: int
    f: np.ndarray  # [P, N, 5] float64, stance of each answer by channel; NaN where there is none

    @classmethod
    def of(cls, log: AnswerLog, anchor: int, towards: np.ndarray) -> _Pool:
        """towards: [answers, 5], of `by_answer`."""
        row_of = {probe.id: i for i, probe in enumerate(log.panel.probes)}
        drawn = [i for i, answer in enumerate(log.answers) if answer.anchor == anchor]
        cells = [row_of[log.answers[i].probe] for i in drawn], [log.answers[i].sample for i in drawn]
        f = np.full((len(row_of), max(log.samples, 1 + max(cells[1])), len(ANSWER_CHANNELS)), np.nan)
        f[cells] = towards[drawn]
        return cls(anchor, log.samples, f)

    @cached_property
    def judged(self) -> np.ndarray:
        """[P, N] bool."""
        return np.isfinite(self.f).all(-1)

    @cached_property
    def mean(self) -> np.ndarray:
        """[P, 5]: over all judged answers."""
        return _mean(self.f, self.judged)

    @cached_property
    def variance(self) -> np.ndarray:
        """[P, 5]: of one answer."""
        return _variance(self.f, self.judged)

    @cached_property
    def halves(self) -> tuple[np.ndarray, np.ndarray]:
        """[P] each: `graded`, from answers 0, 2, ... and from answers 1, 3, ..., as many of either."""
        pairs = self.f.shape[1] // 2 * 2
        even, odd = (_mean(self.f[:, k:pairs:2, 3:4], self.judged[:, k:pairs:2])[:, 0] for k in (0, 1))
        return even, odd

    def fresh(self) -> _Sample:
        """The sample at the anchor itself: plain means over its answers."""
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = self.variance / self.judged.sum(1)[:, None]
        nothing = self.mean * 0, (self.halves[0] * 0, self.halves[1] * 0)
        return _Sample(self.step, self.step, self.mean, noise, self.mean * 0, self.halves, *nothing, None)

    def read(self, step: int, log_weights: np.ndarray, diagnostics: Gate, closed: bool) -> _Sample:
        """The sample at a later step, from the weighted bank: from each half where the other half's gate is open.

        Args:
            log_weights: [P, samples] float64, log p_now - log p_anchor of the bank's answers, nats.
            diagnostics: of these weights.
            closed: whether what a closed gate leaves out counts too.
        """
        n = self.samples
        f, judged = self.f[:, :n], self.judged[:, :n]  # of the bank: [P, n, 5], [P, n]
        # A half of the answers, at even or odd places, counts where the other half's gate is open; [P, n] each.
        counts = [closed or is_open for is_open in diagnostics.halves[::-1]]
        used = judged & np.array(counts)[np.arange(judged.size).reshape(judged.shape) % 2]
        gain = reweighted(log_weights, f, used)  # [P, n, 5], its mean is the shift since the anchor
        in_used, in_pool = (taken.sum(1)[:, None] for taken in (used, self.judged))  # [P, 1] counts n_b, n_p
        with np.errstate(divide="ignore", invalid="ignore"):
            # v = sum over the pool of f / n_p + sum over the used ones of gain / n_b. Answers are independent, so v's
            # variance is the sum of theirs: the used n_b are in both sums, the pool's other n_p - n_b in the first.
            of_used = _variance(f / in_pool[..., None] + gain / in_used[..., None], used) * in_used
            noise = of_used + self.variance * (in_pool - in_used) / in_pool**2
            # The shift's variance is the second sum's. The jackknife makes it too small: put the factor there, and
            # what it adds into v's variance.
            jackknife = _variance(gain, used) / in_used
            anchor_noise = jackknife * inflation(log_weights, used)[:, None]
            noise = noise + anchor_noise - jackknife
        shift = _mean(gain, used)
        # `graded` from every other answer, [P] each.
        even, odd = (
            _mean(reweighted(log_weights[:, k::2], f[:, k::2, 3:4], used[:, k::2]), used[:, k::2])[:, 0] for k in (0, 1)
        )
        return _Sample(
            step,
            self.step,
            self.mean + shift,
            noise,
            anchor_noise,
            (self.halves[0] + even, self.halves[1] + odd),
            shift,
            (even, odd),
            diagnostics,
        )


def _mean(per_answer: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Mean of per_answer [P, N, K] over the answers taken [P, N] bool: [P, K], NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(taken[..., None], per_answer, 0.0).sum(1) / taken.sum(1)[:, None]


def _variance(per_answer: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Variance of per_answer [P, N, K] over the answers taken [P, N] bool, by n - 1: [P, K], NaN below two."""
    count = taken.sum(1)[:, None]
    squares = np.where(taken[..., None], (per_answer - _mean(per_answer, taken)[:, None]) ** 2, 0.0).sum(1)
    return np.where(count > 1, squares / np.maximum(count - 1, 1), np.nan)


def _bank_readings(log: AnswerLog, pools: dict[int, _Pool], *, closed: bool, at_anchors: bool) -> list[_Sample]:
    """Samples from readings of banks, by step: of each step, the newest anchor's before it.

    Weights are relative to the first reading of an anchor, which is at its own step.

    Args:
        pools: by anchor.
        closed: keep what a closed gate leaves out.
        at_anchors: take readings at later anchors' steps too.
    """
    path = log.weights_path
    baselines: dict[int, np.ndarray] = {}  # by anchor: [P * samples] log-prob sums, nats
    latest: dict[int, tuple[int, np.ndarray]] = {}  # by step: its newest anchor, and log-prob sums
    for record in log.readings():
        step, anchor, logp = int(record["step"]), int(record["anchor"]), record["logp"].astype(np.float64)
        if anchor not in pools:
            raise InputError(f"{path}: the reading of step {step} is of answers at step {anchor}, which are not there")
        if step == anchor:
            baselines[anchor] = logp
        elif (at_anchors or step not in pools) and (step not in latest or latest[step][0] < anchor):
            latest[step] = anchor, logp
    samples = []
    for step, (anchor, logp) in sorted(latest.items()):
        if anchor not in baselines:
            raise InputError(f"{path}: the answers of step {anchor} have no reading at their own step")
        diagnostics = gate(baselines[anchor], logp)
        log_weights = (logp - baselines[anchor]).reshape(-1, log.samples)
        samples.append(pools[anchor].read(step, log_weights, diagnostics, closed))
    return samples
