"""Small random models with a byte-level tokenizer, as Hugging Face folders: real files for the real loaders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from vdengine.models.families import FAMILIES, LinearScaling, Llama3Scaling, ModelConfig, YarnScaling
from vdengine.models.hf_config import config_to_hf
from vdengine.models.transformer import Transformer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_config(kind: str, vocab_size: int = 259) -> ModelConfig:
    """llama: tied head, llama3 rope scaling. qwen3: untied, heads * head_dim != hidden size, odd vocabulary."""
    return ModelConfig(
        model_type=kind, vocab_size=vocab_size, hidden_size=40, intermediate_size=72, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5,
        rope_theta=1e4 if kind == "llama" else 1e6,
        rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64) if kind == "llama" else None,
        tie_word_embeddings=kind == "llama", max_position_embeddings=4096,
    )  # fmt: skip


def family_configs() -> dict[str, ModelConfig]:
    """Two configs of every family, made from its row, so that a new row is tested by itself. KIND has all that the row
    allows: windows that bite, on some of the layers if the family mixes them, a rotary embedding for these and a scaled
    one for the others, another scale of the scores. "KIND tied": a tied head, full attention, another scaling. Sizes
    are odd, heads * head_dim is not the hidden size, and positions go far beyond those that the scaling knows."""
    configs = {}
    for kind, family in FAMILIES.items():
        c = ModelConfig(
            model_type=kind, vocab_size=131, hidden_size=36, intermediate_size=50, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=2, head_dim=10, rms_norm_eps=1e-5, rope_theta=2e4,
            rope_scaling=YarnScaling(4.0, 1.2, 3.0, 1.0, 32), tie_word_embeddings=False, max_position_embeddings=4096,
            query_pre_attn_scalar=7.0 if "query_pre_attn_scalar" in family.defaults else None,
        )  # fmt: skip
        configs[f"{kind} tied"] = replace(c, tie_word_embeddings=True, rope_scaling=LinearScaling(3.0))
        if family.window != "none":
            c = replace(c, sliding_window=9)
        if family.window in ("upper", "most"):
            c = replace(c, layer_types=("sliding_attention", "full_attention", "sliding_attention"))
        if family.local_rope:
            c = replace(c, local_rope_theta=300.0)
        configs[kind] = c
    return configs


def fill(model: Transformer, seed: int = 0) -> Transformer:
    """Random weights, norms included, of a size at which attention and the head matter."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(
                torch.rand(p.shape, generator=g) + 0.5 if "norm" in name else torch.randn(p.shape, generator=g) * 0.12
            )
    return model


def write_tiny_model(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    # Bytes, and yes and no as tokens, which leads are read by: in the places of bytes that no UTF-8 has.
    words = {"\u00f8": "Ye", "\u00f9": "Yes", "\u00fa": "No"}
    alphabet = [words.get(c, c) for c in sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("Y", "e"), ("Ye", "s"), ("N", "o")]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    c = tiny_config(kind, tokenizer.get_vocab_size())
    raw = config_to_hf(c, "float32", None)
    del raw["rope_parameters"]  # as transformers 4 writes it
    (folder / "config.json").write_text(json.dumps(raw))
    model = fill(Transformer(c))
    save_file({n: p.detach().clone() for n, p in model.named_parameters()}, folder / "model.safetensors")
    return folder
