"""Scores of models that are not ours: right for every kind of model, or refused by name.

Tolerance: a branch is 50 to 90 tokens of 5 to 9 nats, 500 nats in all. fp32 evaluations of one model in another order
differ by up to 64 EPS of what they add up (tests/models/test_transformer.py): 64 * 2^-23 * 512 = 4e-3. An opening that
sees another one, a window, soft cap or scale that is left out, shows as a tenth of a nat a token and more.
"""

import numpy as np
import pytest
import torch
from helpers.causal_lms import KINDS, OURS, by_its_own_logits, causal_lm, small_panel
from torch import nn

from vdengine.engine.saved_models import score
from vdengine.errors import InputError
from vdengine.integrations.foreign import ForeignModel, row_units
from vdengine.integrations.scorer import PanelScorer

NATS = 64 * 2.0**-23 * 512


@pytest.mark.parametrize("layout", ["trees", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_models_own_logits(kind, layout, tok, panel):
    """Guards every kind of model: windows, soft caps, scales, biases, learned positions; each opening alone, by the
    model's own forward, is the truth."""
    if kind == "mamba" and layout == "trees":
        pytest.skip("has no mask")
    model = causal_lm(kind)
    scorer = PanelScorer(panel, tok, layout=layout, controls=False, tokens=1024)
    found = scorer.score(model, 0)
    assert scorer.layout == layout and found.note == ""
    assert np.abs(found.logp - by_its_own_logits(model, panel, tok)).max() < NATS


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3"])
def test_eager_attention_takes_trees_too(kind, tok, panel):
    """Guards the mask that is added to scores, where a bool would be added as 0 and 1."""
    model = causal_lm(kind, attention="eager")
    scorer = PanelScorer(panel, tok, controls=False, tokens=1024)
    assert np.abs(scorer.score(model, 0).logp - by_its_own_logits(model, panel, tok)).max() < NATS
    assert scorer.layout == "trees"


@pytest.mark.parametrize("kind", OURS)
def test_scores_equal_vdengine_score_on_the_saved_folder(kind, tok, panel, tmp_path):
    """Guards that a curve in another trainer and `vdengine score` afterwards are one and the same."""
    model = causal_lm(kind)
    found = PanelScorer(panel, tok, tokens=1024).score(model, 0)
    model.save_pretrained(tmp_path / "saved")
    tok.save_pretrained(tmp_path / "saved")
    panel.save(tmp_path / "small.jsonl")
    saved = score([str(tmp_path / "saved")], str(tmp_path / "small.jsonl"), tokens=1024, say=lambda text: None)
    assert saved.shape == (1, len(found.logp)) and np.isfinite(saved).all()  # the controls too
    assert np.abs(found.logp - saved[0]).max() < NATS


def test_an_attention_that_passes_over_its_mask_is_found_out(tok, panel):
    """Guards against openings that see each other: kernels of one's own may take a mask and not look at it. The model
    is given rows then, and it is said."""
    from transformers import AttentionInterface

    def blind(module, query, key, value, attention_mask, **options):
        return sdpa(module, query, key, value, None, **options | {"is_causal": True})

    sdpa = AttentionInterface._global_mapping["sdpa"]
    AttentionInterface._global_mapping["sdpa"] = blind
    try:
        model = causal_lm("llama")
        found = PanelScorer(panel, tok, controls=False, tokens=1024).score(model, 0)
        truth = by_its_own_logits(model, panel, tok)
        with pytest.raises(InputError, match=r"layout 'trees': LlamaForCausalLM does not keep to a mask of trees"):
            PanelScorer(panel, tok, layout="trees").score(model, 0)
    finally:
        AttentionInterface._global_mapping["sdpa"] = sdpa
    assert "does not keep to a mask of trees (log-probs are off by" in found.note and "padded rows" in found.note
    assert np.abs(found.logp - truth).max() < NATS


def test_flash_attention_and_models_without_masks_are_given_rows(tok, panel):
    """Guards what is said, once, of a model that cannot take trees."""
    model = causal_lm("llama")
    scorer = PanelScorer(panel, tok, controls=False, tokens=1024)
    model.config._attn_implementation = "mine"  # as flash_attention_2 is named there
    from transformers import AttentionInterface

    AttentionInterface.register("mine", AttentionInterface._global_mapping["sdpa"])
    first, second = scorer.score(model, 0), scorer.score(model, 1)
    assert first.note.startswith("attention 'mine' takes no mask of trees (these do: sdpa, eager)") and not second.note
    found = PanelScorer(panel, tok, controls=False).score(causal_lm("mamba"), 0)
    assert found.note.startswith("the forward of MambaForCausalLM takes no position_ids")


class Plain(nn.Module):
    """Not of transformers: token ids in, logits out, as in torchtitan."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.output = inner.model, inner.lm_head

    def forward(self, tokens):
        return self.output(self.inner(tokens).last_hidden_state)


def test_a_module_that_takes_token_ids_is_scored_with_its_head_named(tok, panel):
    """Guards models of other libraries: their head is given, as a linear layer."""
    model = causal_lm("qwen3")
    expected, plain = by_its_own_logits(model, panel, tok), Plain(model)
    scorer = PanelScorer(panel, tok, controls=False, tokens=1024, head=plain.output)
    assert np.abs(scorer.score(plain, 0).logp - expected).max() < NATS and scorer.layout == "rows"
    with pytest.raises(InputError, match="Plain has no output head"):
        PanelScorer(panel, tok).score(plain, 0)
    with pytest.raises(InputError, match="head is a Embedding: only nn.Linear"):
        PanelScorer(panel, tok, head=nn.Embedding(3, 4)).score(plain, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_the_forward_changes_in_an_unknown_way_are_refused(dtype, tok, panel):
    """Guards against log-probs of another distribution, which look like log-probs: in bf16, where the rounding of
    activations would hide it, too."""
    model = causal_lm("llama").to(dtype)
    forward = model.forward

    def changed(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 0.9
        return out

    model.forward = changed
    with pytest.raises(InputError, match="what it does to logits is not supported"):
        PanelScorer(panel, tok).score(model, 0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_of_the_training_is_touched(checkpointing, tok, panel):
    """Guards bit-equal training: modes of modules, random numbers, gradients, hooks and weights stay as they are."""
    model = causal_lm("llama")
    if checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    model.model.layers[0].eval()  # someone has frozen a part
    model(torch.arange(9)[None], labels=torch.arange(9)[None]).loss.backward()
    before = {n: (p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters()}
    modes, random = {n: m.training for n, m in model.named_modules()}, torch.get_rng_state()
    PanelScorer(panel, tok).score(model, 0)
    assert modes == {n: m.training for n, m in model.named_modules()}
    assert torch.equal(random, torch.get_rng_state())
    assert not any(m._forward_pre_hooks for m in model.modules())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name][0]) and torch.equal(p.grad, before[name][1])


def test_peft_and_autocast(tok, panel):
    """Guards adapters, in place while they are scored and without their dropout; and mixed precision, whose log-probs
    are those of bf16: 2^-8 of an activation a layer, at random over tokens."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(
        causal_lm("llama"),
        peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    model.train()
    scorer = PanelScorer(panel, tok, controls=False, tokens=1024)
    found, adapted = scorer.score(model, 0), by_its_own_logits(model, panel, tok)
    assert scorer.layout == "trees" and np.abs(found.logp - adapted).max() < NATS
    with model.disable_adapter():
        assert np.abs(by_its_own_logits(model, panel, tok) - adapted).max() > 1
    with torch.autocast("cpu", torch.bfloat16):
        rounded = PanelScorer(panel, tok, controls=False, tokens=1024).score(model, 0)
    per_token = (rounded.logp - adapted) / [len(r.answer_ids) for r in panel.requests(tok)]
    assert 1e-6 < np.abs(per_token).max() < 0.05


@pytest.mark.parametrize("where", ["model", "in place", "layers"])
def test_compiled_models_run_as_they_were_written(where, tok, panel):
    """Guards torch.compile: a hook at the head that compiled code would pass over, and shapes that would use up its
    limit of recompilations and leave training uncompiled."""
    import torch._dynamo

    model = causal_lm("llama")
    expected = by_its_own_logits(model, panel, tok)
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    wrapped = torch.compile(model, backend=backend) if where == "model" else model
    for module in [model] if where == "in place" else model.model.layers if where == "layers" else []:
        module.compile(backend=backend)
    tokens = torch.arange(12)[None]
    wrapped(tokens)
    count = len(compiled)
    assert count > 0
    found = PanelScorer(panel, tok, controls=False, tokens=1024).score(wrapped, 0)
    assert np.abs(found.logp - expected).max() < NATS and len(compiled) == count
    wrapped(tokens)
    torch._dynamo.reset()


def test_what_goes_wrong_far_in_a_forward_is_found_before_the_first_score(tok):
    """Guards against a layout that is right for a short first probe only: GPT-Neo counts its window in rows and not in
    positions, so a tree beyond it would see too little."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=259, hidden_size=48, num_layers=2, num_heads=4, intermediate_size=80, window_size=256,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=2048, bos_token_id=0, eos_token_id=258,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPTNeoForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.15)
    panel = small_panel()
    scorer = PanelScorer(panel, tok, controls=False, tokens=1024)
    found = scorer.score(model, 0)
    assert np.abs(found.logp - by_its_own_logits(model, panel, tok)).max() < NATS and scorer.layout == "rows"


def test_a_dynamic_rotary_embedding_is_left_as_it_was(tok, panel):
    """Guards bit-equal training of models whose forward puts other frequencies into its buffers."""
    model = causal_lm("llama")
    rotary = model.model.rotary_emb
    before = {name: buffer for name, buffer in rotary._buffers.items()}

    forward = rotary.forward

    def stretched(*args, **kwargs):
        rotary._buffers["inv_freq"] = rotary.inv_freq * 0.5
        rotary.max_seq_len_cached = 9
        return forward(*args, **kwargs)

    rotary.max_seq_len_cached = 2048
    rotary.forward = stretched
    model.train()
    with torch.no_grad():
        foreign = ForeignModel(model)
        foreign.score(row_units([(PanelScorer(panel, tok)._try_out(), torch.arange(99))], max_tokens=1)[-1])
    assert all(rotary._buffers[name] is buffer for name, buffer in before.items()) and rotary.max_seq_len_cached == 2048


def test_reduced_precision_of_fp32_products_is_no_unknown_model(tok, panel):
    """Guards TF32, and bf16 products of fp32 on a CPU: their rounding is that of 16 bits, and nothing is refused."""
    model = causal_lm("llama")
    torch.set_float32_matmul_precision("medium")
    try:
        scorer = PanelScorer(panel, tok, controls=False, tokens=1024)
        found = scorer.score(model, 0)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert scorer.layout == "trees" and found.note == ""
    per_token = (found.logp - by_its_own_logits(model, panel, tok)) / [len(r.answer_ids) for r in panel.requests(tok)]
    assert np.abs(per_token).max() < 0.05
