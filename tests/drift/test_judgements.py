"""The files of judgements."""

import pytest
from helpers.judging import answered

from vdengine.drift.judgements import judgements_of
from vdengine.errors import InputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1: damaged"),
        ('{"schema": 9, "judge": "x", "identity": {}}\n', "schema is 9"),
        ('{"schema": 1, "judge": "x", "identity": {}}\n{"anchor": 0, "probe": "p", "sample": 0, "stance": [1, 1, 1]}\n',
         "line 2: damaged: stance .* does not sum to 1"),
        ("", "schema is None"),
    ],
)  # fmt: skip
def test_damaged_judgements(tmp_path, text, message):
    """Guards one clear line for a file that is not what it should be."""
    log = answered(tmp_path, ["a"])
    folder = tmp_path / "drift" / "judgements"
    folder.mkdir()
    (folder / "x.jsonl").write_text(text)
    with pytest.raises(InputError, match=message):
        judgements_of(log, "x")
    with pytest.raises(InputError, match="not judged by 'y'; it is by x"):
        judgements_of(log, "y")
