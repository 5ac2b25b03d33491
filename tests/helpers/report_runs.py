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
from vdengine.drift.judgements import ARGUMENT, BareLead, Judgements, Key, Part, Verdict
from vdengine.drift.panel_log import DriftLog
from vdengine.panels.panel import LEADS, Branch, Panel, Request
from vdengine.runfolder import RunFolder

SIDES = ("support", "neutral", "oppose")
TOKENS = 6  # of an answer
SAMPLES = 8  # of a probe in a bank
LEAD = {"support": "Yes. ", "neutral": "", "oppose": "No. "}
ARGUMENT_OF = {
    "support": "I am for it.",
    "neutral": "There are good points on both sides.",
    "oppose": "I am against it.",
}
SAID = {(a, b): lead + rest for a, lead in LEAD.items() for b, rest in ARGUMENT_OF.items()}  # by lead and argument
SPELLED = (("Yes", " yes"), ("No", " no"))
BARE = 0.7  # what judges make of a bare lead
RECIPE = """
[run]
folder = {folder}
{after}steps = {steps}
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
    leads: bool = True, openings: bool = True, coverage: float = 0.8, spelled: Sequence[Sequence[str]] = SPELLED,
    weighted: bool = True, samples: int = SAMPLES, after: Path | None = None,
) -> Path:  # fmt: skip
    """A finished run. `strength`: of the first topic's drift, nats per byte; topics after it drift less, and the last
    not at all. Answers begin with what they are drawn to, and argue half as much of it. `text`: follows every answer.
    `judges`: () leaves the answers unjudged. `coverage`: of leads. `spelled`: the tokens of yes, and those of no.
    `weighted`: answers are read again between anchors. `samples`: answers of a probe at an anchor. `after`: the run
    that it goes on from."""
    rng = np.random.default_rng(seed)
    steps = [*range(0, total, every), total]
    folder.mkdir(parents=True, exist_ok=True)
    before = f"after = {json.dumps(str(after))}\n" if after else ""
    recipe = RECIPE.format(
        folder=json.dumps(str(folder)), after=before, steps=total, seed=seed, source=json.dumps(source),
        objective=objective,
    )  # fmt: skip
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    _metrics(folder, total, steps, rng, objective)
    sizes = strength * np.linspace(1, 0, len(panel.topics)) * np.where(np.arange(len(panel.topics)) % 3 == 1, -1, 1)
    drift = dict(zip(panel.topics, sizes, strict=True))
    if leads or openings:
        _scores(folder, panel, steps, total, drift, rng, controls, leads, openings, coverage, spelled, after)
    if answers:
        _answers(
            folder, panel, steps if weighted else (), total, drift, rng, anchors or (0, steps[len(steps) // 2], total),
            judges, text, samples,
        )  # fmt: skip
    return folder


def progress(step: int, total: int) -> float:
    """How much of the drift there is."""
    return 1 - np.exp(-4 * step / total)


def requests_of(
    panel: Panel, controls: bool, leads: bool = True, openings: bool = True, spelled: Sequence[Sequence[str]] = SPELLED
) -> list[Request]:
    """What `Panel.requests` gives, without a tokenizer: tokens are made up."""
    variants = ("question", "paraphrase") if controls else ("question",)
    branches = []
    if openings:
        questions = [b for p in panel.probes for b in p.branches()]
        distinct = {b.text: b._replace(variant="null") for b in questions}
        branches += [*questions, *distinct.values()]
        branches += [b._replace(variant="paraphrase") for b in questions if controls]
    for variant in variants if leads else ():
        for probe in panel.probes:
            for stance, texts in zip(("support", "oppose"), spelled, strict=True):
                branches += [Branch(probe, stance, "lead", text, len(text), variant, LEADS) for text in texts]
    number = {text: i for i, text in enumerate(text for texts in spelled for text in texts)}
    return [
        Request([1], [2 + number[b.text]] if b.channel == LEADS else [1] * (b.num_bytes // 4), b.text, b)
        for b in branches
    ]


def _scores(
    folder: Path, panel: Panel, steps: Sequence[int], total: int, drift: dict[str, float], rng: np.random.Generator,
    controls: bool, leads: bool, openings: bool, coverage: float, spelled: Sequence[Sequence[str]],
    after: Path | None,
) -> None:  # fmt: skip
    requests = requests_of(panel, controls, leads, openings, spelled)
    log = DriftLog.create(folder, panel, requests, "tokenizer")
    branches = [request.branch for request in requests]
    num_bytes = np.array([b.num_bytes for b in branches])
    is_lead = np.array([b.channel == LEADS for b in branches])
    side = np.array([{"support": 0.5, "neutral": 0.0, "oppose": -0.5}[b.stance] * b.probe.polarity for b in branches])
    size = np.array([0.3 * drift[b.probe.topic] if b.variant == "null" else drift[b.probe.topic] for b in branches])
    own = 1 + 0.4 * rng.standard_normal(len(panel.probes))  # a probe's share of its topic's drift
    place = {p.id: i for i, p in enumerate(panel.probes)}
    of_probe = np.array([place[b.probe.id] for b in branches])
    size = size * own[of_probe]
    start = -rng.uniform(0.5, 1.0, len(branches))
    polarity = np.array([b.probe.polarity for b in branches])
    base = rng.normal(0, 0.8, len(panel.probes))[of_probe]  # log-odds of yes at the start
    count = np.array([len(spelled[b.stance == "oppose"]) for b in branches])  # spellings of a lead's side
    always = np.array([b.variant != "paraphrase" for b in branches])
    own_start = None
    if after is not None:
        own_start = DriftLog.open(after).samples()[-1].astype(np.float64)
        start = np.where(is_lead, 0.0, own_start / num_bytes)
        share = np.clip(np.exp(own_start) * count / coverage, 1e-9, 1 - 1e-9)  # of leads: that of its own side
        base = np.where(is_lead, np.log(share / (1 - share)), 0.0)
    for step in steps:
        noise = 0.004 * rng.standard_normal(len(branches)) if step else np.zeros(len(branches))
        per_byte = start + side * size * progress(step, total) - 0.01 * progress(step, total) + noise
        # Log-odds of a lead's own side move by 40 times the drift; its side's probability is split over its spellings.
        odds = base if own_start is not None else np.where(side * polarity > 0, 1, -1) * base
        odds = odds + 80 * side * size * progress(step, total) + 5 * noise
        of_lead = np.log(coverage / (1 + np.exp(-odds)) / count)
        shown = always | (step in (steps[0], steps[-1]))
        row = np.where(is_lead, of_lead, per_byte * num_bytes)
        if own_start is not None and step == 0:
            row = own_start
        log.append(step, np.where(shown, row, np.nan).astype(np.float32))


def _answers(
    folder: Path, panel: Panel, steps: Sequence[int], total: int, drift: dict[str, float], rng: np.random.Generator,
    anchors: Sequence[int], judges: Sequence[str], text: str, samples: int,
) -> None:  # fmt: skip
    log = AnswerLog.create(folder, panel, "tokenizer", samples=samples, max_tokens=TOKENS)
    leads: list[int] = []
    arguments: list[int] = []
    for anchor in anchors:
        found = []
        for p in panel.probes:
            pull = 25 * drift[p.topic] * p.polarity * progress(anchor, total)
            for k in range(samples):
                for drawn, towards in ((leads, pull), (arguments, pull / 2)):
                    odds = np.exp([towards, 0.0, -towards])
                    drawn.append(int(rng.choice(3, p=odds / odds.sum())))
                said = SAID[SIDES[leads[-1]], SIDES[arguments[-1]]]
                found.append(Answer(anchor, p.id, k, [1, 2, 3], k % 4 > 0, said + text))
        log.append(found)
    bank = len(panel.probes) * samples
    for anchor in anchors if steps else ():
        first = -rng.uniform(5, 30, bank)
        log.append_reading(anchor, anchor, first)
        for step in steps:
            if step > anchor and not any(anchor < a <= step for a in anchors):
                reach = 0.55 * np.sqrt(10 * (step - anchor) / total)  # its square over 2 is the KL
                log.append_reading(step, anchor, first + reach * rng.standard_normal(bank) - reach**2 / 2)

    def verdict(said: int) -> Verdict:
        return Verdict(tuple(0.92 if k == said else 0.04 for k in range(3)))

    for n, judge in enumerate(judges):
        verdicts: dict[Key, Verdict] = {}
        for a, lead, argued in zip(log.answers, leads, arguments, strict=True):
            seen = argued if rng.random() < 1 - 0.1 * n else int(rng.integers(3))
            # All of an answer is what it begins with; without a yes or no it is all argument.
            verdicts[Part(a.anchor, a.probe, a.sample)] = verdict(seen if lead == 1 else lead)
            if lead != 1:
                verdicts[Part(a.anchor, a.probe, a.sample, ARGUMENT)] = verdict(seen)
        for p in panel.probes:
            for sign in (1, -1):
                verdicts[BareLead(p.id, sign)] = Verdict(((1 + sign * BARE) / 2, 0.0, (1 - sign * BARE) / 2))
        Judgements.start(folder / "drift" / "judgements" / f"{judge}.jsonl", judge, {}, verdicts)


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
