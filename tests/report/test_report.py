"""Reports of odd runs: cut files, lost files, too few samples, answers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.pages import data_of
from helpers.report_runs import BARE, make_run, panel_of, write_lines

from vdengine.cli.report import READOUTS, main
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.judgements import Subset
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.prediction_powered import drawn
from vdengine.drift.probe_values import lead_values, text_values
from vdengine.errors import InputError
from vdengine.report import report

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


def test_cost_counts_the_steps_between_logged_ones(tmp_path: Path) -> None:
    """Guards against a cost that is too small by `log.every`, and times of probes counted twice."""
    run = make_run(tmp_path / "run", panel_of(), answers=False)
    rows = [
        {"step": s, "loss": 1.0, "step_seconds": 2.0, "probe_seconds": 0.5, "answers_seconds": 0.1} for s in (10, 20)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cost = data_of(report([run], figures=False))["runs"][0]["cost"]
    assert cost == {"steps": 20, "total": 40.0, "probes": 10.0, "answers": 2.0, "share": 0.3}


@pytest.mark.slow
def test_same_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Guards against times, random ids or the order of sets in what is written."""
    made = [report([folder / "first"], out=tmp_path / n, topics=["topic 0"]).parent for n in ("a", "b")]
    files = sorted(p.relative_to(made[0]) for p in made[0].rglob("*") if p.is_file())
    assert {p.suffix for p in files} == {".html", ".csv", ".parquet", ".png", ".svg", ".pdf"}
    for f in files:
        assert (made[0] / f).read_bytes() == (made[1] / f).read_bytes(), f


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Guards against an ImportError in an installation without plotly."""
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'vdengine\[report\]'"):
        report([folder / "first"])


def test_cut_files_are_used_as_far_as_they_are_whole(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against a crash of the report after a crash of the run, and against leaving things out in silence."""
    drift = copy / "drift"
    for path, cut in (
        (drift / "openings.bin", 100), (drift / "leads.bin", 10), (drift / "answers" / "weights.bin", 50),
        (drift / "answers" / "answers.jsonl", 30),
        (drift / "judgements" / "rule.jsonl", 10), (copy / "metrics.jsonl", 5),
    ):  # fmt: skip
        path.write_bytes(path.read_bytes()[:-cut])
    steps = DriftLog.open(copy).steps.tolist()
    assert main([str(copy), "--no-figures"]) == 0
    said = capsys.readouterr().out
    run = data_of(copy / "report" / "index.html")["runs"][0]
    for name in ("openings.bin", "leads.bin", "weights.bin", "answers.jsonl", "rule.jsonl", "metrics.jsonl"):
        assert any(name in note for note in run["notes"]) and name in said, name
    for readout in ("lead", "text_likelihood"):
        assert run["views"][readout]["steps"] == steps == [*range(0, 40, 4)]
    assert "not finished" not in said  # the last answers are of the last step


@pytest.mark.parametrize(
    "lost", ["drift/openings.bin", "drift/openings.jsonl", "drift/leads.jsonl", "drift/answers/panel.jsonl"]
)
def test_a_run_without_one_of_its_files_is_one_clear_line(copy: Path, lost: str) -> None:
    """Guards against tracebacks where files were lost or overwritten with bytes of another kind."""
    (copy / lost).unlink()
    with pytest.raises(InputError, match=r"^[^\n]+$") as missing:
        report([copy], figures=False)
    (copy / lost).write_bytes(b"\xff\xfe" * 100)
    assert str(copy) in str(missing.value)
    if not lost.endswith(".bin"):  # any bytes are numbers
        with pytest.raises(InputError, match=r"^[^\n]+$"):
            report([copy], figures=False)


