"""Probes along a run: they touch nothing, and their scores are the same bits anywhere."""

import numpy as np
import pytest
from helpers.runs import STEPS
from helpers.scenarios import same_bits

from vdengine.drift.analysis import analyse
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import lead_values, text_values


def test_probes_do_not_touch_training(runs, start):
    """Guards the second stream: with activation checkpointing, on 1 and 2 ranks, weights have the same bits with
    probes on and off."""
    assert same_bits(runs["base"], runs["probes_off"])
    assert not same_bits(runs["base"], start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "name"), [(2, "base"), (1, "small_packs"), (2, "small_packs"), (1, "sft"), (1, "lr0")]
)
def test_probe_scores_are_the_same_bits_anywhere(ranks, name, one, two):
    """Guards the fixed packs: theta_0's scores do not depend on ranks, packing of the batch or what else rides."""
    other = (one if ranks == 1 else two)[name]
    assert np.array_equal(one["base"]["drift"][1][0], other["drift"][1][0])
    assert np.array_equal(one["base"]["drift"][0], np.arange(STEPS + 1))


def test_lr_zero_drifts_by_exactly_nothing(one):
    """Guards the measurement: unchanged weights give an unchanged reading, to the bit."""
    steps, logp = one["lr0"]["drift"]
    assert (logp == logp[0]).all() and np.isfinite(logp).all()
    for values in (lead_values, text_values):
        found = analyse(values(DriftLog.open(one.out / "lr0")))
        assert all(
            d.magnitude.mean == d.magnitude.low == d.magnitude.high == 0 and not d.significant
            for d in found.drifts.values()
        )


@pytest.mark.slow
def test_rotating_fraction_samples_whole_packs(runs):
    """Guards partial panels: the ends are whole, the middle alternates halves that together make the panel."""
    steps, logp = runs["fraction"]["drift"]
    seen = np.isfinite(logp)
    assert seen[0].all() and seen[-1].all()
    assert 0 < seen[1].sum() < seen.shape[1] and (seen[1] ^ seen[2]).all()


@pytest.mark.slow
def test_bf16_noise_is_stated(one):
    """Guards the noise floor: bf16 compute scores theta_0 within what 8 mantissa bits allow, and not equal."""
    fp32, bf16 = one["base"]["drift"][1][0], one["bf16"]["drift"][1][0]
    log = DriftLog.open(one.out / "base")
    tokens = np.array([row["num_tokens"] for row in log.items("openings")] + [1] * len(log.items("leads")))
    per_token = np.abs(fp32 - bf16) / tokens
    # activations carry 2^-9 relative rounding through 3 layers; log-probs here are about 6 nats
    assert 0 < per_token.mean() < 0.02


@pytest.mark.slow
def test_controls_stand_beside_the_panel(one):
    """Guards controls at both ends, none between, and the panel's own numbers left as they were."""
    base, log = one["base"]["drift"][1], one["controls"]["drift"][1]
    control = np.isnan(log[1])
    assert np.array_equal(log[:, ~control], base)
    assert np.isfinite(log[[0, -1]]).all() and np.isnan(log[1:-1, control]).all() and control.sum() > base.shape[1]
