"""A run as one object: tidy tables of all that is known of it, and the same numbers as everywhere else."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.report_runs import SAID, make_run, panel_of
from helpers.task_rows import favour, write_tasks

from vdengine.drift import Run, load_run
from vdengine.drift.analysis import analyse
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.capability_log import CapabilityLog
from vdengine.drift.judgements import judgements_of
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import control_values, lead_values, text_values
from vdengine.drift.run import SUMMARY_TABLES, TABLES
from vdengine.drift.summary import agreement_tables, answers_table, drift_table
from vdengine.errors import InputError
from vdengine.report import tables as report_tables
from vdengine.tasks.task import load_tasks
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer
from vdengine.text.tokenizer import load_tokenizer

pandas = pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="pandas is not installed")

# What tells a row of a table from its others: one observation has one place.
KEYS = {
    "runs": ("run",),
    "curves": ("run", "readout", "judge", "part", "topic", "channel", "what", "smoothed", "step"),
    "magnitudes": ("run", "readout", "judge", "part", "topic", "channel"),
    "validity": ("run", "readout", "judge", "part", "check"),
    "reliability": ("run", "readout", "judge", "part", "topic"),
    "agreement": ("run", "readout", "judge", "part", "with", "topic"),
    "gates": ("run", "step"),
    "support": ("run", "anchor"),
    "cost": ("run",),
    "training": ("run", "step", "metric"),
    "probes": ("run", "readout", "judge", "part", "step", "probe", "channel"),
    "leads": ("run", "step", "probe", "variant", "stance", "text"),
    "openings": ("run", "step", "probe", "variant", "stance", "text"),
    "answers": ("run", "judge", "step", "probe", "sample"),
    "capability": ("run", "step", "task", "metric"),
    "capability_rows": ("run", "step", "task", "row"),
    "capability_choices": ("run", "step", "task", "row", "choice"),
}
JUDGES = ("rule", "second")
PARTS = ("argument", "both", "lead")  # of answers, in the order of the readouts


def keys_of(judge: str) -> list[str]:
    """The readouts of one judge's answers."""
    return [f"answers:{judge}:argument", f"answers:{judge}", f"answers:{judge}:lead"]


ALL = ["lead", *keys_of("rule"), *keys_of("second"), "text_likelihood"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_models) -> Path:
    """Leads and openings with controls, answers, and two judges; 40 steps; a task at the first and the last of them."""
    made = make_run(tmp_path_factory.mktemp("runs") / "first", panel_of(), strength=0.03, judges=JUDGES)
    tasks = load_tasks([write_tasks(tmp_path_factory.mktemp("tasks"))["facts"]], 4)
    packs = TaskPacks.build(tasks, Renderer(load_tokenizer(str(tiny_models["qwen3"]))), 2048)
    log = CapabilityLog.create(made, packs)
    log.append(0, favour(packs, [True, True, False, True]))
    log.append(40, favour(packs, [True, False, True, True]))
    return made


@pytest.fixture(scope="module")
def run(folder) -> Run:
    return load_run(folder)


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(folder, tmp_path / "run"))


def without_pandas(monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "pandas" else find(name, *more)
    )