def test_readings_of_a_lost_anchor_are_left_out(copy: Path) -> None:
    """Guards against answers that are all given up where the last anchor's were lost and its readings were not."""
    path = copy / "drift" / "answers" / "answers.jsonl"
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["anchor"] < 40]
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    run = data_of(report([copy], figures=False))["runs"][0]
    assert run["views"]["answers:rule"]["steps"] == [0, 20]
    assert any("left out" in note and "step 40" in note for note in run["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_are_explained(copy: Path, samples: int) -> None:
    """Guards against a crash, or an empty chart without a word, right after the start of a run."""
    log = DriftLog.open(copy)
    for channel in log.channels.values():
        channel.path.write_bytes(channel.path.read_bytes()[: samples * channel.record_bytes])
    answers = copy / "drift" / "answers" / "answers.jsonl"
    rows = answers.read_text(encoding="utf-8").splitlines(keepends=True)
    answers.write_text("".join(r for r in rows if samples and json.loads(r)["anchor"] == 0), encoding="utf-8")
    (copy / "drift" / "answers" / "weights.bin").write_bytes(b"")
    page = report([copy])  # figures too: there is next to nothing to draw
    run = data_of(page)["runs"][0]
    assert not run["views"] and "A shift needs two" in run["empty"]["lead"]
    assert "A shift needs two" in run["empty"]["text_likelihood"]
    assert ("A shift needs two" if samples else "No answers were drawn") in run["empty"]["answers"]


def test_a_folder_of_scores_has_a_report(folder: Path, tmp_path: Path) -> None:
    """Guards against a report that needs more than `vdengine score --out` writes: no recipe, metrics or answers."""
    shutil.copytree(folder / "first" / "drift", tmp_path / "scored" / "drift", ignore=lambda *_: ["answers"])
    run = data_of(report([tmp_path / "scored"], figures=False))["runs"][0]
    assert set(run["views"]) == {"lead", "text_likelihood"} and all(v["verdict"] for v in run["views"].values())
    assert any("no recipe.toml" in note for note in run["notes"])


def test_answers_alone_have_a_report(copy: Path) -> None:
    """Guards against a report that needs scores: `vdengine judge --models` draws answers of saved models only."""
    for path in (*copy.glob("*.*"), *(copy / "drift").glob("*.*")):
        path.unlink()
    data = data_of(report([copy], figures=False))
    run = data["runs"][0]
    assert set(run["views"]) == {
        f"answers:{judge}{part}" for judge in ("rule", "second") for part in ("", ":argument", ":lead")
    }
    assert "not scored" in run["empty"]["lead"] and "not scored" in run["empty"]["text_likelihood"]
    assert run["beside"] == {}
    assert [t["name"] for t in data["topics"]] == ["topic 0", "topic 1", "topic 2"]


def test_topics_and_judge_narrow_what_is_shown(folder: Path, tmp_path: Path) -> None:
    """Guards against options that only change a title."""
    page = report([folder / "first"], out=tmp_path, topics=["topic 1"], judge="second", labels=["mine"], figures=False)
    data = data_of(page)
    assert [t["name"] for t in data["topics"]] == ["topic 1"] and data["runs"][0]["name"] == "mine"
    parts = {f"answers:second{part}" for part in ("", ":argument", ":lead")}
    assert set(data["runs"][0]["views"]) == {"lead", "text_likelihood", *parts}
    rows = pq.read_table(tmp_path / "tables" / "magnitudes.parquet").to_pylist()
    assert {r["topic"] for r in rows} == {"all", "topic 1"} and {r["judge"] for r in rows} == {None, "second"}
    assert {(r["readout"], r["part"]) for r in rows} == {
        ("lead", None), ("text_likelihood", None), ("answers", "both"), ("answers", "argument"), ("answers", "lead"),
    }  # fmt: skip
    assert all(p[0] == "topic 1" for p in data["runs"][0]["answers"]["probes"].values())


def rewritten(run: Path, change) -> Path:
    """The run with other samples of its scores: the first one, and change(it) after 10, ..., 40 steps."""
    for channel in DriftLog.open(run).channels.values():
        first = channel.values[0].copy()
        channel.path.write_bytes(b"")
        for step in range(0, 41, 10):
            channel.append(step, change(first) if step else first)
    return run


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_run_that_did_not_learn_has_no_shift_anywhere(copy: Path, noise: float) -> None:
    """Guards lr 0: identical samples, or such as differ by rounding, are no shift in the headline, the tables, the
    drift times or the checks."""
    rng = np.random.default_rng(0)
    shutil.rmtree(copy / "drift" / "answers")
    page = report([rewritten(copy, lambda x: x + (noise * rng.standard_normal(len(x)) - noise).astype(np.float32))],
                  figures=False)  # fmt: skip
    views = data_of(page)["runs"][0]["views"]
    for readout, label in (("lead", "Lead"), ("text_likelihood", "Text likelihood")):
        view = views[readout]
        assert view["verdict"][0] == f"{label}: no clear shift on any of 3 topics."
        assert not any(cell["sure"] for topic in view["drifts"].values() for cell in topic.values())
        assert not any(check["warn"] for check in view["strip"])
    rows = pq.read_table(copy / "report" / "tables" / "magnitudes.parquet").to_pylist()
    assert not any(row["significant"] for row in rows) and {row["ci95_step"] for row in rows} == {None}


def test_scores_that_are_not_numbers_are_not_known(copy: Path) -> None:
    """Guards a model that broke: "no clear shift", or the shift of the last sample that had numbers."""
    shutil.rmtree(copy / "drift" / "answers")
    views = data_of(report([rewritten(copy, lambda x: x * np.nan)], figures=False))["runs"][0]["views"]
    for readout, label in (("lead", "Lead"), ("text_likelihood", "Text likelihood")):
        assert views[readout]["verdict"] == [
            f"{label}: not known.",
            "From step 0 to 40: topic 0, topic 1, topic 2 (no number after the baseline, step 0).",
        ]
        assert {cell["unknown"] for topic in views[readout]["drifts"].values() for cell in topic.values()} != {""}


def test_a_few_answers_close_the_gate_and_it_is_said(tmp_path: Path) -> None:
    """Guards "KL -0.01" as all that is said where Pareto k had too few answers."""
    run = data_of(report([make_run(tmp_path / "run", panel_of(1, 2))], figures=False))["runs"][0]
    gates = run["gates"]
    assert gates and all(g["pareto_k"] is None and not g["open"] and "so few answers" in g["why"] for g in gates)
    assert any("there are too few answers to tell" in caveat for v in run["views"].values() for caveat in v["caveats"])


def test_hostile_metrics_and_recipe(copy: Path, tmp_path: Path) -> None:
    """Guards rows of unknown keys and types, texts of megabytes, and a recipe whose values have other types: the page
    is made, and bounded."""
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[3]["loss"], rows[4]["loss"], rows[5]["<img src=x>"], rows[6]["k" * 10**5] = "x", 10**400, 2.5, 1
    rows[7]["step_seconds"] = {"a": 1}
    (copy / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '[1]\n"x"\n{"step": 41, "lo', encoding="utf-8"
    )
    other = Path(shutil.copytree(copy, tmp_path / "other"))
    (other / "recipe.toml").write_text(
        f'[run]\nsteps = "many"\nseed = {{a = 1}}\n[model]\nsource = [1, 2]\n[data]\ntrain = 3\n'
        f'[objective]\nname = "{"x" * 10**6}"\n[log]\nevery = "x"\n[probes]\nevery = -3\n'
    )
    page = report([copy, other], out=tmp_path / "made", figures=False)
    assert page.stat().st_size < 8 * 2**20  # 4.6 MiB of it are plotly's
    data = data_of(page)
    assert {chart["title"][:20] for chart in data["charts"] if chart["other"]} >= {"<img src=x>", "k" * 20}
    assert data["recipes"]["differing"]["run.steps"] == ["40", "many"]
    assert any("loss is not a finite number" in note for note in data["runs"][0]["notes"])


def test_a_run_that_is_going_on(copy: Path) -> None:
    """Guards a sample of which one channel is written and the other is not yet: as many steps as rows, and a page."""
    leads = DriftLog.open(copy).channels["leads"]
    leads.path.write_bytes(leads.path.read_bytes()[: -leads.record_bytes])
    values = text_values(DriftLog.open(copy))
    assert len(values.steps) == len(values.channels["stance"]) == 10
    views = data_of(report([copy], figures=False))["runs"][0]["views"]
    assert views["text_likelihood"]["steps"][-1] == views["lead"]["steps"][-1] == 36


def test_leads_come_first_with_their_coverage_and_text_likelihood_with_its_parts(folder: Path, made: Path) -> None:
    """Guards the order of the readouts, a sentence that is missing, the coverage of leads that is not shown, and a
    claim of text likelihood that is not the difference of its parts."""
    data = data_of(made / "index.html")
    main = [reading for reading in data["readings"] if reading["name"] in READOUTS]
    assert [reading["label"] for reading in main] == ["Lead", "Argument", "Text likelihood", "Whole answers"]
    assert tuple(reading["name"] for reading in main) == READOUTS and data["readout"] is None
    assert all(len(reading["sentence"]) > 40 and reading["there"] for reading in main)
    views = data["runs"][0]["views"]
    lead = lead_values(DriftLog.open(folder / "first"))
    first = lead.channels["coverage"][:, lead.member("topic 0")].mean(1)
    assert views["lead"]["levels"]["topic 0"]["coverage"]["mean"] == pytest.approx(first, rel=1e-4)
    text = views["text_likelihood"]
    question, null = (np.array(text["parts"]["topic 0"][part]["mean"]) for part in ("question", "null"))
    assert question - null == pytest.approx(np.array(text["curves"]["topic 0"]["mean"]), abs=2e-4)  # five digits each


def test_leads_that_are_rare_say_nothing(tmp_path: Path) -> None:
    """Guards a verdict on the lead of answers that mostly begin otherwise."""
    run = make_run(tmp_path / "run", panel_of(), strength=0.03, coverage=0.2, answers=False)
    view = data_of(report([run], figures=False))["runs"][0]["views"]["lead"]
    assert view["verdict"][0] == "Lead: not known." and "20% of answers begin with a lead" in view["verdict"][1]
    assert view["drifts"]["topic 0"]["lead"]["times"]["frac95"][0] is None


def test_leads_stand_beside_answers_in_their_judges_units(copy: Path) -> None:
    """Guards leads in probability beside answers in a judge's units; and a lead that is left out without a word where
    the judge was never asked for one."""
    beside = data_of(report([copy], figures=False))["runs"][0]["beside"]
    values = lead_values(DriftLog.open(copy))
    expected = BARE * values.channels["lead"][:, values.member("topic 0")].mean(1)
    assert beside["rule"]["levels"]["topic 0"]["mean"] == pytest.approx(expected, abs=1e-4)
    path = copy / "drift" / "judgements" / "rule.jsonl"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if '"bare"' not in line))
    beside = data_of(report([copy], figures=False))["runs"][0]["beside"]
    assert "run vdengine judge" in beside["rule"]["why"] and "levels" in beside["second"]


