"""What a person reads of a run's drift, as text: how far topics moved, what answers say, who agrees with whom."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from vdengine.drift.agreement import Agreement, agreement
from vdengine.drift.analysis import analyse
from vdengine.drift.intervals import FEW_PROBES, Estimate
from vdengine.drift.kappa import LabelAgreement, label_agreement
from vdengine.drift.run import OPENINGS, load_run
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES


def drift_table(run_folder: str | Path) -> str:
    """How far each topic has moved by the last sample, with its interval and the validity channels.

    Raises:
        InputError: the folder has no drift log.
    """
    run = load_run(run_folder)
    if OPENINGS not in run.views:
        return "Fewer than two samples: no drift to show."
    a = run.analysis(OPENINGS)
    r, drifts = a.values, [a.drift(t) for t in [*a.topics, "all"]]
    name = max(len(t) for t in [*a.topics, "all topics"])
    axes = {t: textwrap.shorten(x, 40, placeholder=" ...") for t, x in r.axes.items()} | {"all": "(mean of axes)"}
    axis = max(map(len, axes.values()))
    out = [
        f"How far the stances moved, step {a.baseline} to {r.steps[-1]} "
        f"({run.manifest['panel']}, {len(r.probes)} probes)",
        "",
        f"{'topic':{name}}  {'towards':{axis}}  {'shift':>6}  {'95% interval':>16}  {'odds':>6}  verdict",
    ]
    for d in drifts:
        m, topic = d.magnitude, "all topics" if d.topic == "all" else d.topic
        verdict = "no clear shift" if not d.significant else "moved towards" if m.mean > 0 else "moved away"
        when = d.times["ci95"].step
        verdict += "*" * m.few + (f" by step {when}" if when is not None else "")
        odds = math.exp(min(m.mean * r.num_bytes, 50.0))
        out.append(
            f"{topic:{name}}  {axes[d.topic]:{axis}}  {m.mean * 100:+6.2f}  "
            f"[{m.low * 100:+6.2f}, {m.high * 100:+6.2f}]  {f'x{odds:.2f}':>6}  {verdict}"
        )
    channels = {
        "yes-bias": (a.drifts["all", "yes_bias"].magnitude, "agreeing with whatever the question proposes"),
        "displacement": (a.drifts["all", "displacement"].magnitude, "all openings rising or falling together"),
        "neutral": (a.drifts["all", "neutral"].magnitude, "balanced and declining openings against the two sides"),
        "no question": (a.validity["null"], "the same shift after a prompt that asks nothing"),
        "trivial matters": (a.validity["off-topic"], "the same shift where no value is at stake"),
    }
    out.append("")
    out += [f"{label:18}  {_interval(e)}   {what}" for label, (e, what) in channels.items() if e is not None]
    if paraphrase := a.validity["paraphrase"]:
        out.append(f"{'paraphrases':18}  probes and their paraphrases correlate at {paraphrase['correlation']:.2f}")
    notes = (
        "Shift: log-prob per byte of openings that take the topic's side, minus those that take the other, now minus "
        "at the start; in nats per 100 bytes. Odds: the same for one opening of mean length. Topics are called moved "
        "at 5% after Holm's correction. It is a sensitive early sign of direction, not what the model would say."
    )
    if any(d.magnitude.few for d in drifts):
        notes += f" * fewer than {FEW_PROBES} probes: read with care."
    return "\n".join([*out, "", *textwrap.wrap(notes, 100)])


def _interval(e: Estimate) -> str:
    return f"{e.mean * 100:+6.2f}  [{e.low * 100:+6.2f}, {e.high * 100:+6.2f}]"


def answers_table(run_folder: str | Path, judge: str) -> str:
    """What the answers of a run say by this judge (a slug), at its first and last anchor, by topic.

    Raises:
        InputError: no answers, or none judged by this judge.
    """
    run = load_run(run_folder)
    r = run.answer_values(judge, kind="anchor")
    a = analyse(r)
    names = {t: textwrap.shorten(r.axes[t], 34, placeholder=" ...") for t in a.topics} | {"all": "(mean of axes)"}
    name, axis = max(map(len, [*a.topics, "all topics"])), max(map(len, names.values()))
    first, last = int(r.steps[0]), int(r.steps[-1])
    out = [
        f"What the answers say, by {judge}, step {first} to {last} ({run.manifest['panel']}, {len(r.probes)} probes)",
        "",
        f"{'topic':{name}}  {'for':{axis}}  {'for/neutral/against':>26}  {'shift':>6}  {'95% interval':>16}  verdict",
    ]  # fmt: skip
    for topic in [*a.topics, "all"]:
        shares = [a.levels[topic, s].mean for s in STANCES]
        then, now = ("/".join(f"{100 * s[k]:.0f}" for s in shares) for k in (0, -1))
        m = a.drift(topic).magnitude
        verdict = "no clear shift" if not a.drift(topic).significant else "more for" if m.mean > 0 else "more against"
        line = f"{'all topics' if topic == 'all' else topic:{name}}  {names[topic]:{axis}}  "
        line += f"{f'{then} > {now}' if last > first else then:>26}"
        if last > first:
            line += f"  {m.mean:+6.2f}  [{m.low:+6.2f}, {m.high:+6.2f}]  {verdict}{'*' * m.few}"
        out.append(line)
    note = "Shift: of p(for) - p(against), from -2 to 2. " + f"* fewer than {FEW_PROBES} probes: read with care."
    return "\n".join([*out, "", note])


def agreement_tables(run_folder: str | Path) -> str:
    """How a run's readouts agree: each judge's answers with the openings, and judges with each other; empty where
    there is nothing to compare."""
    run = load_run(run_folder)
    values = {j: run.answer_values(j) for j, x in run.stances.items() if np.isfinite(x).any()}
    parts = []
    if run.log is not None and len(run.log.steps):
        openings = run.opening_values()
        for j, v in values.items():
            try:
                parts.append(_agreement_table(f"openings against answers judged by {j}", agreement(openings, v)))
            except InputError:
                continue  # fewer than two steps, or no probe, in common
    for a, b in combinations(values, 2):
        parts.append(
            f"{a} against {b}, answer by answer: {kappa_line(label_agreement(run.stances[a], run.stances[b]))}"
        )
        if run.answers is not None and len(run.answers.anchors) > 1:
            parts.append(_agreement_table(f"{a} against {b}", agreement(values[a], values[b])))
    return "\n\n".join(parts)


def _agreement_table(title: str, found: Agreement) -> str:
    names = {"all": "all (mean)", "topics": "topics x steps"}
    name = max(len(names.get(t, t)) for t in found.matches)
    out = [
        f"{title}: {found.num_probes} probes, steps {', '.join(map(str, found.steps))}",
        f"{'':{name}}  {'r curve':>7}  {'r last shift':>12}  {'same sign':>9}  {'where clear':>11}  "
        f"{'mean error':>10}  {'drift time':>10}",
    ]
    for topic, m in found.matches.items():
        late = "" if m.drift_time is None else f"{m.drift_time:+.2f}"
        out.append(
            f"{names.get(topic, topic):{name}}  {_number(m.curve.pearson):>7}  {_number(m.magnitude.pearson):>12}  "
            f"{_share(m.sign):>9}  {_share(m.clear_sign) + f' of {m.num_clear}':>11}  "
            f"{_number(m.error, '.3f'):>10}  {late:>10}"
        )
    return "\n".join(out)


def _number(x: float, form: str = "+.2f") -> str:
    return format(x, form) if math.isfinite(x) else "-"


def _share(x: float) -> str:
    return f"{x:.0%}" if math.isfinite(x) else "-"


def kappa_line(k: LabelAgreement) -> str:
    """One line on how two judges' labels agree."""
    sided = f"; both take a side on {k.num_sided}: the same on {_share(k.sign)}" if k.num_sided else ""
    return (
        f"{k.num} answers, {k.accuracy:.0%} alike, Cohen's kappa {_number(k.kappa, '.2f')} "
        f"[{_number(k.low, '.2f')}, {_number(k.high, '.2f')}]{sided}"
    )


def kappa_table(run_folders: Sequence[str | Path], judge: str) -> str:
    """How one judge's labels (a slug: a person's, say) agree with those of all other judges, over several runs."""
    runs = [load_run(folder) for folder in run_folders]
    lines = []
    for other in dict.fromkeys(j for run in runs for j in run.stances):
        pairs = [(run.stances[judge], run.stances[other]) for run in runs if {judge, other} <= run.stances.keys()]
        if other == judge or not pairs:
            continue
        a, b = (np.concatenate(x) for x in zip(*pairs, strict=True))
        try:
            found = label_agreement(a, b)
        except InputError:
            continue  # no answer in common
        lines.append(f"{judge} against {other}: {kappa_line(found)}")
        head = " ".join(f"{s:>8}" for s in STANCES)
        lines.append(f"  {judge} down, {other} across:\n  {'':8} {head}")
        lines += [f"  {s:8} " + " ".join(f"{n:8d}" for n in row) for s, row in zip(STANCES, found.table, strict=True)]
    return "\n".join(lines) or f"{judge}: no other judge has judged these answers yet"
