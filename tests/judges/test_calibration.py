"""A judge calibrated on people's labels."""

import math

import numpy as np
import pytest
from helpers.judging import MINI, Scripted, answered

from vdengine.drift.judgements import (
    NO_VERDICT,
    BareLead,
    Judgements,
    Part,
    Subset,
    Verdict,
    folder_of,
    open_judgements,
)
from vdengine.errors import InputError
from vdengine.judges.calibration import Calibration, calibrate, cross_validated
from vdengine.judges.judging import judge_answers


def drawn(rng, n, map_):
    """Stances of a judge, and labels that are drawn at the probabilities that `map_` makes of them."""
    stances = rng.dirichlet([0.5, 1.0, 0.5], n)
    p = map_(stances)
    labels = (rng.random((n, 1)) > p.cumsum(1)).sum(1).clip(0, 2)
    return stances, np.eye(3)[labels]


def test_the_map_is_found_again():
    """Guards the fit: of 20,000 labels drawn at a known map's probabilities, its four numbers, to about five standard
    errors; and the map of both sides is one but for d."""
    truth = Calibration(0.6, -0.3, 0.5, 0.4)
    found = Calibration.fit(*drawn(np.random.default_rng(0), 20_000, truth))
    assert vars(found) == pytest.approx(vars(truth), abs=0.08)
    even = Calibration(0.6, -0.3, 0.5, 0.0)
    stances = np.random.default_rng(1).dirichlet([1, 1, 1], 9)
    np.testing.assert_allclose(even(stances[:, ::-1]), even(stances)[:, ::-1], atol=1e-12)
    assert np.isnan(even(np.full((1, 3), np.nan))).all()
    np.testing.assert_allclose(Calibration()(stances), stances, atol=1e-9)  # nothing to be calibrated


@pytest.mark.parametrize("judge", ["noise", "reversed"])
def test_many_labels_and_a_bad_judge(judge):
    """Guards the fit where its steps once went astray, to a loss of hundreds: 30,000 labels against a judge of noise,
    and against one that says the opposite with certainty. The loss is that of the best map."""
    rng = np.random.default_rng(4)
    labels = np.eye(3)[rng.choice(3, 30_000, p=[0.2, 0.6, 0.2])]
    noise = rng.dirichlet([0.1, 0.1, 0.1], len(labels))
    stances = noise if judge == "noise" else np.where(labels[:, [2, 1, 0]] > 0, 1 - 2e-6, 1e-6)
    loss = -np.log((labels * Calibration.fit(stances, labels)(stances)).sum(1)).mean()
    # Of noise, nothing but the shares is known: their entropy, to the four numbers' gain (2 / n each) and the draw's.
    entropy = -(labels.mean(0) * np.log(labels.mean(0))).sum()
    assert entropy - 1e-3 < loss < entropy + 1e-3 if judge == "noise" else loss < 1e-3


def test_a_fit_that_fails_is_refused(monkeypatch):
    """Guards verdicts against a map that is none: one line, and nothing is written."""
    import scipy.optimize

    failed = scipy.optimize.OptimizeResult(success=False, fun=0.0, x=np.full(4, 1e5))
    worse = scipy.optimize.OptimizeResult(success=True, fun=1e3, x=np.full(4, 1e5))
    for result in (failed, worse):
        monkeypatch.setattr(scipy.optimize, "minimize", lambda *args, result=result, **kwargs: result)
        with pytest.raises(InputError, match="the fit of a calibration to 90 labels did not converge"):
            Calibration.fit(*drawn(np.random.default_rng(0), 90, Calibration()))


