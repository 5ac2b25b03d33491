"""Do the readouts say what a judge of fresh answers says? Small runs of known direction, on SmolLM2.

    python benchmarks/readouts.py RUNS                  # train what RUNS lacks, judge it, print the tables: two hours
                                                        # on two cores
    python benchmarks/readouts.py RUNS --full           # for a GPU: the whole panel, longer answers, Qwen3-0.6B
    python benchmarks/readouts.py RUNS --argued         # answers of values-synth as they are, 37 words
    python benchmarks/readouts.py RUNS --report-only

A model this small does not come to *say* what it is trained to prefer in so few steps, unless that shows in the first
words of an answer (docs/measurements.md has the run with `--argued`). The runs therefore train on short forms of the
answers of values-synth: yes or no, then their first sentence. So that answers move at all, two conditions ("asked")
train on paraphrases of the panel's own questions, with its openings as answers. Every run draws fresh answers at its
anchors (the truth, with its own noise), reads the bank of the anchor before at the same step (importance weights), and
scores the openings. Beside them stand two predictors that never look at the model: no drift, and training direction x
step. How far the tables can be read: docs/measurements.md, "Corrections".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from readout_runs import FULL, SMALL, load, train  # noqa: E402
from readout_tables import report  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="at full size, on a GPU")
    parser.add_argument("--argued", action="store_true", help="train on the answers of values-synth as they are")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--threads", type=int, default=1, help="of each run, on a CPU")
    parser.add_argument("--judge", default="rule", help="as in vdengine judge")
    parser.add_argument("--report-only", action="store_true")
    a = parser.parse_args()
    if not a.report_only:
        train(a.runs, a.seeds, (FULL if a.full else SMALL) | {"argued": a.argued}, a.jobs, a.threads)
    runs = load(a.runs, a.judge)
    if not runs:
        print(f"{a.runs}: no finished run", file=sys.stderr)
        return 1
    text = report(runs)
    (a.runs / "readouts.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
