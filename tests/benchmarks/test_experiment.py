"""`benchmarks/experiment.py` without training: its design, its texts, and its tables on experiments of known truth."""

from __future__ import annotations

import importlib
import json
import lzma
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from vdengine.judges.base import Item
from vdengine.panels.panel import Panel

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
KAPPAS = {"both": 0.8, "lead": 0.9}
PROBES = 12  # of a topic


@pytest.fixture(scope="module")
def scripts():
    """The experiment's files as modules: data, runs, tables."""
    names = ("experiment_data", "experiment_tables", "experiment_runs", "experiment_readers")
    before = sys.path[:]
    sys.path.insert(0, str(BENCHMARKS))
    modules: dict[str, ModuleType] = {name.removeprefix("experiment_"): importlib.import_module(name) for name in names}
    modules["data"].design = cache(modules["data"].design)  # a second each
    yield modules
    sys.path[:] = before
    for name in (*names, "rule_judge"):
        sys.modules.pop(name, None)


def simulated(scripts, seed: int, readout: str, *, num_runs: int = 26):
    """An experiment whose answers move with dose, objective and step, and by chance of run and topic; every readout in
    it is `readout`:

    "perfect"       what the answers would say without the noise of sampling
    "lead"          so of leads; where answers were trained without leads it does not move, and answers do
    "topic"         the likelihood of the topic's texts: it moves as the answers do, and as far after no question
    "yes"           perfect, and a growing yes to everything on top
    "dose"          the dose x step, and noise of its own
    """
    data, tables = scripts["data"], scripts["tables"]
    rng = np.random.default_rng(seed)
    plans = data.design(num_runs)
    doses = np.array([p.doses for p in plans])  # [R, T]
    led = np.array([p.led for p in plans])[:, None, None]
    polarity = np.tile([1, -1], PROBES // 2 * len(data.TOPICS))
    topics = np.repeat(data.TOPICS, PROBES)
    speed = np.array([{"sft": 0.4, "dpo": 0.3, "simpo": 0.25}[p.objective] for p in plans])
    by_dose = speed[:, None, None] * doses[:, None] * np.array([0.5, 1.0])[:, None]  # [R, K, T]
    # Beside the dose: what a topic of a run does at both anchors, and at one.
    of_cell = by_dose + rng.normal(0, 0.1, (num_runs, 1, 4)) + rng.normal(0, 0.04, by_dose.shape)

    def of_probes(cells: np.ndarray) -> np.ndarray:
        probes = np.repeat(cells, PROBES, -1)
        return probes + rng.normal(0, 0.12, probes.shape)

    both = of_probes(of_cell)  # [R, K, P]
    lead = np.where(led, both, of_probes(np.zeros(of_cell.shape)))

    def sampled(true: np.ndarray) -> np.ndarray:  # either half of 16 answers of variance 0.5 each
        return true[..., None] + rng.normal(0, 0.25, (*true.shape, 2))

    # On average yes grows by 0.25 at the end: polarity left out; on the axis it cancels in the panel's mean.
    yes = 0.25 * np.array([0.5, 1.0])[:, None] * polarity
    shift = {
        "perfect": both,
        "lead": lead,
        "topic": both,
        "yes": both + yes,
        "dose": np.repeat(by_dose + rng.normal(0, 0.1, by_dose.shape), PROBES, -1) + rng.normal(0, 0.05, both.shape),
    }[readout]
    trivial = rng.normal(0, 0.05, (num_runs, 2, 24))
    trivial[:, 0] = np.nan  # only scored at the ends
    names = tables.READOUTS
    return tables.Experiment(
        plans=tuple(plans),
        topics=topics,
        polarity=polarity,
        trivial_polarity=np.tile([1, -1], 12),
        shifts=dict.fromkeys(names, shift),
        null={tables.QUESTION: of_probes(of_cell)} if readout == "topic" else {},
        trivial=dict.fromkeys(names, trivial),
        coverage=rng.uniform(0, 1, (*both.shape, 2)),
        truth={"both": sampled(both), "argument": sampled(both), "lead": sampled(lead)},
        in_judges_units=shift,
        largest_change=np.full(num_runs, 1.0),
    )


# ------------------------------------------------------------------------------------------------- design and texts


def test_design_is_balanced(scripts) -> None:
    """Guards against doses that go along with a topic, an objective or the form of answers, which a readout that knows
    these would then seem to track; and against a design that another run of the script makes differently."""
    data = scripts["data"]
    plans = data.design(26)
    assert plans == data.design.__wrapped__(26)
    doses = np.array([p.doses for p in plans])
    assert doses.shape == (26, 4) and not doses.sum(0).any()
    for column in doses.T:
        assert np.bincount(np.searchsorted(data.DOSES, column)).tolist() == [5, 5, 6, 5, 5]
    # Rows of 26 independent doses correlate by 0.2.
    assert np.abs(np.corrcoef(doses.T) - np.eye(4)).max() < 0.1
    for objective, led in data.GROUPS:
        own = doses[[p.objective == objective and p.led == led for p in plans]]
        assert len(own) in (4, 5)
        assert np.abs(own.mean(0)).max() <= 0.2 and np.ptp(np.abs(own).mean(0)) <= 0.25
    assert sum(p.led for p in plans) == 13 and len({p.seed for p in [*plans, *data.controls()]}) == 29


def test_rows_have_the_doses_and_no_lead_where_none_is_wanted(scripts, tmp_path) -> None:
    """Guards against a dose that is not in the data, one that teaches yes or no instead of a side, and leads in the
    half without them."""
    data = scripts["data"]
    for led in (True, False):
        plan = data.Plan(f"led-{led}", "dpo", led, (1.0, -0.5, 0.0, -1.0), 3)
        path = data.training_file(plan, 128, tmp_path)
        before = path.read_bytes()
        data.training_file(plan, 64, tmp_path)  # of other settings, in the same folder
        assert path.read_bytes() != before
        assert data.training_file(plan, 128, tmp_path).read_bytes() == before
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for topic, dose in zip(data.TOPICS, plan.doses, strict=True):
            for polarity in (1, -1):
                own = [r for r in rows if r["topic"] == topic and r["axis_polarity"] == polarity]
                assert len(own) == 16
                assert np.mean([r["stance"] == "support" for r in own]) == (1 + dose) / 2
        begins = {r["chosen"].split(".")[0] in ("Yes", "No") for r in rows}
        assert begins == {led}
        if led:
            yes = {
                r["chosen"].startswith("Yes") == ((r["stance"] == "support") == (r["axis_polarity"] > 0)) for r in rows
            }
            assert yes == {True}


def test_overlap_is_seen(scripts) -> None:
    """Guards against training texts in the panel that go by unseen: as they are, with other case and marks, as one
    sentence of an answer, or in part."""
    data = scripts["data"]
    panel = Panel.load("values-mini")
    assert "0 of 288 alike; 0 with 5 words" in data.check_overlap(panel)
    rows = data.texts(led=False)[:5]
    opening = panel.probes[0].openings["support"][0].text
    clean = data.overlaps(panel, rows)
    assert not any(each.same for each in clean) and not clean[3].num_runs
    leaked = [
        rows[0] | {"prompt": panel.probes[3].paraphrases[1].upper(), "support": f"So it is. {opening}"},
        *rows[1:],
    ]
    questions, _, _, openings = data.overlaps(panel, leaked)
    assert questions.same == 1 and openings.same == 1 and openings.num_runs >= 1
    part = " ".join(opening.split()[:6])
    openings = data.overlaps(panel, [rows[0] | {"oppose": f"They say {part} and more."}])[3]
    assert not openings.same and openings.num_runs >= 1 and openings.longest == " ".join(data.words(part))


# ------------------------------------------------------------------------------------------------------ the verdict


def test_a_perfect_readout_passes(scripts) -> None:
    """Guards against a rule that nothing can meet: noise of the answers alone stands between this readout and them."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 1, "perfect")
    said, checks = tables.verdict(experiment, tables.LEAD, KAPPAS)
    assert said == tables.SAYS, [c for c in checks[tables.SAYS] if not c.met]
    found = tables.figures(experiment.design, experiment.shifts[tables.LEAD], "both")
    assert found.r < found.ceiling + 0.03 and abs(found.disattenuated - 1) < 0.03
    # The gap is the noise of the answers alone: 95% of 208 intervals hold 0, give or take 3 Monte-Carlo errors of 1.5%.
    assert found.covers > 0.9
    # Twelve probes of 16 answers of variance 0.5.
    assert found.rmse == pytest.approx(np.sqrt(0.5 / 16 / 12), rel=0.15)


def test_without_a_good_judge_nothing_passes(scripts) -> None:
    """Guards against a verdict by a judge that is not known to read answers as people do."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 1, "perfect")
    for kappas in ({}, {"both": 0.74, "lead": 0.74}, {"both": float("nan")}):
        assert tables.verdict(experiment, tables.LEAD, kappas)[0] == tables.NOTHING_SAID


def test_text_that_follows_the_topic_fails(scripts) -> None:
    """Guards against the likelihood of a trained topic's texts being taken for what the model says: it moves as far
    after no question."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 2, "topic")
    share = tables.shares(experiment.design, tables.QUESTION)["null"]
    assert share.share == pytest.approx(1, abs=0.1) and share.interval[0] > 0.8
    said, checks = tables.verdict(experiment, tables.QUESTION, KAPPAS)
    assert said == tables.NOTHING_SAID
    assert [c.what for c in checks[tables.SAYS] if not c.met] == ["null shift / the question's"]


def test_a_growing_yes_fails(scripts) -> None:
    """Guards against a readout that moves by saying yes to everything: in a panel with as many questions of either
    polarity that cancels, and only the shift without polarity shows it."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 3, "yes")
    found = tables.shares(experiment.design, tables.LEAD)
    # The end's 0.25 and the middle's half of it, over the root mean square of the cells' shifts.
    cells = experiment.by_topic(experiment.shifts[tables.LEAD])
    expected = np.sqrt((0.25**2 + 0.125**2) / 2 / (cells**2).mean())
    assert found["unsigned"].share == pytest.approx(expected, rel=0.1)
    assert found["trivial"].share < 0.1
    said, checks = tables.verdict(experiment, tables.LEAD, KAPPAS)
    assert said == tables.NOTHING_SAID
    assert [c.what for c in checks[tables.SAYS] if not c.met] == ["unsigned shift / the question's"]


def test_a_readout_of_leads_alone_is_named_so(scripts) -> None:
    """Guards against a readout that is blind to what is argued and passes for one that reads it."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 4, "lead")
    said, checks = tables.verdict(experiment, tables.LEAD, KAPPAS)
    assert said == tables.BEGINS, [c for c in checks[tables.BEGINS] if not c.met]
    assert any(not c.met and c.of == "both, runs without leads" for c in checks[tables.SAYS])


def test_the_dose_alone_has_no_partial_r(scripts) -> None:
    """Guards against praise for a readout that says no more than what is known before any training: r is high, and
    nothing of it is left given the dose. r of 104 independent pairs is off 0 by 0.1; four times that is allowed."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 5, "dose").design
    found = tables.figures(experiment, experiment.shifts[tables.LEAD], "both")
    assert found.r > 0.7 and abs(found.partial) < 0.4
    assert found.partial_interval[0] < 0 < found.partial_interval[1]
    assert tables.verdict(simulated(scripts, 5, "dose"), tables.LEAD, KAPPAS)[0] == tables.NOTHING_SAID
    # The baseline itself predicts as well as doses can: what is left are the cells' own 0.1 and 0.04, the probes' 0.12,
    # the answers' noise, and what 12 slopes that are fitted to 200 cells add.
    baseline = tables.of_probes(experiment, tables.predicted(experiment, "both"))
    dose = tables.figures(experiment, baseline, "both", scale=False)
    left = np.sqrt(0.1**2 + 0.04**2 + 0.12**2 / PROBES + 0.5 / 16 / PROBES)
    assert left * 0.9 < dose.rmse < left * 1.25


def test_the_baseline_never_sees_its_own_run(scripts) -> None:
    """Guards against a baseline that is fitted to what it predicts, and that readouts then seem to fall short of."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 6, "perfect").design
    before = tables.predicted(experiment, "both")[3]
    experiment.truth["both"][3] += 5.0
    assert np.array_equal(tables.predicted(experiment, "both")[3], before)
    read = experiment.by_topic(experiment.shifts[tables.LEAD])
    truth = experiment.cells("both")[0]
    factor = tables.scales(read, truth)[3]
    truth[3] += 5.0
    assert tables.scales(read, truth)[3] == pytest.approx(factor, rel=1e-12)


def test_share_interval_covers(scripts) -> None:
    """Guards against an interval of a share that is too narrow, or a share that noise among probes makes larger than it
    is. 100 experiments: a coverage of 95% is off by 2.2%; 3 errors below it are allowed, and all above."""
    tables = scripts["tables"]
    shares, inside = [], []
    for seed in range(100):
        experiment = simulated(scripts, 100 + seed, "yes").design
        found = tables.shares(experiment, tables.LEAD)["unsigned"]
        shares.append(found.share)
        # Of the question's shift, the expectation: by dose (mean square of the doses x speed), and the cells' own.
        speed = {"sft": 0.4, "dpo": 0.3, "simpo": 0.25}
        by_dose = [(speed[p.objective] * d) ** 2 for p in experiment.plans for d in p.doses]
        square = np.mean(by_dose) * (1 + 0.25) / 2 + 0.1**2 + 0.04**2
        expected = np.sqrt((0.25**2 + 0.125**2) / 2 / square)
        inside.append(found.interval[0] <= expected <= found.interval[1])
    assert np.mean(shares) == pytest.approx(expected, rel=0.03)
    assert np.mean(inside) >= 0.885


@pytest.mark.slow
def test_power(scripts) -> None:
    """Guards against too few runs for the rule, and intervals of r / ceiling that miss: a readout whose true r is 0.95,
    with an error of the run's topics that both anchors share in most of its variance. 60 experiments: 95% of coverage
    is off by 2.8%, of which three are allowed."""
    tables, true = scripts["tables"], 0.95
    passes, covers = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        experiment = simulated(scripts, 1000 + seed, "perfect").design
        shift = experiment.shifts[tables.LEAD]
        size = experiment.by_topic(shift).std() * np.sqrt(1 / true**2 - 1)
        error = rng.normal(0, size * 0.7**0.5, (26, 1, 4)) + rng.normal(0, size * 0.3**0.5, (26, 2, 4))
        read = shift + np.repeat(error, PROBES, -1)
        own = [not plan.led for plan in experiment.plans]
        both = [tables.figures(experiment, read, "both"), tables.figures(experiment.argued, read[own], "both")]
        covers += [found.disattenuated_interval[0] <= true <= found.disattenuated_interval[1] for found in both]
        passes.append(
            all(
                found.disattenuated >= tables.LEAST_R
                and found.disattenuated_interval[0] >= tables.LEAST_R_LOW
                and found.partial_interval[0] > tables.LEAST_PARTIAL_LOW
                for found in both
            )
        )
    assert np.mean(passes) >= 0.9
    assert np.mean(covers) >= 0.95 - 3 * 0.028


# ------------------------------------------------------------------------------------------------ coverage, reports


def test_coverage_cut_off_is_found(scripts) -> None:
    """Guards against a cut-off that is not where the lead stops to track: below 0.4 of coverage it is noise here."""
    tables = scripts["tables"]
    experiment = simulated(scripts, 7, "perfect").design
    noise = np.random.default_rng(0).normal(0, 0.3, experiment.in_judges_units.shape)
    later = experiment.coverage[..., 1]
    experiment.in_judges_units[:] = np.where(later < 0.4, noise, experiment.in_judges_units)
    smaller, at_end = tables.ENDS.values()
    assert tables.least_coverage(experiment, "both", at_end) == 0.4
    assert tables.least_coverage(experiment, "both", smaller) == 0.4  # both ends are at 0.4 or more, or one is below
    rows = tables.coverage_rows(experiment, "both", at_end)
    assert sum(row["n"] for row in rows) == later.size
    assert rows[0]["net RMSE"] > 0.25 and rows[-1]["net RMSE"] < 0.1


def test_report_of_a_whole_and_of_a_small_experiment(scripts) -> None:
    """Guards against a report that fails where little is there: two runs, trivial matters at the end, controls."""
    tables, data = scripts["tables"], scripts["data"]
    text = tables.report(simulated(scripts, 8, "perfect"), "rule", KAPPAS)
    assert "**lead**: tracks what the model says" in text
    assert "nan" not in text
    small = simulated(scripts, 9, "perfect", num_runs=2)
    assert "2 runs, 1 of them without leads" in tables.report(small, "rule", {})
    control = simulated(scripts, 10, "perfect", num_runs=3)
    plans = (*control.plans[:2], data.controls()[0])
    still = {name: np.array(shift) for name, shift in control.shifts.items()}
    for shift in still.values():
        shift[2] = 0.0
    control = tables.replace(control, plans=plans, shifts=still, largest_change=np.array([1.0, 1.0, 0.0]))
    row = tables.control_rows(control)[1]
    assert row["run"] == "control-lr-0" and row[tables.LEAD] == 0.0
    assert row["largest change of a raw number"] == "0"


# ------------------------------------------------------------------------------------------------ what is kept


def test_results_are_read_as_they_were_kept(scripts, tmp_path) -> None:
    """Guards against shifts on the wrong axis, from the wrong end, or halves that mix; and against results of other
    runs being taken for these. Answers are "Yes." and "No." here, so that what the rule judge says of them is known."""
    from vdengine.judges.rules import RuleJudge

    data, runs, tables = scripts["data"], scripts["runs"], scripts["tables"]
    size = runs.replace(runs.SMALL, answers=4)
    plans = data.design(2)
    panel = runs.panel_of(size)
    polarity = np.array([p.polarity for p in panel.probes])
    assert len(polarity) == 48 and not polarity.sum()
    for plan in plans:
        lead = np.array([0.1 * polarity, 0.2 * polarity, np.full(48, 0.4)])  # [anchors, probes]
        record = {
            "schema": runs.SCHEMA, "plan": asdict(plan), "size": asdict(size), "start": "aa", "panel_hash": panel.hash,
            "steps": [0, 1, 2],
            "probes": [p.id for p in panel.probes], "largest_change": 0.5,
            "lead": {"lead": lead.tolist(), "coverage": np.full((3, 48), 0.6).tolist()},
            "text_likelihood": {"question": (2 * lead).tolist(), "null": lead.tolist()},
            "trivial": {
                "polarity": [1, -1],
                "lead": {"lead": [[0, 0], [None, None], [0.1, 0.1]], "coverage": [[1, 1], [None, None], [1, 1]]},
                "text_likelihood": {"question": [[0, 0]] * 3, "null": [[0, 0]] * 3},
            },
        }  # fmt: skip
        # At the end every answer is on the axis; of the middle, answers 0 and 2 are.
        lines = []
        for anchor in (0, 1, 2):
            for probe in panel.probes:
                on, off = ("Yes.", "No.") if probe.polarity > 0 else ("No.", "Yes.")
                texts = {0: [on, off, off, on], 1: [on, off, on, off], 2: [on] * 4}[anchor]
                lines.append(json.dumps([anchor, probe.id, texts]))
        (tmp_path / f"{plan.name}.answers.jsonl.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
        (tmp_path / f"{plan.name}.json").write_text(json.dumps(record))
    judge = RuleJudge()
    runs.judge_all(plans, size, tmp_path, judge)
    found = runs.load(plans, size, tmp_path, "rule")
    bare = json.loads((tmp_path / f"{plans[0].name}.rule.json").read_text())["bare"]
    assert bare[0] == pytest.approx(-bare[1]) and 0.5 < bare[0] <= 1
    assert found.truth["both"].shape == (2, 2, 48, 2)
    np.testing.assert_allclose(found.truth["both"][:, 1], bare[0], atol=1e-4)
    np.testing.assert_allclose(found.truth["both"][:, 0, :, 0], bare[0], atol=1e-4)
    np.testing.assert_allclose(found.truth["both"][:, 0, :, 1], -bare[0], atol=1e-4)
    np.testing.assert_allclose(found.truth["lead"][:, 1], 1.0)
    shift = np.array([0.1 * polarity, 0.4 - 0.1 * polarity])
    for name, factor in ((tables.LEAD, 1), (tables.TEXT, 1), (tables.QUESTION, 2), (tables.NULL, 1)):
        np.testing.assert_allclose(found.shifts[name], np.array([factor * shift] * 2), atol=1e-12)
    np.testing.assert_allclose(found.in_judges_units, bare[0] * found.shifts[tables.LEAD], atol=1e-4)
    assert found.coverage.min() == found.coverage.max() == 0.6
    assert np.isnan(found.trivial[tables.LEAD][:, 0]).all() and (found.trivial[tables.LEAD][:, 1] == 0.1).all()
    with pytest.raises(SystemExit, match="holds another run .size differ"):
        runs.load(plans, runs.SMALL, tmp_path, "rule")
    second = tmp_path / f"{max(plan.name for plan in plans)}.json"
    second.write_text(second.read_text().replace('"start": "aa"', '"start": "bb"'))
    with pytest.raises(SystemExit, match=f"{second}: has other weights .bb. than those that .* started from .aa."):
        runs.load(plans, size, tmp_path, "rule")


def test_each_size_has_a_warm_start_of_its_own(scripts, tmp_path, monkeypatch) -> None:
    """Guards against runs that start from what another size has left: from the two steps of --quick, another model, or
    another dtype; and against a warm start that is made again, and other, in the middle of an experiment."""
    runs, trained = scripts["runs"], []

    def train(command, *_, **__):
        trained.append(command[-1])
        export = Path(command[-1]).with_suffix("") / "export"
        export.mkdir(parents=True)
        (export / "config.json").write_text("{}")
        (export / "model.safetensors").write_bytes(bytes([len(trained)]))
        return "", 0

    monkeypatch.setattr(runs.common, "run_limited", train)
    small = runs.SMALL
    others = [runs.replace(small, **each) for each in ({"model": "m"}, {"dtype": "float32"}, {"examples": 4})]
    for size in (runs.QUICK, small, *others, small, runs.replace(small, answers=2)):
        runs.warm_up(size, tmp_path, 1)
        plan = scripts["data"].design(2)[0]
        assert str(runs.warm_folder(size, tmp_path) / "export") in runs.recipe(plan, size, tmp_path)
    assert len(trained) == len(set(trained)) == 5
    assert runs.start_of(small, tmp_path) == runs.start_of(runs.replace(small, answers=2), tmp_path)
    assert runs.start_of(small, tmp_path) != runs.start_of(runs.QUICK, tmp_path)
    assert runs.start_of(runs.replace(small, warm=(0, 1e-4)), tmp_path) == ""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text('{"start": "aa"}')
    with pytest.raises(SystemExit, match="the model that runs start from: has other weights"):
        runs.run_all(scripts["data"].design(2), small, tmp_path / "results", tmp_path, 1, 1)


def test_kappas_are_those_of_the_labels(scripts) -> None:
    """Guards against a kappa of other labels, or of another part of the answers, than the rule asks for: those of the
    rules are what `rule_judge.py` gets by its own way, and a reader as the judge agrees with itself."""
    from vdengine.drift.kappa import label_agreement
    from vdengine.judges.rules import RuleJudge

    rule_judge = importlib.import_module("rule_judge")
    labelled = [row for row in rule_judge.rows() if "readers" in row]
    for part, kappa in scripts["runs"].judge_kappas(RuleJudge()).items():
        by_hand = [rule_judge.certain([row["readers"][k][part] for row in labelled]) for k in (0, 1)]
        rules = rule_judge.by_rules(labelled, part)
        assert kappa == pytest.approx(np.mean([label_agreement(each, rules).kappa for each in by_hand]))


def test_recipes_are_valid(scripts, tmp_path) -> None:
    """Guards against an experiment that ends in its first hour, or in its last: every run's recipe is accepted, with
    probes where answers are drawn, and each row trained on once."""
    import tomllib

    data, runs = scripts["data"], scripts["runs"]
    for plan in (*data.design(6), *data.controls()):
        made = tomllib.loads(runs.recipe(plan, runs.SMALL, tmp_path))
        steps = made["run"]["steps"]
        rows = (tmp_path / "data" / f"{plan.name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(rows) == steps * made["batch"]["examples"]
        assert made["answers"]["anchors"] == [steps // 2] and made["probes"]["every"] == steps // 2
        assert (made["optimizer"]["lr"] == 0) == (plan.control == "lr 0")


def test_readings_are_verdicts(scripts, tmp_path, capsys):
    """Guards readers as a judge: a text stands on a sheet once, what was read comes back as its verdict, a line that
    has no reading or two has none, and a second reader's are told apart from the first one's."""
    readers = scripts["readers"]
    probes = Panel.load("values-mini").probes[:3]
    questions = {probe.id: probe.prompt for probe in probes}
    texts = [(probe.id, f"Text {i}, 3 of it.") for probe in probes for i in range(40)]
    assert readers.write_sheets(tmp_path, "first", texts, questions, 60) == 2
    sheets = sorted(tmp_path.glob("first-*.txt"))
    key = {n: (id, text) for n, id, text in map(json.loads, (tmp_path / "first.key.jsonl").read_text().splitlines())}
    assert sorted(key.values()) == sorted(texts)
    letters = {n: "sno"[n % 3] for n in key}
    for sheet in sheets:
        lines = [line.split(" ", 1) for line in sheet.read_text().splitlines() if line[:1].isdigit()]
        assert [key[int(n)][1] for n, _ in lines] == [text for _, text in lines]
        sheet.with_suffix(".read").write_text(
            " ".join(f"{n}{letters[int(n)]}" for n, _ in lines if n not in "7") + " 9s"
        )
    read = readers.Readings({})
    readers.take(tmp_path, read)
    said = capsys.readouterr().out
    assert "1 lines without a reading [7]" in said and "with two [9]" in said
    assert read.read == {text: letters[n] for n, text in key.items() if n not in (7, 9)}
    readers.write_sheets(tmp_path, "second", [key[1]], questions, 60)
    (tmp_path / "second-01.read").write_text("1o")
    readers.take(tmp_path, read)
    assert read.read[key[1]] == letters[1] + "o"
    read.save(tmp_path)
    again = readers.Readings.load(tmp_path)
    assert again.read == read.read and "1 of 118 texts were read twice" in again.agreement()
    by_id = {probe.id: probe for probe in probes}
    asked = [Item(by_id[key[n][0]], key[n][1].replace(" ", "\n", 1)) for n in (1, 2, 3, 7)]
    stances = [verdict.stance for _, verdict in again.judge(asked)]
    assert stances[:3] == [(0, 1, 0), (0, 0, 1), (1, 0, 0)] and np.isnan(stances[3]).all()
