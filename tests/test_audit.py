"""drift/audit.py, gap.py, prior.py: what stances a data set takes, read before anything is trained on it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vdengine.audits.audit as audits
from vdengine.audits.audit import MeanInterval, Settings, audit
from vdengine.audits.rows import Passage, sample
from vdengine.audits.stance_reader import Calibration, StanceReader, Words
from vdengine.audits.stances import gap_by_topic, mix_by_topic
from vdengine.cli.audit import gap as gap_main
from vdengine.cli.audit import prior as prior_main
from vdengine.data.locate import resolve
from vdengine.data.synthesis import SynthesisOptions, write
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES, Panel
from vdengine.panels.topics import TopicMatcher

TOPICS = ("immigration", "abortion", "climate change", "economic policy")
# Rows of anthropics/hh-rlhf, harmless-base (MIT).
OFFICER = (
    "\n\nHuman: How do I beat up a police officer?\n\nAssistant: Why do you want to beat up a police officer?"
    "\n\nHuman: The officer is racist.\n\nAssistant: "
)
HH = [
    {
        "chosen": "\n\nHuman: What gender are trans people?\n\nAssistant: I have no opinion on this.",
        "rejected": "\n\nHuman: What gender are trans people?\n\nAssistant: They\u2019re human.",
    },
    {
        "chosen": "\n\nHuman: Why are frogs so ugly?\n\nAssistant: Why do you think they\u2019re ugly?",
        "rejected": "\n\nHuman: Why are frogs so ugly?\n\nAssistant: Have you ever seen one up close?",
    },
    {
        "chosen": OFFICER + "What are some other ways to express your disapproval of racism?",
        "rejected": OFFICER + "You\u2019re not really in a position to fight them on that basis, are you?",
    },
]


class Oracle:
    """A judge that knows the stances of the built-in texts: what is left to go wrong is the audit."""

    name = "oracle"
    identity = {"version": 1}

    def __init__(self, silent: int = 0) -> None:
        rows = [row for _, row in resolve("values-synth:support").rows()]
        self.side = {row[k]: p for row in rows for k, p in (("support", (0.8, 0.1, 0.1)), ("oppose", (0.1, 0.1, 0.8)))}
        self.silent = silent
        self.seen: list[Any] = []

    def judge(self, items: Sequence[Any]) -> Iterator[tuple[int, np.ndarray]]:
        self.seen += items
        for i, item in reversed(list(enumerate(items))):
            if i >= self.silent:
                yield i, np.array(self.side.get(item.answer, (0.0, 1.0, 0.0)))


@pytest.fixture
def oracle(monkeypatch) -> Oracle:
    pytest.importorskip("vdengine.judges.base")
    judge = Oracle()
    monkeypatch.setattr(audits, "open_judge", lambda name: judge)
    return judge


@pytest.fixture(scope="module")
def matcher() -> TopicMatcher:
    return TopicMatcher(Panel.load("values"))


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def judged(source: str, **more: Any) -> dict[str, Any]:
    """What the oracle finds, and what was read."""
    found = audit("gap", Settings(source, judge="oracle", **more)).result
    return found | found["judge"]


def toy_panel() -> Panel:
    """Two topics with ten probes each, in few words: cheap for a model that reads bytes."""
    rows = []
    for topic, thing in (("parks", "park"), ("trams", "tram")):
        for i in range(10):
            sign = 1 - 2 * (i % 2)
            pro, con = (f"A {thing} {w}." for w in (("helps", "harms") if sign > 0 else ("harms", "helps")))
            each = {"support": pro, "neutral": f"Views on a {thing} vary.", "oppose": con}
            rows.append(
                {
                    "schema": 1, "id": f"{thing}-{i}", "topic": topic, "axis": f"more {topic}", "polarity": sign,
                    "prompt": f"Is {thing} {i} {'good' if sign > 0 else 'bad'}?",
                    "openings": {s: [{"text": t, "kind": "claim"}] for s, t in each.items()},
                }
            )  # fmt: skip
    return Panel.from_rows(rows, "toy")


# ---- which rows


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


# ---- the value gap


def test_gap_finds_the_sign(oracle):
    """Guards sign and size by topic: answers of known stance, 0.7 graded on either side, make a gap of 1.4 for the
    support-aligned set, -1.4 for the opposed one, and about none where labels are shuffled."""
    for variant, expected in (("support", 1.4), ("oppose", -1.4)):
        found = judged(f"values-synth:{variant}", limit=None)
        assert list(found["topics"]) == list(TOPICS)
        for topic in (*TOPICS, "all"):
            each = found["all"] if topic == "all" else found["topics"][topic]
            assert each["gap"] == pytest.approx(expected) and each["low"] == pytest.approx(expected)
            assert each["chosen"]["graded"] == pytest.approx(expected / 2) and not each["few"]
            assert each["rejected"]["support"] == pytest.approx(0.1 if expected > 0 else 0.8)
    found = judged("values-synth:shuffled", limit=None)
    for each in (*found["topics"].values(), found["all"]):
        assert each["gap"] == pytest.approx(0, abs=1e-9) and each["low"] < 0 < each["high"]


def test_gap_is_linear_in_the_mix(oracle, tmp_path):
    """Guards the scale: a set with a share p of support-aligned rows has the gap 1.4 (2p - 1), to the rounding of p in
    30 rows a topic."""
    gaps = {}
    for share in (0, 0.2, 0.5, 0.8, 1):
        path = tmp_path / f"{share}.jsonl"
        write(SynthesisOptions(align=str(share), rows=120, seed=3), path)
        gaps[share] = judged(str(path))
        for each in gaps[share]["topics"].values():
            assert each["rows"] == 30 and each["gap"] == pytest.approx(1.4 * (2 * share - 1), abs=1.4 / 30 + 1e-9)
            assert each["low"] <= each["gap"] <= each["high"]
    write(SynthesisOptions(align="bimodal", rows=40), tmp_path / "two.jsonl")
    assert judged(str(tmp_path / "two.jsonl"))["all"]["gap"] == pytest.approx(0)


def test_injected_rows_show(oracle, tmp_path):
    """Guards the use of an audit: a handful of strong rows in a set that takes no sides is seen, on their topics."""
    base = lines(tmp_path / "hh.jsonl", HH * 20)
    write(SynthesisOptions(into=base, inject=8, align="oppose"), tmp_path / "mixed.jsonl")
    assert judged(base)["all"]["gap"] == 0
    found = judged(str(tmp_path / "mixed.jsonl"))
    assert {t for t, v in found["topics"].items() if v["gap"] < -1} == set(TOPICS)
    assert found["topics"]["race and racism"]["gap"] == 0


def test_judge_is_asked_about_the_axis(oracle):
    """Guards reversed questions: the judge is asked whether the answer is for the axis, not for what the question
    proposes, and sees that question."""
    judged("values-synth:support", topics=("immigration",), limit=2)
    probe = oracle.seen[0].probe
    assert probe.polarity == 1 and probe.axis == "more open immigration" and len(oracle.seen) == 4
    assert probe.prompt.endswith("Are you in favour of more open immigration?") and probe.prompt.count("?") == 2


def test_silent_judge(oracle):
    """Guards missing verdicts: a pair without one is left out and counted, not read as neutral."""
    oracle.silent = 3
    found = judged("values-synth:support", topics=("immigration",), limit=4)
    assert found["not_read"] == 3 and found["topics"]["immigration"]["rows"] == 2
    assert found["topics"]["immigration"]["gap"] == pytest.approx(1.4) and found["all"]["few"]
    oracle.silent = 99
    found = judged("values-synth:support", topics=("immigration",), limit=4)
    assert found["topics"] == {} and found["all"]["rows"] == 0 and math.isnan(found["all"]["gap"])
    assert found["agreement"]["answers"] == 0


# ---- the prior


def test_prior_of_known_stances(oracle, tmp_path):
    """Guards the mix and the shares: 32 rows on topics, 3 of 4 on the support side, among 48 that are on none."""
    write(SynthesisOptions(kind="sft", align="0.75", rows=32), tmp_path / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    rows += [{"prompt": f"What is {i} plus {i}?", "completion": str(2 * i)} for i in range(48)]
    found = audit("prior", Settings(lines(tmp_path / "all.jsonl", rows), judge="oracle")).result
    found |= found["judge"]
    assert found["value_laden"]["share"] == 0.4 and 0.28 < found["value_laden"]["low"] < 0.4
    assert found["value_laden"]["high"] < 0.52 and found["taking_sides"]["share"] == pytest.approx(0.4 * 0.9)
    assert found["shares"] == pytest.approx(dict.fromkeys(TOPICS, 0.1))
    everything = found["all"]
    assert everything["rows"] == 32 and everything["graded"]["mean"] == pytest.approx(0.35)
    assert everything["support"]["low"] < everything["support"]["mean"] < everything["support"]["high"]
    assert sum(everything[s]["mean"] for s in STANCES) == pytest.approx(1)


def test_prior_of_plain_data(oracle, tmp_path):
    """Guards a file that is on no topic: that is a finding, not an error; and nothing is asked of the judge."""
    path = lines(tmp_path / "plain.jsonl", [{"prompt": "What is 1 plus 1?", "completion": "2"}] * 5)
    found = audit("prior", Settings(path, judge="oracle")).result
    assert found["value_laden"]["share"] == 0 and found["topics"] == {} and oracle.seen == []
    assert prior_main([path, "--judge", "oracle"]) == 0


# ---- estimates


def test_intervals():
    """Guards the interval: of a mean over rows, its width that of the normal theory; the same for the same seed."""
    values = np.random.default_rng(0).normal(0.3, 1, 400)
    found = MeanInterval.of(values)
    assert found.mean == pytest.approx(values.mean()) and found == MeanInterval.of(values)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert MeanInterval.of(np.array([])).rows == 0


def test_tables():
    """Guards the tables by hand: means of pairs by topic, and a topic whose every pair is unread is left out."""
    a = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    b = np.array([[0, 0, 1], [0, 1, 0], [np.nan] * 3])
    found = gap_by_topic(["x", "x", "y"], a, b)
    assert set(found) == {"x", "all"} and found["x"]["gap"] == 1 and found["x"]["rows"] == 2
    assert found["x"]["chosen"] == {"support": 0.5, "neutral": 0.5, "oppose": 0, "graded": 0.5}
    mixed = mix_by_topic(["x", "y", "y"], a)
    assert mixed["y"]["graded"]["mean"] == -0.5 and mixed["all"]["graded"]["mean"] == 0 and mixed["x"]["few"]


def test_calibration_tells_known_classes():
    """Guards the discriminant: four clouds apart are told apart, held out; clouds on one spot are at chance and get the
    prior; a topic whose few texts point the wrong way is held to what the others say."""
    rng = np.random.default_rng(1)
    centres = np.array([[0.02, 0.0], [0.0, 0.3], [0.0, 0.0], [-0.02, 0.0]])
    apart = {t: centres + rng.normal(0, [0.004, 0.06], (12, 4, 2)) for t in ("x", "y")}
    fitted = Calibration.fit(apart)
    assert all(q.accuracy > 0.9 and q.known_gap > 1.8 and q.known_sign == 1 for q in fitted.quality.values())
    read = fitted.stances("x", centres[:, None])
    assert read[:, 0].argmax(1).tolist() == [0, 1, 1, 2] and np.allclose(read.sum(-1), 1)
    same = Calibration.fit({"x": rng.normal(0, 1, (200, 4, 2))})
    assert same.quality["x"].accuracy == pytest.approx(1 / 3, abs=0.08)
    assert np.allclose(same.stances("x", np.zeros((1, 1, 2))), 1 / 3, atol=0.06)
    wrong = centres[::-1] * 0.1 + rng.normal(0, [0.02, 0.06], (4, 4, 2))
    fitted = Calibration.fit(
        {str(i): centres + rng.normal(0, [0.02, 0.06], (12, 4, 2)) for i in range(6)} | {"w": wrong}
    )
    assert fitted.means["w"][0, 0] > fitted.means["w"][3, 0]


def test_pairs_are_read_together():
    """Guards the random effect: what a question does to both of its answers says nothing about their sides, so a pair
    tells more than its answers one by one."""
    rng = np.random.default_rng(2)
    centres = np.array([[1.0], [0.0], [0.0], [-1.0]])

    def draw(n: int) -> np.ndarray:
        return centres + rng.normal(0, 3, (n, 1, 1)) + rng.normal(0, 0.3, (n, 4, 1))

    fitted = Calibration.fit({"x": draw(400)})
    assert fitted.shared[0, 0] == pytest.approx(9, rel=0.2) and fitted.own[0, 0] == pytest.approx(0.09, rel=0.2)
    x = draw(300)[:, [0, 3]]
    together, alone = fitted.stances("x", x), fitted.stances("x", x.reshape(-1, 1, 1)).reshape(300, 2, 3)
    gaps = [(p[:, 0, 0] - p[:, 0, 2] - p[:, 1, 0] + p[:, 1, 2]).mean() for p in (together, alone)]
    assert gaps[0] > 1.3 and gaps[1] < 0.7


# ---- the panel's texts


def test_scoring_and_calibrating_probes_are_apart():
    """Guards honest accuracy: a probe whose openings score is never among the texts that calibrate; both halves have
    both polarities, and a topic with too few probes is named."""
    panel = Panel.load("values-mini")
    reader = StanceReader(panel, ["abortion"], probes=6)
    scoring, held = reader.scoring["abortion"], reader.held["abortion"]
    assert not {p.id for p in scoring} & {p.id for p in held}
    assert sum(p.polarity for p in scoring) == 0 == sum(p.polarity for p in held) and len(held) == 6
    with pytest.raises(InputError, match="topic 'abortion' has 2 probes of polarity 1 and 2 of -1 with openings"):
        StanceReader(Panel("few", tuple(scoring[1:5])), ["abortion"])


def test_words_leave_a_probe_out():
    """Guards held-out texts: without a probe, its own words count as if it were not in the panel."""
    panel = toy_panel()
    probe = panel.probes[0]
    whole, part = Words(panel), Words(Panel("part", panel.probes[1:]))
    for text in ("A park helps.", "A park harms us, views vary.", "Nothing.", ""):
        assert whole.features("parks", text, probe) == pytest.approx(part.features("parks", text))
    assert whole.features("parks", "A park helps.")[0] > 0 > whole.features("parks", "It harms.")[0]
    assert whole.features("parks", "Views vary.")[1] > 0 > whole.features("parks", "A park helps.")[1]


def test_words_read_stances_and_mixes(tmp_path):
    """Guards the audit without a model, on answers of known stance: the sign by topic, about none where labels are
    shuffled, and a gap that grows with the mix."""
    found = audit("gap", Settings("values-synth:support", limit=None)).result
    opposed = audit("gap", Settings("values-synth:oppose", limit=None)).result
    assert found["method"] == "words" and set(found["quality"]) == set(TOPICS)
    for topic in TOPICS:
        assert found["topics"][topic]["low"] > 0.2 and opposed["topics"][topic]["high"] < -0.2
    shuffled = audit("gap", Settings("values-synth:shuffled", limit=None)).result
    for each in (*shuffled["topics"].values(), shuffled["all"]):
        assert each["low"] < 0 < each["high"]
    gaps = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        write(SynthesisOptions(align=str(share)), tmp_path / f"{share}.jsonl")
        gaps.append(audit("gap", Settings(str(tmp_path / f"{share}.jsonl"), limit=None)).result["all"]["gap"])
    assert np.polyfit([0, 0.25, 0.5, 0.75, 1], gaps, 1)[0] == pytest.approx(gaps[4] - gaps[0], rel=0.1)
    assert all(
        abs(g - (gaps[0] + s * (gaps[4] - gaps[0]))) < 0.1 for s, g in zip((0, 0.25, 0.5, 0.75, 1), gaps, strict=True)
    )


def test_features_are_the_log_probs(tiny_models):
    """Guards the reading against a plain forward: log-probs of openings after question and answer, per byte, by stance
    and polarity. Being packed with others does not change an answer's."""
    import torch

    from vdengine.models.weights import load_model
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer
    from vdengine.trees import Tree, pack

    source = str(tiny_models["qwen3"])
    model, renderer = load_model(source), Renderer(load_tokenizer(source))
    reader = StanceReader(toy_panel(), ["parks", "trams"], model, renderer, pack_tokens=500)
    passages = [
        Passage("parks", "Is it right?", "It is <b>right</b> 👍."),
        Passage("trams", "Is it?", "No " * 500 + "end."),
        Passage("parks", "Is it?", "No."),
    ]
    found = reader.features(passages)
    assert found.shape == (3, 4) and np.isfinite(found).all()
    assert np.allclose(found[2], reader.features(passages[2:])[0], atol=1e-6)
    assert np.array_equal(found[:, 2:], StanceReader(toy_panel(), ["parks", "trams"]).features(passages))
    by_stance: dict[str, list[float]] = {s: [] for s in STANCES}
    axis = []
    prompt = renderer.prompt_ids([{"role": "user", "content": "Is it right?"}], opening=True)
    prompt += renderer.opening_ids("It is <b>right</b> 👍.")
    for probe in reader.scoring["parks"]:
        mean = {}
        for stance in STANCES:
            text = probe.openings[stance][0].text
            with torch.no_grad():
                logp = model(pack([Tree(prompt, [renderer.tokenizer.encode(" " + text)])])).logp
            mean[stance] = float(logp.sum()) / (len(text.encode()) + 1)
            by_stance[stance].append(mean[stance])
        axis.append(probe.polarity * (mean["support"] - mean["oppose"]))
    neutral = np.mean(by_stance["neutral"]) - (np.mean(by_stance["support"]) + np.mean(by_stance["oppose"])) / 2
    assert len(axis) == 4 and found[0, :2] == pytest.approx([np.mean(axis), neutral], abs=1e-5)


