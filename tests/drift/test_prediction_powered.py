"""A cheap judge corrected by a strong one on a random part: against truths that are known.

Tolerances of simulations are the Monte-Carlo error of the stated number of draws.
"""

from functools import cache

import numpy as np
import pytest
from helpers.judging import answered
from helpers.values import answer_log

from vdengine.drift.analysis import analyse
from vdengine.drift.answer_values import answer_values
from vdengine.drift.judgements import Judgements, Part, Subset, Verdict
from vdengine.drift.prediction_powered import correctable, corrected_values, correction, drawn
from vdengine.errors import InputError
from vdengine.panels.panel import Panel

PANEL = Panel("p", Panel.load("values-mini").probes)
TOPICS = np.array([probe.topic for probe in PANEL.probes])
POLARITY = np.array([probe.polarity for probe in PANEL.probes])
ANSWERS = 8  # a probe and anchor


@cache
def log_of(folder):
    """Two anchors of 8 answers to each of 48 probes."""
    texts = np.arange(48 * ANSWERS).reshape(48, ANSWERS)
    return answer_log(folder, {0: texts, 5: texts}, ANSWERS, [], panel=PANEL)


def made(log, subset, stances, name):
    """A judge with stances [answers, 3], of a part if `subset`."""
    keys = [Part(answer.anchor, answer.probe, answer.sample) for answer in log.answers]
    chosen = range(len(keys)) if subset is None else drawn(log, subset).tolist()
    verdicts = {keys[i]: Verdict(tuple(stances[i])) for i in chosen}
    return Judgements(log.folder / f"{name}.jsonl", name, {}, verdicts, subset)


def world(rng, log, shift=0.3, noise=0.3, lean=0.4):
    """(strong, cheap) stances [answers, 3] of answers drawn by probes that are drawn too, and the population's shift.

    A probe has a level and a shift of its own. The cheap judge sees a third of what the strong one sees, with noise,
    and leans to yes.
    """
    row_of = {probe.id: i for i, probe in enumerate(PANEL.probes)}
    rows = np.array([row_of[answer.probe] for answer in log.answers])
    later = np.array([answer.anchor > 0 for answer in log.answers])
    level, own = rng.normal(0, 0.2, 48), rng.normal(shift, 0.2, 48)
    mean = POLARITY[rows] * (level[rows] + later * own[rows])  # towards the proposition
    strong = np.clip(mean + rng.normal(0, 0.3, len(rows)), -1, 1)
    cheap = np.clip(strong / 3 + rng.normal(0, noise, len(rows)) + lean, -1, 1)
    neutral = rng.uniform(0, 1, (2, len(rows))) * (1 - np.abs([strong, cheap]))
    return [np.stack([(1 - n + g) / 2, n, (1 - n - g) / 2], 1) for g, n in zip((strong, cheap), neutral, strict=True)]