def plain(value: Any) -> Any:
    """One value for each way to say that a cell is empty, and numbers without their width."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cells(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: x for name, value in row.items() if (x := plain(value)) is not None} for row in rows]


# --------------------------------------------------------------------------------------------------------- tables


def test_every_table_is_known_here():
    """Guards against a new table whose shape nothing checks."""
    assert set(KEYS) == set(TABLES)


@pandas
@pytest.mark.parametrize("table", TABLES)
def test_a_frame_is_tidy(run, table):
    """Guards against two rows for one observation, several observations in a cell, and tables that cannot be joined."""
    import pandas

    frame = run.frame(table)
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(run.rows(table)) > 0
    keys = list(KEYS[table])
    assert list(frame.columns)[0] == "run" and set(frame["run"]) == {"first"}
    assert not frame.duplicated(keys).any()
    assert not frame[[key for key in keys if key not in ("judge", "part")]].isna().any().any()
    assert all(isinstance(plain(x), str | bool | int | float | None) for x in frame.to_numpy().ravel())
    assert len(set(frame.columns)) == len(frame.columns) == len({c.lower() for c in frame.columns})


@pytest.mark.parametrize("table", TABLES)
def test_columns_without_pandas(run, table, monkeypatch):
    """Guards an installation without pandas: the same cells, as columns of one length by name."""
    rows = run.rows(table)
    without_pandas(monkeypatch)
    columns = run.frame(table)
    assert isinstance(columns, dict) and {len(column) for column in columns.values()} == {len(rows)}
    names = dict.fromkeys(name for row in rows for name in row)
    assert list(columns) == list(names)
    assert cells([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]) == cells(rows)


def test_the_default_table_is_curves(run, monkeypatch):
    """Guards what one gets without asking for more."""
    without_pandas(monkeypatch)
    assert list(run.frame()) == list(run.frame("curves"))


def test_raw_tables_are_the_logs(folder, run):
    """Guards the tables behind all others: every number that was sampled is in its row, and none that was not."""
    log = DriftLog.open(folder)
    at = {int(step): s for s, step in enumerate(log.steps)}
    for channel, field in (("leads", "stance"), ("openings", "num_bytes")):
        rows, items, logp = run.rows(channel), log.items(channel), log.channels[channel].values
        assert len(rows) == np.isfinite(logp).sum() < logp.size  # controls are scored at both ends only
        place = {(b["probe"], b["variant"], b["stance"], b["text"]): i for i, b in enumerate(items)}
        for row in rows:
            b = place[row["probe"], row["variant"], row["stance"], row["text"]]
            assert row["logp"] == float(logp[at[row["step"]], b]) and row[field] == items[b][field]
    answers = AnswerLog.open(folder)
    for judge in JUDGES:
        mine = [r for r in run.rows("answers") if r["judge"] == judge]
        assert [(r["step"], r["probe"], r["sample"], r["text"]) for r in mine] == [
            (a.anchor, a.probe, a.sample, a.text) for a in answers.answers
        ]
        found = np.array([[r["support"], r["neutral"], r["oppose"]] for r in mine])
        assert np.array_equal(found, judgements_of(answers, judge))
    for key, view in run.views.items():
        of_view = view.kind, view.judge or None, view.part or None
        mine = [r for r in run.rows("probes") if (r["readout"], r["judge"], r["part"]) == of_view]
        v = view.values
        assert len(mine) == sum(int(np.isfinite(x).sum()) for x in v.channels.values()) > 0, key
        where = {str(p): i for i, p in enumerate(v.probes)}, {int(s): i for i, s in enumerate(v.steps)}
        for r in mine:
            assert r["value"] == v.channels[r["channel"]][where[1][r["step"]], where[0][r["probe"]]]


def test_answers_that_nobody_has_judged(tmp_path):
    """Guards the rows of answers before there is a judge: each once, without a verdict; and what to do is said."""
    run = load_run(make_run(tmp_path / "run", panel_of(2), judges=()))
    rows = run.rows("answers")
    assert len(rows) == len(run.answers.answers) and {r["judge"] for r in rows} == {None}
    assert all(math.isnan(r["support"]) for r in rows) and {r["text"] for r in rows} == set(SAID.values())
    assert run.readouts == ["lead", "text_likelihood"] and "Run vdengine judge" in run.empty["answers"]
    assert run.rows("agreement") == [] or {r["with"] for r in run.rows("agreement")} == {"paraphrase"}


def test_topics_narrow_a_table(run):
    """Guards the report's choice of topics: rows of these, and of the panel's mean where it is asked for."""
    for table in ("curves", "magnitudes", "reliability"):
        assert {r["topic"] for r in run.rows(table, ["topic 1"])} == {"topic 1"}
    assert {r["topic"] for r in run.rows("magnitudes", ["all", "topic 1"])} == {"all", "topic 1"}


# ------------------------------------------------------------------------------------ the same numbers everywhere


def test_analyses_are_those_of_the_logs(folder, run):
    """Guards `load_run` against other estimates than the functions give that anybody may call on the logs."""
    log, answers = DriftLog.open(folder), AnswerLog.open(folder)
    read = {(j, p): answer_values(answers, judgements_of(answers, j, p), 40) for j in JUDGES for p in PARTS}
    expected = {"lead": analyse(lead_values(log, 40), controls=control_values(log, "lead", 40))}
    for judge, other in (JUDGES, JUDGES[::-1]):
        for key, part in zip(keys_of(judge), PARTS, strict=True):
            smoothed = {"smoothing": "local-linear", "judges": {other: read[other, part]}}
            expected[key] = analyse(read[judge, part], **smoothed)
    controls = control_values(log, "text_likelihood", 40)
    expected["text_likelihood"] = analyse(text_values(log, 40), controls=controls)
    assert run.readouts == list(expected) == ALL
    for key, a in expected.items():
        found = run.analysis(key)
        assert found.drifts == a.drifts and found.topics == a.topics
        for (topic, channel), curve in a.curves.items():
            assert np.array_equal(found.curves[topic, channel].mean, curve.mean, equal_nan=True)
            assert np.array_equal(found.curves[topic, channel].low, curve.low, equal_nan=True)


@pytest.mark.parametrize(
    ("readout", "scale"), [("lead", 1), ("text_likelihood", 100), ("answers:rule", 1), ("answers:second", 1)]
)
def test_a_terminal_shows_the_same(folder, run, readout, scale):
    """Guards the tables that verbs print, against the run's: shift and interval of every topic, to the digits shown."""
    judge = readout.partition(":")[2]
    text = answers_table(folder, judge) if judge else drift_table(folder)
    lines = text[text.index("Text likelihood") :].splitlines() if readout == "text_likelihood" else text.splitlines()
    lines = lines[: lines.index("Text likelihood, after the question less after none, step 0 to 40")] if (
        readout == "lead"
    ) else lines  # fmt: skip
    view = run.readout(readout)
    rows = {
        r["topic"]: r
        for r in run.rows("magnitudes")
        if (r["readout"], r["judge"] or "", r["part"] or "") == (view.kind, view.judge, view.part)
        and r["channel"] == view.values.primary
    }
    assert set(rows) == {"all", "topic 0", "topic 1", "topic 2"}
    for topic, r in rows.items():
        (line,) = [x for x in lines if x.startswith(topic if topic != "all" else "all topics")]
        shift, low, high = (f"{scale * r[name]:+.2f}" for name in ("mean", "low", "high"))
        assert re.search(rf"{re.escape(shift)}\s+\[\s*{re.escape(low)},\s+{re.escape(high)}\]", line), (line, r)
        assert ("no clear shift" in line) == (not r["significant"])


