"""People as judges: annotation sheets out, and their labels back in."""

import re

import numpy as np
import pytest
from helpers.judging import answered, rows_of, write

from vdengine.drift.judgements import judgements_of
from vdengine.errors import InputError
from vdengine.judges.people import export_sheet, import_sheet

TEXTS = ["Yes, surely.", "No, never.", "=cmd|' /C calc'!A0", 'It, "depends"\nso <b>it</b> does', "\U0001f600"]


def test_labels_come_back(tmp_path):
    """Guards the way out and back: every label lands on its answer, any text survives, nothing tells the step."""
    log = answered(tmp_path / "run", TEXTS)
    path = tmp_path / "sheet.csv"
    assert export_sheet([log], path, rows=12) == 12
    rows = rows_of(path)
    assert all(re.fullmatch("a[0-9a-f]{12}", r["id"]) for r in rows)  # no number to a spreadsheet
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


def test_people_whose_names_make_one_file_are_not_one(tmp_path):
    """Guards two people's labels against becoming one judge's: names of other scripts have files of their own, and one
    that differs in what a file's name cannot hold is refused, with nothing written."""
    log = answered(tmp_path / "run", TEXTS)
    path = tmp_path / "sheet.csv"
    export_sheet([log], path, rows=3)
    write(path, [row | {"label": "s"} for row in rows_of(path)])
    first, second = (import_sheet([log], path, name).judge for name in ("\u0417\u043e\u044f", "\u674e"))
    assert first != second
    import_sheet([log], path, "Ann B")
    with pytest.raises(InputError, match=r"holds labels of 'human:Ann B', and .* from 'human:Ann/B'; .*--by"):
        import_sheet([log], path, "Ann/B")


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
        ("question,label\nq,s\n", "no column 'id' among question, label"),
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
