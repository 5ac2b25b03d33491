"""`python -m vdengine.prior SOURCE --model MODEL`: the stances of an SFT file, and how much of it is on a topic."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

from vdengine.drift.audit import ALL
from vdengine.gap import footing, heading, interval, number, run


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    return run("prior", "The stances of an SFT file's answers by topic, and its share of rows on any.", show, argv)


def show(result: dict[str, Any]) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
