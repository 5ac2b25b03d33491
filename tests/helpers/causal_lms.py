"""Small random causal language models of transformers, with the byte tokenizer of `helpers.tiny`, and a small panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from vdengine.panels.panel import Panel

COMMON: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "bos_token_id": None, "eos_token_id": 258,
    "pad_token_id": 256,
}  # fmt: skip
MIXED = ["sliding_attention", "full_attention"]
# name: transformers' class without "Config", and what differs. Windows are smaller than a prompt of the panel.
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": 24, "head_dim": 12}),
    "olmo2": ("Olmo2", {}),
    "olmo3": ("Olmo3", {"sliding_window": 24, "layer_types": MIXED}),
    "gemma3": ("Gemma3Text", {"sliding_window": 24, "layer_types": MIXED, "head_dim": 16, "query_pre_attn_scalar": 16}),
}  # fmt: skip
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma2": ("Gemma2", {"sliding_window": 24, "layer_types": MIXED, "head_dim": 16, "query_pre_attn_scalar": 16,
                          "final_logit_softcapping": 2.0}),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "granite": ("Granite", {"logits_scaling": 4.0}),
    "phi": ("Phi", {}),  # its head has a bias
    "gpt2": ("GPT2", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 2048}),
    "mamba": ("Mamba", {"state_size": 8}),  # no attention at all
}  # fmt: skip
KINDS = OURS | OTHERS
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM", "GPT2": "GPT2LMHeadModel"}


def causal_lm(kind: str, seed: int = 0, attention: str | None = None) -> Any:
    """A model whose log-probs depend on all that it should see: weights larger than an initialisation's."""
    import transformers

    name, more = KINDS[kind]
    options = (
        COMMON | more if name != "GPT2" else {k: v for k, v in COMMON.items() if "token" in k or "vocab" in k} | more
    )
    config = getattr(transformers, f"{name}Config")(**options)
    if kind != "mamba":
        config._attn_implementation = attention or ("eager" if kind == "gemma2" else "sdpa")
    torch.manual_seed(seed)
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 0.15)
    return model


def tokenizer(folder: Path) -> Any:
    """The byte tokenizer of a folder of `tiny_models`, as transformers opens it."""
    import transformers

    return transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def small_panel(probes: int = 6) -> Panel:
    """The first probes of two topics."""
    mini = Panel.load("values-mini")
    half = [p for p in mini.probes if p.topic == mini.topics[1]][: probes // 2]
    return Panel("small", (*mini.probes[: probes - len(half)], *half))


def sampled(scorer: Any) -> np.ndarray:
    """[branches] int64: the places of what every sample of a scorer has, in the order of `Panel.requests`."""
    return np.sort(np.concatenate([scorer.packs.slots[i].numpy() for i in scorer.packs.part(0, 1)]))


def by_its_own_logits(model: Any, panel: Panel, tokenizer: Any) -> np.ndarray:
    """[branches] float64, nats: log-prob sums of the panel by the model's own forward of each opening alone."""
    modes = [(m, m.training) for m in model.modules()]
    sums = []
    model.eval()
    with torch.no_grad():
        for request in panel.requests(tokenizer):
            ids = torch.tensor([request.prompt_ids + request.answer_ids])
            logp = model(ids).logits[0].double().log_softmax(-1)
            n = len(request.prompt_ids)
            sums.append(float(logp[n - 1 : -1].gather(-1, ids[0, n:, None]).sum()))
    for module, mode in modes:
        module.training = mode
    return np.array(sums)