def test_the_agreement_that_is_printed_is_the_tables(folder, run):
    """Guards the table of two judges' agreement: the correlations of the run's own table, by topic."""
    shown = agreement_tables(folder).split("rule against second: ")[1]
    told = "rule", "both", "judge second"
    rows = [r for r in run.rows("agreement") if (r["judge"], r["part"], r["with"]) == told]
    assert {r["topic"] for r in rows} == {"all", "topics", "topic 0", "topic 1", "topic 2"}
    names = {"all": "all (mean)", "topics": "topics x steps"}
    for r in rows:
        (line,) = [x for x in shown.splitlines() if x.startswith(names.get(r["topic"], r["topic"] + " "))]
        assert f"{r['curve_pearson']:+.2f}" in line and f"{r['magnitude_pearson']:+.2f}" in line


def test_a_report_writes_the_same(folder, run, tmp_path):
    """Guards the report's tables: every row and cell of the run's, in CSV's and Parquet's words for them."""
    parquet = pytest.importorskip("pyarrow.parquet")
    report_tables.write(report_tables.build([load_run(folder)], [], ["topic 0", "topic 1", "topic 2"]), tmp_path)
    for name in SUMMARY_TABLES:
        assert cells(parquet.read_table(tmp_path / f"{name}.parquet").to_pylist()) == cells(run.rows(name)), name


