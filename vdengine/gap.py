"""`python -m vdengine.gap SOURCE --model MODEL`: the value gap of a preference file, before it is trained on."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vdengine.drift.audit import ALL, Audit, Settings, audit
from vdengine.drift.topics import load_terms
from vdengine.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 after bad input, with one line on stderr that says what and where."""
    return run("gap", "How far chosen answers take another side than rejected ones, by topic.", show_gap, argv)


def run(kind: str, description: str, show: Any, argv: Sequence[str] | None) -> int:
    """What `gap` and `prior` have in common: arguments, the audit, its table and its files."""
    default = Settings("")
    parser = argparse.ArgumentParser(prog=f"vdengine {kind}", description=description)
    parser.add_argument("source", help="a file, folder, hub data set or built-in set, as in a recipe's data.train")
    parser.add_argument(
        "--model",
        help="read stances by this model's scores too (folder, hub id, .gguf); else by words alone: a first look",
    )
    parser.add_argument("--judge", help="also by this judge, as in `vdengine judge`")
    parser.add_argument("--panel", default=default.panel, help="topics, axes and openings (default: %(default)s)")
    parser.add_argument("--format", default=default.format, help="of the source, as in a recipe's data.format")
    parser.add_argument("--topics", metavar="A,B", help="only these topics of the panel")
    parser.add_argument("--terms", metavar="FILE.json", help='more terms of topics: {"topic": ["phrase", ...]}')
    parser.add_argument(
        "--limit", type=int, default=default.limit, metavar="N", help="read N rows of a topic at most (default: 200)"
    )
    parser.add_argument(
        "--probes", type=int, default=default.probes, metavar="N", help="probes that score an answer (default: 4)"
    )
    parser.add_argument("--template", default=default.template, help="chat template (default: the tokenizer's)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default=default.dtype)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--out", metavar="FILE.json", help=f"write the result (a report reads it as {kind}.json)")
    parser.add_argument("--rows", metavar="FILE.jsonl", help="write each row that was read, with its topic and stances")
    args = parser.parse_args(argv)
    try:
        for name in (args.out, args.rows):
            if name and Path(name).exists():
                raise InputError(f"{name}: exists already; give another name")
            if name and not Path(name).parent.is_dir():
                raise InputError(f"{name}: cannot be written (no such folder)")
        topics = tuple(t.strip() for t in args.topics.split(",") if t.strip()) if args.topics else None
        found = audit(
            kind,
            Settings(
                args.source, panel=args.panel, model=args.model, judge=args.judge, format=args.format, topics=topics,
                terms=load_terms(args.terms) if args.terms else {}, limit=args.limit, probes=args.probes,
                template=args.template, dtype=args.dtype, seed=args.seed, progress=sys.stderr.isatty(),
            ),
        )  # fmt: skip
        print(show(found.result))
        write(found, args.out, args.rows)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


def write(found: Audit, out: str | None, rows: str | None) -> None:
    """The result as JSON and the rows as JSONL, where asked for."""
    for name, text in (
        (out, json.dumps(_plain(found.result), indent=2, ensure_ascii=False, allow_nan=False) + "\n"),
        (rows, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in found.rows)),
    ):
        if name:
            try:
                Path(name).write_text(text, encoding="utf-8")
            except OSError as error:
                raise InputError(f"{name}: cannot be written ({error.strerror})") from None
            print(f"wrote {name}")


def _plain(value: Any) -> Any:
    """Without NaN, which is no JSON: null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ----------------------------------------------------------------------------------------------------- tables


def show_gap(result: dict[str, Any]) -> str:
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


if __name__ == "__main__":
    sys.exit(main())
