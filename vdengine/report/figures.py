"""Figures for print: PNG, SVG and PDF, one or two columns wide, with fonts in the file."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift import frames
from vdengine.drift.analysis import Curve
from vdengine.drift.run import ANSWERS, OPENINGS, Readout, Run, judges_of, key_of
from vdengine.report.gaps import Gap
from vdengine.report.page import CURVES, PER

ONE, TWO = 3.35, 6.9  # inches: a column, and a page of two
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", ":")
MARKERS = ("o", "s", "D", "^", "P", "X")
STANCES = {"support": "#0072B2", "neutral": "#C4C9CF", "oppose": "#D55E00"}
MAX_MIXES = 3  # runs that get their own figure of stance mixes
MAX_LABELS = 12  # points of a scatter that are named in it
Pair = tuple[int, Run, Readout]

STYLE: Any = {
    "font.size": 7, "axes.titlesize": 7.5, "axes.labelsize": 7, "xtick.labelsize": 6.5, "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5, "font.family": "sans-serif", "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path",
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "lines.linewidth": 1.1,
    "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False, "svg.hashsalt": "vdengine",
    "axes.unicode_minus": True, "hatch.linewidth": 0.4, "legend.frameon": False,
}  # fmt: skip


def draw(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], folder: Path) -> None:
    """Write every figure that there is something for, of openings and of answers as the first judge reads them; those
    of an earlier report are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("png", "svg", "pdf"):
        for old in folder.glob(f"*.{ending}"):
            old.unlink()
    keys = [OPENINGS, *(key_of(ANSWERS, judge) for judge in judges_of(runs)[:1])]
    with _style():
        for key in keys:
            name = key.replace(":", "-")
            shown = [(i, run, run.views[key]) for i, run in enumerate(runs) if key in run.views]
            if not shown:
                continue
            _save(shifts(shown, topics), folder / f"shift-{name}")
            _save(magnitudes(shown, topics), folder / f"magnitude-{name}")
            _save(times(shown, topics), folder / f"drift-time-{name}")
            _save(gap_against_drift(shown, gaps, topics), folder / f"gap-{name}")
            if shown[0][2].kind == "answers":
                for i, run, view in shown[:MAX_MIXES]:
                    ending = f"-{i + 1}" if len(runs) > 1 else ""
                    _save(mix(run, view, topics), folder / f"mix-{name}{ending}")
        _save(cost(runs), folder / "cost")
        _save(training(runs), folder / "training")


@contextmanager
def _style() -> Iterator[None]:
    from matplotlib import rc_context

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of scripts that the font lacks
        yield


def _save(figure: Any, path: Path) -> None:
    if figure is None:
        return
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not once a format
    for ending, meta in (("png", {}), ("svg", {"Date": None}), ("pdf", {"CreationDate": None})):
        figure.savefig(f"{path}.{ending}", dpi=300, metadata=meta)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **more: Any) -> tuple[Any, np.ndarray]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more).ravel()


