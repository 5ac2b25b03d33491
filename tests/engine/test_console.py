"""What a person sees while a run goes on."""

import numpy as np
import pytest
from helpers.runs import recipe_of

from vdengine.engine import console
from vdengine.engine.trainer import Trainer


@pytest.mark.slow
def test_plan_and_movers(tmp_path, tiny_models, data):
    """Guards what is printed: the budget of answers before the run, the topics that move and new anchors during it."""
    trainer = Trainer(recipe_of("answers", tmp_path, str(tiny_models["qwen3"]), str(data)))
    plan = console.plan(trainer)
    assert "answers 4 to each of 8 probes (6 at the start), up to 6 tokens, at steps 0, 4, and at up to 2 more" in plan
    assert "at most 864 tokens to generate and 144 answers to judge" in plan  # 8 x (6 + 3 x 4) answers of 6 tokens
    rows = [trainer.step()]
    assert "6 answers to each of 8 probes drawn (as planned)" in trainer.probes.note
    rows += [trainer.step() for _ in range(3)]
    trainer.close()
    gates = [r for r in rows if "answers/kl" in r]
    assert gates and all(r["answers/ess"] <= 1 + 1e-6 and np.isfinite(r["answers/kl"]) for r in gates)
    line = console.movers(trainer.probes.latest)
    assert line.startswith("openings at step 3") and any(t in line for t in trainer.probes.openings.panel.topics)
