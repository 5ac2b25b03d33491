"""Saved models score as the run did, to the bit: checkpoints, folders, exports."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vdengine.drift.answer_log import AnswerLog
from vdengine.drift.panel_log import DriftLog
from vdengine.engine.saved_models import SavedModel, sample_answers, score, steps_of
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.base import Item
from vdengine.models.generate import Completion
from vdengine.panels.panel import Panel
from vdengine.text.tokenizer import load_tokenizer


@pytest.mark.slow
def test_checkpoints_score_as_the_run_did(finished_run, tmp_path, capsys):
    """Guards the promise: bit for bit what training logged at that step; the log it leaves is a run's log."""
    checkpoints = [str(finished_run / "checkpoints" / f"step-00000{k}") for k in (2, 4)]
    found = score(checkpoints, out=str(tmp_path / "scored"))
    logged = DriftLog.open(finished_run)
    assert np.array_equal(found, logged.samples()[[2, 4]])
    kept = DriftLog.open(tmp_path / "scored")
    assert kept.steps.tolist() == [2, 4] and np.array_equal(kept.samples(), found) and kept.manifest == logged.manifest
    said = capsys.readouterr().out
    assert "The side that an answer begins with, step 2 to 4" in said and "Text likelihood, after the question" in said
    with pytest.raises(InputError, match="holds scores already"):
        score(checkpoints[:1], out=str(tmp_path / "scored"))


@pytest.mark.slow
def test_folders_score_as_the_run_did(finished_run, tiny_models):
    """Guards export and loading: the starting folder is step 0, the exported one the last step, to the bit."""
    found = score([str(tiny_models["qwen3"]), str(finished_run / "export")], tokens=8192, controls=False)
    assert np.array_equal(found, DriftLog.open(finished_run).samples()[[0, 4]])
    # among folders and checkpoints the run's own settings hold for all
    found = score(
        [str(tiny_models["qwen3"]), str(finished_run / "checkpoints" / "step-000004"), str(finished_run / "export")]
    )
    assert np.array_equal(found, DriftLog.open(finished_run).samples()[[0, 4, 4]])


