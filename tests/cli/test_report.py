"""`vdengine report`: one line for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.report_runs import make_gap, make_run, panel_of, two_runs

from vdengine.cli.report import main

pytest.importorskip("plotly")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["{empty}"], "no drift data here"),
        (["{empty}/nowhere"], "no such folder"),
        (["{first}", "{different}"], "different panels"),
        (["{first}", "--topics", "weather"], "unknown topic 'weather'; there are topic 0, topic 1, topic 2"),
        (["{first}", "--judge", "oracle"], "unknown judge 'oracle'; there is rule, second"),
        (["{first}", "--baseline", "3"], "step 3 was not sampled"),
        (["{first}", "--smoothing", "lots"], "'lots' is not one of"),
        (["{first}", "--labels", "a,b"], "1 runs need as many different names"),
        (["{first}", "{first}"], "named twice"),
        (["{first}", "--gap", "{empty}/none.json"], "no such file"),
        (["{first}", "--gap", "{bad}"], "is an audit of kind 'prior'"),
        (["{other}", "{first}", "--gap", "{stranger}"], "which none of these runs was trained on"),
        (["{silent}", "--readout", "argument"], "no argument to show: No answers were drawn"),
        (
            ["{silent}", "{foreign}"],
            "leads differ: answers to 't0-0' are read by yes against no in the first and by ja",
        ),
        (["{first}", "--topics", ","], "topics: none is named; there are topic 0, topic 1, topic 2"),
        (["a\0b"], "a\\x00b: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    argv: list[str], says: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback, a wrong status, or a message that names neither file nor what is allowed."""
    paths = {"first": folder / "first", "other": folder / "other", "empty": tmp_path}
    if "{different}" in argv:
        paths["different"] = make_run(tmp_path / "different", panel_of(2), answers=False)
    if "{silent}" in argv:
        paths["silent"] = make_run(tmp_path / "silent", panel_of(2), answers=False)
    if "{foreign}" in argv:
        paths["foreign"] = make_run(tmp_path / "foreign", panel_of(2), answers=False, spelled=(("Ja",), ("Nein",)))
    paths["bad"], paths["stranger"] = tmp_path / "bad.json", tmp_path / "stranger.json"
    paths["bad"].write_text('{"audit": "prior"}')
    make_gap(paths["stranger"], panel_of(), "elsewhere.jsonl")
    given = [a.format(**paths) for a in argv]
    assert main([*given, "--no-figures", "--out", str(tmp_path / "out")]) == 2
    out, error = capsys.readouterr()
    assert error.startswith("error: ") and error.count("\n") == 1 and says in error
    if "{different}" in argv:
        assert str(paths["first"]) in error and str(paths["different"]) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("out", ["{file}", "{file}/x", "a\0b", "x" * 300])
def test_a_place_that_cannot_be_written_is_one_line(
    out: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guards against a traceback after a minute of analysis, where --out is a file or no name of a folder."""
    (tmp_path / "file").write_text("")
    assert main([str(folder / "first"), "--no-figures", "--out", out.format(file=tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "cannot be written" in error
