"""Cohen's kappa, and the agreement of two judges' labels."""

import math

import numpy as np
import pytest

from vdengine.drift.kappa import kappa, label_agreement, order_agreement
from vdengine.errors import InputError


def test_kappa_is_cohens():
    """Guards the coefficient: the worked example of Cohen's two raters (20, 5, 10, 15: 0.4), three classes against an
    independent implementation, and no agreement beyond chance at 0."""
    assert kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y = np.where(rng.random(200) < 0.6, x, y)
    found = label_agreement(np.eye(3)[x], np.eye(3)[y])
    assert found.kappa == pytest.approx(sklearn.cohen_kappa_score(x, y), abs=1e-12)
    assert found.low < found.kappa < found.high and found.num == 200
    assert math.isnan(kappa(np.diag([9, 0, 0])))


def test_label_agreement_leaves_out_what_one_has_not_judged():
    """Guards against NaN taken for a stance."""
    a, b = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 0, 2]]
    b[3] = np.nan
    found = label_agreement(a, b)
    assert found.num == 3 and found.accuracy == pytest.approx(2 / 3) and found.num_sided == 2 and found.sign == 0.5
    with pytest.raises(InputError, match="no answer in common"):
        label_agreement(a[3:], b[3:])


def test_labels_that_follow_their_order():
    """Guards the refusal: a judge that takes what is named first, or last, is refused with figures, also where most of
    its labels are neutral; a constant one, one that is merely weak and one that leans a little to the first are not."""
    for pairs, word in (
        (["so"] * 30, "first"),
        (["os"] * 30, "last"),
        (["sn"] * 15 + ["no"] * 15 + ["nn"] * 300, "first"),
    ):
        refusal = order_agreement(pairs).refusal
        assert f"the side named {word} wins" in refusal and "\n" not in refusal
    for fine in (
        ["nn"] * 500,
        ["ss"] * 500,
        ["so"] * 19,
        ["ss"] * 40 + ["oo"] * 40 + ["so"] * 30,
        ["ss", "so", "os", "oo"] * 50,
    ):
        assert order_agreement(fine).refusal == ""
    shares = order_agreement(["so"] * 30 + ["ss"] * 10)
    assert (shares.num, shares.first) == (40, 1.5)


def test_a_fair_judge_is_not_refused():
    """Guards against crying wolf: of 60 fair judges that take a side on a tenth to all of 200 questions, each label
    wrong at random in 0 to 60%, none is refused (by chance below 1 in 2,000 at each of three looks: 0.09 expected), and
    of 30 that take the first side named in 90% of what is not neutral, all are."""
    rng = np.random.default_rng(4)

    def judged(first, n=200):
        truth = rng.choice(3, n, p=[0.5 * (sided := rng.uniform(0.1, 1)), 1 - sided, 0.5 * sided])
        wrong = rng.uniform(0, 0.6)
        labels = [np.where(rng.random(n) < wrong, rng.integers(0, 3, n), truth) for _ in range(2)]
        follows = (rng.random(n) < first) & (truth != 1)
        labels = [np.where(follows, side, each) for side, each in zip((0, 2), labels, strict=True)]
        return ["sno"[a] + "sno"[b] for a, b in zip(*labels, strict=True)]

    assert not any(order_agreement(judged(0.0)[:n]).refusal for _ in range(60) for n in (50, 100, 200))
    assert all(order_agreement(judged(0.9, 400)).refusal for _ in range(30))