def test_a_part_is_drawn_from_all_alike(tmp_path):
    """Guards the draw: each anchor and topic gives its share, a larger part holds the smaller, another seed has other
    answers, and over 300 seeds each answer is drawn equally often (chance: 5 standard errors)."""
    log = log_of(tmp_path)
    part = drawn(log, Subset(96, 0))
    assert len(set(part.tolist())) == 96 and set(part.tolist()) <= set(drawn(log, Subset(97, 0)).tolist())
    assert set(part.tolist()) != set(drawn(log, Subset(96, 1)).tolist())
    topic_of = {probe.id: probe.topic for probe in PANEL.probes}
    cells = [(log.answers[i].anchor, topic_of[log.answers[i].probe]) for i in part]
    assert {cells.count(cell) for cell in set(cells)} == {96 // (2 * len(PANEL.topics))}
    times = np.zeros(len(log.answers))
    for seed in range(300):
        times[drawn(log, Subset(96, seed))] += 1
    share = 96 / len(log.answers)
    assert np.abs(times / 300 - share).max() < 5 * np.sqrt(share * (1 - share) / 300)


def test_a_corrected_mean_is_the_formula(tmp_path):
    """Guards the estimator against its definition by topic: lambda times the cheap mean, plus what least squares by
    topic and polarity over the part say of the topic; and the stances still sum to 1."""
    log = log_of(tmp_path)
    strong, cheap = world(np.random.default_rng(1), log)
    subset = Subset(200, 3)
    judges = made(log, None, cheap, "cheap"), made(log, subset, strong, "strong")
    found, told = corrected_values(log, *judges), correction(log, *judges)
    assert found.steps.tolist() == [0, 5] and found.readout == "answers" and set(found.kinds) == {"anchor"}
    in_part = np.isin(np.arange(len(log.answers)), drawn(log, subset))
    probes = {probe.id: probe for probe in PANEL.probes}
    sign = np.array([probes[a.probe].polarity for a in log.answers])
    c, s = (sign * (x[:, 0] - x[:, 2]) for x in (cheap, strong))
    later = np.array([a.anchor == 5 for a in log.answers])
    dummies = np.array([[probes[a.probe].topic == topic for topic in PANEL.topics] for a in log.answers], float)
    x = np.concatenate([dummies, sign[:, None]], 1)
    used = later & in_part
    fitted = np.linalg.lstsq(x[used], (s - told.slope * c)[used], rcond=None)[0]
    for k, topic in enumerate(PANEL.topics):
        inside = later & (dummies[:, k] > 0)
        want = told.slope * c[inside].mean() + fitted[k] + fitted[-1] * sign[inside].mean()
        assert found.channels["graded"][1, topic == found.topics].mean() == pytest.approx(want, abs=1e-12)
    total = sum(found.channels[stance] for stance in ("support", "neutral", "oppose"))
    np.testing.assert_allclose(total, 1, atol=1e-12)
    assert told.num == 200 and 0.2 < told.correlation < 0.5 and told.share == 200 / len(log.answers)


def test_a_cheap_judge_that_knows_nothing_costs_nothing(tmp_path):
    """Guards lambda: noise for a cheap judge gives nearly the strong judge alone, and one that is the strong judge
    gives the strong judge's own mean over all answers."""
    log = log_of(tmp_path)
    rng = np.random.default_rng(2)
    strong, _ = world(rng, log)
    part = made(log, Subset(200, 0), strong, "strong")
    assert correction(log, made(log, None, rng.dirichlet([1, 1, 1], len(strong)), "cheap"), part).slope < 0.3
    same = corrected_values(log, made(log, None, strong, "cheap"), part)
    np.testing.assert_allclose(same.channels["graded"], answer_values(log, strong).channels["graded"], atol=1e-9)


@pytest.mark.slow
def test_corrected_intervals_cover_the_truth(tmp_path):
    """Guards the interval of a shift and of a level: over 300 worlds with probes, answers, part and cheap noise drawn
    anew, 95% intervals of the panel's mean and of its topics cover the population's in 93-97% (Monte-Carlo error 1.3
    points for the panel, 0.6 for the topics); and with a good cheap judge (r 0.8) the shift's variance is below that of
    the strong judge's part alone, whose answers cost as much, by a fifth and more."""
    log = log_of(tmp_path)
    rng = np.random.default_rng(3)
    covered, of_topics, errors = [], [], []
    nothing = np.tile([0.0, 1.0, 0.0], (len(log.answers), 1))
    for world_number in range(300):
        strong, cheap = world(rng, log, noise=0.1)
        subset = Subset(192, world_number)
        judges = made(log, None, cheap, "cheap"), made(log, subset, strong, "strong")
        analysis = analyse(corrected_values(log, *judges), resamples=5)
        shift = analysis.drift("all").magnitude
        level = analysis.levels["all", "graded"]
        topics = [analysis.drift(topic).magnitude for topic in PANEL.topics]
        of_topics.append([topic.low <= TRUE_SHIFT <= topic.high for topic in topics])
        covered.append([shift.low <= TRUE_SHIFT <= shift.high, level.low[0] <= 0 <= level.high[0]])
        if world_number < 100:
            alone = corrected_values(log, made(log, None, nothing, "nothing"), judges[1])
            errors.append([shift.mean - TRUE_SHIFT, np.diff(alone.channels["graded"].mean(1))[0] - TRUE_SHIFT])
    assert (np.abs(np.mean(covered, 0) - 0.95) <= 0.02 + 0.013).all(), np.mean(covered, 0)
    assert abs(np.mean(of_topics) - 0.95) <= 0.02 + 0.006, np.mean(of_topics)
    corrected, strong_alone = np.var(errors, axis=0)
    assert abs(np.mean(errors, 0)[0]) < 4 * np.sqrt(corrected / 100)
    assert corrected < 0.8 * strong_alone, (corrected, strong_alone)


# Stances are clipped to [-1, 1]: the population's shift is that of clipped answers.
def _true_shift():
    rng = np.random.default_rng(9)
    level, own, noise = rng.normal(0, 0.2, 10**6), rng.normal(0.3, 0.2, 10**6), rng.normal(0, 0.3, (2, 10**6))
    return float((np.clip(level + own + noise[0], -1, 1) - np.clip(level + noise[1], -1, 1)).mean())


TRUE_SHIFT = _true_shift()


def test_what_cannot_be_corrected(tmp_path):
    """Guards one line for each: nothing drawn, a part that is not judged, too small a part, a cheap judge with gaps."""
    log = log_of(tmp_path)
    strong, cheap = world(np.random.default_rng(4), log)
    all_of, part = made(log, None, cheap, "cheap"), made(log, Subset(100, 0), strong, "strong")
    assert correctable(all_of, part) and not correctable(part, all_of) and not correctable(all_of, all_of)
    some = dict(list(part.verdicts.items())[:60])
    for pair, message in (
        ((all_of, all_of), "no random part of the answers was drawn for cheap: use --subset"),
        (
            (all_of, Judgements(part.path, "strong", {}, some, part.subset)),
            "a verdict on 60% of the 100 answers that were",
        ),
        ((all_of, made(log, Subset(20, 0), strong, "strong")), "20 answers were judged for a correction; it needs 30"),
        ((part, part), "strong has judged 13% of the answers, and all are needed"),
    ):
        with pytest.raises(InputError, match=message) as error:
            corrected_values(log, *pair)
        assert "\n" not in str(error.value)


def test_anchors_that_are_not_judged_are_left_out(tmp_path):
    """Guards an anchor that was drawn after a judge had finished: of 22 anchors the cheap judge has none of one
    and half of another, and the strong one has stopped before a fourth. These three are NaN, and the others are what
    they are without these anchors' answers; people are no cheap judge."""
    panel = Panel("few", PANEL.probes[::2])
    texts = np.arange(24 * 4).reshape(24, 4)
    log = answer_log(tmp_path, {anchor: texts for anchor in range(22)}, 4, [], panel=panel)
    stances = np.random.default_rng(5).dirichlet([1, 1, 1], len(log.answers))
    cheap, strong = made(log, None, stances, "cheap"), made(log, Subset(1000, 0), stances, "strong")
    for key in list(cheap.verdicts):
        if key.anchor == 21 or (key.anchor == 3 and key.sample % 2):
            del cheap.verdicts[key]
    for key in list(strong.verdicts):
        if key.anchor == 7:
            del strong.verdicts[key]
    found = corrected_values(log, cheap, strong).channels["graded"]
    gaps = [anchor for anchor, row in enumerate(found) if not np.isfinite(row).any()]
    assert gaps == [3, 7, 21]
    whole = answer_values(log, stances, kind="anchor").channels["graded"]
    kept = [anchor for anchor in range(21) if anchor not in (3, 7)]
    np.testing.assert_allclose(found[kept], whole[kept], atol=1e-9)  # the cheap judge is the strong one
    assert not correctable(Judgements(log.folder, "human:jo", {}, {}), strong)


def test_a_part_of_arguments(tmp_path):
    """Guards parts of answers: the argument is corrected by arguments."""
    log = answered(tmp_path, ["Yes, it harms us.", "It helps us.", "No."], anchors=(0, 4), panel=PANEL)
    stances = np.tile([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0], [0.0, 0.25, 0.75]], (96, 1))
    cheap, strong = made(log, None, stances, "cheap"), made(log, Subset(200, 0), stances, "strong")
    for judge in (cheap, strong):
        for key in list(judge.verdicts):
            if key.sample == 0:
                judge.verdicts[key._replace(part="argument")] = Verdict((0.0, 0.0, 1.0))
    found = corrected_values(log, cheap, strong, part="argument")
    # -1 of "it harms us", 0.75 of "It helps us." and 0 of a lead alone, towards the proposition: a third each.
    np.testing.assert_allclose(found.channels["yes_bias"], -0.25 / 3, atol=1e-9)
