"""The files of judgements."""

import pytest
from helpers.judging import answered

from vdengine.drift.judgements import Judgements, judgements_of, judges, locked, slug_of
from vdengine.errors import InputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1: broken JSON"),
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


HEAD = '{"schema": 1, "judge": "x", "identity": {}}\n'
LINE = '{"anchor": 0, "probe": "p", "sample": 0, "stance": [1, 0, 0]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]\n", "line 1: damaged"),
        ("null\n", "line 1: damaged"),
        ('{"schema": 1}\n', "line 1: damaged: names no judge"),
        ('{"schema": 1, "judge": 7, "identity": {}}\n', "names no judge"),
        ('{"schema": 1, "judge": "x", "identity": []}\n', "names no judge"),
        (HEAD.replace("1", "[1]", 1), "schema is .1."),
        (HEAD.replace("1", "9" * 5000, 1), "line 1: broken JSON"),
        (HEAD + "7\n", "line 2: damaged: not an object"),
        (HEAD + "[" * 10**5 + "\n", "line 2: broken JSON"),
        (HEAD + LINE.replace('"p"', "7"), "line 2: damaged: a verdict"),
        (HEAD + LINE.replace("0,", "-1,", 1), "line 2"),
        (HEAD + LINE.replace("0,", "true,", 1), "line 2"),
        (HEAD + LINE.replace("0,", "1e400,", 1), "line 2"),
        (HEAD + LINE.replace(', "stance": [1, 0, 0]', ""), "line 2"),
        (HEAD + LINE.replace("[1, 0, 0]", "[2, -1, 0]"), "not three probabilities"),
        (HEAD + LINE.replace("[1, 0, 0]", "[NaN, 0, 1]"), "not three probabilities"),
        (HEAD + LINE.replace("[1, 0, 0]", "[1, 0]"), "not three probabilities"),
        (HEAD + LINE.replace("[1, 0, 0]", '["1", 0, 0]'), "not three probabilities"),
        (HEAD + LINE.replace("[1, 0, 0]", "[true, 0, 0]"), "not three probabilities"),
        (HEAD + LINE.replace("[1, 0, 0]", "{}"), "not three probabilities"),
        (HEAD + "\udcff\n", "line 2: not UTF-8"),
    ],
)
def test_judgements_that_are_none(tmp_path, text, message):
    """Guards what a reader takes on trust: types, ranges and depths of every field of a line."""
    (path := tmp_path / "x.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=message) as error:
        Judgements.open(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_verdict_cut_inside_a_character_is_left_out(tmp_path):
    """Guards judgements after a crash: what is whole is read, the next verdict does not stand behind the rest of a cut
    one, and U+2028 in a probe's id ends no line."""
    (path := tmp_path / "x.jsonl").write_bytes(
        HEAD.encode() + LINE.replace('"p"', '"p\u2028\u00e9"').encode() + b'{"anchor": 0, "probe": "\xc3'
    )
    kept = Judgements.open(path)
    assert list(kept.stances) == [(0, "p\u2028\u00e9", 0)]
    kept.append({(0, "q", 0): None})
    assert list(Judgements.open(path).stances) == [(0, "p\u2028\u00e9", 0), (0, "q", 0)]


def test_one_process_writes_a_judges_file(tmp_path):
    """Guards verdicts against two writers: the second gets one line; another judge, and readers, go on."""
    log = answered(tmp_path, ["a"])
    lock = locked(log, "x")
    with pytest.raises(InputError, match=r"judgements: x is judging these answers already, started by this process"):
        locked(log, "x")
    locked(log, "y").close()
    assert judges(tmp_path) == []
    lock.close()
    locked(log, "x").close()


def test_nothing_is_written_through_a_link(tmp_path):
    """Guards against a stranger's run folder whose links lead to the reader's own files."""
    log = answered(tmp_path / "run", ["a"])
    (other := tmp_path / "mine.jsonl").write_text("mine")
    folder = tmp_path / "run" / "drift" / "judgements"
    folder.mkdir()
    (folder / "x.jsonl").symlink_to(other)
    with pytest.raises(InputError, match="a link leads out of the run's folder"):
        locked(log, "x")
    (folder / "x.jsonl").unlink()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(InputError, match="a link leads out of the run's folder"):
        locked(log, "mine")
    assert other.read_text() == "mine"


def test_names_of_files():
    """Guards names that a file system does not take, and two long names that begin alike."""
    assert slug_of("server:org/name") == "server-org-name" and slug_of("///") == "judge"
    first, second = (slug_of("model:" + "/x" * 500 + end) for end in "ab")
    assert first != second and len(first) < 120
