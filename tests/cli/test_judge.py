"""`vdengine judge`: estimate, verdicts, tables, sheets, answers of saved models."""

import json

from helpers.judging import MINI, PANEL, Scripted, answered, rows_of, write

from vdengine.cli.judge import main
from vdengine.drift.answer_log import Answer, AnswerLog
from vdengine.drift.judgements import Judgements, Part, Verdict, folder_of, judges, open_judgements
from vdengine.drift.panel_log import DriftLog
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.judging import judge_answers
from vdengine.judges.people import read_sheet


def test_verb(tmp_path, capsys):
    """Guards the commands: a sheet, its labels, and kappa with the judge that was there."""
    log = answered(tmp_path / "run", ["Yes, I support it.", "No, I oppose it."], panel=PANEL)
    judge_answers(log, open_judge("rule"))
    run, path = str(tmp_path / "run"), tmp_path / "jo.csv"
    assert main([run, "--export-sheet", str(path), "--rows", "8"]) == 0
    rows = rows_of(path)
    for r in rows:
        r["label"] = "s" if r["answer"][0] == "Y" else "o"
    write(path, rows)
    capsys.readouterr()
    assert main([run, "--import-sheet", str(path)]) == 0
    out = capsys.readouterr().out
    assert "8 labels kept as human-jo" in out and "human-jo against rule: 8 answers, 100% alike" in out
    assert len(read_sheet(path)) == 8


def test_verb_says_what_answers_say_and_who_agrees(tmp_path, capsys):
    """Guards the main path: estimate, verdicts, a table of answers, agreement of two judges."""
    texts = ["Yes, I support it.", "It is a complex matter.", "No, I oppose it."]
    log = answered(tmp_path, texts, anchors=(0,), panel=MINI)
    log.append([Answer(4, p.id, k, [k], True, "Yes, I support it.") for p in MINI.probes for k in range(3)])
    judge_answers(log, Scripted(lambda item: (0.8, 0.1, 0.1) if item.answer[0] == "Y" else (0.1, 0.8, 0.1)))
    assert main([str(tmp_path), "--dry-run"]) == 0
    assert judges(tmp_path) == ["scripted"] and "256 questions, by rules" in capsys.readouterr().out
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "288 judged now, 0 before" in out and "What the answers say, by rule, step 0 to 4" in out
    assert "rule against scripted, answer by answer: 288 answers, 83% alike" in out
    (whole,) = [line for line in out.splitlines() if line.startswith("all topics")]
    assert "no clear shift" in whole  # a yes to every question moves no axis: half of the questions are put each way


def test_verb_calibrates_and_draws(tmp_path, capsys):
    """Guards the two commands for a judge that is strong or off: a part of the answers, and a calibration on labels,
    with agreement before and after it; what is wrong with either is one line."""
    texts = ["Yes, I support it.", "It is a complex matter.", "No, I oppose it."]
    log = answered(tmp_path, texts, anchors=(0,), panel=MINI)
    run = str(tmp_path)
    assert main([run, "--subset", "60", "--dry-run"]) == 0
    assert main([run, "--subset", "60", "--seed", "2"]) == 0
    assert "60 judged now, 0 before" in capsys.readouterr().out
    assert open_judgements(log, "rule").subset == (60, 2)
    assert main([run, "--subset", "145"]) == 2
    assert "--subset 145: allowed are 1 to 144" in capsys.readouterr().err
    assert main([run]) == 0
    out = capsys.readouterr().out
    assert "84 judged now, 60 before" in out and "a bare yes counts +0.8" in out
    keys = [Part(0, answer.probe, answer.sample) for answer in log.answers]
    people = {key: Verdict(((1, 0, 0), (0, 1, 0), (0, 0, 1))[key.sample]) for key in keys}
    Judgements.start(folder_of(log) / "human-jo.jsonl", "human:jo", {}, people)
    assert main([run, "--calibrate", "human-jo"]) == 0
    out = capsys.readouterr().out
    assert "rule+calibrated, on the labels of human-jo" in out and out.count("144 answers, 100% alike") == 2
    assert "rule+calibrated" in judges(tmp_path)
    assert main([run, "--calibrate", "human-no"]) == 2
    assert "not judged by 'human-no'" in capsys.readouterr().err


