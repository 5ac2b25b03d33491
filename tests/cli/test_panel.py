"""`vdengine panel`."""

from __future__ import annotations

import gzip

import pytest
from helpers.prism import conversations

from vdengine.cli.panel import main
from vdengine.panels.importers import KINDS
from vdengine.panels.panel import Panel
from vdengine.panels.topics import OFF_TOPIC


def test_command(tmp_path, capsys):
    """Guards the way from a file to a panel that loads: what was left out is printed, an old file is not replaced."""
    with gzip.open(tmp_path / "conversations.jsonl.gz", "wb") as file:
        file.write(conversations(tmp_path / "c.jsonl").read_bytes())
    source, out = str(tmp_path / "conversations.jsonl.gz"), tmp_path / "panel.jsonl"
    assert main(["import", "prism", source, "--out", str(out), "--limit", "1"]) == 0
    said = capsys.readouterr().out
    assert "5 probes, 0 with openings" in said and "left out 1: unguided, but on a topic" in said
    assert Panel.load(out).topics == ("immigration", "religion", OFF_TOPIC, "values guided", "abortion")
    assert main(["import", "prism", source, "--out", str(out)]) == 2 and "exists already" in capsys.readouterr().err
    assert main(["import", "prism", source, "--out", str(tmp_path / "b.jsonl"), "--match", "none"]) == 0
    assert Panel.load(tmp_path / "b.jsonl").topics == ("controversy guided", "values guided", OFF_TOPIC)
    capsys.readouterr()
    assert main(["check", str(out)]) == 1 and "no probe has openings" in capsys.readouterr().out
    assert main(["import", "prism", source, "--out", "x.csv"]) == 2 and "ends in .jsonl" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    assert all(kind in capsys.readouterr().out for kind in ("prism",)) and set(KINDS) == {
        "prism", "persona", "vprism", "jsonl",
    }  # fmt: skip
