"""Accuracies, their errors, and paired changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vdengine.tasks.accuracy import accuracy, change, mcnemar, paired_interval, predicted


def test_predictions():
    """Guards what a log-prob is divided by: nothing, characters, or bytes; and the first of equal ones."""
    choices, logp = ("\u00e9\u00e9\u00e9", "four", "a"), np.array([-3.0, -3.2, -1.5], np.float32)
    assert [predicted(logp, choices, m) for m in ("acc", "acc_norm", "acc_bytes")] == [2, 1, 0]
    assert predicted(np.array([-1.0, -1.0]), ("a", "b"), "acc") == 0
    assert predicted(np.array([-1.0, np.nan]), ("a", "b"), "acc") == -1


def test_accuracy():
    """Guards the standard error: that of lm-evaluation-harness, the sample deviation over sqrt(n)."""
    right = np.array([1.0, 0, 1, 1, np.nan, 0])
    found = accuracy(right)
    assert (found.value, found.rows) == (0.6, 5)
    assert found.stderr == pytest.approx(math.sqrt((3 * 0.4**2 + 2 * 0.6**2) / 4) / math.sqrt(5), rel=1e-12)
    assert math.isnan(accuracy(right[:1]).stderr) and math.isnan(accuracy(right[4:5]).value)


def test_a_change_is_paired():
    """Guards the question that users ask: of the same rows few change, so the error of the change is far below that of
    two independent samples; and a tie of lost and gained is no change."""
    rng = np.random.default_rng(0)
    before = (rng.random(1000) < 0.5).astype(float)
    after = before.copy()
    after[np.flatnonzero(before)[:30]] = 0.0
    after[np.flatnonzero(before == 0)[:5]] = 1.0
    moved = change(before, after)
    assert (moved.mean, moved.lost, moved.gained) == (pytest.approx(-0.025), 30, 5)
    apart = math.hypot(accuracy(before).stderr, accuracy(after).stderr)
    assert moved.stderr < 0.3 * apart and moved.high < 0 and moved.p < 1e-4
    assert moved.high - moved.low == pytest.approx(2 * 1.959964 * moved.stderr, rel=0.03)  # of 1,000 rows near enough
    assert change(before, before).p == 1.0 and change(before, before).stderr == 0.0


def test_intervals_of_changes():
    """Guards few and one-sided changes, of which 1.96 standard errors make certainties: bounds, symmetry, and the
    coverage of 40 rows by simulation."""
    for kept, lost, gained, wrong in ((36, 12, 2, 0), (0, 0, 3, 0), (5, 0, 0, 5), (0, 7, 0, 1), (3, 1, 1, 3)):
        n = kept + lost + gained + wrong
        low, high = paired_interval(kept, lost, gained, n)
        assert -1 <= low <= (gained - lost) / n <= high <= 1
        assert paired_interval(kept, gained, lost, n) == (pytest.approx(-high), pytest.approx(-low))
    still = paired_interval(5, 0, 0, 10)
    assert paired_interval(0, 0, 3, 3)[0] < 0.3 and still[0] < 0 < still[1]
    rng, hits, draws = np.random.default_rng(1), 0, 3000
    for counts in rng.multinomial(40, (0.5, 0.15, 0.05, 0.3), draws):
        low, high = paired_interval(*(int(x) for x in counts[:3]), 40)
        hits += low <= -0.1 <= high
    assert 0.93 <= hits / draws <= 0.98


def test_mcnemar_is_the_exact_binomial():
    """Guards the p-value against its definition, counted by hand."""
    for lost, gained in ((0, 5), (3, 9), (6, 6), (1, 0)):
        n, k = lost + gained, min(lost, gained)
        tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
        assert mcnemar(lost, gained) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
