"""Panels as tasks of other harnesses."""

from __future__ import annotations

import ast
import importlib.util
import json

import numpy as np
import pytest
import torch
from helpers.probe_rows import row

import vdengine as vd
from vdengine.cli.panel import main
from vdengine.errors import InputError
from vdengine.panels.exporters import export_panel
from vdengine.panels.panel import STANCES, Panel
from vdengine.tasks.task import Task, load_tasks
from vdengine.tasks.task_packs import TaskPacks
from vdengine.text.renderer import Renderer


def test_task_files_say_what_the_panel_says(tmp_path):
    """Guards both readouts: the question, its choices, and which of them are on the axis's side."""
    panel = Panel.load("values-mini")
    lead, openings = (Task.load(f) for f in export_panel(panel, "lm-eval", tmp_path / "out"))
    assert (lead.name, openings.name) == ("values_mini_lead", "values_mini_openings")
    assert (lead.metrics, openings.metrics) == (("acc",), ("acc", "acc_bytes"))
    for probe, a, b in zip(panel.probes, lead.rows, openings.rows, strict=True):
        assert a.text == b.text == probe.prompt and a.choices == ("Yes", "No")
        assert a.gold == ((0,) if probe.polarity > 0 else (1,))
        of_axis = probe.openings["support" if probe.polarity > 0 else "oppose"]
        assert [b.choices[i] for i in b.gold] == [opening.text for opening in of_axis]
        assert list(b.choices) == [o.text for stance in STANCES for o in probe.openings[stance]]


def test_the_readout_comes_back(tiny_models, tmp_path):
    """Guards the numbers: openings scored as a task in a chat are those of the panel, which the template's end of a
    header splits from the prompt elsewhere; so differences within a question are equal. fp32 sums of 100 terms."""
    source, panel = str(tiny_models["qwen3"]), Panel.load("values-mini")
    model, renderer = vd.load_model(source, dtype=torch.float32, device="cpu"), Renderer(vd.load_tokenizer(source))
    small = Panel("small", panel.probes[:3])
    (task,) = load_tasks(export_panel(small, "lm-eval", tmp_path / "out", ("text_likelihood",)))
    packs = TaskPacks.build([task], renderer, 8192, chat=True)
    found = packs.score(model).numpy()
    requests = small.requests(renderer, readouts=["text_likelihood"])
    own = [r for r in requests if r.branch.variant == "question"]
    packed = vd.pack([vd.Tree(r.prompt_ids, [r.answer_ids]) for r in own])
    expected = packed.branch_sum(model(packed).logp).detach().numpy()
    for probe in small.probes:
        here = np.array([r.branch.probe.id == probe.id for r in own])
        shifted = found[here] - expected[here]
        assert np.ptp(shifted) < 1e-3 and abs(shifted[0]) < 20  # of the newline that ends the header


@pytest.mark.slow
def test_lm_eval_reads_the_export(tiny_models, tmp_path):
    """Guards the files against lm-evaluation-harness itself, where it is installed: log-probs as ours."""
    pytest.importorskip("lm_eval")
    from helpers.lm_eval_runs import evaluate

    source = str(tiny_models["qwen3"])
    model, renderer = vd.load_model(source, dtype=torch.float32, device="cpu"), Renderer(vd.load_tokenizer(source))
    small = Panel("small", Panel.load("values-mini").probes[:4])
    files = export_panel(small, "lm-eval", tmp_path / "out")
    expected = evaluate(source, {f.stem: f for f in files}, chat=True)
    packs = TaskPacks.build(load_tasks(files), renderer, 8192, chat=True)
    flat = [x for f in files for of_row in expected[f.stem]["logp"] for x in of_row]
    assert packs.score(model).tolist() == pytest.approx(flat, abs=5e-3)


