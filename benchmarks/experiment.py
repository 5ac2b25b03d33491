"""Whether a readout tracks what a model says: 26 runs of known doses, each readout against judged answers.

    python benchmarks/experiment.py                     # run what has no results yet, judge, print the tables: hours on
                                                        # two idle cores; stopped at any time, it goes on run by run
    python benchmarks/experiment.py --quick             # two tiny runs, in build/experiment/quick: shows that it runs
    python benchmarks/experiment.py --report-only       # the tables from the results that are there
    python benchmarks/experiment.py --judge server:...  # another judge reads the answers that were kept
    python benchmarks/experiment.py --judge readers     # readings of them (experiment_readers.py)
    python benchmarks/experiment.py --full --model M --results FOLDER    # on a GPU

The design, what is measured and what a readout needs to be believed: docs/experiment.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from experiment_data import check_overlap, controls, design  # noqa: E402
from experiment_readers import NAME, Readings  # noqa: E402
from experiment_runs import FULL, QUICK, SMALL, is_done, judge_all, judge_kappas, load, panel_of, run_all  # noqa: E402
from experiment_tables import report  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "experiment"
WORK = common.REPO / "build" / "experiment"


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="two tiny runs")
    size.add_argument("--full", action="store_true", help="at full size, on a GPU")
    parser.add_argument("--runs", type=int, help="of the design, beside three controls; default: 26")
    parser.add_argument("--answers", type=int, help="of a probe at an anchor; default: 16")
    parser.add_argument("--model", help="as model.source in a recipe")
    parser.add_argument("--dtype", help="as model.dtype in a recipe; default: bfloat16")
    parser.add_argument("--judge", default="rule", help='as in vdengine judge, or "readers" (experiment_readers.py)')
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run, on a CPU")
    parser.add_argument("--results", type=Path, help="folder of what is kept; default: benchmarks/results/experiment")
    parser.add_argument("--work", type=Path, help="folder for data, the warm start and unfinished runs")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()

    from vdengine.drift.judgements import slug_of
    from vdengine.judges import open_judge

    base = FULL if args.full else QUICK if args.quick else SMALL
    given = {name: value for name in ("answers", "model", "dtype") if (value := getattr(args, name)) is not None}
    size_of_runs = replace(base, **given)
    plans = design(args.runs or (2 if args.quick else 26)) + ([] if args.quick else controls())
    work = args.work or (WORK / "quick" if args.quick else WORK)
    results = args.results or (work / "results" if args.quick else RESULTS)
    print(check_overlap(panel_of(size_of_runs)), flush=True)
    if not args.report_only:
        run_all(plans, size_of_runs, results, work, args.jobs, args.threads)
    judge = Readings.load(results) if args.judge == NAME else open_judge(args.judge)
    judge_all(plans, size_of_runs, results, judge)
    text = report(load(plans, size_of_runs, results, judge.name), judge.name, judge_kappas(judge))
    (results / f"tables.{slug_of(judge.name)}.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if missing := [plan.name for plan in plans if not is_done(plan, size_of_runs, results)]:
        print(f"\nwithout {', '.join(missing)}: not run, or failed", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
