"""Metrics of runs as series that can be drawn: one number a step, bounded in length, with what is missing named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vdengine.drift.cost import finite
from vdengine.drift.run import Run

MAX_POINTS = 1200  # of a drawn line
MAX_OTHERS = 24  # charts of metrics that `CHARTS` does not name
MAX_NAMED = 4  # spans of steps that a sentence names


@dataclass(frozen=True)
class Chart:
    """A chart of training: of `names` in metrics.jsonl, the first that a run has."""

    title: str
    quantity: str  # on the y axis, with its unit
    names: tuple[str, ...]
    scale: float = 1.0  # from the metric's unit to the chart's


CHARTS = (
    Chart("loss", "loss", ("loss",)),
    Chart("held-out loss", "loss", ("eval/loss", "eval_loss")),
    Chart("reward margin", "margin, nats", ("rewards/margins", "margin")),
    Chart("reward accuracy", "share of pairs", ("rewards/accuracies", "accuracy")),
    Chart("reward of chosen", "reward, nats", ("rewards/chosen",)),
    Chart("reward of rejected", "reward, nats", ("rewards/rejected",)),
    Chart("reward", "score", ("objective/scores", "reward")),
    Chart("KL to the reference", "KL, nats", ("objective/kl", "kl")),
    Chart("completion length", "tokens", ("completions/mean_length",)),
    Chart("entropy", "nats a token", ("entropy", "policy/entropy_avg")),
    Chart("gradient norm", "norm", ("grad_norm", "policy/grad_norm")),
    Chart("learning rate", "learning rate", ("learning_rate",)),
    Chart("speed", "tokens / s", ("tokens_per_second",)),
    Chart("step time", "seconds", ("step_seconds",)),
    Chart("memory", "GiB", ("memory_bytes",), 2.0**-30),
    Chart("MFU", "share of peak", ("mfu",)),
)
# What says where a row stands, not how training goes; counts of tokens are in the speed.
_KEYS = {"step", "epoch", "episode", "tokens", "scored_tokens", "num_tokens", "micro_steps", "skipped_updates"}


@dataclass(frozen=True)
class Line:
    """One metric of one run: `steps` [n] int64, ascending, and `values` [n] float64; NaN where a row has no number."""

    name: str
    steps: np.ndarray
    values: np.ndarray

    def thinned(self, limit: int = MAX_POINTS) -> Line:
        """At most `limit` points: of each of many equal stretches the lowest and the highest, so that spikes stay."""
        kept = thin(self.values, limit)
        return Line(self.name, self.steps[kept], self.values[kept])


@dataclass(frozen=True)
class Metrics:
    """The metrics of a run, with holes: a NaN stands between two rows where some are missing."""

    lines: dict[str, Line]  # by name, those with a number in some row
    notes: list[str] = field(default_factory=list)  # sentences on what is missing

    @classmethod
    def of(cls, run: Run) -> Metrics:
        """Of the rows of metrics.jsonl; a step that is there twice counts as in its last row. Of a history those of its
        stages one after another, with a gap between them: they may be of different losses."""
        if run.parts:
            return cls._joined([(stage.name, stage.first, cls.of(stage.run)) for stage in run.parts])
        rows = {row["step"]: row for row in run.metrics}
        ordered = sorted(rows)
        steps = np.array(ordered, np.int64)
        by_name: dict[str, np.ndarray] = {}
        for i, step in enumerate(ordered):
            for name, value in rows[step].items():
                number = finite(value)
                if number is not None and name != "step":
                    if name not in by_name:
                        by_name[name] = np.full(len(steps), np.nan)
                    by_name[name][i] = number
        notes = []
        if again := len(run.metrics) - len(rows):
            verb = "1 row repeats" if again == 1 else f"{again:,} rows repeat"
            notes.append(f"metrics.jsonl: {verb} a step; the last row of a step counts")
        every = _spacing(run, steps)
        holes = _holes(steps, every)
        if holes:
            notes.append(f"metrics.jsonl has no rows for {_named(holes)}: lines have gaps there")
        notes += _skipped(steps, by_name.get("skipped_updates"))
        notes += _not_numbers(steps, rows, by_name)
        after = np.array([np.searchsorted(steps, low) for low, _ in holes], np.int64)  # a hole lies before this row
        lines = {
            name: Line(name, np.insert(steps, after, [low for low, _ in holes]), np.insert(values, after, np.nan))
            for name, values in by_name.items()
        }
        return cls(lines, notes)

    @classmethod
    def _joined(cls, parts: Sequence[tuple[str, int, Metrics]]) -> Metrics:
        """Of stages: the name of each, and the step at which it begins."""
        lines = {}
        for name in dict.fromkeys(name for _, _, each in parts for name in each.lines):
            steps, values = [np.zeros(0, np.int64)], [np.zeros(0)]
            for _, first, each in parts:
                if (line := each.lines.get(name)) is not None:
                    gap = [first] if len(steps) > 1 else []
                    steps += [np.array(gap, np.int64), line.steps + first]
                    values += [np.full(len(gap), np.nan), line.values]
            lines[name] = Line(name, np.concatenate(steps), np.concatenate(values))
        return cls(lines, [f"{stage}: {note}" for stage, _, each in parts for note in each.notes])

    def line(self, chart: Chart) -> Line | None:
        """What a chart shows of the run."""
        for name in chart.names:
            if name in self.lines:
                line = self.lines[name]
                return Line(name, line.steps, line.values * chart.scale)
        return None

    def others(self) -> list[str]:
        """Names of metrics that no chart of `CHARTS` has."""
        charted = {name for chart in CHARTS for name in chart.names}
        return sorted(name for name in self.lines if name not in charted | _KEYS)


def other_charts(metrics: Sequence[Metrics]) -> list[Chart]:
    """Charts of further metrics, as the runs name them; at most `MAX_OTHERS`, those of most runs first."""
    count = Counter(name for each in metrics for name in each.others())
    chosen = sorted(count, key=lambda name: (-count[name], name))[:MAX_OTHERS]
    return [Chart(name, name.rsplit("/", 1)[-1], (name,)) for name in sorted(chosen)]


def thin(values: np.ndarray, limit: int) -> np.ndarray:
    """Indexes [m] int64, ascending, of at most `limit` entries of `values` [n] float64: the first, the last, and the
    lowest and the highest of equal stretches. NaN counts as a value only where a stretch has nothing else."""
    count = len(values)
    if count <= limit:
        return np.arange(count)
    edges = np.linspace(0, count, max((limit - 2) // 2, 1) + 1).astype(np.int64)
    kept = {0, count - 1}
    for low, high in zip(edges, edges[1:], strict=False):
        part = values[low:high]
        known = np.flatnonzero(np.isfinite(part))
        if len(known):
            kept |= {int(low + known[part[known].argmin()]), int(low + known[part[known].argmax()])}
        elif len(part):
            kept.add(int(low))
    return np.array(sorted(kept), np.int64)


def spans(steps: Sequence[int], every: int = 1) -> list[tuple[int, int]]:
    """Runs of steps that are `every` apart, as (first, last)."""
    found: list[tuple[int, int]] = []
    for step in steps:
        if found and step - found[-1][1] <= every:
            found[-1] = found[-1][0], step
        else:
            found.append((step, step))
    return found


def missing_samples(run: Run) -> list[str]:
    """A sentence on samples of the panel that the recipe asks for and the log does not have."""
    if run.parts:
        return [f"{stage.name}: {note}" for stage in run.parts for note in missing_samples(stage.run)]
    every = run.recipe.get("probes", {}).get("every")
    if run.log is None or isinstance(every, bool) or not isinstance(every, int) or every < 1:
        return []
    taken = set(run.log.steps.tolist())
    last = max(taken, default=-1)
    if last // every > 10**7:
        return []
    lost = [step for step in range(0, last, every) if step not in taken]
    return [f"the panel has no sample at {_named(spans(lost, every))}, which the recipe asks for"] if lost else []


def _spacing(run: Run, steps: np.ndarray) -> int:
    """Steps from one logged row to the next: the recipe's, else the most common."""
    every = run.recipe.get("log", {}).get("every")
    if isinstance(every, int) and not isinstance(every, bool) and every > 0:
        return every
    if len(steps) < 3:
        return 2**62
    distances, count = np.unique(np.diff(steps), return_counts=True)
    return int(distances[count.argmax()])


