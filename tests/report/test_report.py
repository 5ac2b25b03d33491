"""Reports of odd runs: cut files, lost files, too few samples, answers alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.pages import data_of
from helpers.report_runs import make_run, panel_of

from vdengine.cli.report import main
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import opening_values
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
        (drift / "openings.bin", 100), (drift / "answers" / "weights.bin", 50),
        (drift / "answers" / "answers.jsonl", 30),
        (drift / "judgements" / "rule.jsonl", 10), (copy / "metrics.jsonl", 5),
    ):  # fmt: skip
        path.write_bytes(path.read_bytes()[:-cut])
    steps = DriftLog.open(copy).steps.tolist()
    assert main([str(copy), "--no-figures"]) == 0
    said = capsys.readouterr().out
    run = data_of(copy / "report" / "index.html")["runs"][0]
    for name in ("openings.bin", "weights.bin", "answers.jsonl", "rule.jsonl", "metrics.jsonl"):
        assert any(name in note for note in run["notes"]) and name in said, name
    assert run["views"]["openings"]["steps"] == steps == [*range(0, 40, 4)]
    assert "not finished" not in said  # the last answers are of the last step


@pytest.mark.parametrize("lost", ["drift/openings.bin", "drift/openings.jsonl", "drift/answers/panel.jsonl"])
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
    size = 8 + 4 * len(log.table)
    (copy / "drift" / "openings.bin").write_bytes((copy / "drift" / "openings.bin").read_bytes()[: samples * size])
    answers = copy / "drift" / "answers" / "answers.jsonl"
    rows = answers.read_text(encoding="utf-8").splitlines(keepends=True)
    answers.write_text("".join(r for r in rows if samples and json.loads(r)["anchor"] == 0), encoding="utf-8")
    (copy / "drift" / "answers" / "weights.bin").write_bytes(b"")
    page = report([copy])  # figures too: there is next to nothing to draw
    run = data_of(page)["runs"][0]
    assert not run["views"] and "A shift needs two" in run["empty"]["openings"]
    assert ("A shift needs two" if samples else "No answers were drawn") in run["empty"]["answers"]


def test_a_folder_of_scores_has_a_report(folder: Path, tmp_path: Path) -> None:
    """Guards against a report that needs more than `vdengine score --out` writes: no recipe, metrics or answers."""
    shutil.copytree(folder / "first" / "drift", tmp_path / "scored" / "drift", ignore=lambda *_: ["answers"])
    run = data_of(report([tmp_path / "scored"], figures=False))["runs"][0]
    assert run["views"]["openings"]["verdict"] and any("no recipe.toml" in note for note in run["notes"])


def test_answers_alone_have_a_report(copy: Path) -> None:
    """Guards against a report that needs openings: `vdengine judge --models` draws answers of saved models only."""
    for path in (*copy.glob("*.*"), *(copy / "drift").glob("*.*")):
        path.unlink()
    data = data_of(report([copy], figures=False))
    run = data["runs"][0]
    assert (
        set(run["views"]) == {"answers:rule", "answers:second"}
        and "read by its answers only" in run["empty"]["openings"]
    )
    assert [t["name"] for t in data["topics"]] == ["topic 0", "topic 1", "topic 2"]


def test_topics_and_judge_narrow_what_is_shown(folder: Path, tmp_path: Path) -> None:
    """Guards against options that only change a title."""
    page = report([folder / "first"], out=tmp_path, topics=["topic 1"], judge="second", labels=["mine"], figures=False)
    data = data_of(page)
    assert [t["name"] for t in data["topics"]] == ["topic 1"] and data["runs"][0]["name"] == "mine"
    assert set(data["runs"][0]["views"]) == {"openings", "answers:second"}
    rows = pq.read_table(tmp_path / "tables" / "magnitudes.parquet").to_pylist()
    assert {r["topic"] for r in rows} == {"all", "topic 1"} and {r["judge"] for r in rows} == {None, "second"}
    assert all(p[0] == "topic 1" for p in data["runs"][0]["answers"]["probes"].values())


def rewritten(run: Path, change) -> Path:
    """The run with other samples of its openings: the first one, and change(it) after 10, ..., 40 steps."""
    log = DriftLog.open(run)
    first = log.logp[0]
    (run / "drift" / "openings.bin").write_bytes(b"")
    for step in range(0, 41, 10):
        log.append(step, change(first) if step else first)
    return run


@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_run_that_did_not_learn_has_no_shift_anywhere(copy: Path, noise: float) -> None:
    """Guards lr 0: identical samples, or such as differ by rounding, are no shift in the headline, the tables, the
    drift times or the checks."""
    rng = np.random.default_rng(0)
    shutil.rmtree(copy / "drift" / "answers")
    page = report([rewritten(copy, lambda x: x + (noise * rng.standard_normal(len(x)) + noise).astype(np.float32))],
                  figures=False)  # fmt: skip
    view = data_of(page)["runs"][0]["views"]["openings"]
    assert view["verdict"][0] == "Openings: no clear shift on any of 3 topics."
    assert not any(cell["sure"] for topic in view["drifts"].values() for cell in topic.values())
    assert not any(check["warn"] for check in view["strip"])
    rows = pq.read_table(copy / "report" / "tables" / "magnitudes.parquet").to_pylist()
    assert not any(row["significant"] for row in rows) and {row["ci95_step"] for row in rows} == {None}


def test_scores_that_are_not_numbers_are_not_known(copy: Path) -> None:
    """Guards a model that broke: "no clear shift", or the shift of the last sample that had numbers."""
    shutil.rmtree(copy / "drift" / "answers")
    view = data_of(report([rewritten(copy, lambda x: x * np.nan)], figures=False))["runs"][0]["views"]["openings"]
    assert view["verdict"] == [
        "Openings: not known.",
        "From step 0 to 40: topic 0, topic 1, topic 2 (no number after the baseline, step 0).",
    ]
    assert {cell["unknown"] for topic in view["drifts"].values() for cell in topic.values()} != {""}


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


def test_a_run_that_is_going_on(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards a sample that is written between two reads of the log: as many steps as rows, and a page."""
    log = DriftLog.open(copy)
    seen, read = log.logp, DriftLog.logp.fget
    (copy / "drift" / "openings.bin").write_bytes((copy / "drift" / "openings.bin").read_bytes()[: -log_record(log)])

    def logp(self: DriftLog) -> np.ndarray:
        found = read(self)
        if len(found) < len(seen):
            self.append(40, seen[-1])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(DriftLog, "logp", property(logp))
        values = opening_values(DriftLog.open(copy))
    assert len(values.steps) == len(values.channels["stance"]) == len(seen) - 1
    assert data_of(report([copy], figures=False))["runs"][0]["views"]["openings"]["steps"][-1] == 40


def log_record(log: DriftLog) -> int:
    """Bytes of a sample."""
    return log.channels["openings"].record_bytes
