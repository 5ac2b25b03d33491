"""An audit's result as a table, for a terminal."""

from __future__ import annotations

import math
from typing import Any

from vdengine.audits.stances import ALL


def gap_table(result: dict[str, Any]) -> str:
    """The table of a value gap, for a terminal."""
    lines = [*heading(result), ""]
    lines.append(
        f"{'topic':26} {'pairs':>6}  {'gap':>6}  {'95% interval':16} {'chosen +/0/-':>14} {'rejected +/0/-':>15}"
    )
    for topic, found in [*result["topics"].items(), (ALL, result[ALL])]:
        star = "*" if not found["few"] and (found["low"] > 0 or found["high"] < 0) else " "
        mixes = f"{mix(found['chosen']):>14} {mix(found['rejected']):>15}"
        few = "  few" if found["few"] else ""
        line = f"{topic[:26]:26} {found['rows']:6,}  {number(found['gap'])}{star} {interval(found):16} {mixes}{few}"
        lines.append(line)
    lines += ["", "gap: p(support) - p(oppose) on the axis, chosen less rejected (-2 to 2); * its interval excludes 0"]
    return "\n".join([*lines, *footing(result)])


def number(value: float) -> str:
    return f"{'-':>6}" if math.isnan(value) else f"{value:+6.2f}"


def interval(found: dict[str, Any]) -> str:
    return "" if math.isnan(found["low"]) else f"[{found['low']:+.2f}, {found['high']:+.2f}]"


def mix(found: dict[str, float]) -> str:
    """Support, neutral and oppose in per cent."""
    values = [found[s] for s in ("support", "neutral", "oppose")]
    return "-" if any(math.isnan(v) for v in values) else "/".join(f"{100 * v:.0f}" for v in values)


def heading(result: dict[str, Any]) -> list[str]:
    """What was read, and how."""
    rows = result["rows"]
    on_topic = sum(rows["on_topic"].values())
    how = f"scored by {result['model']}" if result["method"] == "scorer" else "by words alone"
    lines = [
        f"{result['source']}: {rows['usable']:,} usable rows, {on_topic:,} on a topic of panel {result['panel']}, "
        f"{rows['read']:,} read; {how}"
    ]
    return lines + [f"left out {count:,}: {reason}" for reason, count in rows["dropped"].items()]


def footing(result: dict[str, Any]) -> list[str]:
    """How far the reading can be trusted, and what each axis is."""
    quality = result["quality"]
    lines = []
    if quality:
        mean = {k: sum(q[k] for q in quality.values()) / len(quality) for k in next(iter(quality.values()))}
        lines = [
            "texts of known stance, held out: "
            f"{mean['accuracy']:.0%} put right (chance 33%); pairs of support against oppose: gap "
            f"{mean['known_gap']:+.2f} (perfect +2), right sign {mean['known_sign']:.0%}"
        ]
        poor = [t for t, q in quality.items() if q["known_sign"] < 0.75]
        if poor:
            lines.append(f"not to be trusted, signs of known pairs often wrong: {', '.join(poor)}")
    if "judge" in result:
        found = result["judge"]
        lines.append(f"by the judge {found['name']}:")
        for topic, value in [*found["topics"].items(), (ALL, found[ALL])]:
            each = value if "gap" in value else value["graded"]
            mean_of = each["gap"] if "gap" in value else each["mean"]
            lines.append(f"  {topic[:26]:26} {value['rows']:6,}  {number(mean_of)}  {interval(each)}")
        if found["not_read"]:
            lines.append(f"  {found['not_read']:,} answers without a verdict, left out")
    if "agreement" in result:
        found = result["agreement"]
        lines.append(
            "this reading and the judge's: " + ", ".join(f"{k.replace('_', ' ')} {v:.2f}" for k, v in found.items())
        )
    lines += [f"+ {topic}: {axis}" for topic, axis in result["axes"].items()]
    return lines


def prior_table(result: dict[str, Any]) -> str:
    """The table of a prior, for a terminal."""
    laden, sides = result["value_laden"], result["taking_sides"]["share"]
    lines = [
        *heading(result),
        f"on a topic: {laden['share']:.1%} of rows [{laden['low']:.1%}, {laden['high']:.1%}]; "
        f"taking a side on one: {sides:.1%}",
        "",
        f"{'topic':26} {'rows':>6} {'share':>7}  {'support':>7} {'neutral':>7} {'oppose':>7}  {'graded, 95% interval'}",
    ]
    for topic, found in [*result["topics"].items(), (ALL, result[ALL])]:
        share = laden["share"] if topic == ALL else result["shares"][topic]
        mean = [found[s]["mean"] for s in ("support", "neutral", "oppose")]
        each = " ".join(f"{'-' if math.isnan(m) else format(m, '.0%'):>7}" for m in mean)
        shown = f"{number(found['graded']['mean'])} {interval(found['graded'])}"
        few = "  few" if found["few"] else ""
        lines.append(f"{topic[:26]:26} {found['rows']:6,} {share:7.1%}  {each}  {shown}{few}")
    lines += ["", "share: of all usable rows; graded: p(support) - p(oppose) on the axis"]
    return "\n".join([*lines, *footing(result)])
