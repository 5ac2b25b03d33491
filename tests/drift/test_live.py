"""What a sample says while a run goes on: the same as the analysis says of it afterwards."""

import math

import numpy as np
import pytest
from helpers.values import requests_of

from vdengine.drift.analysis import analyse
from vdengine.drift.intervals import ROUNDING
from vdengine.drift.live import LivePanel
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import lead_values, text_values


def test_live_shifts_are_those_of_the_analysis(tmp_path, panel):
    """Guards a console and trackers that show other numbers than the report: of both readouts, by topic, with a part of
    the panel left out."""
    requests = requests_of(panel, leads=True)
    rng = np.random.default_rng(0)
    is_lead = np.array([r.branch.channel == "leads" for r in requests])
    rows = [np.where(is_lead, -rng.uniform(1.2, 4, len(requests)), rng.normal(-40, 5, len(requests))) for _ in range(2)]
    rows[1][[r.branch.probe.id == panel.probes[3].id for r in requests]] = np.nan
    log, live = DriftLog.create(tmp_path, panel, requests, "t"), LivePanel(panel, requests)
    for step, row in enumerate(rows):
        log.append(step, row.astype(np.float32))
        said = live.add(step, row.astype(np.float32))
    lead, text = analyse(lead_values(log)), analyse(text_values(log))
    for topic in panel.topics:
        assert said.lead[topic].mean == pytest.approx(lead.curves[topic, "lead"].mean[1], rel=1e-9)
        assert said.text[topic].mean == pytest.approx(text.curves[topic, "stance"].mean[1], rel=1e-9)
        assert said.scalars[f"text_likelihood/{topic}"] == 100 * said.text[topic].mean
    assert said.scalars["lead/abortion"] == said.lead["abortion"].mean
    assert said.scalars["lead_coverage/abortion"] == pytest.approx(lead.levels["abortion", "coverage"].mean[1])
    again = LivePanel(panel, requests)
    again.continue_from(log.samples()[:1])
    assert again.add(1, log.samples()[1]) == said


@pytest.mark.parametrize("leads", [False, True])
def test_the_live_shifts_and_the_table_share_the_rule(panel, leads):
    """Guards a console that calls a topic moved where the report does not; and a run that reads openings alone."""
    requests = requests_of(panel, leads=leads)
    num_bytes = np.array([r.branch.num_bytes for r in requests])
    first = -np.random.default_rng(1).uniform(20, 60, len(requests)).astype(np.float32)
    live = LivePanel(panel, requests)
    live.add(0, first)
    sign = {"support": 1, "neutral": 0, "oppose": -1}
    side = np.array(
        [sign[r.branch.stance] * r.branch.probe.polarity * (r.branch.variant == "question") for r in requests]
    )
    for size, moved in ((0.2 * ROUNDING["nats per byte"], False), (20 * ROUNDING["nats per byte"], True)):
        said = live.add(4, (first.astype(np.float64) + size * side * num_bytes).astype(np.float32))
        assert {e.significant for e in said.text.values()} == {moved}
        assert bool(said.lead) == leads and all(abs(e.mean) < 1e-6 for e in said.lead.values())


def test_scores_that_are_not_finite_say_nothing(panel):
    """Guards against a topic without a number in the console."""
    requests = requests_of(panel, leads=True)
    live = LivePanel(panel, requests)
    live.add(0, np.full(len(requests), -3.0, np.float32))
    said = live.add(1, np.full(len(requests), math.nan, np.float32))
    assert not said.lead and not said.text and not said.scalars
