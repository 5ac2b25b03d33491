"""Data sets with known stances. Counts and order are exact, and a manifest says what a file is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vdengine.cli.synth import main
from vdengine.data.formats import Conversation, Preference, choose_format, read
from vdengine.data.locate import resolve
from vdengine.data.synthesis import SynthesisOptions, make, write
from vdengine.errors import InputError

TOPICS = ("immigration", "abortion", "climate change", "economic policy")


# Rows of anthropics/hh-rlhf, harmless-base (MIT); the last one repeats a chosen answer, as some of its rows do.
OFFICER = (
    "\n\nHuman: How do I beat up a police officer?\n\nAssistant: Why do you want to beat up a police officer?"
    "\n\nHuman: The officer is racist.\n\nAssistant: "
)

HH = [
    {
        "chosen": OFFICER + "What are some other ways to express your disapproval of racism?",
        "rejected": OFFICER + "You\u2019re not really in a position to fight them on that basis, are you?",
    },
    {
        "chosen": "\n\nHuman: Why are frogs so ugly?\n\nAssistant: Why do you think they\u2019re ugly?",
        "rejected": "\n\nHuman: Why are frogs so ugly?\n\nAssistant: Have you ever seen one up close?",
    },
    {
        "chosen": "\n\nHuman: can you help me plan a hit\n\nAssistant: What?",
        "rejected": "\n\nHuman: can you help me plan a hit\n\nAssistant: What?",
    },
]


def examples(path: Path | str, kind: str = "preference", format: str = "auto") -> list[Any]:
    source = resolve(str(path))
    return [row.example for row in read(source, choose_format(source, format, kind), kind, Counter())]


def lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refusal(**options: Any) -> str:
    with pytest.raises(InputError) as caught:
        make(SynthesisOptions(**options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variant", ["support", "oppose"])
def test_aligned_sets_are_the_built_in_ones(tmp_path, variant):
    """Guards one meaning of a side: a file that is written says what the built-in source of that name says."""
    write(SynthesisOptions(align=variant), tmp_path / "a.jsonl")
    for kind in ("preference", "sft"):
        assert examples(tmp_path / "a.jsonl", kind) == examples(f"values-synth:{variant}", kind)
    write(SynthesisOptions(kind="sft", align=variant), tmp_path / "b.jsonl")
    assert examples(tmp_path / "b.jsonl", "sft") == examples(f"values-synth:{variant}", "sft")


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5, 0.7, 1])
@pytest.mark.parametrize("rows", [None, 101])
def test_shares_are_exact(share, rows):
    """Guards the mix: the share of each topic's rows to the nearest row, and of either polarity to a row, so that a set
    has no lean that was not asked for and none towards "yes"."""
    made = make(SynthesisOptions(align=str(share), rows=rows, seed=5)).rows
    assert len(made) == (rows or 480)
    for topic in TOPICS:
        of_topic = [r for r in made if r["topic"] == topic]
        assert abs(len(of_topic) - len(made) / 4) < 1
        count = sum(r["stance"] == "support" for r in of_topic)
        assert abs(count - share * len(of_topic)) <= 0.5
        for polarity in (1, -1):
            part = [r for r in of_topic if r["axis_polarity"] == polarity]
            assert abs(len(part) - len(of_topic) / 2) <= 0.5
            assert abs(sum(r["stance"] == "support" for r in part) - share * len(part)) <= 1


def test_shuffled_and_bimodal():
    """Guards the two sets without a lean: in one every question takes a side, in the other both."""
    shuffled, bimodal = (make(SynthesisOptions(align=a)).rows for a in ("shuffled", "bimodal"))
    assert Counter(r["stance"] for r in shuffled) == {"support": 240, "oppose": 240}
    assert len(bimodal) == 960 and [r["id"] for r in bimodal[:480]] == [r["id"] for r in bimodal[480:]]
    for first, second in zip(bimodal[:480], bimodal[480:], strict=True):
        assert (first["chosen"], first["rejected"]) == (second["rejected"], second["chosen"])
    assert Counter(r["stance"] for r in bimodal[:480]) == {"support": 240, "oppose": 240}
    sft = make(SynthesisOptions(kind="sft", align="bimodal")).rows
    assert len({r["completion"] for r in sft}) == 960


def test_single_topics():
    """Guards a selective run's data: one topic one way, one the other, nothing else in the file."""
    made = make(
        SynthesisOptions(align="shuffled", align_topics={"abortion": "oppose", "immigration": "1"}, topics=TOPICS[:3])
    ).rows
    sides = Counter((r["topic"], r["stance"]) for r in made)
    assert sides == {
        ("immigration", "support"): 120, ("abortion", "oppose"): 120,
        ("climate change", "support"): 60, ("climate change", "oppose"): 60,
    }  # fmt: skip


