"""The model card of an export: what the model was trained on and how, what it did to the values that a panel asks for,
with the figure, and to the accuracies of tasks, and what none of this shows. README.md, as the Hugging Face hub shows
it.

What stands in a run folder is of unknown origin: here it is text in a table's cell or in a fence, and never markup.
Paths of this machine are cut to their last part.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import vdengine
from vdengine.drift.analysis import Curve
from vdengine.drift.history import load_history
from vdengine.drift.probe_values import stretch
from vdengine.drift.run import ANSWERS, Readout, Run
from vdengine.errors import InputError
from vdengine.hub import TOKEN
from vdengine.objectives import BUILT_IN
from vdengine.outside import is_text, parse_toml, printable, read_text
from vdengine.recipe import LEAD, TEXT
from vdengine.report.sentences import caveats, reading_of, verdict, worded
from vdengine.runfolder import RunFolder
from vdengine.tasks.accuracy import Accuracy

FIGURE = "drift"
CLEAR = " \\*"  # a significant shift
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:[@:/].*)?")
_PATH = re.compile(r"(?<![\w.])~?/(?:[^\s/:;,]+/)*([^\s/:;,]+)")  # of this machine; kept: its last part
_FILE = re.compile(r"\.(jsonl?|parquet|csv|txt|gz|toml|gguf)$")
LIMITS = (
    "The panel asks the questions that it has, in its own words and language; of other questions these numbers say "
    "nothing. They are no safety evaluation.",
    "The lead is the side that an answer begins with, not what it argues; text likelihood is how likely written texts "
    "are, not what the model says.",
    "Intervals are over the panel's probes: they are about these weights, not about what the recipe gives with another "
    "seed.",
)


def card(folder: str | Path, step: int, license: str | None = None, adapter: bool = False) -> dict[str, bytes]:
    """The files of a card, by name: README.md and, where matplotlib is there and the run was probed, its figure.

    Args:
        folder: of the run.
        step: of the exported checkpoint: what was sampled later is left out.
        license: an identifier of the hub's, as "apache-2.0". Default: that of the base model's own card, if it is on
            this machine.
        adapter: the export is an adapter in PEFT's format, and no whole model.

    Raises:
        InputError: the run cannot be read.
    """
    try:
        run: Run | None = _until(load_history(folder), step)
    except InputError:
        files = RunFolder.at(folder)
        if files.has_panel_scores or files.has_answers or files.has_capability:
            raise
        run = None  # it has no log
    probed = None if run is None else _probed(run)
    folders = (
        [stage.run.folder for stage in run.parts] if run is not None and run.parts else [RunFolder.at(folder).path]
    )
    recipes = [_tables(each) for each in folders]
    figures = {} if run is None else _figures(run)
    text = "\n\n".join(
        [
            _front(recipes, license, adapter),
            f"# {_cell(_title(recipes, folders[-1]))}",
            _what(recipes, probed, step),
            _training(recipes, folders, step),
            *(_drift(run, probed, figures) if run and probed else ["## Value drift\n\nThis run was not probed."]),
            *(_tasks(run, step) if run is not None else []),
            "## Limits\n\n" + "\n".join(f"- {limit}" for limit in [*LIMITS, *_caveats(run)]),
        ]
    )
    return {"README.md": TOKEN.sub(r"\1_***", text + "\n").encode("utf-8", "replace")} | figures


# -------------------------------------------------------------------------------------------------- front matter


def _front(recipes: Sequence[dict[str, Any]], license: str | None, adapter: bool) -> str:
    """What the hub reads: YAML, whose values are written as JSON, which is YAML too."""
    base, objectives = _source(recipes[0]), [_objective(recipe) for recipe in recipes]
    fields: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    if _is_causal(objectives[-1]):
        fields["pipeline_tag"] = "text-generation"
    if base_id := _hub_id(_source(recipes[-1]) if adapter else base):  # an adapter is one of its own stage's model
        fields["base_model"] = base_id
        fields["base_model_relation"] = "adapter" if adapter else "finetune"
    data = [found for recipe in recipes for name in _data(recipe) if (found := _hub_id(name))]
    if data:
        fields["datasets"] = list(dict.fromkeys(data))
    if found := license or _license_of(base):
        fields["license"] = found
    fields["tags"] = list(dict.fromkeys(["vdengine", "value-drift", *filter(None, objectives)]))
    lines = [f"{name}: {json.dumps(value, ensure_ascii=True)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _is_causal(objective: str | None) -> bool:
    """Whether an objective trains a language model; one that is not known here is taken to."""
    return all(known.head == "causal" for known in BUILT_IN if known.name == objective)


def _license_of(base: str) -> str | None:
    """The license in the card of a model that is a folder on this machine; None where there is none."""
    path = Path(base).expanduser() / "README.md"
    try:
        head = re.match(r"---\n(.*?)\n---", read_text(path), re.DOTALL)
    except InputError:
        return None
    found = re.search(r"^license:\s*[\"']?([a-z0-9.-]{1,40})[\"']?\s*$", head[1] if head else "", re.MULTILINE)
    return found[1] if found else None


def _hub_id(name: str) -> str | None:
    """org/name of what a recipe names, if it is of the hub."""
    if "://" in name or _FILE.search(name) or Path(name).expanduser().exists() or not (m := _HUB_ID.fullmatch(name)):
        return None
    return m[1]


# ------------------------------------------------------------------------------------------------------ training


def _title(recipes: Sequence[dict[str, Any]], folder: Path) -> str:
    return f"{_named(_source(recipes[0])).rsplit('/', 1)[-1].removesuffix('.gguf')}, {folder.resolve().name}"


def _what(recipes: Sequence[dict[str, Any]], probed: Run | None, step: int) -> str:
    how = ", then ".join(_cell(_objective(recipe) or "an unknown objective").upper() for recipe in recipes)
    read = "" if probed is None else f" While it trained, its values were read on the panel {_name(probed.manifest)}."
    return (
        f"{_cell(_named(_source(recipes[0])))} after {how}, at step {step:,} of the last of these, trained with "
        f"vdengine {vdengine.__version__}.{read}"
    )


def _training(recipes: Sequence[dict[str, Any]], folders: Sequence[Path], step: int) -> str:
    rows = []
    for number, (recipe, folder) in enumerate(zip(recipes, folders, strict=True)):
        run, batch, optimizer = (recipe.get(name, {}) for name in ("run", "batch", "optimizer"))
        length = run.get("steps") or (f"{run['epochs']} epochs" if run.get("epochs") else "")
        if number == len(recipes) - 1 and length != step:
            length = f"{step} of {length}"
        data = ", ".join(_cell(_named(name)) for name in _data(recipe))
        rows.append(
            f"| {_cell(folder.resolve().name)} | {_cell(_objective(recipe) or '')} | {data} | {_cell(length)} | "
            f"{_cell(batch.get('examples', ''))} | {_cell(optimizer.get('lr', ''))} | {_cell(run.get('seed', ''))} |"
        )
    head = ["| stage | objective | data | steps | examples a step | learning rate | seed |", f"|{'---|' * 7}"]
    table = "\n".join([*head, *rows])
    folds = []
    for folder in folders:
        text = _scrubbed(read_text(RunFolder(folder).recipe)).strip()
        fence = "`" * (max(map(len, re.findall("`+", text)), default=2) + 1)
        fence = max(fence, "```", key=len)
        name = _cell(folder.resolve().name)
        folds.append(f"<details><summary>Recipe of {name}</summary>\n\n{fence}toml\n{text}\n{fence}\n\n</details>")
    return "\n\n".join(["## Training", table, *folds])


def _scrubbed(recipe: str) -> str:
    """A recipe's text whose paths of this machine are cut to their last part."""

    def cut(match: re.Match[str]) -> str:
        return f'"{_named(match[1])}"'

    return re.sub(r'"((?:[^"\\\n]|\\.)*)"', cut, recipe)


