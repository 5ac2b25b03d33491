"""The files of judgements."""

import math

import numpy as np
import pytest
from helpers.judging import PANEL, answered

from vdengine.drift.judgements import (
    NO_VERDICT,
    BareLead,
    Judgements,
    Part,
    Subset,
    Verdict,
    judgements_of,
    judges,
    locked,
    slug_of,
)
from vdengine.errors import InputError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense\n", "line 1: broken JSON"),
        ('{"schema": 9, "judge": "x", "identity": {}}\n', "schema is 9"),
        ('{"schema": 1, "judge": "x", "identity": {}}\n', "schema is 1; this reads 2: judge again with --again"),
        ('{"schema": 2, "judge": "x", "identity": {}}\n{"anchor": 0, "probe": "p", "sample": 0, "stance": [1, 1, 1]}\n',
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


HEAD = '{"schema": 2, "judge": "x", "identity": {}}\n'
LINE = '{"anchor": 0, "probe": "p", "sample": 0, "stance": [1, 0, 0]}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]\n", "line 1: damaged"),
        ("null\n", "line 1: damaged"),
        ('{"schema": 1}\n', "line 1: damaged: names no judge"),
        ('{"schema": 1, "judge": 7, "identity": {}}\n', "names no judge"),
        ('{"schema": 1, "judge": "x", "identity": []}\n', "names no judge"),
        (HEAD.replace("2", "[2]", 1), "schema is .2."),
        (HEAD.replace("2", "9" * 5000, 1), "line 1: broken JSON"),
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
        (HEAD + LINE.replace("}", ', "part": "lead"}'), "line 2: damaged: a verdict"),
        (HEAD + LINE.replace("}", ', "part": ["both"]}'), "line 2: damaged: a verdict"),
        (HEAD + LINE.replace("}", ', "orders": "sx"}'), "line 2: damaged: orders 'sx'"),
        (HEAD + LINE.replace("}", ', "orders": ["s", "n"]}'), "line 2: damaged: orders"),
        (HEAD + LINE.replace("}", ', "bare": 2}').replace('"p"', "7"), "line 2: damaged: a verdict"),
        (HEAD + '{"subset": -1, "seed": 0}\n', "line 2: damaged: a subset"),
        (HEAD + '{"subset": 7}\n', "line 2: damaged: a subset"),
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
    assert list(kept.verdicts) == [Part(0, "p\u2028\u00e9", 0)]
    kept.append({Part(0, "q", 0): Verdict(NO_VERDICT)})
    assert list(Judgements.open(path).verdicts) == [Part(0, "p\u2028\u00e9", 0), Part(0, "q", 0)]


def test_what_is_kept_is_read_back(tmp_path):
    """Guards the file: verdicts of wholes, arguments and bare leads, both orders, and what was drawn."""
    verdicts = {
        Part(0, "p", 0): Verdict((0.5, 0.25, 0.25), "sn"),
        Part(0, "p", 0, "argument"): Verdict((0.0, 0.25, 0.75), "oo"),
        Part(4, "p", 1): Verdict(NO_VERDICT),
        BareLead("p", 1): Verdict((0.75, 0.25, 0.0)),
        BareLead("q", 1): Verdict((0.25, 0.5, 0.25)),
        BareLead("p", -1): Verdict((0.0, 0.5, 0.5)),
    }
    kept = Judgements.start(tmp_path / "x.jsonl", "x", {})
    assert kept.bare is None and kept.orders is None and kept.refusal == ""
    kept.append(verdicts)
    kept.draw(Subset(20, 3))
    again = Judgements.open(tmp_path / "x.jsonl")
    assert str(again.verdicts) == str(verdicts) and again.subset == Subset(20, 3)
    assert again.bare == (0.375, -0.5) and again.orders.num == 2
    again.draw(None)
    assert Judgements.open(tmp_path / "x.jsonl").subset is None
    assert Judgements.start(tmp_path / "y.jsonl", "human:me", {}).bare == (1.0, -1.0)


def test_parts_of_answers(tmp_path):
    """Guards lead, argument and both: an answer without a lead has one verdict for both, a lead alone argues nothing,
    what is not judged has neither, and people's labels are of whole answers."""
    log = answered(tmp_path, ["No, it is best for all.", "It is best.", "Yes.", "No doubt.", "Yes, for now."], (0,))
    kept = Judgements(tmp_path / "x", "x", {}, {})
    for key in [Part(0, PANEL.probes[0].id, k) for k in range(4)]:
        kept.verdicts[key] = Verdict((0.6, 0.3, 0.1))
    kept.verdicts[Part(0, PANEL.probes[0].id, 0, "argument")] = Verdict((1.0, 0.0, 0.0))
    both, argument, lead = (kept.stances_of(log, part)[:5].tolist() for part in ("both", "argument", "lead"))
    whole, nothing = [0.6, 0.3, 0.1], [0, 1, 0]
    assert str(both) == str([whole] * 4 + [[math.nan] * 3])
    assert str(argument) == str([[1.0, 0.0, 0.0], whole, [0.0, 1.0, 0.0], whole, [math.nan] * 3])
    assert lead == [[0, 0, 1], nothing, [1, 0, 0], nothing, [1, 0, 0]]
    with pytest.raises(InputError, match="part: 'rest' is not one of both, argument, lead"):
        kept.stances_of(log, "rest")
    assert kept.gaps(log) == [] and Judgements(tmp_path / "x", "x", {}, {}).gaps(log) == [0]
    by_person = Judgements(tmp_path / "x", "human:me", {}, kept.verdicts)
    assert np.isnan(by_person.stances_of(log, "argument")).all() and by_person.stances_of(log)[0].tolist() == whole


def test_labels_that_follow_their_order_are_refused(tmp_path):
    """Guards every reader of a judge's file: what is refused is said."""
    path = tmp_path / "x.jsonl"
    Judgements.start(path, "x", {}, {Part(0, "p", k): Verdict((0.5, 0, 0.5), "so") for k in range(30)})
    assert "kappa 0.00" in Judgements.open(path).refusal and "named first wins" in Judgements.open(path).refusal


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
    names = ["human:\u0417\u043e\u044f", "human:\u674e", "human:ann!", "human:ann?", "human:ann"]
    slugs = [slug_of(name) for name in names]
    assert len(set(slugs)) == len(names) and [slug_of(slug) for slug in slugs] == slugs


def test_share_that_is_judged(tmp_path):
    """Guards what is said of a judge that was cut short: an answer counts when its argument is judged too, but for
    people, who label wholes; one without a verdict counts as asked."""
    log = answered(tmp_path, ["Yes, it helps.", "b"], anchors=(0,))
    keys = [Part(0, answer.probe, answer.sample) for answer in log.answers]
    verdicts = {key: Verdict(NO_VERDICT) for key in keys[:4]}
    assert Judgements(tmp_path, "x", {}, verdicts).share(log) == 2 / 6
    assert Judgements(tmp_path, "human:jo", {}, verdicts).share(log) == 4 / 6
    verdicts[keys[0]._replace(part="argument")] = Verdict((1.0, 0.0, 0.0))
    assert Judgements(tmp_path, "x", {}, verdicts).share(log) == 3 / 6
