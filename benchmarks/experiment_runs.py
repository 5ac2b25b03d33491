"""Running the runs of `experiment.py`, one after another or side by side, and keeping their numbers.

A finished run leaves three small files in the folder of results, and nothing else:

    <run>.json             what it was and started from, and its readouts by probe at the start, the middle and the end
    <run>.answers.jsonl.xz its answers: a line an anchor and probe, texts in the order in which they were drawn
    <run>.<judge>.json     a judge's stances of these answers, summed by part of the answer, anchor, probe and half

The tables need no more, and another judge can read the answers later. A run that has no <run>.json is run again from
its start.
"""

from __future__ import annotations

import json
import lzma
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import common  # noqa: E402
from experiment_data import TOPICS, Plan, training_file  # noqa: E402
from experiment_tables import ANCHORS, LEAD, NULL, PARTS, QUESTION, TEXT, Experiment  # noqa: E402

if TYPE_CHECKING:
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.panel_log import DriftLog
    from vdengine.drift.probe_values import ProbeValues
    from vdengine.judges.base import Judge
    from vdengine.panels.panel import Panel

SCHEMA = 2
DIGITS = 9  # significant ones that are kept: all of a float32


@dataclass(frozen=True)
class Size:
    """How large the runs are."""

    model: str = common.SMOLLM2
    dtype: str = "bfloat16"  # as on a GPU; on a CPU with AVX-512 no slower than float32
    panel: str = "values-mini"
    probes: int = 48  # a stratified part of the panel's four topics
    answers: int = 16  # of a probe at an anchor
    max_tokens: int = 16  # of an answer
    examples: int = 8  # of a step
    # Steps and learning rate of the SFT that all runs start from, on both sides alike: without it few answers begin
    # with yes or no, and preference training does not make them (docs/experiment.md). No steps: none.
    warm: tuple[int, float] = (24, 1e-4)
    # Steps of each objective, each row once, and learning rates with which answers move.
    sft: tuple[int, float] = (24, 1e-4)
    dpo: tuple[int, float] = (16, 1e-4)
    simpo: tuple[int, float] = (16, 1e-4)

    def of(self, plan: Plan) -> tuple[int, float]:
        """Steps and learning rate of a run."""
        return (2, 0.0) if plan.control == "lr 0" else getattr(self, plan.objective)


SMALL = Size()
FULL = Size(  # for a GPU; not tried
    model="Qwen/Qwen3-0.6B", panel="values", probes=96, max_tokens=48, examples=16,
    sft=(24, 2e-5), dpo=(24, 1e-5), simpo=(24, 1e-5),
)  # fmt: skip
# Shows that it runs; measures nothing.
QUICK = replace(SMALL, probes=16, answers=2, warm=(2, 1e-4), sft=(2, 1e-4), dpo=(2, 1e-4), simpo=(2, 1e-4))


def panel_of(size: Size) -> Panel:
    """The panel that is scored and answered: as many probes of each topic and polarity."""
    from vdengine.panels.panel import Panel

    whole = Panel.load(size.panel)
    each = size.probes // (2 * len(TOPICS))
    chosen = []
    for topic in TOPICS:
        for polarity in (1, -1):
            chosen += [p for p in whole.probes if p.topic == topic and p.polarity == polarity][:each]
    return Panel(whole.name, tuple(chosen))


