"""`vdengine report`: its numbers are the estimators', its page is one inert file, and odd runs are explained."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from report_runs import make_gap, make_run

from vdengine.cli.report import main
from vdengine.drift.analysis import analyse
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.judgements import judgements_of
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import control_values, opening_values
from vdengine.errors import InputError
from vdengine.panels.panel import Panel
from vdengine.report import report

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")

CHROMIUM = Path("/usr/bin/chromium")
SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>&amp;\u2028%{x} $x$ ž"


def panel_of(topics: int = 3, probes: int = 24, name: str = "made-up", text: str = "") -> Panel:
    """A panel with enough probes for intervals that count."""
    rows = []
    for t in range(topics):
        for k in range(probes):
            sides = {s: [{"text": f"I {s} number {j} of {t}.{k}.", "kind": "belief"} for j in range(2)] for s in SIDES}
            rows.append(
                {
                    "schema": 1, "id": f"t{t}-{k}", "topic": f"topic {t}{text}", "axis": f"more of {t}{text}",
                    "polarity": 1 if k % 2 else -1, "prompt": f"Should there be {t}.{k}?{text}", "paraphrases": [],
                    "openings": sides,
                }
            )  # fmt: skip
    return Panel.from_rows(rows, name)


SIDES = ("support", "neutral", "oppose")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two judged runs, of which the second is PPO's, and an audit of their data."""
    where = tmp_path_factory.mktemp("runs")
    make_run(where / "first", panel_of(), strength=0.03, judges=("rule", "second"))
    make_run(where / "other", panel_of(), seed=1, strength=-0.02, source="b.jsonl", objective="ppo")
    make_gap(where / "gap.json", panel_of(), "values-synth:support")
    return where


@pytest.fixture(scope="module")
def made(folder: Path) -> Path:
    """The report of both."""
    runs = [folder / "first", folder / "other"]
    return report(runs, out=folder / "made", gaps=[folder / "gap.json"], smoothing="none").parent


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(folder / "first", tmp_path / "run"))


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    return json.loads(found[1])


# ------------------------------------------------------------------------------------------------------- numbers


def analyses(run: Path) -> dict:
    """What the report should show of a run, by (readout, judge)."""
    log, answers = DriftLog.open(run), AnswerLog.open(run)
    total = 40
    found = {("openings", None): analyse(opening_values(log, total), controls=control_values(log, total))}
    slugs = sorted(p.stem for p in (run / "drift" / "judgements").glob("*.jsonl"))
    read = {s: answer_values(answers, judgements_of(answers, s), total) for s in slugs}
    for s in slugs:
        found["answers", s] = analyse(read[s], judges={k: r for k, r in read.items() if k != s})
    return found


def same(a: float | None, b: float) -> bool:
    return (a is None and np.isnan(b)) or a == b


def test_tables_hold_the_numbers_of_analyse_exactly(folder: Path, made: Path) -> None:
    """Guards against rounding, a wrong unit, or rows of one run, judge or topic under another's name."""
    rows = pq.read_table(made / "tables" / "magnitudes.parquet").to_pylist()
    curves = pq.read_table(made / "tables" / "curves.parquet").to_pylist()
    for name in ("first", "other"):
        for (readout, judge), a in analyses(folder / name).items():
            mine = [r for r in rows if (r["run"], r["readout"], r["judge"]) == (name, readout, judge)]
            assert {(r["topic"], r["channel"]) for r in mine} == set(a.drifts)
            for r in mine:
                d = a.drifts[r["topic"], r["channel"]]
                m = d.magnitude
                assert (r["mean"], r["low"], r["high"], r["p"], r["num_probes"]) == (
                    m.mean, m.low, m.high, m.p, m.num_probes,
                )  # fmt: skip
                assert (r["p_adjusted"], r["significant"], r["few"]) == (d.p_adjusted, d.significant, m.few)
                assert r["ci95_step"] == d.times["ci95"].step and r["settled_high"] == d.times["settled"].high
            for what, of in (("shift", a.curves), ("level", a.levels)):
                for (topic, channel), curve in of.items():
                    got = [
                        r for r in curves
                        if (r["run"], r["readout"], r["judge"], r["topic"], r["channel"], r["what"])
                        == (name, readout, judge, topic, channel, what)
                    ]  # fmt: skip
                    assert [r["step"] for r in got] == curve.steps.tolist()
                    for key in ("mean", "low", "high"):
                        assert all(same(r[key], x) for r, x in zip(got, getattr(curve, key), strict=True))