def _holes(steps: np.ndarray, every: int) -> list[tuple[int, int]]:
    """Spans of steps without rows, where rows are `every` steps apart, before the last row: (first, last)."""
    if not len(steps):
        return []
    before = np.concatenate([[min(0, int(steps[0]))], steps[:-1]])
    wide = np.flatnonzero(steps - before > every)
    return [(int(before[i]) + 1, int(steps[i]) - 1) for i in wide]


def _skipped(steps: np.ndarray, skipped: np.ndarray | None) -> list[str]:
    """A sentence on updates that were skipped as not finite."""
    if skipped is None or not (np.nan_to_num(skipped) > 0).any():
        return []
    total, where = int(np.nansum(skipped)), steps[np.nan_to_num(skipped) > 0].tolist()
    verb = "1 update was" if total == 1 else f"{total:,} updates were"
    return [f"{verb} skipped, as loss or gradients were not finite: logged at {_named(spans(where))}"]


def _not_numbers(steps: np.ndarray, rows: dict[int, dict], by_name: dict[str, np.ndarray]) -> list[str]:
    """Sentences on charted metrics that are in a row and are no number there."""
    notes = []
    for name in dict.fromkeys(name for chart in CHARTS for name in chart.names):
        unknown = steps[np.isnan(by_name[name])] if name in by_name else steps
        bad = [step for step in unknown.tolist() if name in rows[step]]
        if bad:
            rest = "" if name in by_name else ", and nowhere else: it is not drawn"
            notes.append(f"{name} is not a finite number at {_named(spans(bad))}{rest}")
    return notes


def _named(found: Sequence[tuple[int, int]]) -> str:
    """Spans of steps in words."""
    texts = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in found[:MAX_NAMED]]
    more = f" and {len(found) - MAX_NAMED:,} more places" if len(found) > MAX_NAMED else ""
    one = len(found) == 1 and found[0][0] == found[0][1]
    return f"step{'' if one else 's'} {', '.join(texts)}{more}"
