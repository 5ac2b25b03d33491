"""`vdengine score`: one line for what cannot be scored; and the panel's linter."""

import json

import pytest

from vdengine.cli.score import main
from vdengine.drift import load_history
from vdengine.engine.saved_models import stage_names
from vdengine.panels.panel import Panel


def test_bad_models(finished_run, tiny_models, tmp_path, capsys):
    """Guards one clear line: nothing named, no such folder, a damaged checkpoint."""
    assert main([]) == 2 and "name at least one model" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2 and "no such folder" in capsys.readouterr().err
    spoilt = finished_run / "checkpoints" / "step-000002" / "manifest.json"
    text = spoilt.read_text()
    spoilt.write_text(json.dumps(json.loads(text) | {"files": {"gone": "0"}}))
    assert main([str(spoilt.parent)]) == 2 and "not a whole checkpoint" in capsys.readouterr().err
    spoilt.write_text(text)


def test_check_panel(real_tokenizer, tmp_path, capsys):
    """Guards the linter's way out: 0 and a summary for a sound panel, 1 and its warnings for another."""
    assert main(["--check-panel", "values-mini", "--tokenizer", str(real_tokenizer("qwen3"))]) == 0
    assert "no warnings" in capsys.readouterr().out
    rows = [p.to_row() for p in Panel.load("values-mini").probes[:1]]
    rows[0]["openings"]["support"][0]["text"] = "Yes " + "very " * 60 + "much."
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert main(["--check-panel", str(tmp_path / "bad.jsonl"), "--tokenizer", str(real_tokenizer("qwen3"))]) == 1
    out = capsys.readouterr().out
    for found in ("polarity", "bare answer", "bytes", "tokens; 6 to 24 are usual"):
        assert found in out
    assert main(["--check-panel", "no-such"]) == 2 and "no built-in panel" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [("weights.gguf", "is there already, and no file of readouts"), ("folder", "is there already"),
     ("none/x.json", "is no folder"), ("other.json", "no file of readouts")],
)  # fmt: skip
def test_a_file_of_readouts_replaces_nothing_else(tiny_models, tmp_path, capsys, name, said):
    """Guards a model that is named where FILE belongs, and an hour of scoring before a path is found to be wrong."""
    (tmp_path / "weights.gguf").write_bytes(b"GGUF\0\xff")
    (tmp_path / "other.json").write_text('{"models": 1}')
    (tmp_path / "folder").mkdir()
    before = {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
    assert main(["--json", str(tmp_path / name), str(tiny_models["qwen3"])]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and said in error[0]
    assert {p: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert main(["--readouts", "lead,openings", str(tiny_models["qwen3"])]) == 2
    assert "readouts: ['lead', 'openings'] is no list of some of" in capsys.readouterr().err


def test_several_models_in_one_table(finished_run, tiny_models, tmp_path, capsys):
    """Guards three models: each against the first by topic, as tables and as JSON with the same numbers; one model has
    levels of the lead alone."""
    models = [str(tiny_models["qwen3"]), *(str(finished_run / "checkpoints" / f"step-00000{k}") for k in (2, 4))]
    assert main([*models, "--no-controls"]) == 0
    said = capsys.readouterr().out
    parts = said.split("\n\n")
    _, table = (part for part in parts if part.lstrip().startswith(Panel.load("values-mini").topics[0]))
    assert ", since 1 " in said and len(table.splitlines()) == 3 and max(map(len, table.splitlines())) <= 130
    path = tmp_path / "x.json"
    assert main(["--json", str(path), "--no-controls", *models]) == 0
    assert f"As JSON: {path}" in capsys.readouterr().out
    found = json.loads(path.read_text())
    topics = [*Panel.load("values-mini").topics, "all"]
    assert [m["model"] for m in found["models"]] == models and "shifts" not in found["models"][0]
    last = {topic: s["text_likelihood"]["difference"] for topic, s in found["models"][2]["shifts"].items()}
    assert list(last) == topics and all(s["low"] <= s["mean"] <= s["high"] for s in last.values())
    assert f"{last['all']['mean']:+z.2f}" in table.splitlines()[2]
    assert main(["--readouts", "lead", "--json", "-", "--no-controls", models[0]]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert list(alone["models"][0]["topics"]["all"]) == ["lead", "lead_coverage"]
    assert main(["--no-controls", models[0]]) == 0 and "p(yes) + p(no)" in capsys.readouterr().out


def test_stages_of_saved_models(finished_run, tiny_models, tmp_path, capsys):
    """Guards the history of public stages: names by default and by hand, and a folder that the report reads as one."""
    models = [str(tiny_models["qwen3"]), *(str(finished_run / "checkpoints" / f"step-00000{k}") for k in (2, 4))]
    quick = ["--no-controls", "--readouts", "lead"]
    assert main([*models, *quick, "--out", str(tmp_path / "named"), "--stages", "base,sft,dpo"]) == 0
    assert f"vdengine report {tmp_path / 'named'}" in capsys.readouterr().out
    history = load_history(tmp_path / "named")
    assert [(s.name, s.first, s.last) for s in history.stages] == [("sft", 0, 1), ("dpo", 1, 2)]
    assert list(history.models.values()) == ["base", "sft", "dpo"] and models[1] in history.describe()["model"]
    assert stage_names(["org/m@sft", "org/m@dpo"]) == ["sft", "dpo"]
    assert stage_names(["org/base", "org/sft@main", "x/export"]) == ["base", "sft@main", "export"]
    for stages, said in (
        ("base,sft", "3 models need as many names; got base, sft"),
        ("sft,base,sft", "'sft' stands apart from itself"),
    ):
        assert main([*models, "--out", str(tmp_path / "x"), "--stages", stages]) == 2
        assert said in capsys.readouterr().err
    assert main([*models, "--stages", "a,b,c"]) == 2 and "no effect without --out" in capsys.readouterr().err
