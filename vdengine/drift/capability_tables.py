"""What a log of tasks says, as rows of tidy tables and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vdengine.drift.capability_log import CapabilityLog, Check
from vdengine.outside import printable

Row = dict[str, Any]


def check_rows(head: Row, log: CapabilityLog) -> list[Row]:
    """One row a step, task and metric: value and standard error, and the change since the first check with its paired
    standard error, its 95% interval, the rows lost and gained, and McNemar's p."""
    return [row for check in log.checks() for row in _of_check(head, check)]


def _of_check(head: Row, check: Check) -> list[Row]:
    rows = []
    for (task, metric), now in check.accuracies.items():
        row = head | {"step": check.step, "task": task, "metric": metric}
        row |= {"value": now.value, "stderr": now.stderr, "num_rows": now.rows}
        if (moved := check.changes.get((task, metric))) is not None:
            row |= {("change" if name == "mean" else f"change_{name}"): x for name, x in asdict(moved).items()}
        rows.append(row)
    return rows


def outcome_rows(head: Row, log: CapabilityLog) -> list[Row]:
    """One row a step, task and question: the choice that each metric answers with, and whether it is right. What was
    not scored is left out."""
    rows = []
    values = log.channel.values
    for sample, step in enumerate(log.steps.tolist()):
        for task in log.tasks:
            answers = {metric: task.predicted(values[sample], metric) for metric in task.metrics}
            for i, number in enumerate(task.numbers):
                if min(of_metric[i] for of_metric in answers.values()) < 0:
                    continue
                row = head | {"step": step, "task": task.name, "row": number}
                row |= {"right": " ".join(map(str, sorted(task.right[i])))}
                for metric, of_metric in answers.items():
                    row |= {f"{metric}_choice": int(of_metric[i]), metric: int(of_metric[i] in task.right[i])}
                rows.append(row)
    return rows


def choice_rows(head: Row, log: CapabilityLog) -> list[Row]:
    """The log-prob sum of every choice at every sample, nats; what was not scored is left out."""
    values = log.channel.values
    return [
        head | {"step": step} | log.channel.items[place] | {"logp": float(values[sample, place])}
        for sample, step in enumerate(log.steps.tolist())
        for place in np.flatnonzero(np.isfinite(values[sample]))
    ]


def capability_table(log: CapabilityLog, names: Sequence[str] | None = None) -> str:
    """A log of tasks as text: of one check the accuracies; of two the change from the first to the last; of more, the
    change of each since the first.

    Args:
        names: of the models that were checked, for the first column. Default: their steps.
    """
    checks = log.checks()
    if not checks:
        return "Tasks: no check yet."
    shown = checks if names is not None else [checks[0], checks[-1]][: len(checks)]
    labels = [printable(name) for name in names] if names is not None else [f"step {check.step}" for check in shown]
    width = max(map(len, labels))
    lines = [f"Tasks, with standard errors; changes since {labels[0]} are paired over rows (95%)"]
    for task in log.tasks:
        for metric in task.metrics:
            lines.append(f"  {printable(task.name)}, {metric}, {len(task.numbers)} rows")
            for label, check in zip(labels, shown, strict=True):
                now, moved = check.accuracies[task.name, metric], check.changes.get((task.name, metric))
                line = f"    {label:{width}}  {now.value:.4f} +- {now.stderr:.4f}"
                if moved is not None:
                    line += f"  {moved.mean:+.4f} [{moved.low:+.4f}, {moved.high:+.4f}]"
                    line += f"  {moved.lost} lost, {moved.gained} gained, p = {moved.p:.2g} (McNemar)"
                lines.append(line)
    return "\n".join(lines)


def capability_json(log: CapabilityLog, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The same as JSON values: tasks by name with their hashes, and each check's metrics and changes."""
    checks = []
    for number, check in enumerate(log.checks()):
        entry: dict[str, Any] = {"step": check.step} | ({} if names is None else {"model": names[number]})
        for (task, metric), now in check.accuracies.items():
            found = entry.setdefault("tasks", {}).setdefault(task, {})
            found[metric], found[f"{metric}_stderr"] = now.value, _finite(now.stderr)
            if (moved := check.changes.get((task, metric))) is not None:
                found[f"{metric}_change"] = {name: _finite(value) for name, value in asdict(moved).items()}
        checks.append(entry)
    about = {t.name: {"hash": t.hash, "rows": len(t.numbers), "metrics": list(t.metrics)} for t in log.tasks}
    return {"tasks": about, "checks": checks}


def _finite(value: Any) -> Any:
    """NaN, which is no JSON, as None."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
