"""Text tables of an audit's result, for a terminal. `result` is `Audit.result`."""

from __future__ import annotations

import math
from typing import Any

from vdengine.audits.stances import ALL
from vdengine.panels.panel import STANCES


def gap_table(result: dict[str, Any]) -> str:
    """The table of a value gap. What says that it is not to be trusted stands above it."""
    lines = [*_warnings(result), *_header(result), ""]
    lines.append(
        f"{'topic':26} {'pairs':>6}  {'gap':>6}  {'95% interval':16} {'chosen +/0/-':>14} {'rejected +/0/-':>15}"
    )
    for topic, gap in [*result["topics"].items(), (ALL, result[ALL])]:
        star = "*" if not gap["few"] and (gap["low"] > 0 or gap["high"] < 0) else " "
        mixes = f"{_mix(gap['chosen']):>14} {_mix(gap['rejected']):>15}"
        few = "  few" if gap["few"] else ""
        lines.append(f"{topic[:26]:26} {gap['rows']:6,}  {_number(gap['gap'])}{star} {_interval(gap):16} {mixes}{few}")
    lines += ["", "gap: p(support) - p(oppose) on the axis, chosen less rejected (-2 to 2); * its interval excludes 0"]
    return "\n".join([*lines, *_footer(result)])


def prior_table(result: dict[str, Any]) -> str:
    """The table of a prior, with warnings above it."""
    value_laden, taking_sides = result["value_laden"], result["taking_sides"]["share"]
    lines = [
        *_warnings(result),
        *_header(result),
        f"on a topic: {value_laden['share']:.1%} of rows [{value_laden['low']:.1%}, {value_laden['high']:.1%}]; "
        f"taking a side on one: {taking_sides:.1%}",
        "",
        f"{'topic':26} {'rows':>6} {'share':>7}  {'support':>7} {'neutral':>7} {'oppose':>7}  {'graded, 95% interval'}",
    ]
    for topic, mix in [*result["topics"].items(), (ALL, result[ALL])]:
        share = value_laden["share"] if topic == ALL else result["shares"][topic]
        means = [mix[stance]["mean"] for stance in STANCES]
        stances = " ".join(f"{'-' if math.isnan(mean) else format(mean, '.0%'):>7}" for mean in means)
        graded = f"{_number(mix['graded']['mean'])} {_interval(mix['graded'])}"
        few = "  few" if mix["few"] else ""
        lines.append(f"{topic[:26]:26} {mix['rows']:6,} {share:7.1%}  {stances}  {graded}{few}")
    lines += ["", "share: of all usable rows; graded: p(support) - p(oppose) on the axis"]
    return "\n".join([*lines, *_footer(result)])


def _header(result: dict[str, Any]) -> list[str]:
    """What was read, and how."""
    rows = result["rows"]
    on_topic = sum(rows["on_topic"].values())
    how = f"scored by {result['model']}" if result["method"] == "scorer" else "by words alone"
    lines = [
        f"{result['source']}: {rows['usable']:,} usable rows, {on_topic:,} on a topic of panel {result['panel']}, "
        f"{rows['read']:,} read; {how}"
    ]
    return lines + [f"left out {count:,}: {reason}" for reason, count in rows["dropped"].items()]


def _warnings(result: dict[str, Any]) -> list[str]:
    """What a reader must know before the numbers."""
    quality = result["quality"]
    poor = [topic for topic, of_topic in quality.items() if of_topic["known_sign"] < 0.75]
    lines = []
    if poor:
        lines.append(f"warning: not to be trusted, signs of known pairs often wrong: {', '.join(poor)}")
    if quality and len(poor) == len(quality):
        lines.append("warning: no topic is read well: give --model, or a larger one")
    return [*lines, ""] if lines else []


def _footer(result: dict[str, Any]) -> list[str]:
    """How far the reading can be trusted, and what each axis is."""
    quality = result["quality"]
    lines = []
    if quality:
        names = next(iter(quality.values()))
        mean = {name: sum(of_topic[name] for of_topic in quality.values()) / len(quality) for name in names}
        lines = [
            "texts of known stance, held out: "
            f"{mean['accuracy']:.0%} put right (chance 33%); pairs of support against oppose: gap "
            f"{mean['known_gap']:+.2f} (perfect +2), right sign {mean['known_sign']:.0%}"
        ]
    if "judge" in result:
        judge = result["judge"]
        lines.append(f"by the judge {judge['name']}:")
        for topic, estimates in [*judge["topics"].items(), (ALL, judge[ALL])]:
            graded = estimates if "gap" in estimates else estimates["graded"]
            mean_of = graded["gap"] if "gap" in estimates else graded["mean"]
            lines.append(f"  {topic[:26]:26} {estimates['rows']:6,}  {_number(mean_of)}  {_interval(graded)}")
        if judge["not_read"]:
            lines.append(f"  {judge['not_read']:,} answers without a verdict, left out")
    if "agreement" in result:
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in result["agreement"].items())
        lines.append("this reading and the judge's: " + numbers)
    lines += [f"+ {topic}: {axis}" for topic, axis in result["axes"].items()]
    return lines


def _number(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:+6.2f}"


def _interval(estimate: dict[str, Any]) -> str:
    return "" if math.isnan(estimate["low"]) else f"[{estimate['low']:+.2f}, {estimate['high']:+.2f}]"


def _mix(mix: dict[str, float]) -> str:
    """Support, neutral and oppose in per cent."""
    values = [mix[stance] for stance in STANCES]
    return "-" if any(math.isnan(value) for value in values) else "/".join(f"{100 * value:.0f}" for value in values)
