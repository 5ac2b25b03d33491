"""The estimate of memory against what is measured: no run that is promised room may end for want of it."""

import dataclasses

import pytest
import torch
from helpers.runs import recipe_of
from helpers.tiny import fill, tiny_config
from torch.profiler import ProfilerActivity, profile

from vdengine.engine.memory import Load, activations, estimate, size
from vdengine.engine.trainer import Trainer
from vdengine.models.transformer import Transformer
from vdengine.trees import Tree, pack

ROWS, PROMPT, ANSWER = 8, 60, 40


def kept_after_forward(model: Transformer, branches: int) -> int:
    """Bytes that are allocated in a forward and not freed in it: what waits for backward."""
    g = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(0, 250, (n,), generator=g).tolist()

    # one scored token a branch, so that the head is small beside the layers
    scored = [[False] * (ANSWER - 1) + [True]] * branches
    p = pack([Tree(ids(PROMPT), [ids(ANSWER) for _ in range(branches)], scored) for _ in range(ROWS)])
    model(p)  # rotary tables and other things that stay
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        out = model(p)
    events = prof.profiler.kineto_results.events()
    assert out.logp.requires_grad
    return sum(e.nbytes() for e in events if e.name() == "[memory]")


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize(("kind", "branches"), [("llama", 1), ("qwen3", 2)])
def test_activations(kind, branches, mode):
    """Guards the formula of each mode of checkpointing: within 10% of what torch keeps of a forward, and in mode full,
    where the layers keep little, of what the head and the packing keep beside them too."""
    config = dataclasses.replace(tiny_config(kind), num_hidden_layers=6, hidden_size=96, intermediate_size=256)
    model = fill(Transformer(config))
    for block in model.blocks:
        block.activation_checkpoint = mode
    tokens = ROWS * (PROMPT + branches * ANSWER)
    load = Load(tokens, ROWS * branches, branches, PROMPT / (PROMPT + branches * ANSWER))
    expected = activations(config, load, mode, 4, "cpu", backward=False)
    measured = kept_after_forward(model, branches)
    # the embedding's rows, the rotary tables, and ROWS * branches rows of logits are no layer's
    beside = tokens * (config.hidden_size + config.head_dim) * 4 + ROWS * branches * config.vocab_size * 4 * 3
    assert measured / 1.1 <= expected + beside and expected <= 1.1 * measured, (expected, beside, measured)


def test_state_is_counted_exactly(tmp_path, tiny_models, data):
    """Guards weights, gradients and moments: the bytes of a trainer's own tensors."""
    trainer = Trainer(recipe_of("probes_off", tmp_path, str(tiny_models["qwen3"]), str(data)))
    trainer.step()
    state = trainer.trained[0].optimizer.state
    moments = sum(s[m].numel() * s[m].element_size() for s in state.values() for m in ("exp_avg", "exp_avg_sq"))
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
    config = trainer.weights.config
    trainer.close()
    found = estimate(trainer.recipe, config, Load(512, 100), device="cpu", dtype_bytes=4)
    assert found.device["weights (fp32)"] == found.device["gradients (fp32)"] == weights
    assert found.device["AdamW's moments (fp32)"] == moments
    assert found.checkpoint == weights + moments and found.total == sum(found.device.values())


def test_what_adds_to_it(tmp_path, tiny_models, data):
    """Guards the parts that a recipe switches on, and what sharding divides."""
    config = dataclasses.replace(tiny_config("llama"), num_hidden_layers=8, hidden_size=512, vocab_size=4096)
    load = Load(4096, 2000, 2, 0.5)

    def of(name: str, ranks: int = 1, **options) -> dict:
        recipe = recipe_of(name, tmp_path, str(tiny_models["llama"]), str(data))
        return dict(estimate(recipe, config, load, ranks=ranks, dtype_bytes=2, **options).device)

    base, live, ppo = of("base"), of("live"), of("ppo")
    assert live["reference model"] == 2 * config.num_parameters and "reference model" not in base
    assert ppo["value model, trained"] > 16 * config.num_parameters and "copy for sampling" in ppo
    assert "copy for sampling" in of("answers") and "copy for sampling" not in base
    assert "copy for sampling" not in of("ppo_sharded")
    assert of("base", ranks=8)["AdamW's moments (fp32)"] == base["AdamW's moments (fp32)"] // 8
    assert of("base", ranks=8)["activations"] == base["activations"] > of("full_checkpointing")["activations"]
    recipe = recipe_of("base", tmp_path, str(tiny_models["llama"]), str(data))
    on_gpu = estimate(recipe, config, load, device="cuda", dtype_bytes=2)
    on_cpu = estimate(recipe, config, load, device="cpu", dtype_bytes=2)
    assert on_gpu.host and "checkpoint's copy" in on_cpu.device and not on_cpu.host


def test_sizes_as_read():
    """Guards against 0 GiB for what is small."""
    assert (size(3.2 * 2**30), size(45 * 2**20), size(1)) == ("3.2 GiB", "45 MiB", "1 MiB")