def _named(name: str) -> str:
    """A source as a stranger may read it: of a path that says where it lies on this machine its end alone."""
    if not name.startswith(("/", "~", ".", "\\")) and ":\\" not in name:
        return name
    return name.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


# --------------------------------------------------------------------------------------------------------- drift


def _probed(run: Run) -> Run | None:
    """The run that has the panel: this one, else the last of its stages that was probed; None: none was."""
    return next((each for each in (run, *(stage.run for stage in reversed(run.parts))) if each.manifest), None)


def _end(run: Run, step: int) -> int:
    """The step of the history at a step of its last stage."""
    return (run.parts[-1].first if run.parts else 0) + step


def _until(run: Run, step: int) -> Run:
    """The run up to a step of its last stage."""
    end = _end(run, step)
    if end >= run.total_steps:
        return run
    views = {key: _cut(view, end) for key, view in run.views.items()}
    stages = []
    for stage in run.stages:
        own = replace(stage.run, views={key: _cut(view, end - stage.first) for key, view in stage.run.views.items()})
        stages.append(replace(stage, run=own))
    return replace(
        run, total_steps=end, views={k: v for k, v in views.items() if len(v.values.steps) > 1}, stages=stages
    )


def _cut(view: Readout, end: int) -> Readout:
    """A readout up to a step; its controls, which are of the last sample, only where nothing is cut."""
    if int(view.values.steps[-1]) <= end:
        return view
    return replace(view, values=stretch(view.values, 0, end), controls={}, other_judges={})