def test_answers_are_smoothed_unless_it_is_asked_otherwise(copy: Path) -> None:
    """Guards drift times that are read off single noisy anchors, and scores that are smoothed where nobody asked."""
    rows = {}
    for smoothing in (None, "none"):
        page = report([copy], smoothing=smoothing, figures=False)
        views = data_of(page)["runs"][0]["views"]
        rows[smoothing] = {key: view["smoothing"] for key, view in views.items()}
    assert {key for key, how in rows[None].items() if how == "local-linear"} == {
        key for key in rows[None] if key.startswith("answers")
    }
    assert set(rows["none"].values()) == {"none"} and rows[None]["lead"] == "none"


def test_people_have_no_argument_and_a_corrected_judge_has_the_units_of_the_better_one(copy: Path) -> None:
    """Guards an argument of all NaN that is shown as "not known" where people have labelled whole answers; and a lead
    that cannot stand beside answers as a cheap judge reads them all and a better one some."""
    folder = copy / "drift" / "judgements"
    path = folder / "second.jsonl"
    head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
    whole = [row for row in rows if "part" not in row and "bare" not in row]
    write_lines(folder / "human-ann.jsonl", [head | {"judge": "human:ann"}, *whole])
    log = AnswerLog.open(copy)
    part = [log.answers[i] for i in drawn(log, Subset(600, 0))]
    keys = {(a.anchor, a.probe, a.sample) for a in part}
    kept = [row for row in rows if "bare" in row or (row["anchor"], row["probe"], row["sample"]) in keys]
    write_lines(path, [head, *kept, {"subset": 600, "seed": 0}])
    run = data_of(report([copy], figures=False))["runs"][0]
    assert "answers:human-ann" in run["views"] and "answers:human-ann:argument" not in run["views"]
    assert run["views"]["answers:rule+second:argument"]["verdict"][0].startswith("Argument (judge rule+second)")
    assert run["beside"]["rule+second"] == run["beside"]["second"]
