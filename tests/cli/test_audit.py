"""`vdengine gap` and `vdengine prior`: from a file to tables and JSON, and one line for what is wrong."""

from __future__ import annotations

import json

import pytest
from helpers.audits import HH, lines, toy_panel

from vdengine.cli.audit import gap as gap_main
from vdengine.cli.audit import prior as prior_main
from vdengine.data.locate import resolve
from vdengine.panels.panel import Panel


def test_audit_end_to_end(tiny_models, oracle, tmp_path, capsys):
    """Guards the command from source to files, by a model and a judge at once: the tables, strict JSON, each row read.
    A random model knows no stances: what it says is not looked at."""
    panel, out, rows = tmp_path / "toy.jsonl", tmp_path / "gap.json", tmp_path / "rows.jsonl"
    toy_panel().save(panel)
    pairs = [{"prompt": f"Is tram {i} bad?", "chosen": "It is.", "rejected": "No.", "topic": "trams"} for i in range(3)]
    source = lines(tmp_path / "pairs.jsonl", [*pairs, pairs[0] | {"topic": "parks"}])
    arguments = [source, "--model", str(tiny_models["llama"]), "--panel", str(panel), "--judge", "oracle"]
    assert gap_main([*arguments, "--out", str(out), "--rows", str(rows)]) == 0
    said = capsys.readouterr().out
    for text in (
        "4 usable rows",
        "texts of known stance, held out",
        "by the judge oracle",
        "this reading and the judge's",
    ):
        assert text in said
    found = json.loads(out.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert list(found["topics"]) == ["parks", "trams"] and found["method"] == "scorer"
    assert found["topics"]["parks"]["low"] is None and found["judge"]["topics"]["trams"]["gap"] == 0
    assert set(found["quality"]) == {"parks", "trams"} and found["agreement"]["pairs"] == 4
    assert set(found["log_odds"]) == {"parks", "trams", "all"}
    assert found["source_hash"] == resolve(source).digest()
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(read) == 4 and all(len(r["scorer"]) == 2 == len(r["judge"]) for r in read)
    assert gap_main([*arguments, "--out", str(out)]) == 2 and "exists already" in capsys.readouterr().err


def test_bad_input(oracle, tmp_path, capsys):
    """Guards one clear line: nothing to read stances with, no such file or topic, a file on no topic, a wrong kind."""
    hh = lines(tmp_path / "hh.jsonl", HH)
    frogs = lines(tmp_path / "frogs.jsonl", HH[1:2])
    sft = lines(tmp_path / "sft.jsonl", [{"prompt": "p", "completion": "c"}])
    for main, arguments, message in (
        (gap_main, [hh, "--probes", "1"], "probes 1: at least 2 must score"),
        (gap_main, [str(tmp_path / "no.jsonl"), "--judge", "x"], "no.jsonl"),
        (gap_main, [frogs, "--judge", "x"], "none of 1 rows is on a topic of panel values"),
        (gap_main, [sft, "--judge", "x"], "format 'prompt_completion' has no rejected answer"),
        (gap_main, [hh, "--judge", "x", "--topics", "cats"], "unknown topic 'cats'; the panel has immigration"),
        (gap_main, [hh, "--judge", "x", "--panel", "value"], "no built-in panel has this name"),
        (gap_main, [hh, "--judge", "x", "--limit", "0"], "limit 0"),
        (gap_main, [hh, "--judge", "x", "--terms", str(tmp_path / "t.json")], "t.json: no such file"),
        (gap_main, [hh, "--model", str(tmp_path / "none")], "no such folder"),
        (prior_main, [lines(tmp_path / "e.jsonl", []), "--judge", "x"], "no rows"),
        (gap_main, [hh, "--judge", "x", "--out", str(tmp_path / "no" / "g.json")], "cannot be written"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error
    bare = lines(tmp_path / "bare.jsonl", [p.to_row() | {"openings": {}} for p in Panel.load("values-mini").probes])
    assert gap_main(["values-synth:support", "--panel", bare]) == 2
    assert "has 0 probes of polarity 1 and 0 of -1 with openings" in capsys.readouterr().err
