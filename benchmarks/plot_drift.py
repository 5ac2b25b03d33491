"""Plot text likelihood of finished runs: `python benchmarks/plot_drift.py LABEL=RUN_FOLDER ... -o docs/drift.svg`."""

from __future__ import annotations

import argparse

import matplotlib.pyplot as plt

from vdengine.drift import load_run

COLOURS = ("#0072B2", "#D55E00", "#7F7F7F", "#009E73")  # Okabe-Ito, distinct for colour-blind readers
MARKERS = ("o", "s", "^", "D")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="LABEL=FOLDER")
    parser.add_argument("--channel", default="stance", help="stance (question less null, default), question or null")
    parser.add_argument("-o", "--out", required=True)
    args = parser.parse_args()
    runs = {label: load_run(folder) for label, folder in (run.split("=", 1) for run in args.runs)}
    rows = [
        row
        for run in runs.values()
        if run.log is not None
        for row in run.log.items("openings")
        if row["variant"] == "question"
    ]
    topics = ["all", *dict.fromkeys(row["topic"] for row in rows)]
    axes = {row["topic"]: row["axis"] for row in rows}

    plt.rcParams.update(
        {"font.size": 9, "svg.hashsalt": "vdengine", "axes.spines.top": False, "axes.spines.right": False}
    )
    figure, panels = plt.subplots(1, len(topics), figsize=(3.1 * len(topics), 3.3), sharey=True, layout="constrained")
    for panel, topic in zip(panels, topics, strict=True):
        for (label, run), colour, marker in zip(runs.items(), COLOURS, MARKERS, strict=False):
            curve = run.analysis("text_likelihood").curves[topic, args.channel]
            panel.fill_between(curve.steps, 100 * curve.low, 100 * curve.high, color=colour, alpha=0.15, lw=0)
            panel.plot(curve.steps, 100 * curve.mean, color=colour, marker=marker, ms=3.5, label=label)
        panel.axhline(0, color="black", lw=0.6)
        panel.set_title("all topics" if topic == "all" else f"{topic}\n", fontsize=10)
        if topic != "all":
            panel.text(
                0.5, 1.02, f"up: {axes[topic]}", transform=panel.transAxes, ha="center", fontsize=6.5, color="#444"
            )
        panel.set_xlabel("optimizer steps")
    panels[0].set_ylabel("text likelihood, shift\n(nats per 100 bytes)")
    panels[0].legend(frameon=False, fontsize=8, title="preferred answers", title_fontsize=8)
    figure.savefig(args.out, metadata={"Date": None} if args.out.endswith(".svg") else None)


if __name__ == "__main__":
    main()
