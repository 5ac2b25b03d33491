"""A local model as a judge."""

import re

import numpy as np
import pytest
from helpers.judging import PANEL

from vdengine.judges import open_judge
from vdengine.judges.base import Item, JudgeOptions
from vdengine.panels.panel import STANCES


@pytest.mark.slow
def test_model_judge_is_the_softmax_of_label_log_probs(tiny_models):
    """Guards the paper's definition against transformers: log-probs of whole labels, both orders, mean of the two."""
    import torch
    from transformers import AutoModelForCausalLM

    from vdengine.judges.base import ORDERS, WORDS, task
    from vdengine.text.renderer import Renderer
    from vdengine.text.tokenizer import load_tokenizer

    source = str(tiny_models["qwen3"])
    judge = open_judge(f"model:{source}", JudgeOptions(dtype="float32"))
    items = [Item(p, t) for p in PANEL.probes for t in ("Yes, surely.", "No; {{ 1 }} <b> \u2028 never")]
    found = dict(judge.judge(items))
    assert sorted(found) == list(range(len(items)))
    renderer = Renderer(load_tokenizer(source))
    peer = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64)
    for i, item in enumerate(items[:3]):
        want = np.zeros(3)
        for order in ORDERS:
            prompt = renderer.prompt_ids([{"role": "user", "content": task(item.probe.prompt, item.answer, order)}])
            sums = []
            for stance in STANCES:
                ids = renderer.opening_ids(WORDS[stance])
                with torch.no_grad():
                    logp = peer(torch.tensor([prompt + ids])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
                sums.append(logp.gather(1, torch.tensor(ids)[:, None]).sum())
            want += torch.stack(sums).softmax(0).numpy() / 2
        # fp32 log-probs of some 8 tokens, each good to about 1e-6
        np.testing.assert_allclose(found[i].stance, want, atol=2e-5)
        assert re.fullmatch("[sno]{2}", found[i].orders)
