"""The runs of `readouts.py`: conditions of known direction, their data and recipes, training, and reading them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402

from vdengine.runfolder import RunFolder  # noqa: E402

if TYPE_CHECKING:
    from vdengine.drift.probe_values import ProbeValues

ALPACA = common.REPO.parent / "shared" / "data" / "alpaca" / "alpaca_en_demo.json"


@dataclass(frozen=True)
class Condition:
    """What a run trains on, and how its values should move."""

    objective: str
    align: str  # of values-synth; "": other data
    direction: int  # on the axis: +1, -1, or 0 for not at all
    asked: bool = False  # whether it trains on paraphrases of the questions that are scored

    def data(self, root: Path, size: dict[str, Any]) -> str:
        """The source of its training data; files are made in `root`."""
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
    "steps": 32, "pairs": 8, "lr": 5e-5, "anchors": [2, 4], "every": 4, "readings": 1, "argued": False,
}  # fmt: skip
FULL = SMALL | {
    "model": "Qwen/Qwen3-0.6B", "panel": "values", "probes": 0, "base": 48, "max_tokens": 128, "steps": 48,
    "pairs": 32, "lr": 1e-5, "anchors": [4, 12, 24, 36],
}  # fmt: skip


def panel_of(size: dict[str, Any], root: Path) -> str:
    """The panel that is scored: only the probes that are answered."""
    from vdengine.drift.panel_packs import stratified_order
    from vdengine.panels.panel import Panel

    if not size["probes"]:
        return size["panel"]
    panel = Panel.load(size["panel"])
    chosen = sorted(stratified_order(panel)[: size["probes"]])
    Panel(panel.name, tuple(panel.probes[i] for i in chosen)).save(path := root / "panel.jsonl")
    return str(path)


def short(root: Path, align: str) -> Path:
    """values-synth with answers of one sentence, after a yes or no to the question."""
    from vdengine.data.locate import resolve

    rows = [row for _, row in resolve("values-synth:support").rows()]
    for row in rows:
        for side in SIDES:
            row[side] = led(row[side].split(". ")[0].rstrip(".") + ".", side, row["axis_polarity"])
    return aligned(root / f"short-{align}.jsonl", rows, align)


def asked(root: Path, align: str, panel: str) -> Path:
    """Paraphrases of the panel's questions, with its openings as answers after a yes or no. The questions that are
    scored are not among them."""
    from vdengine.panels.panel import Panel

    rows = [
        {"id": f"{p.id}-{i}-{j}", "topic": p.topic, "axis": p.axis, "axis_polarity": p.polarity, "prompt": question}
        | {
            side: led(p.openings[stance][j].text, side, p.polarity)
            for side, stance in zip(SIDES, SIDES[:: p.polarity], strict=True)
        }
        for p in Panel.load(panel).probes  # a stance is relative to the question, a side to the axis
        for i, question in enumerate(p.paraphrases)
        for j in range(2)
    ]
    return aligned(root / f"asked-{align}.jsonl", rows, align)


def led(answer: str, side: str, polarity: int) -> str:
    """The answer after the yes or no to its question that fits its side."""
    return f"{'Yes' if (side == 'support') == (polarity > 0) else 'No'}. {answer}"


def aligned(path: Path, rows: list[dict[str, Any]], align: str) -> Path:
    """The preference file that `vdengine synth` makes of texts."""
    from vdengine.data.synthesis import SynthesisOptions, write

    if not path.exists():
        texts = path.with_suffix(".texts.jsonl")
        texts.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        write(SynthesisOptions(align=align, texts=str(texts)), path)
    return path


def recipe(name: str, seed: int, folder: Path, size: dict[str, Any]) -> str:
    """The recipe of one condition and seed, as TOML. Every run has another seed, which changes the order of the rows
    and the noise of answers, so that no two runs start with the same answers."""
    from vdengine.recipe import make_recipe, to_toml

    condition, still = CONDITIONS[name], name == "lr-0"
    steps = 2 if still else size["steps"]  # two are enough where nothing moves
    tables: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "seed": 1000 * seed + list(CONDITIONS).index(name), "steps": steps},
        "model": {"source": size["model"], "dtype": "bfloat16"},  # as on a GPU; faster on a CPU with AVX-512 too
        "data": {
            "train": [condition.data(folder.parent, size)],
            "max_tokens": 256,
            "cache": str(folder.parent / "cache"),
        },
        "objective": {"name": condition.objective},
        "batch": {"examples": size["pairs"], "tokens": 2048},
        "optimizer": {"lr": 0.0 if still else size["lr"], "schedule": "constant", "warmup": 0.25},
        "probes": {"panel": panel_of(size, folder.parent), "every": 1 if still else size["every"]},
        "answers": {
            "samples": size["samples"],
            "base": size["base"],
            "max_tokens": size["max_tokens"],
            "anchors": [] if still else size["anchors"],
            "alarm": 0.0,
            "weights_every": size["readings"],
            "max_anchors": 2 if still else 2 + len(size["anchors"]),
        },
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }
    return to_toml(make_recipe(tables))


def finished(folder: Path) -> bool:
    """Whether a run has come to its end."""
    log = RunFolder(folder).console
    return log.exists() and "\nDone in" in log.read_text(encoding="utf-8")


def train(root: Path, seeds: int, size: dict[str, Any], jobs: int, threads: int) -> None:
    """Train all runs that are not finished, `jobs` at a time, one seed after another, so that an early stop leaves
    complete seeds."""

    def train_one(seed: int, name: str) -> None:
        folder = root / f"{name}-{seed}"
        if finished(folder):
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = root / f"{name}-{seed}.toml"
        path.write_text(recipe(name, seed, folder, size), encoding="utf-8")
        print(f"{folder.name} ...", flush=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        process = subprocess.run(
            [sys.executable, "-m", "vdengine.train", str(path)], env=environment, capture_output=True, text=True
        )
        shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)  # 1.5 GB each
        last = (process.stdout + process.stderr).strip().splitlines()[-1:]
        print(f"{folder.name}: {'done' if process.returncode == 0 else f'failed: {last}'}", flush=True)

    for condition in CONDITIONS.values():
        condition.data(root, size)  # made before the jobs, which share it
    with ThreadPoolExecutor(jobs) as pool:
        for _ in [pool.submit(train_one, seed, name) for seed in range(seeds) for name in CONDITIONS]:
            pass


# ----------------------------------------------------------------------------------------------------- reading the runs


@dataclass(frozen=True)
class Run:
    """The readouts of a finished run, of the same probes."""

    condition: str
    seed: int
    lead: ProbeValues
    text: ProbeValues  # likelihood
    controls: dict[str, ProbeValues]  # of text likelihood: paraphrases, no question, trivial matters
    fresh: ProbeValues  # judged answers of each anchor: the truth
    weighted: ProbeValues  # answers of the anchor before, reweighted, at the same steps; with closed gates too

    def direction(self, channel: str) -> int:
        """The direction in which training should move a channel: towards the preferred side, and away from neutral if
        the data takes sides."""
        if channel == "neutral":
            return -1 if CONDITIONS[self.condition].align and self.condition != "lr-0" else 0
        return CONDITIONS[self.condition].direction


def load(root: Path, judge_name: str) -> list[Run]:
    """All finished runs. Answers without a judgement are judged first."""
    from vdengine.drift import load_run
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.judgements import slug_of
    from vdengine.judges import open_judge
    from vdengine.judges.judging import judge_answers

    judge, runs = open_judge(judge_name), []
    for name in CONDITIONS:
        for folder in sorted(root.glob(f"{name}-[0-9]*")):
            if not folder.is_dir() or not finished(folder):
                continue
            judge_answers(AnswerLog.open(folder), judge)
            run, slug = load_run(folder), slug_of(judge.name)
            text = run.readout("text_likelihood")
            runs.append(
                Run(
                    name,
                    int(folder.name.rsplit("-", 1)[1]),
                    run.readout("lead").values,
                    text.values,
                    text.controls,
                    run.answer_values(slug, kind="anchor"),
                    run.answer_values(slug, kind="weighted", closed=True),
                )
            )
    return runs