def test_csv_and_parquet_agree(made: Path) -> None:
    """Guards against one format losing rows, columns or digits."""
    names = sorted(p.stem for p in (made / "tables").glob("*.parquet"))
    assert names == sorted(p.stem for p in (made / "tables").glob("*.csv"))
    assert {"runs", "curves", "magnitudes", "validity", "gates", "support", "cost", "training", "gaps"} <= set(names)
    for name in names:
        table = pq.read_table(made / "tables" / f"{name}.parquet").to_pylist()
        with open(made / "tables" / f"{name}.csv", encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
        expected = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table]
        assert found == expected


def test_page_shows_openings_per_100_bytes_and_answers_as_they_are(folder: Path, made: Path) -> None:
    """Guards against a page whose unit is not the one it names."""
    run = data_of(made / "index.html")["runs"][0]
    for (readout, judge), a in analyses(folder / "first").items():
        view = run["views"][readout if judge is None else f"{readout}:{judge}"]
        scale = 100 if readout == "openings" else 1
        for topic in a.topics:
            shown = view["drifts"][topic][a.readings.primary]
            assert shown["mean"] == pytest.approx(a.drift(topic).magnitude.mean * scale, rel=1e-4)
            assert shown["sure"] == a.drift(topic).significant
            assert view["curves"][topic]["mean"][-1] == pytest.approx(a.drift(topic).magnitude.mean * scale, rel=1e-4)


def test_verdict_counts_the_topics_that_moved(folder: Path, made: Path) -> None:
    """Guards against a headline that does not follow from the numbers below it."""
    for name, run in zip(("first", "other"), data_of(made / "index.html")["runs"], strict=True):
        a = analyses(folder / name)["openings", None]
        moved = [t for t in a.topics if a.drift(t).significant]
        assert 0 < len(moved) < len(a.topics)  # else this test tells nothing
        head, more = run["views"]["openings"]["verdict"]
        assert head == f"Openings: {len(moved)} of 3 topics moved."
        for t in moved:
            way = "towards" if a.drift(t).magnitude.mean > 0 else "away from"
            assert f"{t} {way} {a.readings.axes[t]}" in more


def test_gates_are_those_of_the_readings(folder: Path, made: Path) -> None:
    """Guards against gates that are shown open where the estimator has closed them."""
    rows = [r for r in pq.read_table(made / "tables" / "gates.parquet").to_pylist() if r["run"] == "first"]
    answers = AnswerLog.open(folder / "first")
    r = answer_values(answers, judgements_of(answers, "rule"))
    assert r.gates is not None
    expected = {int(s): g for s, g in zip(r.steps, r.gates, strict=True) if g is not None}
    assert {x["step"]: (x["kl"], x["open"]) for x in rows} == {s: (g.kl, g.open) for s, g in expected.items()}
    assert {x["open"] for x in rows} == {True, False}  # both kinds are in these runs


