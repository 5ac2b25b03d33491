"""Stances read from words and from log-probs: what is calibrated on known texts, held out."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.audits import toy_panel

from vdengine.audits.rows import Passage
from vdengine.audits.stance_reader import Calibration, StanceReader, Words
from vdengine.data.locate import resolve
from vdengine.errors import InputError
from vdengine.panels.panel import STANCES, Panel

# ---- estimates


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


@pytest.mark.slow
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


@pytest.mark.slow
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