def test_curves_between_anchors(tmp_path):
    """Guards the one analysis of answers drawn at many anchors: its table has the curve at steps between them and each
    anchor's own mean, told apart; drift times are of the curve, and the terminal's; `none` stays at the samples."""
    anchors = [0, 1, 2, 4, 6, 9, 12, 18, 25, 32, 40]
    options = {"anchors": anchors, "weighted": False, "leads": False, "openings": False}
    folder = make_run(tmp_path / "many", panel_of(1), strength=0.1, samples=4, **options)
    run = load_run(folder)
    a, own = run.analysis("answers:rule"), load_run(folder, smoothing="none").analysis("answers:rule")
    curve = a.curves["topic 0", "graded"]
    assert curve.steps.tolist() == [*range(41)] and curve.points.steps.tolist() == anchors
    assert np.array_equal(curve.points.mean, own.curves["topic 0", "graded"].mean)
    rows = [
        r
        for r in run.rows("curves", ["topic 0"])
        if (r["part"], r["channel"], r["what"]) == ("both", "graded", "shift")
    ]
    smoothed = [r for r in rows if r["smoothed"]]
    assert [r["mean"] for r in smoothed] == curve.mean.tolist() and {r["kind"] for r in smoothed} == {None}
    assert [(r["step"], r["mean"], r["anchor"]) for r in rows if not r["smoothed"]] == [
        (step, mean, step) for step, mean in zip(anchors, curve.points.mean, strict=True)
    ]
    assert len({tuple(r[name] for name in KEYS["curves"]) for r in run.rows("curves")}) == len(run.rows("curves"))
    drift = a.drift("topic 0")
    assert drift.magnitude == own.drift("topic 0").magnitude and drift.time.step is not None
    (line,) = [x for x in answers_table(folder, "rule").splitlines() if x.startswith("topic 0")]
    assert line.endswith(f"more for by step {drift.time.step}")
    assert own.curves["topic 0", "graded"].points is None


# --------------------------------------------------------------------------------------------------------- options


def test_options_reach_the_analyses(folder):
    """Guards a name, a smoothing and a baseline of one's own, and one judge's readout with the other's agreement."""
    run = load_run(folder, name="mine", smoothing="local-linear:0.2", baseline=4, judge="second")
    assert run.readouts == ["lead", *keys_of("second"), "text_likelihood"] and run.rows("runs")[0]["run"] == "mine"
    assert {r["with"] for r in run.rows("agreement") if r["judge"]} == {"judge rule"}
    (described,) = run.rows("runs")
    assert (described["smoothing"], described["baseline"]) == ("local-linear:0.2", 4)
    assert run.analysis().smoothing == "local-linear:0.2" and run.analysis().baseline == 4
    assert load_run(folder, judge="nobody").empty["answers"] == "Not judged by nobody; there is rule, second."


def test_what_is_not_there(folder, run, tmp_path):
    """Guards one clear line for each name that a run does not have, with those that it has."""
    for ask, message in (
        (lambda: run.frame("curve"), "no table 'curve'; there are runs, curves, magnitudes"),
        (lambda: run.rows("x"), "no table 'x'; there are runs"),
        (lambda: run.analysis("answers"), "no readout 'answers'; it has lead, answers:rule:argument, answers:rule, "),
        (lambda: run.answer_values("third"), "not judged by 'third'; it is by rule, second"),
        (lambda: run.text_values("off-topic"), "has no openings after 'off-topic'; it has question, "),
        (lambda: run.lead_values("null"), "has no leads after 'null'; it has question"),
        (lambda: run.lead_values(judge="third"), "not judged by 'third'; it is by rule, second"),
        (lambda: run.answer_values("rule", "half"), "part: 'half' is not one of both, argument, lead"),
        (lambda: load_run(folder, baseline=3).analysis(), "first: .*step 3 was not sampled; 0, 4, 8"),
        (lambda: load_run(folder, smoothing="lots").frame("curves"), "first: .*'lots' is not one of"),
        (lambda: load_run(tmp_path / "none"), "none: no such folder"),
        (lambda: load_run(tmp_path), "no drift data here"),
    ):
        with pytest.raises(InputError, match=message) as error:
            ask()
        assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------- damaged runs


