"""A run as one object: its raw logs, judgements, readouts, analyses and tables.

    run = vdengine.drift.load_run("runs/x")
    run.readouts                                   # ["lead", "answers:rule:argument", ..., "text_likelihood"]
    run.analysis("lead").drift("abortion").magnitude
    run.frame("curves")                            # a pandas DataFrame; without pandas columns by name

How a folder is read: `drift/load.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vdengine.drift import frames
from vdengine.drift.analysis import Analysis, analyse
from vdengine.drift.answer_curves import curve_steps
from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.answer_values import answer_values
from vdengine.drift.capability_log import CapabilityLog, Check, checks_of
from vdengine.drift.capability_tables import check_rows, choice_rows, outcome_rows
from vdengine.drift.judgements import BOTH, PARTS, Judgements
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import ProbeValues, in_judges_units, joined, lead_values, text_values
from vdengine.errors import InputError
from vdengine.panels.panel import LEADS, OPENINGS
from vdengine.recipe import LEAD, TEXT

ANSWERS = "answers"


@dataclass(frozen=True)
class Readout:
    """One readout of one run: leads, text likelihood, or a part of answers as one judge reads them; with the options of
    its analysis."""

    kind: str  # LEAD | ANSWERS | TEXT
    judge: str  # "" but for answers
    part: str  # of answers: one of `judgements.PARTS`; else ""
    values: ProbeValues
    controls: dict[str, ProbeValues]  # of leads and text likelihood: by variant
    other_judges: dict[str, ProbeValues]  # answers: the same part of them as other judges read it, by judge
    folder: Path
    smoothing: str
    baseline: int | None

    @property
    def key(self) -> str:
        """ "lead", "text_likelihood", "answers:<judge>" or "answers:<judge>:<part>"."""
        return key_of(self.kind, self.judge, self.part)

    @cached_property
    def analysis(self) -> Analysis:
        """Its curves, magnitudes, drift times and checks.

        Raises:
            InputError: a baseline that was not sampled, or an unknown smoothing.
        """
        try:
            return analyse(
                self.values,
                baseline=self.baseline,
                smoothing=self.smoothing,
                steps=curve_steps(self.values, self.smoothing),
                controls=self.controls,
                judges=self.other_judges,
            )
        except InputError as error:
            raise InputError(f"{self.folder}: {error}") from None


def key_of(kind: str, judge: str = "", part: str = BOTH) -> str:
    """The name of a readout: "lead", "text_likelihood", "answers:<judge>", or "answers:<judge>:<part>" of a part of
    answers alone."""
    return ":".join([kind, *([judge] if judge else []), *([part] if judge and part != BOTH else [])])


@dataclass(frozen=True)
class Stage:
    """A stretch of a history: one of its runs, or of its saved models those of one name."""

    name: str
    first: int  # step of the history at which it begins
    run: Run  # it alone: steps are its own, and shifts since its own first sample

    @property
    def last(self) -> int:
        """The step of the history at which it ends."""
        return self.first + self.run.total_steps


@dataclass
class Run:
    """A run, or a folder that `vdengine score` or `vdengine judge` wrote. Make one with `load_run`; with the stages
    before it as one history, `load_history`."""

    name: str
    folder: Path
    recipe: dict[str, dict[str, Any]]  # empty where there is none
    log: DriftLog | None  # of leads and openings
    answers: AnswerLog | None  # and readings between anchors
    total_steps: int  # planned, else the last on record
    metrics: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl
    completions: list[dict[str, Any]] = field(default_factory=list)  # rows of completions.jsonl
    capability: CapabilityLog | None = None  # of tasks
    notes: list[str] = field(default_factory=list)  # what was left out, and why a readout is not there
    empty: dict[str, str] = field(default_factory=dict)  # by kind of readout: why it has nothing to show

    def __repr__(self) -> str:
        samples = 0 if self.log is None else len(self.log.steps)
        answers = 0 if self.answers is None else len(self.answers.answers)
        return f"Run({self.name!r}, {self.total_steps} steps, {samples} samples of the panel, {answers} answers)"

    views: dict[str, Readout] = field(default_factory=dict)  # the readouts, by key
    judgements: dict[str, Judgements] = field(default_factory=dict)  # by judge
    stages: list[Stage] = field(default_factory=list)  # of a history, in order
    models: dict[int, str] = field(default_factory=dict)  # of saved models: the name of each by step

    @property
    def parts(self) -> list[Stage]:
        """The stages whose raw logs stand in folders of their own; [] where this run has one log."""
        logs = [(stage, stage.run.log, stage.run.answers, stage.run.capability) for stage in self.stages]
        return [stage for stage, *own in logs if any(log is not None for log in own)]

    @cached_property
    def checks(self) -> list[Check]:
        """What each sample of tasks says; of a history those of all stages that have the last one's tasks."""
        stages = [(stage.first, stage.run.capability) for stage in self.parts] or [(0, self.capability)]
        logs = [(first, log) for first, log in stages if log is not None]
        return checks_of(logs) if logs else []

    @property
    def own_views(self) -> dict[str, Readout]:
        """The readouts of what its own recipe did: of a history those of the last stage, since that one's start."""
        return self.parts[-1].run.views if self.parts else self.views

    @property
    def readouts(self) -> list[str]:
        """Keys of what can be analysed: "lead", "answers:<judge>", "answers:<judge>:<part>", "text_likelihood"."""
        return list(self.views)

    def analysis(self, readout: str | None = None) -> Analysis:
        """Curves, magnitudes, drift times and checks of a readout. Default: the first one.

        Raises:
            InputError: no such readout, a baseline that was not sampled, or an unknown smoothing.
        """
        return self.readout(readout).analysis

    def readout(self, key: str | None = None) -> Readout:
        """One of `readouts`. Default: the first one.

        Raises:
            InputError: no such readout.
        """
        if not self.views:
            raise InputError(f"{self.folder}: nothing to analyse: {' '.join(self.empty.values()) or 'no drift data'}")
        if key is None:
            return next(iter(self.views.values()))
        if key not in self.views:
            raise InputError(f"{self.folder}: has no readout {key!r}; it has {', '.join(self.views)}")
        return self.views[key]

    @cached_property
    def stances(self) -> dict[str, np.ndarray]:
        """By judge: [len(answers.answers), 3] float64 p(support, neutral, oppose) towards the prompt's proposition, of
        whole answers; NaN where there is no verdict."""
        if self.answers is None:
            return {}
        if self.parts:
            return {
                judge: np.concatenate([stage.run.stances[judge][keep] for stage, keep in self.kept_answers])
                for judge in self.judgements
                if all(judge in stage.run.stances for stage, _ in self.kept_answers)
            }
        return {judge: judgements.stances_of(self.answers) for judge, judgements in self.judgements.items()}

    @cached_property
    def kept_answers(self) -> list[tuple[Stage, np.ndarray]]:
        """Of a history the stages with answers, and [answers] bool: those before the next one's first, which are of the
        same weights as this one's last."""
        stages = [stage for stage in self.parts if stage.run.answers is not None and stage.run.answers.answers]
        ends = [*(stage.first for stage in stages[1:]), self.total_steps + 1][: len(stages)]
        return [
            (stage, np.array([stage.first + a.anchor < end for a in stage.run.answers.answers], bool))
            for stage, end in zip(stages, ends, strict=True)
            if stage.run.answers is not None
        ]

    def lead_values(self, variant: str = "question", judge: str | None = None) -> ProbeValues:
        """Leads by probe and sample.

        Args:
            variant: what they follow: "question", or a control.
            judge: a slug: in this judge's units, what it makes of an answer that is only a lead; to stand beside
                answers that it has judged.

        Raises:
            InputError: no leads were scored, or none of this variant; a judge that is not known here, or that was not
                asked for leads alone.
        """
        if self.parts:
            return joined([(s.first, s.run.lead_values(variant, judge)) for s in self.parts], self.total_steps)
        if self.log is None or not self.log.items(LEADS):
            raise InputError(f"{self.folder}: {self.empty[LEAD]}")
        values = lead_values(self.log, self.total_steps, variant)
        if judge is None:
            return values
        strong = {f"{cheap}+{name}": name for cheap in self.judgements for name in self.judgements if cheap != name}
        judge = strong.get(judge, judge)  # a cheap judge is corrected towards the strong one's units
        if judge not in self.judgements:
            known = ", ".join(self.judgements) or "nobody"
            raise InputError(f"{self.folder}: not judged by {judge!r}; it is by {known}")
        bare = self.judgements[judge].bare
        if bare is None:
            raise InputError(
                f"{self.folder}: {judge} was not asked what a bare yes or no says: run vdengine judge on it again"
            )
        return in_judges_units(values, bare)

    def text_values(self, variant: str = "question") -> ProbeValues:
        """Text likelihood by probe and sample; variant: "question", or a control.

        Raises:
            InputError: no openings were scored, or none of this variant.
        """
        if self.parts:
            return joined([(s.first, s.run.text_values(variant)) for s in self.parts], self.total_steps)
        if self.log is None or not self.log.items(OPENINGS):
            raise InputError(f"{self.folder}: {self.empty[TEXT]}")
        return text_values(self.log, self.total_steps, variant)

    def answer_values(self, judge: str, part: str = BOTH, *, kind: str = "both", closed: bool = False) -> ProbeValues:
        """Judged answers by probe and sample.

        Args:
            judge: its slug.
            part: of the answers: "both", all of it; "argument", without its lead; or "lead".
            kind, closed: as `drift.answer_values` takes them.

        Raises:
            InputError: no answers, none that this judge has judged, no such part, or as `drift.answer_values`.
        """
        if self.answers is None:
            raise InputError(f"{self.folder}: {self.empty[ANSWERS]}")
        if self.parts:
            each = [(s.first, s.run.answer_values(judge, part, kind=kind, closed=closed)) for s, _ in self.kept_answers]
            return joined(each, self.total_steps)
        if judge not in self.judgements:
            known = ", ".join(self.judgements) or "nobody"
            raise InputError(f"{self.folder}: not judged by {judge!r}; it is by {known}")
        if part not in PARTS:
            raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
        stances = self.judgements[judge].stances_of(self.answers, part)
        return answer_values(self.answers, stances, self.total_steps, kind=kind, closed=closed)

    def frame(self, table: str = "curves") -> Any:
        """A tidy table: one of `TABLES` by name. A pandas DataFrame where pandas is installed, else
        columns: {name: list}. A table without rows has no columns.

        Raises:
            InputError: no such table.
        """
        return frames.as_frame(self.rows(table))

    def rows(self, table: str, topics: Sequence[str] | None = None) -> list[frames.Row]:
        """The rows of a table; topics: only these ("all" is the panel's mean). Default: every one.

        Of a history those of the whole, and those of each stage, named in the column `stage`, with its own baseline.
        Steps are the history's; fractions are of the stretch that a row is of. Raw data are in the stages' rows alone.

        Raises:
            InputError: no such table.
        """
        if table not in TABLES:
            raise InputError(f"no table {table!r}; there are {', '.join(TABLES)}")
        whole = [] if self.parts and table in RAW_TABLES else TABLES[table](self, topics)
        if not self.stages:
            return whole
        return [self.head | {"stage": None} | row for row in whole] + [
            self.head | {"stage": stage.name} | frames.moved(row, stage.first)
            for stage in self.stages
            for row in stage.run.rows(table, topics)
        ]

    def describe(self) -> frames.Row:
        """What the run is, in one row."""
        section = self.recipe.get
        view = next(iter(self.views.values()), None)
        return {
            "run": self.name,
            "model": section("model", {}).get("source"),
            "objective": section("objective", {}).get("name"),
            "data": ", ".join(self.sources) or None,
            "steps": self.total_steps,
            "seed": section("run", {}).get("seed"),
            "panel": self.manifest.get("panel"),
            "probes": len(self.questions),
            "panel_hash": self.panel_hash,
            "smoothing": None if view is None else view.analysis.smoothing,
            "baseline": None if view is None else view.analysis.baseline,
            "samples": sum(run.num_samples for run in [s.run for s in self.parts] or [self]),
            "answers": len(self.answers.answers) if self.answers else 0,
            "judges": ", ".join(self.judgements) or None,
            "notes": "; ".join(self.notes) or None,
        } | ({"stages": ", ".join(stage.name for stage in self.stages)} if self.stages else {})

    @property
    def num_samples(self) -> int:
        """Of the panel, in its own log."""
        return 0 if self.log is None else len(self.log.steps)

    @property
    def head(self) -> frames.Row:
        """The cells that every row of a table begins with."""
        return {"run": self.name}

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest of the panel's log, or else of the answers; {} without either."""
        if self.log is not None:
            return self.log.manifest
        return self.answers.manifest if self.answers is not None else {}

    @property
    def panel_hash(self) -> str:
        """The hash of the panel; "" without any log."""
        return str(self.manifest.get("panel_hash", ""))

    @property
    def questions(self) -> dict[str, tuple[str, str]]:
        """(topic, axis) of every probe that was scored or answered, by its id, without controls."""
        topic_and_axis: dict[str, tuple[str, str]] = {}
        for row in [*self.log.items(LEADS), *self.log.items(OPENINGS)] if self.log is not None else ():
            if row["variant"] == "question":
                topic_and_axis[row["probe"]] = row["topic"], row["axis"]
        for probe in self.answers.panel.probes if self.answers is not None else ():
            topic_and_axis.setdefault(probe.id, (probe.topic, probe.axis))
        return topic_and_axis

    @property
    def sources(self) -> list[str]:
        """The training data, as the recipe names it."""
        train = self.recipe.get("data", {}).get("train", [])
        return [str(source) for source in (train if isinstance(train, list) else [train])]


