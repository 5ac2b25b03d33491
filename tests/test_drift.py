"""The drift science without a model: schedules, packs of a panel, the raw log, the estimator against plain loops."""

import json

import numpy as np
import pytest
from tiny import write_tiny_model

from vdengine.data.batching import deal
from vdengine.drift.analysis import analyse
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.openings import Openings
from vdengine.drift.probe_values import opening_values
from vdengine.drift.schedule import Schedule
from vdengine.errors import InputError
from vdengine.panels.panel import Panel
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def panel() -> Panel:
    return Panel.load("values-mini")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory) -> Renderer:
    return Renderer(load_tokenizer(str(write_tiny_model(tmp_path_factory.mktemp("m") / "llama", "llama"))))


@pytest.fixture
def log(tmp_path, panel) -> DriftLog:
    return DriftLog.create(tmp_path, panel, panel.branches(), [7] * len(panel.branches()), "tokenizer")


# ------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(("total", "every"), [(24, 4), (25, 4), (3, 10), (1, 1)])
def test_every(total, every):
    """Guards the ends: step 0 and the end are always sampled, and nothing twice."""
    s = Schedule.make(total, every=every, budget=None, panel_cost=1.0, step_cost=10.0)
    assert s.steps == tuple(sorted({*range(0, total, every), total}))
    assert [s.index(k) for k in s.steps] == list(range(len(s.steps)))
    assert s.cost == pytest.approx(len(s.steps) / (10 * total))
    assert s.index(total + 1) is None


