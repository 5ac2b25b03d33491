"""Draw the stance shift of finished runs: `python benchmarks/plot_drift.py LABEL=RUN_FOLDER ... -o docs/drift.svg`."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt

from vdengine.drift.analysis import analyse
from vdengine.drift.opening_log import DriftLog
from vdengine.drift.probe_values import opening_values

COLOURS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73")  # Okabe-Ito: told apart by colour-blind readers
MARKERS = ("o", "s", "^", "D")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER")
    parser.add_argument("-o", "--out", required=True)
    args = parser.parse_args()
    runs = {label: DriftLog.open(folder) for label, folder in (run.split("=", 1) for run in args.runs)}
    topics = ["all", *dict.fromkeys(row["topic"] for log in runs.values() for row in log.table)]
    axes = {row["topic"]: row["axis"] for log in runs.values() for row in log.table}

    plt.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "vdengine", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, panels = plt.subplots(1, len(topics), figsize=(3.1 * len(topics), 3.3), sharey=True, layout="constrained")
    for panel, topic in zip(panels, topics, strict=True):
        for (label, log), colour, marker in zip(runs.items(), COLOURS, MARKERS, strict=False):
            c = analyse(opening_values(log)).curves[topic, "stance"]
            panel.fill_between(c.steps, 100 * c.low, 100 * c.high, color=colour, alpha=0.15, lw=0)
            panel.plot(c.steps, 100 * c.mean, color=colour, marker=marker, ms=3.5, label=label)
        panel.axhline(0, color="black", lw=0.6)
        panel.set_title("all topics" if topic == "all" else f"{topic}\n", fontsize=10)
        if topic != "all":
            panel.text(
                0.5, 1.02, f"up: {axes[topic]}", transform=panel.transAxes, ha="center", fontsize=6.5, color="#444"
            )
        panel.set_xlabel("optimizer steps")
    panels[0].set_ylabel("stance log-odds shift\n(nats per 100 bytes)")
    panels[0].legend(frameon=False, fontsize=8, title="preferred answers", title_fontsize=8)
    figure.savefig(args.out, metadata={"Date": None} if args.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