# ---------------------------------------------------------------------------------------------------- tables

TableRows = Callable[[Run, Sequence[str] | None], list[frames.Row]]  # of a run; of these topics only


def _of_readouts(rows: Callable[[frames.Row, Readout, Sequence[str] | None], list[frames.Row]]) -> TableRows:
    """A table with rows for each readout of a run."""

    def of_run(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
        table = []
        for view in run.views.values():
            head = {"readout": view.kind, "judge": view.judge or None, "part": view.part or None}
            table += rows(run.head | head, view, topics)
        return table

    return of_run


def _gates(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.answers is None else frames.gate_rows(run.head, run.answers)


def _support(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.answers is None else frames.support_rows(run.head, run.answers)


def _answer_rows(run: Run, topics: Sequence[str] | None) -> list[frames.Row]:
    return [] if run.answers is None else frames.answer_rows(run.head, run.answers, run.stances)


def _branch_rows(channel: str) -> TableRows:
    return lambda run, topics: [] if run.log is None else frames.branch_rows(run.head, run.log, channel)


def _of_tasks(rows: Callable[[frames.Row, CapabilityLog], list[frames.Row]]) -> TableRows:
    return lambda run, topics: [] if run.capability is None else rows(run.head, run.capability)


# Those that hold what was logged, not what was made of it.
RAW_TABLES = {
    "gates", "support", "training", "answers", LEADS, OPENINGS, "capability", "capability_rows", "capability_choices",
}  # fmt: skip
# The tables that a report writes.
SUMMARY_TABLES: dict[str, TableRows] = {
    "runs": lambda run, topics: [run.describe()],
    "curves": _of_readouts(lambda head, view, topics: frames.curve_rows(head, view.analysis, topics)),
    "magnitudes": _of_readouts(lambda head, view, topics: frames.magnitude_rows(head, view.analysis, topics)),
    "validity": _of_readouts(lambda head, view, topics: frames.validity_rows(head, view.analysis)),
    "reliability": _of_readouts(lambda head, view, topics: frames.reliability_rows(head, view.analysis, topics)),
    "agreement": _of_readouts(lambda head, view, topics: frames.agreement_rows(head, view.analysis, topics)),
    "gates": _gates,
    "support": _support,
    "capability": _of_tasks(check_rows),
    "cost": lambda run, topics: frames.cost_rows(run.head, run.metrics),
    "training": lambda run, topics: frames.metric_rows(run.head, run.metrics),
}
# All tables: those, and the raw data behind them.
TABLES: dict[str, TableRows] = SUMMARY_TABLES | {
    "probes": _of_readouts(lambda head, view, topics: frames.probe_rows(head, view.values)),
    LEADS: _branch_rows(LEADS),
    OPENINGS: _branch_rows(OPENINGS),
    "capability_rows": _of_tasks(outcome_rows),
    "capability_choices": _of_tasks(choice_rows),
    "answers": _answer_rows,
}


def judges_of(runs: Sequence[Run]) -> list[str]:
    """Judges that have a readout in any of the runs; the one with the most is first."""
    count = Counter(view.judge for run in runs for view in run.views.values() if view.judge)
    return [judge for judge, _ in count.most_common()]
