"""The same small random model twice: as transformers' class, and as ours through the real loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vdengine as vd
from vdengine.models.families import Llama3Scaling, ModelConfig
from vdengine.models.hf_config import config_to_hf
from vdengine.models.transformer import Transformer

VOCAB = 517  # odd: no kernel's block divides it
LAYERS = 3


def hf_model(kind: str, *, tied: bool = False, scaled: bool = False, scalar: bool = False, seed: int = 0) -> Any:
    """A random fp32 model of a family, norms random too (at their initial 1 they hide a missing weight). heads *
    head_dim is not hidden_size. `scaled`: llama3 rope scaling trained for 64 positions. `scalar`: a reward model."""
    config = ModelConfig(
        model_type=kind, vocab_size=VOCAB, hidden_size=72, intermediate_size=100, num_hidden_layers=LAYERS,
        num_attention_heads=6, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5,
        rope_theta=1e4 if kind == "llama" else 1e6, rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64) if scaled else None,
        tie_word_embeddings=tied, max_position_embeddings=4096, head="scalar" if scalar else "causal",
    )  # fmt: skip
    return hf_of(config, seed)


def hf_of(config: ModelConfig, seed: int = 0) -> Any:
    """A random fp32 model of transformers with this config; a reward model for sequence classification with one
    label."""
    import transformers

    raw = config_to_hf(config, "float32", None) | ({"pad_token_id": 1} if config.head == "scalar" else {})
    hf_config = transformers.AutoConfig.for_model(**raw)
    auto = transformers.AutoModelForCausalLM
    if config.head == "scalar":
        auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(hf_config)
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
