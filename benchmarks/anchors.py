"""Many small anchors: how well a smoothed curve of answers covers, and what as many answers in larger anchors show.

    python benchmarks/anchors.py                      # simulations with known truth, five minutes
    python benchmarks/anchors.py --model runs/anchors # one run of SmolLM2, about 20 minutes on two idle cores

The simulations are those of tests/drift, where bounds on the rates are asserted. With --model one run trains, and at 13
anchors each probe is answered 16 times. Half of the answers are the truth; from the other half each design takes its
answers, many times over: as many in all, at many steps or at few. The training is there to make answers move:
paraphrases of the panel's questions, answered with the yes or no and the opening of one side.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent))
import common  # noqa: E402
from helpers.courses import COURSES, answered, true_shift  # noqa: E402
from helpers.values import probe_values  # noqa: E402

from vdengine.drift.analysis import Curve, analyse  # noqa: E402
from vdengine.drift.answer_curves import SMOOTHING  # noqa: E402
from vdengine.drift.answer_log import AnswerLog  # noqa: E402
from vdengine.drift.answer_values import answer_values  # noqa: E402
from vdengine.drift.intervals import group_of  # noqa: E402
from vdengine.drift.probe_values import ProbeValues  # noqa: E402
from vdengine.drift.schedule import dense_early  # noqa: E402
from vdengine.drift.smoothing import Smoothing  # noqa: E402
from vdengine.drift.trajectory import DriftTime  # noqa: E402

TOTAL = 240  # steps of a simulated stage
BASE = 8  # answers of a probe at its start
DESIGNS = ((2, 16), (4, 8), (8, 4), (16, 2))  # answers of a probe at an anchor, and anchors after the start: 32 in all

# --------------------------------------------------------------------------------------------------------- simulations


def coverage(runs: int) -> Iterator[str]:
    """Coverage and error of smoothed curves by course, probes and anchors: at their anchors and, where there are enough
    to follow the course, between them."""
    rng = np.random.default_rng(1)
    yield "95% intervals of the curve of two answers a probe cover (worst step); RMSE of it, and of the anchors alone"
    how = Smoothing.parse(SMOOTHING)
    for probes in (24, 48, 550):
        for anchors in (3, 4, 6, 8, 10, 12, 24):
            at = steps = np.array(dense_early(TOTAL, anchors))
            if anchors >= 12:
                between = np.interp(np.arange(0, anchors - 0.9, 1 / 3), np.arange(anchors), at)
                steps = np.union1d(at, between.astype(int))
            cells, error = [], 0.0
            for course in COURSES:
                truth, inside, errors = true_shift(course, steps, TOTAL), [], []
                for _ in range(runs):
                    x = answered(rng, course, at, TOTAL, probes, 2, BASE)
                    values = probe_values(x, steps=at, readout="answers")
                    group = group_of(values, x - x[0], "all")
                    curve = how.smooth(values, group, 0, steps)
                    low, high, _ = curve.inference
                    inside.append(((low <= truth) & (truth <= high))[1:])
                    among = np.isin(steps, at)
                    errors.append([np.square(m - truth[among]).mean() for m in (curve.mean[among], group.mean)])
                share, (smoothed, raw) = np.array(inside), np.sqrt(np.mean(errors, 0))
                cells.append(f"{course} {share.mean():.1%} ({share.mean(0).min():.0%}) {smoothed:.3f} {raw:.3f}")
                error = max(error, share.mean(1).std() / np.sqrt(runs))
            yield f"  {probes} probes, {anchors} anchors: {'; '.join(cells)} (Monte-Carlo error up to {error:.1%})"


def designs(runs: int, probes: int = 48) -> Iterator[str]:
    """The same number of answers in many small anchors or few large ones: errors of the curve and of the drift time."""
    rng = np.random.default_rng(2)
    yield f"{probes} probes, {DESIGNS[0][0] * DESIGNS[0][1]} answers each after the start and {BASE} there, by design"
    yield "  RMSE of the curve over all steps | frac95, where there is one: mean error, mean absolute error, coverage"
    for course in COURSES:
        cells = []
        for samples, anchors in DESIGNS:
            at, errors, times = np.array(dense_early(TOTAL, anchors + 1)), [], []
            for _ in range(runs):
                x = answered(rng, course, at, TOTAL, probes, samples, BASE)
                curve, time = _curve(probe_values(x, steps=at, readout="answers"), resamples=200)
                truth = true_shift(course, curve.steps, TOTAL)
                errors.append(np.square(curve.mean - truth).mean())
                own = curve.steps[np.argmax(truth >= 0.95 * truth.max())] / TOTAL
                if time.fraction is not None:
                    times.append((time.fraction - own, abs(time.fraction - own), time.low <= own <= time.high))
            timed = "{:+.2f} {:.2f} {:.0%}".format(*np.mean(times, 0)) if course != "flat" else f"{len(times)} have one"
            cells.append(f"{samples} x {anchors}: {np.sqrt(np.mean(errors)):.3f} | {timed}")
        yield f"  {course:10} " + "; ".join(cells)


def _curve(values: ProbeValues, resamples: int = 500) -> tuple[Curve, DriftTime]:
    """The curve of all probes at every step, however few the anchors, and the drift time that is read off it."""
    steps = np.arange(values.total_steps + 1)
    found = analyse(values, smoothing=SMOOTHING, steps=steps, resamples=resamples)
    return found.curves["all", values.primary], found.drift().time


# ----------------------------------------------------------------------------------------------------------- on a model

SIZE = {"probes": 24, "answers": 16, "tokens": 12, "steps": 36, "anchors": 13}
TINY = {"probes": 4, "answers": 4, "tokens": 4, "steps": 4, "anchors": 5}  # whether it runs at all


def train(folder: Path, size: dict[str, int]) -> None:
    """One supervised run towards the axis, with large anchors at many steps; a folder that is complete stays."""
    from vdengine.engine.trainer import Trainer
    from vdengine.panels.panel import Panel
    from vdengine.recipe import make_recipe

    rows = folder.with_suffix(".jsonl")
    rows.parent.mkdir(parents=True, exist_ok=True)
    with open(rows, "w", encoding="utf-8") as file:
        for probe in Panel.load("values-mini").probes:
            side, lead = ("support", "Yes") if probe.polarity > 0 else ("oppose", "No")
            for question, opening in zip(probe.paraphrases, probe.openings[side], strict=False):
                file.write(json.dumps({"prompt": question, "completion": f"{lead}. {opening.text}"}) + "\n")
    tables: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "steps": size["steps"]},
        "model": {"source": common.SMOLLM2},
        "data": {"train": [str(rows)], "max_tokens": 256, "cache": str(folder.parent / "cache")},
        "objective": {"name": "sft"},
        "batch": {"examples": 8, "tokens": 2048},
        "optimizer": {"lr": 1e-4, "schedule": "constant"},
        "probes": {"every": size["steps"], "controls": False, "readouts": ["lead"]},  # the cheaper one
        "answers": {
            "samples": size["answers"], "base": size["answers"], "anchors": size["anchors"],
            "probes": size["probes"], "max_tokens": size["tokens"],
        },
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }  # fmt: skip
    trainer = Trainer(make_recipe(tables))
    while trainer.step_count < trainer.total_steps:
        trainer.step()
        print(f"step {trainer.step_count} of {trainer.total_steps}", flush=True)
    trainer.finish()
    trainer.close()


def compare(folder: Path, repeats: int = 20) -> Iterator[str]:
    """From the answers of a run: each design's error of the curve and of the drift time, against the other half of the
    answers at all anchors."""
    from vdengine.judges.rules import stance_of

    log = AnswerLog.open(folder)
    total, rng = log.anchors[-1], np.random.default_rng(0)
    probes = {probe.id: probe for probe in log.panel.probes}
    stances = np.array([stance_of(probes[a.probe], a.text) for a in log.answers])  # [answers, 3]
    anchor, sample = (np.array(column) for column in zip(*((a.anchor, a.sample) for a in log.answers), strict=True))
    steps, half = np.array(log.anchors), log.samples // 2
    end, time = _curve(answer_values(log, stances, total, kind="anchor"))
    yield (
        f"{len(probes)} probes, {len(steps)} anchors in {total} steps, rule judge: the curve of all answers ends at "
        f"{end.mean[-1]:+.3f} [{end.low[-1]:+.3f}, {end.high[-1]:+.3f}], drifted at "
        + (f"{time.fraction:.2f} [{time.low:.2f}, {time.high:.2f}]" if time.fraction is not None else "no time")
    )
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for _ in range(repeats):
        order = rng.permutation(log.samples)
        mine, theirs = order[:half], order[half:]
        truth = answer_values(log, np.where(np.isin(sample, theirs)[:, None], stances, np.nan), total, kind="anchor")
        group = group_of(truth, truth.channels["graded"] - truth.channels["graded"][0], "all")
        noise = np.square(group.share) @ truth.shift_noise["graded"].T if truth.shift_noise else np.zeros(1)
        own = _curve(truth)[1].fraction
        for every in (1, 2, 4):  # anchors of a design: every so many of those there are, so many times two answers each
            samples = 2 * every
            if samples > half or (len(steps) - 1) % every:
                continue
            drawn = np.isin(sample, mine[:samples]) & np.isin(anchor, steps[::every])
            drawn |= np.isin(sample, mine) & (anchor == 0)
            values = answer_values(log, np.where(drawn[:, None], stances, np.nan), total, kind="anchor")
            curve, time = _curve(values)
            error = np.square(curve.mean[np.isin(curve.steps, steps)] - group.mean)[1:].mean()
            at = time.fraction
            off = abs(at - own) if at is not None and own is not None else np.nan
            found.setdefault((samples, len(steps[::every]) - 1), []).append((error - np.diag(noise)[1:].mean(), off))
    for (samples, count), errors in found.items():
        squares, off = np.array(errors).T
        spread, timed = squares.std() / np.sqrt(repeats), off[np.isfinite(off)]
        late = f"{timed.mean():.3f} (in {len(timed)} of {repeats})" if len(timed) else "not known: no time in any"
        yield (
            f"  {samples} x {count}: mean square error of the curve {squares.mean():.5f} +- {spread:.5f} (less the "
            f"truth's own noise), drift time off by {late}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="simulated, of each kind (default: %(default)s)")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="train a run here, or read the one that is there")
    parser.add_argument(
        "--tiny", action="store_true", help="with --model: a run of a few steps, whose figures say nothing"
    )
    args = parser.parse_args()
    if args.model is None:
        parts = [coverage(args.runs), designs(args.runs)]
    else:
        train(args.model, TINY if args.tiny else SIZE)
        parts = [compare(args.model)]
    for part in parts:
        for line in part:
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
