"""Run folders as training leaves them, with made-up numbers whose drift is known: what the report is tested on.

`python tests/helpers/report_runs.py OUT [RUNS [SAMPLES]]` writes some of the panel `values`, to look at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.opening_log import DriftLog
from vdengine.panels.panel import Branch, Panel
from vdengine.runfolder import RunFolder

SIDES = ("support", "neutral", "oppose")
TOKENS = 6  # of an answer
SAMPLES = 8  # of a probe in a bank
SAID = {
    "support": "Yes, I am for it.",
    "neutral": "There are good points on both sides.",
    "oppose": "No, I am against it.",
}
RECIPE = """
[run]
steps = {steps}
seed = {seed}

[model]
source = "tiny-llama"

[data]
train = [{source}]

[objective]
name = "{objective}"
"""


def panel_of(topics: int = 3, probes: int = 24, name: str = "made-up", text: str = "") -> Panel:
    """A panel with enough probes for intervals that count."""
    rows = []
    for t in range(topics):
        for k in range(probes):
            sides = {s: [{"text": f"I {s} number {j} of {t}.{k}.", "kind": "belief"} for j in range(2)] for s in SIDES}
            rows.append(
                {
                    "schema": 1, "id": f"t{t}-{k}", "topic": f"topic {t}{text}", "axis": f"more of {t}{text}",
                    "polarity": 1 if k % 2 else -1, "prompt": f"Should there be {t}.{k}?{text}", "paraphrases": [],
                    "openings": sides,
                }
            )  # fmt: skip
    return Panel.from_rows(rows, name)


def make_run(
    folder: Path, panel: Panel, *, total: int = 40, every: int = 4, seed: int = 0, strength: float = 0.02,
    judges: Sequence[str] = ("rule",), answers: bool = True, anchors: Sequence[int] | None = None,
    controls: bool = True, source: str = "values-synth:support", objective: str = "dpo", text: str = "",
) -> Path:  # fmt: skip
    """A finished run. `strength`: of the first topic's drift, nats per byte; topics after it drift less, and the last
    not at all. `text`: follows every answer. `judges`: () leaves the answers unjudged."""
    rng = np.random.default_rng(seed)
    steps = [*range(0, total, every), total]
    folder.mkdir(parents=True, exist_ok=True)
    recipe = RECIPE.format(steps=total, seed=seed, source=json.dumps(source), objective=objective)
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    _metrics(folder, total, steps, rng, objective)
    sizes = strength * np.linspace(1, 0, len(panel.topics)) * np.where(np.arange(len(panel.topics)) % 3 == 1, -1, 1)
    drift = dict(zip(panel.topics, sizes, strict=True))
    _openings(folder, panel, steps, total, drift, rng, controls)
    if answers:
        _answers(folder, panel, steps, total, drift, rng, anchors or (0, steps[len(steps) // 2], total), judges, text)
    return folder


def progress(step: int, total: int) -> float:
    """How much of the drift there is."""
    return 1 - np.exp(-4 * step / total)


def _openings(
    folder: Path, panel: Panel, steps: Sequence[int], total: int, drift: dict[str, float], rng: np.random.Generator,
    controls: bool,
) -> None:  # fmt: skip
    branches = [b for p in panel.probes for b in p.branches()]
    if controls:
        branches += [Branch(b.probe, b.stance, b.kind, b.text, b.num_bytes, v) for v in ("paraphrase", "null")
                     for b in branches[: len(branches)]]  # fmt: skip
    log = DriftLog.create(folder, panel, branches, [b.num_bytes // 4 for b in branches], "tokenizer")
    num_bytes = np.array([b.num_bytes for b in branches])
    side = np.array([{"support": 0.5, "neutral": 0.0, "oppose": -0.5}[b.stance] * b.probe.polarity for b in branches])
    size = np.array([0.0 if b.variant == "null" else drift[b.probe.topic] for b in branches])
    own = 1 + 0.4 * rng.standard_normal(len(panel.probes))  # a probe's share of its topic's drift
    place = {p.id: i for i, p in enumerate(panel.probes)}
    size = size * own[[place[b.probe.id] for b in branches]]
    start = -rng.uniform(0.5, 1.0, len(branches))
    question = np.array([b.variant == "question" for b in branches])
    for step in steps:
        per_byte = start + side * size * progress(step, total) - 0.01 * progress(step, total)
        per_byte = per_byte + (0.004 * rng.standard_normal(len(branches)) if step else 0)
        shown = question | (step in (steps[0], steps[-1]))
        log.append(step, np.where(shown, per_byte * num_bytes, np.nan).astype(np.float32))


def _answers(
    folder: Path, panel: Panel, steps: Sequence[int], total: int, drift: dict[str, float], rng: np.random.Generator,
    anchors: Sequence[int], judges: Sequence[str], text: str,
) -> None:  # fmt: skip
    log = AnswerLog.create(folder, panel, "tokenizer", samples=SAMPLES, max_tokens=TOKENS)
    names = list(SAID)
    verdicts: list[int] = []
    for anchor in anchors:
        found = []
        for p in panel.probes:
            pull = 25 * drift[p.topic] * p.polarity * progress(anchor, total)
            odds = np.exp([pull, 0.0, -pull])
            for k in range(SAMPLES):
                said = int(rng.choice(3, p=odds / odds.sum()))
                verdicts.append(said)
                found.append(Answer(anchor, p.id, k, [1, 2, 3], k % 4 > 0, SAID[names[said]] + text))
        log.append(found)
    bank = len(panel.probes) * SAMPLES
    for anchor in anchors:
        first = -rng.uniform(5, 30, bank)
        log.append_reading(anchor, anchor, first)
        for step in steps:
            if step > anchor and not any(anchor < a <= step for a in anchors):
                reach = 0.55 * np.sqrt(10 * (step - anchor) / total)  # its square over 2 is the KL
                log.append_reading(step, anchor, first + reach * rng.standard_normal(bank) - reach**2 / 2)
    (folder / "drift" / "judgements").mkdir(exist_ok=True)
    for n, judge in enumerate(judges):
        lines: list[dict] = [{"schema": 1, "judge": judge, "identity": {}}]
        for a, said in zip(log.answers, verdicts, strict=True):
            seen = said if rng.random() < 1 - 0.1 * n else int(rng.integers(3))
            stance = [0.04, 0.04, 0.04]
            stance[seen] = 0.92
            lines.append({"anchor": a.anchor, "probe": a.probe, "sample": a.sample, "stance": stance})
        write_lines(folder / "drift" / "judgements" / f"{judge}.jsonl", lines)


def _metrics(folder: Path, total: int, steps: Sequence[int], rng: np.random.Generator, objective: str) -> None:
    rows = []
    for step in range(1, total + 1):
        row = {
            "step": step, "loss": 0.7 * np.exp(-step / total) + 0.02 * rng.standard_normal(),
            "grad_norm": rng.uniform(1, 2), "learning_rate": 1e-5 * (1 - step / total), "step_seconds": 2.0,
            "probe_seconds": 0.3 if step - 1 in steps else 0.0,
        }  # fmt: skip
        if objective == "ppo":
            row |= {"objective/scores": step / total, "objective/kl": 0.1 * step}
        else:
            row |= {"rewards/margins": step / total, "rewards/accuracies": 0.5 + 0.4 * step / total}
        rows.append(row)
    write_lines(folder / "metrics.jsonl", rows)
    if objective == "ppo":
        found = [
            {"step": s, "prompt": f"Question {s}?", "completion": f"Answer {s}.", "score": 0.1 * s, "kl": 0.01 * s,
             "tokens": 4, "stopped": True}
            for s in range(0, total, 5)
        ]  # fmt: skip
        write_lines(RunFolder(folder).completions, found)


def write_lines(path: Path, rows: Sequence[dict]) -> None:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")


def make_gap(path: Path, panel: Panel, source: str) -> Path:
    """What `vdengine gap --out` writes, as far as the report reads it."""
    gaps = np.linspace(1.2, -0.4, len(panel.topics))
    entries = {
        t: {"gap": float(g), "low": float(g) - 0.2, "high": float(g) + 0.2, "rows": 40, "few": False}
        for t, g in zip(panel.topics, gaps, strict=True)
    }
    found = {
        "schema": 1, "audit": "gap", "source": source, "panel": panel.name, "panel_hash": panel.hash,
        "method": "words", "topics": entries,
        "all": {"gap": 0.4, "low": 0.3, "high": 0.5, "rows": 400, "few": False},
    }  # fmt: skip
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def two_runs(where: Path) -> Path:
    """Two judged runs, `first` and `other` (PPO's), and `gap.json`, an audit of the data of the first."""
    make_run(where / "first", panel_of(), strength=0.03, judges=("rule", "second"))
    make_run(where / "other", panel_of(), seed=1, strength=-0.02, source="b.jsonl", objective="ppo")
    make_gap(where / "gap.json", panel_of(), "values-synth:support")
    return where


if __name__ == "__main__":
    out, count, samples = Path(sys.argv[1]), int((sys.argv[2:] or ["2"])[0]), int((sys.argv[3:] or ["10"])[0])
    values = Panel.load("values")
    for n in range(count):
        make_run(
            out / f"dpo-{'support' if n % 2 else 'oppose'}-{n // 2}", values, seed=n, total=4 * samples,
            strength=0.03 if n % 2 else -0.02, judges=("rule", "model-smollm2") if n < 6 else ("rule",),
            source=f"values-synth:{'support' if n % 2 else 'oppose'}", objective="ppo" if n == 3 else "dpo",
        )  # fmt: skip
    make_gap(out / "gap.json", values, "values-synth:support")