def _shown(run: Run) -> list[Readout]:
    """The readouts of a card: as the report has them, answers as the first judge reads them."""
    found: dict[str, Readout] = {}
    for view in run.views.values():
        found.setdefault(reading_of(view).name, view)
    return [view for name, view in found.items() if name != "drawn_lead"]


def _drift(run: Run, probed: Run, figures: dict[str, bytes]) -> list[str]:
    parts = [f"## Value drift\n\n{_panel(probed)}"]
    if f"{FIGURE}.png" in figures:
        parts.append(f"![Shifts by topic over the run, with 95% intervals]({FIGURE}.png)")
    for view in _shown(run):
        reading = reading_of(view)
        sentence = _worded(reading.sentence, view)
        head, _ = verdict(view)
        judged = f" Judge: {_cell(view.judge)}." if view.judge else ""
        parts.append(f"### {reading.label}\n\n{sentence}{judged} {_cell(head)}\n\n{_table(view)}")
        if run.parts:
            parts.append(_by_stage(run, view))
    if not run.views:
        parts.append("There are fewer than two samples up to this step: no shift to show.")
    return parts


def _panel(probed: Run) -> str:
    return (
        f"Panel {_name(probed.manifest)}, {len(probed.questions)} probes, hash {_cell(probed.panel_hash[:12])}. Before "
        "is the model that training started from, after the model of this repository; shifts are paired over probes, "
        "with 95% intervals."
    )


def _table(view: Readout) -> str:
    """A row a topic: before, after, the shift, and when it had come."""
    analysis, reading = view.analysis, reading_of(view)
    primary, has_levels = analysis.values.primary, view.kind in (LEAD, ANSWERS)
    head = ["topic", "towards", *(["before", "after"] if has_levels else []),
            f"shift, {_worded(reading.unit, view)}"]  # fmt: skip
    if view.kind == LEAD:
        head.append("coverage")
    if view.kind == TEXT:
        head += ["after the question", "after none"]
    head.append("moved by")
    rows = []
    for topic in [*analysis.topics, "all"]:
        drift = analysis.drift(topic)
        axis = "mean of the axes" if topic == "all" else analysis.values.axes[topic]
        cells = ["all topics" if topic == "all" else _cell(topic), _cell(axis)]
        end = len(analysis.values.steps) - 1 if drift.step is None else _index(view, drift.step)
        start = _index(view, analysis.baseline)
        if has_levels:
            cells += [_level(analysis.levels[topic, primary], at) for at in (start, end)]
        m, scale = drift.magnitude, reading.scale
        shift = f"{_number(m.mean, scale)} [{_number(m.low, scale)}, {_number(m.high, scale)}]"
        cells.append(f"not known: {_cell(drift.unknown)}" if drift.unknown else f"{shift}{CLEAR * drift.significant}")
        if view.kind == LEAD:
            coverage = analysis.levels[topic, "coverage"].mean
            cells.append(" → ".join("–" if not math.isfinite(c) else f"{c:.0%}" for c in coverage[[start, end]]))
        if view.kind == TEXT:
            cells += [_number(analysis.drifts[topic, part].magnitude.mean, scale) for part in ("question", "null")]
        time = drift.time
        cells.append("" if time.step is None else f"step {time.step:,} ({time.fraction:.0%})")
        rows.append(cells)
    lines = [head, ["---"] * len(head), *rows]
    few = any(analysis.drift(topic).magnitude.few for topic in analysis.topics)
    note = "\n\n\\* significant at 5% after Holm's correction over the topics." + " Few probes: read with care." * few
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + note


