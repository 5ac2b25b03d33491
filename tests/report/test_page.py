"""The report's page: one inert file, in a browser at any width."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.pages import analyses, data_of, key_of
from helpers.report_runs import make_gap, make_run, panel_of

from vdengine.drift import load_run
from vdengine.report import report

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


CHROMIUM = Path("/usr/bin/chromium")

SWITCHES = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()

ATTACK = "</script><script>alert(1)</script><img src=x onerror=alert(2)><b>&amp;\u2028%{x} $x$ ž"


# ------------------------------------------------------------------------------------------------------- numbers


def test_page_shows_texts_per_100_bytes_and_the_rest_as_it_is(folder: Path, made: Path) -> None:
    """Guards against a page whose unit is not the one it names."""
    run = data_of(made / "index.html")["runs"][0]
    for (readout, judge, part), a in analyses(folder / "first").items():
        view = run["views"][key_of(readout, judge, part)]
        scale = 100 if readout == "text_likelihood" else 1
        for topic in a.topics:
            shown = view["drifts"][topic][a.values.primary]
            assert shown["mean"] == pytest.approx(a.drift(topic).magnitude.mean * scale, rel=1e-4)
            assert shown["sure"] == a.drift(topic).significant
            assert view["curves"][topic]["mean"][-1] == pytest.approx(a.drift(topic).magnitude.mean * scale, rel=1e-4)


def test_verdict_counts_the_topics_that_moved(folder: Path, made: Path) -> None:
    """Guards against a headline that does not follow from the numbers below it."""
    for name, run in zip(("first", "other"), data_of(made / "index.html")["runs"], strict=True):
        a = analyses(folder / name)["lead", None, None]
        moved = [t for t in a.topics if a.drift(t).significant]
        assert 0 < len(moved) < len(a.topics)  # else this test tells nothing
        head, more = run["views"]["lead"]["verdict"]
        assert head == f"Lead: {len(moved)} of 3 topics moved."
        for t in moved:
            way = "towards" if a.drift(t).magnitude.mean > 0 else "away from"
            assert f"{t} {way} {a.values.axes[t]}" in more


def test_the_curve_of_answers_goes_on_between_anchors(many: Path, tmp_path: Path) -> None:
    """Guards a page that joins the means of few answers by lines, takes smoothed values for an anchor's own, or has the
    drift time of another curve than it draws; samples are left as they are where that is asked for."""
    run = data_of(report([many], out=tmp_path / "a", figures=False))["runs"][0]
    for key in ("answers:rule:argument", "answers:rule", "answers:rule:lead"):
        view, a = run["views"][key], load_run(many).analysis(key)
        curve, levels = a.curves["topic 0", "graded"], a.levels["topic 0", "support"]
        assert curve.points is not None and levels.points is not None
        assert view["steps"] == [*range(41)] and view["kinds"] is None
        assert view["curves"]["topic 0"]["mean"] == pytest.approx(curve.mean, rel=1e-4)
        assert view["points"]["steps"] == curve.points.steps.tolist() and len(curve.points.steps) == 12
        assert view["points"]["curves"]["topic 0"]["low"] == pytest.approx(curve.points.low, rel=1e-4)
        assert view["levels"]["topic 0"]["support"]["mean"] == pytest.approx(levels.mean, rel=1e-4)
        assert view["points"]["levels"]["topic 0"]["support"]["mean"] == pytest.approx(levels.points.mean, rel=1e-4)
        time = a.drift("topic 0").time
        assert time.step is not None
        assert view["drifts"]["topic 0"]["graded"]["times"]["frac95"][0] == time.step
    assert run["views"]["lead"]["points"] is None
    plain = data_of(report([many], out=tmp_path / "b", smoothing="none", figures=False))["runs"][0]
    view = plain["views"]["answers:rule"]
    assert view["points"] is None and view["steps"] == curve.points.steps.tolist() and set(view["kinds"]) == {"anchor"}


# ------------------------------------------------------------------------------------------------------ one file


def test_page_refers_to_nothing_outside(made: Path) -> None:
    """Guards against a link, font, style or script that needs a network."""
    text = (made / "index.html").read_text(encoding="utf-8")
    own = re.sub(r'<script id="plotly">.*?</script>', "", text, flags=re.S)
    assert not re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", own)
    assert not re.findall(r'(?:src|href)="(?!data:)', own)
    assert "@import" not in own and "default-src 'none'" in own


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_controls_change_what_is_shown(browser, made: Path) -> None:
    """Guards against buttons that do nothing: topics, runs, readout, judge, what is drawn, theme."""
    page = Page(browser, made / "index.html", 1600)
    click = page.page.click
    assert page.page.locator("#readout .seg").first.locator("button").all_inner_texts() == [
        "Lead", "Argument", "Text likelihood", "Whole answers",
    ]  # fmt: skip
    assert page.page.locator('#readout [aria-pressed="true"]').inner_text() == "Lead"
    assert page.page.locator(".readings dt").all_inner_texts()[:3] == ["Lead", "Argument", "Text likelihood"]
    assert "first word is yes than no" in page.text(".readings") and "cov. 80%" in page.text("#magnitudes table")
    click('#curves [data-value="level"]')
    assert page.page.evaluate("document.querySelector('#curves .plot').layout.yaxis.range") == [-1, 1]
    click('#curves [data-value="beside"]')
    names = page.page.evaluate("document.querySelector('#curves .plot').data.filter(t => t.hovertext).length")
    assert names == 3 and "whole answers" in page.text("#curves .legend")  # the lead, the argument and both
    click('#readout [data-value="answers"]')
    assert page.titles() == ["all topics"] * 2 + [f"topic {t}" for t in range(3) for _ in range(2)]  # a mix a run
    click('#topics [data-value="topic 1"]')
    assert "topic 1" not in page.titles() and "topic 1" not in page.text("#magnitudes table")
    click('#runs [data-value="1"]')
    assert page.titles() == ["all topics", "topic 0", "topic 2"] and "other" not in page.text("#overview")
    before = page.text("#magnitudes table")
    click('#readout [data-value="text_likelihood"]')
    assert page.text("#magnitudes table") != before and "displacement" in page.text("#magnitudes table")
    assert "after no question" in page.text("#magnitudes table")
    parts = "document.querySelector('#curves .plot').data.filter(t => ['dot', 'dash'].includes(t.line.dash)).length"
    assert page.page.evaluate(parts) == 2
    page.page.get_by_label("its two parts").click()
    assert page.page.evaluate(parts) == 0
    click('#readout [data-value="answers"]')
    assert page.text("#magnitudes table") == before
    click('#readout [data-value="drawn_lead"]')
    assert page.text("#magnitudes table") != before
    click('#readout [data-value="argument"]')
    argued = page.text("#magnitudes table")
    assert argued != before
    click('#readout [data-value="answers"] >> nth=0')
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


@pytest.mark.slow
def test_points_tell_their_values(browser, folder: Path, made: Path) -> None:
    """Guards against hover texts of another point, run or unit."""
    page = Page(browser, made / "index.html", 1600)
    page.page.click('#readout [data-value="text_likelihood"]')
    a = analyses(folder / "first")["text_likelihood", None, None]
    lines = page.page.evaluate(
        "[...document.querySelectorAll('#curves .plot')][1].data.filter(t => t.hovertext).map(t => t.hovertext)"
    )
    m = a.drift("topic 0").magnitude
    assert len(lines) == 2 and "first" in lines[0][-1] and "step 40" in lines[0][-1]
    assert f"{100 * m.mean:+.2f} [{100 * m.low:+.2f}, {100 * m.high:+.2f}]" in lines[0][-1]
    page.page.close()


@pytest.mark.slow
def test_nothing_is_drawn_where_the_gate_is_closed(browser, folder: Path, made: Path) -> None:
    """Guards against lines across steps at which the weights do not reach."""
    page = Page(browser, made / "index.html", 1600)
    page.page.click('#readout [data-value="answers"]')
    closed = [r["step"] for r in data_of(made / "index.html")["runs"][0]["gates"] if not r["open"]]
    x, y, shapes = page.page.evaluate(
        "(() => { const p = document.querySelector('#curves .plot'); const t = p.data[0];"
        " return [t.x, t.y, p.layout.shapes.map(s => [s.x0, s.x1])]; })()"
    )
    assert closed and not set(closed) & set(x) and all(any(a < s < b for a, b in shapes) for s in closed)
    assert len(x) == len(y) and None in x
    page.page.close()


@pytest.mark.slow
def test_curves_of_answers_are_drawn_with_their_anchors(browser, many: Path, tmp_path: Path) -> None:
    """Guards marks on the curve where an anchor's own answers say something else, a curve without a word on what it is,
    and hover texts that take one for the other."""
    page = Page(browser, report([many], out=tmp_path / "made", figures=False), 1600)
    said = "the curve: a local linear fit over these steps"
    drawn = (
        "document.querySelector('#curves .plot').data.filter(t => t.hovertext)"
        ".map(t => [t.mode, t.x.length, t.hovertext[0]])"
    )
    page.page.click('#readout [data-value="argument"]')
    assert said in page.text("#curves .legend")  # of the mix
    page.page.click('#curves [data-value="shift"]')
    (line, steps, curve), (marks, anchors, own) = page.page.evaluate(drawn)
    assert (line, steps, marks, anchors) == ("lines", 41, "markers", 12) and said in page.text("#curves .legend")
    assert "the curve" in curve and "fresh answers alone" in own and "read off the curve" in page.text("#times")
    page.page.click('#curves [data-value="beside"]')
    assert [mode for mode, *_ in page.page.evaluate(drawn)] == ["lines"] + ["lines", "markers"] * 2
    page.page.click('#readout [data-value="lead"]')
    page.page.click('#curves [data-value="shift"]')
    assert said not in page.text("#curves .legend") and "read off the curve" not in page.text("#times")
    page.clean()
    page.page.close()


@pytest.mark.slow
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


@pytest.mark.slow
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
        page.page.click('#readout [data-value="argument"]')
        assert "is judged yet" in page.text("#curves")  # a third of them is not
        page.page.close()


@pytest.mark.slow
def test_empty_states_are_explained(browser, tmp_path: Path) -> None:
    """Guards against charts without a word where a run has no answers, audits, metrics or drift."""
    run = make_run(tmp_path / "run", panel_of(2), answers=False, controls=False, strength=0.0)
    (run / "metrics.jsonl").unlink()
    page = Page(browser, report([run], figures=False), 375)
    assert page.page.locator('#readout [data-value="answers"]').is_disabled()
    assert page.page.locator('#readout [data-value="argument"]').is_disabled()
    assert "No audit of the data was given" in page.text("#gaps")
    assert "No topic has a significant shift" in page.text("#times")
    assert "No times on record" in page.text("#cost") and "No metrics on record" in page.text("#training")
    assert "No answers were drawn" in page.text("#answers") and "no clear shift" in page.text("#overview")
    page.clean()
    page.page.close()


@pytest.mark.slow
def test_completions_of_ppo_are_shown(browser, made: Path) -> None:
    """Guards against PPO's samples that are in the folder and not on the page."""
    page = Page(browser, made / "index.html", 1600)
    assert "Answer 10." in page.text("#completions") and "+1.00" in page.text("#completions")
    page.page.close()


