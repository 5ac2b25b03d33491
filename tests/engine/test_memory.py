"""The estimate of memory against what is measured: no run that is promised room may end for want of it."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from helpers.runs import recipe_of
from helpers.tiny import fill, tiny_config
from torch.profiler import ProfilerActivity, profile

from vdengine.engine.memory import Load, activations, estimate, size
from vdengine.engine.trainer import Trainer
from vdengine.models.families import ModelConfig
from vdengine.models.lora import add_lora
from vdengine.models.peft_config import Lora
from vdengine.models.transformer import Transformer
from vdengine.recipe import load_recipe
from vdengine.trees import Tree, pack

ROWS, PROMPT, ANSWER = 8, 60, 40
RECIPES = Path(__file__).resolve().parents[2] / "recipes"


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


def test_an_adapters_state_is_counted_exactly(tmp_path, tiny_models, data):
    """Guards frozen weights, which are kept in the compute dtype, the adapter's state, and what is on disk."""
    recipe = recipe_of("lora_bf16", tmp_path, str(tiny_models["qwen3"]), str(data))
    recipe.probes.every, recipe.checkpoint.export = 0, True
    trainer = Trainer(recipe)
    trainer.step()
    numbers = {True: 0, False: 0}  # bytes, by whether they are trained
    for p in trainer.model.parameters():
        numbers[p.requires_grad] += p.numel() * p.element_size()
    found = estimate(recipe, trainer.weights.config, Load(512, 100), device="cpu", dtype_bytes=2, lora=trainer.lora)
    trainer.close()
    assert found.device["frozen weights"] == numbers[False]
    assert found.device["weights (fp32)"] == found.device["gradients (fp32)"] == numbers[True]
    assert found.device["AdamW's moments (fp32)"] == 2 * numbers[True]
    assert (found.checkpoint, found.export) == (3 * numbers[True], numbers[True])


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_activations_of_adapters(mode):
    """Guards what a layer with an adapter keeps: selective checkpointing must not keep both products of each."""
    config = dataclasses.replace(tiny_config("llama"), num_hidden_layers=6, hidden_size=96, intermediate_size=256)
    model, lora = fill(Transformer(config)), Lora(rank=16)
    add_lora(model, lora)
    for block in model.blocks:
        block.activation_checkpoint = mode
    tokens = ROWS * (PROMPT + ANSWER)
    load = Load(tokens, ROWS, 1, PROMPT / (PROMPT + ANSWER))
    expected = activations(config, load, mode, 4, "cpu", backward=False, lora=lora)
    measured = kept_after_forward(model, 1)
    beside = tokens * (config.hidden_size + config.head_dim) * 4 + ROWS * config.vocab_size * 4 * 3
    assert measured / 1.1 <= expected + beside and expected <= 1.1 * measured, (expected, beside, measured)


LLAMA_8B = ModelConfig(
    model_type="llama", vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128, rms_norm_eps=1e-5, rope_theta=5e5, rope_scaling=None,
    tie_word_embeddings=False, max_position_embeddings=131072,
)  # fmt: skip


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*_lora_*gb.toml")), ids=lambda p: p.stem)
def test_the_arithmetic_in_recipes(path):
    """Guards the memory in a recipe's comments against the estimate, and both against the GPU that it names: 2 GiB
    of it are left to fragments."""
    text, recipe = path.read_text(), load_recipe(path)
    said = dict(re.findall(r"^#   (\S.*?) {2,}([\d.]+ [GM]iB)", text, re.MULTILINE))
    lora = Lora(recipe.lora.rank, recipe.lora.alpha, tuple(recipe.lora.targets))
    tokens, gpu = recipe.batch.tokens, int(re.search(r"(\d+)gb", path.name)[1]) * 2**30
    load = Load(tokens, 2 * tokens // 3, 2, 1 / 3, probe_tokens=48_000, probe_pack=recipe.probes.tokens)
    found = estimate(recipe, LLAMA_8B, load, lora=lora, device_bytes=gpu)
    assert said == {name: size(n) for name, n in found.device.items()} | {"total": size(found.total)}
    assert f"A checkpoint has {size(found.checkpoint)} " in text and f"the export {size(found.export)}." in text
    assert found.total < gpu - 2 * 2**30


def test_sizes_as_read():
    """Guards against 0 GiB for what is small."""
    assert (size(3.2 * 2**30), size(45 * 2**20), size(1)) == ("3.2 GiB", "45 MiB", "1 MiB")
