"""Whether the readouts agree with a judge of fresh answers: small runs of known direction, with SmolLM2.

    python benchmarks/readouts.py RUNS                  # train the runs that RUNS lacks, judge them, print the tables:
                                                        # two hours on two cores
    python benchmarks/readouts.py RUNS --full           # on a GPU: the whole panel, longer answers, Qwen3-0.6B
    python benchmarks/readouts.py RUNS --argued         # train on the answers of values-synth as they are, 37 words
    python benchmarks/readouts.py RUNS --report-only

In so few steps a small model does not learn to *say* what it is trained to prefer, unless that shows in the first words
of an answer (docs/measurements.md has the runs with `--argued`). So the runs train on short forms of the answers of
values-synth: yes or no, then their first sentence. Two conditions ("asked") train on paraphrases of the panel's own
questions, with its openings as answers, so that answers move at all. Every run draws fresh answers at its anchors (the
truth, with sampling noise), reads the bank of the anchor before at the same step (importance weights), and scores the
openings. The readouts are compared with two predictors that do not use the model: no drift, and training direction x
step. For the limits of the tables see docs/measurements.md, "Corrections".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from readout_runs import FULL, SMALL, load, train  # noqa: E402
from readout_tables import report  # noqa: E402


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="at full size, on a GPU")
    parser.add_argument("--argued", action="store_true", help="train on the answers of values-synth as they are")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run, on a CPU")
    parser.add_argument("--judge", default="rule", help="as in vdengine judge")
    parser.add_argument("--report-only", action="store_true")
    args = parser.parse_args()
    if not args.report_only:
        train(args.runs, args.seeds, (FULL if args.full else SMALL) | {"argued": args.argued}, args.jobs, args.threads)
    runs = load(args.runs, args.judge)
    if not runs:
        print(f"{args.runs}: no finished run", file=sys.stderr)
        return 1
    text = report(runs)
    (args.runs / "readouts.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