def test_what_a_crash_cut_short_is_noted(copy):
    """Guards the rest of a run whose files end in the middle of a record: used, and what is left out is said."""
    drift = copy / "drift"
    for path, cut in (
        (drift / "openings.bin", 100), (drift / "answers" / "weights.bin", 50),
        (drift / "answers" / "answers.jsonl", 30),
        (drift / "judgements" / "rule.jsonl", 10), (copy / "metrics.jsonl", 5),
    ):  # fmt: skip
        path.write_bytes(path.read_bytes()[:-cut])
    run = load_run(copy)
    for name in ("openings.bin", "weights.bin", "answers.jsonl", "rule.jsonl", "metrics.jsonl"):
        assert any(note.startswith(f"{name}: ") and "left out" in note for note in run.notes), (name, run.notes)
    assert max(r["step"] for r in run.rows("openings")) == 36 and run.rows("runs")[0]["notes"] == "; ".join(run.notes)
    assert max(r["step"] for r in run.rows("training")) == 39
    assert len(run.rows("answers")) == 2 * (3 * 72 * 8 - 1)
    assert run.readouts == ALL


def test_an_anchor_without_verdicts_is_named(copy):
    """Guards a curve that lacks samples without a word: some answers were drawn after the judge had read the rest."""
    path = copy / "drift" / "judgements" / "rule.jsonl"
    kept = [line for line in path.read_text().splitlines(keepends=True) if json.loads(line).get("anchor") != 20]
    path.write_text("".join(kept))
    assert [note for note in load_run(copy).notes if "no verdict" in note] == [
        "judge rule: no verdict on the answers of step 20; nothing is shown of them. Run vdengine judge on this folder "
        "again"
    ]


def test_a_damaged_middle_is_an_error(copy):
    """Guards against numbers from a file that was overwritten: one line that names it."""
    path = copy / "drift" / "judgements" / "rule.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:5], "{]\n", *lines[5:]]))
    with pytest.raises(InputError, match=r"rule.jsonl, line 6: broken JSON"):
        load_run(copy)


def test_damaged_metrics_and_recipe_are_noted(copy):
    """Guards readouts that need neither: rows that are no rows are counted, a recipe that is none is said."""
    rows = (copy / "metrics.jsonl").read_text().splitlines(keepends=True)
    bad = ["\n", "[1]\n", '{"loss": 1}\n', "{\n"]
    (copy / "metrics.jsonl").write_text("".join([*rows[:10], *bad, *rows[10:]]))
    (copy / "recipe.toml").write_text("[run\n")
    run = load_run(copy)
    assert "metrics.jsonl: 3 damaged lines are left out" in run.notes
    assert any(note.startswith("recipe.toml cannot be read") for note in run.notes)
    assert len({r["step"] for r in run.rows("training")}) == 40 and run.rows("runs")[0]["model"] is None
    assert run.total_steps == 40 and run.rows("curves")


