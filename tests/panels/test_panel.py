"""The panel's format, and the built-in panels."""

import json
import pickle
import re
from collections import Counter

import pytest
from helpers.probe_rows import openings, reverse, row, write

from vdengine.errors import InputError
from vdengine.panels.panel import STANCES, Branch, Panel


def without(key):
    return {k: v for k, v in row().items() if k != key}


@pytest.fixture(scope="module")
def mini() -> Panel:
    return Panel.load("values-mini")


# ------------------------------------------------------------------------------------- the built-in panels


SHAPES = {"values-mini": (4, 12, 1), "values": (11, 50, 2)}  # topics, probes of each, claims a stance


def test_shape(built_in):
    """A lost or extra probe would change every reading: the same number for each topic, half of each polarity, the
    same kinds of openings for each stance."""
    topics, each, claims = SHAPES[built_in.name]
    assert len(built_in.topics) == topics and len(built_in.probes) == topics * each
    for topic in built_in.topics:
        assert Counter(p.polarity for p in built_in.probes if p.topic == topic) == {1: each // 2, -1: each // 2}
    for probe in built_in.probes:
        assert len(probe.paraphrases) >= 2
        for stance in ("support", "oppose"):
            assert Counter(o.kind for o in probe.openings[stance]) == {"belief": 1, "claim": claims}
        assert Counter(o.kind for o in probe.openings["neutral"]) == {"balanced": claims, "declining": 1}


def test_mini_is_a_part_of_values(mini):
    """ProbeValues of the two are of the same questions: each probe of the small one is in the large one, which has one
    opening more of each stance."""
    large = {p.id: p for p in Panel.load("values").probes}
    for probe in mini.probes:
        other = large[probe.id]
        assert (probe.prompt, probe.paraphrases, probe.polarity) == (other.prompt, other.paraphrases, other.polarity)
        for stance in STANCES:
            assert probe.openings[stance] == other.openings[stance][:2]


def test_openings_match_in_bytes(built_in):
    """A length gap turns likelihood displacement into a false margin: at most 10 bytes between twins, and none on
    average along the topic's axis (1 byte is the tolerance, 1.5% of an opening)."""
    for topic in built_in.topics:
        probes = [p for p in built_in.probes if p.topic == topic]
        for i in range(len(probes[0].openings["support"])):
            gaps = [p.openings["support"][i].num_bytes - p.openings["oppose"][i].num_bytes for p in probes]
            assert max(map(abs, gaps)) <= 10, (topic, i)
            along_axis = [p.polarity * gap for p, gap in zip(probes, gaps, strict=True)]
            assert abs(sum(along_axis) / len(along_axis)) <= 1.0, (topic, i)


def test_wording(built_in):
    """Beliefs speak in the first person and claims do not; stance is not a matter of saying "not"; no text of a side
    stands twice, and a neutral one at most twice."""
    negation = re.compile(r"\b(not|never|cannot|no|nobody|nothing)\b|n't\b", re.I)
    first_person = re.compile(r"\b(I|my|me)\b", re.I)
    texts = Counter(b.text for b in built_in.branches() if b.stance != "neutral")
    assert max(texts.values()) == 1
    assert max(Counter(b.text for b in built_in.branches() if b.stance == "neutral").values()) <= 2
    for branch in built_in.branches():
        assert branch.text.endswith(".") and branch.text.isascii()
        if branch.kind in ("belief", "claim"):
            assert not negation.search(branch.text), branch.text
            assert bool(first_person.search(branch.text)) == (branch.kind == "belief"), branch.text
    for probe in built_in.probes:
        assert all(q.endswith("?") for q in (probe.prompt, *probe.paraphrases)), probe.id


# ------------------------------------------------------------------------------------------ the class


def test_branch_order(mini):
    """The raw score log has no names beside its numbers: the order of branches must never depend on anything."""
    branches = mini.branches()
    assert len(branches) == 288 and branches == Panel.load("values-mini").branches()
    assert [b.probe for b in branches[::6]] == list(mini.probes)
    assert [b.stance for b in branches[:6]] == ["support", "support", "neutral", "neutral", "oppose", "oppose"]
    first = mini.probes[0].openings["support"][0]
    assert branches[0] == Branch(mini.probes[0], "support", first.kind, first.text, len(first.text.encode()))


def test_bytes_are_utf8(tmp_path):
    """Per-byte scores divide by UTF-8 bytes, not characters."""
    text = "Grünflächen gehören für mich zu jeder Stadt."
    panel = Panel.load(write(tmp_path / "p.jsonl", row(openings=openings(support=[{"text": text, "kind": "b"}]))))
    assert panel.branches()[0].num_bytes == len(text) + 4


def test_hash_is_of_content(tmp_path):
    """Two runs are compared by panel hash: layout and file name must not change it, any content must."""
    plain = Panel.load(write(tmp_path / "a.jsonl", row(), reverse()))
    shuffled_keys = dict(reversed(row().items()))
    laid_out = "\ufeff" + json.dumps(shuffled_keys, ensure_ascii=True, indent=None, separators=(" ,", " : "))
    same = Panel.load(write(tmp_path / "b.jsonl", laid_out, "", json.dumps(reverse()) + "\r"))
    assert plain.hash == same.hash and (plain.name, same.name) == ("a", "b")
    assert re.fullmatch("[0-9a-f]{32}", plain.hash)
    for changed in (
        [reverse(), row()],
        [row(), reverse(axis="more parks", topic="other")],
        [row()],
        [row(paraphrases=[]), reverse()],
        [row(polarity=-1), reverse()],
    ):
        assert Panel.from_rows(changed, "c").hash != plain.hash


def test_round_trip(mini):
    """`to_row` and `from_rows` are inverse, and a panel can be sent to another process."""
    again = Panel.from_rows([p.to_row() for p in mini.probes], "values-mini")
    assert again == mini and again.hash == mini.hash
    assert pickle.loads(pickle.dumps(mini)) == mini
    assert mini.axis("immigration") == "more open immigration"


def test_separator_inside_a_string(tmp_path):
    """U+2028 is legal inside a JSON string and is no end of line."""
    line = json.dumps(row(prompt="One\u2028two?"), ensure_ascii=False)
    assert Panel.load(write(tmp_path / "p.jsonl", line)).probes[0].prompt == "One\u2028two?"


# ------------------------------------------------------------------------------------------ bad input


BAD = [
    ('{"schema": 1,', r"broken JSON .*column \d+"),
    ("[" * 100_000, "broken JSON"),
    ("[1]", "must be a JSON object, not a list"),
    (row(schema=2), "schema is 2"),
    (row(schema=True), "schema is True"),
    *(
        (without(key), f"missing field '{key}'")
        for key in ("schema", "id", "topic", "axis", "polarity", "prompt", "openings")
    ),
    (row(pompt="x"), "unknown field 'pompt'"),
    (row(polarity=0), "polarity is 0; it must be 1 or -1"),
    (row(polarity="1"), "polarity is '1'"),
    (row(polarity=1.0), "polarity is 1.0"),
    (row(polarity=True), "polarity is True"),
    (row(id=""), "id is empty"),
    (row(id=7), "id must be a string, not a number"),
    (row(prompt="  "), "prompt is empty"),
    (row(prompt="Park? "), "prompt starts or ends with white space"),
    (row(prompt="\ud800?"), "surrogate"),
    (row(paraphrases="x"), "paraphrases must be a list of strings, not a string"),
    (row(paraphrases=["fine?", None]), r"paraphrases\[1\] must be a string, not null"),
    (row(openings=[]), "openings must be an object"),
    (row(openings={s: o for s, o in openings().items() if s != "neutral"}), "no 'neutral' opening"),
    (row(openings=openings(oppose=[])), "no 'oppose' opening"),
    (row(openings=openings(agree=[])), "unknown stance 'agree'"),
    (row(openings=openings(support="x")), "openings.support must be a list, not a string"),
    (row(openings=openings(support=[{"text": "x"}])), r"openings.support\[0\] must be an object with just"),
    (row(openings=openings(support=[{"text": "", "kind": "b"}])), r"openings.support\[0\].text is empty"),
    (row(openings=openings(oppose=openings()["support"])), r"openings.oppose\[0\] repeats an opening of 'support'"),
]


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_row_names_file_and_line(tmp_path, bad, message):
    """A bad row gives one line with file and line number, whatever is wrong with it."""
    path = write(tmp_path / "mine.jsonl", reverse(), "", bad)
    with pytest.raises(InputError, match=message) as error:
        Panel.load(path)
    assert str(error.value).startswith(f"{path}, line 3: ") and "\n" not in str(error.value)


def test_bad_rows_together(tmp_path):
    """Duplicate ids and a topic with two axes are seen only across rows; the error names both places."""
    with pytest.raises(InputError, match=r"line 2: duplicate id 't-1', first used at .*line 1"):
        Panel.load(write(tmp_path / "p.jsonl", row(), row()))
    with pytest.raises(InputError, match=r"line 2: topic 'parks' has the axis 'fewer' here but 'more parks' at .* 1"):
        Panel.load(write(tmp_path / "p.jsonl", row(), reverse(axis="fewer")))
    with pytest.raises(InputError, match="mine, row 2: duplicate id"):
        Panel.from_rows([row(), row()], "mine")


def test_bad_file(tmp_path):
    """Files that hold no panel at all: empty, absent, a folder, not text, not JSONL, an unknown name."""
    with pytest.raises(InputError, match="the panel is empty"):
        Panel.load(write(tmp_path / "empty.jsonl", "", ""))
    with pytest.raises(InputError, match=r"absent.jsonl: no such file"):
        Panel.load(tmp_path / "absent.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        Panel.load(tmp_path / "folder.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}')
    with pytest.raises(InputError, match="line 1: .*not UTF-8"):
        Panel.load(tmp_path / "latin.jsonl")
    with pytest.raises(InputError, match="not a .jsonl file"):
        Panel.load(tmp_path / "panel.csv")
    with pytest.raises(InputError, match=r"'value-mini': no built-in panel .*nearest: values-mini.*values-mini"):
        Panel.load("value-mini")


def test_requests_are_what_is_scored_in_the_order_of_the_log(tiny_models):
    """Guards scores from elsewhere: the same ids in the same order as in the packs and the log."""
    from vdengine.drift.panel_packs import PanelPacks
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    panel, source = Panel.load("values-mini"), str(tiny_models["llama"])
    requests = panel.requests(source)
    assert [r.branch for r in requests][:288] == panel.branches()
    tokenizer = load_tokenizer(source)
    assert tokenizer.decode(requests[0].answer_ids) == requests[0].text
    assert tokenizer.decode(requests[0].prompt_ids).startswith(f"<|im_start|>user\n{panel.probes[0].prompt}")
    packs = PanelPacks.build(panel, Renderer(tokenizer), 2048, controls=True)
    with_controls = panel.requests(tokenizer, controls=True)
    assert with_controls == packs.requests and [r for r in with_controls if r in requests] == requests
    kinds = list(dict.fromkeys((r.branch.channel, r.branch.variant) for r in with_controls))
    assert kinds == [
        ("openings", "question"), ("openings", "null"), ("openings", "paraphrase"), ("openings", "off-topic"),
        ("leads", "question"), ("leads", "paraphrase"), ("leads", "off-topic"),
    ]  # fmt: skip
    bare = Panel.from_rows([panel.probes[0].to_row() | {"openings": {}}], "bare")
    with pytest.raises(
        InputError, match=r"has no openings, which text likelihood is read by; .*\['lead'\] goes without"
    ):
        bare.requests(tokenizer)
    assert [r.text for r in bare.requests(tokenizer, readouts=["lead"])] == ["Yes", "No"]
    with pytest.raises(InputError, match="readouts: .* is no list of some of lead, text_likelihood"):
        panel.requests(tokenizer, readouts=["openings"])


def test_lines_end_at_newlines_alone(tmp_path):
    """Guards panels whose texts hold U+2028 or U+0085, which other splitters take for the end of a line."""
    row = reverse() | {"prompt": "One\u2028two\u0085three?"}
    (path := tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + b"\r\n")
    panel = Panel.load(path)
    assert panel.probes[0].prompt == "One\u2028two\u0085three?"
    panel.save(tmp_path / "again.jsonl")
    assert Panel.load(tmp_path / "again.jsonl").hash == panel.hash


@pytest.mark.parametrize(
    "change",
    [{key: value} for key in ("schema", "polarity") for value in (True, 1.0, "1", None, [], 10**400)]
    + [{key: value} for key in ("id", "topic", "prompt") for value in ("x\ud800", " x", "", 7, {}, None)]
    + [{"openings": value} for value in (None, [], {"x\n": 1}, {"support": {}}, {"support": [{"text": "a"}]})]
    + [{"k\n\x1b" * 10**4: 1}],
)
def test_hostile_probes_give_one_printable_line(change):
    """Guards every field of a probe against every type, and messages against what the row holds."""
    with pytest.raises(InputError) as error:
        Panel.from_rows([reverse() | change], "mine")
    assert str(error.value).isprintable() and len(str(error.value)) < 500