def test_sampling_saved_models(tiny_models, tmp_path, capsys):
    """Guards the paper's protocol from models on disk: sampled with the settings asked for, scored, judged, resumed,
    and never mixed with other models' answers."""
    MINI.__class__("m", MINI.probes[:2] + MINI.probes[12:14]).save(tmp_path / "p.jsonl")
    models = [str(tiny_models["qwen3"]), str(tiny_models["llama"])]
    command = ["--models", models[0], models[0], "--out", str(tmp_path / "out"), "--panel", str(tmp_path / "p.jsonl"),
               "--samples", "3", "--max-tokens", "5"]  # fmt: skip
    assert main([*command, "--dry-run"]) == 0
    assert "at most 120 tokens to generate and 24 answers to judge" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(command) == 0
    log = AnswerLog.open(tmp_path / "out")
    assert log.anchors == [0, 1] and len(log.answers) == 24 and log.manifest["temperature"] == 0.7
    assert all(1 <= len(a.ids) <= 5 for a in log.answers)
    assert [a.text for a in log.at(0)] != [a.text for a in log.at(1)]  # the same model, other noise
    assert DriftLog.open(tmp_path / "out").steps.tolist() == [0, 1] and judges(tmp_path / "out") == ["rule"]
    before = (log.folder / "answers.jsonl").read_bytes()
    capsys.readouterr()
    assert main(command) == 0 and "0 judged now, 24 before" in capsys.readouterr().out
    assert (log.folder / "answers.jsonl").read_bytes() == before
    command[2] = models[1]
    assert main(command) == 2 and "holds answers of other models" in capsys.readouterr().err


def test_a_judge_has_a_template_of_its_own(tiny_models, tmp_path, monkeypatch):
    """Guards the judge's words: the template and dtype of the models that are sampled are not its own."""
    seen = []

    def opened(name, options):
        seen.append((name, options.template, options.dtype))
        raise InputError("enough")

    answered(tmp_path / "run", ["a"])
    monkeypatch.setattr("vdengine.judges.open_judge", opened)
    monkeypatch.setattr("vdengine.engine.saved_models.sample_answers", lambda *a, **k: seen.append(k["template"]))
    sampled = ["--models", str(tiny_models["qwen3"]), "--out", str(tmp_path / "run"), "--template", "plain"]
    assert main([*sampled, "--dtype", "float32", "--judge", "model:J"]) == 2
    assert main([str(tmp_path / "run"), "--judge", "model:J", "--judge-template", "plain"]) == 2
    assert seen == ["plain", ("model:J", "auto", "auto"), ("model:J", "plain", "auto")]


def test_bad_arguments(tmp_path, tiny_models, capsys):
    """Guards one clear line for each mistake."""
    answered(tmp_path / "run", ["a"])
    model = str(tiny_models["qwen3"])
    for command, message in (
        ([], "name at least one run"),
        ([str(tmp_path / "none")], "no answers here"),
        (["--models", model], "--models needs --out"),
        (["--models", model, "--out", str(tmp_path / "o"), "--temperature", "-1"], "temperature"),
        (["--models", model, "--out", str(tmp_path / "o"), "--samples", "0"], "at least 1 answer"),
        (["--models", str(tmp_path / "gone"), "--out", str(tmp_path / "o")], "no such folder"),
        ([str(tmp_path / "run"), "--judge", "vibes"], "unknown judge 'vibes'"),
        ([str(tmp_path / "run"), "--template", "plain"], "--template is of the models that are sampled"),
        ([str(tmp_path / "run"), "--import-sheet", str(tmp_path / "no.csv")], "no such file"),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error
    json.loads((tmp_path / "run" / "drift" / "answers" / "manifest.json").read_text())  # still whole
