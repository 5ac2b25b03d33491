"""Cohen's kappa, and the agreement of two judges' labels."""

import math

import numpy as np
import pytest

from vdengine.drift.kappa import kappa, label_agreement
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