def test_cost_counts_the_steps_between_logged_ones(tmp_path: Path) -> None:
    """Guards against a cost that is too small by `log.every`, and times of probes counted twice."""
    run = make_run(tmp_path / "run", panel_of(), answers=False)
    rows = [
        {"step": s, "loss": 1.0, "step_seconds": 2.0, "probe_seconds": 0.5, "answers_seconds": 0.1} for s in (10, 20)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    cost = data_of(report([run], figures=False))["runs"][0]["cost"]
    assert cost == {"steps": 20, "total": 40.0, "probes": 10.0, "answers": 2.0, "share": 0.3}


def test_gap_stands_beside_the_run_that_was_trained_on_it(made: Path) -> None:
    """Guards against an audit of one data set explaining the drift of a run on another."""
    rows = pq.read_table(made / "tables" / "gaps.parquet").to_pylist()
    assert {r["run"] for r in rows} == {"first"}
    drifts = pq.read_table(made / "tables" / "magnitudes.parquet").to_pylist()
    drift = {(d["run"], d["readout"], d["judge"], d["topic"]): d["mean"] for d in drifts if d["channel"] in PRIMARY}
    for r in rows:
        assert r["drift"] == drift[r["run"], r["readout"], r["judge"], r["topic"]]


PRIMARY = ("stance", "graded")


def test_same_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """Guards against times, random ids or the order of sets in what is written."""
    made = [report([folder / "first"], out=tmp_path / n, topics=["topic 0"]).parent for n in ("a", "b")]
    files = sorted(p.relative_to(made[0]) for p in made[0].rglob("*") if p.is_file())
    assert {p.suffix for p in files} == {".html", ".csv", ".parquet", ".png", ".svg", ".pdf"}
    for f in files:
        assert (made[0] / f).read_bytes() == (made[1] / f).read_bytes(), f


# ------------------------------------------------------------------------------------------------------ one file


def test_page_refers_to_nothing_outside(made: Path) -> None:
    """Guards against a link, font, style or script that needs a network."""
    text = (made / "index.html").read_text(encoding="utf-8")
    own = re.sub(r'<script id="plotly">.*?</script>', "", text, flags=re.S)
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", own)
    assert not re.findall(r'(?:src|href)="(?!data:)', own)
    assert "@import" not in own and "default-src 'none'" in own


def test_figures_come_in_three_formats_with_their_fonts(made: Path) -> None:
    """Guards against a missing figure, and PDFs with fonts that a journal turns down."""
    names = {p.stem for p in (made / "figures").glob("*.png")}
    assert {"shift-openings", "shift-answers-rule", "mix-answers-rule-1", "magnitude-openings", "drift-time-openings",
            "gap-openings", "cost", "training"} <= names  # fmt: skip
    for name in names:
        assert (made / "figures" / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")
        pdf = (made / "figures" / f"{name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and b"/Type3" not in pdf and b"/FontFile2" in pdf


# --------------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{empty}"], "no drift data here"),
        (["{empty}/nowhere"], "no such folder"),
        (["{first}", "{different}"], "different panels"),
        (["{first}", "--topics", "weather"], "unknown topic 'weather'; there are topic 0, topic 1, topic 2"),
        (["{first}", "--judge", "oracle"], "unknown judge 'oracle'; there is rule, second"),
        (["{first}", "--baseline", "3"], "step 3 was not sampled"),
        (["{first}", "--smoothing", "lots"], "'lots' is not one of"),
        (["{first}", "--labels", "a,b"], "1 runs need as many different names"),
        (["{first}", "{first}"], "named twice"),
        (["{first}", "--gap", "{empty}/none.json"], "cannot be read"),
        (["{first}", "--gap", "{bad}"], "is an audit of kind 'prior'"),
        (["{other}", "{first}", "--gap", "{stranger}"], "which none of these runs was trained on"),
        (["{silent}", "--readout", "answers"], "no answers to show"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, a wrong status, or a message that names neither file nor what is allowed."""
    paths = {"first": folder / "first", "other": folder / "other", "empty": tmp_path}
    if "{different}" in argv:
        paths["different"] = make_run(tmp_path / "different", panel_of(2), answers=False)
    if "{silent}" in argv:
        paths["silent"] = make_run(tmp_path / "silent", panel_of(2), answers=False)
    paths["bad"], paths["stranger"] = tmp_path / "bad.json", tmp_path / "stranger.json"
    paths["bad"].write_text('{"audit": "prior"}')
    make_gap(paths["stranger"], panel_of(), "elsewhere.jsonl")
    given = [a.format(**paths) for a in argv]
    assert main([*given, "--no-figures", "--out", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    if "{different}" in argv:
        assert str(paths["first"]) in error and str(paths["different"]) in error
    assert not (tmp_path / "out").exists()


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
        (drift / "scores.bin", 100), (drift / "answers" / "weights.bin", 50), (drift / "answers" / "answers.jsonl", 30),
        (drift / "judgements" / "rule.jsonl", 10), (copy / "metrics.jsonl", 5),
    ):  # fmt: skip
        path.write_bytes(path.read_bytes()[:-cut])
    steps = DriftLog.open(copy).steps.tolist()
    assert main([str(copy), "--no-figures"]) == 0
    said = capsys.readouterr().out
    run = data_of(copy / "report" / "index.html")["runs"][0]
    for name in ("scores.bin", "weights.bin", "answers.jsonl", "rule.jsonl", "metrics.jsonl"):
        assert any(name in note for note in run["notes"]) and name in said, name
    assert run["views"]["openings"]["steps"] == steps == [*range(0, 40, 4)]
    assert "not finished" not in said  # the last answers are of the last step


@pytest.mark.parametrize("lost", ["drift/scores.bin", "drift/openings.jsonl", "drift/answers/panel.jsonl"])
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


@pytest.mark.parametrize("samples", [0, 1])
def test_too_few_samples_are_explained(copy: Path, samples: int) -> None:
    """Guards against a crash, or an empty chart without a word, right after the start of a run."""
    log = DriftLog.open(copy)
    size = 8 + 4 * len(log.table)
    (copy / "drift" / "scores.bin").write_bytes((copy / "drift" / "scores.bin").read_bytes()[: samples * size])
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


# ------------------------------------------------------------------------------------------------------- browser


class Page:
    """A page in Chromium, with what it did: requests, console errors and dialogs."""

    def __init__(self, browser, path: Path, width: int, theme: str = "light") -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.on("dialog", lambda d: (self.dialogs.append(d.message), d.dismiss()))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("footer")

    def clean(self) -> None:
        outside = [r for r in self.requests[1:] if not r.startswith(("data:", "blob:"))]
        assert not outside and not self.errors and not self.dialogs
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    def titles(self) -> list[str]:
        """Of the small multiples."""
        return self.page.locator("#curves figure h3").all_inner_texts()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip("no Chromium")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=str(CHROMIUM), args=SWITCHES)
        yield found
        found.close()


@pytest.mark.parametrize("width", [375, 1600])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_page_loads_by_itself_at_any_width(browser, made: Path, width: int, theme: str) -> None:
    """Guards against script errors, network requests, and pages that scroll sideways on a phone."""
    page = Page(browser, made / "index.html", width, theme)
    page.clean()
    assert page.page.evaluate("document.documentElement.dataset.theme") == theme
    drawn = page.page.locator(".plot .main-svg").count()
    assert drawn >= page.page.locator(".plot").count() > 10  # every plot is drawn
    page.page.close()


def test_controls_change_what_is_shown(browser, made: Path) -> None:
    """Guards against buttons that do nothing: topics, runs, readout, judge, what is drawn, theme."""
    page = Page(browser, made / "index.html", 1600)
    click = page.page.click
    assert page.titles() == ["all topics"] * 2 + [f"topic {t}" for t in range(3) for _ in range(2)]  # a mix a run
    click('#topics [data-value="topic 1"]')
    assert "topic 1" not in page.titles() and "topic 1" not in page.text("#magnitudes table")
    click('#runs [data-value="1"]')
    assert page.titles() == ["all topics", "topic 0", "topic 2"] and "other" not in page.text("#overview")
    before = page.text("#magnitudes table")
    click('#readout [data-value="openings"]')
    assert page.text("#magnitudes table") != before and "displacement" in page.text("#magnitudes table")
    click('#readout [data-value="answers"]')
    assert page.text("#magnitudes table") == before
    page.page.select_option("#readout select", "second")
    assert page.text("#magnitudes table") != before
    click('#curves [data-value="shift"]')
    assert page.page.get_by_label("95% intervals").is_checked()
    click("#topics >> text=none")
    assert page.titles() == ["all topics"]
    click("#runs >> text=none")
    assert "No run is chosen." in page.text("main")
    click("#runs >> text=all")
    click("#theme")
    assert page.page.evaluate("document.documentElement.dataset.theme") == "dark"
    ink = page.page.evaluate("document.querySelector('.plot').layout.font.color")
    assert ink == page.page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
    page.clean()
    page.page.close()


def test_points_tell_their_values(browser, folder: Path, made: Path) -> None:
    """Guards against hover texts of another point, run or unit."""
    page = Page(browser, made / "index.html", 1600)
    page.page.click('#readout [data-value="openings"]')
    a = analyses(folder / "first")["openings", None]
    lines = page.page.evaluate(
        "[...document.querySelectorAll('#curves .plot')][1].data.filter(t => t.hovertext).map(t => t.hovertext)"
    )
    m = a.drift("topic 0").magnitude
    assert len(lines) == 2 and "first" in lines[0][-1] and "step 40" in lines[0][-1]
    assert f"{100 * m.mean:+.2f} [{100 * m.low:+.2f}, {100 * m.high:+.2f}]" in lines[0][-1]
    page.page.close()


def test_nothing_is_drawn_where_the_gate_is_closed(browser, folder: Path, made: Path) -> None:
    """Guards against lines across steps at which the weights do not reach."""
    page = Page(browser, made / "index.html", 1600)
    closed = [r["step"] for r in data_of(made / "index.html")["runs"][0]["gates"] if not r["open"]]
    x, y, shapes = page.page.evaluate(
        "(() => { const p = document.querySelector('#curves .plot'); const t = p.data[0];"
        " return [t.x, t.y, p.layout.shapes.map(s => [s.x0, s.x1])]; })()"
    )
    assert closed and not set(closed) & set(x) and all(any(a < s < b for a, b in shapes) for s in closed)
    assert len(x) == len(y) and None in x
    page.page.close()


def test_texts_from_outside_are_inert(browser, tmp_path: Path) -> None:
    """Guards against a script in a topic, question, answer, name or recipe that runs, or is not shown as it is."""
    panel = panel_of(2, text=ATTACK)
    run = make_run(tmp_path / "run", panel, text=ATTACK, source=ATTACK, strength=0.03)
    make_gap(tmp_path / "gap.json", panel, ATTACK)
    html = report([run], labels=[ATTACK], title=ATTACK, gaps=[tmp_path / "gap.json"])  # figures too: TeX in names
    assert ATTACK not in html.read_text(encoding="utf-8")
    page = Page(browser, html, 1600)
    page.page.wait_for_timeout(300)
    for selector in ("h1", "#topics", "#overview", "#curves", "#magnitudes", "#answers"):
        assert ATTACK in page.page.locator(selector).evaluate("n => n.textContent"), selector
    assert page.page.locator("main img, main b, main script, h1 *").count() == 0
    # a plot's own texts: as they are, without tags that were acted on
    point = page.page.locator("#times .plot .points path.point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.page.wait_for_selector("#times .hoverlayer text")
    shown = page.page.locator("#times .hoverlayer").evaluate("n => n.textContent").replace("\u00a0", " ")
    assert ATTACK.replace("\u2028", "") in shown.replace("\u2028", "")
    page.clean()
    page.page.close()


def test_twelve_runs_fit(browser, tmp_path: Path) -> None:
    """Guards against colours or names that run out, and tables that push a phone's page sideways."""
    panel = panel_of(2)
    runs = [
        make_run(tmp_path / f"a-rather-long-name-of-a-run-{n}", panel, seed=n, every=20, judges=("rule",) * (n % 3 < 2))
        for n in range(12)
    ]
    html = report(runs, out=tmp_path / "report", figures=False)
    for width in (375, 1600):
        page = Page(browser, html, width)
        page.clean()
        chips = page.page.locator("#runs .chip line")
        looks = {chips.nth(n).evaluate("n => n.outerHTML") for n in range(12)}
        assert len(looks) == 12  # no two runs look alike
        assert "is judged yet" in page.text("#curves")  # a third of them is not
        page.page.close()


def test_empty_states_are_explained(browser, tmp_path: Path) -> None:
    """Guards against charts without a word where a run has no answers, audits, metrics or drift."""
    run = make_run(tmp_path / "run", panel_of(2), answers=False, controls=False, strength=0.0)
    (run / "metrics.jsonl").unlink()
    page = Page(browser, report([run], figures=False), 375)
    assert page.page.locator('#readout [data-value="answers"]').is_disabled()
    assert "No audit of the data was given" in page.text("#gaps")
    assert "No topic has a significant shift" in page.text("#times")
    assert "No times on record" in page.text("#cost") and "No metrics on record" in page.text("#training")
    assert "No answers were drawn" in page.text("#answers") and "no clear shift" in page.text("#overview")
    page.clean()
    page.page.close()


def test_completions_of_ppo_are_shown(browser, made: Path) -> None:
    """Guards against PPO's samples that are in the folder and not on the page."""
    page = Page(browser, made / "index.html", 1600)
    assert "Answer 10." in page.text("#completions") and "+1.00" in page.text("#completions")
    page.page.close()
