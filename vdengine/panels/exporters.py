"""Panels as tasks of other harnesses: rows in JSONL with a task file of lm-evaluation-harness, or a task of Inspect.

lm-evaluation-harness scores choices by log-prob, so both readouts can be had there: `<panel>_lead`, yes and no after
each question, and `<panel>_openings`, all openings after it. Right is the side of the topic's axis, so `acc` is the
share of questions on that side; the log-prob of every choice is in its samples (`--log_samples`).
Inspect samples answers, so there the lead is read off their first word.
"""

from __future__ import annotations

import json
import keyword
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vdengine.errors import InputError
from vdengine.files import write_text
from vdengine.panels.panel import STANCES, Panel, Probe
from vdengine.recipe import LEAD, READOUTS, TEXT

HARNESSES = {
    "lm-eval": "task files (YAML) of lm-evaluation-harness without code, one a readout, and their rows",
    "inspect": "a Python file of Inspect with one task, and its rows",
}

_LM_EVAL = """\
# Made by `vdengine panel export` of the panel {panel} (hash {hash}). Run it in the model's chat template:
#   lm_eval --model hf --model_args pretrained=MODEL --tasks {folder} --apply_chat_template --log_samples \\
#     --output_path OUT
# Right is the side of the topic's axis ("axis" in the rows), so acc is the share of questions on that side. If the rows
# are moved, change data_files.
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: multiple_choice
doc_to_text: prompt
doc_to_choice: choices
doc_to_target: target
metric_list:
{metrics}metadata:
  version: 1.0
  panel_hash: "{hash}"
"""

_INSPECT = '''\
"""The panel {name} as a task of Inspect, made by `vdengine panel export` (hash {hash}).

    inspect eval {file} --model ...

A sample is answered freely; its score is the side that the answer begins with, on the topic's axis: 1, -1, or 0 where
it begins with neither word. The mean is the lead of answers, by topic and of all.
"""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.scorer import Score, Target, grouped, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

ROWS = Path(__file__).resolve().with_name("{rows}")
MARKS = " \\t\\n\\"'\\u201c\\u201d*_(:.,!?;-"


@scorer(metrics=[grouped(mean(), "topic"), mean(), stderr()])
def lead():
    """The side that an answer begins with, on the topic's axis: 1, -1 or 0."""

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion.lstrip(MARKS).casefold()
        side = 0
        for sign, words in ((1, state.metadata["support"]), (-1, state.metadata["oppose"])):
            for word in words:
                rest = answer[len(word) :]
                if answer.startswith(word.casefold()) and not rest[:1].isalpha():
                    side = sign
        return Score(value=side * state.metadata["polarity"], answer=answer[:40])

    return score


@task
def {name}(max_tokens: int = 64) -> Task:
    fields = FieldSpec(input="prompt", id="id", metadata=["topic", "axis", "polarity", "support", "oppose"])
    return Task(json_dataset(str(ROWS), fields), solver=generate(max_tokens=max_tokens), scorer=lead())
'''


def export_panel(panel: Panel, harness: str, out: Path, readouts: tuple[str, ...] | None = None) -> list[Path]:
    """Write a panel as a task of another harness. Returns the files that are to be run.

    Args:
        harness: one of `HARNESSES`.
        out: a new folder, or one without files.
        readouts: of `READOUTS`, for lm-eval; default: lead, and text likelihood where every probe has openings.

    Raises:
        InputError: an unknown harness; a folder with files in it; openings of a probe that has none.
    """
    if harness not in HARNESSES:
        raise InputError(f"--to {harness}: allowed are {', '.join(HARNESSES)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; name a new folder")
    bare = [probe.id for probe in panel.probes if not probe.has_openings]
    if harness == "inspect" and readouts not in (None, (LEAD,)):
        raise InputError("Inspect samples answers and has no log-probs of given texts: only the lead can be read there")
    if readouts is None:
        readouts = (LEAD,) if bare or harness == "inspect" else READOUTS
    if not readouts or set(readouts) - set(READOUTS):
        raise InputError(f"readouts: {', '.join(readouts)} is no list of some of {', '.join(READOUTS)}")
    if TEXT in readouts and bare:
        raise InputError(
            f"panel {panel.name}: probe {bare[0]} has no openings, so it cannot be read by text likelihood"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        return _inspect(panel, out) if harness == "inspect" else _lm_eval(panel, out, readouts)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from None


def _lm_eval(panel: Panel, out: Path, readouts: tuple[str, ...]) -> list[Path]:
    files = []
    for readout in readouts:
        name = f"{_name(panel)}_{'lead' if readout == LEAD else 'openings'}"
        of_probe: Callable[[Probe], dict[str, Any]] = _lead_row if readout == LEAD else _openings_row
        rows = out / f"{name}.jsonl"
        _write_rows(rows, [of_probe(probe) for probe in panel.probes])
        metrics = ("acc",) if readout == LEAD else ("acc", "acc_bytes")
        text = _LM_EVAL.format(
            panel=_name(panel),
            hash=panel.hash,
            folder=json.dumps(str(out)),
            name=name,
            rows=json.dumps(str(rows.resolve()), ensure_ascii=False),  # JSON's strings are YAML's too
            metrics="".join(f"  - metric: {m}\n    aggregation: mean\n    higher_is_better: true\n" for m in metrics),
        )
        write_text(out / f"{name}.yaml", text)
        files.append(out / f"{name}.yaml")
    return files


def _lead_row(probe: Probe) -> dict[str, Any]:
    """The words that begin an answer, capitalised, as choices."""
    words = [("support", w) for w in probe.leads.support] + [("oppose", w) for w in probe.leads.oppose]
    return _row(probe, [(stance, word[:1].upper() + word[1:]) for stance, word in words])


def _openings_row(probe: Probe) -> dict[str, Any]:
    """All openings, as choices."""
    return _row(probe, [(stance, opening.text) for stance in STANCES for opening in probe.openings[stance]])


def _row(probe: Probe, choices: list[tuple[str, str]]) -> dict[str, Any]:
    """A probe as a question of multiple choice; choices: stance and text."""
    side = "support" if probe.polarity > 0 else "oppose"  # of the axis
    return {
        "id": probe.id,
        "topic": probe.topic,
        "axis": probe.axis,
        "polarity": probe.polarity,
        "prompt": probe.prompt,
        "choices": [text for _, text in choices],
        "stances": [stance for stance, _ in choices],
        "target": [i for i, (stance, _) in enumerate(choices) if stance == side],
    }


def _inspect(panel: Panel, out: Path) -> list[Path]:
    name = _name(panel)
    rows = [
        {
            "id": probe.id,
            "topic": probe.topic,
            "axis": probe.axis,
            "polarity": probe.polarity,
            "prompt": probe.prompt,
            "support": list(probe.leads.support),
            "oppose": list(probe.leads.oppose),
        }
        for probe in panel.probes
    ]
    _write_rows(out / f"{name}.jsonl", rows)
    file = out / f"{name}.py"
    write_text(file, _INSPECT.format(hash=panel.hash, file=file.name, rows=f"{name}.jsonl", name=name))
    return [file]


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _name(panel: Panel) -> str:
    """The panel's name as that of a task: a word of Python, and none that means something in the files above. A name is
    whatever its file is called, so it stands in them in this form only."""
    name = re.sub(r"[^0-9A-Za-z_]+", "_", panel.name).strip("_") or "panel"
    taken = keyword.iskeyword(name) or name in re.findall(r"\w+", _INSPECT.split('"""', 2)[2])
    return f"panel_{name}" if taken or not name[0].isalpha() else name