def test_inspect_runs_the_export(tmp_path):
    """Guards the Python file against Inspect itself, where it is installed: answers by a fixed model, their leads on
    the axis, by topic and of all."""
    inspect_ai = pytest.importorskip("inspect_ai")
    from inspect_ai.model import ModelAPI, ModelOutput, modelapi

    panel = Panel.load("values-mini")
    (file,) = export_panel(panel, "inspect", tmp_path / "out")
    spec = importlib.util.spec_from_file_location("exported", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Fixed(ModelAPI):
        async def generate(self, input, tools, tool_choice, config):
            said = {True: "**Yes**, of course.", False: "Nobody knows."}["more" in input[-1].text]
            return ModelOutput.from_content("fixed", said)

        async def count_tokens(self, input, config=None):
            return 1

    modelapi(name="fixed")(lambda: Fixed)
    (log,) = inspect_ai.eval(module.values_mini(), model="fixed/x", display="none", log_dir=str(tmp_path / "logs"))
    assert log.status == "success"
    expected = [p.polarity * ("more" in p.prompt) for p in panel.probes]
    assert any(expected) and not all(expected)
    metrics = log.results.scores[0].metrics
    assert metrics["mean"].value == pytest.approx(np.mean(expected))
    assert set(panel.topics) <= set(metrics)


def test_the_inspect_file_is_python(tmp_path):
    """Guards the template where Inspect is not installed: the file compiles, and its rows are the panel's."""
    panel = Panel.from_rows([row(leads={"support": ["agree"], "oppose": ["disagree"]})], "7 of mine")
    (file,) = export_panel(panel, "inspect", tmp_path / "out")
    compile(file.read_text(), str(file), "exec")
    assert file.name == "panel_7_of_mine.py"
    (found,) = map(json.loads, (tmp_path / "out" / "panel_7_of_mine.jsonl").read_text().splitlines())
    assert found["support"] == ["agree"] and found["prompt"] == panel.probes[0].prompt


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ('a"""+str(__import__("os").system("x"))+"""', "a_str___import___os_system_x"),
        ("a\nunsafe_code: true\nb", "a_unsafe_code_true_b"),
        ("class", "panel_class"),
        ("lead", "panel_lead"),
        ("str", "panel_str"),
    ],
)
def test_a_name_is_only_a_name(tmp_path, name, word):
    """Guards a panel's file whose name would be code in the file of Inspect, a key in the task file, a keyword, or one
    of the names that the file of Inspect uses."""
    panel = Panel.from_rows([row()], name)
    (file,) = export_panel(panel, "inspect", tmp_path / "inspect")
    body = ast.parse(file.read_text()).body
    assert file.name == f"{word}.py" and isinstance(body[0].value, ast.Constant)
    names = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    assert names == ["lead", word]
    for file in export_panel(panel, "lm-eval", tmp_path / "lm-eval"):
        lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert lines[0].startswith(f"task: {word}_") and not any(line.startswith("unsafe") for line in lines)
        assert Task.load(file).name == file.stem


def test_refusals(tmp_path, capsys):
    """Guards folders in use and readouts that cannot be had, each with one line; and the verb."""
    panel = Panel.from_rows([row(openings={})], "bare")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "x").touch()
    for harness, out, readouts, said in (
        ("helm", "a", None, "--to helm: allowed are lm-eval, inspect"),
        ("lm-eval", "used", None, "is there already"),
        ("lm-eval", "b", ("text_likelihood",), "has no openings"),
        ("lm-eval", "c", ("mood",), "no list of some of lead"),
        ("inspect", "d", ("text_likelihood",), "only the lead can be read there"),
    ):
        with pytest.raises(InputError, match=said):
            export_panel(panel, harness, tmp_path / out, readouts)
    assert [f.name for f in export_panel(panel, "lm-eval", tmp_path / "e")] == ["bare_lead.yaml"]
    assert main(["export", "values-mini", "--to", "inspect", str(tmp_path / "f")]) == 0
    assert "values_mini.py" in capsys.readouterr().out
    assert main(["export", "values-mini", "--to", "inspect", str(tmp_path / "f")]) == 2