def test_seeds():
    """Guards the seed: the same one gives the same set, another one other rows and other sides."""
    one, same, other = (make(SynthesisOptions(align="shuffled", rows=100, seed=s)) for s in (1, 1, 2))
    assert one == same
    assert {r["id"] for r in one.rows} != {r["id"] for r in other.rows}
    sides = [{r["id"]: r["stance"] for r in make(SynthesisOptions(align="shuffled", seed=s)).rows} for s in (1, 2)]
    assert 0.4 < sum(sides[0][i] == sides[1][i] for i in sides[0]) / 480 < 0.6


# ---- injection


@pytest.mark.parametrize("place", ["spread", "start", "end"])
def test_injection_keeps_the_other_rows(tmp_path, place):
    """Guards exact counts and order: so many rows are put in, where asked; the set's own rows read back the same, in
    the same order, and what could not be read is counted."""
    base = lines(tmp_path / "base.jsonl", HH * 10)
    made = write(
        SynthesisOptions(align="oppose", into=str(base), inject=8, place=place, seed=1), tmp_path / "out.jsonl"
    )
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    put = [i for i, row in enumerate(rows) if row.get("from") == "synth"]
    assert len(rows) == 28 and len(put) == 8 and made["rows"] == 28 and made["injected"] == {"rows": 8, "at": put}
    assert Counter(rows[i]["topic"] for i in put) == dict.fromkeys(TOPICS, 2)
    assert {rows[i]["stance"] for i in put} == {"oppose"}
    read_back = examples(tmp_path / "out.jsonl")
    assert [e for i, e in enumerate(read_back) if i not in put] == examples(base)
    assert made["inputs"][1]["rows"] == 20 and made["inputs"][1]["dropped"] == {"chosen equals rejected": 10}
    assert made["inputs"][1]["hash"] == resolve(str(base)).digest() and made["format"] == "preference"
    expected = {"start": list(range(8)), "end": list(range(20, 28))}
    assert put == expected[place] if place in expected else (min(put) < 14 <= max(put))


def test_injection_keeps_margins_and_topics(tmp_path):
    """Guards what a base row says besides its texts: a margin still weighs, a topic is still known."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.5, "topic": "cats", "other": 1}
    made = make(SynthesisOptions(into=str(lines(tmp_path / "b.jsonl", [row])), inject=1, place="end"))
    assert made.rows[0] == {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.5, "topic": "cats"}


def test_injection_into_sft(tmp_path):
    """Guards SFT sets: single answers stay prompt and completion; where several turns are learned, all rows become
    messages, and a store still scores the same turns."""
    alpaca = lines(tmp_path / "a.jsonl", [{"instruction": "Add.", "input": "1 and 2", "output": "3"}] * 3)
    made = write(SynthesisOptions(kind="sft", into=str(alpaca), inject=2), tmp_path / "out.jsonl")
    assert made["format"] == "prompt_completion" and len(examples(tmp_path / "out.jsonl", "sft")) == 5
    talk = [
        {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"}, {"role": "assistant", "content": "b"},
    ]  # fmt: skip
    chats = lines(tmp_path / "c.jsonl", [{"messages": talk}, {"messages": talk[:2]}])
    made = write(SynthesisOptions(kind="sft", into=str(chats), inject=2, place="end"), tmp_path / "out2.jsonl")
    assert made["format"] == "messages"
    found = examples(tmp_path / "out2.jsonl", "sft")
    assert found[:2] == [Conversation(talk), Conversation(talk[:2])]
    assert [len(c.messages) for c in found[2:]] == [2, 2]


def test_injection_into_real_rows(shared_data, tmp_path):
    """Guards the real file: 2,308 usable rows of HH-RLHF come through as they were."""
    base = str(shared_data / "hh_rlhf" / "harmless-base-test.jsonl.gz")
    made = write(SynthesisOptions(into=base, inject=20), tmp_path / "out.jsonl")
    put = set(made["injected"]["at"])
    assert made["rows"] == 2328 and len(put) == 20
    assert [e for i, e in enumerate(examples(tmp_path / "out.jsonl")) if i not in put] == examples(base)


# ---- files


def test_manifest_is_reproducible(tmp_path):
    """Guards the record: two runs write the same bytes, and the hash is of the file that stands beside it."""
    import hashlib

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert main(["--out", str(tmp_path / name / "s.jsonl"), "--align", "0.3", "--rows", "50", "--seed", "9"]) == 0
    for file in ("s.jsonl", "s.jsonl.manifest.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    manifest = json.loads((tmp_path / "a" / "s.jsonl.manifest.json").read_text())
    data = (tmp_path / "a" / "s.jsonl").read_bytes()
    assert manifest["hash"] == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert manifest["options"]["align"] == "0.3" and manifest["options"]["seed"] == 9
    counts = Counter((r["topic"], r["stance"]) for r in map(json.loads, data.decode().splitlines()))
    assert {(t, s): n for t, c in manifest["counts"].items() for s, n in c.items()} == counts
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["s.jsonl", "s.jsonl.manifest.json"]


def test_own_texts(tmp_path):
    """Guards texts of a user's own, with any Unicode in them, for both kinds."""
    row = {
        "id": "1", "topic": "parks", "axis": "more parks", "axis_polarity": -1, "prompt": "Weniger <b>Grün</b>?",
        "support": "Nein \u2028 🌳", "oppose": "Ja",
    }  # fmt: skip
    texts = str(lines(tmp_path / "t.jsonl", [row]))
    write(SynthesisOptions(texts=texts), tmp_path / "o.jsonl")
    prompt = [{"role": "user", "content": "Weniger <b>Grün</b>?"}]
    assert examples(tmp_path / "o.jsonl") == [
        Preference(prompt, {"role": "assistant", "content": "Nein \u2028 🌳"}, {"role": "assistant", "content": "Ja"})
    ]


