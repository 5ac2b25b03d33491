"""A judge's probabilities made those of people: a multinomial logistic map of its log-probs, fitted on their labels.

With l(x) = log p(x) - log p(neutral) of a judge's stance, and z the same of the calibrated one,

    z(support) = a l(support) + b l(oppose) + c + d
    z(oppose)  = a l(oppose) + b l(support) + c - d

a sharpens or flattens, b lets evidence for one side count against the other, c moves what is neutral, d takes off a
lean to one side. Both sides have one map but for d, so that four numbers are fitted; a small ridge pulls them towards
the judge as it is (a = 1, the others 0), for labels that can be told apart without error. It is vector scaling (Guo,
Pleiss, Sun and Weinberger 2017) with its sides tied.

How good it is, is said of probes that it was not fitted to: ten folds over probes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.judgements import Judgements, Verdict, folder_of, locked, open_judgements, slug_of
from vdengine.drift.kappa import LabelAgreement, label_agreement
from vdengine.errors import InputError
from vdengine.outside import printable
from vdengine.panels.panel import STANCES

SUFFIX = "+calibrated"  # of the name of a judge that is calibrated
LEAST_LABELS, LEAST_OF_EACH = 60, 8  # in all, and of each stance
_LEAST_P = 1e-4  # of a label: what a judge that is certain is taken for
_RIDGE = 0.5  # of the sum of -log p(label)
_FLAT = 1e-6  # nats: the largest slope of the mean loss at which the fit has converged
_FOLDS = 10


@dataclass(frozen=True)
class Calibration:
    """The map: see the module."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0

    @classmethod
    def fit(cls, stances: np.ndarray, labels: np.ndarray) -> Calibration:
        """The map under which labels are likeliest.

        Args:
            stances: [n, 3] float64, a judge's p(support, neutral, oppose).
            labels: [n, 3] float64, people's: 1 for the label, 0 for the others.

        Raises:
            InputError: the fit did not converge.
        """
        from scipy.optimize import minimize

        x = _log_odds(stances)
        swapped, start = x[:, ::-1], np.array([1.0, 0.0, 0.0, 0.0])

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            """Mean of -log p(label) with the ridge's share, nats; its gradient [4]."""
            logp = _log_mapped(x, parameters)
            pull = parameters - start
            error = (np.exp(logp) - labels)[:, ::2]  # [n, 2]: gradient by z(support), z(oppose)
            gradient = [(error * x).sum(), (error * swapped).sum(), error.sum(), (error[:, 0] - error[:, 1]).sum()]
            value = -(labels * logp).sum() + _RIDGE * (pull**2).sum()
            return float(value) / len(x), (np.array(gradient) + 2 * _RIDGE * pull) / len(x)

        found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": _FLAT})
        if not found.success or not found.fun <= loss(start)[0]:
            raise InputError(f"the fit of a calibration to {len(x)} labels did not converge")
        return cls(*map(float, found.x))

    def __call__(self, stances: np.ndarray) -> np.ndarray:
        """Calibrated stances of stances [n, 3] float64; NaN stays."""
        return np.exp(_log_mapped(_log_odds(stances), np.array([self.a, self.b, self.c, self.d])))


def _log_odds(stances: np.ndarray) -> np.ndarray:
    """[n, 2] float64: log-odds of support and of oppose against neutral, nats."""
    logp = np.log(np.clip(stances, _LEAST_P, 1.0))
    return logp[:, ::2] - logp[:, 1:2]


