"""Figures for print: PNG, SVG and PDF, one or two columns wide, with fonts in the file.

The file is above 500 lines because all figures share the style, the scales and what is left out.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift.analysis import Curve
from vdengine.drift.cost import Cost
from vdengine.drift.judgements import LEAD as LEAD_PART
from vdengine.drift.probe_values import LEAST_COVERAGE
from vdengine.drift.run import ANSWERS, Readout, Run, judges_of, key_of
from vdengine.drift.validity import TopicDrift
from vdengine.outside import printable
from vdengine.recipe import LEAD
from vdengine.report.gaps import Gap
from vdengine.report.metrics import CHARTS, Chart, Line, Metrics
from vdengine.report.sentences import READINGS, reading_of, worded

ONE, TWO = 3.35, 6.9  # inches: the width of a column, and of two
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "D", "^", "P", "X")
HOLLOW: Any = {"mfc": "white", "ms": 2.4, "mew": 0.6}  # marks of fresh answers that a curve runs between
CUT_OFF: Any = {"color": "#9A4600", "linewidth": 0.7, "linestyle": (0, (4, 3))}
STANCES = {"support": "#0072B2", "neutral": "#C4C9CF", "oppose": "#D55E00"}
MAX_MIXES = 3  # runs that get their own figure of stance mixes
MAX_TOPICS = 47  # topics of small multiples; the tables have all
MAX_LABELS = 12  # points of a scatter plot, up to which they are named
Pair = tuple[int, Run, Readout]  # a run's number, which gives its colour; the run; its readout
Point = tuple[int, str, Any, Any]  # of a scatter plot: a run's number, the topic, (mean, low, high) along x and along y

STYLE: Any = {
    "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5, "font.family": "sans-serif", "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path",
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.1,
    "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False, "svg.hashsalt": "vdengine",
    "axes.unicode_minus": True, "hatch.linewidth": 0.4, "legend.frameon": False,
}  # fmt: skip


def draw(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], folder: Path) -> None:
    """Write every figure that has data, of each readout; of answers as the first judge reads them, their argument and
    all of them. What their first words alone say is in the tables.

    Figures of an earlier report are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg", "pdf"):
        for old in folder.glob(f"*.{ending}"):
            old.unlink()
    judge = next(iter(judges_of(runs)), "")
    with _style():
        for reading in (reading for reading in READINGS if reading.part != LEAD_PART):
            key = key_of(reading.kind, judge if reading.part else "", reading.part)
            name = reading.name.replace("_", "-") + (f"-{judge}" if reading.part else "")
            shown = [(number, run, run.views[key]) for number, run in enumerate(runs) if key in run.views]
            if not shown:
                continue
            _save(shifts(shown, topics), folder / f"shift-{name}")
            _save(magnitudes(shown, topics), folder / f"magnitude-{name}")
            _save(times(shown, topics), folder / f"drift-time-{name}")
            _save(gap_against_drift(shown, gaps, topics), folder / f"gap-{name}")
            if reading.kind == ANSWERS:
                for number, run, view in shown[:MAX_MIXES]:
                    ending = f"-{number + 1}" if len(runs) > 1 else ""
                    _save(mix(run, view, topics), folder / f"mix-{name}{ending}")
        _save(capability(runs), folder / "capability")
        _save(cost(runs), folder / "cost")
        _save(training(runs), folder / "training")


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's settings for the figures."""
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # topics in a script that the font lacks
        yield


def _save(figure: Any, path: Path) -> None:
    """Write a figure in three formats; None: nothing."""
    for ending, data in ({} if figure is None else _formats(figure)).items():
        Path(f"{path}.{ending}").write_bytes(data)