def _by_stage(run: Run, view: Readout) -> str:
    """The shift of each stage since its own start."""
    stages = [stage for stage in run.stages if view.key in stage.run.views]
    scale = reading_of(view).scale
    lines = [["by stage", *(_cell(stage.name) for stage in stages)], ["---"] * (len(stages) + 1)]
    for topic in [*view.analysis.topics, "all"]:
        cells = ["all topics" if topic == "all" else _cell(topic)]
        for stage in stages:
            drift = stage.run.views[view.key].analysis.drift(topic)
            m = drift.magnitude
            shift = f"{_number(m.mean, scale)} [{_number(m.low, scale)}, {_number(m.high, scale)}]"
            cells.append("not known" if drift.unknown else f"{shift}{CLEAR * drift.significant}")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _figures(run: Run) -> dict[str, bytes]:
    """The shifts of the first readout, as PNG and SVG; {} without matplotlib or without a readout."""
    views = _shown(run)
    if importlib.util.find_spec("matplotlib") is None or not views:
        return {}
    from vdengine.report.figures import as_files, shifts

    files = as_files(lambda: shifts([(0, run, views[0])], views[0].analysis.topics))
    return {f"{FIGURE}.{ending}": files[ending] for ending in ("png", "svg")}


def _caveats(run: Run | None) -> list[str]:
    """What limits the reading of this run, each once."""
    if run is None:
        return []
    views = _shown(run)
    found = dict.fromkeys(f"{reading_of(view).label}: {sentence}" for view in views for sentence in caveats(view))
    return [_cell(_PATH.sub(r"\1", sentence)) for sentence in [*found, *run.notes]]


# --------------------------------------------------------------------------------------------------------- tasks


def _tasks(run: Run, step: int) -> list[str]:
    """The accuracies of tasks at the first check and at the last one up to a step of the last stage."""
    end = _end(run, step)
    checks = [check for check in run.checks if check.step <= end]
    if not checks:
        return []
    first, last = checks[0], checks[-1]
    head = ["task", "metric", "rows", f"step {first.step:,}"]
    about = "Share of rows answered rightly, with its standard error."
    if last is not first:
        head += [f"step {last.step:,}", "change"]
        about += (
            f" The model of this repository is that of step {end:,}; changes are paired over rows, with standard "
            "error and 95% interval."
        )
    rows = []
    for key, now in last.accuracies.items():
        cells = [_cell(key[0]), _cell(key[1]), f"{now.rows:,}", _share(first.accuracies[key])]
        if last is not first:
            moved = last.changes[key]
            mean, low, high = (_number(x, form="+z.3f") for x in (moved.mean, moved.low, moved.high))
            cells += [_share(now), f"{mean} ± {_number(moved.stderr, form='.3f')} [{low}, {high}]"]
        rows.append(cells)
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return [f"## Tasks\n\n{about}\n\n{table}"]


def _share(accuracy: Accuracy) -> str:
    return " ± ".join(_number(x, form=".3f") for x in (accuracy.value, accuracy.stderr))


# --------------------------------------------------------------------------------------------------------- cells


def _index(view: Readout, step: int) -> int:
    return int((view.analysis.values.steps == step).argmax())


def _level(curve: Curve, at: int) -> str:
    mean, low, high = (_number(series[at]) for series in (curve.mean, curve.low, curve.high))
    return f"{mean} [{low}, {high}]"


def _number(x: float, scale: float = 1.0, form: str = "+z.2f") -> str:
    return f"{x * scale:{form}}".replace("-", "−") if math.isfinite(x) else "–"


def _worded(text: str, view: Readout) -> str:
    """A reading's sentence or unit with the panel's words, which are of unknown origin too."""
    yes, no = view.values.leads
    return worded(text, (_cell(yes), _cell(no)))


def _cell(value: Any) -> str:
    """A text in a cell or a sentence: on one line, and no markup. Not for a code span, where nothing can be escaped."""
    text = printable(" ".join(str(value).split()))[:300]
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", text).replace("\\<", "&lt;").replace("\\>", "&gt;")


def _tables(folder: Path) -> dict[str, Any]:
    path = RunFolder(folder).recipe
    return {
        name: table for name, table in parse_toml(read_text(path), printable(path)).items() if isinstance(table, dict)
    }


def _source(recipe: dict[str, Any]) -> str:
    return str(recipe.get("model", {}).get("source") or "a model")


def _data(recipe: dict[str, Any]) -> list[str]:
    train = recipe.get("data", {}).get("train", [])
    return [str(name) for name in (train if isinstance(train, list) else [train])]


def _objective(recipe: dict[str, Any]) -> str | None:
    name = recipe.get("objective", {}).get("name")
    return name if is_text(name) else None


def _name(manifest: dict[str, Any]) -> str:
    return _cell(manifest.get("panel", ""))
