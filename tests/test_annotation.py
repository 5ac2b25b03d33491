"""Annotation sheets and the agreement of labels."""

import csv
import math

import numpy as np
import pytest
from test_judge import PANEL, answered

from vdengine.cli.judge import main
from vdengine.drift.judgements import judgements_of
from vdengine.drift.kappa import kappa, label_agreement
from vdengine.errors import InputError
from vdengine.judges import open_judge
from vdengine.judges.judging import judge_answers
from vdengine.judges.people import export_sheet, import_sheet, read_sheet


def rows_of(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


TEXTS = ["Yes, surely.", "No, never.", "=cmd|' /C calc'!A0", 'It, "depends"\nso <b>it</b> does', "\U0001f600"]


def test_labels_come_back(tmp_path):
    """Guards the way out and back: every label lands on its answer, any text survives, nothing tells the step."""
    log = answered(tmp_path / "run", TEXTS)
    path = tmp_path / "sheet.csv"
    assert export_sheet([log], path, rows=12) == 12
    rows = rows_of(path)
    assert len({r["id"] for r in rows}) == 12 and set(rows[0]) == {"id", "question", "answer", "label", "note"}
    assert not any(r["answer"].startswith("=") for r in rows)  # no spreadsheet may run it
    assert sum(r["answer"] == "'" + TEXTS[2] for r in rows) + sum(r["answer"] in TEXTS for r in rows) == 12
    say = {"Y": "s", "N": "Oppose"}
    for r in rows:
        r["label"] = say.get(r["answer"][0], " neutral ")
    rows[0]["label"] = ""
    write(path, rows)
    found = import_sheet([log], path, "Ann B")
    assert found.judge == "human-Ann-B" and found.labelled == 11 and found.foreign == 0
    kept = judgements_of(log, "human-Ann-B")
    assert np.isfinite(kept).all(1).sum() == 11
    for a, s in zip(log.answers, kept, strict=True):
        if np.isfinite(s).all():
            assert s.tolist() == {"Y": [1, 0, 0], "N": [0, 0, 1]}.get(a.text[0], [0, 1, 0])
    write(path, [rows[1] | {"label": "n"}])
    import_sheet([log], path, "Ann B")  # a second look at one of them
    assert np.isfinite(judgements_of(log, "human-Ann-B")).all(1).sum() == 11
    with pytest.raises(InputError, match="is there already"):
        export_sheet([log], path, rows=3)


def test_every_anchor_and_topic_is_in_a_sheet(tmp_path):
    """Guards against a sheet that shows one end of training only."""
    logs = [answered(tmp_path / str(k), [f"{k} {i}" for i in range(9)], anchors=(0, 3, 6)) for k in range(2)]
    export_sheet(logs, tmp_path / "s.csv", rows=18)
    ids = {r["id"] for r in rows_of(tmp_path / "s.csv")}
    from vdengine.judges.people import sheet_id

    seen = [(k, a.anchor) for k, log in enumerate(logs) for a in log.answers if sheet_id(log, a) in ids]
    assert all(seen.count((k, anchor)) == 3 for k in range(2) for anchor in (0, 3, 6))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,label\nq,s\n", "has no column id"),
        ("id,label\nx,maybe\n", "line 2: label 'maybe' is not one of support, neutral, oppose"),
        ("id,label\nx,s\nx,o\n", "line 3: x is labelled in two ways"),
        ("id,label\nx,s\n", "none of its 1 labels"),
        ("id;label\nx;s\n", "none of its 1 labels"),  # as some spreadsheets write it
        (b"id,label\n\xff\xfe,s\n", "not UTF-8"),
    ],
)
def test_bad_sheets(tmp_path, text, message):
    """Guards one clear line that names the file and row."""
    log = answered(tmp_path / "run", ["a"])
    path = tmp_path / "s.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        import_sheet([log], path, "me")
    assert not (tmp_path / "run" / "drift" / "judgements").exists()


def test_kappa_is_cohens():
    """Guards the coefficient: the worked example of Cohen's two raters (20, 5, 10, 15: 0.4), three classes against an
    independent implementation, and no agreement beyond chance at 0."""
    assert kappa(np.array([[20, 5], [10, 15]])) == pytest.approx(0.4)
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y = np.where(rng.random(200) < 0.6, x, y)
    found = label_agreement(np.eye(3)[x], np.eye(3)[y])
    assert found.kappa == pytest.approx(sklearn.cohen_kappa_score(x, y), abs=1e-12)
    assert found.low < found.kappa < found.high and found.num == 200
    assert math.isnan(kappa(np.diag([9, 0, 0])))


def test_label_agreement_leaves_out_what_one_has_not_judged():
    """Guards against NaN taken for a stance."""
    a, b = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 0, 2]]
    b[3] = np.nan
    found = label_agreement(a, b)
    assert found.num == 3 and found.accuracy == pytest.approx(2 / 3) and found.num_sided == 2 and found.sign == 0.5
    with pytest.raises(InputError, match="no answer in common"):
        label_agreement(a[3:], b[3:])


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
