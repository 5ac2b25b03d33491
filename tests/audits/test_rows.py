"""Which rows of a file are on a topic."""

from __future__ import annotations

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