def recipe(plan: Plan, size: Size, work: Path) -> str:
    """The recipe of a run, as TOML; its data and panel are made in `work`."""
    from vdengine.recipe import make_recipe, to_toml

    steps, lr = size.of(plan)
    panel = work / "panel.jsonl"
    panel_of(size).save(panel)
    source = str(warm_folder(size, work) / "export") if size.warm[0] else size.model
    tables: dict[str, dict[str, Any]] = {
        "run": {"folder": str(work / plan.name), "seed": plan.seed, "steps": steps},
        "model": {"source": source, "dtype": size.dtype},
        "data": {
            "train": [str(training_file(plan, size.examples * steps, work / "data"))],
            "max_tokens": 256,
            "cache": str(work / "cache"),
        },
        "objective": {"name": plan.objective},
        "batch": {"examples": size.examples, "tokens": 2048},
        "optimizer": {"lr": lr, "schedule": "constant", "warmup": 0.25},
        "probes": {"panel": str(panel), "every": steps // 2, "controls": True},
        "answers": {
            "samples": size.answers,
            "base": size.answers,
            "max_tokens": size.max_tokens,
            "anchors": [steps // 2],
        },
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": False},
    }
    return to_toml(make_recipe(tables))


# ------------------------------------------------------------------------------------------------------- running


WARM = "warm"  # the run that all others start from


def warm_folder(size: Size, work: Path) -> Path:
    """The folder of the run that all others of a size start from; its name says what makes it."""
    from vdengine.files import json_hash

    made_of = {name: getattr(size, name) for name in ("model", "dtype", "examples", "warm")}
    return work / f"{WARM}-{json_hash(made_of)[:8]}"


def start_of(size: Size, work: Path) -> str:
    """A hash of the weights that all runs start from; "" where they start from the model as it is."""
    from vdengine.files import digest, json_hash

    if not size.warm[0]:
        return ""
    files = sorted((warm_folder(size, work) / "export").glob("*.safetensors"))
    return json_hash({path.name: digest(path) for path in files})


def warm_up(size: Size, work: Path, threads: int) -> None:
    """Train the model that all runs start from, if it is not there: SFT on answers of both sides alike, half of them
    with a yes or no before them.

    Raises:
        SystemExit: the run failed.
    """
    from vdengine.recipe import make_recipe, to_toml

    steps, lr = size.warm
    folder = warm_folder(size, work)
    if not steps or (folder / "export" / "config.json").exists():
        return
    none = (0.0,) * len(TOPICS)
    halves = [Plan(f"{WARM}-{name}", "sft", led, none, 2001 + led) for led, name in ((True, "led"), (False, "argued"))]
    tables: dict[str, dict[str, Any]] = {
        "run": {"folder": str(folder), "seed": 2000, "steps": steps},
        "model": {"source": size.model, "dtype": size.dtype},
        "data": {
            "train": [str(training_file(half, size.examples * steps // 2, work / "data")) for half in halves],
            "max_tokens": 256,
            "cache": str(work / "cache"),
        },
        "objective": {"name": "sft"},
        "batch": {"examples": size.examples, "tokens": 2048},
        "optimizer": {"lr": lr, "schedule": "constant", "warmup": 0.25},
        "probes": {"every": 0},
        "parallel": {"activation_checkpoint": "none"},
        "checkpoint": {"every": 0, "export": True},
    }
    path = work / f"{folder.name}.toml"
    path.write_text(to_toml(make_recipe(tables)), encoding="utf-8")
    print(f"{WARM}: the model that all runs start from ...", flush=True)
    command = [sys.executable, "-m", "vdengine.train", str(path)]
    output, code = common.run_limited(command, None, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if code != 0:
        sys.exit(f"{WARM}: {common.ended(output, code, None)}")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def run_all(plans: Sequence[Plan], size: Size, results: Path, work: Path, jobs: int, threads: int) -> None:
    """Run what has no results yet, `jobs` at a time; says after each how long the rest will take. What fails is named,
    and the others go on."""
    results.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    left = [plan for plan in plans if not is_done(plan, size, results)]
    print(f"{len(plans) - len(left)} of {len(plans)} runs are there; {len(left)} to run, {jobs} at a time", flush=True)
    if not left:
        return
    warm_up(size, work, jobs * threads)
    start = start_of(size, work)
    check_start(results, start, f"{warm_folder(size, work)}: the model that runs start from")
    for plan in left:
        (work / f"{plan.name}.toml").write_text(recipe(plan, size, work), encoding="utf-8")  # made before the jobs
    began, num_done = time.perf_counter(), 0
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, plan, size, start, results, work, threads): plan for plan in left}
        for future in as_completed(futures):
            num_done += 1
            each = (time.perf_counter() - began) / num_done
            minutes = each * (len(left) - num_done) / 60
            print(f"{futures[future].name}: {future.result()}; about {minutes:.0f} minutes left", flush=True)


def _run(plan: Plan, size: Size, start: str, results: Path, work: Path, threads: int) -> str:
    """Run one, keep its numbers, remove its folder; returns what became of it, in words. start: as `start_of`."""
    folder, began = work / plan.name, time.perf_counter()
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut short: it has no checkpoint to go on with
    command = [sys.executable, "-m", "vdengine.train", str(work / f"{plan.name}.toml")]
    output, code = common.run_limited(command, None, env=os.environ | {"OMP_NUM_THREADS": str(threads)})
    if code != 0:
        return common.ended(output, code, None)
    keep(plan, size, start, folder, results, time.perf_counter() - began)
    shutil.rmtree(folder)  # with its checkpoint: 1.5 GB
    return f"done in {time.perf_counter() - began:.0f} s"


def is_done(plan: Plan, size: Size, results: Path) -> bool:
    """Whether a run's results are there. It ends here where they are those of another run of this name, or of one that
    started from other weights than the other results of the folder."""
    path = results / f"{plan.name}.json"
    if not path.exists():
        return False
    old = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(json.dumps({"schema": SCHEMA, "plan": asdict(plan), "size": asdict(size)}))
    if changed := [name for name in wanted if old.get(name) != wanted[name]]:
        sys.exit(f"{path}: holds another run ({', '.join(changed)} differ); name another folder of --results")
    check_start(results, old["start"], str(path))
    return True


def check_start(results: Path, start: str, what: str) -> None:
    """End here where the results of a folder are of runs that started from other weights.

    Args:
        start: a hash of weights, as `start_of`.
        what: it is of.
    """
    # All are compared with the first one, so all are alike. Names of runs have no dot, those of judgements do.
    first = min((path for path in results.glob("*.json") if "." not in path.stem), default=None)
    if first is not None and (theirs := json.loads(first.read_text(encoding="utf-8")).get("start", "")) != start:
        sys.exit(
            f"{what}: has other weights ({start[:8] or 'none'}) than those that {first} started from "
            f"({theirs[:8] or 'none'}); name another folder of --results"
        )


# ------------------------------------------------------------------------------------------- what is kept of a run


def keep(plan: Plan, size: Size, start: str, folder: Path, results: Path, seconds: float) -> None:
    """Write a finished run's answers, then its readouts; the second file says that both are whole.

    Args:
        start: as `start_of`.
    """
    from vdengine.drift.answer_log import AnswerLog
    from vdengine.drift.panel_log import DriftLog
    from vdengine.drift.probe_values import lead_values, text_values

    log, answers = DriftLog.open(folder), AnswerLog.open(folder)
    lead, text = lead_values(log), text_values(log)
    record = {
        "schema": SCHEMA,
        "plan": asdict(plan),
        "size": asdict(size),
        "start": start,
        "panel_hash": log.manifest["panel_hash"],
        "seconds": round(seconds),
        "versions": common.versions(),
        "steps": lead.steps.tolist(),
        "probes": lead.probes.tolist(),
        "largest_change": largest_change(log),
        "lead": _kept(lead, "lead", "coverage"),
        "text_likelihood": _kept(text, "question", "null"),
        "trivial": {
            "polarity": (trivial := lead_values(log, variant="off-topic")).polarity.tolist(),
            "lead": _kept(trivial, "lead", "coverage"),
            "text_likelihood": _kept(text_values(log, variant="off-topic"), "question", "null"),
        },
    }
    if record["steps"] != answers.anchors or len(answers.anchors) != len(ANCHORS):
        raise RuntimeError(f"{folder}: probes at steps {record['steps']}, answers at {answers.anchors}")
    lines = [
        json.dumps([anchor, probe.id, [a.text for a in answers.at(anchor) if a.probe == probe.id]], ensure_ascii=False)
        for anchor in answers.anchors
        for probe in answers.panel.probes
    ]
    (results / f"{plan.name}.answers.jsonl.xz").write_bytes(lzma.compress(("\n".join(lines) + "\n").encode(), preset=9))
    _write(results / f"{plan.name}.json", record)


def largest_change(log: DriftLog) -> float:
    """The largest change of any raw number of the log since its first sample, nats; learning rate 0 gives exactly 0."""
    changes = [np.abs(channel.values - channel.values[:1]) for channel in log.channels.values()]  # [S, items] each
    return max((float(np.nanmax(each)) for each in changes if np.isfinite(each).any()), default=0.0)


def _kept(values: ProbeValues, *channels: str) -> dict[str, list[list[float | None]]]:
    """Channels by name: [anchors][probes], rounded to DIGITS; None where not sampled (JSON has no NaN)."""
    return {name: [[_rounded(x) for x in row] for row in values.channels[name].tolist()] for name in channels}


def _rounded(x: float) -> float | None:
    return float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None


def _write(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    temporary.replace(path)


# ---------------------------------------------------------------------------------------------------------- judging


def judge_all(plans: Sequence[Plan], size: Size, results: Path, judge: Judge) -> None:
    """Let a judge read the answers of all runs that it has not read yet."""
    for plan in plans:
        if not is_done(plan, size, results):
            continue
        path = judged_path(results, plan, judge.name)
        identity = json.loads(json.dumps(judge.identity))
        if path.exists() and json.loads(path.read_text(encoding="utf-8"))["identity"] == identity:
            continue
        print(f"{plan.name}: judged by {judge.name} ...", flush=True)
        _write(path, judged(plan, size, results, judge))


def judged_path(results: Path, plan: Plan, judge: str) -> Path:
    """The file of a judge's stances of a run's answers."""
    from vdengine.drift.judgements import slug_of

    return results / f"{plan.name}.{slug_of(judge)}.json"


def judged(plan: Plan, size: Size, results: Path, judge: Judge) -> dict[str, Any]:
    """A judge's stances of a run's answers: for each part the sums [anchors][probes][2] over answers 0, 2, ... and
    1, 3, ... of p(support) - p(oppose) on the topic's axis, and how many answers had a verdict."""
    from vdengine.drift.answer_values import ANSWER_CHANNELS, by_answer
    from vdengine.drift.judgements import open_judgements, slug_of
    from vdengine.judges.judging import judge_answers

    panel = panel_of(size)
    row_of = {probe.id: i for i, probe in enumerate(panel.probes)}
    with tempfile.TemporaryDirectory() as folder:
        log = answer_log(plan, size, results, panel, Path(folder))
        judge_answers(log, judge, progress=True)
        kept = open_judgements(log, slug_of(judge.name))
        if kept.refusal:
            sys.exit(f"judge {judge.name}: {kept.refusal}")
        parts = {}
        anchors = log.anchors
        places = np.array([(anchors.index(a.anchor), row_of[a.probe], a.sample % 2) for a in log.answers])  # [n, 3]
        for part in PARTS:
            graded = by_answer(log, kept.stances_of(log, part))[:, ANSWER_CHANNELS.index("graded")]  # [n]
            sums, counts = np.zeros((2, len(anchors), len(row_of), 2))
            known = np.isfinite(graded)
            np.add.at(sums, tuple(places[known].T), graded[known])
            np.add.at(counts, tuple(places[known].T), 1)
            parts[part] = {"sums": sums.round(5).tolist(), "counts": counts.astype(int).tolist()}
    return {"judge": judge.name, "identity": judge.identity, "bare": kept.bare, "parts": parts}


def answer_log(plan: Plan, size: Size, results: Path, panel: Panel, folder: Path) -> AnswerLog:
    """The kept answers of a run as a log of answers, in `folder`."""
    from vdengine.drift.answer_log import Answer, AnswerLog

    log = AnswerLog.create(folder, panel, "", samples=size.answers, max_tokens=size.max_tokens)
    lines = lzma.decompress((results / f"{plan.name}.answers.jsonl.xz").read_bytes()).decode().split("\n")
    for line in filter(None, lines):
        anchor, probe, texts = json.loads(line)
        log.append([Answer(anchor, probe, i, [], False, text) for i, text in enumerate(texts)])
    return log


def judge_kappas(judge: Judge) -> dict[str, float]:
    """A judge's agreement with those of `labels.jsonl` that two readers labelled, by part of the answers: Cohen's
    kappa, the mean of that with either."""
    import rule_judge

    from vdengine.drift.answer_leads import split_lead
    from vdengine.drift.kappa import label_agreement
    from vdengine.judges.base import Item
    from vdengine.panels.panel import Panel

    probes = {probe.id: probe for probe in Panel.load("values").probes}
    labelled = [row for row in rule_judge.rows() if "readers" in row]
    stances = {part: np.full((len(labelled), 3), np.nan) for part in PARTS}
    asked: list[tuple[list[tuple[str, int]], Item]] = []  # the parts and rows that a verdict is of, and what is judged
    for i, row in enumerate(labelled):
        probe, answer = probes[row["probe"]], row["answer"]
        side, rest = split_lead(answer, probe.leads)
        stances["lead"][i] = [side > 0, side == 0, side < 0]
        stances["argument"][i] = (0.0, 1.0, 0.0)  # of a lead alone, which argues nothing
        asked.append(([("both", i)] + [("argument", i)] * (not side), Item(probe, answer)))
        if side and rest:
            asked.append(([("argument", i)], Item(probe, rest)))
    for k, verdict in judge.judge([item for _, item in asked]):
        for part, i in asked[k][0]:
            stances[part][i] = verdict.stance
    return {
        part: float(
            np.mean(
                [
                    label_agreement(
                        rule_judge.certain([row["readers"][k][part] for row in labelled]), stances[part]
                    ).kappa
                    for k in (0, 1)
                ]
            )
        )
        for part in PARTS
    }


# ------------------------------------------------------------------------------------------------- reading results


def load(plans: Sequence[Plan], size: Size, results: Path, judge: str) -> Experiment:
    """The results of those of these runs that are there, as a judge reads their answers."""
    there = [plan for plan in plans if is_done(plan, size, results)]
    if not there:
        sys.exit(f"{results}: no finished run")
    panel = panel_of(size)
    records, judgements = [], []
    for plan in there:
        records.append(record := json.loads((results / f"{plan.name}.json").read_text(encoding="utf-8")))
        judgements.append(json.loads(judged_path(results, plan, judge).read_text(encoding="utf-8")))
        if record["panel_hash"] != panel.hash or record["probes"] != [p.id for p in panel.probes]:
            sys.exit(f"{results / plan.name}.json: is of another panel")
    topics, polarity = (np.array([getattr(p, name) for p in panel.probes]) for name in ("topic", "polarity"))
    return assemble(there, records, judgements, topics, polarity)


def assemble(
    plans: Sequence[Plan],
    records: Sequence[Mapping[str, Any]],
    judgements: Sequence[Mapping[str, Any]],
    topics: np.ndarray,
    polarity: np.ndarray,
) -> Experiment:
    """The experiment from what is kept of its runs, R in number.

    All runs begin with the same weights, so their answers at step 0 are one pool: a shift's first end has next to no
    noise, and shifts of two steps, or of two runs, share next to none.

    Args:
        topics, polarity: [P] of the probes.
    """

    def of_runs(*keys: str) -> np.ndarray:
        """[R, anchors, probes] float64, NaN where not sampled."""
        return np.array([reduce(lambda table, key: table[key], keys, record) for record in records], np.float64)

    lead, coverage = of_runs("lead", "lead"), of_runs("lead", "coverage")
    trivial_lead = of_runs("trivial", "lead", "lead")
    question, null = (of_runs("text_likelihood", name) for name in ("question", "null"))
    trivial_question, trivial_null = (of_runs("trivial", "text_likelihood", name) for name in ("question", "null"))
    truth = {}
    for part in PARTS:
        sums, counts = (
            np.array([judgement["parts"][part][name] for judgement in judgements], np.float64)
            for name in ("sums", "counts")
        )  # [R, anchors, P, 2] each
        with np.errstate(invalid="ignore", divide="ignore"):
            truth[part] = sums[:, 1:] / counts[:, 1:] - sums[:, :1].sum(0) / counts[:, :1].sum(0)
    bare = next((judgement["bare"] for judgement in judgements if judgement["bare"]), None)
    in_judges_units = None
    if bare is not None:  # what the judge makes of a bare yes and of a bare no, towards what the question proposes
        yes, no = ((coverage + sign * polarity * lead) / 2 for sign in (1, -1))
        in_judges_units = since_start(polarity * (yes * bare[0] + no * bare[1]))
    return Experiment(
        plans=tuple(plans),
        topics=topics,
        polarity=polarity,
        trivial_polarity=np.array(records[0]["trivial"]["polarity"]),
        shifts={
            LEAD: since_start(lead),
            TEXT: since_start(question - null),
            QUESTION: since_start(question),
            NULL: since_start(null),
        },
        null={QUESTION: since_start(null), NULL: since_start(null)},
        trivial={
            LEAD: since_start(trivial_lead),
            TEXT: since_start(trivial_question - trivial_null),
            QUESTION: since_start(trivial_question),
            NULL: since_start(trivial_null),
        },
        coverage=np.stack(np.broadcast_arrays(coverage[:, :1], coverage[:, 1:]), -1),
        truth=truth,
        in_judges_units=in_judges_units,
        largest_change=np.array([record["largest_change"] for record in records]),
    )


def since_start(values: np.ndarray) -> np.ndarray:
    """Shifts [R, K, P] since the first anchor of values [R, 1 + K, P]."""
    return values[:, 1:] - values[:, :1]