def _formats(figure: Any) -> dict[str, bytes]:
    """A figure as the bytes of a file, by ending. Without dates in them: one report gives the same bytes."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # lay out once, not for each format
    files = {}
    for ending, meta in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        file = io.BytesIO()
        figure.savefig(file, format=ending, dpi=300, metadata=meta)
        files[ending] = file.getvalue()
    return files


def as_files(make: Callable[[], Any]) -> dict[str, bytes]:
    """The figure that `make` draws, as the bytes of a file by ending: png, svg, pdf."""
    with _style():
        return _formats(make())


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, np.ndarray]:
    """A figure of a size in inches, and its axes, [rows * columns]; options: of `subplots`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def _line_style(run: int) -> dict[str, Any]:
    return {"color": COLOURS[run % len(COLOURS)], "linestyle": DASHES[run // len(COLOURS) % len(DASHES)]}


def _marker(run: int) -> str:
    return MARKERS[(run + run // len(COLOURS)) % len(MARKERS)]


def _multiples(
    topics: Sequence[str],
    draw_topic: Callable[[Any, str], str],
    label: str,
    legend: list[Any],
    draw_strip: Callable[[Any, str], None] | None = None,
) -> Any:
    """Small multiples over topics, "all" first.

    Args:
        draw_topic: draws one topic on its axes, and returns what must be said beside its name, or "".
        label: of the y axes.
        draw_strip: draws a strip below each of them.
    """
    names = ["all", *topics[:MAX_TOPICS]]
    columns = _columns(len(names))
    rows, strips = -(-len(names) // columns), draw_strip is not None
    width = TWO if columns > 2 else ONE
    longest = max((len(handle.get_label()) for handle in legend), default=0)
    per_row = min(max(int(17 * width / (longest + 7)), 1), 3, max(len(legend), 1))  # 17 characters an inch
    height = (1.75 if strips else 1.35) * rows + 0.2 + (0.14 * -(-len(legend) // per_row) + 0.1 if legend else 0)
    heights = [1.0, 0.28] * rows if strips else [1.0] * rows
    figure, axes = _figure(width, height, len(heights), columns, sharex=True, height_ratios=heights)
    grid = axes.reshape(rows, -1, columns)  # (row, panel and strip, column)
    notes = {}  # by panel
    for n in range(rows * columns):
        panel, lowest = grid[n // columns, 0, n % columns], grid[n // columns, -1, n % columns]
        if n >= len(names):
            for ax in grid[n // columns, :, n % columns]:
                ax.set_visible(False)
            continue
        for ax, first in zip(grid[n // columns, :, n % columns], grid[0, :, 0], strict=True):
            ax.tick_params(labelleft=n % columns == 0)
            if ax is not first:
                ax.sharey(first)
        notes[panel] = draw_topic(panel, names[n])
        if draw_strip is not None:
            draw_strip(lowest, names[n])
        panel.set_title(_fit("all topics" if names[n] == "all" else names[n], 34), loc="left")
        if n + columns >= len(names):
            lowest.set_xlabel("step")
            lowest.tick_params(labelbottom=True)
    for panel, note in notes.items():  # between the name and the panel, where names leave room for all
        if any(notes.values()):
            panel.set_title(panel.get_title("left"), loc="left", pad=11)
        style: dict[str, Any] = {"fontsize": 5.5, "color": "0.4", "va": "bottom"}
        panel.annotate(_fit(note, 42), (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", **style)
    figure.supylabel(label, fontsize=7)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=per_row)
    return figure


def _columns(count: int) -> int:
    """The columns of `count` small multiples, with few empty places in the last row."""
    return count if count <= 4 else min((4, 3), key=lambda c: -count % c)


def _fit(text: str, width: int) -> str:
    """A text on one line of at most `width` characters, without control characters and lone surrogates."""
    text = printable(" ".join(text.split())).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= width else text[: width - 3] + "..."


def shifts(shown: Sequence[Pair], topics: Sequence[str]) -> Any:
    """Shift curves of all runs, a topic each; with intervals where there are at most four runs."""
    from matplotlib.lines import Line2D

    def draw_topic(ax: Any, topic: str) -> str:
        ax.axhline(0, color="0.5", linewidth=0.6)
        edges(ax, [run for _, run, _ in shown])
        for number, _, view in shown:
            if curve := view.analysis.curves.get((topic, view.analysis.values.primary)):
                scale, style = _scale(view), _line_style(number)
                ax.plot(curve.steps, curve.mean * scale, **style)
                if len(shown) <= 4:
                    low, high = curve.low * scale, curve.high * scale
                    ax.fill_between(curve.steps, low, high, color=style["color"], alpha=0.18, lw=0)
                _anchors(ax, view, curve, scale, number, bars=len(shown) <= 4)
        return _not_known(shown, topic)

    legend: list[Any] = []
    if len(shown) > 1:
        legend += [Line2D([], [], label=_fit(run.name, 40), **_line_style(number)) for number, run, _ in shown]
    view = shown[0][2]
    legend += _fitted([view for _, _, view in shown])
    strip = None
    if view.kind == LEAD:
        strip = partial(_coverage, shown)
        legend.append(Line2D([], [], label=f"coverage of {LEAST_COVERAGE:.0%}: below it nothing is said", **CUT_OFF))
    return _multiples(topics, draw_topic, f"{reading_of(view).label.lower()}: shift, {_unit(view)}", legend, strip)


def _not_known(shown: Sequence[Pair], topic: str) -> str:
    """What is said where nothing can be said of a topic's shift; "" where something can."""
    unknown = [
        (run.name, _last_coverage(view, topic))
        for _, run, view in shown
        if (drift := view.analysis.drifts.get((topic, view.analysis.values.primary))) is not None and drift.unknown
    ]
    if not unknown:
        return ""
    few = [f"{share:.0%}" for _, share in unknown if share is not None and share < LEAST_COVERAGE]
    text = f"says nothing: coverage {', '.join(few)}" if len(few) == len(unknown) else "not known"
    return f"{text} ({', '.join(name for name, _ in unknown)})" if len(shown) > 1 else text


def _last_coverage(view: Readout, topic: str) -> float | None:
    """The share of answers that begin with a lead, at the last sample that has one; None of other readouts."""
    level = view.analysis.levels.get((topic, "coverage"))
    known = level.mean[np.isfinite(level.mean)] if level is not None else []
    return float(known[-1]) if len(known) else None


def _coverage(shown: Sequence[Pair], ax: Any, topic: str) -> None:
    """The share of answers that begin with a lead, of each run at every sample, and the cut-off below which nothing is
    said of the topic."""
    ax.axhline(LEAST_COVERAGE, **CUT_OFF)
    for number, _, view in shown:
        if level := view.analysis.levels.get((topic, "coverage")):
            marker = _marker(number) if len(level.steps) < 2 else ""
            ax.plot(level.steps, level.mean, **_line_style(number) | {"linewidth": 0.9, "marker": marker, "ms": 3})
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 1], ["0%", "100%"])
    low = all((line.get_ydata() < 0.5).all() for line in ax.lines[1:])  # the word stands where no line is
    ax.annotate("coverage", (0.02, 0.9 if low else 0.1), xycoords="axes fraction", va="top" if low else "bottom",
                color="0.4", fontsize=5)  # fmt: skip


def _fitted(views: Sequence[Readout]) -> list[Any]:
    """What a legend says of curves that go on between the steps at which answers were drawn; [] without any."""
    from matplotlib.lines import Line2D

    for analysis in (view.analysis for view in views):
        if analysis.curves["all", analysis.values.primary].points is not None:
            how = "a moving average" if analysis.smoothing.startswith("ema") else "a local linear fit"
            marks = Line2D([], [], label="fresh answers of one step", marker="o", ls="", **HOLLOW, color="0.3")
            return [marks, Line2D([], [], label=f"the curve: {how} over these steps", color="0.3")]
    return []


def edges(ax: Any, runs: Sequence[Run]) -> None:
    """Draw where the stages of histories begin, with their names; of saved models the name of each."""
    if runs and runs[0].models and all(run.models == runs[0].models for run in runs):
        names = [_fit(name, 12) for name in runs[0].models.values()]
        ax.set_xticks(list(runs[0].models), names, rotation=30 if len(names) > 4 else 0)
        return
    begins: dict[int, list[str]] = {}
    for run in runs:
        for stage in run.parts:
            names = begins.setdefault(stage.first, [])
            names += [] if stage.name in names else [stage.name]
    for step, names in begins.items():
        if step:
            ax.axvline(step, color="0.6", linewidth=0.6, linestyle=(0, (4, 2)))
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        ax.annotate(_fit("/".join(names), 20), (step, 1.0), (2, -1), va="top", fontsize=5.5, color="0.4", **place)


def _anchors(ax: Any, view: Readout, curve: Curve, scale: float, number: int, *, bars: bool) -> None:
    """Mark the samples at anchors; bars: with intervals, as a band between isolated samples cannot be seen."""
    kinds, colour = view.analysis.values.kinds, _line_style(number)["color"]
    if curve.points is not None:
        ax.plot(curve.points.steps, curve.points.mean * scale, _marker(number), color=colour, **HOLLOW)
    elif kinds is not None:
        samples = np.flatnonzero((kinds == "anchor") & np.isfinite(curve.mean))
        mean, low, high = (series[samples] * scale for series in (curve.mean, curve.low, curve.high))
        error = np.nan_to_num([mean - low, high - mean]).clip(0) if bars else None
        ax.errorbar(curve.steps[samples], mean, error, fmt=_marker(number), color=colour, ms=3, elinewidth=0.6)


def mix(run: Run, view: Readout, topics: Sequence[str]) -> Any:
    """Shares of answers that support, stay neutral or oppose; nothing is drawn where the gate is closed."""
    from matplotlib.patches import Patch

    kinds = view.analysis.values.kinds

    def draw_topic(ax: Any, topic: str) -> str:
        if (topic, "support") not in view.analysis.levels:
            return ""
        support, oppose = (view.analysis.levels[topic, name] for name in ("support", "oppose"))
        steps, border = support.steps, 1 - oppose.mean  # between neutral and oppose
        ax.fill_between(steps, 0, support.mean, color=STANCES["support"], lw=0)
        ax.fill_between(steps, support.mean, border, color=STANCES["neutral"], lw=0)
        ax.fill_between(steps, border, 1, facecolor=STANCES["oppose"], hatch="////", edgecolor="white", lw=0)
        borders = (
            (support.mean, support.low, support.high),
            (border, 1 - oppose.high, 1 - oppose.low),
        )
        for _, low, high in borders:
            ax.fill_between(steps, low, high, color="black", alpha=0.25, lw=0)
        if support.points is not None and oppose.points is not None:
            for mean, fitted in ((support.points.mean, support.mean), (1 - oppose.points.mean, border)):
                ax.plot(steps, fitted, color="black", lw=0.6)
                ax.plot(support.points.steps, mean, "o", color="black", **HOLLOW, clip_on=False)
        else:
            anchors = np.flatnonzero((kinds == "anchor") & np.isfinite(support.mean))
            for mean, low, high in borders:
                error = np.nan_to_num([mean[anchors] - low[anchors], high[anchors] - mean[anchors]]).clip(0)
                style: dict[str, Any] = {"fmt": "o", "color": "black", "mfc": "white", "ms": 3, "mew": 0.7}
                ax.errorbar(steps[anchors], mean[anchors], error, **style, elinewidth=0.7)
        ax.set_ylim(0, 1)
        ax.set_xlim(steps[0], steps[-1])
        return ""

    legend: list[Any] = [Patch(facecolor=STANCES[name], label=name) for name in ("support", "neutral")]
    legend.append(Patch(facecolor=STANCES["oppose"], hatch="////", edgecolor="white", label="oppose"))
    legend += _fitted([view])
    return _multiples(topics, draw_topic, f"share of answers, {_fit(run.name, 30)}", legend)


def magnitudes(shown: Sequence[Pair], topics: Sequence[str]) -> Any:
    """Signed magnitudes: topics by runs, or by channels for one run."""
    names = [*topics, "all"]
    first = shown[0][2].analysis.values
    columns = [(_fit(run.name, 22), view, view.analysis.values.primary) for _, run, view in shown]
    if len(shown) == 1:
        channels = [first.primary, *(channel for channel in first.channels if channel != first.primary)]
        columns = [(channel.replace("_", "-"), shown[0][2], channel) for channel in channels]
    drifts = [[view.analysis.drifts.get((topic, channel)) for _, view, channel in columns] for topic in names]
    scale = _scale(shown[0][2])
    shift = np.array([[np.nan if d is None else d.magnitude.mean * scale for d in of_topic] for of_topic in drifts])
    width = TWO if len(columns) > 5 else ONE
    figure, (ax,) = _figure(width, 0.62 + 0.21 * len(names) + (0.5 if len(shown) > 1 else 0.25))
    largest = np.nanmax(np.abs(shift)) if np.isfinite(shift).any() else 1.0
    image = ax.imshow(shift, cmap=_diverging(), vmin=-largest, vmax=largest, aspect="auto")
    for row, of_topic in enumerate(drifts):
        for column, drift in enumerate(of_topic):
            if drift is not None and np.isfinite(shift[row, column]):
                style: dict[str, Any] = {
                    "weight": "bold" if drift.significant else "normal",
                    "color": "w" if abs(shift[row, column]) > 0.75 * largest else "k",
                }
                text = "not known" if drift.unknown else f"{shift[row, column]:+z.2f}{'*' if drift.significant else ''}"
                ax.text(column, row, text, ha="center", va="center", fontsize=5.5, **style)
    ax.set_xticks(range(len(columns)), [c[0] for c in columns], rotation=35 if len(shown) > 1 else 20, ha="right")
    ax.set_yticks(range(len(names)), ["all topics" if topic == "all" else _fit(topic, 24) for topic in names])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02).set_label(_unit(shown[0][2]) + "\n(* significant)", fontsize=6)
    return figure


def _diverging() -> Any:
    """The colour map of signed shifts."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("vd", ["#B04A00", "#F0A868", "#F7F7F7", "#6BAED6", "#00558A"])


def times(shown: Sequence[Pair], topics: Sequence[str]) -> Any:
    """Drift time (frac95) against magnitude, of topics that moved."""
    points: list[Point] = []
    for number, _, view in shown:
        for topic in topics:
            drift = view.analysis.drifts.get((topic, view.analysis.values.primary))
            if drift is not None and (time := drift.time).fraction is not None:
                points.append((number, topic, _shift(drift, view), (time.fraction, time.low, time.high)))
    if not points:
        return None
    figure = _scatter(points, shown, f"shift, {_unit(shown[0][2])}", "drift time (frac95), share of the run", set())
    figure.axes[0].set_ylim(-0.03, 1.05)
    return figure


def gap_against_drift(shown: Sequence[Pair], gaps: Sequence[Gap], topics: Sequence[str]) -> Any:
    """The data's value gap against the drift of the run trained on it."""
    points: list[Point] = []
    not_significant = set()  # indexes of points
    for gap in gaps:
        for number, run, view in shown:
            own = run.own_views.get(view.key) if run is gap.run else None
            if own is None:
                continue
            for topic in topics:
                drift, entry = own.analysis.drifts.get((topic, own.analysis.values.primary)), gap.topics.get(topic)
                if drift is not None and entry is not None and np.isfinite([entry["gap"], drift.magnitude.mean]).all():
                    if not drift.significant:
                        not_significant.add(len(points))
                    points.append((number, topic, (entry["gap"], entry["low"], entry["high"]), _shift(drift, view)))
    if not points:
        return None
    figure = _scatter(points, shown, "value gap of the data", f"shift, {_unit(shown[0][2])}", not_significant)
    figure.axes[0].axhline(0, color="0.6", lw=0.6, zorder=0)
    return figure


def _shift(drift: TopicDrift, view: Readout) -> np.ndarray:
    """[3] float64 in the unit that is shown: a magnitude's mean, low and high."""
    magnitude = drift.magnitude
    return np.array([magnitude.mean, magnitude.low, magnitude.high]) * _scale(view)


def _scatter(points: list[Point], shown: Sequence[Pair], x_label: str, y_label: str, hollow: set[int]) -> Any:
    """A scatter plot with intervals; hollow: indexes of points that are drawn so."""
    from matplotlib.lines import Line2D

    count = len(shown) if len(shown) > 1 else 0
    figure, (ax,) = _figure(ONE, 2.6 + 0.14 * -(-count // 2))
    for index, (number, topic, x, y) in enumerate(points):
        colour = COLOURS[number % len(COLOURS)]
        face = "white" if index in hollow else colour
        x_error, y_error = (np.nan_to_num([[m - low], [high - m]]).clip(0) for m, low, high in (x, y))
        style: dict[str, Any] = {"fmt": _marker(number), "color": colour, "mfc": face, "ms": 4, "elinewidth": 0.6}
        ax.errorbar(x[0], y[0], y_error, x_error, **style)
        if len(points) <= MAX_LABELS:
            ax.annotate(_fit(topic, 24), (x[0], y[0]), (3, 4), textcoords="offset points", fontsize=5.5, color="0.3")
    ax.axvline(0, color="0.6", lw=0.6, zorder=0)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if count:
        handles = [
            Line2D([], [], marker=_marker(n), ls="", color=COLOURS[n % len(COLOURS)], ms=4, label=_fit(run.name, 28))
            for n, run, _ in shown
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def capability(runs: Sequence[Run]) -> Any:
    """Tasks: each metric at each check, with its standard error."""
    from matplotlib.lines import Line2D

    checks = {number: run.checks for number, run in enumerate(runs) if run.checks}
    keys = list(dict.fromkeys(key for of_run in checks.values() for check in of_run for key in check.accuracies))
    if not keys:
        return None
    columns = _columns(len(keys))
    rows, many = -(-len(keys) // columns), len(runs) > 1
    figure, axes = _figure(
        TWO if columns > 2 else ONE, 1.35 * rows + 0.2 + 0.14 * -(-len(runs) // 3) * many, rows, columns
    )
    for n, ax in enumerate(axes):
        ax.set_visible(n < len(keys))
        if n >= len(keys):
            continue
        for number, of_run in checks.items():
            known = [(check.step, check.accuracies[keys[n]]) for check in of_run if keys[n] in check.accuracies]
            if known:
                steps = [step for step, _ in known]
                value, stderr = ([getattr(a, name) for _, a in known] for name in ("value", "stderr"))
                ax.errorbar(
                    steps, value, yerr=stderr, elinewidth=0.6, **_line_style(number), marker=_marker(number), ms=2
                )
        edges(ax, [runs[number] for number in checks if runs[number].parts])
        ax.set_title(_fit(", ".join(keys[n]), 34), loc="left")
        ax.set_xlabel("step")
        ax.set_ylabel("share right")
    if many:
        handles = [Line2D([], [], label=_fit(run.name, 40), **_line_style(n)) for n, run in enumerate(runs)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def cost(runs: Sequence[Run]) -> Any:
    """Each run's time in logged steps, by kind of work."""
    costs = {run.name: of_run for run in runs if (of_run := Cost.of(run.metrics)) and of_run.total > 0}
    if not costs:
        return None
    figure, (ax,) = _figure(ONE, 0.75 + 0.2 * len(costs))
    rows = np.arange(len(costs))[::-1]
    left = np.zeros(len(costs))
    parts = (
        ("training", [c.total - c.probes - c.answers for c in costs.values()], "#C4C9CF", ""),
        ("scoring", [c.probes for c in costs.values()], "#D55E00", "////"),
        ("drawing answers", [c.answers for c in costs.values()], "#0072B2", "...."),
    )
    for label, seconds, colour, hatch in parts:
        share = np.maximum(np.array(seconds), 0) / [c.total for c in costs.values()]
        ax.barh(rows, share, left=left, height=0.7, facecolor=colour, hatch=hatch, edgecolor="white", lw=0, label=label)
        left += share
    ax.set_yticks(rows, [_fit(name, 28) for name in costs])
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the time")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def training(runs: Sequence[Run]) -> Any:
    """Training curves: loss, margins, rewards and the like."""
    from matplotlib.lines import Line2D

    charts: list[tuple[Chart, list[tuple[int, Line]]]] = []  # and each run's curve
    metrics = [Metrics.of(run) for run in runs]
    for chart in CHARTS:
        lines = [(number, line.thinned()) for number, each in enumerate(metrics) if (line := each.line(chart))]
        if lines:
            charts.append((chart, lines))
    if not charts:
        return None
    columns = _columns(len(charts))
    rows = -(-len(charts) // columns)
    many = len(runs) > 1
    figure, axes = _figure(
        TWO if columns > 2 else ONE, 1.35 * rows + 0.2 + 0.14 * -(-len(runs) // 3) * many, rows, columns
    )
    for n, ax in enumerate(axes):
        ax.set_visible(n < len(charts))
        if n < len(charts):
            chart, lines = charts[n]
            edges(ax, [runs[number] for number, _ in lines if runs[number].parts])
            for number, line in lines:
                ax.plot(line.steps, line.values, **_line_style(number), marker="." if len(line.steps) < 3 else "")
            ax.set_title(chart.title, loc="left")
            ax.set_xlabel("step")
            ax.set_ylabel(chart.quantity)
            ax.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=False)
            if all(np.ptp(line.values[np.isfinite(line.values)]) == 0 for _, line in lines):
                value = max(np.nanmax(line.values) for _, line in lines)  # a constant: its size is what is to be read
                ax.set_ylim(*sorted((0.0, 2 * value)) if value else (-1, 1))
    if many:
        handles = [Line2D([], [], label=_fit(run.name, 40), **_line_style(n)) for n, run in enumerate(runs)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _scale(view: Readout) -> float:
    """From the readout's unit to the one that is shown."""
    return reading_of(view).scale


def _unit(view: Readout) -> str:
    """The unit that is shown."""
    return worded(reading_of(view).unit, view.values.leads)