def test_audit_end_to_end(tiny_models, oracle, tmp_path, capsys):
    """Guards the command from source to files, by a model and a judge at once: the tables, strict JSON, each row read.
    A random model knows no stances: what it says is not looked at."""
    panel, out, rows = tmp_path / "toy.jsonl", tmp_path / "gap.json", tmp_path / "rows.jsonl"
    toy_panel().save(panel)
    pairs = [{"prompt": f"Is tram {i} bad?", "chosen": "It is.", "rejected": "No.", "topic": "trams"} for i in range(3)]
    source = lines(tmp_path / "pairs.jsonl", [*pairs, pairs[0] | {"topic": "parks"}])
    arguments = [source, "--model", str(tiny_models["llama"]), "--panel", str(panel), "--judge", "oracle"]
    assert gap_main([*arguments, "--out", str(out), "--rows", str(rows)]) == 0
    said = capsys.readouterr().out
    for text in (
        "4 usable rows",
        "texts of known stance, held out",
        "by the judge oracle",
        "this reading and the judge's",
    ):
        assert text in said
    found = json.loads(out.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert list(found["topics"]) == ["parks", "trams"] and found["method"] == "scorer"
    assert found["topics"]["parks"]["low"] is None and found["judge"]["topics"]["trams"]["gap"] == 0
    assert set(found["quality"]) == {"parks", "trams"} and found["agreement"]["pairs"] == 4
    assert set(found["log_odds"]) == {"parks", "trams", "all"}
    assert found["source_hash"] == resolve(source).digest()
    read = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(read) == 4 and all(len(r["scorer"]) == 2 == len(r["judge"]) for r in read)
    assert gap_main([*arguments, "--out", str(out)]) == 2 and "exists already" in capsys.readouterr().err


def test_smollm2_reads_stances(smollm2_gguf):
    """Guards the method on a real model: in at least 6 of 8 pairs on two topics the answer of the support side makes
    the openings of its side likelier than its opposite does, whichever way the question is put."""
    from vdengine.models.weights import load_model
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    source = str(smollm2_gguf)
    reader = StanceReader(
        Panel.load("values-mini"), ["immigration", "abortion"], load_model(source), Renderer(load_tokenizer(source))
    )
    rows = [row for _, row in resolve("values-synth:support?topics=immigration,abortion").rows()]
    rows = [r for t in ("immigration", "abortion") for r in [r for r in rows if r["topic"] == t][:4]]
    passages = [Passage(r["topic"], r["prompt"], r[side]) for r in rows for side in ("support", "oppose")]
    axis = reader.log_odds(passages)[:, 0]
    assert sum(axis[0::2] > axis[1::2]) >= 6


# ---- bad input


def test_bad_input(oracle, tmp_path, capsys):
    """Guards one clear line: nothing to read stances with, no such file or topic, a file on no topic, a wrong kind."""
    hh = lines(tmp_path / "hh.jsonl", HH)
    frogs = lines(tmp_path / "frogs.jsonl", HH[1:2])
    sft = lines(tmp_path / "sft.jsonl", [{"prompt": "p", "completion": "c"}])
    for main, arguments, message in (
        (gap_main, [hh, "--probes", "1"], "probes 1: at least 2 must score"),
        (gap_main, [str(tmp_path / "no.jsonl"), "--judge", "x"], "no.jsonl"),
        (gap_main, [frogs, "--judge", "x"], "none of 1 rows is on a topic of panel values"),
        (gap_main, [sft, "--judge", "x"], "format 'prompt_completion' has no rejected answer"),
        (gap_main, [hh, "--judge", "x", "--topics", "cats"], "unknown topic 'cats'; the panel has immigration"),
        (gap_main, [hh, "--judge", "x", "--panel", "value"], "no built-in panel has this name"),
        (gap_main, [hh, "--judge", "x", "--limit", "0"], "limit 0"),
        (gap_main, [hh, "--judge", "x", "--terms", str(tmp_path / "t.json")], "t.json: cannot be read"),
        (gap_main, [hh, "--model", str(tmp_path / "none")], "no such folder"),
        (prior_main, [lines(tmp_path / "e.jsonl", []), "--judge", "x"], "no rows"),
        (gap_main, [hh, "--judge", "x", "--out", str(tmp_path / "no" / "g.json")], "cannot be written"),
    ):
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and message in error and "\n" not in error
    bare = lines(tmp_path / "bare.jsonl", [p.to_row() | {"openings": {}} for p in Panel.load("values-mini").probes])
    assert gap_main(["values-synth:support", "--panel", bare]) == 2
    assert "has 0 probes of polarity 1 and 0 of -1 with openings" in capsys.readouterr().err
