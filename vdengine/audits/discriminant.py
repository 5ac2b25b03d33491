"""A linear discriminant from features of an answer to its stance, fitted on texts whose stance is known.

The model is a two-way analysis of variance. The k features of an answer are the mean of what the answer does (its
kind), plus what its question does to all of its answers alike, plus the answer's own part. The last two are Gaussian
with covariances `shared` and `own`. The answers to one question are therefore read together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np

# What an answer may do, and which stance that is. "elsewhere" is about something else: neither side, but no hedge.
KINDS = ("support", "hedge", "elsewhere", "oppose")
_STANCE_OF = np.array([0, 1, 1, 2])  # by kind: index into STANCES
_PRIOR = np.array([1 / 3, 1 / 6, 1 / 6, 1 / 3])  # by kind; the three stances are equally likely


@dataclass(frozen=True)
class Quality:
    """How well texts of known stance are read, each with its probe left out of the fit."""

    accuracy: float  # share whose stance is read right, under the prior; by chance 1/3
    known_gap: float  # mean gap of support-against-oppose pairs; 2 if read perfectly
    known_sign: float  # share of those pairs whose gap is positive


@dataclass(frozen=True)
class Calibration:
    """The fitted discriminant, of k features; all arrays float64."""

    means: dict[str, np.ndarray]  # by topic: [4, k], the mean of each kind, in the order of `KINDS`, on the axis
    own: np.ndarray  # [k, k] covariance of an answer's own part
    shared: np.ndarray  # [k, k] covariance of the part that all answers to a question share
    quality: dict[str, Quality]  # by topic

    @classmethod
    def fit(cls, features: Mapping[str, np.ndarray]) -> Calibration:
        """Fit means and covariances, and measure the quality by leaving out one probe at a time.

        Args:
            features: by topic, [probes, 4, k] float64: of a text of each kind for each probe.
        """
        quality = {}
        for topic, of_topic in features.items():
            is_right, gaps = [], []
            for i in range(len(of_topic)):
                without = cls._estimate({**features, topic: np.delete(of_topic, i, 0)})
                # The four texts one by one, [4, 3]; then support and oppose as two answers to one question, [2, 3].
                one_by_one = without.stances(topic, of_topic[i][:, None])[:, 0]
                is_right.append(one_by_one.argmax(1) == _STANCE_OF)
                pair = without.stances(topic, of_topic[i][None, [0, 3]])[0]
                gaps.append(pair[0, 0] - pair[0, 2] - pair[1, 0] + pair[1, 2])
            accuracy = float(np.mean(is_right, 0) @ _PRIOR)
            quality[topic] = Quality(accuracy, float(np.mean(gaps)), float((np.array(gaps) > 0).mean()))
        fitted = cls._estimate(features)
        return cls(fitted.means, fitted.own, fitted.shared, quality)

    @classmethod
    def _estimate(cls, features: Mapping[str, np.ndarray]) -> Calibration:
        """Means and covariances, without quality, from features [probes, 4, k] by topic.

        Topics differ in how a kind shows in the features, but few texts tell how: each topic's effects are shrunk
        towards those common to all topics, feature by feature (empirical Bayes).
        """
        own, shared = _covariances(features)
        # A topic's level [k], and the effect of each kind against it [4, k]; the effects common to all topics [4, k].
        level = {topic: of_topic.mean((0, 1)) for topic, of_topic in features.items()}
        effect = {topic: of_topic.mean(0) - level[topic] for topic, of_topic in features.items()}
        common = np.mean(list(effect.values()), 0)
        # Variance of the effects over topics, and the part of it that is noise: own / probes, times 3/4 for taking off
        # the mean of four kinds. noise [k]; spread, true, weight [4, k].
        noise = np.mean([own.diagonal() * 0.75 / len(of_topic) for of_topic in features.values()], 0)
        spread = np.mean([(e - common) ** 2 for e in effect.values()], 0) * len(effect) / max(len(effect) - 1, 1)
        true = np.maximum(spread - noise, 0)
        weight = true / (true + noise) if len(effect) > 1 else np.ones_like(true)
        means = {topic: level[topic] + common + weight * (effect[topic] - common) for topic in features}
        return cls(means, own, shared, {})

    def stances(self, topic: str, features: np.ndarray) -> np.ndarray:
        """Posterior stances of m answers to each of n questions, read jointly.

        The prior has the answers' kinds independent, each as in `_PRIOR`.

        Args:
            features: [n, m, k] float64.

        Returns:
            [n, m, 3] float64: p(support, neutral, oppose) on the axis.
        """
        n, m, k = features.shape
        # Precision of a question's m * k features: blocks own + shared on the diagonal, shared elsewhere.
        precision = np.linalg.inv(np.kron(np.eye(m), self.own) + np.kron(np.ones((m, m)), self.shared))
        # Log-posterior of every combination of the m answers' kinds, up to a constant, [n, 4^m].
        combinations = np.array(list(product(range(len(KINDS)), repeat=m)))  # [4^m, m]
        residual = features.reshape(n, 1, m * k) - self.means[topic][combinations].reshape(1, -1, m * k)
        log_posterior = np.log(_PRIOR)[combinations].sum(1) - 0.5 * np.einsum(
            "nci,ij,ncj->nc", residual, precision, residual
        )
        posterior = np.exp(log_posterior - log_posterior.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        # Sum the combinations in which an answer has a stance.
        stances = np.zeros((n, m, 3))
        for c, combination in enumerate(combinations):
            stances[:, np.arange(m), _STANCE_OF[combination]] += posterior[:, c, None]
        return stances


def _covariances(features: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Covariances `own` and `shared`, [k, k] float64 each, from features as in `Calibration.fit`.

    A two-way analysis of variance of probes by kinds, pooled over topics.
    """
    own_residuals, total_residuals, own_freedom, total_freedom = [], [], 0, 0
    for of_topic in features.values():
        num_probes, num_kinds, k = of_topic.shape
        centred = of_topic - of_topic.mean(0)  # less the mean of each kind
        total_residuals.append(centred.reshape(-1, k))
        own_residuals.append((centred - centred.mean(1, keepdims=True)).reshape(-1, k))  # and of each probe
        total_freedom += num_kinds * (num_probes - 1)
        own_freedom += (num_kinds - 1) * (num_probes - 1)
    within, whole = (np.concatenate(residuals) for residuals in (own_residuals, total_residuals))
    own = within.T @ within / own_freedom
    own += np.diag(1e-9 + 1e-6 * np.diag(own))  # invertible even where a feature never varies
    # What is left of the total is shared; negative variances, which are noise, become 0.
    values, vectors = np.linalg.eigh(whole.T @ whole / total_freedom - own)
    return own, (vectors * np.maximum(values, 0)) @ vectors.T
