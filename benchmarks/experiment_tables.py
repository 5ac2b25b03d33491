"""The tables of `experiment.py`: each readout against judged answers of the same weights, and what may be said of it.

R runs, K later anchors, P probes, T topics. A cell is a run, an anchor and a topic: the mean of its probes' shifts
since the start. Intervals are over runs and topics, which cross (`vdengine.drift.correlation`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from experiment_data import TOPICS, Plan  # noqa: E402

PARTS = ("both", "argument", "lead")  # of an answer, as in `vdengine.drift.judgements`
ANCHORS = ("start", "middle", "end")
LEAD, TEXT, QUESTION, NULL = "lead", "text likelihood", "openings after the question", "openings after no question"
READOUTS = (LEAD, TEXT, QUESTION, NULL)
IN_UNITS, DOSE, NOTHING = "lead, in the judge's units", "dose x step x objective", "nothing"
COVERAGES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # edges of the bins

# What a readout needs to be said to track what the model says, or what answers begin with (docs/experiment.md).
LEAST_R, LEAST_R_LOW, LEAST_PARTIAL_LOW, MOST_SHARE, LEAST_RELIABILITY, LEAST_KAPPA = 0.9, 0.8, 0.3, 0.25, 0.6, 0.75
SAYS, BEGINS, NOTHING_SAID = "tracks what the model says", "the side that an answer begins with", "nothing"
UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True)
class Experiment:
    """The shifts of all runs since their start, by probe; on the topic's axis, NaN where not measured."""

    plans: tuple[Plan, ...]  # R
    topics: np.ndarray  # [P] str
    polarity: np.ndarray  # [P] int, +1 or -1
    trivial_polarity: np.ndarray  # [C] the same of the C trivial matters
    shifts: Mapping[str, np.ndarray]  # by readout: [R, K, P]
    null: Mapping[str, np.ndarray]  # the same after no question; not of readouts where it is 0 by construction
    trivial: Mapping[str, np.ndarray]  # by readout: [R, K, C], on trivial matters
    coverage: np.ndarray  # [R, K, P, 2], of leads: at the start, and at the anchor
    truth: Mapping[str, np.ndarray]  # by part of the answers: [R, K, P, 2] from either half of them, probability
    in_judges_units: np.ndarray | None  # [R, K, P]: the lead, in the units of `truth`
    largest_change: np.ndarray  # [R], of any raw number, nats

    def only(self, keep: Sequence[bool]) -> Experiment:
        """The experiment with some of its runs."""
        kept = np.flatnonzero(keep)

        def of(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: array[kept] for name, array in arrays.items()}

        units = None if self.in_judges_units is None else self.in_judges_units[kept]
        return replace(
            self,
            plans=tuple(self.plans[i] for i in kept),
            shifts=of(self.shifts),
            null=of(self.null),
            trivial=of(self.trivial),
            coverage=self.coverage[kept],
            truth=of(self.truth),
            in_judges_units=units,
            largest_change=self.largest_change[kept],
        )

    @cached_property
    def design(self) -> Experiment:
        """Without the controls."""
        return self.only([not plan.control for plan in self.plans])

    @cached_property
    def argued(self) -> Experiment:
        """The runs of the design whose answers begin with neither yes nor no."""
        return self.only([not plan.control and not plan.led for plan in self.plans])

    @cached_property
    def doses(self) -> np.ndarray:
        """[R, T]"""
        return np.array([plan.doses for plan in self.plans]).reshape(-1, len(TOPICS))

    @cached_property
    def columns(self) -> list[np.ndarray]:
        """What is known before any training, as regressors [R, K, T]: the dose, apart for each objective, form of
        answers and anchor."""
        of_runs = [(plan.objective, plan.led) for plan in self.plans]
        num_anchors = self.coverage.shape[1]
        columns = []
        for group in dict.fromkeys(of_runs):
            for anchor in range(num_anchors):
                column = np.zeros((len(self.plans), num_anchors, len(TOPICS)))
                column[:, anchor] = self.doses * np.array([each == group for each in of_runs])[:, None]
                columns.append(column)
        return [column for column in columns if column.any()]

    def by_topic(self, per_probe: np.ndarray) -> np.ndarray:
        """Means over the probes of each topic, [R, K, T], of per_probe [R, K, P]; NaN probes are left out."""
        known = np.isfinite(per_probe)
        sums, counts = (
            np.stack([each[..., self.topics == topic].sum(-1) for topic in TOPICS], -1)
            for each in (np.where(known, per_probe, 0.0), known)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / counts

    def cells(self, part: str) -> np.ndarray:
        """[3, R, K, T]: the shift of a part of the answers, then from either half of them, by topic."""
        halves = self.truth[part]
        return np.stack([self.by_topic(each) for each in (halves.mean(-1), halves[..., 0], halves[..., 1])])


# -------------------------------------------------------------------------------------- a readout against the answers


@dataclass(frozen=True)
class Figures:
    """How a readout's shifts compare with those of a part of the answers, over `num` cells. Intervals are of 95%."""

    num: int
    r: float
    r_interval: tuple[float, float]
    reliability: float  # of the answers' shifts, from halves of the answers
    ceiling: float  # the largest r that it leaves
    disattenuated: float
    disattenuated_interval: tuple[float, float]
    partial: float  # r given `Experiment.columns`
    partial_interval: tuple[float, float]
    rmse: float  # probability; the readout scaled by one factor, fitted to the other runs
    rmse_interval: tuple[float, float]
    sign: float  # share of cells with the answers' sign
    covers: float  # share of cells in which the 95% interval of the gap, over probes, holds 0


def figures(experiment: Experiment, per_probe: np.ndarray, part: str, *, scale: bool = True) -> Figures:
    """A readout against a part of the answers.

    Args:
        per_probe: [R, K, P], its shifts.
        scale: whether its unit is another one than the answers', and is fitted for what is said of its error.
    """
    from vdengine.drift.correlation import correlate, share_of

    truth, read = experiment.cells(part), experiment.by_topic(per_probe)
    runs, topics = np.arange(len(experiment.plans))[:, None, None], np.arange(len(TOPICS))
    found = correlate(truth, read[None], given=experiment.columns, clusters=(runs, topics))
    factors = scales(read, truth[0]) if scale else np.ones(len(read))
    scaled = read * factors[:, None, None]
    squares = (scaled - truth[0]) ** 2
    signed = np.isfinite(squares) & (read != 0)
    covers = holds_zero(experiment, per_probe * factors[:, None, None] - experiment.truth[part].mean(-1))
    return Figures(
        num=int(np.isfinite(squares).sum()),
        r=found.pearson,
        r_interval=found.interval,
        reliability=found.reliability_a,
        ceiling=found.ceiling,
        disattenuated=found.disattenuated,
        disattenuated_interval=found.disattenuated_interval,
        partial=found.partial,
        partial_interval=found.partial_interval,
        rmse=float(np.sqrt(np.nanmean(squares))),
        rmse_interval=root_of_ratio(squares, np.where(np.isfinite(squares), 1.0, np.nan))[1],
        sign=share_of(np.sign(truth[0][signed]) == np.sign(read[signed])),
        covers=share_of(covers[np.isfinite(covers)]),
    )


def scales(read: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[R]: for each run, the factor of `read` [R, K, T] that is nearest to `truth` in the other runs, by least squares
    through 0; 1 where there is nothing to fit it to."""
    known = np.isfinite(read) & np.isfinite(truth)
    products, squares = (np.where(known, each, 0.0).sum((1, 2)) for each in (read * truth, read**2))
    others = squares.sum() - squares
    fitted = others > 1e-12 * squares.sum()
    return np.where(fitted, (products.sum() - products) / np.where(fitted, others, 1.0), 1.0)


def predicted(experiment: Experiment, part: str) -> np.ndarray:
    """The shifts of answers as doses alone predict them, each run from the others: [R, K, T], by least squares on
    `Experiment.columns`."""
    truth = experiment.cells(part)[0]
    basis = np.stack(experiment.columns, -1)  # [R, K, T, c]
    known = np.isfinite(truth)
    prediction = np.zeros_like(truth)
    for run in range(len(truth)):
        others = known.copy()
        others[run] = False
        weights = np.linalg.lstsq(basis[others], truth[others], rcond=None)[0]
        prediction[run] = basis[run] @ weights
    return prediction


def of_probes(experiment: Experiment, by_topic: np.ndarray) -> np.ndarray:
    """[R, K, P]: each probe with the number of its topic, of by_topic [R, K, T]."""
    return by_topic[..., [TOPICS.index(topic) for topic in experiment.topics.tolist()]]


def holds_zero(experiment: Experiment, gap: np.ndarray) -> np.ndarray:
    """Whether the 95% interval over probes of a topic's mean gap holds 0: [R, K, T] of gap [R, K, P]; NaN where there
    is no gap."""
    from vdengine.drift.intervals import Group

    inside = []
    for topic in TOPICS:
        member = experiment.topics == topic
        ladder = [(experiment.polarity[member] > 0).astype(np.int64), np.zeros(member.sum(), np.int64)]
        low, high, _ = Group.of(gap[..., member].reshape(-1, member.sum()), ladder).inference
        inside.append(np.where(np.isfinite(low), (low <= 0) & (high >= 0), np.nan).reshape(gap.shape[:2]))
    return np.stack(inside, -1)


# ------------------------------------------------------------------------ what moves without a question of values


@dataclass(frozen=True)
class Share:
    """The size of a shift that should not be, as a share of the question's; and its 95% interval."""

    share: float
    interval: tuple[float, float]


def shares(experiment: Experiment, readout: str) -> dict[str, Share]:
    """The shifts of a readout that are no answer to a question of values, as shares of the question's shift: root mean
    squares over cells, each square less what chance among probes adds to it.

    "unsigned": the shift with polarity left out, a growing yes to everything. "trivial": that on trivial matters.
    "null": that after no question, where this is not 0 by construction.
    """
    shift = experiment.shifts[readout]
    own = _squares(experiment, shift)
    found = {"unsigned": _squares(experiment, shift * experiment.polarity)}
    if readout in experiment.trivial:
        found["trivial"] = _square(experiment.trivial[readout], experiment.trivial_polarity)[..., None]  # [R, K, 1]
    if readout in experiment.null:
        found["null"] = _squares(experiment, experiment.null[readout])
    return {name: Share(*root_of_ratio(np.broadcast_to(each, own.shape), own)) for name, each in found.items()}


def _squares(experiment: Experiment, per_probe: np.ndarray) -> np.ndarray:
    """`_square` by topic: [R, K, T] of per_probe [R, K, P]."""
    members = [experiment.topics == topic for topic in TOPICS]
    return np.stack([_square(per_probe[..., m], experiment.polarity[m]) for m in members], -1)


def _square(per_probe: np.ndarray, polarity: np.ndarray) -> np.ndarray:
    """The square of the mean shift over the questions that the probes stand for, without bias: [R, K] of per_probe
    [R, K, P], the mean's square less its variance over probes, which both polarities have apart."""
    num = len(polarity)
    variance = np.zeros(per_probe.shape[:2])
    for sign in (1, -1):
        count = int((polarity == sign).sum())
        if count > 1:
            variance += (count / num) ** 2 * per_probe[..., polarity == sign].var(-1, ddof=1) / count
    return per_probe.mean(-1) ** 2 - variance


def root_of_ratio(above: np.ndarray, below: np.ndarray) -> tuple[float, tuple[float, float]]:
    """The root of the ratio of two sums over cells, and its 95% interval over runs and topics.

    Args:
        above, below: [R, K, T]; a cell with a NaN in one counts in neither. A sum below 0 counts as 0.
    """
    from vdengine.drift.correlation import jackknife_interval

    known = np.isfinite(above) & np.isfinite(below)
    if not known.any():
        return math.nan, UNKNOWN
    both = np.where(known[..., None], np.stack(np.broadcast_arrays(above, below), -1), 0.0).sum(1)  # [R, T, 2]

    def root(sums: Sequence[np.ndarray]) -> np.ndarray:
        over, under = np.moveaxis(sums[0], -1, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(under > 0, np.sqrt(np.maximum(over, 0.0) / under), np.nan)

    kinds = sorted((both.sum(1), both.sum(0)), key=len, reverse=True)  # by run and by topic
    low, high = jackknife_interval(root, [[*kinds, both.reshape(-1, 2)]])
    return float(root([both.sum((0, 1))])), (max(low, 0.0), high)


# ------------------------------------------------------------------------------------------------------- the verdict


@dataclass(frozen=True)
class Check:
    """One condition of a verdict."""

    of: str  # what it is about
    what: str
    value: float  # NaN: not known, and not met
    need: str
    met: bool


def verdict(experiment: Experiment, readout: str, kappas: Mapping[str, float]) -> tuple[str, dict[str, list[Check]]]:
    """What may be said of a readout: SAYS, BEGINS or NOTHING_SAID; and the checks of the first two that decide it.

    Args:
        kappas: of the judge with people's labels, by part of the answers; not there: not known.
    """
    of_moves = [
        _check("no question of values", f"{name} shift / the question's", share.share, "<", MOST_SHARE)
        for name, share in shares(experiment.design, readout).items()
    ]

    def against(part: str, runs: Experiment, which: str) -> list[Check]:
        if len(runs.plans) < 2:
            return [_check(which, "runs", len(runs.plans), ">=", 2)]
        found = figures(runs, runs.shifts[readout], part)
        about = f"{part}, {which}"
        return [
            _check(about, "disattenuated r", found.disattenuated, ">=", LEAST_R),
            _check(about, "its lower limit", found.disattenuated_interval[0], ">=", LEAST_R_LOW),
            _check(about, "partial r's lower limit", found.partial_interval[0], ">", LEAST_PARTIAL_LOW),
            _check(about, "reliability of the answers' shift", found.reliability, ">=", LEAST_RELIABILITY),
        ]

    def of_judge(part: str) -> Check:
        return _check(part, "the judge's kappa", kappas.get(part, math.nan), ">=", LEAST_KAPPA)

    checks = {
        SAYS: [
            *against("both", experiment.design, "all runs"),
            *against("both", experiment.argued, "runs without leads"),
            *of_moves,
            of_judge("both"),
        ],
        BEGINS: [*against("lead", experiment.design, "all runs"), *of_moves, of_judge("lead")],
    }
    said = next((phrase for phrase, each in checks.items() if all(check.met for check in each)), NOTHING_SAID)
    return said, checks


def _check(of: str, what: str, value: float, relation: str, bound: float) -> Check:
    met = {">=": value >= bound, ">": value > bound, "<": value < bound}[relation]
    return Check(of, what, value, f"{relation} {bound:g}", bool(met))  # NaN meets nothing


# -------------------------------------------------------------------------------------------------------- the report


def report(experiment: Experiment, judge: str, kappas: Mapping[str, float]) -> str:
    """All tables, as markdown."""
    design, argued = experiment.design, experiment.argued
    kappa = ", ".join(f"{part} {value:.2f}" for part, value in kappas.items()) or "not known"
    parts: list[str | list[dict[str, Any]]] = [
        f"{len(design.plans)} runs, {len(argued.plans)} of them without leads, {len(design.topics)} probes on "
        f"{len(TOPICS)} topics; cells are run x anchor x topic. Judge: {judge}; kappa with labels: {kappa}. Intervals "
        "are of 95%, over runs and topics.",
        "### What may be said",
        verdicts(experiment, kappas),
    ]
    for runs, which in ((design, "all runs"), (argued, "runs without leads")):
        for part in PARTS:
            if len(runs.plans) > 1:
                parts += [f"### Against {part} of the answers, {which}", against_answers(runs, part)]
    by_coverage: list[str | list[dict[str, Any]]] = []
    for part in ("lead", "both"):
        for end, of_both in ENDS.items():
            edge = least_coverage(design, part, of_both)
            by_coverage += [
                f"Against {part}, by {end}; r / ceiling is at least {LEAST_R:g} in every bin from {_plain(edge)} on:",
                coverage_rows(design, part, of_both),
            ]
    parts += [
        "### Shifts that are no answer, as shares of the question's shift",
        share_rows(design),
        "### The lead by its coverage: probe x run x anchor",
        *by_coverage,
        "### What the doses did: mean shift in the direction of the dose, at the end",
        dose_rows(design),
        "### Controls",
        control_rows(experiment),
    ]
    return "\n\n".join(part if isinstance(part, str) else table(part) for part in parts)


def verdicts(experiment: Experiment, kappas: Mapping[str, float]) -> str:
    """What may be said of each readout, with the figures that decide."""
    lines = []
    for readout in experiment.shifts:
        said, checks = verdict(experiment, readout, kappas)
        lines.append(f"**{readout}**: {said}")
        for phrase, each in checks.items():
            lines.append(f'"{phrase}": ' + ("met" if all(check.met for check in each) else "not met"))
            rows = [{"of": c.of, "what": c.what, "value": c.value, "needed": c.need, "met": c.met} for c in each]
            lines.append(table(rows))
    return "\n\n".join(lines)


def against_answers(experiment: Experiment, part: str) -> list[dict[str, Any]]:
    """Each readout and each predictor that does not look at the model, against a part of the answers: one row each."""
    dose = of_probes(experiment, predicted(experiment, part))
    compared = [(name, shift, True) for name, shift in experiment.shifts.items()]
    if experiment.in_judges_units is not None:
        compared.insert(1, (IN_UNITS, experiment.in_judges_units, False))
    compared += [(DOSE, dose, False), (NOTHING, np.zeros_like(dose), False)]
    rows = []
    for name, per_probe, scale in compared:
        found = figures(experiment, per_probe, part, scale=scale)
        rows.append(
            {
                "readout": name,
                "n": found.num,
                "r": _with(found.r, found.r_interval),
                "ceiling": found.ceiling,
                "r / ceiling": _with(found.disattenuated, found.disattenuated_interval),
                "r given dose": "" if name in (DOSE, NOTHING) else _with(found.partial, found.partial_interval),
                "RMSE": _with(found.rmse, found.rmse_interval),
                "same sign": found.sign,
                "gap's interval holds 0": found.covers,
            }
        )
    return rows


def share_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """`shares` of each readout."""
    rows = []
    for readout in experiment.shifts:
        found = shares(experiment, readout)
        cells = {name: _with(s.share, s.interval) for name, s in found.items()}
        rows.append({"readout": readout} | {name: cells.get(name, "0 by construction" if readout == LEAD else "")
                                            for name in ("unsigned", "trivial", "null")})  # fmt: skip
    return rows


# Which coverage of a shift's two ends: [..., 2] -> [...].
ENDS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "the smaller coverage of both ends": lambda coverage: coverage.min(-1),
    "the coverage at the later end": lambda coverage: coverage[..., 1],
}


def coverage_rows(experiment: Experiment, part: str, end: Callable[[np.ndarray], np.ndarray]) -> list[dict[str, Any]]:
    """The lead in the judge's units against a part of the answers, by coverage, as one of ENDS takes it: points are
    probes, whose noise is that of few answers; "net" is the error without it."""
    read = experiment.shifts[LEAD] if experiment.in_judges_units is None else experiment.in_judges_units
    coverage = end(experiment.coverage)  # [R, K, P]
    rows = []
    for low, high in zip(COVERAGES, COVERAGES[1:], strict=False):
        inside = (coverage >= low) & ((coverage < high) | (high == COVERAGES[-1]))
        rows.append({"coverage": f"{low:.1f} to {high:.1f}"} | _inside_row(experiment, read, part, inside))
    return rows


def _inside_row(experiment: Experiment, read: np.ndarray, part: str, inside: np.ndarray) -> dict[str, Any]:
    """`coverage_rows` of the points that are inside [R, K, P] bool."""
    from vdengine.drift.correlation import correlate

    halves = np.where(inside[..., None], experiment.truth[part], np.nan)
    truth, read = halves.mean(-1), np.where(inside, read, np.nan)
    runs = np.arange(len(experiment.plans))[:, None, None]
    found = correlate(np.stack([truth, halves[..., 0], halves[..., 1]]), read[None], clusters=(runs, experiment.topics))
    row: dict[str, Any] = {"n": found.num}
    if not found.num:
        return row | dict.fromkeys(("r", "ceiling", "r / ceiling", "slope", "RMSE", "net RMSE"), math.nan)
    square = float(np.nanmean((read - truth) ** 2))
    noise = float(np.nanmean((halves[..., 0] - halves[..., 1]) ** 2)) / 4  # of the mean of both halves
    with np.errstate(invalid="ignore", divide="ignore"):
        slope = float(np.nansum(read * truth) / np.nansum(np.where(np.isfinite(truth), read, np.nan) ** 2))
    return row | {
        "r": _with(found.pearson, found.interval),
        "ceiling": found.ceiling,
        "r / ceiling": found.disattenuated,
        "slope": slope,
        "RMSE": math.sqrt(square),
        "net RMSE": math.sqrt(max(square - noise, 0.0)),
    }


def least_coverage(
    experiment: Experiment, part: str, end: Callable[[np.ndarray], np.ndarray], least_points: int = 30
) -> float:
    """The lowest edge from which on every bin has r / ceiling of LEAST_R or more; bins with few points decide nothing.
    NaN: the highest bin has less."""
    edge = math.nan
    for low, row in reversed(list(zip(COVERAGES, coverage_rows(experiment, part, end), strict=False))):
        if row["n"] >= least_points:
            if not row["r / ceiling"] >= LEAST_R:
                break
            edge = low
    return edge


def dose_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """By objective and form of answers: what one unit of dose moved, by least squares through 0 over the last anchor's
    cells; and the coverage of leads there."""
    rows = []
    groups = dict.fromkeys((plan.objective, plan.led) for plan in experiment.plans)
    for objective, led in groups:
        runs = experiment.only([(plan.objective, plan.led) == (objective, led) for plan in experiment.plans])
        dose = runs.doses
        slopes = {
            name: float((cells * dose).sum() / (dose**2).sum())
            for name, cells in [
                *((f"{part}, answers", runs.cells(part)[0][:, -1]) for part in PARTS),
                *((name, runs.by_topic(shift)[:, -1]) for name, shift in runs.shifts.items()),
            ]
        }
        coverage = [float(np.nanmean(runs.coverage[:, -1, :, end])) for end in (0, 1)]
        rows.append(
            {"objective": objective, "answers trained on": "led" if led else "argued", "runs": len(runs.plans)}
            | slopes
            | {"coverage at the start": coverage[0], "at the end": coverage[1]}
        )
    return rows


def control_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """The runs beside the design: their root mean square shifts over cells at the end, beside the design's; and the
    largest change of a raw number, which is 0 at learning rate 0."""
    groups = [(plan.name, experiment.only([each is plan for each in experiment.plans]))
              for plan in experiment.plans if plan.control]  # fmt: skip
    rows = []
    for name, runs in [("the design", experiment.design), *groups]:
        if not runs.plans:
            continue
        last = [
            *((f"{part}, answers", runs.cells(part)[0][:, -1]) for part in PARTS),
            *((readout, runs.by_topic(shift)[:, -1]) for readout, shift in runs.shifts.items()),
        ]
        rows.append(
            {"run": name}
            | {what: float(np.sqrt(np.nanmean(cells**2))) for what, cells in last}
            | {"largest change of a raw number": f"{runs.largest_change.max():g}"}
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a markdown table."""
    if not rows:
        return "none"
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_plain(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(x: Any) -> str:
    if isinstance(x, bool):
        return "yes" if x else "no"
    if not isinstance(x, float):
        return str(x)
    return f"{x:.3f}" if math.isfinite(x) else "-"


def _with(value: float, interval: tuple[float, float]) -> str:
    """A value with its interval."""
    low, high = interval
    return _plain(value) + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low) and math.isfinite(high) else "")
