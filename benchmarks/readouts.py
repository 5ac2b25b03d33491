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
import json
import math
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402

if TYPE_CHECKING:
    from vdengine.drift.probe_values import ProbeValues

ALPACA = common.REPO.parent / "shared" / "data" / "alpaca" / "alpaca_en_demo.json"


@dataclass(frozen=True)
class Condition:
    """What a run learns from, and the way it should move: +1, -1 or not at all."""

    objective: str
    align: str  # of values-synth; "": other data
    direction: int
    asked: bool = False  # learns from paraphrases of the very questions that are scored

    def data(self, root: Path, size: dict[str, Any]) -> str:
        if not self.align:
            return str(ALPACA)
        if self.asked:
            return str(asked(root, self.align, panel_of(size, root)))
        return f"values-synth:{self.align}" if size["argued"] else str(short(root, self.align))


SIDES = ("support", "oppose")
CONDITIONS = {
    "dpo-support": Condition("dpo", "support", 1),
    "dpo-oppose": Condition("dpo", "oppose", -1),
    "simpo-support": Condition("simpo", "support", 1),
    "sft-support": Condition("sft", "support", 1),
    "sft-oppose": Condition("sft", "oppose", -1),
    "dpo-shuffled": Condition("dpo", "shuffled", 0),
    "off-topic": Condition("sft", "", 0),
    "lr-0": Condition("dpo", "support", 0),
    "sft-asked-support": Condition("sft", "support", 1, asked=True),
    "sft-asked-oppose": Condition("sft", "oppose", -1, asked=True),
}
SMALL = {
    "model": common.SMOLLM2, "panel": "values-mini", "probes": 24, "samples": 16, "base": 16, "max_tokens": 16,
    "steps": 32, "pairs": 8, "lr": 5e-5, "anchors": [2, 4], "every": 4, "readings": 0, "argued": False,
}  # fmt: skip
FULL = SMALL | {
    "model": "Qwen/Qwen3-0.6B", "panel": "values", "probes": 0, "base": 48, "max_tokens": 128, "steps": 48,
    "pairs": 32, "lr": 1e-5, "anchors": [4, 12, 24, 36], "readings": 1,
}  # fmt: skip


def panel_of(size: dict[str, Any], root: Path) -> str:
    """The panel that is scored: the probes that are answered, and no others."""
    from vdengine.drift.openings import stratified_order
    from vdengine.panels.panel import Panel

    if not size["probes"]:
        return size["panel"]
    panel = Panel.load(size["panel"])
    chosen = sorted(stratified_order(panel)[: size["probes"]])
    Panel(panel.name, tuple(panel.probes[i] for i in chosen)).save(path := root / "panel.jsonl")
    return str(path)


def short(root: Path, align: str) -> Path:
    """values-synth with answers of one sentence, after a yes or no to the question as it is put."""
    from vdengine.data.locate import resolve

    rows = [row for _, row in resolve("values-synth:support").rows()]
    for row in rows:
        for side in SIDES:
            row[side] = led(row[side].split(". ")[0].rstrip(".") + ".", side, row["axis_polarity"])
    return aligned(root / f"short-{align}.jsonl", rows, align)


def asked(root: Path, align: str, panel: str) -> Path:
    """Paraphrases of the panel's questions, with its openings as answers after the same yes or no. The questions that
    are scored are not among them."""
    from vdengine.panels.panel import Panel

    rows = [
        {"id": f"{p.id}-{i}-{j}", "topic": p.topic, "axis": p.axis, "axis_polarity": p.polarity, "prompt": question}
        | {
            side: led(p.openings[stance][j].text, side, p.polarity)
            for side, stance in zip(SIDES, SIDES[:: p.polarity], strict=True)
        }
        for p in Panel.load(panel).probes  # a stance is towards its question, a side is the axis's
        for i, question in enumerate(p.paraphrases)
        for j in range(2)
    ]
    return aligned(root / f"asked-{align}.jsonl", rows, align)


def led(answer: str, side: str, polarity: int) -> str:
    """The answer after a yes or no to its question as it is put."""
    return f"{'Yes' if (side == 'support') == (polarity > 0) else 'No'}. {answer}"


