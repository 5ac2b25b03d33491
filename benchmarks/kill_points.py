"""Runs killed with SIGKILL at many points, resumed, and compared with one that was not: `python
benchmarks/kill_points.py --points 1000 --seed 0`.

SFT, DPO with a cached reference, PPO, and DPO with answers, on one rank and on two, of a tiny model: see
`tests/helpers/kills.py` for what a point is, `tests/helpers/kill_server.py` for the runs. Of each the run folder and
the data cache are compared, bit by bit but for clocks: checkpoints, export, metrics, drift, answers, completions,
reference. `--replay NAME` runs one point again, by the name that the table of failures gives; its folder is kept. The
exit status is 1 where anything differs. Linux only; two cores run two points side by side.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from helpers.kills import KINDS, Outcome, Point, Servers, draw, draw_full  # noqa: E402
from results import Results, Table, table_row  # noqa: E402


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kill_points.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("--points", type=int, default=1000, help="in all, dealt evenly to the kinds of runs")
    parser.add_argument("--full", type=int, default=0, help="and so many where the disk is full from a write on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=KINDS, action="append", help="this kind (several times: these)")
    parser.add_argument("--ranks", type=int, choices=(1, 2), action="append", help="default: both")
    parser.add_argument("--replay", metavar="NAME", action="append", help="this point instead")
    parser.add_argument("--servers", type=int, default=2, help="points side by side")
    parser.add_argument("--append", metavar="BASE", help="append the table to BASE.jsonl and BASE.md")
    args = parser.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="kill-points-"))
    started = time.perf_counter()
    with Servers(work, args.servers) as servers:
        replayed = [Point.parse(name) for name in args.replay or []]
        runs = sorted({(p.kind, p.ranks) for p in replayed}) or list(
            itertools.product(args.only or KINDS, args.ranks or (1, 2))
        )
        known = servers.baselines(runs)
        for (kind, ranks), baseline in known.items():
            counts = " and ".join(str(len(of_rank)) for of_rank in baseline["operations"])
            say(f"{kind}, {plural(ranks, 'rank')}: {baseline['seconds']:.1f} s, {counts} operations")
        points = replayed or [
            point
            for total, drawn in ((args.points, draw), (args.full, draw_full))
            for i, run in enumerate(runs)
            for point in drawn(*run, len(range(i, total, len(runs))), args.seed, known[run]["operations"])
        ]
        outcomes = list(watched(servers.points(points), len(points)))
    table(outcomes, time.perf_counter() - started, Results(Path(args.append)) if args.append else None)
    failed = [outcome for outcome in outcomes if outcome.problems]
    for outcome in failed:
        say(f"\n{outcome.point}\n  hit: {', '.join(outcome.phases)}; kept in {outcome.kept}")
        say("".join(f"  {problem}\n" for problem in outcome.problems))
    say(f"{plural(len(failed), 'failure')}; folders are in {work}" if failed else "No failures.")
    if not failed:
        shutil.rmtree(work)
    return 1 if failed else 0


def watched(outcomes: Iterator[Outcome], count: int) -> Iterator[Outcome]:
    """The outcomes, with a line for every failure as it comes, and one every 50."""
    for number, outcome in enumerate(outcomes, start=1):
        if outcome.problems:
            say(f"{number}/{count} {outcome.point}: {outcome.problems[0]}")
        elif number % 50 == 0:
            say(f"{number}/{count}")
        yield outcome


def table(outcomes: Sequence[Outcome], seconds: float, results: Results | None) -> None:
    """Print, and append to `results`: a row for each kind and number of ranks, and the phases that were hit."""
    by_run: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        point = Point.parse(outcome.point)
        by_run.setdefault((point.kind, point.ranks), []).append(outcome)
    summary = Table("Runs killed and resumed", results)
    for (kind, ranks), found in by_run.items():
        survived = [o.survivor_seconds for o in found if o.survivor_seconds is not None]
        summary.row(
            {
                "run": kind,
                "ranks": ranks,
                "points": len(found),
                "resumes": sum(o.resumes for o in found),
                "failures": sum(bool(o.problems) for o in found),
                "seconds of a point": sum(o.seconds for o in found) / len(found),
                "one rank lost: points": len(survived),
                "slowest other (s)": max(survived, default=0.0),
            }
        )
    hit = Table("Where the kills hit", results)
    for name, count in collections.Counter(p for o in outcomes for p in o.phases).most_common():
        hit.row({"phase": name, "kills": count})
    lost = [o.survivor_seconds for o in outcomes if o.survivor_seconds is not None]
    if lost:
        summary.target("seconds until the other rank has ended, at most", max(lost), "<=", 15)
    summary.note(f"{len(outcomes)} points in {seconds:.0f} s, {seconds / max(1, len(outcomes)):.2f} s a point")
    for each in (summary, hit):
        say(f"\n{each.title}\n")
        rows = [[str(round(v, 2) if isinstance(v, float) else v) for v in row.values()] for row in each.rows]
        for cells in [list(each.rows[0]), ["---"] * len(each.rows[0]), *rows] if each.rows else []:
            say(table_row(cells))
        for note in each.notes:
            say(note)
        for name, target in each.targets.items():
            say(f"{name}: {target['measured']:.1f} (target {target['limit']})")


def plural(count: int, word: str) -> str:
    return f"{count} {word}" + "s" * (count != 1)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
