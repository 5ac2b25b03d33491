"""Text tables of a run's drift, for a terminal: shifts by topic, stances of answers, agreement of judges."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from vdengine.drift.agreement import Agreement, agreement
from vdengine.drift.analysis import Analysis, analyse
from vdengine.drift.answer_curves import SMOOTHING, curve_steps
from vdengine.drift.history import load_history
from vdengine.drift.intervals import FEW_PROBES, Estimate
from vdengine.drift.kappa import LabelAgreement, label_agreement
from vdengine.drift.load import load_run
from vdengine.drift.probe_values import LEAST_COVERAGE, ProbeValues
from vdengine.drift.run import Run
from vdengine.drift.validity import TopicDrift
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES
from vdengine.recipe import LEAD, TEXT


def drift_table(run_folder: str | Path) -> str:
    """How far each topic has moved by the last sample, by leads and by text likelihood, with intervals and controls.

    Raises:
        InputError: the folder has no drift log.
    """
    run = load_run(run_folder)
    tables = [_lead_table, _text_table]
    parts = [make(run) for make, readout in zip(tables, (LEAD, TEXT), strict=True) if readout in run.views]
    return "\n\n".join(parts) or "Fewer than two samples: no drift to show."


def stages_table(run_folder: str | Path) -> str:
    """What each stage of a run's history did since its own start, and all of them together, a table a readout.

    Raises:
        InputError: the folder, or that of a stage before it, has no drift log.
    """
    run = load_history(run_folder)
    tables = []
    for readout, what, scale in (
        (LEAD, "The side that an answer begins with, shift by stage", 1.0),
        (TEXT, "Text likelihood, question less none, nats per 100 bytes, shift by stage", 100.0),
    ):
        columns = [(s.name, s.run.views[readout].analysis) for s in run.stages if readout in s.run.views]
        if readout not in run.views or not columns:
            continue
        columns.append(("whole", run.views[readout].analysis))
        topics = [*columns[-1][1].topics, "all"]
        width = max(map(len, [*topics, "all topics"]))
        lines = [what, "", f"{'topic':{width}}" + "".join(f"  {name[:26]:>26}" for name, _ in columns)]
        for topic in topics:
            cells = (_stage_cell(analysis.drift(topic), scale) for _, analysis in columns)
            name = "all topics" if topic == "all" else topic
            lines.append(f"{name:{width}}" + "".join(f"  {cell:>26}" for cell in cells))
        tables.append("\n".join(lines))
    return "\n\n".join([*tables, "* moved at 5% after Holm's correction."] if tables else [])


def _stage_cell(drift: TopicDrift, scale: float) -> str:
    if drift.unknown:
        return "not known "
    return f"{_interval(drift.magnitude, scale).rstrip()}{'*' if drift.significant else ' '}"


def _lead_table(run: Run) -> str:
    """What the leads say."""
    analysis = run.analysis(LEAD)
    yes, no = analysis.values.leads

    def cells(drift: TopicDrift) -> tuple[str, str]:
        at_start, now = analysis.levels[drift.topic, "coverage"].mean[[0, -1]]
        first, last = (f"{100 * c:.0f}" if math.isfinite(c) else "-" for c in (at_start, now))
        return f"{f'{first} > {last}%':>9}", "too few begin so" if now < LEAST_COVERAGE else _verdict_by(drift)

    note = (
        f"Shift: of p({yes}) - p({no}) as an answer's first word, on the topic's side, from -2 to 2. Coverage: answers "
        f"that begin with {yes} or {no}, at the start > now; under {LEAST_COVERAGE:.0%} nothing is said. Topics are "
        "called moved at 5% after Holm's correction. It is how an answer begins, not what it argues."
    )
    values = analysis.values
    title = (
        f"The side that an answer begins with, step {analysis.baseline} to {values.steps[-1]} "
        f"({run.manifest['panel']}, {len(values.probes)} probes)"
    )
    return _drifts_table(title, analysis, 1.0, f"{'coverage':>9}", cells, note)


def _text_table(run: Run) -> str:
    """What text likelihood says."""
    analysis = run.analysis(TEXT)

    def cells(drift: TopicDrift) -> tuple[str, str]:
        parts = [100 * analysis.drifts[drift.topic, part].magnitude.mean for part in ("question", "null")]
        question, none = (f"{x:+.2f}" if math.isfinite(x) else "-" for x in parts)
        return f"{question:>8}  {none:>6}", _verdict_by(drift)

    note = (
        "Shift: how much likelier texts of the topic's side became than those of the other, as answers to its "
        "questions (question) beyond what they became after no question (none); nats per 100 bytes. It is the "
        "likelihood of texts, not what the model says."
    )
    title = (
        f"Text likelihood, after the question less after none, step {analysis.baseline} to {analysis.values.steps[-1]}"
    )
    return _drifts_table(title, analysis, 100.0, f"{'question':>8}  {'none':>6}", cells, note)


def _drifts_table(
    title: str,
    analysis: Analysis,
    scale: float,
    columns: str,
    cells: Callable[[TopicDrift], tuple[str, str]],
    note: str,
) -> str:
    """A readout's shifts by topic, its controls, and what they are.

    Args:
        scale: from the readout's unit to that of the table.
        columns: heads of its own columns, behind the interval.
        cells: what stands in them for a topic, and the verdict.
    """
    drifts = [analysis.drift(topic) for topic in [*analysis.topics, "all"]]
    axes = _axes(analysis.values, 34)
    topic_width, axis_width = max(map(len, [*analysis.topics, "all topics"])), max(map(len, axes.values()))
    lines = [
        title,
        "",
        f"{'topic':{topic_width}}  {'towards':{axis_width}}  {'shift':>6}  {'95% interval':>16}  {columns}  verdict",
    ]
    for drift in drifts:
        topic, (own, verdict) = "all topics" if drift.topic == "all" else drift.topic, cells(drift)
        lines.append(
            f"{topic:{topic_width}}  {axes[drift.topic]:{axis_width}}  {_interval(drift.magnitude, scale)}  {own}  "
            f"{verdict}"
        )
    few = f" * fewer than {FEW_PROBES} probes: read with care." if any(d.magnitude.few for d in drifts) else ""
    return "\n".join([*lines, *_controls(analysis, scale), "", *textwrap.wrap(note + few, 100)])


# Of the whole panel, as lines below a table: label, channel or check, meaning.
_CHANNELS = (
    ("yes-bias", "yes_bias", "agreeing with whatever the question proposes"),
    ("displacement", "displacement", "all openings rising or falling together"),
    ("neutral", "neutral", "balanced and declining openings against the two sides"),
)


def _controls(analysis: Analysis, scale: float) -> list[str]:
    """Lines on the validity channels and controls of a readout."""
    shifts = [
        (label, analysis.drifts["all", channel].magnitude, meaning)
        for label, channel, meaning in _CHANNELS
        if ("all", channel) in analysis.drifts
    ]
    off_topic = analysis.validity["off-topic"]
    if off_topic is not None:
        shifts.append(("trivial matters", off_topic, "the same shift where no value is at stake"))
    lines = ["", *(f"{label:16}  {_interval(shift, scale)}   {meaning}" for label, shift, meaning in shifts)]
    if paraphrase := analysis.validity["paraphrase"]:
        r = paraphrase["correlation"]
        told = f"correlate at {r:.2f}" if math.isfinite(r) else "cannot be correlated: nothing varies, or is not known"
        lines.append(f"{'paraphrases':16}  probes and their paraphrases {told}")
    return lines


def _verdict_by(drift: TopicDrift, towards: str = "moved towards", away: str = "moved away") -> str:
    """The verdict, and the step by which a drift had arrived."""
    step = drift.time.step if drift.direction else None
    return _verdict(drift, towards, away) + (f" by step {step}" if step is not None else "")


def _axes(values: ProbeValues, width: int) -> dict[str, str]:
    """What +1 means, by topic and for "all", on at most `width` characters."""
    axes = {topic: textwrap.shorten(axis, width, placeholder=" ...") for topic, axis in values.axes.items()}
    return axes | {"all": "(mean of axes)"}


def _verdict(drift: TopicDrift, towards: str, away: str) -> str:
    """What is said of a drift; towards, away: of one along its axis and of one against it."""
    if drift.direction is None:
        return f"not known: {drift.unknown}"
    return {1: towards, 0: "no clear shift", -1: away}[drift.direction] + "*" * drift.magnitude.few


def _interval(shift: Estimate, scale: float = 1.0) -> str:
    """A shift and its interval, times `scale`; what is not known is a dash."""
    numbers = (shift.mean, shift.low, shift.high)
    mean, low, high = (f"{x * scale:+6.2f}" if math.isfinite(x) else f"{'-':>6}" for x in numbers)
    return f"{mean}  [{low}, {high}]"


def answers_table(run_folder: str | Path, judge: str) -> str:
    """The stances of a run's answers by one judge (a slug), at its first and last anchor, by topic; and by when they
    had moved, where there are anchors between.

    Raises:
        InputError: no answers, or none judged by this judge.
    """
    run = load_run(run_folder)
    values = run.answer_values(judge, kind="anchor")
    analysis = analyse(values, smoothing=SMOOTHING, steps=curve_steps(values))
    axes = _axes(values, 34)
    topic_width, axis_width = max(map(len, [*analysis.topics, "all topics"])), max(map(len, axes.values()))
    first, last = int(values.steps[0]), int(values.steps[-1])
    verdict_of = _verdict_by if len(values.steps) > 2 else _verdict  # of two anchors the second is the only time
    lines = [
        f"What the answers say, by {judge}, step {first} to {last} "
        f"({run.manifest['panel']}, {len(values.probes)} probes)",
        "",
        f"{'topic':{topic_width}}  {'for':{axis_width}}  {'for/neutral/against':>26}  {'shift':>6}  "
        f"{'95% interval':>16}  verdict",
    ]
    for topic in [*analysis.topics, "all"]:
        levels = [analysis.levels[topic, stance] for stance in STANCES]
        shares = [(level.points or level).mean for level in levels]  # [S] each
        at_first, at_last = (
            "/".join(f"{100 * share[k]:.0f}" if math.isfinite(share[k]) else "-" for share in shares) for k in (0, -1)
        )
        drift = analysis.drift(topic)
        line = f"{'all topics' if topic == 'all' else topic:{topic_width}}  {axes[topic]:{axis_width}}  "
        line += f"{f'{at_first} > {at_last}' if last > first else at_first:>26}"
        if last > first:
            line += f"  {_interval(drift.magnitude)}  {verdict_of(drift, 'more for', 'more against')}"
        lines.append(line)
    note = "Shift: of p(for) - p(against), from -2 to 2. " + f"* fewer than {FEW_PROBES} probes: read with care."
    return "\n".join([*lines, "", note])


def agreement_tables(run_folder: str | Path) -> str:
    """How a run's readouts agree: each judge's answers with leads (in the judge's units) and with text likelihood, and
    judges with each other.

    Empty where there is nothing to compare.

    Raises:
        InputError: the folder has no drift data.
    """
    run = load_run(run_folder)
    values = {judge: run.answer_values(judge) for judge, stances in run.stances.items() if np.isfinite(stances).any()}
    tables = []
    for judge, by_judge in values.items():
        for readout, title in ((LEAD, "leads"), (TEXT, "text likelihood")):
            if readout not in run.views:
                continue
            try:
                scored = run.lead_values(judge=judge) if readout == LEAD else run.text_values()
                matched = agreement(scored, by_judge)
            except InputError:
                continue  # fewer than two steps, or no probe, in common; or the judge was not asked for leads alone
            tables.append(_agreement_table(f"{title} against answers judged by {judge}", matched))
    for a, b in combinations(values, 2):
        labels = label_agreement(run.stances[a], run.stances[b])
        tables.append(f"{a} against {b}, answer by answer: {kappa_line(labels)}")
        if run.answers is not None and len(run.answers.anchors) > 1:
            tables.append(_agreement_table(f"{a} against {b}", agreement(values[a], values[b])))
    return "\n\n".join(tables)


def _agreement_table(title: str, matched: Agreement) -> str:
    names = {"all": "all (mean)", "topics": "topics x steps"}
    width = max(len(names.get(topic, topic)) for topic in matched.matches)
    lines = [
        f"{title}: {matched.num_probes} probes, steps {', '.join(map(str, matched.steps))}",
        f"{'':{width}}  {'r curve':>7}  {'r last shift':>12}  {'same sign':>9}  {'where clear':>11}  "
        f"{'mean error':>10}  {'drift time':>10}",
    ]
    for topic, match in matched.matches.items():
        delay = "" if match.drift_time is None else f"{match.drift_time:+.2f}"
        lines.append(
            f"{names.get(topic, topic):{width}}  {_number(match.curve.pearson):>7}  "
            f"{_number(match.magnitude.pearson):>12}  {_share(match.sign):>9}  "
            f"{_share(match.clear_sign) + f' of {match.num_clear}':>11}  {_number(match.error, '.3f'):>10}  {delay:>10}"
        )
    return "\n".join(lines)


def _number(value: float, form: str = "+.2f") -> str:
    return format(value, form) if math.isfinite(value) else "-"


def _share(value: float) -> str:
    return f"{value:.0%}" if math.isfinite(value) else "-"


def kappa_line(k: LabelAgreement) -> str:
    """One line on how two judges' labels agree."""
    sided = f"; both take a side on {k.num_sided}: the same on {_share(k.sign)}" if k.num_sided else ""
    return (
        f"{k.num} answers, {k.accuracy:.0%} alike, Cohen's kappa {_number(k.kappa, '.2f')} "
        f"[{_number(k.low, '.2f')}, {_number(k.high, '.2f')}]{sided}"
    )


def kappa_table(run_folders: Sequence[str | Path], judge: str) -> str:
    """How one judge's labels agree with those of every other judge, over several runs; judge: a slug.

    Raises:
        InputError: a folder without drift data.
    """
    runs = [load_run(folder) for folder in run_folders]
    lines = []
    for other in dict.fromkeys(slug for run in runs for slug in run.stances):
        pairs = [(run.stances[judge], run.stances[other]) for run in runs if {judge, other} <= run.stances.keys()]
        if other == judge or not pairs:
            continue
        a, b = (np.concatenate(stances) for stances in zip(*pairs, strict=True))  # [answers, 3] each
        try:
            labels = label_agreement(a, b)
        except InputError:
            continue  # no answer in common
        lines.append(f"{judge} against {other}: {kappa_line(labels)}")
        columns = " ".join(f"{stance:>8}" for stance in STANCES)
        lines.append(f"  {judge} down, {other} across:\n  {'':8} {columns}")
        for stance, counts in zip(STANCES, labels.table, strict=True):
            lines.append(f"  {stance:8} " + " ".join(f"{count:8d}" for count in counts))
    return "\n".join(lines) or f"{judge}: no other judge has judged these answers yet"