@pytest.mark.parametrize("total", [1, 2, 10, 1000])
@pytest.mark.parametrize("budget", [1e-6, 0.01, 0.3, 1.0])
def test_budget(total, budget):
    """Guards the promise: at most the budget (but always both ends), dense early, distinct steps."""
    s = Schedule.make(total, every=None, budget=budget, panel_cost=3.0, step_cost=10.0)
    assert s.steps[0] == 0 and s.steps[-1] == total and len(set(s.steps)) == len(s.steps)
    assert s.cost <= budget or len(s.steps) == 2
    if len(s.steps) > 4 and len(s.steps) < total / 2:
        gaps = np.diff(s.steps)
        assert gaps[: len(gaps) // 2].sum() < gaps[len(gaps) // 2 :].sum()


def test_off():
    """Guards every = 0."""
    assert Schedule.make(10, every=0, budget=None, panel_cost=1, step_cost=1).steps == ()


@pytest.mark.parametrize(("packs", "ranks", "micro_steps"), [(7, 2, 2), (3, 4, 1), (1, 1, 1), (9, 2, 1)])
def test_deal_gives_every_pack_to_one_forward(packs, ranks, micro_steps):
    """Guards against a probe scored twice (its sum over ranks would double) or never."""
    shares = [deal(list(range(packs)), ranks, rank, micro_steps) for rank in range(ranks)]
    assert all(len(share) == micro_steps for share in shares)
    dealt = sorted(i for share in shares for part in share for i in part)
    assert dealt == list(range(packs))
    sizes = [len(part) for share in shares for part in share]
    assert max(sizes) - min(sizes) <= 1


# ---------------------------------------------------------------------------------------------------- packs


def test_packs_hold_every_opening_once_and_do_not_change(panel, renderer):
    """Guards the fixed packs: built twice they are equal, and slots are a permutation of the branches."""
    a, b = (Openings.build(panel, renderer, 2048) for _ in range(2))
    assert sorted(int(i) for s in a.slots for i in s) == list(range(len(panel.branches())))
    assert all(p.tokens.equal(q.tokens) for p, q in zip(a.packs, b.packs, strict=True))
    assert max(p.num_tokens for p in a.packs) <= 2048


def test_openings_follow_their_prompt_and_carry_no_end_token(panel, renderer):
    """Guards what is scored: each branch's targets are the opening's own ids, after its probe's prompt."""
    o = Openings.build(panel, renderer, 4096)
    end = renderer.tokenizer.eos_id
    for pack, slots in zip(o.packs, o.slots, strict=True):
        assert end not in pack.targets.tolist()
        for b, slot in enumerate(slots.tolist()):
            ids = pack.targets[pack.branch_offsets[b] : pack.branch_offsets[b + 1]].tolist()
            assert renderer.tokenizer.decode(ids).strip() == o.branches[slot].text
            assert len(ids) == o.num_tokens_of[slot]


def test_parts_are_stratified(panel, renderer):
    """Guards rotating samples: the parts cover the panel, and each holds every topic in both polarities."""
    o = Openings.build(panel, renderer, 6000)
    parts = [o.part(sample, 2) for sample in range(2)]
    assert sorted(parts[0] + parts[1]) == list(range(len(o.packs)))
    for part in parts:
        probes = {o.branches[int(i)].probe for p in part for i in o.slots[p]}
        assert len({(p.topic, p.polarity) for p in probes}) == 2 * len(panel.topics)


def test_a_probe_that_does_not_fit(panel, renderer):
    """Guards a budget below one probe: one line with the probe and both numbers."""
    with pytest.raises(InputError, match=r"panel values-mini: probe \S+ has \d+ tokens .*; probes.tokens is 64"):
        Openings.build(panel, renderer, 64)


# ------------------------------------------------------------------------------------------------------ log


def test_log_round_trip_rewind_and_truncation(tmp_path, log, panel):
    """Guards the raw file: whole records survive, a half-written one is ignored, rewinding drops later samples."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3, len(log.table))).astype(np.float32)
    for step, row in zip((0, 4, 8), rows, strict=True):
        log.append(step, row)
    with open(log.folder / "scores.bin", "ab") as f:
        f.write(b"half a record")
    opened = DriftLog.open(tmp_path)
    assert opened.steps.tolist() == [0, 4, 8] and np.array_equal(opened.logp, rows)
    opened.rewind(8)
    opened.append(8, rows[0])
    assert DriftLog.open(tmp_path).steps.tolist() == [0, 4, 8]
    assert np.array_equal(DriftLog.open(tmp_path).logp[-1], rows[0])


def test_log_of_another_panel_is_refused(tmp_path, log, panel):
    """Guards a run folder against mixing panels; and an empty folder says what is missing."""
    other = Panel("other", panel.probes[:24])
    with pytest.raises(InputError, match="another panel or tokenizer"):
        DriftLog.create(tmp_path, other, other.branches(), [7] * len(other.branches()), "tokenizer")
    with pytest.raises(InputError, match="no drift data here"):
        DriftLog.open(tmp_path / "none")


# ------------------------------------------------------------------------------------------------ estimator


def fill(log, steps, change):
    """Samples whose later rows are the first plus change(step, table row), in nats."""
    base = np.random.default_rng(1).normal(-40, 5, len(log.table)).astype(np.float32)
    for step in steps:
        log.append(step, base + np.array([change(step, row) for row in log.table], dtype=np.float32))


def test_against_plain_loops(tmp_path, log):
    """Guards pooling, polarity and normalisation: the same numbers from an independent, slow reading."""
    rng = np.random.default_rng(2)
    for step in (0, 5):
        log.append(step, rng.normal(-40, 5, len(log.table)).astype(np.float32))
    found = analyse(opening_values(log))

    def value(row_of_log, probe, stance):
        per_byte = [
            x / r["num_bytes"]
            for x, r in zip(row_of_log.astype(float), log.table, strict=True)
            if r["probe"] == probe and r["stance"] == stance
        ]
        return sum(per_byte) / len(per_byte)

    polarity = {r["probe"]: r["polarity"] for r in log.table}
    topic = {r["probe"]: r["topic"] for r in log.table}
    for name in ("all", "abortion"):
        shifts = []
        for probe in polarity:
            if name in ("all", topic[probe]):
                then, now = ((value(x, probe, "support") - value(x, probe, "oppose")) for x in log.logp)
                shifts.append(polarity[probe] * (now - then))
        assert found.drift(name).magnitude.mean == pytest.approx(np.mean(shifts), rel=1e-9)
        assert found.drift(name).magnitude.num_probes == len(shifts)


def test_axis_yes_bias_displacement_and_neutral_are_told_apart(tmp_path, log):
    """Guards the channels: each kind of change shows in its own and in no other."""

    def channels(change, folder):
        other = DriftLog.create(folder, Panel.load("values-mini"), Panel.load("values-mini").branches(), [7] * 288, "t")
        fill(other, (0, 1), lambda step, row: step * change(row) * row["num_bytes"])
        a = analyse(opening_values(other))
        return [round(a.drifts["all", c].magnitude.mean, 6) for c in ("stance", "yes_bias", "displacement", "neutral")]

    sign = {"support": 1, "neutral": 0, "oppose": -1}
    assert channels(lambda r: 0.01 * r["polarity"] * sign[r["stance"]], tmp_path / "a") == [0.02, 0, 0, 0]
    assert channels(lambda r: 0.01 * sign[r["stance"]], tmp_path / "b") == [0, 0.02, 0, 0]
    assert channels(lambda r: -0.03, tmp_path / "c") == [0, 0, -0.03, 0]
    moved = channels(lambda r: 0.03 * (r["stance"] == "neutral"), tmp_path / "d")
    assert moved == [0, 0, 0.01, 0.03]


def test_partial_samples_use_the_probes_they_have(tmp_path, log):
    """Guards rotating parts: NaN probes are left out, pairs stay paired."""
    fill(log, (0,), lambda step, row: 0.0)
    half = log.logp[0].copy()
    seen = np.array([i % 2 == 0 for i, _ in enumerate(dict.fromkeys(r["probe"] for r in log.table))])
    index = {p: i for i, p in enumerate(dict.fromkeys(r["probe"] for r in log.table))}
    half[[not seen[index[r["probe"]]] for r in log.table]] = np.nan
    log.append(3, half)
    found = analyse(opening_values(log)).drift().magnitude
    assert found.num_probes == seen.sum() and found.mean == 0.0


def test_table_reads_well(tmp_path, log):
    """Guards the last screen: every topic, its axis, a verdict; and one sample gives no table."""
    from vdengine.drift.summary import drift_table

    fill(log, (0,), lambda step, row: 0.0)
    assert drift_table(tmp_path) == "Fewer than two samples: no drift to show."
    fill(log, (4,), lambda step, row: 0.02 * row["polarity"] * (row["stance"] == "support") * row["num_bytes"])
    table = drift_table(tmp_path)
    assert "abortion" in table and "moved towards" in table and max(map(len, table.splitlines())) <= 120
    json.dumps(table)