def _log_mapped(x: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Log of stances [n, 3], nats, from log-odds x [n, 2] under a, b, c, d."""
    a, b, c, d = parameters
    side = a * x + b * x[:, ::-1] + c + np.array([d, -d])  # [n, 2]
    z = np.stack([side[:, 0], np.zeros(len(x)), side[:, 1]], 1)
    z = z - z.max(1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(1, keepdims=True)))


@dataclass(frozen=True)
class Calibrated:
    """A calibration, and how the judge agrees with labels before and after it, on probes that it was not fitted to."""

    judge: str  # name of the judge that was made
    calibration: Calibration
    before: LabelAgreement
    after: LabelAgreement
    loss_before: float  # mean of -log p(label), nats
    loss_after: float


def cross_validated(stances: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Calibrated stances [n, 3] of each answer, by a map that was fitted without its group's answers.

    Args:
        stances, labels: as `Calibration.fit`.
        groups: [n] of each answer; two at least.
    """
    names = np.unique(list(groups), return_inverse=True)[1].reshape(-1)
    fold = names % min(_FOLDS, int(names.max()) + 1)
    mapped = np.zeros_like(stances)
    for k in np.unique(fold):
        mapped[fold == k] = Calibration.fit(stances[fold != k], labels[fold != k])(stances[fold == k])
    return mapped


def calibrate(logs: Sequence[AnswerLog], judge: str, by: str) -> Calibrated:
    """Calibrate a judge of some runs' answers on the labels of another, people's as a rule, and keep its verdicts on
    all answers of these runs as those of the judge `<judge>+calibrated`.

    Args:
        judge, by: slugs.

    Raises:
        InputError: either has judged nothing in a run, the judge's labels follow their order, too few labels, all of
            one probe, or a fit that did not converge.
    """
    kept = [open_judgements(log, judge) for log in logs]
    stances, labels, groups = [], [], list[str]()
    for log, judgements in zip(logs, kept, strict=True):
        if judgements.refusal:
            raise InputError(f"judge {judgements.judge}: {judgements.refusal}")
        ours, theirs = judgements.stances_of(log), open_judgements(log, by).stances_of(log)
        known = np.isfinite(ours).all(1) & np.isfinite(theirs).all(1)
        stances.append(ours[known])
        labels.append(np.eye(3)[theirs[known].argmax(1)])
        groups += [answer.probe for answer, each in zip(log.answers, known, strict=True) if each]
    x, y = np.concatenate(stances), np.concatenate(labels)
    counts = y.sum(0).astype(int)
    if len(y) < LEAST_LABELS or counts.min() < LEAST_OF_EACH or len(set(groups)) < 2:
        raise InputError(
            f"--calibrate {by}: {len(y)} of its labels are of answers that {judge} has judged "
            f"({', '.join(f'{n} {s}' for n, s in zip(counts, STANCES, strict=True))}), on {len(set(groups))} "
            f"questions; a calibration needs {LEAST_LABELS}, {LEAST_OF_EACH} of each stance, on two questions at least"
        )
    mapped, calibration = cross_validated(x, y, groups), Calibration.fit(x, y)
    name = kept[0].judge + SUFFIX
    for log, judgements in zip(logs, kept, strict=True):
        _keep(log, judgements, name, calibration, by)
    return Calibrated(
        name,
        calibration,
        before=label_agreement(y, x),
        after=label_agreement(y, mapped),
        loss_before=_loss(x, y),
        loss_after=_loss(mapped, y),
    )


def _keep(log: AnswerLog, judgements: Judgements, name: str, calibration: Calibration, by: str) -> None:
    """Write a judge's verdicts, mapped, as another judge's."""
    mapped = calibration(np.array([verdict.stance for verdict in judgements.verdicts.values()]).reshape(-1, 3))
    verdicts = {key: Verdict((float(s), float(n), float(o)))
                for key, (s, n, o) in zip(judgements.verdicts, mapped, strict=True)}  # fmt: skip
    identity = {"kind": "calibrated", "of": judgements.identity, "by": by, "map": list(vars(calibration).values())}
    lock = locked(log, name)
    try:
        made = Judgements.start(folder_of(log) / f"{slug_of(name)}.jsonl", name, identity, verdicts)
        if judgements.subset is not None:
            made.draw(judgements.subset)
    finally:
        lock.close()


def renew(log: AnswerLog, judgements: Judgements) -> None:
    """Map a judge's verdicts anew for its calibrated one, if it has one, by the map that was fitted.

    Raises:
        InputError: the calibrated judge's file is damaged, or another process is writing it.
    """
    name = judgements.judge + SUFFIX
    path = folder_of(log) / f"{slug_of(name)}.jsonl"
    if not path.exists():
        return
    kept = Judgements.open(path)
    if kept.judge != name or kept.identity.get("of") != json.loads(json.dumps(judgements.identity)):
        return  # of another version of the judge
    if kept.verdicts.keys() == judgements.verdicts.keys() and kept.subset == judgements.subset:
        return
    numbers, by = kept.identity.get("map"), kept.identity.get("by")
    known = isinstance(numbers, list) and [type(n) in (int, float) and math.isfinite(n) for n in numbers] == [True] * 4
    if not (isinstance(numbers, list) and known and isinstance(by, str)):
        raise InputError(f"{printable(path)}: damaged: its map is not four numbers")
    _keep(log, judgements, name, Calibration(*map(float, numbers)), by)


def _loss(stances: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(label), nats; a probability below `_LEAST_P` counts as that."""
    return float(-np.log(np.clip((stances * labels).sum(1), _LEAST_P, 1.0)).mean()) if len(labels) else math.nan