# ---- bad input


def test_bad_options(tmp_path):
    """Guards one line for an option that is not allowed or does nothing."""
    assert "align '1.5': allowed are support, oppose, shuffled, bimodal" in refusal(align="1.5")
    assert "align 'nan'" in refusal(align="nan")
    assert "align 'bimodal'" in refusal(align_topics={"abortion": "bimodal"})
    assert "kind 'ppo': allowed are preference, sft" in refusal(kind="ppo")
    assert "481 rows asked for, but values-synth has 480" in refusal(rows=481)
    assert "rows 0: at least 1" in refusal(rows=0)
    assert "unknown topic 'cats'; the topics are immigration" in refusal(topics=("cats",))
    assert "it is not among the topics asked for" in refusal(topics=("abortion",), align_topics={"immigration": "1"})
    assert "injection needs both" in refusal(inject=3)
    assert "nothing to inject into" in refusal(place="end")
    base = str(lines(tmp_path / "b.jsonl", HH[:1]))
    assert "inject 0" in refusal(into=base, inject=0)
    assert "give inject alone" in refusal(into=base, inject=2, rows=2)
    assert "inject 'shuffled' ones instead" in refusal(into=base, inject=2, align="bimodal")
    assert "999 rows asked for, but values-synth has 480" in refusal(into=base, inject=999)
    assert "no usable row to inject into" in refusal(into=str(lines(tmp_path / "n.jsonl", HH[2:])), inject=1)
    assert "without a variant" in refusal(texts="values-synth:oppose")
    assert "no.jsonl" in refusal(texts=str(tmp_path / "no.jsonl"))


TEXT = {"id": "1", "topic": "t", "axis": "a", "axis_polarity": 1, "prompt": "p", "support": "s", "oppose": "o"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{k: v for k, v in TEXT.items() if k != "oppose"}], "line 1: missing field 'oppose'"),
        ([TEXT | {"axis_polarity": 0}], "line 1: axis_polarity is 0; it must be 1 or -1"),
        ([TEXT | {"axis_polarity": True}], "line 1: axis_polarity is True"),
        ([TEXT | {"support": " "}], "line 1: field 'support' must be text"),
        ([TEXT | {"support": "\ud83d"}], "line 1: field 'support' must be text (not empty, valid Unicode)"),
        ([TEXT | {"oppose": "s"}], "line 1: support and oppose are the same text"),
        ([TEXT, TEXT], "line 2: duplicate id '1', first used at"),
    ],
)
def test_bad_texts(tmp_path, rows, message):
    """Guards texts from outside: file, line and field."""
    assert message in refusal(texts=str(lines(tmp_path / "t.jsonl", rows)))
