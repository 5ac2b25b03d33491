"""Which rows of a file are on a topic."""

from __future__ import annotations

import json

from helpers.audits import HH, TOPICS, lines

from vdengine.audits.rows import sample


def test_rows_on_a_topic(tmp_path, matcher):
    """Guards the choice of rows: the question that was answered decides, not what was said before it."""
    found = sample(lines(tmp_path / "hh.jsonl", HH), "preference", matcher)
    assert found.usable == 3 and found.on_topic == {"gender and LGBTQ+ rights": 1, "race and racism": 1}
    assert [r.question for r in found.rows] == ["What gender are trans people?", "The officer is racist."]
    assert found.rows[0].answers == ("I have no opinion on this.", "They\u2019re human.")
    assert found.rows[0].where.endswith("line 1") and "racist" in found.rows[1].terms
    talk = [
        {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Go on."},
        {"role": "user", "content": "Is abortion right?"}, {"role": "assistant", "content": "That is for you to say."},
        {"role": "user", "content": "Thanks."}, {"role": "assistant", "content": "You are welcome."},
    ]  # fmt: skip
    chat = lines(tmp_path / "chat.jsonl", [{"messages": talk}])
    row = sample(chat, "sft", matcher).rows[0]
    assert (row.topic, row.question, row.answers) == ("abortion", talk[2]["content"], (talk[3]["content"],))
    last = lines(tmp_path / "last.jsonl", [{"prompt": talk[:5], "completion": "You are welcome."}])
    assert sample(last, "sft", matcher).rows == []


def test_named_topics_and_limits(matcher):
    """Guards rows that name their topic: all are taken, whatever their words; a limit takes some of each topic, in file
    order, by the seed."""
    everything = sample("values-synth:support", "preference", matcher)
    assert everything.on_topic == dict.fromkeys(TOPICS, 120) and len(everything.rows) == 480
    some = [sample("values-synth:support", "preference", matcher, limit=5, seed=s) for s in (1, 1, 2)]
    assert some[0] == some[1] != some[2] and len(some[0].rows) == 20
    places = [int(r.where.rsplit(" ", 1)[1]) for r in some[0].rows[:5]]
    assert places == sorted(places) and some[0].on_topic == everything.on_topic
    one = sample("values-synth:support", "preference", matcher, topics=["abortion"])
    assert {r.topic for r in one.rows} == {"abortion"}


def test_a_topic_from_every_kind_of_file(tmp_path, matcher):
    """Guards a row's own topic against being lost in files whose columns are chosen."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    rows = [{"prompt": "Is it right?", "completion": "It is.", "topic": "abortion", "n": i} for i in range(3)]
    table = pyarrow.Table.from_pylist(rows)
    lines(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(table, tmp_path / "c.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "d.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("a.jsonl", "b.json", "c.parquet", "d.arrow"):
        assert sample(str(tmp_path / name), "sft", matcher).on_topic == {"abortion": 3}, name


def test_answers_that_are_not_trained_on_are_not_audited(tmp_path, matcher):
    """Guards the prior: a turn that the data marks teaches nothing."""
    talk = [
        {"role": "user", "content": "Is abortion right?"}, {"role": "assistant", "content": "Yes.", "train": False},
        {"role": "user", "content": "And abortion by law?"}, {"role": "assistant", "content": "No."},
    ]  # fmt: skip
    assert sample(lines(tmp_path / "a.jsonl", [{"messages": talk}]), "sft", matcher).rows[0].answers == ("No.",)