def test_a_calibrated_judge_goes_on_with_the_judge(tmp_path):
    """Guards a calibrated judge against staying behind: what the judge says later is mapped too, by the map that was
    fitted; one of another version of the judge is left as it was."""
    log = answered(tmp_path, [f"answer {k}" for k in range(4)], anchors=(0,), panel=MINI)
    texts = {f"answer {k}": stance for k, stance in enumerate(((0.6, 0.3, 0.1), (0.2, 0.6, 0.2), (0.1, 0.2, 0.7)))}
    judge = Scripted(lambda item: texts.get(item.answer, (0.2, 0.5, 0.3)))
    judge_answers(log, judge, subset=Subset(100, 1))
    people = {Part(0, a.probe, a.sample): Verdict(tuple(np.eye(3)[a.sample % 3])) for a in log.answers}
    Judgements.start(folder_of(log) / "human-me.jsonl", "human:me", {}, people)
    map_ = calibrate([log], "scripted", "human-me").calibration
    judge_answers(log, judge)
    raw, kept = open_judgements(log, "scripted"), open_judgements(log, "scripted+calibrated")
    assert len(kept.verdicts) == len(raw.verdicts) > 192 and raw.subset is None and kept.subset is None
    np.testing.assert_allclose(kept.stances_of(log), map_(raw.stances_of(log)), atol=2e-6)
    judge_answers(log, Scripted(version=2), again=True, max_calls=20)
    assert len(open_judgements(log, "scripted+calibrated").verdicts) == len(kept.verdicts)


def test_a_calibration_is_tried_on_other_probes():
    """Guards against praise of itself: labels that have nothing to do with the judge are no better told by a map of
    other probes' labels than by their shares."""
    rng = np.random.default_rng(2)
    stances, _ = drawn(rng, 200, Calibration())
    labels = np.eye(3)[rng.choice(3, 200, p=[0.2, 0.6, 0.2])]
    mapped = cross_validated(stances, labels, [f"p{i % 25}" for i in range(200)])
    shares = -(labels * np.log([0.2, 0.6, 0.2])).sum(1)
    loss = -np.log((labels * mapped).sum(1))
    assert loss.mean() > shares.mean() - 3 * shares.std() / math.sqrt(200)


def judged(folder, labelled=96):
    """A run of 48 probes with two answers each, a judge that is far too sure of support, and labels of some answers."""
    log = answered(folder, ["a", "b"], anchors=(0,), panel=MINI)
    keys = [Part(0, answer.probe, answer.sample) for answer in log.answers]
    stances, labels = drawn(np.random.default_rng(3), len(keys), Calibration(0.4, -0.2, 0.3, -1.0))
    verdicts = {key: Verdict(tuple(map(float, stance)), "ss") for key, stance in zip(keys, stances, strict=True)}
    verdicts |= {keys[0]._replace(part="argument"): Verdict(NO_VERDICT), BareLead(keys[0].probe, 1): Verdict((1, 0, 0))}
    Judgements.start(folder_of(log) / "x.jsonl", "x", {"version": 1}, verdicts).draw(Subset(96, 0))
    people = {key: Verdict(tuple(label)) for key, label in list(zip(keys, labels, strict=True))[:labelled]}
    Judgements.start(folder_of(log) / "human-me.jsonl", "human:me", {}, people)
    return log


def test_a_calibrated_judge_is_kept(tmp_path):
    """Guards what is written: every verdict of the judge, mapped, as a judge of its own, with what it was made from;
    log loss on other probes is better than before."""
    log = judged(tmp_path)
    found = calibrate([log], "x", "human-me")
    assert found.judge == "x+calibrated" and found.loss_after < found.loss_before and found.after.num == 96
    raw, kept = open_judgements(log, "x"), open_judgements(log, "x+calibrated")
    assert kept.verdicts.keys() == raw.verdicts.keys() and kept.subset == Subset(96, 0)
    np.testing.assert_allclose(kept.stances_of(log), found.calibration(raw.stances_of(log)), atol=2e-6)
    assert kept.identity["of"] == {"version": 1} and kept.identity["by"] == "human-me" and kept.orders is None


def test_too_few_labels(tmp_path):
    """Guards four numbers against a handful of labels: one line with what there is and what is needed."""
    log = judged(tmp_path, labelled=40)
    with pytest.raises(
        InputError, match=r"--calibrate human-me: 40 of its labels .* on 20 questions; .* needs 60, 8 of"
    ):
        calibrate([log], "x", "human-me")
    with pytest.raises(InputError, match="not judged by 'y'"):
        calibrate([log], "y", "human-me")