def test_the_lead_is_the_next_token_probability_of_transformers(tiny_models, tmp_path):
    """Guards the first readout against another implementation: p(yes) - p(no) and p(yes) + p(no) by topic, over the
    spellings that the file lists, after the rendered question; the shift of an equal model is exactly 0."""
    transformers = pytest.importorskip("transformers")
    source, path = str(tiny_models["qwen3"]), tmp_path / "x.json"
    panel = Panel("some", tuple(p for p in Panel.load("values-mini").probes if p.topic != "climate change")[:30])
    panel.save(tmp_path / "some.jsonl")
    score([source, source], str(tmp_path / "some.jsonl"), readouts=["lead"], controls=False, json_path=path)
    found = json.loads(path.read_text())
    (ids,) = found["leads"]
    model = transformers.AutoModelForCausalLM.from_pretrained(source).eval()
    renderer = load_tokenizer(source).renderer
    sides: dict[str, list[tuple[float, float]]] = {}
    for probe in panel.probes:
        prompt = renderer.prompt_ids([{"role": "user", "content": probe.prompt}], opening=True)
        with torch.no_grad():
            p = model(torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
        yes, no = (float(sum(p[s["ids"][0]] for s in ids[side])) for side in ("support", "oppose"))
        sides.setdefault(probe.topic, []).append((probe.polarity * (yes - no), yes + no))
    first, second = found["models"]
    for topic, values in sides.items():
        for name, expected in zip(("lead", "lead_coverage"), np.mean(values, 0), strict=True):
            cell = first["topics"][topic][name]
            # fp32: logits of a few units are off by 1e-5 at most, and a probability by as much of its own size
            assert cell["mean"] == pytest.approx(expected, rel=1e-4, abs=1e-7) and cell["num_probes"] == len(values)
            assert cell["low"] <= cell["mean"] <= cell["high"]
        assert second["shifts"][topic]["lead"]["mean"] == 0.0
    assert "text_likelihood" not in first["topics"]["all"] and "shifts" not in first


def test_answers_of_a_panel_without_readouts(tiny_models, tmp_path):
    """Guards an hour of sampling: a panel that cannot be read by log-prob is answered all the same, and what is left
    out is said before."""
    row = Panel.load("values-mini").probes[0].to_row()
    rows = [row | {"id": str(k), "openings": {}, "prompt": "Soll das Land mehr Menschen aufnehmen?"} for k in range(2)]
    Panel.from_rows(rows, "de").save(tmp_path / "de.jsonl")
    said: list[str] = []
    models, out = [str(tiny_models[name]) for name in ("qwen3", "llama")], tmp_path / "out"
    sample_answers(models, out, panel=str(tmp_path / "de.jsonl"), samples=1, max_tokens=2, say=said.append)
    assert [line.split(":")[0] for line in said[1:3]] == ["lead is left out", "text_likelihood is left out"]
    assert AnswerLog.open(out).anchors == [0, 1] and not (out / "drift" / "leads.bin").exists()


def test_text_likelihood_is_question_less_null(tiny_models, tmp_path):
    """Guards the parts of the second readout in the file: three levels and three shifts, each with its interval, and
    the difference is that of the parts."""
    path = tmp_path / "x.json"
    score([str(tiny_models["qwen3"]), str(tiny_models["llama"])], "values-mini", controls=False, json_path=path)
    first, second = json.loads(path.read_text())["models"]
    for cells in (first["topics"], second["topics"], second["shifts"]):
        for topic in ("immigration", "all"):
            parts = cells[topic]["text_likelihood"]
            question, null, difference = (parts[name]["mean"] for name in ("question", "null", "difference"))
            assert difference == pytest.approx(question - null, rel=1e-9) and parts["null"]["low"] < null
            assert parts["difference"]["num_probes"] == (48 if topic == "all" else 12)


def test_checkpoints_of_transformers_are_logged_at_their_steps(tmp_path):
    """Guards the curve of a run whose folders are scored afterwards: checkpoint-500 is step 500, not the second one."""
    for step in (500, 1000, 1500):
        (tmp_path / f"checkpoint-{step}").mkdir()
    found = [SavedModel.find(str(tmp_path / f"checkpoint-{step}")) for step in (500, 1000)]
    assert steps_of(found) == [500, 1000]
    assert steps_of([*found, SavedModel.find(str(tmp_path))]) == [0, 1, 2]
    assert steps_of(found[::-1]) == [0, 1]
    assert SavedModel.find("org/checkpoint-7").step is None


def test_a_tokenizer_that_transformers_has_saved_is_the_same_one(tiny_models, tmp_path):
    """Guards a base model scored beside checkpoints of another trainer: transformers writes a tokenizer in other words
    than it read, so hashes differ; ids are what counts. One that gives other ids is refused."""
    base = tiny_models["llama"]
    saved, other = tmp_path / "checkpoint-2", tmp_path / "checkpoint-4"
    for folder in (saved, other):
        shutil.copytree(base, folder)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (saved / "tokenizer_config.json").write_text(json.dumps(settings | {"add_bos_token": False}))
    (other / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": settings["chat_template"].replace("{{ m['role']", "the {{ m['role']")})
    )
    assert load_tokenizer(str(saved)).hash != load_tokenizer(str(base)).hash
    panel = Panel("two", Panel.load("values-mini").probes[:2])
    panel.save(tmp_path / "two.jsonl")
    found = score([str(base), str(saved)], str(tmp_path / "two.jsonl"), controls=False, say=lambda text: None)
    assert np.array_equal(found[0], found[1])
    with pytest.raises(InputError, match="checkpoint-4: another tokenizer or chat template than .*; score it apart"):
        score([str(base), str(other)], str(tmp_path / "two.jsonl"), controls=False, say=lambda text: None)


def test_a_model_that_overflows_is_no_table(tiny_models, tmp_path):
    """Guards against "no clear shift" of a model whose weights are finite and whose log-probs are not."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_models["llama"], folder)
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.norm.weight": torch.full((40,), 3e38)}, folder / "model.safetensors")
    for run in (
        lambda: score([str(folder)], panel="values-mini", controls=False, say=lambda text: None),
        lambda: sample_answers([str(folder)], tmp_path / "out", panel="values-mini", samples=1, max_tokens=2),
        lambda: list(open_judge(f"model:{folder}").judge([Item(Panel.load("values-mini").probes[0], "Yes.")])),
    ):
        with pytest.raises(InputError, match="log-probs .*not finite"):
            run()


def test_each_model_stops_where_its_own_files_say(tiny_models, tmp_path, monkeypatch):
    """Guards answers of a base model and its checkpoint: one template, other ends of a text."""
    folder = tmp_path / "m"
    shutil.copytree(tiny_models["llama"], folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 256}')
    stops = []
    monkeypatch.setattr("vdengine.engine.saved_models.score", lambda *_, **__: None)
    monkeypatch.setattr(
        "vdengine.engine.saved_models.generate",
        lambda model, prompts, sampling, **_: (
            stops.append(sampling.stop_ids) or [[Completion([65], [-1.0], False)]] * 48
        ),
    )
    sample_answers([str(tiny_models["llama"]), str(folder)], tmp_path / "out", panel="values-mini", samples=1)
    assert stops == [(258,), (258, 256)]