def test_an_unfinished_run_is_noted(copy):
    """Guards a plan that was not carried out: times are shares of the plan, and it is said that it did not end."""
    recipe = (copy / "recipe.toml").read_text()
    assert "steps = 40" in recipe
    (copy / "recipe.toml").write_text(recipe.replace("steps = 40", "steps = 80"))
    run = load_run(copy)
    assert run.total_steps == 80 and "not finished: the last step on record is 40 of 80" in run.notes
    of_text = [r for r in run.rows("magnitudes") if (r["readout"], r["channel"]) == ("text_likelihood", "stance")]
    whole = {r["topic"]: r for r in of_text}
    assert whole["topic 0"]["ci95_fraction"] == whole["topic 0"]["ci95_step"] / 80


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples(copy, samples):
    """Guards the start of a run: nothing to analyse is said, and tables of logs and metrics are there all the same."""
    log = DriftLog.open(copy)
    for name in ("openings", "leads"):
        scores, count = copy / "drift" / f"{name}.bin", len(log.items(name))
        scores.write_bytes(scores.read_bytes()[: samples * (8 + 4 * count)])
    shutil.rmtree(copy / "drift" / "answers")
    run = load_run(copy)
    assert run.readouts == [] and "A shift needs two" in run.empty["lead"]
    with pytest.raises(InputError, match="nothing to analyse: Leads have .* No answers were drawn.* Openings have"):
        run.analysis()
    assert run.rows("curves") == run.rows("gates") == run.rows("answers") == []
    assert len(run.rows("openings")) == samples * len(log.items("openings")) and run.rows("training")
    assert drift_table(copy) == "Fewer than two samples: no drift to show."


def test_answers_alone(copy):
    """Guards runs that were read by their answers only, as `vdengine judge --models` leaves them."""
    for path in (*copy.glob("*.*"), *(copy / "drift").glob("*.*")):
        path.unlink()
    run = load_run(copy)
    assert run.readouts == ALL[1:-1] and "were not scored" in run.empty["lead"]
    assert run.rows("openings") == run.rows("training") == run.rows("cost") == []
    assert {r["readout"] for r in run.rows("magnitudes")} == {"answers"} and run.rows("runs")[0]["probes"] == 72
    with pytest.raises(InputError, match="Openings were not scored"):
        run.text_values()


def test_looking_changes_nothing(folder, run):
    """Guards a folder that somebody else may be writing: no file is made, moved or touched."""
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    again = load_run(folder)
    for table in TABLES:
        again.rows(table)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == before
    assert json.dumps(again.describe())


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "missing", "sparse"])
def test_what_stands_in_place_of_a_file(copy, kind):
    """Guards against a stranger's run folder: no reader waits for a FIFO, reads a device or a terabyte of nothing, and
    none follows a name into a folder."""
    for path in [p for p in copy.rglob("*") if p.suffix in (".json", ".jsonl", ".toml", ".bin")]:
        path.rename(kept := path.with_name("kept"))
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "sparse":
            with open(path, "wb") as file:
                file.truncate(2**41)
        try:
            run = load_run(copy)
            assert run.notes or kind == "missing" or path.name == "panel.jsonl", path  # a copy, not read
        except InputError as error:
            assert "\n" not in str(error)
        if kind == "folder":
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        kept.rename(path)


def test_hostile_metrics_and_recipes_are_left_out(copy):
    """Guards tables and axes of time: steps that no run has, and a recipe of other types than a recipe's."""
    rows = [{"step": s, "loss": 1.0} for s in (-1, True, 1.5, "3", None, 10**400, [])]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + "[" * 10**5 + "\n")
    (copy / "recipe.toml").write_text("run = 7\n[data]\ntrain = 5\n[model]\nsource = []\n[objective]\nname = nan\n")
    run = load_run(copy)
    assert "metrics.jsonl: 8 damaged lines are left out" in run.notes and run.metrics == [] and run.sources == ["5"]
    assert run.total_steps == 40
    for steps in ("-1", "true", str(10**30), "1e3"):
        (copy / "recipe.toml").write_text(f"[run]\nsteps = {steps}\n")
        assert load_run(copy).total_steps == 40
    for name in ("none", "a\0b", "x" * 300):
        with pytest.raises(InputError, match="no such folder"):
            load_run(copy / name)
