"""The page: all data as one JSON block, and the program that draws it, in one file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from vdengine.drift import frames
from vdengine.drift.analysis import Curve
from vdengine.drift.importance import MAX_KL, MAX_PARETO_K, MIN_ESS
from vdengine.drift.intervals import FEW_PROBES, Estimate
from vdengine.drift.run import Readout, Run, judges_of
from vdengine.report.gaps import Gap

PER = 100.0  # openings are shown in nats per 100 bytes
MAX_ANSWERS = 2400  # in all runs together
MAX_COMPLETIONS = 60  # of a run
MAX_TEXT = 1200  # characters of a shown text

# (metrics.jsonl's name, label); the first of a group that a run has
CURVES = (
    (("loss",), "loss"),
    (("eval/loss",), "held-out loss"),
    (("rewards/margins", "margin"), "margin"),
    (("rewards/accuracies", "accuracy"), "accuracy"),
    (("objective/scores",), "reward"),
    (("objective/kl",), "KL to the reference"),
    (("completions/mean_length",), "completion length"),
    (("grad_norm", "policy/grad_norm"), "gradient norm"),
    (("learning_rate",), "learning rate"),
)


def build(runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], title: str, readout: str | None) -> str:
    """The HTML. `topics`: those to show. `readout`: the view to start with; None: answers where there are any."""
    from plotly.offline import get_plotlyjs

    folder = resources.files("vdengine.report")
    text = {name: folder.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    parts = {
        "css": text["css"],
        "data": as_script(payload(runs, gaps, topics, title, readout)),
        "plotly": _script(get_plotlyjs()),
        "program": _script(text["js"]),
    }
    # only these two scripts may run and nothing may be fetched, whatever a text in the data says
    allowed = " ".join(f"'sha256-{_digest(parts[name])}'" for name in ("plotly", "program"))
    parts["policy"] = (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], text["html"])


def as_script(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for char in ("<", ">", "&", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")
    # a lone surrogate, from an escape in a log, has no UTF-8
    return re.sub("[\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)


def _script(text: str) -> str:
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a program of the page would end its own script element")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as a browser reads it: the digest is of that


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


# ---------------------------------------------------------------------------------------------------- payload


def payload(
    runs: Sequence[Run], gaps: Sequence[Gap], topics: Sequence[str], title: str, readout: str | None
) -> dict[str, Any]:
    """What the program draws."""
    axes = {topic: axis for run in runs for topic, axis in run.questions.values()}
    judges = judges_of(runs)
    return {
        "title": title,
        "topics": [{"name": t, "axis": axes.get(t, "")} for t in topics],
        "judges": judges,
        "readout": readout or ("answers" if judges else "openings"),
        "few": FEW_PROBES,
        "limits": {"kl": MAX_KL, "ess": MIN_ESS, "pareto_k": MAX_PARETO_K},
        "runs": [_run(run, topics, MAX_ANSWERS // len(runs)) for run in runs],
        "gaps": [
            {"source": g.source, "method": g.method, "run": runs.index(g.run), "other_panel": g.other_panel,
             "topics": {t: {k: _round(v) for k, v in e.items()} for t, e in g.topics.items() if t in (*topics, "all")}}
            for g in gaps
        ],
    }  # fmt: skip


def _run(run: Run, topics: Sequence[str], most: int) -> dict[str, Any]:
    cost = frames.Cost.of(run.metrics)
    about = run.describe()
    steps = f"{run.total_steps:,} steps" + (f", seed {about['seed']}" if about["seed"] is not None else "")
    settings = f"smoothing {about['smoothing']}, baseline step {about['baseline']}" if run.views else None
    header = {
        "model": about["model"], "objective": about["objective"], "data": about["data"], "length": steps,
        "panel": f"{about['panel']}, {about['probes']} probes, hash {run.panel_hash[:12]}", "read with": settings,
    }  # fmt: skip
    return {
        "name": run.name,
        "header": [[k, str(v)] for k, v in header.items() if v],
        "notes": run.notes,
        "empty": run.empty,
        "total": run.total_steps,
        "views": {key: _view(view, topics) for key, view in run.views.items()},
        "gates": [{k: _round(v) for k, v in row.items() if k != "run"} for row in run.rows("gates")],
        "support": [{k: _round(v) for k, v in row.items() if k != "run"} for row in run.rows("support")],
        "cost": None if cost is None else {
            "steps": cost.steps, "total": _round(cost.total), "probes": _round(cost.probes),
            "answers": _round(cost.answers), "share": _round(cost.share),
        },
        "training": _training(run),
        "answers": _sample_answers(run, topics, most),
        "completions": _completions(run),
    }  # fmt: skip


def _view(view: Readout, topics: Sequence[str]) -> dict[str, Any]:
    a = view.analysis
    r, scale = a.values, PER if view.kind == "openings" else 1.0
    shown = [t for t in ("all", *topics) if t == "all" or t in a.topics]
    reliability = a.validity["reliability"]
    drifts: dict[str, dict[str, Any]] = {}
    for topic in shown:
        drifts[topic] = {}
        for channel in r.channels:
            d = a.drifts[topic, channel]
            cell = _estimate(d.magnitude, scale)
            cell |= {"adjusted": _round(d.p_adjusted), "sure": d.significant, "few": d.magnitude.few}
            if channel == r.primary:
                cell["times"] = {
                    rule: [t.step, _round(t.fraction), _round(t.low), _round(t.high)] for rule, t in d.times.items()
                }
                if topic in reliability and reliability[topic].unreliable:
                    cell["why"] = reliability[topic].reason
            drifts[topic][channel] = cell
    levels = {}
    if view.kind == "answers":
        levels = {t: {s: _curve(a.levels[t, s], 1.0) for s in ("support", "neutral", "oppose")} for t in shown}
    strip = [
        {"name": c.name, "label": c.label, "what": c.what, "ratio": c.unit == "correlation", "warn": c.warn}
        | {k: _round(v if k in ("p", "num_probes") or c.unit == "correlation" else v * scale)
           for k, v in c.numbers.items()}
        for c in frames.checks(view.analysis)
    ]  # fmt: skip
    return {
        "readout": view.kind,
        "judge": view.judge,
        "primary": r.primary,
        "channels": list(r.channels),
        "baseline": a.baseline,
        "smoothing": a.smoothing,
        "steps": r.steps.tolist(),
        "kinds": None if r.kinds is None else r.kinds.tolist(),
        "curves": {t: _curve(a.curves[t, r.primary], scale) for t in shown},
        "levels": levels,
        "drifts": drifts,
        "strip": strip,
        "verdict": verdict(view),
        "caveats": caveats(view),
    }


def verdict(view: Readout) -> tuple[str, str]:
    """What moved, in a sentence; and which way, the topics that moved furthest first."""
    a = view.analysis
    drifts = [a.drift(t) for t in a.topics]
    moved = sorted((d for d in drifts if d.significant), key=lambda d: -abs(d.magnitude.mean))
    openings = view.kind == "openings"
    who = "Openings" if openings else f"Answers (judge {view.judge})"
    span = f"From step {a.baseline} to {int(a.values.steps[-1])}"
    scale, unit = (PER, "nats per 100 bytes") if openings else (1.0, "support minus oppose")
    if not moved:
        mean = a.drift()
        if not mean.significant:
            return f"{who}: no clear shift on any of {_count(len(drifts), 'topic')}.", f"{span}."
        where = "towards the axes" if mean.magnitude.mean > 0 else "away from the axes"
        return (
            f"{who}: the panel's mean moved {where}, no single topic clearly.",
            f"{span}: {mean.magnitude.mean * scale:+.2f} {unit}.",
        )
    parts = [
        f"{d.topic} {'towards' if d.magnitude.mean > 0 else 'away from'} {a.values.axes[d.topic]} "
        f"({d.magnitude.mean * scale:+.2f})"
        for d in moved[:4]
    ]
    rest = f"; and {_count(len(moved) - 4, 'more topic')}" if len(moved) > 4 else ""
    head = f"{who}: {len(moved)} of {_count(len(drifts), 'topic')} moved."
    return head, f"{span}: {'; '.join(parts)}{rest}. In {unit}."


def caveats(view: Readout) -> list[str]:
    """What a reader must know before believing it."""
    a = view.analysis
    out = []
    if view.kind == "openings":
        out.append("Openings are a sensitive early sign of direction. They are not what the model says: answers are.")
    if few := [t for t in a.topics if a.drift(t).magnitude.few]:
        named = "every topic" if len(few) == len(a.topics) else _listed(few)
        out.append(f"Fewer than {FEW_PROBES} probes for {named}: the intervals are not to be trusted.")
    shaky = [t for t, r in a.validity["reliability"].items() if r.unreliable and t not in few]
    if shaky:
        out.append(f"Hard to read: {_listed(shaky)} (the reasons are in the table of magnitudes).")
    closed = [g for g in a.values.gates or [] if g is not None and not g.open]
    if closed:
        weighted = sum(g is not None for g in a.values.gates or [])
        out.append(
            f"Between anchors the weights reach too little in {len(closed)} of {weighted} readings; "
            "nothing is drawn there."
        )
    return out


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _curve(curve: Curve, scale: float) -> dict[str, Any]:
    out: dict[str, Any] = {k: _rounded(getattr(curve, k) * scale) for k in ("mean", "low", "high")}
    return out | {"n": curve.num_probes.tolist()}


def _estimate(e: Estimate, scale: float) -> dict[str, Any]:
    return {
        "mean": _round(e.mean * scale), "low": _round(e.low * scale), "high": _round(e.high * scale),
        "p": _round(e.p), "n": e.num_probes,
    }  # fmt: skip


def _rounded(x: np.ndarray) -> list[float | None]:
    return [_round(float(v)) for v in x]


def _round(x: Any) -> Any:
    """Five digits are more than can be seen; the tables have all. NaN, which is no JSON: None."""
    if isinstance(x, np.generic):
        x = x.item()
    if not isinstance(x, float):
        return x
    return float(f"{x:.5g}") if math.isfinite(x) else None


def _training(run: Run) -> list[dict[str, Any]]:
    out = []
    for names, label in CURVES:
        for name in names:
            rows = [(row["step"], v) for row in run.metrics if (v := _finite(row.get(name))) is not None]
            if rows:
                out.append({"label": label, "step": [s for s, _ in rows], "value": [_round(v) for _, v in rows]})
                break
    return out


def _finite(x: Any) -> float | None:
    good = isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)
    return float(x) if good else None


# -------------------------------------------------------------------------------------------------------- texts


def _sample_answers(run: Run, topics: Sequence[str], most: int) -> dict[str, Any] | None:
    """Answers to the same questions at every anchor, as many questions of each topic as fit into `most` rows."""
    if run.answers is None or not run.answers.answers:
        return None
    log = run.answers
    probes = [p for p in log.panel.probes if p.topic in topics]
    place: dict[str, int] = {}  # of a probe among its topic's
    count: dict[str, int] = {}
    for p in probes:
        place[p.id] = count.get(p.topic, 0)
        count[p.topic] = place[p.id] + 1
    samples = min(2, log.samples)
    rounds = max(most // max(len(log.anchors) * len(count) * samples, 1), 1)
    at = [i for i, a in enumerate(log.answers) if a.sample < samples and place.get(a.probe, rounds) < rounds][:most]
    used = dict.fromkeys(log.answers[i].probe for i in at)
    known = {p.id: p for p in probes}
    rows = []
    for i in at:
        a = log.answers[i]
        judged = {slug: [_round(float(v)) for v in s[i]] for slug, s in run.stances.items() if np.isfinite(s[i]).all()}
        rows.append([a.anchor, a.probe, a.sample, _short(a.text), a.stopped, judged])
    return {
        "all": len(log.answers),
        "probes": {i: [known[i].topic, _short(known[i].prompt), known[i].polarity] for i in used},
        "rows": rows,
    }


def _completions(run: Run) -> dict[str, Any] | None:
    """PPO's samples; where there are too many, evenly over the run."""
    if not run.completions:
        return None
    at = np.linspace(0, len(run.completions) - 1, min(len(run.completions), MAX_COMPLETIONS)).round().astype(int)
    rows = [run.completions[i] for i in at]
    return {
        "all": len(run.completions),
        "rows": [
            [int(row["step"]), _short(str(row.get("prompt", ""))), _short(str(row.get("completion", ""))),
             _round(_finite(row.get("score"))), _round(_finite(row.get("kl")))]
            for row in rows
        ],
    }  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " [...]"
