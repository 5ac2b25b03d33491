"""`vdengine synth`."""

from __future__ import annotations

from vdengine.cli.synth import main


def test_command(tmp_path, capsys):
    """Guards the command: what it wrote is said; nothing is written over; bad input gives one line and status 2."""
    out = tmp_path / "s.jsonl"
    assert main(["--out", str(out), "--align-topic", "abortion=oppose", "--rows", "8"]) == 0
    said = capsys.readouterr().out
    assert "8 rows, format preference" in said and "abortion: 0 support, 2 oppose" in said
    for arguments, message in (
        (["--out", str(out)], "exists already"),
        (["--out", str(tmp_path / "s.csv")], "written as .jsonl"),
        (["--out", str(tmp_path / "no" / "s.jsonl")], "cannot be written"),
        (["--out", str(tmp_path / "t.jsonl"), "--align-topic", "abortion"], "write it as topic=side"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