@pytest.mark.slow
def test_drift_and_training_come_first_and_axes_are_named(browser, tmp_path: Path) -> None:
    """Guards the order of a page that began with diagnostics, an axis without quantity and unit, a learning rate of
    3e-5 that is drawn as 0, toolbars over the data, and answers that are not shown before a judge has read them."""
    run = make_run(tmp_path / "run", panel_of(2), judges=())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {"learning_rate": 3e-5, "tokens_per_second": 1e4, "memory_bytes": 2**31}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    page = Page(browser, report([run], figures=False), 1600)
    sections = page.page.evaluate("[...document.querySelectorAll('main section')].map(s => s.id)")
    assert sections == ["curves", "magnitudes", "times", "gaps", "training", "answers", "cost", "diagnostics"]
    assert page.page.locator("#validity").count() == 0  # folded
    page.page.click("#checks > summary")
    page.page.wait_for_selector("#validity")
    plots = page.page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.layout.yaxis.title?.text || '')")
    assert len(plots) > 8 and all(plots)
    lr = page.page.evaluate(
        "[...document.querySelectorAll('#training figure')].filter(f => f.querySelector('h3').innerText"
        " === 'learning rate').map(f => [f.querySelector('.plot').layout.yaxis.range,"
        " f.querySelector('.axis').innerText, [...f.querySelectorAll('.ytick')].map(t => t.textContent)])[0]"
    )
    assert lr[0] == [0, 6e-5] and lr[1] == "last 3e\u22125" and any("e\u22125" in tick for tick in lr[2])
    assert {"speed", "step time", "memory"} <= set(page.page.locator("#training h3").all_inner_texts())
    bar = page.page.locator("#training .modebar").first
    assert bar.evaluate("n => getComputedStyle(n.parentElement).top") == "-26px"
    assert bar.evaluate("n => getComputedStyle(n).opacity") == "0"
    assert "step 0, first" in page.text("#answers table") and "step 40, last" in page.text("#answers table")
    assert "No judge has read them yet" in page.text("#answers") and "for it." in page.text("#answers table")
    page.page.click('#answers [data-value="all"]')
    assert "question" in page.text("#answers thead") and "first" not in page.text("#answers thead")
    page.clean()
    page.page.close()


@pytest.mark.slow
def test_wide_tables_say_that_there_is_more(browser, made: Path) -> None:
    """Guards a table that is clipped on a phone without a sign; and the recipes' differences on the page."""
    page = Page(browser, made / "index.html", 375)
    box = page.page.locator("#magnitudes .scrollbox")
    page.page.click('#runs [data-value="1"]')
    assert "more-right" in (box.get_attribute("class") or "") and "scroll sideways" in box.inner_text()
    box.locator(".scroll").evaluate("n => { n.scrollLeft = n.scrollWidth; }")
    page.page.wait_for_selector("#magnitudes .scrollbox.more-left")  # the policy forbids to wait for a function
    page.page.click('#runs [data-value="1"]')
    assert "data.train" in page.text("#recipes table") and "b.jsonl" in page.text("#recipes table")
    assert "run.steps" not in page.text("#recipes table")
    page.clean()
    page.page.close()
