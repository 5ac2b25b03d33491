"""The same small random model twice: as transformers' class, and as ours through the real loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdengine as vd
from vdengine.models.transformer import Transformer

VOCAB = 517  # odd: no kernel's block divides it
LAYERS = 3


def hf_model(kind: str, *, tied: bool = False, scaled: bool = False, scalar: bool = False, seed: int = 0) -> Any:
    """A random fp32 LlamaForCausalLM or Qwen3ForCausalLM, norms random too (at their initial 1 they hide a missing
    weight). heads * head_dim is not hidden_size. `scaled`: llama3 rope scaling trained for 64 positions. `scalar`: a
    reward model, for sequence classification with one label."""
    import transformers

    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4 if kind == "llama" else 1e6}
    if scaled:
        rope |= {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }  # fmt: skip
    name = {"llama": "Llama", "qwen3": "Qwen3"}[kind]
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, name + ("ForSequenceClassification" if scalar else "ForCausalLM"))
    labels = {"num_labels": 1, "pad_token_id": 1} if scalar else {}
    config = config_class(
        vocab_size=VOCAB, hidden_size=72, intermediate_size=100, num_hidden_layers=LAYERS, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=4096, tie_word_embeddings=tied, rms_norm_eps=1e-5,
        rope_parameters=rope, **labels,
    )  # fmt: skip
    model = model_class(config)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.copy_(torch.rand(p.shape, generator=g) + 0.5)
            else:
                p.copy_(torch.randn(p.shape, generator=g) * 0.15)
    return model.float().eval()


def ours(hf: Any, folder: Path) -> Transformer:
    """Our model with `hf`'s weights and config, by way of a folder that transformers wrote."""
    hf.save_pretrained(folder)
    return vd.load_model(str(folder), dtype=torch.float32)


def random_ids(n: int, g: torch.Generator, vocab: int = VOCAB) -> list[int]:
    return torch.randint(0, vocab, (n,), generator=g).tolist()


def hf_logp(hf: Any, trees: list[vd.Tree]) -> Tensor:
    """Log-probs of all branch tokens, every branch as a sequence of its own: [R] fp32, differentiable."""
    parts = []
    for tree in trees:
        start = len(tree.prompt)
        for branch in tree.branches:
            ids = torch.tensor([tree.prompt + branch])
            logp = hf(ids).logits[0].float().log_softmax(-1)
            parts.append(logp[start - 1 : -1].gather(1, ids[0, start:, None])[:, 0])
    return torch.cat(parts)
