"""One history of several stages: of runs that each start from the one before (SFT, then DPO), or of saved models in
order. Shifts are since the start of the first stage; each stage has its own beside them.

    history = vdengine.drift.load_history("runs/dpo")        # whose recipe says run.after = "runs/sft"
    history.analysis("lead").drift("abortion").magnitude     # over both
    history.stages[1].run.analysis("lead")                   # of DPO alone, since its own start
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.capability_log import same_tasks
from vdengine.drift.chain import difference, earlier_runs, edge
from vdengine.drift.load import load_run
from vdengine.drift.probe_values import ProbeValues, joined, stretch
from vdengine.drift.run import Readout, Run, Stage
from vdengine.errors import InputError
from vdengine.outside import is_text, json_object, printable
from vdengine.runfolder import RunFolder


def load_history(
    folder: str | Path,
    *,
    name: str | None = None,
    smoothing: str | None = None,
    baseline: int | None = None,
    judge: str | None = None,
) -> Run:
    """Read a run with all stages before it. Without any it is `load_run`, and so it is, with a note, where the folder
    of one is not there any more; the models of a folder that `vdengine score` wrote are stages too.

    Args:
        name, smoothing, judge: as `load_run` takes them.
        baseline: step of the history that its shifts are since. Default: the first. Stages have their own.

    Raises:
        InputError: as `load_run`, of any stage; stages that were probed with different panels.
    """
    folder = Path(folder)
    run = load_run(folder, name=name, smoothing=smoothing, baseline=baseline, judge=judge)
    try:
        earlier = earlier_runs(folder)
    except InputError as error:
        run.notes.append(f"shown without the stages before it: {error}")
        return run
    if not earlier:
        return _with_models(run) if RunFolder(folder).models.exists() else run
    folders = [*earlier, folder]
    labels = tell_apart(folders)
    runs = []
    for place, label in zip(folders, labels, strict=True):
        try:
            runs.append(load_run(place, name=label, smoothing=smoothing, judge=judge))
        except InputError as error:
            run.notes.append(f"shown without the stages before it: {error}")
            return run
    stages: list[Stage] = []
    for each in runs:
        if each.panel_hash != run.panel_hash:
            raise InputError(
                f"{printable(each.folder)} and {printable(folder)}: are stages of one history and were probed with "
                "different panels; report them apart, without run.after"
            )
        stages.append(Stage(each.name, stages[-1].last if stages else 0, each))
    return _whole(run, stages, baseline)


def tell_apart(names: Sequence[str | Path]) -> list[str]:
    """The last part of each path, with as many before it as tell them apart."""
    parts = [Path(os.path.realpath(name) if "\0" not in str(name) else str(name)).parts for name in names]
    depth = 1
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


# --------------------------------------------------------------------------------------------------------- runs


def _whole(last: Run, stages: list[Stage], baseline: int | None) -> Run:
    """The stages as one run; last: the run of the last stage, whose recipe and panel stand for all."""
    notes = [f"{stage.name}: {note}" for stage in stages for note in stage.run.notes]
    for before, after in zip(stages, stages[1:], strict=False):
        if before.run.log is not None and after.run.log is not None:
            if (gap := difference(before.run.log, after.run.log)) != 0:
                notes.append(f"{after.name}: {edge(before.name, gap)}")
    for stage in stages[:-1]:
        if last.capability is not None and (log := stage.run.capability) and not same_tasks(log, last.capability):
            notes.append(f"{stage.name}: has other tasks, so its checks do not stand in the curve")
    whole = replace(
        last,
        total_steps=stages[-1].last,
        stages=stages,
        views={},
        notes=notes,
        metrics=_moved(stages, "metrics"),
        completions=_moved(stages, "completions"),
    )
    whole.answers = _answers(whole)
    for key in dict.fromkeys(key for stage in stages for key in stage.run.views):
        having = [(stage, stage.run.views[key]) for stage in stages if key in stage.run.views]
        try:
            whole.views[key] = _joined_view(having, whole, baseline)
        except InputError as error:
            notes.append(f"{key}: not drawn as one history: {error}")
            continue
        if lacking := [stage.name for stage in stages if key not in stage.run.views]:
            notes.append(f"{key}: nothing of {', '.join(lacking)}, which has fewer than two samples of it")
    kinds = {view.kind for view in whole.views.values()}
    whole.empty = {kind: why for kind, why in last.empty.items() if kind not in kinds}
    return whole


def _joined_view(having: Sequence[tuple[Stage, Readout]], whole: Run, baseline: int | None) -> Readout:
    """A readout of the stages that have it, as one."""

    def join(parts: Sequence[ProbeValues]) -> ProbeValues:
        return joined([(stage.first, part) for (stage, _), part in zip(having, parts, strict=True)], whole.total_steps)

    def common(tables: Sequence[dict[str, ProbeValues]]) -> dict[str, ProbeValues]:
        names = [name for name in tables[0] if all(name in table for table in tables)]
        return {name: join([table[name] for table in tables]) for name in names}

    views = [view for _, view in having]
    return replace(
        views[-1],
        values=join([view.values for view in views]),
        controls=common([view.controls for view in views]),
        other_judges=common([view.other_judges for view in views]),
        folder=whole.folder,
        baseline=baseline,
    )


def _answers(whole: Run) -> AnswerLog | None:
    """The answers of all stages, at steps of the history; where two have answers of the same weights, the later's."""
    kept = whole.kept_answers
    if not kept:
        return None
    log = kept[-1][0].run.answers
    if log is None:
        raise RuntimeError("stages without answers are not kept")
    answers = [
        answer._replace(anchor=stage.first + answer.anchor)
        for stage, keep in kept
        for answer, is_kept in zip(stage.run.answers.answers if stage.run.answers else (), keep, strict=True)
        if is_kept
    ]
    return AnswerLog(log.folder, log.manifest, log.panel, answers)


def _moved(stages: Sequence[Stage], name: str) -> list[dict]:
    """Rows of the stages, at steps of the history."""
    return [row | {"step": stage.first + row["step"]} for stage in stages for row in getattr(stage.run, name)]


# ------------------------------------------------------------------------------------------------- saved models


def _with_models(run: Run) -> Run:
    """A run of saved models, with its stages: models of one name in a row, from the last model before them on."""
    path = RunFolder(run.folder).models
    named = [
        (int(step), entry["model"], entry["stage"])
        for step, entry in json_object(path).items()
        if step.isdecimal() and isinstance(entry, dict) and is_text(entry.get("model")) and is_text(entry.get("stage"))
    ]
    named.sort()
    run.models = {step: stage for step, _, stage in named}
    if len({stage for *_, stage in named}) < len(named):  # several models of a stage
        run.models = dict(zip(run.models, tell_apart([name for _, name, _ in named]), strict=True))
    before = None
    for stage, of_stage in groupby(named, key=lambda each: each[2]):
        steps = [step for step, *_ in of_stage]
        first = steps[0] if before is None else before
        before = steps[-1]
        if first == before:
            continue  # one model alone, which the next stage starts from
        part = Run(stage, run.folder, {}, None, None, before - first)
        part.views = {key: _part_of(view, first, before) for key, view in run.views.items()}
        part.views = {key: view for key, view in part.views.items() if len(view.values.steps) > 1}
        run.stages.append(Stage(stage, first, part))
    return run


def _part_of(view: Readout, first: int, last: int) -> Readout:
    """A readout between two steps. Of models between the first and the last one no controls are scored."""
    return replace(view, values=stretch(view.values, first, last), controls={}, other_judges={}, baseline=None)
