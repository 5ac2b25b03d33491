"""What is read of other people's models, and what is refused by name."""

from types import SimpleNamespace

import pytest
import torch
from helpers.causal_lms import KINDS, causal_lm
from torch import nn

from vdengine.errors import InputError
from vdengine.integrations.causal_lm import POINTS, read_head, unwrap

pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_gives_the_models_logits(kind):
    """Guards the keys of configs: a scale or a cap that is not read, or the wrong way round, gives log-probs of another
    distribution. Every family that we test with."""
    model = causal_lm(kind).eval()
    head = read_head(model)
    seen = []
    hook = head.module.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        logits = model(input_ids=torch.arange(3, 20)[None]).logits
    hook.remove()
    (hidden, linear) = seen[0]
    assert torch.equal(linear, nn.functional.linear(hidden, head.weight, head.bias))
    # the same operations in another order: a unit in the last place of the largest logit, four of them
    assert torch.allclose(head.transform(linear), logits.float(), rtol=2**-21, atol=2**-21 * logits.abs().max().item())
    assert (head.softcap, head.scale) == {
        "gemma2": (2.0, 1.0), "cohere": (None, 0.25), "granite": (None, 0.25),
    }.get(kind, (None, 1.0))  # fmt: skip
    assert (head.bias is not None) == (kind == "phi")


@pytest.mark.parametrize(
    ("config", "softcap", "scale"),
    [
        ({"model_type": "hyperclovax", "logits_scaling": 0.5}, None, 0.5),
        ({"model_type": "minicpm3", "logits_scaling": 4.0}, None, 1.0),  # its hidden states are divided
        ({"model_type": "falcon_h1", "lm_head_multiplier": 0.1}, None, 0.1),
        ({"model_type": "recurrent_gemma", "logits_soft_cap": 30.0}, 30.0, 1.0),
        ({"model_type": "mpt", "logit_scale": None}, None, 1.0),
    ],
)
def test_keys_of_other_configs(config, softcap, scale):
    """Guards families that are too much to run here, by what their forwards of transformers do with these keys."""
    model = causal_lm("llama")
    model.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(**config))
    assert read_head(model)[1:] == (softcap, scale)


def test_a_transformation_that_the_config_does_not_say_is_found():
    """Guards against models that do something else to their logits."""
    head, model = read_head(causal_lm("gemma2")), nn.Identity()
    points = torch.tensor(POINTS)
    head.check(model, head.transform(points).bfloat16())
    for other in (points, 2 * torch.tanh(points / 2) * 1.1, -2 * torch.tanh(points / 2)):
        with pytest.raises(InputError, match=r"Identity makes logits .* not supported"):
            head.check(model, other)


def test_wrappers_are_taken_off():
    """Guards each wrapper alone and around the others."""
    peft = pytest.importorskip("peft")
    model = causal_lm("llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    compiled = torch.compile(adapted)
    engine = type("DeepSpeedEngine", (nn.Module,), {})()
    engine.module = compiled
    data_parallel = type("DistributedDataParallel", (nn.Module,), {})()
    data_parallel.module = engine
    for wrapped in (model, adapted, compiled, engine, data_parallel):
        assert unwrap(wrapped) is model and read_head(wrapped).module is model.lm_head


def without_head():
    import transformers

    return transformers.LlamaModel(transformers.LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    ))  # fmt: skip


def with_head(change):
    model = causal_lm("llama")
    change(model)
    return model


class Quantised(nn.Parameter):
    """Stands for bitsandbytes' Params4bit and torchao's tensors: a subclass of Parameter."""


def quantise(model):
    model.lm_head.weight = Quantised(torch.zeros(3, 48, dtype=torch.uint8), requires_grad=False)


def quantise_with_a_dtype(model):
    model.lm_head.weight = Quantised(torch.zeros(3, 48))


def adapt(model, **options):
    import peft

    return peft.get_peft_model(model, peft.LoraConfig(**options))


def tune_prompt(model):
    import peft

    return peft.get_peft_model(model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(3, 4), "Linear has no output head"),
        (without_head, "LlamaModel has no output head"),
        (lambda: with_head(lambda m: setattr(m, "lm_head", nn.Identity())), "torch's Identity: only nn.Linear"),
        (lambda: with_head(quantise), "quantised (Quantised, torch.uint8)"),
        (lambda: with_head(quantise_with_a_dtype), "quantised (Quantised, torch.float32)"),
        (lambda: with_head(lambda m: setattr(m.lm_head, "forward", m.lm_head.forward)), "head was replaced"),
        (lambda: adapt(causal_lm("qwen3"), target_modules=["lm_head"]), "carries an adapter of PEFT"),
        (
            lambda: adapt(causal_lm("qwen3"), target_modules=["q_proj"], modules_to_save=["lm_head"]),
            "carries an adapter of PEFT (peft's ModulesToSaveWrapper)",
        ),
        (lambda: tune_prompt(causal_lm("qwen3")), "'default' (PROMPT_TUNING) adds tokens to the prompt"),
    ],
)
def test_heads_that_are_refused(make, message):
    """Guards against numbers that would be of another head: one line that says which."""
    pytest.importorskip("peft")
    with pytest.raises(InputError) as error:
        read_head(make())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_fsdp1_is_refused(monkeypatch):
    """Guards against weights that are pieces of a flat parameter. Wrapping needs a process group: a stand-in's class
    is that of FSDP1."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = causal_lm("llama")
    model.model.layers[0].mlp.__class__ = type("Wrapped", (FullyShardedDataParallel,), {"__init__": lambda self: None})
    with pytest.raises(InputError, match="FSDP1"):
        read_head(model)
