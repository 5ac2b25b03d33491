"""Halves of a probe's openings: parallel, or none."""

import numpy as np
import pytest
from helpers.values import SIDE, fill, requests_of

from vdengine.drift.analysis import analyse
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.pooling import Pooling
from vdengine.drift.probe_values import text_values
from vdengine.panels.panel import Panel


@pytest.mark.parametrize("name", ["values-mini", "values"])
def test_built_in_panels_have_no_parallel_halves(name):
    """Guards Spearman and Brown against halves of other make-up: a belief against a claim, or two items against one."""
    probes = Panel.load(name).probes[:40]
    of = [(p.id, stance, 9, opening.kind) for p in probes for stance in SIDE for opening in p.openings[stance]]
    assert not Pooling.of(*zip(*of, strict=True)).parallel


@pytest.mark.parametrize(
    ("kinds", "parallel"),
    [(["b", "b"], True), (["b", "c"], False), (["b", "c", "c", "b"], True), (["b", "b", "c"], False), (["b"], False)],
)
def test_which_halves_are_parallel(kinds, parallel):
    """Guards the rule: an even number of every kind; and without kinds there are none."""
    sides = [side for side in ("support", "oppose") for _ in kinds]
    assert Pooling.of(["p"] * len(sides), sides, [1] * len(sides), kinds * 2).parallel == parallel
    assert not Pooling.of(["p"] * len(sides), sides, [1] * len(sides)).parallel


def test_halves_of_text_likelihood(tmp_path):
    """Guards the reliability of single probes: of a panel with two openings of each kind a side it is that of either
    half's shifts, question less null, by polarity; of a built-in one there is none."""
    mini = Panel.load("values-mini")
    rows = []
    for probe in mini.probes[:12]:
        row = probe.to_row()
        row["openings"] = {
            side: [opening | {"text": opening["text"] + more} for more in ("", " Quite so.") for opening in openings]
            for side, openings in row["openings"].items()
        }
        rows.append(row)
    panel = Panel.from_rows(rows, "doubled")
    rng = np.random.default_rng(3)
    own = {probe.id: rng.normal() for probe in panel.probes}
    log = DriftLog.create(tmp_path / "a", panel, requests_of(panel), "t")

    def change(step, row):
        side = row["polarity"] * SIDE[row["stance"]] * (row["variant"] == "question")
        more = own.get(row["probe"], 0) + 0.5 * row["text"].endswith("so.")
        return 0.01 * step * side * row["num_bytes"] * more

    fill(log, (0, 1), change)
    values = text_values(log)
    first, second = (half[1] - half[0] for half in values.halves)
    shift = values.channels["stance"][1] - values.channels["stance"][0]
    assert (first + second) / 2 == pytest.approx(shift, abs=1e-6)
    assert first == pytest.approx([0.02 * own[p] for p in values.probes], abs=1e-5)
    assert second == pytest.approx([0.02 * own[p] + 0.01 for p in values.probes], abs=1e-5)
    assert analyse(values).validity["items"] == pytest.approx(1, abs=1e-4)
    plain = DriftLog.create(tmp_path / "b", mini, requests_of(mini), "t")
    fill(plain, (0, 1), change)
    assert text_values(plain).halves is None and analyse(text_values(plain)).validity["items"] is None