def _look(i: int) -> dict[str, Any]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def _marker(i: int) -> str:
    return MARKERS[(i + i // len(COLOURS)) % len(MARKERS)]


def _multiples(
    topics: Sequence[str], each: Callable[[Any, str], None], label: str, legend: list[Any] | None, **more: Any
) -> Any:
    """Small multiples over topics, "all" first."""
    names = ["all", *topics]
    columns = _columns(len(names))
    rows = -(-len(names) // columns)
    per_row = min(3, len(legend)) if legend else 1
    height = 1.35 * rows + 0.2 + (0.14 * -(-len(legend) // per_row) + 0.1 if legend else 0)
    figure, axes = _figure(TWO if columns > 2 else ONE, height, rows, columns, sharex=True, **more)
    for n, ax in enumerate(axes):
        if n >= len(names):
            ax.set_visible(False)
            continue
        each(ax, names[n])
        ax.set_title(_fit("all topics" if names[n] == "all" else names[n], 34), loc="left")
        if n + columns >= len(names):
            ax.set_xlabel("step")
            ax.tick_params(labelbottom=True)
    figure.supylabel(label, fontsize=7)
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=per_row)
    return figure


def _columns(count: int) -> int:
    """Of small multiples: few empty places in the last row."""
    return count if count <= 4 else min((4, 3), key=lambda c: -count % c)


def _fit(text: str, width: int) -> str:
    """On one line, and not longer than there is room for."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 3] + "..."


def shifts(shown: Sequence[Pair], topics: Sequence[str]) -> Any:
    """Shift curves of all runs, a panel a topic."""
    from matplotlib.lines import Line2D

    def each(ax: Any, topic: str) -> None:
        ax.axhline(0, color="0.5", linewidth=0.6)
        for i, _, view in shown:
            if curve := view.analysis.curves.get((topic, view.analysis.values.primary)):
                scale = _scale(view)
                ax.plot(curve.steps, curve.mean * scale, **_look(i))
                if len(shown) <= 4:
                    ax.fill_between(
                        curve.steps, curve.low * scale, curve.high * scale, color=_look(i)["color"], alpha=0.18, lw=0
                    )
                _anchors(ax, view, curve, scale, i, bars=len(shown) <= 4)

    legend = [Line2D([], [], label=_fit(run.name, 40), **_look(i)) for i, run, _ in shown] if len(shown) > 1 else None
    return _multiples(topics, each, _unit(shown[0][2]), legend, sharey=True)


def _anchors(ax: Any, view: Readout, curve: Curve, scale: float, i: int, *, bars: bool) -> None:
    """Fresh answers; one that stands alone has no band that its interval could be read from."""
    kinds = view.analysis.values.kinds
    if kinds is not None:
        at = np.flatnonzero((kinds == "anchor") & np.isfinite(curve.mean))
        mean, low, high = (x[at] * scale for x in (curve.mean, curve.low, curve.high))
        error = np.nan_to_num([mean - low, high - mean]).clip(0) if bars else None
        ax.errorbar(curve.steps[at], mean, error, fmt=_marker(i), color=_look(i)["color"], ms=3, elinewidth=0.6)


def mix(run: Run, view: Readout, topics: Sequence[str]) -> Any:
    """Shares of answers that support, stay neutral or oppose; where nothing is drawn the weights do not reach."""
    from matplotlib.patches import Patch

    r = view.analysis.values

    def each(ax: Any, topic: str) -> None:
        if (topic, "support") not in view.analysis.levels:
            return
        s, o = (view.analysis.levels[topic, name] for name in ("support", "oppose"))
        top = 1 - o.mean
        ax.fill_between(s.steps, 0, s.mean, color=STANCES["support"], lw=0)
        ax.fill_between(s.steps, s.mean, top, color=STANCES["neutral"], lw=0)
        ax.fill_between(s.steps, top, 1, facecolor=STANCES["oppose"], hatch="////", edgecolor="white", lw=0)
        for low, high in ((s.low, s.high), (1 - o.high, 1 - o.low)):
            ax.fill_between(s.steps, low, high, color="black", alpha=0.25, lw=0)
        at = np.flatnonzero((r.kinds == "anchor") & np.isfinite(s.mean))
        for mean, low, high in ((s.mean, s.low, s.high), (top, 1 - o.high, 1 - o.low)):
            error = np.nan_to_num([mean[at] - low[at], high[at] - mean[at]]).clip(0)
            ax.errorbar(
                s.steps[at], mean[at], error, fmt="o", color="black", mfc="white", ms=3, mew=0.7, elinewidth=0.7
            )
        ax.set_ylim(0, 1)
        ax.set_xlim(s.steps[0], s.steps[-1])

    legend = [Patch(facecolor=STANCES[name], label=name) for name in ("support", "neutral")]
    legend.append(Patch(facecolor=STANCES["oppose"], hatch="////", edgecolor="white", label="oppose"))
    return _multiples(topics, each, f"share of answers, {_fit(run.name, 30)}", legend, sharey=True)


def magnitudes(shown: Sequence[Pair], topics: Sequence[str]) -> Any:
    """Signed magnitudes: topics by runs, or by channels for one run."""
    names = [*topics, "all"]
    first = shown[0][2].analysis.values
    columns = [(_fit(run.name, 22), view, view.analysis.values.primary) for _, run, view in shown]
    if len(shown) == 1:
        channels = [first.primary, *(c for c in first.channels if c != first.primary)]
        columns = [(c.replace("_", "-"), shown[0][2], c) for c in channels]
    found = [[view.analysis.drifts.get((t, channel)) for _, view, channel in columns] for t in names]
    value = np.array(
        [[np.nan if d is None else d.magnitude.mean * _scale(columns[0][1]) for d in row] for row in found]
    )
    width = TWO if len(columns) > 5 else ONE
    figure, (ax,) = _figure(width, 0.62 + 0.21 * len(names) + (0.5 if len(shown) > 1 else 0.25))
    largest = np.nanmax(np.abs(value)) if np.isfinite(value).any() else 1.0
    image = ax.imshow(value, cmap=_diverging(), vmin=-largest, vmax=largest, aspect="auto")
    for y, row in enumerate(found):
        for x, d in enumerate(row):
            if d is not None and np.isfinite(value[y, x]):
                mark = "*" if d.significant else ""
                text = f"{value[y, x]:+.2f}{mark}"
                weight = "bold" if d.significant else "normal"
                light = abs(value[y, x]) > 0.75 * largest
                ax.text(x, y, text, ha="center", va="center", fontsize=5.5, weight=weight, color="w" if light else "k")
    ax.set_xticks(range(len(columns)), [c[0] for c in columns], rotation=35 if len(shown) > 1 else 20, ha="right")
    ax.set_yticks(range(len(names)), ["all topics" if t == "all" else _fit(t, 24) for t in names])
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    figure.colorbar(image, ax=ax, shrink=0.8, pad=0.02).set_label(_unit(shown[0][2]) + "\n(* significant)", fontsize=6)
    return figure


def _diverging() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("vd", ["#B04A00", "#F0A868", "#F7F7F7", "#6BAED6", "#00558A"])


def times(shown: Sequence[Pair], topics: Sequence[str]) -> Any:
    """Drift time (ci95) against magnitude, of topics that moved."""
    points = []
    for i, _, view in shown:
        for topic in topics:
            d = view.analysis.drifts.get((topic, view.analysis.values.primary))
            if d is not None and (t := d.times["ci95"]).fraction is not None:
                m, scale = d.magnitude, _scale(view)
                points.append((i, topic, np.array([m.mean, m.low, m.high]) * scale, (t.fraction, t.low, t.high)))
    if not points:
        return None
    figure = _scatter(points, shown, f"shift ({_unit(shown[0][2])})", "drift time, share of the run", set())
    figure.axes[0].set_ylim(-0.03, 1.05)
    return figure


def gap_against_drift(shown: Sequence[Pair], gaps: Sequence[Gap], topics: Sequence[str]) -> Any:
    """The data's value gap against the drift of the run trained on it."""
    points: list[Any] = []
    weak = set()
    for gap in gaps:
        for i, run, view in shown:
            for topic in topics if run is gap.run else ():
                d, entry = view.analysis.drifts.get((topic, view.analysis.values.primary)), gap.topics.get(topic)
                if d is not None and entry is not None and np.isfinite([entry["gap"], d.magnitude.mean]).all():
                    m = d.magnitude
                    if not d.significant:
                        weak.add(len(points))
                    drift = np.array([m.mean, m.low, m.high]) * _scale(view)
                    points.append((i, topic, tuple(entry[k] for k in ("gap", "low", "high")), drift))
    if not points:
        return None
    figure = _scatter(points, shown, "value gap of the data", f"shift ({_unit(shown[0][2])})", weak)
    figure.axes[0].axhline(0, color="0.6", lw=0.6, zorder=0)
    return figure


def _scatter(points: list[Any], shown: Sequence[Pair], x_label: str, y_label: str, hollow: set[int]) -> Any:
    from matplotlib.lines import Line2D

    count = len(shown) if len(shown) > 1 else 0
    figure, (ax,) = _figure(ONE, 2.6 + 0.14 * -(-count // 2))
    for n, (i, topic, x, y) in enumerate(points):
        colour = COLOURS[i % len(COLOURS)]
        x_error, y_error = (np.nan_to_num([[v[0] - v[1]], [v[2] - v[0]]]).clip(0) for v in (x, y))
        ax.errorbar(
            x[0], y[0], y_error, x_error, fmt=_marker(i), color=colour, ms=4, elinewidth=0.6,
            mfc="white" if n in hollow else colour,
        )  # fmt: skip
        if len(points) <= MAX_LABELS:
            ax.annotate(_fit(topic, 24), (x[0], y[0]), (3, 4), textcoords="offset points", fontsize=5.5, color="0.3")
    ax.axvline(0, color="0.6", lw=0.6, zorder=0)
    ax.set_xlabel(x_label)
    ax.set_ylabel(y_label)
    if count:
        handles = [
            Line2D([], [], marker=_marker(i), ls="", color=COLOURS[i % len(COLOURS)], ms=4, label=_fit(run.name, 28))
            for i, run, _ in shown
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def cost(runs: Sequence[Run]) -> Any:
    """Shares of the time of logged steps."""
    found = [(run.name, c) for run in runs if (c := frames.Cost.of(run.metrics)) and c.total > 0]
    if not found:
        return None
    figure, (ax,) = _figure(ONE, 0.75 + 0.2 * len(found))
    at = np.arange(len(found))[::-1]
    left = np.zeros(len(found))
    parts = (
        ("training", [c.total - c.probes - c.answers for _, c in found], "#C4C9CF", ""),
        ("scoring", [c.probes for _, c in found], "#D55E00", "////"),
        ("drawing answers", [c.answers for _, c in found], "#0072B2", "...."),
    )
    for label, values, colour, hatch in parts:
        share = np.maximum(np.array(values), 0) / [c.total for _, c in found]
        ax.barh(at, share, left=left, height=0.7, facecolor=colour, hatch=hatch, edgecolor="white", lw=0, label=label)
        left += share
    ax.set_yticks(at, [_fit(name, 28) for name, _ in found])
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the time")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


def training(runs: Sequence[Run]) -> Any:
    """Loss and the like."""
    from matplotlib.lines import Line2D

    found: list[tuple[str, list[tuple[int, Any]]]] = []
    for names, label in CURVES:
        lines = [(i, t) for i, run in enumerate(runs) if len(t := _series(run, names))]
        if lines:
            found.append((label, lines))
    if not found:
        return None
    columns = _columns(len(found))
    rows = -(-len(found) // columns)
    many = len(runs) > 1
    figure, axes = _figure(
        TWO if columns > 2 else ONE, 1.35 * rows + 0.2 + 0.14 * -(-len(runs) // 3) * many, rows, columns
    )
    for n, ax in enumerate(axes):
        ax.set_visible(n < len(found))
        if n < len(found):
            for i, line in found[n][1]:
                ax.plot(line[:, 0], line[:, 1], **_look(i))
            ax.set_title(found[n][0], loc="left")
            ax.set_xlabel("step")
    if many:
        handles = [Line2D([], [], label=_fit(run.name, 40), **_look(i)) for i, run in enumerate(runs)]
        figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _series(run: Run, names: Sequence[str]) -> np.ndarray:
    """[n, 2] step and value, of the first of the names that the run has."""
    for name in names:
        rows = [(row["step"], row[name]) for row in run.metrics if isinstance(row.get(name), int | float)]
        if rows:
            return np.array(rows, np.float64)
    return np.empty((0, 2))


def _scale(view: Readout) -> float:
    return PER if view.kind == "openings" else 1.0


def _unit(view: Readout) -> str:
    return "nats per 100 bytes" if view.kind == "openings" else "support - oppose"