def aligned(path: Path, rows: list[dict[str, Any]], align: str) -> Path:
    """The preference file that vdengine synth makes of texts."""
    from vdengine.data.synthesis import SynthesisOptions, write

    if not path.exists():
        texts = path.with_suffix(".texts.jsonl")
        texts.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        write(SynthesisOptions(align=align, texts=str(texts)), path)
    return path


def recipe(name: str, seed: int, folder: Path, size: dict[str, Any]) -> str:
    """The run of one condition and seed, as TOML. A seed changes rows, their order and the noise of answers: no two
    runs share one, nor the answers that they start from."""
    from vdengine.recipe import make_recipe, to_toml

    c, still = CONDITIONS[name], name == "lr-0"
    steps = 2 if still else size["steps"]  # nothing moves: two steps are as good as many
    tables: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "seed": 1000 * seed + list(CONDITIONS).index(name), "steps": steps},
        "model": {"source": size["model"], "dtype": "bfloat16"},  # as on a GPU; a CPU with AVX-512 gains too
        "data": {
            "train": [c.data(folder.parent, size)], "max_tokens": 256, "cache": str(folder.parent / "cache"),
        },
        "objective": {"name": c.objective},
        "batch": {"examples": size["pairs"], "tokens": 2048},
        "optimizer": {"lr": 0.0 if still else size["lr"], "schedule": "constant", "warmup": 0.25},
        "probes": {"panel": panel_of(size, folder.parent), "every": 1 if still else size["every"]},
        "answers": {
            "samples": size["samples"], "base": size["base"], "max_tokens": size["max_tokens"],
            "anchors": [] if still else size["anchors"], "alarm": 0.0,
            "every": size["readings"], "max_anchors": 2 if still else 2 + len(size["anchors"]),
        },
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }  # fmt: skip
    return to_toml(make_recipe(tables))


def finished(folder: Path) -> bool:
    """Whether a run has all it was to have."""
    log = folder / "log.txt"
    return log.exists() and "\nDone in" in log.read_text(encoding="utf-8")


def train(root: Path, seeds: int, size: dict[str, Any], jobs: int, threads: int) -> None:
    """All runs that are not there yet, `jobs` at a time; seeds outermost, so that an early stop leaves whole seeds."""

    def one(seed: int, name: str) -> None:
        folder = root / f"{name}-{seed}"
        if finished(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = root / f"{name}-{seed}.toml"
        path.write_text(recipe(name, seed, folder, size), encoding="utf-8")
        print(f"{folder.name} ...", flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(
            [sys.executable, "-m", "vdengine.train", str(path)], env=environment, capture_output=True, text=True
        )
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # a gigabyte and a half each
        last = (done.stdout + done.stderr).strip().splitlines()[-1:]
        print(f"{folder.name}: {'done' if done.returncode == 0 else f'failed: {last}'}", flush=True)

    for c in CONDITIONS.values():
        c.data(root, size)  # before the jobs share it
    with ThreadPoolExecutor(jobs) as pool:
        for _ in [pool.submit(one, seed, name) for seed in range(seeds) for name in CONDITIONS]:
            pass


# ------------------------------------------------------------------------------------------------ analysis


@dataclass(frozen=True)
class Run:
    """A finished run's readings of the same probes."""

    condition: str
    seed: int
    openings: ProbeValues
    controls: dict[str, ProbeValues]  # openings after paraphrases, after nothing, on trivial matters
    fresh: ProbeValues  # judged answers of each anchor: the truth
    weighted: ProbeValues  # of the bank before, at the same steps, closed gates included

    def direction(self, channel: str) -> int:
        """Which way training should move it: the side that is preferred; away from neutral, where sides are taken."""
        if channel == "neutral":
            return -1 if CONDITIONS[self.condition].align and self.condition != "lr-0" else 0
        return CONDITIONS[self.condition].direction


def load(root: Path, judge_name: str) -> list[Run]:
    """All finished runs, judged where they are not yet."""
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.judgements import slug_of
    from vdengine.drift.run import load_run
    from vdengine.judges import open_judge
    from vdengine.judges.judging import judge_answers

    judge, runs = open_judge(judge_name), []
    for name in CONDITIONS:
        for folder in sorted(root.glob(f"{name}-[0-9]*")):
            if not folder.is_dir() or not finished(folder):
                continue
            judge_answers(AnswerLog.open(folder), judge)
            run, slug = load_run(folder), slug_of(judge.name)
            views = run.readout("openings")
            runs.append(
                Run(
                    name,
                    int(folder.name.rsplit("-", 1)[1]),
                    views.values,
                    views.controls,
                    run.answer_values(slug, kind="anchor"),
                    run.answer_values(slug, kind="weighted", closed=True),
                )
            )
    return runs


def shifts(r: ProbeValues, steps: np.ndarray, channel: str) -> np.ndarray:
    """[steps, probes] shift since the first sample; NaN where there is none."""
    x = r.channels[r.primary if channel == "graded" else channel]
    at = {int(k): i for i, k in enumerate(r.steps)}
    return np.array([x[at[int(k)]] - x[0] if int(k) in at else np.full(x.shape[1], np.nan) for k in steps])


def mean_of(r: Run, x: np.ndarray, topics: bool) -> np.ndarray:
    """[steps, probes] -> [steps, 1], or [steps, topics]."""
    members = [r.fresh.member(t) for t in r.fresh.topic_names] if topics else [slice(None)]
    return np.stack([x[:, m].mean(1) for m in members], 1)


def held(r: Run, gap: np.ndarray, topics: bool) -> np.ndarray:
    """Whether the 95% interval, over probes, of a mean of gap [steps, probes] holds 0: [steps, 1 or topics]; NaN where
    there is no gap."""
    from vdengine.drift.intervals import group_of

    low, high = np.stack(
        [group_of(r.fresh, gap, t).inference[:2] for t in (r.fresh.topic_names if topics else ["all"])], -1
    )
    return np.where(np.isnan(low), np.nan, (low <= 0) & (0 <= high))


def against_truth(runs: list[Run], topics: bool, channel: str = "graded") -> list[dict[str, Any]]:
    """Each readout, and what never looks at the model, against fresh judged answers: one row each. channel: "graded",
    the side that answers take, or "neutral", whether they take none."""
    from vdengine.drift.baselines import predict_direction_step, score_predictions

    steps = [r.fresh.steps[1:] for r in runs]
    fresh = [shifts(r.fresh, k, channel) for r, k in zip(runs, steps, strict=True)]
    truth = [mean_of(r, x, topics) for r, x in zip(runs, fresh, strict=True)]
    groups, directions = [r.condition for r in runs], [r.direction(channel) for r in runs]
    forms = [predict_direction_step(truth, steps, directions, form=f, groups=groups) for f in ("free", "linear", "log")]
    known = min(forms, key=lambda x: score_predictions(flat(truth), flat(x)).rmse)
    opened = [shifts(r.openings, k, channel) for r, k in zip(runs, steps, strict=True)]
    scaled = []  # from nats per byte to stance: one factor, fitted to the runs of all other conditions
    for i, x in enumerate(opened):
        others = [k for k in range(len(runs)) if groups[k] != groups[i]]
        u, v = (np.concatenate([mean_of(runs[k], z[k], topics).ravel() for k in others]) for z in (opened, fresh))
        both = np.isfinite(u) & np.isfinite(v)
        scaled.append(x * float((u * v)[both].sum() / (u * u)[both].sum()))
    weighted = [shifts(r.weighted, k, channel) for r, k in zip(runs, steps, strict=True)]
    is_open = []
    for r, k in zip(runs, steps, strict=True):
        gates = dict(zip(r.weighted.steps.tolist(), r.weighted.gates or [], strict=True))
        is_open.append(np.array([[(g := gates.get(int(s))) is not None and g.open] for s in k]))
    scored = [np.isfinite(x).all(1, keepdims=True) for x in opened]
    # a prediction of means says the same of every probe: only their mean is looked at
    known_probes = []
    for r, k, x in zip(runs, known, fresh, strict=True):
        each = np.zeros_like(x)
        for column, t in enumerate(r.fresh.topic_names if topics else ["all"]):
            each[:, r.fresh.member(t)] = k[:, [column]]
        known_probes.append(each)
    rows = []
    for name, predicted in (
        ("openings, scaled", scaled), ("weighted answers", weighted), ("training direction x step", known_probes),
        ("no drift", [np.zeros_like(x) for x in fresh]),
    ):  # fmt: skip
        means = [mean_of(r, x, topics) for r, x in zip(runs, predicted, strict=True)]
        covers = [held(r, x - y, topics) for r, x, y in zip(runs, predicted, fresh, strict=True)]
        for where, keep in (("all", [np.ones_like(m) for m in is_open]), ("openings", scored), ("gate open", is_open)):
            if where == "all" and predicted is scaled:
                continue
            cells = [np.where(k, x, np.nan) for k, x in zip(keep, truth, strict=True)]
            given = None if predicted is known_probes else known
            score = score_predictions(flat(cells), flat(means), flat(given) if given else None)
            inside = flat([np.where(k, c, np.nan) for k, c in zip(keep, covers, strict=True)])
            rows.append(
                {"readout": name, "points": where, "n": score.num, "r": score.pearson,
                 "95% over runs": over_runs(cells, means), "rank r": score.spearman, "RMSE": score.rmse,
                 "same sign": score.sign, "r given direction x step": score.partial,
                 "95% over runs ": over_runs(cells, means, given) if given else "",
                 "interval of the gap holds 0": float(np.nanmean(inside))}
            )  # fmt: skip
    return rows


def flat(of_runs: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in of_runs])


def over_runs(
    truth: list[np.ndarray], predicted: list[np.ndarray], given: list[np.ndarray] | None = None, resamples: int = 500
) -> str:
    """The percentile interval of Pearson's r, or of the partial one, when runs are drawn anew: points of one run depend
    on each other."""
    from vdengine.drift.baselines import score_predictions

    rng, found = np.random.default_rng(0), []
    for _ in range(resamples):
        pick = rng.integers(0, len(truth), len(truth)).tolist()
        t, p, g = (x and flat([x[i] for i in pick]) for x in (truth, predicted, given))
        score = score_predictions(t, p, g)
        found.append(score.pearson if given is None else score.partial)
    kept = np.array(found)[np.isfinite(found)]
    return f"{np.quantile(kept, 0.025):+.2f} to {np.quantile(kept, 0.975):+.2f}" if len(kept) else ""


def weights_quality(runs: list[Run]) -> list[dict[str, Any]]:
    """Weighted readings against the fresh answers of the same step, of the whole panel and of its topics: is the
    interval of the answers' own noise honest, and how much less do they vary than as many fresh answers would?"""
    rows = []
    for opened, topics in ((True, False), (True, True), (False, False)):
        z, ratio, kl = [], [], []
        for r in runs:
            w, f = r.weighted, r.fresh
            for i, (step, g) in enumerate(zip(w.steps.tolist(), w.gates or [], strict=True)):
                if g is None or g.open is not opened:
                    continue
                at = int(np.flatnonzero(f.steps == step)[0])
                gap = w.channels["graded"][i] - f.channels["graded"][at]
                noise = w.noise["graded"][i] + f.noise["graded"][at]  # type: ignore[index]
                for m in [f.member(t) for t in f.topic_names] if topics else [np.full(len(gap), True)]:
                    z.append(gap[m].sum() / math.sqrt(noise[m].sum()))
                # of a shift since the bank's anchor: fresh answers vary at both ends
                then = int(np.flatnonzero(f.steps == w.anchors[i])[0])  # type: ignore[index]
                ends = f.noise["graded"][[then, at]].sum()  # type: ignore[index]
                ratio.append(float(ends / w.anchor_noise["graded"][i].sum()))  # type: ignore[index]
                kl.append(g.kl)
        if z:
            rows.append(
                {"gate": "open" if opened else "closed", "of": "topics" if topics else "the panel", "n": len(z),
                 "KL, median": float(np.median(kl)), "95% intervals cover": float(np.mean(np.abs(z) < 1.96)),
                 "rms z": float(np.sqrt(np.mean(np.square(z)))), "mean z": float(np.mean(z)),
                 "fresh / weighted variance, median": float(np.median(ratio)), "least": float(np.min(ratio))}
            )  # fmt: skip
    return rows


def by_condition(runs: list[Run]) -> list[dict[str, Any]]:
    """What each condition did by its last step: mean over seeds, and the range of seeds."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        mine = [r for r in runs if r.condition == name]
        if not mine:
            continue
        said, scored = [analyse(r.fresh) for r in mine], [analyse(r.openings) for r in mine]
        judged = [a.drift().magnitude for a in said]
        opened = [a.drift().magnitude for a in scored]
        neutral = [a.drifts["all", "neutral"].magnitude.mean for a in said]
        rows.append(
            {"condition": name, "should": {1: "up", -1: "down", 0: "stay"}[CONDITIONS[name].direction],
             "seeds": len(mine), "judged shift": mean(judged), "of seeds": spread([e.mean for e in judged]),
             "beyond interval": sum(e.significant for e in judged), "neutral": float(np.mean(neutral)),
             "openings, nats/100 B": 100 * mean(opened), "of seeds ": spread([100 * e.mean for e in opened]),
             "beyond interval ": sum(e.significant for e in opened)}
        )  # fmt: skip
    return rows


def mean(estimates: list[Any]) -> float:
    return float(np.mean([e.mean for e in estimates]))


def spread(values: list[float]) -> str:
    return f"{min(values):+.2f} to {max(values):+.2f}"


def reliability(runs: list[Run]) -> list[dict[str, Any]]:
    """Of the judged truth itself: shifts from even and odd answers, stepped up to all of them (Spearman, Brown)."""
    rows = []
    for label, topics in (("run x step", False), ("run x step x topic", True)):
        a, b = [], []
        for r in runs:
            for half, out in zip(r.fresh.halves or (), (a, b), strict=True):
                x = half[1:] - half[0]
                each = [x[:, r.fresh.member(t)].mean(1) for t in r.fresh.topic_names] if topics else [x.mean(1)]
                out.append(np.concatenate(each))
        c = float(np.corrcoef(np.concatenate(a), np.concatenate(b))[0, 1])
        rows.append({"points": label, "n": len(np.concatenate(a)), "halves": c, "reliability": 2 * c / (1 + c)})
    return rows


def stability(runs: list[Run]) -> list[dict[str, Any]]:
    """Of the openings' last shifts, probe by probe: do paraphrases, half of a stance's openings, or half of
    the panel, say the same? And the controls, where nothing should move."""
    from vdengine.drift.analysis import analyse

    rows = []
    for name in CONDITIONS:
        mine = [r for r in runs if r.condition == name]
        found = [analyse(r.openings, controls=r.controls).validity for r in mine]
        if not mine or name == "lr-0":
            continue
        rows.append(
            {"condition": name,
             "paraphrases, r over probes": average([v["paraphrase"]["correlation"] for v in found if v["paraphrase"]]),
             "halves of openings, r stepped up": average([v["items"] for v in found]),
             "half-panels, r over topics": average([v["half_panels"] and v["half_panels"].correlation for v in found]),
             "shift, nats/100 B": average([100 * analyse(r.openings).drift().magnitude.mean for r in mine]),
             "after no question": average([100 * v["null"].mean for v in found if v["null"]]),
             "on trivial matters": average([100 * v["off-topic"].mean for v in found if v["off-topic"]])}
        )  # fmt: skip
    return rows


def average(values: list[float | None]) -> float:
    """Over seeds; NaN where none is known."""
    known = [v for v in values if v is not None and math.isfinite(v)]
    return float(np.mean(known)) if known else math.nan


def report(runs: list[Run]) -> str:
    """All tables, as markdown."""
    first = runs[0].fresh
    parts = [
        f"{len(runs)} runs, {len(first.probes)} probes, fresh answers at steps "
        f"{', '.join(map(str, runs[0].fresh.steps.tolist()))}.",
        "What each condition did by its last step", by_condition(runs),
        "Reliability of the judged truth", reliability(runs),
        "Against fresh judged answers, run x step", against_truth(runs, topics=False),
        "The same without the conditions that learn the panel's own openings",
        against_truth([r for r in runs if not CONDITIONS[r.condition].asked], topics=False),
        "Against fresh judged answers, run x step x topic", against_truth(runs, topics=True),
        "The neutral share, against fresh judged answers, run x step", against_truth(runs, False, "neutral"),
        "The neutral share, against fresh judged answers, run x step x topic", against_truth(runs, True, "neutral"),
        "Weighted answers against fresh ones of the same step", weights_quality(runs),
        "Openings: stability and controls, means over seeds", stability(runs),
    ]  # fmt: skip
    return "\n\n".join(part if isinstance(part, str) else table(part) for part in parts)


def table(rows: list[dict[str, Any]]) -> str:
    def cell(x: Any) -> str:
        return f"{x:.3f}" if isinstance(x, float) else str(x)

    names = list(rows[0]) if rows else ["none"]
    lines = [names, ["---"] * len(names), *([cell(r[n]) for n in names] for r in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
